"""A first look at an environment that others wrote, so that its mistakes are told before a run, not in it."""

import inspect
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .adapt import Adapt
from .errors import TaskError, blaming

STEPS = 3


def check(env: gymnasium.Env[Any, Any], seed: int | None = None) -> None:
    """Resets `env` with `seed` and takes a few random steps.

    Raises TaskError, with what to change, if the spaces cannot be used (see `adapt`), if `reset` or `step` do
    not return what Gymnasium 1.x asks for, or if an observation does not fit the declared space (keys,
    shapes, kinds of numbers) or has numbers that are not finite. EnvironmentFailed if `reset` or `step` raises.
    """
    for name in ("observation_space", "action_space"):
        if not isinstance(getattr(env, name, None), gymnasium.Space):
            raise TaskError(f"The environment has no {name}: set it in its constructor to a gymnasium.spaces space.")
    Adapt(env)  # refuses spaces that cannot be used, before actions from them are tried
    _check_reset_signature(env)
    env.action_space.seed(0)
    _reset(env, seed)
    for _ in range(STEPS):
        with blaming("The environment", "in step"):
            result = env.step(env.action_space.sample())
        if not isinstance(result, tuple) or len(result) != 5:
            raise TaskError(
                f"step returned {_what(result)}: return the five values observation, reward, "
                "terminated, truncated, info."
            )
        observation, reward, terminated, truncated, info = result
        _check_observation(observation, env.observation_space, "step", "observation")
        number = np.asarray(reward)
        if number.shape != () or number.dtype.kind not in "iufb" or not np.isfinite(number):
            raise TaskError(f"step returned the reward {reward!r}: return a single finite number.")
        for name, value in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(value, bool | np.bool_):
                raise TaskError(f"step returned {name} as {_what(value)}: return True or False.")
        if not isinstance(info, dict):
            raise TaskError(f"step returned {_what(info)} for info: return a dict, which may be empty.")
        if terminated or truncated:
            _reset(env, None)


def _reset(env: gymnasium.Env[Any, Any], seed: int | None) -> None:
    with blaming("The environment", "in reset"):
        result: Any = env.reset(seed=seed, options=None)
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        raise TaskError(f"reset returned {_what(result)}: return the observation and a dict (obs, {{}}).")
    _check_observation(result[0], env.observation_space, "reset", "observation")


def _check_reset_signature(env: gymnasium.Env[Any, Any]) -> None:
    for layer in _layers(env):
        try:
            inspect.signature(layer.reset).bind(seed=0, options=None)
        except TypeError:
            raise TaskError(
                f"reset of {type(layer).__name__} does not take the arguments seed and options: "
                "declare it as reset(self, *, seed=None, options=None)."
            ) from None


def _layers(env: gymnasium.Env[Any, Any]) -> list[gymnasium.Env[Any, Any]]:
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _check_observation(value: Any, space: gymnasium.Space[Any], method: str, name: str) -> None:
    """name: how to call the value in a message, 'observation' or a part of it."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, dict):
            raise TaskError(f"{method} returned {_what(value)} as {name}, but its space is a Dict: return a dict.")
        if value.keys() != space.spaces.keys():
            raise TaskError(
                f"{method} returned the {name} with the keys {sorted(value)}, but its space has the keys "
                f"{sorted(space.spaces)}: make them the same."
            )
        for key, part in space.spaces.items():
            _check_observation(value[key], part, method, f"observation '{key}'")
    elif isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            raise TaskError(f"{method} returned {_what(value)} as {name}: return {len(space.spaces)} values.")
        for place, part in enumerate(space.spaces):
            _check_observation(value[place], part, method, f"{name}/{place}")
    elif isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        _check_array(value, space, method, name)


def _check_array(value: Any, space: gymnasium.Space[Any], method: str, name: str) -> None:
    array = np.asarray(value)
    if array.shape != space.shape:
        raise TaskError(
            f"{method} returned the {name} with shape {array.shape}, but its space says "
            f"{space.shape}: correct one of them."
        )
    declared = np.dtype(space.dtype)
    # Wider numbers of the same kind are common and harmless.
    fits = array.dtype.kind in ("iubf" if declared.kind == "f" else "iub")
    if not fits:
        raise TaskError(
            f"{method} returned the {name} as {array.dtype}, but its space says {declared}: convert it with "
            f"astype, or correct the space."
        )
    if not np.isfinite(array).all():
        raise TaskError(f"{method} returned the {name} with NaN or infinite numbers: find where they come from.")
    if declared.kind != "f" and not _inside(array, space):
        raise TaskError(
            f"{method} returned the {name} with values from {array.min()} to {array.max()}, "
            f"outside its space {space}: correct the space."
        )


def _inside(array: np.ndarray, space: gymnasium.Space[Any]) -> bool:
    """Whether integers lie within their space. (Those of floats are often declared carelessly.)"""
    low: Any
    high: Any
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
    elif isinstance(space, spaces.Discrete):
        low, high = space.start, space.start + space.n - 1
    elif isinstance(space, spaces.MultiDiscrete):
        low, high = space.start, space.start + space.nvec - 1
    else:
        low, high = 0, 1
    return bool((array >= low).all() and (array <= high).all())


def _what(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} values"
    return f"a {type(value).__name__}"
