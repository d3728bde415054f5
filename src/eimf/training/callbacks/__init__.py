"""What happens around training, one concern a file."""

from eimf.evaluation.evaluator import Evaluation, RetrievalEval
from eimf.runs.curves import read_curves
from eimf.training.callbacks.curves import Curves
from eimf.training.callbacks.epoch_seed import EpochSeed
from eimf.training.callbacks.learning_rate import LearningRate
from eimf.training.callbacks.progress import Progress

__all__ = ["Curves", "EpochSeed", "Evaluation", "LearningRate", "Progress", "RetrievalEval", "read_curves"]
