"""Environments that write down what happened. Without torch, for processes of their own to start quickly."""

import itertools
import os
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces


class Counting(gymnasium.Env):
    """Its observation says which environment, row, episode and step this is and which action led here.

    The reward is the discrete action plus one. `episodes`: the length of each and whether it really ends, in turn.
    Rows are counted from 0, resets included. At a reset the action is -1.
    """

    observation_space = spaces.Dict({"where": spaces.Box(-np.inf, np.inf, (7,), np.float32)})
    action_space = spaces.Dict({"move": spaces.Box(-1, 1, (2,), np.float32), "act": spaces.Discrete(4)})

    def __init__(self, name=0, episodes=((3, True), (5, False), (1, True), (2, False))):
        self.name, self.episodes = name, itertools.cycle(episodes)
        self.row, self.episode = -1, -1

    def reset(self, *, seed=None, options=None):
        self.length, self.terminates = next(self.episodes)
        self.episode, self.step_number = self.episode + 1, 0
        return self.observe(-1, (-1, -1)), {}

    def step(self, action):
        assert self.step_number < self.length, "stepped after its end"
        self.step_number += 1
        over = self.step_number == self.length
        observation = self.observe(action["act"], action["move"])
        return observation, 1.0 + action["act"], over and self.terminates, over and not self.terminates, {}

    def observe(self, act, move):
        self.row += 1
        where = (self.name, self.row, self.episode, self.step_number, act, *move)
        return {"where": np.array(where, np.float32)}


class Saving(Counting):
    """Which can say where it is, unless the variable FAILS says how that goes wrong."""

    def get_state(self):
        if os.environ.get("FAILS") == "get":
            raise RuntimeError("the simulator says no")
        odd = {"path": Path("level")} if os.environ.get("FAILS") == "odd" else {}
        return odd | {"episode": self.episode, "row": self.row, "step": self.step_number, "length": self.length}

    def set_state(self, state):
        if os.environ.get("FAILS") == "set":
            raise RuntimeError("made by version 1")
        self.episodes = itertools.cycle(((3, True), (5, False), (1, True), (2, False)))
        for _ in range(state["episode"] + 1):
            self.length, self.terminates = next(self.episodes)
        self.episode, self.row, self.step_number = state["episode"], state["row"], state["step"]


class Lever(gymnasium.Env):
    """One of two levers is worth a point, so a policy without any entropy bonus soon pulls no other."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.zeros(1, np.float32), float(action), self.count == 5, False, {}
