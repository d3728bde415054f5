"""What a source returns, and the cleaning that all sources share."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars

from eimf.config.schema import DatasetConfig
from eimf.core.errors import DataError

ITEM_SCHEMA = {
    "item_id": polars.String,
    "title": polars.String,
    "categories": polars.List(polars.String),
    "brand": polars.String,
}


class Numbering:
    """Numbers texts from 0 in the order of their first appearance, a batch at a time."""

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
    """i64[T]: unix seconds"""
    user_ids: polars.Series
    """Distinct, in the order of first appearance, as `item_ids`. An id that only dropped rows had may be left."""
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
        return cls(user, item, rows["timestamp"].to_numpy(), users.texts, items.texts, interest)

    def frame(self) -> polars.DataFrame:
        """The rows with their ids, to look at."""
        columns = {
            "user_id": self.user_ids.gather(self.user),
            "item_id": self.item_ids.gather(self.item),
            "timestamp": self.time,
        }
        return polars.DataFrame(columns | ({} if self.interest is None else {"interest": self.interest}))


@dataclass(frozen=True)
class RawData:
    """Interactions and items as a source found them, cleaned but not filtered."""

    interactions: Interactions
    items: polars.DataFrame
    """`ITEM_SCHEMA`, one row an item; items of the interactions may be missing."""
    repairs: dict[str, int] = field(default_factory=dict)
    """What was dropped or mended -> how often."""


class Source(NamedTuple):
    """A kind of raw data, as `eimf.config.components.SOURCES` names it."""

    Config: type[DatasetConfig]
    """The data set's options, those of this source included."""
    read: Callable[[Any, Path, Path | None], RawData]
    """Reads the file of interactions and, where there is one, of item texts; takes an object of `Config` first."""
    needs_files: bool = True
    """Whether the raw files are looked for, and downloaded where they are missing."""


def clean_interactions(batches: Iterable[polars.DataFrame], subject: str, repairs: dict[str, int]) -> Interactions:
    """Trim ids, parse times, drop what cannot be used, and count all of it in `repairs`.

    Only numbers are kept of a batch, and ids are cleaned once each, so that memory and time are those of the numbers.

    Args:
        batches: `user_id`, `item_id` and `timestamp` of any type, in the published order.
        subject: what messages call the data.

    Raises:
        DataError: nothing usable is left.
    """
    users, items, first = Numbering(), Numbering(), None
    parts: list[tuple[np.ndarray, np.ndarray, polars.Series]] = []
    for rows in batches:
        if len(rows):
            first = first or rows.row(0)
            parts.append((users.number(rows["user_id"]), items.number(rows["item_id"]), _parse_time(rows["timestamp"])))
    if first is None:
        raise DataError(f"{subject}: holds no interactions; give a file with at least one row below its header.")
    user = _clean_ids("user_id", users.texts, np.concatenate([part[0] for part in parts]), repairs)
    item = _clean_ids("item_id", items.texts, np.concatenate([part[1] for part in parts]), repairs)
    times = polars.concat([part[2] for part in parts])
    parts.clear()
    usable = times.is_not_null().to_numpy() & (user.texts != "").to_numpy()[user.numbers]
    usable &= (item.texts != "").to_numpy()[item.numbers]
    _count(repairs, "rows without a user, an item or a readable time (dropped)", int(len(usable) - usable.sum()))
    if not usable.any():
        raise DataError(
            f"{subject}: no row has a user, an item and a time in unix seconds or ISO 8601; "
            f"the first row reads {first!r}. Check the column names and the separator."
        )
    time = times.fill_null(0).to_numpy()
    if usable.all():
        return Interactions(user.numbers, item.numbers, time, user.texts, item.texts)
    return Interactions(user.numbers[usable], item.numbers[usable], time[usable], user.texts, item.texts)


class _Ids(NamedTuple):
    texts: polars.Series
    numbers: np.ndarray


