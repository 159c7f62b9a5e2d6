"""Bootstrap intervals over groups of values that belong together."""

from dataclasses import dataclass

import numpy as np

# That must reach a step: intervals of fewer tell nothing. Where nothing differs, 5 episodes find a difference in 10 of
# 100 cases instead of 5, and 10 episodes in 7.
LEAST_EPISODES = 5
RESAMPLES = 1000


@dataclass(frozen=True)
class Line:
    """A mean over moments at steps 1 to H, and its interval; NaN where no moment has a step so far ahead."""

    mean: np.ndarray  # (H,)
    low: np.ndarray
    high: np.ndarray


class Resample:
    """Bootstrap over episodes.

    Args:
        numbers: (N,) the episode of each moment.
        episodes: how many there are.
    """

    def __init__(self, numbers: np.ndarray, episodes: int, generator: np.random.Generator):
        self._member = np.eye(episodes)[numbers].T  # (E, N)
        self._weights = generator.multinomial(episodes, np.full(episodes, 1 / episodes), RESAMPLES)  # (R, E)

    def line(self, values: np.ndarray, divisor: np.ndarray | None = None) -> Line:
        """The mean of values (N, H), or the ratio of two means."""
        above, below = self._sums(values, divisor)
        with np.errstate(all="ignore"):
            mean = above.sum(0) / below.sum(0)
            means = (self._weights @ above) / (self._weights @ below)
        low, high = np.where(self.enough(values), _quantiles(means, [0.025, 0.975]), np.nan)
        return Line(mean, low, high)

    def enough(self, values: np.ndarray) -> np.ndarray:
        """(H,) whether enough episodes reach a step to say anything with confidence."""
        return (self._member @ ~np.isnan(values) > 0).sum(0) >= LEAST_EPISODES

    def is_less(self, values: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(H,) whether the mean of the first is less with 95 % confidence."""
        above, below = self._sums(values - others, None)
        with np.errstate(all="ignore"):
            means = (self._weights @ above) / (self._weights @ below)
        return (_quantiles(means, [0.95])[0] < 0) & self.enough(values)

    def _sums(self, values: np.ndarray, divisor: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        there = ~np.isnan(values)
        below = there.astype(float) if divisor is None else np.where(there, divisor, 0.0)
        return self._member @ np.where(there, values, 0.0), self._member @ below


def _quantiles(means: np.ndarray, levels: list[float]) -> np.ndarray:
    """Along the first axis; NaN where all are, else of those that are not."""
    result = np.full((len(levels), means.shape[1]), np.nan)
    there = ~np.isnan(means).all(0)
    result[:, there] = np.nanquantile(means[:, there], levels, axis=0)
    return result


def rank_correlation(
    x: np.ndarray, y: np.ndarray, numbers: np.ndarray, groups: int, generator: np.random.Generator
) -> tuple[float, float, float]:
    """Spearman's, of (n,) and (n,), and its bootstrap interval over the groups that `numbers` (n,) names.

    The interval is NaN where these are too few.
    """
    a, b = _ranks(x), _ranks(y)
    sums = np.stack([np.bincount(numbers, each, groups) for each in (np.ones(len(a)), a, b, a * a, b * b, a * b)], 1)
    weights = generator.multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)

    def correlation(total: np.ndarray) -> np.ndarray:
        n, sa, sb, saa, sbb, sab = np.moveaxis(total, -1, 0)
        with np.errstate(all="ignore"):
            return (sab / n - sa * sb / n**2) / np.sqrt((saa / n - (sa / n) ** 2) * (sbb / n - (sb / n) ** 2))

    low, high = _quantiles(correlation(weights @ sums)[:, None], [0.025, 0.975])[:, 0]
    if len(np.unique(numbers)) < LEAST_EPISODES:
        low = high = np.nan
    return float(correlation(sums.sum(0))), float(low), float(high)


def _ranks(x: np.ndarray) -> np.ndarray:
    """From -1/2 to 1/2; equal ones share their mean rank."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - (counts - 1) / 2)[inverse] - (len(x) + 1) / 2) / len(x)
