"""Opens a run, new or old, to train it or to have its agent play: what the command line and Python have in common."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import config as configs
from .agent import Agent
from .checkpoint import Checkpoint, RunFolder
from .config import Config
from .environments import make_environments
from .errors import UserMistake
from .machine import choose_device, limit_threads
from .own_envs import own_envs
from .run import check_spaces, start
from .stopping import signals_given_back
from .terminal import Terminal

_training = threading.local()


def train(task: str | None, run: str | Path | None = None, **given: Any) -> tuple[Path, int]:
    """Train, from scratch or from where the run stopped, until the frames are seen or a signal asks to stop.

    Args:
        task: SUITE/NAME or module:factory; None where `run` holds a run.
        run: its folder; None makes a new one under `runs`.
        given: `size`, `settings` and fields of `Config`, as for `config.make_config`; None means not given.

    Returns:
        The folder, and the number of the signal that stopped it, 0 if none did.

    Raises:
        UserMistake: what was asked for does not exist or does not fit the run that is there.
    """
    if getattr(_training, "on", False) or own_envs().is_worker():
        raise UserMistake(
            "training was asked for again while an environment's module was imported; put what starts it behind "
            'if __name__ == "__main__":'
        )
    _training.on = True
    try:
        return _train(task, run, given)
    finally:
        _training.on = False


def _train(task: str | None, run: str | Path | None, given: dict[str, Any]) -> tuple[Path, int]:
    if run is not None and (folder := RunFolder(Path(run))).holds_run:
        config = _continued(folder.config(), task, given)
    else:
        if task is None:
            there = "" if run is None else f"{run} holds no run to go on with; "
            raise UserMistake(f"{there}say what to learn with --env, for example --env atari/pong")
        config = new_config(task, **given)
        folder = RunFolder(_new_folder(config) if run is None else Path(run))
        if folder.is_foreign:
            raise UserMistake(f"{run} is not empty and holds no run (no config.json); give another --run")
    environments = make_environments(config, config.envs, config.seed, guarded=True, restarts=config.run.restarts)
    with signals_given_back():
        try:
            return folder.path, start(config, folder, environments)
        finally:
            environments.close()


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


def _new_folder(config: Config) -> Path:
    return Path("runs") / f"{configs.file_name(config.task)}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def task_of(env: str | Callable[..., Any]) -> str:
    """The name by which a run can make its environment again: the one given, or that of a class or function.

    Raises:
        UserMistake: it cannot be imported by a name.
    """
    if isinstance(env, str):
        return env
    module, name = getattr(env, "__module__", None), getattr(env, "__qualname__", None)
    if not callable(env) or not isinstance(module, str) or not isinstance(name, str):
        raise UserMistake(
            f"env is {env!r}; give a task's name, as `dreamer envs` lists them, or the class or function of a module "
            "that makes one of your own"
        )
    if module == "__main__" or "<" in name:
        raise UserMistake(
            f"{name} cannot be imported by others, as a run's environment has to be, now and whenever its agent plays; "
            "define it in a module of its own, outside of functions"
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


def as_settings(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Values by key as `KEY=VALUE`, the way that a config reads them."""
    return tuple(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items())
