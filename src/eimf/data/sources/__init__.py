"""Readers of raw data, one file each. A reader takes the files' paths and returns cleaned `RawData`."""

from collections.abc import Callable
from pathlib import Path

from eimf.config.schema import DatasetConfig
from eimf.data.sources import amazon, demo, movielens, table
from eimf.data.sources.base import RawData

Reader = Callable[[DatasetConfig, Path, Path | None], RawData]


SOURCES: dict[str, Reader] = {"table": table.read, "amazon": amazon.read, "movielens": movielens.read}


__all__ = ["SOURCES", "RawData", "demo"]
