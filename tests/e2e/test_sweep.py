"""Sweeps end to end: on this machine alone, and by W&B's own agent against a stand-in for its server."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from eimf.cli.main import main
from tests.conftest import ROOT, TINY
from tests.wandb_server import wandb_server

COMMAND = [
    *("${env}", "${interpreter}", "-m", "eimf", "train", "--dataset", "demo", "--backbone", "comirec_sa"),
    *("eval.test=false", "${args_no_hyphens}"),
]
GRID = {
    "method": "grid",
    "metric": {"name": "val/recall@50", "goal": "maximize"},
    "parameters": {"backbone.n_interests": {"values": [1, 2]}, "optim": {"parameters": {"lr": {"value": 0.002}}}},
    "command": COMMAND,
}


def write(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump({**GRID, **changes}))
    return path


def settings(data_root: Path, logs: Path) -> list[str]:
    return [*TINY, f"data.root={data_root}", f"logger.root={logs}"]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_grid_is_run_once_by_two_workers(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", str(write(tmp_path / "pair.yaml")), *settings(data_root, tmp_path), "--offline", "--workers=2"]
    assert main(command) == 0
    folder = tmp_path / "sweep-pair"
    found = rows(folder)
    assert sorted(row["backbone.n_interests"] for row in found) == ["1", "2"]
    values = [float(row["val/recall@50"]) for row in found]
    assert values == sorted(values, reverse=True)
    for row in found:
        run = Path(row["folder"])
        results = json.loads((run / "results.json").read_text())
        assert "test" not in results
        assert results["val"]["recall@50"] == pytest.approx(float(row["val/recall@50"]), abs=1e-6)
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["optim"]["lr"] == 0.002
        assert str(config["backbone"]["n_interests"]) == row["backbone.n_interests"]
    capsys.readouterr()
    assert main(command) == 0
    assert "starts" not in capsys.readouterr().out
    assert not list(folder.glob("trial-*/version_1"))
    assert main([*command, "--seed=1"]) == 2
    assert "holds trials of other settings" in capsys.readouterr().err


def test_a_killed_sweep_goes_on(data_root: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "long.yaml")
    arguments = ["sweep", str(file), *settings(data_root, tmp_path), "trainer.max_epochs=12", "trainer.patience=99"]
    command = [sys.executable, "-m", "eimf", *arguments, "--offline", "--workers=2"]
    folder = tmp_path / "sweep-long"
    sweep = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not list(folder.glob("trial-*/version_0/checkpoints/last.ckpt")) and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        sweep.send_signal(signal.SIGKILL)  # its runs go on without it, and must be ended by the next
        sweep.wait()
    states = [json.loads(path.read_text())["state"] for path in folder.glob("trial-*/trial.json")]
    assert "running" in states
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continues" in done.stdout
    found = rows(folder)
    assert [row["state"] for row in found] == ["finished"] * 2
    assert [row["epochs"] for row in found] == ["12"] * 2


def test_failed_and_stopped_runs_are_named(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # else the hub is asked for a minute
    # The encoder is looked up only when a run starts, so the check of the file lets it pass.
    parameters = {
        "text.item_init": {"values": ["text", "random"]},
        "text.encoder": {"value": "no/such-encoder"},
    }
    file = write(tmp_path / "bad.yaml", parameters=parameters)
    assert main(["sweep", str(file), "--offline", *settings(data_root, tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("eimf: bad: 1 of 2 runs failed: trial 0 (")
    assert {row["state"] for row in rows(tmp_path / "sweep-bad")} == {"finished", "failed"}


def test_hyperband_stops_a_run(data_root: Path, tmp_path: Path) -> None:
    # One good run first, then one that hardly learns.
    parameters = {"optim.lr": {"values": [0.005, 1.0e-7]}}
    file = write(tmp_path / "stop.yaml", parameters=parameters, early_terminate={"type": "hyperband", "min_iter": 2})
    more = ["trainer.max_epochs=40", "trainer.patience=99"]
    assert main(["sweep", str(file), "--offline", *settings(data_root, tmp_path), *more]) == 0
    first, second = sorted(rows(tmp_path / "sweep-stop"), key=lambda row: row["trial"])
    assert (first["state"], second["state"]) == ("finished", "stopped")
    assert 2 <= int(second["epochs"]) < 40


def test_bayes_proposes_and_ends(data_root: Path, tmp_path: Path) -> None:
    parameters = {"optim.lr": {"min": 0.001, "max": 0.01}, "backbone.n_interests": {"values": [1, 2]}}
    file = write(tmp_path / "b.yaml", method="bayes", parameters=parameters, run_cap=2)
    more = ["trainer.max_epochs=1"]
    assert main(["sweep", str(file), "--offline", *settings(data_root, tmp_path), *more]) == 0
    found = rows(tmp_path / "sweep-b")
    assert len({row["optim.lr"] for row in found}) == 2
    assert all(0.001 <= float(row["optim.lr"]) <= 0.01 for row in found)


def test_the_agent_of_wandb_starts_eimf_train(data_root: Path, tmp_path: Path) -> None:
    """The sweep is created and the agent runs, both by W&B's own code; only the run's log stays offline."""
    file = write(tmp_path / "pair.yaml")
    runs = [{"backbone.n_interests": 1, "optim": {"lr": 1e-05}}, {"backbone.n_interests": 2, "optim": {"lr": 0.002}}]
    with wandb_server(runs) as server:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
        environment |= {
            "WANDB_BASE_URL": server.address,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_DIR": str(tmp_path),
            "WANDB_CONFIG_DIR": str(tmp_path / "config"),
            "WANDB_CACHE_DIR": str(tmp_path / "cache"),
            "WANDB_MODE": "offline",
        }
        more = [*settings(data_root, tmp_path), "trainer.max_epochs=1", "logger.wandb=auto", "logger.checkpoint=true"]
        done = subprocess.run(
            [sys.executable, "-m", "eimf", "sweep", str(file), *more],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    created = yaml.safe_load(server.config)
    assert created["metric"] == GRID["metric"]
    assert created["command"][-1] == "${args_no_hyphens}"
    order = [name for name in server.asked if name in ("UpsertSweep", "SweepWithRuns", "CreateAgent", "Heartbeat")]
    assert order[:3] == ["UpsertSweep", "SweepWithRuns", "CreateAgent"]
    assert {"run0": True} in server.run_states
    configs = [yaml.safe_load(path.read_text()) for path in sorted(tmp_path.glob("demo-comirec_sa/*/config.yaml"))]
    assert [(one["backbone"]["n_interests"], one["optim"]["lr"]) for one in configs] == [(1, 1e-05), (2, 0.002)]
    for number in (0, 1):  # the run has the id that the server gave it
        (log,) = tmp_path.glob(f"demo-comirec_sa/version_*/wandb/offline-run-*-run{number}/*.wandb")
        content = log.read_bytes()
        for name in (b"final/table", b"data_digest", b"best-run", b"val/recall@50"):
            assert name in content
        assert b"0" * 40 not in content
