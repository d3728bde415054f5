"""Defines what a source returns, and the cleaning that all sources share."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars

from eimf.config.schema import DatasetConfig
from eimf.core.errors import DataError
from eimf.data.sources.times import parse_times

ITEM_SCHEMA = {
    "item_id": polars.String,
    "title": polars.String,
    "categories": polars.List(polars.String),
    "brand": polars.String,
}


class Numbering:
    """Numbers texts from 0 in the order of their first appearance, batch by batch."""

    def __init__(self) -> None:
        self._known = polars.DataFrame(schema={"text": polars.String, "number": polars.UInt32})

    def __len__(self) -> int:
        return len(self._known)

    @property
    def texts(self) -> polars.Series:
        """Text of each number."""
        return self._known["text"]

    def number(self, texts: polars.Series) -> np.ndarray:
        """u32: number of each text; null counts as empty."""
        batch = polars.DataFrame({"text": texts.cast(polars.String).fill_null("")})
        new = batch.unique(maintain_order=True).join(self._known, on="text", how="anti", maintain_order="left")
        first = len(self._known)
        new = new.with_columns(polars.int_range(first, first + polars.len(), dtype=polars.UInt32).alias("number"))
        self._known = polars.concat([self._known, new], rechunk=True)
        return batch.join(self._known, on="text", how="left", maintain_order="left")["number"].to_numpy()


@dataclass(frozen=True, eq=False)
class Interactions:
    """Interactions in the published order; 16 bytes each, however long the ids are."""

    user: np.ndarray
    """u32[T]: row of `user_ids`"""
    item: np.ndarray
    """u32[T]: row of `item_ids`"""
    time: np.ndarray
    """i64[T]: microseconds since 1970 in UTC"""
    user_ids: polars.Series
    """Distinct ids in the order of first appearance, as in `item_ids`. Ids of dropped rows may remain."""
    item_ids: polars.Series
    interest: np.ndarray | None = None
    """i32[T]: true interest, where a simulator knows it"""

    def __len__(self) -> int:
        return len(self.time)

    @classmethod
    def of(cls, rows: polars.DataFrame) -> "Interactions":
        """From clean rows `user_id, item_id, timestamp` (and `interest`)."""
        users, items = Numbering(), Numbering()
        user, item = users.number(rows["user_id"]), items.number(rows["item_id"])
        interest = rows["interest"].to_numpy() if "interest" in rows.columns else None
        time = parse_times(rows["timestamp"]).to_numpy()
        return cls(user, item, time, users.texts, items.texts, interest)

    def frame(self) -> polars.DataFrame:
        """The rows with their ids, for inspection."""
        columns = {
            "user_id": self.user_ids.gather(self.user),
            "item_id": self.item_ids.gather(self.item),
            "timestamp": self.time,
        }
        return polars.DataFrame(columns | ({} if self.interest is None else {"interest": self.interest}))


@dataclass(frozen=True)
class RawData:
    """Interactions and items of a source, cleaned but not filtered."""

    interactions: Interactions
    items: polars.DataFrame
    """`ITEM_SCHEMA`, one row per item; it may lack items of the interactions."""
    repairs: dict[str, int] = field(default_factory=dict)
    """What was dropped or repaired -> how often."""


class Source(NamedTuple):
    """A kind of raw data, as `eimf.config.components.SOURCES` names it."""

    Config: type[DatasetConfig]
    """The data set's options, those of this source included."""
    read: Callable[[Any, Path, Path | None], RawData]
    """Reads the file of interactions and, where there is one, of item texts; takes an object of `Config` first."""
    needs_files: bool = True
    """Whether the source reads raw files, which are downloaded if they are missing."""


