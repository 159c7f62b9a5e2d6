"""A run's folder: what it is, and the checkpoints from which it goes on.

    config.json             every setting
    spaces.json             what the agent sees and does
    versions.json           of Python and the packages
    metrics.jsonl, events.*   curves, as JSON lines and for TensorBoard
    failures.txt            the tracebacks of what went wrong, if something did
    state-B.pt              weights, optimiser, counters, generators, open episodes, at row B of every stream
    replay/rows-A-B.pt      rows A to B of every stream: what never changes, only ever appended
    replay/latents-B.pt     the latents of all rows held at row B, written anew with each checkpoint
    checkpoint.json         the newest checkpoint: its files with their SHA-256; written last
    previous.json           the one before it
    lock                    held by the process that trains here

Files are written beside their final name, flushed to disk and renamed, so whatever happens at whatever moment, both
lists name only files that are whole. All are read as tensors and plain values: loading never executes anything that a
file contains. Nothing names a place outside the folder, which can be moved or copied.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from . import config as configs
from . import spaces
from .agent import Agent
from .errors import UserMistake
from .machine import choose_device, choose_dtype
from .replay import Replay

FORMAT = 2
NEWEST, PREVIOUS = "checkpoint.json", "previous.json"
PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "dm-control", "mujoco", "tensorboard")

Say = Callable[[str], Any]


class CheckpointError(UserMistake):
    """A run's folder or checkpoint that cannot be used; the message says why and what to do."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then rename it."""
    temporary = path.with_name(path.name + ".partial")
    try:
        write(temporary)
        with temporary.open("r+b") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk its place is needed
        raise
    temporary.replace(path)
    if os.name == "posix":  # the new name, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_json(path: Path, data: Any) -> None:
    write_atomically(path, lambda target: target.write_text(json.dumps(data, indent=2) + "\n"))


class _Hashed:
    """A file to write to, and the SHA-256 of what was written."""

    def __init__(self, file: Any):
        self.name = file.name  # torch asks for it
        self.error: OSError | None = None  # of which torch says no more than that there was one
        self._file, self._hash = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self._hash.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._hash.hexdigest()


def write_tensors(path: Path, data: Any) -> str:
    """Write tensors and plain values in nested containers; returns the SHA-256 of the file."""
    digest = ""

    def write(target: Path) -> None:
        nonlocal digest
        with target.open("wb") as file:
            hashed = _Hashed(file)
            try:
                torch.save(data, cast(IO[bytes], hashed))
            except Exception as error:
                raise hashed.error or error from None
            digest = hashed.digest()

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)
    return digest


def _read_tensors(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; the folder is not complete") from None
    except Exception as error:  # whatever the unpickler stumbles over
        raise CheckpointError(
            f"{path} is not a readable checkpoint of this program ({error.__class__.__name__})"
        ) from error


class _Segment(NamedTuple):
    """A file of rows: the first, and the one after the last."""

    start: int
    end: int
    name: str


class Checkpoint:
    """One checkpoint of a run, by the list of its files.

    Raises:
        CheckpointError: the list cannot be read, or is not of this program; in all methods, a file is missing, or
            not what was saved.
    """

    def __init__(self, folder: Path, name: str):
        path = folder / name
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error.__class__.__name__}); it is damaged") from error
        if not isinstance(data, dict) or "format" not in data:
            raise CheckpointError(f"{path} was not written by this program")
        if data["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has format {data['format']}, this program reads {FORMAT}; use the version named in "
                "versions.json"
            )
        if not isinstance(data.get("files"), dict) or "counters" not in data:
            raise CheckpointError(f"{path} was not written by this program")
        self.folder, self.name, self.manifest = folder, name, data
        self.files: dict[str, str] = data["files"]

    def check(self, with_replay: bool) -> None:
        """Compare the files with what was saved."""
        for name, digest in self.files.items():
            if not with_replay and name.startswith("replay/"):
                continue
            try:
                with (self.folder / name).open("rb") as file:
                    good = hashlib.file_digest(file, "sha256").hexdigest() == digest
            except OSError as error:
                raise CheckpointError(
                    f"{self.folder / name} is missing or cannot be read ({error.strerror})"
                ) from error
            if not good:
                raise CheckpointError(f"{self.folder / name} is damaged: it is not what was saved")

    def state(self) -> dict[str, Any]:
        """What was given to `save`."""
        return self._read("state-")["state"]

    def fill(self, replay: Replay) -> None:
        """Rows, latents and the queue into a new replay, which may be larger or smaller than the one saved."""
        state = self._read("state-")["replay"]
        needed = [segment for segment in segments(self.files) if segment.end > replay.oldest_at(state["count"])]
        rows = [_read_tensors(self.folder / segment.name) for segment in needed]
        replay.load(state, _concatenate(rows), self._read("replay/latents-"))

    def _read(self, kind: str) -> Any:
        name = next((name for name in self.files if name.startswith(kind)), None)
        if name is None:
            raise CheckpointError(f"{self.folder / self.name} was not written by this program")
        return _read_tensors(self.folder / name)


