"""Turns labels into tensors, and decides which of them a training step may use.

A label was made from a history. At a training sample whose target is at flat position t:

- alignment may use an interest only if one of its items lies before t;
- next-item prediction may use an interest only if it was not made from the target item: neither from t itself nor
  from another purchase of the same item. Otherwise predicting is copying.
"""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eimf.core.errors import LabelError
from eimf.data.prepared import Prepared
from eimf.data.splits import Spans
from eimf.labels.label import Label

NOWHERE = -1


class Matched(NamedTuple):
    """Labels that fit the training data, and the reasons why others do not."""

    rows: list[tuple[int, int, Label, np.ndarray]]
    """Row of the user in the spans, user_idx, label, and the flat position of each item that the label saw."""
    dropped: dict[str, int]
    """Reason -> number of users."""


def match_labels(labels: list[Label], prepared: Prepared, spans: Spans) -> Matched:
    """Find each label's user and items among the training slices.

    A label whose user is held out, or whose history reaches beyond the user's training slice, is dropped: nothing
    made from validation or test interactions may reach training. If a user has several labels (for example of
    two splits), the newest one that fits is used.

    Raises:
        LabelError: no label fits.
    """
    sequences = prepared.sequences
    user_of = {name: index for index, name in enumerate(prepared.user_ids)}
    number = dict(zip(prepared.items["item_id"], prepared.items["item_idx"], strict=True))
    row_of = {int(user): row for row, user in enumerate(spans.user_idx)}
    rows: dict[str, tuple[int, int, Label, np.ndarray]] = {}
    reasons: dict[str, str] = {}
    for label in labels:
        user = user_of.get(label.user_id)
        if user is None:
            reasons[label.user_id] = "unknown user"
            continue
        if user not in row_of:
            reasons[label.user_id] = "held-out user"
            continue
        start, end = int(spans.start[row_of[user]]), int(spans.end[row_of[user]])
        positions = _find_in_order([number.get(item, 0) for item in label.history], sequences.items[start:end])
        if positions is None:
            reasons[label.user_id] = "history not in the training slice"
            continue
        rows.pop(label.user_id, None)  # to keep the order: the newest label comes last
        rows[label.user_id] = (row_of[user], user, label, positions + start)
    dropped = Counter(why for user, why in reasons.items() if user not in rows)
    if not rows:
        counts = ", ".join(f"{count} {why}" for why, count in dropped.items())
        raise LabelError(
            f"labels: none of {len(labels)} fits the training users of {prepared.folder.name} "
            f"({counts}); give labels of this data set and split."
        )
    return Matched(list(rows.values()), dict(dropped))


def _find_in_order(wanted: list[int], items: np.ndarray) -> np.ndarray | None:
    """The last positions of `wanted` in `items`, in the same order; None if an item is missing."""
    positions, at = np.empty(len(wanted), dtype=np.int64), len(items)
    for index in range(len(wanted) - 1, -1, -1):
        matches = np.flatnonzero(items[:at] == wanted[index])
        if len(matches) == 0:
            return None
        positions[index] = at = int(matches[-1])
    return positions


