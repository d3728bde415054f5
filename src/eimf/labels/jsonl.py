"""The exchange format of labels: JSON lines."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from eimf.core.errors import LabelError
from eimf.core.files import sha256_json
from eimf.labels.label import Label, Record
from eimf.labels.prompts import check_interests


@dataclass(frozen=True)
class ImportReport:
    """Counts of the lines of a label file, by result. The first five add up to the number of lines."""

    imported: int = 0
    repeated: int = 0
    """Labels that the cache already had."""
    unknown_user: int = 0
    unknown_item: int = 0
    """Lines whose history names an item that is not in the data set."""
    broken_lines: int = 0
    out_of_range: int = 0
    """Item numbers outside the history, in all lines. They are dropped."""
    first: dict[str, str] = field(default_factory=dict)
    """Name of a count above -> its first example, with the line number."""


def to_line(label: Label) -> str:
    """A label in the exchange format."""
    interests = [{"name": interest.name, "items": list(interest.items)} for interest in label.interests]
    return json.dumps(label._asdict() | {"interests": interests}, ensure_ascii=False)


def from_line(line: str) -> tuple[Label, int]:
    """Read a label in the exchange format, and count its item numbers outside the history.

    Raises:
        ValueError: says what is wrong with the line.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    user_id, history, entries = value.get("user_id"), value.get("history"), value.get("interests")
    model, version = value.get("model", ""), value.get("prompt_version", "")
    if not isinstance(user_id, str) or not user_id:
        raise ValueError("user_id must be a string")
    if not isinstance(history, list) or not all(isinstance(item, str) for item in history) or not history:
        raise ValueError("history must be a list of item ids")
    if not isinstance(entries, list):
        raise ValueError("interests must be a list")
    if not isinstance(model, str) or not isinstance(version, str):
        raise ValueError("model and prompt_version must be strings")
    if any(_has_surrogate(text) for text in (user_id, model, version, *history)):
        raise ValueError("is not valid Unicode")
    parsed = check_interests(entries, len(history))
    if parsed.status != "ok":
        raise ValueError(parsed.reason)
    numbers = [item for entry in entries for item in entry["items"] if isinstance(item, int)]
    dropped = sum(not 1 <= item <= len(history) for item in numbers)
    return Label(user_id, parsed.interests, tuple(history), model, version), dropped


def _imported(label: Label, line: str) -> Record:
    # The file has no prompt, so the key is a digest of the label. A second import finds the same key.
    key = hashlib.sha256(to_line(label).encode()).hexdigest()
    return Record(
        key=key,
        user_id=label.user_id,
        history=label.history,
        model=label.model,
        status="ok",
        interests=label.interests,
        reason="imported",
        raw=line.encode("utf-8", "replace").decode(),
        prompt_version=label.prompt_version,
        history_sha=sha256_json(label.history),
    )


def _describe(report: ImportReport) -> str:
    names = {"unknown_user": "unknown users", "unknown_item": "unknown items", "broken_lines": "broken lines"}
    counts = asdict(report)
    parts = [f"{counts[key]} {name} ({report.first[key]})" for key, name in names.items() if counts[key]]
    return ", ".join(parts) or "the file is empty"


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank. Bytes that are not UTF-8 make only their own line invalid."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.strip()
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror}).") from None


def _has_surrogate(text: str) -> bool:
    return re.search(r"[\ud800-\udfff]", text) is not None
