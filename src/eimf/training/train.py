"""One run from configuration to results: prepare, train, keep the best, evaluate it, write everything down."""

from contextlib import nullcontext
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger

from eimf.config.load import load, to_yaml
from eimf.config.schema import Config
from eimf.core.errors import ArtifactError
from eimf.core.files import lock, write_json_atomic, write_text_atomic
from eimf.core.say import Say
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared
from eimf.evaluation.evaluator import RetrievalEval
from eimf.explicit.load import load_supervision
from eimf.labels.source import label_source
from eimf.runs.folder import BEST, LAST, RUN, read_run, remove_index, save_index
from eimf.runs.provenance import describe_run, label_digest
from eimf.runs.results import Run, _new_run_folder, costs, is_first_process, write_results
from eimf.runs.tracking import log_outcome
from eimf.training.build import _check_size, build_model, build_trainer, quiet_lightning
from eimf.training.datamodule import InteractionData
from eimf.training.evaluate import evaluate, load_weights


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
            f"{resume}: was begun with other labels (digest {before[:12]}; {label_source(config)} has {labels[:12]} "
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


def _best_path(trainer: pl.Trainer) -> Path:
    checkpoint = trainer.checkpoint_callback
    assert isinstance(checkpoint, ModelCheckpoint)
    return Path(checkpoint.best_model_path)
