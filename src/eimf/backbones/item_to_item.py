"""Baselines without gradient descent: the score of an item is a sum of its similarities to the items of the history.

`ItemKNN` takes cosine similarities of co-occurrence (Sarwar et al., WWW 2001), `EASE` those of a linear autoencoder in
closed form (Steck, WWW 2019, arXiv 1905.03375). Several comparisons found them as good as neural models that had not
been tuned well (Ferrari Dacrema et al., RecSys 2019, arXiv 1907.06902), so every comparison should have one.

Shapes: B users, L positions, I items, N neighbours.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from eimf.backbones.base import Backbone, Interests
from eimf.config.schema import BackboneConfig
from eimf.core.errors import ConfigError
from eimf.core.options import option

AT_ONCE = 2**23
"""Most similarities that are added up at a time."""


@dataclass(frozen=True)
class ItemToItemConfig(BackboneConfig):
    """Options of models of item similarities."""

    neighbours: int = option(200, low=1)
    """N: the most similar items that are kept of each item."""
    recency: float = option(0.9, low=0.0, high=1.0)
    """Weight of an item of the history relative to that of the next more recent one; 1: all count the same."""


class ItemToItem(Backbone):
    """Base of models of item similarities. A subclass has the method `similarities`.

    `extract` returns the scores of all items in place of interest vectors: there are no item vectors to search.
    """

    Config = ItemToItemConfig
    config: Any
    trainable = False
    neighbour: Tensor
    similarity: Tensor

    def __init__(self, n_items: int, max_len: int = 20, config: ItemToItemConfig | None = None, **options: Any) -> None:
        super().__init__(n_items, max_len, config, **options)
        self.embed_dim = n_items + 1
        count = min(self.config.neighbours, n_items)
        self.register_buffer("neighbour", torch.zeros(n_items + 1, count, dtype=torch.long))
        self.register_buffer("similarity", torch.zeros(n_items + 1, count))

    def similarities(self, histories: sparse.csr_matrix) -> Float[np.ndarray, "I I"]:
        """Similarity of each item (row) to each other one; the diagonal has no effect.

        Args:
            histories: a row for each training user, with 1 in the columns of the user's items.
        """
        raise NotImplementedError

    def fit(self, items: Int[Tensor, " T"], offsets: Int[Tensor, " U_plus_1"]) -> None:
        columns, starts = items.cpu().numpy() - 1, offsets.cpu().numpy()
        ones = np.ones(len(columns), np.float32)
        users = sparse.csr_matrix((ones, columns, starts), shape=(len(starts) - 1, self.n_items))
        users.sum_duplicates()
        users.data[:] = 1.0  # an item counts once for a user
        matrix = self.similarities(users)
        np.fill_diagonal(matrix, 0.0)
        count = self.neighbour.shape[1]
        for row in range(self.n_items):
            order = np.argpartition(-np.abs(matrix[row]), count - 1)[:count]
            self.neighbour[row + 1] = torch.from_numpy(order + 1)
            self.similarity[row + 1] = torch.from_numpy(matrix[row, order])

    def extract(self, history: Int[Tensor, "B L"]) -> Interests:
        length = history.shape[1]
        age = torch.arange(length - 1, -1, -1, device=history.device, dtype=self.similarity.dtype)
        weight = self.config.recency**age  # [L]; padding has no similarities
        rows = max(1, AT_ONCE // (length * self.neighbour.shape[1]))
        scores = self.similarity.new_zeros(len(history), self.n_items + 1)
        for begin in range(0, len(history), rows):
            part = history[begin : begin + rows]
            added = self.similarity[part] * weight[:, None]
            scores[begin : begin + rows].scatter_add_(1, self.neighbour[part].flatten(1), added.flatten(1))
        return Interests(scores[:, None])

    def item_vectors(self, items: Int[Tensor, "*N"] | None = None) -> Float[Tensor, "*N 0"]:
        shape = (self.n_items + 1,) if items is None else tuple(items.shape)
        return self.similarity.new_zeros(*shape, 0)


@dataclass(frozen=True)
class ItemKNNConfig(ItemToItemConfig):
    """Options of ItemKNN."""

    name: str = "item_knn"
    shrinkage: float = option(30.0, low=0.0)
    """Added to the denominator of the cosine: similarities of rare items become smaller."""


class ItemKNN(ItemToItem):
    """cos(i, j) = n_ij / (sqrt(n_i n_j) + shrinkage), with the numbers of training users of i, of j and of both."""

    Config = ItemKNNConfig
    config: ItemKNNConfig

    def similarities(self, histories: sparse.csr_matrix) -> Float[np.ndarray, "I I"]:
        both = (histories.T @ histories).toarray()
        root = np.sqrt(both.diagonal())
        return both / np.maximum(np.outer(root, root) + self.config.shrinkage, 1e-12)


@dataclass(frozen=True)
class EASEConfig(ItemToItemConfig):
    """Options of EASE."""

    name: str = "ease"
    neighbours: int = option(1000, low=1)
    """N: the largest weights, of either sign, that are kept of each item."""
    l2: float = option(100.0, low=1e-6)
    """lambda, the weight of the ridge penalty."""


LARGEST = 60_000
"""Most items of EASE: the matrix that it inverts has I^2 numbers (14 GiB in float32)."""


class EASE(ItemToItem):
    """B = I - P diag(P)^-1 with P = (X'X + lambda I)^-1 (Steck 2019, eq. 8).

    Deviation: of each row only the `neighbours` largest weights are kept.
    """

    Config = EASEConfig
    config: EASEConfig

    def similarities(self, histories: sparse.csr_matrix) -> Float[np.ndarray, "I I"]:
        if self.n_items > LARGEST:
            raise ConfigError(
                f"backbone.name: 'ease' inverts a matrix of all pairs of {self.n_items:,} items (limit {LARGEST:,}); "
                "use item_knn, or raise dataset.item_min."
            )
        gram = (histories.T @ histories).toarray().astype(np.float32)
        gram[np.diag_indices(len(gram))] += self.config.l2
        inverse = torch.linalg.inv(torch.from_numpy(gram)).numpy()
        return -inverse / inverse.diagonal()
