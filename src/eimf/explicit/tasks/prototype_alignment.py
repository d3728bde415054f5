"""Modality alignment of the whole catalogue: behavioural interest p attends to the items of semantic prototype p.

The matching is the same for all users (see `eimf.explicit.prototypes`), so it also holds for users without labels.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eimf.explicit.tasks.base import Step, Task


class AlignPrototypes(Task):
    """Supervises the routing of all training samples; see `route_to_prototypes`.

    Args:
        of_item: prototype of each item, -1 where there is none.
        temperature: of the routing shares.
    """

    name = "prototype_alignment"
    uses_batch = True
    every_step = True
    of_item: Tensor

    def __init__(
        self, text_dim: int, embed_dim: int, of_item: Int[Tensor, " I_plus_1"], temperature: float = 1.0
    ) -> None:
        super().__init__(text_dim, embed_dim)
        self.register_buffer("of_item", of_item, persistent=False)
        self.temperature = temperature

    def forward(self, step: Step) -> Float[Tensor, ""]:
        shares = step.interests.item_shares()
        if shares is None or step.history is None:
            return step.interests.vectors.sum() * 0.0
        return route_to_prototypes(shares, self.of_item[step.history], self.temperature)


def route_to_prototypes(
    shares: Float[Tensor, "B K L"], prototype: Int[Tensor, "B L"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Cross-entropy between the share of each interest in an item and the item's prototype.

    Args:
        shares: how much of each position belongs to each interest, see `Interests.item_shares`; 0 at padding.
        prototype: number of each item's prototype, below K; -1 where there is none, or at padding.
        temperature: the shares are raised to the power of 1 / temperature and divided by their sum.
    """
    shares = shares.float()  # small shares have the largest gradients
    known = (prototype >= 0) & (shares.sum(dim=1) > 0)
    if not known.any():
        return shares.sum() * 0.0
    logits = shares.clamp(min=1e-24).log().transpose(1, 2)[known] / temperature  # [N, K]
    return torch.nn.functional.cross_entropy(logits, prototype[known])
