"""Candidate retrieval: FAISS search for each interest, and vectorised merging of the candidates.

Lists are sorted by score, best first. Items with equal scores are in a fixed random order (`tie_order`). It does not
depend on the cut-offs, the batch or any counts.

Shapes: B users, K interests, N retrieved items, C candidates before merging.
"""

import copy
import errno
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eimf.core.errors import ArtifactError, ConfigError
from eimf.core.files import replacing
from eimf.data.batch import Ragged

_faiss: Any = faiss  # its stubs lack the parameters of searches
NEVER = float("-inf")
CONTROLLED_POOL = 50
"""Fewest candidates of each interest that controllable aggregation chooses from."""
CANDIDATES_AT_ONCE = 2**22
"""Most candidates that a search holds at a time."""
PROBES, BREADTH = 16, 128
"""Numbers of inverted lists, and of graph candidates, that a query visits by default."""


class Retrieved(NamedTuple):
    """Ranked lists, best first. A list that runs out of items ends with item 0 and score -inf."""

    items: Int[Tensor, "B N"]
    scores: Float[Tensor, "B N"]
    interest: Int[Tensor, "B N"]
    """The interest that retrieved the item, or scored it best."""


@cache
def tie_order(n_items: int) -> Int[Tensor, " I_plus_1"]:
    """Rank of each item among items of equal score: a random order, the same for every run on the catalogue."""
    order = torch.randperm(n_items, generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.full((1,), n_items), order])


def factory_string(kind: str, n_items: int) -> str:
    """The FAISS factory string of an index.

    Args:
        kind: `flat`, `hnsw`, `ivf`, `ivfpq`, or a factory string. The number of inverted lists is 4 sqrt(I).
    """
    lists = min(int(4 * n_items**0.5), n_items)
    known = {"flat": "Flat", "hnsw": "HNSW32", "ivf": f"IVF{lists},Flat"}
    known["ivfpq"] = f"IVF{lists},PQ16" + ("" if n_items >= 256 else "x4")
    return known.get(kind, kind)


