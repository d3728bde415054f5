"""ComiRec-DR: interests by dynamic routing (Cen et al., KDD 2020, arXiv 2005.09347, section 3.1)."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from eimf.backbones.base import Backbone, Interests, MultiInterestConfig, route
from eimf.backbones.dropout import Dropout
from eimf.core.options import option


@dataclass(frozen=True)
class ComiRecDRConfig(MultiInterestConfig):
    """Options of ComiRec-DR."""

    name: str = "comirec_dr"
    iterations: int = option(3, low=1)
    """Routing iterations (ComiRec: 3)."""
    per_position: bool = True
    """A map for every position and interest, as in the authors' code; false: one for every interest, as in the
    paper's text."""


class ComiRecDR(Backbone):
    """Every item votes for every interest through a linear map; routing logits start at zero.

    Deviation: positions count back from the most recent item (see ComiRec-SA).

    Interests are shorter than 1: give the loss a temperature below 1, as the experiment files do (0.2).
    """

    Config = ComiRecDRConfig
    config: ComiRecDRConfig
    routes = True

    def __init__(self, n_items: int, max_len: int = 20, config: ComiRecDRConfig | None = None, **options: Any) -> None:
        super().__init__(n_items, max_len, config, **options)
        embed_dim, config = self.embed_dim, self.config
        maps = torch.randn(max_len if config.per_position else 1, embed_dim, config.n_interests * embed_dim)
        self.maps = nn.Parameter(maps * embed_dim**-0.5)
        self.dropout = Dropout(config.dropout)

    def extract(self, history: Int[Tensor, "B L"]) -> Interests:
        batch, length = history.shape
        n_interests = self.config.n_interests
        items = self.dropout(self.item_embedding(history))  # [B, L, D]
        maps = self.maps[-length:] if len(self.maps) > 1 else self.maps.expand(length, -1, -1)
        votes = torch.bmm(items.transpose(0, 1), maps)  # [L, B, K*D]
        votes = votes.view(length, batch, n_interests, self.embed_dim).permute(1, 2, 0, 3)
        mask = (history != 0)[:, None].to(votes.dtype)
        return route(votes, votes.new_zeros(batch, n_interests, length), mask, self.config.iterations)
