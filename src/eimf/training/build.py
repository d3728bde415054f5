"""TODO"""

import logging
import os
import warnings
from pathlib import Path

import faiss
import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float
from pytorch_lightning.accelerators import CUDAAccelerator
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.strategies import ModelParallelStrategy

from eimf import __version__
from eimf.backbones import BACKBONES, Backbone
from eimf.config.load import to_dict
from eimf.config.schema import Config, TrainerConfig
from eimf.core.errors import ConfigError
from eimf.data.prepared import Prepared
from eimf.data.text import encode_items, principal_components
from eimf.evaluation.evaluator import RetrievalEval
from eimf.explicit.controls import shuffled_items
from eimf.explicit.head import ExplicitInterests
from eimf.explicit.item_interests import ItemInterests, describe_items
from eimf.explicit.supervision import Supervision
from eimf.explicit.tasks import Explicit
from eimf.losses.retrieval_loss import RetrievalLoss
from eimf.runs.folder import read_run
from eimf.runs.results import is_first_process
from eimf.runs.tracking import wandb_logger
from eimf.training.callbacks.curves import Curves
from eimf.training.callbacks.epoch_seed import EpochSeed
from eimf.training.callbacks.learning_rate import LearningRate
from eimf.training.callbacks.progress import Progress
from eimf.training.datamodule import InteractionData
from eimf.training.module import MultiInterestModel
from eimf.training.optimizers import build_optimizer


def build_model(config: Config, data: InteractionData, train: bool = False, labels: str = "") -> MultiInterestModel:
    """Backbone, loss and optimiser of a configuration, with seeded initial weights.

    Args:
        train: also what only training needs: the item table's start from text, and EIMF's head.
        labels: digest of the labels, for the checkpoint.
    """
    torch.manual_seed(config.seed)
    backbone = BACKBONES[config.backbone.name].build(config.backbone, data.prepared.n_items, config.data.max_len)
    backbone.observe(data.item_counts)
    sparse = config.optim.name == "rowwise"
    if sparse:
        backbone.item_embedding.sparse = True
    loss = RetrievalLoss(item_counts=data.item_counts, **vars(config.loss))
    optim = config.optim
    clips = config.trainer.gradient_clip > 0

    def make_optimizer(module: pl.LightningModule) -> torch.optim.Optimizer:
        # Fused steps unscale 16-bit gradients by themselves, after the point where they would be clipped.
        return build_optimizer(
            module,
            optim.name,
            lr=optim.lr,
            item_lr=optim.item_lr,
            weight_decay=optim.weight_decay,
            fused=not clips,
        )

    if train and config.text.item_init == "text":
        start_items(backbone, config, encode_items(data.prepared.items, config.text.encoder, config.data.root).vectors)
    elif train and config.text.item_init == "interests":
        assert data.supervision is not None  # checked with the configuration
        served = _served(config, data.supervision, data.prepared)
        start_items(backbone, config, served.profiles())
    origin = {
        "config": to_dict(config),
        "data_digest": data.prepared.digest,
        "label_digest": labels,
        "n_items": data.prepared.n_items,
        "package_version": __version__,
    }
    explicit = (
        build_explicit(config, data.supervision, data.prepared) if train and data.supervision is not None else None
    )
    return MultiInterestModel(backbone, loss, make_optimizer, origin, explicit)


def _check_size(config: Config, n_items: int) -> None:
    """Refuse optimisers whose steps cost in proportion to a large catalogue."""
    optim, trained = config.optim, BACKBONES[config.backbone.name].trainable
    if trained and optim.name != "rowwise" and n_items > optim.dense_limit:
        raise ConfigError(
            f"optim.name: {optim.name!r} reads and writes all {n_items:,} items at every step (limit "
            f"{optim.dense_limit:,}); use optim.name=rowwise and loss.name=sampled_softmax, or raise optim.dense_limit."
        )


def start_items(backbone: Backbone, config: Config, vectors: Float[np.ndarray, "I_plus_1 N"]) -> None:
    """Set the item table to the principal components of vectors."""
    table = principal_components(vectors, backbone.embed_dim, config.backbone.init_std)
    with torch.no_grad():
        backbone.item_embedding.weight.copy_(torch.from_numpy(table))


