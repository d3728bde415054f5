"""Semantic prototypes: one grouping of the whole catalogue, the same for all users.

Every item belongs to one of P prototypes. Modality alignment at the level of the catalogue (see
`eimf.explicit.tasks.prototype_alignment`) makes behavioural interest p attend to the items of prototype p, so that an
interest means the same for every user, labelled or not.
"""

from collections.abc import Sequence
from typing import NamedTuple

import faiss
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eimf.explicit.supervision import Supervision

NEIGHBOURS = 10
"""An item that no label names takes the mean vector of this many named items with the most similar texts."""
CHUNK = 2048


class Prototypes(NamedTuple):
    """A grouping of the catalogue."""

    of_item: Int[Tensor, " I_plus_1"]
    """Number of each item's prototype, -1 where there is no evidence."""
    centres: Float[Tensor, "P D_text"]
    names: tuple[tuple[str, ...], ...] = ()
    """Phrases that describe each prototype, the best first; see `name_prototypes`."""

    def sizes(self) -> list[int]:
        """Number of items of each prototype."""
        return torch.bincount(self.of_item + 1, minlength=len(self.centres) + 1)[1:].tolist()


def item_words(
    supervision: Supervision, titles: Float[np.ndarray, "I_plus_1 D_text"], neighbours: int = NEIGHBOURS
) -> Float[np.ndarray, "I_plus_1 D_text"]:
    """What the LLM's words say about each item, as vectors of length 1.

    A named item takes the mean text vector of the interests that name it. Any other item takes the mean of the
    `neighbours` named items whose own texts are most similar. So the titles only carry words to items that the LLM did
    not see.
    """
    named, dim = supervision.made_from.numpy(), supervision.vectors.shape[-1]
    total = np.zeros((len(titles), dim), np.float64)
    words = np.broadcast_to(supervision.vectors.numpy()[:, :, None], (*named.shape, dim))
    np.add.at(total, named[named > 0], words[named > 0])
    known = np.flatnonzero(np.square(total).sum(axis=1) > 0)
    total = _unit(total)
    vectors = total.copy()
    unknown = np.setdiff1d(np.arange(1, len(titles)), known)
    for chunk in np.array_split(unknown, max(1, len(unknown) // CHUNK)):
        similarity = titles[chunk] @ titles[known].T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
        vectors[chunk] = total[known[nearest]].mean(axis=1)
    vectors[0] = 0.0
    return _unit(vectors).astype(np.float32)


def side_by_side(parts: Sequence[Float[np.ndarray, "I_plus_1 _"]]) -> Float[np.ndarray, "I_plus_1 D"]:
    """Evidence of several kinds as one vector of length 1; each kind has equal weight where it is known."""
    joined = np.concatenate([_unit(_centred(part)) for part in parts], axis=1)
    return _unit(joined).astype(np.float32)


def find_prototypes(evidence: Float[np.ndarray, "I_plus_1 D"], n_prototypes: int, seed: int = 0) -> Prototypes:
    """Group the items by spherical k-means of their evidence.

    Prototypes are numbered by size, largest first. Items whose evidence is a zero vector belong to none. If there are
    fewer distinct vectors than prototypes, the last prototypes are empty.
    """
    known = np.flatnonzero(np.square(evidence).sum(axis=1) > 0)
    vectors = np.ascontiguousarray(_unit(evidence[known]), dtype=np.float32)
    n_groups = min(n_prototypes, len(np.unique(vectors, axis=0)))
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        n_groups,
        niter=50,
        nredo=5,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=10**9,
    )
    kmeans.train(vectors)
    _, nearest = kmeans.assign(vectors)
    sizes = np.bincount(nearest, minlength=n_groups)
    rank = np.empty(n_groups, np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(n_groups)
    of_item = np.full(len(evidence), -1, np.int64)
    of_item[known] = rank[nearest]
    centres = np.zeros((n_prototypes, vectors.shape[1]), np.float32)
    centres[rank] = kmeans.centroids
    return Prototypes(torch.from_numpy(of_item), torch.from_numpy(centres))


def shuffled_prototypes(prototypes: Prototypes, seed: int) -> Prototypes:
    """Give the items each other's prototypes at random: groups of the same sizes without meaning. A control."""
    order = np.random.default_rng(seed).permutation(len(prototypes.of_item) - 1) + 1
    of_item = prototypes.of_item.clone()
    of_item[1:] = prototypes.of_item[torch.from_numpy(order)]
    return prototypes._replace(of_item=of_item)


def name_prototypes(
    of_item: Int[Tensor, " I_plus_1"],
    count: int,
    evidence: Float[np.ndarray, "I_plus_1 D_text"],
    phrases: Sequence[str],
    vectors: Float[np.ndarray, "C D_text"],
    most: int = 3,
) -> list[list[str]]:
    """The phrases that describe each prototype best and set it apart: nearest to its centre minus the mean centre.

    Args:
        count: P, number of prototypes.
        evidence: text vectors of the items, see `item_words`.
        phrases, vectors: what to choose from, with their text vectors.

    Returns:
        Up to `most` phrases of each prototype, the best first; none for an empty prototype.
    """
    groups = of_item.numpy()
    present = [p for p in range(count) if (groups == p).any()]
    centres = {p: evidence[groups == p].mean(axis=0) for p in present}
    middle = np.mean(list(centres.values()), axis=0) if len(centres) > 1 else np.zeros(evidence.shape[1])
    names: list[list[str]] = []
    for p in range(count):
        scores = vectors @ (centres[p] - middle) if p in centres else np.zeros(0)
        names.append([phrases[int(index)] for index in np.argsort(-scores, kind="stable")[:most]])
    return names


def _centred(vectors: np.ndarray) -> np.ndarray:
    """Rows minus the mean of the rows that are not zero; zero rows stay zero."""
    known = np.square(vectors).sum(axis=1) > 0
    return np.where(known[:, None], vectors - vectors[known].mean(axis=0), 0.0)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; zero rows stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
