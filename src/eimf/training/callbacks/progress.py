"""Shows the progress of the whole training: a bar on a terminal, a line an epoch elsewhere."""

import logging
import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

log = logging.getLogger(__name__)

BAR = "{desc} {percentage:3.0f}%|{bar}| {postfix[0]}{remaining} left"
"""The values stand before the time, which a narrow terminal cuts off."""


class Progress(ProgressBar):
    """Counts the steps of all epochs; early stopping ends it early.

    Args:
        monitor: key of the metric to show, such as `val/recall@50`.
        bar: show a bar, if the output is a terminal.
    """

    def __init__(self, monitor: str, bar: bool = True) -> None:
        super().__init__()
        self.monitor = monitor
        self._wanted = bar
        self._bar: tqdm[Any] | None = None
        self._shown = True
        self._started = 0.0

    def disable(self) -> None:
        """Called by Lightning on all processes but the first."""
        self._shown = False

    def enable(self) -> None:
        self._shown = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not (self._shown and self._wanted and sys.stderr.isatty()):
            return
        steps = int(self.total_train_batches) * (trainer.max_epochs or 0)
        start: Any = [""]  # the bar's format reads the first value
        self._bar = tqdm(total=steps, initial=trainer.global_step, dynamic_ncols=True, bar_format=BAR, postfix=start)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.perf_counter()
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        shown = {"loss": "train/loss", self.monitor.removeprefix("val/"): self.monitor}
        found = {name: trainer.callback_metrics.get(key) for name, key in shown.items()}
        values = ", ".join(f"{name} {float(value):.4f}" for name, value in found.items() if value is not None)
        if self._bar is not None:
            self._bar.postfix = [f"{values}, "]  # pyright: ignore[reportAttributeAccessIssue]
            self._bar.refresh()
        elif self._shown:
            seconds = time.perf_counter() - self._started
            log.info(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {values}, {seconds:.1f} s")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
