"""TODO"""

import resource
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl_frames
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only

from eimf import __version__
from eimf.backbones import Backbone
from eimf.config.schema import Config
from eimf.core.errors import ArtifactError
from eimf.core.files import write_json_atomic
from eimf.data.prepared import Prepared
from eimf.evaluation.evaluator import Evaluation
from eimf.evaluation.retrieval import ItemIndex
from eimf.runs.curves import read_curves
from eimf.runs.folder import RESULTS, save_index


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    results: dict[str, Evaluation]
    """By part of the split: `val`, and `test` unless `eval.test` is off."""


def keep_index(folder: Path, backbone: Backbone, config: Config) -> ItemIndex:
    """Keep the index of `eval.index` in the run folder, for serving."""
    with torch.inference_mode():
        return save_index(folder, backbone.item_vectors().float().cpu().numpy(), config.eval.index_options)


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


def is_first_process() -> bool:
    """Whether this is the process that prints and writes."""
    return (getattr(rank_zero_only, "rank", 0) or 0) == 0
