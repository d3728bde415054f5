"""TODO"""

import ast
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eimf.backbones import BACKBONES
from eimf.config.checks import _check_across, _check_keys, _check_ranges, nearest
from eimf.config.schema import Config
from eimf.core.errors import ConfigError


def experiments_folders() -> list[Path]:
    """Where experiment files are looked for: the working folder's, then those shipped with the package."""
    here = Path(__file__).resolve().parents[1]
    shipped = [here / "experiments", here.parents[1] / "experiments"]
    return [folder for folder in (Path("experiments"), *shipped) if folder.is_dir()]


def find_experiment(relative: str) -> Path | None:
    """First existing file of that name below the experiment folders."""
    return next((path for folder in experiments_folders() if (path := folder / relative).is_file()), None)


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
    own = read_yaml(path) if path is not None else {}
    own = merge(merge(own, named(settings or {})), _parse_overrides(overrides))
    layers: list[dict[str, Any]] = []
    for section, folder in (("dataset", "datasets"), ("backbone", "backbones")):
        name = own.get(section, {}).get("name", _DEFAULT_NAMES[section])
        found = find_experiment(f"{folder}/{name}.yaml")
        if found is not None:
            layers.append(read_yaml(found))
        elif section == "dataset" and "source" not in own.get(section, {}):
            raise ConfigError(
                f"dataset.name: no experiments/datasets/{name}.yaml{nearest(str(name), _names(folder))}. "
                "For your own data set dataset.source=table dataset.interactions=FILE, or write that YAML."
            )
    merged: dict[str, Any] = {}
    for layer in (*layers, own):
        merged = merge(merged, layer)
    return from_dict(merged)


_DEFAULT_NAMES = {"dataset": "demo", "backbone": "comirec_sa"}


def from_dict(values: Mapping[str, Any]) -> Config:
    """Build and check a Config from plain nested values, such as those kept in a checkpoint.

    Raises:
        ConfigError: names the key, the value and the fix.
    """
    backbone_values = values.get("backbone") or {}
    backbone_name = backbone_values.get("name", _DEFAULT_NAMES["backbone"])
    if backbone_name not in BACKBONES:
        raise ConfigError(
            f"backbone.name: {backbone_name!r} is not a backbone{nearest(str(backbone_name), list(BACKBONES))}; "
            f"choose one of {', '.join(BACKBONES)}."
        )
    sections = {item.name: item for item in fields(Config)}
    _check_keys(values, sections, "")
    built: dict[str, Any] = {}
    for name, hint in get_type_hints(Config).items():
        if name not in values and name != "backbone":
            continue
        value = values.get(name)
        schema = BACKBONES[backbone_name].config if name == "backbone" else hint
        if is_dataclass(schema):
            built[name] = _build(schema, value, name)  # pyright: ignore[reportArgumentType]
        else:
            built[name] = _convert_scalar(hint, value, name)
    config = Config(**built)
    _check_ranges(config, "")
    _check_across(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain nested values."""
    return asdict(config)


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def load_for(
    dataset: str, backbone: str, overrides: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of a data set and a backbone: `experiments/<dataset>/<backbone>.yaml` where there is one.

    Raises:
        ConfigError: names the key, the value and the fix.
    """
    found = find_experiment(f"{dataset}/{backbone}.yaml")
    names = [] if found is not None else [f"dataset={dataset}", f"backbone={backbone}"]
    return load(found, [*names, *overrides], settings)


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The values of a YAML file, with `dataset: beauty` written out as `dataset: {name: beauty}`.

    Raises:
        ConfigError: missing, unreadable, or no mapping.
    """
    path = Path(path)
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        choices = [str(p) for folder in experiments_folders() for p in sorted(folder.rglob("*.yaml"))]
        raise ConfigError(f"{path}: no such experiment file{nearest(str(path), choices)}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}.") from None
    except Exception as error:  # PyYAML and OmegaConf have no common base class
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold `key: value` pairs, holds a {type(values).__name__}.")
    return named({str(key): value for key, value in values.items()})


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"{text!r}: an override is key=value, for example optim.lr=0.002.")
        try:
            layer = OmegaConf.to_container(OmegaConf.from_dotlist([_from_python(text.removeprefix("--"))]))
        except Exception as error:
            raise ConfigError(f"{text!r}: cannot be parsed: {' '.join(str(error).split())}.") from None
        assert isinstance(layer, dict)
        values = merge(values, named({str(key): value for key, value in layer.items()}))
    return values


def _from_python(text: str) -> str:
    """W&B's agents write values as Python does: None, and {'lr': 1e-05, 'x': None} for nested parameters."""
    key, _, value = text.partition("=")
    if value == "None" or value.startswith(("{", "[")):
        try:
            return f"{key}={json.dumps(ast.literal_eval(value))}"  # JSON is YAML too
        except (ValueError, SyntaxError, TypeError):  # YAML's own, such as [recall, ndcg]
            return text
    return text


def named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Let `dataset: beauty` stand for `dataset: {name: beauty}`."""
    values = dict(values)
    for section in ("dataset", "backbone"):
        if isinstance(values.get(section), str | int):
            values[section] = {"name": str(values[section])}
    return values


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with those of `top` on top."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _names(folder: str) -> list[str]:
    return sorted({path.stem for root in experiments_folders() for path in (root / folder).glob("*.yaml")})


def _build(schema: type, value: Any, path: str) -> Any:
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: must be a group of key: value pairs, is {value!r}.")
    _check_keys(value, {item.name: item for item in fields(schema)}, path)
    try:
        node = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(dict(value)))
        return OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        key = f"{path}.{error.full_key}" if error.full_key else path
        raise ConfigError(f"{key}: {str(error).splitlines()[0].rstrip('.')}.") from None


def _convert_scalar(hint: type, value: Any, path: str) -> Any:
    try:
        return hint(value) if not isinstance(value, bool | float) else _reject(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{path}: must be of type {hint.__name__}, is {value!r}.") from None


def _reject(value: Any) -> Any:
    raise ValueError(value)
