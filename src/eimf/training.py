"""One run from configuration to results: prepare, train, keep the best, evaluate it, write everything down."""

import logging
import os
import resource
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np
import polars as pl_frames
import pytorch_lightning as pl
import torch
from jaxtyping import Float
from pytorch_lightning.accelerators import CUDAAccelerator
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities import rank_zero_only
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule

from eimf import __version__
from eimf.alignment import ExplicitInterests
from eimf.artifacts import lock, write_json_atomic, write_text_atomic
from eimf.backbones import BACKBONES, Backbone
from eimf.callbacks import Curves, EpochSeed, Evaluation, LearningRate, Progress, RetrievalEval, read_curves
from eimf.config import Config, TrainerConfig, from_dict, load, to_dict, to_yaml
from eimf.data.datamodule import InteractionData
from eimf.data.sequences import Prepared, prepare
from eimf.data.splits import Spans
from eimf.errors import ArtifactError, ConfigError, LabelError
from eimf.groups import distance_to_labelled, group_users
from eimf.losses import RetrievalLoss
from eimf.module import Explicit, MultiInterestModel
from eimf.optimizers import build_optimizer
from eimf.provenance import describe_run, label_digest
from eimf.retrieval import ItemIndex
from eimf.run_folder import (
    BEST,
    CHECKPOINT_KEY,
    LAST,
    RESULTS,
    RUN,
    check_data,
    read_checkpoint,
    read_run,
    remove_index,
    save_index,
)
from eimf.semantics.labels import read_labels
from eimf.semantics.supervision import (
    ItemInterests,
    Supervision,
    build_supervision,
    describe_items,
    match_labels,
    mixed_groups,
    names_of,
    propagate,
    shuffled,
    shuffled_items,
    take_share,
)
from eimf.semantics.text import encode_items, encode_texts, principal_components
from eimf.semantics.typical import user_vectors
from eimf.tracking import log_outcome, wandb_logger

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    results: dict[str, Evaluation]
    """By part of the split: `val`, and `test` unless `eval.test` is off."""


def train(config: Config, resume: Path | None = None, say: Say = print, prepared: Prepared | None = None) -> Run:
    """Train and evaluate one experiment.

    Args:
        config: see `eimf.config.load`.
        resume: run folder to continue from its last checkpoint; its own configuration must be `config`.
        say: told what happens, a line at a time (first process only).
        prepared: the prepared data of `config`, where the caller has them; else they are prepared or read here.

    Raises:
        ConfigError, DataError, ArtifactError: see the message.
    """
    quiet_lightning()
    prepared = prepared or prepare(config.dataset, config.data.root, say)
    _check_size(config, prepared.n_items)
    labels = label_digest(config)
    if resume is not None and (before := read_run(resume).get("label_digest", labels)) != labels:
        raise ArtifactError(
            f"{resume}: was begun with other labels (digest {before[:12]}; {config.label_source} has {labels[:12]} "
            f"now); restore them, or start again with eimf train {resume}/config.yaml."
        )
    folder = resume or _new_run_folder(config)
    if resume is None and is_first_process():
        write_text_atomic(folder / "config.yaml", to_yaml(config))
        write_json_atomic(folder / RUN, describe_run(config, prepared.digest, labels))
        prepared.items.write_parquet(folder / "items.parquet")
    held = "another process trains this run; wait for it or end it."
    with lock(folder / "config.yaml", held) if is_first_process() else nullcontext():
        return _train_in(folder, config, prepared, labels, resume is not None, say)


def _train_in(folder: Path, config: Config, prepared: Prepared, labels: str, resume: bool, say: Say) -> Run:
    """Train and evaluate in a run folder that is made.

    Args:
        labels: their digest.
        resume: continue from the last checkpoint.
    """
    if is_first_process():
        remove_index(folder)
    say(f"run folder: {folder}")
    data = InteractionData(prepared, config)
    report_users(data, say)
    if config.eimf.enabled:
        data.supervision = load_supervision(config, data, say)
    model = build_model(config, data, train=True, labels=labels)
    evaluation = RetrievalEval(config.eval, config.cutoffs)
    trainer = build_trainer(config, folder, evaluation)
    if model.backbone.trainable and config.trainer.max_epochs > 0:
        last = folder / LAST if resume else None
        try:
            trainer.fit(model, datamodule=data, ckpt_path=last, weights_only=True)
        except SystemExit:  # how Lightning ends a Ctrl-C
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        load_weights(model, folder / BEST if is_first_process() else _best_path(trainer))
    else:
        (folder / BEST).parent.mkdir(exist_ok=True)
        trainer.strategy.connect(model)
        trainer.save_checkpoint(folder / BEST)
    results = evaluate(trainer, model, data, evaluation, config.eval.test)
    index = model.item_table() if config.eval.index != "flat" else None  # by all processes: each may hold a part
    if is_first_process():
        write_results(folder, results, config, prepared, costs(folder, trainer))
        if index is not None:
            save_index(folder, index, config.eval.index_options)
        for logger in trainer.loggers:
            assert isinstance(logger, WandbLogger)
            summaries = {part: one.summary for part, one in results.items()}
            curve = results["test" if "test" in results else "val"].trade_off
            log_outcome(logger, summaries, folder / BEST if config.logger.checkpoint else None, curve)
            logger.finalize("success")
    return Run(folder, results)