@dataclass(frozen=True, eq=False)
class Supervision:
    """Explicit interests of N labelled training users, up to S each, with up to M items each."""

    vectors: Float[Tensor, "N S D_text"]
    """Text vectors of the interests' names; zero where there is none."""
    present: Bool[Tensor, "N S"]
    items: Int[Tensor, "N S M"]
    """Flat positions of the items that show each interest; -1 where there is none."""
    groups: Int[Tensor, "N G M"]
    """Flat positions of the items of each group, for the assignment loss. Equal to `items`, except in its control."""
    made_from: Int[Tensor, "N S M"]
    """Item numbers that the LLM named for each interest; 0 where there is none."""
    seen_end: Int[Tensor, " N"]
    """Flat position right after the last item that the label saw; 0 for a shared label."""
    span_row: Int[Tensor, " N"]
    """The user's row in the training spans."""
    user_idx: Int[Tensor, " N"]
    weight: Float[Tensor, " N"]
    """Sampling weight: 1 for the user's own label, the similarity (below 1) for a shared one."""

    def __len__(self) -> int:
        return len(self.span_row)

    def to(self, device: torch.device) -> "Supervision":
        """Copy to another device."""
        moved = {name: value.to(device) for name, value in vars(self).items()}
        if self.groups is self.items:  # usually so; propagated labels make them large
            moved["groups"] = moved["items"]
        return Supervision(**moved)

    def alignable(self, row: Int[Tensor, " B"], target: Int[Tensor, " B"]) -> Bool[Tensor, "B S"]:
        """Interests that at least one item before the target shows.

        Args:
            row: labelled users, rows of this object.
            target: flat positions of the samples' targets.
        """
        items = self.items[row]
        return ((items >= 0) & (items < target[:, None, None])).any(dim=2) & self.present[row]

    def predictive(
        self, row: Int[Tensor, " B"], target: Int[Tensor, " B"], item: Int[Tensor, " B"], only_after: bool
    ) -> Bool[Tensor, "B S"]:
        """Interests that may predict the target without having been made from it.

        Args:
            item: the target items.
            only_after: if true, a target inside the label's history has no such interest. If false, only interests
                that name the target item are left out.
        """
        made_from_it = (self.made_from[row] == item[:, None, None]).any(dim=2)
        allowed = self.present[row] & ~made_from_it
        if only_after:
            allowed = allowed & (target >= self.seen_end[row])[:, None]
        return allowed

    def shown_by(self, row: Int[Tensor, " B"], target: Int[Tensor, " B"], length: int) -> Int[Tensor, "B L"]:
        """The group of each of the last `length` positions before the target; -1 where none is known."""
        position = target[:, None] + torch.arange(-length, 0, device=target.device)  # [B, L]
        groups = self.groups[row]  # [B, G, M]
        same = (groups[:, None] == position[:, :, None, None]) & (groups[:, None] >= 0)  # [B, L, G, M]
        shows = same.any(dim=3)
        return torch.where(shows.any(dim=2), shows.int().argmax(dim=2), NOWHERE)


def build_supervision(
    matched: Matched, name_vectors: dict[str, np.ndarray], flat_items: Int[np.ndarray, " T"]
) -> Supervision:
    """Pack matched labels into tensors.

    Args:
        name_vectors: interest name -> f32[D_text].
        flat_items: the items of all users; flat positions are indices into it.
    """
    most = max(len(label.interests) for _, _, label, _ in matched.rows)
    widest = max((len(interest.items) for _, _, label, _ in matched.rows for interest in label.interests), default=1)
    count, dim = len(matched.rows), len(next(iter(name_vectors.values())))
    vectors = np.zeros((count, most, dim), np.float32)
    present = np.zeros((count, most), bool)
    items = np.full((count, most, max(widest, 1)), NOWHERE, np.int64)
    seen_end = np.zeros(count, np.int64)
    for n, (_, _, label, seen_at) in enumerate(matched.rows):
        seen_end[n] = seen_at[-1] + 1
        for s, interest in enumerate(label.interests):
            vectors[n, s], present[n, s] = name_vectors[interest.name], True
            at = [seen_at[item - 1] for item in interest.items if 1 <= item <= len(seen_at)]
            items[n, s, : len(at)] = at
    positions = torch.from_numpy(items)
    return Supervision(
        vectors=torch.from_numpy(vectors),
        present=torch.from_numpy(present),
        items=positions,
        groups=positions,
        made_from=torch.from_numpy(np.where(items >= 0, flat_items[items], 0).astype(np.int64)),
        seen_end=torch.from_numpy(seen_end),
        span_row=torch.tensor([row for row, *_ in matched.rows]),
        user_idx=torch.tensor([user for _, user, *_ in matched.rows]),
        weight=torch.ones(count),
    )


def names_of(labels: list[Label]) -> polars.Series:
    """All distinct interest names, sorted."""
    return polars.Series(
        "name", sorted({interest.name for label in labels for interest in label.interests}), dtype=polars.String
    )
