"""Tasks by name."""

import contextlib
import difflib
import inspect
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import atari, dmc, foreign
from .adapt import Adapt
from .errors import TaskError, blaming, did_you_mean

# What `make` itself takes, beside the options of a suite.
COMMON = ("repeat", "seed")

# From here on a step is worth a process of its own; asking one and reading its answer takes a tenth of it.
SLOW_STEP_SECONDS = 0.005
TIMED_STEPS = 7
TIMED_SECONDS = 0.5


@dataclass(frozen=True)
class Suite:
    """A family of tasks, named SUITE/NAME. Its options are the keyword arguments of `make`.

    names: lists its tasks; raises TaskError where the package that has them is missing. slow: whether a step
    takes long enough to be worth a process of its own; None where that differs from task to task.
    """

    name: str
    description: str
    make: Callable[..., Adapt]
    names: Callable[[], list[str]]
    slow: bool | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Its own options with their defaults."""
        return {
            name: parameter.default
            for name, parameter in self._parameters().items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in COMMON
        }

    @property
    def takes_any_option(self) -> bool:
        """Whether unknown options are handed on to what makes the environment."""
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._parameters().values())

    def _parameters(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.make).parameters)


SUITES = {
    suite.name: suite
    for suite in (
        Suite("atari", "Atari games, the protocol of 200 million frames", atari.make_atari, atari.names, slow=False),
        Suite(
            "atari100k",
            "Atari games, the protocol of 400 thousand frames",
            atari.make_atari100k,
            atari.names,
            slow=False,
        ),
        Suite("dmc", "DeepMind Control Suite, vector observations", dmc.make_dmc, dmc.names, slow=False),
        Suite("dmc_vision", "DeepMind Control Suite, camera images", dmc.make_dmc_vision, dmc.names, slow=True),
        Suite("gym", "any registered Gymnasium id, or MODULE:ID", foreign.make_gym, foreign.names),
    )
}
CUSTOM = Suite("MODULE", "your own, as package.module:factory", foreign.make_custom, list)


def suites() -> dict[str, Suite]:
    """The suites by name. Beside these, `make` takes package.module:factory for a user's own environment."""
    return dict(SUITES)


def make(task: str, /, *, repeat: int | None = None, seed: int | None = None, **options: Any) -> Adapt:
    """The environment of a task, with the spaces that `adapt` describes.

    task: SUITE/NAME, or package.module:factory, a callable that returns a gymnasium.Env. repeat: frames per
    step, the suite's own if None. seed: for the first reset, unless that is given one. options: see `suites`.

    Raises TaskError with one plain sentence for whatever the caller can mend.
    """
    suite, name = _find(task)
    _check_options(suite, options)
    if repeat is not None:
        if type(repeat) is not int or repeat < 1:
            raise TaskError(f"repeat={repeat!r} is not possible: use a whole number from 1.")
        options["repeat"] = repeat
    if seed is not None and (type(seed) is not int or seed < 0):
        raise TaskError(f"seed={seed!r} is not possible: use a whole number from 0.")
    return suite.make(name, seed=seed, **options)


def check_name(task: str, /, **options: Any) -> None:
    """Raise TaskError if a task's name alone tells that there is none, or no such option of it.

    Of open suites only `make` knows.
    """
    suite, name = _find(task)
    known = _names(suite)
    if known and name not in known and not suite.takes_any_option:
        raise TaskError(f"There is no task '{task}'.{did_you_mean(name, known)}")
    _check_options(suite, options)


def _check_options(suite: Suite, options: dict[str, Any]) -> None:
    known = suite.options
    for option, value in options.items():
        if option in known:
            _check_type(option, value, known[option])
        elif not suite.takes_any_option:
            allowed = f"it has {', '.join(known)}" if known else "it has none"
            raise TaskError(f"{suite.name} tasks have no option '{option}' ({allowed}).{did_you_mean(option, known)}")


def wants_processes(task: str) -> bool:
    """Whether a long run should step the environments of a task in processes of their own.

    Only a process can be ended that hangs or crashes. Not needed for the engines of the suites that are quick, which
    do neither.
    """
    return _find(task)[0].slow is not False


def steps_in_processes(task: str, count: int, /, *, repeat: int | None = None, **options: Any) -> bool:
    """Whether `count` environments of a task are faster in processes of their own (see `Vector`).

    Not a single one: its caller waits for it either way. Of several, those whose steps take long; where the
    suite does not say so, one environment is made, with the arguments as in `make`, and takes a few steps.
    """
    suite, _ = _find(task)
    if count == 1:
        return False
    if suite.slow is not None:
        return suite.slow
    env = make(task, repeat=repeat, **options)
    try:
        return _step_seconds(env) > SLOW_STEP_SECONDS
    finally:
        env.close()


def _step_seconds(env: Adapt) -> float:
    """The median over a few random actions: neither the first step nor a busy machine should decide."""
    env.action_space.seed(0)
    env.reset(seed=0)
    seconds: list[float] = []
    while len(seconds) < TIMED_STEPS and sum(seconds) < TIMED_SECONDS:
        action = env.action_space.sample()
        start = time.perf_counter()
        with blaming("The environment", "in step"):
            _, _, terminated, truncated, _ = env.step(action)
        seconds.append(time.perf_counter() - start)
        if terminated or truncated:
            env.reset()
    return statistics.median(seconds)


def _find(task: str) -> tuple[Suite, str]:
    head, slash, name = task.partition("/")
    if head in SUITES and name:
        return SUITES[head], name
    if head in SUITES:
        example = {"gym": "CartPole-v1", "dmc": "walker_walk", "dmc_vision": "walker_walk"}.get(head, "pong")
        raise TaskError(f"'{task}' names no task: use {head}/NAME, as in {head}/{example}.")
    if re.fullmatch(r"\w[\w.]*:\w+", task):
        return CUSTOM, task
    forms = f"use SUITE/NAME with SUITE one of {', '.join(SUITES)}, or package.module:factory."
    full_names = [f"{suite.name}/{known}" for suite in SUITES.values() for known in _names(suite)]
    # A name without its suite is a better guess than one that merely looks alike.
    by_name = {full.partition("/")[2]: full for full in reversed(full_names)}
    near = difflib.get_close_matches(task, by_name, n=1, cutoff=0.75)
    hint = f" Did you mean '{by_name[near[0]]}'?" if near else did_you_mean(task, full_names)
    what = f"There is no suite '{head}'" if slash else f"'{task}' is no task"
    raise TaskError(f"{what}: {forms}{hint}")


def _names(suite: Suite) -> list[str]:
    with contextlib.suppress(TaskError):
        return suite.names()
    return []


def _check_type(option: str, value: Any, default: Any) -> None:
    wanted = type(default)
    # True is an int to Python, and 0 is as good as 0.0.
    good = type(value) is wanted or (wanted is float and type(value) is int)
    if not good:
        kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
        raise TaskError(f"{option}={value!r} is not possible: use {kinds[wanted]}, such as {default!r}.")
