"""Filters of recommendations: which items of the catalogue may be listed, by item id, category or any other column.

`allow` and `deny` map columns of the items table to conditions. An item may be listed if it meets all conditions of
`allow` and none of `deny`:

```python
model.recommend(history, allow={"category": "Lipstick", "stock": {"min": 1}}, deny={"brand": ["Acme", "Other"]})
model.recommend(history, deny=["P00017"])  # a list is of item ids
```

A condition is a value, a list of values, or a range `{"min": 1, "max": 9}` with one end or both. Of a column of lists,
any value of the list may match. `category` is any level of the item's `categories`. A missing value meets no condition.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars
import torch
from jaxtyping import Bool
from torch import Tensor

from eimf.core.errors import ConfigError, DataError
from eimf.core.options import nearest
from eimf.serving.histories import reading_table

Conditions: TypeAlias = Mapping[str, Any] | Iterable[str] | None
"""Conditions by column, or item ids."""
Key: TypeAlias = tuple[Any, ...]
ITEM, CATEGORY = "item_id", "category"
_ENDS = ("min", "max")


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
    wanted, unwanted = by_column(allow, "allow"), by_column(deny, "deny")
    if not wanted and not unwanted:
        return None
    mask = np.ones(len(items), dtype=bool)
    for column, condition in wanted.items():
        mask &= _meets(items, column, condition, "allow")
    for column, condition in unwanted.items():
        mask &= ~_meets(items, column, condition, "deny")
    return torch.from_numpy(np.concatenate([[False], mask]))


def by_column(conditions: Conditions, name: str) -> dict[str, Any]:
    """Conditions by column: ids alone are a condition of `item_id`.

    Raises:
        ConfigError: they are neither a mapping nor a list of ids.
    """
    if conditions is None:
        return {}
    if isinstance(conditions, Mapping):
        return dict(conditions)
    if isinstance(conditions, str | bytes) or not isinstance(conditions, Iterable):
        raise ConfigError(
            f"{name}: must be a list of item ids, or conditions by column such as {{'category': 'Lipstick'}}, is "
            f"{conditions!r}."
        )
    return {ITEM: list(conditions)}


def filter_key(allow: Conditions, deny: Conditions) -> Key:
    """A key that is equal for equal conditions, for keeping their masks."""
    return _frozen(by_column(allow, "allow")), _frozen(by_column(deny, "deny"))


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple((name, _frozen(part)) for name, part in sorted(value.items(), key=str))
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(_frozen(part) for part in value)
    return type(value).__name__, value  # 1 and True are equal, but not the same condition


def _meets(items: polars.DataFrame, column: str, condition: Any, name: str) -> np.ndarray:
    """Which items meet the condition of a column."""
    values = _column(items, column, name)
    where = f"{name}.{column}"
    try:
        if isinstance(condition, Mapping):
            met = _in_range(values, condition, where)
        else:
            listed = list(condition) if isinstance(condition, list | tuple | set | frozenset) else [condition]
            met = _among(values, listed, where)
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
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) and end == end for end in ends.values())
    if not ends or set(ends) - set(_ENDS) or not numbers:
        raise ConfigError(f"{where}: a range has numbers for min, max or both, such as {{'min': 1}}; is {dict(ends)}.")
    if not values.dtype.is_numeric():
        raise ConfigError(f"{where}: has a range, but the column is of type {values.dtype}; give values instead.")
    met = values.is_not_null()
    for end, bound in ends.items():
        met &= values >= bound if end == "min" else values <= bound
    return met & values.is_not_nan() if values.dtype.is_float() else met


def _among(values: polars.Series, listed: Sequence[Any], where: str) -> polars.Series:
    kind = values.dtype.inner if isinstance(values.dtype, polars.List) else values.dtype
    assert isinstance(kind, polars.DataType)
    if kind.is_numeric():
        wrong = [one for one in listed if isinstance(one, bool) or not isinstance(one, int | float)]
        whole = kind.is_integer() and all(isinstance(one, int) for one in listed)
        same = polars.Int64 if whole else polars.Float64
    else:
        fits, same = (bool, polars.Boolean) if kind == polars.Boolean else (str, polars.String)
        wrong = [one for one in listed if not isinstance(one, fits)]
    if wrong:
        raise ConfigError(
            f"{where}: {repr(wrong[0])[:80]} does not fit the column's type {values.dtype}; give such values."
        )
    wanted = polars.Series(listed, dtype=same)
    if isinstance(values.dtype, polars.List):
        return values.cast(polars.List(same)).list.eval(polars.element().is_in(wanted.implode())).list.any()
    return values.cast(same).is_in(wanted.implode())


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
            table = polars.read_ndjson(path, infer_schema_length=None)
        else:
            table = polars.read_csv(path, schema_overrides=kinds, infer_schema_length=None, glob=False)
    if ITEM not in table.columns:
        raise DataError(f"{path}: has no column 'item_id'; it has {', '.join(table.columns)}.")
    return table.with_columns(polars.col(ITEM).cast(polars.String))


def join_columns(items: polars.DataFrame, table: polars.DataFrame) -> polars.DataFrame:
    """The items with the columns of a table keyed by `item_id`. Items that it lacks have null there; its other items
    are ignored, and its columns replace those of the same name.

    Raises:
        DataError: `item_id` is missing or repeated, or a column that names items would be replaced.
    """
    if ITEM not in table.columns:
        raise DataError(f"columns: the table has no column 'item_id'; it has {', '.join(table.columns)}.")
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
                new = {"min" if sign == ">=" else "max": float(value)}
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
    try:
        if kind == polars.Boolean:
            return {"true": True, "false": False}[text.lower()]
        return int(text) if kind.is_integer() else float(text) if kind.is_numeric() else text
    except (KeyError, ValueError):
        raise ConfigError(f"{column}: {text!r} does not fit the column's type {kind}.") from None


def _lines(path: Path, name: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--{name}: {path}: cannot be read ({str(error)[:100]}).") from None
