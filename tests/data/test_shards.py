"""Preparation in shards gives what preparation in memory gives."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eimf.cli.main import main
from eimf.core.errors import ConfigError, DataError
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared
from eimf.data.shards import Here, prepare_in_shards
from eimf.data.sources.demo import DemoConfig
from eimf.data.sources.table import TableConfig


def write_tables(folder: Path, n_files: int = 3, rows: int = 4000, seed: int = 0) -> tuple[Path, Path, Path]:
    """One file of interactions, the same rows as several files, and items: with ties, repeats and bad rows."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 300, rows)
    frame = polars.DataFrame(
        {
            "user_id": [f" u{one} " if one % 7 == 0 else f"u{one}" for one in user],
            "item_id": [f"i{int(one)}" if one < 200 else "" for one in rng.exponential(40, rows)],
            "timestamp": [str(int(one)) if one % 50 else "soon" for one in rng.integers(0, 400, rows)],
        }
    )
    frame = polars.concat([frame, frame.sample(rows // 20, seed=1)]).sample(fraction=1, shuffle=True, seed=2)
    (folder / "many").mkdir(parents=True)
    frame.write_csv(folder / "one.csv")
    for number, part in enumerate(np.array_split(np.arange(len(frame)), n_files)):
        frame[part.tolist()].write_csv(folder / "many" / f"{number}.csv")
    ids = [f"i{one}" for one in range(150)]
    polars.DataFrame({"item_id": ids, "title": [f"Item {one}" for one in ids]}).write_csv(folder / "items.csv")
    return folder / "one.csv", folder / "many", folder / "items.csv"


def same(first: Prepared, second: Prepared) -> None:
    """Equal in content and in files."""
    assert first.digest == second.digest
    for name in ("sequences.parquet", "items.parquet"):
        assert polars.read_parquet(first.folder / name).equals(polars.read_parquet(second.folder / name))
    assert first.manifest.counts == second.manifest.counts


@pytest.mark.parametrize("core", ["iterative", "one_pass"])
@pytest.mark.parametrize("duplicates", ["keep", "drop"])
@pytest.mark.parametrize("shards", [1, 5])
@pytest.mark.slow
def test_shards_give_the_same_data(tmp_path: Path, core, duplicates, shards: int, monkeypatch) -> None:
    monkeypatch.setattr("eimf.data.shards.USERS_AT_A_TIME", 60)
    one, many, items = write_tables(tmp_path)
    common = {"name": "shop", "items": str(items), "core": core, "duplicates": duplicates}
    whole = prepare(TableConfig(interactions=str(one), **common), tmp_path / "a")
    dataset = TableConfig(interactions=str(many), **common)
    parts = prepare_in_shards(dataset, tmp_path / "b", shards)
    same(whole, parts)
    assert whole.manifest.repairs.keys() >= {"items without a title"} <= parts.manifest.repairs.keys()
    assert [path.name for path in (tmp_path / "b" / "prepared").iterdir()] == [parts.folder.name]
    assert prepare(dataset, tmp_path / "b").digest == whole.digest  # how training finds it


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 9), st.integers(20, 400))
def test_any_rows_in_any_parts(tmp_path_factory, seed: int, n_files: int, shards: int, rows: int) -> None:
    folder = tmp_path_factory.mktemp("shards")
    one, many, _ = write_tables(folder, n_files, rows, seed)
    common = {"name": "shop", "user_min": 2, "item_min": 2}
    try:
        whole = prepare(TableConfig(interactions=str(one), **common), folder / "a")
    except DataError:
        with pytest.raises(DataError, match="no user survives"):
            prepare_in_shards(TableConfig(interactions=str(many), **common), folder / "b", shards)
        return
    same(whole, prepare_in_shards(TableConfig(interactions=str(many), **common), folder / "b", shards))


def test_files_are_not_read_again_after_an_interruption(tmp_path: Path, monkeypatch) -> None:
    one, many, _ = write_tables(tmp_path)
    dataset = TableConfig(name="shop", interactions=str(many))

    class Stopped(Here):
        def run(self, step, tasks):
            if getattr(step, "func", step).__name__ == "_drop":
                raise KeyboardInterrupt
            return super().run(step, tasks)

    with pytest.raises(KeyboardInterrupt):
        prepare_in_shards(dataset, tmp_path / "b", 3, Stopped())
    read: list[str] = []
    monkeypatch.setattr("eimf.data.sources.table.clean_interactions", lambda _, subject, __: read.append(subject))
    made = prepare_in_shards(dataset, tmp_path / "b", 3)
    assert read == []
    monkeypatch.undo()
    whole = TableConfig(name="shop", interactions=str(one))
    same(prepare(whole, tmp_path / "a"), made)


def test_what_cannot_be_sharded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="reads tables; demo is of dataset.source=demo"):
        prepare_in_shards(DemoConfig(name="demo"), tmp_path, 2)
    with pytest.raises(DataError, match="is no file, and no folder"):
        prepare_in_shards(TableConfig(interactions=str(tmp_path / "none")), tmp_path, 2)
    _, many, _ = write_tables(tmp_path)
    with pytest.raises(ConfigError, match="needs times"):
        prepare_in_shards(TableConfig(interactions=str(many), timestamp_column=""), tmp_path, 2)
    with pytest.raises(DataError, match="is a folder; prepare it with"):
        prepare(TableConfig(interactions=str(many)), tmp_path)
    assert main(["prepare", "--dataset", "demo", "--shards", "0"]) == 2
    assert "--shards: must be 1 or more, is 0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_data(tmp_path: Path) -> None:
    one, many, items = write_tables(tmp_path)
    table = ["dataset.name=shop", "dataset.source=table", f"dataset.items={items}"]
    command = [sys.executable, "-m", "eimf", "prepare", *table, f"dataset.interactions={many}"]
    command += [f"data.root={tmp_path / 'b'}", "--shards", "4", "--ray", "local"]
    environ = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environ)
    assert done.returncode == 0, done.stderr
    dataset = TableConfig(name="shop", items=str(items), interactions=str(many))
    whole = TableConfig(name="shop", items=str(items), interactions=str(one))
    same(prepare(whole, tmp_path / "a"), prepare(dataset, tmp_path / "b"))
