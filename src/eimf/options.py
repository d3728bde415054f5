"""Configuration fields with a range."""

from dataclasses import field
from typing import Any


def option(default: Any, *, low: float | None = None, high: float | None = None) -> Any:
    """A dataclass field whose value must lie in [low, high]; `eimf.config` checks it."""
    return field(default=default, metadata={"low": low, "high": high})
