"""gSASRec's generalised binary cross-entropy (Petrov & Macdonald, RecSys 2023, arXiv 2308.07192)."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from eimf.backbones.base import Items
from eimf.config.schema import LossConfig
from eimf.core.options import option
from eimf.losses.base import SampledLoss
from eimf.losses.functions import gbce


@dataclass(frozen=True)
class GBCEConfig(LossConfig):
    """Options of gBCE."""

    name: str = "gbce"
    n_negatives: int = option(1280, low=1)
    """N: sampled negatives, shared by a batch."""
    sampler: Literal["uniform", "log_uniform", "frequency"] = "uniform"
    """Distribution of negatives; `log_uniform` needs ids by descending frequency, which `eimf prepare` gives."""
    gbce_t: float = option(0.75, low=0.0, high=1.0)
    """Calibration: 0 is plain BCE, 1 is fully calibrated."""


class GBCE(SampledLoss):
    """Binary cross-entropy that corrects the overconfidence of negative sampling."""

    Config = GBCEConfig
    config: GBCEConfig

    def predict(self, backbone: Items, vectors: Float[Tensor, "B K D"], target: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        user, truth, negative, negatives = self.sample(backbone, vectors, target)
        positive, rivals = (user * truth).sum(dim=-1).float(), self.rivals(vectors)
        # One product or the other: the second costs K times as much.
        scores = user @ negative.T if rivals is None else (rivals @ negative.T).amax(dim=1)
        return gbce(positive, scores.float(), negatives == target[:, None], backbone.n_items, self.config.gbce_t)
