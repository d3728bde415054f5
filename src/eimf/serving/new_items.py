"""New items of a table, for a served run."""

import logging
from pathlib import Path

import polars

from eimf.serving.filters import ITEM, read_columns
from eimf.serving.recommender import Recommender, load

log = logging.getLogger(__name__)


def load_with_tables(run: Path, columns: Path | None = None, items: Path | None = None) -> Recommender:
    """A run, with further columns of its items and with new items, where tables of them are given.

    Args:
        columns: see `eimf.serving.recommender.load`.
        items: see `add_items_of`.

    Raises:
        ArtifactError, ConfigError, DataError: see these functions.
    """
    model = load(run, columns)
    if items is not None:
        add_items_of(items, model)
    return model


def add_items_of(path: Path, model: Recommender) -> None:
    """Add the items of a table to a model, see `Recommender.add_items`; those that it knows are left out.

    Args:
        path: CSV, Parquet or JSON lines, with the columns `item_id`, `title` and others of the catalogue.

    Raises:
        ConfigError: the run keeps no text map, or the encoder cannot be loaded.
        DataError: the table cannot be read, or an item has no title or a wrong field.
    """
    table = read_columns(path)
    texts = [polars.col(name).cast(polars.String) for name in ("title", "brand") if name in table.columns]
    rows = [
        {name: value for name, value in row.items() if value is not None}
        for row in table.with_columns(texts).iter_rows(named=True)
    ]
    new = [row for row in rows if ITEM not in row or not model.knows(row[ITEM])]
    model.add_items(new)
    known = len(rows) - len(new)
    log.info(f"new items: {len(new):,} of {path}" + (f" ({known:,} are in the catalogue already)" if known else ""))
