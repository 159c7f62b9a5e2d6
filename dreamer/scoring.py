"""Scores of a trained agent: the one function that plays episodes without learning."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .agent import Agent
from .errors import UserMistake
from .loop import Environments, Rows, tensors
from .video import to_rgb

RESAMPLES = 10_000  # of the bootstrap
FILM = 3_000  # pictures at most


@dataclass(frozen=True)
class Scores:
    """Undiscounted scores and lengths (agent steps) of some episodes."""

    scores: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def std(self) -> float:
        """Of the sample, 0 for a single episode."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else 0.0

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Percentile bootstrap interval of the mean."""
        generator = np.random.default_rng(0)
        picks = generator.integers(len(self.scores), size=(RESAMPLES, len(self.scores)))
        means = np.asarray(self.scores)[picks].mean(1)
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "interval_95": list(self.interval()), **asdict(self)}


def evaluate(
    agent: Agent,
    environments: Environments,
    episodes: int,
    greedy: bool = False,
    film: list[np.ndarray] | None = None,
    report: Callable[[str], None] = lambda text: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Scores:
    """Play whole episodes.

    Each environment plays its share and no more: taking whichever end first would favour short ones.

    Args:
        agent: acts by its policy; its parameters stay as they are.
        environments: N of them, not begun.
        episodes: at least 1.
        greedy: the most likely action instead of a sample.
        film: gets the pictures (H, W, 3) of the first environment's first episode, where it can draw itself.
        report: is told how far it is, at every step.
        stopped: ends it at once, with what is over by then.
    """
    if episodes < 1:
        raise UserMistake(f"{episodes} episodes leave nothing to score; give 1 or more")
    count = len(environments)
    quota = shares(episodes, count)
    finished: list[list[tuple[float, int]]] = [[] for _ in range(count)]
    score, length = np.zeros(count), np.zeros(count, int)
    memory = agent.start(count)
    while any(len(done) < wanted for done, wanted in zip(finished, quota)) and not stopped():
        rows = environments.step(agent.action_spec.to_environment(memory.action.cpu().numpy()))
        seen = tensors(rows)
        memory = agent.act(seen["observation"], seen["is_first"], seen["is_last"], memory, greedy)
        if film is not None and not finished[0] and len(film) < FILM:
            film.extend(_pictures(environments, rows))
        score = np.where(rows.is_first, 0.0, score + rows.reward)
        length = np.where(rows.is_first, 0, length + 1)
        report(f"{sum(map(len, finished))} of {episodes} episodes, {length.max()} steps into the longest open one")
        for i in np.flatnonzero(rows.is_last):
            if len(finished[i]) < quota[i]:
                finished[i].append((float(score[i]), int(length[i])))
    played = [episode for done in finished for episode in done]
    return Scores(tuple(score for score, _ in played), tuple(length for _, length in played))


def shares(episodes: int, count: int) -> list[int]:
    """How many of the episodes each of `count` environments plays."""
    return [episodes // count + (i < episodes % count) for i in range(count)]


def _pictures(environments: Environments, rows: Rows) -> list[np.ndarray]:
    """What the first environment draws or, if nothing, what it sees; empty if neither."""
    picture = environments.render(0)
    if picture is None:
        picture = next((to_rgb(value[0]) for value in rows.observation.values() if value.ndim == 4), None)
    return [] if picture is None else [picture]
