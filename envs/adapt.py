"""Any Gymnasium spaces into the few that the agent knows.

Observations become a flat dict, each value one of
    image    Box(0, 255, (H, W, C), uint8), H and W multiples of 16 from 48 to 256, one size for all images
    vector   Box(float32, (n,))
    classes  MultiDiscrete((n, ...)): integers as class indices from 0, int64

Actions become a flat dict, each value one of
    Discrete(n)    MultiDiscrete((n, ...))    Box(-1, 1, (n,), float32)

Nested Dict and Tuple spaces are flattened, keys and positions joined by '/'. An observation that is no Dict
gets the key 'image' or 'vector', an action that is no Dict the key 'action'.

What becomes of the other spaces:
    uint8 of 2 or 3 axes that spans 0..255         image: a channel axis is added, channels that come first
                                                   are moved last, and it is resized to the nearest size
    integers or booleans, fewer than 256 values    classes (also Discrete, MultiDiscrete and MultiBinary)
    other integers, and floats of any shape        vector, since a full byte or more is a magnitude
    Text, Graph, Sequence, OneOf                   TaskError
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from .errors import EnvironmentFailed, TaskError
from .images import nearest_side, resize
from .integers import as_integers
from .saving import can_save_state

MOST_CHANNELS = 16  # a last axis that is longer than this, and longer than the first, is the width
CLASSES_BELOW = 256
# As one-hot vectors, more than this is most likely an image whose space says otherwise.
MOST_CLASSES = 65_536
MOST_NUMBERS = 1_000  # in a vector that was an array; more are most likely an image
# Some packages declare the largest number there is, or what MuJoCo calls unlimited.
UNBOUNDED = 1e10

Path = tuple[Any, ...]


class Entry(NamedTuple):
    """One leaf of an observation space: where it is, what it becomes, and how."""

    path: Path
    space: gymnasium.Space[Any]
    convert: Callable[[Any], np.ndarray]


class Adapt(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment with the spaces above.

    repeat: how many frames one step counts for (this class repeats nothing). seed: for the first reset, if
    that is given none. notes: plain sentences about what has been changed, for the user to read.

    Raises TaskError for a space that cannot be converted.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, repeat: int = 1, seed: int | None = None):
        super().__init__(env)
        self.repeat = repeat
        self.notes: list[str] = []
        self._seed = seed
        # An observation that needs no conversion is handed on as it is.
        self._entries: dict[str, Entry] | None = None
        if _is_canonical_observation(env.observation_space):
            parts: dict[str, Any] = env.observation_space.spaces  # type: ignore[attr-defined]
            self.observation_space = spaces.Dict({key: _plain(part) for key, part in parts.items()})
        else:
            self._entries = _observation_entries(env.observation_space, self.notes)
            self.observation_space = spaces.Dict({key: entry.space for key, entry in self._entries.items()})
        self._native_action = env.action_space
        self._nested_action = isinstance(env.action_space, spaces.Dict | spaces.Tuple)
        self._actions: dict[str, Callable[[Any], Any]] = {}
        action_spaces = {}
        for path, space in _leaves(env.action_space):
            key = _join(path) or "action"
            if key in action_spaces:
                raise TaskError(f"Two actions would be called '{key}': rename one of them.")
            action_spaces[key], self._actions[key] = _convert_action(key, space, self.notes)
        self.action_space = spaces.Dict(dict(sorted(action_spaces.items())))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if seed is None:
            seed = self._seed
        self._seed = None
        observation, info = self.env.reset(seed=seed, options=options)
        return self._observe(observation), info

    def step(self, action: dict[str, Any]) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """action: a value for each key of `action_space`; those of Boxes are clipped to [-1, 1]."""
        native = self._act(self._native_action, (), action)
        result = self.env.step(native)
        if not isinstance(result, tuple) or len(result) != 5:
            raise EnvironmentFailed(
                "The environment's step did not return the five values observation, reward, terminated, truncated, "
                "info."
            )
        observation, reward, terminated, truncated, info = result
        if np.asarray(reward).shape != ():
            raise EnvironmentFailed(
                f"The environment's step returned the reward {reward!r}, which is no single number."
            )
        # Where the end and the time limit fall on one step, the end is what happened.
        truncated = bool(truncated) and not terminated
        return self._observe(observation), float(reward), bool(terminated), truncated, info

    @property
    def can_save_state(self) -> bool:
        return can_save_state(self.env)

    def get_state(self) -> dict[str, Any]:
        """See `saving`. Only where `can_save_state`."""
        return self.env.get_state()  # type: ignore[attr-defined]

    def set_state(self, state: dict[str, Any]) -> None:
        self._seed = None
        self.env.set_state(state)  # type: ignore[attr-defined]

    def _observe(self, observation: Any) -> dict[str, np.ndarray]:
        if self._entries is None:
            return observation
        return {key: entry.convert(_pick(observation, entry.path)) for key, entry in self._entries.items()}

    def _act(self, space: gymnasium.Space[Any], path: Path, action: dict[str, Any]) -> Any:
        """The native action, in the nesting of `space`."""
        if isinstance(space, spaces.Dict):
            return {key: self._act(part, (*path, key), action) for key, part in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(self._act(part, (*path, place), action) for place, part in enumerate(space.spaces))
        key = _join(path) or "action"
        return self._actions[key](action[key])


def _plain(space: Any) -> gymnasium.Space[Any]:
    """A Box or MultiDiscrete as Gymnasium's own class, which other processes know."""
    if isinstance(space, spaces.Box):
        return spaces.Box(space.low, space.high, dtype=space.dtype.type)
    return spaces.MultiDiscrete(space.nvec)


