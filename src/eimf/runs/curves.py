"""Reads `metrics.csv`, the curves of a run."""

import csv
from pathlib import Path

from eimf.core.errors import ArtifactError


def read_curves(path: Path) -> list[dict[str, float]]:
    """The rows of a curve file, each with the values that its epoch logged; an empty list if there is no file.

    Raises:
        ArtifactError: the file is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        if any(not {"epoch", "step", "seconds"} <= set(row) for row in rows):
            raise ValueError("a row has no epoch, step or seconds")
        return rows
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        reason = " ".join(str(error).split())[:100]
        raise ArtifactError(f"{path}: damaged ({reason}); restore it, or remove it to lose the curves alone.") from None
