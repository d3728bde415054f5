"""Asking an LLM about typical users: bounded, resumable, one transaction for each reply."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from tqdm import tqdm

from eimf.artifacts import sha256_json, write_text_atomic
from eimf.data.sequences import Prepared
from eimf.data.splits import Spans
from eimf.errors import LabelError
from eimf.semantics.cache import LabelCache, Record, record_key
from eimf.semantics.llm import Backend, Reply, Unanswered
from eimf.semantics.prompts import PROMPT_VERSION, SCHEMA, Prompt, build_prompt, read_reply

GIVE_UP_AFTER = 5
"""Questions in a row that found nobody at the address before the run is stopped."""


class Question(NamedTuple):
    """What is asked about one user."""

    user_id: str
    history: tuple[str, ...]
    """Item ids that are shown, oldest first."""
    prompt: Prompt


@dataclass
class Summary:
    """What a run of questions came to."""

    statuses: Counter[str] = field(default_factory=Counter)
    """`ok`, `invalid`, `refused`, `failed`, and `known` for those that the cache had, or another process asks."""
    tokens_in: int = 0
    tokens_out: int = 0


def ask_about(prepared: Prepared, spans: Spans, users: Sequence[int], max_items: int) -> list[Question]:
    """Questions about users, from the most recent items of their training slices only.

    Args:
        users: user indices, each with a training slice.
        max_items: items that are shown.
    """
    place = {int(user): row for row, user in enumerate(spans.user_idx)}
    ids, titles = prepared.items["item_id"], prepared.items["title"]
    questions = []
    for user in users:
        start, end = int(spans.start[place[user]]), int(spans.end[place[user]])
        rows = (prepared.sequences.items[max(start, end - max_items) : end] - 1).astype(np.int64)
        shown = pl.Series(rows)
        prompt = build_prompt(titles[shown].to_list())
        questions.append(Question(prepared.user_ids[user], tuple(ids[shown].to_list()), prompt))
    return questions


async def ask_all(
    questions: Sequence[Question],
    backend: Backend,
    cache: LabelCache,
    *,
    concurrency: int = 8,
    per_minute: float = 0.0,
    retry: bool = False,
    show: bool = True,
) -> Summary:
    """Ask every question that the cache has no reply to. Can be stopped at any moment, and started again.

    Args:
        concurrency: questions under way at once.
        per_minute: most questions started in a minute; 0 is no limit.
        retry: ask again where an earlier reply was invalid or refused (failed ones always are).
        show: show progress.

    Raises:
        LabelError: no question can succeed (key, model, address), or the cache cannot be written.
    """
    summary, offline = Summary(), 0
    waiting = iter(questions)
    started = 0
    begin = time.monotonic()
    stop: LabelError | None = None

    async def work() -> None:
        nonlocal offline, started, stop
        for question in waiting:
            if stop is not None:
                return
            key = record_key(question.prompt, backend.model, backend.parameters)
            if not cache.claim(key, retry):
                summary.statuses["known"] += 1
                bar.update()
                continue
            if per_minute > 0:
                due = begin + started * 60 / per_minute
                started += 1
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            clock = time.monotonic()
            try:
                reply = await backend.complete(question.prompt)
            except Unanswered as error:
                offline = offline + 1 if error.offline else 0
                cache.put(_record(question, backend, key, None, str(error), time.monotonic() - clock))
                summary.statuses["failed"] += 1
                if offline >= GIVE_UP_AFTER:
                    stop = LabelError(f"{error}; {GIVE_UP_AFTER} questions in a row. Start the server, and run again.")
            except LabelError as error:
                cache.release(key)
                stop = stop or error
            except BaseException:
                cache.release(key)
                raise
            else:
                offline = 0
                record = _record(question, backend, key, reply, "", time.monotonic() - clock)
                cache.put(record)
                summary.statuses[record.status] += 1
                summary.tokens_in += reply.tokens_in
                summary.tokens_out += reply.tokens_out
            bar.update()
            bar.set_postfix({**summary.statuses, "tokens": summary.tokens_in + summary.tokens_out}, refresh=False)

    with tqdm(total=len(questions), unit="user", desc="labels", disable=not show, dynamic_ncols=True) as bar:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, concurrency)):
                group.create_task(work())
    if stop is not None:
        raise stop
    return summary


def _record(question: Question, backend: Backend, key: str, reply: Reply | None, reason: str, seconds: float) -> Record:
    if reply is None:
        status, interests = "failed", ()
    elif reply.refused:
        status, interests, reason = "refused", (), "the model refused"
    else:
        status, interests, reason = read_reply(reply.text, len(question.history))
    return Record(
        key=key,
        user_id=question.user_id,
        history=question.history,
        model=backend.model,
        prompt_version=PROMPT_VERSION,
        prompt_sha=sha256_json(list(question.prompt)),
        history_sha=sha256_json(list(question.history)),
        status=status,
        reason=reason,
        reply=reply.text if reply else "",
        interests=interests,
        tokens_in=reply.tokens_in if reply else 0,
        tokens_out=reply.tokens_out if reply else 0,
        seconds=seconds,
        created_at=time.time(),
    )


def preview(
    questions: Sequence[Question], price_in: float, price_out: float, seconds_each: float, concurrency: int
) -> str:
    """What a run would ask and cost: three prompts, calls, tokens (4 characters each), money, minutes.

    Args:
        price_in, price_out: of a million tokens.
        seconds_each: expected time of a call.
    """
    tokens_in = sum(len(one.prompt.system) + len(one.prompt.user) for one in questions) // 4
    tokens_out = 90 * len(questions)
    lines = []
    for number, one in enumerate(questions[:3], start=1):
        lines += [f"--- prompt {number} of {len(questions)}, user {one.user_id}", one.prompt.user]
    minutes = len(questions) * seconds_each / max(1, concurrency) / 60
    cost = (tokens_in * price_in + tokens_out * price_out) / 1e6
    lines += [
        "--- instruction, the same for all",
        questions[0].prompt.system if questions else "",
        "---",
        f"calls: {len(questions):,}   tokens in: about {tokens_in:,}   tokens out: about {tokens_out:,}",
        f"cost: about {cost:,.2f} at {price_in:g} in and {price_out:g} out a million tokens   "
        f"time: about {minutes:,.1f} minutes",
    ]
    return "\n".join(lines)


def export_batch(questions: Sequence[Question], model: str, parameters: dict[str, Any], path: Path) -> int:
    """Write questions as a file of OpenAI's Batch API; the key of each is its `custom_id`.

    Returns:
        Number of lines.
    """
    lines = []
    for one in questions:
        body = {
            "model": model,
            "messages": [
                {"role": "system", "content": one.prompt.system},
                {"role": "user", "content": one.prompt.user},
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "interests", "strict": True, "schema": SCHEMA},
            },
            **parameters,
        }
        key = record_key(one.prompt, model, parameters)
        row = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps(row, ensure_ascii=False))
    write_text_atomic(path, "".join(line + "\n" for line in lines))
    return len(lines)


class _Stored:
    """Stands for the model whose replies a batch file holds."""

    def __init__(self, model: str, parameters: dict[str, Any]) -> None:
        self.model, self.parameters = model, parameters

    async def complete(self, prompt: Prompt) -> Reply:
        raise Unanswered("a batch file answers no further questions")


def import_batch(
    questions: Sequence[Question], model: str, parameters: dict[str, Any], path: Path, cache: LabelCache
) -> Counter[str]:
    """Read the output of a batch: in any order, in parts, repeated.

    Returns:
        Counts by status, with `unknown` for lines about other questions and `broken` for lines that are no output.

    Raises:
        LabelError: the file cannot be read, or nothing in it belongs to these questions.
    """
    wanted = {record_key(one.prompt, model, parameters): one for one in questions}
    stored, counts = _Stored(model, parameters), Counter[str]()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path}: cannot be read ({error}).") from None
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
            key = row["custom_id"]
        except (ValueError, KeyError, TypeError, RecursionError):
            counts["broken"] += 1
            continue
        if key not in wanted:
            counts["unknown"] += 1
            continue
        try:
            body = row["response"]["body"]
            message, usage = body["choices"][0]["message"], body.get("usage") or {}
            text = message.get("content") or message.get("refusal") or ""
            tokens = (int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)))
            reply = Reply(text, *tokens, refused=bool(message.get("refusal")))
            record = _record(wanted[key], stored, key, reply, "", 0.0)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError):
            record = _record(wanted[key], stored, key, None, "the batch has an error for this user", 0.0)
        cache.put(record)
        counts[record.status] += 1
    if counts and set(counts) <= {"broken", "unknown"}:
        raise LabelError(
            f"{path}: none of its {counts.total()} lines belongs to these {len(questions)} questions ({dict(counts)}); "
            "import with the data set, settings and model that it was exported with."
        )
    return counts