def _is_canonical_observation(space: gymnasium.Space[Any]) -> bool:
    if not isinstance(space, spaces.Dict) or not space.spaces:
        return False
    for key, part in space.spaces.items():
        if not isinstance(key, str) or _is_reserved(key) or 0 in (part.shape or ()):
            return False
        if isinstance(part, spaces.MultiDiscrete):
            good = part.nvec.ndim == 1 and part.dtype == np.int64 and not part.start.any()
            good = good and part.nvec.sum() <= MOST_CLASSES  # else it is refused where others are
        elif isinstance(part, spaces.Box) and part.dtype == np.uint8:
            good = _is_image(part) and part.shape == _image_shape(part.shape, None)
        else:
            good = isinstance(part, spaces.Box) and part.dtype == np.float32 and len(part.shape) == 1
        if not good:
            return False
    image_sizes = {part.shape[:2] for part in space.spaces.values() if part.shape and len(part.shape) == 3}
    return len(image_sizes) <= 1


def _observation_entries(space: gymnasium.Space[Any], notes: list[str]) -> dict[str, Entry]:
    """The conversion of each leaf by key, sorted."""
    leaves: dict[str, tuple[Path, gymnasium.Space[Any]]] = {}
    for path, leaf in _leaves(space):
        key = _join(path) or ("image" if isinstance(leaf, spaces.Box) and _is_image(leaf) else "vector")
        if _is_reserved(key):
            raise TaskError(
                f"The observation has a key '{key}', but 'reward' and keys that begin with 'is_' "
                "are kept for what the environment returns beside it: rename it."
            )
        if key in leaves:
            raise TaskError(f"Two observations would be called '{key}': rename one of them.")
        leaves[key] = path, leaf
    if not leaves:
        raise TaskError("The observation space is an empty Dict or Tuple: there is nothing to learn from.")

    images = [leaf for _, leaf in leaves.values() if isinstance(leaf, spaces.Box) and _is_image(leaf)]
    # One size for all, so that none is made smaller than it need be.
    sizes = [_image_shape(leaf.shape, None)[:2] for leaf in images]
    image_size = (max(height for height, _ in sizes), max(width for _, width in sizes)) if sizes else None
    entries = {}
    for key, (path, leaf) in sorted(leaves.items()):
        if 0 in (leaf.shape or ()):
            raise TaskError(f"Observation '{key}' has shape {leaf.shape}, so no entries: remove it.")
        if isinstance(leaf, spaces.Box) and _is_image(leaf):
            shape = _image_shape(leaf.shape, image_size)
            entries[key] = Entry(path, *_convert_image(key, leaf, shape, notes))
        else:
            entries[key] = Entry(path, *_convert_numbers(key, leaf, notes))
    return entries


