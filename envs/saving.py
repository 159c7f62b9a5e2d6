"""What an environment offers so that a run can stop in mid-episode and go on exactly as if it had not.

An environment MAY have two methods:

    get_state() -> dict of str to numpy arrays, bytes, ints, floats and dicts of these (no pickles)
    set_state(state) -> None

After `set_state(state)` on an environment made with the same arguments, the same actions give the same
observations, rewards and ends as they would have given after `get_state()`, across resets too.

A wrapper that has the methods only on behalf of what it wraps says whether it means them by a boolean
attribute `can_save_state`.
"""

from typing import Any

import gymnasium


def can_save_state(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether `env` itself (not something it wraps) offers `get_state` and `set_state`."""
    offered = callable(getattr(env, "get_state", None)) and callable(getattr(env, "set_state", None))
    return offered and bool(getattr(env, "can_save_state", True))
