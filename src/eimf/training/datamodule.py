"""The LightningDataModule: a prepared data set under one split, as batches."""

import pytorch_lightning as pl
import torch

from eimf.config.schema import Config
from eimf.data.batch import HoldoutBatches, TrainingBatches
from eimf.data.prepared import Prepared
from eimf.data.splits import Holdout, split
from eimf.explicit.sampling import LabelledDraw
from eimf.explicit.supervision import Supervision


class InteractionData(pl.LightningDataModule):
    """Serves training samples and held-out contexts; trains nothing, and calls no LLM.

    Attributes:
        split: the slices of the data that are trained on and held out.
        item_counts: i64[I + 1], occurrences in the training slices.
    """

    def __init__(self, prepared: Prepared, config: Config, supervision: Supervision | None = None) -> None:
        super().__init__()
        self.prepared, self.config, self.supervision = prepared, config, supervision
        self.split = split(prepared.sequences, config.split)
        self.item_counts = torch.from_numpy(self.split.item_counts(prepared.sequences, prepared.n_items))
        self._items = torch.tensor(prepared.sequences.items, dtype=torch.long)

    def setup(self, stage: str) -> None:
        if self.trainer is not None:
            self._items = self._items.to(self.trainer.strategy.root_device)

    def _place(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def train_dataloader(self) -> TrainingBatches:
        """A fresh epoch; the Trainer is told to ask for one every epoch."""
        data = self.config.data
        return TrainingBatches(
            self._items,
            self.split.train,
            max_len=data.max_len,
            batch_size=data.batch_size,
            sampling=data.sampling,
            min_history=data.min_history,
            seed=self.config.seed,
            epoch=self.trainer.current_epoch if self.trainer is not None else 0,
            **self._place(),
            labels=self._labels(),
        )

    def _labels(self) -> LabelledDraw | None:
        eimf = self.config.eimf
        over = eimf.epochs > 0 and self.trainer is not None and self.trainer.current_epoch >= eimf.epochs
        if self.supervision is None or not eimf.draws_labelled or over:
            return None
        return LabelledDraw(
            self._items,
            self.split.train,
            self.supervision.to(self._items.device),
            size=eimf.samples_per_step,
            every=eimf.every,
            max_len=self.config.data.max_len,
            only_after=eimf.only_after,
            shown=eimf.assignment_weight > 0,
        )

    def val_dataloader(self) -> HoldoutBatches:
        return self._holdout(self.split.validation)

    def test_dataloader(self) -> HoldoutBatches:
        return self._holdout(self.split.test)

    def _holdout(self, holdout: Holdout) -> HoldoutBatches:
        data = self.config.data
        return HoldoutBatches(
            self._items, holdout, max_len=data.max_len, batch_size=data.eval_batch_size, **self._place()
        )
