"""Evaluates by retrieval over the whole catalogue: index the items, search every interest, merge, score.

`Evaluator` collects one pass over held-out users, over batches and processes. `evaluate` does the same for given
vectors, without Lightning or a configuration.

Shapes: U or B users, K interests, N retrieved items, D dimensions, I items, M metrics.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import polars
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from eimf.config.components import METRICS
from eimf.core.errors import DataError
from eimf.data.batch import Ragged
from eimf.evaluation.metrics import (
    CATEGORY_RECALL,
    Exposure,
    RankingMetric,
    UserMean,
    category_diversity,
    category_recall,
    find_hits,
    interest_cosine,
    interests_used,
    list_overlap,
)
from eimf.evaluation.retrieval import (
    Retrieved,
    controlled_pool,
    fill_proportionally,
    make_index,
    rerank_diverse,
    retrieve,
    retrieve_each,
)


@dataclass(frozen=True)
class Evaluation:
    """Results of one pass over held-out users."""

    summary: dict[str, float]
    """Metric key, for example `recall@50`, -> value; `untied/...` for users without tied timestamps, `raw/...` for
    unfiltered lists, `proportional/...` for lists that the interests fill by their shares."""
    per_user: polars.DataFrame
    """`user_idx, metric, k, value, tied`"""
    rankings: polars.DataFrame
    """`user_idx, rank, item_idx, score, interest`"""
    trade_off: list[dict[str, float]] = field(default_factory=list)
    """Accuracy and diversity for each weight of the controllable aggregation."""


class _Part(NamedTuple):
    """Results of the users of one batch."""

    user: Int[np.ndarray, " B"]
    tied: Bool[np.ndarray, " B"]
    keys: list[tuple[str, int]]
    """Name and cut-off of each metric."""
    values: Float[np.ndarray, "M B"]
    """All metrics of all users."""
    items: Int[np.ndarray, "B N"]
    scores: Float[np.ndarray, "B N"]
    interest: Int[np.ndarray, "B N"]


class Evaluator:
    """Collects metrics of one pass over held-out users.

    Args:
        item_vectors: vectors of all items; row 0 is padding.
        k: cut-offs of the metrics, ascending.
        filter_seen: leave the items of a user's context out of the lists. The ranking metrics of unfiltered lists are
            then also reported, as `raw/...`.
        index, search: see `eimf.evaluation.retrieval.ItemIndex`.
        diversity_lambdas: weights of ComiRec's controllable aggregation to report.
        item_counts: occurrences of each item in the training interactions, for novelty.
        categories: number of each item's category, 0 where unknown, for diversity and `category_recall`.
        full: also compute exposure, diversity, use of interests, and the values of every user. If false, only the
            ranking metrics.
        device: device of the sums.
    """

    def __init__(
        self,
        item_vectors: Float[np.ndarray, "I_plus_1 D"],
        k: Sequence[int],
        *,
        filter_seen: bool = False,
        index: str = "flat",
        search: int = 0,
        diversity_lambdas: Sequence[float] = (),
        item_counts: Int[Tensor, " I_plus_1"] | None = None,
        categories: Int[Tensor, " I_plus_1"] | None = None,
        full: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self.cutoffs, self.filter_seen, self.full, self.device = tuple(k), filter_seen, full, device
        self.depth = self.cutoffs[-1]
        approximate = full and index != "flat"
        self.index = make_index(item_vectors, index if approximate else "flat", search=search)
        self.exact = make_index(item_vectors) if approximate else None
        self.keys = sorted((name, k) for name in METRICS for k in self.cutoffs)
        self.metrics: dict[str, Metric] = {
            f"{name}@{k}": RankingMetric(name, k).to(device) for name in METRICS for k in self.cutoffs
        }
        self.extra: dict[str, Metric] = {}
        n_items = len(item_vectors) - 1
        self.exposure = [Exposure(n_items, k, item_counts).to(device) for k in self.cutoffs] if full else []
        # Diversity needs a known category.
        self.categories = categories.cpu().long() if categories is not None and bool((categories > 0).any()) else None
        self.lambdas = list(diversity_lambdas) if full and self.categories is not None else []
        self.has_ties = False
        self._parts: list[_Part] = []

    def add(
        self,
        user_idx: Int[Tensor, " B"],
        interests: Float[Tensor, "B K D"],
        targets: Ragged,
        seen: Ragged | None = None,
        tied: Bool[Tensor, " B"] | None = None,
    ) -> None:
        """Score a batch of users.

        Args:
            user_idx: -1 leaves the row out.
            targets: held-out items.
            seen: items of the context; required with `filter_seen`.
            tied: users whose target only the file order decides, see `eimf.data.batch.EvalBatch`.
        """
        if bool((user_idx < 0).any()):
            rows = (user_idx >= 0).nonzero()[:, 0]
            targets, seen = targets.select(rows), seen.select(rows) if seen is not None else None
            user_idx, interests, tied = user_idx[rows], interests[rows], tied[rows] if tied is not None else None
        if len(user_idx) == 0:
            return
        targets, seen = targets.cpu(), seen.cpu() if seen is not None and self.filter_seen else None
        tied = tied.cpu() if tied is not None else torch.zeros(len(user_idx), dtype=torch.bool)
        vectors = interests.detach().float().cpu()
        pool = controlled_pool(self.depth, vectors.shape[1]) if any(self.lambdas) else 0
        candidates = retrieve(self.index, vectors, self.depth, seen, pool)
        ranked = Retrieved(*(part[:, : self.depth] for part in candidates))
        hits, n_targets = find_hits(ranked.items, targets)
        for metric in self.metrics.values():
            metric.update(hits.to(self.device), n_targets.to(self.device))
        if not self.full:
            return
        values = {(name, k): METRICS[name](hits, n_targets, k) for name, k in self.keys}
        raw = self._add_raw(vectors, targets) if seen is not None else {}
        self.has_ties |= bool(tied.any())
        for (name, cutoff), value in values.items():
            self._mean(f"untied/{name}@{cutoff}", value[~tied])
        self._add_lists(vectors, ranked, hits)
        if self.exact is not None:
            self._add_overlap(vectors, ranked, seen)
        self._add_trade_off(candidates, ranked, targets, n_targets)
        if vectors.shape[1] > 1:
            self._add_proportional(vectors, targets, n_targets, seen)
        values |= raw | self._add_category_recall(ranked, hits, targets)
        keys = sorted(values)
        stacked = torch.stack([values[key] for key in keys]).numpy()
        # Items and interests as int32: half the memory.
        lists = (ranked.items.int().numpy(), ranked.scores.numpy(), ranked.interest.int().numpy())
        self._parts.append(_Part(user_idx.cpu().numpy(), tied.numpy(), keys, stacked, *lists))

    def _mean(self, key: str, values: Tensor) -> None:
        """Add values of users to the mean with this key."""
        if key not in self.extra:
            self.extra[key] = UserMean().to(self.device)
        self.extra[key].update(values.to(self.device))

    def _add_raw(self, vectors: Float[Tensor, "B K D"], targets: Ragged) -> dict[tuple[str, int], Tensor]:
        """The ranking metrics of unfiltered lists."""
        hits, n_targets = find_hits(retrieve(self.index, vectors, self.depth).items, targets)
        values = {(f"raw/{name}", k): METRICS[name](hits, n_targets, k) for name, k in self.keys}
        for (name, k), value in values.items():
            self._mean(f"{name}@{k}", value)
        return values

    def _add_category_recall(
        self, ranked: Retrieved, hits: Bool[Tensor, "B N"], targets: Ragged
    ) -> dict[tuple[str, int], Tensor]:
        """The share of the categories of a user's targets that are hit, if categories are known."""
        if self.categories is None:
            return {}
        values = {k: category_recall(ranked.items, hits, targets, self.categories, k) for k in self.cutoffs}
        for k, value in values.items():
            self._mean(f"{CATEGORY_RECALL}@{k}", value)
        return {(CATEGORY_RECALL, k): value for k, value in values.items()}

    def _add_lists(self, vectors: Float[Tensor, "B K D"], ranked: Retrieved, hits: Bool[Tensor, "B N"]) -> None:
        """Add how the lists spread over the catalogue and over the interests."""
        for exposure in self.exposure:
            exposure.update(ranked.items.to(self.device))
        self._add_diversity("", ranked.items)
        n_interests = vectors.shape[1]
        if n_interests == 1:
            return
        self._mean("interest_cosine", interest_cosine(vectors))
        self._mean(f"interests_used@{self.depth}", interests_used(ranked.interest, ranked.items != 0, n_interests))
        for interest in range(n_interests):
            own_hits = hits & (ranked.interest == interest)
            share = own_hits.sum(dim=1).double() / hits.sum(dim=1).clamp(min=1)
            # The share is undefined for users without a hit.
            self._mean(f"hit_share_interest_{interest}@{self.depth}", share[hits.any(dim=1)])

    def _add_overlap(self, vectors: Float[Tensor, "B K D"], ranked: Retrieved, seen: Ragged | None) -> None:
        """Add the share of an approximate list that is in the exact one."""
        assert self.exact is not None
        exact = retrieve(self.exact, vectors, self.depth, seen)
        same = (ranked.items[:, :, None] == exact.items[:, None, :]) & (ranked.items != 0)[:, :, None]
        self._mean(f"overlap_with_flat@{self.depth}", same.any(dim=2).double().mean(dim=1))

    def _add_trade_off(
        self, candidates: Retrieved, ranked: Retrieved, targets: Ragged, n_targets: Int[Tensor, " B"]
    ) -> None:
        for weight in self.lambdas:
            assert self.categories is not None  # without categories there are no lambdas
            chosen = rerank_diverse(candidates, self.categories, self.depth, weight) if weight else ranked
            hits, _ = find_hits(chosen.items, targets)
            for k in self.cutoffs:
                self._mean(f"controlled/{weight}/recall@{k}", METRICS["recall"](hits, n_targets, k))
            self._add_diversity(f"controlled/{weight}/", chosen.items)

    def _add_proportional(
        self, vectors: Float[Tensor, "B K D"], targets: Ragged, n_targets: Int[Tensor, " B"], seen: Ragged | None
    ) -> None:
        """Add how much the lists of the interests have in common, and accuracy and diversity of the lists that they
        fill by their shares."""
        lists, scores = retrieve_each(self.index, vectors, self.depth, seen)
        self._mean(f"interest_overlap@{self.cutoffs[0]}", list_overlap(lists[:, :, : self.cutoffs[0]]))
        filled = fill_proportionally(lists, scores, self.depth)
        hits, _ = find_hits(filled.items, targets)
        used = interests_used(filled.interest, filled.items != 0, vectors.shape[1])
        self._mean(f"proportional/interests_used@{self.depth}", used)
        for k in self.cutoffs:
            for name in ("recall", "ndcg"):
                self._mean(f"proportional/{name}@{k}", METRICS[name](hits, n_targets, k))
        self._add_diversity("proportional/", filled.items)

    def _add_diversity(self, prefix: str, items: Int[Tensor, "B N"]) -> None:
        """Add the diversity of lists by category, if categories are known."""
        if self.categories is not None:
            for k in self.cutoffs:
                top = items[:, :k]
                self._mean(f"{prefix}diversity@{k}", category_diversity(self.categories[top], top != 0))

    def ranking(self) -> dict[str, float]:
        """The ranking metrics: means over all users of all processes."""
        return {key: float(metric.compute()) for key, metric in self.metrics.items()}

    def evaluation(self) -> Evaluation:
        """The results of all processes. Every process must call it."""
        self._agree_on_keys()
        values = self.ranking() | {key: float(metric.compute()) for key, metric in self.extra.items()}
        for exposure in self.exposure:
            values |= {key: float(value) for key, value in exposure.compute().items()}
        trade_off = []
        for weight in self.lambdas:
            prefix = f"controlled/{weight}/"
            part = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
            trade_off.append({"lambda": float(weight), **part})
        left_out = ("controlled/",) if any(_all_gather(self.has_ties)) else ("controlled/", "untied/")
        summary = {key: value for key, value in values.items() if not key.startswith(left_out)}
        per_user, rankings = self._frames(_gather(self._parts))
        return Evaluation(summary, per_user, rankings, trade_off)

    def _agree_on_keys(self) -> None:
        """Create the same means in all processes.

        A process without users lacks some of them, but sums over processes need all.
        """
        keys_of_processes: list[Any] = _all_gather(list(self.extra))
        keys = list(dict.fromkeys(key for keys in keys_of_processes for key in keys))
        self.extra = {key: self.extra.get(key) or UserMean().to(self.device) for key in keys}

    def _frames(self, whole: _Part) -> tuple[polars.DataFrame, polars.DataFrame]:
        """Tables of the values and lists of all users, in the order of their numbers."""
        order = np.argsort(whole.user, kind="stable")
        user, tied, items = whole.user[order].astype(np.int32), whole.tied[order], whole.items[order]
        per_user = [
            polars.DataFrame({"user_idx": user, "value": values[order], "tied": tied}).select(
                "user_idx",
                polars.lit(name).alias("metric"),
                polars.lit(k, polars.Int32).alias("k"),
                "value",
                "tied",
            )
            for (name, k), values in zip(whole.keys, whole.values, strict=True)
        ]
        rankings = polars.DataFrame(
            {
                "user_idx": np.repeat(user, self.depth),
                "rank": np.tile(np.arange(1, self.depth + 1, dtype=np.int32), len(user)),
                "item_idx": items.ravel(),
                "score": whole.scores[order].ravel(),
                "interest": whole.interest[order].ravel(),
            }
        )
        return polars.concat(per_user), rankings if items.all() else rankings.filter(polars.col("item_idx") != 0)


