"""Signals that are noted instead of acted on."""

import os
import signal
import threading

from eimf.core.signals import noting


def test_a_hangup_is_noted_and_the_handler_of_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGHUP)
    with noting("SIGHUP") as outer:
        with noting("SIGHUP") as inner:
            os.kill(os.getpid(), signal.SIGHUP)  # would end the process
        os.kill(os.getpid(), signal.SIGHUP)
    assert (inner, outer) == ([signal.SIGHUP], [signal.SIGHUP])
    assert signal.getsignal(signal.SIGHUP) == before


def test_nothing_is_noted_where_that_is_not_possible() -> None:
    found: list[list[int]] = []

    def note(name: str) -> None:
        with noting(name) as noted:
            found.append(noted)

    note("SIGNONE")
    thread = threading.Thread(target=note, args=("SIGHUP",))
    thread.start()
    thread.join()
    assert found == [[], []]
