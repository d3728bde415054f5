"""Configuration fields with a range, and names of environment variables."""

import re
from dataclasses import field
from typing import Any


def option(default: Any, *, low: float | None = None, high: float | None = None) -> Any:
    """A dataclass field whose value must lie in [low, high]; `eimf.config` checks it."""
    return field(default=default, metadata={"low": low, "high": high})


def is_variable(name: str) -> bool:
    """Whether a text names an environment variable as they are named; a key put there by mistake does not."""
    return re.fullmatch("[A-Z_][A-Z0-9_]*", name) is not None
