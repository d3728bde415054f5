"""What a source returns, and the cleaning that all sources share."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import polars as pl

from eimf.core.errors import DataError

ITEM_SCHEMA = {"item_id": pl.String, "title": pl.String, "categories": pl.List(pl.String), "brand": pl.String}


class Numbering:
    """Numbers texts from 0 in the order of their first appearance, a batch at a time."""

    def __init__(self) -> None:
        self._known = pl.DataFrame(schema={"text": pl.String, "number": pl.UInt32})

    def __len__(self) -> int:
        return len(self._known)

    @property
    def texts(self) -> pl.Series:
        """Text of each number."""
        return self._known["text"]

    def number(self, texts: pl.Series) -> np.ndarray:
        """u32: number of each text; null counts as empty."""
        batch = pl.DataFrame({"text": texts.cast(pl.String).fill_null("")})
        new = batch.unique(maintain_order=True).join(self._known, on="text", how="anti", maintain_order="left")
        first = len(self._known)
        new = new.with_columns(pl.int_range(first, first + pl.len(), dtype=pl.UInt32).alias("number"))
        self._known = pl.concat([self._known, new], rechunk=True)
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
    user_ids: pl.Series
    """Distinct, in the order of first appearance, as `item_ids`. An id that only dropped rows had may be left."""
    item_ids: pl.Series
    interest: np.ndarray | None = None
    """i32[T]: true interest, where a simulator knows it"""

    def __len__(self) -> int:
        return len(self.time)

    @classmethod
    def of(cls, rows: pl.DataFrame) -> "Interactions":
        """From clean rows `user_id, item_id, timestamp` (and `interest`)."""
        users, items = Numbering(), Numbering()
        user, item = users.number(rows["user_id"]), items.number(rows["item_id"])
        interest = rows["interest"].to_numpy() if "interest" in rows.columns else None
        return cls(user, item, rows["timestamp"].to_numpy(), users.texts, items.texts, interest)

    def frame(self) -> pl.DataFrame:
        """The rows with their ids, to look at."""
        columns = {
            "user_id": self.user_ids.gather(self.user),
            "item_id": self.item_ids.gather(self.item),
            "timestamp": self.time,
        }
        return pl.DataFrame(columns | ({} if self.interest is None else {"interest": self.interest}))


@dataclass(frozen=True)
class RawData:
    """Interactions and items as a source found them, cleaned but not filtered."""

    interactions: Interactions
    items: pl.DataFrame
    """`ITEM_SCHEMA`, one row an item; items of the interactions may be missing."""
    repairs: dict[str, int] = field(default_factory=dict)
    """What was dropped or mended -> how often."""


def clean_interactions(batches: Iterable[pl.DataFrame], subject: str, repairs: dict[str, int]) -> Interactions:
    """Trim ids, parse times, drop what cannot be used, and count all of it in `repairs`.

    Only numbers are kept of a batch, and ids are cleaned once each, so that memory and time are those of the numbers.

    Args:
        batches: `user_id`, `item_id` and `timestamp` of any type, in the published order.
        subject: what messages call the data.

    Raises:
        DataError: nothing usable is left.
    """
    users, items, first = Numbering(), Numbering(), None
    parts: list[tuple[np.ndarray, np.ndarray, pl.Series]] = []
    for rows in batches:
        if len(rows):
            first = first or rows.row(0)
            parts.append((users.number(rows["user_id"]), items.number(rows["item_id"]), _parse_time(rows["timestamp"])))
    if first is None:
        raise DataError(f"{subject}: holds no interactions; give a file with at least one row below its header.")
    user = _clean_ids("user_id", users.texts, np.concatenate([part[0] for part in parts]), repairs)
    item = _clean_ids("item_id", items.texts, np.concatenate([part[1] for part in parts]), repairs)
    times = pl.concat([part[2] for part in parts])
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
    texts: pl.Series
    numbers: np.ndarray


def _clean_ids(column: str, raw: pl.Series, numbers: np.ndarray, repairs: dict[str, int]) -> _Ids:
    """Trim ids; those that become equal get one number."""
    # A byte that is not UTF-8 was read as U+FFFD. Ids are kept with it: it is still an id.
    mangled = raw.str.contains("\ufffd").to_numpy()
    _count(repairs, f"{column}s with bytes that are not UTF-8", int(mangled[numbers].sum()) if mangled.any() else 0)
    trimmed = Numbering()
    again = trimmed.number(raw.str.strip_chars())
    _count(repairs, f"{column}s that differed from another one by outer spaces only", len(raw) - len(trimmed))
    return _Ids(trimmed.texts, again[numbers] if len(trimmed) < len(raw) else numbers)


def _parse_time(values: pl.Series) -> pl.Series:
    """Unix seconds from numbers, numeric text, ISO 8601 text or date-times; null where unreadable."""
    name = "timestamp"
    if values.dtype.is_temporal():
        return values.cast(pl.Datetime("us")).dt.epoch("s").alias(name)
    if values.dtype.is_integer():
        return values.cast(pl.Int64).alias(name)
    if values.dtype.is_float():
        return values.floor().cast(pl.Int64, strict=False).alias(name)
    text = values.cast(pl.String).str.strip_chars()
    number = text.cast(pl.Float64, strict=False)
    number = number.set(number.is_nan() | number.is_infinite(), None).floor().cast(pl.Int64, strict=False)
    if number.null_count() == text.null_count():
        return number.alias(name)
    frame = pl.DataFrame({"text": text, "number": number})
    # Whole seconds in UTC: with a zone, with a fraction, with T or a space, or a date alone.
    plain = pl.col("text").str.replace("T", " ", literal=True).str.replace(r"(Z|[+-]\d\d:?\d\d)$", "")
    shift = pl.col("text").str.extract(r"\d ?([+-]\d\d):?\d\d$", 1).cast(pl.Int64, strict=False).fill_null(0) * 3600
    moment = pl.coalesce(
        plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False),
        plain.str.to_datetime("%Y-%m-%d %H:%M", strict=False),
        plain.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")),
    )
    seconds = moment.dt.epoch("s") - pl.when(pl.col("text").str.contains(":")).then(shift).otherwise(0)
    return frame.select(pl.coalesce("number", seconds).alias(name))[name]


def clean_items(rows: pl.DataFrame, repairs: dict[str, int]) -> pl.DataFrame:
    """Bring item texts to `ITEM_SCHEMA`: one line each, no control characters, the first row of an id wins."""
    for name, kind in ITEM_SCHEMA.items():
        if name not in rows.columns:
            rows = rows.with_columns(pl.lit(None, dtype=kind).alias(name))
    rows = rows.select(list(ITEM_SCHEMA)).with_columns(pl.col("item_id").cast(pl.String).str.strip_chars())
    named = rows.filter(pl.col("item_id").is_not_null() & (pl.col("item_id") != ""))
    _count(repairs, "item rows without an id (dropped)", len(rows) - len(named))
    first = named.unique("item_id", keep="first", maintain_order=True)
    _count(repairs, "item rows that repeat an id (first kept)", len(named) - len(first))
    control = r"[\p{Cc}\p{Cf}\u2028\u2029]"
    dirty = first.select(pl.col("title").str.contains(control).sum()).item() or 0
    _count(repairs, "titles with control characters (replaced by a space)", dirty)
    _count(
        repairs,
        "titles with bytes that are not UTF-8",
        first.select(pl.col("title").str.contains("\ufffd").sum()).item() or 0,
    )

    def tidy(text: pl.Expr) -> pl.Expr:
        return text.str.replace_all(control, " ").str.replace_all(r"\s+", " ").str.strip_chars()

    brand = tidy(pl.col("brand").cast(pl.String))
    return first.with_columns(
        tidy(pl.col("title").cast(pl.String)).fill_null(""),
        pl.col("categories").cast(pl.List(pl.String)).list.eval(tidy(pl.element())).fill_null([]),
        pl.when(brand != "").then(brand).alias("brand"),
    )


def _count(repairs: dict[str, int], what: str, n: int | None) -> None:
    if n:
        repairs[what] = repairs.get(what, 0) + int(n)
