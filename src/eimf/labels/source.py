"""Where labels are read from: a label cache, or JSON lines."""

import logging
import os
from pathlib import Path

from eimf.config.load import find_experiment, names_in
from eimf.config.schema import Config
from eimf.core.errors import LabelError
from eimf.labels.cache import LabelCache
from eimf.labels.jsonl import _read_lines, from_line
from eimf.labels.label import Label

log = logging.getLogger(__name__)


def has_label(path: Path) -> bool:
    """Whether there is a label cache with a valid label, or another file that is not empty."""
    if not path.exists() or path.stat().st_size == 0:  # a full disk leaves empty files
        return False
    if not is_cache(path):
        return True
    with LabelCache(path, read_only=True) as cache:
        return cache.counts().get("ok", 0) > 0


def read_labels(path: str | os.PathLike[str]) -> list[Label]:
    """Labels of a cache or of JSON lines, oldest first. A user may have several, see `newest_labels`.

    Raises:
        LabelError: the file is missing, cannot be read, or has no label.
    """
    path = Path(path)
    if is_cache(path):
        with LabelCache(path, read_only=True) as cache:
            labels = cache.labels()
        if not labels:
            raise LabelError(f"{path}: holds no valid label yet; make or import some.")
        return labels
    labels: list[Label] = []
    example, broken = "", 0
    for number, line in _read_lines(path):
        try:
            label, _ = from_line(line)
        except ValueError as error:
            example = example or f" (line {number}: {error})"
            broken += 1
            continue
        labels.append(label)
    if not labels:
        raise LabelError(f"{path}: holds no usable label{example}; it must be a label cache or JSON lines.")
    if broken:
        log.warning(f"{path}: {broken} lines are no labels and were left out{example}")
    return labels


def is_cache(path: Path) -> bool:
    """Whether a file is a label cache, and not JSON lines.

    Raises:
        LabelError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except FileNotFoundError:
        raise LabelError(
            f"{path}: no labels yet (no such file). Make some with eimf label run and the same data set (--dry-run "
            "shows the cost), read some with eimf label import --from FILE, or name another with eimf.labels=FILE; "
            f"shipped are those of {', '.join(names_in('labels', 'jsonl'))}."
        ) from None
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror}).") from None


def label_source(config: Config) -> Path:
    """The file that training reads labels from: the label cache, or shipped labels if the cache has none."""
    shipped = find_experiment(f"labels/{config.dataset.name}.jsonl")
    use_shipped = shipped and not config.eimf.labels and not has_label(config.label_cache)
    return shipped if shipped and use_shipped else config.label_cache
