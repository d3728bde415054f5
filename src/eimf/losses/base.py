"""The base of training losses: interests and targets in, named terms out.

Shapes: B samples, K interests, L positions, D dimensions, I items, N negatives. Every loss is the mean over the
batch, in nats.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eimf.backbones.base import Backbone, Interests, Items
from eimf.config.schema import LossConfig
from eimf.core.errors import ConfigError
from eimf.core.options import take_options
from eimf.losses.functions import read_out, routing_regularisation
from eimf.losses.negatives import NegativeSampler


class Loss(nn.Module):
    """Base of all losses. A subclass has a `Config` and the method `predict`.

    Args:
        config: the options, an object of the class's `Config`.
        options: the options as plain arguments, such as `temperature=0.07`.

    Raises:
        ConfigError: an option is unknown or out of range.
    """

    Config: ClassVar[type[LossConfig]] = LossConfig
    dense: ClassVar[bool] = False
    """Whether every step has gradients for all items, so that they cannot be sparse."""
    config: Any
    """An object of the class's `Config`."""

    def __init__(self, config: LossConfig | None = None, **options: Any) -> None:
        super().__init__()
        self.config = take_options(type(self).Config, config, options)

    def observe(self, item_counts: Int[Tensor, " I_plus_1"]) -> None:
        """Receive the number of training interactions of each item, before training. Most losses ignore it."""

    def forward(
        self,
        backbone: Backbone,
        interests: Interests,
        history: Int[Tensor, "B L"] | None,
        target: Int[Tensor, " B"],
    ) -> dict[str, Float[Tensor, ""]]:
        """Named loss terms, already weighted. Training minimises their sum.

        Args:
            history: the items that `interests.routing` refers to; None without routing.
        """
        terms = {self.config.name: self.predict(backbone, interests.vectors, target)}
        if self.config.routing_weight > 0 and interests.routing is not None and history is not None:
            terms["routing"] = self.config.routing_weight * routing_regularisation(interests.routing, history != 0)
        return terms

    def predict(self, backbone: Items, vectors: Float[Tensor, "B K D"], target: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """The loss of predicting targets from any K vectors per sample (also used for explicit interests)."""
        raise ConfigError(f"{type(self).__name__}: has no method predict(...); a loss must define it.")

    def read_out(self, vectors: Float[Tensor, "B K D"], truth: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """One vector per sample: its interests combined by label-aware attention, divided by the temperature."""
        return read_out(vectors, truth, self.config.readout_power) / self.config.temperature

    def rivals(self, vectors: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"] | None:
        """The vectors that compete for the other items (`loss.compete=best`); None if only the read-out does."""
        competes = self.config.compete == "best" and vectors.shape[1] > 1
        return vectors / self.config.temperature if competes else None


class SampledLoss(Loss):
    """Base of losses with sampled negatives. All samples of a batch share the negatives."""

    def __init__(self, config: LossConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.sampler = NegativeSampler(self.config.sampler)

    def observe(self, item_counts: Int[Tensor, " I_plus_1"]) -> None:
        self.sampler.observe(item_counts)

    def sample(
        self, backbone: Items, vectors: Float[Tensor, "B K D"], target: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"], Float[Tensor, "N D"], Int[Tensor, " N"]]:
        """Read-out vectors, target vectors, vectors of sampled items, and the sampled items."""
        negatives = self.sampler.sample(self.config.n_negatives, backbone.n_items, target.device)
        both = backbone.item_vectors(torch.cat([target, negatives]))  # one look-up, so that there is one gradient
        truth, negative = both.split([len(target), len(negatives)])
        return self.read_out(vectors, truth), truth, negative, negatives