class ItemIndex:
    """A FAISS inner-product index of all items.

    An approximate index keeps the item vectors too (it shares their memory where it can). A search among few allowed
    items compares each of them with the query: this is exact. Otherwise the approximate search visits more items, so
    that it meets as many allowed ones as a search without a filter meets items; see `exact_for`.

    Args:
        vectors: row 0 is padding; it is not in the index and can never be retrieved.
        kind: see `factory_string`; `flat` is exact, the others are approximate.
        search: number of inverted lists, or of graph candidates, that a query visits; 0 is `PROBES` or `BREADTH`.

    Raises:
        ConfigError: FAISS cannot make an index of that kind of these vectors.
    """

    def __init__(self, vectors: Float[np.ndarray, "I_plus_1 D"], kind: str = "flat", *, search: int = 0) -> None:
        rows = np.ascontiguousarray(vectors[1:], dtype=np.float32)
        self.n_items, dim = rows.shape
        name = factory_string(kind, self.n_items)
        try:
            self._index: Any = faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
            inner: Any = faiss.try_extract_index_ivf(self._index)
            if inner is not None:
                inner = faiss.downcast_index(inner)
                inner.nprobe = min(search or PROBES, inner.nlist)
                inner.cp.min_points_per_centroid = 1  # no warning for small catalogues
                if hasattr(inner, "pq"):
                    inner.pq.cp.min_points_per_centroid = 1
            elif hasattr(self._index, "hnsw"):
                self._index.hnsw.efConstruction = 2 * (search or BREADTH)
                self._index.hnsw.efSearch = search or BREADTH
            if not self._index.is_trained:
                self._index.train(rows)
            self._index.add(rows)
            self._keep(rows)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"eval.index: {kind!r} ({name}) cannot hold {self.n_items:,} items of {dim} dimensions "
                f"({_reason(error)}); use flat, hnsw, ivf, ivfpq or another FAISS factory string. The bytes of PQ must "
                "divide the dimensions, and it needs 16 items or more."
            ) from None

    def _keep(self, rows: Float[np.ndarray, "I D"]) -> None:
        """Keep the vectors of an approximate index, for exact searches."""
        self.exact = isinstance(self._index, faiss.IndexFlat)
        self._rows = None if self.exact else rows
        self._filters = not self.exact and _can_filter(self._index)

    def with_items(self, vectors: Float[np.ndarray, "N D"]) -> "ItemIndex":
        """A copy with N more items, numbered from I + 1. An approximate index is not trained again.

        Raises:
            ConfigError: an index of this kind cannot grow.
        """
        other, added = copy.copy(self), np.ascontiguousarray(vectors, dtype=np.float32)
        # Not `clone_index`: the copy of an index that is mapped from a file cannot grow.
        other._index = faiss.deserialize_index(faiss.serialize_index(self._index))
        try:
            other._index.add(added)
        except RuntimeError as error:
            raise ConfigError(
                f"eval.index: an index of this kind cannot grow by new items ({_reason(error)}); make another one, "
                "such as: eimf index RUN eval.index=hnsw"
            ) from None
        other.n_items = self.n_items + len(added)
        other._rows = None if self._rows is None else np.concatenate([self._rows, added])
        return other

    def save(self, path: Path) -> None:
        """Write the index to a file.

        Raises:
            ArtifactError: the file cannot be written.
        """
        with replacing(path) as work:
            try:
                faiss.write_index(self._index, str(work))
            except RuntimeError as error:  # faiss keeps no reason of the operating system's
                raise OSError(errno.ENOSPC, "the disk is full, or refuses") from error

    @classmethod
    def load(cls, path: Path, vectors: Float[np.ndarray, "I_plus_1 D"]) -> "ItemIndex":
        """Map a saved index into memory. It is read on demand, and processes share it.

        Args:
            vectors: those that it was made of.

        Raises:
            ArtifactError: the file is missing or damaged, or of other vectors.
        """
        index = cls.__new__(cls)
        try:
            index._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            reason = _last_line(error)
            raise ArtifactError(f"{path}: cannot be read ({reason}); make it again with eimf index.") from None
        index.n_items, rows = index._index.ntotal, np.ascontiguousarray(vectors[1:], dtype=np.float32)
        if rows.shape != (index.n_items, index._index.d):
            raise ArtifactError(f"{path}: is of other item vectors; make it again with eimf index.")
        index._keep(rows)
        return index

    def exact_for(self, allowed: Bool[Tensor, " I_plus_1"] | None) -> bool:
        """Whether a search among the allowed items is exact.

        Among A of I items, an approximate search that usually visits V items must visit V I / A, so that V of them are
        allowed. If that is A or more, comparing all allowed items is not slower, and exact. Hence the bound: at most
        sqrt(V I) allowed items. V is about 4,000 for the default HNSW, 4 sqrt(I) for the default IVF; of a million
        items, both bounds are about 64,000. Indexes that cannot search with a filter are always searched this way.
        """
        if self.exact or allowed is None:
            return self.exact
        return not self._filters or int(allowed[1:].sum()) ** 2 <= self._visited() * self.n_items

    def _visited(self) -> float:
        """About how many items a search without a filter visits."""
        inner = _inner(self._index)
        if isinstance(inner, _faiss.IndexIVF):
            return self.n_items * inner.nprobe / inner.nlist
        return 1.0 * inner.hnsw.efSearch * inner.hnsw.nb_neighbors(1)

    def search(
        self,
        interests: Float[Tensor, "B K D"],
        depth: int,
        allowed: Bool[Tensor, " I_plus_1"] | None = None,
        *,
        whole: bool = False,
    ) -> tuple[Float[Tensor, "B K N"], Int[Tensor, "B K N"]]:
        """The `depth` best items of every interest (all items, if there are fewer), best first.

        Args:
            allowed: items that may be found; None allows all.
            whole: search exactly, also if the index is approximate.
        """
        depth = min(depth, self.n_items)
        batch, count, dim = interests.shape
        queries = np.ascontiguousarray(interests.detach().float().cpu().numpy().reshape(-1, dim))
        if self._rows is not None and (whole or self.exact_for(allowed)):
            scores, rows = _compare_all(queries, self._rows, depth, allowed)
        else:
            scores, rows = self._index.search(queries, depth, params=self._parameters(allowed))
        items = torch.from_numpy(rows) + 1  # "not found" (-1) becomes padding
        item_scores = torch.from_numpy(scores).masked_fill_(items == 0, NEVER)
        return item_scores.view(batch, count, depth), items.view(batch, count, depth)

    def _parameters(self, allowed: Bool[Tensor, " I_plus_1"] | None) -> Any:
        """Of a search among the allowed items: the fewer they are, the more items it visits."""
        if allowed is None:
            return None
        return _filtered(self._index, allowed[1:].cpu().numpy())


