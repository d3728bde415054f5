import numpy as np
import pytest
import torch

from eimf.data.batch import Histories, HoldoutBatches, TrainingBatches, gather_history
from eimf.data.splits import Holdout, Spans

ITEMS = torch.arange(101, 121)  # the item at flat position p is 101 + p
SPANS = Spans(np.array([7, 9]), np.array([2, 10]), np.array([6, 13]))  # 4 and 3 items


def batches(**changes) -> TrainingBatches:
    options = {"max_len": 3, "batch_size": 2, "sampling": "every_position", "seed": 0} | changes
    return TrainingBatches(ITEMS, SPANS, **options)


def samples(made: TrainingBatches) -> list[tuple[list[int], object, int]]:
    return [
        (history.tolist(), target.tolist(), int(user))
        for batch in made
        for history, target, user in zip(batch.history, batch.target, batch.user_idx, strict=True)
    ]


def test_histories_by_either_way() -> None:
    start = torch.tensor([0, 0, 0, 2, 10, 10])
    end = torch.tensor([0, 1, 3, 9, 15, 10])
    histories = Histories(ITEMS, 6)
    for length in range(1, 7):
        assert torch.equal(histories.before(start, end, length), gather_history(ITEMS, start, end, length))


def test_gather_history() -> None:
    found = gather_history(ITEMS, torch.tensor([2, 10]), torch.tensor([4, 15]), 3)
    assert found.tolist() == [[0, 103, 104], [113, 114, 115]]


def test_every_position_is_every_prefix_once() -> None:
    made = batches()
    assert (made.n_samples, len(made)) == (5, 3)
    assert sorted(samples(made), key=lambda sample: str(sample[1])) == [
        ([0, 0, 103], 104, 7),
        ([0, 103, 104], 105, 7),
        ([103, 104, 105], 106, 7),
        ([0, 0, 111], 112, 9),
        ([0, 111, 112], 113, 9),
    ]


def test_minimum_history() -> None:
    assert sorted(sample[1] for sample in samples(batches(min_history=2))) == [105, 106, 113]  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert sorted(sample[2] for sample in samples(batches(min_history=3))) == [7]


def test_random_cut_is_one_sample_a_user_that_changes_with_the_epoch() -> None:
    seen = set()
    for epoch in range(30):
        found = samples(batches(sampling="random_cut", epoch=epoch))
        assert sorted(sample[2] for sample in found) == [7, 9]
        for history, target, _ in found:
            assert target == history[-1] + 1  # what follows
            seen.add(target)
    assert seen == {104, 105, 106, 112, 113}


def test_sequences_have_a_target_at_every_position() -> None:
    found = {sample[2]: sample for sample in samples(batches(sampling="sequence"))}
    assert found[7][:2] == ([103, 104, 105], [104, 105, 106])
    assert found[9][:2] == ([0, 111, 112], [0, 112, 113])


def test_long_sequences_become_windows_that_cover_every_target_once() -> None:
    spans = Spans(np.array([0]), np.array([0]), np.array([20]))
    made = TrainingBatches(ITEMS, spans, max_len=6, batch_size=9, sampling="sequence")
    targets = [target for _, row, _ in samples(made) for target in row if target]  # pyright: ignore[reportGeneralTypeIssues]
    assert sorted(targets) == list(range(102, 121))


def test_same_seed_and_epoch_same_batches() -> None:
    made = batches()
    assert samples(made) == samples(made) == samples(batches())
    orders = {str(samples(batches(epoch=epoch))) for epoch in range(8)}
    assert len(orders) > 1


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_samples_evenly_without_overlap(world_size: int) -> None:
    parts = [samples(batches(rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    together = [str(sample) for part in parts for sample in part]
    assert len(set(together)) == len(together)
    assert set(together) <= {str(sample) for sample in samples(batches())}


def test_holdout_batches_count_nobody_twice() -> None:
    holdout = Holdout(
        np.arange(3), np.array([0, 5, 10]), np.array([2, 9, 11]), np.array([5, 10, 12]), np.zeros(3, dtype=bool)
    )
    rows = []
    for rank in range(2):
        for batch in HoldoutBatches(ITEMS, holdout, max_len=3, batch_size=1, rank=rank, world_size=2):
            rows += batch.row.tolist()
            if 1 in batch.row.tolist():
                assert batch.history.tolist() == [[107, 108, 109]]
    assert sorted(rows) == [0, 1, 2]
