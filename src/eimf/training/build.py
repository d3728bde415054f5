"""Makes the model, the data module and the Trainer of a configuration."""

import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float
from pytorch_lightning.accelerators import CUDAAccelerator
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.strategies import ModelParallelStrategy

from eimf.backbones import Backbone
from eimf.config.components import BACKBONES, LOSSES
from eimf.config.schema import Config, TrainerConfig
from eimf.core.errors import ConfigError
from eimf.data.cooccurrence import cooccurrence_vectors
from eimf.data.prepared import Prepared
from eimf.data.text import encode_texts, item_vectors, principal_components
from eimf.explicit.load import load_links
from eimf.explicit.prototypes import (
    Prototypes,
    find_prototypes,
    item_words,
    name_prototypes,
    shuffled_prototypes,
    side_by_side,
)
from eimf.explicit.supervision import match_labels, names_of
from eimf.explicit.tasks import ExplicitTasks
from eimf.labels.source import label_source, read_labels
from eimf.training.callbacks.checkpoints import WholeCheckpointIO
from eimf.training.datamodule import InteractionData
from eimf.training.module import MultiInterestModel
from eimf.training.warm_start import warm_start


def build_data(config: Config, prepared: Prepared, labelled: bool = True) -> InteractionData:
    """The data module of a configuration.

    Args:
        labelled: read labels if training needs them; evaluation needs none.

    Raises:
        ConfigError, DataError, LabelError: see `InteractionData`.
    """
    labels = label_source(config) if config.reads_labels and labelled else None
    return InteractionData(
        prepared,
        config.split,
        config.data,
        labels=labels,
        explicit=config.eimf,
        encoder=config.text.encoder,
        vectors=config.text.vectors,
        root=config.data.root,
        seed=config.seed,
    )


def build_model(config: Config, data: InteractionData, train: bool = False, resume: bool = False) -> MultiInterestModel:
    """Backbone, loss and optimiser of a configuration, with seeded initial weights.

    Args:
        train: also set what only training needs: item vectors that start from text, EIMF's auxiliary tasks, and the
            weights of the run to start from.
        resume: the weights will be those of a checkpoint, so that they need no start.

    Raises:
        ConfigError: parts of the configuration do not fit each other.
    """
    torch.manual_seed(config.seed)
    backbone: Backbone = BACKBONES[config.backbone.name](data.n_items, config.data.max_len, config.backbone)
    loss = LOSSES[config.loss.name](config.loss)
    tasks = None
    if train and not resume and config.text.item_init != "random":
        _start_items(backbone, config, data)
    if train and config.eimf.enabled:  # after the backbone, whose initial weights stay the same
        links = None
        if config.eimf.prediction == "next_interest" and data.supervision is not None:
            links = load_links(data.supervision, data.prepared, config.eimf, **_texts(config))
        prototypes = _prototypes(config, data) if config.eimf.prototypes != "none" else None
        tasks = ExplicitTasks(
            data.supervision,
            config.backbone.embed_dim,
            config.eimf,
            links=links,
            item_prototypes=prototypes,
            seed=config.seed,
        )
    if train and not resume and config.start:
        warm_start(backbone, tasks, config, data.prepared)
    optim, evaluation = config.optim, config.eval
    model = MultiInterestModel(
        backbone,
        loss,
        optim.lr,
        optimizer=optim.name,
        item_lr=optim.item_lr,
        weight_decay=optim.weight_decay,
        schedule=optim.schedule,
        k=config.cutoffs,
        filter_seen="auto" if evaluation.filter_seen == "auto" else evaluation.filter_seen == "true",
        index=evaluation.index,
        search=evaluation.search,
        diversity_lambdas=evaluation.diversity_lambdas,
        seed=config.seed,
        tasks=tasks,
    )
    fits = train and not backbone.trainable
    model.observe(data.item_counts, data.categories, data.repeats, data.histories if fits else None)
    return model


def _texts(config: Config) -> dict[str, Any]:
    return {"encoder": config.text.encoder, "root": config.data.root, "seed": config.seed}


def _start_items(backbone: Backbone, config: Config, data: InteractionData) -> None:
    """Start the item table from principal components (`text.item_init`)."""
    dim, spectrum = backbone.embed_dim, config.text.spectrum
    parts = [_evidence(source, config, data) for source in config.text.item_init.split("+")]
    vectors = parts[0]
    if len(parts) > 1:
        # Each source has the same total variance, whatever its number and scale of dimensions, and its own spectrum.
        vectors = np.concatenate([principal_components(part, dim, 1.0, spectrum) for part in parts], axis=1)
        spectrum = 1.0
    table = principal_components(vectors, dim, config.backbone.init_std, spectrum)
    with torch.no_grad():
        backbone.item_embedding.weight.copy_(torch.from_numpy(table))


def _evidence(source: str, config: Config, data: InteractionData) -> Float[np.ndarray, "I_plus_1 N"]:
    """What a source says about each item, see `text.item_init`."""
    if source == "text":
        return item_vectors(data.prepared.items, config.text, config.data.root).vectors
    if source == "cooccurrence":
        return cooccurrence_vectors(data.prepared.sequences, data.split.train, data.n_items)
    assert data.supervision is not None  # checked with the configuration
    return load_links(data.supervision, data.prepared, config.eimf, **_texts(config)).profiles()