def _clean_ids(column: str, raw: polars.Series, numbers: np.ndarray, repairs: dict[str, int]) -> _Ids:
    """Trim ids; those that become equal get one number."""
    # A byte that is not UTF-8 was read as U+FFFD. Ids are kept with it: it is still an id.
    mangled = raw.str.contains("\ufffd").to_numpy()
    _count(repairs, f"{column}s with bytes that are not UTF-8", int(mangled[numbers].sum()) if mangled.any() else 0)
    trimmed = Numbering()
    again = trimmed.number(raw.str.strip_chars())
    _count(repairs, f"{column}s that differed from another one by outer spaces only", len(raw) - len(trimmed))
    return _Ids(trimmed.texts, again[numbers] if len(trimmed) < len(raw) else numbers)


def _parse_time(values: polars.Series) -> polars.Series:
    """Unix seconds from numbers, numeric text, ISO 8601 text or date-times; null where unreadable."""
    name = "timestamp"
    if values.dtype.is_temporal():
        return values.cast(polars.Datetime("us")).dt.epoch("s").alias(name)
    if values.dtype.is_integer():
        return values.cast(polars.Int64).alias(name)
    if values.dtype.is_float():
        return values.floor().cast(polars.Int64, strict=False).alias(name)
    text = values.cast(polars.String).str.strip_chars()
    number = text.cast(polars.Float64, strict=False)
    number = number.set(number.is_nan() | number.is_infinite(), None).floor().cast(polars.Int64, strict=False)
    if number.null_count() == text.null_count():
        return number.alias(name)
    frame = polars.DataFrame({"text": text, "number": number})
    # Whole seconds in UTC: with a zone, with a fraction, with T or a space, or a date alone.
    plain = polars.col("text").str.replace("T", " ", literal=True).str.replace(r"(Z|[+-]\d\d:?\d\d)$", "")
    shift = (
        polars.col("text").str.extract(r"\d ?([+-]\d\d):?\d\d$", 1).cast(polars.Int64, strict=False).fill_null(0) * 3600
    )
    moment = polars.coalesce(
        plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False),
        plain.str.to_datetime("%Y-%m-%d %H:%M", strict=False),
        plain.str.to_date("%Y-%m-%d", strict=False).cast(polars.Datetime("us")),
    )
    seconds = moment.dt.epoch("s") - polars.when(polars.col("text").str.contains(":")).then(shift).otherwise(0)
    return frame.select(polars.coalesce("number", seconds).alias(name))[name]


def clean_items(rows: polars.DataFrame, repairs: dict[str, int]) -> polars.DataFrame:
    """Bring item texts to `ITEM_SCHEMA`: one line each, no control characters, the first row of an id wins."""
    for name, kind in ITEM_SCHEMA.items():
        if name not in rows.columns:
            rows = rows.with_columns(polars.lit(None, dtype=kind).alias(name))
    rows = rows.select(list(ITEM_SCHEMA)).with_columns(polars.col("item_id").cast(polars.String).str.strip_chars())
    named = rows.filter(polars.col("item_id").is_not_null() & (polars.col("item_id") != ""))
    _count(repairs, "item rows without an id (dropped)", len(rows) - len(named))
    first = named.unique("item_id", keep="first", maintain_order=True)
    _count(repairs, "item rows that repeat an id (first kept)", len(named) - len(first))
    control = r"[\p{Cc}\p{Cf}\u2028\u2029]"
    dirty = first.select(polars.col("title").str.contains(control).sum()).item() or 0
    _count(repairs, "titles with control characters (replaced by a space)", dirty)
    _count(
        repairs,
        "titles with bytes that are not UTF-8",
        first.select(polars.col("title").str.contains("\ufffd").sum()).item() or 0,
    )

    def tidy(text: polars.Expr) -> polars.Expr:
        return text.str.replace_all(control, " ").str.replace_all(r"\s+", " ").str.strip_chars()

    brand = tidy(polars.col("brand").cast(polars.String))
    return first.with_columns(
        tidy(polars.col("title").cast(polars.String)).fill_null(""),
        polars.col("categories").cast(polars.List(polars.String)).list.eval(tidy(polars.element())).fill_null([]),
        polars.when(brand != "").then(brand).alias("brand"),
    )


def _count(repairs: dict[str, int], what: str, n: int | None) -> None:
    if n:
        repairs[what] = repairs.get(what, 0) + int(n)
