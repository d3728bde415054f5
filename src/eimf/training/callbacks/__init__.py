"""Callbacks and plugins of the Trainer, one per file."""

from eimf.training.callbacks.checkpoints import RunCheckpoint, WholeCheckpointIO
from eimf.training.callbacks.curves import Curves
from eimf.training.callbacks.progress import Progress

__all__ = ["Curves", "Progress", "RunCheckpoint", "WholeCheckpointIO"]
