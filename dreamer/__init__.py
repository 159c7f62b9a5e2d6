"""DreamerV3: learn a world model, and a policy inside it."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

from .errors import UserMistake

if TYPE_CHECKING:
    from .dreams.world_env import WorldModelEnv, WorldModelVectorEnv
    from .player import Player
    from .scoring import Scores

__all__ = ["UserMistake", "WorldModelEnv", "WorldModelVectorEnv", "evaluate", "load", "train"]

gymnasium.register(
    "dreamer/WorldModel-v0",
    entry_point="dreamer.dreams.world_env:WorldModelEnv",
    vector_entry_point="dreamer.dreams.world_env:WorldModelVectorEnv",
)


def __getattr__(name: str) -> Any:
    # Here, so that `import dreamer` and the command line's help do not wait for torch.
    if name in ("WorldModelEnv", "WorldModelVectorEnv"):
        from .dreams import world_env

        return getattr(world_env, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def train(
    env: str | Callable[..., Any] | None = None,
    run: str | Path | None = None,
    *,
    frames: int | None = None,
    size: str | None = None,
    seed: int | None = None,
    envs: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Train an agent, from scratch or from where `run` stopped, as `dreamer train` does.

    What is left out is as in the suite's protocol, but for the size, which is 1m without a GPU. In the main thread
    Ctrl-C saves a checkpoint first, a second one does not, a third ends Python at once. As there, torch is set to no
    more threads than there are cores, and its compiler to a folder for what is compiled.

    Args:
        env: SUITE/TASK, module:factory, or the class or function of a module that makes a `gymnasium.Env`, which every
            process that steps one imports; None where `run` is to go on.
        run: the run's folder; one that holds a run is continued, None makes a new one under `runs`.
        frames: environment frames, action repeat included.
        size: of the model: 1m, 12m, 25m, 50m, 100m, 200m, 400m.
        seed: of parameters, environments and all random numbers.
        envs: environments that step together.
        device: auto, cpu, cuda or mps.
        precision: of matrix products: auto, float32 or bfloat16.
        settings: any others by name, {"replay.batch": 8}; `dreamer settings` lists them. Those of `environment.` are
            arguments of the factory, and may be whatever JSON keeps.

    Returns:
        The run's folder, for `evaluate` and `load`.

    Raises:
        UserMistake, envs.TaskError: what was asked for does not exist, cannot be made, or is not what `run` holds.
        KeyboardInterrupt: Ctrl-C was pressed; all is saved, unless it was pressed twice.
        SystemExit: another signal asked to stop.
    """
    from .opening import as_given, task_of
    from .opening import train as begin
    from .stopping import StoppedAtOnce

    named = {
        "frames": frames,
        "size": size,
        "seed": seed,
        "envs": envs,
        "run.device": device,
        "run.precision": precision,
    }
    given = as_given({} if settings is None else settings, named)
    try:
        folder, stopped_by = begin(None if env is None else task_of(env), run, **given)
    except StoppedAtOnce as error:
        stopped_by = error.args[0] - 128
    if stopped_by == signal.SIGINT:
        raise KeyboardInterrupt
    if stopped_by:
        raise SystemExit(128 + stopped_by)
    return folder


def evaluate(
    run: str | Path,
    episodes: int = 10,
    *,
    greedy: bool = False,
    envs: int = 8,
    seed: int = 1_000_000,
    device: str = "auto",
) -> "Scores":
    """Score a run's checkpoint on whole episodes, as `dreamer evaluate` does.

    Args:
        run: the run's folder.
        episodes: to play.
        greedy: the most likely action instead of a sample.
        envs: environments at once, at most.
        seed: of the environments and of the sampled actions.
        device: auto, cpu, cuda or mps.

    Returns:
        `scores` and `lengths` of the episodes, their `mean`, `std` and `interval()`.

    Raises:
        UserMistake: the folder holds no readable checkpoint, the environment is not what it was, or a number is none
            that can be.
    """
    from . import scoring
    from .opening import checked, played

    checked("episodes", episodes, 1, 1_000_000)
    count = min(episodes, checked("envs", envs, 1, 10_000))
    with played(run, count, checked("seed", seed, 0, 2**63 - 1), device) as (_, _, agent, environments, terminal):
        return scoring.evaluate(agent, environments, episodes, greedy, report=terminal.progress)


def load(run: str | Path, device: str = "auto", seed: int = 0) -> "Player":
    """The agent of a run's checkpoint, ready to act.

    Args:
        run: the run's folder.
        device: auto, cpu, cuda or mps.
        seed: of the actions that it samples.

    Raises:
        UserMistake: the folder holds no readable checkpoint, or there is no such device.
    """
    from .checkpoint import RunFolder
    from .environments import environment_options
    from .player import Player

    folder = RunFolder(Path(run))
    config = folder.config()
    return Player(folder.load_agent(device, seed), config.task, environment_options(config))
