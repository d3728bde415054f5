"""Parts of a data set as tables, for the runs of a study."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars

from eimf.config.load import load
from eimf.core.files import make_folder
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared
from eimf.runs.results import write_frame


def prepare_whole(dataset: str, settings: Sequence[str]) -> Prepared:
    """The data set of a name, in the data folder that the settings name.

    Raises:
        ConfigError, DataError: see `eimf.data.prepare.prepare`.
    """
    config = load(None, [f"dataset={dataset}", *[one for one in settings if one.startswith("data.root=")]])
    return prepare(config.dataset, config.data.root)


def write_tables(folder: Path, tables: Mapping[str, polars.DataFrame]) -> None:
    """Write each table to `<name>.parquet`.

    Raises:
        ArtifactError: the disk refuses.
    """
    make_folder(folder)
    for name, table in tables.items():
        write_frame(table, folder / f"{name}.parquet")


def part_settings(folder: Path, name: str, prefix: str = "") -> list[str]:
    """Settings of runs on the tables `<prefix>interactions` and `<prefix>items`, which keep all their rows."""
    files = [f"dataset.{kind}={folder}/{prefix}{kind}.parquet" for kind in ("interactions", "items")]
    kept = ["dataset.user_min=1", "dataset.item_min=1"]
    return [*files, "dataset.source=table", f"dataset.name={name}", *kept, f"logger.root={folder}"]
