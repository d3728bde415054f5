"""Prepares data in shards of users, for more interactions than memory holds: on this machine, or on a Ray cluster.

Each step is a function of one file or one shard that reads and writes Parquet in a work folder. So a step needs the
memory of one file or one shard, and can run on any machine that has access to the folder. The content of the result is
bit for bit that of `eimf.data.prepare.prepare` for the same rows.
"""

import functools
import json
import logging
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import polars

from eimf.config.schema import DatasetConfig
from eimf.core.artifacts import Manifest, new_artifact, write_manifest
from eimf.core.errors import ConfigError, DataError
from eimf.core.files import write_json_atomic, write_parquet
from eimf.data.download import TABLE_SUFFIXES, content_options, stamp, table_files
from eimf.data.prepare import (
    FILTERED,
    REPEATS,
    USERS_AT_A_TIME,
    describe_items,
    digest_parts,
    find_repeats,
    join_parts,
    nobody_survives,
    number_items,
    sharded_folder,
)
from eimf.data.prepared import KIND, Prepared, load_prepared
from eimf.data.sources import table
from eimf.data.sources.table import TableConfig
from eimf.data.sources.times import MICRO

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Workers(Protocol):
    """Runs the steps."""

    def run(self, step: Callable[[Any], Result], tasks: Sequence[Any]) -> Iterator[Result]:
        """Results of a step, in the order of its tasks."""
        ...


class Here:
    """Runs the tasks in this process, one after the other; it needs the memory of one shard."""

    def run(self, step: Callable[[Any], Result], tasks: Sequence[Any]) -> Iterator[Result]:
        return map(step, tasks)


class RayCluster:
    """Runs the tasks on all machines of a Ray cluster, which must share the data folder.

    Args:
        address: of a running cluster, `auto` for the one that this machine belongs to, or `local` to start one here.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise ConfigError("--ray: needs Ray; install it with pip install 'eimf[cluster]'.") from None
        try:
            ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"--ray: no cluster at {address!r} ({' '.join(str(error).split())[:160]}); start one with `ray start "
                "--head`, or say --ray local."
            ) from None
        self._ray: Any = ray

    def run(self, step: Callable[[Any], Result], tasks: Sequence[Any]) -> Iterator[Result]:
        remote = self._ray.remote(lambda task: step(task))  # Ray accepts plain functions only
        references = [remote.remote(task) for task in tasks]
        try:
            for reference in references:
                yield self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause or error from None


def prepare_in_shards(
    dataset: DatasetConfig, root: str | Path, n_shards: int, workers: Workers | None = None
) -> Prepared:
    """Prepare tables that may be larger than memory.

    After an interruption, files that were read already are not read again. A file counts as unchanged if its name, size
    and time of change are the same: its content is not hashed. Counts of repairs are sums over the files.

    Args:
        dataset: of `source: table`; `interactions` is a file or a folder of such files, read in the order of their
            names.
        root: the data folder, see `eimf.data.prepare.prepare`.
        n_shards: number of shards that the users are divided into. Memory should hold about ten times the interactions
            of the largest shard.
        workers: where the steps run; in this process if None.

    Raises:
        ConfigError: the data set is no table, or has no times.
        DataError: a file is missing or unusable, or no user survives the filter.
    """
    if not isinstance(dataset, TableConfig):
        raise ConfigError(f"--shards: reads tables; {dataset.name} is of dataset.source={dataset.source}.")
    files = _files_of(dataset)
    folder = sharded_folder(dataset, files, Path(root))
    if folder.is_dir():
        return load_prepared(folder)
    work = folder.with_name(f".{folder.name}.{n_shards}-shards")
    work.mkdir(parents=True, exist_ok=True)
    workers = workers or Here()
    shards = range(n_shards)

    log.info(f"{dataset.name}: reading {len(files)} files into {n_shards} shards of users")
    repairs: dict[str, int] = {}
    for counted in workers.run(partial(_scatter, dataset, work, n_shards), list(enumerate(files))):
        for repair, count in counted.items():
            repairs[repair] = repairs.get(repair, 0) + count
    kept, dropped, finer = zip(*workers.run(partial(_gather, dataset, work), shards), strict=True)
    if sum(dropped):
        repairs[REPEATS] = sum(dropped)
    ids = (
        polars.scan_parquet([_at(work, shard, "item_ids") for shard in shards], glob=False)
        .unique()
        .collect()
        .sort("id")
    )
    write_parquet(ids, work / "item_ids.parquet")

    log.info(f"{dataset.name}: {sum(kept):,} interactions, {len(ids):,} items; filtering")
    counts = _filter(dataset, work, shards, workers, sum(kept))
    index, ranked = number_items(counts)
    np.save(work / "item_index.npy", index)
    users = sum(workers.run(partial(_finish, work, any(finer)), shards))
    if removed := sum(kept) - int(counts.sum()):
        repairs[FILTERED] = removed

    log.info(
        f"{dataset.name}: {int(counts.sum()):,} interactions of {users:,} users and {len(ranked):,} items; writing"
    )
    known = table.read_items(dataset, Path(dataset.items) if dataset.items else None, repairs)
    with new_artifact(folder) as artifact:
        _merge(work, shards, artifact)
        items = describe_items(dataset, ids["id"].gather(ranked), known, repairs)
        write_parquet(items, artifact / "items.parquet")
        digest = _digest(artifact / "sequences.parquet", items)
        sizes = {"users": users, "items": len(items), "interactions": int(counts.sum())}
        options = asdict(content_options(dataset))
        write_manifest(artifact, Manifest(KIND, digest, options, stamp(files), sizes, repairs))
    shutil.rmtree(work)
    return load_prepared(folder)


def _files_of(dataset: TableConfig) -> list[Path]:
    if not dataset.timestamp_column:
        raise ConfigError("--shards: needs times; set dataset.timestamp_column, or prepare without shards.")
    files = table_files(dataset)
    if not files:
        raise DataError(
            f"dataset.interactions: {dataset.interactions} is no file, and no folder of {', '.join(TABLE_SUFFIXES)} "
            "files; correct its path."
        )
    if dataset.items and not Path(dataset.items).is_file():
        raise DataError(f"dataset.items: {dataset.items}: no such file; correct its path.")
    return files


def _at(work: Path, shard: int, name: str) -> Path:
    return work / f"shard-{shard:06d}" / f"{name}.parquet"


def _scatter(dataset: TableConfig, work: Path, n_shards: int, task: tuple[int, Path]) -> dict[str, int]:
    """Clean a file's interactions and divide them among the shards by user; returns the repairs."""
    number, path = task
    done, part = work / f"file-{number:06d}", work / f"file-{number:06d}.partial"
    if not done.is_dir():
        repairs: dict[str, int] = {}
        rows = table.read_interactions(dataset, path, repairs)
        # CRC-32 is the same on every machine and with every library version; the hashes of data frames are not.
        owner = np.array([zlib.crc32(user.encode()) % n_shards for user in rows.user_ids], np.uint32)[rows.user]
        order = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[order], np.arange(n_shards + 1))
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for shard in range(n_shards):
            chosen = order[bounds[shard] : bounds[shard + 1]]
            users, items = rows.user_ids.gather(rows.user[chosen]), rows.item_ids.gather(rows.item[chosen])
            frame = polars.DataFrame({"user_id": users, "item_id": items, "time": rows.time[chosen]})
            write_parquet(frame, part / f"{shard:06d}.parquet")
        write_json_atomic(part / "repairs.json", repairs)
        part.rename(done)
    return json.loads((done / "repairs.json").read_text())


