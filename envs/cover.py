"""A ball that passes behind a cover: what is out of view has to be remembered. The task is `envs.cover:Cover`.

Its row and its colour are drawn for each episode and cannot be told while it is hidden, nor before it is seen again.
It goes from wall to wall and back at half a pixel, one or two a step, and the cover, in the middle, is narrow or wide.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIDE = 48
BALL = 12
ROWS = (0, 12, 24, 36)  # the ball's upper edge
COLOURS = np.array([[255, 80, 80], [80, 255, 80], [90, 90, 255], [255, 255, 80]], np.uint8)
COVER = np.array([120, 120, 120], np.uint8)
WIDTHS = (BALL + 1, SIDE // 2)  # of the cover, from and to: no ball can leap over the place where it is hidden
SPEEDS = (0.5, 1.0, 2.0)
STEPS = 150


class Cover(gymnasium.Env[np.ndarray, np.int64]):
    """Say in which row the ball comes back: one point if the action is its row as it appears from behind the cover.

    By chance it is a quarter of a point for each time the ball comes back, if it is not remembered.
    """

    render_mode = "rgb_array"
    metadata = {"render_modes": ["rgb_array"]}
    observation_space = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
    action_space = spaces.Discrete(len(ROWS))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        draw = self.np_random.integers
        self.row, self.colour = int(draw(len(ROWS))), int(draw(len(COLOURS)))
        self.width = int(draw(WIDTHS[0], WIDTHS[1] + 1))
        self.left = (SIDE - self.width) // 2
        self.speed = SPEEDS[draw(len(SPEEDS))]
        self.place, self.direction = float(draw(0, self.left - BALL // 2)), 1
        self.count = 0
        return self._picture(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        was_hidden = self.is_hidden
        self.place += self.direction * self.speed
        if not 0 <= self.place <= SIDE - BALL:
            self.place = min(max(self.place, 0), SIDE - BALL)
            self.direction *= -1
        comes_back = was_hidden and not self.is_hidden
        self.count += 1
        return self._picture(), float(comes_back and action == self.row), False, self.count == STEPS, {}

    @property
    def is_hidden(self) -> bool:
        return self.left <= self.column and self.column + BALL <= self.left + self.width

    @property
    def column(self) -> int:
        """Of the ball's left edge."""
        return int(self.place)

    def render(self) -> np.ndarray:
        return self._picture()

    def _picture(self) -> np.ndarray:
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        row = ROWS[self.row]
        picture[row : row + BALL, self.column : self.column + BALL] = COLOURS[self.colour]
        picture[:, self.left : self.left + self.width] = COVER
        return picture


def visible(pictures: np.ndarray) -> np.ndarray:
    """(T, H, W) bool, where the ball is seen in pictures (T, H, W, 3) uint8."""
    return (pictures[..., None, :] == COLOURS).all(-1).any(-1)
