"""MIND: behaviour-to-interest dynamic routing (Li et al., CIKM 2019, arXiv 1904.08030)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from eimf.backbones.base import Backbone, BackboneConfig, Interests, route
from eimf.backbones.dropout import Dropout
from eimf.core.options import option


@dataclass(frozen=True)
class MINDConfig(BackboneConfig):
    """Options of MIND."""

    n_interests: int = option(4, low=1)
    """K (4 in ComiRec's comparison)."""
    iterations: int = option(3, low=1)
    """Routing iterations (3)."""
    logit_std: float = option(1.0, low=0.0)
    """Standard deviation of the initial routing logits (1.0)."""
    routing_seed: int = option(0, low=0)
    """Seed of the initial routing logits."""
    relu: bool = True
    """A dense ReLU layer on the capsules, as in the public implementation."""
    dropout: float = option(0.0, low=0.0, high=0.95)
    """Dropout of the history's item vectors (none)."""


class MIND(Backbone):
    """One bilinear map S shared by all positions and interests; symmetry is broken by random initial logits.

    Deviations: the logits are drawn once from a seeded normal and kept as a buffer, where the paper draws them
    anew for every user and pass, so that evaluation is deterministic; K does not adapt to the history's length
    (section 4.2.3), as in ComiRec's and REMI's implementations.
    """

    config = MINDConfig
    routes = True
    logits: Tensor

    def __init__(
        self,
        n_items: int,
        max_len: int,
        embed_dim: int = 64,
        normalize: bool = False,
        init_std: float = 0.05,
        n_interests: int = 4,
        iterations: int = 3,
        logit_std: float = 1.0,
        routing_seed: int = 0,
        relu: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(n_items, max_len, embed_dim, normalize, init_std)
        self.n_interests, self.iterations = n_interests, iterations
        self.bilinear = nn.Linear(embed_dim, embed_dim, bias=False)
        generator = torch.Generator().manual_seed(routing_seed)
        self.register_buffer("logits", torch.randn(n_interests, max_len, generator=generator) * logit_std)
        self.dense = nn.Linear(embed_dim, embed_dim) if relu else None
        self.dropout = Dropout(dropout)

    def extract(self, history: Int[Tensor, "B L"]) -> Interests:
        batch, length = history.shape
        votes = self.bilinear(self.dropout(self.item_embedding(history)))  # [B, L, D]
        mask = (history != 0)[:, None].to(votes.dtype)
        logits = self.logits[:, -length:].to(votes.dtype).expand(batch, -1, -1)
        interests = route(votes, logits, mask, self.iterations)
        if self.dense is not None:
            interests = interests._replace(vectors=F.relu(self.dense(interests.vectors)))
        return interests
