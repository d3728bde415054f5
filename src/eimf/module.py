"""The LightningModule: backbone, loss and optimiser. Metrics, files and plots live in callbacks."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from eimf.alignment import ExplicitInterests, schedule
from eimf.backbones import Backbone, Interests
from eimf.backbones.base import CausalBackbone
from eimf.data.batch import Batch, EvalBatch, LabelledSamples
from eimf.losses import RetrievalLoss

CHECKPOINT_KEY = "eimf"


class Explicit(nn.Module):
    """EIMF's auxiliary tasks with their weights and schedule.

    Args:
        head: computes the losses.
        weights: of `semantic_prediction`, `modality_alignment` and `interest_assignment`.
        warmup, decay: epochs of the schedule, see `eimf.alignment.schedule`.
    """

    def __init__(self, head: ExplicitInterests, weights: dict[str, float], warmup: int, decay: int) -> None:
        super().__init__()
        self.head, self.weights, self.warmup, self.decay = head, weights, warmup, decay

    def forward(
        self, backbone: Backbone, samples: LabelledSamples, epoch: int, epochs: int, temperature: float
    ) -> dict[str, Tensor]:
        """Weighted losses by name. Where both weights are 0 now, nothing is computed, and no random number drawn."""
        factor = schedule(epoch, self.warmup, self.decay, epochs)
        weights = {name: factor * weight for name, weight in self.weights.items() if factor * weight > 0}
        if not weights:
            return {}
        losses = self.head(
            backbone,
            backbone(samples.history),
            samples.label_embeddings,
            samples.alignable,
            samples.predictive,
            samples.user_idx,
            samples.target,
            samples.shown if "interest_assignment" in weights else None,
            temperature,
        )
        return {name: weights[name] * value for name, value in losses.items() if name in weights}


class MultiInterestModel(pl.LightningModule):
    """Trains a backbone with a loss.

    Args:
        backbone: any of `eimf.backbones`.
        loss: turns interests and targets into named loss terms.
        make_optimizer: called with this module.
        provenance: plain values kept in every checkpoint: the configuration, digests, the version.
        explicit: EIMF's auxiliary tasks, if they are on.
    """

    def __init__(
        self,
        backbone: Backbone,
        loss: RetrievalLoss,
        make_optimizer: Callable[[pl.LightningModule], Optimizer],
        provenance: dict[str, Any],
        explicit: "Explicit | None" = None,
    ) -> None:
        super().__init__()
        self.explicit = explicit
        self.backbone, self.loss = backbone, loss
        self.make_optimizer, self.provenance = make_optimizer, provenance

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if batch.target.ndim == 2:
            assert isinstance(self.backbone, CausalBackbone)
            known = batch.target > 0
            interests, target, history = (
                Interests(self.backbone.states(batch.history)[known][:, None]),
                batch.target[known],
                None,
            )
        else:
            interests, target, history = self.backbone(batch.history), batch.target, batch.history
        terms = self.loss(self.backbone, interests, history, target)
        if self.explicit is not None and batch.labelled is not None:
            terms |= self.explicit(
                self.backbone, batch.labelled, self.current_epoch, self.trainer.max_epochs or 0, self.loss.temperature
            )
        total = sum(terms.values(), start=target.new_zeros((), dtype=next(iter(terms.values())).dtype))
        logged = {f"train/{name}": value.detach() for name, value in terms.items()} | {"train/loss": total.detach()}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(target))
        return total

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> Tensor:
        """Interest vectors [B, K, D]; `callbacks.RetrievalEval` makes metrics of them."""
        return self.backbone(batch.history).vectors

    def test_step(self, batch: EvalBatch, batch_idx: int) -> Tensor:
        return self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> Optimizer | None:
        return self.make_optimizer(self) if self.backbone.trainable else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = self.provenance
