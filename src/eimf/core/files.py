"""Files that are written completely or not at all, digests, and locks between processes."""

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from eimf.core.errors import ArtifactError

if TYPE_CHECKING:
    import polars

LOCK_WAIT_S = 1.0
"""Seconds to wait for a lock: another process may hold it for a moment to test whether it is free."""


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a plain value through canonical JSON, as hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a new file beside `path`; it replaces `path` when the block ends without an error.

    A reader sees the old content or the new, never a part of it, even if the process is killed.

    Raises:
        ArtifactError: the file cannot be written, and the old one is kept; or `path` is a folder or a device.
    """
    work = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex[:8]}.partial")
    try:
        if path.exists() and not path.is_file():  # as root, the rename would replace even /dev/null
            raise ArtifactError(f"{path}: is no regular file, so it is not replaced; choose another path.")
        yield work
        with work.open("rb") as file:
            os.fsync(file.fileno())
        work.replace(path)
    except Exception as error:
        if (reason := disk_error(error)) is None:
            raise
        raise ArtifactError(
            f"{path}: could not be written ({reason}); nothing was changed. Free some disk space, or choose a path "
            "that can be written."
        ) from error
    finally:
        with suppress(OSError):
            work.unlink(missing_ok=True)


def disk_error(error: BaseException) -> str | None:
    """The reason of an error of the file system, or None if the error is of another kind."""
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in ("file write failed", "unexpected pos")):
        return "the disk is full"  # torch hides the operating system's error
    return None


def write_parquet(frame: "polars.DataFrame | polars.LazyFrame", path: Path) -> None:
    """Write a table as Parquet.

    Raises:
        OSError: the file cannot be written. Polars raises its own errors then, some of them without the reason.
    """
    import polars

    try:
        if isinstance(frame, polars.LazyFrame):
            frame.sink_parquet(path)
        else:
            frame.write_parquet(path)
    except polars.exceptions.PolarsError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        number = int(code.group(1)) if code else errno.ENOSPC
        raise OSError(number, os.strerror(number), str(path)) from error


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file, see `replacing`."""
    with replacing(path) as work:
        work.write_text(text, encoding="utf-8")


def write_json_atomic(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as strict JSON, see `replacing`; numbers that are not finite become null."""
    write_text_atomic(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """A plain value with null for numbers that are not finite, since JSON has no such numbers."""
    if isinstance(value, Mapping):
        return {str(key): finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and value - value != 0 else value


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        ArtifactError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{path}: this folder cannot be made ({error.strerror}); choose another place.") from None


@contextmanager
def lock(path: Path, held: str) -> Iterator[None]:
    """Hold the lock of a file. The operating system releases it when the process ends.

    Args:
        path: the lock file, which is made if it is missing.
        held: message for the case that another process holds the lock.

    Raises:
        ArtifactError: another process holds it, or the file cannot be made.
    """
    try:
        guard = FileLock(path, timeout=LOCK_WAIT_S).acquire()
    except Timeout:
        raise ArtifactError(f"{path.parent}: {held}") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be locked ({error.strerror}); is its folder writable?") from None
    with guard:
        yield


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock of a file."""
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False
