"""Sweeps: reads and checks W&B's sweep files, so that the same file works with and without W&B.

https://docs.wandb.ai/models/sweeps/sweep-config-keys explains the keys.
"""

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.special import ndtri

from eimf.config.checks import nearest
from eimf.config.effect import needs_of
from eimf.config.schema import Config
from eimf.core.errors import ConfigError

METHODS = ("grid", "random", "bayes")


KEYS = (
    *("program", "method", "metric", "parameters", "command", "early_terminate", "run_cap"),
    *("name", "description", "project", "entity"),
)


ARGUMENTS = "${args_no_hyphens}"


DISTRIBUTIONS = {
    "constant": ("value",),
    "categorical": ("values", "probabilities"),
    "categorical_w_probabilities": ("values", "probabilities"),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "q_log_uniform_values": ("min", "max", "q"),
    "normal": ("mu", "sigma"),
    "q_normal": ("mu", "sigma", "q"),
    "log_normal": ("mu", "sigma"),
    "q_log_normal": ("mu", "sigma", "q"),
}
"""W&B's distributions that are supported here, and their keys."""


LoadArguments = Callable[[Sequence[str]], Config]
"""Returns the configuration of `eimf train` with these arguments."""


@dataclass(frozen=True)
class Parameter:
    """One parameter. Its distribution is a function of a number between 0 and 1."""

    path: tuple[str, ...]
    """One part, which may contain dots (`optim.lr`); several parts for W&B's nested parameters."""
    distribution: str
    values: tuple[Any, ...] = ()
    shares: tuple[float, ...] = ()
    """Probabilities of `values`."""
    low: float = 0.0
    high: float = 1.0
    mu: float = 0.0
    sigma: float = 1.0
    q: float = 1.0

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def choices(self) -> tuple[Any, ...]:
        """All values, if they are finitely many; else empty."""
        if self.distribution == "int_uniform":
            return tuple(range(int(self.low), int(self.high) + 1))
        if self.distribution == "q_uniform":
            first, last = round(self.low / self.q), round(self.high / self.q)
            return tuple(_tidy(step * self.q) for step in range(first, last + 1))
        return self.values

    def index(self, u: float) -> int:
        """Index in `values` of the value at a share u in [0, 1] of the distribution."""
        return min(int(np.searchsorted(np.cumsum(self.shares), u, side="right")), len(self.values) - 1)

    def at(self, u: float) -> Any:
        """The value below which a share u in [0, 1] of the distribution lies."""
        kind = self.distribution.removeprefix("q_")
        if self.values:
            return self.values[self.index(u)]
        if kind == "int_uniform":
            return int(min(self.low + math.floor(u * (self.high - self.low + 1)), self.high))
        if "normal" in kind:
            value = self.mu + self.sigma * float(ndtri(min(max(u, 1e-9), 1 - 1e-9)))
            value = math.exp(value) if kind == "log_normal" else value
        elif kind == "log_uniform_values":
            value = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
            value = min(max(value, self.low), self.high)
        else:
            value = self.low + u * (self.high - self.low)
            value = math.exp(value) if kind == "log_uniform" else value
        return _tidy(round(value / self.q) * self.q) if self.distribution.startswith("q_") else value


def _tidy(value: float) -> float | int:
    value = round(value, 10)  # so that 3 * 0.1 is 0.3
    return int(value) if value == int(value) and abs(value) >= 1 else value