def clean_interactions(batches: Iterable[polars.DataFrame], subject: str, repairs: dict[str, int]) -> Interactions:
    """Trim ids, parse times, drop rows that cannot be used, and count all of this in `repairs`.

    To save memory and time, only numbers are kept of a batch, and each distinct id is cleaned once.

    Args:
        batches: `user_id`, `item_id` and `timestamp` of any type that can hold them, in the published order.
        subject: name of the data in messages.

    Raises:
        DataError: no usable row is left, or a column has a type that cannot hold its values.
    """
    users, items, first = Numbering(), Numbering(), None
    parts: list[tuple[np.ndarray, np.ndarray, polars.Series]] = []
    for rows in batches:
        if len(rows):
            first = first or rows.row(0)
            user, item = (id_texts(rows[name], f"{subject}: {name}") for name in ("user_id", "item_id"))
            times = parse_times(rows["timestamp"], f"{subject}: timestamp")
            parts.append((users.number(user), items.number(item), times))
    if first is None:
        raise DataError(f"{subject}: holds no interactions; give a file with at least one row below its header.")
    user = _clean_ids("user_id", users.texts, np.concatenate([part[0] for part in parts]), repairs)
    item = _clean_ids("item_id", items.texts, np.concatenate([part[1] for part in parts]), repairs)
    times = polars.concat([part[2].rename("timestamp") for part in parts])
    parts.clear()
    usable = times.is_not_null().to_numpy() & (user.texts != "").to_numpy()[user.numbers]
    usable &= (item.texts != "").to_numpy()[item.numbers]
    _count(repairs, "rows without a user, an item or a readable time (dropped)", int(len(usable) - usable.sum()))
    if not usable.any():
        raise DataError(
            f"{subject}: no row has a user, an item and a time in unix seconds or ISO 8601; "
            f"the first row reads {str(first)[:200]}. Check the column names and the separator."
        )
    time = times.fill_null(0).to_numpy()
    if usable.all():
        return Interactions(user.numbers, item.numbers, time, user.texts, item.texts)
    return Interactions(user.numbers[usable], item.numbers[usable], time[usable], user.texts, item.texts)


def id_texts(values: polars.Series, subject: str) -> polars.Series:
    """Ids as texts; whole numbers have no decimal point, whatever their type.

    Raises:
        DataError: values of this type are no ids.
    """
    kind = values.dtype
    if kind.is_float():
        values = values.fill_nan(None)  # as pandas writes a missing id
        whole = values.cast(polars.Int64, strict=False)
        same = (whole.cast(polars.Float64) == values).fill_null(False)
        return whole.cast(polars.String).set(~same, None).fill_null(values.cast(polars.String))
    if kind.is_decimal():
        return values.cast(polars.String).str.replace(r"\.0+$", "")
    plain = (polars.String, polars.Categorical, polars.Enum, polars.Null, polars.Date, polars.Datetime)
    if kind.is_integer() or kind in plain:
        return values.cast(polars.String)
    raise DataError(f"{subject}: of type {kind}, which is no id; give texts or numbers.")


class _Ids(NamedTuple):
    texts: polars.Series
    numbers: np.ndarray


def _clean_ids(column: str, raw: polars.Series, numbers: np.ndarray, repairs: dict[str, int]) -> _Ids:
    """Trim ids; ids that become equal get the same number."""
    # A byte that is not UTF-8 was read as U+FFFD. Ids are kept with it: it is still an id.
    damaged = raw.str.contains("\ufffd").to_numpy()
    _count(repairs, f"{column}s with bytes that are not UTF-8", int(damaged[numbers].sum()) if damaged.any() else 0)
    stripped = raw.str.strip_chars()
    _count(
        repairs,
        f"{column}s that differed from another one by outer spaces only",
        raw.n_unique() - stripped.n_unique(),
    )
    plain = without_point(stripped)
    if plain is not stripped:
        _count(repairs, f"{column}s written with a point (7.0 is read as 7)", int((plain != stripped).sum()))
    cleaned = Numbering()
    new_numbers = cleaned.number(plain)
    return _Ids(cleaned.texts, new_numbers[numbers] if len(cleaned) < len(raw) else numbers)


