"""A run's folder: what it is, and the checkpoints from which it goes on.

    config.json             every setting
    spaces.json             what the agent sees and does
    versions.json           of Python and the packages
    metrics.jsonl, events.*   curves, as JSON lines and for TensorBoard
    failures.txt            the tracebacks of what went wrong, if something did
    state-C.pt              weights, optimiser, counters, generators, open episodes, at row C of every stream
    replay/rows-A-B.pt      rows A to B of every stream: what never changes, only ever appended
    replay/latents-C-A-B.pt   the latents of rows A to B as they were at row C, written anew with each checkpoint
    checkpoint.json         the newest checkpoint: its files with their SHA-256; written last
    previous.json           the one before it
    lock                    held by the process that trains here

Files are written beside their final name, flushed to disk and renamed, so whatever happens at whatever moment, both
lists name only files that are whole. All are read as tensors and plain values: loading never executes anything that a
file contains. Nothing names a place outside the folder, which can be moved or copied.
"""

import contextlib
import errno
import functools
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
from .replay import Replay, new_replay, row_bytes

FORMAT = 3
NEWEST_BYTES = 1 << 30  # of a replay, where not all of it is needed
PART_BYTES = 1 << 28  # of the replay in one file
NEWEST, PREVIOUS = "checkpoint.json", "previous.json"
BEGINNING = {"lock", "replay", "spaces.json", "versions.json", "config.json"}  # all that a run stopped at once has
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
    if os.name == "posix":  # the new name, too, where the file system can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
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


class _Part(NamedTuple):
    """A file of rows or latents: the first row, the one after the last."""

    start: int
    end: int
    name: str


def _parts(kind: str, files: dict[str, str]) -> list[_Part]:
    """The files of a kind among some, in order."""
    names = [(re.fullmatch(rf"replay/{kind}-(?:\d+-)??(\d+)-(\d+)\.pt", name), name) for name in files]
    return sorted(_Part(int(match[1]), int(match[2]), name) for match, name in names if match)


