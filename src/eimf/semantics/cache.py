"""The label cache [D]: every reply of an LLM, kept as soon as it arrives.

SQLite in WAL mode, one transaction for each reply, so that a crash at any moment loses nothing that was finished. The
key of a record is the hash of the prompt, the model and the decoding parameters: the same question is asked once.
Several processes may write; a claim with a lease keeps them from asking the same question at the same time.
"""

import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from eimf.artifacts import sha256_json, write_text_atomic
from eimf.errors import LabelError
from eimf.semantics.labels import Interest, Label, LabelFile, read_labels
from eimf.semantics.prompts import Prompt

SCHEMA_VERSION = 1
LEASE_S = 600.0
"""A claim older than this is void: its process has died or hangs."""

Status = Literal["ok", "invalid", "refused", "failed"]


class Record(NamedTuple):
    """One reply and what became of it."""

    key: str
    user_id: str
    history: tuple[str, ...]
    model: str
    prompt_version: str
    prompt_sha: str
    history_sha: str
    status: Status
    reason: str
    reply: str
    """The raw text."""
    interests: tuple[Interest, ...]
    tokens_in: int
    tokens_out: int
    seconds: float
    created_at: float
    """Unix seconds."""

    def label(self) -> Label:
        return Label(self.user_id, self.interests, self.history, self.model, self.prompt_version)


def record_key(prompt: Prompt, model: str, parameters: Mapping[str, Any]) -> str:
    """Identity of a question: prompt, model and decoding parameters."""
    return sha256_json({"prompt": list(prompt), "model": model, "parameters": dict(parameters)})


class LabelCache:
    """An open cache; a context manager.

    Args:
        path: the SQLite file; made where missing.

    Raises:
        LabelError: the file is no label cache, of another version, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._one_line():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")  # a reply that was reported as kept survives a power cut
            with self._transaction():
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    self._db.execute(
                        "CREATE TABLE replies (key TEXT PRIMARY KEY, user_id TEXT NOT NULL, history TEXT NOT NULL, "
                        "model TEXT NOT NULL, prompt_version TEXT NOT NULL, prompt_sha TEXT NOT NULL, "
                        "history_sha TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL, reply TEXT NOT NULL, "
                        "interests TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, "
                        "seconds REAL NOT NULL, created_at REAL NOT NULL) STRICT"
                    )
                    self._db.execute("CREATE TABLE claims (key TEXT PRIMARY KEY, pid INTEGER, until REAL) STRICT")
                    self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                elif version != SCHEMA_VERSION:
                    raise LabelError(
                        f"{path}: is a label cache of schema {version}, this version reads {SCHEMA_VERSION}; export it "
                        "with the version that made it, and import the JSONL."
                    )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise LabelError(
                f"{self.path}: cannot be used as a label cache ({error}). Check that it is one, that its folder can be "
                "written, and that the disk is not full; replies that were kept are safe."
            ) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # SQLite has rolled back by itself when the disk is full
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def put(self, record: Record) -> None:
        """Keep a reply and release its claim. A reply that is ok is never replaced.

        Raises:
            LabelError: the disk refuses.
        """
        row = (
            *record[:2],
            json.dumps(record.history),
            *record[3:10],
            json.dumps([one._asdict() for one in record.interests], ensure_ascii=False),
            *record[11:],
        )
        with self._one_line(), self._transaction():
            self._db.execute(
                f"INSERT INTO replies VALUES ({', '.join('?' * len(row))}) ON CONFLICT (key) DO UPDATE SET "
                + ", ".join(f"{name} = excluded.{name}" for name in Record._fields[1:])
                + " WHERE replies.status != 'ok'",
                row,
            )
            self._db.execute("DELETE FROM claims WHERE key = ?", (record.key,))

    def claim(self, key: str, retry: bool = False) -> bool:
        """Whether the caller shall ask this question: nobody has, and nobody else is about to.

        Args:
            retry: ask again where the reply was not ok.
        """
        with self._one_line(), self._transaction():
            found = self._db.execute("SELECT status FROM replies WHERE key = ?", (key,)).fetchone()
            if found is not None and (found[0] == "ok" or not (retry or found[0] == "failed")):
                return False
            other = self._db.execute("SELECT pid, until FROM claims WHERE key = ?", (key,)).fetchone()
            if other is not None and other[0] != os.getpid() and other[1] > time.time() and _is_alive(other[0]):
                return False
            self._db.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (key, os.getpid(), time.time() + LEASE_S)
            )
            return True

    def release(self, key: str) -> None:
        """Give a claim back without a reply."""
        with self._one_line(), self._transaction():
            self._db.execute("DELETE FROM claims WHERE key = ?", (key,))

    def records(self) -> Iterator[Record]:
        """All records, oldest first."""
        with self._one_line():
            rows = self._db.execute(
                f"SELECT {', '.join(Record._fields)} FROM replies ORDER BY created_at, key"
            ).fetchall()
        for row in rows:
            interests = tuple(Interest(one["name"], tuple(one["items"])) for one in json.loads(row[10]))
            yield Record._make([*row[:2], tuple(json.loads(row[2])), *row[3:10], interests, *row[11:]])

    def labels(self) -> list[Label]:
        """Labels of all users with a good reply; the newest one of each."""
        return list({record.user_id: record.label() for record in self.records() if record.status == "ok"}.values())

    def counts(self) -> dict[str, int]:
        """Number of records by status."""
        return dict(Counter(record.status for record in self.records()))


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine runs. Of another machine's processes the lease alone decides."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def load_labels(path: Path) -> LabelFile:
    """Labels of a JSONL file or of a label cache, whichever the path is.

    Raises:
        LabelError: missing, unreadable, or without a usable label.
    """
    try:
        with path.open("rb") as file:
            is_cache = file.read(16).startswith(b"SQLite format 3")
    except OSError:
        raise LabelError(
            f"{path}: no such labels; make them with eimf label run, read them with eimf label import, or name a "
            "JSONL file in eimf.labels."
        ) from None
    if not is_cache:
        return read_labels(path)
    with LabelCache(path) as cache:
        labels = cache.labels()
        if not labels:
            raise LabelError(f"{path}: holds no good reply ({cache.counts()}); run eimf label run again.")
    return LabelFile(labels, {})


def import_labels(cache: LabelCache, labels: Iterable[Label]) -> int:
    """Keep labels that were made elsewhere, as good replies; importing them again changes nothing.

    Returns:
        Number of labels that were new.
    """
    before = cache.counts().get("ok", 0)
    for label in labels:
        content = [label.user_id, label.model, label.prompt_version, [one._asdict() for one in label.interests]]
        history_sha = sha256_json(list(label.history))
        key = sha256_json({"imported": content, "history": list(label.history)})
        cache.put(
            Record(
                key, label.user_id, label.history, label.model, label.prompt_version, "", history_sha, "ok", "",
                "", label.interests, 0, 0, 0.0, time.time(),
            )
        )  # fmt: skip
    return cache.counts().get("ok", 0) - before


def export_labels(labels: Iterable[Label], path: Path) -> int:
    """Write labels as JSONL, one user a line, completely or not at all.

    Returns:
        Number of lines.
    """
    rows = [label._asdict() | {"interests": [one._asdict() for one in label.interests]} for label in labels]
    write_text_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)
