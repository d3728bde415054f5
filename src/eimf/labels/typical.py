"""Chooses typical users, whose interests the LLM is asked for. Reads training slices only."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import faiss
import numpy as np
import polars
import torch
import torch.nn.functional as F

from eimf.backbones import Backbone
from eimf.core.errors import ConfigError
from eimf.data.batch import gather_history
from eimf.data.prepared import Prepared, Sequences
from eimf.data.splits import Spans
from eimf.labels.label import LabelRequest
from eimf.labels.prompts import build_prompt


class Typical(NamedTuple):
    """Chosen users, best first within a cluster."""

    users: polars.DataFrame
    """`user_idx: i32, cluster: i32, distance: f32, cluster_size: i32`"""
    coverage: float
    """Mean cosine distance from a training user to the nearest chosen one."""


def user_vectors(sequences: Sequences, spans: Spans, item_vectors: np.ndarray) -> np.ndarray:
    """Mean of the vectors of each user's training items, scaled to length 1: f32[U_train, D].

    Args:
        spans: training slices; nothing outside them is read.
        item_vectors: f32[I + 1, D], row 0 padding.
    """
    owner = np.repeat(np.arange(len(spans.start)), spans.end - spans.start)
    first = np.concatenate([[0], np.cumsum(spans.end - spans.start)[:-1]])
    at = np.arange(len(owner)) - first[owner] + spans.start[owner]
    means = np.add.reduceat(item_vectors[sequences.items[at]], first, axis=0) / (spans.end - spans.start)[:, None]
    return (means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def interest_vectors(backbone: Backbone, sequences: Sequences, spans: Spans, max_len: int) -> np.ndarray:
    """Mean of each user's interest vectors, from the user's training slice; scaled to length 1: f32[U, D].

    Each interest vector is scaled to length 1 before the mean.

    Args:
        backbone: trained on these slices and no others.
        max_len: number of most recent items that the backbone sees.
    """
    items = torch.tensor(sequences.items, dtype=torch.long)
    start, end = torch.from_numpy(spans.start), torch.from_numpy(spans.end)
    backbone.eval()
    parts = []
    with torch.inference_mode():
        for rows in torch.arange(len(start)).split(4096):
            vectors = backbone(gather_history(items, start[rows], end[rows], max_len)).vectors.float()
            parts.append(F.normalize(F.normalize(vectors, dim=-1).mean(dim=1), dim=-1))
    return torch.cat(parts).numpy()


def side_by_side(*parts: np.ndarray) -> np.ndarray:
    """Concatenate vectors of the same users with equal weight. All inputs and the result have length 1."""
    return np.concatenate(parts, axis=1) / np.float32(len(parts) ** 0.5)


def choose_typical(
    vectors: np.ndarray,
    spans: Spans,
    *,
    n_clusters: int,
    budget: int,
    min_history: int = 5,
    method: Literal["cluster", "random", "longest"] = "cluster",
    seed: int = 0,
) -> Typical:
    """Choose the `budget` users nearest to the centres of spherical k-means clusters, in proportion to cluster size.

    Args:
        vectors: f32[U_train, D] of length 1, as `user_vectors` gives them.
        min_history: fewest training items of a chosen user.
        method: `random` and `longest` (most items) are for comparison.

    Raises:
        ConfigError: fewer users qualify than the budget.
    """
    lengths = spans.end - spans.start
    eligible = np.flatnonzero(lengths >= min_history)
    if len(eligible) < budget:
        raise ConfigError(
            f"typical.budget: is {budget}, but only {len(eligible)} of {len(lengths)} training users have at least "
            f"typical.min_history={min_history} items; lower one of them."
        )
    clusters = min(n_clusters, budget)
    kmeans = faiss.Kmeans(
        vectors.shape[1], clusters, niter=20, seed=seed, spherical=True, min_points_per_centroid=1, verbose=False
    )
    kmeans.train(vectors)
    similarity, nearest = kmeans.index.search(vectors, 1)  # pyright: ignore[reportCallIssue, reportOptionalMemberAccess]
    cluster, distance = nearest[:, 0], 1 - similarity[:, 0]
    sizes = np.bincount(cluster, minlength=clusters)
    if method == "cluster":
        chosen = _nearest_by_quota(eligible, cluster, distance, sizes, budget)
    elif method == "random":
        chosen = np.sort(np.random.default_rng(seed).choice(eligible, budget, replace=False))
    else:
        chosen = eligible[np.argsort(-lengths[eligible], kind="stable")[:budget]]
    users = polars.DataFrame(
        {
            "user_idx": spans.user_idx[chosen].astype(np.int32),
            "cluster": cluster[chosen].astype(np.int32),
            "distance": distance[chosen].astype(np.float32),
            "cluster_size": sizes[cluster[chosen]].astype(np.int32),
        }
    )
    return Typical(users, coverage(vectors, vectors[chosen]))


def _nearest_by_quota(
    eligible: np.ndarray, cluster: np.ndarray, distance: np.ndarray, sizes: np.ndarray, budget: int
) -> np.ndarray:
    """The users nearest to each centre.

    Each cluster gets users in proportion to its size; together they are as many as the budget.
    """
    order = eligible[np.lexsort((distance[eligible], cluster[eligible]))]
    counts = np.bincount(cluster[order], minlength=len(sizes))
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.arange(len(order)) - first[cluster[order]]
    # D'Hondt's method: the (r + 1)-th seat of a cluster of size s has the quotient s / (r + 1).
    quotient = sizes[cluster[order]] / (rank + 1)
    return order[np.sort(np.argsort(-quotient, kind="stable")[:budget])]


def coverage(vectors: np.ndarray, chosen: np.ndarray) -> float:
    """Mean cosine distance from each row of `vectors` to its nearest row of `chosen`; all of length 1."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(chosen))  # pyright: ignore[reportCallIssue]
    similarity, _ = index.search(vectors, 1)  # pyright: ignore[reportCallIssue]
    return float(1 - similarity.mean())


def coverage_by_budget(vectors: np.ndarray, spans: Spans, budgets: Sequence[int], **options: Any) -> list[Typical]:
    """Choose typical users for several budgets, to compare their coverage.

    Args:
        options: arguments of `choose_typical`. There are never more clusters than the budget has users.
    """
    return [choose_typical(vectors, spans, budget=budget, **options) for budget in budgets]


def ask_about(prepared: Prepared, spans: Spans, users: Sequence[int], max_items: int) -> list[LabelRequest]:
    """Make the requests to label users, from the most recent items of their training slices only.

    Args:
        users: user indices, each with a training slice.
        max_items: most items that a prompt shows.
    """
    row_of = {int(user): row for row, user in enumerate(spans.user_idx)}
    ids, titles = prepared.items["item_id"], prepared.items["title"]
    requests = []
    for user in users:
        start, end = int(spans.start[row_of[user]]), int(spans.end[row_of[user]])
        shown = polars.Series((prepared.sequences.items[max(start, end - max_items) : end] - 1).astype(np.int64))
        prompt = build_prompt(titles[shown].to_list(), max_items)
        requests.append(LabelRequest(prepared.user_ids[user], tuple(ids[shown].to_list()), prompt))
    return requests
