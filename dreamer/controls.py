"""Keys of a keyboard as actions of any action space."""

from collections.abc import Collection, Sequence

import numpy as np

from .spaces import ActionPart, ActionSpec

PAIRS = [
    ("ArrowLeft", "ArrowRight"),
    ("ArrowDown", "ArrowUp"),
    ("a", "d"),
    ("s", "w"),
    ("f", "h"),
    ("g", "t"),
    ("j", "l"),
]
ROWS = ["1234567890", "yuioxczqe"]  # one for each choice among several
JOYSTICK = {"UP": "ArrowUp", "RIGHT": "ArrowRight", "LEFT": "ArrowLeft", "DOWN": "ArrowDown", "FIRE": " "}
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
        pairs, rows = iter(PAIRS), iter(ROWS)
        self._pairs: dict[tuple[str, int], tuple[str, str]] = {}
        self._rows: dict[tuple[str, int], str] = {}
        for part in spec.parts:
            if part.classes and self._is_joystick(part):
                keys = [NAMES[key] for name, key in JOYSTICK.items() if any(name in each for each in self._meanings)]
                self.legend.append(" ".join(keys))
                continue
            for i in range(len(part.classes) or part.size):
                self._assign(part, i, next(pairs, None), next(rows, None) if part.classes else None)

    def _assign(self, part: ActionPart, i: int, pair: tuple[str, str] | None, row: str | None) -> None:
        name = part.key if max(len(part.classes), part.size) == 1 else f"{part.key} {i}"
        if part.classes and part.classes[i] > 3:
            if row:
                self._rows[part.key, i] = row
                self.legend.append(f"{name}: {' '.join(row[: part.classes[i]])}")
        elif pair:
            self._pairs[part.key, i] = pair
            self.legend.append(f"{name}: {NAMES.get(pair[0], pair[0])} {NAMES.get(pair[1], pair[1])}")

    def _is_joystick(self, part: ActionPart) -> bool:
        return len(part.classes) == 1 and len(self._meanings) == part.classes[0] > 1

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
            return next((row.index(key) for key in keys if key in row[:classes]), 0)
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
