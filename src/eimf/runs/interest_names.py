"""Names of a run's behavioural interests, where they hold for all users: kept as `interests.json` in its folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from eimf.core.errors import ArtifactError
from eimf.core.files import write_json_atomic

FILE = "interests.json"


def write_interest_names(folder: Path, phrases: Sequence[Sequence[str]], sizes: Sequence[int]) -> None:
    """Keep the phrases of each interest, the best first, and the number of items of its prototype."""
    rows = [
        {"interest": k, "phrases": list(given), "items": size}
        for k, (given, size) in enumerate(zip(phrases, sizes, strict=True))
    ]
    write_json_atomic(folder / FILE, {"interests": rows})


def read_interest_names(folder: Path) -> list[list[str]]:
    """The phrases of each interest; empty if the run has no prototypes.

    Raises:
        ArtifactError: the file is damaged.
    """
    try:
        rows = json.loads((folder / FILE).read_text(encoding="utf-8"))["interests"]
        return [[str(phrase) for phrase in row["phrases"]] for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder / FILE}: is damaged ({type(error).__name__}); remove it (interests then have no names), or train "
            "again."
        ) from None
