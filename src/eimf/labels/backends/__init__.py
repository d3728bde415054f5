"""LLM backends, one file each.

To add one, write a class with a `Config`, `model_of(config)` and a context manager `open(config)` that yields a
`Backend`, and add a line to `eimf.config.components`.
"""

from eimf.config.components import BACKENDS
from eimf.labels.backends.base import Backend, CallError, EndpointError, Reply

__all__ = ["BACKENDS", "Backend", "CallError", "EndpointError", "Reply"]