@dataclass(frozen=True)
class Hyperband:
    """Early termination as in W&B's sweep server."""

    bands: tuple[int, ...]
    """Epochs after which runs are compared."""
    eta: float
    strict: bool = False

    def stops(self, history: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        """Whether to stop a run.

        Args:
            history: its objective after each epoch; smaller is better.
            others: histories of all runs, this one included.
        """
        reached = [band for band in self.bands if band <= len(history)]
        if not reached:
            return False
        band = reached[-1]
        values = sorted(other[band - 1] for other in others if len(other) >= band)
        threshold = values[int(len(values) / self.eta)] if values else math.inf
        # As in W&B: the best value so far counts; in strict mode, the value at the band.
        value = history[band - 1] if self.strict else min(history)
        return value > threshold


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file."""

    path: Path
    method: str
    metric: str
    """A metric of validation users. Larger is better."""
    parameters: tuple[Parameter, ...]
    command: tuple[str, ...]
    hyperband: Hyperband | None
    run_cap: int | None
    raw: dict[str, Any]
    """The file, for W&B."""
    config: Config
    """The configuration of `eimf train` without the parameters."""

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def arguments(self) -> list[str]:
        """The arguments of `eimf train` in the command, without the macro for the parameters."""
        return [text for text in self.command[_train_at(self.command) + 1 :] if text != ARGUMENTS]

    @property
    def grid(self) -> list[tuple[Any, ...]]:
        """All combinations of a grid."""
        return list(itertools.product(*(parameter.choices for parameter in self.parameters)))

    @property
    def size(self) -> int | None:
        """Number of runs that the file asks for; None if it sets no limit."""
        limits = [self.run_cap] if self.run_cap is not None else []
        if self.method == "grid":
            limits.append(math.prod(len(parameter.choices) for parameter in self.parameters))
        return min(limits, default=None)


def read_sweep(path: str | os.PathLike[str], overrides: Sequence[str], load: LoadArguments) -> Sweep:
    """Read a sweep file, and check it against the configuration of its runs.

    Args:
        overrides: settings of all its runs. They are put into the command before the parameters.
        load: see `LoadArguments`.

    Raises:
        ConfigError: names the file, the key, the value and the fix.
    """
    path = Path(path)
    raw = _read(path)
    if unknown := [key for key in raw if key not in KEYS]:
        raise ConfigError(
            f"{path}: {unknown[0]}: no such key{nearest(str(unknown[0]), list(KEYS))}; a sweep has {', '.join(KEYS)}."
        )
    method = raw.get("method")
    if method not in METHODS:
        raise ConfigError(
            f"{path}: method: {method!r} is not known{nearest(str(method), list(METHODS))}; one of "
            f"{', '.join(METHODS)}."
        )
    command = _command(raw.get("command"), path)
    at = command.index(ARGUMENTS)
    command = (*command[:at], *overrides, *command[at:])
    raw = raw | {"command": list(command)}
    given = raw.get("parameters")
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{path}: parameters: must map settings to distributions, is {given!r}.")
    parameters = tuple(_parameters(given, (), path))
    if method == "grid" and (endless := [parameter for parameter in parameters if not parameter.choices]):
        raise ConfigError(
            f"{path}: parameters.{endless[0].name}: a grid cannot count {endless[0].distribution}; give values."
        )
    run_cap = raw.get("run_cap")
    if run_cap is not None and (type(run_cap) is not int or run_cap < 1):
        raise ConfigError(f"{path}: run_cap: must be a whole number from 1, is {run_cap!r}.")
    fixed = [text for text in command[_train_at(command) + 1 :] if text != ARGUMENTS]
    config = _check_settings(path, fixed, parameters, load)
    metric = _metric(raw.get("metric"), config, path)
    hyperband = _hyperband(raw["early_terminate"], path) if raw.get("early_terminate") is not None else None
    return Sweep(path, method, metric, parameters, command, hyperband, run_cap, raw, config)


def arguments_of(parameters: Sequence[Parameter], values: Sequence[Any]) -> list[str]:
    """The parameters as arguments of `eimf train`, exactly as `wandb agent` renders `${args_no_hyphens}`."""
    nested: dict[str, Any] = {}
    for parameter, value in zip(parameters, values, strict=True):
        group = nested
        for part in parameter.path[:-1]:
            group = group.setdefault(part, {})
        group[parameter.path[-1]] = value
    return [f"{name}={value}" for name, value in nested.items()]


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())  # not OmegaConf: W&B itself fills in ${env}
    except FileNotFoundError:
        choices = [str(file) for file in sorted(Path("experiments/sweeps").glob("*.yaml"))]
        raise ConfigError(f"{path}: no such sweep file{nearest(str(path), choices)}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold `key: value` pairs, holds a {type(values).__name__}.")
    return values


def _train_at(command: Sequence[str]) -> int:
    """Index of `train` in the command `eimf train`, or -1."""
    pairs = enumerate(itertools.pairwise(command))
    return next((at + 1 for at, (left, right) in pairs if Path(left).name == "eimf" and right == "train"), -1)


def _command(value: Any, path: Path) -> tuple[str, ...]:
    command = tuple(map(str, value)) if isinstance(value, list) else ()
    if _train_at(command) < 0 or command.count(ARGUMENTS) != 1:
        raise ConfigError(
            f"{path}: command: must be a list that calls `eimf train` with {ARGUMENTS} (see experiments/sweeps/"
            f"demo_small.yaml), is {value!r}."
        )
    return command


def _check_settings(path: Path, fixed: Sequence[str], parameters: Sequence[Parameter], load: LoadArguments) -> Config:
    """Load the configuration at both ends of every parameter, to find wrong names and ranges before any run."""
    try:
        base = load(fixed)
    except ConfigError as error:
        raise ConfigError(f"{path}: command: {error}") from None
    if base.eval.test:
        raise ConfigError(
            f"{path}: command: must hold eval.test=false, so that test users are not looked at while settings are "
            "chosen."
        )
    middle = [parameter.at(0.5) for parameter in parameters]
    idle = {parameter.name for parameter in parameters if len(parameter.path) == 2}
    for index, parameter in enumerate(parameters):
        for value in parameter.values or (
            (parameter.at(0.5),) if "normal" in parameter.distribution else (parameter.at(0.0), parameter.at(1.0))
        ):
            values = [*middle[:index], value, *middle[index + 1 :]]
            try:
                config = load([*fixed, *arguments_of(parameters, values)])
            except ConfigError as error:
                raise ConfigError(f"{path}: parameters.{parameter.name}: {error}") from None
            for other, given in zip(parameters, values, strict=True):  # what has no effect is reset to its default
                if other.name in idle and getattr(getattr(config, other.path[0]), other.path[1]) == given:
                    idle.discard(other.name)
    for name in sorted(idle):
        needs = " and ".join(needs_of(name))
        if needs:
            raise ConfigError(f"{path}: parameters.{name}: has no effect in any run: it needs {needs}; leave it out.")
    return base


def _metric(value: Any, config: Config, path: Path) -> str:
    known = [f"val/{key}" for key in config.metric_keys]
    name = value.get("name") if isinstance(value, Mapping) else None
    if name not in known:
        raise ConfigError(
            f"{path}: metric.name: {name!r} is no metric of validation users that a run logs"
            f"{nearest(str(name), known)}; one of {', '.join(known)}."
        )
    goal = value.get("goal", "minimize")
    if goal != "maximize":
        raise ConfigError(f"{path}: metric.goal: more {name} is better, so it must be maximize, is {goal!r}.")
    return name


def _parameters(given: Mapping[Any, Any], above: tuple[str, ...], path: Path) -> list[Parameter]:
    parameters = []
    for key, value in given.items():
        here = (*above, str(key))
        where = f"{path}: parameters.{'.'.join(here)}"
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: must be a group such as {{values: [1, 2]}}, is {value!r}.")
        if isinstance(value.get("parameters"), Mapping):
            parameters += _parameters(value["parameters"], here, path)
        else:
            parameters.append(_parameter(here, dict(value), where))
    return parameters


def _parameter(here: tuple[str, ...], value: dict[str, Any], where: str) -> Parameter:
    kind = value.pop("distribution", None)
    if kind is None:
        bounds = [value.get("min"), value.get("max")]
        if "value" in value:
            kind = "constant"
        elif "values" in value:
            kind = "categorical"
        elif all(type(bound) is int for bound in bounds):
            kind = "int_uniform"
        elif all(type(bound) is float for bound in bounds):
            kind = "uniform"
        else:
            raise ConfigError(
                f"{where}: give value, values, or min and max as two whole numbers or two decimal ones; is {value!r}."
            )
    if kind not in DISTRIBUTIONS:
        raise ConfigError(
            f"{where}: distribution: {kind!r} is not supported{nearest(str(kind), list(DISTRIBUTIONS))}; one of "
            f"{', '.join(DISTRIBUTIONS)}."
        )
    keys = DISTRIBUTIONS[kind]
    if unknown := [key for key in value if key not in keys]:
        raise ConfigError(f"{where}: {unknown[0]}: no such key; {kind} has {', '.join(keys)}.")
    if needed := [key for key in ("value", "values", "min", "max") if key in keys and key not in value]:
        raise ConfigError(f"{where}: {needed[0]}: is missing; {kind} has {', '.join(keys)}.")
    if kind == "constant":
        return Parameter(here, kind, (value["value"],), (1.0,))
    if "values" in keys:
        values = value["values"]
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: values: must be a list, is {values!r}.")
        shares = value.get("probabilities") or [1 / len(values)] * len(values)
        numbers = isinstance(shares, list) and all(isinstance(share, int | float) and share >= 0 for share in shares)
        if not numbers or len(shares) != len(values) or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(f"{where}: probabilities: must be one for each value, with sum 1, are {shares!r}.")
        return Parameter(here, "categorical", tuple(values), tuple(shares))
    for key, number in value.items():
        if type(number) not in (int, float) or not math.isfinite(number):
            hint = " (YAML wants 1.0e-4, with a point)" if isinstance(number, str) else ""
            raise ConfigError(f"{where}: {key}: must be a number, is {number!r}{hint}.")
    low, high = value.get("min", 0.0), value.get("max", 1.0)
    q, sigma = value.get("q", 1.0), value.get("sigma", 1.0)
    if low > high or q <= 0 or sigma <= 0 or (kind.endswith("_values") and low <= 0):
        raise ConfigError(f"{where}: wants min <= max (above 0 for {kind}), q > 0 and sigma > 0, is {value!r}.")
    return Parameter(here, kind, low=low, high=high, mu=value.get("mu", 0.0), sigma=sigma, q=q)


def _hyperband(value: Any, path: Path) -> Hyperband:
    where = f"{path}: early_terminate"
    known = ("type", "min_iter", "max_iter", "s", "eta", "strict")
    if not isinstance(value, Mapping) or value.get("type") != "hyperband":
        raise ConfigError(f"{where}: must be {{type: hyperband, min_iter: N}}, is {value!r}.")
    if unknown := [key for key in value if key not in known]:
        raise ConfigError(f"{where}: {unknown[0]}: no such key; hyperband has {', '.join(known)}.")
    eta, s = value.get("eta", 3), value.get("s", 1)
    first, last = value.get("min_iter"), value.get("max_iter")
    for key, number, least in (("eta", eta, 2), ("s", s, 1), ("min_iter", first, 1), ("max_iter", last, 1)):
        if number is not None and (type(number) not in (int, float) or number < least):
            raise ConfigError(f"{where}: {key}: must be a number from {least}, is {number!r}.")
    if last is not None:
        bands = [int(last / eta**power) for power in range(1, int(s) + 1)]
    elif first is not None:
        bands = [int(first * eta**power) for power in range(20)]
    else:
        raise ConfigError(f"{where}: give min_iter, or max_iter and s.")
    bands = tuple(sorted({band for band in bands if band >= 1}))
    if not bands:
        raise ConfigError(f"{where}: max_iter: {last} divided by eta {eta} leaves no epoch; make it greater.")
    return Hyperband(bands, eta, bool(value.get("strict", False)))
