"""Checkpoints that are written whole or not at all."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from eimf.core.errors import ArtifactError
from eimf.core.files import make_folder, replacing


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it.

    Lightning writes to the system's temporary folder and then copies over the old file: on another file system, a kill
    or a full disk in between leaves neither the old checkpoint nor the new one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        make_folder(path.parent)
        with replacing(path) as work:
            try:
                torch.save(checkpoint, work)
            except RuntimeError as error:  # torch's own writer hides the operating system's error
                raise ArtifactError(
                    f"{path}: could not be written ({str(error).splitlines()[0][:120]}); the earlier checkpoint is "
                    "kept. Free some disk space and continue with --resume."
                ) from error
