"""What the page says, from the files of a run or a suite."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from eimf.artifacts import write_text_atomic
from eimf.callbacks import read_curves
from eimf.config import load
from eimf.data.batch import gather_history
from eimf.data.datamodule import InteractionData
from eimf.data.sequences import Prepared, prepare
from eimf.data.splits import Holdout
from eimf.errors import ArtifactError
from eimf.recommender import load as load_model
from eimf.recovery import attended, recovery
from eimf.report.figures import intervals, lines, points
from eimf.report.page import Section, render
from eimf.run_folder import read_results
from eimf.training import group_held_out

USE = ("interest_cosine", "interests_used", "hit_share")
LEVELS = ("up to", "head", "torso", "near", "far", "tail", "more than")


def build_report(folder: Path, to: Path | None = None) -> Path:
    """Write the page of a run or suite folder; returns its path.

    Raises:
        ArtifactError: the folder is neither, or unfinished, or damaged.
    """
    to = to or folder / "report.html"
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; give a run (.../version_0) or the folder of a suite.")
    try:
        comparison = folder / "comparison" / "comparison.json"
        if comparison.is_file():
            page = render(folder.name, _suite(folder, json.loads(comparison.read_text())))
        else:
            page = render(f"{folder.parent.name}/{folder.name}", _run(folder))
    except (json.JSONDecodeError, OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"{folder}: is damaged ({type(error).__name__}: {str(error)[:120]}); run again.") from None
    write_text_atomic(to, page)
    return to


def _place(level: str) -> int:
    """Where a level stands in its group's order; those of no name are between the lowest and the highest."""
    return next((n for n, start in enumerate(LEVELS) if level.startswith(start)), 2)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "" if value is None else str(value)


def _run(folder: Path) -> list[Section]:
    results = read_results(folder)
    config = load(folder / "config.yaml")
    part = "test" if "test" in results else "val"
    prepared = prepare(config.dataset, config.data.root, digest=results["data_digest"])
    if prepared.digest != results["data_digest"]:
        raise ArtifactError(f"{folder}: was made from data {results['data_digest'][:12]}, not {prepared.digest[:12]}.")
    data = InteractionData(prepared, config)
    held = data.split.test if part == "test" else data.split.validation
    shown = next(name for name in results[part] if name.startswith("recall@"))
    summary = results[part]
    answer = (
        f"{config.backbone.name} on {config.dataset.name} ({config.split.kind} split, seed {config.seed}) finds "
        f"{summary[shown]:.2f} of what {part} users choose next among {shown.split('@')[1]} recommendations."
    )
    keys = [key for key in summary if not key.startswith(("untied/", *USE))]
    rows = tuple(
        (key, *(_number(results.get(p, {}).get(key)) for p in ("val", "test")), _number(summary.get(f"untied/{key}")))
        for key in keys
    )
    head = ("metric", "val", "test", f"{part}, untied")
    if not any(row[-1] for row in rows):
        rows, head = tuple(row[:-1] for row in rows), head[:-1]
    sections = [Section("Result", (answer,), head, rows)]
    sections.append(Section("Learning curves", charts=_curves(folder)))
    name, k = shown.split("@")
    values = pl.read_parquet(folder / "metrics.parquet").filter(part=part, metric=name, k=int(k))
    groups = group_held_out(data, part, lambda _: None)
    table = (
        groups.join(values.with_columns(pl.col("user_idx").cast(pl.Int32)), on="user_idx")
        .group_by("group", "level")
        .agg(pl.len().alias("users"), pl.col("value").mean())
        .sort("group", pl.col("level").map_elements(_place, pl.Int64))
    )
    found = tuple((g, lvl, n, _number(value)) for g, lvl, n, value in table.iter_rows())
    sections.append(Section("Groups of users", head=("group", "level", "users", shown), rows=found))
    curve = results.get("trade_off", {}).get(part, [])
    if len(curve) > 1:
        sections.append(_trade_off(curve, shown))
    used = tuple((key, _number(value)) for key, value in summary.items() if key.startswith(USE))
    if used:
        text = (
            "interest_cosine: how alike a user's interest vectors are (1: all the same). interests_used: how many of "
            "them, in effect, fill his list. hit_share: which interest brought the hits."
        )
        sections.append(Section("How interests are used", (text,), ("measure", "value"), used))
    sections += _model_sections(folder, prepared, held)
    costs = tuple((key.replace("_", " "), _number(value)) for key, value in results.get("costs", {}).items())
    if costs:
        sections.append(Section("Costs", head=("what", "value"), rows=costs))
    origin = (folder / "run.json").read_text() if (folder / "run.json").is_file() else "no run.json\n"
    code = f"eimf train {folder}/config.yaml\n\n{origin}\n{(folder / 'config.yaml').read_text()}"
    return [*sections, Section("Repeat it", code=code)]


def _trade_off(curve: list[dict[str, float]], shown: str) -> Section:
    """Accuracy against diversity over the weights of the controllable aggregation."""
    wider = shown.replace("recall", "diversity")
    line = {"lambda, rising from left to right": ([one[wider] for one in curve], [one[shown] for one in curve])}
    rows = tuple(
        (f"{one['lambda']:g}", *(_number(value) for name, value in one.items() if name != "lambda")) for one in curve
    )
    chart = lines(line, f"{wider}: share of pairs of different categories", shown)
    return Section("Accuracy against diversity", head=tuple(curve[0]), rows=rows, charts=(chart,))


