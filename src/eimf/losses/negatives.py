"""Distributions that negative items are drawn from, and their log probabilities for the log-Q correction."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class NegativeSampler(nn.Module):
    """Draws items with replacement; the padding item 0 is never drawn.

    Args:
        kind: `uniform`; `log_uniform`, P(i) = log((i + 1) / i) / log(I + 1), which is near the frequency if ids are
            ranked by it; `frequency`, the training frequency with one added to every item.
        item_counts: occurrences of each item in the training interactions, entry 0 unused.
    """

    log_q: Float[Tensor, " I_plus_1"]
    cumulative: Tensor

    def __init__(
        self, kind: Literal["uniform", "log_uniform", "frequency"], item_counts: Int[Tensor, " I_plus_1"]
    ) -> None:
        super().__init__()
        self.kind, self.n_items = kind, len(item_counts) - 1
        ids = torch.arange(1, self.n_items + 1, dtype=torch.float64)
        if kind == "uniform":
            q = torch.full_like(ids, 1 / self.n_items)
        elif kind == "log_uniform":
            q = torch.log1p(1 / ids) / math.log(self.n_items + 1)
        else:
            q = item_counts[1:].double() + 1
            q = q / q.sum()
        log_q = torch.cat([torch.full((1,), -torch.inf, dtype=torch.float64), q.log()])
        self.register_buffer("log_q", log_q.float(), persistent=False)
        self.register_buffer("cumulative", q.cumsum(0) if kind == "frequency" else q[:0], persistent=False)

    def sample(self, n: int) -> Int[Tensor, " n"]:
        """Draw n items on the sampler's device, from torch's global generator."""
        device = self.log_q.device
        if self.kind == "uniform":
            return torch.randint(1, self.n_items + 1, (n,), device=device)
        uniform = torch.rand(n, device=device, dtype=torch.float64)
        if self.kind == "log_uniform":
            items = torch.exp(uniform * math.log(self.n_items + 1)).long()
        else:
            items = torch.searchsorted(self.cumulative, uniform, right=True) + 1
        return items.clamp(1, self.n_items)  # guards against rounding at the upper end
