"""Tables that several commands print."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from eimf.data.prepared import Prepared
    from eimf.evaluation.evaluator import Evaluation

SHOWN = ("recall", "hr", "ndcg", "ndcg_comirec", "mrr", "coverage")


def print_statistics(prepared: "Prepared") -> None:
    """Print the usual statistics table of a data set, and what was repaired."""
    from eimf.data.prepared import statistics

    counts = statistics(prepared)
    table = Table(title=Text(prepared.folder.name), title_justify="left")
    for column in ("users", "items", "interactions", "mean length", "median", "density", "last two tied"):
        table.add_column(column, justify="right")
    table.add_row(
        f"{counts.users:,}",
        f"{counts.items:,}",
        f"{counts.interactions:,}",
        f"{counts.mean_length:.2f}",
        f"{counts.median_length:.0f}",
        f"{100 * counts.density:.3f}%",
        f"{100 * counts.tied_users:.1f}%",
    )
    Console().print(table)
    for repair, count in prepared.manifest.repairs.items():
        print(f"  {count:,} {repair}")


def print_results(results: "dict[str, Evaluation]", title: str) -> None:
    """Print metrics of validation and test users, and further measures of the lists."""
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
    keys = [key for key in results[shown].summary if key.split("@")[0] in SHOWN]
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
        table = Table(
            title=f"accuracy against diversity (ComiRec's controllable aggregation), {shown}",
            title_justify="left",
        )
        for column in trade_off[0]:
            table.add_column(column, justify="right")
        for point in trade_off:
            table.add_row(*(f"{value:.4g}" if name == "lambda" else f"{value:.4f}" for name, value in point.items()))
        console.print(table)
