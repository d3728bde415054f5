"""SASRec: causal self-attention over the history (Kang & McAuley, ICDM 2018, arXiv 1808.09781), one interest."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eimf.backbones.base import CausalBackbone, Interests
from eimf.backbones.dropout import Dropout
from eimf.config.schema import BackboneConfig
from eimf.core.options import option


@dataclass(frozen=True)
class SASRecConfig(BackboneConfig):
    """Options of SASRec."""

    name: str = "sasrec"
    layers: int = option(2, low=1)
    """Self-attention blocks (2)."""
    heads: int = option(1, low=1)
    """Attention heads (1)."""
    dropout: float = option(0.5, low=0.0, high=0.95)
    """Dropout of inputs, attention and feed-forward (0.5 on Amazon, 0.2 on MovieLens-1M)."""


class _Block(nn.Module):
    """One block, as in the authors' code: the residual connection adds the normalised input, not the raw one."""

    def __init__(self, embed_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key_value = nn.Linear(embed_dim, 2 * embed_dim)
        self.feed_norm = nn.LayerNorm(embed_dim)
        self.feed = nn.Sequential(
            nn.Linear(embed_dim, embed_dim),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(embed_dim, embed_dim),
            Dropout(dropout),
        )

    def forward(self, x: Float[Tensor, "B L D"], allowed: Bool[Tensor, "B 1 N L"], last: int) -> Float[Tensor, "B N D"]:
        """States of the `last` (N) positions, which attend to the `allowed` ones."""

        def split(value: Tensor) -> Tensor:
            return value.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, L, D/heads]

        normed = self.attention_norm(x[:, -last:])
        key, value = self.key_value(x).chunk(2, dim=-1)
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            split(self.query(normed)), split(key), split(value), attn_mask=allowed, dropout_p=rate
        )
        normed = self.feed_norm(normed + mixed.transpose(1, 2).flatten(2))
        return normed + self.feed(normed)


class SASRec(CausalBackbone):
    """Transformer blocks with learned positions, counted back from the most recent item."""

    Config = SASRecConfig
    config: SASRecConfig

    def __init__(self, n_items: int, max_len: int = 20, config: SASRecConfig | None = None, **options: Any) -> None:
        super().__init__(n_items, max_len, config, **options)
        embed_dim, config = self.embed_dim, self.config
        self.position = nn.Parameter(torch.randn(max_len, embed_dim) * config.init_std)
        self.dropout = Dropout(config.dropout)
        blocks = (_Block(embed_dim, config.heads, config.dropout) for _ in range(config.layers))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(embed_dim)

    def states(self, history: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        return self._last_states(history, history.shape[1])

    def extract(self, history: Int[Tensor, "B L"]) -> Interests:
        return Interests(self._last_states(history, 1))

    def _last_states(self, history: Int[Tensor, "B L"], last: int) -> Float[Tensor, "B {last} D"]:
        """States of the last positions. The last block does not compute any other."""
        length = history.shape[1]
        item = history != 0
        causal = torch.ones(length, length, dtype=torch.bool, device=history.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=history.device)
        # A padding position attends to itself: a row without any allowed position would be NaN.
        allowed = (causal & (item[:, None, :] | itself))[:, None]  # [B, 1, L, L]
        x = self.item_embedding(history) * self.embed_dim**0.5 + self.position[-length:]
        x = self.dropout(x) * item[..., None]
        *lower, top = self.blocks
        for block in lower:
            x = block(x, allowed, length) * item[..., None]
        return self.norm(top(x, allowed[:, :, -last:], last) * item[:, -last:, None])
