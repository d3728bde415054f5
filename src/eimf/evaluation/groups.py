"""Groups held-out users by history, by popularity and breadth of their targets, and by distance to labelled users."""

from collections.abc import Sequence

import faiss
import numpy as np
import polars
from jaxtyping import Float, Int

from eimf.data.prepared import Sequences
from eimf.data.splits import Holdout

HISTORY, POPULARITY, NEARNESS = "history length", "popularity of targets", "nearest labelled user"
BREADTH, TARGET_BREADTH = "categories in the history", "categories of targets"
_LEVELS = ("up to", "head", "torso", "near", "far", "tail", "more than")


def group_users(
    sequences: Sequences,
    held: Holdout,
    item_counts: Int[np.ndarray, " I_plus_1"],
    distance: Float[np.ndarray, " U"] | None = None,
    categories: Int[np.ndarray, " I_plus_1"] | None = None,
) -> polars.DataFrame:
    """Put every held-out user into one level of each group; levels are about equally large.

    Args:
        item_counts: occurrences in the training interactions. Head, torso and tail items each make a third of them.
        distance: of each held-out user to the nearest labelled one, see `distance_to_labelled`.
        categories: number of each item's category, 0 where unknown. The number of categories in a history, and of
            those that the targets spread over, indicate how many interests a user has.

    Returns:
        `user_idx: i32, group: str, level: str`, in the order of `held` within a group.
    """
    user = held.user_idx.astype(np.int32)
    levels = {HISTORY: _thirds(held.cut - held.start, "items"), POPULARITY: _popularity(sequences, held, item_counts)}
    if categories is not None and (categories > 0).any():
        kinds = categories[sequences.items]
        for name, starts, ends in ((BREADTH, held.start, held.cut), (TARGET_BREADTH, held.cut, held.end)):
            spans = zip(starts, ends, strict=True)
            levels[name] = _thirds(np.array([len(set(kinds[a:b].tolist()) - {0}) for a, b in spans]), "categories")
    if distance is not None:
        levels[NEARNESS] = np.where(distance <= np.median(distance), "near", "far")
    parts = [polars.DataFrame({"user_idx": user, "group": name, "level": level}) for name, level in levels.items()]
    return polars.concat(parts)


def join_held_out(parts: Sequence[Holdout]) -> Holdout:
    """The users of several user splits, each once. What such a split holds out of a user depends on the user alone."""
    columns = [
        np.concatenate(of) for of in zip(*((p.user_idx, p.start, p.cut, p.end, p.tied) for p in parts), strict=True)
    ]
    _, first = np.unique(columns[0], return_index=True)
    user, start, cut, end, tied = (column[first] for column in columns)
    return Holdout(user, start, cut, end, tied)


def place_of_level(level: str) -> int:
    """Position of a level in its group, from low to high. A level of unknown name is in the middle."""
    return next((n for n, start in enumerate(_LEVELS) if level.startswith(start)), 2)


def _thirds(counts: np.ndarray, unit: str) -> np.ndarray:
    """Name of the third that each count is in: lower, middle or upper."""
    low, high = np.quantile(counts, [1 / 3, 2 / 3], method="lower")
    names = np.where(counts <= low, f"up to {low:.0f} {unit}", f"more than {high:.0f} {unit}")
    middle = f"{low + 1:.0f} to {high:.0f} {unit}" if high > low + 1 else f"{high:.0f} {unit}"
    return np.where((counts > low) & (counts <= high), middle, names)


def _popularity(sequences: Sequences, held: Holdout, item_counts: np.ndarray) -> np.ndarray:
    """The part of the catalogue (head, torso or tail) of each user's median target."""
    order = np.argsort(-item_counts, kind="stable")
    counts = item_counts[order]
    middle_of_item = (np.cumsum(counts) - counts / 2) / max(counts.sum(), 1)  # as a share of all interactions
    part = np.empty(len(item_counts), np.int64)
    part[order] = np.clip((3 * middle_of_item).astype(np.int64), 0, 2)
    middle = [int(np.median(part[sequences.items[a:b]])) for a, b in zip(held.cut, held.end, strict=True)]
    return np.array(["head", "torso", "tail"])[middle]


def distance_to_labelled(
    held_vectors: Float[np.ndarray, "U D"], labelled_vectors: Float[np.ndarray, "N D"]
) -> Float[np.ndarray, " U"]:
    """Cosine distance of each held-out user's context to the nearest labelled user; all vectors of length 1."""
    index = faiss.IndexFlatIP(labelled_vectors.shape[1])
    index.add(np.ascontiguousarray(labelled_vectors))  # pyright: ignore[reportCallIssue]
    similarity, _ = index.search(held_vectors, 1)  # pyright: ignore[reportCallIssue]
    return 1 - similarity[:, 0]
