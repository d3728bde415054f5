"""Builds the sections about a sweep of this machine: its best trials, and what its parameters matter."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import polars

from eimf.core.errors import ArtifactError
from eimf.report.figures import lines
from eimf.report.page import Section, number

TABLE = "trials.csv"
BEST_SHOWN = 20
AFTER = ("epochs", "minutes", "state", "folder", "reason")
"""Columns of `trials.csv` after the parameters and the metric."""


def describe_sweep(folder: Path) -> list[Section]:
    """Sections about a sweep's folder.

    Raises:
        ArtifactError: no trial has a result yet.
    """
    table = polars.read_csv(folder / TABLE, infer_schema_length=None)
    if not set(AFTER) < set(table.columns) or "trial" not in table.columns:
        raise ArtifactError(f"{folder}/{TABLE}: is no table of trials; run eimf sweep again.")
    *parameters, metric = [name for name in table.columns if name not in ("trial", *AFTER)]
    done = table.filter(polars.col(metric).is_not_null()).sort(metric, descending=True)
    if done.is_empty():
        raise ArtifactError(f"{folder}: no trial has a result yet; run eimf sweep again.")
    best = done.row(0, named=True)
    answer = (
        f"{len(done)} of {len(table)} trials have a result. The best, trial {best['trial']}, has {metric} "
        f"{best[metric]:.4f} on validation users; the median is {done[metric].median():.4f}."
    )
    head = ("trial", *parameters, metric, "epochs", "minutes", "state")
    rows = tuple(tuple(_shown(one[name]) for name in head) for one in done.head(BEST_SHOWN).iter_rows(named=True))
    order = done.sort("trial")
    so_far = np.maximum.accumulate(order[metric].to_numpy()).tolist()
    curves = {"each trial": (order["trial"].to_list(), order[metric].to_list())}
    curves["best so far"] = (order["trial"].to_list(), so_far)
    sections = [
        Section("Result", (answer,), head, rows),
        Section("The search", charts=(lines(curves, "trial", metric),)),
    ]
    weights = importance(done, parameters, metric)
    if weights:
        text = (
            "The share of the metric's variance between trials that a parameter explains alone: by rank for numbers, "
            "by group means for names. With few trials this is a hint, no proof."
        )
        shares = tuple((name, f"{share:.0%}") for name, share in weights.items())
        sections.append(Section("Importance of parameters", (text,), ("parameter", "share"), shares))
    return [*sections, Section("Train the best", ("Several seeds, and the test users:",), code=_command(folder, best))]


def importance(trials: polars.DataFrame, parameters: list[str], metric: str) -> dict[str, float]:
    """Share of the metric's variance that each parameter explains alone, the largest first."""
    values = trials[metric].rank()
    if len(trials) < 3 or values.n_unique() == 1:
        return {}
    shares = {}
    for name in parameters:
        column = trials[name]
        if column.n_unique() < 2:
            continue
        if column.dtype.is_numeric():
            ranks = column.rank()
            shares[name] = float(np.corrcoef(ranks, values)[0, 1] ** 2)
        else:
            means = polars.DataFrame({"group": column, "value": values})
            within = means.with_columns(polars.col("value").mean().over("group").alias("mean"))["mean"]
            shares[name] = float(np.var(within.to_numpy()) / np.var(values.to_numpy()))
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else number(value)


def _command(folder: Path, best: dict[str, Any]) -> str:
    """The command that trains the best trial again, evaluated on test users."""
    config = next(iter(sorted(Path(str(best["folder"])).glob("config.yaml"))), None)
    if config is None:
        config = next(iter(sorted((folder / f"trial-{best['trial']:04d}").rglob("config.yaml"))), None)
    path = shlex.quote(str(config or "EXPERIMENT.yaml"))
    return "\n".join(
        f"eimf train {path} experiment=best-of-{shlex.quote(folder.name)} eval.test=true seed={seed}"
        for seed in (0, 1, 2)
    )
