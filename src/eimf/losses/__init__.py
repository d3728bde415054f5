"""Training losses, one file each. `functions` has the plain formulas, `kernels` the fused ones.

To add one, write a `Config` and a `Loss` subclass in a file here, and add a line to `eimf.config.components`.
"""

from eimf.config.components import LOSSES
from eimf.config.schema import LossConfig
from eimf.losses.base import Loss, SampledLoss
from eimf.losses.full_softmax import FullSoftmax
from eimf.losses.gbce import GBCE
from eimf.losses.ihn import InterestHardNegatives
from eimf.losses.in_batch import InBatchSoftmax
from eimf.losses.negatives import NegativeSampler
from eimf.losses.sampled_softmax import SampledSoftmax

__all__ = [
    "GBCE",
    "LOSSES",
    "FullSoftmax",
    "InBatchSoftmax",
    "InterestHardNegatives",
    "Loss",
    "LossConfig",
    "NegativeSampler",
    "SampledLoss",
    "SampledSoftmax",
]
