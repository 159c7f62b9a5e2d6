"""What is said to whoever started the program."""

import math
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

QUIET_SECONDS = 10.0  # between plain lines, where there is no terminal


@contextmanager
def _unheard() -> Iterator[None]:
    """A terminal that is gone, or a log on a full disk, must not end a run."""
    with suppress(OSError, ValueError):  # ValueError: the stream is closed
        yield


class Terminal:
    """One line that is rewritten in a terminal; plain lines now and then elsewhere."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._shown = 0  # characters of the live line
        self._last = -math.inf
        self._lock = threading.RLock()  # a signal may speak while a line is being written

    def say(self, text: str) -> None:
        """A line that stays."""
        with self._lock, _unheard():
            self._last = time.monotonic()
            self._clear()
            print(text, file=self._stream, flush=True)

    def progress(self, *parts: str) -> None:
        """The live line, of as many parts as fit, the first ones first; elsewhere a plain line, but not too often."""
        with self._lock, _unheard():
            now = time.monotonic()
            if now - self._last < (0.2 if self._live else QUIET_SECONDS):
                return
            self._clear()
            text = ", ".join(parts)
            if self._live:  # a line that wraps could not be taken back
                columns = shutil.get_terminal_size().columns - 1
                while len(text) > columns and len(parts) > 1:
                    parts = parts[:-1]
                    text = ", ".join(parts)
                text = text[:columns]
            self._last = now
            self._shown = len(text) if self._live else 0
            self._stream.write(text if self._live else text + "\n")
            self._stream.flush()

    def clear(self) -> None:
        """Take the live line back."""
        with self._lock, _unheard():
            self._clear()
            self._stream.flush()

    def _clear(self) -> None:
        if self._shown:
            self._stream.write("\r" + " " * self._shown + "\r")
            self._shown = 0

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Say what takes long, and go on saying so while it does."""
        self.say(f"{text} ...")
        done = threading.Event()
        started = time.monotonic()

        def remind() -> None:
            while not done.wait(QUIET_SECONDS):
                self.say(f"{text} ... ({time.monotonic() - started:.0f} s)")

        thread = threading.Thread(target=remind, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def duration(seconds: float) -> str:
    minutes = max(0, round(seconds / 60))
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours / 24:.0f} days"
