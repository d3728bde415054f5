"""What a start from an earlier run saves: `python -m eimf.studies.warm_start DATASET FOLDER`.

The newest interactions are cut off by time. An earlier run is trained on the rest. Then all data are trained on twice,
with the same settings: from scratch, and from the earlier run. With the time split (80%, 10%, 10%) of both, the earlier
run trains and validates on nothing that is held out of the whole data.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import polars

from eimf.config.load import load as load_config
from eimf.core.errors import run_main
from eimf.core.files import write_json_atomic
from eimf.data.prepared import Prepared
from eimf.runs.curves import read_curves
from eimf.runs.provenance import machine
from eimf.runs.text_map import make_text_map
from eimf.studies.part import part_settings, prepare_whole, write_tables
from eimf.training.train import train

SHARE = 0.12
"""Share of the interactions that are newer than the earlier run's data. The training and validation parts of the rest
(90% of 88%) then lie within the first 80% of the whole."""


def cut_by_time(prepared: Prepared, folder: Path, share: float = SHARE) -> polars.DataFrame:
    """Write the interactions and items of the earlier data, and those of the whole, to `folder`.

    Returns:
        The earlier interactions.

    Raises:
        ArtifactError: the disk refuses.
    """
    rows, texts = prepared.interactions(), prepared.items.drop("item_idx")
    cut = rows["timestamp"].sort()[int((1 - share) * len(rows))]
    earlier = rows.filter(polars.col("timestamp") < cut)
    known = texts.filter(polars.col("item_id").is_in(earlier["item_id"].unique().implode()))
    tables = {"interactions": rows, "items": texts, "earlier_interactions": earlier, "earlier_items": known}
    write_tables(folder, tables)
    return earlier


def compare_curves(scratch: list[dict[str, float]], warm: list[dict[str, float]], metric: str) -> dict[str, Any]:
    """The best epoch of both runs, and the first epoch of the warm one that is at least as good as the other's best.

    Epochs are counted from 1; `seconds` include validation. `reached` is None if the warm run never gets there.
    """

    def best(curve: list[dict[str, float]]) -> dict[str, float]:
        epoch = max(range(len(curve)), key=lambda place: (curve[place][metric], -place))
        seconds = sum(row["seconds"] for row in curve[: epoch + 1])
        return {"epoch": epoch + 1, "value": curve[epoch][metric], "seconds": seconds}

    aim = best(scratch)
    reached = next((place + 1 for place, row in enumerate(warm) if row[metric] >= aim["value"]), None)
    return {
        "metric": metric,
        "scratch": aim,
        "warm": best(warm),
        "reached": reached,
        "reached_seconds": None if reached is None else sum(row["seconds"] for row in warm[:reached]),
        "curves": {"scratch": [row[metric] for row in scratch], "warm": [row[metric] for row in warm]},
    }


def main() -> None:
    """Cut, train three times, compare."""
    parser = argparse.ArgumentParser(prog="python -m eimf.studies.warm_start", description=__doc__)
    parser.add_argument("dataset", metavar="DATASET", help="name of experiments/datasets/NAME.yaml")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where data, runs and result are kept")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of all three trainings")
    parser.add_argument("--map", action="store_true", help="new items start from the earlier run's text map")
    options = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = options.folder
    prepared = prepare_whole(options.dataset, options.settings)
    earlier = cut_by_time(prepared, folder)

    def settings(prefix: str, name: str, *more: str) -> list[str]:
        part = part_settings(folder, f"{options.dataset}-{prefix or 'whole'}".rstrip("_"), prefix)
        return [*part, "split.kind=time", "eval.test=false", f"experiment={name}", *options.settings, *more]

    first = train(load_config(None, settings("earlier_", "earlier"))).folder
    if options.map:
        make_text_map(first)
    runs = {
        "scratch": train(load_config(None, settings("", "scratch"))).folder,
        "warm": train(load_config(None, settings("", "warm", f"start={first}"))).folder,
    }
    config = load_config(None, settings("", "scratch"))
    scratch, warm = (read_curves(runs[name] / "metrics.csv") for name in ("scratch", "warm"))
    found = compare_curves(scratch, warm, config.monitor)
    found |= {
        "dataset": options.dataset,
        "settings": options.settings,
        "map": options.map,
        "items": {"earlier": earlier["item_id"].n_unique(), "whole": prepared.n_items},
        "interactions": {"earlier": len(earlier), "whole": len(prepared.sequences.items)},
        "machine": machine(),
        "runs": {name: str(run) for name, run in runs.items()},
    }
    write_json_atomic(folder / "warm_start.json", found)
    best, again, reached = found["scratch"], found["warm"], found["reached"]
    print(
        f"{config.monitor}: from scratch {best['value']:.4f} after {best['epoch']} epochs; from the earlier run "
        f"{again['value']:.4f} after {again['epoch']}, "
        f"{'never as good as' if reached is None else f'after {reached} as good as'} from scratch"
    )


if __name__ == "__main__":
    run_main(main)
