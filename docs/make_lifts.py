"""Draw docs/pictures/shops.png: the lifts of `explicit_interests` in three shops, from files of docs/results.

.venv/bin/python docs/make_lifts.py
"""

import json
from pathlib import Path

from matplotlib.figure import Figure

DOCS = Path(__file__).parent
SHOPS = {"beauty": "Beauty", "toys": "Toys", "video_games": "Video games"}
METRICS = ("recall@20", "recall@50")
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

if __name__ == "__main__":
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, len(SHOPS), sharex=True, sharey=True)
    for axes, (shop, title) in zip(panels, SHOPS.items(), strict=True):
        cells = json.loads((DOCS / "results" / f"{shop}-explicit_interests.json").read_text(encoding="utf-8"))["cells"]
        for metric, colour, offset in zip(METRICS, ("#0969da", "#bc4c00"), (-0.17, 0.17), strict=True):
            found = [cells[name][metric] for name in NAMES]
            places = [place + offset for place in range(len(NAMES))]
            low, mid, high = ([100 * cell[key] for cell in found] for key in ("low", "lift", "high"))
            axes.hlines(places, low, high, color=colour)
            for significant, face in ((True, colour), (False, "white")):
                rows = [row for row, cell in enumerate(found) if (cell["p"] < 0.05) == significant]
                axes.plot(
                    [mid[row] for row in rows],
                    [places[row] for row in rows],
                    "o",
                    color=colour,
                    markerfacecolor=face,
                    markersize=5,
                    label=metric if significant else None,
                )
        axes.axvline(0, color="#57606a", linewidth=0.8)
        axes.set_title(title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(NAMES)), list(NAMES.values()), fontsize=8)
    panels[0].invert_yaxis()
    figure.supxlabel("lift over ComiRec-SA with four interests, %; filled: significant after correction", fontsize=9)
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", fontsize=8, ncols=2, frameon=False)
    figure.savefig(DOCS / "pictures" / "shops.png", dpi=120)
