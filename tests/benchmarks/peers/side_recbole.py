"""RecBole's side: its data set, loader, SASRec and Trainer, leave one out with all prefixes as training samples."""

import tempfile
from pathlib import Path

import numpy as np
import protocol
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed


class RecBole(protocol.Side):
    def __init__(self, data: Path, model: str) -> None:
        super().__init__(data, model)
        folder = Path(tempfile.mkdtemp())
        (folder / "shop").mkdir()
        rows = zip(self.data["flat_user"].tolist(), self.data["flat_item"].tolist(), strict=True)
        lines = [f"{user}\t{item}\t{place}\n" for place, (user, item) in enumerate(rows)]
        text = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(lines)
        (folder / "shop" / "shop.inter").write_text(text)
        settings = {
            "data_path": str(folder),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
            "MAX_ITEM_LIST_LENGTH": protocol.LENGTH,
            "train_neg_sample_args": None,
            "train_batch_size": protocol.BATCH,
            "eval_batch_size": 1024,
            "metrics": ["Recall", "NDCG", "MRR", "Hit"],
            "topk": [10, 20],
            "hidden_size": protocol.DIM,
            "inner_size": protocol.DIM,
            "n_heads": 1,
            "hidden_dropout_prob": protocol.DROPOUT,
            "attn_dropout_prob": protocol.DROPOUT,
            "learning_rate": protocol.LR,
            "loss_type": "CE",
            "use_gpu": False,
            "show_progress": False,
            "state": "ERROR",
            "checkpoint_dir": str(folder),
        }
        self.config = Config(model="SASRec", dataset="shop", config_dict=settings)
        init_seed(0, True)
        self.dataset = create_dataset(self.config)
        self.loader, _, self.test = data_preparation(self.config, self.dataset)
        torch.set_num_threads(protocol.THREADS)

    def reset(self) -> None:
        init_seed(0, True)
        self.trainer = Trainer(self.config, SASRec(self.config, self.loader.dataset))
        self.trainer.eval_collector.data_collect(self.loader)

    def train(self, steps: int) -> None:
        self.trainer._train_epoch(protocol.Head(self.loader, steps) if steps else self.loader, 0)

    def rank(self) -> None:
        self.trainer.evaluate(self.test, load_best_model=False)

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        net = self.trainer.model.eval()
        token = self.dataset.field2token_id["item_id"]
        table = net.item_embedding.weight.detach().numpy()
        ours = np.zeros((int(self.data["n_items"]) + 1, table.shape[1]), np.float32)
        theirs = np.zeros(len(ours), np.int64)
        for number in range(1, len(ours)):
            theirs[number] = token.get(str(number), 0)
        ours[1:] = table[theirs[1:]]
        history = torch.from_numpy(theirs[self.data["held_history"]])
        length = (history > 0).sum(dim=1)
        place = torch.arange(protocol.LENGTH)[None] + (protocol.LENGTH - length)[:, None]
        left = torch.where(
            place < protocol.LENGTH, history.gather(1, place.clamp(max=protocol.LENGTH - 1)), 0
        )  # theirs is padded at the end
        with torch.no_grad():
            users = [net(rows, sizes) for rows, sizes in zip(left.split(1024), length.split(1024), strict=True)]
        return torch.cat(users)[:, None].numpy(), ours


if __name__ == "__main__":
    torch.set_num_threads(protocol.THREADS)
    protocol.answer(RecBole)
