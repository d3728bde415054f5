"""Options: fields of a settings dataclass with a range, and making such a dataclass from plain arguments."""

import re
from dataclasses import field, fields, is_dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from eimf.core.errors import ConfigError

Options = TypeVar("Options")


def option(default: Any, *, low: float | None = None, high: float | None = None) -> Any:
    """A dataclass field whose value must lie in [low, high]; see `check_ranges`."""
    return field(default=default, metadata={"low": low, "high": high})


def check_ranges(options: Any, path: str = "") -> None:
    """Check the numbers of a settings dataclass, nested ones too.

    Args:
        path: text that messages put before the field's name.

    Raises:
        ConfigError: a number lies outside its range.
    """
    for item in fields(options):
        value, where = getattr(options, item.name), f"{path}.{item.name}" if path else item.name
        if is_dataclass(value):
            check_ranges(value, where)
            continue
        low, high = item.metadata.get("low"), item.metadata.get("high")
        if isinstance(value, int | float) and value != value:
            raise ConfigError(f"{where}: must be a number, is {value}.")
        if low is not None and value < low:
            raise ConfigError(f"{where}: must be at least {low}, is {value}.")
        if high is not None and value > high:
            raise ConfigError(f"{where}: must be at most {high}, is {value}.")


def check_types(options: Any) -> None:
    """Check that every field of an options dataclass has the type that it declares.

    Whole numbers count as numbers; numbers of numpy count too. Fields of other types than numbers, texts, choices and
    truth values are not checked.

    Raises:
        ConfigError: a value has another type, or is none of the choices.
    """
    declared = get_type_hints(type(options))
    for item in fields(options):
        value, kind = getattr(options, item.name), declared[item.name]
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        if not any(_fits(value, each) for each in kinds):
            rule = " or ".join(_describe(each) for each in kinds)
            raise ConfigError(f"{item.name}: must be {rule}, is {value!r}.")


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "nothing"}


def _describe(kind: Any) -> str:
    return (
        f"one of {', '.join(map(str, get_args(kind)))}" if get_origin(kind) is Literal else _NAMES.get(kind, str(kind))
    )


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return any(value is choice or (value == choice and type(value) is type(choice)) for choice in get_args(kind))
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in _NAMES else True


def take_options(kind: type[Options], whole: Options | None, given: dict[str, Any]) -> Options:
    """The settings of a component, given whole or as plain keyword arguments.

    Args:
        kind: the dataclass.
        whole: an object of it; if None, one is made from `given`.
        given: fields by name.

    Raises:
        ConfigError: both are given, `whole` is something else, a name is unknown, or a value has the wrong type or
            lies outside its range.
    """
    if whole is not None:
        if given:
            raise ConfigError(f"{kind.__name__}: give it whole or as arguments ({', '.join(given)}), not both.")
        if not isinstance(whole, kind):
            raise ConfigError(
                f"config: must be a {kind.__name__}, is {whole!r}; single options are given by name, such as "
                f"{fields(kind)[-1].name}=...."  # pyright: ignore[reportArgumentType]
            )
        check_types(whole)
        check_ranges(whole)
        return whole
    known = [item.name for item in fields(kind)]  # pyright: ignore[reportArgumentType]
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{kind.__name__}: {name}: no such option{nearest(name, known)}; it has {', '.join(known)}."
            )
    options = kind(**given)
    check_types(options)
    check_ranges(options)
    return options


OTHER_NAMES = {
    **dict.fromkeys(("epochs", "epoch", "n_epochs", "num_epochs"), "trainer.max_epochs"),
    **dict.fromkeys(("learning_rate", "lr"), "optim.lr"),
    **dict.fromkeys(("batch", "bs"), "data.batch_size"),
    **dict.fromkeys(("dim", "embedding_dim", "embedding_size", "hidden_size"), "backbone.embed_dim"),
    **dict.fromkeys(("k", "num_interests"), "backbone.n_interests"),
    "gpus": "trainer.devices",
}
"""What other projects call some settings."""


def nearest(word: str, choices: list[str]) -> str:
    """A hint at the choice that looks most like a word, or nothing."""
    close = get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def is_variable(name: str) -> bool:
    """Whether a text looks like the name of an environment variable. A key put there by mistake does not."""
    return re.fullmatch("[A-Z_][A-Z0-9_]*", name) is not None
