"""Semantic prediction: explicit interests predict items, or behavioural interests predict explicit ones.

The paper names the task; how it is computed is our reading (docs/explanation/choices.md).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eimf.backbones.base import Backbone
from eimf.explicit.item_interests import ItemInterests
from eimf.explicit.matching import partners
from eimf.explicit.tasks.base import Step, Task
from eimf.losses.functions import read_out


class PredictNextItem(Task):
    """Explicit interests predict the target by the recommendation loss, as behavioural interests do.

    Args:
        frozen_items: train only the adapter with this loss, not the item vectors (beyond the paper).
    """

    name = "semantic_prediction"

    def __init__(self, text_dim: int, embed_dim: int, frozen_items: bool = False) -> None:
        super().__init__(text_dim, embed_dim)
        self.frozen_items = frozen_items

    def forward(self, step: Step) -> Float[Tensor, ""]:
        assert step.samples is not None
        assert step.adapted is not None
        mapped, allowed, target = step.adapted, step.samples.predictive, step.samples.target
        usable = allowed.any(dim=1)
        if not usable.any():
            return mapped.sum() * 0.0
        mapped, allowed, target = mapped[usable], allowed[usable], target[usable]
        items = _FrozenItems(step.backbone) if self.frozen_items else step.backbone
        # Hard read-out: the allowed interest with the highest score.
        scores = torch.einsum("bsd,bd->bs", mapped, items.item_vectors(target)).masked_fill(~allowed, -torch.inf)
        best = mapped[torch.arange(len(target), device=target.device), scores.argmax(dim=1)]
        return step.loss.predict(items, best[:, None], target)


class _FrozenItems:
    """The item vectors of a backbone, without gradients."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.n_items = backbone, backbone.n_items

    def item_vectors(self, items: Int[Tensor, "*N"] | None = None) -> Float[Tensor, "*N D"]:
        return self.backbone.item_vectors(items).detach()


class PredictInterest(Task):
    """Behavioural interests predict the vector and the cluster of the user's explicit ones.

    Args:
        centres: clusters of all explicit interests.
        matching: how behavioural and explicit interests are matched, see `eimf.explicit.matching.partners`.
        temperature: of the softmax over clusters, and of soft matching.
    """

    name = "semantic_prediction"
    centres: Tensor

    def __init__(
        self,
        text_dim: int,
        embed_dim: int,
        centres: Float[Tensor, "C D_text"],
        matching: Literal["optimal", "greedy", "soft"] = "optimal",
        temperature: float = 0.1,
    ) -> None:
        super().__init__(text_dim, embed_dim)
        self.matching: Literal["optimal", "greedy", "soft"] = matching
        self.temperature = temperature
        self.describe = nn.Linear(embed_dim, text_dim)
        self.register_buffer("centres", centres)

    def forward(self, step: Step) -> Float[Tensor, ""]:
        assert step.samples is not None
        assert step.labelled is not None
        words, present = step.samples.label_embeddings, step.samples.alignable
        return self._loss(self.describe(step.labelled.vectors), words, present)

    def _loss(
        self, described: Float[Tensor, "M K D_text"], words: Float[Tensor, "M S D_text"], present: Bool[Tensor, "M S"]
    ) -> Float[Tensor, ""]:
        matched = partners(described, words, present, self.matching, self.temperature)[present]  # [P, D_text]
        names = words[present]
        if len(matched) == 0:
            return described.sum() * 0.0
        regression = (1 - F.cosine_similarity(matched, names, dim=-1)).mean()
        cluster = (names @ self.centres.T).argmax(dim=1)
        logits = F.normalize(matched, dim=-1) @ F.normalize(self.centres, dim=-1).T / self.temperature
        return regression + F.cross_entropy(logits, cluster)


class PredictNextInterest(Task):
    """Behavioural interests of every user predict the explicit interests that the target is linked to.

    The behavioural interest nearest to the target learns to score those explicit interests above all others, as it
    learns to score the target above all other items. The user needs no label.

    Args:
        adapter: maps text vectors into the space of behavioural interests.
        links: the explicit interests that each item is linked to.
    """

    name = "semantic_prediction"
    uses_batch = True
    vocabulary: Tensor
    interest: Tensor
    share: Tensor

    def __init__(self, text_dim: int, embed_dim: int, adapter: nn.Module, links: ItemInterests) -> None:
        super().__init__(text_dim, embed_dim)
        self.adapter = [adapter]  # in a list, so that its parameters are not registered twice
        for name, value in (("vocabulary", links.vectors), ("interest", links.interest), ("share", links.share)):
            self.register_buffer(name, value, persistent=False)  # not saved: rebuilt from the labels

    def forward(self, step: Step) -> Float[Tensor, ""]:
        user = read_out(step.interests.vectors, step.backbone.item_vectors(step.target))
        scores = (user @ self.adapter[0](self.vocabulary).T).float().log_softmax(dim=1)  # [B, C]
        return -(self.share[step.target] * scores.gather(1, self.interest[step.target])).sum(dim=1).mean()
