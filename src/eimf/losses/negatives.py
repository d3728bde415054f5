"""Distributions that negative items are sampled from, and their log probabilities for the log-Q correction."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eimf.core.errors import ConfigError


class NegativeSampler(nn.Module):
    """Samples items with replacement; the padding item 0 is never sampled.

    Args:
        kind: `uniform`; `log_uniform`, P(i) = log((i + 1) / i) / log(I + 1), similar to the training frequency if ids
            are sorted by it; `frequency`, the training frequency plus one for every item, which needs `observe`.
    """

    log_q: Float[Tensor, " I_plus_1"] | None
    cumulative: Float[Tensor, " I"] | None

    def __init__(self, kind: Literal["uniform", "log_uniform", "frequency"]) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("log_q", None, persistent=False)
        self.register_buffer("cumulative", None, persistent=False)

    def observe(self, item_counts: Int[Tensor, " I_plus_1"]) -> None:
        """Receive the number of training interactions of each item (entry 0 is unused)."""
        if self.kind == "frequency":
            q = item_counts[1:].double() + 1
            self._set(q / q.sum())

    def _set(self, q: Float[Tensor, " I"]) -> None:
        none = torch.full((1,), -torch.inf, dtype=torch.float64, device=q.device)
        self.log_q = torch.cat([none, q.log()]).float()
        self.cumulative = q.cumsum(0)

    def log_probabilities(self, n_items: int, device: torch.device) -> Float[Tensor, " I_plus_1"] | None:
        """Log sampling probability of every item; None for uniform sampling, where the correction cancels.

        Raises:
            ConfigError: the frequencies of items are unknown.
        """
        if self.kind == "uniform":
            return None
        if self.log_q is None or (self.kind != "frequency" and len(self.log_q) != n_items + 1):
            if self.kind == "frequency":
                raise ConfigError(
                    "loss: this loss needs the frequencies of items; train with a data module that has item_counts, "
                    "or call loss.observe(item_counts) before."
                )
            ids = torch.arange(1, n_items + 1, dtype=torch.float64)
            self._set(torch.log1p(1 / ids) / math.log(n_items + 1))
        if self.log_q is not None and self.log_q.device != device:
            self.to(device)
        return self.log_q

    def sample(self, n: int, n_items: int, device: torch.device) -> Int[Tensor, " n"]:
        """Sample n items with torch's global generator."""
        if self.kind == "uniform":
            return torch.randint(1, n_items + 1, (n,), device=device)
        uniform = torch.rand(n, device=device, dtype=torch.float64)
        if self.kind == "log_uniform":
            items = torch.exp(uniform * math.log(n_items + 1)).long()
        else:
            self.log_probabilities(n_items, device)
            assert self.cumulative is not None
            items = torch.searchsorted(self.cumulative, uniform, right=True) + 1
        return items.clamp(1, n_items)  # guards against rounding at the upper end
