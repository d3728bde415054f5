"""Builds the sections about a suite: its table, lifts, curves, groups and costs."""

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars

from eimf.config.load import load
from eimf.evaluation.groups import POPULARITY
from eimf.report.figures import interval_panels, intervals, lines
from eimf.report.page import Cell, Section, number
from eimf.runs.curves import read_curves
from eimf.studies.comparison import LEVEL

LISTS_NOTE = (
    "Means over seeds. interest cosine: how similar the vectors of a user's interests are (1: all the same). interest "
    "overlap: the share of items that the lists of two interests have in common. interests used: from how many "
    "interests the items of a list come."
)


def describe_suite(folder: Path, to: Path) -> list[Section]:
    """Sections about a compared suite, for a page at `to`."""
    comparison = json.loads((folder / "comparison" / "comparison.json").read_text())
    sections = [
        Section("Result", (comparison["question"], *comparison["sentences"], _note(comparison)), *_table(comparison))
    ]
    if lifts := _lifts(comparison):
        chart = interval_panels(lifts, f"lift over {_label(comparison, comparison['baseline'])}, 95% interval")
        sections.append(Section("Lifts", charts=(chart,)))
    if curves := _curves(comparison):
        sections.append(Section("Learning curves", ("The first seed of each variant.",), charts=curves))
    sections += _groups(folder, comparison)
    if lists := comparison.get("lists"):
        sections.append(Section("Interests and lists", (LISTS_NOTE,), *_means(comparison, lists)))
    sections.append(Section("Costs", (), *_means(comparison, comparison["costs"])))
    return [*sections, Section("Runs", ("Linked where the run has a page (eimf report RUN).",), *_runs(to, comparison))]


def _means(
    comparison: dict[str, Any], values_of: dict[str, dict[str, float]]
) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    """Head and rows of values that have no test of significance."""
    names = list(dict.fromkeys(name for values in values_of.values() for name in values))
    rows = ((_label(comparison, one), *(number(values.get(key)) for key in names)) for one, values in values_of.items())
    return ("variant", *(name.replace("_", " ") for name in names)), tuple(rows)


def _label(comparison: dict[str, Any], variant: str) -> str:
    return comparison.get("labels", {}).get(variant, variant)


def _lifts(comparison: dict[str, Any]) -> dict[str, list[tuple[str, float, float, float]]]:
    """Lift and interval of each variant, for each metric; in percent where they are relative."""
    lifts: dict[str, list[tuple[str, float, float, float]]] = {}
    for metric in comparison["metrics"]:
        for variant, cells in comparison["cells"].items():
            one = cells[metric]
            if one["lift"] is None:
                continue
            relative = one.get("relative", True)
            low, mid, high = (100 * one[key] if relative else one[key] for key in ("low", "lift", "high"))
            title = f"{metric} (%)" if relative else f"{metric} (difference)"
            lifts.setdefault(title, []).append((_label(comparison, variant), mid, low, high))
    return lifts


def _lift(cell: dict[str, Any]) -> str:
    if cell["lift"] is None:
        return ""
    text = f"{cell['lift']:+.1%}" if cell.get("relative", True) else f"{cell['lift']:+.3f}"
    return text + ("*" if cell["p"] is not None and cell["p"] < LEVEL else "")


def _note(comparison: dict[str, Any]) -> str:
    part = "test" if comparison["part"] == "test" else "validation"
    return (
        f"Means ± standard deviations over seeds, {part} users. Best bold, second underlined; * significant at 0.05 by "
        f"paired bootstrap over users and seeds against {comparison['baseline']}, with Holm's correction over the "
        "table."
    )


def _table(comparison: dict[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    head = ("variant", *(text for metric in comparison["metrics"] for text in (metric, "lift")))
    rows = []
    for variant, cells in comparison["cells"].items():
        row: list[Any] = [_label(comparison, variant)]
        for metric in comparison["metrics"]:
            one = cells[metric]
            means = (each[metric]["mean"] for each in comparison["cells"].values())
            order = sorted((mean for mean in means if mean is not None), reverse=True)
            if one["mean"] is None:  # some models have no agreement
                row += ["", ""]
                continue
            style = {0: "best", 1: "second"}.get(order.index(one["mean"]), "")
            spread = "" if one["deviation"] is None else f" ± {one['deviation']:.4f}"
            row += [Cell(f"{one['mean']:.4f}{spread}", style), _lift(one)]
        rows.append(tuple(row))
    return head, tuple(rows)


def _curves(comparison: dict[str, Any]) -> tuple[str, ...]:
    """The monitored validation metric of each variant over its epochs."""
    curves, monitors = {}, set()
    for variant, seeds in comparison["runs"].items():
        folder = Path(next(iter(seeds.values()), ""))
        rows = read_curves(folder / "metrics.csv")
        if rows:
            monitor = load(folder / "config.yaml").monitor
            logged = [row for row in rows if monitor in row]
            curves[_label(comparison, variant)] = (
                [row["epoch"] + 1 for row in logged],
                [row[monitor] for row in logged],
            )
            monitors.add(monitor)
    return (lines(curves, "epoch", " or ".join(sorted(monitors))),) if curves else ()


def _groups(folder: Path, comparison: dict[str, Any]) -> list[Section]:
    path = folder / "comparison" / "groups.csv"
    if not path.is_file():
        return []
    table = polars.read_csv(path)
    rows = tuple(
        (
            one["group"],
            one["level"],
            number(one["users"]),
            one["variant"],
            number(one["baseline"]),
            f"{one['lift']:+.1%}",
            f"{one['low']:+.1%} to {one['high']:+.1%}",
        )
        for one in table.iter_rows(named=True)
    )
    bars = [
        (f"{one['variant']}: {one['level']}", *(100 * one[key] for key in ("lift", "low", "high")))
        for one in table.filter(group=POPULARITY).sort("variant", maintain_order=True).iter_rows(named=True)
    ]
    metric = comparison["metrics"][0]
    charts = (intervals(bars, f"lift in {metric} (%) by popularity of the targets, 95% interval"),) if bars else ()
    head = ("group", "level", "users", "variant", "baseline", "lift", "95% interval")
    text = "Exploratory only: nothing is corrected for the number of groups."
    return [Section(f"Lifts in {metric} by groups of users", (text,), head, rows, charts, fold=True)]


def _runs(to: Path, comparison: dict[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    rows = []
    for variant, seeds in comparison["runs"].items():
        for seed, path in seeds.items():
            page = Path(path) / "report.html"
            link = quote(Path(os.path.relpath(page, to.parent)).as_posix()) if page.is_file() else ""
            rows.append((variant, seed, Cell(path, link=link)))
    return ("variant", "seed", "folder"), tuple(rows)
