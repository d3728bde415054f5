"""ItemKNN and EASE against values worked out by hand or by plain linear algebra."""

import numpy as np
import pytest
import torch
from torch import Tensor

from eimf import EASE, ItemKNN
from eimf.core.errors import ConfigError

HISTORIES = [[1, 2, 3], [1, 2], [2, 3, 3], [4]]
"""Item 3 is bought twice by one user, item 4 with nothing else; item 5 by nobody."""


def flat() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([0, *(len(row) for row in HISTORIES)])
    return torch.tensor([item for row in HISTORIES for item in row]), lengths.cumsum(0)


def users() -> np.ndarray:
    table = np.zeros((4, 5))
    for row, items in enumerate(HISTORIES):
        table[row, np.array(items) - 1] = 1
    return table


def test_item_knn_is_the_cosine_with_shrinkage_and_recency() -> None:
    model = ItemKNN(5, shrinkage=1.0, recency=0.5, neighbours=5)
    model.fit(*flat())
    scores = model(torch.tensor([[0, 1, 3]])).vectors[0, 0]
    # Item 2: two users in common with item 1, two with item 3; item 1 is half as recent as item 3.
    assert scores[2] == pytest.approx(0.5 * 2 / (np.sqrt(6) + 1) + 2 / (np.sqrt(6) + 1))
    assert scores[1] == pytest.approx(1 / (2 + 1))  # an item is not similar to itself
    assert scores[[0, 4, 5]].tolist() == [0.0, 0.0, 0.0]


def test_ease_is_the_closed_form() -> None:
    model = EASE(5, l2=2.0, recency=1.0, neighbours=5)
    model.fit(*flat())
    inverse = np.linalg.inv(users().T @ users() + 2.0 * np.eye(5))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    found = model(torch.tensor([[1, 3], [0, 2]])).vectors[:, 0, 1:]
    np.testing.assert_allclose(found, np.stack([weights[0] + weights[2], weights[1]]), atol=1e-6)


def test_only_the_largest_similarities_are_kept() -> None:
    model = ItemKNN(5, shrinkage=0.0, neighbours=1)
    model.fit(*flat())
    assert (model(torch.tensor([[2]])).vectors[0, 0] != 0).sum() == 1


def test_large_batches_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ItemKNN(5)
    model.fit(*flat())
    history = torch.randint(0, 6, (40, 7), generator=torch.Generator().manual_seed(0))
    whole = model(history).vectors
    monkeypatch.setattr("eimf.backbones.item_to_item.AT_ONCE", 100)
    assert torch.equal(model(history).vectors, whole)


def test_ease_refuses_catalogues_that_it_cannot_invert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eimf.backbones.item_to_item.LARGEST", 4)
    with pytest.raises(ConfigError, match="use item_knn"):
        EASE(5).fit(*flat())
