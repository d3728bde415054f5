"""Training losses, as pure functions, and `RetrievalLoss`, which puts the chosen ones together.

Shapes: B samples, K interests, L positions, D dimensions, I items, N negatives. Every loss is the mean over the
batch, in nats.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eimf.backbones.base import Backbone, Interests, Items
from eimf.losses.functions import gbce, read_out, routing_regularisation
from eimf.losses.kernels import _rows_at_once, _Sampled, full_softmax
from eimf.losses.negatives import NegativeSampler


class RetrievalLoss(nn.Module):
    """The recommendation loss of a batch: read out the interests in view of the target, then the named loss.

    Args:
        name: which loss, see `eimf.config.LossConfig`; the other arguments are explained there too.
        item_counts: occurrences in the training interactions, for samplers and in-batch correction.
    """

    def __init__(
        self,
        name: Literal["full_softmax", "sampled_softmax", "in_batch", "gbce", "ihn"],
        item_counts: Int[Tensor, " I_plus_1"],
        readout_power: float = float("inf"),
        temperature: float = 1.0,
        n_negatives: int = 1280,
        sampler: Literal["uniform", "log_uniform", "frequency"] = "uniform",
        log_q: bool = True,
        gbce_t: float = 0.75,
        ihn_beta: float = 10.0,
        routing_weight: float = 0.0,
        chunk_mb: int = 4,
    ) -> None:
        super().__init__()
        self.name, self.power, self.temperature = name, readout_power, temperature
        self.n_negatives, self.log_q = n_negatives, log_q
        self.gbce_t, self.ihn_beta, self.routing_weight = gbce_t, ihn_beta, routing_weight
        self.max_bytes = chunk_mb * 2**20
        # In-batch negatives are training targets, so their distribution is the training frequency.
        self.sampler = NegativeSampler("frequency" if name == "in_batch" else sampler, item_counts)

    def forward(
        self,
        backbone: Backbone,
        interests: Interests,
        history: Int[Tensor, "B L"] | None,
        target: Int[Tensor, " B"],
    ) -> dict[str, Float[Tensor, ""]]:
        """Named loss terms, already weighted: their sum is what to minimise.

        Args:
            history: the items that `interests.routing` refers to; None where there is no routing.
        """
        terms = {self.name: self.predict(backbone, interests.vectors, target)}
        if self.routing_weight > 0 and interests.routing is not None and history is not None:
            terms["routing"] = self.routing_weight * routing_regularisation(interests.routing, history != 0)
        return terms

    def predict(self, backbone: Items, vectors: Float[Tensor, "B K D"], target: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """The named loss alone, of any K vectors that should have the target among their nearest items."""
        if self.name == "full_softmax":
            items = backbone.item_vectors()
            user = read_out(vectors, items[target], self.power) / self.temperature
            return full_softmax(user, items, target, self.max_bytes)
        if self.name == "in_batch":
            negatives, truth = target, backbone.item_vectors(target)
            negative = truth
        else:
            negatives = self.sampler.sample(self.n_negatives)
            both = backbone.item_vectors(torch.cat([target, negatives]))  # one look-up has one gradient to gather
            truth, negative = both.split([len(target), len(negatives)])
        user = read_out(vectors, truth, self.power) / self.temperature
        if self.name == "gbce":
            positive, scores = (user * truth).sum(dim=-1).float(), (user @ negative.T).float()
            return gbce(positive, scores, negatives == target[:, None], backbone.n_items, self.gbce_t)
        # A constant, as of uniform sampling, cancels.
        log_q = self.sampler.log_q if self.log_q and self.sampler.kind != "uniform" else None
        beta = self.ihn_beta if self.name == "ihn" else None
        rows = _rows_at_once(self.max_bytes, len(negatives))
        return _Sampled.apply(user, truth, negative, target, negatives, log_q, beta, rows)  # pyright: ignore[reportReturnType]
