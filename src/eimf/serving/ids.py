"""Ids as users give them: one rule in Python, in tables, in conditions and over HTTP.

An id is a text. A whole number of any type stands for its decimal text: `7`, `7.0` and `numpy.int64(7)` are `"7"`.
None, NaN and the empty text are missing ids; no item has one, so that it counts as an unknown item. All else is
refused.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, TypeAlias

from eimf.core.errors import DataError

History: TypeAlias = Iterable[str | int | float | None]
"""Item ids, oldest first: a list, tuple, array or series."""


def id_text(value: Any, subject: str) -> str | None:
    """The text of an id; None if it is missing.

    Raises:
        DataError: it is neither a text nor a whole number.
    """
    plain = python_value(value)
    if plain is None or plain == "" or (isinstance(plain, float) and plain != plain):
        return None
    if isinstance(plain, str):
        return plain
    if isinstance(plain, int | float | Decimal) and not isinstance(plain, bool) and plain % 1 == 0:
        return str(int(plain))
    raise DataError(f"{subject}: {repr(value)[:80]} is no id; give a text or a whole number.")


def item_ids(history: Any, subject: str = "history") -> list[str | None]:
    """The ids of a history, oldest first; None where one is missing.

    Args:
        history: a list, tuple, array, series or another iterable with an order.

    Raises:
        DataError: it is none, or holds something that is no id.
    """
    if isinstance(history, str):
        text = history[:80]
        raise DataError(f"{subject}: must be a list of item ids, oldest first, is the text {text!r}; give [{text!r}].")
    values = python_value(history)
    if isinstance(values, bytes | Mapping | set | frozenset) or not isinstance(values, Iterable):
        raise DataError(f"{subject}: must be a list of item ids, oldest first, is {repr(history)[:80]}; give a list.")
    return [one if type(one) is str and one else id_text(one, subject) for one in values]


def python_value(value: Any) -> Any:
    """A scalar or an array of NumPy or torch as Python values; all else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value
