"""Shows one progress bar for the whole training: epoch, step, loss and the monitored metric."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm


class Progress(ProgressBar):
    """Counts the steps of all epochs; early stopping ends it early.

    Args:
        monitor: key of the metric to show, such as `val/recall@50`.
    """

    def __init__(self, monitor: str) -> None:
        super().__init__()
        self.monitor = monitor
        self._bar: tqdm[Any] | None = None
        self._shown = True

    def disable(self) -> None:
        """Called by Lightning on all processes but the first."""
        self._shown = False

    def enable(self) -> None:
        self._shown = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        steps = int(self.total_train_batches) * (trainer.max_epochs or 0)
        self._bar = tqdm(
            total=steps, initial=trainer.global_step, disable=not self._shown, unit="step", dynamic_ncols=True
        )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            self._bar.set_description(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            metrics = {key: trainer.callback_metrics.get(key) for key in ("train/loss", self.monitor)}
            self._bar.set_postfix({key: f"{float(value):.4f}" for key, value in metrics.items() if value is not None})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
