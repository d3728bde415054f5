"""Samples of labelled users, beside the batches of training samples."""

import torch
from jaxtyping import Int
from torch import Tensor

from eimf.data.batch import Histories, LabelledSamples
from eimf.data.splits import Spans
from eimf.explicit.supervision import Supervision


class LabelledSampler:
    """Samples labelled users: a user at random by weight, then one of the user's training positions at random.

    Args:
        items: flat items.
        spans: training slices.
        supervision: labels, on the device of `items`.
        size: M, samples per step.
        every: sample for every N-th batch, starting with the first.
        epochs: sample in the first N epochs only; 0 means all epochs.
        only_after: see `Supervision.predictive`.
        shown: look up which interest each item of the history shows; if false, none is known.
    """

    def __init__(
        self,
        items: Int[Tensor, " T"],
        spans: Spans,
        supervision: Supervision,
        *,
        size: int,
        every: int = 1,
        epochs: int = 0,
        max_len: int,
        only_after: bool,
        shown: bool = True,
    ) -> None:
        self.items, self.supervision, self.size, self.max_len = items, supervision, size, max_len
        self.every, self.epochs = every, epochs
        self._histories = Histories(items, max_len)
        self.only_after, self.shown = only_after, shown
        rows = supervision.span_row.cpu().numpy()
        self._start, self._end = (torch.from_numpy(part[rows]).to(items.device) for part in (spans.start, spans.end))
        weight = supervision.weight.double().cpu()
        self._even = bool((weight == weight[0]).all())
        self._cumulative = (weight / weight.sum()).cumsum(0)

    def is_on(self, epoch: int, step: int) -> bool:
        """Whether a step of an epoch (both from 0) has labelled samples."""
        return step % self.every == 0 and (self.epochs == 0 or epoch < self.epochs)

    def sample(self, generator: torch.Generator) -> LabelledSamples:
        """M samples, each with the parts of its user's label that it may use."""
        labels = self.supervision
        if self._even:
            row = torch.randint(len(labels), (self.size,), generator=generator).to(self.items.device)
        else:
            chance = torch.rand(self.size, generator=generator, dtype=torch.float64)
            row = torch.searchsorted(self._cumulative, chance, right=True).clamp(max=len(labels) - 1)
            row = row.to(self.items.device)
        chance = torch.rand(self.size, generator=generator).to(self.items.device)
        start, end = self._start[row], self._end[row]
        at = start + 1 + (chance * (end - start - 1)).long()
        history = self._histories.before(start, at, self.max_len)
        return LabelledSamples(
            history,
            self.items[at],
            labels.user_idx[row],
            labels.vectors[row],
            labels.alignable(row, at),
            labels.predictive(row, at, self.items[at], self.only_after),
            labels.shown_by(row, at, self.max_len) if self.shown else torch.full_like(history, -1),
        )
