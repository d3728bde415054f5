"""Batches by vectorised gathers from flat tensors: no Python for a sample, no worker processes.

The flat tensors may live on an accelerator; the gathers then run there.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eimf.data.splits import Holdout, Spans

AT_ONCE = 2**15
"""Items of histories that are gathered together: the size from which torch takes several threads, which costs more here
than it saves."""


class Batch(NamedTuple):
    """Training samples (contract [E])."""

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
    """Interests that alignment may use at this sample (see `eimf.semantics.supervision`)."""
    predictive: Bool[Tensor, "M S"]
    """Interests that may predict this sample's target."""
    shown: Int[Tensor, "M L"]
    """The interest that each item of the history shows, -1 where none is known."""


class EvalBatch(NamedTuple):
    """Held-out users."""

    history: Int[Tensor, "B L"]
    row: Int[Tensor, " B"]
    """Index into the `Holdout` that the batch is from."""


def gather_history(
    items: Int[Tensor, " T"], start: Int[Tensor, " B"], end: Int[Tensor, " B"], length: int
) -> Int[Tensor, "B {length}"]:
    """The last `length` items of each slice `start:end`, left-padded with 0."""
    index = end[:, None] + torch.arange(-length, 0, device=items.device)
    return torch.where(index >= start[:, None], items[index.clamp(min=0)], 0)


class Histories:
    """`gather_history` for many batches of the same items: some forty times faster.

    Every history of length L is a row of one view of the items, so that a gather copies whole rows. It holds a copy of
    the items.
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

    every: int

    def draw(self, generator: torch.Generator) -> LabelledSamples: ...


class TrainingBatches:
    """One epoch of training batches; iterating twice gives the same batches.

    Args:
        items: flat items.
        spans: training slices.
        epoch: changes order and random cuts, together with `seed`.
        rank, world_size: this process takes every `world_size`-th sample, and all processes take equally many.
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
    ) -> None:
        self.labels = labels
        self.items, self.max_len, self.batch_size = items, max_len, batch_size
        self._histories = Histories(items, max_len + 1)
        self.sampling, self.rank, self.world_size = sampling, rank, world_size
        self.generator_seed = (seed * 1_000_003 + epoch) % 2**63
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

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.generator_seed)
        total = self.n_samples * self.world_size
        order = torch.randperm(len(self._owner), generator=generator)[:total]
        order = order[self.rank :: self.world_size].to(self.items.device)
        chance = torch.rand(total, generator=generator)[self.rank :: self.world_size].to(self.items.device)
        # A generator of its own: drawing labelled samples leaves the order of the others as it is.
        extra = torch.Generator().manual_seed((self.generator_seed + 7_919 * (self.rank + 1)) % 2**63)
        # Several batches are made at once and handed out as views: small operations cost their call, not their work.
        together = self.batch_size * max(1, AT_ONCE // (self.batch_size * (self.max_len + 1)))
        labels, step = self.labels, 0
        for chosen, draw in zip(order.split(together), chance.split(together), strict=True):
            parts = (part.split(self.batch_size) for part in self._make(chosen, draw))
            for history, target, user in zip(*parts, strict=True):
                told = labels.draw(extra) if labels is not None and step % labels.every == 0 else None
                yield Batch(history, target, user, told)
                step += 1

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


class HoldoutBatches:
    """Contexts of held-out users, every `world_size`-th one for this process; nobody is counted twice.

    Users with long histories come first, and a batch is as wide as its longest: most histories are short, and padding
    would be most of the work. The narrower a batch, the more users it holds, up to `MOST_TIMES` `batch_size`: as
    many as take the memory of the first, since fewer and larger batches are faster.
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
    ) -> None:
        self.items = items
        self._start, self._cut = (torch.from_numpy(part).to(items.device) for part in (holdout.start, holdout.cut))
        rows = np.arange(rank, len(holdout), world_size)
        length = np.minimum(holdout.cut - holdout.start, max_len)[rows]
        order = np.argsort(-length, kind="stable")
        self._rows = torch.from_numpy(rows[order]).to(items.device)
        self._widths: list[int] = []
        self._sizes: list[int] = []
        while (begin := sum(self._sizes)) < len(rows):
            width = max(1, int(length[order[begin]]))
            size = min(batch_size * max_len // width, batch_size * MOST_TIMES, len(rows) - begin)
            self._widths.append(width)
            self._sizes.append(size)

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[EvalBatch]:
        for row, width in zip(self._rows.split(self._sizes), self._widths, strict=True):
            yield EvalBatch(gather_history(self.items, self._start[row], self._cut[row], width), row)
