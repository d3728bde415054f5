"""REMI's softmax with interest-aware hard negatives (Xie et al., RecSys 2023, arXiv 2302.14532)."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from eimf.backbones.base import Items
from eimf.core.options import option
from eimf.losses.base import SampledLoss
from eimf.losses.kernels import fused_loss
from eimf.losses.sampled_softmax import SampledSoftmaxConfig


@dataclass(frozen=True)
class InterestHardNegativesConfig(SampledSoftmaxConfig):
    """Options of REMI's loss."""

    name: str = "ihn"
    ihn_beta: float = option(10.0, low=0.0)
    """Concentration of the hard negatives; 0 is plain sampled softmax (REMI: 10 books, 1 gowalla, 0.1 rocket)."""


class InterestHardNegatives(SampledLoss):
    """Sampled softmax whose negatives have larger weights if they are more similar to the interest."""

    Config = InterestHardNegativesConfig
    config: InterestHardNegativesConfig

    def predict(self, backbone: Items, vectors: Float[Tensor, "B K D"], target: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        user, truth, negative, negatives = self.sample(backbone, vectors, target)
        log_q = self.sampler.log_probabilities(backbone.n_items, target.device) if self.config.log_q else None
        return fused_loss(user, truth, negative, target, negatives, log_q, self.config.ihn_beta, self.rivals(vectors))
