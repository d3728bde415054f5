"""Writes `metrics.csv`, one row per epoch: losses, validation metrics, seconds.

Lightning's CSVLogger deletes the earlier rows when a run is resumed; this callback keeps them.
"""

import csv
import io
import time
from pathlib import Path

import pytorch_lightning as pl

from eimf.core.files import write_text_atomic
from eimf.runs.curves import read_curves


class Curves(pl.Callback):
    """Rewrites the curve file after every epoch; a resumed run keeps the earlier rows.

    Args:
        path: the CSV file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[int, dict[str, float]] = {}
        self._started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for values in read_curves(self.path):
            values |= {name: int(values[name]) for name in ("epoch", "step")}
            if values["epoch"] < trainer.current_epoch:  # later epochs will run again
                self.rows[int(values["epoch"])] = values

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.perf_counter()
        # Lightning keeps the last value of a loss that is no longer computed (`eimf.epochs`).
        for name in [name for name in trainer.callback_metrics if name.startswith("train/")]:
            del trainer.callback_metrics[name]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch
        logged = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        self.rows[epoch] = {
            "epoch": epoch,
            "step": trainer.global_step,
            **logged,
            "seconds": round(time.perf_counter() - self._started, 3),
        }
        names = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(self.rows[key] for key in sorted(self.rows))
        write_text_atomic(self.path, text.getvalue())
