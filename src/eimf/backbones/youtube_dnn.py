"""YouTubeDNN's candidate generator: mean pooling (Covington et al., RecSys 2016), one interest.

With `backbone.normalize=true loss.temperature=0.07` it is the cosine softmax baseline. Several papers found it better
than multi-interest models that were trained without cosine softmax.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from eimf.backbones.base import Backbone, Interests
from eimf.backbones.dropout import Dropout
from eimf.config.schema import BackboneConfig
from eimf.core.options import option


@dataclass(frozen=True)
class YouTubeDNNConfig(BackboneConfig):
    """Options of YouTubeDNN."""

    name: str = "youtube_dnn"
    layers: int = option(1, low=0)
    """Dense layers on the pooled history, ReLU between them (1 linear layer in ComiRec's comparison)."""
    dropout: float = option(0.0, low=0.0, high=0.95)
    """Dropout of the history's item vectors (none)."""


class YouTubeDNN(Backbone):
    """Mean of the history's item vectors, then dense layers. No user features, as our data have none."""

    Config = YouTubeDNNConfig
    config: YouTubeDNNConfig

    def __init__(self, n_items: int, max_len: int = 20, config: YouTubeDNNConfig | None = None, **options: Any) -> None:
        super().__init__(n_items, max_len, config, **options)
        embed_dim, config = self.embed_dim, self.config
        self.tower = nn.ModuleList(nn.Linear(embed_dim, embed_dim) for _ in range(config.layers))
        self.dropout = Dropout(config.dropout)

    def extract(self, history: Int[Tensor, "B L"]) -> Interests:
        items = self.dropout(self.item_embedding(history))
        count = (history != 0).sum(dim=1, keepdim=True).clamp(min=1)
        pooled = items.sum(dim=1) / count
        for depth, layer in enumerate(self.tower):
            pooled = layer(F.relu(pooled) if depth else pooled)
        return Interests(pooled[:, None])
