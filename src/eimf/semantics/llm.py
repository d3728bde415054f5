"""LLM backends: a prompt in, a reply out. The only place that talks to a network.

Any server with OpenAI's chat completions serves: OpenAI, vLLM, SGLang, Ollama, llama.cpp.
"""

import asyncio
import email.utils
import os
import random
import time
from typing import Any, NamedTuple, Protocol

from eimf.errors import LabelError
from eimf.semantics.prompts import SCHEMA, Prompt

OPENAI = "https://api.openai.com/v1"
RETRIED = (408, 409, 429, 500, 502, 503, 504, 529)


class Reply(NamedTuple):
    """What a model said."""

    text: str
    tokens_in: int
    tokens_out: int
    refused: bool = False


class Unanswered(Exception):  # noqa: N818 (a fact about a question, not a fault of the program)
    """One question got no reply after all attempts; others may.

    Attributes:
        offline: nothing answered at the address.
    """

    def __init__(self, reason: str, offline: bool = False) -> None:
        super().__init__(reason)
        self.offline = offline


class Backend(Protocol):
    """Anything that can answer a prompt."""

    model: str
    parameters: dict[str, Any]
    """Decoding parameters: part of a reply's identity."""

    async def complete(self, prompt: Prompt) -> Reply:
        """Answer one prompt.

        Raises:
            Unanswered: this question failed.
            LabelError: no question can succeed: the key is wrong, the model unknown.
        """
        ...


_FORMATS: list[dict[str, Any] | None] = [
    {"type": "json_schema", "json_schema": {"name": "interests", "strict": True, "schema": SCHEMA}},
    {"type": "json_object"},
    None,
]
"""Ways to ask for JSON, the strictest first; a server that knows one of them not is asked in the next."""


class OpenAIBackend:
    """A server with OpenAI's chat completions.

    Args:
        model: its name on the server.
        base_url: address up to and with `/v1`.
        key_variable: environment variable that holds the API key. Servers other than OpenAI's may need none.
        temperature, max_tokens: decoding parameters.
        timeout: seconds to wait for a reply.
        attempts: for one prompt, the first included.
        backoff: seconds before the second attempt, doubled for each further one, with full jitter.

    Raises:
        LabelError: the client library or the key is missing.
    """

    def __init__(
        self,
        model: str,
        base_url: str = OPENAI,
        key_variable: str = "OPENAI_API_KEY",
        temperature: float = 0.0,
        max_tokens: int = 512,
        timeout: float = 60.0,
        attempts: int = 6,
        backoff: float = 1.0,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise LabelError("openai: the client library is not installed; pip install 'eimf[llm]'.") from None
        key = os.environ.get(key_variable, "").strip()
        if not key and base_url.rstrip("/") == OPENAI:
            raise LabelError(f"{key_variable}: is not set; put the API key into this environment variable.")
        self._errors = openai
        self._key_variable = key_variable
        # Retries are ours: the library's do not tell a refused connection from a busy server.
        self._client = openai.AsyncOpenAI(api_key=key or "none", base_url=base_url, timeout=timeout, max_retries=0)
        self.model, self.address = model, base_url
        self.parameters = {"temperature": temperature, "max_tokens": max_tokens}
        self._attempts, self._backoff, self._format = attempts, backoff, 0

    async def complete(self, prompt: Prompt) -> Reply:
        reason, offline, attempt = "", False, 0
        while attempt < self._attempts:
            used = self._format
            try:
                return await self._ask(prompt, _FORMATS[used])
            except self._errors.BadRequestError as error:
                if used + 1 < len(_FORMATS):
                    self._format = max(self._format, used + 1)  # not an attempt: another way to ask
                    continue
                raise Unanswered(f"the server refuses the request: {_short(error)}") from None
            except (self._errors.AuthenticationError, self._errors.PermissionDeniedError):
                raise LabelError(f"{self.address}: refuses the key in {self._key_variable}; correct it.") from None
            except self._errors.NotFoundError:
                raise LabelError(f"{self.address}: knows no model {self.model!r}, or is no /v1 address.") from None
            except self._errors.APIStatusError as error:
                if error.status_code not in RETRIED:
                    raise Unanswered(f"HTTP {error.status_code}") from None
                reason, offline = f"HTTP {error.status_code}", False
                pause = _retry_after(error.response.headers.get("retry-after"))
            except self._errors.APITimeoutError:
                reason, offline, pause = "no reply in time", False, None
            except self._errors.APIConnectionError:
                reason, offline, pause = f"nothing answers at {self.address}", True, None
            except (self._errors.APIError, ValueError, TypeError, AttributeError):
                # HTML, half a JSON, JSON of another shape: the library fails on them in various ways.
                reason, offline, pause = "the server's answer is no chat completion", False, None
            attempt += 1
            if attempt < self._attempts:
                jitter = random.random() * self._backoff * 2 ** (attempt - 1)  # full jitter spreads many clients
                await asyncio.sleep(jitter if pause is None else pause)
        raise Unanswered(reason, offline)

    async def _ask(self, prompt: Prompt, response_format: dict[str, Any] | None) -> Reply:
        extra: dict[str, Any] = {"response_format": response_format} if response_format else {}
        answer = await self._client.chat.completions.create(
            model=self.model,
            messages=[{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}],
            **self.parameters,
            **extra,
        )
        message = answer.choices[0].message
        usage = getattr(answer, "usage", None)
        return Reply(
            message.content or getattr(message, "refusal", None) or "",
            int(getattr(usage, "prompt_tokens", 0) or 0),
            int(getattr(usage, "completion_tokens", 0) or 0),
            refused=bool(getattr(message, "refusal", None)),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def _short(error: Exception) -> str:
    """The first words of a server's message; it never holds a request header."""
    return " ".join(str(error).split())[:120]


def _retry_after(value: str | None) -> float | None:
    """Seconds that a server asks to wait: a number or an HTTP date; None where it does not say."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except (ValueError, TypeError):
            return None
