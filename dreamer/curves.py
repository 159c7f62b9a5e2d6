"""What a run has measured, against environment frames: a file of JSON lines, and the same for TensorBoard."""

import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from .checkpoint import write_atomically
from .video import gif


class Curves:
    """Scalars against environment frames, in `metrics.jsonl` and for TensorBoard.

    Continuing at a frame drops what an interrupted run wrote after it. While nothing can be written, lines wait in
    memory; what TensorBoard would have shown meanwhile is lost to it.

    Args:
        folder: of the run.
        frames: where the run begins or goes on.
        say: is told, once each time, when writing fails.
    """

    RETRY_SECONDS = 60.0

    def __init__(self, folder: Path, frames: int, say: Callable[[str], object]):
        self._path, self._say = folder / "metrics.jsonl", say
        if self._path.exists():
            lines = [line for line in self._path.read_text(errors="replace").splitlines() if _frames_of(line) <= frames]
            text = "".join(line + "\n" for line in lines)
            write_atomically(self._path, lambda target: target.write_text(text))
        self._waiting = b""  # what is not written yet
        self._failing = False
        self._purge: int | None = frames + 1
        self._events: Events | None = None
        self._retry = -math.inf

    def add(self, scalars: dict[str, float], frames: int) -> None:
        # JSON has no NaN; a value that is missing says as much.
        values = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._waiting += (json.dumps({"frames": frames, **values}) + "\n").encode()
        try:
            self._write()
            self._failing = False
        except OSError as error:
            if not self._failing:
                self._say(f"Cannot write {self._path} ({error.strerror}); its lines wait until it can be written.")
            self._failing = True

        self._show(
            Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]), frames
        )

    def add_video(self, name: str, frames: np.ndarray, step: int) -> None:
        """Frames (T, H, W, 3) uint8 for TensorBoard's images, where GIFs play."""
        image = Summary.Image(
            height=frames.shape[1], width=frames.shape[2], colorspace=3, encoded_image_string=gif(frames)
        )
        self._show(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def sync(self) -> None:
        """Write what waits, and see that all of it survives a loss of power."""
        with suppress(OSError):
            self._write()
            with self._path.open("ab") as file:
                os.fsync(file.fileno())

    def _write(self) -> None:
        """Unbuffered, so that it is known how much of a line a full disk took."""
        with self._path.open("ab", buffering=0) as file:
            while self._waiting:
                self._waiting = self._waiting[file.write(self._waiting) :]

    def _show(self, summary: Summary, step: int) -> None:
        """To TensorBoard; after a failure a new file is begun, and until then nothing is shown."""
        if self._events is None and time.monotonic() < self._retry:
            return
        try:
            if self._events is None:
                self._events = Events(self._path.parent, self._purge)
                self._purge = None
            self._events.add(summary, step)
        except OSError as error:
            self._events, self._retry = None, time.monotonic() + self.RETRY_SECONDS
            self._say(f"Cannot write for TensorBoard ({error.strerror}); what comes now is missing there.")


class Events:
    """A file of events for TensorBoard, each written at once: what was shown before a crash is not lost.

    Args:
        folder: where it is made.
        purge: the step from which on TensorBoard forgets what earlier files say; None to forget nothing.

    Raises:
        OSError: also from `add`; then the file ends in the middle of an event, and another one must be begun.
    """

    def __init__(self, folder: Path, purge: int | None):
        # As TensorBoard's own writers name them: it reads them in the order of their names.
        names = (
            f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}.{i}" for i in itertools.count()
        )
        self._path = next(path for path in map(folder.joinpath, names) if not path.exists())
        self._add(Event(file_version="brain.Event:2", step=purge or 0))
        if purge is not None:
            self._add(Event(session_log=SessionLog(status=SessionLog.START), step=purge))

    def add(self, summary: Summary, step: int) -> None:
        self._add(Event(summary=summary, step=step))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        with self._path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())


def _frames_of(line: str) -> float:
    try:
        return json.loads(line)["frames"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a crash
