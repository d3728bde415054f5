"""Immutable folders with a manifest of their content, inputs and options.

A folder appears under its final name only when it is complete: it is written under a temporary name and renamed. So a
crash or a full disk never leaves an incomplete folder under the final name.
"""

import errno
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eimf.core.errors import ArtifactError
from eimf.core.files import disk_error, make_folder, sha256_file
from eimf.core.version import VERSION

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
    """What was dropped or repaired on the way, and how often."""
    files: dict[str, str] = field(default_factory=dict)
    """Name of each file in the folder -> its SHA-256."""
    schema_version: int = SCHEMA_VERSION
    package_version: str = VERSION


@contextmanager
def new_artifact(final: Path) -> Iterator[Path]:
    """Yield an empty folder beside `final`; rename it to `final` when the block ends without an error.

    If the block raises, the folder is removed. If another process has made `final` meanwhile,
    its folder stays and ours is dropped: both have the same content, as the name says.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    make_folder(final.parent)
    work = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.partial"
    make_folder(work)
    try:
        yield work
        try:
            work.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    except Exception as error:
        if (reason := disk_error(error)) is None:
            raise
        raise ArtifactError(
            f"{final}: could not be written ({reason}); nothing was kept. Free some disk space and run again."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


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
        if (actual := sha256_file(path)) != digest:
            raise ArtifactError(
                f"{path}: changed since it was written (SHA-256 {actual[:12]}, manifest says {digest[:12]}); "
                f"delete the folder {folder} and make it again."
            )
