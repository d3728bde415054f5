"""Prepared data sets: flat sequences, users and items, and functions that read and describe them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars

from eimf.core.artifacts import Manifest, check_files, read_manifest

KIND = "prepared"


@dataclass(frozen=True, eq=False)
class Sequences:
    """All users' interactions, oldest first, one user after the other.

    User u (from 0) owns the slice `offsets[u]:offsets[u + 1]` of the flat arrays.
    """

    items: np.ndarray
    """i32[T]: item ids from 1; 0 is kept for padding."""
    timestamps: np.ndarray
    """i64[T]: unix seconds; microseconds where some times are finer than that. Only compared with each other."""
    offsets: np.ndarray
    """i64[U + 1]"""
    interests: np.ndarray | None = None
    """i32[T]: true interest of each interaction, where a simulator knows it."""

    @property
    def n_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def owners(self) -> np.ndarray:
        """i64[T]: user of each interaction."""
        return np.repeat(np.arange(self.n_users), self.lengths)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared data set."""

    folder: Path
    manifest: Manifest
    sequences: Sequences
    user_ids: polars.Series
    """Raw id of each user index."""
    items: polars.DataFrame
    """`item_idx, item_id, title, categories, brand`; row r has item_idx r + 1."""

    @property
    def n_items(self) -> int:
        return len(self.items)

    @property
    def digest(self) -> str:
        return self.manifest.digest

    def interactions(self) -> polars.DataFrame:
        """All interactions as a table `user_id, item_id, timestamp`, by user, oldest first."""
        return polars.DataFrame(
            {
                "user_id": self.user_ids.gather(self.sequences.owners),
                "item_id": self.items["item_id"].gather(self.sequences.items - 1),
                "timestamp": self.sequences.timestamps,
            }
        )

    @cached_property
    def categories(self) -> np.ndarray:
        """i32[I + 1]: a number for each item's leaf category, 0 where unknown (and for padding)."""
        return leaf_categories(self.items)


def leaf_categories(items: polars.DataFrame) -> np.ndarray:
    """i32[I + 1]: a number for each item's last category name, 0 where unknown and at padding."""
    leaf = items["categories"].list.last()
    codes = leaf.rank("dense").fill_null(0).cast(polars.Int32).to_numpy()
    return np.concatenate([np.zeros(1, np.int32), codes])


class Statistics(NamedTuple):
    """The usual description of a data set."""

    users: int
    items: int
    interactions: int
    mean_length: float
    median_length: float
    density: float
    tied_users: float
    """Share of users whose last two interactions have the same timestamp."""


def statistics(data: Prepared) -> Statistics:
    """Count users, items, interactions, lengths, density and ties."""
    sequences = data.sequences
    lengths, last = sequences.lengths, sequences.offsets[1:] - 1
    several = lengths > 1
    tied = sequences.timestamps[last[several]] == sequences.timestamps[last[several] - 1]
    total = len(sequences.items)
    return Statistics(
        users=sequences.n_users,
        items=data.n_items,
        interactions=total,
        mean_length=float(lengths.mean()),
        median_length=float(np.median(lengths)),
        density=total / (sequences.n_users * data.n_items),
        tied_users=float(tied.sum() / sequences.n_users),
    )


def load_prepared(folder: Path) -> Prepared:
    """Read a prepared data set, and check that its files have not changed.

    Raises:
        ArtifactError: missing, damaged or changed.
    """
    manifest = read_manifest(folder, KIND)
    check_files(folder, manifest)
    frame = polars.read_parquet(folder / "sequences.parquet", glob=False)
    offsets = np.concatenate([[0], np.cumsum(frame["item_idx"].list.len().to_numpy().astype(np.int64))])
    flat = {name: frame[name].explode().to_numpy() for name in frame.columns if name not in ("user_idx", "user_id")}
    sequences = Sequences(flat["item_idx"], flat["timestamp"], offsets, flat.get("interest"))
    return Prepared(
        folder, manifest, sequences, frame["user_id"], polars.read_parquet(folder / "items.parquet", glob=False)
    )
