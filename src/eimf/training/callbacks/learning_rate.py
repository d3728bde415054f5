"""Lowers the learning rate over the epochs of a run."""

import math
from typing import Literal

import pytorch_lightning as pl

_RATES = ("lr", "dense_lr")  # the second one is `RowWiseAdagrad`'s


class LearningRate(pl.Callback):
    """Sets each epoch's learning rate from its number alone, so that resuming needs no state.

    Args:
        schedule: `constant`, or `cosine`: half a cosine from the full rate at the first epoch towards 0 after the
            last of `max_epochs` (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5, without restarts).
    """

    def __init__(self, schedule: Literal["constant", "cosine"]) -> None:
        self.schedule = schedule

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.schedule == "constant":
            return
        factor = cosine(trainer.current_epoch, trainer.max_epochs or 1)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                for rate in _RATES:
                    if rate in group:
                        # Kept in the group, which a checkpoint carries: a resumed run starts from the same rate.
                        group[rate] = factor * group.setdefault(f"initial_{rate}", group[rate])


def cosine(epoch: int, epochs: int) -> float:
    """Factor of the learning rate at an epoch (from 0) of `epochs`."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
