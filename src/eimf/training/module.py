"""The LightningModule: backbone, loss and optimiser. Metrics, files and plots live in callbacks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from eimf.backbones import Backbone, Interests
from eimf.backbones.base import CausalBackbone
from eimf.data.batch import Batch, EvalBatch, LabelledSamples
from eimf.explicit.tasks import Explicit
from eimf.losses.retrieval_loss import RetrievalLoss
from eimf.runs.folder import CHECKPOINT_KEY


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

    def configure_model(self) -> None:
        """Under `trainer.strategy=fsdp`: share out the parameters, their gradients and optimiser states."""
        if self.device_mesh is None or isinstance(self, FSDPModule):
            return
        fully_shard(self, mesh=self.device_mesh["data_parallel"])
        for name in ("training_step", "validation_step", "test_step"):
            register_fsdp_forward_method(self, name)

    def item_table(self) -> Float[np.ndarray, "I_plus_1 D"]:
        """The vectors of all items, whole, in float32 on the CPU."""
        vectors = self.backbone.item_vectors().detach()
        if isinstance(vectors, DTensor):
            vectors = vectors.full_tensor()
        return vectors.float().cpu().numpy()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        weights = self.explicit.weights_at(self.current_epoch, batch_idx) if self.explicit is not None else {}
        samples = batch.labelled if weights else None
        interests, told, target = self._extract(batch, samples)
        terms = self.loss(self.backbone, interests, batch.history if batch.target.ndim == 1 else None, target)
        if self.explicit is not None and weights:
            terms |= self.explicit(self.backbone, interests, target, told, samples, weights, self.loss)
        total = sum(terms.values(), start=target.new_zeros((), dtype=next(iter(terms.values())).dtype))
        logged = {f"train/{name}": value.detach() for name, value in terms.items()} | {"train/loss": total.detach()}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(target))
        return total

    def _extract(
        self, batch: Batch, samples: LabelledSamples | None
    ) -> tuple[Interests, Interests | None, Int[Tensor, " B"]]:
        """Interests of the batch and of the labelled samples, and the targets of the batch."""
        if batch.target.ndim == 2:
            assert isinstance(self.backbone, CausalBackbone)
            known = batch.target > 0
            interests = Interests(self.backbone.states(batch.history)[known][:, None])
            return interests, self.backbone(samples.history) if samples is not None else None, batch.target[known]
        if samples is None:
            return self.backbone(batch.history), None, batch.target
        # One pass for both: the labelled samples then cost little more than their share of rows.
        both = self.backbone(torch.cat([batch.history, samples.history]))
        interests, told = both.split([len(batch.history), len(samples.history)])
        return interests, told, batch.target

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> Tensor:
        """Interest vectors [B, K, D]; `callbacks.RetrievalEval` makes metrics of them."""
        return self.backbone(batch.history).vectors

    def test_step(self, batch: EvalBatch, batch_idx: int) -> Tensor:
        return self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> Optimizer | None:
        return self.make_optimizer(self) if self.backbone.trainable else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = self.provenance
