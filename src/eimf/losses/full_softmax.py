"""Softmax over the whole catalogue."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eimf.backbones.base import Items
from eimf.losses.base import Loss
from eimf.losses.kernels import full_softmax, fused_loss


class FullSoftmax(Loss):
    """Cross-entropy of the target among all items: exact, with bounded memory."""

    dense = True

    def predict(self, backbone: Items, vectors: Float[Tensor, "B K D"], target: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        items = backbone.item_vectors()
        user, rivals = self.read_out(vectors, items[target]), self.rivals(vectors)
        if rivals is None:
            return full_softmax(user, items, target)
        # All items as negatives: the target itself counts once, as it is left out of them.
        others = torch.arange(1, len(items), device=items.device)
        return fused_loss(user, items[target], items[1:], target, others, rivals=rivals)
