"""The base of auxiliary tasks: each is a loss of a training step."""

from typing import ClassVar, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from eimf.backbones.base import Backbone, Interests
from eimf.core.errors import ConfigError
from eimf.data.batch import LabelledSamples
from eimf.losses.base import Loss


class Step(NamedTuple):
    """The inputs of a task at a training step.

    Shapes: B training samples, M labelled samples, K behavioural interests, S explicit interests, D dimensions.
    """

    backbone: Backbone
    loss: Loss
    """The recommendation loss."""
    interests: Interests
    """Of the batch."""
    history: Int[Tensor, "B L"] | None
    """Of the batch; None for samples of every position of whole sequences."""
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
    """Name of the loss in the logs."""
    uses_batch: ClassVar[bool] = False
    """Needs no labelled samples."""
    every_step: ClassVar[bool] = False
    """Is computed at every training step, not only at those with labelled samples."""

    def __init__(self, text_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.text_dim, self.embed_dim = text_dim, embed_dim

    def forward(self, step: Step) -> Float[Tensor, ""]:
        """The loss, not yet weighted, in nats."""
        raise ConfigError(f"{type(self).__name__}: has no method forward(step); a task must define it.")
