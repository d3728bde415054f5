"""MIND: behaviour-to-interest dynamic routing (Li et al., CIKM 2019, arXiv 1904.08030)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from eimf.backbones.base import Backbone, Interests, MultiInterestConfig, route
from eimf.backbones.dropout import Dropout
from eimf.core.options import option


@dataclass(frozen=True)
class MINDConfig(MultiInterestConfig):
    """Options of MIND."""

    name: str = "mind"
    iterations: int = option(3, low=1)
    """Routing iterations (3)."""
    logit_std: float = option(0.1, low=1e-6)
    """Standard deviation of the initial routing logits (1 in the published model). Small ones leave the routing to the
    votes: 1 costs a tenth of Recall@20 on validation users of beauty."""
    relu: bool = False
    """A dense ReLU layer on the capsules, as in the published model. It holds all interests of a user in one orthant,
    and costs a fifth of Recall@20 on validation users of beauty."""


class MIND(Backbone):
    """One bilinear map S, shared by all positions and interests.

    The initial logits are sampled from a normal distribution, so that interests differ.

    Deviations: the logits are sampled once, with a fixed seed, and kept as a buffer, so that evaluation is
    deterministic. The paper samples them for every user and pass. They are smaller (`logit_std`), and the dense ReLU
    layer on the capsules is off (`relu`): docs/explanation/deviations.md has the values. K does not adapt to the
    history's length (section 4.2.3), as in ComiRec's and REMI's implementations.

    Interests are shorter than 1: give the loss a temperature below 1, as the experiment files do (0.2).
    """

    Config = MINDConfig
    config: MINDConfig
    routes = True
    logits: Tensor

    def __init__(self, n_items: int, max_len: int = 20, config: MINDConfig | None = None, **options: Any) -> None:
        super().__init__(n_items, max_len, config, **options)
        embed_dim, config = self.embed_dim, self.config
        self.bilinear = nn.Linear(embed_dim, embed_dim, bias=False)
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(config.n_interests, max_len, generator=generator)
        self.register_buffer("logits", config.logit_std * logits)
        self.dense = nn.Linear(embed_dim, embed_dim) if config.relu else None
        self.dropout = Dropout(config.dropout)

    def extract(self, history: Int[Tensor, "B L"]) -> Interests:
        batch, length = history.shape
        votes = self.bilinear(self.dropout(self.item_embedding(history)))  # [B, L, D]
        mask = (history != 0)[:, None].to(votes.dtype)
        logits = self.logits[:, -length:].to(votes.dtype).expand(batch, -1, -1)
        interests = route(votes, logits, mask, self.config.iterations)
        if self.dense is not None:
            interests = interests._replace(vectors=F.relu(self.dense(interests.vectors)))
        return interests
