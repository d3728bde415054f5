"""Reads the histories that predictions are made for, in chunks of users: of prepared data, or of a file of one's own.

A file has a row for each user, with the columns `user_id` and `history` (a list of item ids, oldest first; in CSV, ids
separated by spaces), or a row for each interaction, with the columns `user_id` and `item_id`: then the rows of a user
are next to each other, oldest first. Ids are texts or whole numbers, see `eimf.serving.ids`. CSV has no types: there,
`7.0` is read as `7` if the catalogue does not have `7.0`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars
import torch

from eimf.core.errors import DataError
from eimf.core.files import sha256_file, sha256_json
from eimf.core.options import nearest
from eimf.data.batch import Ragged, gather_slices
from eimf.data.prepared import Prepared
from eimf.data.sources.base import id_texts, without_point
from eimf.serving.ids import id_text, item_ids

ROWS_AT_A_TIME, JSON_ROWS = 2**18, 2**14
"""Most rows of a table, and of JSON lines, that are in memory at a time. Python's objects take more room."""
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
        self.about = {"data": prepared.digest, "users": "" if user_ids is None else sha256_json(user_ids.to_list())}

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
        columns = columns_of(path)
        self._shape = HISTORY if HISTORY in columns else ITEM
        for name in (USER, self._shape):
            if name not in columns:
                raise DataError(
                    f"{path}: has no column {name!r}{nearest(name, columns)}; it has {', '.join(columns)}. Needed are "
                    "user_id and history, or user_id and item_id."
                )
        self._one_row = self._shape == HISTORY
        self.about = {"histories": sha256_file(path)}
        self.n_users = self._count()

    def _count(self) -> int:
        """The number of users; a file that would give a user two lists is refused before hours of work."""
        groups = []
        for batch in read_batches(self.path, (USER,)):
            users = id_texts(batch[USER], f"{self.path}: user_id")
            if users.null_count() or (users == "").any():
                raise DataError(f"{self.path}: a row has no user_id; give every row one.")
            groups.append(users if self._one_row else users.rle().struct.field("value"))
        starts = polars.concat(groups) if groups else polars.Series(USER, [], polars.String)
        found = len(starts) if self._one_row else starts.rle().len()
        if (users := starts.n_unique()) != found:
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
        for batch in read_batches(self.path, (USER, self._shape)):
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
        """A row for each user, with texts as ids."""
        batch = batch.with_columns(id_texts(batch[USER], f"{self.path}: user_id"))
        if not self._one_row:
            group = polars.col(USER).rle_id().alias("group")
            return (
                batch.with_columns(id_texts(batch[ITEM], f"{self.path}: item_id"))
                .group_by(group, maintain_order=True)
                .agg(polars.col(USER).first(), polars.col(ITEM).alias(HISTORY))
                .drop("group")
            )
        return batch.with_columns(self._lists(batch[HISTORY]))

    def _lists(self, histories: polars.Series) -> polars.Series:
        """Lists of texts; a history that is null is empty."""
        kind = histories.dtype
        if kind == polars.String:  # ids with spaces; a row may have several of them between two ids
            lists = histories.str.split(" ").list.eval(polars.element().filter(polars.element() != ""))
        elif isinstance(kind, polars.List | polars.Array):
            subject = f"{self.path}: history"
            id_texts(polars.Series([], dtype=kind.inner), subject)  # an error within `eval` would be one of polars
            texts = polars.element().map_batches(lambda ids: id_texts(ids, subject), return_dtype=polars.String)
            lists = histories.cast(polars.List(kind.inner)).list.eval(texts)
        elif kind == polars.Null:
            lists = histories.cast(polars.List(polars.String))
        else:
            raise DataError(f"{self.path}: history must be a list of item ids, or ids with spaces, is of type {kind}.")
        return lists.fill_null(polars.Series([[]], dtype=polars.List(polars.String)))

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
        if self.path.suffix == ".csv":
            known = polars.col(ITEM).is_in(self._items[ITEM].implode())
            whole = polars.col(ITEM).str.replace(r"^(-?\d+)\.0+$", "${1}")
            flat = flat.with_columns(polars.when(known).then(ITEM).otherwise(whole).alias(ITEM))
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
    if path.suffix in (".csv", ".parquet", ".jsonl", ".ndjson"):
        if USER not in (columns := columns_of(path)):
            raise DataError(f"{path}: has no column 'user_id'; it has {', '.join(columns)}.")
        parts = [id_texts(batch[USER], f"{path}: user_id") for batch in read_batches(path, (USER,))]
        ids = polars.concat([polars.Series(USER, [], polars.String), *parts]).drop_nulls()
    else:
        with reading_table(path):
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        ids = polars.Series(USER, [line.strip() for line in lines if line.strip()], dtype=polars.String)
    if path.suffix == ".csv":
        ids = without_point(ids)
    if (repeated := ids.filter(ids.is_duplicated())).len():
        raise DataError(f"{path}: user_id {repeated[0]!r} is there more than once; keep one.")
    return ids


