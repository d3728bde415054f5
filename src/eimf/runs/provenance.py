"""Describes where a result comes from (configuration, data, labels, code, machine); equal runs share a key."""

import ast
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from eimf.config.components import BACKBONES, LOSSES, METRICS, SOURCES, TASKS
from eimf.config.load import to_dict
from eimf.config.schema import Config
from eimf.core.errors import ConfigError, LabelError
from eimf.core.files import sha256_file, sha256_json
from eimf.core.version import VERSION
from eimf.labels.jsonl import to_line
from eimf.labels.label import Label
from eimf.labels.source import label_source, read_labels
from eimf.runs.folder import BEST, TEXT_MAP

PACKAGE = Path(__file__).resolve().parents[1]
COMPUTING = ("eimf.training.train", "eimf.training.evaluate")
"""Modules that compute a run. These and all modules that they import affect its numbers."""
SCHEMA = "eimf.config.schema"
"""Settings count by their values; of this module, only what functions derive from settings counts."""
RECORDING = (
    *("eimf.config", "eimf.core", "eimf.training.callbacks.curves", "eimf.training.callbacks.progress"),
    *(f"eimf.runs.{name}" for name in ("curves", "interest_names", "provenance", "results", "tracking")),
)
"""Modules and packages that are left out: they read, write or show, and compute no numbers."""


def run_key(config: Config, data_digest: str, label_digest: str, inputs: Mapping[str, str] | None = None) -> str:
    """Equal for runs that give the same numbers with the same code on the same machine.

    Settings that change no number are left out: names, folders, loggers, the progress bar. Files count by their
    content, not by their path.

    Args:
        inputs: see `input_digests`.
    """
    values = to_dict(config)
    for section, name in (
        *(("trainer", "progress"), ("data", "root"), ("eimf", "labels"), ("eval", "rankings")),
        *(("optim", "dense_limit"), ("dataset", "urls"), ("dataset", "sha256")),
        *(("text", "vectors"), ("eval", "labels")),
    ):
        del values[section][name]
    del values["logger"], values["experiment"], values["llm"], values["typical"], values["start"]
    if not config.eimf.enabled:
        del values["eimf"]
    return sha256_json({"config": values, "data": data_digest, "labels": label_digest} | dict(inputs or {}))


def input_digests(config: Config) -> dict[str, str]:
    """SHA-256 of what a run reads beside data and labels: own item vectors, the run that it starts from, the labels of
    held-out users, and the modules of components that are not ours.

    Raises:
        ConfigError: a file is missing, or a component is unknown.
        LabelError: there are no such labels.
    """
    paths = {"text.vectors": Path(config.text.vectors)} if config.text.vectors else {}
    if config.start:
        paths |= {"start": Path(config.start) / BEST}
        if (text_map := Path(config.start) / TEXT_MAP).is_file():
            paths |= {"start.text_map": text_map}
    for key, path in paths.items():
        if not path.is_file():
            raise ConfigError(f"{key}: {path} is not a file; give the path of an existing one.")
    digests = {key: sha256_file(path) for key, path in paths.items()} | outside_digests(config)
    if config.eval.labels:
        if not Path(config.eval.labels).is_file():
            raise LabelError(f"eval.labels: {config.eval.labels}: no such file; correct its path.")
        digests["eval.labels"] = digest_of(read_labels(config.eval.labels))
    return digests


@cache
def code_digest() -> str:
    """SHA-256 of the code that computes a run: of its syntax trees, without docstrings and messages.

    The modules are found by following imports from `COMPUTING`, and from all components that a configuration can name.
    Changes of a comment, a docstring, or the text of an error or a log line do not change the digest.
    """
    digest = hashlib.sha256()
    for name in sorted(computing_modules()):
        path = _path_of(name)
        assert path is not None
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if name == SCHEMA:
            tree = ast.Module([node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)], [])
        digest.update(name.encode() + b"\0" + _dump(tree) + b"\0")
    return digest.hexdigest()


def _dump(tree: ast.AST) -> bytes:
    return ast.dump(_Bare().visit(tree)).encode()


def outside_digests(config: Config) -> dict[str, str]:
    """SHA-256 of the modules that hold the components of other packages which a configuration names.

    Raises:
        ConfigError: a component is unknown, or cannot be imported.
    """
    named = {
        "backbone.name": (BACKBONES, config.backbone.name),
        "loss.name": (LOSSES, config.loss.name),
        "dataset.source": (SOURCES, config.dataset.source),
        **{f"eimf.tasks.{name}": (TASKS, name) for name in config.eimf.tasks},
        **{f"metric.{name}": (METRICS, name) for name in METRICS},
    }
    digests = {}
    for key, (registry, name) in named.items():
        if name in registry.known:
            continue
        _ = registry[name]  # imports it, or says why it cannot be
        path = getattr(sys.modules[registry.module_of(name)], "__file__", None)
        if path and path.endswith(".py"):
            digests[key] = hashlib.sha256(_dump(ast.parse(Path(path).read_text(encoding="utf-8")))).hexdigest()
    return digests


def computing_modules() -> set[str]:
    """Names of the package's modules that take part in computing a run."""
    components = [path for registry in (BACKBONES, LOSSES, METRICS, SOURCES, TASKS) for path in registry.known.values()]
    waiting = [*COMPUTING, SCHEMA, *(path.partition(":")[0] for path in components)]
    modules: set[str] = set()
    while waiting:
        name = waiting.pop()
        path = _path_of(name)
        left_out = name != SCHEMA and any(name == other or name.startswith(f"{other}.") for other in RECORDING)
        if path is None or name in modules or left_out:
            continue
        modules.add(name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
    return modules


def _path_of(module: str) -> Path | None:
    """The file of one of the package's modules."""
    first, *rest = module.split(".")
    if first != PACKAGE.name:
        return None
    place = PACKAGE.joinpath(*rest)
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


class _Bare(ast.NodeTransformer):
    """Drops nodes that compute nothing: standalone texts, arguments of errors, log lines, warnings, and imports.

    An import under another name is kept: the rest of the module does not tell what that name means.
    """

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant):
            return None
        if isinstance(node.value, ast.Call):
            function = node.value.func
            if (
                isinstance(function, ast.Attribute)
                and isinstance(function.value, ast.Name)
                and function.value.id in ("log", "warnings")
            ):
                return None
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return ast.Assert(test=node.test, msg=None)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(exc=kind, cause=None)

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        renamed = [alias for alias in node.names if alias.asname]
        return ast.Import(renamed) if renamed else None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        renamed = [alias for alias in node.names if alias.asname]
        return ast.ImportFrom(node.module, renamed, node.level) if renamed else None


def label_digest(config: Config) -> str:
    """SHA-256 of the labels that a run would read; empty if it reads none.

    Raises:
        LabelError: there are no labels.
    """
    return digest_of(read_labels(label_source(config))) if config.reads_labels else ""


def digest_of(labels: Iterable[Label]) -> str:
    """SHA-256 of labels. The order of users has no effect; that of a user's labels has, since the newest is used."""
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
    """The parts of the machine that timings depend on."""
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


def describe_run(config: Config, data_digest: str, labels: str, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The content of `run.json` when a run starts."""
    return {
        "key": run_key(config, data_digest, labels, inputs),
        "experiment": config.run_name,
        "seed": config.seed,
        "data_digest": data_digest,
        "label_digest": labels,
        "inputs": dict(inputs),
        "code": code_digest(),
        "commit": git_commit(),
        "package_version": VERSION,
        "machine": machine(),
    }
