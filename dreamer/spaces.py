"""What the agent needs to know of an environment: the shapes it sees and the actions it chooses.

Environments arrive with flat dictionaries of canonical Gymnasium spaces (`envs.make` sees to that):
uint8 images (H, W, C), float32 vectors (n,), class indices as MultiDiscrete; actions are Discrete,
MultiDiscrete or Box within [-1, 1]. Inside the agent an action is one flat vector (A,): one-hot for
discrete parts, numbers as they are for continuous ones, parts in the order of their sorted keys.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np

from .errors import UserMistake


class SpaceError(UserMistake):
    """A space that the agent cannot take; the message says which and what would do."""


@dataclass(frozen=True)
class ObservationSpec:
    """Observation keys by the way they are encoded, each group sorted by key."""

    images: dict[str, tuple[int, int, int]]  # height, width, channels
    floats: dict[str, int]  # width of the vector
    integers: dict[str, tuple[int, ...]]  # number of classes of each entry

    @property
    def keys(self) -> list[str]:
        return [*self.images, *self.floats, *self.integers]

    def shape_and_dtype(self, key: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype in which an observation of this key is stored."""
        if key in self.images:
            return self.images[key], np.dtype(np.uint8)
        if key in self.floats:
            return (self.floats[key],), np.dtype(np.float32)
        return (len(self.integers[key]),), np.dtype(np.int64)


@dataclass(frozen=True)
class ActionPart:
    """One key of the action space: `classes` for categoricals, else `size` continuous numbers."""

    key: str
    classes: tuple[int, ...] = ()
    size: int = 0

    @property
    def width(self) -> int:
        return sum(self.classes) + self.size


@dataclass(frozen=True)
class ActionSpec:
    """The parts of the flat action vector, in its order."""

    parts: tuple[ActionPart, ...]

    @property
    def width(self) -> int:
        """A, the width of the flat action vector."""
        return sum(part.width for part in self.parts)

    @property
    def categoricals(self) -> int:
        """How many uniform random numbers one action takes."""
        return sum(len(part.classes) for part in self.parts)

    @property
    def continuous(self) -> int:
        """How many normal random numbers one action takes."""
        return sum(part.size for part in self.parts)

    def to_environment(self, action: np.ndarray) -> dict[str, np.ndarray]:
        """Flat actions (N, A) as the environments take them: {key: (N,), (N, n) integers or (N, n) floats}."""
        result: dict[str, np.ndarray] = {}
        start = 0
        for part in self.parts:
            if part.classes:
                indices = []
                for classes in part.classes:
                    indices.append(action[:, start : start + classes].argmax(-1))
                    start += classes
                stacked = np.stack(indices, -1).astype(np.int64)
                result[part.key] = stacked if len(part.classes) > 1 else stacked[:, 0]
            else:
                result[part.key] = action[:, start : start + part.size].astype(np.float32)
                start += part.size
        return result

    def from_environment(self, action: Mapping[str, np.ndarray]) -> np.ndarray:
        """The inverse of `to_environment`: {key: (N, ...)} -> flat actions (N, A) float32."""
        flat: list[np.ndarray] = []
        for part in self.parts:
            values = np.asarray(action[part.key])
            values = values.reshape(len(values), -1)
            if part.classes:
                flat.extend(np.eye(classes)[column.astype(int)] for classes, column in zip(part.classes, values.T))
            else:
                flat.append(values)
        return np.concatenate(flat, -1).astype(np.float32)


def observation_spec(space: gymnasium.Space) -> ObservationSpec:
    """Sort the keys of an observation space into images, floats and integers.

    Raises:
        SpaceError: the space is not a flat dictionary of canonical spaces.
    """
    images, floats, integers = {}, {}, {}
    for key, part in _dictionary(space, "observation"):
        if isinstance(part, gymnasium.spaces.Box) and part.dtype == np.uint8 and len(part.shape) == 3:
            height, width, channels = part.shape
            if any(side % 16 or not 48 <= side <= 256 for side in (height, width)):
                raise SpaceError(
                    f"the image {key!r} is {height}x{width}; its sides must be multiples of 16 from 48 to 256"
                )
            images[key] = (height, width, channels)
        elif isinstance(part, gymnasium.spaces.Box) and part.dtype == np.float32 and len(part.shape) == 1:
            floats[key] = part.shape[0]
        elif _is_choices(part):
            integers[key] = tuple(int(n) for n in part.nvec)
        else:
            raise SpaceError(
                f"the observation {key!r} is {part}; expected a uint8 image, a float32 vector or MultiDiscrete"
            )
    if len({shape[:2] for shape in images.values()}) > 1:
        raise SpaceError(f"all images of an observation must have one size; these have {images}")
    if not (images or floats or integers):
        raise SpaceError("the observation space is empty; the agent needs at least one key")
    return ObservationSpec(images, floats, integers)


def action_spec(space: gymnasium.Space) -> ActionSpec:
    """The flat layout of an action space.

    Raises:
        SpaceError: the space is not a flat dictionary of canonical spaces.
    """
    parts = []
    for key, part in _dictionary(space, "action"):
        if isinstance(part, gymnasium.spaces.Discrete) and part.start == 0:
            parts.append(ActionPart(key, classes=(int(part.n),)))
        elif _is_choices(part):
            parts.append(ActionPart(key, classes=tuple(int(n) for n in part.nvec)))
        elif _is_bounded(part):
            parts.append(ActionPart(key, size=part.shape[0]))
        else:
            raise SpaceError(f"the action {key!r} is {part}; expected Discrete, MultiDiscrete or a Box within [-1, 1]")
    if not parts:
        raise SpaceError("the action space is empty; the agent needs something to choose")
    return ActionSpec(tuple(parts))


def _is_choices(part: gymnasium.Space) -> bool:
    return isinstance(part, gymnasium.spaces.MultiDiscrete) and len(part.shape) == 1 and not part.start.any()


def _is_bounded(part: gymnasium.Space) -> bool:
    if not isinstance(part, gymnasium.spaces.Box) or len(part.shape) != 1:
        return False
    return bool((part.low == -1).all() and (part.high == 1).all())


def _dictionary(space: gymnasium.Space, what: str) -> list[tuple[str, Any]]:
    if not isinstance(space, gymnasium.spaces.Dict):
        raise SpaceError(f"the {what} space is {space}; expected a gymnasium Dict, which envs.make() returns")
    return sorted(space.spaces.items())


def to_json(observation: ObservationSpec, action: ActionSpec) -> dict[str, Any]:
    """Both specs as plain values, for the run folder."""
    return {"observation": asdict(observation), "action": asdict(action)}


def from_json(data: Mapping[str, Any]) -> tuple[ObservationSpec, ActionSpec]:
    """The inverse of `to_json`."""
    observation = data["observation"]
    return (
        ObservationSpec(
            images={key: tuple(shape) for key, shape in observation["images"].items()},
            floats=dict(observation["floats"]),
            integers={key: tuple(classes) for key, classes in observation["integers"].items()},
        ),
        ActionSpec(
            tuple(ActionPart(part["key"], tuple(part["classes"]), part["size"]) for part in data["action"]["parts"])
        ),
    )
