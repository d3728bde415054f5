"""The LightningModule: backbone, loss and optimiser. Metrics, files and plots live in callbacks."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.optim import Optimizer

from eimf.backbones import Backbone, Interests
from eimf.backbones.base import CausalBackbone
from eimf.data.batch import Batch, EvalBatch
from eimf.losses import RetrievalLoss

CHECKPOINT_KEY = "eimf"


class MultiInterestModel(pl.LightningModule):
    """Trains a backbone with a loss.

    Args:
        backbone: any of `eimf.backbones`.
        loss: turns interests and targets into named loss terms.
        make_optimizer: called with this module.
        provenance: plain values kept in every checkpoint: the configuration, digests, the version.
    """

    def __init__(
        self,
        backbone: Backbone,
        loss: RetrievalLoss,
        make_optimizer: Callable[[pl.LightningModule], Optimizer],
        provenance: dict[str, Any],
    ) -> None:
        super().__init__()
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
