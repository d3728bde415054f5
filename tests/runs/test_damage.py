"""Damaged run folders: one line that names the file, from every command, and never a traceback."""

import random
import shutil
from pathlib import Path

import pytest

import eimf
from eimf.cli.main import main
from eimf.core.errors import ArtifactError, EimfError
from eimf.runs.folder import read_checkpoint, read_frame
from eimf.training.train import train
from tests.conftest import tiny_config

FILES = ["config.yaml", "run.json", "results.json", "metrics.csv", "items.parquet", "metrics.parquet"]
FILES += ["checkpoints/best.ckpt", "checkpoints/last.ckpt"]


@pytest.fixture(scope="module")
def folder(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_config(data_root, tmp_path_factory.mktemp("logs"), "trainer.max_epochs=1")).folder


def damage(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return rng.choice(
        [
            data[:at],
            b"",
            b"[]",
            data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
            data[:at] + rng.randbytes(40) + data[at + 40 :],
            b"\xff\xfe" + data,
            data.replace(b"1", b"x"),
        ]
    )


def damaged_run(seed: int, folder: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(seed)
    run = home / "run"
    shutil.copytree(folder, run)
    path = run / rng.choice(FILES)
    path.write_bytes(damage(rng, path.read_bytes()))
    commands = [["recommend", str(run), "--history", "P00001,P00002"], ["evaluate", str(run)], ["report", str(run)]]
    commands.append(["train", "--resume", str(run)])
    status = main(rng.choice(commands))
    captured = capsys.readouterr()
    assert status in (0, 2), (seed, path.name, captured.err)
    if status == 2:
        assert captured.err.count("\n") == 1, (seed, path.name, captured.err)


@pytest.mark.slow
def test_damaged_files_of_a_run_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(25):
        damaged_run(seed, folder, tmp_path / str(seed), capsys)


@pytest.mark.fuzz
def test_many_damaged_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(25, 325):
        damaged_run(seed, folder, tmp_path / str(seed), capsys)


def test_a_flipped_bit_in_the_weights_is_noticed(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    path = run / "checkpoints" / "best.ckpt"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"best.ckpt: cannot be loaded"):
        read_checkpoint(run)
    items = run / "items.parquet"
    changed = bytearray(items.read_bytes())
    changed[len(changed) // 2] ^= 1
    items.write_bytes(bytes(changed))
    shutil.copy(folder / "checkpoints" / "best.ckpt", path)
    with pytest.raises(EimfError, match=r"items.parquet: (changed|damaged)"):
        eimf.load(run)
    with pytest.raises(ArtifactError, match=r"no missing.parquet"):
        read_frame(run / "missing.parquet")


def test_a_best_checkpoint_that_was_damaged_before_a_resumption_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    data = (run / "checkpoints" / "best.ckpt").read_bytes()
    for damaged in (data[:100], data.replace(b"weight", b"height"), b""):
        (run / "checkpoints" / "best.ckpt").write_bytes(damaged)
        assert main(["train", "--resume", str(run)]) == 2
        error = capsys.readouterr().err
        assert "best.ckpt: cannot be loaded" in error
        assert error.count("\n") == 1


@pytest.mark.slow
def test_a_changed_setting_is_refused_by_resume_and_evaluate(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    text = (run / "config.yaml").read_text()
    for old, new in [("lr: 0.001", "lr: 0.1"), ("max_len: 20", "max_len: 9"), ("max_epochs: 1", "max_epochs: 0")]:
        assert old in text
        (run / "config.yaml").write_text(text.replace(old, new))
        key = old.split(":")[0]
        name = f".{key}:" if key == "max_epochs" else f".{key}"  # epochs have rules of their own
        for command in (["train", "--resume", str(run)], ["evaluate", str(run)]):
            assert main(command) == 2
            assert f"{name} is {new.split()[1]}, but the checkpoint was trained with" in capsys.readouterr().err
    (run / "config.yaml").write_text("dataset: {name: demo}\n")
    assert main(["evaluate", str(run)]) == 2
    assert "but the checkpoint was trained with" in capsys.readouterr().err