def _gather(dataset: TableConfig, work: Path, shard: int) -> tuple[int, int, bool]:
    """Join a shard's rows of all files, with users and items numbered by id.

    Returns:
        How many rows are kept, how many repeat others, and whether any time has a fraction of a second.
    """
    files = sorted(work.glob("file-??????"))
    rows = polars.concat([polars.read_parquet(file / f"{shard:06d}.parquet", glob=False) for file in files])
    _at(work, shard, "rows").parent.mkdir(exist_ok=True)
    user, item = (_number(rows[f"{name}_id"], _at(work, shard, f"{name}_ids")) for name in ("user", "item"))
    time = rows["time"].to_numpy()
    repeats = find_repeats(user, item, time) if dataset.duplicates == "drop" else []
    kept = np.delete(np.arange(len(time)), repeats)
    write_parquet(
        polars.DataFrame({"user": user[kept], "item": item[kept], "time": time[kept]}), _at(work, shard, "rows")
    )
    return len(kept), len(repeats), bool((time[kept] % MICRO).any())


def _number(texts: polars.Series, known: Path) -> np.ndarray:
    """Rank of each text among the sorted distinct texts, which are written to the file `known`."""
    ids = texts.unique().sort().to_frame("id")
    write_parquet(ids, known)
    numbered = texts.to_frame("id").join(ids.with_row_index("number"), on="id", how="left", maintain_order="left")
    return numbered["number"].to_numpy()


