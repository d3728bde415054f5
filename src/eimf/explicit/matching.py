"""Matches behavioural interests with explicit ones.

Shapes: B samples, K behavioural interests, S explicit interests.
"""

from itertools import permutations
from math import perm
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

MAX_PERMUTATIONS = 6_000
"""Above this many assignments `optimal` matching falls back to `greedy`: for 4 explicit interests (a label has no more)
with more than 10 behavioural ones."""


def match_interests(
    similarity: Float[Tensor, "B K S"],
    present: Bool[Tensor, "B S"],
    method: Literal["optimal", "greedy"] = "optimal",
) -> Int[Tensor, "B S"]:
    """Assign an own behavioural interest to each explicit one, so that the sum of similarities is large.

    `optimal` is the exact assignment (as the Hungarian algorithm finds it), by trying all of them at once: K and S are
    small (greedy above `MAX_PERMUTATIONS`). With more explicit interests than behavioural ones, those left over take
    their most similar one.

    Returns:
        The behavioural interest of each explicit one; meaningless where `present` is false.
    """
    batch, count, size = similarity.shape
    few = min(count, size)
    similarity = similarity.detach().masked_fill(~present[:, None], 0.0)
    if size > count:  # a penalty large enough that absent interests are matched last
        similarity = torch.where(present[:, None], similarity, -1 - 2 * few * similarity.abs().amax())
    if method == "optimal" and perm(max(count, size), few) <= MAX_PERMUTATIONS:
        # Each way to give the fewer ones partners of their own among the others.
        table = torch.tensor(list(permutations(range(max(count, size)), few)), device=similarity.device)  # [A, few]
        own = torch.arange(few, device=similarity.device).expand_as(table)
        if size <= count:
            return table[similarity[:, table, own].sum(dim=2).argmax(dim=1)]
        best = table[similarity[:, own, table].sum(dim=2).argmax(dim=1)]  # [B, K]: the explicit one of each behavioural
        return similarity.argmax(dim=1).scatter(1, best, own[:1].expand_as(best))
    left = similarity.masked_fill(~present[:, None], -torch.inf)
    chosen = similarity.argmax(dim=1)
    rows = torch.arange(batch, device=similarity.device)
    for _ in range(few):
        best = left.flatten(1).argmax(dim=1)
        k, s = best // size, best % size
        valid = left[rows, k, s] > -torch.inf
        chosen[rows[valid], s[valid]] = k[valid]
        left[rows, k] = -torch.inf
        left[rows, :, s] = -torch.inf
    return chosen


def partners(
    behaviour: Float[Tensor, "B K D"],
    words: Float[Tensor, "B S D"],
    present: Bool[Tensor, "B S"],
    method: Literal["optimal", "greedy", "soft"] = "optimal",
    temperature: float = 0.1,
) -> Float[Tensor, "B S D"]:
    """The behavioural interest that belongs to each explicit one, by cosine similarity.

    Args:
        method: as in `match_interests`; `soft` is the similarity-weighted mean of all behavioural interests.
        temperature: of the softmax over similarities (`soft`).
    """
    similarity = F.normalize(behaviour, dim=-1) @ F.normalize(words, dim=-1).transpose(1, 2)  # [B, K, S]
    if method == "soft":
        weights = (similarity / temperature).softmax(dim=1)
        return weights.transpose(1, 2) @ behaviour
    chosen = match_interests(similarity, present, method)
    return behaviour.gather(1, chosen[..., None].expand(-1, -1, behaviour.shape[-1]))
