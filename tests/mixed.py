"""An environment that needs every kind of observation, and an action of several parts: `tests.mixed:Signals`."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Signals(gymnasium.Env):
    """Answer the signals of an episode: turn to where the light is, and push the lever that key and dial call for.

    Each right answer of a step is worth half a point, so 20 steps are worth 20 at most and 8.33
    (20 * (1/2 * 1/2 + 1/2 * 1/3)) by chance. The switches and the second dial are noise.
    """

    STEPS = 20
    SIDE = 48
    observation_space = spaces.Dict(
        {
            "screen": spaces.Box(0, 255, (SIDE, SIDE), np.uint8),  # a light on the left or on the right
            "panel": spaces.Dict({"key": spaces.Discrete(3), "switches": spaces.MultiBinary(2)}),
            "dial": spaces.Box(-np.inf, np.inf, (2,), np.float32),  # the first turns the key's lever by one
        }
    )
    action_space = spaces.MultiDiscrete([2, 3])  # left or right, lever

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        self.side, self.turned = self.np_random.integers(2, size=2)
        self.key = self.np_random.integers(3)
        return self.show(), {}

    def step(self, action):
        turn, lever = action
        reward = 0.5 * (turn == self.side) + 0.5 * (lever == (self.key + self.turned) % 3)
        self.count += 1
        return self.show(), float(reward), False, self.count == self.STEPS, {}

    def show(self):
        screen = np.zeros((self.SIDE, self.SIDE), np.uint8)
        left = 4 + self.side * 24
        screen[16:32, left : left + 16] = 255
        dial = np.array([2.0 * self.turned - 1, self.np_random.normal()], np.float32)
        switches = self.np_random.integers(2, size=2).astype(np.int8)
        return {"screen": screen, "panel": {"key": self.key, "switches": switches}, "dial": dial}
