"""Integers from what an environment gives, of another kind perhaps, but never others."""

from typing import Any

import numpy as np

from .errors import EnvironmentFailed


def as_integers(value: Any, dtype: Any, what: str) -> np.ndarray:
    """Integers as another kind of integers.

    Args:
        what: is given, for the message.

    Raises:
        EnvironmentFailed: these are no integers, or some of them that kind cannot hold: a cast would change them.
    """
    given, wanted = np.asarray(value), np.dtype(dtype)
    if given.dtype == wanted:
        return given
    if given.dtype.kind not in "iub":
        raise EnvironmentFailed(
            f"{what} is {given.dtype}, but its space says {wanted}: convert it with astype, or correct the space."
        )
    limits = np.iinfo(wanted)
    if given.size and (given.min() < limits.min or given.max() > limits.max):
        raise EnvironmentFailed(
            f"{what} has values from {given.min()} to {given.max()}, but its space says {wanted}: correct one of them."
        )
    return given.astype(wanted)
