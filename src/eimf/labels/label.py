"""Plain records: labels, and the replies that they come from."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from eimf.core.files import sha256_json
from eimf.labels.prompts import PROMPT_VERSION, Interest, Prompt, parse_reply, shorten


class LabelRequest(NamedTuple):
    """One user to label."""

    user_id: str
    history: tuple[str, ...]
    """Item ids shown in the prompt, oldest first."""
    prompt: Prompt


class Label(NamedTuple):
    """A user's explicit interests, as the rest of the program reads them."""

    user_id: str
    interests: tuple[Interest, ...]
    history: tuple[str, ...]
    """Item ids that the LLM saw; `Interest.items` are positions in it, from 1."""
    model: str
    prompt_version: str


@dataclass(frozen=True)
class Record:
    """One reply (or failure) for one user."""

    key: str
    """`request_key` of prompt, model and decoding parameters."""
    user_id: str
    history: tuple[str, ...]
    model: str
    status: str
    """One of STATUSES."""
    interests: tuple[Interest, ...] = ()
    reason: str = ""
    """Why the status is not ok, or what was corrected in the reply. One line."""
    raw: str = ""
    """The reply, unchanged."""
    prompt_version: str = PROMPT_VERSION
    prompt_sha: str = ""
    history_sha: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    """Decoding parameters."""
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    created_at: float = field(default_factory=time.time)
    """Unix seconds."""


def prompt_sha(prompt: Prompt) -> str:
    """SHA-256 of a prompt, as hex."""
    return sha256_json([prompt.system, prompt.user])


def request_key(prompt: Prompt, model: str, params: Mapping[str, Any]) -> str:
    """Key of a reply: SHA-256 over prompt, model and decoding parameters."""
    return sha256_json([prompt.system, prompt.user, model, dict(params)])


def make_record(
    request: LabelRequest,
    model: str,
    params: Mapping[str, Any],
    *,
    text: str = "",
    refused: bool = False,
    cut: bool = False,
    failure: str = "",
    tokens_in: int = 0,
    tokens_out: int = 0,
    seconds: float = 0.0,
) -> Record:
    """Make the record of a reply. If the call got no reply, `failure` says why."""
    text = text.encode("utf-8", "replace").decode()  # SQLite cannot store half a surrogate pair
    if failure:
        status, interests, reason = "failed", (), shorten(failure)
    else:
        status, interests, reason = parse_reply(text, len(request.history))
        if refused and status != "ok":
            status, reason = "refused", shorten(text) or "refused by the endpoint"
        elif cut and status != "ok":
            reason = f"{reason}; it was cut off at llm.max_tokens, which may be raised"
    return Record(
        key=request_key(request.prompt, model, params),
        user_id=request.user_id,
        history=request.history,
        model=model,
        status=status,
        interests=interests,
        reason=reason,
        raw=text,
        prompt_sha=prompt_sha(request.prompt),
        history_sha=sha256_json(request.history),
        params=dict(params),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        seconds=seconds,
    )


def newest_labels(labels: Iterable[Label]) -> list[Label]:
    """The newest label of every user.

    Args:
        labels: oldest first.
    """
    newest: dict[str, Label] = {}
    for label in labels:
        newest.pop(label.user_id, None)
        newest[label.user_id] = label
    return list(newest.values())


def adopt(record: Record, request: LabelRequest) -> Record:
    """Copy a reply to another user with the same prompt, at zero cost."""
    of_user = {"user_id": request.user_id, "history": request.history, "history_sha": sha256_json(request.history)}
    return replace(record, **of_user, tokens_in=0, tokens_out=0, seconds=0.0)


def _label(record: Record) -> Label:
    return Label(record.user_id, record.interests, record.history, record.model, record.prompt_version)
