"""Filters of recommendations: which items of the catalogue may be listed, by item id, category or any other column.

`allow` and `deny` map columns of the items table to conditions. An item may be listed if it meets all conditions of
`allow` and none of `deny`:

```python
model.recommend(history, allow={"category": "Lipstick", "stock": {"min": 1}}, deny={"brand": ["Acme", "Other"]})
model.recommend(history, deny=["P00017"])  # a list is of item ids
```

A condition is a value, a list of values, or a range `{"min": 1, "max": 9}` with one end or both. Of a column of lists,
any value of the list may match. `category` is any level of the item's `categories`. A missing value meets no condition.
Numbers are compared in the column's type. Ids are texts or whole numbers, see `eimf.serving.ids`.
"""

import math
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars
import torch
from jaxtyping import Bool
from torch import Tensor

from eimf.core.errors import ConfigError, DataError
from eimf.core.options import nearest
from eimf.data.sources.base import id_texts
from eimf.serving.histories import reading_table
from eimf.serving.ids import id_text, python_value

Conditions: TypeAlias = Mapping[str, Any] | Iterable[str | float] | None
"""Conditions by column, or item ids."""
Condition: TypeAlias = tuple[Any, ...] | dict[str, Any]
"""Values, of which an item must have one, or the ends of a range."""
Key: TypeAlias = tuple[Any, ...]
ITEM, CATEGORY = "item_id", "category"
_ENDS = ("min", "max")
_LARGEST = 2**100
"""Ends of ranges of whole numbers are cut here; no column has larger values."""


def allowed_items(
    items: polars.DataFrame, allow: Conditions = None, deny: Conditions = None
) -> Bool[Tensor, " I_plus_1"] | None:
    """The items that may be listed; entry 0 is padding. None if there are no conditions.

    Args:
        items: the items table; row r has number r + 1.
        allow: conditions that an item must meet, all of them.
        deny: conditions of which an item must meet none.

    Raises:
        ConfigError: a column does not exist, or a condition does not fit it.
    """
    wanted, unwanted = plain_conditions(allow, "allow"), plain_conditions(deny, "deny")
    if not wanted and not unwanted:
        return None
    mask = np.ones(len(items), dtype=bool)
    for column, condition in wanted.items():
        mask &= _meets(items, column, condition, "allow")
    for column, condition in unwanted.items():
        mask &= ~_meets(items, column, condition, "deny")
    return torch.from_numpy(np.concatenate([[False], mask]))


def plain_conditions(conditions: Conditions, name: str) -> dict[str, Condition]:
    """Conditions as plain values, which can be read more than once: by column, a tuple of values or a range.

    Ids alone are a condition of `item_id`. Any iterable of values goes: arrays, series, sets, generators.

    Raises:
        ConfigError: they are neither a mapping nor a list of ids, or have a value of another type.
    """
    if conditions is None:
        return {}
    if isinstance(conditions, Mapping):
        return {str(column): _plain(condition, f"{name}.{column}") for column, condition in conditions.items()}
    if isinstance(conditions, str | bytes) or not isinstance(conditions, Iterable):
        raise ConfigError(
            f"{name}: must be a list of item ids, or conditions by column such as {{'category': 'Lipstick'}}, is "
            f"{repr(conditions)[:80]}."
        )
    return {ITEM: _plain(conditions, f"{name}.{ITEM}")}


def _plain(condition: Any, where: str) -> Condition:
    if isinstance(condition, Mapping):
        return _plain_range(condition, where)
    values = python_value(condition)
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        values = [values]
    plain = tuple(map(python_value, values))
    for value in plain:
        if not isinstance(value, str | bool | int | float | Decimal) or value != value:
            raise ConfigError(
                f"{where}: {repr(value)[:80]} does not fit: values are texts, numbers, true or false; give such ones."
            )
    return plain


def _plain_range(ends: Mapping[str, Any], where: str) -> dict[str, Any]:
    plain = {end: python_value(bound) for end, bound in ends.items()}
    numbers = all(_is_number(bound) and bound == bound for bound in plain.values())
    if not ends or set(ends) - set(_ENDS) or not numbers:
        raise ConfigError(
            f"{where}: a range has numbers for min, max or both, such as {{'min': 1}}; is {repr(dict(ends))[:80]}."
        )
    return plain


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def filter_key(allow: Conditions, deny: Conditions) -> Key:
    """A key that is equal for equal conditions, whatever the order of their values. Its `repr` is canonical.

    Raises:
        ConfigError: see `plain_conditions`.
    """
    return _frozen(plain_conditions(allow, "allow")), _frozen(plain_conditions(deny, "deny"))


