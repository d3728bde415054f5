"""TODO"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eimf.data.splits import Spans
from eimf.explicit.supervision import NOWHERE, Supervision


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
