"""Keys of a keyboard as actions of any action space."""

import re
from collections.abc import Collection, Sequence

import numpy as np

from ..spaces import ActionPart, ActionSpec

PAIRS = [
    ("ArrowLeft", "ArrowRight"),
    ("ArrowDown", "ArrowUp"),
    ("a", "d"),
    ("s", "w"),
    ("f", "h"),
    ("g", "t"),
    ("j", "l"),
]
KEYS = "1234567890yuioxczqek"  # for choices among several, as many as each has, and for what has no pair
JOYSTICK = {"UP": "ArrowUp", "RIGHT": "ArrowRight", "LEFT": "ArrowLeft", "DOWN": "ArrowDown", "FIRE": " "}
STICK = re.compile("NOOP|(?=.)(UP|DOWN)?(LEFT|RIGHT)?(FIRE)?")  # what an action of one is called
NAMES = {"ArrowLeft": "←", "ArrowRight": "→", "ArrowUp": "↑", "ArrowDown": "↓", " ": "space"}


class Controls:
    """Continuous numbers are pushed by pairs of keys, choices are made by rows of keys, a joystick is the arrows.

    Args:
        spec: what can be done.
        meanings: of the actions of a single choice, as Atari's environments name them; empty if they have no names.
    """

    def __init__(self, spec: ActionSpec, meanings: Sequence[str] = ()):
        self._spec, self._meanings = spec, list(meanings)
        self._chosen: dict[tuple[str, int], int] = {}  # what a choice of two keeps while no key is pressed
        self.legend: list[str] = []
        self._free, self._free_pairs = list(KEYS), list(PAIRS)
        self._pairs: dict[tuple[str, int], tuple[str, str]] = {}
        self._rows: dict[tuple[str, int], str] = {}
        without: list[str] = []
        for part in spec.parts:
            if part.classes and self._is_joystick(part):
                moves = [NAMES[key] for name, key in JOYSTICK.items() if any(name in each for each in self._meanings)]
                self.legend.append(" ".join(moves))
                continue
            for i in range(len(part.classes) or part.size):
                name = part.key if max(len(part.classes), part.size) == 1 else f"{part.key} {i}"
                keys, wanted = self._assign(part, i)
                if keys:
                    self.legend.append(f"{name}: {' '.join(NAMES.get(key, key) for key in keys)}")
                if len(keys) < wanted:
                    without.append(f"{wanted - len(keys)} choices of {name}" if keys else name)
        if len(without) > 3:
            without = [f"{without[0]} and {len(without) - 1} others"]
        if without:
            self.legend.append(f"no keys are left for {', '.join(without)}")

    def _assign(self, part: ActionPart, i: int) -> tuple[Sequence[str], int]:
        """The keys that it gets, and how many it would need."""
        if part.classes and part.classes[i] > 3:
            row = "".join(self._free[: part.classes[i]])
            del self._free[: part.classes[i]]
            self._rows[part.key, i] = row
            return row, part.classes[i]
        if not self._free_pairs:
            self._free_pairs = list(zip(self._free[::2], self._free[1::2]))
            self._free = []
        if not self._free_pairs:
            return (), 2
        self._pairs[part.key, i] = self._free_pairs.pop(0)
        return self._pairs[part.key, i], 2

    def rest(self) -> None:
        """Forget what was chosen, as at the beginning of an episode."""
        self._chosen.clear()

    def _is_joystick(self, part: ActionPart) -> bool:
        named = len(part.classes) == 1 and len(self._meanings) == part.classes[0] > 1
        return named and all(STICK.fullmatch(meaning) for meaning in self._meanings)

    def action(self, keys: Collection[str]) -> np.ndarray:
        """The flat action (A,) float32 of the keys that are pressed, as browsers name them."""
        values: list[np.ndarray] = []
        for part in self._spec.parts:
            if not part.classes:
                values.append(np.array([self._push(part, i, keys) for i in range(part.size)], np.float32))
            elif self._is_joystick(part):
                values.append(np.eye(part.classes[0], dtype=np.float32)[self._joystick(keys)])
            else:
                for i, classes in enumerate(part.classes):
                    values.append(np.eye(classes, dtype=np.float32)[self._choice(part, i, classes, keys)])
        return np.concatenate(values)

    def _push(self, part: ActionPart, i: int, keys: Collection[str]) -> float:
        less, more = self._pairs.get((part.key, i), ("", ""))
        return float(more in keys) - float(less in keys)

    def _choice(self, part: ActionPart, i: int, classes: int, keys: Collection[str]) -> int:
        place = part.key, i
        if row := self._rows.get(place):
            return next((row.index(key) for key in keys if key in row), 0)
        push = round(self._push(part, i, keys))
        if classes == 3:  # the middle one is at rest
            return 1 + push
        if push:
            self._chosen[place] = int(push > 0)
        return min(self._chosen.get(place, 0), classes - 1)

    def _joystick(self, keys: Collection[str]) -> int:
        """The action whose name asks for most of the pressed keys and for no other."""
        best, most = 0, 0
        for number, meaning in enumerate(self._meanings):
            asked = {key for name, key in JOYSTICK.items() if name in meaning}
            if asked <= set(keys) and len(asked) > most:
                best, most = number, len(asked)
        return best
