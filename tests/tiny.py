"""What several tests share: a model that updates in milliseconds, and an environment that writes down what happened."""

import itertools

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

import envs
from dreamer.agent import Agent
from dreamer.config import make_config
from dreamer.distributions import twohot_places
from dreamer.replay import Replay, Transition
from dreamer.rssm import State
from dreamer.spaces import ActionPart, ActionSpec, ObservationSpec, action_spec, observation_spec
from dreamer.train import Counters

WIDTHS = (
    "model.deter=16",
    "model.hidden=8",
    "model.units=8",
    "model.stoch=2",
    "model.classes=3",
    "model.blocks=2",
    "model.depth=2",
    "behavior.horizon=2",
    "replay.batch=2",
    "replay.length=4",
    "ratio=1",
    "run.compile=false",
    "run.precision=float32",
    "run.device=cpu",
)


BINS_TO_LOGITS = twohot_places(torch.arange(255))


def placed(ascending):
    """Logits (..., 255) of the bins from the lowest to the highest, in the order that the heads give them."""
    logits = torch.empty_like(ascending)
    logits[..., BINS_TO_LOGITS] = ascending
    return logits


def tiny_config(*settings, task="gym/CartPole-v1", **given):
    return make_config(task, size="1m", settings=[*WIDTHS, *settings], **given)


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


def counting_vector(count, **arguments):
    factories = [lambda name=name: envs.Adapt(Counting(name, **arguments)) for name in range(count)]
    return envs.Vector(factories, range(count))


def tiny_agent(config, vector):
    observation, action = observation_spec(vector.observation_space), action_spec(vector.action_space)
    return Agent(config, observation, action, torch.device("cpu"), torch.float32)


def tiny_replay(config, agent, capacity=400):
    model = config.model
    return Replay(
        agent.observation_spec,
        agent.action_spec.width,
        (model.deter, model.stoch, model.classes),
        streams=config.envs,
        capacity=capacity,
        length=config.replay.length,
        generator=torch.Generator().manual_seed(config.seed),
    )


def tiny_run(*settings, envs=1, capacity=400, repeat=1, **given):
    """Everything that `train` takes, in its order, for counting environments."""
    config = tiny_config(*settings, envs=envs, **given)
    vector = counting_vector(envs)
    agent = tiny_agent(config, vector)
    return config, agent, vector, tiny_replay(config, agent, capacity), Counters(repeat)


class Silent:
    """An observer that sees nothing."""

    def rows(self, rows, counters):
        pass

    def update(self, metrics, batch, counters):
        pass

    def show(self, agent, batch, counters):
        pass

    def get_state(self):
        return {}

    def set_state(self, state):
        assert state == {}


class Unsaved:
    """A saver that never saves."""

    def due(self):
        return False

    def save(self, memory):
        pass


def never():
    return False


# A replay whose rows say what they are -----------------------------------------------------------------

OBSERVATION = ObservationSpec(images={}, floats={"id": 2}, integers={})
ACTION = ActionSpec((ActionPart("action", classes=(2,)),))
DETER, STOCH, CLASSES = 3, 2, 4


def id_replay(streams=1, capacity=100, length=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Replay(OBSERVATION, ACTION.width, (DETER, STOCH, CLASSES), streams, capacity, length, generator)


def id_row(streams, row, is_first=None):
    """Row number `row` of each stream: observation (stream, row), action row + 0.5, reward row + 0.25, deter row."""
    number = torch.full((streams,), float(row))
    latent = State(
        number.unsqueeze(1).expand(streams, DETER) + 0.125,
        torch.eye(CLASSES)[torch.tensor([[row % CLASSES, (row + 1) % CLASSES]] * streams)],
    )
    no = torch.zeros(streams, dtype=torch.bool)
    return Transition(
        observation={"id": torch.stack([torch.arange(streams).float(), number], 1)},
        action=torch.stack([number + 0.5, -number], 1),
        reward=number + 0.25,
        is_first=no if is_first is None else torch.as_tensor(is_first),
        is_last=no,
        is_terminal=no,
        latent=latent,
    )


def fill(replay, rows, first=0):
    for row in range(first, first + rows):
        replay.add(id_row(replay.streams, row))
    return replay


class Saving(Counting):
    """Which can say where it is."""

    def get_state(self):
        return {"episode": self.episode, "row": self.row, "step": self.step_number, "length": self.length}

    def set_state(self, state):
        self.episodes = itertools.cycle(((3, True), (5, False), (1, True), (2, False)))
        for _ in range(state["episode"] + 1):
            self.length, self.terminates = next(self.episodes)
        self.episode, self.row, self.step_number = state["episode"], state["row"], state["step"]


def saving():
    return Saving()
