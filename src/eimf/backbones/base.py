"""The base of backbones: item ids of a history in, K interest vectors out.

Shapes: B users, L positions (left-padded with item 0, the most recent item last), K interests, D dimensions,
I items.
"""

import copy
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from eimf.config.schema import BackboneConfig
from eimf.core.errors import ConfigError
from eimf.core.options import option, take_options


@dataclass(frozen=True)
class MultiInterestConfig(BackboneConfig):
    """Options common to the backbones of several interests."""

    n_interests: int = option(4, low=1)
    """K (4 in ComiRec, and in its comparison with MIND)."""
    shared: float = option(0.0, low=0.0)
    """Beyond the papers: weight of the mean of a user's interests, which is added to each of them. So every interest
    depends on the whole history, and the scores of a user's interests have similar scales."""
    dropout: float = option(0.0, low=0.0, high=0.95)
    """Dropout of the history's item vectors (none in the papers)."""


@runtime_checkable
class Items(Protocol):
    """The part of a backbone that losses use: its item vectors."""

    n_items: int

    def item_vectors(self, items: Int[Tensor, "*N"] | None = None) -> Float[Tensor, "*N D"]: ...


class Interests(NamedTuple):
    """The output of a backbone for a batch of histories."""

    vectors: Float[Tensor, "B K D"]
    """Interest vectors; the score of an item is the largest inner product with any of them."""
    routing: Float[Tensor, "B K L"] | None = None
    """Weight of each position in each interest, 0 at padding; None if the backbone has no routing."""
    shares: Float[Tensor, "B K L"] | None = None
    """How much of each position belongs to each interest: sums to 1 over the interests, 0 at padding. None: the routing
    tells, see `item_shares`."""

    def item_shares(self) -> Float[Tensor, "B K L"] | None:
        """`shares`, or the routing divided by its sum over the interests; None if the backbone has no routing."""
        if self.shares is not None or self.routing is None:
            return self.shares
        return self.routing / self.routing.sum(dim=1, keepdim=True).clamp(min=1e-12)

    def split(self, sizes: list[int]) -> "list[Interests]":
        """Split the batch into parts of these sizes."""
        parts = ([None] * len(sizes) if part is None else part.split(sizes) for part in self)
        return [Interests(*part) for part in zip(*parts, strict=True)]


