"""Signals of the operating system."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def noting(name: str) -> Iterator[list[int]]:
    """Note a signal instead of acting on it, and yield the list that notes it.

    Args:
        name: such as `SIGHUP`, whose usual action ends the process. Nothing is noted where the system has no such
            signal, and in a thread other than the first.
    """
    noted: list[int] = []
    if not hasattr(signal, name) or threading.current_thread() is not threading.main_thread():
        yield noted
        return
    number = getattr(signal, name)
    before = signal.signal(number, lambda one, _: noted.append(one))
    try:
        yield noted
    finally:
        signal.signal(number, before or signal.SIG_DFL)
