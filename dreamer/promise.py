"""Whether a policy lives off the mistakes of its model: what its own dreams promise, held against what came."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bootstrap import Line, Resample
from .dream import Dream, Episode
from .rssm import State


@dataclass(frozen=True)
class Promise:
    """Reward a step by the steps ahead, the policy acting; nothing comes after an end."""

    dreamed: Line
    came: Line
    more: Line  # the first less the second
    overall: Line  # the same of all steps together, as if it were one


def promise(
    dream: Dream,
    episodes: Sequence[Episode],
    moments: Sequence[tuple[int, int]],
    start: State,
    horizon: int,
    resample: Resample,
) -> Promise:
    """One dream from each of N moments, in which the policy acts as it did in the episode.

    Args:
        moments: (N,) an episode and a row of it.
        start: (N, ...) the posterior states there.
        horizon: H steps.
    """
    came = np.stack([_came(episodes[number], row, horizon) for number, row in moments])
    dreamed = np.where(np.isnan(came), np.nan, _dreamed(dream, start, horizon))
    more = dreamed - came
    overall = np.nanmean(more, 1, keepdims=True)
    return Promise(*(resample.line(values) for values in (dreamed, came, more, overall)))


def _came(episode: Episode, row: int, horizon: int) -> np.ndarray:
    """(H,) rewards after a row, NaN where it was not watched any more."""
    result = np.full(horizon, 0.0 if episode.is_terminal else np.nan)
    rewards = episode.reward[row + 1 : row + 1 + horizon]
    result[: len(rewards)] = rewards
    return result


def _dreamed(dream: Dream, state: State, horizon: int) -> np.ndarray:
    """(N, H) rewards that are expected, each times the chance that its dream has gone on until there."""
    alive, rewards = np.ones(len(state.deter)), []
    for _ in range(horizon):
        state = dream.step(state, dream.act(state))
        reward, goes_on = (each.cpu().numpy() for each in dream.outcome(state))
        rewards.append(alive * reward)
        alive = alive * goes_on
    return np.stack(rewards, 1)
