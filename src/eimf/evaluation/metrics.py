"""Ranking metrics: pure functions of hits for a batch of users, and torchmetrics classes that average them.

`hits[b, r]` is true if the item at rank r (from 0) of user b is one of the user's targets. `n_targets[b]` is the
number of the user's distinct targets. Ranks beyond the cut-off k are ignored. If a list is shorter than k, the missing
ranks are no hits.
"""

import itertools
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from eimf.config.components import METRICS
from eimf.data.batch import Ragged
from eimf.evaluation.retrieval import is_member

Values = Float[Tensor, " B"]

CATEGORY_RECALL = "category_recall"
"""Key of `category_recall`, which needs the items' categories; all other metrics of users are in `METRICS`."""


def find_hits(ranked: Int[Tensor, "B N"], targets: Ragged) -> tuple[Bool[Tensor, "B N"], Int[Tensor, " B"]]:
    """Which ranked items are targets, and how many distinct targets each user has.

    Args:
        ranked: item ids, best first, 0 where the list has ended.
        targets: target ids; repeated targets count once.
    """
    owners = targets.owners
    distinct = torch.stack([owners, targets.values]).unique(dim=1)[0] if len(owners) else owners
    return is_member(ranked, targets), torch.bincount(distinct, minlength=len(ranked))


def recall(hits: Bool[Tensor, "B N"], n_targets: Int[Tensor, " B"], k: int) -> Values:
    """Share of a user's targets among the first k.

    >>> recall(torch.tensor([[True, False, True]]), torch.tensor([4]), k=3)
    tensor([0.5000], dtype=torch.float64)
    """
    return hits[:, :k].sum(dim=1).double() / n_targets


def hit_rate(hits: Bool[Tensor, "B N"], n_targets: Int[Tensor, " B"], k: int) -> Values:
    """1 if any target is among the first k.

    >>> hit_rate(torch.tensor([[False, False, True]]), torch.tensor([4]), k=2)
    tensor([0.], dtype=torch.float64)
    """
    return hits[:, :k].any(dim=1).double()


def _discounts(n: int, device: torch.device) -> Float[Tensor, " n"]:
    return 1 / torch.log2(torch.arange(2, n + 2, device=device, dtype=torch.float64))


def _dcg(hits: Bool[Tensor, "B N"], k: int) -> Values:
    hits = hits[:, :k]
    return (hits * _discounts(hits.shape[1], hits.device)).sum(dim=1)


def _ideal(count: Int[Tensor, " B"], k: int) -> Values:
    total = torch.cat([torch.zeros(1, dtype=torch.float64, device=count.device), _discounts(k, count.device).cumsum(0)])
    return total[count.clamp(max=k)]


def ndcg(hits: Bool[Tensor, "B N"], n_targets: Int[Tensor, " B"], k: int) -> Values:
    """Discounted gain, divided by that of the best possible list, which starts with min(k, n_targets) targets.

    >>> ndcg(torch.tensor([[True, False]]), torch.tensor([1]), k=2)
    tensor([1.], dtype=torch.float64)
    """
    return _dcg(hits, k) / _ideal(n_targets, k).clamp(min=1e-12)


def ndcg_comirec(hits: Bool[Tensor, "B N"], n_targets: Int[Tensor, " B"], k: int) -> Values:
    """ComiRec's NDCG: the ideal list has only the hits of the actual list, so missed targets do not lower it.

    It is larger than `ndcg`. Use it to compare with papers that use ComiRec's code.

    >>> ndcg_comirec(torch.tensor([[True, False]]), torch.tensor([9]), k=2)
    tensor([1.], dtype=torch.float64)
    """
    n_hits = hits[:, :k].sum(dim=1)
    return _dcg(hits, k) / _ideal(n_hits, k).clamp(min=1e-12)


def mrr(hits: Bool[Tensor, "B N"], n_targets: Int[Tensor, " B"], k: int) -> Values:
    """1 / rank (from 1) of the first hit among the first k, else 0.

    >>> mrr(torch.tensor([[False, True]]), torch.tensor([1]), k=2)
    tensor([0.5000], dtype=torch.float64)
    """
    hits = hits[:, :k]
    rank = hits.double().argmax(dim=1) + 1
    return torch.where(hits.any(dim=1), 1 / rank.double(), 0.0)


Function = Callable[[Tensor, Tensor, int], Tensor]
"""A ranking metric: takes hits, numbers of targets and the cut-off, and returns a value for each user."""


