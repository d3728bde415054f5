"""What a source returns, and the cleaning that all sources share."""

from dataclasses import dataclass, field

import polars as pl

from eimf.errors import DataError

ITEM_SCHEMA = {"item_id": pl.String, "title": pl.String, "categories": pl.List(pl.String), "brand": pl.String}


@dataclass(frozen=True)
class RawData:
    """Interactions and items as a source found them, cleaned but not filtered."""

    interactions: pl.DataFrame
    """`user_id: str, item_id: str, timestamp: i64` in the published order; the demo adds `interest: i32`."""
    items: pl.DataFrame
    """`ITEM_SCHEMA`, one row an item; items of the interactions may be missing."""
    repairs: dict[str, int] = field(default_factory=dict)
    """What was dropped or mended -> how often."""


def clean_interactions(rows: pl.DataFrame, subject: str, repairs: dict[str, int]) -> pl.DataFrame:
    """Trim ids, parse times, drop what cannot be used, and count all of it in `repairs`.

    Args:
        rows: `user_id`, `item_id` and `timestamp` of any type, in the published order.
        subject: what messages call the data.

    Raises:
        DataError: nothing usable is left.
    """
    if rows.is_empty():
        raise DataError(f"{subject}: holds no interactions; give a file with at least one row below its header.")
    for column in ("user_id", "item_id"):
        raw = pl.col(column).cast(pl.String)
        # A byte that is not UTF-8 was read as U+FFFD. Ids are kept with it: it is still an id.
        _count(
            repairs,
            f"{column}s with bytes that are not UTF-8",
            rows.select(raw.str.contains("\ufffd").sum()).item(),
        )
        before = rows.select(raw.n_unique()).item()
        rows = rows.with_columns(raw.str.strip_chars().alias(column))
        _count(
            repairs,
            f"{column}s that differed from another one by outer spaces only",
            before - rows[column].n_unique(),
        )
    rows = rows.with_columns(_parse_time(rows["timestamp"]))
    usable = (
        pl.col("user_id").is_not_null()
        & (pl.col("user_id") != "")
        & pl.col("item_id").is_not_null()
        & (pl.col("item_id") != "")
        & pl.col("timestamp").is_not_null()
    )
    good = rows.filter(usable)
    _count(repairs, "rows without a user, an item or a readable time (dropped)", len(rows) - len(good))
    if good.is_empty():
        first = rows.row(0)
        raise DataError(
            f"{subject}: no row has a user, an item and a time in unix seconds or ISO 8601; "
            f"the first row reads {first!r}. Check the column names and the separator."
        )
    return good


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
