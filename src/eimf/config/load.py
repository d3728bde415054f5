"""Reads a configuration: layers of files and `key=value` arguments, merged, built and checked.

Layers, later ones win: the data set's YAML, the backbone's YAML, the experiment's YAML, `key=value` arguments. A layer
may name presets (`presets: [start_from_interests]`): their values lie directly below its own.
"""

import ast
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eimf.config.checks import check, check_component, check_keys, check_no_interpolation
from eimf.config.components import BACKBONES, BACKENDS, LOSSES, SOURCES
from eimf.config.earlier import convert
from eimf.config.effect import LABELLING, RULES, Idle, Rule, idle_settings, without_idle
from eimf.config.schema import Config
from eimf.core.errors import ConfigError
from eimf.core.options import check_ranges, nearest
from eimf.core.registry import Registry

Values = dict[str, Any]
"""Nested plain values."""

CHOSEN: dict[str, tuple[str, Registry]] = {
    "dataset": ("source", SOURCES),
    "backbone": ("name", BACKBONES),
    "loss": ("name", LOSSES),
    "llm": ("backend", BACKENDS),
}
"""Sections whose fields depend on a component: the key that names the component, and its registry."""
SHORT = {"dataset": "name", "backbone": "name", "loss": "name"}
"""`backbone: mind` stands for `backbone: {name: mind}`."""
PRESETS = "presets"
STORED = "run.json"
"""Beside the `config.yaml` of a run folder."""


class Layer(NamedTuple):
    """Values of one file or argument."""

    origin: str
    """Where the values come from: the path of a file, or the argument."""
    values: Values
    strict: bool = True
    """Whether a setting without effect is refused (see `eimf.config.effect`), rather than ignored: not in presets and
    in files for all models of a data set or all data sets of a model, nor in the `config.yaml` of a run folder."""
    argument: bool = False
    """Whether it is a `key=value` argument. All arguments of a command are taken together."""


