"""Evaluates by retrieval over the whole catalogue: index the items, search every interest, merge, score."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import polars as pl_frames
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from eimf.config.schema import EvalConfig
from eimf.data.batch import EvalBatch, gather_history
from eimf.data.splits import Holdout
from eimf.evaluation.metrics import (
    RANKING,
    Exposure,
    RankingMetric,
    UserMean,
    category_diversity,
    find_hits,
    interest_cosine,
    interests_used,
)
from eimf.evaluation.retrieval import CONTROLLED_POOL, ItemIndex, Retrieved, rerank_diverse, retrieve
from eimf.training.datamodule import InteractionData
from eimf.training.module import MultiInterestModel


@dataclass(frozen=True)
class Evaluation:
    """Results of one pass over held-out users."""

    summary: dict[str, float]
    """Metric key, for example `recall@50`, -> value; `untied/...` for users without tied timestamps."""
    per_user: pl_frames.DataFrame
    """`user_idx, metric, k, value`"""
    rankings: pl_frames.DataFrame
    """`user_idx, rank, item_idx, score, interest`"""
    trade_off: list[dict[str, float]] = field(default_factory=list)
    """Accuracy and diversity for each weight of the controllable aggregation."""


class RetrievalEval(pl.Callback):
    """Computes metrics on validation and test passes.

    While fitting, only what early stopping needs, logged as `val/<metric>`; in `trainer.validate` and
    `trainer.test` everything, left in `results` under `val` and `test`.

    Args:
        config: cut-offs are `cutoffs`; index kind, filters and aggregation weights are read from it.
        cutoffs: ascending.
    """

    def __init__(self, config: EvalConfig, cutoffs: tuple[int, ...]) -> None:
        self.config, self.cutoffs = config, cutoffs
        self.results: dict[str, Evaluation] = {}
        self._pass: _Pass | None = None

    def _start(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        assert isinstance(module, MultiInterestModel)
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(data, InteractionData)
        full = trainer.state.fn != "fit"
        self._pass = _Pass(self.config, self.cutoffs, data, module, stage, full)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer, pl_module, "test")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._pass is not None
        self._pass.add(batch, outputs)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._pass is not None
        summary = self._pass.summary()
        ranking = {f"val/{key}": summary[key] for key in self._pass.ranking_keys}
        # Every process has computed the same totals, so nothing is left to synchronise.
        pl_module.log_dict(ranking, prog_bar=False, rank_zero_only=False, sync_dist=False)
        self._finish(trainer, "val", summary)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._pass is not None
        self._finish(trainer, "test", self._pass.summary())

    def _finish(self, trainer: pl.Trainer, stage: str, summary: dict[str, float]) -> None:
        assert self._pass is not None
        if self._pass.full:
            self.results[stage] = self._pass.evaluation(summary, trainer.world_size)
        self._pass = None


class _Part(NamedTuple):
    """What is kept of the users of a batch."""

    row: Int[np.ndarray, " B"]
    """Index into the `Holdout`."""
    values: Float[np.ndarray, "M B"]
    """Every metric of every user."""
    items: Int[np.ndarray, "B N"]
    scores: Float[np.ndarray, "B N"]
    interest: Int[np.ndarray, "B N"]


class _Pass:
    """State of one pass over held-out users."""

    def __init__(
        self,
        config: EvalConfig,
        cutoffs: tuple[int, ...],
        data: InteractionData,
        module: MultiInterestModel,
        stage: str,
        full: bool,
    ) -> None:
        self.config, self.cutoffs, self.full, self.depth = config, cutoffs, full, cutoffs[-1]
        self.holdout: Holdout = data.split.validation if stage == "val" else data.split.test
        self.items = torch.tensor(data.prepared.sequences.items, dtype=torch.long)
        self.categories = torch.from_numpy(data.prepared.categories).long()
        vectors = module.item_table()
        self.index = ItemIndex(vectors, **config.index_options) if full else ItemIndex(vectors)
        self.exact = ItemIndex(vectors) if full and config.index != "flat" else None
        self.ranking_keys = [f"{name}@{k}" for name in RANKING for k in cutoffs]
        self.per_user_keys = sorted((name, k) for name in RANKING for k in cutoffs)
        self.metrics: dict[str, Metric] = {
            f"{name}@{k}": RankingMetric(name, k).to(module.device) for name in RANKING for k in cutoffs
        }
        self.extra: dict[str, Metric] = {}
        self.exposure = [Exposure(data.item_counts, k).to(module.device) for k in cutoffs] if full else []
        self.has_ties = bool(self.holdout.tied.any())
        self.device = module.device
        # Without any known category there is nothing to diversify by.
        self.lambdas = config.diversity_lambdas if full and bool((self.categories > 0).any()) else []
        self._parts: list[_Part] = []

    def _mean(self, key: str, values: Tensor) -> None:
        """Add values of users to the mean of that name."""
        if key not in self.extra:
            self.extra[key] = UserMean().to(self.device)
        self.extra[key].update(values.to(self.device))

    def _slices(self, start: np.ndarray, end: np.ndarray) -> Int[Tensor, "B S"]:
        """Items of slices of the flat array, padded with 0 to the longest."""
        width = int((end - start).max(initial=0))
        return gather_history(self.items, torch.from_numpy(start), torch.from_numpy(end), width)

    def add(self, batch: EvalBatch, vectors: Tensor) -> None:
        row = batch.row.cpu().numpy()
        held = self.holdout
        targets = self._slices(held.cut[row], held.end[row])
        seen = self._slices(held.start[row], held.cut[row]) if self.config.filter_seen else None
        candidates = retrieve(self.index, vectors, self.depth, seen, CONTROLLED_POOL if any(self.lambdas) else 0)
        ranked = Retrieved(*(part[:, : self.depth] for part in candidates))
        hits, n_targets = find_hits(ranked.items, targets)
        for metric in self.metrics.values():
            metric.update(hits.to(self.device), n_targets.to(self.device))
        if self.full:
            self._add_rest(vectors.detach().float().cpu(), row, ranked, candidates, hits, targets, n_targets, seen)

    def _add_rest(
        self,
        vectors: Tensor,
        row: np.ndarray,
        ranked: Retrieved,
        candidates: Retrieved,
        hits: Tensor,
        targets: Tensor,
        n_targets: Tensor,
        seen: Tensor | None,
    ) -> None:
        listed = ranked.items != 0
        for exposure in self.exposure:
            exposure.update(ranked.items.to(self.device))
        values = {(name, k): function(hits, n_targets, k) for name, function in RANKING.items() for k in self.cutoffs}
        tied = torch.from_numpy(self.holdout.tied[row])
        if self.has_ties:
            for (name, k), value in values.items():
                self._mean(f"untied/{name}@{k}", value[~tied])
        n_interests = vectors.shape[1]
        if n_interests > 1:
            self._mean("interest_cosine", interest_cosine(vectors))
            self._mean(f"interests_used@{self.depth}", interests_used(ranked.interest, listed, n_interests))
            for interest in range(n_interests):
                made = hits & (ranked.interest == interest)
                # Users without a hit say nothing on whose hit it was.
                lucky = hits.any(dim=1)
                share = made.sum(dim=1).double() / hits.sum(dim=1).clamp(min=1)
                self._mean(f"hit_share_interest_{interest}@{self.depth}", share[lucky])
        if self.exact is not None:
            wanted = retrieve(self.exact, vectors, self.depth, seen)
            same = (ranked.items[:, :, None] == wanted.items[:, None, :]) & listed[:, :, None]
            self._mean(f"overlap_with_flat@{self.depth}", same.any(dim=2).double().mean(dim=1))
        for weight in self.lambdas:
            chosen = rerank_diverse(candidates, self.categories, self.depth, weight) if weight else ranked
            found, _ = find_hits(chosen.items, targets)
            for k in self.cutoffs:
                self._mean(f"controlled/{weight}/recall@{k}", RANKING["recall"](found, n_targets, k))
                kinds, present = self.categories[chosen.items[:, :k]], chosen.items[:, :k] != 0
                self._mean(f"controlled/{weight}/diversity@{k}", category_diversity(kinds, present))
        everything = torch.stack([values[key] for key in self.per_user_keys]).numpy()
        # Items and interests as int32: half the memory of what is kept of every user.
        lists = (ranked.items.int().numpy(), ranked.scores.numpy(), ranked.interest.int().numpy())
        self._parts.append(_Part(row, everything, *lists))

    def summary(self) -> dict[str, float]:
        """All means over all processes."""
        values = {key: float(metric.compute()) for key, metric in (self.metrics | self.extra).items()}
        for exposure in self.exposure:
            values |= {key: float(value) for key, value in exposure.compute().items()}
        return values

    def evaluation(self, summary: dict[str, float], world_size: int) -> Evaluation:
        trade_off = []
        for weight in self.lambdas:
            prefix = f"controlled/{weight}/"
            part = {key.removeprefix(prefix): value for key, value in summary.items() if key.startswith(prefix)}
            trade_off.append({"lambda": float(weight), **part})
        whole = _gather(self._parts, world_size)
        user, tied = self.holdout.user_idx[whole.row].astype(np.int32), self.holdout.tied[whole.row]
        order = np.argsort(user, kind="stable")
        user, tied = user[order], tied[order]
        per_user = [
            pl_frames.DataFrame({"user_idx": user, "value": values[order], "tied": tied}).select(
                "user_idx",
                pl_frames.lit(name).alias("metric"),
                pl_frames.lit(k, pl_frames.Int32).alias("k"),
                "value",
                "tied",
            )
            for (name, k), values in zip(self.per_user_keys, whole.values, strict=True)
        ]
        items = whole.items[order]
        rankings = pl_frames.DataFrame(
            {
                "user_idx": np.repeat(user, self.depth),
                "rank": np.tile(np.arange(1, self.depth + 1, dtype=np.int32), len(user)),
                "item_idx": items.ravel(),
                "score": whole.scores[order].ravel(),
                "interest": whole.interest[order].ravel(),
            }
        )
        return Evaluation(
            {key: value for key, value in summary.items() if not key.startswith("controlled/")},
            pl_frames.concat(per_user),
            rankings if items.all() else rankings.filter(pl_frames.col("item_idx") != 0),
            trade_off,
        )


def _gather(parts: list[_Part], world_size: int) -> _Part:
    """The users of all batches and processes."""

    def join(some: Sequence[_Part]) -> _Part:
        row, values, *lists = zip(*some, strict=True)
        return _Part(np.concatenate(row), np.concatenate(values, axis=1), *map(np.concatenate, lists))

    whole = join(parts)
    if world_size == 1:
        return whole
    everyone: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(everyone, whole)
    return join(everyone)
