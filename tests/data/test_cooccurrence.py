"""Vectors of co-occurrence: against plain counting, and without held-out interactions."""

import numpy as np

from eimf.data.cooccurrence import cooccurrence_vectors, count_pairs
from eimf.data.prepared import Sequences
from eimf.data.splits import Spans


def sequences(items: list[list[int]]) -> Sequences:
    lengths = np.array([len(row) for row in items])
    flat = np.concatenate([np.array(row, np.int32) for row in items])
    return Sequences(flat, np.arange(len(flat)), np.concatenate([[0], np.cumsum(lengths)]))


def spans(data: Sequences) -> Spans:
    return Spans(np.arange(data.n_users), data.offsets[:-1], data.offsets[1:])


def test_pairs_count_by_distance_within_a_user() -> None:
    data = sequences([[1, 2, 3], [2, 3, 2]])
    found = count_pairs(data, spans(data), 3).toarray()
    assert found[1, 2] == 1.0
    assert found[1, 3] == 0.5
    assert found[2, 3] == 3.0  # three neighbours; 2 and 2 at distance two are the same item
    assert found[3, 1] == found[1, 3]
    assert found[0].sum() == found.diagonal().sum() == 0
    assert count_pairs(data, spans(data), 3, window=1).toarray()[1, 3] == 0.0


def test_items_that_are_bought_together_are_similar() -> None:
    random = np.random.default_rng(0)
    users = [list(random.permutation(np.arange(1, 11) + 10 * (user % 2))) for user in range(40)]
    data = sequences(users)
    vectors = cooccurrence_vectors(data, spans(data), 20, dim=4)
    assert (vectors[0] == 0).all()
    similarity = vectors[1:] @ vectors[1:].T
    assert similarity[:10, :10].min() > similarity[:10, 10:].max()
    again = cooccurrence_vectors(data, spans(data), 20, dim=4)
    assert (vectors == again).all()


def test_only_training_slices_are_read() -> None:
    data = sequences([[1, 2, 3, 4], [1, 2, 4, 3]])
    some = Spans(np.array([0]), np.array([0]), np.array([2]))
    found = count_pairs(data, some, 4).toarray()
    assert found.sum() == 2 * found[1, 2] == 2.0


def test_more_dimensions_than_items_are_zero() -> None:
    data = sequences([[1, 2, 3], [3, 1, 2]])
    vectors = cooccurrence_vectors(data, spans(data), 3, dim=8)
    assert vectors.shape == (4, 8)
    assert (vectors[:, 2:] == 0).all()
