"""What happens around training, one concern a file."""

from eimf.training.callbacks.checkpoints import WholeCheckpointIO
from eimf.training.callbacks.curves import Curves
from eimf.training.callbacks.progress import Progress

__all__ = ["Curves", "Progress", "WholeCheckpointIO"]