def build_explicit(config: Config, supervision: Supervision, prepared: Prepared) -> Explicit:
    """EIMF's auxiliary tasks; made after the backbone, so that its initial weights are as without them."""
    eimf = config.eimf
    told = supervision.vectors[supervision.present].numpy()
    clusters = min(eimf.clusters, len(told))
    kmeans = faiss.Kmeans(
        told.shape[1], clusters, niter=20, seed=config.seed, spherical=True, min_points_per_centroid=1
    )
    kmeans.train(told)
    head = ExplicitInterests(
        told.shape[1],
        config.backbone.embed_dim,
        torch.from_numpy(kmeans.centroids),  # pyright: ignore[reportArgumentType]
        eimf.prediction,
        eimf.alignment,
        eimf.matching,
        eimf.temperature,
        eimf.frozen_items,
        _served(config, supervision, prepared) if eimf.prediction == "next_interest" else None,
    )
    weights = {"semantic_prediction": eimf.prediction_weight, "modality_alignment": eimf.alignment_weight}
    weights["interest_assignment"] = eimf.assignment_weight
    last = eimf.epochs or config.trainer.max_epochs
    return Explicit(head, weights, eimf.warmup_epochs, eimf.decay_epochs, last, eimf.every)


def _served(config: Config, supervision: Supervision, prepared: Prepared) -> ItemInterests:
    """The explicit interests that each item serves."""
    titles = encode_items(prepared.items, config.text.encoder, config.data.root).vectors
    names = np.unique(supervision.vectors[supervision.present].numpy(), axis=0)
    served = describe_items(titles, names, config.eimf.served, config.eimf.served_temperature)
    return shuffled_items(served, config.seed) if config.eimf.shuffle else served


def build_trainer(config: Config, folder: Path | None, evaluation: RetrievalEval) -> pl.Trainer:
    """Lightning's Trainer for a configuration; without a folder it can only evaluate and writes nothing."""
    options = config.trainer
    callbacks: list[Callback] = [evaluation]
    if options.progress:
        callbacks.append(Progress(config.monitor))
    if folder is not None:
        callbacks += [
            EpochSeed(config.seed),
            LearningRate(config.optim.schedule),
            EarlyStopping(config.monitor, mode="max", patience=options.patience, check_on_train_epoch_end=True),
            ModelCheckpoint(
                folder / "checkpoints",
                filename="best",
                monitor=config.monitor,
                mode="max",
                save_last=True,
                enable_version_counter=False,
                every_n_epochs=options.validate_every,
                save_on_train_epoch_end=True,
            ),
            Curves(folder / "metrics.csv"),
        ]
    # Deterministic mode would also fill every new buffer with NaN to catch reads of uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        trainer = pl.Trainer(
            accelerator=options.accelerator,
            devices=_devices(options.devices),
            num_nodes=options.num_nodes,
            strategy=_strategy(options, config.eimf.enabled),
            precision=options.precision,  # pyright: ignore[reportArgumentType]
            max_epochs=options.max_epochs,
            min_epochs=min(options.min_epochs, options.max_epochs),
            check_val_every_n_epoch=options.validate_every,
            gradient_clip_val=options.gradient_clip or None,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=folder is not None,
            enable_progress_bar=options.progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            log_every_n_steps=1,  # nothing is logged by step; this only silences advice for short epochs
            deterministic="warn" if torch.cuda.is_available() else True,
        )
    except (ValueError, RuntimeError, pl.utilities.exceptions.MisconfigurationException) as error:  # pyright: ignore[reportAttributeAccessIssue]
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from None
    # After the settings have been accepted: a refused run should leave no trace at W&B.
    logger = wandb_logger(config, folder, read_run(folder)) if folder is not None and is_first_process() else None
    if logger is not None:
        trainer.loggers = [logger]
    return trainer


def _strategy(options: TrainerConfig, explicit: bool) -> str | ModelParallelStrategy:
    """Lightning's strategy of that name; `fsdp` shares out the parameters over all processes, on any device.

    Args:
        explicit: whether there are explicit interests, whose head has no gradient at most steps: DDP must expect that.
    """
    if options.strategy != "fsdp":
        name = "ddp" if options.strategy == "auto" and _n_processes(options) > 1 else options.strategy
        resting = explicit and name in ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook")
        return f"{name}_find_unused_parameters_true" if resting else options.strategy
    if options.devices == "auto":
        raise ConfigError("trainer.devices: strategy fsdp needs a number of devices, is 'auto'; give it.")
    return ModelParallelStrategy(_n_processes(options), 1, save_distributed_checkpoint=False)


def _n_processes(options: TrainerConfig) -> int:
    """How many processes the Trainer will use, one a device."""
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
    """Keep Lightning from printing what a user of this suite cannot act on."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("PL_DISABLE_TIPS", "1")
    # Our loaders gather on the fly and need no workers; a resumed run's checkpoint folder is not empty; and
    # Lightning's own use of torch's pytree is for Lightning to update.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.* is deprecated.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
