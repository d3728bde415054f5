"""Explicit interests as tensors beside the training data, with what each training step may see of them.

A label was made from a history. At a training sample whose target is at flat position t:

- alignment may use an interest only if one of its items lies before t;
- next-item prediction may use an interest only if it was not made from the target item: neither from t itself nor
  from another purchase of the same item. Otherwise predicting is copying.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eimf.data.sequences import Prepared
from eimf.data.splits import Spans
from eimf.errors import LabelError
from eimf.semantics.labels import Label, newest_labels

NOWHERE = -1


class Matched(NamedTuple):
    """Labels that fit the training data, and why others do not."""

    rows: list[tuple[int, int, Label, np.ndarray]]
    """Training user (row of the spans), his user_idx, the label, and the flat position of each item it saw."""
    dropped: dict[str, int]
    """Reason -> number of users."""


def match_labels(labels: list[Label], prepared: Prepared, spans: Spans) -> Matched:
    """Find each label's user and items among the training slices.

    A label whose user is held out, or whose history reaches beyond the user's training slice, is dropped: nothing
    made from validation or test interactions may reach training. Of several labels of a user, as a cache holds after
    labelling for two splits, the newest one that fits counts.

    Raises:
        LabelError: no label fits.
    """
    sequences = prepared.sequences
    user_of = {name: index for index, name in enumerate(prepared.user_ids)}
    number = dict(zip(prepared.items["item_id"], prepared.items["item_idx"], strict=True))
    place = {int(user): row for row, user in enumerate(spans.user_idx)}
    rows: dict[str, tuple[int, int, Label, np.ndarray]] = {}
    reasons: dict[str, str] = {}
    for label in labels:
        user = user_of.get(label.user_id)
        if user is None:
            reasons[label.user_id] = "unknown user"
            continue
        if user not in place:
            reasons[label.user_id] = "held-out user"
            continue
        start, end = int(spans.start[place[user]]), int(spans.end[place[user]])
        where = _find_in_order([number.get(item, 0) for item in label.history], sequences.items[start:end])
        if where is None:
            reasons[label.user_id] = "history not in the training slice"
            continue
        rows.pop(label.user_id, None)  # the newest last, as without the older one
        rows[label.user_id] = (place[user], user, label, where + start)
    dropped = Counter(why for user, why in reasons.items() if user not in rows)
    if not rows:
        told = ", ".join(f"{count} {why}" for why, count in dropped.items())
        raise LabelError(
            f"labels: none of {len(labels)} fits the training users of {prepared.folder.name} "
            f"({told}); give labels of this data set and split."
        )
    return Matched(list(rows.values()), dict(dropped))


def _find_in_order(wanted: list[int], items: np.ndarray) -> np.ndarray | None:
    """Positions of `wanted` in `items`, in order, the latest that fit; None if they are not all there."""
    found, at = np.empty(len(wanted), dtype=np.int64), len(items)
    for back in range(len(wanted) - 1, -1, -1):
        hits = np.flatnonzero(items[:at] == wanted[back])
        if len(hits) == 0:
            return None
        found[back] = at = int(hits[-1])
    return found


class ItemInterests(NamedTuple):
    """The explicit interests, of all labels together, that each item serves."""

    vectors: Float[Tensor, "C D_text"]
    """Text vectors of all C explicit interests."""
    interest: Int[Tensor, "I_plus_1 M"]
    """The M interests whose names are nearest to each item's title; row 0 (padding) is meaningless."""
    share: Float[Tensor, "I_plus_1 M"]
    """How much of the item is each of them; rows sum to 1."""

    def profiles(self) -> Float[np.ndarray, "I_plus_1 C"]:
        """How much of each item is each of all explicit interests."""
        full = torch.zeros(len(self.interest), len(self.vectors)).scatter_(1, self.interest, self.share)
        return full.numpy()


