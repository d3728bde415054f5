import numpy as np
import pytest

from eimf.config.schema import SplitConfig
from eimf.core.errors import DataError
from eimf.data.prepared import Prepared, Sequences
from eimf.data.splits import split_sequences


def sequences(lengths: list[int], times: list[int] | None = None) -> Sequences:
    total = sum(lengths)
    stamps = np.array(times if times is not None else list(range(total)), dtype=np.int64)
    return Sequences(np.arange(1, total + 1, dtype=np.int32), stamps, np.concatenate([[0], np.cumsum(lengths)]))


def test_leave_one_out() -> None:
    parts = split_sequences(sequences([5, 2, 3]), SplitConfig(kind="loo"))
    assert list(zip(parts.train.start, parts.train.end, strict=True)) == [(0, 3), (5, 7)]  # 3 - 2 leaves no pair
    assert list(zip(parts.validation.start, parts.validation.cut, parts.validation.end, strict=True)) == [
        (0, 3, 4),
        (7, 8, 9),
    ]
    assert list(zip(parts.test.start, parts.test.cut, parts.test.end, strict=True)) == [(0, 4, 5), (7, 9, 10)]


def test_user_split_is_comirecs(tiny: Prepared) -> None:
    data = tiny.sequences
    parts = split_sequences(data, SplitConfig(kind="user", seed=3))
    n = data.n_users
    assert len(parts.validation) == len(parts.test) == int(0.1 * n)
    users = [parts.train.user_idx, parts.validation.user_idx, parts.test.user_idx]
    assert np.array_equal(np.sort(np.concatenate(users)), np.arange(n))
    lengths = data.lengths[parts.test.user_idx]
    assert np.array_equal(parts.test.cut - parts.test.start, (0.8 * lengths).astype(int))
    assert np.array_equal(parts.test.end, data.offsets[parts.test.user_idx + 1])
    assert np.array_equal(parts.train.end - parts.train.start, data.lengths[parts.train.user_idx])
    again = split_sequences(data, SplitConfig(kind="user", seed=3))
    assert np.array_equal(parts.test.user_idx, again.test.user_idx)
    other = split_sequences(data, SplitConfig(kind="user", seed=4))
    assert not np.array_equal(parts.test.user_idx, other.test.user_idx)


def test_time_split_cuts_everyone_at_the_same_moment(tiny: Prepared) -> None:
    data = tiny.sequences
    parts = split_sequences(data, SplitConfig(kind="time"))
    last_trained = max(data.timestamps[end - 1] for end in parts.train.end)
    first_validated = min(data.timestamps[cut] for cut in parts.validation.cut)
    first_tested = min(data.timestamps[cut] for cut in parts.test.cut)
    assert last_trained < first_validated
    assert max(data.timestamps[end - 1] for end in parts.validation.end) < first_tested
    targets = (parts.test.end - parts.test.cut).sum()
    assert 0 < targets / len(data.items) <= 0.1


def test_ties_at_the_border_of_the_targets() -> None:
    parts = split_sequences(sequences([4, 4, 4], [1, 2, 3, 3, 1, 2, 2, 3, 1, 2, 3, 4]), SplitConfig(kind="loo"))
    assert parts.test.tied.tolist() == [True, False, False]
    assert parts.validation.tied.tolist() == [True, True, False]  # tied with the item after, with the one before


@pytest.mark.parametrize("kind", ["user", "loo", "time"])
def test_nothing_left(kind) -> None:
    with pytest.raises(DataError, match=r"split.kind"):
        split_sequences(sequences([1, 1], [5, 5]), SplitConfig(kind=kind))


def test_time_split_needs_times() -> None:
    with pytest.raises(DataError, match="allow no cut"):
        split_sequences(sequences([3, 3], [0] * 6), SplitConfig(kind="time"))


def test_item_counts_are_of_training_slices_only() -> None:
    data = sequences([5, 2, 3])
    counts = split_sequences(data, SplitConfig(kind="loo")).item_counts(data, 10)
    assert counts.tolist() == [0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0]
