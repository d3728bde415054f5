"""Splits data into training, validation and test: the user, leave-one-out and time protocols of the literature.

A split is a set of slices of the flat sequences; nothing is copied. Every context ends where its targets begin, and no
training slice contains a validation or test target.
"""

from dataclasses import dataclass

import numpy as np

from eimf.config.schema import SplitConfig
from eimf.core.errors import DataError
from eimf.data.prepared import Sequences


@dataclass(frozen=True, eq=False)
class Spans:
    """Training slices `start:end` of the flat arrays, one for each user with training interactions."""

    user_idx: np.ndarray
    start: np.ndarray
    end: np.ndarray


@dataclass(frozen=True, eq=False)
class Holdout:
    """Held-out users: `start:cut` is what the model sees, `cut:end` are the targets."""

    user_idx: np.ndarray
    start: np.ndarray
    cut: np.ndarray
    end: np.ndarray
    tied: np.ndarray
    """bool[E]: true if a context item and a target share a timestamp, so that only the file order says which is the
    target."""
    too_short: int = 0
    """Users of this part who have no context or no target, and are not evaluated."""

    def __len__(self) -> int:
        return len(self.user_idx)


@dataclass(frozen=True, eq=False)
class Split:
    """The three parts of a data set under one protocol."""

    train: Spans
    validation: Holdout
    test: Holdout

    def item_counts(self, sequences: Sequences, n_items: int) -> np.ndarray:
        """i64[I + 1]: occurrences of each item in the training slices only."""
        seen = inside(len(sequences.items), self.train.start, self.train.end)
        return np.bincount(sequences.items[seen], minlength=n_items + 1)


def inside(n: int, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """bool[n]: which of n interactions are in one of the slices [start, end)."""
    steps = np.zeros(n + 1, dtype=np.int64)
    np.add.at(steps, start, 1)
    np.add.at(steps, end, -1)
    return np.cumsum(steps[:-1]) > 0


def share_of_repeats(sequences: Sequences, *parts: Holdout) -> float:
    """Share of the held-out targets that repeat an item of their user's context."""
    width, repeated, total = int(sequences.items.max(initial=0)) + 1, 0, 0
    for part in parts:
        contexts, targets = (_keys(sequences, *span, width) for span in ((part.start, part.cut), (part.cut, part.end)))
        repeated += int(np.isin(targets, contexts).sum())
        total += len(targets)
    return repeated / max(total, 1)


def _keys(sequences: Sequences, start: np.ndarray, end: np.ndarray, width: int) -> np.ndarray:
    """One number per interaction of the slices, equal for the same item in the same slice."""
    lengths = end - start
    owner = np.repeat(np.arange(len(start)), lengths)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return owner * width + sequences.items[start[owner] + place].astype(np.int64)


def split_sequences(sequences: Sequences, config: SplitConfig) -> Split:
    """Split sequences by the protocol that `config.kind` names.

    Raises:
        DataError: a part would be empty.
    """
    parts = {"user": _by_user, "loo": _leave_one_out, "time": _by_time}[config.kind](sequences, config)
    for name, size in (
        ("training", len(parts.train.user_idx)),
        ("validation", len(parts.validation)),
        ("test", len(parts.test)),
    ):
        if size == 0:
            raise DataError(
                f"split.kind={config.kind}: no user is left for {name} among {sequences.n_users}; users need "
                "several interactions. Use more data, a smaller dataset.user_min, or other shares."
            )
    return parts


def _holdout(sequences: Sequences, users: np.ndarray, start: np.ndarray, cut: np.ndarray, end: np.ndarray) -> Holdout:
    usable = (cut > start) & (end > cut)
    users, start, cut, end = users[usable], start[usable], cut[usable], end[usable]
    times, limit = sequences.timestamps, sequences.offsets[users + 1]
    tied = times[cut - 1] == times[cut]
    inside = np.flatnonzero(end < limit)  # more items follow the targets: a tie at that border counts too
    tied[inside] |= times[end[inside] - 1] == times[end[inside]]
    return Holdout(users, start, cut, end, tied, too_short=int((~usable).sum()))


def _by_user(sequences: Sequences, config: SplitConfig) -> Split:
    """ComiRec's protocol: users shuffled, 8:1:1; of a held-out user the first int(0.8 n) interactions are context."""
    shuffled = np.random.default_rng(config.seed).permutation(sequences.n_users)
    n_validation, n_test = (int(share * sequences.n_users) for share in (config.validation, config.test))
    test, validation, train = np.split(shuffled, [n_test, n_test + n_validation])

    def hold(users: np.ndarray) -> Holdout:
        users = np.sort(users)
        start, end = sequences.offsets[users], sequences.offsets[users + 1]
        cut = start + (config.context * (end - start)).astype(np.int64)
        return _holdout(sequences, users, start, cut, end)

    train = np.sort(train)
    spans = Spans(train, sequences.offsets[train], sequences.offsets[train + 1])
    return Split(_with_targets(spans), hold(validation), hold(test))


def _leave_one_out(sequences: Sequences, config: SplitConfig) -> Split:
    """The last item is test, the one before it validation, the rest training. Users with under 3 items only train."""
    users = np.arange(sequences.n_users)
    start, end = sequences.offsets[:-1], sequences.offsets[1:]
    enough = end - start >= 3
    train_end = np.where(enough, end - 2, end)
    held, held_start, held_end = users[enough], start[enough], end[enough]
    return Split(
        _with_targets(Spans(users, start, train_end)),
        _holdout(sequences, held, held_start, held_end - 2, held_end - 1),
        _holdout(sequences, held, held_start, held_end - 1, held_end),
    )


def _by_time(sequences: Sequences, config: SplitConfig) -> Split:
    """Two global cuts: the last share of all interactions is test, the share before it validation."""
    times = sequences.timestamps
    ordered = np.sort(times)
    first = ordered[min(int((1 - config.validation - config.test) * len(times)), len(times) - 1)]
    second = ordered[min(int((1 - config.test) * len(times)), len(times) - 1)]
    if first <= times.min() or second <= first:
        raise DataError(
            f"split.kind=time: the timestamps ({len(np.unique(times))} distinct) allow no cut into three parts; "
            "use split.kind=user or loo."
        )
    start, end = sequences.offsets[:-1], sequences.offsets[1:]
    before = np.concatenate([[0], np.cumsum(times < first)])
    between = np.concatenate([[0], np.cumsum(times < second)])
    # Sequences are sorted by time, so the interactions before a cut are a prefix.
    cut_first = start + before[end] - before[start]
    cut_second = start + between[end] - between[start]
    users = np.arange(sequences.n_users)
    return Split(
        _with_targets(Spans(users, start, cut_first)),
        _holdout(sequences, users, start, cut_first, cut_second),
        _holdout(sequences, users, start, cut_second, end),
    )


def _with_targets(spans: Spans) -> Spans:
    """Keep only users with at least one item of history and one target."""
    keep = spans.end - spans.start >= 2
    return Spans(spans.user_idx[keep], spans.start[keep], spans.end[keep])
