"""Prepares data: makes cleaned interactions into filtered, densely numbered sequences, and keeps them as an artifact.

`sequences.parquet` and `items.parquet` are a public file format. In memory a data set is one flat array of items with
offsets, not one list per user.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import polars

from eimf.config.load import load
from eimf.config.schema import DatasetConfig
from eimf.core.artifacts import Manifest, new_artifact, read_manifest, write_manifest
from eimf.core.errors import ArtifactError, DataError
from eimf.core.files import sha256_json, write_parquet
from eimf.data.download import Located, content_options, describe, locate, stamp, table_files
from eimf.data.prepared import KIND, Prepared, Sequences, load_prepared
from eimf.data.sources import SOURCES
from eimf.data.sources.base import RawData
from eimf.data.sources.times import MICRO

log = logging.getLogger(__name__)

REPEATS = "rows that repeat user, item and time (dropped)"
FILTERED = "rows of users or items with too few of them (removed by the core filter)"


USERS_AT_A_TIME = 200_000


def core_filter(
    users: np.ndarray,
    items: np.ndarray,
    user_min: int,
    item_min: int,
    method: Literal["iterative", "one_pass"],
) -> np.ndarray:
    """Positions of the interactions whose user and item have enough interactions.

    Args:
        users: integer codes of the interactions' users.
        items: the same of items.
        method: `iterative` repeats until nothing changes (the largest set in which all counts hold);
            `one_pass` takes the counts once, on the raw data.
    """
    kept = np.arange(len(users))
    while len(kept):
        u, i = users[kept], items[kept]
        enough = (np.bincount(u)[u] >= user_min) & (np.bincount(i)[i] >= item_min)
        if enough.all():
            break
        kept = kept[enough]
        if method == "one_pass":
            break
    return kept


def prepare(dataset: DatasetConfig | str, root: str | Path = "data", digest: str = "") -> Prepared:
    """Prepare a data set, or load it if the same inputs and options were prepared before.

    Args:
        dataset: its options, or the name of one in `experiments/datasets`, such as `beauty`.
        root: the data folder; the result lies in `<root>/prepared/<name>-<digest of inputs and options>/`.
        digest: content digest of the data a run was trained on. Prepared data with this digest are loaded even if the
            raw files are gone.

    Raises:
        DataError: the raw data are missing or unusable, or no user survives the filter.
        ArtifactError: the result cannot be written, or has changed since it was written.
    """
    if isinstance(dataset, str):
        dataset = load(None, [f"dataset={dataset}"]).dataset
    root = Path(root)
    for candidate in (root / "prepared").glob(f"{dataset.name}-*/") if digest else ():
        with suppress(ArtifactError):  # a damaged folder, or one of another version, is not the wanted one
            if read_manifest(candidate, KIND).digest == digest:
                return load_prepared(candidate)
    if dataset.source == "table" and (folder := sharded_folder(dataset, table_files(dataset), root)).is_dir():
        return load_prepared(folder)
    if dataset.source == "table" and Path(dataset.interactions).is_dir():
        raise DataError(
            f"dataset.interactions: {dataset.interactions} is a folder; prepare it with `eimf prepare ... --shards 16` "
            "first, or name one file."
        )
    located = locate(dataset, root) if SOURCES[dataset.source].needs_files else None
    inputs = describe(located) if located else {}
    options = asdict(content_options(located.dataset if located else dataset))
    key = sha256_json({"options": options, "inputs": inputs})[:12]
    folder = root / "prepared" / f"{dataset.name}-{key}"
    if folder.is_dir():
        return load_prepared(folder)
    earlier = sorted(folder.parent.glob(f"{dataset.name}-*")) if folder.parent.is_dir() else []
    if earlier:
        log.info(f"{dataset.name}: files or options differ from {earlier[-1].name}; preparing again as {folder.name}")
    else:
        log.info(f"{dataset.name}: preparing")
    raw = _read(dataset, located)
    sequences, user_ids, items, repairs = build_sequences(raw, dataset)
    with new_artifact(folder) as work:
        _write(work, sequences, user_ids, items)
        counts = {
            "users": sequences.n_users,
            "items": len(items),
            "interactions": len(sequences.items),
        }
        digest = content_digest(sequences, user_ids, items)
        write_manifest(work, Manifest(KIND, digest, options, inputs, counts, repairs))
    return load_prepared(folder)


def sharded_folder(dataset: DatasetConfig, files: Iterable[Path], root: Path) -> Path:
    """The folder for the data that `eimf.data.shards` prepares from these files."""
    items = [Path(dataset.items)] if dataset.items and Path(dataset.items).is_file() else []
    key = sha256_json({"options": asdict(content_options(dataset)), "inputs": stamp([*files, *items])})[:12]
    return root / "prepared" / f"{dataset.name}-{key}"


def _read(dataset: DatasetConfig, located: Located | None) -> RawData:
    if located is None:
        return SOURCES[dataset.source].read(dataset, Path(), None)
    return SOURCES[located.dataset.source].read(located.dataset, located.interactions, located.items)


def build_sequences(
    raw: RawData, dataset: DatasetConfig
) -> tuple[Sequences, polars.Series, polars.DataFrame, dict[str, int]]:
    """Filter, number and order interactions.

    Items are numbered from 1 by descending frequency, then id; users from 0 by id. Neither depends on the
    order of the rows. A user's interactions are in the order of time; rows with equal times keep their order.

    Raises:
        DataError: no user survives the filter.
    """
    repairs, rows = dict(raw.repairs), raw.interactions
    # Codes in the order of the ids, so that nothing depends on the order of the rows.
    user_codes, item_codes = _by_id(rows.user_ids)[rows.user], _by_id(rows.item_ids)[rows.item]
    time, truth = in_seconds(rows.time), rows.interest
    kept = np.arange(len(rows), dtype=np.int32 if len(rows) < 2**31 else np.int64)
    if dataset.duplicates == "drop":
        repeats = find_repeats(user_codes, item_codes, time)
        if len(repeats):
            repairs[REPEATS] = len(repeats)
            kept = np.delete(kept, repeats)
            user_codes, item_codes = user_codes[kept], item_codes[kept]
    survivors = core_filter(user_codes, item_codes, dataset.user_min, dataset.item_min, dataset.core)
    if len(survivors) == 0:
        raise nobody_survives(dataset, len(kept))
    if len(survivors) < len(kept):
        repairs[FILTERED] = len(kept) - len(survivors)
        user_codes, item_codes, kept = user_codes[survivors], item_codes[survivors], kept[survivors]
    time = time[kept] if len(kept) < len(time) else time
    backwards = int(((time[1:] < time[:-1]) & (user_codes[1:] == user_codes[:-1])).sum())
    if backwards:
        repairs["rows out of time order (sorted)"] = backwards

    item_index, ranked = number_items(np.bincount(item_codes))
    lengths = np.bincount(user_codes)
    users = np.flatnonzero(lengths)

    order = np.lexsort((time, user_codes))  # stable, as every numpy lexsort
    sequences = Sequences(
        items=item_index[item_codes[order]],
        timestamps=time[order],
        offsets=np.concatenate([[0], np.cumsum(lengths[users])]),
        interests=truth[kept][order] if truth is not None else None,
    )
    user_ids = rows.user_ids.sort().gather(users).alias("user_id")
    items = describe_items(dataset, rows.item_ids.sort().gather(ranked), raw.items, repairs)
    return sequences, user_ids, items, repairs


def nobody_survives(dataset: DatasetConfig, rows: int) -> DataError:
    """The error for a filter that removes every user."""
    return DataError(
        f"{dataset.name}: no user survives the {dataset.core} core filter with dataset.user_min="
        f"{dataset.user_min} and dataset.item_min={dataset.item_min} on {rows} interactions; lower them."
    )


def number_items(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers by descending frequency of items whose codes are in the order of their ids.

    Returns:
        i32: number from 1 of each code, 0 where it does not occur; and the codes in the order of the numbers.
    """
    present = np.flatnonzero(counts)
    ranked = present[np.argsort(-counts[present], kind="stable")]  # ties are by code
    index = np.zeros(len(counts), dtype=np.int32)
    index[ranked] = np.arange(1, len(ranked) + 1)
    return index, ranked


