"""Input and output files of the OpenAI Batch API."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eimf.core.errors import LabelError
from eimf.core.files import write_text_atomic
from eimf.labels.backends.base import _as_outcome
from eimf.labels.backends.openai import adapt_params, chat_body, read_completion
from eimf.labels.cache import LabelCache
from eimf.labels.label import LabelRequest, make_record, request_key


@dataclass(frozen=True)
class BatchReport:
    """Counts of the lines of a batch output, by result."""

    counts: dict[str, int] = field(default_factory=dict)
    """Status -> number of requests with this status in the file."""
    repeated: int = 0
    """Lines whose reply the cache already had."""
    unknown: int = 0
    """Lines that belong to other requests."""
    broken_lines: int = 0
    missing: int = 0
    """Requests that still have no reply."""


def export_batch(
    path: str | os.PathLike[str], requests: Sequence[LabelRequest], *, model: str, params: Mapping[str, Any]
) -> int:
    """Write requests as an input file of the OpenAI Batch API; returns the number of lines (one per prompt).

    Args:
        params: from `decoding_params(...)`. `model` and `params` must be the same at import.
    """
    lines: dict[str, str] = {}
    for request in requests:
        key = request_key(request.prompt, model, params)
        body = chat_body(request.prompt, model, adapt_params(model, params))
        line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines[key] = json.dumps(line, ensure_ascii=False)
    write_text_atomic(Path(path), "".join(f"{line}\n" for line in lines.values()))
    return len(lines)


def import_batch(
    path: str | os.PathLike[str],
    cache: LabelCache,
    requests: Sequence[LabelRequest],
    *,
    model: str,
    params: Mapping[str, Any],
) -> BatchReport:
    """Read an output or error file of the OpenAI Batch API into the cache: in any order, partial or repeated.

    Raises:
        LabelError: the file cannot be read, or none of its lines belongs to these requests.
    """
    wanted: dict[str, list[LabelRequest]] = {}
    for request in requests:
        wanted.setdefault(request_key(request.prompt, model, params), []).append(request)
    counts: dict[str, int] = {}
    repeated = unknown = broken = 0
    pending = set(cache.pending(wanted))
    try:
        lines = (
            Path(path).read_bytes().decode("utf-8-sig", "replace").split("\n")
        )  # splitlines() would split at more characters
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror}).") from None
    for line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            key = value["custom_id"]
            if not isinstance(key, str):
                raise TypeError("custom_id is no string")
            outcome = _batch_outcome(value)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            broken += 1
            continue
        if key not in wanted:
            unknown += 1
        elif key not in pending:
            repeated += 1
        else:
            records = [make_record(request, model, params, **outcome) for request in wanted[key]]
            cache.put(*records)
            counts[records[0].status] = counts.get(records[0].status, 0) + 1
            if records[0].status != "failed":
                pending.discard(key)
    if not counts and not repeated:
        raise LabelError(
            f"{path}: no line belongs to these requests ({unknown} of others, {broken} broken); "
            "it must be the output for the file exported with the same users, model and parameters."
        )
    return BatchReport(counts, repeated, unknown, broken, len(pending))


def _batch_outcome(line: Mapping[str, Any]) -> dict[str, Any]:
    response, error = line.get("response"), line.get("error")
    if response and response.get("status_code") == 200:
        try:
            return _as_outcome(read_completion(response["body"]))
        except (ValueError, TypeError, LookupError, AttributeError):
            return {"failure": "the reply is not a chat completion"}
    if response:
        error = (response.get("body") or {}).get("error") or {"message": f"status {response.get('status_code')}"}
    if not error:
        raise ValueError("neither response nor error")
    return {"failure": str(error.get("message") or error.get("code") or "failed")}
