"""torch-rechub's side: its feature columns, MatchDataGenerator and MatchTrainer, list-wise, as in its tutorials."""

import tempfile
from pathlib import Path

import numpy as np
import protocol
import torch
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.matching import MIND, ComirecSA
from torch_rechub.trainers import MatchTrainer
from torch_rechub.utils.data import MatchDataGenerator


class Rechub(protocol.Side):
    def __init__(self, data: Path, model: str) -> None:
        super().__init__(data, model)
        users, items = int(self.data["n_users"]), int(self.data["n_items"])
        dim = protocol.DIM
        self.user = [SparseFeature("user_id", users + 1, embed_dim=dim)]
        self.history = [SequenceFeature("hist", items + 1, embed_dim=dim, pooling="concat", shared_with="item_id")]
        self.item = [SparseFeature("item_id", items + 1, embed_dim=dim)]
        self.negative = [SequenceFeature("neg", items + 1, embed_dim=dim, pooling="concat", shared_with="item_id")]
        rng = np.random.default_rng(0)
        count = len(self.data["target"])
        x = {
            "user_id": self.data["user"],
            "hist": self.data["history"],
            "item_id": self.data["target"],
            "neg": rng.integers(1, items + 1, (count, protocol.NEGATIVES)),
        }
        generator = MatchDataGenerator(x, np.zeros(count, np.int64))
        held = {"user_id": np.zeros(len(self.data["held_history"]), np.int64), "hist": self.data["held_history"]}
        self.loader, self.users, self.items = generator.generate_dataloader(
            held, {"item_id": np.arange(items + 1)}, protocol.BATCH, num_workers=0
        )

    def reset(self) -> None:
        torch.manual_seed(0)
        columns = self.user, self.history, self.item, self.negative
        if self.model == "mind":
            net = MIND(*columns, protocol.LENGTH, interest_num=protocol.INTERESTS)
        else:
            net = ComirecSA(*columns, interest_num=protocol.INTERESTS)
        self.trainer = MatchTrainer(net, mode=2, optimizer_params={"lr": protocol.LR}, device="cpu")

    def train(self, steps: int) -> None:
        self.trainer.train_one_epoch(protocol.Head(self.loader, steps) if steps else self.loader)

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        net = self.trainer.model
        folder = tempfile.mkdtemp()
        torch.save(net.state_dict(), f"{folder}/model.pth")  # its inference reads the weights from there
        users = self.trainer.inference_embedding(net, mode="user", data_loader=self.users, model_path=folder)
        items = self.trainer.inference_embedding(net, mode="item", data_loader=self.items, model_path=folder)
        return users.numpy(), items.numpy()


if __name__ == "__main__":
    torch.set_num_threads(protocol.THREADS)
    protocol.answer(Rechub)
