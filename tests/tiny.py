"""What several tests share: a model that updates in milliseconds, and a replay whose rows say what they are."""

import torch
from click.testing import CliRunner
from counting import Counting

import envs
from dreamer.agent import Agent
from dreamer.cli import main
from dreamer.config import make_config
from dreamer.distributions import twohot_places
from dreamer.loop import Counters
from dreamer.replay import Replay, Transition, new_replay
from dreamer.rssm import State
from dreamer.spaces import ActionPart, ActionSpec, ObservationSpec, action_spec, observation_spec

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


def counting_vector(count, **arguments):
    factories = [lambda name=name: envs.Adapt(Counting(name, **arguments)) for name in range(count)]
    return envs.Vector(factories, range(count))


def spaces(vector):
    return observation_spec(vector.observation_space), action_spec(vector.action_space)


def tiny_agent(config, vector):
    return Agent(config, *spaces(vector), torch.device("cpu"), torch.float32)


def tiny_replay(config, agent, capacity=400):
    generator = torch.Generator().manual_seed(config.seed)
    return new_replay(config, agent.observation_spec, agent.action_spec, config.envs, capacity, generator)


def trained_run(folder, task, frames, *arguments):
    """The folder of a run that `dreamer train` has written."""
    widths = [word for setting in WIDTHS for word in ("--set", setting)]
    options = ["--env", task, "--size", "1m", "--frames", str(frames), "--run", str(folder)]
    result = CliRunner().invoke(main, ["train", *options, *widths, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return folder


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
