"""TODO"""

from jaxtyping import Int
from torch import Tensor, nn

from eimf.backbones import Backbone, Interests
from eimf.data.batch import LabelledSamples
from eimf.explicit.head import ExplicitInterests
from eimf.losses.retrieval_loss import RetrievalLoss


def schedule(epoch: int, warmup: int, decay: int, last: int) -> float:
    """Factor of the auxiliary losses at an epoch (from 0): rises over `warmup` epochs, falls over the last `decay`, and
    is 0 from epoch `last` on."""
    if epoch >= last:
        return 0.0
    rise = min(1.0, (epoch + 1) / warmup) if warmup > 0 else 1.0
    fall = min(1.0, (last - epoch) / decay) if decay > 0 else 1.0
    return max(0.0, min(rise, fall))


class Explicit(nn.Module):
    """EIMF's auxiliary tasks with their weights and schedule.

    Args:
        head: computes the losses.
        weights: of `semantic_prediction`, `modality_alignment` and `interest_assignment`.
        warmup, decay, epochs: of the schedule, see `eimf.alignment.schedule`.
        every: the tasks are on at every so many-th step of an epoch, from the first.
    """

    def __init__(
        self, head: ExplicitInterests, weights: dict[str, float], warmup: int, decay: int, epochs: int, every: int = 1
    ) -> None:
        super().__init__()
        self.head, self.weights, self.warmup, self.decay, self.epochs = head, weights, warmup, decay, epochs
        self.every = every

    def weights_at(self, epoch: int, step: int) -> dict[str, float]:
        """Weights of the tasks that are on at a step of an epoch (both from 0)."""
        if step % self.every:
            return {}
        factor = schedule(epoch, self.warmup, self.decay, self.epochs)
        return {name: factor * weight for name, weight in self.weights.items() if factor * weight > 0}

    def forward(
        self,
        backbone: Backbone,
        interests: Interests,
        target: Int[Tensor, " B"],
        told: Interests | None,
        samples: LabelledSamples | None,
        weights: dict[str, float],
        loss: RetrievalLoss,
    ) -> dict[str, Tensor]:
        """Weighted losses by name.

        Args:
            interests, target: of the batch.
            told: the backbone's interests of `samples`.
        """
        losses: dict[str, Tensor] = {}
        if self.head.prediction == "next_interest" and "semantic_prediction" in weights:
            losses["semantic_prediction"] = self.head.predict_next_interest(backbone, interests, target)
        if samples is not None and told is not None:
            losses |= self._of_labelled(backbone, told, samples, weights, loss)
        return {name: weights[name] * value for name, value in losses.items() if name in weights}

    def _of_labelled(
        self,
        backbone: Backbone,
        told: Interests,
        samples: LabelledSamples,
        weights: dict[str, float],
        loss: RetrievalLoss,
    ) -> dict[str, Tensor]:
        return self.head(
            backbone,
            told,
            samples.label_embeddings,
            samples.alignable,
            samples.predictive,
            samples.user_idx,
            samples.target,
            loss.predict,
            samples.shown if "interest_assignment" in weights else None,
        )