def _count(work: Path, shard: int) -> np.ndarray:
    """Number a shard's items among the items of all shards; returns how often each occurs."""
    own, everyones = (
        polars.read_parquet(_at(work, shard, "item_ids"), glob=False),
        polars.read_parquet(work / "item_ids.parquet", glob=False),
    )
    place = own.join(everyones.with_row_index("number"), on="id", how="left", maintain_order="left")["number"]
    rows = polars.read_parquet(_at(work, shard, "rows"), glob=False)
    write_parquet(rows.with_columns(place.gather(rows["item"]).alias("item")), _at(work, shard, "rows"))
    return np.bincount(place.to_numpy()[rows["item"].to_numpy()], minlength=len(everyones))


def _drop(dataset: TableConfig, work: Path, shard: int) -> np.ndarray:
    """Drop items, then users, that occur too rarely; returns how often each item still occurs."""
    rows = polars.read_parquet(_at(work, shard, "rows"), glob=False)
    user, item = rows["user"].to_numpy(), rows["item"].to_numpy()
    enough = np.load(work / "enough.npy")
    keep = enough[item]
    of_user = np.bincount(user, weights=None if dataset.core == "one_pass" else keep)
    keep &= (of_user >= dataset.user_min)[user]
    if not keep.all():
        write_parquet(rows.filter(keep), _at(work, shard, "rows"))
    return np.bincount(item[keep], minlength=len(enough))


def _filter(dataset: TableConfig, work: Path, shards: range, workers: Workers, rows: int) -> np.ndarray:
    """Filter all shards until every user and item occurs often enough; returns how often each item still occurs."""
    counts = _total(workers.run(partial(_count, work), shards))
    while True:
        np.save(work / "enough.npy", counts >= dataset.item_min)
        counts = _total(workers.run(partial(_drop, dataset, work), shards))
        if not counts.any():
            raise nobody_survives(dataset, rows)
        if dataset.core == "one_pass" or bool(((counts == 0) | (counts >= dataset.item_min)).all()):
            return counts


def _total(parts: Iterable[np.ndarray]) -> np.ndarray:
    return functools.reduce(np.add, parts)


def _finish(work: Path, finer: bool, shard: int) -> int:
    """Write a shard's sequences in the order of the user ids; returns how many users there are.

    Args:
        finer: times are kept in microseconds, not in seconds.
    """
    rows, ids = (
        polars.read_parquet(_at(work, shard, "rows"), glob=False),
        polars.read_parquet(_at(work, shard, "user_ids"), glob=False)["id"],
    )
    user, index = rows["user"].to_numpy(), np.load(work / "item_index.npy")
    order = np.lexsort((rows["time"].to_numpy(), user))  # stable, as every numpy lexsort
    columns = {
        "user_id": ids.gather(user[order]),
        "item_idx": index[rows["item"].to_numpy()[order]],
        "timestamp": (rows["time"] if finer else rows["time"] // MICRO).gather(order),
    }
    lists = polars.DataFrame(columns).group_by("user_id", maintain_order=True).agg(polars.all())
    write_parquet(lists, _at(work, shard, "sequences"))
    return len(lists)


def _merge(work: Path, shards: range, to: Path) -> None:
    """Write the users of all shards in the order of their ids, in chunks."""
    files = [_at(work, shard, "sequences") for shard in shards]
    ids = polars.concat(
        [polars.read_parquet(file, columns=["user_id"], glob=False)["user_id"] for file in files]
    ).sort()
    parts = to / "parts"
    parts.mkdir()
    for first in range(0, len(ids), USERS_AT_A_TIME):
        chunk = ids[first : first + USERS_AT_A_TIME]
        within = polars.scan_parquet(files, glob=False).filter(
            polars.col("user_id").is_between(polars.lit(chunk[0]), polars.lit(chunk[-1]))
        )
        users = within.collect().sort("user_id").with_row_index("user_idx", first)
        write_parquet(users.with_columns(polars.col("user_idx").cast(polars.Int32)), parts / f"{first:012d}.parquet")
    join_parts(parts, to / "sequences.parquet")


def _digest(path: Path, items: polars.DataFrame) -> str:
    """Digest of the content, which is read in parts."""

    def column(expression: polars.Expr) -> Iterator[polars.Series]:
        for part in (
            polars.scan_parquet(path, glob=False).select(expression).collect_batches(chunk_size=USERS_AT_A_TIME)
        ):
            yield part.to_series()

    def offsets() -> Iterator[np.ndarray]:
        last = np.zeros(1, np.int64)
        yield last
        for lengths in column(polars.col("item_idx").list.len()):
            last = last[-1] + np.cumsum(lengths.to_numpy().astype(np.int64))
            yield last

    def flat(name: str) -> Iterator[np.ndarray]:
        return (part.explode().to_numpy() for part in column(polars.col(name)))

    return digest_parts(offsets(), flat("item_idx"), flat("timestamp"), column(polars.col("user_id")), items)
