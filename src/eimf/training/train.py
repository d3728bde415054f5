"""Runs one experiment: prepare the data, train, keep the best checkpoint, evaluate it, write the results."""

import logging
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import polars
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger

from eimf.config.load import load, to_dict, to_yaml
from eimf.config.schema import Config
from eimf.core.errors import ArtifactError, ConfigError
from eimf.core.files import lock, sha256_file, write_json_atomic, write_text_atomic
from eimf.core.version import VERSION
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared
from eimf.data.splits import Split, split_sequences
from eimf.labels.source import label_source
from eimf.runs.folder import (
    BEST,
    INDEX,
    LAST,
    LOCK,
    RUN,
    TEXT_MAP,
    check_config,
    make_run_folder,
    read_checkpoint,
    read_run,
    remove_index,
    save_index,
)
from eimf.runs.interest_names import write_interest_names
from eimf.runs.provenance import describe_run, input_digests, label_digest, run_key
from eimf.runs.results import Run, costs, write_frame, write_results
from eimf.runs.text_map import remove_text_map
from eimf.runs.tracking import log_outcome, tensorboard_logger, wandb_logger
from eimf.runs.trained_on import DIGEST, write_trained_on
from eimf.training.build import build_data, build_model, build_trainer, check_size, quiet_lightning
from eimf.training.callbacks import Curves, Progress, RunCheckpoint
from eimf.training.datamodule import InteractionData
from eimf.training.evaluate import evaluate_model, load_weights
from eimf.training.processes import is_first_process
from eimf.training.warm_start import check_start, trained_on_with_start

log = logging.getLogger(__name__)


def train(config: Config, resume: Path | None = None, prepared: Prepared | None = None) -> Run:
    """Train and evaluate one experiment, and keep it in a run folder.

    Args:
        config: see `eimf.config.load`.
        resume: run folder to continue from its last checkpoint; its own configuration must be `config`.
        prepared: the prepared data of `config`, if the caller has them; otherwise they are loaded or prepared here.

    Raises:
        ConfigError, DataError, LabelError, ArtifactError: see the message.
    """
    quiet_lightning()
    prepared = prepared or prepare(config.dataset, config.data.root)
    check_size(config, prepared.n_items)
    labels = label_digest(config)
    inputs = input_digests(config) if resume is None else read_run(resume).get("inputs", {})
    if resume is not None and (before := read_run(resume).get("label_digest", labels)) != labels:
        raise ArtifactError(
            f"{resume}: was begun with other labels (digest {before[:12]}; {label_source(config)} has {labels[:12]} "
            f"now); restore them, or start again with eimf train {resume}/config.yaml."
        )
    first = is_first_process()
    # Before the folder is made: data that cannot be split are refused.
    split = split_sequences(prepared.sequences, config.split)
    items = with_counts(prepared, split)
    if resume is None and config.start:
        check_start(config, prepared, split)
    folder = resume or make_run_folder(Path(config.logger.root) / config.run_name, make=first)
    with _keeping_what_counts(folder) if first else nullcontext():
        if resume is None and first:
            write_text_atomic(folder / "config.yaml", to_yaml(config))
            write_frame(items, folder / "items.parquet")
            provenance = describe_run(config, prepared.digest, labels, inputs)
            if (record := trained_on_with_start(config, prepared, split)) is not None:
                provenance[DIGEST] = write_trained_on(folder, record)
            write_json_atomic(folder / RUN, provenance | {"items_sha256": sha256_file(folder / "items.parquet")})
        held = "another process trains this run; wait for it or end it."
        with lock(folder / LOCK, held) if first else nullcontext():
            # A resumed run may have been given more epochs.
            if resume is not None and first and config != load(folder / "config.yaml"):
                write_text_atomic(folder / "config.yaml", to_yaml(config))
                key = run_key(config, prepared.digest, labels, inputs)
                write_json_atomic(folder / RUN, read_run(folder) | {"key": key})
            return _train_in(folder, config, prepared, labels, resume is not None)


@contextmanager
def _keeping_what_counts(folder: Path) -> Iterator[None]:
    """Remove the folder of a run that fails or is interrupted before its first checkpoint.

    Raises:
        KeyboardInterrupt: says how to continue.
    """
    try:
        yield
    except BaseException as error:
        kept = any((folder / "checkpoints").glob("*.ckpt"))
        if not kept and not (folder / "wandb").exists():  # W&B's own process may still write there
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # other runs of this experiment
                folder.parent.rmdir()
        if isinstance(error, KeyboardInterrupt):
            again = f"eimf train --resume {shlex.quote(str(folder))}"
            raise KeyboardInterrupt(
                f"continue with {again}" if kept else "there is no checkpoint yet, so start again"
            ) from None
        raise