def load(
    path: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Config:
    """Read an experiment's YAML, merge its layers with `key=value` overrides, and check the result.

    Args:
        path: the experiment; None starts from the defaults, with `dataset=` and `backbone=` in `overrides`.
        overrides: for example `["optim.lr=0.002", "backbone=mind", "backbone.n_interests=6"]`.
        settings: the same as nested values; they win over the file, and `overrides` over them.

    Raises:
        ConfigError: names the key, the value and the fix.
    """
    return resolve(read_layers(path, overrides, [Layer("settings", dict(settings))] if settings else []))


def load_for(
    dataset: str, backbone: str, overrides: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of a data set and a backbone: `experiments/<dataset>/<backbone>.yaml` where there is one.

    Raises:
        ConfigError: names the key, the value and the fix.
    """
    return load(*files_for(dataset, backbone, overrides), settings)


def resolve(layers: Sequence[Layer], trains: bool = True) -> Config:
    """Build and check the configuration of layers.

    A setting that has no effect is refused if the layer that sets it is strict, unless a later layer took its effect
    away: `eimf.enabled=false` on the command line turns off whatever a file says about `eimf`.

    Args:
        trains: whether the configuration is that of a model, or that of labelling.

    Raises:
        ConfigError: names the key, the value and the fix.
    """
    config, rules = _build_all(merge_layers(layers)), RULES if trains else LABELLING
    check_ranges(config)
    for idle, index in ignored(layers, rules):
        if layers[index].strict and _is_idle(idle.key, layers, index, rules):
            raise ConfigError(
                f"{idle.key}: is {idle.value!r}, which has no effect here: it needs {idle.needs}; leave it at "
                f"{idle.default!r}."
            )
    config = without_idle(config, rules)
    check(config)
    return config


def _is_idle(key: str, layers: Sequence[Layer], index: int, rules: Sequence[Rule]) -> bool:
    """Whether a setting has no effect without the layers above the one that sets it."""
    below = layers if layers[index].argument else layers[: index + 1]
    try:
        return key in {idle.key for idle in idle_settings(_build_all(merge_layers(below)), rules)}
    except ConfigError:  # options of a component that a later layer chooses
        return False


def ignored(layers: Sequence[Layer], rules: Sequence[Rule] = RULES) -> list[tuple[Idle, int]]:
    """The settings of layers that have no effect, each with the index of the layer that sets it."""
    found = []
    for idle in idle_settings(_build_all(merge_layers(layers)), rules):
        path = tuple(idle.key.split("."))
        setters = [index for index, layer in enumerate(layers) if any(one[:2] == path for one in _paths(layer.values))]
        if setters:  # else it comes from a component's own default
            found.append((idle, setters[-1]))
    return found


def files_for(dataset: str, backbone: str, overrides: Sequence[str] = ()) -> tuple[Path | None, list[str]]:
    """The experiment file of a data set and a backbone, if there is one, and the overrides to load it with."""
    check_component(dataset, "--dataset")
    experiment = find_experiment(f"{dataset}/{backbone}.yaml") if ":" not in backbone else None
    names = [] if experiment is not None else [f"dataset={dataset}", f"backbone={backbone}"]
    return experiment, [*names, *overrides]


def read_layers(
    path: str | os.PathLike[str] | None, overrides: Sequence[str] = (), settings: Sequence[Layer] = ()
) -> list[Layer]:
    """The layers of a configuration, the weakest first; see `load`.

    Args:
        settings: layers between the file and the overrides.
    """
    own: list[Layer] = []
    if path is not None:
        stored = (Path(path).parent / STORED).is_file()
        own += _with_presets(Layer(str(path), read_yaml(path), strict=not stored))
    for layer in settings:
        check_no_interpolation(layer.values, layer.origin)
        own += _with_presets(layer._replace(values=named(layer.values)))
    for text in overrides:
        own += _with_presets(Layer(text, _parse_override(text), argument=True))
    named_here = merge_layers(own)
    below: list[Layer] = []
    for section, folder, default in (("dataset", "datasets", "demo"), ("backbone", "backbones", "comirec_sa")):
        chosen = named_here.get(section) or {}
        name = str(chosen.get("name", default)) if isinstance(chosen, Mapping) else default
        if section == "dataset":
            check_component(name, "dataset.name")
        found = find_experiment(f"{folder}/{name}.yaml") if ":" not in name and "/" not in name else None
        if found is not None:
            below += _with_presets(Layer(str(found), read_yaml(found), strict=False))
        elif section == "dataset" and "source" not in chosen:
            raise ConfigError(
                f"dataset.name: no experiments/datasets/{name}.yaml{nearest(name, names_in(folder))}. "
                "For your own data set dataset.source=table dataset.interactions=FILE, or write that YAML."
            )
    return [*below, *own]


def _with_presets(layer: Layer) -> list[Layer]:
    """The presets that a layer names, then the layer without their names."""
    values = dict(layer.values)
    chosen = values.pop(PRESETS, [])
    presets = []
    for name in [chosen] if isinstance(chosen, str) else list(chosen or []):
        check_component(str(name), "presets")
        path = find_experiment(f"presets/{name}.yaml")
        if path is None:
            raise ConfigError(
                f"presets: no experiments/presets/{name}.yaml{nearest(str(name), names_in('presets'))}; "
                f"there are {', '.join(names_in('presets'))}."
            )
        presets.append(Layer(str(path), read_yaml(path), strict=False))
    return [*presets, layer._replace(values=values)]


def merge_layers(layers: Sequence[Layer]) -> Values:
    """The values of all layers; later layers win."""
    merged: Values = {}
    for layer in layers:
        merged = merge(merged, layer.values)
    return merged


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> Values:
    """Merge nested values; those of `top` win.

    If `top` chooses another component for a section, options of the earlier one that the new one lacks are dropped.
    """
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = merge(_fitting(key, below, value), value)
        else:
            merged[key] = value
    return merged


def _fitting(section: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> Mapping[str, Any]:
    if section not in CHOSEN:
        return below
    key, registry = CHOSEN[section]
    if key not in above or above[key] == below.get(key, above[key]):
        return below
    known = {item.name for item in fields(registry[str(above[key])].Config)}
    return {name: value for name, value in below.items() if name in known}


def origins(layers: Sequence[Layer], config: Config) -> Iterator[tuple[str, Any, str]]:
    """Every setting as path, value, and the layer that set it (`default` if none did)."""
    merged: Values = {}
    set_by: dict[tuple[str, ...], str] = {}
    for layer in layers:
        merged = merge(merged, layer.values)
        set_by |= dict.fromkeys(_paths(layer.values), layer.origin)
        kept = set(_paths(merged))  # another component of a section drops options of the earlier one
        set_by = {path: origin for path, origin in set_by.items() if path in kept}
    idle = {one.key for one, _ in ignored(layers)}
    for section in fields(config):
        value = getattr(config, section.name)
        options = [(section.name,)]
        if is_dataclass(value):
            options = [(section.name, item.name) for item in fields(value)]
        for path in options:
            setting = getattr(value, path[1]) if len(path) > 1 else value
            origin = next((by for one, by in reversed(set_by.items()) if one[: len(path)] == path), "default")
            if ".".join(path) in idle:
                origin = f"default ({origin} has no effect here)"
            yield ".".join(path), setting, origin


def _paths(values: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all values of a nested mapping."""
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _paths(value, (*above, str(key)))
    else:
        yield above


def from_dict(values: Mapping[str, Any]) -> Config:
    """Build and check a Config from plain nested values, such as those kept in a checkpoint.

    Values that have no effect are ignored.

    Raises:
        ConfigError: names the key, the value and the fix.
    """
    return resolve([Layer("values", dict(values), strict=False)])


def _build_all(values: Mapping[str, Any]) -> Config:
    values = convert(values)
    paths = partial(_settings, values)
    check_keys(values, {item.name: item for item in fields(Config)}, "", paths)
    built: Values = {}
    hints = get_type_hints(Config)
    for name in sorted(hints, key=lambda name: name in CHOSEN):  # components are imported last: torch takes a second
        hint = hints[name]
        if name in CHOSEN:
            built[name] = _build(_schema(name, values.get(name)), values.get(name), name, paths)
        elif name not in values:
            continue
        elif is_dataclass(hint):
            built[name] = _build(hint, values[name], name, paths)  # pyright: ignore[reportArgumentType]
        else:
            built[name] = _convert_scalar(hint, values[name], name)
    return Config(**built)


def _settings(values: Mapping[str, Any]) -> list[str]:
    """Paths of all settings of a configuration with these components."""
    paths = []
    for section, hint in get_type_hints(Config).items():
        if section in CHOSEN:
            with suppress(ConfigError):  # an unknown component has its own error
                hint = _schema(section, values.get(section))
        paths += [f"{section}.{item.name}" for item in fields(hint)] if is_dataclass(hint) else [section]
    return paths


def _schema(section: str, values: Any) -> type:
    """The dataclass of a section's component."""
    key, registry = CHOSEN[section]
    base = get_type_hints(Config)[section]
    default = next(item.default for item in fields(base) if item.name == key)
    name = values.get(key, default) if isinstance(values, Mapping) else default
    schema = getattr(registry[str(name)], "Config", None)
    if not (isinstance(schema, type) and issubclass(schema, base)):
        raise ConfigError(f"{registry.key}: {name!r} needs a class attribute Config, a subclass of {base.__name__}.")
    return schema


def to_dict(config: Config) -> Values:
    """The configuration as plain nested values."""
    return asdict(config)


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def experiments_folders() -> list[Path]:
    """Folders of experiment files: the working folder's, then those shipped with the package."""
    package = Path(__file__).resolve().parents[1]
    shipped = [package / "experiments", package.parents[1] / "experiments"]
    return [folder for folder in (Path("experiments"), *shipped) if folder.is_dir()]


def find_experiment(relative: str) -> Path | None:
    """First existing file of that name below the experiment folders."""
    return next((path for folder in experiments_folders() if (path := folder / relative).is_file()), None)


def names_in(folder: str, ending: str = "yaml") -> list[str]:
    """Names of the files in a folder of the experiments."""
    return sorted({path.stem for root in experiments_folders() for path in (root / folder).glob(f"*.{ending}")})


def read_yaml(path: str | os.PathLike[str]) -> Values:
    """The values of a YAML file, with `dataset: beauty` written out as `dataset: {name: beauty}`.

    Raises:
        ConfigError: missing, unreadable, or no mapping.
    """
    path = Path(path)
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        choices = [str(p) for folder in experiments_folders() for p in sorted(folder.rglob("*.yaml"))]
        raise ConfigError(
            f"{path}: no such experiment file{nearest(str(path), choices)}; correct the path, or name a "
            "data set with --dataset NAME."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}.") from None
    except Exception as error:  # PyYAML and OmegaConf have no common base class
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold `key: value` pairs, holds a {type(values).__name__}.")
    check_no_interpolation(values, str(path))
    return named(convert({str(key): value for key, value in values.items()}))


def _parse_override(text: str) -> Values:
    key, equals, value = text.removeprefix("--").partition("=")
    check_no_interpolation(text, key if "${" not in key else "an override")
    if not equals or not key:
        raise ConfigError(f"{text!r}: an override is key=value, for example optim.lr=0.002.")
    nested: Any = _value(value, text)
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return named(nested)


def _value(text: str, whole: str) -> Any:
    """The value of an override: a list or a group as YAML has it, a number, true or false, or else the text as it is.

    So a separator `|`, `,` or `::` stays as it is, and an empty value is an empty text.

    Raises:
        ConfigError: a list or a group is not valid YAML.
    """
    if text == "None" or text.startswith(("{", "[")):
        try:  # W&B's agents write values as Python does: None, and {'lr': 1e-05, 'x': None} for nested parameters
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass  # YAML's own, such as [recall, ndcg]
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.create(f"value: {text}"))
        value = parsed["value"]
    except Exception as error:  # PyYAML and OmegaConf have no common base class
        if text.startswith(("{", "[")):
            raise ConfigError(f"{whole!r}: cannot be parsed: {' '.join(str(error).split())}.") from None
        return text
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    if text.startswith(("{", "[")) or quoted or (isinstance(value, bool | int | float) and text):
        return value
    return None if text in ("null", "~") else text


def named(values: Mapping[str, Any]) -> Values:
    """Let `dataset: beauty` stand for `dataset: {name: beauty}`."""
    values = dict(values)
    for section, key in SHORT.items():
        if isinstance(values.get(section), str | int):
            values[section] = {key: str(values[section])}
    return values


def _build(schema: type, value: Any, path: str, settings: Callable[[], Sequence[str]] = tuple) -> Any:
    if value is None:
        return schema()
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: must be a group of key: value pairs, is {value!r}.")
    check_keys(value, {item.name: item for item in fields(schema)}, path, settings)
    empty = {item.name for item in fields(schema) if item.type in (str, "str")}
    value = {name: "" if given is None and name in empty else given for name, given in value.items()}
    choices = {item.name: get_args(item.type) for item in fields(schema)}
    value = {name: _choice(given, choices[name]) for name, given in value.items()}
    try:
        node = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(dict(value)))
        return OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        name = str(error.full_key or "").split(".")[0].split("[")[0]
        if name not in value:
            raise ConfigError(f"{path}: {str(error).splitlines()[0].rstrip('.')}.") from None
        given = "empty" if value[name] == "" else repr(value[name])
        raise ConfigError(f"{path}.{name}: must be {_kind(get_type_hints(schema)[name])}, is {given}.") from None


def _kind(hint: Any) -> str:
    """What a setting of this type must be."""
    plain = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    inner = {float: "numbers, such as [0.1, 0.2]", int: "whole numbers, such as [10, 20]"}
    if hint in plain:
        return plain[hint]
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is list:
        return f"a list of {inner.get(get_args(hint)[0], 'values, such as [a, b]')}"
    return "a group such as {name: value}" if get_origin(hint) is dict else "of another type"


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    """`true` and `false` as texts, if they are among the setting's choices."""
    return str(value).lower() if isinstance(value, bool) and str(value).lower() in choices else value


def _convert_scalar(hint: type, value: Any, path: str) -> Any:
    try:
        if isinstance(value, bool | float):
            raise ValueError
        return hint(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{path}: must be of type {hint.__name__}, is {value!r}.") from None