def _convert_image(
    key: str, space: spaces.Box, shape: tuple[int, int, int], notes: list[str]
) -> tuple[spaces.Box, Callable[[Any], np.ndarray]]:
    channels_first = _channels_first(space.shape)
    height, width = space.shape[1:] if channels_first else space.shape[:2]
    if len(space.shape) == 2:
        notes.append(f"Observation '{key}' gets an axis for its single channel.")
    if channels_first:
        notes.append(f"Observation '{key}' has its channels moved from the first axis to the last.")
    if (height, width) != shape[:2]:
        notes.append(f"Observation '{key}' is resized from {height}x{width} to {shape[0]}x{shape[1]} pixels.")

    def convert(value: Any) -> np.ndarray:
        image = as_integers(value, np.uint8, f"Observation '{key}'")
        if image.shape != space.shape:
            raise EnvironmentFailed(
                f"Observation '{key}' is of shape {image.shape}, but its space says {space.shape}: correct one of them."
            )
        if image.ndim == 2:
            image = image[:, :, None]
        elif channels_first:
            image = np.moveaxis(image, 0, -1)
        return resize(np.ascontiguousarray(image), shape[:2])

    return spaces.Box(0, 255, shape, np.uint8), convert


def _convert_numbers(
    key: str, space: gymnasium.Space[Any], notes: list[str]
) -> tuple[gymnasium.Space[Any], Callable[[Any], np.ndarray]]:
    classes = _as_classes(space)
    if classes is not None:
        start, counts = classes
        if counts.sum() > MOST_CLASSES:
            raise TaskError(
                f"Observation '{key}' of shape {space.shape} would be {counts.sum()} numbers as one-hot vectors: make "
                "it smaller, declare numbers as a float Box, or an image as Box(0, 255, shape, uint8)."
            )
        if not isinstance(space, spaces.MultiDiscrete) or space.nvec.ndim > 1 or start.any():
            notes.append(f"Observation '{key}' ({_describe(space)}) is taken as {_amount(counts)}.")

        def to_classes(value: Any) -> np.ndarray:
            indices = as_integers(value, np.int64, f"Observation '{key}'").reshape(-1) - start
            if ((indices < 0) | (indices >= counts)).any():
                raise EnvironmentFailed(
                    f"Observation '{key}' has values from {np.min(value)} to {np.max(value)}, outside its space: "
                    "correct the space that the environment declares."
                )
            return indices

        return spaces.MultiDiscrete(counts), to_classes

    if not isinstance(space, spaces.Box):
        raise TaskError(
            f"Observation '{key}' is a {type(space).__name__} space, which cannot be used: offer "
            "it as a Box, Discrete, MultiDiscrete or MultiBinary space, or leave it out."
        )
    size = int(np.prod(space.shape))
    if space.dtype.kind in "iub":
        notes.append(f"Observation '{key}' ({_describe(space)}) is taken as a vector of {size} numbers.")
    elif len(space.shape) != 1:
        notes.append(f"Observation '{key}' ({_describe(space)}) is flattened to {size} numbers.")
    if len(space.shape) > 1 and size > MOST_NUMBERS:
        notes.append(
            f"If '{key}' is an image, offer it as uint8 from 0 to 255, height x width x channels, to have it seen as "
            "one."
        )

    def to_vector(value: Any) -> np.ndarray:
        return np.asarray(value, np.float32).reshape(-1)

    return spaces.Box(-np.inf, np.inf, (size,), np.float32), to_vector


def _convert_action(
    key: str, space: gymnasium.Space[Any], notes: list[str]
) -> tuple[gymnasium.Space[Any], Callable[[Any], Any]]:
    """The space to choose from and the function from its values to those of `space`."""
    if 0 in (space.shape or ()):
        raise TaskError(f"Action '{key}' ({_describe(space)}) has nothing to choose: leave it out.")
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        _refuse_many(key, int(space.n))
        return spaces.Discrete(int(space.n)), lambda value: int(value) + first

    classes = _as_classes(space)
    if classes is not None:
        start, counts = classes
        _refuse_many(key, int(counts.sum()))
        if not isinstance(space, spaces.MultiDiscrete) or space.nvec.ndim > 1:
            notes.append(f"Action '{key}' ({_describe(space)}) is chosen as {_amount(counts)}.")

        def to_integers(value: Any) -> np.ndarray:
            return (np.asarray(value, np.int64) + start).reshape(space.shape).astype(space.dtype)

        return spaces.MultiDiscrete(counts), to_integers

    if not isinstance(space, spaces.Box):
        raise TaskError(
            f"Action '{key}' is a {type(space).__name__} space, which cannot be used: offer it "
            "as a Box, Discrete, MultiDiscrete or MultiBinary space."
        )
    if space.dtype.kind != "f":
        raise TaskError(
            f"Action '{key}' ({_describe(space)}) has integers of {CLASSES_BELOW} values or "
            "more: declare it as a float Box and round it in the environment."
        )
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if (np.abs(low) >= UNBOUNDED).any() or (np.abs(high) >= UNBOUNDED).any():
        raise TaskError(
            f"Action '{key}' has no finite bounds: declare those that make sense in the environment's action space, or "
            "wrap it: gymnasium.wrappers.TransformAction(env, lambda action: action, Box(low, high))."
        )
    if not (low == -1).all() or not (high == 1).all():
        notes.append(f"Action '{key}' is mapped from [-1, 1] to its bounds, {_bounds(low, high)}.")
    if len(space.shape) != 1:
        notes.append(f"Action '{key}' of shape {space.shape} is chosen as {low.size} numbers.")
    # `center + radius * value` would miss the bounds by rounding; the clip afterwards makes them exact.
    center, radius = (high + low) / 2, (high - low) / 2

    def to_bounds(value: Any) -> np.ndarray:
        inside = np.clip(np.asarray(value, np.float64), -1, 1).reshape(space.shape)
        return np.clip(center + radius * inside, low, high).astype(space.dtype)

    return spaces.Box(-1, 1, (low.size,), np.float32), to_bounds


