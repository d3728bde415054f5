"""Where a result comes from: configuration, data, labels, code, machine; and the key that equal runs share."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from eimf import __version__
from eimf.config.load import to_dict
from eimf.config.schema import Config
from eimf.core.files import sha256_json
from eimf.labels.jsonl import to_line
from eimf.labels.label import Label
from eimf.labels.source import label_source, read_labels

PACKAGE = Path(__file__).resolve().parents[1]


NOT_COMPUTING = (
    *("cli.py", "label_cli.py", "compare.py", "significance.py", "suite.py", "suite_cli.py", "tracking.py"),
    *("sweep.py", "sweep_cli.py", "trials.py", "naming.py", "recommender.py", "data/shop.py"),
)


NOT_COMPUTING_FOLDERS = ("report/", "explorer/")
"""Modules that only plan, show or compare runs: a change in them makes no result out of date."""


def run_key(config: Config, data_digest: str, label_digest: str) -> str:
    """Equal for runs that give the same numbers with the same code on the same machine.

    Left out is what changes no number: names, folders, loggers, the progress bar. Label and data files count by
    their content, not by their path.
    """
    values = to_dict(config)
    for section, name in (
        *(("trainer", "progress"), ("data", "root"), ("eimf", "labels"), ("eval", "rankings")),
        ("optim", "dense_limit"),
    ):
        del values[section][name]
    if config.eval.index == "flat":
        values["eval"] = {name: one for name, one in values["eval"].items() if name not in config.eval.index_options}
        values["eval"]["index"] = "flat"
    del values["logger"], values["experiment"], values["llm"]
    if not config.eimf.enabled:
        del values["eimf"], values["typical"]
    return sha256_json({"config": values, "data": data_digest, "labels": label_digest})


@cache
def code_digest() -> str:
    """SHA-256 of the package's sources that take part in a run."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in NOT_COMPUTING and not name.startswith(NOT_COMPUTING_FOLDERS):
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def label_digest(config: Config) -> str:
    """SHA-256 of the labels that a run would read; empty where it reads none.

    Raises:
        LabelError: there are no labels.
    """
    return digest_of(read_labels(label_source(config))) if config.eimf.enabled else ""


def digest_of(labels: Iterable[Label]) -> str:
    """SHA-256 of labels, whatever the order of users; of a user's labels the order counts, since the newest is used."""
    of_user: dict[str, list[str]] = {}
    for label in labels:
        of_user.setdefault(label.user_id, []).append(to_line(label))
    return sha256_json(sorted("\n".join(lines) for lines in of_user.values()))


@cache
def git_commit() -> str:
    """The checkout's commit, with `+changes` where files differ from it; empty outside a checkout."""

    def ask(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = ask("rev-parse", "--short=10", "HEAD")
        return commit + ("+changes" if commit and ask("status", "--porcelain", "--", str(PACKAGE)) else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def machine() -> dict[str, Any]:
    """What a timing depends on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def describe_run(config: Config, data_digest: str, labels: str) -> dict[str, Any]:
    """What `run.json` says of a run when it starts."""
    return {
        "key": run_key(config, data_digest, labels),
        "experiment": config.run_name,
        "seed": config.seed,
        "data_digest": data_digest,
        "label_digest": labels,
        "code": code_digest(),
        "commit": git_commit(),
        "package_version": __version__,
        "machine": machine(),
    }