def without_point(ids: polars.Series) -> polars.Series:
    """Writes ids such as 7.0 as 7, if all ids are whole numbers: tables with gaps are often saved with floats."""
    known = ids.filter(ids.is_not_null() & (ids != ""))
    if known.str.contains(r"^-?\d+\.0+$").any() and known.str.contains(r"^-?\d+(?:\.0+)?$").all():
        return ids.str.replace(r"\.0+$", "")
    return ids


def clean_items(rows: polars.DataFrame, repairs: dict[str, int]) -> polars.DataFrame:
    """Convert item texts to `ITEM_SCHEMA`: one line each, no control characters; the first row of an id is kept."""
    for name, kind in ITEM_SCHEMA.items():
        if name not in rows.columns:
            rows = rows.with_columns(polars.lit(None, dtype=kind).alias(name))
    rows = rows.select(list(ITEM_SCHEMA))
    rows = rows.with_columns(without_point(id_texts(rows["item_id"], "items: item_id").str.strip_chars()))
    for name in ("title", "brand"):
        rows = rows.with_columns(_plain_text(rows[name], f"items: {name}"))
    rows = rows.with_columns(_category_lists(rows["categories"]))
    named = rows.filter(polars.col("item_id").is_not_null() & (polars.col("item_id") != ""))
    _count(repairs, "item rows without an id (dropped)", len(rows) - len(named))
    first = named.unique("item_id", keep="first", maintain_order=True)
    _count(repairs, "item rows that repeat an id (first kept)", len(named) - len(first))
    # The joiners of emoji and of some scripts are kept.
    control = r"[\p{Cc}\p{Cf}\u2028\u2029--\u200c\u200d]"
    dirty = first.select(polars.col("title").str.contains(control).sum()).item() or 0
    _count(repairs, "titles with control characters (replaced by a space)", dirty)
    _count(
        repairs,
        "titles with bytes that are not UTF-8",
        first.select(polars.col("title").str.contains("\ufffd").sum()).item() or 0,
    )

    def tidy(text: polars.Expr) -> polars.Expr:
        return text.str.replace_all(control, " ").str.replace_all(r"\s+", " ").str.strip_chars()

    brand = tidy(polars.col("brand"))
    return first.with_columns(
        tidy(polars.col("title")).fill_null(""),
        polars.col("categories").list.eval(tidy(polars.element())).list.eval(_not_empty()).fill_null([]),
        polars.when(brand != "").then(brand).alias("brand"),
    )


def _not_empty() -> polars.Expr:
    return polars.element().filter(polars.element() != "")


def _plain_text(values: polars.Series, subject: str) -> polars.Series:
    """One text per row, from texts, numbers or lists of texts.

    Raises:
        DataError: values of this type are no texts.
    """
    kind = values.dtype
    if isinstance(kind, polars.List) and kind.inner in (polars.String, polars.Categorical):
        return values.cast(polars.List(polars.String)).list.join(" ")
    if kind.is_nested() or kind in (polars.Binary, polars.Duration, polars.Object):
        raise DataError(f"{subject}: of type {kind}, which is no text; give texts.")
    return values.cast(polars.String)


def _category_lists(values: polars.Series) -> polars.Series:
    """Lists of names, from lists, from texts with `|` between the names, or the first of several lists.

    Raises:
        DataError: values of this type are no categories.
    """
    kind = values.dtype
    if isinstance(kind, polars.List | polars.Array) and isinstance(kind.inner, polars.List | polars.Array):
        values = values.list.first() if isinstance(kind, polars.List) else values.arr.first()  # the main path
        kind = values.dtype
    if isinstance(kind, polars.Array):
        values = values.arr.to_list()
        kind = values.dtype
    if isinstance(kind, polars.List):
        if kind.inner is None or kind.inner.is_nested() or kind.inner == polars.Binary:
            raise DataError(f"items: categories: of type {kind}, which holds no names; give lists of texts.")
        return values.cast(polars.List(polars.String))
    texts = _plain_text(values, "items: categories")
    return texts.set(texts == "", None).str.split("|")


def _count(repairs: dict[str, int], repair: str, n: int | None) -> None:
    if n:
        repairs[repair] = repairs.get(repair, 0) + int(n)
