"""Immutable folders with a manifest: what was made, from what, by which options.

A folder appears under its final name only when it is complete: it is written beside its place and
renamed, so a crash or a full disk leaves nothing half-written behind.
"""

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from eimf.errors import ArtifactError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` of an artifact folder holds."""

    kind: str
    """What the folder is, for example `prepared`."""
    digest: str
    """SHA-256 over the content, independent of file formats and library versions."""
    options: dict[str, Any]
    """The options that shaped the content."""
    inputs: dict[str, str]
    """Name of each input file -> its SHA-256."""
    counts: dict[str, int]
    """Row counts and the like."""
    repairs: dict[str, int] = field(default_factory=dict)
    """What was dropped or mended on the way, and how often."""
    files: dict[str, str] = field(default_factory=dict)
    """Name of each file in the folder -> its SHA-256."""
    schema_version: int = SCHEMA_VERSION
    package_version: str = field(default_factory=lambda: version("eimf"))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a plain value through canonical JSON, as hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


@contextmanager
def new_artifact(final: Path) -> Iterator[Path]:
    """Yield an empty folder beside `final`; rename it to `final` when the block ends well.

    If the block raises, the folder is removed. If another process has made `final` meanwhile,
    its folder stays and ours is dropped: both have the same content, as the name says.

    Raises:
        ArtifactError: the disk refused a write.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    work = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.partial"
    work.mkdir()
    try:
        yield work
        try:
            work.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    except Exception as error:
        if _is_disk_full(error):
            raise ArtifactError(
                f"{final}: could not be written ({error}); nothing was kept. Free some disk space and run again."
            ) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_disk_full(error: Exception) -> bool:
    full = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    # Polars wraps the operating system's error in its own and keeps the number only in the text.
    return getattr(error, "errno", None) in full or any(f"(os error {code})" in str(error) for code in full)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, with the digests of the files that are in the folder now."""
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
    content = asdict(manifest) | {"files": files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def read_manifest(folder: Path, kind: str) -> Manifest:
    """Read and check `manifest.json`.

    Raises:
        ArtifactError: missing, unreadable, of another kind or schema version.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise ArtifactError(f"{folder}: no {MANIFEST}, so this is not a finished artifact; make it again.") from None
    except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); delete the folder {folder} and make it again.") from None
    if manifest.schema_version != SCHEMA_VERSION or manifest.kind != kind:
        raise ArtifactError(
            f"{path}: is a {manifest.kind!r} of schema {manifest.schema_version}, needed is a {kind!r} of schema "
            f"{SCHEMA_VERSION}; delete the folder and make it again with this version."
        )
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare the folder's files with the manifest's digests.

    Raises:
        ArtifactError: a file is missing or was changed.
    """
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; delete the folder {folder} and make it again.")
        if (found := sha256_file(path)) != digest:
            raise ArtifactError(
                f"{path}: changed since it was written (SHA-256 {found[:12]}, manifest says {digest[:12]}); "
                f"delete the folder {folder} and make it again."
            )


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