class UserMean(Metric):
    """Mean of a value over users. It is exact under DDP, since sums and counts are reduced."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        self.total += values.double().sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        return self.total / self.count.clamp(min=1)


class RankingMetric(UserMean):
    """A ranking metric at one cut-off, averaged over users.

    Args:
        name: key of `eimf.config.components.METRICS`.
        k: cut-off.
    """

    def __init__(self, name: str, k: int) -> None:
        super().__init__()
        self.function, self.k = METRICS[name], k

    def update(self, hits: Tensor, n_targets: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().update(self.function(hits, n_targets, self.k))


class Exposure(Metric):
    """How recommendations spread over the catalogue: coverage, Gini coefficient and novelty of the top k.

    Args:
        n_items: I, size of the catalogue.
        k: cut-off.
        item_counts: occurrences of each item in the training interactions, entry 0 unused; None leaves out novelty.
    """

    full_state_update = False
    shown: Tensor
    information: Tensor | None

    def __init__(self, n_items: int, k: int, item_counts: Int[Tensor, " I_plus_1"] | None = None) -> None:
        super().__init__()
        self.k = k
        information = None
        if item_counts is not None:
            share = (item_counts.double() + 1) / (item_counts[1:].sum() + len(item_counts) - 1)
            information = -torch.log2(share)
        self.register_buffer("information", information, persistent=False)
        self.add_state("shown", torch.zeros(n_items + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, ranked: Int[Tensor, "B N"]) -> None:
        top = ranked[:, : self.k].flatten()
        self.shown += torch.bincount(top, minlength=len(self.shown))

    def compute(self) -> dict[str, Tensor]:
        shown = self.shown[1:].double()
        values = {f"coverage@{self.k}": coverage(shown), f"gini@{self.k}": gini(shown)}
        if self.information is not None:
            values[f"novelty@{self.k}"] = (shown * self.information[1:]).sum() / shown.sum().clamp(min=1)
        return values


def coverage(shown: Float[Tensor, " I"]) -> Float[Tensor, ""]:
    """Share of the catalogue that was recommended to anyone.

    >>> coverage(torch.tensor([3.0, 0.0])).item()
    0.5
    """
    return (shown > 0).double().mean()


def gini(shown: Float[Tensor, " I"]) -> Float[Tensor, ""]:
    """Gini coefficient of the recommendation counts: 0 if all items are shown equally often, near 1 if one is.

    >>> gini(torch.tensor([2.0, 2.0])).item()
    0.0
    """
    n = len(shown)
    rank = torch.arange(1, n + 1, dtype=torch.float64, device=shown.device)
    ordered = shown.double().sort().values
    return ((2 * rank - n - 1) * ordered).sum() / (n * ordered.sum()).clamp(min=1e-12)


def interest_cosine(vectors: Float[Tensor, "B K D"]) -> Values:
    """Mean cosine between a user's interests: 1 means that all are equal. K must be at least 2."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=-1)
    count = vectors.shape[1]
    total = (unit @ unit.transpose(1, 2)).sum(dim=(1, 2)) - unit.square().sum(dim=(1, 2))
    return total / (count * (count - 1))


def list_overlap(lists: Int[Tensor, "B K N"]) -> Values:
    """Mean share of items that the lists of two interests have in common, over all pairs: 1 means equal lists.

    >>> list_overlap(torch.tensor([[[1, 2, 3], [3, 4, 0]]])).round(decimals=3)
    tensor([0.5000], dtype=torch.float64)
    """
    count = lists.shape[1]
    total = torch.zeros(len(lists), dtype=torch.float64)
    for a, b in itertools.combinations(range(count), 2):
        both = lists[:, [a, b]].flatten(1).sort(dim=1).values  # an item of both lists stands twice in a row
        same = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] != 0)).sum(dim=1)
        shorter = torch.minimum((lists[:, a] != 0).sum(dim=1), (lists[:, b] != 0).sum(dim=1))
        total += same.double() / shorter.clamp(min=1)
    return total / max(1, count * (count - 1) // 2)


def interests_used(interest: Int[Tensor, "B N"], listed: Bool[Tensor, "B N"], n_interests: int) -> Values:
    """Effective number of interests in a merged list: exp of the entropy of their shares, from 1 to K.

    >>> interests_used(torch.tensor([[0, 1, 0, 1]]), torch.ones(1, 4, dtype=torch.bool), 2).round(decimals=3)
    tensor([2.], dtype=torch.float64)
    """
    share = torch.zeros(len(interest), n_interests, dtype=torch.float64, device=interest.device)
    share.scatter_add_(1, interest, listed.double())
    share = share / share.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.special.entr(share).sum(dim=1).exp()


def category_recall(
    ranked: Int[Tensor, "B N"],
    hits: Bool[Tensor, "B N"],
    targets: Ragged,
    categories: Int[Tensor, " I_plus_1"],
    k: int,
) -> Values:
    """Share of the categories of a user's targets that a hit among the first k belongs to.

    It tells lists that hit several interests from lists that hit one of them several times (subtopic recall, Zhai et
    al., SIGIR 2003, with only the targets relevant).

    Args:
        categories: number of each item's category; all items with 0, unknown, count as one category.

    >>> ranked, categories = torch.tensor([[1, 2, 3]]), torch.tensor([0, 7, 7, 8])
    >>> category_recall(ranked, torch.tensor([[True, True, False]]), Ragged.of([[1, 2, 3]]), categories, k=3)
    tensor([0.5000], dtype=torch.float64)
    """
    row, rank = hits[:, :k].nonzero(as_tuple=True)

    def count(users: Int[Tensor, " P"], items: Int[Tensor, " P"]) -> Int[Tensor, " B"]:
        distinct = torch.stack([users, categories[items]]).unique(dim=1)[0] if len(users) else users
        return torch.bincount(distinct, minlength=len(ranked))

    return count(row, ranked[row, rank]).double() / count(targets.owners, targets.values)


def category_diversity(kinds: Int[Tensor, "B N"], listed: Bool[Tensor, "B N"]) -> Values:
    """Share of pairs in a list whose categories differ (ComiRec, eq. 14).

    >>> category_diversity(torch.tensor([[1, 1, 2]]), torch.ones(1, 3, dtype=torch.bool)).round(decimals=3)
    tensor([0.6670], dtype=torch.float64)
    """
    both = listed[:, :, None] & listed[:, None, :]
    differ = (kinds[:, :, None] != kinds[:, None, :]) & both
    pairs = both.sum(dim=(1, 2)) - listed.sum(dim=1)
    return differ.sum(dim=(1, 2)).double() / pairs.clamp(min=1)
