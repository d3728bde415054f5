"""Any OpenAI-compatible endpoint: OpenAI, vLLM, SGLang, Ollama, llama.cpp, ..."""

import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from eimf.config.schema import LLMConfig
from eimf.core.errors import ConfigError, LabelError
from eimf.core.options import is_variable, option
from eimf.labels.backends.base import CallError, EndpointError, Reply, decoding_params
from eimf.labels.prompts import SCHEMA, Prompt, shorten

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPENAI = "https://api.openai.com/v1"


REPLY_BYTES = 2**20
"""Longest reply in bytes. A longer one counts as a failed call."""
MOST_TOKENS = 10_000_000
"""Largest plausible count of tokens. A larger one is read as 0."""
FORMATS = ("json_schema", "json_object", "text")
"""Ways to request the format of a reply, strictest first."""


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


@dataclass(frozen=True)
class OpenAIConfig(LLMConfig):
    """Options of `llm.backend=openai`."""

    base_url: str = OPENAI
    """Address up to and with `/v1`."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; servers of one's own may need none."""
    timeout: float = option(60.0, low=0.1)
    """Seconds to wait for a reply."""
    attempts: int = option(6, low=1)
    """Calls for one user, with exponential back-off."""
    concurrency: int = option(8, low=1)
    """Calls at the same time."""
    per_minute: float = option(0.0, low=0.0)
    """Most calls started in a minute, retries too; 0 is no limit."""


class _BrokenError(Exception):
    """The connection broke while a reply was read."""


class OpenAIBackend:
    """An OpenAI-compatible endpoint.

    Args:
        model: name of the model at the endpoint.
        base_url: up to and with `/v1`.
        api_key_env: environment variable with the key. Only OpenAI's endpoint needs one.
        temperature, max_tokens: decoding parameters.
        timeout: seconds for a whole reply.
        attempts: calls for one prompt before it counts as failed.
        backoff: the n-th retry waits a random time of up to `backoff * 2**n` seconds, `longest_wait` at most.
        longest_wait: in seconds. If a server asks for a longer wait (Retry-After), the run stops.

    Attributes:
        before_call: awaited before every call, retries included; `eimf.labels.asking.run` limits the rate with it.

    Raises:
        LabelError: no key, no `openai` package, or no usable address.
    """

    Config = OpenAIConfig

    @classmethod
    @contextmanager
    def open(cls, config: OpenAIConfig) -> "Iterator[OpenAIBackend]":
        """The backend of a configuration."""
        yield cls(
            cls.model_of(config),
            config.base_url,
            config.key_variable,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            timeout=config.timeout,
            attempts=config.attempts,
        )

    @staticmethod
    def model_of(config: OpenAIConfig) -> str:
        """Name of the model.

        Raises:
            ConfigError: it is not set.
        """
        if not config.model:
            raise ConfigError(
                "llm.model: is empty; name the model, for example llm.model=gpt-5-mini, and llm.base_url=... of its "
                "server."
            )
        return config.model

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
        self._form = 0  # index in FORMATS: the server accepts none of the earlier ones
        self._renamed: dict[str, str] = {}  # parameter -> its name at the server; empty: do not send it
        self._not_before = 0.0  # if the server asks one call to wait, all calls wait

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def complete(self, prompt: Prompt) -> Reply:
        import openai

        form, problem, unreachable = self._form, "", 0
        attempt = 0
        while attempt < self.attempts:
            # Check the rate limit after the server's wait. Otherwise all waiting calls would start together.
            while True:
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
            except _BrokenError as error:
                problem = f"connection failed ({error})"
            except openai.APIConnectionError as error:
                problem = f"connection failed ({type(error.__cause__).__name__})"
                unreachable += type(error.__cause__).__name__ == "ConnectError"
            except openai.APIStatusError as error:
                code, message = error.status_code, self._message_of(error)
                if _is_filtered(error):
                    return Reply(message, refused=True)
                if code in (401, 403, 404):
                    raise LabelError(self._explain(code, message)) from None
                if code == 402 or (code == 429 and error.code == "insufficient_quota"):
                    raise LabelError(f"{self._address}: the account's quota is used up ({message}).") from None
                if code in (400, 422) and self._adapt(error, renamed):
                    continue  # with other parameters; this does not count as an attempt
                if code in (400, 422) and form + 1 < len(FORMATS):
                    form += 1
                    continue
                if code not in (408, 409, 429) and code < 500:
                    raise CallError(f"{self._address}: status {code}: {message}") from None
                problem = f"status {code}: {message}"
                wait = retry_after(error.response.headers.get("retry-after", ""))
            except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError):
                problem = "the reply is not a chat completion"  # HTML, incomplete JSON, or JSON of another shape
            attempt += 1
            if wait is not None:  # all calls wait, also those for other prompts
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
            jitter = min(jitter, self.backoff)  # added to the wait, so that the calls do not restart together
        await asyncio.sleep((wait or 0.0) + jitter)

    async def _ask(self, prompt: Prompt, form: str, renamed: Mapping[str, str]) -> Reply:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        if self._client is None:
            # A shorter limit for connecting distinguishes an unreachable host from a slow model.
            timeout = Timeout(self.timeout, connect=min(10.0, 0.8 * self.timeout))
            # A redirect could send users' data to another host.
            http = DefaultAsyncHttpxClient(follow_redirects=False, timeout=timeout)
            self._client = AsyncOpenAI(
                api_key=self._key, base_url=self.base_url, max_retries=0, timeout=timeout, http_client=http
            )
        params = {renamed.get(name, name): value for name, value in self.params.items()}
        params.pop("", None)
        call = self._client.chat.completions.with_streaming_response.create
        async with call(**chat_body(prompt, self.model, params, form)) as response:
            content = await self._read(response)
        return self._redact_reply(read_completion(json.loads(content)))

    async def _read(self, response: Any) -> bytes:
        """The body of a reply. It is decompressed in parts, since a small compressed reply may be huge.

        Raises:
            CallError: the reply is too long.
        """
        content = bytearray()
        try:
            async for part in response.iter_bytes():
                content += part
                if len(content) > REPLY_BYTES:
                    raise CallError(f"{self._address}: the reply is longer than {REPLY_BYTES:,} bytes")
        except (CallError, TimeoutError):
            raise
        except Exception as error:  # an error of the HTTP library that openai uses
            if "Timeout" in type(error).__name__:
                raise TimeoutError from None
            raise _BrokenError(type(error).__name__) from None
        return bytes(content)

    def _adapt(self, error: Any, renamed: Mapping[str, str]) -> bool:
        """Rename or omit a parameter that this server rejects. True if that changes the call made with `renamed`."""
        known = {"max_tokens": "max_completion_tokens", "temperature": ""}
        if error.param in known and error.param not in renamed:
            self._renamed[error.param] = known[error.param]
            return True
        return False

    def _explain(self, code: int, message: str) -> str:
        if code == 404:
            return f"{self._address}: status 404 for the model {self.model!r} ({message}); check base_url and model."
        return f"{self._address}: status {code}, the key in {self.api_key_env} is not accepted ({message})."

    def _message_of(self, error: Any) -> str:
        body = error.body if isinstance(error.body, dict) else {}
        message = body.get("message") or error.response.reason_phrase or "no reason given"
        return shorten(self._redact(str(message)), 120)

    def _redact(self, text: str) -> str:
        # Some servers repeat the key in their replies.
        return text if self._key == "none" else text.replace(self._key, "***")

    def _redact_reply(self, reply: Reply) -> Reply:
        return reply._replace(text=self._redact(reply.text))


