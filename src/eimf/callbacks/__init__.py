"""What happens around training, one concern a file."""

from eimf.callbacks.curves import Curves, read_curves
from eimf.callbacks.epoch_seed import EpochSeed
from eimf.callbacks.learning_rate import LearningRate
from eimf.callbacks.progress import Progress
from eimf.callbacks.retrieval_eval import Evaluation, RetrievalEval

__all__ = ["Curves", "EpochSeed", "Evaluation", "LearningRate", "Progress", "RetrievalEval", "read_curves"]
