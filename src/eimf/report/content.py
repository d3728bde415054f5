"""Writes the page of a run or of a suite."""

import json
from pathlib import Path

import polars

from eimf.core.errors import ArtifactError
from eimf.core.files import write_text_atomic
from eimf.report.page import render
from eimf.report.run import describe_run
from eimf.report.suite import describe_suite


def build_report(folder: Path, to: Path | None = None) -> Path:
    """Write the page of a run or suite folder; returns its path.

    Raises:
        ArtifactError: the folder is neither a run nor a suite, or it is unfinished or damaged.
    """
    to = to or folder / "report.html"
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; give a run (.../version_0) or the folder of a suite.")
    try:
        if (folder / "comparison" / "comparison.json").is_file():
            page = render(folder.resolve().name, describe_suite(folder, to))
        else:
            page = render("/".join(folder.resolve().parts[-2:]), describe_run(folder))
    except (json.JSONDecodeError, OSError, polars.exceptions.PolarsError) as error:
        raise ArtifactError(f"{folder}: is damaged ({type(error).__name__}: {str(error)[:120]}); run again.") from None
    write_text_atomic(to, page)
    return to
