"""Draws charts as inline SVG. Text stays text; lines and text take the page's colour, on light and dark pages."""

import io
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito, readable on both themes


MARKERS, DASHES = "os^Dvx", ("-", "--", "-.", ":")


INK = "#123456"  # replaced by currentColor


STYLE = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "svg.fonttype": "none",
    "svg.hashsalt": "eimf",  # the same page every time
    "text.parse_math": False,  # a dollar sign in a title is a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def draw(paint: Callable[[Axes], None], height: float = 3.6) -> str:
    """An SVG element of one pair of axes."""
    return draw_figure(lambda figure: paint(figure.add_subplot()), height)


def draw_figure(paint: Callable[[Figure], None], height: float) -> str:
    """An SVG element."""
    with mpl.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(6.4, height), layout="constrained")
        paint(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return text.replace(INK, "currentColor")


def lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, best: float | None = None
) -> str:
    """One line for each name; the vertical line marks `best`."""

    def paint(axes: Axes) -> None:
        for n, (name, (xs, ys)) in enumerate(curves.items()):
            axes.plot(
                xs, ys, label=name, markersize=4, color=COLOURS[n % 6], marker=MARKERS[n % 6], linestyle=DASHES[n % 4]
            )
        axes.set(xlabel=x, ylabel=y)
        axes.xaxis.set_major_locator(MaxNLocator(integer=x == "epoch"))
        if best is not None:
            axes.axvline(best, color=INK, linewidth=0.8, linestyle=":", label="best epoch")
        axes.legend(labelcolor=INK)

    return draw(paint)


def panels(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, best: float | None = None) -> str:
    """A small panel for each name, since their scales differ; the vertical line marks `best`."""
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)

    def paint(figure: Figure) -> None:
        for n, (name, (xs, ys)) in enumerate(curves.items()):
            axes = figure.add_subplot(rows, columns, n + 1)
            axes.plot(xs, ys, color=COLOURS[0], marker="o", markersize=3)
            axes.set_title(name, fontsize=10)
            axes.set_xlabel(x if n >= len(curves) - columns else "")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if best is not None:
                axes.axvline(best, color=INK, linewidth=0.8, linestyle=":")

    return draw_figure(paint, 0.6 + 2.0 * rows)


def interval_panels(charts: Mapping[str, Sequence[tuple[str, float, float, float]]], x: str) -> str:
    """Points with intervals for the same names, a panel for each chart; the line is at 0."""
    names = list(dict.fromkeys(row[0] for rows in charts.values() for row in rows))
    columns = min(2, len(charts))
    lines_of = -(-len(charts) // columns)

    def paint(figure: Figure) -> None:
        for n, (title, rows) in enumerate(charts.items()):
            axes = figure.add_subplot(lines_of, columns, n + 1)
            for name, mid, low, high in rows:
                place = names.index(name)
                axes.plot([low, high], [place, place], color=COLOURS[0])
                axes.plot([mid], [place], "o", color=COLOURS[0], markersize=4)
            axes.axvline(0.0, color=INK, linewidth=0.8)
            axes.set_yticks(range(len(names)), names if n % columns == 0 else [""] * len(names), fontsize=8)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_title(title, fontsize=10)
        figure.supxlabel(x, fontsize="medium")

    return draw_figure(paint, 0.6 + lines_of * (0.7 + 0.24 * len(names)))


def intervals(rows: Sequence[tuple[str, float, float, float]], x: str, base: float = 0.0) -> str:
    """A point with its interval for each name; the line is at `base`."""

    def paint(axes: Axes) -> None:
        for n, (_, mid, low, high) in enumerate(rows):
            axes.plot([low, high], [n, n], color=COLOURS[0])
            axes.plot([mid], [n], "o", color=COLOURS[0])
        axes.axvline(base, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.invert_yaxis()
        figure = axes.get_figure()
        assert isinstance(figure, Figure)
        figure.supxlabel(x, fontsize="medium")  # centred on the whole width, since long names leave the axes little

    return draw(paint, 1.2 + 0.3 * len(rows))


def points(
    groups: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    large: str,
    words: Sequence[tuple[float, float, str]] = (),
) -> str:
    """A scatter plot; the group `large` has stars on top of the others, and `words` are written at their positions."""

    def paint(axes: Axes) -> None:
        for n, (name, (xs, ys)) in enumerate(groups.items()):
            if name == large:
                axes.scatter(xs, ys, s=90, marker="*", color=INK, label=name)
            else:
                axes.scatter(
                    xs, ys, s=9, marker=MARKERS[n % 6], color=COLOURS[n % 6], alpha=0.5, linewidths=0, label=name
                )
        for x, y, text in words:
            axes.annotate(text, (x, y), (4, 4), textcoords="offset points", fontsize=7, color=INK, clip_on=True)
        axes.set(xlabel="first principal component", ylabel="second principal component")
        axes.legend(labelcolor=INK, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))

    return draw(paint, 4.4)
