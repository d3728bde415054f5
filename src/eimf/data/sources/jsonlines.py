"""Reads large, possibly gzipped files of one record per line, in blocks of bounded memory."""

import ast
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars

from eimf.core.errors import DataError
from eimf.data.sources.lines import read_blocks

BROKEN = "lines that are neither JSON nor a Python literal (dropped)"


def read_records(path: Path, fields: Mapping[str, Any], repairs: dict[str, int]) -> polars.DataFrame:
    """Read the named fields of every record: strict JSON by a fast reader, Python literals line by line.

    Args:
        path: a `.json`, `.jsonl` file, with or without `.gz`.
        fields: field -> Polars type; a field that a record lacks is null.
        repairs: lines that are neither JSON nor a Python literal are counted here.

    Raises:
        DataError: the file is missing, not readable or empty.
    """
    blocks = [_parse_block(block, fields, repairs) for block in read_blocks(path) if block.strip()]
    if not blocks:
        raise DataError(f"{path}: is empty; download or export it again.")
    return polars.concat(blocks)


def _parse_block(block: bytes, fields: Mapping[str, Any], repairs: dict[str, int]) -> polars.DataFrame:
    try:
        parsed = polars.read_ndjson(io.BytesIO(block), schema=dict(fields)).select(fields.keys())
        if not _has_doubtful_texts(parsed):
            return parsed
    except (polars.exceptions.PolarsError, UnicodeDecodeError):
        pass
    # Some line is not strict JSON of these types: parse line by line.
    records = []
    for line in block.decode("utf-8", errors="replace").split("\n"):  # JSON texts may hold other line separators
        if not line.strip():
            continue
        record = _parse_line(line)
        if record is None:
            repairs[BROKEN] = repairs.get(BROKEN, 0) + 1
        else:
            records.append({name: _fit(record.get(name), kind) for name, kind in fields.items()})
    return polars.DataFrame(records, schema=dict(fields), orient="row")


def _has_doubtful_texts(parsed: polars.DataFrame) -> bool:
    """Whether a text may be none: Polars writes lists, objects and truth values as JSON, and half a surrogate as 0."""
    texts = parsed.select(polars.col(polars.String))
    doubtful = polars.all().str.contains(r"^(?:[\[{].*|true|false)$|\x00")
    return texts.width > 0 and bool(texts.select(polars.any_horizontal(doubtful.any())).item())


def _parse_line(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        try:
            record = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return record if isinstance(record, dict) else None


def _fit(value: Any, kind: Any) -> Any:
    """Convert a value to the field's type where that is safe; null otherwise."""
    if value is None:
        return None
    if kind == polars.String:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return None
        try:
            text = str(value)
        except ValueError:  # a number of more digits than Python writes
            return None
        return text.encode("utf-8", "replace").decode()  # half a surrogate pair could not be stored
    if kind in (polars.Int64, polars.Float64):
        try:
            return int(float(value)) if kind == polars.Int64 else float(value)
        except (TypeError, ValueError, OverflowError):
            return None
    inner = getattr(kind, "inner", None)
    if inner is not None:
        if isinstance(value, str):
            value = value.split("|") if value else []
        if isinstance(value, list) and value and isinstance(value[0], list) and inner == polars.String:
            value = value[0]  # several category paths: the first is the main one
        return [_fit(entry, inner) for entry in value] if isinstance(value, list) else None
    return None
