"""The LightningDataModule: a prepared data set under one split, as batches."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from eimf.config.load import load
from eimf.config.schema import BatchConfig, EIMFConfig, SplitConfig
from eimf.core.errors import ConfigError
from eimf.core.options import take_options
from eimf.data.batch import HoldoutBatches, Ragged, TrainingBatches, gather_slices
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared
from eimf.data.splits import Holdout, share_of_repeats, split_sequences
from eimf.data.text import DEFAULT_ENCODER
from eimf.explicit.load import load_supervision
from eimf.explicit.sampling import LabelledSampler
from eimf.explicit.supervision import Supervision
from eimf.labels.label import Label
from eimf.labels.source import label_source, read_labels

SAMPLES_PER_STEP = 32
"""M: samples of labelled users that a step with auxiliary losses adds to its batch (labelled users are few)."""


class InteractionData(pl.LightningDataModule):
    """Training samples and held-out users of a prepared data set. It trains nothing, and calls no LLM.

    Args:
        prepared: see `eimf.prepare`.
        split: `user`, `loo` or `time`, or the options of a split.
        config: options of the batches.
        labels: explicit interests of users: a label cache, a JSONL file, or a list of labels. None trains
            without them.
        explicit: options of training with explicit interests, for loading the labels. Which samples a step gets is up
            to the model's `tasks`, where a trainer has a model with some.
        encoder: text encoder; used with `labels` only.
        vectors: file of item vectors to compare users by (`text.vectors`), if labels are shared with similar users.
        root: the data folder, where text vectors are kept.
        seed: of sample order, random cuts, shares and controls.
        options: options of the batches as plain arguments, such as `max_len=50, batch_size=512`.

    Attributes:
        split: the slices of the data that are trained on and held out.
        item_counts: i64[I + 1], occurrences in the training slices.
        categories: i64[I + 1], a number for each item's category, 0 where unknown.
        repeats: share of the held-out targets that repeat an item of their user's context.
        supervision: the labels as tensors; None without labels.

    Raises:
        ConfigError: an option is unknown or out of range.
        DataError: a part of the split would be empty.
        LabelError: no label fits the training users.
    """

    def __init__(
        self,
        prepared: Prepared,
        split: Literal["user", "loo", "time"] | SplitConfig = "user",
        config: BatchConfig | None = None,
        *,
        labels: str | Path | Sequence[Label] | None = None,
        explicit: EIMFConfig | None = None,
        encoder: str = DEFAULT_ENCODER,
        vectors: str = "",
        root: str | Path = "data",
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.prepared, self.seed = prepared, seed
        self.config = take_options(BatchConfig, config, options)
        self.explicit = take_options(EIMFConfig, explicit, {})
        whole, given = (None, {"kind": split}) if isinstance(split, str) else (split, {})
        split = take_options(SplitConfig, whole, given)
        if isinstance(labels, bool):
            raise ConfigError("labels: must be a file or a list of labels; True is for InteractionData.from_name.")
        self.split = split_sequences(prepared.sequences, split)
        self.item_counts = torch.from_numpy(self.split.item_counts(prepared.sequences, prepared.n_items))
        self.categories = torch.from_numpy(prepared.categories).long()
        self.repeats = share_of_repeats(prepared.sequences, self.split.validation, self.split.test)
        self.supervision: Supervision | None = None
        if labels is not None:
            known = read_labels(labels) if isinstance(labels, str | Path) else labels
            self.supervision = load_supervision(
                known, prepared, self.split.train, self.explicit, encoder=encoder, root=root, vectors=vectors, seed=seed
            )
        self._items = torch.tensor(prepared.sequences.items, dtype=torch.long)

    @classmethod
    def from_name(
        cls,
        name: str,
        split: Literal["user", "loo", "time"] | SplitConfig = "user",
        *,
        root: str | Path = "data",
        labels: bool | str | Path | Sequence[Label] | None = None,
        **options: Any,
    ) -> "InteractionData":
        """Prepare a data set by its name, as `eimf prepare` does, and make the data module.

        Args:
            name: of `experiments/datasets/<name>.yaml`, such as `beauty` or `demo`.
            root: the data folder.
            labels: True: the data set's label cache, or the labels that are shipped with the data set.
            options: all other arguments of the class.

        Raises:
            ConfigError, DataError, LabelError: see the message.
        """
        config = load(None, [f"dataset={name}"])
        config = replace(config, data=replace(config.data, root=str(root)))
        source = label_source(config) if labels is True else labels or None
        return cls(prepare(config.dataset, root), split, labels=source, root=root, **options)

    @property
    def n_items(self) -> int:
        """I: number of items."""
        return self.prepared.n_items

    @property
    def max_len(self) -> int:
        """L: number of most recent items that a batch holds of each history."""
        return self.config.max_len

    @property
    def histories(self) -> Ragged:
        """The training items of all users."""
        start, end = (torch.from_numpy(part) for part in (self.split.train.start, self.split.train.end))
        return gather_slices(self._items.cpu(), start, end)

    def setup(self, stage: str) -> None:
        if self.trainer is not None:
            self._items = self._items.to(self.trainer.strategy.root_device)

    def _place(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def train_dataloader(self) -> TrainingBatches:
        """Training samples; every iteration is a new epoch."""
        config = self.config
        if config.sampling == "sequence" and self.trainer is not None:
            backbone = getattr(self.trainer.lightning_module, "backbone", None)
            if backbone is not None and not getattr(backbone, "causal", False):
                raise ConfigError("sampling: 'sequence' needs a causal backbone, such as GRU4Rec or SASRec.")
        return TrainingBatches(
            self._items,
            self.split.train,
            max_len=config.max_len,
            batch_size=config.batch_size,
            sampling=config.sampling,
            min_history=config.min_history,
            seed=self.seed,
            **self._place(),
            labels=self._labelled_sampler(),
            same=bool(getattr(self.trainer, "overfit_batches", 0) > 0),
        )

    def _labelled_sampler(self) -> LabelledSampler | None:
        model = self.trainer.lightning_module if self.trainer is not None else None
        tasks = getattr(model, "tasks", None)
        explicit = tasks.config if tasks is not None else self.explicit
        if self.supervision is None or not explicit.samples_labelled:
            return None
        return LabelledSampler(
            self._items,
            self.split.train,
            self.supervision.to(self._items.device),
            size=SAMPLES_PER_STEP,
            every=explicit.every,
            epochs=explicit.epochs,
            max_len=self.config.max_len,
            only_after=explicit.only_after,
            shown=explicit.assignment_weight > 0 or bool(explicit.tasks),
        )

    def val_dataloader(self) -> HoldoutBatches:
        """Validation users."""
        return self._holdout(self.split.validation)

    def test_dataloader(self) -> HoldoutBatches:
        """Test users."""
        return self._holdout(self.split.test)

    def predict_dataloader(self) -> HoldoutBatches:
        """All users with their whole histories, in the order of `prepared.user_ids`."""
        offsets = self.prepared.sequences.offsets
        users = torch.arange(len(offsets) - 1).numpy()
        whole = Holdout(users, offsets[:-1], offsets[1:], offsets[1:], users < 0)
        return self._holdout(whole, by_length=False)

    def _holdout(self, holdout: Holdout, by_length: bool = True) -> HoldoutBatches:
        return HoldoutBatches(
            self._items,
            holdout,
            max_len=self.config.max_len,
            batch_size=self.config.eval_batch_size,
            by_length=by_length,
            **self._place(),
        )
