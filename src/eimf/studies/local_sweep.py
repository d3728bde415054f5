"""A sweep on this machine, without W&B. Each trial has its own process, and no trial is run twice.

Each trial has a small JSON file, written when it starts and when it ends. If anything is killed, the same command
continues from these files and from the checkpoints of the runs.
"""

import contextlib
import csv
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from eimf.config.effect import TRIAL
from eimf.core.errors import ConfigError
from eimf.core.files import lock, make_folder, sha256_json, write_json_atomic
from eimf.runs.curves import read_curves
from eimf.runs.versions import versions
from eimf.studies.sweep import Parameter, Sweep, arguments_of

log = logging.getLogger(__name__)

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"


POLL_S, PATIENCE_S = 0.3, 20.0
"""Seconds between checks of the trials, and for a trial to end before it is killed."""


@dataclass(frozen=True)
class Trial:
    """One trial, as in its file."""

    number: int
    point: list[float]
    """The parameters as shares of their distributions, from 0 to 1."""
    values: list[Any]
    """The values of the parameters in the run."""
    state: str = RUNNING
    """`running` (or killed), `finished`, `stopped` by hyperband, or `failed`."""
    objective: float | None = None
    """The best value of the metric over the epochs."""
    epochs: int = 0
    minutes: float = 0.0
    """Total time of training, also of a trial that was interrupted."""
    folder: str = ""
    reason: str = ""
    """Last line of a failed run's output."""
    pid: int = 0


@dataclass
class _Active:
    trial: Trial
    process: subprocess.Popen[bytes]
    history: list[float] = field(default_factory=list)
    stopped_at: float | None = None


