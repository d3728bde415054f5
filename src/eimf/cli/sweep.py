"""The command `eimf sweep`: search settings by a W&B sweep file, at W&B or on this machine alone."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eimf.cli.arguments import Commands, add_command
from eimf.cli.train import load_train
from eimf.core.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from eimf.studies.sweep import Sweep

log = logging.getLogger(__name__)


def add_commands(commands: Commands) -> None:
    """Add the command `eimf sweep`."""
    parser = add_command(
        commands,
        "sweep",
        _sweep,
        "search settings on validation users, at W&B or here",
        examples=("eimf sweep experiments/sweeps/demo_small.yaml --offline", "eimf sweep --join me/eimf/a1b2c3d4"),
        page="howto/sweep.md",
    )
    parser.add_argument("file", nargs="?", metavar="SWEEP.yaml", help="such as experiments/sweeps/demo_small.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all runs")
    parser.add_argument("--offline", action="store_true", help="search here, without W&B; the same command continues")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="runs at a time (offline; default 1)")
    parser.add_argument("--runs", type=int, metavar="N", help="end after N runs (default: what the file says)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the search (offline; default 0)")
    parser.add_argument("--retry", action="store_true", help="run failed trials again (offline)")
    parser.add_argument("--join", metavar="ID", help="start an agent of the W&B sweep [entity/project/]ID")


def _sweep(options: argparse.Namespace) -> None:
    from eimf.studies.sweep import read_sweep

    for name, value, least in (("workers", options.workers, 1), ("runs", options.runs, 1), ("seed", options.seed, 0)):
        if value is not None and value < least:
            raise ConfigError(f"--{name}: must be at least {least}, is {value}.")
    if (options.file is None) == (options.join is None):
        raise ConfigError("eimf sweep: give a sweep file, or --join ID of a sweep at W&B.")
    if options.join is not None:
        start_agent(options.join, options.runs)
        return
    if wrong := [text for text in options.overrides if "=" not in text]:
        raise ConfigError(f"{wrong[0]!r}: an override is key=value, for example optim.lr=0.002.")
    sweep = read_sweep(options.file, options.overrides, load_train)
    if options.offline:
        _run_here(sweep, options)
    else:
        start_agent(create_sweep(sweep), options.runs)


def create_sweep(sweep: "Sweep") -> str:
    """Create the sweep at W&B; returns its id.

    Raises:
        ConfigError: W&B cannot be reached, or refuses.
    """
    import wandb

    try:
        raw = {"name": sweep.name, **sweep.raw}
        sweep_id = wandb.sweep(raw, raw.get("entity"), raw.get("project", sweep.config.logger.project))
    except Exception as error:  # wandb, requests and its own service have no common base class
        raise ConfigError(f"W&B: {_first_line(error)}. Without an account or network: --offline.") from None
    print(f"another agent, on any machine: eimf sweep --join {sweep_id}", flush=True)
    return sweep_id


def start_agent(sweep_id: str, runs: int | None = None) -> None:
    """Run W&B's agent in this process: it starts `eimf train` with the settings that the server gives."""
    import wandb

    # The sweep's ${interpreter} is `python`; it must be the one that has eimf.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    *owner, name = sweep_id.split("/")
    if owner:
        os.environ["WANDB_PROJECT"] = owner[-1]
    project = os.environ.setdefault("WANDB_PROJECT", "eimf")
    entity = owner[0] if len(owner) == 2 else None
    try:
        wandb.agent(name, entity=entity, project=project, count=runs)
    except Exception as error:  # of no common base class, as above
        raise ConfigError(f"W&B: sweep {sweep_id}: {_first_line(error)}.") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _run_here(sweep: "Sweep", options: argparse.Namespace) -> None:
    from eimf.studies.local_sweep import FAILED, LocalSweep

    local = LocalSweep(sweep, options.seed)
    try:
        local.run(options.workers, options.runs, options.retry)
    finally:
        path = local.write_table()
    console = Console()
    table = Table(title=f"{sweep.name}: {len(local.trials)} trials, {sweep.metric} of validation users")
    names = [parameter.name for parameter in sweep.parameters]
    for column in ("trial", *names, sweep.metric, "epochs", "minutes", "state", "folder"):
        table.add_column(column, overflow="fold")
    for trial in local.ranked():
        value = "" if trial.objective is None else f"{trial.objective:.4f}"
        shown = [f"{part:.4g}" if isinstance(part, float) else str(part) for part in trial.values]
        row = [
            trial.number,
            *shown,
            value,
            trial.epochs,
            f"{trial.minutes:.1f}",
            trial.state,
            os.path.relpath(trial.folder or local.folder, local.folder),
        ]
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)
    log.info(f"written: {path} (folders are relative to its own)")
    if failed := [trial for trial in local.ranked() if trial.state == FAILED]:
        names_of_failed = "; ".join(f"trial {trial.number} ({trial.reason})" for trial in failed)
        raise ArtifactError(
            f"{sweep.name}: {len(failed)} of {len(local.trials)} runs failed: {names_of_failed}. See log.txt in their "
            f"folders in {local.folder}; --retry runs them again."
        )
