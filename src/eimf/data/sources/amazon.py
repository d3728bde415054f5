"""Amazon product reviews, releases of 2014 (McAuley et al. 2015), 2018 (Ni et al. 2019) and 2023 (Hou et al. 2024)."""

from pathlib import Path

import polars as pl

from eimf.config.schema import DatasetConfig
from eimf.core.errors import ConfigError
from eimf.data.sources.base import RawData, clean_interactions, clean_items
from eimf.data.sources.jsonlines import read_records

_TEXTS = pl.List(pl.String)


# release -> fields of (user, item, time), fields of (item, title, categories, brand) with their types, time unit
_RELEASES = {
    "2014": (
        ("reviewerID", "asin", "unixReviewTime"),
        {"asin": pl.String, "title": pl.String, "categories": pl.List(_TEXTS), "brand": pl.String},
        1,
    ),
    "2018": (
        ("reviewerID", "asin", "unixReviewTime"),
        {"asin": pl.String, "title": pl.String, "category": _TEXTS, "brand": pl.String},
        1,
    ),
    "2023": (
        ("user_id", "parent_asin", "timestamp"),
        {"parent_asin": pl.String, "title": pl.String, "categories": _TEXTS, "store": pl.String},
        1000,
    ),
}


def read(dataset: DatasetConfig, interactions: Path, items: Path | None) -> RawData:
    """Read `reviews_*` and `meta_*` files; metadata lines may be Python literals, as in the 2014 release.

    Raises:
        ConfigError: `dataset.format` is no release.
        DataError: a file is missing, empty or unreadable.
    """
    if dataset.format not in _RELEASES:
        raise ConfigError(f"dataset.format: must be one of {', '.join(_RELEASES)} (amazon), is {dataset.format!r}.")
    (user, item, time), text_fields, unit = _RELEASES[dataset.format]
    repairs: dict[str, int] = {}
    rows = read_records(interactions, {user: pl.String, item: pl.String, time: pl.Int64}, repairs)
    rows = rows.select(
        pl.col(user).alias("user_id"),
        pl.col(item).alias("item_id"),
        (pl.col(time) // unit).alias("timestamp"),
    )
    rows = clean_interactions([rows], str(interactions), repairs)
    texts = pl.DataFrame(schema={"item_id": pl.String})
    if items is not None:
        texts = read_records(items, text_fields, repairs)
        texts = texts.rename(dict(zip(text_fields, ("item_id", "title", "categories", "brand"), strict=True)))
        if dataset.format == "2014":  # several category paths; the first one is the main one
            texts = texts.with_columns(pl.col("categories").list.first())
    return RawData(rows, clean_items(texts, repairs), repairs)