def columns_of(path: Path) -> list[str]:
    """Names of the columns of a CSV, Parquet or JSON lines file.

    Of JSON lines, those of the first object with a history or an item, and of the objects before it.

    Raises:
        DataError: there is no such file, or it is damaged or of another kind.
    """
    if path.suffix not in (".jsonl", ".ndjson"):
        table = _scan(path)
        with reading_table(path):
            return table.collect_schema().names()
    names: dict[str, None] = {}
    for _, row in _json_lines(path):
        names |= dict.fromkeys(row)
        if HISTORY in row or ITEM in row:
            break
    return list(names)


def read_batches(path: Path, columns: Sequence[str]) -> Iterator[polars.DataFrame]:
    """Some columns of a CSV, Parquet or JSON lines file in batches of rows. CSV and JSON lines are read as texts.

    Raises:
        DataError: the file cannot be read, or a line of JSON has a value that is no id.
    """
    if path.suffix in (".jsonl", ".ndjson"):
        yield from _json_batches(path, columns)
        return
    with reading_table(path):
        yield from _scan(path).select(columns).collect_batches(chunk_size=ROWS_AT_A_TIME, maintain_order=True)


def _scan(path: Path) -> polars.LazyFrame:
    _check_file(path)
    if path.suffix == ".parquet":
        return polars.scan_parquet(path, glob=False)
    if path.suffix == ".csv":
        return polars.scan_csv(path, infer_schema=False, glob=False)
    raise DataError(f"{path}: must end in .csv, .parquet or .jsonl.")


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder; name a file' if path.is_dir() else 'no such file'}.")


def _json_batches(path: Path, columns: Sequence[str]) -> Iterator[polars.DataFrame]:
    """Types are the same for all lines, whatever the first ones hold: texts, and lists of texts as histories."""
    texts = polars.String()
    schema = {name: polars.List(texts) if name == HISTORY else texts for name in columns}
    other = {HISTORY: ITEM, ITEM: HISTORY}.get(columns[-1], "")
    rows: list[list[Any]] = []
    for place, row in _json_lines(path):
        if other in row and columns[-1] not in row:
            raise DataError(
                f"{path}: line {place}: has {other}, but earlier ones have {columns[-1]}; use one form for all lines."
            )
        rows.append([_json_value(row.get(name), name, f"{path}: line {place}: {name}") for name in columns])
        if len(rows) == min(ROWS_AT_A_TIME, JSON_ROWS):
            yield _frame(rows, schema, path)
            rows = []
    if rows:
        yield _frame(rows, schema, path)


def _frame(rows: list[list[Any]], schema: Mapping[str, polars.DataType], path: Path) -> polars.DataFrame:
    with reading_table(path):
        return polars.DataFrame(rows, schema, orient="row")


def _json_value(value: Any, name: str, subject: str) -> Any:
    if name != HISTORY:
        return id_text(value, subject)
    if isinstance(value, str):
        return value.split()
    if value is None or isinstance(value, list):
        return item_ids(value or [], subject)
    raise DataError(f"{subject} must be a list of item ids, or ids with spaces, is {json.dumps(value)[:80]}.")


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, with their places from 1.

    Raises:
        DataError: the file cannot be read, or a line is no object.
    """
    _check_file(path)
    with reading_table(path), path.open(encoding="utf-8-sig") as lines:
        for place, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: cannot be read (line {place} is no JSON: {str(error)[:100]}).") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}: line {place}: must be an object with a user_id, is {line.strip()[:80]}.")
            yield place, row


@contextmanager
def reading_table(path: Path) -> Iterator[None]:
    """Turn the errors of reading a table into a DataError of one line."""
    try:
        yield
    except (OSError, UnicodeError, polars.exceptions.PolarsError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())[:150]}).") from None
