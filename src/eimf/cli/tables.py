"""Tables that several commands print."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from eimf.data.prepared import Prepared
    from eimf.evaluation.evaluator import Evaluation


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1
) -> None:
    """Print a table; where it is too wide for the terminal, turned, or else as a list. Words are never broken.

    Args:
        left: number of the first columns that are texts, aligned left; the others are numbers.
    """
    turned = [columns[0], *(row[0] for row in rows)], [list(cells) for cells in zip(columns, *rows, strict=True)][1:]
    listed = ["", ""], [list(pair) for row in rows for pair in zip(columns, row, strict=True)]
    for number, (head, body) in enumerate(((columns, rows), turned, listed)):
        table = Table(title=Text(title), title_justify="left", show_header=any(head))
        for place, name in enumerate(head):
            words = [word for text in (name, *(row[place] for row in body)) for word in text.split()]
            longest = max(map(cell_len, words), default=0)
            justify = "left" if place < (1 if number else left) else "right"
            table.add_column(name, justify=justify, overflow="fold", min_width=longest if number < 2 else None)
        for place, row in enumerate(body):
            table.add_row(*(Text(cell) for cell in row), end_section=number == 2 and (place + 1) % len(columns) == 0)
        if number == 2 or Measurement.get(console, console.options.update(width=1_000), table).minimum <= console.width:
            console.print(table)
            return


def print_statistics(prepared: "Prepared") -> None:
    """Print the usual statistics table of a data set, and what was repaired."""
    from eimf.data.prepared import statistics

    counts = statistics(prepared)
    row = (
        f"{counts.users:,}",
        f"{counts.items:,}",
        f"{counts.interactions:,}",
        f"{counts.mean_length:.2f}",
        f"{counts.median_length:.0f}",
        f"{100 * counts.density:.3f}%",
        f"{100 * counts.tied_users:.1f}%",
    )
    columns = ("users", "items", "interactions", "mean length", "median", "density", "last two tied")
    print_table(Console(), prepared.folder.name, columns, [row], left=0)
    for repair, count in prepared.manifest.repairs.items():
        print(f"  {count:,} {repair}")


def print_training(folder: Path, monitor: str, user_id: str) -> None:
    """Print the best epoch, the time, the run folder, and commands to try next."""
    from eimf.runs.curves import read_curves

    rows = read_curves(folder / "metrics.csv")
    if scored := [row for row in rows if monitor in row]:
        best = max(scored, key=lambda row: row[monitor])
        print(
            f"best epoch {int(best['epoch']) + 1} of {len(rows)} ({monitor} {best[monitor]:.4f}), "
            f"{sum(row['seconds'] for row in rows):.1f} seconds of training"
        )
    run = shlex.quote(str(folder))
    curves = "metrics.csv, " if rows else ""  # a model without training has none
    print(f"written: {run}/ (config.yaml, {curves}results.json, checkpoints/best.ckpt, ...)")
    commands = (f"recommend {run} --user={shlex.quote(user_id)}", f"report {run}", f"explore {run} --open")
    for start, command in zip(("try:    ", "        ", "        "), commands, strict=True):
        print(f"{start} {program()} {command}")


def program() -> str:
    """How `eimf` can be called here: by its name, or by the path that it was called by, if it is on no path."""
    called = Path(sys.argv[0])
    return shlex.quote(str(called)) if called.name == "eimf" and shutil.which("eimf") is None else "eimf"


def print_results(results: "dict[str, Evaluation]", title: str) -> None:
    """Print metrics of validation and test users, and further measures of the lists."""
    from eimf.config.components import METRICS

    console = Console()
    table = Table(title=Text(title), title_justify="left")
    table.add_column("metric")
    columns = list(results)
    shown = columns[-1]  # test, or validation if the test users were not evaluated
    for part in columns:
        table.add_column(part, justify="right")
    beside = [
        prefix for prefix in ("raw", "untied") if any(key.startswith(f"{prefix}/") for key in results[shown].summary)
    ]
    for prefix in beside:
        table.add_column(f"{shown}, {prefix}", justify="right")
    keys = [key for key in results[shown].summary if key.split("@")[0] in (*METRICS, "coverage")]
    for key in keys:
        row = [f"{results[part].summary[key]:.4f}" for part in columns]
        for prefix in beside:
            value = results[shown].summary.get(f"{prefix}/{key}")
            row.append("" if value is None else f"{value:.4f}")
        table.add_row(key, *row)
    console.print(table)
    rest = {key: value for key, value in results[shown].summary.items() if key not in keys and "/" not in key}
    if rest:
        console.print(
            f"{shown} lists: " + ", ".join(f"{key} {value:.3f}" for key, value in rest.items()), highlight=False
        )
    prefix = "proportional/"
    shares = [
        f"{key.removeprefix(prefix)} {value:.4f}"
        for key, value in results[shown].summary.items()
        if key.startswith(prefix)
    ]
    if shares:
        console.print(f"{shown} lists that interests fill by their shares: {', '.join(shares)}", highlight=False)
    trade_off = results[shown].trade_off
    if len(trade_off) > 1:
        title = f"accuracy against diversity (ComiRec's controllable aggregation), {shown}"
        rows = [
            tuple(f"{value:.4g}" if name == "lambda" else f"{value:.4f}" for name, value in point.items())
            for point in trade_off
        ]
        print_table(console, title, tuple(trade_off[0]), rows, left=0)
