"""What an auxiliary task is: a loss of one training step with labelled samples."""

from typing import ClassVar, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from eimf.backbones.base import Backbone, Interests
from eimf.data.batch import LabelledSamples
from eimf.losses.base import Loss


class Step(NamedTuple):
    """What a task sees of a training step.

    Shapes: B training samples, M labelled samples, K behavioural interests, S explicit interests, D dimensions.
    """

    backbone: Backbone
    loss: Loss
    """The recommendation loss."""
    interests: Interests
    """Of the batch."""
    target: Int[Tensor, " B"]
    """Of the batch."""
    samples: LabelledSamples | None
    """Samples of labelled users; None where no task needs them."""
    labelled: Interests | None
    """The backbone's interests of `samples`."""
    adapted: Float[Tensor, "M S D"] | None
    """The words of `samples`, mapped into the space of behavioural interests."""


class Task(nn.Module):
    """Base of all auxiliary tasks.

    Args:
        text_dim: D_text, size of the text vectors.
        embed_dim: D, size of interest vectors.
    """

    name: ClassVar[str]
    """Under which its loss is logged."""
    uses_batch: ClassVar[bool] = False
    """Needs no labelled samples."""

    def __init__(self, text_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.text_dim, self.embed_dim = text_dim, embed_dim

    def forward(self, step: Step) -> Float[Tensor, ""]:
        """The loss, not yet weighted, in nats."""
        raise NotImplementedError
