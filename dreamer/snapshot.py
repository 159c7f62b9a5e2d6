"""All that a run needs to go on exactly where it stopped, besides the rows of its replay."""

from dataclasses import asdict
from typing import Any, Protocol

from torch import Tensor

from .acting import Memory
from .agent import Agent
from .checkpoint import arrays, plain
from .config import lasting
from .loop import Counters
from .replay import Replay
from .rssm import State


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
    """A run's state between two rows; `memory` is what the policy carries, None if the open episodes are lost.

    Raises:
        EpisodesLost: the environments say that they can save their state, but cannot.
    """
    return {
        "counters": asdict(counters),
        "config": lasting(agent.config),
        "agent": agent.state_dict(),
        "sampler": replay.generator.get_state(),
        "observer": plain(observer.get_state()),
        "episodes": _episodes(environments, memory),
    }


def _episodes(environments: Episodes, memory: Memory | None) -> dict[str, Any] | None:
    if memory is None or not environments.can_save_state:
        return None
    carried: list[Tensor] = [memory.state.deter, memory.state.stoch, memory.action]
    try:
        state = plain(environments.get_state())
    except Exception as error:  # it is somebody else's code
        raise EpisodesLost(f"{error}") from error
    return {"environments": state, "memory": [part.cpu() for part in carried]}


class EpisodesLost(Exception):
    """Open episodes that can neither be saved nor gone on with; the message says why."""


def restore(
    state: dict[str, Any], agent: Agent, replay: Replay, observer: Stateful, environments: Episodes
) -> Memory | None:
    """Put all of a state back but the counters.

    Returns:
        What the policy carries, None where all episodes begin anew.

    Raises:
        EpisodesLost: the environments refuse their state; all else is restored.
    """
    agent.load_state_dict(state["agent"])
    replay.generator.set_state(state["sampler"])
    observer.set_state(arrays(state["observer"]))
    episodes = state["episodes"]
    if episodes is None or not environments.can_save_state:
        return None
    try:
        environments.set_state(arrays(episodes["environments"]))
    except Exception as error:  # it is somebody else's code, perhaps of another version
        raise EpisodesLost(f"{error}") from error
    deter, stoch, action = (part.to(agent.device) for part in episodes["memory"])
    return Memory(State(deter, stoch), action)
