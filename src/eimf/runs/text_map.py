"""The text map: a linear map from text vectors to the item vectors of a trained run, kept in the run's folder.

It gives vectors to what the run was not trained on: new items (by title), and interests in words. It is fitted by ridge
regression in closed form, after training; nothing is trained by gradient descent, and no LLM is called.

Shapes: I items, T dimensions of a text vector, D dimensions of an item vector, N texts.
"""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from eimf.config.load import load
from eimf.core.errors import ArtifactError, ConfigError, DataError
from eimf.core.files import replacing, sha256_file
from eimf.data.text import item_vectors
from eimf.runs.folder import BEST, TEXT_MAP, read_checkpoint, read_frame, read_run, restore_backbone

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Strengths of the ridge penalty to choose from."""
HELD_OUT = 0.1
"""Share of the items that the strength is chosen on."""
FEWEST_ITEMS = 20


@dataclass(frozen=True)
class Fit:
    """How a map was fitted."""

    strength: float
    """The ridge penalty, chosen on held-out items."""
    explained: float
    """Share of the variance of held-out item vectors that the map explains, by that strength; 0 is no better than the
    mean vector."""
    items: int
    """Number of items that it was fitted on: those with training interactions."""


@dataclass(frozen=True, eq=False)
class TextMap:
    """Item vectors of texts: `(text vector - text_mean) @ weights + item_mean`."""

    weights: Float[np.ndarray, "T D"]
    text_mean: Float[np.ndarray, " T"]
    item_mean: Float[np.ndarray, " D"]
    fit: Fit
    encoder: str = ""
    """Name of the encoder of the text vectors; empty: they came from a file (`text.vectors`)."""

    def __call__(self, texts: Float[np.ndarray, "N T"]) -> Float[np.ndarray, "N D"]:
        """Item vectors of text vectors.

        Raises:
            DataError: the text vectors have other dimensions than those that the map was fitted on.
        """
        if texts.ndim != 2 or texts.shape[1] != len(self.text_mean):
            raise DataError(
                f"text vectors: must have {len(self.text_mean)} dimensions, as those that the text map was fitted on; "
                f"have the shape {list(texts.shape)}."
            )
        return ((texts - self.text_mean) @ self.weights + self.item_mean).astype(np.float32)


def fit_text_map(
    texts: Float[np.ndarray, "I_plus_1 T"],
    items: Float[np.ndarray, "I_plus_1 D"],
    counts: Int[np.ndarray, " I_plus_1"],
    *,
    encoder: str = "",
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> TextMap:
    """Fit a map by ridge regression in closed form. Row 0 of all arguments is padding.

    Items count by the square root of their training interactions: vectors of rare items are mostly noise, those of
    items without any are not trained at all. The strength is the one with the least (so weighted) square error on a
    seeded tenth of the items, which the map is not fitted on; then all items are used.

    Args:
        texts: text vectors, of length 1.
        items: trained item vectors.
        counts: training interactions of each item.

    Raises:
        DataError: too few items have training interactions.
    """
    known = np.flatnonzero(counts[1:]) + 1
    if len(known) < FEWEST_ITEMS:
        raise DataError(
            f"text map: needs {FEWEST_ITEMS} items with training interactions, there are {len(known)}; train on more "
            "data."
        )
    x, y, weight = texts[known].astype(np.float64), items[known].astype(np.float64), np.sqrt(counts[known])
    held = np.random.default_rng(seed).permutation(len(known)) < max(1, int(HELD_OUT * len(known)))
    parts = x[~held], y[~held], weight[~held]
    errors = [_error(solution, x[held], y[held], weight[held]) for solution in _solve(*parts, strengths)]
    best = int(np.argmin(errors))
    mean = np.average(parts[1], axis=0, weights=parts[2])
    spread = float((weight[held] * np.square(y[held] - mean).sum(axis=1)).sum())
    fit = Fit(float(strengths[best]), 1 - errors[best] / max(spread, 1e-12), len(known))
    ((matrix, text_mean, item_mean),) = _solve(x, y, weight, [strengths[best]])
    matrix, text_mean, item_mean = (part.astype(np.float32) for part in (matrix, text_mean, item_mean))
    return TextMap(matrix, text_mean, item_mean, fit, encoder)


Solution = tuple[np.ndarray, np.ndarray, np.ndarray]


def _solve(x: np.ndarray, y: np.ndarray, weight: np.ndarray, strengths: Sequence[float]) -> list[Solution]:
    """Weights and means of the weighted ridge regression, for each strength; one decomposition for all."""
    x_mean, y_mean = (np.average(part, axis=0, weights=weight) for part in (x, y))
    x, y = x - x_mean, y - y_mean
    values, basis = np.linalg.eigh((x * weight[:, None]).T @ x)
    moments = basis.T @ ((x * weight[:, None]).T @ y)
    return [(basis @ (moments / (np.maximum(values, 0) + each)[:, None]), x_mean, y_mean) for each in strengths]


def _error(solution: Solution, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    matrix, x_mean, y_mean = solution
    return float((weight * np.square((x - x_mean) @ matrix + y_mean - y).sum(axis=1)).sum())


def make_text_map(folder: Path, overrides: Sequence[str] = ()) -> TextMap:
    """Fit the map of a finished run, and keep it in the run's folder. Needs neither raw data nor labels.

    Args:
        overrides: `text.encoder`, `text.vectors` or `data.root` (where text vectors are kept), if they differ from the
            run's configuration.

    Raises:
        ConfigError: another setting is given, or the encoder cannot be loaded.
        ArtifactError: the folder is not a finished run, or lacks the items' counts.
        DataError: the vectors' file cannot be used, or too few items were trained.
    """
    if wrong := [one for one in overrides if not one.startswith(("text.encoder=", "text.vectors=", "data.root="))]:
        raise ConfigError(f"{wrong[0]!r}: only text.encoder, text.vectors and data.root matter to a text map.")
    backbone, _ = restore_backbone(read_checkpoint(folder), folder)
    if not backbone.trainable:
        raise ConfigError(f"{folder}: backbone {backbone.config.name!r} has no trained item vectors to map texts to.")
    config = load(folder / "config.yaml", overrides)
    items = read_frame(folder / "items.parquet", read_run(folder).get("items_sha256", ""))
    if "count" not in items.columns:
        raise ArtifactError(f"{folder}/items.parquet: has no counts (an earlier version trained it); train again.")
    texts = item_vectors(items, config.text, config.data.root).vectors
    counts = np.concatenate([[0], items["count"].to_numpy()])
    table = backbone.item_vectors().detach().float().numpy()
    made = fit_text_map(texts, table, counts, encoder="" if config.text.vectors else config.text.encoder)
    save_text_map(folder, made)
    return made


def save_text_map(folder: Path, made: TextMap) -> None:
    """Keep a map in a run folder, together with the digest of the checkpoint that it belongs to.

    Raises:
        ArtifactError: the disk refuses.
    """
    about = {"checkpoint": sha256_file(folder / BEST), "encoder": made.encoder, "fit": asdict(made.fit)}
    with replacing(folder / TEXT_MAP) as work, work.open("wb") as file:
        np.savez(
            file,
            about=np.array(json.dumps(about)),
            weights=made.weights,
            text_mean=made.text_mean,
            item_mean=made.item_mean,
        )


def read_text_map(folder: Path) -> TextMap | None:
    """The map that a run folder keeps, or None.

    Raises:
        ArtifactError: it was made from another checkpoint, or is damaged.
    """
    path = folder / TEXT_MAP
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            about: dict[str, Any] = json.loads(str(arrays["about"]))
            weights, text_mean, item_mean = (arrays[name] for name in ("weights", "text_mean", "item_mean"))
            made = TextMap(weights, text_mean, item_mean, Fit(**about["fit"]), about["encoder"])
            checkpoint = about["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:100]
        raise ArtifactError(
            f"{path}: damaged or unreadable ({reason}); make it again with eimf map {folder}."
        ) from None
    if checkpoint != sha256_file(folder / BEST):
        raise ArtifactError(f"{path}: was made of other weights; make it again with eimf map {folder}.")
    return made


def remove_text_map(folder: Path) -> None:
    """Remove the kept map, because training will change the item vectors."""
    (folder / TEXT_MAP).unlink(missing_ok=True)
