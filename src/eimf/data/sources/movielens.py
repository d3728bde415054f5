"""MovieLens 100K and 1M (Harper & Konstan 2015), read from GroupLens' zip archives."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import polars

from eimf.config.schema import DatasetConfig
from eimf.core.errors import ConfigError, DataError
from eimf.data.sources.base import RawData, Source, clean_interactions, clean_items

_GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]


@dataclass(frozen=True)
class MovieLensConfig(DatasetConfig):
    """Options of `source: movielens`."""

    source: str = "movielens"
    format: str = ""
    """Release: 100k or 1m."""


def read(dataset: MovieLensConfig, interactions: Path, items: Path | None) -> RawData:
    """Read ratings (all of them count as interactions) and films from one archive.

    Raises:
        ConfigError: `dataset.format` is neither 100k nor 1m.
        DataError: the archive is missing or damaged.
    """
    files = {"100k": ("ml-100k/u.data", "ml-100k/u.item"), "1m": ("ml-1m/ratings.dat", "ml-1m/movies.dat")}
    if dataset.format not in files:
        raise ConfigError(f"dataset.format: must be 100k or 1m (movielens), is {dataset.format!r}.")
    try:
        with zipfile.ZipFile(interactions) as archive:
            ratings, films = (archive.read(name).decode("latin-1").splitlines() for name in files[dataset.format])
    except FileNotFoundError:
        raise DataError(f"{interactions}: no such file.") from None
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise DataError(f"{interactions}: is no complete MovieLens archive ({error}); download it again.") from None
    repairs: dict[str, int] = {}
    if dataset.format == "100k":
        rows = _split(ratings, "\t", 4)
        texts = [_film_100k(line.split("|")) for line in films]
    else:
        rows = _split(ratings, "::", 4)
        texts = [(part[0], part[1], part[2].split("|")) for line in films if len(part := line.split("::")) == 3]
    table = polars.DataFrame(texts, schema=["item_id", "title", "categories"], orient="row")
    return RawData(clean_interactions([rows], str(interactions), repairs), clean_items(table, repairs), repairs)


def _split(lines: list[str], separator: str, width: int) -> polars.DataFrame:
    parts = polars.Series("line", lines).str.splitn(separator, width).struct.unnest()
    return parts.select(
        polars.col("field_0").alias("user_id"),
        polars.col("field_1").alias("item_id"),
        polars.col("field_3").alias("timestamp"),
    )


def _film_100k(part: list[str]) -> tuple[str, str, list[str]]:
    return part[0], part[1], [genre for genre, flag in zip(_GENRES, part[5:24], strict=False) if flag == "1"]


SOURCE = Source(MovieLensConfig, read)
