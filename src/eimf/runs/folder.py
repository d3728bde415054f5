"""Reads and writes the files of a run folder. It imports no training code, so that serving starts quickly."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch

from eimf.backbones import BACKBONES, Backbone
from eimf.config.load import from_dict, to_dict
from eimf.config.schema import Config
from eimf.core.errors import ArtifactError, ConfigError
from eimf.core.files import make_folder, sha256_file, write_json_atomic
from eimf.core.options import nearest
from eimf.data.prepared import Prepared
from eimf.evaluation.retrieval import ItemIndex, make_index
from eimf.runs.versions import versions

BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"


RUN, RESULTS = "run.json", "results.json"


INDEX, INDEX_ABOUT = "index.faiss", "index.json"


TEXT_MAP = "text_map.npz"


LOCK = ".lock"
"""The process that trains the run holds this lock."""
ORIGIN = "eimf"
"""Key of a checkpoint under which the configuration, digests and version are kept."""


def read_run(folder: Path) -> dict[str, Any]:
    """`run.json` of a run; empty for old runs, which have none.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = folder / RUN
    return _read_json(path, f"restore it, or train again: eimf train {folder}/config.yaml") if path.is_file() else {}


def read_results(folder: Path) -> dict[str, Any]:
    """`results.json` of a finished run.

    Raises:
        ArtifactError: the run is not finished, or the file is damaged.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise ArtifactError(f"{folder}: no {RESULTS}; the run is not finished. Continue it with --resume.")
    return _read_json(path, f"write it again: eimf train --resume {folder}")


def _read_json(path: Path, fix: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: damaged or unreadable ({str(error)[:100]}); {fix}") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: damaged (no JSON object); {fix}")
    return value


def read_frame(path: Path, digest: str = "") -> polars.DataFrame:
    """A table of a run folder.

    Args:
        digest: SHA-256 that the file must have; empty does not check.

    Raises:
        ArtifactError: missing, damaged or changed.
    """
    try:
        if digest and sha256_file(path) != digest:
            raise ArtifactError(f"{path}: changed since it was written; restore it, or train again.")
        return polars.read_parquet(path, glob=False)
    except FileNotFoundError:
        raise ArtifactError(f"{path.parent}: no {path.name}; give the whole folder of a finished run.") from None
    except (OSError, polars.exceptions.PolarsError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ArtifactError(f"{path}: damaged or unreadable ({reason}); restore it, or train again.") from None


def load_backbone(folder: Path, prepared: Prepared) -> tuple[Backbone, Config]:
    """The trained backbone of a run on these data, and the run's configuration.

    Raises:
        ArtifactError: there is no such run, or it was trained on other data.
    """
    checkpoint = read_checkpoint(folder)
    check_data(checkpoint, prepared, folder)
    return restore_backbone(checkpoint, folder)


def restore_backbone(checkpoint: dict[str, Any], folder: Path) -> tuple[Backbone, Config]:
    """The backbone alone of a checkpoint, for evaluation, and the configuration that it was trained with.

    Raises:
        ArtifactError: the weights do not fit the configuration.
    """
    origin, prefix = checkpoint[ORIGIN], "backbone."
    config = from_dict(origin["config"])
    backbone: Backbone = BACKBONES[config.backbone.name](origin["n_items"], config.data.max_len, config.backbone)
    weights = checkpoint["state_dict"].items()
    state = {name.removeprefix(prefix): value for name, value in weights if name.startswith(prefix)}
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        raise ArtifactError(
            f"{folder}: weights do not fit the configuration ({str(error).splitlines()[-1].strip()})."
        ) from None
    return backbone.eval(), config


def read_checkpoint(folder: Path, name: str = BEST) -> dict[str, Any]:
    """A checkpoint of a run, read without executing anything in it (`weights_only`), every byte of it checked.

    Args:
        name: `BEST` or `LAST`.

    Raises:
        ArtifactError: missing, damaged, or not written by EIMF.
    """
    return open_checkpoint(folder / name)


def _near(path: Path) -> str:
    """A hint at a run whose folder has nearly the name of a missing one, or that lies in it."""
    folder, last = path.parent.parent, f"version_*/{BEST}"
    try:
        known = sorted({*folder.glob(f"*/{last}"), *folder.parent.glob(f"*/{last}"), *folder.parent.glob(last)})
    except OSError:
        return ""
    return nearest(str(folder), [str(one.parent.parent) for one in known])


def open_checkpoint(path: Path) -> dict[str, Any]:
    """The same of a checkpoint's path.

    Raises:
        ArtifactError: missing, damaged, or not written by EIMF.
    """
    if not path.is_file():
        run = path.parent.parent
        missing, kind = (path, "checkpoint") if run.is_dir() else (run, "folder")
        raise ArtifactError(
            f"{missing}: no such {kind}{_near(path)}; give the folder of a finished run, such as .../version_0."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            if (broken := archive.testzip()) is not None:  # torch does not compare the checksums
                raise ArtifactError(f"{path}: cannot be loaded ({broken} is damaged); restore it, or train again.")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except ArtifactError:
        raise
    except Exception as error:  # zip, pickle and torch raise many kinds of errors for damaged files
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ArtifactError(f"{path}: cannot be loaded ({reason[0][:120]}); restore it, or train again.") from None
    if not isinstance(checkpoint, dict) or ORIGIN not in checkpoint:
        raise ArtifactError(f"{path}: was not written by eimf train; give the folder of a run.")
    return checkpoint


FREE = ("data.root", "data.eval_batch_size", "eval", "logger", "llm", "optim.dense_limit", "experiment", "trainer")
"""Settings that may change while the run stays the same run."""


def check_config(config: Config, checkpoint: dict[str, Any], folder: Path) -> None:
    """Refuse a `config.yaml` that differs from the configuration of the checkpoint.

    More epochs (`trainer.max_epochs`) are allowed: a run that is resumed with them is the run that had them from the
    beginning, unless the learning rate depends on the last epoch.

    Raises:
        ArtifactError: names the setting and both values.
        ConfigError: the number of epochs cannot be this one.
    """
    trained, given = to_dict(from_dict(checkpoint[ORIGIN]["config"])), to_dict(config)
    _check_epochs(config, trained["trainer"]["max_epochs"], folder)
    for section, values in trained.items():
        pairs = [(section, values, given.get(section))]
        if isinstance(values, dict):
            names = list(dict.fromkeys([*values, *given[section]]))
            pairs = [(f"{section}.{name}", values.get(name), given[section].get(name)) for name in names]
        for key, was, now in pairs:
            free = key in FREE or (section in FREE and key != "trainer.patience")
            if was != now and not free:
                raise ArtifactError(
                    f"{folder}/config.yaml: {key} is {now!r}, but the checkpoint was trained with {was!r}; restore the "
                    "file, or train again."
                )


def _check_epochs(config: Config, trained: int, folder: Path) -> None:
    """Refuse a number of epochs with which the run would not equal one that had it from the beginning."""
    wanted = config.trainer.max_epochs
    rule = ""
    if wanted < trained:
        rule = "it can only be raised"
    elif wanted > trained and config.optim.schedule != "constant":
        rule = f"with optim.schedule={config.optim.schedule} it cannot change, as the learning rate depends on it"
    if rule:
        raise ConfigError(
            f"trainer.max_epochs: is {wanted}, but the checkpoint was trained with {trained}; {rule}. Keep that, or "
            f"train anew: eimf train {folder}/config.yaml trainer.max_epochs={wanted}"
        )


def check_data(checkpoint: dict[str, Any], prepared: Prepared, folder: Path) -> None:
    """Refuse data other than those of the checkpoint.

    Raises:
        ArtifactError: names both digests.
    """
    wanted = checkpoint[ORIGIN]["data_digest"]
    if wanted != prepared.digest:
        raise ArtifactError(
            f"{folder}: was trained on data {wanted[:12]}, {prepared.folder} holds {prepared.digest[:12]}. Restore the "
            f"raw files of then, or train on these with: eimf train {folder}/config.yaml"
        )


def save_index(folder: Path, vectors: np.ndarray, kind: str, search: int = 0) -> ItemIndex:
    """Build an index of item vectors [I + 1, D] and keep it in a run folder, for serving.

    Args:
        kind, search: see `eimf.evaluation.retrieval.ItemIndex`.

    Raises:
        ArtifactError: the disk refuses.
    """
    remove_index(folder)
    index = make_index(vectors, kind, search=search)
    index.save(folder / INDEX)
    write_json_atomic(folder / INDEX_ABOUT, {"checkpoint": sha256_file(folder / BEST), "kind": kind, "search": search})
    return index


def open_index(folder: Path, vectors: np.ndarray) -> ItemIndex:
    """The index that a run folder keeps, or an exact one of its item vectors.

    Raises:
        ArtifactError: it was made from another checkpoint, or is damaged.
    """
    try:
        about = json.loads((folder / INDEX_ABOUT).read_text())
    except FileNotFoundError:
        return make_index(vectors)
    except ValueError as error:
        raise ArtifactError(f"{folder / INDEX_ABOUT}: damaged ({error}); make it again with eimf index.") from None
    if not isinstance(about, dict) or about.get("checkpoint") != sha256_file(folder / BEST):
        raise ArtifactError(f"{folder / INDEX}: was made of other weights; make it again with eimf index {folder}.")
    return ItemIndex.load(folder / INDEX, vectors)


def remove_index(folder: Path) -> None:
    """Remove the kept index, because training will change the item vectors."""
    for name in (INDEX_ABOUT, INDEX):
        (folder / name).unlink(missing_ok=True)


def make_run_folder(parent: Path, make: bool = True) -> Path:
    """Make `<parent>/version_n` with the next free n; two runs that start together get different ones.

    Args:
        make: false for processes other than the first, which learn the folder from Lightning; they get `parent`.

    Raises:
        ArtifactError: the folder cannot be made.
    """
    if not make:
        return parent
    make_folder(parent)
    number = max((number for number, _ in versions(parent)), default=-1) + 1
    while True:
        folder = parent / f"version_{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise ArtifactError(f"{folder}: this folder cannot be made ({error.strerror}).") from None
