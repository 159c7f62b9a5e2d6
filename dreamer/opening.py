"""Opens a run, new or old, to train it or to have its agent play: what the command line and Python have in common."""

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import config as configs
from .agent import Agent
from .checkpoint import Checkpoint, RunFolder
from .config import Config
from .environments import make_environments
from .errors import UserMistake
from .machine import choose_device, limit_threads
from .run import check_spaces, start
from .stopping import signals_given_back
from .terminal import Terminal


def train(task: str | None, run: str | Path | None = None, **given: Any) -> tuple[Path, int]:
    """Train, from scratch or from where the run stopped, until the frames are seen or a signal asks to stop.

    Args:
        task: SUITE/NAME or module:factory; None where `run` holds a run.
        run: its folder; None makes a new one under `runs`.
        given: as for `config.make_config`.

    Returns:
        The folder, and the number of the signal that stopped it, 0 if none did.

    Raises:
        UserMistake: what was asked for does not exist or does not fit the run that is there.
    """
    if run is not None and (folder := RunFolder(Path(run))).holds_run:
        config = _continued(folder.config(), task, given)
    else:
        if task is None:
            there = "" if run is None else f"{run} holds no run to go on with; "
            raise UserMistake(f"{there}say what to learn with --env, for example --env atari/pong")
        config = new_config(task, **given)
        if run is None:
            with _new_folder(config) as path:
                return path, _start(config, RunFolder(path))
        folder = RunFolder(Path(run))
        if folder.is_foreign:
            raise UserMistake(f"{run} is not empty and holds no run (no config.json); give another --run")
    return folder.path, _start(config, folder)


def _start(config: Config, folder: RunFolder) -> int:
    environments = make_environments(config, config.envs, config.seed, guarded=True, restarts=config.run.restarts)
    with signals_given_back():
        try:
            stop = start(config, folder, environments)
        finally:
            environments.close()
            if "torch._dynamo" in sys.modules:  # which counts what it has compiled, and takes no more after eight
                torch.compiler.reset()
    return stop.requested if stop else 0


def new_config(task: str, **given: Any) -> Config:
    """The config of a new run; without a GPU its size is one that trains there, unless another was given.

    given: as for `config.make_config`, whose errors it raises.
    """
    config = configs.make_config(task, **given)
    sized = given.get("size") or any(setting.startswith("size=") for setting in given.get("settings") or ())
    if sized or choose_device(config.run.device).type != "cpu":
        return config
    return configs.make_config(task, **given | {"size": configs.CPU_SIZE})


def _continued(stored: Config, task: str | None, given: dict[str, Any]) -> Config:
    """The stored config of a run with what may change: frames, the replay's capacity, and `run.` settings."""
    there = configs.flatten(stored)
    wanted = configs.flatten(configs.amend(stored, **given, task=task))
    differing = [
        f"{key} is {there.get(key, 'not set')} there, {wanted[key]} was given"
        for key in wanted
        if there.get(key) != wanted[key] and not configs.may_change(key)
    ]
    if differing:
        raise UserMistake(
            f"the folder holds another run ({'; '.join(differing)}); give another --run, or leave these out"
        )
    return configs.amend(stored, **given)


@contextlib.contextmanager
def _new_folder(config: Config) -> Iterator[Path]:
    """A folder that no other run has, also of those that begin in the same second; gone again if it stays empty."""
    name = f"{configs.file_name(config.task)}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    Path("runs").mkdir(exist_ok=True)
    for number in itertools.count(1):
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.rmdir()


def task_of(env: str | Callable[..., Any]) -> str:
    """The name by which a run can make its environment again: the one given, or that of a class or function.

    Raises:
        UserMistake: it cannot be imported by a name.
    """
    if isinstance(env, str | os.PathLike) and RunFolder(Path(env)).holds_run:
        raise UserMistake(f"{env} is the folder of a run; give it as run={str(env)!r}")
    if isinstance(env, str):
        return env
    module, name = getattr(env, "__module__", None), getattr(env, "__qualname__", None)
    if not callable(env) or not isinstance(module, str) or not isinstance(name, str):
        raise UserMistake(
            f"env is {env!r}; give a task's name, as `dreamer envs` lists them, or the class or function of a module "
            "that makes one of your own"
        )
    if module == "__main__" or getattr(sys.modules.get(module), name, None) is not env:
        raise UserMistake(
            f"{name} cannot be imported by others, as a run's environment has to be, now and whenever its agent plays; "
            "define it in a module, under that name and outside of functions and classes"
        )
    return f"{module}:{name}"


class Played(NamedTuple):
    """A run whose agent plays."""

    config: Config
    checkpoint: Checkpoint
    agent: Agent
    environments: Any  # of its task, as `envs.Vector`
    terminal: Terminal


@contextlib.contextmanager
def played(run: str | Path, count: int, seed: int, device: str, drawn: bool = False) -> Iterator[Played]:
    """A run's newest checkpoint with `count` environments of its task, which are closed afterwards.

    drawn: they can render themselves.

    Raises:
        UserMistake: it cannot be loaded, or the environment is not what it was.
    """
    limit_threads()
    folder = RunFolder(Path(run))
    config = folder.config()
    terminal = Terminal()
    checkpoint = folder.newest(say=terminal.say)
    agent = folder.load_agent(device, seed, terminal.say, checkpoint)
    environments = make_environments(config, count, seed, guarded=":" in config.task, drawn=drawn)
    try:
        check_spaces(folder, environments)
        yield Played(config, checkpoint, agent, environments, terminal)
    finally:
        environments.close()
        terminal.clear()


def as_given(settings: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Values by key, as `config.make_config` takes them: `settings` are words, `options` of the environment values.

    named: further ones, above the first; None means not given.

    Raises:
        UserMistake: it is no mapping, or an option cannot be kept in a run's config.
    """
    if not isinstance(settings, Mapping):
        raise UserMistake(f'settings is {settings!r}; give a dictionary, as {{"replay.batch": 8}}')
    words, options = [], {}
    for key, value in (dict(settings) | {key: value for key, value in named.items() if value is not None}).items():
        suite, dot, name = str(key).partition(".")
        if suite == "environment" and dot:
            options[name] = _kept(key, value)
        else:
            words.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    return {"settings": words, "options": options}


def _kept(key: str, value: Any) -> Any:
    """A value as it comes back from a run's config.json."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        raise UserMistake(
            f"{key} is {value!r}, which a run's config.json cannot keep; give numbers, words, true or false, None, or "
            "lists and dictionaries of those"
        ) from None


def checked(name: str, value: Any, least: int, most: int) -> int:
    """A whole number within bounds, or a UserMistake."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserMistake(f"{name} is {value!r}; give a whole number from {least} to {most}")
    return value
