"""A disk or a path that refuses: one line, exit status 2, and nothing half-written, from every command that writes."""

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars
import pytest

from eimf.cli.main import main
from eimf.core.artifacts import new_artifact
from eimf.core.errors import ArtifactError
from eimf.core.files import replacing, write_parquet, write_text_atomic
from eimf.data.prepared import Prepared
from tests.conftest import TINY
from tests.fault_server import GOOD, completion, serve

SWEEP = """program: eimf
command: [eimf, train]
method: random
metric: {name: val/recall@20, goal: maximize}
run_cap: 1
parameters:
  optim.lr: {values: [0.001]}
"""


@contextmanager
def full_disk(bytes_left: int = 100) -> Iterator[None]:
    """No file can grow beyond some bytes, as if the disk were full. Child processes have the same limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def run(data_root: Path, tiny: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("logs")
    assert main(["train", *TINY, "trainer.max_epochs=1", f"data.root={data_root}", f"logger.root={logs}"]) == 0
    return next(logs.glob("*/version_0"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2, (arguments, capsys.readouterr())
    error = capsys.readouterr().err
    assert error.startswith("eimf: "), error
    assert error.count("\n") == 1, error
    return error


def commands(home: Path, run: Path, data_root: Path) -> dict[str, list[str]]:
    """Commands that write below `home`."""
    common = [*TINY, f"data.root={data_root}"]
    (home.parent / "sweep.yaml").write_text(SWEEP)
    return {
        "prepare": ["prepare", *TINY, f"data.root={home}/data"],
        "simulate": ["simulate", f"{home}/shop", "--users", "20", "--items", "60"],
        "train": ["train", *common, f"logger.root={home}/logs"],
        "compare": ["compare", "interests", *common, f"logger.root={home}/logs", "seeds=[0]"],
        "sweep": ["sweep", f"{home.parent}/sweep.yaml", "--offline", *common, f"logger.root={home}/logs"],
        "report": ["report", str(run), "--to", f"{home}/page.html"],
        "label export": ["label", "export", "--to", f"{home}/labels.jsonl", *common],
    }


@pytest.mark.parametrize("name", ["prepare", "simulate", "train", "compare", "sweep", "report"])
@pytest.mark.slow
def test_a_full_disk(name: str, run: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    arguments = commands(home, run, data_root)[name]
    with full_disk():
        error = refused(arguments, capsys)
    assert "File too large" in error or "full" in error or "could not be written" in error
    kept = {path for path in contents(home) if not path.endswith(".lock") and "/logs/logs/" not in path}
    assert not [path for path in kept if "partial" in path]
    assert not kept or name in ("compare", "sweep"), kept


@pytest.mark.parametrize("limit", [2_000, 20_000, 40_000])
def test_a_training_run_that_fills_the_disk_keeps_whole_files(
    limit: int, data_root: Path, tiny: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk(limit):
        refused(["train", *TINY, f"data.root={data_root}", f"logger.root={tmp_path}"], capsys)
    assert not list(tmp_path.rglob("version_*"))  # without a checkpoint there is nothing to continue


@pytest.mark.parametrize("command", ["index", "report", "resume"])
@pytest.mark.slow
def test_a_full_disk_leaves_a_finished_run_as_it_was(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "version_0"
    shutil.copytree(run, copy)
    before = contents(copy)
    arguments = ["train", "--resume", str(copy)] if command == "resume" else [command, str(copy)]
    with full_disk():
        refused(arguments, capsys)
    assert contents(copy) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepare", "simulate", "train", "compare", "sweep", "report", "label export"])
def test_paths_that_cannot_be(
    name: str, run: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    for home in (file / "below", tmp_path / ("x" * 300), Path("/proc/none")):
        refused(_at(home, name, run, data_root, tmp_path), capsys)
    assert file.read_text() == "no folder"


def _at(home: Path, name: str, run: Path, data_root: Path, tmp_path: Path) -> list[str]:
    given = commands(tmp_path / "home", run, data_root)[name]
    return [text.replace(str(tmp_path / "home"), str(home)) for text in given]


@pytest.mark.parametrize(
    "command", ["index", "report", "recommend --history a", "evaluate", "train --resume", "explore --port 0"]
)
def test_run_folders_that_cannot_be(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    name, *rest = command.split()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300), tmp_path / "none"):
        refused([name, *rest, str(folder)], capsys)


@pytest.mark.slow
def test_labels_on_a_full_disk(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai", reason="the extra llm is not installed")
    shutil.copytree(data_root, tmp_path / "data")
    arguments = ["label", "run", *TINY, f"data.root={tmp_path}/data", "typical.budget=3", "typical.clusters=2"]
    with serve(lambda *_: completion(GOOD)) as server:
        arguments += ["llm.model=m", f"llm.base_url={server.url}"]
        assert main([*arguments, "--dry-run"]) == 0  # encodes the titles
        with full_disk(20_000):
            error = refused(arguments, capsys)
        assert "disk is full or refuses" in error
        assert main(arguments) == 0  # and goes on once there is space


def test_devices_and_folders_are_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "folder").mkdir()
    for path in (pipe, tmp_path / "folder"):
        with pytest.raises(ArtifactError, match="is no regular file"):
            write_text_atomic(path, "text")
    assert pipe.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_errors_of_polars_name_the_file_system(tmp_path: Path) -> None:
    frame = polars.DataFrame({"number": range(10_000)})
    path, other = tmp_path / "t.parquet", tmp_path / "folder"
    for table in (frame, frame.lazy()):
        with (
            full_disk(10),
            pytest.raises(ArtifactError, match=r"t.parquet: could not be written"),
            replacing(path) as work,
        ):
            write_parquet(table, work)
        with full_disk(10), pytest.raises(ArtifactError, match=r"nothing was kept"), new_artifact(other) as folder:
            write_parquet(table, folder / "t.parquet")
    assert not list(tmp_path.iterdir())
