"""The label cache: stores every reply of an LLM as soon as it arrives, and exchanges labels as JSON lines.

Several processes may use one cache. A process claims a key before it asks the LLM, so that no other process asks the
same. A claim ends with its process.
"""

import json
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psutil

from eimf.core.errors import LabelError
from eimf.core.files import write_text_atomic
from eimf.labels.jsonl import ImportReport, _describe, _imported, _read_lines, from_line, to_line
from eimf.labels.label import Label, Record, _label, newest_labels
from eimf.labels.prompts import Interest, strip_control

CACHE_VERSION = 1


APPLICATION_ID = 0x45494D46  # "EIMF", in the header of the file


LEASE_S = 600.0
"""A claim that was not renewed for this time may be taken over."""


BUSY_S = 30.0
"""Seconds to wait for the lock of another process."""


STATUSES = ("ok", "invalid", "refused", "failed")


REPLIES = ("ok", "invalid", "refused")
"""Statuses that came with a reply; only `failed` ones are asked again by default."""


_COLUMNS = (
    *("key", "user_id", "prompt_version", "prompt_sha", "history_sha", "history", "model", "params", "raw"),
    *("interests", "status", "reason", "tokens_in", "tokens_out", "seconds", "created_at"),
)


_CREATE = (
    """CREATE TABLE labels (
        key TEXT NOT NULL, user_id TEXT NOT NULL, prompt_version TEXT NOT NULL, prompt_sha TEXT NOT NULL,
        history_sha TEXT NOT NULL, history TEXT NOT NULL, model TEXT NOT NULL, params TEXT NOT NULL,
        raw TEXT NOT NULL, interests TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('ok', 'invalid', 'refused', 'failed')), reason TEXT NOT NULL,
        tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, seconds REAL NOT NULL, created_at REAL NOT NULL,
        PRIMARY KEY (key, user_id))""",
    """CREATE TABLE claims (
        key TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, started TEXT NOT NULL,
        owner TEXT NOT NULL, claimed_at REAL NOT NULL)""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {CACHE_VERSION}",
)


# Nothing replaces a label. A failure does not replace a reply.
_PUT = (
    f"INSERT INTO labels ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "
    f"ON CONFLICT (key, user_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS[2:])} "
    "WHERE labels.status = 'failed' OR (labels.status != 'ok' AND excluded.status != 'failed')"
)


class LabelCache:
    """The SQLite file of replies. A context manager; only one thread may use it.

    Users with identical titles have the same prompt and key, so `labels` has one row per (key, user).

    Args:
        path: the file; created if it does not exist.
        read_only: never write; the file must exist.
        lease: seconds after which a claim that was not renewed may be taken over.

    Raises:
        LabelError: the file is not a label cache or has another version, or the disk cannot be used. All methods may
            raise it.
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False, lease: float = LEASE_S) -> None:
        self.path = Path(path)
        self.lease = lease
        self._me = (socket.gethostname(), os.getpid(), _process_start(os.getpid()), uuid.uuid4().hex)
        if read_only and not self.path.is_file():
            raise LabelError(f"{self.path}: no such label cache.")
        with self._guard():
            if not read_only:
                try:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise LabelError(f"{self.path}: its folder cannot be made ({error.strerror}).") from None
            self._db = self._connect(read_only)
        try:
            with self._guard():
                self._prepare(read_only)
        except BaseException:
            self._db.close()
            raise

    def _connect(self, read_only: bool) -> sqlite3.Connection:
        address = self.path.absolute().as_uri()
        if read_only:
            # SQLite needs a writable folder to read a WAL database, unless its -wal file exists (another process has it
            # open, or crashed). `immutable=1` would ignore that file, and the newest replies in it.
            wal_file = self.path.with_name(f"{self.path.name}-wal")
            immutable = not os.access(self.path.parent, os.W_OK) and not (
                wal_file.is_file() and wal_file.stat().st_size
            )
            address += "?mode=ro&immutable=1" if immutable else "?mode=ro"
        return sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None)

    def _prepare(self, read_only: bool) -> None:
        if not read_only:
            self._start_wal()
            self._db.execute("PRAGMA synchronous = FULL")  # a reply costs more than an fsync
            with self._transaction():
                if self._pragma("user_version") == 0 and not self._has_tables():
                    for statement in _CREATE:
                        self._db.execute(statement)
        if self._pragma("application_id") != APPLICATION_ID:
            raise LabelError(f"{self.path}: is an SQLite file, but no label cache; give another path.")
        if (version := self._pragma("user_version")) != CACHE_VERSION:
            raise LabelError(
                f"{self.path}: is a label cache of version {version}, this program reads version {CACHE_VERSION}; "
                "export it with the program that wrote it and import the labels into a new cache."
            )

    def _start_wal(self) -> None:
        # SQLite does not wait for other processes when it changes to WAL, so try again here.
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                if self._has_tables() and self._pragma("application_id") != APPLICATION_ID:
                    return  # not a label cache: do not change it
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if not _name(error).startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _pragma(self, name: str) -> int:
        return self._db.execute(f"PRAGMA {name}").fetchone()[0]

    def _has_tables(self) -> bool:
        return self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Claims that are not released end with the process."""
        self._db.close()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LabelError(f"{self.path}: {_explain(error)}") from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guard():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def get(self, key: str, user_id: str | None = None) -> Record | None:
        """The record of a key and user. Without `user_id`, the best record of any user."""
        order = "CASE status WHEN 'ok' THEN 0 WHEN 'failed' THEN 2 ELSE 1 END, created_at DESC LIMIT 1"
        query = f"SELECT {', '.join(_COLUMNS)} FROM labels WHERE key = ?"
        with self._guard():
            if user_id is not None:
                row = self._db.execute(f"{query} AND user_id = ?", (key, user_id)).fetchone()
            else:
                row = self._db.execute(f"{query} ORDER BY {order}", (key,)).fetchone()
        return None if row is None else self._read(row)

    def put(self, *records: Record) -> None:
        """Store records in one transaction, and delete the claims on their keys.

        Storing the same record again changes nothing. An `ok` record is never replaced.
        """
        with self._transaction():
            self._db.executemany(_PUT, [_row(record) for record in records])
            self._db.executemany(
                "DELETE FROM claims WHERE key = ? AND owner = ?", [(record.key, self._me[3]) for record in records]
            )

    def pending(self, keys: Iterable[str], again: AbstractSet[str] = frozenset({"failed"})) -> list[str]:
        """The keys that have no record, or only records with a status in `again`; in the given order."""
        settled = [status for status in STATUSES if status not in again]
        with self._guard():
            rows = self._db.execute(f"SELECT key FROM labels WHERE status IN ({_marks(settled)})", settled)
            done = {key for (key,) in rows}
        return [key for key in dict.fromkeys(keys) if key not in done]

    def records(self, status: str | None = None) -> list[Record]:
        """All records, or those of a status, oldest first."""
        where, values = ("WHERE status = ?", (status,)) if status else ("", ())
        query = f"SELECT {', '.join(_COLUMNS)} FROM labels {where} ORDER BY created_at, rowid"
        with self._guard():
            return [self._read(row) for row in self._db.execute(query, values)]

    def counts(self) -> dict[str, int]:
        """Number of records of each status."""
        with self._guard():
            counts = dict(self._db.execute("SELECT status, count(*) FROM labels GROUP BY status").fetchall())
        return {status: counts.get(status, 0) for status in STATUSES}

    def claim(self, key: str, again: AbstractSet[str] = frozenset({"failed"})) -> Literal["mine", "done", "busy"]:
        """Claim a key for this cache object before asking the LLM.

        Returns:
            `mine`: ask, then `put` or `release`; `done`: there is a record; `busy`: another process is asking.
        """
        with self._transaction():
            settled = [status for status in STATUSES if status not in again]
            query = f"SELECT 1 FROM labels WHERE key = ? AND status IN ({_marks(settled)})"
            if self._db.execute(query, (key, *settled)).fetchone():
                return "done"
            existing = self._db.execute(
                "SELECT host, pid, started, owner, claimed_at FROM claims WHERE key = ?", (key,)
            ).fetchone()
            if existing is not None and existing[3] != self._me[3] and self._is_alive(*existing):
                return "busy"
            self._db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?)", (key, *self._me, time.time()))
            return "mine"

    def _is_alive(self, host: str, pid: int, started: str, owner: str, claimed_at: float) -> bool:
        if not -self.lease <= time.time() - claimed_at <= self.lease:  # a clock may have been set back
            return False
        if host != self._me[0]:
            return True
        return _process_start(pid) in (started, "alive")

    def renew(self) -> None:
        """Renew the lease of all claims of this object. Call it before the lease ends."""
        with self._transaction():
            self._db.execute("UPDATE claims SET claimed_at = ? WHERE owner = ?", (time.time(), self._me[3]))

    def release(self, key: str | None = None) -> None:
        """Delete the claim on a key, or all claims of this object."""
        with self._transaction():
            if key is None:
                self._db.execute("DELETE FROM claims WHERE owner = ?", (self._me[3],))
            else:
                self._db.execute("DELETE FROM claims WHERE owner = ? AND key = ?", (self._me[3], key))

    def labels(self) -> list[Label]:
        """All `ok` labels, oldest first. A user may have several, for example from two models."""
        return [_label(record) for record in self.records("ok")]

    def export_jsonl(self, path: str | os.PathLike[str]) -> int:
        """Write the newest label of every user as JSON lines; returns their number.

        Raises:
            ArtifactError: the file cannot be written; an older file stays unchanged.
        """
        labels = newest_labels(self.labels())
        write_text_atomic(Path(path), "".join(f"{to_line(label)}\n" for label in labels))
        return len(labels)

    def import_jsonl(
        self,
        path: str | os.PathLike[str],
        known_users: AbstractSet[str] | None = None,
        known_items: AbstractSet[str] | None = None,
    ) -> ImportReport:
        """Import labels from JSON lines. A line that does not fit is counted and left out.

        Args:
            known_users: ids of the data set's users; None accepts any.
            known_items: ids of the data set's items; None accepts any.

        Raises:
            LabelError: the file cannot be read, or no line of it fits.
        """
        names = ("imported", "repeated", "unknown_user", "unknown_item", "broken_lines", "out_of_range")
        counts: dict[str, int] = dict.fromkeys(names, 0)
        first: dict[str, str] = {}
        records: list[Record] = []

        def note(kind: str, number: int, example: str, times: int = 1) -> None:
            counts[kind] += times
            first.setdefault(kind, f"line {number}: {example}")

        with self._guard():
            seen = {key for (key,) in self._db.execute("SELECT key FROM labels WHERE status = 'ok'")}
        for number, line in _read_lines(Path(path)):
            try:
                label, dropped = from_line(line)
            except ValueError as error:
                note("broken_lines", number, str(error))
                continue
            if dropped:
                note("out_of_range", number, f"of user {label.user_id!r}", dropped)
            if known_users is not None and label.user_id not in known_users:
                note("unknown_user", number, f"user {label.user_id!r}")
                continue
            unknown_items = [] if known_items is None else [item for item in label.history if item not in known_items]
            if unknown_items:
                note("unknown_item", number, f"item {unknown_items[0]!r} of user {label.user_id!r}")
                continue
            record = _imported(label, line)
            if record.key in seen or self._has(label):
                note("repeated", number, f"user {label.user_id!r}")
                continue
            seen.add(record.key)
            counts["imported"] += 1
            records.append(record)
        report = ImportReport(**counts, first=first)
        if not report.imported and not report.repeated:
            raise LabelError(f"{path}: no line fits this data set: {_describe(report)}.")
        self.put(*records)
        return report

    def _has(self, label: Label) -> bool:
        """Whether the cache holds an equal label, for example because the label was exported from it."""
        wanted = (label.user_id, label.model, label.prompt_version, _dump(label.history), _dump(label.interests))
        with self._guard():
            query = (
                "SELECT 1 FROM labels WHERE status = 'ok' AND user_id = ? AND model = ? AND prompt_version = ? "
                "AND history = ? AND interests = ?"
            )
            return self._db.execute(query, wanted).fetchone() is not None

    def _read(self, row: Sequence[Any]) -> Record:
        values = dict(zip(_COLUMNS, row, strict=True))
        try:
            values["history"] = tuple(json.loads(values["history"]))
            values["interests"] = tuple(Interest(name, tuple(items)) for name, items in json.loads(values["interests"]))
            values["params"] = json.loads(values["params"])
        except (ValueError, TypeError):
            raise LabelError(f"{self.path}: the record {values['key'][:12]} is damaged; delete that row.") from None
        return Record(**values)


def _row(record: Record) -> tuple[Any, ...]:
    values = {name: getattr(record, name) for name in _COLUMNS}
    for name in ("history", "interests", "params"):
        values[name] = _dump(values[name])
    return tuple(values.values())


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _process_start(pid: int) -> str:
    """Start time of a process, empty if it has ended. Ids of processes are reused, so an id alone is not enough."""
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else repr(process.create_time())
    except psutil.NoSuchProcess:
        return ""
    except psutil.Error:
        return "alive"  # another user's process; only the lease decides


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "") or ""


def _explain(error: sqlite3.Error) -> str:
    name = _name(error)
    kept = "finished replies are kept"
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        return f"the disk is full or refuses ({error}); {kept}. Free some space and run again."
    if name.startswith("SQLITE_READONLY"):
        return "is read-only; give a path that can be written, or change the permissions."
    if name.startswith("SQLITE_CANTOPEN"):
        return "cannot be opened or made; check that the path is a file in a folder that can be written."
    if name.startswith("SQLITE_NOTADB"):
        return "is not a label cache (not an SQLite file); give another path, or import it if it is JSON lines."
    if name.startswith("SQLITE_CORRUPT"):
        return f"is damaged ({error}); move it away, and import the labels from an export."
    if name.startswith("SQLITE_BUSY"):
        return f"another process has kept it locked for {BUSY_S:.0f} s; {kept}. Run again when that process is done."
    return f"SQLite says: {strip_control(str(error))}"
