"""What every backbone is: item ids of a history in, K interest vectors out.

Shapes: B users, L positions (left-padded with item 0, the most recent item last), K interests, D dimensions,
I items.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from eimf.core.options import option


@runtime_checkable
class Items(Protocol):
    """What losses read of a backbone: its item vectors."""

    n_items: int

    def item_vectors(self, items: Int[Tensor, "*N"] | None = None) -> Float[Tensor, "*N D"]: ...


class Interests(NamedTuple):
    """What a backbone makes of a batch of histories."""

    vectors: Float[Tensor, "B K D"]
    """Interest vectors; the score of an item is the largest inner product with any of them."""
    routing: Float[Tensor, "B K L"] | None = None
    """Weight of each position in each interest, 0 at padding; None where a backbone has no such notion."""

    def split(self, sizes: list[int]) -> "list[Interests]":
        """Parts of the batch."""
        routings = self.routing.split(sizes) if self.routing is not None else [None] * len(sizes)
        return [Interests(*parts) for parts in zip(self.vectors.split(sizes), routings, strict=True)]


@dataclass(frozen=True)
class BackboneConfig:
    """Options common to all backbones."""

    name: str = "comirec_sa"
    """A key of `eimf.backbones.BACKBONES`."""
    embed_dim: int = option(64, low=1)
    """D: size of item and interest vectors (64 in ComiRec, MIND's public code and REMI)."""
    normalize: bool = False
    """Compare directions only: interests and items are scaled to length 1. Wants a small `loss.temperature`."""
    init_std: float = option(0.05, low=0.0)
    """Standard deviation of the initial item vectors."""


class Backbone(nn.Module):
    """Base of all backbones. A subclass sets `config`, takes its fields as plain arguments and has `extract`."""

    config: ClassVar[type[BackboneConfig]] = BackboneConfig
    causal: ClassVar[bool] = False
    """Has `states`: a vector for every position that depends on earlier positions only."""
    routes: ClassVar[bool] = False
    """`extract` returns routing weights, with a gradient."""
    trainable: ClassVar[bool] = True
    """Learns by gradient descent."""

    def __init__(
        self, n_items: int, max_len: int, embed_dim: int = 64, normalize: bool = False, init_std: float = 0.05
    ) -> None:
        super().__init__()
        self.n_items, self.max_len, self.embed_dim, self.normalize = n_items, max_len, embed_dim, normalize
        self.item_embedding = nn.Embedding(n_items + 1, embed_dim, padding_idx=0)
        with torch.no_grad():
            self.item_embedding.weight.normal_(0.0, init_std)
            self.item_embedding.weight[0] = 0.0

    @classmethod
    def build(cls, config: BackboneConfig, n_items: int, max_len: int) -> "Backbone":
        """Make the backbone that a configuration describes."""
        options = {item.name: getattr(config, item.name) for item in fields(config) if item.name != "name"}
        return cls(n_items=n_items, max_len=max_len, **options)

    def forward(self, history: Int[Tensor, "B L"]) -> Interests:
        """Interests of histories of at most `max_len` items."""
        if history.shape[1] > self.max_len:
            history = history[:, -self.max_len :]
        interests = self.extract(history)
        if self.normalize:
            interests = interests._replace(vectors=F.normalize(interests.vectors, dim=-1))
        return interests

    def extract(self, history: Int[Tensor, "B L"]) -> Interests:
        """The backbone's own part of `forward`."""
        raise NotImplementedError

    def item_vectors(self, items: Int[Tensor, "*N"] | None = None) -> Float[Tensor, "*N D"]:
        """Vectors that interests are compared with: of the given items, or the whole table with padding row 0."""
        vectors = self.item_embedding.weight if items is None else self.item_embedding(items)
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def observe(self, item_counts: Int[Tensor, " I_plus_1"]) -> None:
        """Hear how often each item occurs in the training interactions, before training. Most have no use for it."""


class CausalBackbone(Backbone):
    """A single-interest backbone whose interest is its state at the most recent position."""

    causal = True

    def states(self, history: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """A vector for every position, made from that position and earlier ones; arbitrary at padding."""
        raise NotImplementedError

    def extract(self, history: Int[Tensor, "B L"]) -> Interests:
        return Interests(self.states(history)[:, -1:])


def squash(vectors: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """Capsule non-linearity: keeps the direction, maps the length n to n^2 / (1 + n^2) (MIND eq. 7)."""
    square = vectors.square().sum(-1, keepdim=True)
    return vectors * (square / (1.0 + square) / torch.sqrt(square + 1e-9))


def route(
    votes: Float[Tensor, "B *K L D"],
    logits: Float[Tensor, "B K L"],
    mask: Float[Tensor, "B 1 L"],
    iterations: int,
) -> Interests:
    """Dynamic routing of position votes to K interest capsules (ComiRec algorithm 1; Sabour et al. 2017).

    The softmax runs over the interests: each position shares itself out among them. Padding is masked after it.
    The interests have the gradient of the last sum alone, as in the authors' code. The weights have that of the last
    agreement, for losses of the routing; without such a loss it is not followed.

    Args:
        votes: what each position says for each interest; [B, L, D] where it says the same for all, which saves memory
            traffic.
        logits: initial routing logits.
        mask: 1 at items, 0 at padding.
    """
    gather, agree = ("bkl,bld->bkd", "bld,bkd->bkl") if votes.ndim == 3 else ("bkl,bkld->bkd", "bkld,bkd->bkl")
    fixed = votes.detach()
    for step in range(1, iterations):
        with torch.no_grad():
            interests = squash(torch.einsum(gather, logits.softmax(dim=1) * mask, fixed))
        logits = logits.detach() + torch.einsum(agree, votes if step == iterations - 1 else fixed, interests)
    weights = logits.softmax(dim=1) * mask
    return Interests(squash(torch.einsum(gather, weights.detach(), votes)), weights)
