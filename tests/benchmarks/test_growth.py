"""What growth costs, stage by stage, as one picture: `build/growth.png`; run with `make bench` on an idle machine."""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eimf.evaluation.retrieval import ItemIndex, retrieve
from tests.benchmarks.test_scale import Trained, simulate_catalogue
from tests.benchmarks.test_spine import REPEATS, clock
from tests.conftest import ROOT

SIZES = (10_000, 100_000, 1_000_000)
STEPS = 10
LABELS = {  # stage -> x axis, y axis
    "preparation": ("interactions", "seconds"),
    "a training step": ("items", "milliseconds"),
    "1,000 users' lists": ("items", "milliseconds"),
}

Growth = dict[str, dict[str, list[list[float]]]]
"""stage -> series -> [size, cost]"""


@pytest.fixture(scope="module")
def growth() -> Iterator[Growth]:
    """Filled by the measurements, those of earlier calls kept (`-k step` measures one stage again), then drawn."""
    kept = ROOT / "build" / "growth.json"
    found: Growth = json.loads(kept.read_text()) if kept.is_file() else {}
    yield found
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(found, indent=1))
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (stage, series) in zip(panels, found.items(), strict=True):
        _draw(axes, stage, series)
    figure.savefig(ROOT / "build" / "growth.png", dpi=120)


def _draw(axes: Axes, stage: str, series: dict[str, list[list[float]]]) -> None:
    for name, points in series.items():
        axes.loglog(*zip(*points, strict=True), "o-", label=name)
    x, y = LABELS[stage]
    axes.set(title=stage, xlabel=x, ylabel=y)
    axes.grid(which="major", alpha=0.3)
    axes.legend()


def _note(growth: Growth, stage: str, series: str, size: float, cost: float) -> None:
    points = growth.setdefault(stage, {}).setdefault(series, [])
    points[:] = sorted([point for point in points if point[0] != size] + [[size, cost]])
    print(f"\n{stage}, {series}, {size:,.0f}: {cost:.3g} {LABELS[stage][1]}")


@pytest.mark.parametrize("users", [11_700, 117_000, 1_170_000])
def test_preparation(users: int, growth: Growth, tmp_path: Path) -> None:
    """0.5, 5 and 50 million interactions, each in a process of its own for its memory."""
    shop = tmp_path / "shop"
    simulate = ["simulate", str(shop), "--users", str(users), "--items", str(int(users / 1.17))]
    tables = [f"dataset.interactions={shop}/interactions.parquet", f"dataset.items={shop}/items.parquet"]
    prepare = ["prepare", "dataset.source=table", "dataset.name=shop", *tables, f"data.root={tmp_path}"]
    work = {"simulation": simulate, "preparation": prepare}
    costs: dict[str, float] = {}
    for name, arguments in work.items():
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        start = time.perf_counter()
        out = subprocess.run([sys.executable, "-m", "eimf", *arguments], capture_output=True, text=True, check=True)
        costs[name] = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        note = "" if peak > before else "at most "
        print(f"\n{users:,} users: {name} {costs[name]:.1f} s, peak memory {note}{peak / 2**20:.2f} GiB")
        print(out.stdout)
    size = polars.scan_parquet(shop / "interactions.parquet").select(polars.len()).collect().item()
    for name, seconds in costs.items():
        _note(growth, "preparation", name, size, seconds)


@pytest.mark.parametrize("items", SIZES)
def test_a_step(items: int, growth: Growth) -> None:
    sides = {"sampled softmax, rowwise": Trained(items, STEPS)}
    if items < SIZES[-1]:  # where it would be refused
        sides["full softmax, Adam"] = Trained(items, STEPS, dense=True)
    for name, side in sides.items():
        side.steps()
        seconds = statistics.median(clock(side.steps) for _ in range(REPEATS))
        _note(growth, "a training step", name, items, 1e3 * seconds / STEPS)


@pytest.mark.parametrize("items", SIZES)
def test_retrieval(items: int, growth: Growth) -> None:
    vectors, users = simulate_catalogue(items)
    kind = f"IVF{min(2_000, items // 50)},Flat"
    for name, index in (("exact", ItemIndex(vectors)), ("IVF", ItemIndex(vectors, kind, search=16))):
        seconds = statistics.median(clock(lambda index=index: retrieve(index, users, 50)) for _ in range(3))
        _note(growth, "1,000 users' lists", name, items, 1e3 * seconds)