def keep_index(folder: Path, backbone: Backbone, config: Config) -> ItemIndex:
    """Keep the index of `eval.index` in the run folder, for serving."""
    with torch.inference_mode():
        return save_index(folder, backbone.item_vectors().float().cpu().numpy(), config.eval.index_options)


def resume_config(folder: Path) -> Config:
    """The configuration of a run that is to be continued.

    Raises:
        ArtifactError: the folder is no run, or has no checkpoint yet.
    """
    if not (folder / "config.yaml").is_file():
        raise ArtifactError(f"{folder}: no config.yaml, so this is no run folder; name one such as .../version_0.")
    if not (folder / LAST).is_file():
        raise ArtifactError(
            f"{folder}: no {LAST} yet, nothing to resume from; start again with eimf train {folder}/config.yaml."
        )
    return load(folder / "config.yaml")


def load_supervision(config: Config, data: InteractionData, say: Say) -> Supervision:
    """The explicit interests of training users, as tensors beside the training data.

    Raises:
        LabelError: no label fits the training users.
        ConfigError: the text encoder cannot be loaded.
    """
    labels = take_share(read_labels(config.label_source, say), config.eimf.share, config.seed)
    matched = match_labels(labels, data.prepared, data.split.train)
    names = names_of([label for _, _, label, _ in matched.rows]).to_list()
    vectors = encode_texts(names, config.text.encoder, config.data.root).vectors
    flat, spans = data.prepared.sequences.items, data.split.train
    made = build_supervision(matched, dict(zip(names, vectors, strict=True)), flat)
    left_out = "".join(f"; left out: {count} {why}" for why, count in matched.dropped.items())
    say(f"explicit interests: {int(made.present.sum()):,}, of {len(made):,} training users{left_out}")
    if config.eimf.propagate:
        titles = encode_items(data.prepared.items, config.text.encoder, config.data.root).vectors
        told = len(made)
        users = user_vectors(data.prepared.sequences, spans, titles)
        made = propagate(made, spans, flat, titles, users, config.eimf.propagate_least)
        say(f"  lent to {len(made) - told:,} similar users")
    if config.eimf.mix_items:
        made = mixed_groups(made, config.seed)
    return shuffled(made, config.seed) if config.eimf.shuffle else made


def group_held_out(data: InteractionData, part: str, say: Say) -> pl_frames.DataFrame:
    """Groups of held-out users (see `eimf.groups`); nearness to labelled ones where there are any.

    Args:
        part: `test` or `val`.
    """
    config, sequences = data.config, data.prepared.sequences
    held = data.split.test if part == "test" else data.split.validation
    distance = None
    supervision = None
    if config.eimf.enabled:
        try:
            supervision = load_supervision(replace(config, eimf=replace(config.eimf, propagate=False)), data, say)
        except LabelError as error:
            say(f"no groups by nearness to labelled users: {error}")
    if supervision is not None:
        titles = encode_items(data.prepared.items, config.text.encoder, config.data.root).vectors
        trained = user_vectors(sequences, data.split.train, titles)
        near = user_vectors(sequences, Spans(held.user_idx, held.start, held.cut), titles)
        distance = distance_to_labelled(near, trained[supervision.span_row.numpy()])
    return group_users(sequences, held, data.item_counts.numpy(), distance, data.prepared.categories)


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


def report_users(data: InteractionData, say: Say) -> None:
    """Say how many users are trained on and held out, and how many cannot be evaluated."""
    parts = data.split
    say(
        f"users: {len(parts.train.user_idx):,} train, {len(parts.validation):,} validation, {len(parts.test):,} test "
        f"({100 * parts.test.tied.mean():.1f}% of them with tied timestamps at the targets)"
    )
    for name, held in (("validation", parts.validation), ("test", parts.test)):
        if held.too_short:
            say(f"  {held.too_short:,} users have too short a history for {name} and are not evaluated")


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


def evaluate(
    trainer: pl.Trainer, model: MultiInterestModel, data: InteractionData, evaluation: RetrievalEval, test: bool = True
) -> dict[str, Evaluation]:
    """Evaluate on the validation users, and on the test users if `test`."""
    trainer.validate(model, datamodule=data, verbose=False)
    if test:
        trainer.test(model, datamodule=data, verbose=False)
    return evaluation.results