def _inner(index: Any) -> Any:
    """The index itself, or the one behind a transformation such as PCA."""
    return _faiss.downcast_index(index.index) if isinstance(index, _faiss.IndexPreTransform) else index


def _filtered(index: Any, allowed: Bool[np.ndarray, " I"]) -> Any:
    """FAISS's parameters of a search among the allowed rows.

    IVF visits as many more inverted lists, and HNSW as many more candidates, as there are items for each allowed one.
    """
    # FAISS reads the bits of the rows, the lowest bit of each byte first.
    selector = _faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    inner, deeper = _inner(index), len(allowed) / max(1, allowed.sum())
    if isinstance(inner, _faiss.IndexIVF):
        probes = min(inner.nlist, math.ceil(inner.nprobe * deeper))
        parameters = _faiss.SearchParametersIVF(sel=selector, nprobe=probes)
    elif isinstance(inner, _faiss.IndexHNSW):
        breadth = min(inner.ntotal, math.ceil(inner.hnsw.efSearch * deeper))
        parameters = _faiss.SearchParametersHNSW(sel=selector, efSearch=breadth)
    else:
        parameters = _faiss.SearchParameters(sel=selector)
    return parameters if inner is index else _faiss.SearchParametersPreTransform(index_params=parameters)


def _can_filter(index: Any) -> bool:
    """Whether an approximate index can search with a filter and visit more for it; tried on one query."""
    if not isinstance(_inner(index), _faiss.IndexIVF | _faiss.IndexHNSW):
        return False
    allowed = np.zeros(index.ntotal, dtype=bool)
    allowed[:1] = True
    try:
        _, rows = index.search(
            np.ones((1, index.d), np.float32), min(2, index.ntotal), params=_filtered(index, allowed)
        )
    except RuntimeError:
        return False
    return bool((rows <= 0).all())


def _compare_all(
    queries: Float[np.ndarray, "Q D"],
    rows: Float[np.ndarray, "I D"],
    depth: int,
    allowed: Bool[Tensor, " I_plus_1"] | None,
) -> tuple[Float[np.ndarray, "Q N"], Int[np.ndarray, "Q N"]]:
    """The `depth` allowed rows with the largest inner product with each query; -1 where there are no more."""
    chosen = None if allowed is None else np.flatnonzero(allowed[1:].cpu().numpy())
    among = rows if chosen is None else rows[chosen]
    width = min(depth, len(among))
    scores = np.full((len(queries), depth), NEVER, np.float32)
    found = np.full((len(queries), depth), -1, np.int64)
    if width:
        scores[:, :width], places = faiss.knn(queries, among, width, metric=faiss.METRIC_INNER_PRODUCT)
        found[:, :width] = places if chosen is None else chosen[places]
    return scores, found