def segments(files: dict[str, str]) -> list[_Segment]:
    """The files of rows among some, in order."""
    names = [(re.fullmatch(r"replay/rows-(\d+)-(\d+)\.pt", name), name) for name in files]
    return sorted(_Segment(int(match[1]), int(match[2]), name) for match, name in names if match)


class RunFolder:
    """The folder of one run.

    Args:
        path: made if need be.

    Raises:
        CheckpointError: the path is a file, or cannot be written to.
    """

    def __init__(self, path: Path):
        self.path = path
        self._description: tuple[configs.Config, spaces.ObservationSpec, spaces.ActionSpec] | None = None
        self._good: dict[str, Any] | None = None  # the list of the checkpoint that the run stands on
        try:
            is_file = path.exists() and not path.is_dir()
            (path / "config.json").exists()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be used ({error.strerror}); give another folder") from error
        if is_file:
            raise CheckpointError(f"{path} is a file; give the folder of a run, or one that does not exist yet")

    @property
    def holds_run(self) -> bool:
        return (self.path / "config.json").is_file()

    @property
    def has_checkpoint(self) -> bool:
        return any((self.path / name).is_file() for name in (NEWEST, PREVIOUS))

    @property
    def rows(self) -> int:
        """Agent steps that the newest checkpoint has seen; 0 if that cannot be told."""
        with contextlib.suppress(CheckpointError, KeyError, TypeError, ValueError):
            return int(Checkpoint(self.path, NEWEST).manifest["counters"]["rows"])
        return 0

    @property
    def is_foreign(self) -> bool:
        """Whether something else lies there, which a new run would mix with its own."""
        if self.holds_run or not self.path.is_dir():
            return False
        beginning = {"lock", "replay", "spaces.json", "versions.json"}  # of a run that was stopped at once
        return any(path.name.removesuffix(".partial") not in beginning for path in self.path.iterdir())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training here, until this one is done or dies.

        Raises:
            CheckpointError: another one does.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((self.path / "lock").open("a+"))
            except OSError as error:
                raise CheckpointError(f"cannot write to {self.path} ({error.strerror}); give another --run") from error
            if not _lock(file):
                file.seek(0)
                raise CheckpointError(
                    f"{self.path} is in use: {file.read().strip() or 'another process'} trains there; stop it, or give "
                    "another --run"
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            yield

    def check_writable(self) -> None:
        """Raise CheckpointError if a checkpoint could not be written."""
        for place in (self.path, self.path / "replay"):
            try:
                with tempfile.TemporaryFile(dir=place):
                    pass
            except OSError as error:
                raise CheckpointError(f"cannot write to {place} ({error.strerror}); give another --run") from error

    def describe(self, config: configs.Config, observation: spaces.ObservationSpec, action: spaces.ActionSpec) -> None:
        """Write down what the run is."""
        self._description = config, observation, action
        try:
            self._describe()
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.path} ({error.strerror}); give another --run") from error

    def _describe(self) -> None:
        assert self._description is not None, "saved before it was described"
        config, observation, action = self._description
        (self.path / "replay").mkdir(parents=True, exist_ok=True)
        _write_json(self.path / "spaces.json", spaces.to_json(observation, action))
        _write_json(self.path / "versions.json", _versions())
        _write_json(self.path / "config.json", configs.to_json(config))

    def write_failure(self, lines: list[str]) -> Path:
        """Keep the traceback of something that went wrong, with those before it."""
        path = self.path / "failures.txt"
        with path.open("a") as file:
            file.write(time.strftime("%Y-%m-%d %H:%M:%S\n"))
            file.write("".join(lines) + "\n")
        return path

    def config(self) -> configs.Config:
        if not self.holds_run:
            raise CheckpointError(
                f"{self.path} holds no run (there is no config.json); give the folder that train wrote"
            )
        return configs.from_json(self._read_json("config.json"))

    def spaces(self) -> tuple[spaces.ObservationSpec, spaces.ActionSpec]:
        data = self._read_json("spaces.json")
        try:
            return spaces.from_json(data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path / 'spaces.json'} was not written by this program") from error

    def _read_json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path / name} cannot be read ({error}); the folder is damaged") from error

    # Checkpoints ---------------------------------------------------------------------------------------

    def save(self, state: dict[str, Any], replay: Replay) -> None:
        """Write a checkpoint; the one before it stays until the next.

        Args:
            state: of tensors and plain values; see `plain`. Its "counters" are repeated where people can read them.
            replay: of which only the rows since the last checkpoint are written, and all latents.

        Raises:
            OSError: the disk is full, the folder is gone or may not be written to. What was saved before stays.
        """
        if self._good and f"state-{replay.count}.pt" in self._good["files"]:
            return  # nothing has happened since
        try:
            if not self.holds_run:  # somebody has removed it
                self._describe()
            manifest = self._write(state, replay)
            if self._good:
                _write_json(self.path / PREVIOUS, self._good)
            _write_json(self.path / NEWEST, manifest)
            self._good = manifest
        finally:
            self._remove_unlisted()

    def _write(self, state: dict[str, Any], replay: Replay) -> dict[str, Any]:
        """Write all files of a checkpoint; returns their list."""
        count = replay.count
        files = self._rows_on_disk(replay.oldest)
        start = max((segment.end for segment in segments(files)), default=replay.oldest)
        new: dict[str, Any] = {f"replay/latents-{count}.pt": replay.export_latents()}
        if start < count:
            new[f"replay/rows-{start}-{count}.pt"] = replay.export_rows(start)
        new[f"state-{count}.pt"] = {"replay": replay.state_dict(), "state": state}
        for name, data in new.items():
            files[name] = write_tensors(self.path / name, data)
        return {"format": FORMAT, "counters": state["counters"], "files": files}

    def _rows_on_disk(self, oldest: int) -> dict[str, str]:
        """The files of rows from `oldest` on that need not be written again: all, unless somebody removed some."""
        files = self._good["files"] if self._good else {}
        held = [segment.name for segment in segments(files) if segment.end > oldest]
        return {name: files[name] for name in held} if all((self.path / name).is_file() for name in held) else {}

    def _remove_unlisted(self) -> None:
        """Remove what no checkpoint needs any more, or what was never completed."""
        listed: set[str] = set()
        for name in (NEWEST, PREVIOUS):
            with contextlib.suppress(CheckpointError):
                listed |= set(Checkpoint(self.path, name).files)
        for pattern in ("state-*", "replay/rows-*", "replay/latents-*", "*.partial"):
            for path in self.path.glob(pattern):
                if path.relative_to(self.path).as_posix() not in listed:
                    path.unlink(missing_ok=True)

    def newest(self, with_replay: bool = False, say: Say = warnings.warn) -> Checkpoint:
        """The newest checkpoint that is whole.

        Args:
            with_replay: whether the replay's files must be whole, too.
            say: is told if that is not the newest one.

        Raises:
            CheckpointError: there is none.
        """
        problems = []
        for name in (NEWEST, PREVIOUS):
            if not (self.path / name).is_file():
                continue
            try:
                found = Checkpoint(self.path, name)
                found.check(with_replay)
            except CheckpointError as error:
                problems.append(error)
                continue
            if problems:
                say(f"{problems[0]}; the checkpoint before it is used")
            return found
        if problems:
            raise problems[0]
        raise CheckpointError(f"{self.path} has no checkpoint yet (there is no {NEWEST}); train for longer")

    def resume(self, say: Say) -> Checkpoint | None:
        """The newest checkpoint that is whole, None if the run has none yet; what is saved from now on follows it."""
        if not self.has_checkpoint:
            self._remove_unlisted()
            return None
        found = self.newest(with_replay=True, say=say)
        self._good = found.manifest
        return found

    def load_agent(self, device: str = "auto", seed: int = 0, say: Say = warnings.warn) -> Agent:
        """The agent of the newest checkpoint, to act; `seed` is of the actions that it samples."""
        config, chosen = self.config(), choose_device(device)
        observation, action = self.spaces()
        agent = Agent(config, observation, action, chosen, choose_dtype(config.run.precision, chosen))
        agent.load_state_dict(self.newest(say=say).state()["agent"])
        agent.generator.manual_seed(seed)
        return agent


def plain(value: Any) -> Any:
    """Arrays inside nested containers as tensors, which can be read back without executing anything."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def arrays(value: Any) -> Any:
    """The inverse of `plain`, but for tuples and NumPy's scalars, which stay lists and numbers."""
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {key: arrays(part) for key, part in value.items()}
    return [arrays(part) for part in value] if isinstance(value, list) else value


def _concatenate(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([part[key] for part in parts], 1) for key in parts[0]} if parts else {}


def _lock(file: Any) -> bool:
    """Lock an open file for this process, unless another one has; the system unlocks it when the process ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Where the file system knows no locks, nothing can be told.
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("dreamer", *PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
