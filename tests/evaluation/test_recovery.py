"""Interest recovery against values worked out by hand."""

import numpy as np
import pytest

from eimf.evaluation.recovery import attended, matched_accuracy, recovery


def test_the_names_of_interests_do_not_matter() -> None:
    found = recovery(np.array([[0, 2, 2, 1, 1]]), np.array([[-1, 5, 5, 7, 7]]))
    assert found.mutual_information == pytest.approx(1.0)
    assert (found.accuracy, found.one_interest, found.users) == (1.0, 0.5, 1)


def test_one_interest_for_all_recovers_nothing() -> None:
    found = recovery(np.zeros((1, 4), np.int64), np.array([[0, 0, 0, 1]]))
    assert found.mutual_information == pytest.approx(0.0)
    assert found.accuracy == found.one_interest == 0.75


def test_matching_is_one_to_one() -> None:
    # Two found interests share the true one; only the larger may be matched with it.
    assert matched_accuracy(np.array([0, 0, 1, 2]), np.array([3, 3, 3, 4])) == 0.75


def test_users_without_two_known_positions_are_left_out() -> None:
    assert recovery(np.array([[0, 1]]), np.array([[-1, 1]])).users == 0


def test_attended() -> None:
    assert attended(np.array([[[0.9, 0.1], [0.2, 0.8]]])).tolist() == [[0, 1]]