def read_completion(answer: Mapping[str, Any]) -> Reply:
    """The reply in a chat completion.

    Raises:
        TypeError, LookupError, ValueError: `answer` is not a chat completion.
    """
    choice = answer["choices"][0]
    message, usage = choice["message"], answer.get("usage") or {}
    text, refusal = message.get("content"), message.get("refusal")
    filtered = choice.get("finish_reason") == "content_filter"
    if not isinstance(text, str) and not refusal and not filtered:
        raise ValueError("no content")
    tokens = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
    cut = choice.get("finish_reason") == "length"
    return Reply(str(refusal or text or ""), *tokens, refused=bool(refusal) or filtered, cut=cut)


def _count(value: Any) -> int:
    """A number of tokens, or 0 if it is not plausible. A wrong count must not lose a reply."""
    try:
        count = int(value or 0)
        return count if 0 <= count <= MOST_TOKENS else 0
    except (TypeError, ValueError, OverflowError):
        return 0


def retry_after(value: str) -> float | None:
    """Seconds to wait, from a Retry-After header, which holds seconds or a date.

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
    return max(0.0, seconds) if seconds == seconds else None  # NaN does not equal itself


def adapt_params(model: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Decoding parameters under the names that a model accepts. OpenAI's reasoning models accept no temperature.

    A batch file needs the right names from the start. `OpenAIBackend` learns them from the server's errors.
    """
    name = model.rpartition("/")[2]
    if not name.startswith(("o1", "o3", "o4", "gpt-5")):
        return dict(params)
    kept = {key: value for key, value in params.items() if key != "temperature"}
    return {"max_completion_tokens" if key == "max_tokens" else key: value for key, value in kept.items()}


def _is_filtered(error: Any) -> bool:
    return error.status_code == 400 and error.code == "content_filter"


def _address(base_url: str) -> str:
    """The address for messages, without user name and password."""
    try:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "") + parts.path
    except ValueError:
        raise LabelError("base_url: must look like http://127.0.0.1:8000/v1.") from None