def _refuse_many(key: str, count: int) -> None:
    if count > MOST_CLASSES:
        raise TaskError(
            f"Action '{key}' has {count} choices, of which at most {MOST_CLASSES} can be told apart: use fewer."
        )


def _as_classes(space: gymnasium.Space[Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """(smallest value, number of values) of each entry, (n,) int64, or None if they are not to be classes."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.start], np.int64), np.array([space.n], np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start.reshape(-1).astype(np.int64), space.nvec.reshape(-1).astype(np.int64)
    if isinstance(space, spaces.MultiBinary):
        entries = int(np.prod(space.shape))
        return np.zeros(entries, np.int64), np.full(entries, 2, np.int64)
    if isinstance(space, spaces.Box) and space.dtype.kind in "iub":
        # Differences in floating point, since those of the widest integers do not fit into integers.
        spans = space.high.astype(np.float64) - space.low.astype(np.float64) + 1
        if (spans < CLASSES_BELOW).all():
            return space.low.reshape(-1).astype(np.int64), spans.reshape(-1).astype(np.int64)
    return None


def _is_image(space: spaces.Box) -> bool:
    """Two or three axes of whole bytes; fewer values are classes, as in the map of a grid world."""
    whole_bytes = space.dtype == np.uint8 and (space.low == 0).all() and (space.high == 255).all()
    return len(space.shape) in (2, 3) and bool(whole_bytes)


def _channels_first(shape: tuple[int, ...]) -> bool:
    """Whether the first of three axes is the small one."""
    return len(shape) == 3 and shape[0] < min(shape[1:]) and shape[-1] > MOST_CHANNELS


def _image_shape(shape: tuple[int, ...], size: tuple[int, int] | None) -> tuple[int, int, int]:
    """(height, width, channels) after conversion; `size` if another image has set it already."""
    if len(shape) == 2:
        shape = (*shape, 1)
    elif _channels_first(shape):
        shape = (*shape[1:], shape[0])
    height, width = size or (nearest_side(shape[0]), nearest_side(shape[1]))
    return height, width, shape[2]


def _leaves(space: gymnasium.Space[Any], path: Path = ()) -> list[tuple[Path, gymnasium.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        return [leaf for key, part in space.spaces.items() for leaf in _leaves(part, (*path, key))]
    if isinstance(space, spaces.Tuple):
        return [leaf for place, part in enumerate(space.spaces) for leaf in _leaves(part, (*path, place))]
    return [(path, space)]


def _pick(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


def _join(path: Path) -> str:
    return "/".join(str(step) for step in path)


def _is_reserved(key: str) -> bool:
    return key == "reward" or key.startswith("is_")


def _describe(space: gymnasium.Space[Any]) -> str:
    shape = f" of shape {space.shape}" if space.shape else ""
    kind = f" {space.dtype}" if isinstance(space, spaces.Box) else ""
    return f"{type(space).__name__}{kind}{shape}"


def _amount(counts: np.ndarray) -> str:
    entries = "1 integer" if len(counts) == 1 else f"{len(counts)} integers"
    values = f"{counts[0]}" if (counts == counts[0]).all() else f"{counts.min()} to {counts.max()}"
    return f"{entries} of {values} values"


def _bounds(low: np.ndarray, high: np.ndarray) -> str:
    if (low == low.flat[0]).all() and (high == high.flat[0]).all():
        return f"[{low.flat[0]:g}, {high.flat[0]:g}]"
    return f"which lie between {low.min():g} and {high.max():g}"
