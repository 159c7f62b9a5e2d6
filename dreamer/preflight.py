"""Whether a run fits into memory, before it begins."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .agent import Agent
from .errors import UserMistake
from .replay import Batch, Replay

FEW_STEPS = 4  # from which the memory of long sequences is told: it grows in proportion


class Needs(NamedTuple):
    """Bytes that a run takes, the last two for the moment before the gradients of an update are computed."""

    replay: int  # when full
    model: int
    update: int  # whatever the batch
    batch: int  # what each of its steps adds

    def on(self, agent: Agent, replay: Replay) -> int:
        """Those that the agent's device has to hold."""
        return sum(self) - self.replay * (replay.device.type != agent.device.type)


def needs(agent: Agent, replay: Replay) -> Needs:
    """What a run of this agent will take, on its device."""
    # Each parameter has a gradient and two moments beside it.
    copies = [*agent.actor_critic.slow_critic.parameters(), *agent.acting.parameters]
    return Needs(replay.bytes, 4 * held(agent.parameters) + held(copies), *activation_bytes(agent, replay))


def held(parameters: Iterable[Tensor]) -> int:
    """Bytes that they take."""
    return sum(p.numel() * p.element_size() for p in parameters)


def activation_bytes(agent: Agent, replay: Replay) -> tuple[int, int]:
    """What a loss keeps for its gradients: what does not grow, and what a batch adds, told from two short sequences.

    As if it were computed without a compiler; a compiled loss keeps less.
    """
    config = agent.config.replay
    steps = min(config.length, FEW_STEPS)
    one, two = (kept(agent, replay.blank(sequences, steps)) for sequences in (1, 2))
    each = (two - one) / steps
    return 2 * one - two, int(each * config.batch * config.length)


def kept(agent: Agent, batch: Batch) -> int:
    """Bytes that the loss of a batch keeps for its gradients; nothing changes."""
    storages = {}

    def keep(value: Tensor) -> Tensor:
        storages[value.untyped_storage().data_ptr()] = value.untyped_storage()
        return value.detach()  # an operation that keeps its own result would keep itself, and never be freed

    before = agent.generator.get_state()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        agent.loss(batch.to(agent.device))
    agent.generator.set_state(before)
    return sum(storage.nbytes() for storage in storages.values())


def in_words(need: Needs) -> str:
    return f"replay {size(need.replay)} when full, model {size(need.model)}, an update {size(need.update + need.batch)}"


def check(need: Needs, available: int, agent: Agent, replay: Replay) -> None:
    """Raise UserMistake if a run does not fit.

    Args:
        available: bytes of the device's memory.
    """
    total = need.on(agent, replay)
    if total <= available:
        return
    config, most = agent.config.replay, available - (total - need.batch)
    fits = config.batch * most // max(1, need.batch)
    hint = f"replay.batch={fits} would fit" if fits >= 1 else "give a smaller --size or replay.capacity"
    raise UserMistake(
        f"a {agent.config.size} model with batches of {config.batch} x {config.length} steps needs {size(total)} "
        f"of memory ({in_words(need)}), but {agent.device.type} has {size(available)}; {hint}"
    )


def size(count: int) -> str:
    """Bytes in the unit that suits them."""
    number, unit = next(
        ((count / one, unit) for one, unit in ((1e9, "GB"), (1e6, "MB")) if count >= one), (count / 1e3, "kB")
    )
    return f"{number:.3g} {unit}"
