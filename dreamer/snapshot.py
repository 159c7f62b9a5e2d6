"""All that a run needs to go on exactly where it stopped, besides the rows of its replay."""

from dataclasses import asdict
from typing import Any, Protocol

from torch import Tensor

from .agent import Agent, Memory
from .checkpoint import arrays, plain
from .replay import Replay
from .rssm import State
from .train import Counters


class Stateful(Protocol):
    """Whatever can say what it needs to go on, in arrays and plain values."""

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


class Episodes(Stateful, Protocol):
    """Environments, which may be unable to."""

    @property
    def can_save_state(self) -> bool: ...


def take(
    agent: Agent, replay: Replay, counters: Counters, observer: Stateful, environments: Episodes, memory: Memory | None
) -> dict[str, Any]:
    """A run's state between two rows; `memory` is what the policy carries, None if the open episodes are lost."""
    return {
        "counters": asdict(counters),
        "agent": agent.state_dict(),
        "sampler": replay.generator.get_state(),
        "observer": plain(observer.get_state()),
        "episodes": _episodes(environments, memory),
    }


def _episodes(environments: Episodes, memory: Memory | None) -> dict[str, Any] | None:
    if memory is None or not environments.can_save_state:
        return None
    carried: list[Tensor] = [memory.state.deter, memory.state.stoch, memory.action]
    return {"environments": plain(environments.get_state()), "memory": [part.cpu() for part in carried]}


def restore(
    state: dict[str, Any], agent: Agent, replay: Replay, observer: Stateful, environments: Episodes
) -> Memory | None:
    """Put all of a state back but the counters. Returns what the policy carries, None where all episodes begin anew."""
    agent.load_state_dict(state["agent"])
    replay.generator.set_state(state["sampler"])
    observer.set_state(arrays(state["observer"]))
    episodes = state["episodes"]
    if episodes is None or not environments.can_save_state:
        return None
    environments.set_state(arrays(episodes["environments"]))
    deter, stoch, action = (part.to(agent.device) for part in episodes["memory"])
    return Memory(State(deter, stoch), action)
