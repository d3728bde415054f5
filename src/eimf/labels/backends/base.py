"""The interface of LLM backends: prompts in, replies out."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

from eimf.core.errors import LabelError
from eimf.labels.label import LabelRequest, Record, make_record
from eimf.labels.prompts import Prompt


class Reply(NamedTuple):
    """A reply of an LLM."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    refused: bool = False
    """The endpoint marked it as a refusal."""
    cut: bool = False
    """It was cut off at the length limit (`llm.max_tokens`)."""


class CallError(LabelError):
    """A call failed in all attempts; other calls may succeed. A plain LabelError means that none can succeed."""


class EndpointError(CallError):
    """The endpoint could not be reached in any attempt."""


class Backend(Protocol):
    """Answers prompts."""

    @property
    def model(self) -> str:
        """Name of the model: part of a reply's key in the label cache, as are `params`."""
        ...

    @property
    def params(self) -> Mapping[str, Any]:
        """Decoding parameters."""
        ...

    before_call: Callable[[], Awaitable[None]]
    """A backend awaits it before every call."""

    async def complete(self, prompt: Prompt) -> Reply:
        """Answer a prompt.

        Raises:
            CallError: no answer to this prompt.
            LabelError: no answer to any prompt, for example because the key is wrong.
        """
        ...

    async def close(self) -> None:
        """Close all connections. `complete` may be called again; it opens new ones."""
        ...


def decoding_params(temperature: float = 0.0, max_tokens: int = 512) -> dict[str, Any]:
    """The decoding parameters that are part of a reply's key."""
    return {"temperature": temperature, "max_tokens": max_tokens}


def _as_outcome(reply: Reply) -> dict[str, Any]:
    return reply._asdict()


def record_of(request: LabelRequest, backend: Backend, reply: Reply, seconds: float) -> Record:
    """The record of a backend's reply."""
    return make_record(request, backend.model, backend.params, **_as_outcome(reply), seconds=seconds)
