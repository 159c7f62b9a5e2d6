"""A run's folder: what it is, and the checkpoints from which it goes on.

    config.json           every setting
    spaces.json           what the agent sees and does
    versions.json         of Python and the packages
    metrics.jsonl, events.*   curves, as JSON lines and for TensorBoard
    failure.txt           the traceback of what ended the run, if something did
    checkpoint.pt         weights, optimiser, counters, generators; written last, so it names only what is complete
    replay/rows-A-B.pt    rows A to B of every stream: what never changes, only ever appended
    replay/latents-B.pt   the latents of all rows held at row B, written anew with each checkpoint

Files are written beside their final name, flushed to disk and renamed, and are read as tensors and plain values only:
loading never executes anything that a file contains.
"""

import json
import os
import platform
import re
import tempfile
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import config as configs
from . import spaces
from .agent import Agent
from .errors import UserMistake
from .machine import choose_device, choose_dtype
from .replay import Replay

VERSION = 1
PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "dm-control", "mujoco", "tensorboard")


class CheckpointError(UserMistake):
    """A run's folder or checkpoint that cannot be used; the message says why and what to do."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then rename it."""
    temporary = path.with_name(path.name + ".partial")
    write(temporary)
    with temporary.open("r+b") as file:  # Windows flushes only what may be written
        os.fsync(file.fileno())
    temporary.replace(path)


def _write_json(path: Path, data: Any) -> None:
    write_atomically(path, lambda target: target.write_text(json.dumps(data, indent=2) + "\n"))


def _write_tensors(path: Path, data: Any) -> None:
    def write(target: Path) -> None:
        with target.open("wb") as file:  # whose errors say what is wrong, unlike those of torch
            torch.save(data, file)

    write_atomically(path, write)


def _read_tensors(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; the folder is not complete") from None
    except Exception as error:  # whatever the unpickler stumbles over
        raise CheckpointError(
            f"{path} is not a readable checkpoint of this program ({error.__class__.__name__})"
        ) from error


class RunFolder:
    """The folder of one run.

    Args:
        path: made if need be.

    Raises:
        CheckpointError: the path is a file, or cannot be written to.
    """

    def __init__(self, path: Path):
        self.path = path
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
        return (self.path / "checkpoint.pt").is_file()

    @property
    def is_foreign(self) -> bool:
        """Whether something else lies there, which a new run would mix with its own."""
        return self.path.is_dir() and not self.holds_run and any(self.path.iterdir())

    def check_writable(self) -> None:
        """Raise CheckpointError if a checkpoint could not be written."""
        for place in (self.path, self.path / "replay"):
            try:
                with tempfile.TemporaryFile(dir=place):
                    pass
            except OSError as error:
                raise CheckpointError(f"cannot write to {place} ({error.strerror}); give another --run") from error

    def create(self, config: configs.Config, observation: spaces.ObservationSpec, action: spaces.ActionSpec) -> None:
        """Write down what the run is."""
        try:
            (self.path / "replay").mkdir(parents=True, exist_ok=True)
            for _, _, path in self._segments():
                path.unlink()  # written for a first checkpoint that was never completed
            _write_json(self.path / "spaces.json", spaces.to_json(observation, action))
            _write_json(self.path / "versions.json", _versions())
            self.write_config(config)
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.path} ({error.strerror}); give another --run") from error

    def write_config(self, config: configs.Config) -> None:
        _write_json(self.path / "config.json", configs.to_json(config))

    def write_failure(self, error: Exception) -> Path:
        """Keep the traceback of what ends a run."""
        path = self.path / "failure.txt"
        path.write_text("".join(traceback.format_exception(error)))
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

    def save(self, state: dict[str, Any], replay: Replay) -> None:
        """Write a checkpoint: first the replay's rows and latents, then the file that refers to them."""
        folder = self.path / "replay"
        saved = max((end for _, end, _ in self._segments()), default=replay.oldest)
        start = max(saved, replay.oldest)
        if start < replay.count:
            _write_tensors(folder / f"rows-{start}-{replay.count}.pt", replay.export_rows(start))
        _write_tensors(folder / f"latents-{replay.count}.pt", replay.export_latents())
        _write_tensors(self.path / "checkpoint.pt", {"version": VERSION, "replay": replay.state_dict(), "state": state})
        for _, end, path in self._segments():
            if end <= replay.oldest:
                path.unlink()
        for path in folder.glob("latents-*.pt"):
            if path.name != f"latents-{replay.count}.pt":
                path.unlink()

    def load(self) -> dict[str, Any]:
        """The state given to `save`; the replay's part is read by `load_replay`."""
        return self._checkpoint()["state"]

    def load_agent(self, device: str = "auto", seed: int = 0) -> Agent:
        """The agent of the checkpoint, to act; `seed` is of the actions that it samples."""
        config, chosen = self.config(), choose_device(device)
        observation, action = self.spaces()
        agent = Agent(config, observation, action, chosen, choose_dtype(config.run.precision, chosen))
        agent.load_state_dict(self.load()["agent"])
        agent.generator.manual_seed(seed)
        return agent

    def load_replay(self, replay: Replay) -> None:
        """Fill a replay from the rows and latents of the checkpoint."""
        state = self._checkpoint()["replay"]
        count, rows, upto = state["count"], [], None
        for start, end, path in self._segments():
            if start >= count:
                path.unlink()  # written for a checkpoint that was never completed
            elif end > replay.oldest_at(count):
                if upto not in (None, start):
                    break
                rows.append(_read_tensors(path))
                upto = end
        if upto != (count or None):
            raise CheckpointError(
                f"rows are missing from row {upto or 0} on in {self.path / 'replay'}; the folder is not complete"
            )
        latents = _read_tensors(self.path / "replay" / f"latents-{count}.pt")
        replay.load(state, _concatenate(rows), latents)

    def _checkpoint(self) -> dict[str, Any]:
        checkpoint = _read_tensors(self.path / "checkpoint.pt")
        keys = set(checkpoint) if isinstance(checkpoint, dict) else set()
        if not {"version", "state", "replay"} <= keys:
            raise CheckpointError(f"{self.path / 'checkpoint.pt'} was not written by this program")
        if checkpoint["version"] != VERSION:
            raise CheckpointError(
                f"{self.path / 'checkpoint.pt'} has format {checkpoint['version']}, this program reads {VERSION}; "
                "use the version named in versions.json"
            )
        return checkpoint

    def _segments(self) -> list[tuple[int, int, Path]]:
        """Files of rows in order: first row, row after the last, path."""
        found = []
        for path in (self.path / "replay").glob("rows-*.pt"):
            if name := re.fullmatch(r"rows-(\d+)-(\d+)", path.stem):
                found.append((int(name[1]), int(name[2]), path))
        return sorted(found)


def _concatenate(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([part[key] for part in parts], 1) for key in parts[0]} if parts else {}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("dreamer", *PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
