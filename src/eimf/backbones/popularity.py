"""Popularity: recommends the most frequent training items to every user. A simple baseline without training."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eimf.backbones.base import Backbone, Interests
from eimf.config.schema import BackboneConfig
from eimf.core.options import option


@dataclass(frozen=True)
class PopularityConfig(BackboneConfig):
    """Popularity has no options of its own."""

    name: str = "popularity"
    embed_dim: int = option(1, low=1, high=1)
    """One number for an item: its count."""


class Popularity(Backbone):
    """Every user has the one interest [1]; an item's vector is its count in the training interactions."""

    Config = PopularityConfig
    trainable = False
    counts: Tensor

    def __init__(self, n_items: int, max_len: int = 20, config: PopularityConfig | None = None, **options: Any) -> None:
        super().__init__(n_items, max_len, config, **options)
        self.register_buffer("counts", torch.zeros(n_items + 1, 1))

    def observe(self, item_counts: Int[Tensor, " I_plus_1"]) -> None:
        self.counts.copy_(item_counts[:, None])

    def extract(self, history: Int[Tensor, "B L"]) -> Interests:
        return Interests(self.counts.new_ones(history.shape[0], 1, 1))

    def item_vectors(self, items: Int[Tensor, "*N"] | None = None) -> Float[Tensor, "*N D"]:
        return self.counts if items is None else self.counts[items]
