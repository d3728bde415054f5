"""Candidate retrieval: FAISS search for each interest, and vectorised merging of the candidates.

Shapes: B users, K interests, N retrieved items, C candidates before merging.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import faiss
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eimf.core.errors import ArtifactError, ConfigError

NEVER = float("-inf")


CONTROLLED_POOL = 50
"""Candidates of each interest that controllable aggregation chooses from, at least."""


class Retrieved(NamedTuple):
    """Ranked lists, best first. A list that runs out of items ends with item 0 and score -inf."""

    items: Int[Tensor, "B N"]
    scores: Float[Tensor, "B N"]
    interest: Int[Tensor, "B N"]
    """The interest that retrieved the item, or scored it best."""


IndexKind = Literal["flat", "hnsw", "ivf", "ivfpq"]


class ItemIndex:
    """A FAISS inner-product index of all items.

    Args:
        vectors: row 0 is padding; it is not in the index and can never be retrieved.
        kind: `flat` is exact; the others are approximate. `ivfpq` also compresses the vectors.
        hnsw_links, hnsw_search: neighbours of a node, and breadth of the search.
        ivf_lists, ivf_probes: number of inverted lists (0: 4 sqrt(I)), and how many a query visits.
        pq_bytes: size of a compressed vector; must divide D.

    Raises:
        ConfigError: too few items for the kind.
    """

    def __init__(
        self,
        vectors: Float[np.ndarray, "I_plus_1 D"],
        kind: IndexKind = "flat",
        *,
        hnsw_links: int = 32,
        hnsw_search: int = 128,
        ivf_lists: int = 0,
        ivf_probes: int = 16,
        pq_bytes: int = 16,
    ) -> None:
        rows = np.ascontiguousarray(vectors[1:], dtype=np.float32)
        self.n_items, dim = rows.shape
        if kind == "ivfpq" and self.n_items < 16:
            raise ConfigError(f"eval.index: ivfpq needs 16 items or more, there are {self.n_items}; use flat.")
        if kind == "flat":
            self._index = faiss.IndexFlatIP(dim)
        elif kind == "hnsw":
            self._index = faiss.IndexHNSWFlat(dim, hnsw_links, faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efConstruction = 2 * hnsw_search
            self._index.hnsw.efSearch = hnsw_search
        else:
            lists = min(ivf_lists or int(4 * self.n_items**0.5), self.n_items)
            centres, metric = faiss.IndexFlatIP(dim), faiss.METRIC_INNER_PRODUCT
            if kind == "ivf":
                self._index = faiss.IndexIVFFlat(centres, dim, lists, metric)
            else:
                bits = 8 if self.n_items >= 256 else 4
                self._index = faiss.IndexIVFPQ(centres, dim, lists, pq_bytes, bits, metric)
                self._index.pq.cp.min_points_per_centroid = 1
            self._index.nprobe = min(ivf_probes, lists)
            self._index.cp.min_points_per_centroid = 1  # small catalogues are fine, and need no warning
            self._index.train(rows)  # pyright: ignore[reportCallIssue]
        self._index.add(rows)  # pyright: ignore[reportCallIssue]

    def save(self, path: Path) -> None:
        """Write the index to a file.

        Raises:
            ArtifactError: the disk refuses.
        """
        work = path.with_name(f".{path.name}.partial")
        try:
            faiss.write_index(self._index, str(work))
            work.replace(path)
        except (OSError, RuntimeError) as error:
            reason = _last_line(error)
            raise ArtifactError(f"{path}: could not be written ({reason}); free some disk space.") from None
        finally:
            work.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> "ItemIndex":
        """Map a saved index into memory: it is read as it is needed, and shared between processes.

        Raises:
            ArtifactError: missing or damaged.
        """
        index = cls.__new__(cls)
        try:
            index._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            reason = _last_line(error)
            raise ArtifactError(f"{path}: cannot be read ({reason}); make it again with eimf index.") from None
        index.n_items = index._index.ntotal
        return index

    def search(
        self, interests: Float[Tensor, "B K D"], depth: int
    ) -> tuple[Float[Tensor, "B K N"], Int[Tensor, "B K N"]]:
        """The `depth` best items of every interest (all items, if there are fewer), best first."""
        depth = min(depth, self.n_items)
        batch, count, dim = interests.shape
        queries = np.ascontiguousarray(interests.detach().float().cpu().numpy().reshape(-1, dim))
        scores, rows = self._index.search(queries, depth)  # pyright: ignore[reportCallIssue]
        found_scores, found = (
            torch.from_numpy(scores),
            torch.from_numpy(rows) + 1,
        )  # "not found" (-1) becomes padding
        found_scores = found_scores.masked_fill_(found == 0, NEVER)
        return found_scores.view(batch, count, depth), found.view(batch, count, depth)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:120]


def merge(
    scores: Float[Tensor, "B K N"],
    items: Int[Tensor, "B K N"],
    n: int,
    seen: Int[Tensor, "B S"] | None = None,
) -> Retrieved:
    """Merge the candidates of a user's interests: best score wins, each item once, the n best in order.

    Args:
        seen: items that may not be recommended to the user, padded with 0.

    The result is the exact top n over all items if every interest brought at least n candidates (n plus the number
    of seen items when filtering) and the search was exact.
    """
    _, count, depth = scores.shape
    if seen is not None:
        scores = scores.masked_fill(is_member(items.flatten(1), seen).view_as(items), NEVER)
    ranked, order = scores.flatten(1).sort(dim=1, descending=True, stable=True)
    ranked_items = items.flatten(1).gather(1, order)
    if count > 1:
        # Among equal items, adjacent after a stable sort by id, the first is the best scored: later ones go.
        by_item, place = ranked_items.sort(dim=1, stable=True)
        repeated = torch.zeros_like(by_item, dtype=torch.bool)
        repeated[:, 1:] = by_item[:, 1:] == by_item[:, :-1]
        gone = torch.empty_like(repeated).scatter_(1, place, repeated)
        ranked = ranked.masked_fill(gone, NEVER)
        ranked, again = ranked.sort(dim=1, descending=True, stable=True)
        ranked_items, order = ranked_items.gather(1, again), order.gather(1, again)
    width = min(n, ranked.shape[1])
    scores, items, interest = ranked[:, :width], ranked_items[:, :width], (order // depth)[:, :width]
    items = items.masked_fill(scores == NEVER, 0)
    if width < n:
        scores = torch.nn.functional.pad(scores, (0, n - width), value=NEVER)
        items, interest = (torch.nn.functional.pad(part, (0, n - width)) for part in (items, interest))
    return Retrieved(items, scores, interest)


def is_member(items: Int[Tensor, "B C"], group: Int[Tensor, "B S"]) -> Tensor:
    """bool[B, C]: whether each item is in the same row of `group`; the padding 0 is in none."""
    if group.shape[1] == 0:
        return torch.zeros_like(items, dtype=torch.bool)
    ordered = group.sort(dim=1).values
    place = torch.searchsorted(ordered, items.contiguous()).clamp(max=group.shape[1] - 1)
    return (ordered.gather(1, place) == items) & (items != 0)


def retrieve(
    index: ItemIndex, interests: Float[Tensor, "B K D"], n: int, seen: Int[Tensor, "B S"] | None = None, pool: int = 0
) -> Retrieved:
    """The n items with the largest inner product with any of a user's interests, seen ones left out if given.

    Args:
        pool: more candidates of each interest than n, for `rerank_diverse`; if given, all candidates are returned,
            not only the n best.
    """
    extra = int((seen != 0).sum(dim=1).max()) if seen is not None and seen.numel() else 0
    scores, items = index.search(interests, max(n, pool) + extra)
    return merge(scores, items, items[0].numel() if pool else n, seen)


def rerank_diverse(candidates: Retrieved, categories: Int[Tensor, " I_plus_1"], n: int, weight: float) -> Retrieved:
    """ComiRec's controllable aggregation (arXiv 2005.09347, eq. 12 and algorithm 2), all users at once.

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
