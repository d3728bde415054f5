"""Evaluates trained models: all metrics of a run, and groups of held-out users."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars
import pytorch_lightning as pl
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule

from eimf.config.load import from_dict, load, to_dict
from eimf.config.schema import Config
from eimf.core.errors import ArtifactError, ConfigError, LabelError
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared
from eimf.data.splits import Spans
from eimf.data.text import item_vectors
from eimf.evaluation.agreement import agreement_frame, attended, held_out_groups, measure_agreement
from eimf.evaluation.evaluator import Evaluation
from eimf.evaluation.groups import distance_to_labelled, group_users
from eimf.labels.source import read_labels
from eimf.labels.typical import user_vectors
from eimf.runs.folder import BEST, ORIGIN, check_config, check_data, open_checkpoint, read_checkpoint
from eimf.training.build import build_data, build_model, build_trainer, quiet_lightning
from eimf.training.datamodule import InteractionData
from eimf.training.module import MultiInterestModel

log = logging.getLogger(__name__)


def evaluate_model(
    trainer: pl.Trainer, model: MultiInterestModel, data: InteractionData, test: bool = True, labels: str = ""
) -> dict[str, Evaluation]:
    """Evaluate on the validation users (`val`), and on the test users (`test`) if `test`.

    Args:
        labels: file of labels of held-out users, for the agreement of behavioural interests with them; see
            `eimf.evaluation.agreement`.

    Raises:
        LabelError: no label is of a held-out user.
    """
    trainer.validate(model, datamodule=data, verbose=False)
    if test:
        trainer.test(model, datamodule=data, verbose=False)
    results = {part: evaluation for part, evaluation in model.evaluations.items() if test or part == "val"}
    return _add_agreement(results, model, data, labels) if labels else results


def _add_agreement(
    results: dict[str, Evaluation], model: MultiInterestModel, data: InteractionData, source: str
) -> dict[str, Evaluation]:
    """Add the agreement with labels of held-out users. Models without routing weights have none."""
    known, added, users = read_labels(source), {}, 0
    for part, evaluation in results.items():
        held = data.split.validation if part == "val" else data.split.test
        groups = held_out_groups(known, data.prepared, held, data.config.max_len)
        users += len(groups.user_idx)
        added[part] = evaluation
        if len(groups.user_idx) == 0:
            continue
        with torch.inference_mode():
            shares = model.backbone(torch.from_numpy(groups.history).to(model.device)).item_shares()
        if shares is None:
            continue
        found = attended(shares.float().cpu().numpy())
        agreement = measure_agreement(found, groups.group)
        added[part] = replace(
            evaluation,
            summary=evaluation.summary | agreement.means(),
            per_user=polars.concat([evaluation.per_user, agreement_frame(agreement, groups)]),
        )
    if users == 0:
        raise LabelError(
            f"{source}: no label is of a held-out user's context; eval.labels must hold labels of validation or test "
            "users of this split, made from their contexts alone."
        )
    return added


def evaluate_run(folder: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Evaluation], Config]:
    """Evaluate a finished run's best checkpoint again.

    Args:
        overrides: `eval.*`, `trainer.*` and `data.*` settings to change, for example `eval.index=hnsw`.

    Raises:
        ArtifactError: the checkpoint is missing or damaged, or its data cannot be prepared now.
    """
    quiet_lightning()
    checkpoint = read_checkpoint(folder)
    allowed = ("eval.", "trainer.", "data.eval_batch_size=", "data.root=")
    if wrong := [text for text in overrides if not text.startswith(allowed)]:
        raise ConfigError(f"{wrong[0]!r}: only eval.*, trainer.*, data.root and data.eval_batch_size can change here.")
    check_config(load(folder / "config.yaml"), checkpoint, folder)
    config = load(folder / "config.yaml", overrides)
    prepared = prepare(config.dataset, config.data.root, checkpoint[ORIGIN]["data_digest"])
    check_data(checkpoint, prepared, folder)
    data = build_data(config, prepared, labelled=False)
    model = build_model(config, data)
    load_weights(model, folder / BEST)
    return evaluate_model(build_trainer(config), model, data, config.eval.test, config.eval.labels), config


BASELINES = {"popularity": 10_000_000, "item_knn": 20_000}
"""Models that need no training, and the most items for which they are worth their time and memory (item_knn: the square
of the number of items)."""


def evaluate_baselines(config: Config, prepared: Prepared, part: str) -> dict[str, Evaluation]:
    """Evaluate models without training on the held-out users of a run, with the lists that the run has.

    Args:
        part: `test` or `val`.
    """
    quiet_lightning()
    values = to_dict(config)
    shared = {key: values[key] for key in ("dataset", "split", "data", "seed")}
    shared["eval"] = {key: values["eval"][key] for key in ("cutoffs", "monitor", "filter_seen")}
    shared["eval"]["diversity_lambdas"] = [0.0]
    shared["trainer"] = {"accelerator": "cpu", "devices": 1, "progress": False}
    found = {}
    for name, most in BASELINES.items():
        if prepared.n_items > most:
            continue
        baseline = from_dict(shared | {"backbone": {"name": name}})
        data = build_data(baseline, prepared, labelled=False)
        model = build_model(baseline, data, train=True)
        found[name] = evaluate_model(build_trainer(baseline), model, data, part == "test")[part]
    return found


def load_weights(model: MultiInterestModel, path: Path) -> None:
    """Load a checkpoint's weights into a model; a model without auxiliary tasks loads only those of the backbone.

    Raises:
        ArtifactError: the file is damaged, or the weights do not fit.
    """
    state = open_checkpoint(path)["state_dict"]
    if model.tasks is None:
        state = {name: value for name, value in state.items() if name.startswith("backbone.")}
    try:
        if isinstance(model, FSDPModule):
            model.reshard()  # after a forward pass the parameters may still be gathered
            set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))
        else:
            model.load_state_dict(state)
        model.fitted = True
    except RuntimeError as error:
        raise ArtifactError(
            f"{path}: does not fit the configuration beside it ({str(error).splitlines()[-1].strip()})."
        ) from None


def group_held_out(config: Config, data: InteractionData, part: str) -> polars.DataFrame:
    """Groups of held-out users (see `eimf.evaluation.groups`); by nearness to labelled users too, if there are any.

    Args:
        data: of `config`, without labels.
        part: `test` or `val`.
    """
    sequences = data.prepared.sequences
    held = data.split.test if part == "test" else data.split.validation
    distance = None
    if config.reads_labels:
        plain = replace(config, eimf=replace(config.eimf, propagate=False))
        try:
            supervision = build_data(plain, data.prepared).supervision
        except LabelError as error:
            log.info(f"no groups by nearness to labelled users: {error}")
        else:
            assert supervision is not None
            titles = item_vectors(data.prepared.items, config.text, config.data.root).vectors
            trained = user_vectors(sequences, data.split.train, titles)
            near = user_vectors(sequences, Spans(held.user_idx, held.start, held.cut), titles)
            distance = distance_to_labelled(near, trained[supervision.span_row.numpy()])
    return group_users(sequences, held, data.item_counts.numpy(), distance, data.prepared.categories)