def _curves(folder: Path) -> tuple[str, ...]:
    rows = read_curves(folder / "metrics.csv")
    charts = []
    for prefix, label in (("train/", "training loss (nats)"), ("val/recall", "recall, validation users")):
        names = [name for name in (rows[0] if rows else {}) if name.startswith(prefix)]
        curves = {}
        for name in names:
            logged = [row for row in rows if name in row]
            curves[name] = ([row["epoch"] for row in logged], [row[name] for row in logged])
        if curves:
            charts.append(lines(curves, "epoch", label))
    return tuple(charts)


def _model_sections(folder: Path, prepared: Prepared, held: Holdout) -> list[Section]:
    """The interest map, and how well true interests are found where a simulator knows them."""
    model = load_model(folder)
    sequences, length = prepared.sequences, model.config.data.max_len
    start, cut = torch.from_numpy(held.start), torch.from_numpy(held.cut)
    history = gather_history(torch.tensor(sequences.items, dtype=torch.long), start, cut, length)
    with torch.inference_mode():
        items = model.backbone.item_vectors().float().numpy()[1:]
        found = [model.backbone(part) for part in history.split(512)]
    vectors = np.concatenate([one.vectors.float().numpy() for one in found])
    centre = items.mean(axis=0)
    axes = np.linalg.svd(items - centre, full_matrices=False)[2][:2]
    flat = (items - centre) @ axes.T
    kinds = prepared.categories[1:]
    common = [int(kind) for kind in np.argsort(-np.bincount(kinds))[:6]]
    names = prepared.items["categories"].list.last()
    groups = {}
    for kind in common:
        where = np.flatnonzero(kinds == kind)
        if len(where):
            groups[str(names[int(where[0])] or "unknown")[:24]] = tuple(flat[where].T.tolist())
    groups["interests of 5 users"] = tuple(((vectors[:5].reshape(-1, vectors.shape[-1]) - centre) @ axes.T).T.tolist())
    sections = [Section("Map of items and interests", charts=(points(groups, "interests of 5 users"),))]
    if sequences.interests is not None and all(one.routing is not None for one in found):
        routing = np.concatenate([one.routing.float().numpy() for one in found if one.routing is not None])
        causes = gather_history(torch.tensor(sequences.interests, dtype=torch.long), start, cut, length)
        true = torch.where(history > 0, causes, -1).numpy()
        got = recovery(attended(routing), true[:, -routing.shape[2] :])
        rows = tuple((key.replace("_", " "), _number(value)) for key, value in got._asdict().items())
        text = (
            "The simulator knows which interest caused each purchase. Compared, for each user, with the interest that "
            "attends to it most: adjusted mutual information (0 is chance, 1 the same grouping), and accuracy under "
            "the best matching, beside that of putting everything into one interest."
        )
        sections.append(Section("Recovery of the true interests", (text,), ("measure", "value"), rows))
    return sections


def _suite(folder: Path, found: dict[str, Any]) -> list[Section]:
    head = ("variant", *(text for metric in found["metrics"] for text in (metric, "lift")))
    rows = []
    for variant, cells in found["cells"].items():
        row = [variant]
        for metric in found["metrics"]:
            lift = cells[metric]["lift"]
            row += [_number(cells[metric]["mean"]), "" if lift is None else f"{lift:+.1%}"]
        rows.append(tuple(row))
    sections = [Section("Result", (found["question"], *found["sentences"]), head, tuple(rows))]
    charts = []
    for metric in found["metrics"]:
        cells = [(name, one[metric]) for name, one in found["cells"].items() if one[metric]["lift"] is not None]
        bars = [(name, *(100 * one[key] for key in ("lift", "low", "high"))) for name, one in cells]
        if bars:
            charts.append(intervals(bars, f"lift in {metric} over {found['baseline']} (%), 95% interval"))
    sections.append(Section("Lifts", charts=tuple(charts)))
    groups = folder / "comparison" / "groups.csv"
    if groups.is_file():
        table = pl.read_csv(groups)
        rows = tuple(
            (
                one["group"],
                one["level"],
                one["users"],
                one["variant"],
                _number(one["baseline"]),
                f"{one['lift']:+.1%}",
                f"{one['low']:+.1%} to {one['high']:+.1%}",
            )
            for one in table.iter_rows(named=True)
        )
        head = ("group", "level", "users", "variant", "baseline", "lift", "95% interval")
        sections.append(Section(f"Lifts in {found['metrics'][0]} by groups of users", head=head, rows=rows))
    names = list(next(iter(found["costs"].values()), {}))
    costs = tuple((name, *(_number(one.get(key)) for key in names)) for name, one in found["costs"].items())
    sections.append(Section("Costs", head=("variant", *(n.replace("_", " ") for n in names)), rows=costs))
    runs = tuple((name, seed, path) for name, seeds in found["runs"].items() for seed, path in seeds.items())
    return [*sections, Section("Runs", head=("variant", "seed", "folder"), rows=runs)]
