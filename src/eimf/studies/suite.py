"""Suites: one YAML names variants and seeds; their runs are made one after the other, each once.

An existing run with equal configuration, data, labels and code is used again. An interrupted run is continued. So a
suite can be stopped at any time, and variants or seeds can be added without repeating runs.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from eimf.config.checks import check_component
from eimf.config.effect import Idle
from eimf.config.load import (
    Layer,
    files_for,
    find_experiment,
    ignored,
    load,
    merge_layers,
    named,
    names_in,
    read_layers,
    read_yaml,
    resolve,
    to_yaml,
)
from eimf.config.schema import Config, SplitConfig
from eimf.core.errors import ArtifactError, ConfigError
from eimf.core.files import is_locked, make_folder, write_text_atomic
from eimf.core.options import nearest
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared
from eimf.evaluation.agreement import METRIC as AGREEMENT
from eimf.evaluation.metrics import CATEGORY_RECALL
from eimf.labels.source import label_source
from eimf.runs.folder import LAST, LOCK, RESULTS, RUN, read_run
from eimf.runs.provenance import code_digest, input_digests, label_digest, run_key

log = logging.getLogger(__name__)


KEYS = ("suite", "question", "baseline", "seeds", "resplit", "metrics", "settings", "variants")
OPTIONS = ("suite", "baseline", "seeds", "resplit", "only")
"""What an override can change besides settings."""


COMMON = "settings"
"""The key of a suite's settings for all variants."""
FINISHED, RUNNING, RESUMABLE, MISSING = "finished", "running", "interrupted", "missing"


@dataclass(frozen=True)
class Suite:
    """A question, and the runs that answer it."""

    name: str
    question: str
    baseline: str
    """The variant that the others are compared with."""
    seeds: tuple[int, ...]
    resplit: bool
    """Whether each seed also has its own training, validation and test users (`split.seed` is the seed)."""
    metrics: tuple[str, ...]
    """Metric keys of the table, such as `recall@20`; empty: recall, NDCG and hit rate at all cut-offs."""
    variants: dict[str, list[Config]]
    """Configurations of each variant, one per seed."""
    labels: dict[str, str]
    """Names for tables and reports, of the variants that have one (`label`)."""

    @property
    def folder(self) -> Path:
        """Folder of its new runs and of its comparison."""
        first = next(iter(self.variants.values()))[0]
        return Path(first.logger.root)

    @property
    def first(self) -> Config:
        return self.variants[self.baseline][0]


class Found(NamedTuple):
    """A run that exists."""

    folder: Path
    key: str
    """See `eimf.runs.provenance.run_key`."""
    this_code: bool
    """Whether the current code made it."""
    state: str
    """`finished`, `interrupted`, or `running` (in another process of this machine)."""
    time: float
    """Start time in Unix seconds."""


@dataclass(frozen=True)
class Planned:
    """One run of a suite, and the existing run for it, if any."""

    variant: str
    config: Config
    found: Found | None

    @property
    def state(self) -> str:
        """`finished`, `interrupted`, `running` or `missing`."""
        return self.found.state if self.found else MISSING

    @property
    def title(self) -> str:
        return f"{self.variant}, seed {self.config.seed}"