class RowsDamaged(CheckpointError):
    """Nothing but rows of a checkpoint is damaged: it can be used from the row after them."""


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
        self.first = 0  # rows before it are not used

    def check(self, with_replay: bool) -> None:
        """Compare the files with what was saved. Raises RowsDamaged if nothing but rows is not whole."""
        problems = {}
        for name, digest in self.files.items():
            if not with_replay and name.startswith("replay/"):
                continue
            try:
                with (self.folder / name).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                        problems[name] = f"{self.folder / name} is damaged: it is not what was saved"
            except OSError as error:
                problems[name] = f"{self.folder / name} is missing or cannot be read ({error.strerror})"
        if problems and with_replay and not (self.folder / "replay").is_dir():
            raise CheckpointError(
                f"{self.folder} has no replay/, so its agent can act but not train on: evaluate it, bring the folder "
                "replay/ of the run, or begin anew with another --run"
            )
        damaged = [part for part in _parts("rows", self.files) if part.name in problems]
        if damaged and len(damaged) == len(problems):
            self.first = damaged[-1].end
            raise RowsDamaged(problems[damaged[-1].name])
        for problem in problems.values():
            raise CheckpointError(problem)

    @property
    def rows(self) -> int:
        """Agent steps that it has seen."""
        return int(self.manifest["counters"]["rows"])

    def state(self) -> dict[str, Any]:
        """What was given to `save`."""
        return self._content["state"]

    def fill(self, replay: Replay) -> None:
        """Rows, latents and the queue into a new replay, which may be larger or smaller than the one saved."""
        replay.load_state_dict(self._content["replay"])
        first = max(self.first, replay.oldest)
        rows = [part for part in _parts("rows", self.files) if part.end > first and part.start >= self.first]
        latents = [part for part in _parts("latents", self.files) if part.end > first]
        for part in (*rows, *latents):
            replay.put(part.start, _read_tensors(self.folder / part.name))
        held = [parts[0].start if parts else replay.count for parts in (rows, latents)]
        replay.hold_from(max(first, *held))

    def newest_rows(self, agent: Agent) -> Replay:
        """A replay of the newest rows, as many as `NEWEST_BYTES` hold; none waits to be sampled first."""
        config, model = agent.config, agent.config.model
        row = row_bytes(agent.observation_spec, agent.action_spec.width, model.deter, model.stoch)
        capacity = max(config.envs * (config.replay.length + 1), min(self.rows, NEWEST_BYTES // row))
        generator = torch.Generator().manual_seed(0)
        replay = new_replay(config, agent.observation_spec, agent.action_spec, config.envs, capacity, generator)
        self.fill(replay)
        replay.queue.clear()
        return replay

    @functools.cached_property
    def _content(self) -> Any:
        name = next((name for name in self.files if name.startswith("state-")), None)
        if name is None:
            raise CheckpointError(f"{self.folder / self.name} was not written by this program")
        return _read_tensors(self.folder / name)


class RunFolder:
    """The folder of one run.

    Args:
        path: made by `lock` if need be.

    Raises:
        CheckpointError: the path is a file, or may not be looked at.
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
            raise CheckpointError(f"{path} is a file; give the folder of a run")

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
            return Checkpoint(self.path, NEWEST).rows
        return 0

    @property
    def is_foreign(self) -> bool:
        """Whether something else lies there, which a new run would mix with its own."""
        if self.holds_run or not self.path.is_dir():
            return False
        return any(path.name.removesuffix(".partial") not in BEGINNING for path in self.path.iterdir())

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

    def forget(self) -> None:
        """Hold no run any more, as before `describe`."""
        (self.path / "config.json").unlink(missing_ok=True)

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
            within = sorted(path.parent.name for path in self.path.glob("*/config.json"))
            some = f", such as {self.path / within[0]}" if within else ""
            raise CheckpointError(
                f"{self.path} holds no run (there is no config.json); give the folder that train wrote{some}"
            )
        try:
            return configs.from_json(self._read_json("config.json"))
        except configs.ConfigError as error:
            raise CheckpointError(f"{self.path / 'config.json'} cannot be used: {error}") from error

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
        count, oldest = replay.count, replay.oldest
        files = self._rows_on_disk(oldest)
        start = max((part.end for part in _parts("rows", files)), default=oldest)
        # In parts, so that no copy of the whole replay is needed.
        rows = max(1, PART_BYTES * replay.rows // replay.bytes)
        for first in range(start, count, rows):
            name = f"replay/rows-{first}-{min(first + rows, count)}.pt"
            files[name] = write_tensors(self.path / name, replay.export_rows(first, min(first + rows, count)))
        for first in range(oldest, count, rows):
            name = f"replay/latents-{count}-{first}-{min(first + rows, count)}.pt"
            files[name] = write_tensors(self.path / name, replay.export_latents(first, min(first + rows, count)))
        name = f"state-{count}.pt"
        files[name] = write_tensors(self.path / name, {"replay": replay.state_dict(), "state": state})
        return {"format": FORMAT, "counters": state["counters"], "files": files}

    def _rows_on_disk(self, oldest: int) -> dict[str, str]:
        """The files of rows from `oldest` on that need not be written again: all, unless somebody removed some."""
        files = self._good["files"] if self._good else {}
        held = [part.name for part in _parts("rows", files) if part.end > oldest]
        return {name: files[name] for name in held} if all((self.path / name).is_file() for name in held) else {}

    def _remove_unlisted(self) -> None:
        """Remove what no checkpoint needs any more, or what was never completed; nothing if that cannot be told."""
        listed = set(self._good["files"]) if self._good else set()
        for name in (NEWEST, PREVIOUS):
            if (self.path / name).is_file():
                try:
                    listed |= set(Checkpoint(self.path, name).files)
                except CheckpointError:
                    return
        for pattern in ("state-*", "replay/rows-*", "replay/latents-*", "*.partial"):
            for path in self.path.glob(pattern):
                if path.relative_to(self.path).as_posix() not in listed:
                    with contextlib.suppress(OSError):  # somebody reads it: next time
                        path.unlink()

    def newest(self, with_replay: bool = False, say: Say = warnings.warn) -> Checkpoint:
        """The newest checkpoint that is whole, or else the newest of which only old rows are damaged.

        Args:
            with_replay: whether the replay's files must be whole, too.
            say: is told if anything is damaged.

        Raises:
            CheckpointError: there is none.
        """
        problems: list[CheckpointError] = []
        usable: list[Checkpoint] = []
        for name in (NEWEST, PREVIOUS):
            if not (self.path / name).is_file():
                continue
            try:
                found = Checkpoint(self.path, name)
                try:
                    found.check(with_replay)
                except RowsDamaged:
                    usable.append(found)
                    raise
            except CheckpointError as error:
                problems.append(error)
                continue
            if problems:
                say(f"{problems[0]}; the checkpoint before it is used")
            return found
        if usable:
            say(f"{problems[0]}; the rows up to row {usable[0].first} of each environment are lost, the rest is used")
            return usable[0]
        if problems:
            raise problems[0]
        raise CheckpointError(f"{self.path} has no checkpoint yet (there is no {NEWEST}); train for longer")

    def resume(self, say: Say) -> Checkpoint | None:
        """The newest checkpoint that is whole, None if the run has none yet; what is saved from now on follows it."""
        if not self.has_checkpoint:
            return None
        found = self.newest(with_replay=True, say=say)
        self._good = found.manifest
        return found

    def check_settings(self, state: dict[str, Any], config: configs.Config) -> None:
        """Raise CheckpointError if a config is not that of a checkpoint's state."""
        saved, wanted = state["config"], configs.lasting(config)
        differing = [
            f"{key} is {saved.get(key, 'not set')} in the checkpoint, {wanted.get(key, 'not set')} in config.json"
            for key in sorted(set(saved) | set(wanted))
            if saved.get(key) != wanted.get(key)
        ]
        if differing:
            raise CheckpointError(f"{self.path / 'config.json'} was changed ({'; '.join(differing)}); put it back")

    def load_agent(
        self, device: str = "auto", seed: int = 0, say: Say = warnings.warn, checkpoint: Checkpoint | None = None
    ) -> Agent:
        """The agent of a checkpoint, by default the newest, to act; `seed` is of the actions that it samples."""
        config, chosen = self.config(), choose_device(device)
        observation, action = self.spaces()
        state = (checkpoint or self.newest(say=say)).state()
        self.check_settings(state, config)
        agent = Agent(config, observation, action, chosen, choose_dtype(config.run.precision, chosen))
        agent.load_state_dict(state["agent"])
        agent.acting.follow()
        agent.acting.generator.manual_seed(seed)
        return agent


def plain(value: Any) -> Any:
    """Arrays inside nested containers as tensors, which can be read back without executing anything.

    Raises:
        TypeError: there is something that could not be read back.
    """
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())  # a TypeError if its kind is none of torch's
    if isinstance(value, dict):
        return {plain(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be saved")


def arrays(value: Any) -> Any:
    """The inverse of `plain`, but for tuples and NumPy's scalars, which stay lists and numbers."""
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {key: arrays(part) for key, part in value.items()}
    return [arrays(part) for part in value] if isinstance(value, list) else value


def _lock(file: Any) -> bool:
    """Lock an open file for this process, unless another one has; the system unlocks it when the process ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(1 << 20)  # what is locked cannot be read
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
