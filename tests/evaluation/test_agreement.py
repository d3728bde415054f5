"""Agreement of groupings, against values worked out by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars
import pytest

from eimf.data.prepared import Sequences
from eimf.data.splits import Holdout
from eimf.evaluation.agreement import (
    agreement_frame,
    attended,
    held_out_groups,
    matched_accuracy,
    measure_agreement,
)
from eimf.labels.label import Label
from eimf.labels.prompts import Interest


def test_the_numbers_of_interests_do_not_matter() -> None:
    found = measure_agreement(np.array([[0, 2, 2, 1, 1]]), np.array([[-1, 5, 5, 7, 7]]))
    assert found.mutual_information[0] == pytest.approx(1.0)
    assert (found.accuracy.item(), found.one_interest.item(), len(found.row)) == (1.0, 0.5, 1)


def test_one_interest_for_all_agrees_with_nothing() -> None:
    found = measure_agreement(np.zeros((1, 4), np.int64), np.array([[0, 0, 0, 1]]))
    assert found.mutual_information[0] == pytest.approx(0.0)
    assert found.accuracy.item() == found.one_interest.item() == found.chance.item() == 0.75


def test_matching_is_one_to_one() -> None:
    # Two found interests share the true one; only the larger may be matched with it.
    assert matched_accuracy(np.array([0, 0, 1, 2]), np.array([3, 3, 3, 4])) == 0.75


def test_users_with_fewer_than_two_true_groups_are_left_out() -> None:
    found = measure_agreement(np.array([[0, 1], [0, 1], [0, 1]]), np.array([[-1, 1], [1, 1], [0, 1]]))
    assert found.row.tolist() == [2]


def test_random_groups_are_at_chance() -> None:
    random = np.random.default_rng(0)
    found = measure_agreement(random.integers(0, 4, (300, 12)), random.integers(0, 3, (300, 12)))
    assert abs(found.mutual_information.mean()) < 0.03
    assert found.accuracy.mean() == pytest.approx(found.chance.mean(), abs=0.02)


def test_no_users() -> None:
    found = measure_agreement(np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64))
    assert found.means() == {}


def test_attended() -> None:
    assert attended(np.array([[[0.9, 0.1], [0.2, 0.8]]])).tolist() == [[0, 1]]


def shop() -> tuple[Any, Holdout]:
    """Two users with the items 1..6 and 4..6; user `b` is held out after three of four items of the context."""
    sequences = Sequences(
        items=np.array([1, 2, 3, 4, 5, 6, 1, 2], np.int32),
        offsets=np.array([0, 3, 8]),
        timestamps=np.arange(8),
        interests=None,
    )
    items = polars.DataFrame({"item_id": list("ABCDEF"), "item_idx": np.arange(1, 7, dtype=np.int32)})
    prepared = SimpleNamespace(sequences=sequences, items=items, user_ids=polars.Series(["a", "b"]))
    one = np.array([1])
    return prepared, Holdout(one, np.array([3]), np.array([7]), np.array([8]), np.array([False]))


def label(user: str, history: str, *groups: list[int]) -> Label:
    interests = tuple(Interest(f"interest {n}", tuple(items)) for n, items in enumerate(groups))
    return Label(user, interests, tuple(history), "model", "v1")


def test_groups_are_those_of_the_most_recent_context_items() -> None:
    prepared, held = shop()
    groups = held_out_groups([label("b", "EFA", [1], [2, 3])], prepared, held, length=6)
    assert groups.user_idx.tolist() == [1]
    assert groups.history.tolist() == [[0, 0, 4, 5, 6, 1]]
    assert groups.group.tolist() == [[-1, -1, -1, 0, 1, 1]]
    short = held_out_groups([label("b", "EFA", [1], [2, 3])], prepared, held, length=2)
    assert (short.history.tolist(), short.group.tolist()) == ([[6, 1]], [[1, 1]])


@pytest.mark.parametrize("history", ["FAB", "AB", "DEFX"])
def test_labels_that_saw_other_items_than_the_context_are_left_out(
    history: str, caplog: pytest.LogCaptureFixture
) -> None:
    prepared, held = shop()
    caplog.set_level("INFO")
    groups = held_out_groups([label("b", history, [1]), label("a", "ABC", [1])], prepared, held, length=6)
    assert len(groups.user_idx) == 0
    assert "1 of other users" in caplog.text


def test_values_of_users_are_a_table() -> None:
    prepared, held = shop()
    groups = held_out_groups([label("b", "DEFA", [1, 2], [3, 4])], prepared, held, length=4)
    frame = agreement_frame(measure_agreement(np.array([[0, 0, 1, 1]]), groups.group), groups)
    assert frame.rows() == [(1, "agreement", 0, pytest.approx(1.0), False)]