class ScoreIndex(ItemIndex):
    """For models that give the score of every item in place of an interest vector: picks the best ones."""

    def __init__(self, n_items: int) -> None:
        self.n_items, self.exact, self._rows = n_items, True, None

    def save(self, path: Path) -> None:
        """Nothing to keep.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("eval.index: this model has no item vectors to index; use eval.index=flat.")

    def search(
        self,
        interests: Float[Tensor, "B K I_plus_1"],
        depth: int,
        allowed: Bool[Tensor, " I_plus_1"] | None = None,
        *,
        whole: bool = False,
    ) -> tuple[Float[Tensor, "B K N"], Int[Tensor, "B K N"]]:
        scores = interests.detach().float().cpu()
        if allowed is not None:
            scores = scores.masked_fill(~allowed, NEVER)
        best, rows = scores[..., 1:].topk(min(depth, self.n_items), dim=2)
        return best, (rows + 1).masked_fill_(best == NEVER, 0)


def make_index(vectors: Float[np.ndarray, "I_plus_1 D"], kind: str = "flat", *, search: int = 0) -> ItemIndex:
    """The index of a model's item vectors; a model without any (D = 0) gives scores itself.

    Raises:
        ConfigError: the vectors cannot be indexed that way.
    """
    if vectors.shape[1] > 0:
        return ItemIndex(vectors, kind, search=search)
    if kind.lower() != "flat":
        raise ConfigError(f"eval.index: is {kind!r}, but this model has no item vectors to index; use flat.")
    return ScoreIndex(len(vectors) - 1)


def _reason(error: Exception) -> str:
    """The message of FAISS, without the place in its source."""
    return " ".join(str(error).rpartition("Error: ")[2].split())[:80] or type(error).__name__


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:120]


def merge(
    scores: Float[Tensor, "B K N"],
    items: Int[Tensor, "B K N"],
    n: int,
    seen: Ragged | None = None,
    ties: Int[Tensor, " I_plus_1"] | None = None,
) -> Retrieved:
    """Merge the candidates of a user's interests into the n best items. Each item has its best score.

    Args:
        seen: items that must not be recommended to the user.
        ties: order of items with equal scores; None keeps the order of the candidates.

    The result is the exact top n over all items if every interest brought at least n candidates (n plus the number
    of seen items when filtering) and the search was exact.
    """
    _, count, depth = scores.shape
    scores, items = scores.flatten(1), items.flatten(1)
    if seen is not None:
        scores = scores.masked_fill(is_member(items, seen), NEVER)
    order = ties[items].sort(dim=1, stable=True).indices if ties is not None else None
    if order is not None:
        scores, items = scores.gather(1, order), items.gather(1, order)
    ranked, place = scores.sort(dim=1, descending=True, stable=True)
    ranked_items = items.gather(1, place)
    if count > 1:
        # After a stable sort by id, equal items are adjacent, best score first. Remove all but the first.
        by_item, at = ranked_items.sort(dim=1, stable=True)
        repeated = torch.zeros_like(by_item, dtype=torch.bool)
        repeated[:, 1:] = by_item[:, 1:] == by_item[:, :-1]
        removed = torch.empty_like(repeated).scatter_(1, at, repeated)
        ranked = ranked.masked_fill(removed, NEVER)
        ranked, reorder = ranked.sort(dim=1, descending=True, stable=True)
        ranked_items, place = ranked_items.gather(1, reorder), place.gather(1, reorder)
    if order is not None:
        place = order.gather(1, place)
    width = min(n, ranked.shape[1])
    scores, items, interest = ranked[:, :width], ranked_items[:, :width], (place // depth)[:, :width]
    items = items.masked_fill(scores == NEVER, 0)
    if width < n:
        scores = torch.nn.functional.pad(scores, (0, n - width), value=NEVER)
        items, interest = (torch.nn.functional.pad(part, (0, n - width)) for part in (items, interest))
    return Retrieved(items, scores, interest)


def is_member(items: Int[Tensor, "B C"], group: Ragged) -> Bool[Tensor, "B C"]:
    """Whether each item is in its row's list. Memory grows with the sum of the lists' lengths, not with the longest."""
    if len(group.values) == 0:
        return torch.zeros_like(items, dtype=torch.bool)
    base = torch.maximum(items.max(), group.values.max()) + 1
    keys = (group.owners * base + group.values).sort().values
    wanted = torch.arange(len(items), device=items.device)[:, None] * base + items
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return (keys[place] == wanted) & (items != 0)


def controlled_pool(n: int, n_interests: int) -> int:
    """Candidates of each interest from which `rerank_diverse` chooses n: ComiRec's number, and at least 2n in all."""
    return max(CONTROLLED_POOL, -(-2 * n // n_interests))


def retrieve(
    index: ItemIndex,
    interests: Float[Tensor, "B K D"],
    n: int,
    seen: Ragged | None = None,
    pool: int = 0,
    allowed: Bool[Tensor, " I_plus_1"] | None = None,
) -> Retrieved:
    """The n items with the largest inner product with any of a user's interests, of those that may be listed.

    Exact for a flat index, ties included, and among few allowed items (`ItemIndex.exact_for`). On an approximate index,
    a list that would be shorter than n although more items may be listed is searched for again, exactly. Users with
    many seen items are searched separately, so that memory does not grow with the longest history.

    Args:
        seen: items of each user that may not be listed.
        pool: number of candidates of each interest, for `rerank_diverse`. If given, all of them are returned, not only
            the n best.
        allowed: items that may be listed, for all users; None allows all.
    """
    interests = interests.detach().float().cpu()
    depth = max(n, pool)
    wanted = interests.shape[1] * min(depth, index.n_items) if pool else n
    n_allowed = index.n_items if allowed is None else int(allowed[1:].sum())
    exact = index.exact_for(allowed)
    seen = seen.cpu() if seen is not None else None
    extra = torch.zeros(len(interests), dtype=torch.long) if seen is None else seen.lengths
    # Round the needed depth up to a power of two, so that there are few different depths.
    need = torch.where(extra > 0, 2 ** torch.ceil(torch.log2(extra.double().clamp(min=16))), 0).long()
    parts: list[Retrieved] = []
    rows: list[Tensor] = []
    for size in need.unique().tolist():
        chosen = (need == size).nonzero()[:, 0]
        deep = max(1, min(depth + size, n_allowed))
        most = max(1, CANDIDATES_AT_ONCE // (interests.shape[1] * deep))
        for users in chosen.split(most):
            part = None if seen is None else seen.select(users)
            found = _search(index, interests[users], wanted, deep, part, allowed)
            if not exact:
                _complete(index, found, interests[users], min(n, n_allowed), deep, part, allowed)
            parts.append(found)
            rows.append(users)
    if len(rows) == 1:
        return parts[0]
    back = torch.cat(rows).argsort() if rows else torch.zeros(0, dtype=torch.long)
    if not rows:
        empty = torch.zeros(0, wanted)
        return Retrieved(empty.long(), empty, empty.long())
    return Retrieved(*(torch.cat(list(values))[back] for values in zip(*parts, strict=True)))


def retrieve_each(
    index: ItemIndex,
    interests: Float[Tensor, "B K D"],
    n: int,
    seen: Ragged | None = None,
    allowed: Bool[Tensor, " I_plus_1"] | None = None,
) -> tuple[Int[Tensor, "B K N"], Float[Tensor, "B K N"]]:
    """The n best items of each interest, not merged, and their scores; otherwise as `retrieve`."""
    batch, count, _ = interests.shape
    own = None if seen is None else seen.cpu().select(torch.arange(batch).repeat_interleave(count))
    alone = retrieve(index, interests.flatten(0, 1)[:, None], n, own, allowed=allowed)
    return alone.items.view(batch, count, -1), alone.scores.view(batch, count, -1)


def _search(
    index: ItemIndex,
    interests: Float[Tensor, "B K D"],
    n: int,
    depth: int,
    seen: Ragged | None,
    allowed: Bool[Tensor, " I_plus_1"] | None,
    whole: bool = False,
) -> Retrieved:
    """Search and merge. If scores tie at the end of an exact search, search deeper, so that no tied item is missed."""
    scores, items = index.search(interests, depth + 1, allowed, whole=whole)
    if scores.shape[2] <= depth:  # all items are here
        return merge(scores, items, n, seen, _ties(scores, index.n_items))
    cut = (scores[:, :, depth] == scores[:, :, depth - 1]) & (scores[:, :, depth] > NEVER)
    open_rows = cut.any(dim=1) if whole or index.exact_for(allowed) else torch.zeros(len(cut), dtype=torch.bool)
    retrieved = merge(scores[:, :, :depth], items[:, :, :depth], n, seen, _ties(scores, index.n_items))
    if open_rows.any():
        rows = open_rows.nonzero()[:, 0]
        most = max(1, CANDIDATES_AT_ONCE // (interests.shape[1] * min(4 * depth, index.n_items)))
        for users in rows.split(most):
            part = None if seen is None else seen.select(users)
            _put(retrieved, users, _search(index, interests[users], n, 4 * depth, part, allowed, whole))
    return retrieved


def _complete(
    index: ItemIndex,
    found: Retrieved,
    interests: Float[Tensor, "B K D"],
    n: int,
    depth: int,
    seen: Ragged | None,
    allowed: Bool[Tensor, " I_plus_1"] | None,
) -> None:
    """Search exactly for the users with fewer than n items."""
    short = ((found.items != 0).sum(dim=1) < n).nonzero()[:, 0]
    for users in short.split(max(1, CANDIDATES_AT_ONCE // (interests.shape[1] * depth))):
        part = None if seen is None else seen.select(users)
        _put(found, users, _search(index, interests[users], found.items.shape[1], depth, part, allowed, whole=True))


def _put(whole: Retrieved, rows: Int[Tensor, " S"], part: Retrieved) -> None:
    """Replace the lists of some users."""
    for values, new in zip(whole, part, strict=True):
        values[rows] = new


def _ties(scores: Float[Tensor, "B K N"], n_items: int) -> Int[Tensor, " I_plus_1"] | None:
    """The order of items with equal scores; None if no scores are equal."""
    ordered = scores.flatten(1).sort(dim=1).values if scores.shape[1] > 1 else scores[:, 0]
    same = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > NEVER)
    return tie_order(n_items) if bool(same.any()) else None


def rerank_diverse(candidates: Retrieved, categories: Int[Tensor, " I_plus_1"], n: int, weight: float) -> Retrieved:
    """ComiRec's controllable aggregation (arXiv 2005.09347, eq. 12 and algorithm 2), for all users at once.

    Greedily picks the item with the largest score + weight * (number of picked items of another category). Items of
    unknown category (0) count as one category of their own. `weight` 0 gives the candidates' first n.

    Args:
        candidates: distinct items, as `merge` returns them.
        categories: category number of every item.
    """
    items, scores, interest = candidates
    kind = categories.to(items.device)[items]
    width = min(n, items.shape[1])
    value = scores.clone()
    picks = torch.empty(len(items), width, dtype=torch.long, device=items.device)
    ended = torch.empty_like(picks, dtype=torch.bool)
    for step in range(width):
        top, best = value.max(dim=1, keepdim=True)
        picks[:, step : step + 1], ended[:, step : step + 1] = best, top == NEVER
        other = kind != kind.gather(1, best)
        value.add_(other, alpha=weight).scatter_(1, best, NEVER)
    return Retrieved(
        items.gather(1, picks).masked_fill(ended, 0),
        scores.gather(1, picks).masked_fill(ended, NEVER),
        interest.gather(1, picks).masked_fill(ended, 0),
    )


def fill_proportionally(
    items: Int[Tensor, "B K N"],
    scores: Float[Tensor, "B K N"],
    n: int,
    strength: Float[Tensor, "B K"] | None = None,
) -> Retrieved:
    """Merge the lists of a user's interests so that each interest has its share of every beginning of the merged list.

    The places are given by the method of Sainte-Laguë: the next one goes to the interest with the largest
    strength / (2 * its places so far + 1), for its best item that is not in the list yet.

    Args:
        items, scores: lists of each interest, as `retrieve_each` returns them, of at least n items where there are as
            many.
        strength: how much of the list each interest should have. By default the softmax, over the user's interests, of
            the score of its best item: what a model that was trained with a softmax loss says about these items alone.

    Returns:
        Lists that are not sorted by score. An item has the score with the interest that brought it.
    """
    batch, _, depth = items.shape
    scores = scores.clone()
    if strength is None:
        strength = scores[:, :, 0].double().softmax(dim=1).nan_to_num_(0.0)  # NaN: no interest has an item
    placed = torch.zeros_like(strength)
    picks = Retrieved(
        items.new_zeros(batch, n), scores.new_full((batch, n), NEVER), torch.zeros(batch, n, dtype=torch.long)
    )
    for place in range(n):
        best, at = scores.max(dim=2)
        claim = (strength / (2 * placed + 1)).masked_fill(best == NEVER, -1.0)
        interest = claim.argmax(dim=1, keepdim=True)
        item = items.flatten(1).gather(1, interest * depth + at.gather(1, interest))
        score = best.gather(1, interest)
        ended = score == NEVER
        for values, new in zip(picks, (item, score, interest), strict=True):
            values[:, place : place + 1] = new.masked_fill(ended, NEVER if new is score else 0)
        placed.scatter_add_(1, interest, torch.ones_like(score, dtype=placed.dtype))
        scores.masked_fill_(items == item[:, :, None], NEVER)
    return picks
