"""Writes checkpoints completely or not at all."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from eimf.core.errors import ArtifactError
from eimf.core.files import disk_error, make_folder, replacing
from eimf.runs.folder import LAST


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file beside its path, and renames it.

    Lightning writes to the system's temporary folder and then copies over the old file. If that folder is on another
    file system, a kill or a full disk in between loses the old checkpoint and the new one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        make_folder(path.parent)
        with replacing(path) as work:
            try:
                torch.save(checkpoint, work)
            except RuntimeError as error:  # torch's own writer hides the operating system's error
                reason = disk_error(error) or str(error).splitlines()[0][:120]
                raise ArtifactError(
                    f"{path}: could not be written ({reason}); the earlier checkpoint is kept. Free some space and "
                    "continue with --resume."
                ) from error


class RunCheckpoint(ModelCheckpoint):
    """Keeps the best and the last checkpoint, and knows the best one also after the run folder was moved.

    With `save_last`, Lightning keeps the last checkpoint of those that were the best. Here it is that of every epoch,
    so that a resumed run repeats none.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        assert self.dirpath is not None
        self.last_model_path = str(Path(self.dirpath) / Path(LAST).name)  # part of the state
        trainer.save_checkpoint(self.last_model_path)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, now = str(state_dict["dirpath"]), str(self.dirpath)

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {moved(key): moved(one) for key, one in value.items()}
            return now + value.removeprefix(before) if isinstance(value, str) and value.startswith(before) else value

        super().load_state_dict(moved(state_dict))
