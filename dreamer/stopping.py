"""Ctrl-C: the first asks to stop, the second stops."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


class StoppedAtOnce(BaseException):
    """Somebody could not wait; the exit code. No SystemExit, which an environment's own code might have raised."""


def asking() -> list[signal.Signals]:
    """The signals by which somebody asks to stop; none where they do not arrive, in all threads but the main one."""
    if threading.current_thread() is not threading.main_thread():
        return []
    names = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        names.append(signal.SIGHUP)
    return names


@contextlib.contextmanager
def signals_given_back() -> Iterator[None]:
    """Afterwards the signals by which somebody asks to stop do what they did before."""
    before = {name: signal.getsignal(name) for name in asking()}
    try:
        yield
    finally:
        for name, handler in before.items():
            if handler is not None:  # nothing of Python's
                signal.signal(name, handler)


class StopSignal:
    """Ctrl-C, SIGTERM and a closed terminal ask whoever calls this to stop; a second one stops at once, by
    StoppedAtOnce, a third one without tidying up.

    Args:
        first: what is done before it stops, to be said.
    """

    def __init__(self, first: str):
        self.requested = 0  # the signal's number
        self._first = first
        for name in asking():
            signal.signal(name, self._ask)

    def __call__(self) -> bool:
        return self.requested > 0

    def _ask(self, number: int, frame: Any) -> None:
        if self.requested:
            signal.signal(number, lambda number, frame: os._exit(128 + number))
            raise StoppedAtOnce(128 + number)
        self.requested = number
        # Not by print, which the signal may have interrupted.
        with contextlib.suppress(OSError):
            os.write(2, f"\nStopping: {self._first}.\n".encode())
