"""Agreement of behavioural interests with a known grouping of a user's items: an LLM's, or a simulator's.

A model groups the items of a history by the interest that attends to each most. Numbers of interests have no meaning
across users here: each user is compared alone.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score

from eimf.data.prepared import Prepared
from eimf.data.splits import Holdout
from eimf.labels.label import Label, newest_labels

log = logging.getLogger(__name__)

METRIC = "agreement"
"""Key of the mean adjusted mutual information in results."""


class Agreement(NamedTuple):
    """Values of the users whose items are in at least two groups."""

    row: Int[ndarray, " U"]
    """Row of each user in the input."""
    mutual_information: Float[ndarray, " U"]
    """Adjusted for chance (AMI): 0 is chance, 1 the same grouping."""
    accuracy: Float[ndarray, " U"]
    """Share of items in the right group under the best one-to-one matching."""
    chance: Float[ndarray, " U"]
    """Accuracy of the same groups with the user's items shuffled."""
    one_interest: Float[ndarray, " U"]
    """Accuracy of putting all of a user's items into one group."""

    def means(self) -> dict[str, float]:
        """Means over users by metric key; empty without users."""
        if len(self.row) == 0:
            return {}
        values = {"": self.mutual_information, "_accuracy": self.accuracy, "_chance": self.chance}
        values["_one_interest"] = self.one_interest
        return {f"{METRIC}{name}": float(value.mean()) for name, value in values.items()}


class Groups(NamedTuple):
    """Known groups of the items of held-out users' contexts."""

    user_idx: Int[ndarray, " U"]
    history: Int[ndarray, "U L"]
    """Items of each context, left-padded with 0, the most recent last."""
    group: Int[ndarray, "U L"]
    """The group of each of them, -1 where none is known."""


def attended(shares: Float[ndarray, "B K L"]) -> Int[ndarray, "B L"]:
    """The interest that has most of each position; see `eimf.backbones.Interests.item_shares`."""
    return shares.argmax(axis=1)


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


def measure_agreement(found: Int[ndarray, "B L"], true: Int[ndarray, "B L"], seed: int = 0) -> Agreement:
    """Compare two groupings of each user's items.

    Users with fewer than two true groups are left out: any grouping of a single group is right or wrong by its number
    of groups alone.

    Args:
        found: number of the interest of each position.
        true: number of the true group, negative where none is known.
        seed: of the shuffles for `chance`.
    """
    random = np.random.default_rng(seed)
    rows: list[tuple[float, ...]] = []
    for row, (found_of_user, true_of_user) in enumerate(zip(found, true, strict=True)):
        kept = true_of_user >= 0
        assigned, actual = found_of_user[kept], true_of_user[kept]
        sizes = np.unique(actual, return_counts=True)[1]
        if len(sizes) < 2:
            continue
        information = adjusted_mutual_info_score(actual, assigned)
        chance = np.mean([matched_accuracy(random.permutation(assigned), actual) for _ in range(10)])
        one = sizes.max() / len(actual)
        rows.append((row, information, matched_accuracy(assigned, actual), float(chance), one))
    columns = np.array(rows, dtype=float).reshape(-1, 5).T
    return Agreement(columns[0].astype(np.int64), *columns[1:])


def held_out_groups(labels: Sequence[Label], prepared: Prepared, held: Holdout, length: int) -> Groups:
    """The groups that labels give to the contexts of held-out users.

    These labels serve evaluation only. A label that saw an item beyond its user's context is left out: it may have been
    made from the targets.

    Args:
        length: L, number of most recent context items.
    """
    sequences = prepared.sequences
    number = dict(zip(prepared.items["item_id"], prepared.items["item_idx"], strict=True))
    names = prepared.user_ids
    row_of = {names[int(user)]: row for row, user in enumerate(held.user_idx)}
    users, histories, groups = [], [], []
    reasons: Counter[str] = Counter()
    for label in newest_labels(labels):
        row = row_of.get(label.user_id)
        if row is None:
            reasons["of other users"] += 1
            continue
        start, cut = int(held.start[row]), int(held.cut[row])
        context = sequences.items[start:cut]
        seen = [number.get(item, 0) for item in label.history]
        if list(context[len(context) - len(seen) :]) != seen:
            reasons["whose history is not the end of the context"] += 1
            continue
        group = np.full(len(context), -1, np.int64)
        for index, interest in enumerate(label.interests):
            places = [len(context) - len(seen) + item - 1 for item in interest.items if 1 <= item <= len(seen)]
            group[places] = index
        users.append(int(held.user_idx[row]))
        histories.append(_last(context, length, 0))
        groups.append(_last(group, length, -1))
    if reasons:
        log.info("labels for agreement left out: " + ", ".join(f"{count} {why}" for why, count in reasons.items()))
    shape = (len(users), length)
    return Groups(
        np.array(users, np.int64),
        np.array(histories, np.int64).reshape(shape),
        np.array(groups, np.int64).reshape(shape),
    )


def _last(values: np.ndarray, length: int, padding: int) -> np.ndarray:
    """The last values, left-padded to a length."""
    kept = values[-length:]
    return np.concatenate([np.full(length - len(kept), padding, np.int64), kept.astype(np.int64)])


def agreement_frame(agreement: Agreement, groups: Groups) -> polars.DataFrame:
    """Values of every user, in the form of `Evaluation.per_user`; `k` is 0."""
    users = groups.user_idx[agreement.row].astype(np.int32)
    return polars.DataFrame({"user_idx": users, "value": agreement.mutual_information}).select(
        "user_idx",
        polars.lit(METRIC).alias("metric"),
        polars.lit(0, polars.Int32).alias("k"),
        "value",
        polars.lit(False).alias("tied"),
    )
