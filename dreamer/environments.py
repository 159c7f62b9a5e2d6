"""The environments of a run, made by the package `envs`."""

import contextlib
import functools
import os
import sys
from typing import Any

import numpy as np

from .config import Config
from .errors import UserMistake
from .own_envs import own_envs


def make_environments(
    config: Config, count: int, seed: int, guarded: bool = False, restarts: int = 0, drawn: bool = False
) -> Any:
    """`count` environments of the run's task, as `envs.Vector` takes them; `drawn` ones can render themselves.

    If `guarded`, those that may hang or crash step in processes of their own, which can be ended; else those that are
    faster there.
    """
    package = own_envs()
    if package.is_worker():
        raise UserMistake(
            "environments were asked for while the module of one was imported; put what trains or scores behind "
            'if __name__ == "__main__":'
        )
    if ":" in config.task and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` has it: what their processes send may be of their own making
    options = environment_options(config, drawn)
    processes = (
        package.wants_processes(config.task) if guarded else package.steps_in_processes(config.task, count, **options)
    )
    if processes and count > 1:
        print(f"Starting {count} environments, each in a process of its own ...", file=sys.stderr, flush=True)
    try:
        return package.Vector(
            [functools.partial(package.make, config.task, **options)] * count,
            seeds=np.random.SeedSequence(seed).generate_state(count).tolist(),
            processes=processes,
            restarts=restarts,
            patience=config.run.patience_seconds,
        )
    except package.WorkerDied as error:
        if "did not answer" not in str(error):
            raise
        raise UserMistake(
            f"{str(error).rstrip('.')}; if it takes longer to begin, raise run.patience_seconds "
            "(--set of train, or the run's config.json)"
        ) from error


def environment_options(config: Config, drawn: bool = False) -> dict[str, Any]:
    """For `envs.make`; `drawn` environments can render themselves, if they ever can."""
    options: dict[str, Any] = {"repeat": config.repeat, **config.environment}
    if drawn and only_making_tells(config.task):
        drawable = {"render_mode": "rgb_array"} | options  # Gymnasium's ways: it wants to know when it makes one
        with contextlib.suppress(own_envs().TaskError):  # it knows none; what else may be wrong will be said again
            own_envs().make(config.task, **drawable).close()
            return drawable
    return options


def only_making_tells(task: str) -> bool:
    """Whether there is such a task, and what it takes: of Gymnasium's, and of the user's own."""
    return task.startswith("gym/") or ":" in task
