"""Amazon product reviews, releases of 2014 (McAuley et al. 2015), 2018 (Ni et al. 2019) and 2023 (Hou et al. 2024)."""

import html
from dataclasses import dataclass
from pathlib import Path

import polars

from eimf.config.schema import DatasetConfig
from eimf.core.errors import ConfigError
from eimf.data.sources.base import RawData, Source, clean_interactions, clean_items
from eimf.data.sources.jsonlines import read_records

_TEXTS = polars.List(polars.String)


# release -> fields of (user, item, time), fields of (item, title, categories, brand) with their types
_RELEASES = {
    "2014": (
        ("reviewerID", "asin", "unixReviewTime"),
        {"asin": polars.String, "title": polars.String, "categories": polars.List(_TEXTS), "brand": polars.String},
    ),
    "2018": (
        ("reviewerID", "asin", "unixReviewTime"),
        {"asin": polars.String, "title": polars.String, "category": _TEXTS, "brand": polars.String},
    ),
    "2023": (
        ("user_id", "parent_asin", "timestamp"),
        {"parent_asin": polars.String, "title": polars.String, "categories": _TEXTS, "store": polars.String},
    ),
}


@dataclass(frozen=True)
class AmazonConfig(DatasetConfig):
    """Options of `source: amazon`."""

    source: str = "amazon"
    format: str = ""
    """Release: 2014, 2018 or 2023."""


def read(dataset: AmazonConfig, interactions: Path, items: Path | None) -> RawData:
    """Read `reviews_*` and `meta_*` files; metadata lines may be Python literals, as in the 2014 release.

    Raises:
        ConfigError: `dataset.format` names no release.
        DataError: a file is missing, empty or unreadable.
    """
    if dataset.format not in _RELEASES:
        raise ConfigError(f"dataset.format: must be one of {', '.join(_RELEASES)} (amazon), is {dataset.format!r}.")
    (user, item, time), text_fields = _RELEASES[dataset.format]
    repairs: dict[str, int] = {}
    rows = read_records(interactions, {user: polars.String, item: polars.String, time: polars.Int64}, repairs)
    rows = rows.select(
        polars.col(user).alias("user_id"),
        polars.col(item).alias("item_id"),
        polars.col(time).alias("timestamp"),
    )
    rows = clean_interactions([rows], str(interactions), repairs)
    texts = polars.DataFrame(schema={"item_id": polars.String})
    if items is not None:
        texts = read_records(items, text_fields, repairs)
        texts = texts.rename(dict(zip(text_fields, ("item_id", "title", "categories", "brand"), strict=True)))
        if dataset.format == "2014":  # several category paths; the first one is the main one
            texts = texts.with_columns(polars.col("categories").list.first())
    if dataset.format == "2023" and "title" in texts.columns:  # titles are HTML in that release
        titles = texts["title"].map_elements(html.unescape, return_dtype=polars.String)
        texts = texts.with_columns(titles)
    return RawData(rows, clean_items(texts, repairs), repairs)


SOURCE = Source(AmazonConfig, read)
