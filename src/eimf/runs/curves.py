"""Reads `metrics.csv`, the curves of a run."""

import csv
from pathlib import Path


def read_curves(path: Path) -> list[dict[str, float]]:
    """The rows of a curve file, without what an epoch did not log; none where nothing was trained yet."""
    try:
        with path.open(newline="") as file:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
