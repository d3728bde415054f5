"""Our side: Lightning's trainer and our loader, as `eimf train` uses them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from eimf.config.load import load
from eimf.data.batch import gather_history
from eimf.data.prepare import prepare
from eimf.training.build import build_data, build_model, build_trainer, quiet_lightning
from tests.benchmarks.peers import protocol

SAMPLED = ["loss.name=sampled_softmax", f"loss.n_negatives={protocol.NEGATIVES}", "data.sampling=every_position"]
FAMILIES = {
    "comirec_sa": SAMPLED,
    "mind": [*SAMPLED, "presets=mind_published"],  # the form that the peer has
    "sasrec": ["loss.name=full_softmax", "data.sampling=every_position", "split.kind=loo"],
    # A user has eight targets: with an eighth of the rows a step trains on as many targets as the peer's.
    "sasrec_sequence": [
        *("loss.name=full_softmax", "data.sampling=sequence", "split.kind=loo"),
        f"data.batch_size={protocol.BATCH // 8}",
    ],
}


class Ours(protocol.Side):
    def __init__(self, data: Path, model: str) -> None:
        super().__init__(data, model)
        quiet_lightning()
        settings = [
            "dataset=beauty",
            f"backbone={model.split('_sequence')[0]}",
            f"backbone.embed_dim={protocol.DIM}",
            f"data.max_len={protocol.LENGTH}",
            f"data.batch_size={protocol.BATCH}",
            f"optim.lr={protocol.LR}",
            f"trainer.precision={os.environ.get('PRECISION', '32-true')}",
            *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.progress=false", "logger.wandb=disabled"),
            *("eval.diversity_lambdas=[0.0]", "eval.filter_seen=false"),  # the peers have no such things to compute
            *("eval.rankings=false", f"data.root={os.environ['DATA_ROOT']}"),
            *FAMILIES[model],
        ]
        settings += [f"backbone.dropout={protocol.DROPOUT}"] if model.startswith("sasrec") else []
        settings += [] if model.startswith("sasrec") else [f"backbone.n_interests={protocol.INTERESTS}"]
        self.config = load(None, settings)
        self.loaded = build_data(self.config, prepare(self.config.dataset, self.config.data.root))

    def reset(self) -> None:
        self.net, self.epoch = build_model(self.config, self.loaded, train=True), 0
        optimizer = self.net.configure_optimizers()
        self.net.configure_optimizers = lambda: optimizer  # one for all calls of `train`, as the peers have

    def _trainer(self) -> pl.Trainer:
        trainer = build_trainer(self.config)
        trainer.limit_val_batches = 0
        return trainer

    def train(self, steps: int) -> None:
        trainer = self._trainer()
        # A trainer goes on from the last one's epoch, so that samples come in another order.
        progress = trainer.fit_loop.epoch_progress.current
        progress.ready = progress.started = progress.processed = progress.completed = self.epoch  # pyright: ignore[reportAttributeAccessIssue]
        self.epoch += 1
        trainer.fit_loop.max_epochs = self.epoch
        trainer.limit_train_batches = steps or 1.0
        trainer.fit(self.net, datamodule=self.loaded)

    def rank(self) -> None:
        trainer = build_trainer(self.config)
        trainer.test(self.net, datamodule=self.loaded, verbose=False)

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        held, items = self.loaded.split.test, torch.tensor(self.loaded.prepared.sequences.items, dtype=torch.long)
        backbone = self.net.backbone.eval()
        with torch.inference_mode():
            rows = gather_history(items, torch.tensor(held.start), torch.tensor(held.cut), protocol.LENGTH)
            users: list[Any] = [backbone(part).vectors.float().numpy() for part in rows.split(1024)]
            return np.concatenate(users), backbone.item_vectors().float().numpy()


if __name__ == "__main__":
    torch.set_num_threads(protocol.THREADS)
    protocol.answer(Ours)
