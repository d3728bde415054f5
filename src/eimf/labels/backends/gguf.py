"""Runs a GGUF file with llama.cpp's server, in this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eimf.config.schema import LLMConfig
from eimf.core.errors import ConfigError, LabelError
from eimf.core.options import option
from eimf.labels.backends.openai import OpenAIBackend
from eimf.labels.prompts import shorten


class LocalServer:
    """llama.cpp's server in this process, for a GGUF file; a context manager. Needs the extra `local`.

    ```python
    with LocalServer("model.gguf") as server:
        backend = OpenAIBackend(server.model, server.base_url)
    ```

    Args:
        gguf: the model file.
        context: most tokens of a prompt and its reply together.
        parallel: prompts that are answered at the same time.
        threads: 0 takes all cores that this process may use.

    Raises:
        LabelError: the file is missing or not a model, or the package is missing.
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
            xllamacpp: Any = import_module("xllamacpp")  # has no types, and is optional
        except ImportError:
            raise LabelError("The package xllamacpp is missing; install it with: pip install 'eimf[local]'") from None
        params = xllamacpp.CommonParams()
        params.model.path = str(self.path)
        params.model_alias = {self.model}
        params.hostnames = ["127.0.0.1"]
        params.port = 0  # any free port
        params.cors_origins = "http://127.0.0.1"  # scripts of web pages must not use the server
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
        self._server = None  # the destructor stops the server
        self.base_url = ""


@dataclass(frozen=True)
class GGUFConfig(LLMConfig):
    """Options of `llm.backend=gguf`."""

    backend: str = "gguf"
    gguf: str = ""
    """The model file."""
    timeout: float = option(60.0, low=0.1)
    """Seconds to wait for a reply."""
    attempts: int = option(6, low=1)
    """Calls for one user."""


class GGUFBackend:
    """Serves a GGUF file, one prompt at a time, and calls it as an OpenAI-compatible endpoint."""

    Config = GGUFConfig

    @classmethod
    @contextmanager
    def open(cls, config: GGUFConfig) -> Iterator[OpenAIBackend]:
        """The backend of a configuration. Its server stops at the end of the `with` block."""
        cls.model_of(config)
        with LocalServer(config.gguf) as server:
            yield OpenAIBackend(
                server.model,
                server.base_url,
                temperature=config.temperature,
                max_tokens=config.max_tokens,
                timeout=config.timeout,
                attempts=config.attempts,
            )

    @staticmethod
    def model_of(config: GGUFConfig) -> str:
        """Name of the model in the label cache.

        Raises:
            ConfigError: no file is named.
        """
        if not config.gguf:
            raise ConfigError("llm.gguf: is empty; name the model file, for example llm.gguf=model.gguf.")
        return Path(config.gguf).stem
