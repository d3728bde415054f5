"""Semantic prototypes and the alignment of routing with them."""

import numpy as np
import pytest
import torch

from eimf.config.schema import EIMFConfig
from eimf.core.errors import ConfigError
from eimf.explicit.prototypes import (
    find_prototypes,
    item_words,
    name_prototypes,
    shuffled_prototypes,
    side_by_side,
)
from eimf.explicit.supervision import Supervision
from eimf.explicit.tasks import AlignPrototypes, ExplicitTasks
from eimf.explicit.tasks.prototype_alignment import route_to_prototypes


def supervision() -> Supervision:
    """One user with two interests: [1, 0] shown by items 1 and 2, [0, 1] by item 3."""
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    made_from = torch.tensor([[[1, 2], [3, 0]]])
    place = torch.zeros(1, 2, 2, dtype=torch.long)
    one = torch.zeros(1, dtype=torch.long)
    return Supervision(
        vectors, torch.ones(1, 2, dtype=torch.bool), place, place, made_from, one, one, one, torch.ones(1)
    )


def test_words_go_from_named_items_to_those_with_similar_texts() -> None:
    titles = np.array([[0, 0], [1, 0], [1, 0], [0, 1], [0.6, 0.8], [0.8, 0.6]], np.float32)
    words = item_words(supervision(), titles, neighbours=1)
    np.testing.assert_allclose(words, [[0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [1, 0]], atol=1e-6)


def test_prototypes_are_clusters_numbered_by_size() -> None:
    evidence = np.array([[0, 0], [1, 0], [1, 0.1], [0, 1], [1, -0.1], [0, 0]], np.float32)
    found = find_prototypes(evidence, 2)
    assert found.of_item.tolist() == [-1, 0, 0, 1, 0, -1]


def test_fewer_distinct_items_than_prototypes_leave_some_empty() -> None:
    found = find_prototypes(np.array([[0, 0], [1, 0], [1, 0], [0, 1]], np.float32), 4)
    assert found.of_item.tolist() == [-1, 0, 0, 1]
    assert found.centres.shape == (4, 2)


def test_the_shuffled_control_keeps_the_sizes() -> None:
    evidence = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    evidence[0] = 0
    found = find_prototypes(evidence, 4, seed=1)
    mixed = shuffled_prototypes(found, seed=1)
    assert torch.equal((found.of_item + 1).bincount(), (mixed.of_item + 1).bincount())
    assert mixed.of_item[0] == -1
    assert (mixed.of_item == found.of_item).float().mean() < 0.5


def test_kinds_of_evidence_have_equal_weight() -> None:
    random = np.random.default_rng(0)
    narrow, wide = random.normal(size=(50, 2)), 100 * random.normal(size=(50, 30))
    joined = side_by_side([narrow, wide])
    np.testing.assert_allclose(np.square(joined[:, :2]).sum(axis=1), 0.5, atol=1e-5)


def test_the_loss_is_the_cross_entropy_of_the_routing_shares() -> None:
    # Two interests and three positions; the first is padding, the last has no prototype.
    routing = torch.tensor([[[0.0, 0.6, 0.4], [0.0, 0.2, 0.8]]], requires_grad=True)
    prototype = torch.tensor([[-1, 0, -1]])
    loss = route_to_prototypes(routing, prototype)
    assert loss.item() == pytest.approx(-np.log(0.6 / 0.8))
    loss.backward()
    assert routing.grad is not None
    assert (routing.grad[0, :, [0, 2]] == 0).all()
    assert route_to_prototypes(routing, torch.full((1, 3), -1)).item() == 0.0


def build(labelled: Supervision | None, **options: str) -> ExplicitTasks:
    found = find_prototypes(np.eye(5, 3, k=-1, dtype=np.float32), 3)
    return ExplicitTasks(labelled, 8, EIMFConfig(**options), links=None, item_prototypes=found)  # pyright: ignore[reportArgumentType]


def test_the_loss_is_computed_at_every_step_and_needs_no_labels() -> None:
    options = {"prediction": "none", "alignment": "none", "prototypes": "text"}
    tasks = build(None, **options)
    assert tasks.weights_at(0, 3) == {"prototype_alignment": 0.1}
    assert isinstance(tasks.tasks["prototype_alignment"], AlignPrototypes)
    assert not list(tasks.parameters())
    with pytest.raises(ConfigError, match="needs item_prototypes"):
        ExplicitTasks(None, 8, EIMFConfig(**options))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="need labels"):
        ExplicitTasks(None, 8)


def test_other_tasks_keep_their_steps() -> None:
    tasks = build(supervision(), prototypes="text")
    assert set(tasks.weights_at(0, 0)) == {"semantic_prediction", "modality_alignment", "prototype_alignment"}
    assert set(tasks.weights_at(0, 1)) == {"prototype_alignment"}


def test_names_are_the_phrases_that_set_a_prototype_apart() -> None:
    evidence = np.array([[0, 0, 0], [1, 0, 1], [1, 0.1, 1], [0, 1, 1]], np.float32)
    of_item = torch.tensor([-1, 0, 0, 1])
    phrases, vectors = ["both", "first", "second"], np.eye(3, dtype=np.float32)[[2, 0, 1]]
    assert name_prototypes(of_item, 3, evidence, phrases, vectors, most=1) == [["first"], ["second"], []]
