"""Ways to an LLM: any OpenAI-compatible endpoint, batch files, and a local GGUF file behind such an endpoint."""

import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self
from urllib.parse import urlsplit

from eimf.artifacts import write_text_atomic
from eimf.errors import LabelError
from eimf.options import is_variable
from eimf.semantics.labels import LabelCache, LabelRequest, Record, make_record, request_key
from eimf.semantics.prompts import SCHEMA, Prompt, shorten

if TYPE_CHECKING:  # an optional extra
    from openai import AsyncOpenAI

OPENAI = "https://api.openai.com/v1"
FORMATS = ("json_schema", "json_object", "text")
"""How the shape of a reply is asked for, strictest first."""


class Reply(NamedTuple):
    """What an LLM said."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    refused: bool = False
    """The endpoint itself calls it a refusal."""


class CallError(LabelError):
    """One call failed for good; others may still succeed. A plain LabelError means that none would."""


class EndpointError(CallError):
    """The endpoint could not be reached in any attempt."""


class Backend(Protocol):
    """Whoever answers prompts."""

    @property
    def model(self) -> str:
        """Name of the model: part of a reply's key in the label cache, as are `params`."""
        ...

    @property
    def params(self) -> Mapping[str, Any]:
        """Decoding parameters."""
        ...

    before_call: Callable[[], Awaitable[None]]
    """To be awaited before every call."""

    async def complete(self, prompt: Prompt) -> Reply:
        """Answer a prompt.

        Raises:
            CallError: no answer to this prompt.
            LabelError: no answer to any prompt, for example because the key is wrong.
        """
        ...

    async def close(self) -> None:
        """Let connections go; `complete` may be called again and opens new ones."""
        ...


def decoding_params(temperature: float = 0.0, max_tokens: int = 512) -> dict[str, Any]:
    """The decoding parameters as they enter the key of a reply."""
    return {"temperature": temperature, "max_tokens": max_tokens}


def chat_body(prompt: Prompt, model: str, params: Mapping[str, Any], form: str = FORMATS[0]) -> dict[str, Any]:
    """Body of a chat completion request."""
    messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
    body: dict[str, Any] = {"model": model, "messages": messages, **params}
    if form == "json_schema":
        schema = {"name": "interests", "strict": True, "schema": SCHEMA}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif form == "json_object":
        body["response_format"] = {"type": "json_object"}
    return body


async def _at_once() -> None:
    pass