def _train_in(folder: Path, config: Config, prepared: Prepared, labels: str, resume: bool) -> Run:
    """Train and evaluate in an existing run folder.

    Args:
        labels: digest of the labels.
        resume: continue from the last checkpoint.
    """
    first = is_first_process()
    if first:
        _remove_what_was_made(folder)
    log.info(f"run folder: {folder}")
    data = build_data(config, prepared)
    report_users(data)
    model = build_model(config, data, train=True, resume=resume)
    log.info(describe_filter(data.repeats, model.filters_seen))
    model.origin = {
        "config": to_dict(config),
        "data_digest": prepared.digest,
        "label_digest": labels,
        "n_items": prepared.n_items,
        "filter_seen": model.filters_seen,
        "package_version": VERSION,
    }
    if first and not resume:
        prototypes = model.tasks.prototypes if model.tasks is not None else None
        if prototypes is not None:
            write_interest_names(folder, prototypes.names, prototypes.sizes())
    trainer = build_trainer(config, run_callbacks(config, folder), checkpoints=True)
    # After Lightning has accepted the settings: a refused run must not appear at W&B.
    loggers = (wandb_logger(config, folder, read_run(folder)), tensorboard_logger(config, folder)) if first else ()
    trainer.loggers = [logger for logger in loggers if logger is not None]
    if model.backbone.trainable and config.trainer.max_epochs > 0:
        last = folder / LAST if resume else None
        try:
            trainer.fit(model, datamodule=data, ckpt_path=last, weights_only=True)
        except SystemExit:  # Lightning exits this way after Ctrl-C
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        load_weights(model, folder / BEST if first else _best_path(trainer))
    else:
        trainer.strategy.connect(model)
        trainer.save_checkpoint(folder / BEST)
    results = evaluate_model(trainer, model, data, config.eval.test, config.eval.labels)
    index = model.item_table() if config.eval.index != "flat" else None  # on all processes: each may hold a part
    if first:
        write_results(
            folder, results, config, prepared, costs(folder, trainer.strategy.root_device), model.filters_seen
        )
        if index is not None:
            save_index(folder, index, config.eval.index, config.eval.search)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                summaries = {part: evaluation.summary for part, evaluation in results.items()}
                curve = results["test" if "test" in results else "val"].trade_off
                log_outcome(logger, summaries, folder / BEST if config.logger.checkpoint else None, curve)
            logger.finalize("success")
    return Run(folder, results)


def _remove_what_was_made(folder: Path) -> None:
    """Remove the index and the text map of the weights of before, and say so."""
    kinds = {TEXT_MAP: ("text map", "map"), INDEX: ("index", "index")}
    made = [kind for name, kind in kinds.items() if (folder / name).is_file()]
    remove_index(folder)
    remove_text_map(folder)
    if made:
        names, commands = " and ".join(name for name, _ in made), "; ".join(f"eimf {one} {folder}" for _, one in made)
        log.info(f"removed: the run's {names}, made of the weights of before; make them again afterwards: {commands}")


def with_counts(prepared: Prepared, split: Split) -> polars.DataFrame:
    """The items with their numbers of training interactions, as `count`. Serving lists popular items by it."""
    counts = split.item_counts(prepared.sequences, prepared.n_items)
    return prepared.items.with_columns(polars.Series("count", counts[1:], dtype=polars.Int64))


def run_callbacks(config: Config, folder: Path) -> list[Callback]:
    """The callbacks of a run: early stopping, checkpoints, curves and the progress bar."""
    callbacks: list[Callback] = [Progress(config.monitor, config.trainer.progress)]
    return [
        *callbacks,
        EarlyStopping(config.monitor, mode="max", patience=config.trainer.patience, check_on_train_epoch_end=True),
        RunCheckpoint(
            folder / "checkpoints",
            filename="best",
            monitor=config.monitor,
            mode="max",
            enable_version_counter=False,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
        ),
        Curves(folder / "metrics.csv"),
    ]


def resume_config(folder: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run to resume.

    Args:
        overrides: only `trainer.max_epochs=N`, to train for more epochs.

    Raises:
        ConfigError: another setting is given.
        ArtifactError: the folder is not a run folder, or has no checkpoint yet.
    """
    if not (folder / "config.yaml").is_file():
        raise ArtifactError(f"{folder}: no config.yaml, so this is no run folder; name one such as .../version_0.")
    if not (folder / LAST).is_file():
        raise ArtifactError(
            f"{folder}: no {LAST} yet, nothing to resume from; start again with eimf train {folder}/config.yaml."
        )
    if wrong := [text for text in overrides if not text.startswith("trainer.max_epochs=")]:
        raise ConfigError(f"--resume: {wrong[0]!r} cannot change; only trainer.max_epochs can be raised.")
    config = load(folder / "config.yaml", overrides)
    check_config(config, read_checkpoint(folder, LAST), folder)
    return config


def report_users(data: InteractionData) -> None:
    """Log how many users are trained on and held out, and how many cannot be evaluated."""
    parts = data.split
    log.info(
        f"users: {len(parts.train.user_idx):,} train, {len(parts.validation):,} validation, {len(parts.test):,} test "
        f"({100 * parts.test.tied.mean():.1f}% of them with tied timestamps at the targets)"
    )
    for name, held in (("validation", parts.validation), ("test", parts.test)):
        if held.too_short:
            log.info(f"  {held.too_short:,} users have too short a history for {name} and are not evaluated")


def describe_filter(repeats: float, filters: bool) -> str:
    """A sentence about whether lists leave out the items of the context, and why."""
    how = (
        "lists leave out the items that a user has" if filters else "lists may hold items that a user has (unfiltered)"
    )
    return f"{repeats:.1%} of the held-out targets repeat an item of the user's context: {how} (eval.filter_seen)"


def _best_path(trainer: pl.Trainer) -> Path:
    checkpoint = trainer.checkpoint_callback
    assert isinstance(checkpoint, ModelCheckpoint)
    return Path(checkpoint.best_model_path)