def _frozen(conditions: dict[str, Condition]) -> Key:
    return tuple((column, _frozen_one(conditions[column])) for column in sorted(conditions, key=str))


def _frozen_one(condition: Condition) -> Key:
    if isinstance(condition, dict):
        return tuple((end, type(bound).__name__, bound) for end, bound in sorted(condition.items()))
    # 1 and True are equal, but not the same condition
    return tuple(sorted({(type(value).__name__, value) for value in condition}))


def _meets(items: polars.DataFrame, column: str, condition: Condition, name: str) -> np.ndarray:
    """Which items meet the condition of a column."""
    values = _column(items, column, name)
    where = f"{name}.{column}"
    try:
        if isinstance(condition, dict):
            met = _in_range(values, condition, where)
        else:
            ids = column == ITEM
            met = _among(values, [id_text(one, where) or "" for one in condition] if ids else condition, where)
    except DataError as error:  # of an id
        raise ConfigError(str(error)) from None
    except (polars.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:  # too large, no UTF-8
        reason = " ".join(str(error).split())[:100]
        raise ConfigError(f"{where}: {repr(condition)[:80]} does not fit its type {values.dtype} ({reason}).") from None
    return met.fill_null(False).to_numpy()


def _column(items: polars.DataFrame, column: str, name: str) -> polars.Series:
    if column == CATEGORY and CATEGORY not in items.columns:
        column = "categories"
    if column not in items.columns:
        names = [CATEGORY, *items.columns]
        raise ConfigError(
            f"{name}: the items have no column {column!r}{nearest(str(column), names)}; they have {', '.join(names)}. "
            "A table of your own can add columns by item_id."
        )
    return items[column]


def _in_range(values: polars.Series, ends: Mapping[str, Any], where: str) -> polars.Series:
    kind = values.dtype
    if not kind.is_numeric():
        raise ConfigError(f"{where}: has a range, but the column is of type {kind}; give values instead.")
    same = polars.Int128() if kind.is_integer() else _compared_as(kind)
    values, met = values.cast(same), values.is_not_null()
    for end, bound in ends.items():
        if kind.is_integer():
            bound = max(-_LARGEST, min(_LARGEST, bound))
            bound = math.ceil(bound) if end == "min" else math.floor(bound)
        limit = polars.Series([bound if kind.is_integer() else float(bound)], dtype=same)
        met &= values >= limit if end == "min" else values <= limit
    return met & values.is_not_nan() if same.is_float() else met


def _among(values: polars.Series, listed: Sequence[Any], where: str) -> polars.Series:
    kind = value_type(values.dtype)
    same = _compared_as(kind)
    if kind.is_numeric():
        wrong = [one for one in listed if not _is_number(one) or (kind.is_integer() and one % 1 != 0)]
    else:
        wrong = [one for one in listed if not isinstance(one, bool if kind == polars.Boolean else str)]
    if wrong:
        raise ConfigError(
            f"{where}: {repr(wrong[0])[:80]} does not fit the column's type {values.dtype}; give such values."
        )
    if kind.is_numeric():
        listed = [int(one) if same.is_integer() else float(one) for one in listed]
    wanted = polars.Series(listed, dtype=same)
    if values.dtype.is_nested():
        return values.cast(polars.List(same)).list.eval(polars.element().is_in(wanted.implode())).list.any()
    return values.cast(same).is_in(wanted.implode())


def value_type(kind: polars.DataType) -> polars.DataType:
    """The type of the single values of a column, which may be of lists."""
    inner = kind.inner if isinstance(kind, polars.List | polars.Array) else kind
    assert isinstance(inner, polars.DataType)
    return inner


def _compared_as(kind: polars.DataType) -> polars.DataType:
    """The type in which values of a column are compared with those of a condition.

    A Float32 column holds 9.99 as the nearest Float32, which only the nearest Float32 of the condition equals.
    """
    if kind.is_integer():
        return kind if kind in (polars.UInt64, polars.Int128) else polars.Int64()
    if kind.is_numeric():
        return kind if kind == polars.Float32 else polars.Float64()
    return polars.Boolean() if kind == polars.Boolean else polars.String()


def read_columns(path: Path) -> polars.DataFrame:
    """A table of further columns of items, such as stock or price: CSV, Parquet or JSON lines, keyed by `item_id`.

    Raises:
        DataError: it cannot be read, or `item_id` is missing or repeated.
    """
    kinds = {ITEM: polars.String}
    with reading_table(path):
        if path.suffix == ".parquet":
            table = polars.read_parquet(path, glob=False)
        elif path.suffix in (".jsonl", ".ndjson"):
            table = polars.read_ndjson(path.read_bytes().removeprefix(BOM_UTF8), infer_schema_length=None)
        else:
            table = polars.read_csv(path, schema_overrides=kinds, infer_schema_length=None, glob=False)
    if ITEM not in table.columns:
        raise DataError(f"{path}: has no column 'item_id'; it has {', '.join(table.columns)}.")
    return table.with_columns(id_texts(table[ITEM], f"{path}: item_id"))


def join_columns(items: polars.DataFrame, table: polars.DataFrame) -> polars.DataFrame:
    """The items with the columns of a table keyed by `item_id`. Items that it lacks have null there; its other items
    are ignored, and its columns replace those of the same name.

    Raises:
        DataError: `item_id` is missing or repeated, or a column that names items would be replaced.
    """
    if ITEM not in table.columns:
        raise DataError(f"columns: the table has no column 'item_id'; it has {', '.join(table.columns)}.")
    table = table.with_columns(id_texts(table[ITEM], "columns: item_id"))
    if (repeated := table[ITEM].filter(table[ITEM].is_duplicated())).len():
        raise DataError(f"columns: item_id {repeated[0]!r} is in several rows of the table; keep one row an item.")
    if fixed := {"item_idx", "title", "count"} & set(table.columns):
        raise DataError(f"columns: {sorted(fixed)[0]!r} cannot be replaced; leave this column out, or rename it.")
    kept = items.drop([name for name in table.columns if name != ITEM], strict=False)
    return kept.join(table, on=ITEM, how="left", maintain_order="left")


def parse_conditions(texts: Sequence[str], name: str) -> dict[str, Any] | None:
    """Conditions from the command line: `category=Lipstick,Gloss`, `stock>=1`, `price<=9.5`, `item_id=@FILE`.

    Values are separated by commas; `@FILE` reads them from a text file, one a line. They are numbers or true and false
    where the items' column is: `typed` converts them.

    Raises:
        ConfigError: a text is not of this form.
    """
    found: dict[str, Any] = {}
    for text in texts:
        parts = re.fullmatch("([^<>=]+)(>=|<=|=)(.*)", text, re.DOTALL)
        if parts is None:
            raise ConfigError(f"--{name}: must be COLUMN=VALUE,..., COLUMN>=NUMBER or COLUMN<=NUMBER, is {text!r}.")
        column, sign, value = parts[1].strip(), parts[2], parts[3].strip()
        if sign == "=":
            values = _lines(Path(value[1:]), name) if value.startswith("@") else value.split(",")
            new: Any = [one.strip() for one in values if one.strip()]
            if not new and not value.startswith("@"):
                raise ConfigError(f"--{name}: {text!r} has no value; give one or more, with commas.")
            if isinstance(found.get(column), list):
                new = [*found[column], *new]
        else:
            try:
                new = {"min" if sign == ">=" else "max": _number(value)}
            except ValueError:
                raise ConfigError(f"--{name}: {text!r}: {value!r} is not a number.") from None
            if isinstance(found.get(column), dict):
                new = found[column] | new
        if column in found and type(found[column]) is not type(new):
            raise ConfigError(f"--{name}: {column} has both values and a range; give one of them.")
        found[column] = new
    return found or None


def typed(conditions: dict[str, Any] | None, items: polars.DataFrame) -> dict[str, Any] | None:
    """Conditions of the command line with the texts as numbers or truth values, where the items' column has such."""
    if conditions is None:
        return None
    return {
        column: [_typed(one, items[column].dtype, column) for one in condition]
        if isinstance(condition, list) and column in items.columns
        else condition
        for column, condition in conditions.items()
    }


def _typed(text: str, kind: polars.DataType, column: str) -> Any:
    one = value_type(kind)
    try:
        if one == polars.Boolean:
            return {"true": True, "false": False}[text.lower()]
        return _number(text) if one.is_numeric() else text
    except (KeyError, ValueError):
        raise ConfigError(f"{column}: {text!r} does not fit the column's type {kind}.") from None


def _number(text: str) -> int | float:
    """A number; whole ones keep all their digits.

    Raises:
        ValueError: the text is none.
    """
    try:
        return int(text)
    except ValueError:
        return float(text)


def _lines(path: Path, name: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--{name}: {path}: cannot be read ({str(error)[:100]}).") from None