class Backbone(nn.Module):
    """Base of all backbones. A subclass has a `Config` and the method `extract`.

    Args:
        n_items: I, number of items; ids are 1 to I, and 0 is padding.
        max_len: L, number of most recent items that the model sees.
        config: the options, an object of the class's `Config`.
        options: the options as plain arguments, such as `n_interests=4`.

    Raises:
        ConfigError: an option is unknown or out of range.
    """

    Config: ClassVar[type[BackboneConfig]] = BackboneConfig
    causal: ClassVar[bool] = False
    """Has `states`: a vector for every position that depends on earlier positions only."""
    routes: ClassVar[bool] = False
    """`extract` returns routing weights, with a gradient."""
    trainable: ClassVar[bool] = True
    """Has parameters that are trained by gradient descent."""
    config: Any
    """An object of the class's `Config`."""

    def __init__(self, n_items: int, max_len: int = 20, config: BackboneConfig | None = None, **options: Any) -> None:
        super().__init__()
        self.config = config = take_options(type(self).Config, config, options)
        for name, value in (("n_items", n_items), ("max_len", max_len)):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{type(self).__name__}: {name} must be a whole number from 1, is {value!r}.")
        self.n_items, self.max_len, self.embed_dim = n_items, max_len, config.embed_dim
        if self.trainable:
            self.item_embedding = nn.Embedding(n_items + 1, config.embed_dim, padding_idx=0)
            with torch.no_grad():
                self.item_embedding.weight.normal_(0.0, config.init_std)
                self.item_embedding.weight[0] = 0.0

    def forward(self, history: Int[Tensor, "B L"]) -> Interests:
        """Interests of histories. Of a longer history, only the last `max_len` items are used.

        Raises:
            ConfigError: `extract` returns wrong shapes.
        """
        if history.shape[1] > self.max_len:
            history = history[:, -self.max_len :]
        interests = self.extract(history)
        self._check(interests, history)
        return interests._replace(vectors=self.finish(interests.vectors))

    def finish(self, vectors: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
        """What all backbones do with the vectors of `extract`: add the shared part, and scale them to length 1."""
        if getattr(self.config, "shared", 0.0) > 0:
            vectors = vectors + self.config.shared * vectors.mean(dim=1, keepdim=True)
        return F.normalize(vectors, dim=-1) if self.config.normalize else vectors

    def extract(self, history: Int[Tensor, "B L"]) -> Interests:
        """The part of `forward` that each backbone implements."""
        raise ConfigError(f"{type(self).__name__}: has no method extract(history); a backbone must define it.")

    def _check(self, interests: Interests, history: Tensor) -> None:
        vectors, routing, name = interests.vectors, interests.routing, type(self).__name__
        if vectors.ndim != 3 or len(vectors) != len(history) or vectors.shape[2] != self.embed_dim:
            raise ConfigError(
                f"{name}.extract: interest vectors must have the shape [B, K, D] = [{len(history)}, K, "
                f"{self.embed_dim}], have {list(vectors.shape)}."
            )
        if not self.routes:
            return
        wanted = (len(history), vectors.shape[1], history.shape[1])
        if routing is None or tuple(routing.shape) != wanted:
            found = "nothing" if routing is None else list(routing.shape)
            raise ConfigError(
                f"{name}.extract: with routes = True it must return routing weights [B, K, L] = {list(wanted)}, "
                f"returns {found}; return them, or set routes = False."
            )

    def item_vectors(self, items: Int[Tensor, "*N"] | None = None) -> Float[Tensor, "*N D"]:
        """Vectors of the given items, or of all items with padding in row 0. Interests are compared with them.

        A backbone whose `extract` returns the scores of all items, [B, K, I + 1], has none: D is 0.
        """
        vectors = self.item_embedding.weight if items is None else self.item_embedding(items)
        return F.normalize(vectors, dim=-1) if self.config.normalize else vectors

    def with_items(self, vectors: Float[Tensor, "N D"]) -> "Backbone":
        """A copy with N more items of these vectors, numbered from I + 1. All other weights are shared, not copied.

        Raises:
            ConfigError: the backbone has no item table.
        """
        if not self.trainable:
            raise ConfigError(f"backbone {self.config.name!r} has no item vectors to add to; use a trained backbone.")
        other = copy.copy(self)
        other._modules = dict(self._modules)
        rows = torch.cat([self.item_embedding.weight.detach(), vectors.to(self.item_embedding.weight)])
        other.item_embedding = nn.Embedding.from_pretrained(rows, padding_idx=0)
        other.n_items = self.n_items + len(vectors)
        return other

    def observe(self, item_counts: Int[Tensor, " I_plus_1"]) -> None:
        """Receive the number of training interactions of each item, before training. Most backbones ignore it."""

    def fit(self, items: Int[Tensor, " T"], offsets: Int[Tensor, " U_plus_1"]) -> None:
        """Receive the training items of all users, before training, for models without gradient descent.

        Args:
            items: those of user u are `items[offsets[u]:offsets[u + 1]]`, oldest first.
        """


class CausalBackbone(Backbone):
    """A single-interest backbone whose interest is its state at the most recent position."""

    causal = True

    def states(self, history: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """A vector for every position, computed from it and earlier positions only; arbitrary at padding."""
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

    The softmax is over interests: the weights of a position sum to 1. Padding is masked afterwards.
    As in the authors' code, interests get gradients only through the final weighted sum. The returned weights keep the
    gradient of the last agreement step, so that a loss on the routing can train it; without one, that path is unused.

    Args:
        votes: vector of each position for each interest; [B, L, D] if it is the same for all interests, which is
            faster.
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
