"""Finds the raw files of a data set: in the mirror, else in the local folder, else at the official address."""

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from eimf.config.schema import DatasetConfig
from eimf.core.errors import DataError
from eimf.core.files import sha256_file
from eimf.data.sources.table import TableConfig

MIRROR = "EIMF_DATA_MIRROR"


TABLES = ("interactions.csv.gz", "items.jsonl.gz")
"""Names under which a mirror may hold a data set as plain tables (`source: table`) instead of its official files."""


TABLE_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".tsv", ".jsonl", ".jsonl.gz")


TIMEOUT_S = 20


class Located(NamedTuple):
    """Where the raw files are, and how to read them: a mirror may hold another format than the official one."""

    dataset: DatasetConfig
    interactions: Path
    items: Path | None


def locate(dataset: DatasetConfig, root: Path) -> Located:
    """Find, or download, the raw files of a data set.

    Args:
        root: the data folder; downloads are kept in `<root>/raw/<name>/`.

    Raises:
        DataError: a file is missing and cannot be downloaded; the message says which files to put where.
    """
    folder = root / "raw" / dataset.name
    mirror = os.environ.get(MIRROR, "").strip()
    if mirror and dataset.urls:
        mirrored = _from_mirror(dataset, mirror, folder)
        if mirrored is not None:
            return mirrored
    interactions = _own_or_fetched(dataset, dataset.interactions, folder)
    items = _own_or_fetched(dataset, dataset.items, folder) if dataset.items else None
    return Located(dataset, interactions, items)


def _from_mirror(dataset: DatasetConfig, mirror: str, folder: Path) -> Located | None:
    official = [name for name in (dataset.interactions, dataset.items) if name]
    remote = mirror.startswith(("http://", "https://", "file://"))
    for names in (official, list(TABLES)):
        if remote:
            base = f"{mirror.rstrip('/')}/{dataset.name}"
            try:
                paths = [_fetch(f"{base}/{name}", folder / "mirror" / name) for name in names]
            except OSError:
                continue
        else:
            paths = [Path(mirror) / dataset.name / name for name in names]
            if not all(path.is_file() for path in paths):
                continue
        for path in paths:
            _verify(dataset, path)
        if names == list(TABLES):
            plain = TableConfig(
                name=dataset.name,
                interactions=TABLES[0],
                items=TABLES[1],
                user_min=dataset.user_min,
                item_min=dataset.item_min,
                core=dataset.core,
                duplicates=dataset.duplicates,
            )
            return Located(plain, paths[0], paths[1])
        return Located(dataset, paths[0], paths[1] if len(paths) > 1 else None)
    if not remote and not Path(mirror).is_dir():
        raise DataError(f"{MIRROR}: {mirror!r} is neither a folder nor an http(s) address; correct or unset it.")
    return None


def _own_or_fetched(dataset: DatasetConfig, name: str, folder: Path) -> Path:
    """The path as given, or the file in the data set's raw folder, which is downloaded if it is missing."""
    given, kept = Path(name), folder / name
    path = given if given.is_file() else kept
    if not path.is_file():
        if name not in dataset.urls:
            raise DataError(f"{name}: no such file, neither as given nor in {folder}/; correct its path.")
        try:
            path = _fetch(dataset.urls[name], kept)
        except OSError as error:
            wanted = ", ".join(item for item in (dataset.interactions, dataset.items) if item)
            raise DataError(
                f"{dataset.name}: {dataset.urls[name]} cannot be reached ({error}). Get {wanted} in another way, put "
                f"them into {folder}/ and run again; or set {MIRROR} to a folder or address that holds {dataset.name}/."
            ) from None
    _verify(dataset, path)
    return path


def _verify(dataset: DatasetConfig, path: Path) -> None:
    wanted = dataset.sha256.get(path.name)
    if wanted and (digest := sha256_file(path)) != wanted.lower():
        raise DataError(
            f"{path}: SHA-256 is {digest}, must be {wanted}; the file is damaged or of another release. Delete it "
            "and run again."
        )


def _fetch(url: str, target: Path) -> Path:
    """Download to `target`, with a progress bar; continue a part that an earlier attempt left.

    Raises:
        OSError: the address cannot be reached (urllib's errors are OSErrors).
    """
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    offset = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "eimf"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and offset:  # nothing left to send: the part is the whole
            part.replace(target)
            return target
        raise
    with response:
        resumed = offset > 0 and getattr(response, "status", None) == 206
        length = response.headers.get("Content-Length")
        total = int(length) + (offset if resumed else 0) if length else None
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with part.open("ab" if resumed else "wb") as file, Progress(*columns, transient=True) as progress:
            task = progress.add_task(target.name, total=total, completed=offset if resumed else 0)
            while block := response.read(1 << 20):
                file.write(block)
                progress.advance(task, len(block))
    if total is not None and part.stat().st_size != total:
        raise OSError(f"connection closed after {part.stat().st_size} of {total} bytes; run again to continue")
    shutil.move(part, target)
    return target


def describe(located: Located) -> dict[str, str]:
    """What each file is, and its name -> SHA-256."""
    files = {"interactions": located.interactions, "items": located.items}
    return {f"{kind}: {path.name}": sha256_file(path) for kind, path in files.items() if path is not None}


def table_files(dataset: DatasetConfig) -> list[Path]:
    """The file of `dataset.interactions`, or those in a folder of that name in the order of their names."""
    path = Path(dataset.interactions)
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.name.endswith(TABLE_SUFFIXES))
    return [path] if path.is_file() else []


def stamp(files: Iterable[Path]) -> dict[str, str]:
    """Path -> size and time of change: for files that are too large to hash."""
    return {str(path.resolve()): f"{path.stat().st_size} bytes, changed {path.stat().st_mtime_ns}" for path in files}


def content_options(dataset: DatasetConfig) -> DatasetConfig:
    """The data set's options that affect its content, for a digest."""
    return replace(dataset, urls={}, sha256={}, interactions="", items="")
