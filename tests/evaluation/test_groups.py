import numpy as np

from eimf.data.prepared import Sequences
from eimf.data.splits import Holdout
from eimf.evaluation.groups import (
    BREADTH,
    HISTORY,
    NEARNESS,
    POPULARITY,
    TARGET_BREADTH,
    distance_to_labelled,
    group_users,
    join_held_out,
)


def held_out() -> tuple[Sequences, Holdout]:
    items = np.array([1, 1, 2, 1, 1, 1, 3, 1, 2, 3, 4, 4, 4], np.int32)
    offsets = np.array([0, 3, 7, 13])
    sequences = Sequences(items, np.zeros(13, np.int64), offsets)
    cut = np.array([1, 6, 12])
    return sequences, Holdout(np.array([0, 1, 2]), offsets[:-1], cut, offsets[1:], np.zeros(3, bool))


def test_every_user_is_in_one_level_of_each_group() -> None:
    sequences, held = held_out()
    counts = np.array([0, 60, 30, 20, 10])
    found = group_users(sequences, held, counts, np.array([0.1, 0.5, 0.2]))
    assert found.group_by("group").len()["len"].to_list() == [3, 3, 3]
    level = {(group, user): name for user, group, name in found.rows()}
    assert [level[HISTORY, user] for user in range(3)] == ["up to 1 items", "2 to 3 items", "more than 3 items"]
    # Targets: user 0 has items 1 and 2, user 1 item 3, user 2 item 4.
    assert [level[POPULARITY, user] for user in range(3)] == ["head", "tail", "tail"]
    assert [level[NEARNESS, user] for user in range(3)] == ["near", "far", "near"]


def test_breadth_counts_the_categories_of_the_history() -> None:
    sequences, held = held_out()
    found = group_users(sequences, held, np.arange(5), categories=np.array([0, 1, 1, 2, 3]))
    level = {user: name for user, group, name in found.rows() if group == BREADTH}
    # Histories: item 1 | items 2 and 3 categories 1 and 2 | categories 1, 2 and 3.
    assert level[0] == "up to 1 categories"
    assert level[0] != level[2]
    spread = {user: name for user, group, name in found.rows() if group == TARGET_BREADTH}
    # Targets of each user: of one category.
    assert set(spread.values()) == {"up to 1 categories"}
    assert (
        BREADTH not in group_users(sequences, held, np.arange(5), categories=np.zeros(5, np.int64))["group"].to_list()
    )


def test_distance_is_to_the_nearest() -> None:
    labelled = np.eye(3, dtype=np.float32)[:2]
    held = np.array([[1, 0, 0], [0, 0, 1], [0.6, 0.8, 0]], np.float32)
    np.testing.assert_allclose(distance_to_labelled(held, labelled), [0, 1, 0.2], atol=1e-6)


def test_users_of_several_splits_are_joined() -> None:
    sequences, held = held_out()

    def some(rows: list[int]) -> Holdout:
        return Holdout(held.user_idx[rows], held.start[rows], held.cut[rows], held.end[rows], held.tied[rows])

    joined = join_held_out([some([2, 0]), some([1, 2])])
    for name in ("user_idx", "start", "cut", "end", "tied"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(held, name))
    counts = np.array([0, 9, 3, 2, 1])
    assert group_users(sequences, joined, counts).equals(group_users(sequences, held, counts))
