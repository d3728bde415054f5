"""Groups of users, by hand."""

import numpy as np
import polars as pl

from eimf.data.sequences import Sequences
from eimf.data.splits import Holdout
from eimf.groups import popularity_levels, user_groups


def test_head_torso_tail_make_a_third_of_interactions_each() -> None:
    assert popularity_levels(np.array([0, 4, 4, 2, 2, 0]))[1:].tolist() == [0, 1, 2, 2, 2]
    assert popularity_levels(np.array([0, 2, 2, 2]))[1:].tolist() == [0, 1, 2]


def test_every_user_has_a_level_in_every_group() -> None:
    items = np.array([1, 1, 2, 2, 2, 3, 1, 1, 1, 3], dtype=np.int32)
    sequences = Sequences(items, np.arange(10), np.array([0, 2, 5, 10]))
    held = Holdout(
        np.array([0, 1, 2]), np.array([0, 2, 5]), np.array([1, 4, 9]), np.array([2, 5, 10]), np.zeros(3, bool)
    )
    rankings = pl.DataFrame({"user_idx": [0, 0, 1, 1, 2, 2], "interest": [0, 1, 1, 1, 0, 2]})
    found = user_groups(sequences, held, np.array([0, 2, 2, 2]), rankings, np.array([1]))
    levels = {name: group["level"].to_list() for (name,), group in found.partition_by("group", as_dict=True).items()}
    assert [text.split()[0] for text in levels["history length"]] == ["short", "medium", "long"]
    assert levels["target popularity"] == ["head", "torso", "tail"]
    assert levels["explicit interests"] == ["not labelled", "labelled", "not labelled"]
    assert levels["interests in the list"] == ["2 used", "1 used", "2 used"]
