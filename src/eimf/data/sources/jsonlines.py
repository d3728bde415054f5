"""Large, possibly gzipped files of one record a line, read in blocks of bounded memory."""

import ast
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import polars
from tqdm import tqdm

from eimf.core.errors import DataError

BLOCK_BYTES = 32 * 2**20


def read_records(path: Path, fields: Mapping[str, Any], repairs: dict[str, int]) -> polars.DataFrame:
    """Read the named fields of every record; strict JSON goes the fast way, Python literals the slow one.

    Args:
        path: a `.json`, `.jsonl` file, with or without `.gz`.
        fields: field -> Polars type; a field that a record lacks is null.
        repairs: lines that are neither JSON nor a Python literal are counted here.

    Raises:
        DataError: the file is missing, not readable or empty.
    """
    blocks = [_parse_block(block, fields, repairs) for block in _blocks(path)]
    if not blocks:
        raise DataError(f"{path}: is empty; download or export it again.")
    return polars.concat(blocks)


def _blocks(path: Path) -> Iterator[bytes]:
    """Blocks of whole lines."""
    try:
        with path.open("rb") as raw:
            stream = cast(IO[bytes], gzip.open(raw)) if path.suffix == ".gz" else raw  # noqa: SIM115 (closes with raw)
            size = path.stat().st_size
            with tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=size < BLOCK_BYTES) as progress:
                while block := stream.read(BLOCK_BYTES):
                    block += stream.readline()
                    if block.strip():
                        yield block
                    progress.update(raw.tell() - progress.n)  # compressed bytes, as the total
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); download or export it again.") from None


def _parse_block(block: bytes, fields: Mapping[str, Any], repairs: dict[str, int]) -> polars.DataFrame:
    try:
        return polars.read_ndjson(io.BytesIO(block), schema=dict(fields)).select(fields.keys())
    except (polars.exceptions.PolarsError, UnicodeDecodeError):
        # Some line is no strict JSON of these types. Find out which, one by one.
        records = []
        for line in block.decode("utf-8", errors="replace").splitlines():
            if not line.strip():
                continue
            record = _parse_line(line)
            if record is None:
                repairs["lines that are neither JSON nor a Python literal (dropped)"] = (
                    repairs.get("lines that are neither JSON nor a Python literal (dropped)", 0) + 1
                )
            else:
                records.append({name: _fit(record.get(name), kind) for name, kind in fields.items()})
        return polars.DataFrame(records, schema=dict(fields), orient="row")


def _parse_line(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        try:
            record = ast.literal_eval(line)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return record if isinstance(record, dict) else None


def _fit(value: Any, kind: Any) -> Any:
    """Bring a value to the field's type where that is harmless; null otherwise."""
    if value is None:
        return None
    if kind == polars.String:
        return str(value) if isinstance(value, str | int | float) else None
    if kind in (polars.Int64, polars.Float64):
        try:
            return int(float(value)) if kind == polars.Int64 else float(value)
        except (TypeError, ValueError, OverflowError):
            return None
    inner = getattr(kind, "inner", None)
    if inner is not None:
        return [_fit(entry, inner) for entry in value] if isinstance(value, list) else None
    return None
