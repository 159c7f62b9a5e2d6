"""The training loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from .acting import Memory
from .agent import Agent
from .config import Config
from .cuda import moved
from .replay import Batch, Replay, Transition

CPU = torch.device("cpu")


class Rows(Protocol):
    """One row of each of N environments; what they are is drawn in `replay`."""

    @property
    def observation(self) -> dict[str, np.ndarray]: ...  # (N, ...)
    @property
    def reward(self) -> np.ndarray: ...  # (N,) float32
    @property
    def is_first(self) -> np.ndarray: ...  # (N,) bool
    @property
    def is_last(self) -> np.ndarray: ...  # (N,) bool
    @property
    def is_terminal(self) -> np.ndarray: ...  # (N,) bool


class Environments(Protocol):
    """N environments that advance in lock step, one act, one row; a reset is a row of its own."""

    def __len__(self) -> int: ...

    def step(self, actions: dict[str, np.ndarray]) -> Rows: ...

    def render(self, index: int) -> np.ndarray | None: ...  # (H, W, 3) uint8, where it can be drawn


class Observer(Protocol):
    """Whoever watches: it is told what happened and changes nothing.

    A GPU may still compute what `update` is given. In `update` and `show` it is waited for by whatever reads it; `rows`
    may read what came before the last update, or call `cuda.finish` first.
    """

    def rows(self, rows: Rows, counters: "Counters") -> None: ...

    def update(self, metrics: dict[str, torch.Tensor], batch: Batch, counters: "Counters") -> None: ...

    def show(self, agent: Agent, batch: Batch, counters: "Counters") -> None: ...  # a picture, now and then


class Saver(Protocol):
    """Whoever writes checkpoints, once a GPU has done what it was given (`cuda.finish`)."""

    def due(self) -> bool: ...

    def save(self, memory: Memory | None) -> None: ...  # what the policy carries; None if all episodes are lost


@dataclass
class Counters:
    """How far a run is."""

    repeat: int  # frames for each action
    rows: int = 0  # agent steps of all environments, resets included
    updates: int = 0
    owed: float = 0.0  # replayed steps that are due but make no whole update yet

    @property
    def frames(self) -> int:
        """Environment frames, as published budgets count them."""
        return self.rows * self.repeat


class Schedule:
    """When to learn: `ratio` replayed steps for each row, in updates of B * T steps.

    The first update comes with the first B * T start positions. Nothing is owed for rows before it.
    """

    def __init__(self, config: Config, counters: Counters):
        self.steps = config.replay.batch * config.replay.length
        self.ratio = config.ratio
        self.counters = counters

    def due(self, rows: int, starts: int) -> int:
        """Updates due after so many new rows, with so many start positions in the replay."""
        if self.counters.updates == 0:
            return int(starts >= self.steps)
        if starts < self.steps:  # the replay of a run that goes on was lost, or most of it
            return 0
        self.counters.owed += rows * self.ratio
        updates = int(self.counters.owed // self.steps)
        self.counters.owed -= updates * self.steps
        return updates


def train(
    config: Config,
    agent: Agent,
    environments: Environments,
    replay: Replay,
    counters: Counters,
    observers: Sequence[Observer],
    saver: Saver,
    stopped: Callable[[], bool],
    memory: Memory | None = None,
) -> None:
    """Collect and learn, in turns, until `config.frames` are seen or `stopped` says so; then save.

    Args:
        memory: what the policy carries, of a run that goes on in mid-episode; None where all episodes begin.

    Raises:
        Exception: whatever an environment raised, after a checkpoint; whatever an observer raised.
    """
    count = len(environments)
    schedule = Schedule(config, counters)
    memory = memory or agent.start(count)
    actions = memory.action.cpu().numpy()
    while counters.frames < config.frames and not stopped():
        try:
            rows = environments.step(agent.action_spec.to_environment(actions))
        except Exception:
            saver.save(None)  # nothing is half done here: what was learned so far is kept
            raise
        seen = tensors(rows, replay.device)  # which a GPU's replay and its agent share
        memory = agent.act(seen["observation"], seen["is_first"], seen["is_last"], memory)
        replay.add(Transition(**seen, action=memory.action, latent=memory.state))
        actions = memory.action.cpu().numpy()
        counters.rows += count
        for observer in observers:
            observer.rows(rows, counters)

        for _ in range(schedule.due(count, replay.starts)):
            with agent.learning():  # which a GPU does beside the rows to come: they act by the weights before it
                batch, windows = replay.sample(config.replay.batch)
                metrics, posterior = agent.update(batch)
                replay.refresh(windows, posterior)
                counters.updates += 1
                for observer in observers:
                    observer.update(metrics, batch, counters)
                    observer.show(agent, batch, counters)

        if saver.due():
            saver.save(memory)
    saver.save(memory)


def tensors(rows: Rows, device: torch.device = CPU) -> dict[str, Any]:
    """The fields of some rows as tensors; on the CPU they share their memory."""

    def tensor(value: np.ndarray) -> torch.Tensor:
        return moved(torch.from_numpy(value), device)

    return {
        "observation": {key: tensor(value) for key, value in rows.observation.items()},
        "reward": tensor(rows.reward),
        "is_first": tensor(rows.is_first),
        "is_last": tensor(rows.is_last),
        "is_terminal": tensor(rows.is_terminal),
    }
