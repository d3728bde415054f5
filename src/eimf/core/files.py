"""TODO"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from eimf.core.errors import ArtifactError


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a plain value through canonical JSON, as hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _is_disk_full(error: Exception) -> bool:
    full = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    # Polars wraps the operating system's error in its own and keeps the number only in the text.
    return getattr(error, "errno", None) in full or any(f"(os error {code})" in str(error) for code in full)


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part."""
    work = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        work.write_text(text, encoding="utf-8")
        work.replace(path)
    except OSError as error:
        raise ArtifactError(f"{path}: could not be written ({error}); free some disk space and run again.") from error
    finally:
        work.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, held: str) -> Iterator[None]:
    """Hold a file's lock, which ends with the process, whatever ends it.

    Args:
        path: a file that exists; it is not changed.
        held: what to say when another process holds it.

    Raises:
        ArtifactError: another process holds it.
    """
    with path.open("r+b") as file:  # network file systems lock only what could be written
        for wait in (0.05, 0.2, 0.5, None):  # somebody may just be looking whether it is held
            if _take_lock(file, alone=True):
                break
            if wait is None:
                raise ArtifactError(f"{path.parent}: {held}")
            time.sleep(wait)
        yield


def is_locked(path: Path) -> bool:
    """Whether another process holds a file's lock."""
    with path.open("rb") as file:
        return not _take_lock(file, alone=False)


def _take_lock(file: IO[bytes], alone: bool) -> bool:
    try:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except ImportError:  # Windows
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):  # a file system without locks
            raise
    return True


def write_json_atomic(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, in the manner of `write_text_atomic`."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
