"""Softmax over the targets of the batch."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from eimf.backbones.base import Items
from eimf.config.schema import LossConfig
from eimf.losses.base import Loss
from eimf.losses.kernels import fused_loss
from eimf.losses.negatives import NegativeSampler


@dataclass(frozen=True)
class InBatchSoftmaxConfig(LossConfig):
    """Options of the in-batch softmax."""

    name: str = "in_batch"
    log_q: bool = True
    """Correct the scores by the log of the training frequency."""


class InBatchSoftmax(Loss):
    """Cross-entropy of the target among the targets of the batch.

    Targets occur by their training frequency, so the log-Q correction needs the item counts (`observe`).
    """

    Config = InBatchSoftmaxConfig
    config: InBatchSoftmaxConfig

    def __init__(self, config: InBatchSoftmaxConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.sampler = NegativeSampler("frequency")

    def observe(self, item_counts: Int[Tensor, " I_plus_1"]) -> None:
        self.sampler.observe(item_counts)

    def predict(self, backbone: Items, vectors: Float[Tensor, "B K D"], target: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        truth = backbone.item_vectors(target)
        log_q = self.sampler.log_probabilities(backbone.n_items, target.device) if self.config.log_q else None
        user = self.read_out(vectors, truth)
        return fused_loss(user, truth, truth, target, target, log_q, rivals=self.rivals(vectors))