class LocalSweep:
    """Runs a sweep in a folder below the run folders.

    Args:
        seed: seed of the search. With one worker, or without `bayes`, the trials are reproducible.

    Raises:
        ConfigError: the folder holds trials of another sweep.
    """

    def __init__(self, sweep: Sweep, seed: int = 0) -> None:
        self.sweep, self.seed = sweep, seed
        self.folder = Path(sweep.config.logger.root) / f"sweep-{sweep.name}"
        make_folder(self.folder)
        given = {key: value for key, value in sweep.raw.items() if key in ("method", "metric", "parameters")}
        digest = sha256_json({"sweep": given, "arguments": sweep.arguments, "seed": seed})
        file = self.folder / "sweep.json"
        if file.is_file() and json.loads(file.read_text())["digest"] != digest:
            raise ConfigError(
                f"{self.folder}: holds trials of other settings of {sweep.path}; move the folder away, or give this "
                "sweep file another name."
            )
        write_json_atomic(file, {"digest": digest, "file": str(sweep.path), "seed": seed})
        self.trials = self._read()

    def _read(self) -> dict[int, Trial]:
        trials = {}
        for path in sorted(self.folder.glob("trial-*/trial.json")):
            trial = Trial(**json.loads(path.read_text()))
            trials[trial.number] = trial
        return trials

    def run(self, workers: int, runs: int | None, retry: bool = False) -> None:
        """Run the missing ones of `runs` trials (default: the number in the file), several at a time.

        Raises:
            ArtifactError: another process runs this sweep.
        """
        goal = min((limit for limit in (runs, self.sweep.size) if limit is not None), default=None)
        if goal is None:
            raise ConfigError(f"{self.sweep.path}: run_cap: {self.sweep.method} has no end; set it, or give --runs N.")
        with self._locked():
            left = [
                n for n, trial in self.trials.items() if trial.state == RUNNING or (retry and trial.state == FAILED)
            ]
            for number in left:
                _end_orphan(self.trials[number])
            waiting = sorted(n for n in left if n < goal) + [n for n in range(goal) if n not in self.trials]
            active: list[_Active] = []
            try:
                while waiting or active:
                    while waiting and len(active) < workers:
                        active.append(self._start(waiting.pop(0), goal, workers))
                    time.sleep(POLL_S)
                    active = [running for running in active if not self._look_at(running, active)]
            finally:  # Ctrl-C or an error here: end the runs so that they can be continued
                for running in active:
                    running.process.send_signal(signal.SIGINT)
                for running in active:
                    _wait_or_kill(running.process)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return lock(self.folder / ".lock", "another process runs this sweep; wait for it or end it.")

    def _start(self, number: int, goal: int, workers: int) -> _Active:
        sweep, home = self.sweep, self.folder / f"trial-{number:04d}"
        trial = self.trials.get(number)
        if trial is None:
            point = propose(sweep, number, list(self.trials.values()), self.seed)
            trial = Trial(number, point, _values(sweep, number, point))
        home.mkdir(exist_ok=True)
        folder = _last_run(home)
        if folder is not None and (folder / "checkpoints/last.ckpt").is_file():
            arguments = ["--resume", str(folder)]
        else:
            # These come last: they keep the run in its folder, and without network.
            fixed = [f"logger.root={self.folder}", f"experiment={home.name}", "trainer.progress=false"]
            offline = (
                [] if any(text.startswith("logger.wandb=") for text in sweep.arguments) else ["logger.wandb=disabled"]
            )
            arguments = [*sweep.arguments, *arguments_of(sweep.parameters, trial.values), *fixed, *offline]
        with (home / "log.txt").open("a") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "eimf", "train", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # this process passes Ctrl-C on
                # Concurrent runs share the cores. Threads that wait for each other would waste them.
                env={"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers)), TRIAL: "1", **os.environ},
            )
        trial = replace(trial, state=RUNNING, reason="", pid=process.pid)
        self._keep(trial)
        verb = "continues" if arguments[0] == "--resume" else "starts"
        log.info(f"[{number + 1}/{goal}] {verb}: {' '.join(arguments_of(sweep.parameters, trial.values))}")
        return _Active(trial, process)

    def _keep(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        write_json_atomic(self.folder / f"trial-{trial.number:04d}" / "trial.json", asdict(trial))

    def _look_at(self, running: _Active, active: Sequence[_Active]) -> bool:
        """Update the state of a trial; true if it has ended."""
        home = self.folder / f"trial-{running.trial.number:04d}"
        status = running.process.poll()
        folder = _last_run(home)
        running.history, seconds = read_curve(folder, self.sweep.metric)
        if status is None:
            if running.stopped_at is None and self.sweep.hyperband is not None and self._falls_behind(running, active):
                running.stopped_at = time.monotonic()
                running.process.send_signal(signal.SIGINT)  # as Ctrl-C: the run completes its files
            elif running.stopped_at is not None and time.monotonic() - running.stopped_at > PATIENCE_S:
                running.process.kill()
            return False
        state = FINISHED if status == 0 else STOPPED if running.stopped_at is not None else FAILED
        lines = (home / "log.txt").read_text(errors="replace").strip().splitlines() or ["nothing was said"]
        trial = replace(
            running.trial,
            state=state,
            objective=max(running.history, default=None),
            epochs=len(running.history),
            minutes=round(seconds / 60, 3),
            folder=str(folder or home),
            reason=lines[-1][:300] if state == FAILED else "",
            pid=0,
        )
        self._keep(trial)
        value = "nothing" if trial.objective is None else f"{self.sweep.metric} {trial.objective:.4f}"
        log.info(f"trial {trial.number} {state}: {value}" + (f"; it said: {trial.reason}" if trial.reason else ""))
        return True

    def _falls_behind(self, candidate: _Active, active: Sequence[_Active]) -> bool:
        assert self.sweep.hyperband is not None
        histories = [other.history for other in active]
        running = {other.trial.number for other in active}
        for trial in self.trials.values():
            if trial.number not in running and trial.folder and trial.state != RUNNING:
                histories.append(read_curve(Path(trial.folder), self.sweep.metric)[0])
        losses = [[-value for value in history] for history in histories]
        return self.sweep.hyperband.stops([-value for value in candidate.history], losses)

    def ranked(self) -> list[Trial]:
        """All trials: the best first, those without a value last."""
        return sorted(
            self.trials.values(),
            key=lambda trial: (
                trial.state == FAILED,
                -trial.objective if trial.objective is not None else math.inf,
                trial.number,
            ),
        )

    def write_table(self) -> Path:
        """Write `trials.csv`, with the best trial first."""
        path = self.folder / "trials.csv"
        names = [parameter.name for parameter in self.sweep.parameters]
        header = ["trial", *names, self.sweep.metric, "epochs", "minutes", "state", "folder", "reason"]
        with (self.folder / ".trials.partial").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for trial in self.ranked():
                value = "" if trial.objective is None else trial.objective
                writer.writerow(
                    [
                        trial.number,
                        *trial.values,
                        value,
                        trial.epochs,
                        trial.minutes,
                        trial.state,
                        trial.folder,
                        trial.reason,
                    ]
                )
        (self.folder / ".trials.partial").replace(path)
        return path


def propose(sweep: Sweep, number: int, trials: Sequence[Trial], seed: int) -> list[float]:
    """Choose the point of a trial, as a share of each parameter's distribution. Depends only on the arguments.

    Random points depend on seed and number only. `bayes` is Optuna's tree-structured Parzen estimator, given all
    trials so far. Running trials count as bad, so that workers choose different points.
    """
    if sweep.method == "grid":
        return []
    if sweep.method == "random":
        return np.random.default_rng([seed, number]).random(len(sweep.parameters)).tolist()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed * 100_003 + number))
    spaces = {parameter.name: _space(parameter) for parameter in sweep.parameters}
    worst = min((trial.objective for trial in trials if trial.objective is not None), default=0.0)
    for trial in trials:
        if trial.state == FAILED:
            continue
        point = {
            parameter.name: parameter.index(share) if parameter.values else share
            for parameter, share in zip(sweep.parameters, trial.point, strict=True)
        }
        value = worst if trial.objective is None else trial.objective
        study.add_trial(optuna.trial.create_trial(params=point, distributions=spaces, value=value))
    proposal = study.ask(spaces).params
    shares = []
    for parameter in sweep.parameters:
        share = proposal[parameter.name]
        if parameter.values:  # the index of a value: take the middle of its share
            share = np.cumsum((0.0, *parameter.shares))[share] + parameter.shares[share] / 2
        shares.append(float(share))
    return shares


