"""Reads your own data: tables of interactions and items as CSV, CSV.gz, TSV, JSONL, JSONL.gz or Parquet."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars

from eimf.config.schema import DatasetConfig
from eimf.core.errors import DataError
from eimf.data.sources.base import Interactions, RawData, Source, clean_interactions, clean_items
from eimf.data.sources.delimited import read_delimited
from eimf.data.sources.jsonlines import read_records

ROWS_AT_A_TIME = 1_000_000


@dataclass(frozen=True)
class TableConfig(DatasetConfig):
    """Options of `source: table`."""

    source: str = "table"
    user_column: str = "user_id"
    """Column of user ids."""
    item_column: str = "item_id"
    """Column of item ids, in both tables."""
    timestamp_column: str = "timestamp"
    """Column of times: unix seconds, milliseconds, microseconds or nanoseconds, or ISO 8601; empty: no times,
    the order of the rows is the order of events."""
    title_column: str = "title"
    """Column of item titles; empty: no titles."""
    categories_column: str = "categories"
    """Column of category names: lists, or text with `|` between the names."""
    brand_column: str = "brand"
    """Column of brands."""
    separator: str = ","
    """Separator of CSV columns: one character; `\\t` is a tab, which `.tsv` files have by themselves."""
    header: bool = True
    """Whether the first row of CSV files has the names of the columns. If false, columns are numbered from 1
    (`user_column=1`), or have the names that the next two settings give."""
    columns: list[str] = field(default_factory=list)
    """Names of the columns of the interactions' file, in their order, if it has no header."""
    items_columns: list[str] = field(default_factory=list)
    """The same for the items' file."""


def read(dataset: TableConfig, interactions: Path, items: Path | None) -> RawData:
    """Read tables whose column names the configuration gives.

    Raises:
        DataError: a file is missing, empty, unreadable or lacks a column.
    """
    repairs: dict[str, int] = {}
    return RawData(read_interactions(dataset, interactions, repairs), read_items(dataset, items, repairs), repairs)


def read_interactions(dataset: TableConfig, path: Path, repairs: dict[str, int]) -> Interactions:
    """Cleaned interactions of one file; see `read`."""
    wanted = {"user_id": dataset.user_column, "item_id": dataset.item_column}
    if dataset.timestamp_column:
        wanted["timestamp"] = dataset.timestamp_column
    batches = _read(path, wanted, wanted, dataset, dataset.columns, repairs)
    if not dataset.timestamp_column:
        batches = _in_order(batches)
    return clean_interactions(batches, str(path), repairs)


def read_items(dataset: TableConfig, path: Path | None, repairs: dict[str, int]) -> polars.DataFrame:
    """Cleaned items of one file, an empty table if there is no file; see `read`."""
    if path is None:
        return clean_items(polars.DataFrame(schema={"item_id": polars.String}), repairs)
    needed = {"item_id": dataset.item_column, "title": dataset.title_column}
    columns = needed | {"categories": dataset.categories_column, "brand": dataset.brand_column}
    needed, columns = ({ours: theirs for ours, theirs in names.items() if theirs} for names in (needed, columns))
    texts = polars.concat(_read(path, needed, columns, dataset, dataset.items_columns, repairs), how="vertical_relaxed")
    return clean_items(texts, repairs)


def _read(
    path: Path,
    needed: dict[str, str],
    columns: dict[str, str],
    dataset: TableConfig,
    names: list[str],
    repairs: dict[str, int],
) -> Iterator[polars.DataFrame]:
    """Batches of rows with those `columns` that the file has, under our names; the file must have the `needed` ones."""
    hint = "Set " + ", ".join(f"dataset.{_SETTING[ours]}" for ours in needed) + ", or dataset.separator."
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder; name a file' if path.is_dir() else 'no such file'}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty; give a file with a header and at least one row.")
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".json", ".ndjson")):
        kinds = {
            theirs: polars.List(polars.String) if ours == "categories" else polars.String
            for ours, theirs in columns.items()
        }
        frame = read_records(path, kinds, repairs)
        missing = [theirs for theirs in needed.values() if frame[theirs].null_count() == len(frame)]
        if missing:
            raise DataError(f"{path}: no record has a field {', '.join(map(repr, missing))}. {hint}")
        yield frame.select(polars.col(theirs).alias(ours) for ours, theirs in columns.items())
    elif name.endswith(".parquet"):
        yield from _read_parquet(path, needed, columns, hint)
    else:
        separator = "\t" if name.endswith(".tsv") or dataset.separator == "\\t" else dataset.separator
        if len(separator) != 1 or separator in '"\n\r':
            raise DataError(f"dataset.separator: must be one character (or \\t for a tab), is {dataset.separator!r}.")
        yield from read_delimited(
            path,
            needed,
            columns,
            separator=separator,
            names=names or None,
            header=dataset.header,
            repairs=repairs,
            hint=hint,
        )


_SETTING = {
    "user_id": "user_column",
    "item_id": "item_column",
    "timestamp": "timestamp_column",
    "title": "title_column",
}


def _read_parquet(path: Path, needed: dict[str, str], columns: dict[str, str], hint: str) -> Iterator[polars.DataFrame]:
    try:
        lazy = polars.scan_parquet(path, glob=False)
        present = lazy.collect_schema().names()
        missing = [theirs for theirs in needed.values() if theirs not in present]
        if missing:
            raise DataError(
                f"{path}: has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, present))}. {hint}"
            )
        chosen = lazy.select(polars.col(theirs).alias(ours) for ours, theirs in columns.items() if theirs in present)
        yield chosen.head(0).collect()  # an empty table still has its columns
        yield from chosen.collect_batches(chunk_size=ROWS_AT_A_TIME)
    except (polars.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}.") from None


def _in_order(batches: Iterator[polars.DataFrame]) -> Iterator[polars.DataFrame]:
    """Batches with the number of each row as its time."""
    first = 0
    for rows in batches:
        yield rows.with_columns(polars.int_range(first, first + polars.len(), dtype=polars.Int64).alias("timestamp"))
        first += len(rows)


SOURCE = Source(TableConfig, read)
