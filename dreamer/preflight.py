"""Whether a run fits into memory, before it begins."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from .agent import Agent
from .errors import UserMistake
from .replay import Batch, Replay
from .rssm import State

FEW_STEPS = 8  # from which the memory of long sequences is told: it grows in proportion


class Needs(NamedTuple):
    """Bytes that a run takes, the last one for the moment before the gradients of an update are computed."""

    replay: int
    model: int
    activations: int

    @property
    def total(self) -> int:
        return sum(self)


def needs(agent: Agent, replay: Replay) -> Needs:
    """What a run of this agent will take, on the device; nothing is computed or allocated for it."""
    count = replay.bytes if replay.device.type == agent.device.type else 0
    # Each parameter has a gradient and two moments beside it.
    parameters = sum(p.numel() * p.element_size() for p in agent.parameters)
    slow = sum(p.numel() * p.element_size() for p in agent.actor_critic.slow_critic.parameters())
    return Needs(count, 4 * parameters + slow, activation_bytes(agent, replay.blank(agent.config.replay.batch)))


def activation_bytes(agent: Agent, batch: Batch) -> int:
    """What a loss keeps for its gradients, as if it were computed step by step; a compiled one keeps less."""
    length = batch.reward.shape[1]
    steps = min(length, FEW_STEPS)
    kept: dict[int, int] = {}
    storages = []  # alive as long as they are told apart by where they are

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        storages.append(storage)
        kept[storage._cdata] = storage.nbytes()
        return value

    before = agent.generator.get_state()
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
    ):
        agent.loss(first_steps(batch, steps).to(agent.device))
    agent.generator.set_state(before)
    return sum(kept.values()) * length // steps


def first_steps(batch: Batch, steps: int) -> Batch:
    """The first `steps` of every sequence of a batch."""
    return Batch(
        observation={key: value[:, :steps] for key, value in batch.observation.items()},
        prev_action=batch.prev_action[:, :steps],
        reward=batch.reward[:, :steps],
        is_first=batch.is_first[:, :steps],
        is_last=batch.is_last[:, :steps],
        is_terminal=batch.is_terminal[:, :steps],
        start=State(batch.start.deter, batch.start.stoch),
    )


def in_words(need: Needs) -> str:
    return f"replay {size(need.replay)} when full, model {size(need.model)}, an update {size(need.activations)}"


def check(need: Needs, available: int, agent: Agent) -> None:
    """Raise UserMistake if a run does not fit.

    Args:
        available: bytes of the device's memory.
    """
    if need.total <= available:
        return
    config, most = agent.config.replay, available - need.model - need.replay
    fits = config.batch * most // max(1, need.activations)
    hint = f"replay.batch={fits} would fit" if fits >= 1 else "give a smaller --size"
    raise UserMistake(
        f"a {agent.config.size} model with batches of {config.batch} x {config.length} steps needs {size(need.total)} "
        f"of memory ({in_words(need)}), but {agent.device.type} has {size(available)}; {hint}"
    )


def size(count: int) -> str:
    """Bytes in the unit that suits them."""
    number, unit = next(
        ((count / one, unit) for one, unit in ((1e9, "GB"), (1e6, "MB")) if count >= one), (count / 1e3, "kB")
    )
    return f"{number:.3g} {unit}"
