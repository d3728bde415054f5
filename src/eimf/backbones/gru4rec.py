"""GRU4Rec: a recurrent network over the history (Hidasi et al., ICLR 2016, arXiv 1511.06939), one interest."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eimf.backbones.base import CausalBackbone
from eimf.backbones.dropout import Dropout
from eimf.config.schema import BackboneConfig
from eimf.core.options import option


@dataclass(frozen=True)
class GRU4RecConfig(BackboneConfig):
    """Options of GRU4Rec."""

    name: str = "gru4rec"
    hidden_size: int = option(64, low=1)
    """Width of the GRU's state (the paper: 100 to 1000; here as embed_dim)."""
    layers: int = option(1, low=1)
    """Stacked GRU layers (1)."""
    dropout: float = option(0.2, low=0.0, high=0.95)
    """Dropout of the item vectors that enter the GRU."""


class GRU4Rec(CausalBackbone):
    """The state after the last item, mapped to the item space.

    Deviation: it is trained on user histories with the configured loss, not on session-parallel batches with BPR or
    TOP1.
    """

    Config = GRU4RecConfig
    config: GRU4RecConfig

    def __init__(self, n_items: int, max_len: int = 20, config: GRU4RecConfig | None = None, **options: Any) -> None:
        super().__init__(n_items, max_len, config, **options)
        embed_dim, config = self.embed_dim, self.config
        self.gru = nn.GRU(embed_dim, config.hidden_size, num_layers=config.layers, batch_first=True)
        self.output = nn.Linear(config.hidden_size, embed_dim)
        self.dropout = Dropout(config.dropout)

    def states(self, history: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        length = history.shape[1]
        # Padding would change the GRU's state. So shift each history to the left, run the GRU, and shift back.
        padding = (history == 0).sum(dim=1, keepdim=True)
        steps = torch.arange(length, device=history.device)
        left_aligned = history.gather(1, (steps + padding).clamp(max=length - 1))
        hidden, _ = self.gru(self.dropout(self.item_embedding(left_aligned)))
        back = (steps - padding).clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1])
        return self.output(hidden.gather(1, back))