def evaluate_run(folder: Path, overrides: Sequence[str] = (), say: Say = print) -> tuple[dict[str, Evaluation], Config]:
    """Evaluate a finished run's best checkpoint again.

    Args:
        overrides: `eval.*`, `trainer.*` and `data.*` settings to change, for example `eval.index=hnsw`.

    Raises:
        ArtifactError: the checkpoint is missing, damaged, or of other data than can be prepared now.
    """
    quiet_lightning()
    checkpoint = read_checkpoint(folder)
    allowed = ("eval.", "trainer.", "data.eval_batch_size=", "data.root=")
    if wrong := [text for text in overrides if not text.startswith(allowed)]:
        raise ConfigError(f"{wrong[0]!r}: only eval.*, trainer.*, data.root and data.eval_batch_size can change here.")
    config = load(folder / "config.yaml", overrides)
    trained_on = from_dict(checkpoint[CHECKPOINT_KEY]["config"])
    for section in ("dataset", "split", "backbone"):
        if getattr(config, section) != getattr(trained_on, section):
            raise ArtifactError(
                f"{folder}/config.yaml: its {section} section is not the one that {BEST} was trained with; restore "
                "it, or train again."
            )
    prepared = prepare(config.dataset, config.data.root, say, checkpoint[CHECKPOINT_KEY]["data_digest"])
    check_data(checkpoint, prepared, folder)
    data = InteractionData(prepared, config)
    model = build_model(config, data)
    load_weights(model, folder / BEST)
    evaluation = RetrievalEval(config.eval, config.cutoffs)
    return evaluate(build_trainer(config, None, evaluation), model, data, evaluation, config.eval.test), config


def load_weights(model: MultiInterestModel, path: Path) -> None:
    """Load a checkpoint's weights into a model."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    if model.explicit is None:  # evaluation and serving know nothing of the head
        state = {name: value for name, value in state.items() if not name.startswith("explicit.")}
    try:
        if isinstance(model, FSDPModule):
            model.reshard()  # a forward pass may have left it whole
            set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))
        else:
            model.load_state_dict(state)
    except RuntimeError as error:
        raise ArtifactError(
            f"{path}: does not fit the configuration beside it ({str(error).splitlines()[-1].strip()})."
        ) from None


def costs(folder: Path, trainer: pl.Trainer) -> dict[str, float]:
    """What the run took: epochs, median seconds of an epoch (validation included), peak memory of the process."""
    seconds = [row["seconds"] for row in read_curves(folder / "metrics.csv")]
    # ru_maxrss is in KiB on Linux, in bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"epochs": float(len(seconds)), "peak_memory_gib": peak / 2**30}
    if seconds:
        found |= {"seconds_per_epoch": statistics.median(seconds), "training_minutes": sum(seconds) / 60}
    if trainer.strategy.root_device.type == "cuda":
        found["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def write_results(
    folder: Path, results: dict[str, Evaluation], config: Config, prepared: Prepared, costs: dict[str, float]
) -> None:
    """Write `results.json`, `metrics.parquet` [H] and `rankings.parquet` [G] of a run."""
    per_user = [one.per_user.with_columns(pl_frames.lit(part).alias("part")) for part, one in results.items()]
    _write_parquet(pl_frames.concat(per_user), folder / "metrics.parquet")
    if config.eval.rankings and "test" in results:
        _write_parquet(results["test"].rankings, folder / "rankings.parquet")
    write_json_atomic(
        folder / RESULTS,
        {
            "experiment": config.run_name,
            "seed": config.seed,
            "data_digest": prepared.digest,
            "package_version": __version__,
            "users": {part: one.per_user["user_idx"].n_unique() for part, one in results.items()},
            **{part: one.summary for part, one in results.items()},
            "costs": costs,
            "trade_off": {part: one.trade_off for part, one in results.items()},
        },
    )


def _write_parquet(frame: pl_frames.DataFrame, path: Path) -> None:
    work = path.with_name(f".{path.name}.partial")
    try:
        frame.write_parquet(work)
        work.replace(path)
    except OSError as error:
        raise ArtifactError(f"{path}: could not be written ({error}); free some disk space and run again.") from None
    finally:
        work.unlink(missing_ok=True)


def _new_run_folder(config: Config) -> Path:
    """Make `<logs>/<experiment>/version_n` with the next free n; two runs that start together get different ones."""
    parent = Path(config.logger.root) / config.run_name
    if not is_first_process():
        return parent  # only the first process writes; the others learn its folder from Lightning
    parent.mkdir(parents=True, exist_ok=True)
    taken = [int(path.name[8:]) for path in parent.glob("version_*") if path.name[8:].isdigit()]
    number = max(taken, default=-1) + 1
    while True:
        try:
            (parent / f"version_{number}").mkdir()
            return parent / f"version_{number}"
        except FileExistsError:
            number += 1


def _best_path(trainer: pl.Trainer) -> Path:
    checkpoint = trainer.checkpoint_callback
    assert isinstance(checkpoint, ModelCheckpoint)
    return Path(checkpoint.best_model_path)


def is_first_process() -> bool:
    """Whether this is the process that prints and writes."""
    return (getattr(rank_zero_only, "rank", 0) or 0) == 0


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
