"""Environments from elsewhere: Gymnasium's registry, and the user's own code."""

import contextlib
import importlib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium

from .adapt import Adapt
from .check import check
from .errors import TaskError, blaming, did_you_mean
from .repeat import ActionRepeat


def names() -> list[str]:
    """All registered Gymnasium ids, those of ale_py (ALE/...) included where it is installed."""
    _register_ale()
    return sorted(gymnasium.registry)


def make_gym(name: str, /, *, repeat: int | None = None, seed: int | None = None, **options: Any) -> Adapt:
    """Any registered Gymnasium id, or MODULE:ID to have it registered by importing MODULE.

    options: handed to gymnasium.make. repeat: see `_finish`.
    """
    module, colon, _ = name.partition(":")
    if colon:
        _import(module, name)
    _register_ale()
    with blaming(f"gym/{name}", "when it was made"):
        try:
            with warnings.catch_warnings():
                # About an id without a version, or with an old one: that is the user's choice.
                warnings.simplefilter("ignore")
                env = gymnasium.make(name, disable_env_checker=True, **options)
        except gymnasium.error.DependencyNotInstalled as error:
            raise TaskError(f"gym/{name} needs a package that is not installed. {error}") from error
        except ModuleNotFoundError as error:
            raise TaskError(f"gym/{name} needs the package {error.name}: pip install {error.name}") from error
        except gymnasium.error.UnregisteredEnv as error:
            raise TaskError(f"Gymnasium has no environment '{name}'.{did_you_mean(name, names())}") from error
        except gymnasium.error.Error as error:
            raise TaskError(f"Gymnasium cannot make '{name}': {error}") from error
        except TypeError as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown is None or unknown[1] not in options:
                raise
            raise TaskError(f"gym/{name} has no option '{unknown[1]}'.") from error
    mode, modes = options.get("render_mode"), env.metadata.get("render_modes")
    if mode is not None and modes and mode not in modes:  # of which Gymnasium only warns
        env.close()
        raise TaskError(f"gym/{name} has no render_mode={mode!r}: use one of {', '.join(modes)}.")
    return _finish(env, repeat, seed)


def make_custom(name: str, /, *, repeat: int | None = None, seed: int | None = None, **options: Any) -> Adapt:
    """PACKAGE.MODULE:FACTORY: FACTORY(**options) returns a gymnasium.Env. It gets `seed`, where there is one to get."""
    factory = _find_factory(name)
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError as error:  # some that are written in C
        raise TaskError(f"The arguments of '{name}' cannot be read: name a function of Python's.") from error
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for option in options:
        if option not in parameters and not open_ended:
            raise TaskError(f"{name} has no option '{option}'.{did_you_mean(option, parameters)}")
    for key, parameter in parameters.items():
        is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if is_named and parameter.default is parameter.empty and key not in {"seed", *options}:
            raise TaskError(f"{name} needs a value for '{key}': --set environment.{key}=VALUE, or {key}=... in Python.")
    if "seed" in parameters and (seed is not None or parameters["seed"].default is inspect.Parameter.empty):
        options["seed"] = seed
    with blaming(name, "when it was called"):
        env = factory(**options)
    if not isinstance(env, gymnasium.Env):
        hint = " Use Vector to step several." if isinstance(env, gymnasium.vector.VectorEnv) else ""
        raise TaskError(f"{name} returned a {type(env).__name__}: return a gymnasium.Env.{hint}")
    return _finish(env, repeat, seed)


def _finish(env: gymnasium.Env[Any, Any], repeat: int | None, seed: int | None) -> Adapt:
    """Checks `env`, adapts it, and repeats its actions.

    repeat: frames per step. An environment that repeats by itself, as ALE/... ids do 4 times, keeps to that
    where `repeat` is None; a multiple of it may be asked for.
    """
    check(env, seed)
    frames = _frames_per_step(env)
    if repeat is None or repeat == frames:
        adapted = Adapt(env, repeat=frames, seed=seed)
    elif repeat % frames:
        raise TaskError(f"repeat={repeat} is not possible: the environment itself takes {frames} frames a step.")
    else:
        adapted = Adapt(ActionRepeat(env, repeat // frames), repeat=repeat, seed=seed)
    if frames > 1:
        adapted.notes.append(f"The environment itself repeats each action for {frames} frames.")
    return adapted


def _frames_per_step(env: gymnasium.Env[Any, Any]) -> int:
    """How many frames the environment counts for each step, as far as it says so; else 1."""
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, Adapt):
            return layer.repeat
        layer = layer.env
    frameskip = env.spec.kwargs.get("frameskip", 1) if env.spec else 1
    return frameskip if isinstance(frameskip, int) else 1


def _find_factory(name: str) -> Callable[..., Any]:
    module_name, _, factory_name = name.partition(":")
    if module_name.partition(".")[0] in sys.stdlib_module_names:  # which a folder of somebody else's may name
        raise TaskError(
            f"'{module_name}' of '{name}' comes with Python and makes no environment: name a module of yours."
        )
    module = _import(module_name, name)
    factory = getattr(module, factory_name, None)
    if factory is None:
        hint = did_you_mean(factory_name, [key for key, value in vars(module).items() if callable(value)])
        raise TaskError(f"The module '{module_name}' has no '{factory_name}'.{hint}")
    if not callable(factory):
        raise TaskError(
            f"'{name}' is of type {type(factory).__name__}: name a function or class that makes a gymnasium.Env."
        )
    return factory


def _import(module: str, task: str) -> Any:
    """A module by name, from the current directory too."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with blaming(f"The module '{module}'", "when it was imported"):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there, but something that it imports is not
            hint = " A package of yours cannot be called envs: dreamer has one." if module.startswith("envs.") else ""
            places = f"{os.getcwd()} or among the installed packages"
            raise TaskError(f"The module '{module}' of '{task}' is not found in {places}.{hint}") from error


def _register_ale() -> None:
    with contextlib.suppress(ImportError):
        import ale_py

        gymnasium.register_envs(ale_py)
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # else it prints a banner