def read_suite(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Suite:
    """Read a suite's YAML: `variants` maps names to settings, on top of the common `settings`.

    The base of each variant is the experiment file of its data set and backbone (`experiments/beauty/mind.yaml`), as in
    `eimf train --dataset beauty --backbone mind`.

    A variant's `label` is its name in tables and reports; it changes no run.

    Args:
        path: a file, or the name of one in experiments/suites.
        overrides: settings for all variants, such as `dataset=toys trainer.max_epochs=5`; also `seeds=[0,1]`,
            `only=[VARIANT,VARIANT]`, `resplit=true`, `suite=NAME` and `baseline=VARIANT`.

    Raises:
        ConfigError: names the file, the key, the value and the fix.
    """
    named_suite = find_experiment(f"suites/{path}.yaml")
    if named_suite is None and not Path(path).exists():
        name, here = str(path), [str(file) for file in Path(path).parent.glob("*.yaml")]
        hint = nearest(name, here) or nearest(Path(name).stem, names_in("suites"))
        raise ConfigError(
            f"{name!r}: no such suite{hint}; give a YAML file, or one of "
            f"{', '.join(names_in('suites'))} (experiments/suites)."
        )
    path = named_suite if named_suite and not Path(path).is_file() else Path(path)
    values = read_yaml(path)
    if unknown := [key for key in values if key not in KEYS]:
        raise ConfigError(f"{path}: {unknown[0]}: no such key; a suite has {', '.join(KEYS)}.")
    variants, name = values.get("variants"), str(values.get("suite", Path(path).stem))
    if not isinstance(variants, Mapping) or not variants:
        raise ConfigError(f"{path}: variants: must map names to settings, is {variants!r}.")
    common = _mapping(values.get("settings"), f"{path}: settings")
    given = _options(overrides)
    seeds = _seeds(values.get("seeds", [0]), given.get("seeds"), path)
    name = given.get("suite", name)  # the same suite with other settings needs its own folder
    resplit = _switch(given.get("resplit", values.get("resplit", False)), f"{path}: resplit")
    settings = {variant: _mapping(own, f"{path}: variants.{variant}") for variant, own in variants.items()}
    labels = {
        str(variant): _label(own.pop("label"), f"{path}: variants.{variant}")
        for variant, own in settings.items()
        if own.get("label") is not None
    }
    _check_used(path, [_layers(common, own, []) for own in settings.values()])
    settings = _only(settings, given.get("only"), path)
    overrides = [text for text in overrides if text.partition("=")[0] not in OPTIONS]
    check_component(name, f"{path}: suite")
    for variant in settings:
        check_component(str(variant), f"{path}: variants")
    baseline = given.get("baseline", str(values.get("baseline", next(iter(settings)))))
    if baseline not in settings:
        raise ConfigError(f"{path}: baseline: {baseline!r} is not a variant here; choose one of {', '.join(settings)}.")
    configs_of: dict[str, list[Config]] = {}
    layers_of: list[list[Layer]] = []
    for variant, own in settings.items():
        try:
            layers_of.append(_layers(common, own, overrides))
            config = resolve(layers_of[-1])
        except ConfigError as error:
            raise ConfigError(f"{path}: variants.{variant}: {error}") from None
        root = str(Path(config.logger.root) / f"{config.dataset.name}-{name}")
        configs_of[str(variant)] = [
            replace(
                config,
                seed=seed,
                split=replace(config.split, seed=seed) if resplit else config.split,
                experiment=f"{variant}-seed{seed}",
                logger=replace(config.logger, root=root),
            )
            for seed in seeds
        ]
        if resplit:
            _check_resplit(config.split, f"{path}: variants.{variant}")
    if overrides:
        _check_used(path, layers_of)
    first = configs_of[baseline][0]
    for variant, configs in configs_of.items():
        if (configs[0].dataset, configs[0].split) != (first.dataset, first.split):
            raise ConfigError(
                f"{path}: variants.{variant}: its dataset or split differs from the baseline's; results are compared "
                "user by user, so give a suite for each."
            )
    metrics = tuple(map(str, values.get("metrics") or _metrics(first)))
    # Without categories or without eval.labels, the last two are empty.
    known = [*first.metric_keys, *(f"{CATEGORY_RECALL}@{k}" for k in first.cutoffs), AGREEMENT]
    if wrong := [metric for metric in metrics if metric.removeprefix("raw/") not in known]:
        raise ConfigError(f"{path}: metrics: {wrong[0]!r} is not computed; choose of {', '.join(sorted(known))}.")
    return Suite(name, str(values.get("question", "")), baseline, seeds, resplit, metrics, configs_of, labels)


def _layers(common: Mapping[str, Any], own: Mapping[str, Any], overrides: Sequence[str]) -> list[Layer]:
    """The layers of a variant: the files of its data set and backbone, whose names all other layers may change, the
    settings of the suite, its own, and the overrides. What is for all variants may have no effect in some of them."""
    settings = [Layer(COMMON, dict(common), strict=False), Layer("variant", dict(own))]
    chosen = merge_layers([layer._replace(values=named(layer.values)) for layer in settings])
    names = {"dataset": "demo", "backbone": "comirec_sa"}
    for section in names:
        names[section] = chosen.get(section, {}).get("name", names[section])
        for text in overrides:
            key, _, value = text.partition("=")
            if key in (section, f"{section}.name"):
                names[section] = value
    layers = read_layers(*files_for(names["dataset"], names["backbone"], overrides), settings)
    return [layer._replace(strict=layer.strict and not layer.argument) for layer in layers]


def _check_used(path: str | os.PathLike[str], variants: Sequence[Sequence[Layer]]) -> None:
    """Refuse settings for all variants that have an effect in none.

    Args:
        variants: the layers of each.
    """
    unused = [_unused(layers) for layers in variants]
    for key in set.intersection(*map(set, unused)):
        needs = "; or ".join(dict.fromkeys(idle[key].needs for idle in unused))
        raise ConfigError(
            f"{path}: {key}: is {unused[0][key].value!r}, which has no effect in any variant: it needs {needs}; leave "
            "it out."
        )


def _unused(layers: Sequence[Layer]) -> dict[str, Idle]:
    """What has no effect in a variant, of the settings for all variants: the arguments if there are any, else those of
    the suite's file. (An argument may take away the effect of a setting of the file.)"""
    arguments = any(layer.argument for layer in layers)
    chosen = [layer.argument if arguments else layer.origin == COMMON for layer in layers]
    return {idle.key: idle for idle, index in ignored(layers) if chosen[index]}


def _metrics(config: Config) -> list[str]:
    return [f"{kind}@{k}" for k in config.cutoffs for kind in ("recall", "ndcg", "hr")]


def _label(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ConfigError(f"{where}.label: must be a text of one line, is {value!r}.")
    return value


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: must be a group of key: value pairs, is {value!r}.")
    return dict(value)


def _options(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides that are no settings (`OPTIONS`), as text."""
    pairs = [(key, value) for key, _, value in (text.partition("=") for text in overrides)]
    return {key: value for key, value in pairs if key in OPTIONS}


def _only(variants: Mapping[Any, Any], given: str | None, path: str | os.PathLike[str]) -> dict[Any, Any]:
    """The variants that `only=` names, in the suite's order; all without it."""
    wanted = [name.strip() for name in given.strip("[]").split(",")] if given is not None else list(map(str, variants))
    if unknown := [name for name in wanted if name not in map(str, variants)]:
        raise ConfigError(
            f"{path}: only: {unknown[0]!r} is not a variant{nearest(unknown[0], list(map(str, variants)))}; choose of "
            f"{', '.join(map(str, variants))}."
        )
    return {name: settings for name, settings in variants.items() if str(name) in wanted}


def _seeds(value: Any, given: str | None, path: str | os.PathLike[str]) -> tuple[int, ...]:
    if given is not None:
        value = [int(part) if part.strip().isdigit() else part for part in given.strip("[]").split(",")]
    correct = isinstance(value, list) and bool(value) and all(type(seed) is int and seed >= 0 for seed in value)
    if not correct or len(set(value)) != len(value):
        raise ConfigError(f"{path}: seeds: must be a list of different whole numbers from 0, is {value!r}.")
    return tuple(value)


def _switch(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    if value not in ("true", "false"):
        raise ConfigError(f"{where}: must be true or false, is {value!r}.")
    return value == "true"


def _check_resplit(split: SplitConfig, where: str) -> None:
    """Refuse to give each seed its own users where the split does not shuffle users."""
    if split.kind != "user":
        raise ConfigError(
            f"{where}: split.kind: is {split.kind!r}, and resplit=true shuffles users anew for each seed; use "
            "split.kind=user, or leave resplit out."
        )
    if split.seed != SplitConfig().seed:
        raise ConfigError(
            f"{where}: split.seed: is {split.seed}, and resplit=true sets it to each seed; leave one of them out."
        )


def plan(suite: Suite, any_code: bool = False) -> list[Planned]:
    """Find out which of a suite's runs exist. They are ordered by seed, so that a first full table comes early.

    Args:
        any_code: also use runs made by other versions of the code.
    """
    prepared: Prepared | None = None
    runs = find_runs(suite.folder.parent)
    labels: dict[Path, str] = {}
    planned = []
    for index in range(len(suite.seeds)):
        for variant, configs in suite.variants.items():
            config = configs[index]
            if prepared is None:
                prepared = prepare(config.dataset, config.data.root)
            if config.reads_labels and label_source(config) not in labels:
                labels[label_source(config)] = label_digest(config)
            digest = labels[label_source(config)] if config.reads_labels else ""
            key = run_key(config, prepared.digest, digest, input_digests(config))
            # Only the code that began a run continues it: another code may give slightly other numbers.
            usable = [run for run in runs if run.this_code or (any_code and run.state == FINISHED)]
            same = [run for run in usable if run.key == key]
            # Prefer a finished run, then a running one; then one of this code; then the newest.
            order = (RESUMABLE, RUNNING, FINISHED)
            chosen = max(same, key=lambda run: (order.index(run.state), run.this_code, run.time), default=None)
            planned.append(Planned(variant, config, chosen))
    return planned


def find_runs(root: Path) -> list[Found]:
    """The finished and resumable runs below a folder."""
    runs = []
    for path in sorted(root.rglob(RUN)):
        folder = path.parent
        finished, resumable = (folder / RESULTS).is_file(), (folder / LAST).is_file()
        if not finished and not resumable:
            continue
        try:
            record = read_run(folder)
            made_here = record["code"] == code_digest()
            key = _key_today(folder, record)  # a run that lacks newer settings has their defaults
            state = FINISHED if finished else RUNNING if is_locked(folder / LOCK) else RESUMABLE
            runs.append(Found(folder, key, made_here, state, path.stat().st_mtime))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a run of eimf, or incomplete: the run is made again
    return runs


def _key_today(folder: Path, record: Mapping[str, Any]) -> str:
    try:
        config = load(folder / "config.yaml")
        inputs = dict(record.get("inputs") or {})
        if not config.eval.labels:  # they had no effect
            inputs.pop("eval.labels", None)
        return run_key(config, record["data_digest"], record["label_digest"], inputs)
    except ConfigError:  # made by another version with other settings
        return record["key"]


def run_suite(planned: Sequence[Planned], folder: Path) -> list[str]:
    """Make the unfinished runs, each in its own process; returns the titles of the failed ones."""
    left = [run for run in planned if run.state not in (FINISHED, RUNNING)]
    logs = folder / "logs"
    make_folder(logs)
    failed, spent = [], []
    for number, run in enumerate(left, start=1):
        output = logs / f"{run.config.experiment}.log"
        if run.found is not None:
            arguments = ["--resume", str(run.found.folder)]
        else:
            file = logs / f"{run.config.experiment}.yaml"
            quiet = replace(run.config, trainer=replace(run.config.trainer, progress=False))
            write_text_atomic(file, to_yaml(quiet))
            arguments = [str(file)]
        log.info(f"[{number}/{len(left)}] {run.title} ({output})")
        started = time.monotonic()
        with output.open("w") as out:
            command = [sys.executable, "-m", "eimf", "train", *arguments]
            status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
        if status == 130:
            raise KeyboardInterrupt
        spent.append(time.monotonic() - started)
        if status != 0:
            failed.append(run.title)
            lines = output.read_text().strip().splitlines() or ["nothing was said"]
            log.info(f"    failed: {lines[-1]}")
        remaining = sum(spent) / len(spent) * (len(left) - number)
        log.info(f"    {spent[-1] / 60:.1f} min" + (f"; about {remaining / 60:.0f} min left" if remaining else ""))
    return failed


def finished_runs(suite: Suite, planned: Sequence[Planned]) -> dict[str, dict[int, Path]]:
    """Folders of the finished runs, by variant and seed.

    Raises:
        ArtifactError: the baseline has none.
    """
    runs: dict[str, dict[int, Path]] = {variant: {} for variant in suite.variants}
    for run in planned:
        if run.found is not None and run.state == FINISHED:
            runs[run.variant][run.config.seed] = run.found.folder
    if not runs[suite.baseline]:
        raise ArtifactError(f"{suite.name}: no finished run of the baseline {suite.baseline!r} yet; run the suite.")
    return {variant: folders for variant, folders in runs.items() if folders}
