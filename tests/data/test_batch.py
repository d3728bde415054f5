import numpy as np
import pytest
import torch

from eimf.data.batch import (
    Batch,
    Histories,
    HoldoutBatches,
    LabelledSampler,
    LabelledSamples,
    Ragged,
    TrainingBatches,
    gather_history,
)
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
    first, second = samples(made), samples(made)
    assert first == samples(batches())
    assert second == samples(batches(epoch=1)) != first
    made.set_epoch(0)
    assert samples(made) == first
    made.set_epoch(1)
    assert samples(made) == second
    assert samples(batches(seed=1)) != first
    orders = {str(samples(batches(epoch=epoch))) for epoch in range(8)}
    assert len(orders) > 1


class Labels:
    """Labelled samples at every third step, sampled at random."""

    def is_on(self, epoch: int, step: int) -> bool:
        return (epoch + step) % 3 == 0

    def sample(self, generator: torch.Generator) -> LabelledSamples:
        history = torch.randint(1, 99, (2, 3), generator=generator)
        some = torch.ones(2, 1, dtype=torch.bool)
        return LabelledSamples(history, history[:, 0], history[:, 1], torch.ones(2, 1, 4), some, some, history)


def plain(batch: Batch) -> list[object]:
    labelled = batch.labelled.history.tolist() if batch.labelled is not None else None
    return [batch.history.tolist(), batch.target.tolist(), batch.user_idx.tolist(), labelled]


LONG = Spans(np.array([0, 1]), np.array([0, 9]), np.array([9, 20]))  # 8 and 10 samples


def labelled_batches(labels: LabelledSampler | None) -> TrainingBatches:
    return TrainingBatches(
        ITEMS,
        LONG,
        max_len=3,
        batch_size=2,
        sampling="random_cut" if labels is None else "every_position",
        labels=labels,
    )


def test_an_iteration_goes_on_in_its_middle() -> None:
    whole = [plain(batch) for batch in labelled_batches(Labels())]
    assert [one[3] is not None for one in whole] == [True, False, False] * 3
    for done in range(len(whole)):
        broken = labelled_batches(Labels())
        stream = iter(broken)
        begun = [plain(next(stream)) for _ in range(done)]
        again = labelled_batches(Labels())
        again.load_state_dict(broken.state_dict())
        assert begun + [plain(batch) for batch in again] == whole
        # The epoch after it is whole again.
        assert len(list(again)) == len(whole)


def test_a_finished_iteration_leaves_nothing_to_skip() -> None:
    made = labelled_batches(Labels())
    first = [plain(batch) for batch in made]
    again = labelled_batches(Labels())
    again.load_state_dict(made.state_dict())
    assert [plain(batch) for batch in again] == first


def test_labels_leave_the_order_of_the_others_as_it_is() -> None:
    without = [plain(batch)[:3] for batch in batches()]
    assert [plain(batch)[:3] for batch in batches(labels=Labels())] == without


def test_labels_are_told_epoch_and_step() -> None:
    made = labelled_batches(Labels())
    for epoch in (0, 1, 2, 7):
        made.set_epoch(epoch)
        found = [batch.labelled is not None for batch in made]
        assert found == [(epoch + step) % 3 == 0 for step in range(len(made))]


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
    users = []
    for rank in range(2):
        for batch in HoldoutBatches(ITEMS, holdout, max_len=3, batch_size=1, rank=rank, world_size=2):
            users += [user for user in batch.user_idx.tolist() if user >= 0]
            if 1 in batch.user_idx.tolist():
                assert batch.history.tolist() == [[107, 108, 109]]
                assert batch.targets.values.tolist() == [110]
                assert batch.seen.values.tolist() == [106, 107, 108, 109]
    assert sorted(users) == [0, 1, 2]


LENGTHS = np.array([2, 9, 1, 5, 3, 4, 8])


def held_out(n_users: int) -> Holdout:
    """Users with contexts of several lengths and two targets each, every other one tied."""
    start = np.arange(n_users)
    cut = start + LENGTHS[:n_users]
    return Holdout(10 + np.arange(n_users), start, cut, cut + 2, np.arange(n_users) % 2 == 1)


@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize(("n_users", "world_size"), [(7, 1), (7, 2), (7, 3), (5, 4), (1, 3), (2, 5)])
def test_processes_have_equally_many_batches(n_users: int, world_size: int, by_length: bool) -> None:
    """Also with fewer users than processes: those without users get batches of nobody."""
    holdout = held_out(n_users)
    parts = [
        HoldoutBatches(ITEMS, holdout, max_len=4, batch_size=2, rank=rank, world_size=world_size, by_length=by_length)
        for rank in range(world_size)
    ]
    assert len({len(part) for part in parts}) == 1
    seen = []
    for part in parts:
        made = list(part)
        assert len(made) == len(part)
        for batch in made:
            if -1 in batch.user_idx.tolist():
                assert batch.user_idx.tolist() == [-1]
                assert batch.history.tolist() == [[0]]
                assert (batch.targets.lengths.tolist(), batch.seen.lengths.tolist()) == ([0], [0])
                assert batch.tied.tolist() == [False]
                continue
            for row, user in enumerate(batch.user_idx.tolist()):
                at = user - 10
                context, targets = (one.select(torch.tensor([row])).values for one in (batch.seen, batch.targets))
                assert torch.equal(context, ITEMS[at : at + LENGTHS[at]])
                assert torch.equal(targets, ITEMS[holdout.cut[at] : holdout.end[at]])
                assert [item for item in batch.history[row].tolist() if item] == context[-4:].tolist()
                assert bool(batch.tied[row]) == bool(holdout.tied[at])
                seen.append(user)
    assert sorted(seen) == holdout.user_idx.tolist()


def test_nobody_comes_after_the_users() -> None:
    made = HoldoutBatches(ITEMS, held_out(1), max_len=4, batch_size=2, rank=2, world_size=3)
    assert [batch.user_idx.tolist() for batch in made] == [[-1]]


def test_lists_of_different_lengths() -> None:
    made = Ragged.of([[1, 2], [], [3]])
    assert (made.values.tolist(), made.offsets.tolist()) == ([1, 2, 3], [0, 2, 2, 3])
    assert (made.lengths.tolist(), made.owners.tolist()) == ([2, 0, 1], [0, 0, 2])
    some = made.select(torch.tensor([2, 1, 0, 2]))
    assert (some.values.tolist(), some.lengths.tolist()) == ([3, 1, 2, 3], [1, 0, 2, 1])
    assert Ragged.of([]).offsets.tolist() == [0]