def evaluate(
    interests: Float[Tensor, "U K D"],
    item_vectors: Float[Tensor, "I_plus_1 D"],
    targets: Iterable[Sequence[int]],
    *,
    seen: Iterable[Sequence[int]] | None = None,
    k: int | Sequence[int] = (20, 50),
    index: str = "flat",
    search: int = 0,
    diversity_lambdas: Sequence[float] = (),
    item_counts: Int[Tensor, " I_plus_1"] | None = None,
    categories: Int[Tensor, " I_plus_1"] | None = None,
    batch_size: int = 1024,
) -> Evaluation:
    """Evaluate vectors by full ranking. The metrics are the same as those of a run.

    Args:
        interests: interest vectors of the held-out users.
        item_vectors: vectors of all items. Items are numbered from 1; row 0 is padding and is never recommended.
        targets: the held-out items of each user.
        seen: the items of each user's context; if given, they are left out of the lists.
        k: cut-offs.
        index, search, diversity_lambdas, item_counts, categories: see `Evaluator`.
        batch_size: users per batch.

    Returns:
        `user_idx` in its tables is the row of `interests`.

    Raises:
        DataError: shapes or the numbers of users differ, a value is no finite number, a user has no target, or an item
            has no vector.
    """
    interests = _vectors("interests", interests, "[U, K, D]")
    item_vectors = _vectors("item_vectors", item_vectors, "[I + 1, D]")
    if interests.shape[-1] != item_vectors.shape[-1]:
        raise DataError(
            f"interests: have {interests.shape[-1]} dimensions, item_vectors {item_vectors.shape[-1]}; "
            "give both of one model."
        )
    cutoffs = sorted({k} if isinstance(k, int) else set(k))
    wanted, context = Ragged.of(targets), Ragged.of(seen) if seen is not None else None
    users = len(interests)
    for name, lists in (("targets", wanted), ("seen", context)):
        if lists is None:
            continue
        if len(lists.lengths) != users:
            raise DataError(f"{name}: must have a list for each of the {users} users, has {len(lists.lengths)}.")
        outside = (lists.values < 1) | (lists.values >= len(item_vectors))
        if bool(outside.any()):
            raise DataError(
                f"{name}: items must be numbers from 1 to {len(item_vectors) - 1} (rows of item_vectors), "
                f"one is {int(lists.values[outside][0])}."
            )
    if bool((wanted.lengths == 0).any()):
        raise DataError(f"targets: user {int((wanted.lengths == 0).nonzero()[0, 0])} has none; leave such users out.")
    if not cutoffs or cutoffs[0] < 1:
        raise DataError(f"k: cut-offs must be whole numbers from 1, are {cutoffs}.")
    evaluator = Evaluator(
        item_vectors.numpy(),
        cutoffs,
        filter_seen=seen is not None,
        index=index,
        search=search,
        diversity_lambdas=diversity_lambdas,
        item_counts=item_counts,
        categories=categories,
    )
    for rows in torch.arange(users).split(batch_size):
        part = context.select(rows) if context is not None else None
        evaluator.add(rows, interests[rows], wanted.select(rows), part)
    return evaluator.evaluation()


def _vectors(name: str, value: Any, shape: str) -> Tensor:
    """An array or tensor of vectors in float32 on the CPU.

    Raises:
        DataError: it has another number of dimensions, or values that are no finite numbers.
    """
    found = torch.as_tensor(value).detach().float().cpu()
    if found.ndim != len(shape.split(",")):
        raise DataError(f"{name}: must have the shape {shape}, has {list(found.shape)}.")
    if not bool(found.isfinite().all()):
        raise DataError(f"{name}: some values are no finite numbers (NaN or infinite); check the model that made them.")
    return found


def _all_gather(value: Any) -> list[Any]:
    """The value of every process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _gather(parts: list[_Part]) -> _Part:
    """Join the users of all batches and processes."""

    def join(some: Sequence[_Part]) -> _Part | None:
        if not some:
            return None
        user, tied, keys, values, *lists = zip(*some, strict=True)
        joined = np.concatenate(values, axis=1)
        return _Part(np.concatenate(user), np.concatenate(tied), keys[0], joined, *map(np.concatenate, lists))

    whole = join([part for part in _all_gather(join(parts)) if part is not None])
    if whole is None:
        raise DataError("evaluation: there are no held-out users; use more data, or another split.")
    return whole
