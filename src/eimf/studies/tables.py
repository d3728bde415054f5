"""Writes a comparison as sentences, and as a table for the terminal, CSV, Markdown or LaTeX."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars
from rich.table import Table
from rich.text import Text

from eimf.core.files import write_json_atomic, write_text_atomic
from eimf.studies.comparison import Cell, Comparison


def sentences(found: Comparison, metric: str | None = None) -> list[str]:
    """A sentence about each variant, for one metric (by default the first)."""
    metric = metric or found.metrics[0]
    lines = []
    for variant, cells in found.cells.items():
        cell = cells[metric]
        if variant == found.baseline:
            continue
        if np.isnan(cell.lift):
            lines.append(f"{variant} shares no finished seed with {found.baseline} yet.")
            continue
        low, high, lift = (_signed(value, cell) for value in (cell.low, cell.high, cell.lift))
        interval = f"95% interval {low} to {high}, p = {cell.p:.3f}, {_seeds(cell.seeds)}"
        if not cell.significant:
            lines.append(
                f"No significant difference in {metric} between {variant} and {found.baseline} ({lift}; {interval})."
            )
        else:
            how = "better" if cell.lift > 0 else "worse"
            lines.append(f"{variant} is {how} than {found.baseline} in {metric} by {lift.lstrip('+-')} ({interval}).")
    return lines


def _seeds(count: int) -> str:
    return "1 seed: chance of training is not covered" if count == 1 else f"{count} seeds"


def _value(cell: Cell) -> str:
    if np.isnan(cell.mean):
        return "-"
    return f"{cell.mean:.4f}" + ("" if np.isnan(cell.deviation) else f" ± {cell.deviation:.4f}")


def _signed(value: float, cell: Cell) -> str:
    return f"{value:+.1%}" if cell.relative else f"{value:+.3f}"


def _lift(cell: Cell) -> str:
    return "" if np.isnan(cell.lift) else _signed(cell.lift, cell) + ("*" if cell.significant else "")


NOTE = (
    "Mean ± standard deviation over seeds; relative lift over the baseline (agreement: difference); * significant at "
    "0.05 (paired bootstrap over users and seeds, 10,000 resamples; p-values have Holm's correction over the table, "
    "intervals have none). Best bold, second underlined."
)


def to_rich(found: Comparison) -> Table:
    """The table for a terminal."""
    table = Table(title=f"{found.name}, {_part(found.part)}", title_justify="left", caption=NOTE, show_lines=False)
    table.add_column("variant", overflow="fold")
    for metric in found.metrics:
        table.add_column(metric, justify="right", min_width=len("+10.0%*"), overflow="fold")  # fold, do not cut
    for variant, cells in found.cells.items():
        row = []
        for metric in found.metrics:
            rank = found.ranks(metric).index(variant)
            style = "bold" if rank == 0 else "underline" if rank == 1 else ""
            lift = _lift(cells[metric])
            row.append(Text(_value(cells[metric]), style) + Text(f"\n{lift}" if lift else ""))
        table.add_row(Text(found.label(variant)), *row)
    return table


def _part(part: str) -> str:
    return "test users" if part == "test" else "validation users"


def to_markdown(found: Comparison) -> str:
    """The table for a README."""
    lines = [
        "| variant | seeds | " + " | ".join(found.metrics) + " |",
        "| --- |" + " ---: |" * (len(found.metrics) + 1),
    ]
    for variant, cells in found.cells.items():
        row = []
        for metric in found.metrics:
            rank, value = found.ranks(metric).index(variant), _value(cells[metric])
            value = f"**{value}**" if rank == 0 else f"<u>{value}</u>" if rank == 1 else value
            row.append(f"{value} {_lift(cells[metric])}".strip())
        name = found.label(variant).replace("|", "\\|")
        lines.append(f"| {name} | {cells[found.metrics[0]].seeds} | " + " | ".join(row) + " |")
    return "\n".join(lines) + f"\n\n{NOTE}\n"


_LATEX = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}"} | {sign: "\\" + sign for sign in "&%$#_"}


_LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"}


def _tex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def to_latex(found: Comparison, lifts: bool = False) -> str:
    """The table for a paper; its first line says which package it needs.

    Args:
        lifts: add a row of relative lifts below each variant.
    """
    lines = [r"% \usepackage{booktabs}", r"\begin{tabular}{l" + "r" * len(found.metrics) + "}", r"\toprule"]
    lines += [" & ".join(["", *map(_tex, found.metrics)]) + r" \\", r"\midrule"]
    for variant, cells in found.cells.items():
        row = [_tex(found.label(variant))]
        for metric in found.metrics:
            cell, rank = cells[metric], found.ranks(metric).index(variant)
            value = "-" if np.isnan(cell.mean) else f"{cell.mean:.4f}"
            value = rf"\textbf{{{value}}}" if rank == 0 else rf"\underline{{{value}}}" if rank == 1 else value
            spread = "" if np.isnan(cell.deviation) else rf" {{\scriptsize$\pm${cell.deviation:.4f}}}"
            row.append(value + spread + ("$^{*}$" if cell.significant else ""))
        lines.append(" & ".join(row) + r" \\")
        if lifts and variant != found.baseline:
            row = ["", *(rf"{{\scriptsize {_tex(_lift(cells[metric]))}}}" for metric in found.metrics)]
            lines.append(" & ".join(row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {NOTE}"]) + "\n"


def to_csv(found: Comparison) -> str:
    """One row for each variant and metric, with all values."""
    rows = [
        {"variant": variant, "metric": metric, "part": found.part, **asdict(cell)}
        for variant, cells in found.cells.items()
        for metric, cell in cells.items()
    ]
    return polars.DataFrame(rows).fill_nan(None).write_csv()


def write_comparison(found: Comparison, folder: Path, about: Mapping[str, Any] | None = None) -> list[Path]:
    """Write `comparison.json` and the table as CSV, Markdown and LaTeX; returns the paths.

    Args:
        about: where the results come from, to be kept with them: command, data, machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"table.csv": to_csv(found), "table.md": to_markdown(found), "table.tex": to_latex(found)}
    texts["table_with_lifts.tex"] = to_latex(found, lifts=True)
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    plain = asdict(found) | {"sentences": sentences(found), "about": dict(about or {})}
    write_json_atomic(folder / "comparison.json", _without_nan(plain))
    return [folder / name for name in (*texts, "comparison.json")]


def _without_nan(value: Any) -> Any:
    """Replace NaN by None, since JSON has no NaN."""
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value