def _space(parameter: Parameter) -> Any:
    import optuna

    if parameter.values:
        return optuna.distributions.CategoricalDistribution(tuple(range(len(parameter.values))))
    return optuna.distributions.FloatDistribution(0.0, 1.0)


def _values(sweep: Sweep, number: int, point: Sequence[float]) -> list[Any]:
    if sweep.method == "grid":
        return list(sweep.grid[number])
    return [parameter.at(share) for parameter, share in zip(sweep.parameters, point, strict=True)]


def read_curve(folder: Path | None, metric: str) -> tuple[list[float], float]:
    """A metric's value at each epoch, and the total seconds of the epochs."""
    rows = read_curves(folder / "metrics.csv") if folder is not None else []
    values = [row[metric] for row in rows if metric in row]
    return [value for value in values if math.isfinite(value)], sum(row["seconds"] for row in rows)


def _last_run(home: Path) -> Path | None:
    return next((path for _, path in reversed(versions(home))), None)


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_orphan(trial: Trial) -> None:
    """End a run whose sweep was killed: two processes must not write to one folder."""
    with contextlib.suppress(psutil.Error):  # the process has ended, or is another user's
        process = psutil.Process(trial.pid) if trial.pid else None
        if process is not None and f"trial-{trial.number:04d}" in " ".join(process.cmdline()):
            process.kill()  # ids are reused, so its command is checked above
            process.wait(PATIENCE_S)