def _prototypes(config: Config, data: InteractionData) -> Prototypes:
    """The groups of items of `eimf.prototypes`, named by explicit interests where there are labels, else by titles."""
    titles = _evidence("text", config, data)
    words = None if data.supervision is None else item_words(data.supervision, titles)
    parts = []
    for source in config.eimf.prototypes.split("+"):
        if source == "interests":
            assert words is not None  # checked with the configuration
            parts.append(words)
        else:
            parts.append(titles if source == "text" else _evidence(source, config, data))
    count = config.eimf.n_prototypes or config.backbone.n_interests  # pyright: ignore[reportAttributeAccessIssue]
    prototypes = find_prototypes(parts[0] if len(parts) == 1 else side_by_side(parts), count, config.seed)
    if config.eimf.control in ("shuffle", "both"):
        prototypes = shuffled_prototypes(prototypes, config.seed)
    if words is None:
        phrases, vectors, evidence = data.prepared.items["title"].to_list(), titles[1:], titles
    else:
        matched = match_labels(read_labels(label_source(config)), data.prepared, data.split.train)
        phrases, evidence = names_of([label for _, _, label, _ in matched.rows]).to_list(), words
        vectors = encode_texts(phrases, config.text.encoder, config.data.root).vectors
    names = name_prototypes(prototypes.of_item, count, evidence, phrases, vectors)
    return prototypes._replace(names=tuple(map(tuple, names)))


def check_size(config: Config, n_items: int) -> None:
    """Refuse optimisers whose cost of a step grows with the catalogue, if the catalogue is large.

    Raises:
        ConfigError: there are more than `optim.dense_limit` items.
    """
    optim, trained = config.optim, BACKBONES[config.backbone.name].trainable
    if trained and optim.name != "rowwise" and n_items > optim.dense_limit:
        raise ConfigError(
            f"optim.name: {optim.name!r} reads and writes all {n_items:,} items at every step (limit "
            f"{optim.dense_limit:,}); use optim.name=rowwise and loss.name=sampled_softmax, or raise optim.dense_limit."
        )


def build_trainer(config: Config, callbacks: Sequence[Callback] = (), checkpoints: bool = False) -> pl.Trainer:
    """Lightning's Trainer for a configuration; it writes files only if one of the callbacks does.

    Args:
        checkpoints: whether one of the callbacks keeps checkpoints.

    Raises:
        ConfigError: Lightning refuses the settings.
    """
    options = config.trainer
    # Deterministic mode would also fill every new buffer with NaN to catch reads of uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return pl.Trainer(
            accelerator=options.accelerator,
            devices=_devices(options.devices),
            num_nodes=options.num_nodes,
            strategy=_strategy(options, config.eimf.enabled),
            precision=options.precision,  # pyright: ignore[reportArgumentType]
            max_epochs=options.max_epochs,
            gradient_clip_val=options.gradient_clip or None,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=checkpoints,
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            plugins=[WholeCheckpointIO()],
            log_every_n_steps=1,  # nothing is logged by step; this only silences advice for short epochs
            deterministic="warn" if torch.cuda.is_available() else True,
        )
    except (ValueError, RuntimeError, pl.utilities.exceptions.MisconfigurationException) as error:  # pyright: ignore[reportAttributeAccessIssue]
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from None


def _strategy(options: TrainerConfig, explicit: bool) -> str | ModelParallelStrategy:
    """Lightning's strategy of that name; `fsdp` divides the parameters among all processes, on any device.

    Args:
        explicit: whether there are auxiliary tasks. They get no gradient at most steps, which DDP has to expect.
    """
    if options.strategy != "fsdp":
        name = "ddp" if options.strategy == "auto" and _n_processes(options) > 1 else options.strategy
        find_unused = explicit and name in ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook")
        return f"{name}_find_unused_parameters_true" if find_unused else options.strategy
    if options.devices == "auto":
        raise ConfigError("trainer.devices: strategy fsdp needs a number of devices, is 'auto'; give it.")
    return ModelParallelStrategy(_n_processes(options), 1, save_distributed_checkpoint=False)


def _n_processes(options: TrainerConfig) -> int:
    """How many processes the Trainer will use, one per device."""
    devices = _devices(options.devices)
    if devices in ("auto", -1):
        on_cuda = options.accelerator in ("auto", "gpu", "cuda") and CUDAAccelerator.is_available()
        devices = CUDAAccelerator.auto_device_count() if on_cuda else 1
    return (len(devices) if isinstance(devices, list) else int(devices)) * options.num_nodes


def _devices(text: str) -> str | int | list[int]:
    try:
        return [int(part) for part in text.split(",")] if "," in text else int(text)
    except ValueError:
        if text != "auto":
            raise ConfigError(f"trainer.devices: must be a number, a list such as 0,2, or auto; is {text!r}.") from None
        return text


def quiet_lightning() -> None:
    """Silence messages of Lightning that a user of this package cannot act on."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("PL_DISABLE_TIPS", "1")
    # A resumed run's checkpoint folder is not empty, and only Lightning can update its use of torch's pytree.
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.* is deprecated.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
