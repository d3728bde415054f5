"""Your own data: tables of interactions and items as CSV, CSV.gz, JSONL, JSONL.gz or Parquet."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars

from eimf.config.schema import DatasetConfig
from eimf.core.errors import DataError
from eimf.data.sources.base import Interactions, RawData, Source, clean_interactions, clean_items
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
    """Column of unix seconds or ISO 8601 date-times; empty: the order of the rows is the order of events."""
    title_column: str = "title"
    """Column of item titles."""
    categories_column: str = "categories"
    """Column of category names: lists, or text with `|` between the names."""
    brand_column: str = "brand"
    """Column of brands."""
    separator: str = ","
    """Separator of CSV columns."""


def read(dataset: TableConfig, interactions: Path, items: Path | None) -> RawData:
    """Read tables whose column names the configuration gives.

    Raises:
        DataError: a file is missing, empty, unreadable or lacks a column.
    """
    repairs: dict[str, int] = {}
    return RawData(read_interactions(dataset, interactions, repairs), read_items(dataset, items, repairs), repairs)


def read_interactions(dataset: TableConfig, path: Path, repairs: dict[str, int]) -> Interactions:
    """Clean interactions of one file; see `read`."""
    wanted = {"user_id": dataset.user_column, "item_id": dataset.item_column}
    if dataset.timestamp_column:
        wanted["timestamp"] = dataset.timestamp_column
    batches = _read(path, wanted, dict(wanted), dataset, repairs)
    if not dataset.timestamp_column:
        batches = _in_order(batches)
    return clean_interactions(batches, str(path), repairs)


def read_items(dataset: TableConfig, path: Path | None, repairs: dict[str, int]) -> polars.DataFrame:
    """Clean items of one file, none where there is no file; see `read`."""
    if path is None:
        return clean_items(polars.DataFrame(schema={"item_id": polars.String}), repairs)
    columns = {
        "item_id": dataset.item_column,
        "title": dataset.title_column,
        "categories": dataset.categories_column,
        "brand": dataset.brand_column,
    }
    texts = polars.concat(_read(path, {"item_id": dataset.item_column}, columns, dataset, repairs))
    if "categories" in texts.columns and texts["categories"].dtype == polars.String:
        parts = polars.col("categories").str.split("|")
        texts = texts.with_columns(polars.when(polars.col("categories") != "").then(parts).alias("categories"))
    return clean_items(texts, repairs)


def _read(
    path: Path,
    needed: dict[str, str],
    columns: dict[str, str],
    dataset: TableConfig,
    repairs: dict[str, int],
) -> Iterator[polars.DataFrame]:
    """Batches of rows with our names of `columns` that the file has; `needed` ones it must have."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty; give a file with a header and at least one row.")
    name = path.name.removesuffix(".gz")
    lazy = None
    try:
        if name.endswith((".jsonl", ".json", ".ndjson")):
            kinds = dict.fromkeys(columns.values(), polars.String)
            kinds |= {dataset.categories_column: polars.List(polars.String)} if "categories" in columns else {}
            frame = read_records(path, kinds, repairs)
            missing = [column for column in needed.values() if frame[column].null_count() == len(frame)]
            present = [column for column in frame.columns if column not in missing]
            lazy = frame.lazy()
        else:
            if name.endswith(".parquet"):
                lazy = polars.scan_parquet(path, glob=False)
            else:
                lazy = polars.scan_csv(
                    path,
                    glob=False,
                    separator="\t" if name.endswith(".tsv") else dataset.separator,
                    infer_schema=False,
                    encoding="utf8-lossy",
                    truncate_ragged_lines=True,
                )
            present = lazy.collect_schema().names()
            missing = [column for column in needed.values() if column not in present]
        if missing:
            raise DataError(
                f"{path}: has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, present))}. "
                "Set dataset.user_column, dataset.item_column, dataset.timestamp_column or dataset.separator."
            )
        chosen = lazy.select(polars.col(theirs).alias(ours) for ours, theirs in columns.items() if theirs in present)
        yield chosen.head(0).collect()  # an empty table still has its columns
        yield from chosen.collect_batches(chunk_size=ROWS_AT_A_TIME)
    except polars.exceptions.PolarsError as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}.") from None


def _in_order(batches: Iterator[polars.DataFrame]) -> Iterator[polars.DataFrame]:
    """Batches with the number of the row as its time."""
    first = 0
    for rows in batches:
        yield rows.with_columns(polars.int_range(first, first + polars.len(), dtype=polars.Int64).alias("timestamp"))
        first += len(rows)


SOURCE = Source(TableConfig, read)
