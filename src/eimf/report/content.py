"""Writes the page of a run, of a suite, or of a sweep."""

import json
from pathlib import Path

import polars

from eimf.core.errors import ArtifactError
from eimf.core.files import write_text_atomic
from eimf.report.page import render
from eimf.report.run import describe_run
from eimf.report.suite import describe_suite
from eimf.report.sweep import TABLE, describe_sweep


def build_report(folder: Path, to: Path | None = None) -> Path:
    """Write the page of a folder of a run, a suite or a sweep; returns its path.

    Raises:
        ArtifactError: the folder is none of these, or it is unfinished or damaged.
    """
    to = to or folder / "report.html"
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; give a run (.../version_0) or the folder of a suite or sweep.")
    try:
        if (folder / "comparison" / "comparison.json").is_file():
            page = render(folder.resolve().name, describe_suite(folder, to))
        elif (folder / TABLE).is_file():
            page = render(folder.resolve().name, describe_sweep(folder))
        else:
            page = render("/".join(folder.resolve().parts[-2:]), describe_run(folder))
    except (json.JSONDecodeError, OSError, polars.exceptions.PolarsError) as error:
        raise ArtifactError(f"{folder}: is damaged ({type(error).__name__}: {str(error)[:120]}); run again.") from None
    write_text_atomic(to, page)
    return to
