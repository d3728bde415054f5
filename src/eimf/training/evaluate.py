"""TODO"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl_frames
import pytorch_lightning as pl
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule

from eimf.config.load import from_dict, load
from eimf.config.schema import Config
from eimf.core.errors import ArtifactError, ConfigError, LabelError
from eimf.core.say import Say
from eimf.data.prepare import prepare
from eimf.data.splits import Spans
from eimf.data.text import encode_items
from eimf.evaluation.evaluator import Evaluation, RetrievalEval
from eimf.evaluation.groups import distance_to_labelled, group_users
from eimf.explicit.load import load_supervision
from eimf.labels.typical import user_vectors
from eimf.runs.folder import BEST, CHECKPOINT_KEY, check_data, read_checkpoint
from eimf.training.build import build_model, build_trainer, quiet_lightning
from eimf.training.datamodule import InteractionData
from eimf.training.module import MultiInterestModel


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