class OpenAIBackend:
    """An OpenAI-compatible endpoint: OpenAI, vLLM, SGLang, Ollama, llama.cpp, ...

    Args:
        model: as the endpoint calls it.
        base_url: up to and with `/v1`.
        api_key_env: environment variable with the key. An endpoint other than OpenAI's may do without.
        temperature, max_tokens: decoding parameters.
        timeout: seconds for a whole reply.
        attempts: calls for one prompt before it counts as failed.
        backoff: the n-th retry waits a random time of up to `backoff * 2**n` seconds, `longest_wait` at most.
        longest_wait: seconds; a server that asks for a longer wait by Retry-After ends the run.

    Attributes:
        before_call: awaited before every call, retries too; `labelling.run` keeps its rate limit by it.

    Raises:
        LabelError: no key, no `openai` package, or no usable address.
    """

    def __init__(
        self,
        model: str,
        base_url: str = OPENAI,
        api_key_env: str = "OPENAI_API_KEY",
        *,
        temperature: float = 0.0,
        max_tokens: int = 512,
        timeout: float = 60.0,
        attempts: int = 6,
        backoff: float = 1.0,
        longest_wait: float = 120.0,
    ) -> None:
        self.model = model
        self.params = decoding_params(temperature, max_tokens)
        self.base_url = base_url
        self.api_key_env = api_key_env
        self.timeout = timeout
        self.attempts = attempts
        self.backoff = backoff
        self.longest_wait = longest_wait
        self.before_call: Callable[[], Awaitable[None]] = _at_once
        self._address = _address(base_url)
        if not is_variable(api_key_env):
            raise LabelError("api_key_env: must name an environment variable, such as OPENAI_API_KEY; it may be a key.")
        key = os.environ.get(api_key_env, "").strip()
        if not key and urlsplit(base_url).hostname == urlsplit(OPENAI).hostname:
            raise LabelError(
                f"{api_key_env}: not set; {self._address} needs a key: export {api_key_env}=..., or name a server of"
                " your own, such as llm.base_url=http://localhost:8000/v1, which may need none."
            )
        if not (key.isascii() and key.isprintable()):
            raise LabelError(f"{api_key_env}: holds characters that no key has; set it again.")
        if find_spec("openai") is None:
            raise LabelError("The package openai is missing; install it with: pip install 'eimf[llm]'")
        self._key = key or "none"
        self._client: AsyncOpenAI | None = None
        self._form = 0  # index in FORMATS of what the server is known to accept
        self._renamed: dict[str, str] = {}  # parameters that the server wants under another name, or not at all
        self._not_before = 0.0  # a server that asks one call to wait means all of them

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def complete(self, prompt: Prompt) -> Reply:
        import openai

        form, problem, unreachable = self._form, "", 0
        attempt = 0
        while attempt < self.attempts:
            while True:  # the rate limit last, or all calls that were told to wait would start at once
                await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
                await self.before_call()
                if time.monotonic() >= self._not_before:
                    break
            wait, renamed = None, dict(self._renamed)
            try:
                async with asyncio.timeout(self.timeout):
                    reply = await self._ask(prompt, FORMATS[form], renamed)
                self._form = max(self._form, form)
                return reply
            except (TimeoutError, openai.APITimeoutError) as error:
                problem = f"no answer within {self.timeout:g} s"
                unreachable += type(error.__cause__).__name__ == "ConnectTimeout"
            except openai.APIConnectionError as error:
                problem = f"connection failed ({type(error.__cause__).__name__})"
                unreachable += type(error.__cause__).__name__ == "ConnectError"
            except openai.APIStatusError as error:
                code, what = error.status_code, self._tell(error)
                if _is_filtered(error):
                    return Reply(what, refused=True)
                if code in (401, 403, 404):
                    raise LabelError(self._mend(code, what)) from None
                if code == 402 or (code == 429 and error.code == "insufficient_quota"):
                    raise LabelError(f"{self._address}: the account's quota is used up ({what}).") from None
                if code in (400, 422) and self._adapt(error, renamed):
                    continue  # the same attempt, with other parameters
                if code in (400, 422) and form + 1 < len(FORMATS):
                    form += 1
                    continue
                if code not in (408, 409, 429) and code < 500:
                    raise CallError(f"{self._address}: status {code}: {what}") from None
                problem = f"status {code}: {what}"
                wait = retry_after(error.response.headers.get("retry-after", ""))
            except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError):
                problem = "the reply is not a chat completion"  # HTML, half a JSON, JSON of another shape
            attempt += 1
            if wait is not None:  # means all calls, those of other prompts too
                if wait > self.longest_wait:
                    raise LabelError(
                        f"{self._address}: asks to wait {wait:.0f} s ({problem}). Stopped; finished labels are kept."
                    )
                self._not_before = max(self._not_before, time.monotonic() + wait)
            if attempt < self.attempts:
                await self._pause(attempt, wait)
        if unreachable == self.attempts:
            raise EndpointError(
                f"{self._address}: cannot be reached ({problem}, {self.attempts} attempts); is the server running?"
            )
        raise CallError(f"{self._address}: {problem} ({self.attempts} attempts)")

    async def _pause(self, attempt: int, wait: float | None) -> None:
        jitter = random.uniform(0.0, min(self.longest_wait, self.backoff * 2.0 ** (attempt - 1)))
        if wait:
            jitter = min(jitter, self.backoff)  # on top, so that not all come back at once
        await asyncio.sleep((wait or 0.0) + jitter)

    async def _ask(self, prompt: Prompt, form: str, renamed: Mapping[str, str]) -> Reply:
        from openai import AsyncOpenAI, Timeout

        if self._client is None:
            # Connecting has the shorter limit, so that a host that is not there is told from a slow model.
            timeout = Timeout(self.timeout, connect=min(10.0, 0.8 * self.timeout))
            self._client = AsyncOpenAI(api_key=self._key, base_url=self.base_url, max_retries=0, timeout=timeout)
        params = {renamed.get(name, name): value for name, value in self.params.items()}
        params.pop("", None)
        answer = await self._client.chat.completions.create(**chat_body(prompt, self.model, params, form))
        return self._redact_reply(read_completion(answer.model_dump(warnings=False)))

    def _adapt(self, error: Any, renamed: Mapping[str, str]) -> bool:
        """Rename or leave out a parameter that this server does not know; whether a call with `renamed` lacked it."""
        known = {"max_tokens": "max_completion_tokens", "temperature": ""}
        if error.param in known and error.param not in renamed:
            self._renamed[error.param] = known[error.param]
            return True
        return False

    def _mend(self, code: int, what: str) -> str:
        if code == 404:
            return f"{self._address}: status 404 for the model {self.model!r} ({what}); check base_url and model."
        return f"{self._address}: status {code}, the key in {self.api_key_env} is not accepted ({what})."

    def _tell(self, error: Any) -> str:
        body = error.body if isinstance(error.body, dict) else {}
        message = body.get("message") or error.response.reason_phrase or "no reason given"
        return shorten(self._redact(str(message)), 120)

    def _redact(self, text: str) -> str:
        # Some servers send back what they got.
        return text if self._key == "none" else text.replace(self._key, "***")

    def _redact_reply(self, reply: Reply) -> Reply:
        return reply._replace(text=self._redact(reply.text))


