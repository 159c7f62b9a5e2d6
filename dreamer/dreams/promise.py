"""Whether a policy lives off the mistakes of its model: what its own dreams promise, held against what came.

Unlike the forecasts of `diagnose.py`, which are told the real actions, these dreams are the policy's: it acts in them
as in training (paper eq. 4), so it may go where it really did not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..rssm import State
from .bootstrap import Line, Resample
from .dream import Dream, Episode


@dataclass(frozen=True)
class Promise:
    """Reward a step by the steps ahead, 0 after an end; NaN where no moment was watched so far."""

    dreamed: Line  # (H,)
    came: Line  # (H,)
    more: Line  # (H,) the first less the second
    overall: Line  # (1,) the same, every step of every moment counted once


def promise(
    dream: Dream,
    episodes: Sequence[Episode],
    moments: Sequence[tuple[int, int]],
    start: State,
    horizon: int,
    resample: Resample,
) -> Promise:
    """One dream from each of N moments, in which the policy acts anew, beside what came after that moment.

    A dream has ended by a step with the chance that its model gives; its reward there counts by the rest. Where an
    episode was cut, neither is counted from there on.

    Args:
        dream: of the agent that has played the episodes.
        episodes: that were played.
        moments: (N,) an episode and a row of it, not its last.
        start: (N, ...) the posterior states there.
        horizon: H steps.
        resample: over the episodes of the moments.

    Returns:
        Means over the moments, with intervals of 95 %.
    """
    came = np.stack([_came(episodes[number], row, horizon) for number, row in moments])
    dreamed = np.where(np.isnan(came), np.nan, _dreamed(dream, start, horizon))
    more = dreamed - came
    overall = resample.line(np.nansum(more, 1, keepdims=True), (~np.isnan(more)).sum(1, keepdims=True))
    return Promise(resample.line(dreamed), resample.line(came), resample.line(more), overall)


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
