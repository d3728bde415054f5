"""Writes the results of a run: `results.json`, values of every user, rankings, and costs."""

import resource
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars
import torch

from eimf.config.schema import Config
from eimf.core.files import replacing, write_json_atomic, write_parquet
from eimf.core.version import VERSION
from eimf.data.prepared import Prepared
from eimf.evaluation.evaluator import Evaluation
from eimf.runs.curves import read_curves
from eimf.runs.folder import RESULTS


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    results: dict[str, Evaluation]
    """By part of the split: `val`, and `test` unless `eval.test` is off."""


def costs(folder: Path, device: torch.device) -> dict[str, float]:
    """Costs of a run: epochs, median seconds per epoch (validation included), peak memory of the process."""
    seconds = [row["seconds"] for row in read_curves(folder / "metrics.csv")]
    # ru_maxrss is in KiB on Linux, in bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    measured = {"epochs": float(len(seconds)), "peak_memory_gib": peak / 2**30}
    if seconds:
        measured |= {"seconds_per_epoch": statistics.median(seconds), "training_minutes": sum(seconds) / 60}
    if device.type == "cuda":
        measured["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return measured


def write_results(
    folder: Path,
    results: Mapping[str, Evaluation],
    config: Config,
    prepared: Prepared,
    costs: Mapping[str, float],
    filters_seen: bool,
) -> None:
    """Write `results.json`, `metrics.parquet` and `rankings.parquet` of a run.

    `metrics.parquet`: `user_idx, user_id, metric, k, value, tied, part`. `rankings.parquet`, of test users: `user_idx,
    user_id, rank, item_idx, item_id, score, interest`. Both have raw ids, so that other tables can be joined.

    Args:
        filters_seen: whether the lists leave out the items of the context.
    """
    users = prepared.user_ids.rename("user_id")
    items = prepared.items["item_id"]
    per_user = [one.per_user.with_columns(polars.lit(part).alias("part")) for part, one in results.items()]
    metrics = polars.concat(per_user)
    metrics = metrics.with_columns(users.gather(metrics["user_idx"]))
    columns = ("user_idx", "user_id", "metric", "k", "value", "tied", "part")
    write_frame(metrics.select(columns), folder / "metrics.parquet")
    if config.eval.rankings and "test" in results:
        rankings = results["test"].rankings
        ids = (users.gather(rankings["user_idx"]), items.gather(rankings["item_idx"] - 1))
        columns = ("user_idx", "user_id", "rank", "item_idx", "item_id", "score", "interest")
        write_frame(rankings.with_columns(ids).select(columns), folder / "rankings.parquet")
    write_json_atomic(
        folder / RESULTS,
        {
            "experiment": config.run_name,
            "seed": config.seed,
            "filter_seen": filters_seen,
            "data_digest": prepared.digest,
            "package_version": VERSION,
            "users": {part: evaluation.per_user["user_idx"].n_unique() for part, evaluation in results.items()},
            **{part: evaluation.summary for part, evaluation in results.items()},
            "costs": dict(costs),
            "trade_off": {part: evaluation.trade_off for part, evaluation in results.items()},
        },
    )


def write_frame(frame: polars.DataFrame, path: Path) -> None:
    """Write a table as Parquet, completely or not at all.

    Raises:
        ArtifactError: the file cannot be written.
    """
    with replacing(path) as work:
        write_parquet(frame, work)