def read_completion(answer: Mapping[str, Any]) -> Reply:
    """The reply in a chat completion.

    Raises:
        TypeError, LookupError, ValueError: it is none.
    """
    choice = answer["choices"][0]
    message, usage = choice["message"], answer.get("usage") or {}
    text, refusal = message.get("content"), message.get("refusal")
    filtered = choice.get("finish_reason") == "content_filter"
    if not isinstance(text, str) and not refusal and not filtered:
        raise ValueError("no content")
    tokens = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
    return Reply(str(refusal or text or ""), *tokens, refused=bool(refusal) or filtered)


def _count(value: Any) -> int:
    """A number of tokens; whatever a server says, it costs no reply, and it fits the cache's column."""
    try:
        return min(max(int(value or 0), 0), 2**63 - 1)
    except (TypeError, ValueError, OverflowError):
        return 0


def retry_after(value: str) -> float | None:
    """Seconds that a Retry-After header asks to wait: it holds seconds or a date.

    >>> retry_after("1.5"), retry_after("soon")
    (1.5, None)
    """
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except (ValueError, TypeError, OverflowError):
            return None
        if moment.tzinfo is None:  # "-0000" instead of GMT
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds == seconds else None  # not a number


def _is_filtered(error: Any) -> bool:
    return error.status_code == 400 and error.code == "content_filter"


def _address(base_url: str) -> str:
    """The address for messages, without a password that may be in it."""
    try:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "") + parts.path
    except ValueError:
        raise LabelError("base_url: must look like http://127.0.0.1:8000/v1.") from None


@dataclass(frozen=True)
class BatchReport:
    """What became of the lines of a batch output."""

    counts: dict[str, int] = field(default_factory=dict)
    """Status -> number of requests that got it from this file."""
    repeated: int = 0
    """Lines whose reply the cache had already."""
    unknown: int = 0
    """Lines of other requests."""
    broken_lines: int = 0
    missing: int = 0
    """Requests without a reply, in this file or before."""


def export_batch(
    path: str | os.PathLike[str], requests: Sequence[LabelRequest], *, model: str, params: Mapping[str, Any]
) -> int:
    """Write requests as an input file of the OpenAI Batch API; returns the number of lines (one a prompt).

    Args:
        params: `decoding_params(...)`; with `model` they must be the same at import.
    """
    lines: dict[str, str] = {}
    for request in requests:
        key = request_key(request.prompt, model, params)
        body = chat_body(request.prompt, model, params)
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
        lines = Path(path).read_bytes().decode("utf-8-sig", "replace").split("\n")  # no other line ends
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
            records = [make_record(one, model, params, **outcome) for one in wanted[key]]
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


def _as_outcome(reply: Reply) -> dict[str, Any]:
    return reply._asdict()


def record_of(request: LabelRequest, backend: Backend, reply: Reply, seconds: float) -> Record:
    """The record of a backend's reply."""
    return make_record(request, backend.model, backend.params, **_as_outcome(reply), seconds=seconds)


class LocalServer:
    """llama.cpp's server in this process, for a GGUF file; a context manager. Needs the extra `local`.

    ```python
    with LocalServer("model.gguf") as server:
        backend = OpenAIBackend(server.model, server.base_url)
    ```

    Args:
        gguf: the model file.
        context: tokens of prompt and reply together, for each of `parallel` prompts at once.
        threads: 0 takes all cores that this process may use.

    Raises:
        LabelError: no such file, not a model, or the package is missing.
    """

    def __init__(
        self, gguf: str | os.PathLike[str], *, context: int = 4096, parallel: int = 1, threads: int = 0
    ) -> None:
        self.path = Path(gguf)
        self.model = self.path.stem
        self.context = context
        self.parallel = parallel
        self.threads = threads or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(4))
        self.base_url = ""
        self._server: Any = None

    def __enter__(self) -> Self:
        try:
            with self.path.open("rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise LabelError(f"{self.path}: cannot be read ({error.strerror}).") from None
        if magic != b"GGUF":
            raise LabelError(f"{self.path}: is not a GGUF file.")
        try:
            xllamacpp: Any = import_module("xllamacpp")  # untyped, and mostly not installed
        except ImportError:
            raise LabelError("The package xllamacpp is missing; install it with: pip install 'eimf[local]'") from None
        params = xllamacpp.CommonParams()
        params.model.path = str(self.path)
        params.model_alias = {self.model}
        params.hostnames = ["127.0.0.1"]
        params.port = 0  # any free one
        params.cors_origins = "http://127.0.0.1"  # no web page's script may use it
        params.n_ctx = self.context * self.parallel
        params.n_parallel = self.parallel
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self.threads
        params.verbosity = 1
        try:
            self._server = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            raise LabelError(f"{self.path}: llama.cpp cannot load it ({shorten(str(error))}).") from None
        self.base_url = f"{self._server.listening_address}/v1"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server = None  # its destructor stops it
        self.base_url = ""