def in_seconds(time: np.ndarray) -> np.ndarray:
    """Times in seconds, or in microseconds if any time has a fraction of a second."""
    return time if (time % MICRO).any() else time // MICRO


def describe_items(
    dataset: DatasetConfig, item_ids: polars.Series, known: polars.DataFrame, repairs: dict[str, int]
) -> polars.DataFrame:
    """The rows of `Prepared.items`: ids in the order of their numbers, with their texts.

    Raises:
        DataError: there is a table of items, and (almost) none of these items is in it.
    """
    if len(known):
        known = _matching(dataset, item_ids, known, repairs)
    names = polars.DataFrame({"item_idx": np.arange(1, len(item_ids) + 1, dtype=np.int32), "item_id": item_ids})
    items = names.join(known, on="item_id", how="left", maintain_order="left").with_columns(
        polars.col("title").fill_null(""), polars.col("categories").fill_null([])
    )
    untitled = int((items["title"] == "").sum())
    if untitled:
        repairs["items without a title"] = untitled
    return items


LEAST_MATCHED = 0.01
"""Smallest share of the interactions' items that must be in the table of items."""


def _matching(
    dataset: DatasetConfig, item_ids: polars.Series, known: polars.DataFrame, repairs: dict[str, int]
) -> polars.DataFrame:
    """The table of items with ids as the interactions write them; numbers may differ in leading zeros."""
    if item_ids.is_in(known["item_id"].implode()).sum() >= LEAST_MATCHED * len(item_ids):
        return known

    def number(ids: polars.Series) -> polars.Series:
        plain = ids.str.extract(r"^0*(\d+)(?:\.0+)?$", 1)
        return plain.fill_null(ids)

    ours = polars.DataFrame({"key": number(item_ids), "ours": item_ids}).unique("key", keep="none")
    keyed = known.with_columns(number(known["item_id"]).alias("key")).unique("key", keep="none", maintain_order=True)
    matched = keyed.join(ours, on="key", how="inner", maintain_order="left")
    if len(matched) >= LEAST_MATCHED * len(item_ids):
        repairs["items whose ids were matched as numbers (007 is 7)"] = len(matched)
        return matched.with_columns(polars.col("ours").alias("item_id")).drop("key", "ours")
    column = getattr(dataset, "item_column", "item_id")
    left, right = (", ".join(map(repr, ids.head(3))) for ids in (item_ids, known["item_id"]))
    raise DataError(
        f"{dataset.name}: (almost) none of the {len(item_ids):,} items of the interactions is in the table of items. "
        f"Ids in column {column!r} look like {left} in {dataset.interactions or 'the interactions'} "
        f"and like {right} in {dataset.items or 'the items'}; give the items' own table, or set dataset.item_column."
    )


