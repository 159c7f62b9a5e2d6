"""What keeps a long run going: checkpoints that may fail, environments that are made anew."""

import contextlib
import time
import traceback
from collections.abc import Callable
from typing import Any

from . import snapshot
from .acting import Memory
from .agent import Agent
from .checkpoint import CheckpointError, RunFolder
from .config import Config
from .cuda import finish
from .logger import Logger
from .loop import Counters
from .replay import Replay
from .terminal import Terminal


class Saver:
    """Writes checkpoints (`loop.Saver`). One that cannot be written is said, and tried again.

    Args: what a checkpoint is made of, where it goes, and how often.
    """

    RETRY_SECONDS = 60.0
    MOST_TRIES = 600  # at the end of a run: ten hours

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        terminal: Terminal,
        agent: Agent,
        replay: Replay,
        counters: Counters,
        logger: Logger,
        environments: Any,
    ):
        self._folder, self._terminal = folder, terminal
        self._agent, self._replay, self._counters = agent, replay, counters
        self._logger, self._environments = logger, environments
        self._seconds = config.run.checkpoint_seconds
        self._next = time.monotonic() + self._seconds
        self._error: OSError | None = None
        self._memory: Memory | None = None
        self._said = False  # that open episodes cannot be saved

    def due(self) -> bool:
        return time.monotonic() > self._next

    def save(self, memory: Memory | None) -> None:
        """Raises CheckpointError if what was learned cannot be used any more."""
        self._memory = memory
        finish(self._agent.device)
        if not self._agent.is_finite():
            raise CheckpointError("the weights are not finite, so they are not saved; the last checkpoint stays")
        self._logger.flush(self._counters)  # so that the curves of a run that goes on from here miss nothing
        self._logger.sync()
        try:
            self._folder.save(self._state(memory), self._replay)
            self._error = None
        except OSError as error:
            self._error = error
            self._terminal.say(
                f"Cannot save a checkpoint in {self._folder.path} ({error.strerror}); the last one stays, and the next "
                f"try is in {self.RETRY_SECONDS:.0f} s"
            )
        self._next = time.monotonic() + (self.RETRY_SECONDS if self._error else self._seconds)

    def _state(self, memory: Memory | None) -> dict[str, Any]:
        parts = self._agent, self._replay, self._counters, self._logger, self._environments
        try:
            return snapshot.take(*parts, memory)
        except snapshot.EpisodesLost as error:
            if not self._said:
                self._terminal.say(f"Checkpoints cannot hold the open episodes: {str(error).rstrip('.')}")
            self._said = True
            return snapshot.take(*parts, None)

    def finish(self, stopped: Callable[[], bool]) -> None:
        """Try to save the end of the run until it works, or until somebody gives up.

        Raises:
            CheckpointError: it could not be saved.
        """
        tries, asked = 0, stopped()  # who has asked for this end has not given it up; to ask again ends it at once
        while self._error and (asked or not stopped()) and tries < self.MOST_TRIES:
            if self.due():
                tries += 1
                self.save(self._memory)
            else:
                time.sleep(min(1.0, self.RETRY_SECONDS))
        if self._error:
            raise CheckpointError(
                f"the end of the run could not be saved in {self._folder.path} ({self._error.strerror}); make room, or "
                "give back the permission, and run the same command again: it goes on from the last checkpoint"
            )


class Restarts:
    """Says that an environment failed and is made anew, and keeps why."""

    def __init__(self, folder: RunFolder, terminal: Terminal):
        self._folder, self._terminal = folder, terminal

    def __call__(self, error: Exception) -> None:
        words = str(error).rstrip(".")
        with contextlib.suppress(OSError):
            path = self._folder.write_failure(traceback.format_exception(error))
            traced = error.__cause__ or getattr(error, "__notes__", None)
            words += f"; its traceback is in {path}" if traced else f"; noted in {path}"
        self._terminal.say(f"{words[0].upper()}{words[1:]}. Made anew; its episode ends here, as at a time limit")
