"""Asks an LLM about many users concurrently, within a rate limit; can be stopped and resumed."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from eimf.core.errors import LabelError
from eimf.labels.backends.base import Backend, CallError, EndpointError, record_of
from eimf.labels.cache import LabelCache
from eimf.labels.label import LabelRequest, Record, adopt, make_record, request_key

AGAIN = frozenset({"failed"})


@dataclass
class Summary:
    """Counts of a labelling run."""

    requested: int = 0
    cached: int = 0
    """Prompts whose replies were in the cache before this run."""
    elsewhere: int = 0
    """Prompts that another process answered during this run."""
    ok: int = 0
    invalid: int = 0
    refused: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)
    """Status other than ok -> the reason of its first example."""

    def add(self, record: Record) -> None:
        """Count a record that this run made."""
        setattr(self, record.status, getattr(self, record.status) + 1)
        self.tokens_in += record.tokens_in
        self.tokens_out += record.tokens_out
        if record.status != "ok":
            self.reasons.setdefault(record.status, record.reason)

    def describe(self) -> str:
        """One line for the progress display."""
        counts = " ".join(f"{name} {getattr(self, name)}" for name in ("ok", "invalid", "refused", "failed"))
        return f"{counts} | tokens {self.tokens_in:,} in {self.tokens_out:,} out"


async def run(
    requests: Sequence[LabelRequest],
    backend: Backend,
    cache: LabelCache,
    *,
    concurrency: int = 8,
    rate_per_minute: float = 0.0,
    progress: bool = True,
    again: AbstractSet[str] = AGAIN,
    abort_after: int = 3,
    give_up_after: int = 10,
    poll: float = 0.5,
) -> Summary:
    """Label all users whose prompts have no reply in the cache yet.

    Each reply is stored in the cache as soon as it arrives, so a stopped run can be resumed. Several processes may
    use the same cache. A process does not ask a prompt that another one is asking; it waits for the reply.

    Args:
        concurrency: calls at the same time.
        rate_per_minute: most calls started per minute, retries included; 0 means no limit.
        progress: show a progress line on standard error.
        again: earlier records with these statuses are asked again.
        abort_after: stop after this many consecutive prompts for which the endpoint was unreachable.
        give_up_after: stop after this many failed prompts, if none has been answered.
        poll: seconds between checks of the prompts that other processes are asking.

    Raises:
        LabelError: no prompt can be answered, for example because of a wrong key, an unreachable endpoint or a full
            disk. Open calls are completed first, and their replies are stored, since they cost money.
    """
    by_key: dict[str, list[LabelRequest]] = {}
    for request in requests:
        by_key.setdefault(request_key(request.prompt, backend.model, backend.params), []).append(request)
    started = time.monotonic()
    todo, fresh = cache.pending(by_key, again), set(cache.pending(by_key, frozenset()))
    todo.sort(key=lambda key: key not in fresh)  # prompts that failed before come last: they may fail again
    summary = Summary(requested=len(by_key), cached=len(by_key) - len(todo))
    _adopt_cached(by_key, set(by_key).difference(todo), cache)
    job = _Job(
        by_key, deque(todo), fresh, backend, cache, summary, rate_per_minute, again, abort_after, give_up_after, poll
    )
    backend.before_call = job.take_turn
    # In a narrow terminal the counts wrap; nothing is cut off.
    columns = (
        BarColumn(bar_width=16),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[state]}", table_column=Column(overflow="fold")),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not progress or not todo) as bar:
        task = bar.add_task("labels", total=len(by_key), completed=summary.cached, state=summary.describe())
        job.show = lambda: bar.update(task, completed=len(by_key) - job.open, state=summary.describe())
        workers = [asyncio.create_task(job.work()) for _ in range(max(1, min(concurrency, len(todo))))]
        renewal = asyncio.create_task(job.keep_claims())
        try:
            await asyncio.gather(*workers)
            if job.fatal is not None:
                raise job.fatal
        finally:
            for background in (*workers, renewal):
                background.cancel()
            await asyncio.gather(*workers, renewal, return_exceptions=True)
            summary.seconds = time.monotonic() - started
            await backend.close()
            cache.release()
    return summary


def _adopt_cached(by_key: dict[str, list[LabelRequest]], keys: AbstractSet[str], cache: LabelCache) -> None:
    """Copy the stored replies of these keys to all users with the same prompt."""
    for key in keys:
        absent = [request for request in by_key[key] if cache.get(key, request.user_id) is None]
        record = cache.get(key) if absent else None
        if record is not None:
            cache.put(*(adopt(record, request) for request in absent))


class _Job:
    """State that the workers of a run share."""

    def __init__(
        self,
        by_key: dict[str, list[LabelRequest]],
        todo: deque[str],
        fresh: set[str],
        backend: Backend,
        cache: LabelCache,
        summary: Summary,
        rate_per_minute: float,
        again: AbstractSet[str],
        abort_after: int,
        give_up_after: int,
        poll: float,
    ) -> None:
        self.by_key = by_key
        self.todo = todo
        self.fresh = fresh
        self.backend = backend
        self.cache = cache
        self.summary = summary
        self.gap = 60.0 / rate_per_minute if rate_per_minute > 0 else 0.0
        self.again = again
        self.abort_after = abort_after
        self.give_up_after = give_up_after
        self.poll = poll
        self.open = len(todo)
        self.show = lambda: None
        self.fatal: LabelError | None = None
        """The error that stops all workers."""
        self._stopped = asyncio.Event()
        self._next_start = 0.0
        self._unreachable = 0
        self._answered = False
        self._fresh_failures = 0
        self._busy: set[str] = set()

    async def work(self) -> None:
        """Answer prompts until none is left, or none can be answered."""
        while self.todo and self.fatal is None:
            try:
                await self._take(self.todo.popleft())
            except LabelError as error:
                self.fatal = self.fatal or error
                self._stopped.set()

    async def _take(self, key: str) -> None:
        state = self.cache.claim(key, self.again)
        if state == "busy":
            self.todo.append(key)
            self._busy.add(key)
            if self._busy.issuperset(self.todo):  # other processes are asking all that is left
                await asyncio.sleep(self.poll)
            return
        self._busy.discard(key)
        if state == "mine":
            await self._answer(key)
        else:
            self.summary.elsewhere += 1
            _adopt_cached(self.by_key, {key}, self.cache)
        self.open -= 1
        self.show()

    async def _answer(self, key: str) -> None:
        first, *others = self.by_key[key]
        started = time.monotonic()
        try:
            reply = await self.backend.complete(first.prompt)
        except LabelError as error:
            if not isinstance(error, CallError):
                raise
            self._unreachable = self._unreachable + 1 if isinstance(error, EndpointError) else 0
            failure = str(error)
            record = self._failed(first, failure, started)
        except Exception as error:  # an error in a backend fails one prompt, not the run
            failure = f"unexpected {type(error).__name__}"
            record = self._failed(first, failure, started)
        else:
            failure = ""
            self._unreachable, self._answered = 0, True
            record = record_of(first, self.backend, reply, time.monotonic() - started)
        self.cache.put(record, *(adopt(record, request) for request in others))
        self.summary.add(record)
        if failure:
            self._judge(key, failure)

    def _failed(self, request: LabelRequest, reason: str, started: float) -> Record:
        seconds = time.monotonic() - started
        return make_record(request, self.backend.model, self.backend.params, failure=reason, seconds=seconds)

    def _judge(self, key: str, failure: str) -> None:
        """Stop the run if the failures so far show that other prompts will fail too.

        Raises:
            LabelError: they do.
        """
        self._fresh_failures += key in self.fresh
        if self._unreachable >= self.abort_after:
            raise LabelError(f"{failure} Stopped; finished labels are kept.")
        if not self._answered and self._fresh_failures >= self.give_up_after:
            reason = f"{self._fresh_failures} prompts failed, and none was answered before."
            raise LabelError(f"{failure}. {reason} Stopped; finished labels are kept.")

    async def take_turn(self) -> None:
        """Wait until the rate limit allows another call.

        Raises:
            LabelError: the run was stopped.
        """
        now = time.monotonic()
        self._next_start = max(self._next_start, now)
        wait = self._next_start - now
        self._next_start += self.gap
        if wait > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), wait)
        if self.fatal is not None:
            raise self.fatal

    async def keep_claims(self) -> None:
        """Renew the claims of calls that take longer than the lease."""
        while True:
            await asyncio.sleep(self.cache.lease / 4)
            with contextlib.suppress(LabelError):  # the disk is busy or full; the next try may be in time
                self.cache.renew()


def preview(
    requests: Sequence[LabelRequest],
    *,
    price_in: float = 0.0,
    price_out: float = 0.0,
    seconds_per_call: float = 3.0,
    tokens_out: int = 120,
    concurrency: int = 8,
    rate_per_minute: float = 0.0,
    done: int = 0,
) -> str:
    """Describe the prompts and the cost of a run, without any call.

    Args:
        requests: those without a reply in the cache.
        price_in, price_out: per million tokens.
        seconds_per_call, tokens_out: expected for one reply.
        done: number of requests whose replies are in the cache already.
    """
    prompts = list(dict.fromkeys(request.prompt for request in requests))
    calls = len(prompts)
    # OpenAI's rule of thumb for English: four characters per token. System prompt and user prompt both count.
    tokens_in = sum(len(prompt.system) + len(prompt.user) for prompt in prompts) // 4
    total_out = calls * tokens_out
    cost = (tokens_in * price_in + total_out * price_out) / 1e6
    minutes = calls * seconds_per_call / max(1, concurrency) / 60
    if rate_per_minute > 0:
        minutes = max(minutes, calls / rate_per_minute)
    parts = [f"--- system prompt\n{prompts[0].system}"] if prompts else []
    parts += [f"--- prompt {number} of {calls}\n{prompt.user}" for number, prompt in enumerate(prompts[:3], 1)]
    parts.append(
        f"--- nothing was sent\ncalls      {calls:,} ({done:,} more are in the cache)\n"
        f"tokens in  about {tokens_in:,}\ntokens out about {total_out:,}\n"
        f"cost       about {cost:,.2f} at {price_in:g} in and {price_out:g} out for a million tokens\n"
        f"time       about {minutes:,.1f} minutes"
    )
    return "\n".join(parts)
