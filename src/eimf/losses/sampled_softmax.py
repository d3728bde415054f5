"""Softmax over the target and sampled items (Jean et al. 2015, arXiv 1412.2007)."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from eimf.backbones.base import Items
from eimf.config.schema import LossConfig
from eimf.core.options import option
from eimf.losses.base import SampledLoss
from eimf.losses.kernels import fused_loss


@dataclass(frozen=True)
class SampledSoftmaxConfig(LossConfig):
    """Options of the sampled softmax."""

    name: str = "sampled_softmax"
    n_negatives: int = option(1280, low=1)
    """N: sampled negatives, shared by a batch (ComiRec: 10 for each of 128 samples)."""
    sampler: Literal["uniform", "log_uniform", "frequency"] = "uniform"
    """Distribution of negatives; `log_uniform` needs ids by descending frequency, which `eimf prepare` gives."""
    log_q: bool = True
    """Correct the scores by the log of the sampling probability."""


class SampledSoftmax(SampledLoss):
    """Cross-entropy of the target among the target and sampled items. Accidental hits are left out."""

    Config = SampledSoftmaxConfig
    config: SampledSoftmaxConfig

    def predict(self, backbone: Items, vectors: Float[Tensor, "B K D"], target: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        user, truth, negative, negatives = self.sample(backbone, vectors, target)
        log_q = self.sampler.log_probabilities(backbone.n_items, target.device) if self.config.log_q else None
        return fused_loss(user, truth, negative, target, negatives, log_q, rivals=self.rivals(vectors))
