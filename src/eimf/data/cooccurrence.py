"""Vectors of items from the training sequences alone: no text, no LLM, no gradient descent."""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.linalg import svds

from eimf.data.prepared import Sequences
from eimf.data.splits import Spans

WINDOW = 10
"""Two items of a user co-occur if at most this many places lie between them."""


def cooccurrence_vectors(
    sequences: Sequences, spans: Spans, n_items: int, dim: int = 128, window: int = WINDOW
) -> Float[np.ndarray, "I_plus_1 {dim}"]:
    """Item vectors whose inner products approximate the positive pointwise mutual information of two items.

    A truncated singular value decomposition of the PPMI matrix, each side with the square root of the singular values
    (Levy & Goldberg, NeurIPS 2014, section 3.3). A pair at distance d counts 1 / d.

    Args:
        spans: training slices; nothing else is read.
        window: largest distance of a pair.

    Returns:
        Row 0 (padding) and rows of items without a neighbour are zero.
    """
    counts = count_pairs(sequences, spans, n_items, window)
    totals = np.asarray(counts.sum(axis=1)).ravel()
    pairs = counts.tocoo()
    expected = totals[pairs.row] * totals[pairs.col] / max(totals.sum(), 1.0)
    information = np.log(np.maximum(pairs.data / np.maximum(expected, 1e-12), 1.0))
    matrix = sparse.csr_matrix((information, (pairs.row, pairs.col)), shape=counts.shape)
    rank = min(dim, n_items - 1)
    # A fixed first vector makes the result the same every time.
    found: Any = svds(matrix, k=rank, v0=np.full(n_items + 1, (n_items + 1) ** -0.5))
    left, values = found[0], found[1]
    order = np.argsort(-values, kind="stable")
    vectors = left[:, order] * np.sqrt(values[order])
    vectors[0] = 0.0
    return np.pad(vectors, ((0, 0), (0, dim - rank))).astype(np.float32)


def count_pairs(sequences: Sequences, spans: Spans, n_items: int, window: int = WINDOW) -> sparse.csr_matrix:
    """Symmetric matrix [I + 1, I + 1]: how often two items are near each other, each pair weighted by 1 / distance."""
    items = sequences.items.astype(np.int64)
    end = np.zeros(len(items) + 1, np.int64)  # of each position's training slice; 0 outside of all
    for start, stop in zip(spans.start, spans.end, strict=True):
        end[start:stop] = stop
    total = sparse.csr_matrix((n_items + 1, n_items + 1))
    for distance in range(1, window + 1):
        first = np.flatnonzero(np.arange(len(items)) + distance < end[:-1])
        a, b = items[first], items[first + distance]
        other = a != b
        weight = np.full(int(other.sum()), 1.0 / distance)
        total = total + sparse.csr_matrix((weight, (a[other], b[other])), shape=total.shape)
    return (total + total.T).tocsr()
