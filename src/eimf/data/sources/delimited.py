"""Reads text tables with separated columns (CSV, TSV) row by row, by the rules of RFC 4180 and Python's `csv`.

A quote inside an unquoted field is an ordinary character. Nothing is lost silently: a row with too many cells is
counted, and a quoted field that never ends is refused.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars

from eimf.core.errors import DataError
from eimf.data.sources.lines import read_lines

ROWS_AT_A_TIME = 500_000
FIELD_CHARACTERS = 2**24
TOO_MANY = "rows with more cells than columns (dropped)"
TOO_FEW = "rows with fewer cells than columns"
_END = "\x00the end\x00"


def read_delimited(
    path: Path,
    needed: Mapping[str, str],
    columns: Mapping[str, str],
    *,
    separator: str,
    names: Sequence[str] | None,
    header: bool,
    repairs: dict[str, int],
    hint: str,
) -> Iterator[polars.DataFrame]:
    """Batches of rows as texts; columns have our names, and columns that the file lacks are left out.

    Args:
        needed: our name -> name in the file, of columns that must exist.
        columns: the same for all columns to read.
        separator: one character.
        names: names of the columns of a file without a header; None numbers them from 1.
        header: whether the first row has the names.
        repairs: rows with too many or too few cells are counted here.
        hint: advice for the error about a missing column.

    Raises:
        DataError: the file is damaged, lacks a column, or has a quoted field that never ends.
    """
    csv.field_size_limit(FIELD_CHARACTERS)
    rows = csv.reader(_with_end(path), delimiter=separator)
    line = 0
    try:
        first = next((row for row in rows if any(cell.strip() for cell in row)), [_END])
        if first == [_END]:
            raise DataError(f"{path}: is empty; give a file with a header and at least one row.")
        present = [name.strip() for name in first] if header else list(names or map(str, range(1, len(first) + 1)))
        place = _places(path, present, needed, columns, hint)
        width = len(present)
        kept: list[list[str]] = [[] for _ in place]
        yield polars.DataFrame(schema=dict.fromkeys(place, polars.String))
        pending = [] if header else [first]
        ended = False
        while not ended:
            row = pending.pop() if pending else next(rows, None)
            line = rows.line_num
            if row is None:
                raise DataError(f"{path}: a quoted field never ends; find the quote that is not closed.")
            ended = row == [_END]
            if not ended and len(row) != width:
                if not row or not any(cell.strip() for cell in row):
                    continue  # a blank line
                if len(row) > width and any(cell.strip() for cell in row[width:]):
                    repairs[TOO_MANY] = repairs.get(TOO_MANY, 0) + 1
                    continue
                if len(row) < width:
                    repairs[TOO_FEW] = repairs.get(TOO_FEW, 0) + 1
                    row = row + [""] * (width - len(row))
            if not ended:
                for cells, at in zip(kept, place.values(), strict=True):
                    cells.append(row[at])
            if kept[0] and (ended or len(kept[0]) == ROWS_AT_A_TIME):
                yield polars.DataFrame(dict(zip(place, kept, strict=True)), schema=dict.fromkeys(place, polars.String))
                kept = [[] for _ in place]
    except csv.Error as error:
        raise DataError(f"{path}: line {max(line, 1)}: cannot be read ({error}); is a quote not closed?") from None


def _with_end(path: Path) -> Iterator[str]:
    """The file's lines, then an end row. If the end row does not come out as a row, a quoted field never ended."""
    last = "\n"
    for last in read_lines(path):
        yield last
    yield f"{_END}\n" if last.endswith("\n") else f"\n{_END}\n"


def _places(
    path: Path, present: Sequence[str], needed: Mapping[str, str], columns: Mapping[str, str], hint: str
) -> dict[str, int]:
    """Index of each wanted column that the file has."""
    missing = [theirs for theirs in needed.values() if theirs not in present]
    if missing:
        shown = ", ".join(map(repr, present[:20])) + (", ..." if len(present) > 20 else "")
        raise DataError(f"{path}: has no column {', '.join(map(repr, missing))}; it has {shown}. {hint}")
    for theirs in columns.values():
        if list(present).count(theirs) > 1:
            raise DataError(f"{path}: has {list(present).count(theirs)} columns {theirs!r}; rename all but one.")
    return {ours: list(present).index(theirs) for ours, theirs in columns.items() if theirs in present}
