"""Softmax over the whole catalogue."""

from jaxtyping import Float, Int
from torch import Tensor

from eimf.backbones.base import Items
from eimf.losses.base import Loss
from eimf.losses.kernels import full_softmax


class FullSoftmax(Loss):
    """Cross-entropy of the target among all items: exact, with bounded memory."""

    def predict(self, backbone: Items, vectors: Float[Tensor, "B K D"], target: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        items = backbone.item_vectors()
        return full_softmax(self.read_out(vectors, items[target]), items, target)
