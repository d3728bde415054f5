"""EIMF's auxiliary tasks together, with their weights and schedule.

No task is part of inference. The tasks are stored beside the backbone, and are dropped when a run is served.
"""

from collections.abc import Mapping
from typing import Any

import faiss
import torch
from jaxtyping import Int
from torch import Tensor, nn

from eimf.backbones.base import Backbone, Interests
from eimf.config.components import TASKS
from eimf.config.schema import EIMFConfig
from eimf.core.errors import ConfigError
from eimf.core.options import take_options
from eimf.data.batch import LabelledSamples
from eimf.explicit.item_interests import ItemInterests
from eimf.explicit.prototypes import Prototypes
from eimf.explicit.supervision import Supervision
from eimf.explicit.tasks.base import Step, Task
from eimf.explicit.tasks.interest_assignment import AssignInterests
from eimf.explicit.tasks.modality_alignment import AlignModalities
from eimf.explicit.tasks.prototype_alignment import AlignPrototypes
from eimf.explicit.tasks.semantic_prediction import PredictInterest, PredictNextInterest, PredictNextItem
from eimf.losses.base import Loss


class ExplicitTasks(nn.Module):
    """EIMF's auxiliary tasks: semantic prediction, modality alignment, and what the options add.

    Args:
        supervision: explicit interests of the labelled training users; None if no task needs them.
        embed_dim: D of the backbone.
        config: the options. `enabled` has no effect here.
        links: the explicit interests that each item is linked to, for `prediction=next_interest`.
        item_prototypes: groups of the catalogue, for the option `prototypes`.
        seed: seed of the clustering (`prediction=interest`).
        options: the options as plain arguments, such as `alignment_weight=0.05`.

    Raises:
        ConfigError: an option is unknown, or a task lacks `supervision`, `links` or
            `item_prototypes`.
    """

    def __init__(
        self,
        supervision: Supervision | None,
        embed_dim: int,
        config: EIMFConfig | None = None,
        *,
        links: ItemInterests | None = None,
        item_prototypes: Prototypes | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.config = config = take_options(EIMFConfig, config, options)
        self.prototypes, self.embed_dim = item_prototypes, embed_dim
        if supervision is None and config.needs_labels and (config.samples_labelled or links is None):
            raise ConfigError("labels: these losses need labels; give some (eimf.labels), or set their weights to 0.")
        text_dim = supervision.vectors.shape[-1] if supervision is not None else 1
        predicts = config.prediction if supervision is not None else "none"
        aligns = config.alignment if supervision is not None else "none"
        if predicts in ("next_item", "next_interest") or aligns != "none":
            self.adapter = make_adapter(text_dim, embed_dim)
        tasks: list[Task] = []
        if predicts == "next_item":
            tasks.append(PredictNextItem(text_dim, embed_dim, config.frozen_items))
        elif predicts == "interest":
            assert supervision is not None
            centres = cluster(supervision, config.clusters, seed)
            tasks.append(PredictInterest(text_dim, embed_dim, centres, config.matching, config.temperature))
        elif predicts == "next_interest":
            if links is None:
                raise ConfigError("prediction: 'next_interest' needs links of items and interests (links=...).")
            tasks.append(PredictNextInterest(text_dim, embed_dim, self.adapter, links))
        if aligns != "none":
            tasks.append(AlignModalities(text_dim, embed_dim, aligns, config.matching, config.temperature))
        if config.assignment_weight > 0:
            tasks.append(AssignInterests(text_dim, embed_dim))
        if config.prototypes != "none":
            if item_prototypes is None:
                raise ConfigError(f"prototypes: {config.prototypes!r} needs item_prototypes=..., see find_prototypes.")
            tasks.append(AlignPrototypes(text_dim, embed_dim, item_prototypes.of_item))
        elif item_prototypes is not None:
            raise ConfigError("item_prototypes: are not used with prototypes='none'; say where they are from.")
        for name in config.tasks:
            kind = TASKS[name]
            if not (isinstance(kind, type) and issubclass(kind, Task)):
                raise ConfigError(f"tasks: {name!r} is no Task; derive its class from eimf.explicit.tasks.Task.")
            tasks.append(kind(text_dim, embed_dim))
        self.tasks = nn.ModuleDict({task.name: task for task in tasks})
        self.weights: dict[str, float] = {
            "semantic_prediction": config.prediction_weight,
            "modality_alignment": config.alignment_weight,
            "interest_assignment": config.assignment_weight,
            "prototype_alignment": config.prototype_weight,
        } | {TASKS[name].name: weight for name, weight in config.tasks.items()}

    def needs_samples(self, weights: Mapping[str, float]) -> bool:
        """Whether a task that is on needs samples of labelled users."""
        return any(not task.uses_batch for name, task in self.tasks.items() if name in weights)

    def weights_at(self, epoch: int, step: int) -> dict[str, float]:
        """Weights of the tasks that are on at a step of an epoch (both from 0)."""
        config = self.config
        if config.epochs and epoch >= config.epochs:
            return {}
        factor = min(1.0, (epoch + 1) / config.warmup_epochs) if config.warmup_epochs else 1.0
        return {
            name: factor * self.weights[name]
            for name, task in self.tasks.items()
            if factor * self.weights[name] > 0 and (step % config.every == 0 or task.every_step)
        }

    def forward(
        self,
        backbone: Backbone,
        interests: Interests,
        history: Int[Tensor, "B L"] | None,
        target: Int[Tensor, " B"],
        labelled: Interests | None,
        samples: LabelledSamples | None,
        weights: Mapping[str, float],
        loss: Loss,
    ) -> dict[str, Tensor]:
        """Weighted losses by name.

        Args:
            interests, history, target: of the batch; no history for samples of whole sequences.
            labelled: the backbone's interests of `samples`.
            weights: of the tasks that are on, see `weights_at`.
            loss: the recommendation loss.
        """
        adapted = None
        if samples is not None:
            words = samples.label_embeddings
            adapted = self.adapter(words) if hasattr(self, "adapter") else words  # [M, S, D]
        step = Step(backbone, loss, interests, history, target, samples, labelled, adapted)
        return {
            name: weights[name] * task(step)
            for name, task in self.tasks.items()
            if name in weights and (samples is not None or task.uses_batch)
        }


def make_adapter(text_dim: int, embed_dim: int) -> nn.Sequential:
    """The alignment head: maps text vectors into the space of behavioural interests."""
    return nn.Sequential(nn.Linear(text_dim, 2 * embed_dim), nn.GELU(), nn.Linear(2 * embed_dim, embed_dim))


def cluster(supervision: Supervision, n_clusters: int, seed: int) -> Tensor:
    """Centres f32[C, D_text] of spherical k-means clusters of all explicit interests."""
    vectors = supervision.vectors[supervision.present].numpy()
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        min(n_clusters, len(vectors)),
        niter=20,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
    )
    kmeans.train(vectors)
    return torch.from_numpy(kmeans.centroids)  # pyright: ignore[reportArgumentType]
