"""Propagates labels: unlabelled users share the interests of the most similar labelled user (beyond the paper)."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eimf.data.splits import Spans
from eimf.explicit.supervision import NOWHERE, Supervision


def propagate(
    labelled: Supervision,
    spans: Spans,
    flat_items: Int[np.ndarray, " T"],
    item_vectors: Float[np.ndarray, "I_plus_1 D_text"],
    user_vectors: Float[np.ndarray, "U D_text"],
) -> Supervision:
    """Give each unlabelled training user the interests of the most similar labelled one.

    Such a user is sampled in proportion to the similarity. Each of the user's own items shows the shared interest whose
    words are nearest. Alignment therefore still uses only items before the target. Prediction leaves out an interest if
    the label names the target item.

    Args:
        labelled: the labelled users.
        user_vectors: vectors of length 1, one per row of `spans`.

    Returns:
        The labelled users, then those who share their labels.
    """
    own_rows = labelled.span_row.numpy()
    similarity = user_vectors @ user_vectors[own_rows].T  # [U, N]
    source = similarity.argmax(axis=1)
    closeness = similarity[np.arange(len(source)), source]
    receivers = np.setdiff1d(np.flatnonzero(closeness > 0.0), own_rows)
    source = torch.from_numpy(source[receivers])
    longest = int((spans.end - spans.start)[receivers].max(initial=1))
    at = spans.start[receivers][:, None] + np.arange(longest)  # [B, longest]
    inside = at < spans.end[receivers][:, None]
    own = np.where(inside, flat_items[np.minimum(at, len(flat_items) - 1)], 0)
    vectors, present = labelled.vectors[source], labelled.present[source]
    items = np.full((len(receivers), present.shape[1], longest), NOWHERE, np.int64)
    for chunk in np.array_split(np.arange(len(receivers)), max(1, len(receivers) * longest // 2**15)):
        scores = np.einsum("bld,bsd->bls", item_vectors[own[chunk]], vectors[chunk].numpy())
        scores[~np.broadcast_to(present[chunk].numpy()[:, None], scores.shape)] = -np.inf
        nearest = scores.argmax(axis=2)  # [b, longest]
        shows = (nearest[:, None] == np.arange(present.shape[1])[:, None]) & inside[chunk][:, None]
        items[chunk] = np.where(shows, at[chunk][:, None], NOWHERE)
    positions = torch.from_numpy(items)
    shared = Supervision(
        vectors=vectors,
        present=present,
        items=positions,
        groups=positions,
        made_from=labelled.made_from[source],
        seen_end=torch.zeros(len(receivers), dtype=torch.int64),
        span_row=torch.from_numpy(receivers),
        user_idx=torch.from_numpy(spans.user_idx[receivers].astype(np.int64)),
        weight=torch.from_numpy(closeness[receivers].astype(np.float32)),
    )
    return _join(labelled, shared)


def _join(first: Supervision, second: Supervision) -> Supervision:
    """Join both, with the item lists padded to the same width."""

    def pad(value: Tensor, width: int, fill: int) -> Tensor:
        return torch.nn.functional.pad(value, (0, width - value.shape[-1]), value=fill)

    width = max(first.items.shape[-1], second.items.shape[-1])
    joined = {name: [value, getattr(second, name)] for name, value in vars(first).items()}
    joined["items"] = [pad(value, width, NOWHERE) for value in joined["items"]]
    del joined["groups"]  # equal to the items here: controls come after propagation
    whole = {name: torch.cat(pair) for name, pair in joined.items()}
    return Supervision(**whole, groups=whole["items"])
