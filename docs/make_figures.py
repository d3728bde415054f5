"""Draw docs/pictures/shops.png and labels.png, from files of docs/results.

    .venv/bin/python docs/make_figures.py

`shops.png`: the lifts of the suite `explicit_interests` in three shops. `labels.png`: what `python -m
eimf.studies.prototypes` measured about the number of labels.
"""

import json
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

DOCS = Path(__file__).parent
SHOPS = {"beauty": "Beauty", "toys": "Toys", "video_games": "Video games"}
METRICS = {"recall@20": "#0969da", "recall@50": "#bc4c00"}
NAMES = {
    "one_interest_titles": "one interest, titles",
    "titles": "titles",
    "shared_titles": "shared part, titles",
    "prototypes_titles": "prototypes of titles",
    "prototypes_words": "prototypes of the LLM's words",
    "prototypes_shuffled": "shuffled prototypes",
    "item_knn": "item_knn",
    "ease": "ease",
}


def read(name: str) -> dict[str, Any]:
    """A file of docs/results."""
    return json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))


def draw_shops() -> None:
    """Lifts over the backbone with intervals; significant ones are filled."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, len(SHOPS), sharex=True, sharey=True)
    for axes, (shop, title) in zip(panels, SHOPS.items(), strict=True):
        cells = read(f"{shop}-explicit_interests")["cells"]
        for (metric, colour), offset in zip(METRICS.items(), (-0.17, 0.17), strict=True):
            for place, name in enumerate(NAMES):
                if name not in cells:  # not run in this shop
                    continue
                cell = cells[name][metric]
                low, mid, high = (100 * cell[key] for key in ("low", "lift", "high"))
                face = colour if cell["p"] < 0.05 else "white"
                axes.hlines(place + offset, low, high, color=colour)
                axes.plot(mid, place + offset, "o", color=colour, markerfacecolor=face, markersize=5)
        axes.axvline(0, color="#57606a", linewidth=0.8)
        axes.set_title(title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(NAMES)), list(NAMES.values()), fontsize=8)
    panels[0].invert_yaxis()
    for metric, colour in METRICS.items():
        panels[0].plot([], [], "o", color=colour, label=metric)
    figure.supxlabel("lift over ComiRec-SA with four interests, %; filled: significant after correction", fontsize=9)
    figure.legend(loc="outside upper right", fontsize=8, ncols=2, frameon=False)
    figure.savefig(DOCS / "pictures" / "shops.png", dpi=120)


def draw_labels(shops: tuple[str, ...] = ("beauty", "video_games")) -> None:
    """Agreement of prototypes with held-out users by number of labels, beside titles and shuffled words."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    for axes, shop in zip(figure.subplots(1, len(shops), sharey=True), shops, strict=True):
        found = read(f"prototypes-{shop}")
        counts = [int(count) for count in found["words"]]
        axes.plot(
            counts, [mean(values) for values in found["words"].values()], "o-", color="#0969da", label="LLM's words"
        )
        for count, values in zip(counts, found["words"].values(), strict=True):
            axes.plot([count] * len(values), values, "_", color="#0969da")
        axes.axhline(mean(found["titles"]), color="#bc4c00", label="titles")
        axes.axhline(mean(found["shuffled"]), color="#57606a", linestyle=":", label="shuffled words")
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts], fontsize=8)
        axes.minorticks_off()
        axes.set_title(f"{SHOPS[shop]}, {found['users']} held-out users", fontsize=10)
        axes.grid(alpha=0.3)
    figure.supxlabel("labelled training users", fontsize=9)
    figure.supylabel("agreement", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(DOCS / "pictures" / "labels.png", dpi=120)


if __name__ == "__main__":
    draw_shops()
    draw_labels()
