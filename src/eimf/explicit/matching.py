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
"""If there are more assignments than this, `optimal` matching uses `greedy`: with 4 explicit interests (the most that a
label has), if there are more than 10 behavioural ones."""


def match_interests(
    similarity: Float[Tensor, "B K S"],
    present: Bool[Tensor, "B S"],
    method: Literal["optimal", "greedy"] = "optimal",
) -> Int[Tensor, "B S"]:
    """Assign a different behavioural interest to each explicit one, so that the sum of similarities is large.

    `optimal` finds the best assignment. It tries all of them at once, since K and S are small (above
    `MAX_PERMUTATIONS` it uses `greedy`). With more explicit interests than behavioural ones, each explicit interest
    that is left takes its most similar behavioural one.

    Returns:
        The behavioural interest of each explicit one; meaningless where `present` is false.
    """
    batch, n_behavioural, n_explicit = similarity.shape
    n_pairs = min(n_behavioural, n_explicit)
    similarity = similarity.detach().masked_fill(~present[:, None], 0.0)
    if n_explicit > n_behavioural:  # a penalty large enough that absent interests are matched last
        similarity = torch.where(present[:, None], similarity, -1 - 2 * n_pairs * similarity.abs().amax())
    if method == "optimal" and perm(max(n_behavioural, n_explicit), n_pairs) <= MAX_PERMUTATIONS:
        # All one-to-one assignments of the smaller set to members of the larger one.
        table = torch.tensor(
            list(permutations(range(max(n_behavioural, n_explicit)), n_pairs)), device=similarity.device
        )  # [A, few]
        own = torch.arange(n_pairs, device=similarity.device).expand_as(table)
        if n_explicit <= n_behavioural:
            return table[similarity[:, table, own].sum(dim=2).argmax(dim=1)]
        best = table[
            similarity[:, own, table].sum(dim=2).argmax(dim=1)
        ]  # [B, K]: explicit interest of each behavioural one
        return similarity.argmax(dim=1).scatter(1, best, own[:1].expand_as(best))
    remaining = similarity.masked_fill(~present[:, None], -torch.inf)
    chosen = similarity.argmax(dim=1)
    rows = torch.arange(batch, device=similarity.device)
    for _ in range(n_pairs):
        best = remaining.flatten(1).argmax(dim=1)
        k, s = best // n_explicit, best % n_explicit
        valid = remaining[rows, k, s] > -torch.inf
        chosen[rows[valid], s[valid]] = k[valid]
        remaining[rows, k] = -torch.inf
        remaining[rows, :, s] = -torch.inf
    return chosen


def partners(
    behaviour: Float[Tensor, "B K D"],
    words: Float[Tensor, "B S D"],
    present: Bool[Tensor, "B S"],
    method: Literal["optimal", "greedy", "soft"] = "optimal",
    temperature: float = 0.1,
) -> Float[Tensor, "B S D"]:
    """The behavioural interest that is matched with each explicit one, by cosine similarity.

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
