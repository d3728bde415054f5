"""Reads the histories that predictions are made for, in chunks of users: of prepared data, or of a file of one's own.

A file has a row for each user, with the columns `user_id` and `history` (a list of item ids, oldest first; in CSV, ids
separated by spaces), or a row for each interaction, with the columns `user_id` and `item_id`: then the rows of a user
are next to each other, oldest first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars
import torch

from eimf.core.errors import DataError
from eimf.core.files import sha256_file
from eimf.core.options import nearest
from eimf.data.batch import Ragged, gather_slices
from eimf.data.prepared import Prepared

ROWS_AT_A_TIME = 2**18
USER, HISTORY, ITEM = "user_id", "history", "item_id"


class Chunk(NamedTuple):
    """Some users with their histories."""

    user_ids: polars.Series
    histories: Ragged
    """Numbers of the known items."""
    skipped: int
    """How many items of the histories are not in the catalogue."""


class PreparedHistories:
    """The whole histories of users of the prepared data.

    Args:
        user_ids: the users, in their order; None takes all. Those that the data do not have get an empty history.
    """

    def __init__(self, prepared: Prepared, user_ids: polars.Series | None = None) -> None:
        self._sequences = prepared.sequences
        self.user_ids = prepared.user_ids if user_ids is None else user_ids
        self._rows = np.arange(len(prepared.user_ids))
        if user_ids is not None:
            places = polars.DataFrame({USER: prepared.user_ids}).with_row_index("row")
            found = user_ids.to_frame(USER).join(places, on=USER, how="left", maintain_order="left")["row"]
            self._rows = found.cast(polars.Int64).fill_null(-1).to_numpy(writable=True)
        self.unknown = int((self._rows < 0).sum())
        self.about = {"data": prepared.digest, "users": user_ids if user_ids is None else str(user_ids.hash().sum())}

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    def chunks(self, users: int) -> Iterator[Chunk]:
        """All histories in order, so many users at a time."""
        items, offsets = torch.tensor(self._sequences.items), torch.tensor(self._sequences.offsets)
        for begin in range(0, len(self._rows), users):
            rows = torch.from_numpy(self._rows[begin : begin + users])
            start = offsets[rows.clamp(min=0)]
            end = torch.where(rows >= 0, offsets[rows.clamp(min=0) + 1], start)
            histories = gather_slices(items, start, end)
            yield Chunk(self.user_ids[begin : begin + len(rows)], Ragged(histories.values.long(), histories.offsets), 0)


class FileHistories:
    """The histories of a file: CSV, Parquet or JSON lines.

    Args:
        items: the catalogue, `item_id, item_idx`.

    Raises:
        DataError: the file cannot be read or lacks a column, or the rows of a user are not next to each other.
    """

    unknown = 0

    def __init__(self, path: Path, items: polars.DataFrame) -> None:
        self.path, self._items = path, items.select(ITEM, polars.col("item_idx").cast(polars.Int64))
        table = scan_table(path)
        columns = names_of(table, path)
        shape = HISTORY if HISTORY in columns else ITEM
        for name in (USER, shape):
            if name not in columns:
                raise DataError(
                    f"{path}: has no column {name!r}{nearest(name, columns)}; it has {', '.join(columns)}. Needed are "
                    "user_id and history, or user_id and item_id."
                )
        self._one_row = shape == HISTORY
        self._table = table.select(polars.col(USER).cast(polars.String), shape)
        self.about = {"histories": sha256_file(path)}
        self.n_users = self._count()

    def _count(self) -> int:
        """The number of users; a file that would give a user two lists is refused before hours of work."""
        user = polars.col(USER)
        groups = polars.len() if self._one_row else (user != user.shift()).sum() + 1
        wanted = (polars.len().alias("rows"), user.null_count().alias("nulls"), user.n_unique(), groups.alias("groups"))
        with reading_table(self.path):
            rows, nulls, users, found = self._table.select(wanted).collect(engine="streaming").row(0)
        if nulls:
            raise DataError(f"{self.path}: a row has no user_id; give every row one.")
        if rows and users != found:
            raise DataError(
                f"{self.path}: has {users:,} users, but {found:,} groups of rows: the rows of a user must be next to "
                "each other, or one row; sort the file by user_id, and keep the order of each user's items."
            )
        return users

    def chunks(self, users: int) -> Iterator[Chunk]:
        """All histories in order, so many users at a time.

        Raises:
            DataError: the file cannot be read.
        """
        waiting = None
        with reading_table(self.path):
            for batch in self._table.collect_batches(chunk_size=ROWS_AT_A_TIME, maintain_order=True):
                rows = self._by_user(batch)
                if waiting is not None:
                    rows = self._joined(waiting, rows)
                # The last user's rows may go on in the next batch.
                ready = max(0, len(rows) - (not self._one_row)) // users * users
                for begin in range(0, ready, users):
                    yield self._chunk(rows[begin : begin + users])
                waiting = rows[ready:]
            if waiting is not None:
                for begin in range(0, len(waiting), users):
                    yield self._chunk(waiting[begin : begin + users])

    def _by_user(self, batch: polars.DataFrame) -> polars.DataFrame:
        """A row for each user."""
        if not self._one_row:
            group = polars.col(USER).rle_id().alias("group")
            return (
                batch.with_columns(polars.col(ITEM).cast(polars.String))
                .group_by(group, maintain_order=True)
                .agg(polars.col(USER).first(), polars.col(ITEM).alias(HISTORY))
                .drop("group")
            )
        kind = batch.schema[HISTORY]
        if kind == polars.String:
            lists = polars.col(HISTORY).str.strip_chars().str.split(" ")
        elif isinstance(kind, polars.List | polars.Array):
            lists = polars.col(HISTORY).cast(polars.List(polars.String))
        else:
            raise DataError(f"{self.path}: history must be a list of item ids, or ids with spaces, is of type {kind}.")
        return batch.with_columns(lists.fill_null([]).list.filter(polars.element() != ""))

    def _joined(self, first: polars.DataFrame, second: polars.DataFrame) -> polars.DataFrame:
        """Two tables of users, the last user of the first and the first of the second joined if they are the same."""
        if not self._one_row and len(first) and len(second) and first[USER][-1] == second[USER][0]:
            both = polars.concat([first[-1:], second[:1]])
            whole = both.select(polars.col(USER).first(), polars.col(HISTORY).explode().implode())
            return polars.concat([first[:-1], whole, second[1:]])
        return polars.concat([first, second])

    def _chunk(self, rows: polars.DataFrame) -> Chunk:
        lengths = rows[HISTORY].list.len().to_numpy()
        flat = rows[HISTORY].filter(rows[HISTORY].list.len() > 0).explode().to_frame(ITEM)
        numbers = flat.join(self._items, on=ITEM, how="left", maintain_order="left")["item_idx"]
        known = numbers.is_not_null().to_numpy()
        kept = np.bincount(np.repeat(np.arange(len(rows)), lengths)[known], minlength=len(rows))
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(kept)]))
        values = torch.from_numpy(numbers.drop_nulls().to_numpy().copy())
        return Chunk(rows[USER], Ragged(values, offsets), int((~known).sum()))


def read_user_ids(path: Path) -> polars.Series:
    """User ids of a file: a text with one a line, or the column `user_id` of CSV, Parquet or JSON lines.

    Raises:
        DataError: the file cannot be read, has no such column, or repeats an id.
    """
    with reading_table(path):
        if path.suffix in (".csv", ".parquet", ".jsonl", ".ndjson"):
            table = scan_table(path)
            if USER not in (columns := names_of(table, path)):
                raise DataError(f"{path}: has no column 'user_id'; it has {', '.join(columns)}.")
            ids = table.select(polars.col(USER).cast(polars.String)).collect()[USER].drop_nulls()
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
            ids = polars.Series(USER, [line.strip() for line in lines if line.strip()], dtype=polars.String)
    if (repeated := ids.filter(ids.is_duplicated())).len():
        raise DataError(f"{path}: user_id {repeated[0]!r} is there more than once; keep one.")
    return ids


def scan_table(path: Path) -> polars.LazyFrame:
    """A CSV, Parquet or JSON lines file, to be read in batches; CSV as texts.

    Raises:
        DataError: there is no such file, or it is of another kind.
    """
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder; name a file' if path.is_dir() else 'no such file'}.")
    if path.suffix == ".parquet":
        return polars.scan_parquet(path, glob=False)
    if path.suffix == ".csv":
        return polars.scan_csv(path, infer_schema=False, glob=False)
    if path.suffix in (".jsonl", ".ndjson"):
        return polars.scan_ndjson(path)
    raise DataError(f"{path}: must end in .csv, .parquet or .jsonl.")


def names_of(table: polars.LazyFrame, path: Path) -> list[str]:
    """Names of the columns of a table.

    Raises:
        DataError: the file is damaged.
    """
    with reading_table(path):
        return table.collect_schema().names()


@contextmanager
def reading_table(path: Path) -> Iterator[None]:
    """Turn the errors of reading a table into a DataError of one line."""
    try:
        yield
    except (OSError, UnicodeDecodeError, polars.exceptions.PolarsError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())[:150]}).") from None
