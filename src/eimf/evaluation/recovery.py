"""How well interests recover the true ones of a simulator: pure functions."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score


class Recovery(NamedTuple):
    """Means over users with at least two interactions."""

    mutual_information: float
    """Adjusted for chance: 0 is chance, 1 the same grouping."""
    accuracy: float
    """Share of interactions in the right interest under the best matching of found to true ones."""
    one_interest: float
    """Accuracy of putting all of a user's interactions into one interest."""
    users: int


def attended(routing: Float[ndarray, "B K L"]) -> Int[ndarray, "B L"]:
    """The interest with the largest weight at each position."""
    return routing.argmax(axis=1)


def matched_accuracy(found: Int[ndarray, " N"], true: Int[ndarray, " N"]) -> float:
    """Accuracy under the one-to-one matching that makes it largest (Hungarian method).

    >>> matched_accuracy(np.array([1, 1, 0]), np.array([0, 0, 1]))
    1.0
    """
    rows, columns = np.unique(found, return_inverse=True)[1], np.unique(true, return_inverse=True)[1]
    table = np.zeros((rows.max() + 1, columns.max() + 1), dtype=np.int64)
    np.add.at(table, (rows, columns), 1)
    chosen = linear_sum_assignment(table, maximize=True)
    return float(table[chosen].sum() / len(found))


def recovery(found: Int[ndarray, "B L"], true: Int[ndarray, "B L"]) -> Recovery:
    """Compare within each user, since the numbers of interests have no meaning across users.

    Args:
        found: number of the interest of each position.
        true: the true one, negative at padding.
    """
    rows = []
    for found_of_user, true_of_user in zip(found, true, strict=True):
        kept = true_of_user >= 0
        assigned, actual = found_of_user[kept], true_of_user[kept]
        if len(assigned) > 1:
            largest = np.unique(actual, return_counts=True)[1].max() / len(actual)
            rows.append((adjusted_mutual_info_score(actual, assigned), matched_accuracy(assigned, actual), largest))
    if not rows:
        return Recovery(float("nan"), float("nan"), float("nan"), 0)
    information, accuracy, largest = np.mean(rows, axis=0)
    return Recovery(float(information), float(accuracy), float(largest), len(rows))
