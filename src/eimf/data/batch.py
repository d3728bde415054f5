"""Makes batches by vectorised gathers from flat tensors: no Python loop over samples, no worker processes.

The flat tensors may live on an accelerator; the gathers then run there.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eimf.data.splits import Holdout, Spans

AT_ONCE = 2**15
"""Most history items gathered in one call. Above this size torch starts threads, which is slower here."""


class Ragged(NamedTuple):
    """Lists of items of different lengths, one after the other: list b is `values[offsets[b]:offsets[b + 1]]`."""

    values: Int[Tensor, " N"]
    offsets: Int[Tensor, " B_plus_1"]

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        """Length of each list."""
        return self.offsets.diff()

    @property
    def owners(self) -> Int[Tensor, " N"]:
        """The list that each value is in."""
        return torch.repeat_interleave(torch.arange(len(self.offsets) - 1, device=self.offsets.device), self.lengths)

    def select(self, rows: Int[Tensor, " S"]) -> "Ragged":
        """Some of the lists."""
        return gather_slices(self.values, self.offsets[:-1][rows], self.offsets[1:][rows])

    def cpu(self) -> "Ragged":
        """The same on the CPU."""
        return Ragged(self.values.cpu(), self.offsets.cpu())

    @classmethod
    def of(cls, lists: Iterable[Sequence[int]]) -> "Ragged":
        """From lists of numbers."""
        rows = [torch.as_tensor(row, dtype=torch.long).flatten() for row in lists]
        lengths = torch.tensor([0, *(len(row) for row in rows)])
        return cls(torch.cat(rows) if rows else torch.zeros(0, dtype=torch.long), lengths.cumsum(0))


class Batch(NamedTuple):
    """Training samples."""

    history: Int[Tensor, "B L"]
    """Items before the target, left-padded with 0, most recent last."""
    target: Int[Tensor, "B ..."]
    """[B], or [B, L] for whole sequences: the item that follows each position, 0 where there is none."""
    user_idx: Int[Tensor, " B"]
    labelled: "LabelledSamples | None" = None
    """Further samples for EIMF's auxiliary tasks."""


class LabelledSamples(NamedTuple):
    """Samples of users whose interests an LLM has put in words."""

    history: Int[Tensor, "M L"]
    target: Int[Tensor, " M"]
    user_idx: Int[Tensor, " M"]
    label_embeddings: Float[Tensor, "M S D_text"]
    alignable: Bool[Tensor, "M S"]
    """Interests that alignment may use at this sample (see `eimf.explicit.supervision`)."""
    predictive: Bool[Tensor, "M S"]
    """Interests that may predict this sample's target."""
    shown: Int[Tensor, "M L"]
    """The interest that each item of the history shows, -1 where none is known."""


class EvalBatch(NamedTuple):
    """Held-out users, with everything needed to evaluate them."""

    history: Int[Tensor, "B L"]
    """The most recent items of the context, left-padded with 0."""
    user_idx: Int[Tensor, " B"]
    """-1: no user; such rows give all processes equally many batches."""
    targets: Ragged
    """The held-out items of each user."""
    seen: Ragged
    """All items of each user's context."""
    tied: Bool[Tensor, " B"]
    """Whether a context item and a target share a timestamp, so that only the file order says which is the target."""


def gather_slices(items: Int[Tensor, " T"], start: Int[Tensor, " B"], end: Int[Tensor, " B"]) -> Ragged:
    """The items of each slice `start:end`."""
    lengths = end - start
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    owner = torch.repeat_interleave(torch.arange(len(start), device=items.device), lengths)
    place = torch.arange(len(owner), device=items.device) - offsets[:-1][owner]
    return Ragged(items[start[owner] + place], offsets)


def gather_history(
    items: Int[Tensor, " T"], start: Int[Tensor, " B"], end: Int[Tensor, " B"], length: int
) -> Int[Tensor, "B {length}"]:
    """The last `length` items of each slice `start:end`, left-padded with 0."""
    index = end[:, None] + torch.arange(-length, 0, device=items.device)
    return torch.where(index >= start[:, None], items[index.clamp(min=0)], 0)


