"""The study of what a start from an earlier run saves."""

from pathlib import Path
from typing import Any

import polars
import pytest

from eimf.config.schema import SplitConfig
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared
from eimf.data.sources.table import TableConfig
from eimf.data.splits import split_sequences
from eimf.studies.warm_start import compare_curves, cut_by_time


def read(folder: Path, prefix: str) -> Prepared:
    files: dict[str, Any] = {kind: str(folder / f"{prefix}{kind}.parquet") for kind in ("interactions", "items")}
    return prepare(TableConfig(name=f"cut{prefix}", source="table", user_min=1, item_min=1, **files), folder / "data")


def test_the_earlier_run_sees_nothing_that_is_held_out_of_the_whole(tiny: Prepared, tmp_path: Path) -> None:
    earlier = cut_by_time(tiny, tmp_path)
    whole, before, split = read(tmp_path, ""), read(tmp_path, "earlier_"), SplitConfig(kind="time")
    assert len(before.sequences.items) == len(earlier) < len(whole.sequences.items)

    def held_out(data: Prepared, part: str) -> polars.Series:
        """Times of the targets of a part."""
        held = getattr(split_sequences(data.sequences, split), part)
        spans = zip(held.cut, held.end, strict=True)
        return polars.concat([polars.Series(data.sequences.timestamps[cut:end]) for cut, end in spans])

    first = min(held_out(whole, "validation"))
    assert max(held_out(before, "validation")) < first
    assert min(held_out(whole, "test")) > first


def curve(*values: float) -> list[dict[str, float]]:
    return [{"val/recall@20": value, "seconds": 2.0} for value in values]


@pytest.mark.parametrize(
    ("warm", "reached", "best"), [((0.2, 0.3, 0.5), 2, 3), ((0.29, 0.2), None, 1), ((0.4, 0.4), 1, 1)]
)
def test_epochs_to_the_same_metric(warm: tuple[float, ...], reached: int | None, best: int) -> None:
    found = compare_curves(curve(0.1, 0.3, 0.3, 0.2), curve(*warm), "val/recall@20")
    assert found["scratch"] == {"epoch": 2, "value": 0.3, "seconds": 4.0}
    assert (found["reached"], found["warm"]["epoch"]) == (reached, best)
    assert found["reached_seconds"] == (None if reached is None else 2.0 * reached)
