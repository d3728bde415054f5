"""Explicit interests of users, as an LLM named them: the JSONL exchange format, one user a line.

```json
{"user_id": "20", "interests": [{"name": "home nail art and pedicure tools", "items": [2, 3]}],
 "history": ["B000P257CO", "B000VOJ9BG", "B000WTHKVQ"], "model": "...", "prompt_version": "v1"}
```

`items` are positions in `history`, from 1. The text is from outside: every field is checked.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from eimf.errors import LabelError

MAX_INTERESTS, MAX_NAME = 8, 200


class Interest(NamedTuple):
    """An interest in words."""

    name: str
    items: tuple[int, ...]
    """Positions in the label's history, from 1, of the items that show it."""


class Label(NamedTuple):
    """What an LLM said of one user."""

    user_id: str
    interests: tuple[Interest, ...]
    history: tuple[str, ...]
    """Item ids that the LLM saw, oldest first."""
    model: str
    prompt_version: str


class LabelFile(NamedTuple):
    """The labels of a file, one for each user, and what was wrong with the rest."""

    labels: list[Label]
    repairs: dict[str, int]


def read_labels(path: Path) -> LabelFile:
    """Read a JSONL file of labels. Lines that cannot be used are counted; of a repeated user the last line wins.

    Raises:
        LabelError: the file is missing, unreadable, or has no usable line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise LabelError(
            f"{path}: no such label file; set eimf.labels to a JSONL file of explicit interests."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    found: dict[str, Label] = {}
    repairs: dict[str, int] = {}
    first_fault = ""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            label = _parse(json.loads(line), repairs)
        except (ValueError, RecursionError) as error:
            repairs["lines that are no label (dropped)"] = repairs.get("lines that are no label (dropped)", 0) + 1
            first_fault = first_fault or f"line {number}: {str(error)[:80]}"
            continue
        if label.user_id in found:
            repairs["lines that repeat a user (last one kept)"] = (
                repairs.get("lines that repeat a user (last one kept)", 0) + 1
            )
        found[label.user_id] = label
    if not found:
        raise LabelError(
            f"{path}: holds no usable label ({first_fault or 'it is empty'}); see `eimf.semantics.labels`."
        )
    return LabelFile(list(found.values()), repairs)


def _parse(row: Any, repairs: dict[str, int]) -> Label:
    """A label from a parsed line; ValueError where it is none."""
    if not isinstance(row, dict):
        raise ValueError("is no JSON object")
    user, history, interests = row.get("user_id"), row.get("history"), row.get("interests")
    if not isinstance(user, str | int) or isinstance(user, bool):
        raise ValueError("has no user_id")
    if not isinstance(history, list) or not history or not all(isinstance(item, str | int) for item in history):
        raise ValueError("has no history, a list of item ids")
    if not isinstance(interests, list) or not 1 <= len(interests) <= MAX_INTERESTS:
        raise ValueError(f"has no list of 1 to {MAX_INTERESTS} interests")
    kept = []
    for one in interests:
        name, items = (one.get("name"), one.get("items")) if isinstance(one, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(items, list):
            raise ValueError("has an interest without name and items")
        tidy = " ".join("".join(char if char.isprintable() else " " for char in name).split())
        inside = tuple(dict.fromkeys(n for n in items if type(n) is int and 1 <= n <= len(history)))
        if tidy and len(tidy) <= MAX_NAME and inside:
            kept.append(Interest(tidy, inside))
        else:
            why = "interests without a name of sensible length, or without an item of the history (dropped)"
            repairs[why] = repairs.get(why, 0) + 1
    if not kept:
        raise ValueError("has no interest that can be used")
    words = [value if isinstance(value := row.get(key), str) else "" for key in ("model", "prompt_version")]
    return Label(str(user), tuple(kept), tuple(map(str, history)), *words)