class Histories:
    """`gather_history` for many batches of the same items, about forty times faster.

    Every history of length L is a row of one view of the items, so that a gather copies whole rows. The object holds a
    copy of the items.
    """

    def __init__(self, items: Int[Tensor, " T"], longest: int) -> None:
        self._padded, self._longest = F.pad(items, (longest, 0)), longest

    def before(self, start: Int[Tensor, " B"], end: Int[Tensor, " B"], length: int) -> Int[Tensor, "B {length}"]:
        """The last `length` items, at most `longest`, of each slice `start:end`, left-padded with 0."""
        rows = self._padded.unfold(0, length, 1).index_select(0, end + (self._longest - length))
        place = torch.arange(length, 0, -1, device=rows.device)
        return rows.masked_fill_(place > (end - start)[:, None], 0)


@runtime_checkable
class LabelledSampler(Protocol):
    """Samples labelled users; see `eimf.explicit.sampling`."""

    def is_on(self, epoch: int, step: int) -> bool:
        """Whether a step of an epoch (both from 0) has labelled samples."""
        ...

    def sample(self, generator: torch.Generator) -> LabelledSamples:
        """Samples of labelled users."""
        ...


class TrainingBatches:
    """Batches of training samples. Each iteration is a new epoch, with another order and other random cuts.

    The random numbers depend on (seed, epoch) alone. Lightning sets the epoch with `set_epoch`, as it does for
    samplers; without it, each iteration is the next epoch. An iteration can be saved and continued at any step
    (`state_dict`).

    Args:
        items: flat items.
        spans: training slices.
        min_history: fewest items before a target.
        epoch: of the first iteration.
        rank, world_size: this process takes every `world_size`-th sample, and all processes take equally many.
        labels: sampler of labelled users, whose samples are added to the batches.
        same: every iteration is epoch 0, for Lightning's `overfit_batches`.
    """

    def __init__(
        self,
        items: Int[Tensor, " T"],
        spans: Spans,
        *,
        max_len: int,
        batch_size: int,
        sampling: Literal["every_position", "random_cut", "sequence"],
        min_history: int = 1,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        labels: LabelledSampler | None = None,
        same: bool = False,
    ) -> None:
        self.labels, self.same = labels, same
        self.items, self.max_len, self.batch_size = items, max_len, batch_size
        self._histories = Histories(items, max_len + 1)
        self.sampling, self.rank, self.world_size = sampling, rank, world_size
        self.seed, self.epoch = seed, epoch
        self._step, self._skip = 0, 0
        device = items.device
        user, start, end = (torch.from_numpy(part).to(device) for part in (spans.user_idx, spans.start, spans.end))
        first = start + min_history
        long_enough = first < end
        user, start, end, first = user[long_enough], start[long_enough], end[long_enough], first[long_enough]
        if sampling == "sequence":  # windows of max_len targets, the last one ending with the slice
            n_samples = (end - start - 1 + max_len - 1) // max_len
        elif sampling == "random_cut":
            n_samples = torch.ones_like(start)
        else:
            n_samples = end - first
        self._user, self._start, self._end, self._first = user, start, end, first
        self._owner = torch.repeat_interleave(torch.arange(len(user), device=device), n_samples)
        self._place = torch.arange(len(self._owner), device=device) - (n_samples.cumsum(0) - n_samples)[self._owner]

    @property
    def n_samples(self) -> int:
        """Samples of this process in an epoch."""
        return len(self._owner) // self.world_size

    def __len__(self) -> int:
        return -(-self.n_samples // self.batch_size)

    @property
    def sampler(self) -> "TrainingBatches":
        """Itself: Lightning looks here for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = 0 if self.same else epoch

    def state_dict(self) -> dict[str, int]:
        """The step that the current iteration has reached."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration after the step of a saved one; from the first step if that one was finished."""
        self._skip = state["step"] if state["step"] < len(self) else 0

    def __iter__(self) -> Iterator[Batch]:
        epoch, skip = self.epoch, self._skip
        self.epoch, self._skip = 0 if self.same else epoch + 1, 0
        generator_seed = (self.seed * 1_000_003 + epoch) % 2**63
        generator = torch.Generator().manual_seed(generator_seed)
        total = self.n_samples * self.world_size
        order = torch.randperm(len(self._owner), generator=generator)[:total]
        order = order[self.rank :: self.world_size].to(self.items.device)
        chances = torch.rand(total, generator=generator)[self.rank :: self.world_size].to(self.items.device)
        # A generator of its own: sampling labelled users leaves the order of the others as it is.
        extra = torch.Generator().manual_seed((generator_seed + 7_919 * (self.rank + 1)) % 2**63)
        # Several batches are gathered at once and yielded as views: for small operations, the call costs the most.
        together = self.batch_size * max(1, AT_ONCE // (self.batch_size * (self.max_len + 1)))
        labels, step = self.labels, 0
        for chosen, chance in zip(order.split(together), chances.split(together), strict=True):
            parts = (part.split(self.batch_size) for part in self._make(chosen, chance))
            for history, target, user in zip(*parts, strict=True):
                labelled = labels.sample(extra) if labels is not None and labels.is_on(epoch, step) else None
                step += 1
                if step > skip:
                    self._step = step
                    yield Batch(history, target, user, labelled)

    def _make(self, chosen: Int[Tensor, " B"], chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """History, target and user of samples."""
        owner = self._owner[chosen]
        start, user = self._start[owner], self._user[owner]
        if self.sampling == "sequence":
            end = self._end[owner] - self._place[chosen] * self.max_len
            both = self._histories.before(start, end, self.max_len + 1)
            history, target = both[:, :-1], both[:, 1:]
            return history, torch.where(history > 0, target, 0), user
        at = self._first[owner]
        at = at + ((chance * (self._end[owner] - at)).long() if self.sampling == "random_cut" else self._place[chosen])
        return self._histories.before(start, at, self.max_len), self.items[at], user


MOST_TIMES = 4
"""A batch of short histories holds at most this many times `batch_size` users."""


class HoldoutBatches:
    """Held-out users with their contexts, every `world_size`-th one for this process; no user is counted twice.

    Users with long histories come first, and a batch is as wide as its longest history: most histories are short, so
    that batches of a fixed width would be mostly padding. Narrow batches hold more users (up to `MOST_TIMES` x
    batch_size), so that all batches need about the same memory. All processes have equally many batches; a process with
    too few users gets batches without users.

    Args:
        items: flat items.
        holdout: the held-out users.
        by_length: false keeps the users in their order.
    """

    def __init__(
        self,
        items: Int[Tensor, " T"],
        holdout: Holdout,
        *,
        max_len: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        by_length: bool = True,
    ) -> None:
        self.items, self.max_len, self.batch_size, self.by_length = items, max_len, batch_size, by_length
        names = ("user_idx", "start", "cut", "end", "tied")
        self._user, self._start, self._cut, self._end, self._tied = (
            torch.from_numpy(getattr(holdout, name)).to(items.device) for name in names
        )
        length = np.minimum(holdout.cut - holdout.start, max_len)
        parts = [self._plan(length, process, world_size) for process in range(world_size)]
        self._rows, self._widths, self._sizes = parts[rank]
        self._n_batches = max(len(sizes) for *_, sizes in parts)

    def _plan(self, length: np.ndarray, rank: int, world_size: int) -> tuple[Tensor, list[int], list[int]]:
        """Rows of a process in their order, and width and size of each of its batches."""
        rows = np.arange(rank, len(length), world_size)
        if self.by_length:
            rows = rows[np.argsort(-length[rows], kind="stable")]
        widths, sizes, begin = [], [], 0
        while begin < len(rows):
            if self.by_length:
                width = max(1, int(length[rows[begin]]))
                most = min(self.batch_size * self.max_len // width, self.batch_size * MOST_TIMES)
            else:
                width, most = self.max_len, self.batch_size
            sizes.append(min(most, len(rows) - begin))
            widths.append(width)
            begin += sizes[-1]
        return torch.from_numpy(rows).to(self.items.device), widths, sizes

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[EvalBatch]:
        for row, width in zip(self._rows.split(self._sizes), self._widths, strict=True):
            start, cut = self._start[row], self._cut[row]
            yield EvalBatch(
                gather_history(self.items, start, cut, width),
                self._user[row],
                gather_slices(self.items, cut, self._end[row]),
                gather_slices(self.items, start, cut),
                self._tied[row],
            )
        for _ in range(self._n_batches - len(self._sizes)):
            zero = torch.zeros(1, dtype=torch.long, device=self.items.device)
            empty = Ragged(zero[:0], zero.repeat(2))
            yield EvalBatch(zero[None], zero - 1, empty, empty, zero > 0)