def _by_id(ids: polars.Series) -> np.ndarray:
    """u32: rank of each distinct id among the sorted ids."""
    place = np.empty(len(ids), np.uint32)
    place[ids.arg_sort().to_numpy()] = np.arange(len(ids), dtype=np.uint32)
    return place


def find_repeats(users: np.ndarray, items: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Positions of rows that repeat the user, item and time of an earlier row."""
    order = np.lexsort((time, items, users))  # stable: the earliest of equal rows comes first
    same = np.ones(max(len(order) - 1, 0), bool)
    for values in (users, items, time):
        ordered = values[order]
        same &= ordered[1:] == ordered[:-1]
    return order[1:][same]


def content_digest(sequences: Sequences, user_ids: polars.Series, items: polars.DataFrame) -> str:
    """SHA-256 over ids, order and texts; the same on every machine and with every library version."""
    return digest_parts([sequences.offsets], [sequences.items], [sequences.timestamps], [user_ids], items)


def digest_parts(
    offsets: Iterable[np.ndarray],
    item_idx: Iterable[np.ndarray],
    timestamps: Iterable[np.ndarray],
    user_ids: Iterable[polars.Series],
    items: polars.DataFrame,
) -> str:
    """`content_digest` of arrays that are given in parts."""
    digest = hashlib.sha256()
    for parts, kind in ((offsets, "<i8"), (item_idx, "<i4"), (timestamps, "<i8")):
        for part in parts:
            digest.update(np.ascontiguousarray(part.astype(kind)).tobytes())
    for number, part in enumerate(user_ids):
        digest.update((("\x1f" if number else "") + "\x1f".join(part.to_list())).encode())
    for texts in (items["item_id"], items["title"], items["brand"].fill_null("")):
        digest.update("\x1f".join(texts.to_list()).encode())
    digest.update("\x1f".join(items["categories"].list.join("\x1e").to_list()).encode())
    return digest.hexdigest()


def _write(folder: Path, sequences: Sequences, user_ids: polars.Series, items: polars.DataFrame) -> None:
    parts = folder / "parts"
    parts.mkdir()
    for first in range(0, sequences.n_users, USERS_AT_A_TIME):
        bounds = sequences.offsets[first : first + USERS_AT_A_TIME + 1]
        inside = slice(bounds[0], bounds[-1])
        owner = np.repeat(np.arange(first, first + len(bounds) - 1, dtype=np.int32), np.diff(bounds))
        columns = {"user_idx": owner, "item_idx": sequences.items[inside], "timestamp": sequences.timestamps[inside]}
        if sequences.interests is not None:
            columns["interest"] = sequences.interests[inside]
        lists = polars.DataFrame(columns).group_by("user_idx", maintain_order=True).agg(polars.all())
        lists = lists.insert_column(1, user_ids[first : first + len(lists)].alias("user_id"))
        write_parquet(lists, parts / f"{first:012d}.parquet")
    join_parts(parts, folder / "sequences.parquet")
    write_parquet(items, folder / "items.parquet")


def join_parts(parts: Path, to: Path) -> None:
    """Join the Parquet files of a folder into one file, in the order of their names, and remove the folder."""
    # A list and glob=False, because a path may contain the special characters of patterns.
    write_parquet(polars.scan_parquet(sorted(parts.iterdir()), glob=False), to)
    shutil.rmtree(parts)