def describe_items(
    titles: Float[np.ndarray, "I_plus_1 D_text"],
    names: Float[np.ndarray, "C D_text"],
    most: int,
    temperature: float,
) -> ItemInterests:
    """Find the explicit interests that each item serves: a softmax over the `most` nearest names.

    Args:
        titles, names: text vectors of length 1.
        temperature: of the softmax over cosine similarities.
    """
    most = min(most, len(names))
    nearest = np.empty((len(titles), most), np.int64)
    score = np.empty((len(titles), most), np.float32)
    for chunk in np.array_split(np.arange(len(titles)), max(1, len(titles) // 4096)):
        similarity = titles[chunk] @ names.T
        nearest[chunk] = np.argsort(-similarity, axis=1, kind="stable")[:, :most]
        score[chunk] = np.take_along_axis(similarity, nearest[chunk], axis=1)
    share = torch.from_numpy(score / temperature).softmax(dim=1)
    return ItemInterests(torch.from_numpy(names), torch.from_numpy(nearest), share)


def shuffled_items(served: ItemInterests, seed: int) -> ItemInterests:
    """The control: every item serves the interests of another one."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(served.interest) - 1) + 1)
    donor = torch.zeros(len(served.interest), dtype=torch.int64)
    donor[order] = order.roll(1)
    return served._replace(interest=served.interest[donor], share=served.share[donor])


@dataclass(frozen=True, eq=False)
class Supervision:
    """Explicit interests of N labelled training users, up to S each, with up to M items each."""

    vectors: Float[Tensor, "N S D_text"]
    """Text vectors of the interests' names; zero where there is none."""
    present: Bool[Tensor, "N S"]
    items: Int[Tensor, "N S M"]
    """Flat positions of the items that show each interest; -1 where there is none."""
    groups: Int[Tensor, "N G M"]
    """Flat positions of the items that belong together, for the assignment: `items`, but for its control."""
    made_from: Int[Tensor, "N S M"]
    """Item numbers that the LLM named for each interest; 0 where there is none."""
    seen_end: Int[Tensor, " N"]
    """Flat position right after the last item that the label saw; 0 where the words are another user's."""
    span_row: Int[Tensor, " N"]
    """The user's row in the training spans."""
    user_idx: Int[Tensor, " N"]
    weight: Float[Tensor, " N"]
    """How often a user is drawn: 1, or less where the words are a similar user's."""

    def __len__(self) -> int:
        return len(self.span_row)

    def to(self, device: torch.device) -> "Supervision":
        """The same on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items()}
        if self.groups is self.items:  # as they mostly are, and with lent interests they are large
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
            only_after: targets that the label's history reached have none; else only interests that name the target
                itself are left out.
        """
        made_from_it = (self.made_from[row] == item[:, None, None]).any(dim=2)
        allowed = self.present[row] & ~made_from_it
        if only_after:
            allowed = allowed & (target >= self.seen_end[row])[:, None]
        return allowed

    def shown_by(self, row: Int[Tensor, " B"], target: Int[Tensor, " B"], length: int) -> Int[Tensor, "B L"]:
        """The group that each of the last `length` positions before the target is in; -1 where none is known."""
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
        flat_items: the items of all users, which flat positions refer to.
    """
    most = max(len(label.interests) for _, _, label, _ in matched.rows)
    widest = max((len(one.items) for _, _, label, _ in matched.rows for one in label.interests), default=1)
    count, dim = len(matched.rows), len(next(iter(name_vectors.values())))
    vectors = np.zeros((count, most, dim), np.float32)
    present = np.zeros((count, most), bool)
    items = np.full((count, most, max(widest, 1)), NOWHERE, np.int64)
    seen_end = np.zeros(count, np.int64)
    for n, (_, _, label, where) in enumerate(matched.rows):
        seen_end[n] = where[-1] + 1
        for s, interest in enumerate(label.interests):
            vectors[n, s], present[n, s] = name_vectors[interest.name], True
            at = [where[item - 1] for item in interest.items if 1 <= item <= len(where)]
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


def propagate(
    told: Supervision,
    spans: Spans,
    flat_items: Int[np.ndarray, " T"],
    item_vectors: Float[np.ndarray, "I_plus_1 D_text"],
    user_vectors: Float[np.ndarray, "U D_text"],
    least: float = 0.0,
) -> Supervision:
    """Lend each unlabelled training user the interests of the most similar labelled one (beyond the paper).

    A borrower is drawn in proportion to his similarity. His own items show the borrowed interest whose words they are
    nearest to, so that alignment looks at what he did before the target, as with labels of his own; prediction leaves
    out interests that the lender's LLM named the target item for.

    Args:
        told: the labelled users.
        user_vectors: of length 1, one a row of `spans`.
        least: cosine similarity below which nothing is lent.
    """
    labelled = told.span_row.numpy()
    similarity = user_vectors @ user_vectors[labelled].T  # [U, N]
    lender = similarity.argmax(axis=1)
    closeness = similarity[np.arange(len(lender)), lender]
    borrowers = np.setdiff1d(np.flatnonzero(closeness > max(least, 0.0)), labelled)
    lender = torch.from_numpy(lender[borrowers])
    longest = int((spans.end - spans.start)[borrowers].max(initial=1))
    at = spans.start[borrowers][:, None] + np.arange(longest)  # [B, longest]
    inside = at < spans.end[borrowers][:, None]
    own = np.where(inside, flat_items[np.minimum(at, len(flat_items) - 1)], 0)
    vectors, present = told.vectors[lender], told.present[lender]
    items = np.full((len(borrowers), present.shape[1], longest), NOWHERE, np.int64)
    for chunk in np.array_split(np.arange(len(borrowers)), max(1, len(borrowers) * longest // 2**15)):
        scores = np.einsum("bld,bsd->bls", item_vectors[own[chunk]], vectors[chunk].numpy())
        scores[~np.broadcast_to(present[chunk].numpy()[:, None], scores.shape)] = -np.inf
        nearest = scores.argmax(axis=2)  # [b, longest]
        shows = (nearest[:, None] == np.arange(present.shape[1])[:, None]) & inside[chunk][:, None]
        items[chunk] = np.where(shows, at[chunk][:, None], NOWHERE)
    positions = torch.from_numpy(items)
    lent = Supervision(
        vectors=vectors,
        present=present,
        items=positions,
        groups=positions,
        made_from=told.made_from[lender],
        seen_end=torch.zeros(len(borrowers), dtype=torch.int64),
        span_row=torch.from_numpy(borrowers),
        user_idx=torch.from_numpy(spans.user_idx[borrowers].astype(np.int64)),
        weight=torch.from_numpy(closeness[borrowers].astype(np.float32)),
    )
    return _join(told, lent)


def _join(first: Supervision, second: Supervision) -> Supervision:
    """Both, with the item lists padded to one width."""

    def pad(value: Tensor, width: int, fill: int) -> Tensor:
        return torch.nn.functional.pad(value, (0, width - value.shape[-1]), value=fill)

    width = max(first.items.shape[-1], second.items.shape[-1])
    joined = {name: [value, getattr(second, name)] for name, value in vars(first).items()}
    joined["items"] = [pad(value, width, NOWHERE) for value in joined["items"]]
    del joined["groups"]  # the same as the items: controls come after lending
    whole = {name: torch.cat(pair) for name, pair in joined.items()}
    return Supervision(**whole, groups=whole["items"])


def shuffled(supervision: Supervision, seed: int) -> Supervision:
    """The control: every user keeps his items, positions and groups, and gets the words of another one."""
    order = np.random.default_rng(seed).permutation(len(supervision))
    donor = np.empty_like(order)
    donor[order] = np.roll(order, 1)  # a cycle through a random order: nobody keeps his own
    shift = torch.from_numpy(donor)
    vectors, present = supervision.vectors[shift], supervision.present[shift]
    # Where the other user has more interests, this one's item positions do not exist: take the first one's.
    items = torch.where(
        supervision.present[:, :, None], supervision.items, supervision.items[:, :1].expand_as(supervision.items)
    )
    return replace(supervision, vectors=vectors, present=present, items=items, made_from=supervision.made_from[shift])


def mixed_groups(supervision: Supervision, seed: int) -> Supervision:
    """The control of the assignment: as many of the user's items belong together, but which ones is by chance."""
    generator = np.random.default_rng(seed)
    groups = supervision.groups.numpy().copy()
    for row in groups:
        named = row >= 0
        row[named] = generator.permutation(row[named])
    return replace(supervision, groups=torch.from_numpy(groups))


def take_share(labels: list[Label], share: float, seed: int) -> list[Label]:
    """The labels of a seeded share of their users; smaller shares are subsets of larger ones."""
    users = [label.user_id for label in newest_labels(labels)]
    # A stream of its own: the seed alone would repeat the permutation that splits as many users.
    order = np.random.default_rng([seed, len("share")]).permutation(len(users))
    chosen = {users[index] for index in order[: max(1, round(share * len(users)))]}
    return [label for label in labels if label.user_id in chosen]


def names_of(labels: list[Label]) -> pl.Series:
    """All distinct interest names, sorted."""
    return pl.Series("name", sorted({one.name for label in labels for one in label.interests}), dtype=pl.String)
