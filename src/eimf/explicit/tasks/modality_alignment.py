"""Modality alignment: makes matched behavioural and explicit interests similar."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from eimf.explicit.matching import partners
from eimf.explicit.tasks.base import Step, Task


class AlignModalities(Task):
    """Makes each explicit interest and its behavioural partner similar.

    Args:
        loss: `infonce`: other users' interests are the negatives; `cosine` or `mse`: the distance within pairs.
        matching: how behavioural and explicit interests are matched, see `eimf.explicit.matching.partners`.
        temperature: of InfoNCE, and of soft matching.
    """

    name = "modality_alignment"

    def __init__(
        self,
        text_dim: int,
        embed_dim: int,
        loss: Literal["infonce", "cosine", "mse"] = "infonce",
        matching: Literal["optimal", "greedy", "soft"] = "optimal",
        temperature: float = 0.1,
    ) -> None:
        super().__init__(text_dim, embed_dim)
        self.loss, self.temperature = loss, temperature
        self.matching: Literal["optimal", "greedy", "soft"] = matching

    def forward(self, step: Step) -> Float[Tensor, ""]:
        assert step.samples is not None
        assert step.labelled is not None
        assert step.adapted is not None
        mapped, present, user = step.adapted, step.samples.alignable, step.samples.user_idx
        partner = partners(step.labelled.vectors, mapped, present, self.matching, self.temperature)[present]
        words, owner = mapped[present], user[:, None].expand_as(present)[present]
        if len(words) == 0:
            return mapped.sum() * 0.0
        if self.loss == "infonce":
            return contrast(partner, words, owner, self.temperature)
        if self.loss == "cosine":
            return (1 - F.cosine_similarity(partner, words, dim=-1)).mean()
        return F.mse_loss(partner, words)


def contrast(
    behaviour: Float[Tensor, "P D"], words: Float[Tensor, "P D"], user: Int[Tensor, " P"], temperature: float
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE over matched pairs; other users' partners are the negatives.

    A user's own other interests are neither positive nor negative.
    """
    if len(user) == 0:
        return behaviour.sum() * 0.0
    logits = F.normalize(behaviour, dim=-1) @ F.normalize(words, dim=-1).T / temperature
    own = (user[:, None] == user[None]) & ~torch.eye(len(user), dtype=torch.bool, device=user.device)
    logits = logits.masked_fill(own, -torch.inf)
    target = torch.arange(len(user), device=user.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
