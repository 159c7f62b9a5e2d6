"""How far a world model can be trusted: what it expects, open loop, held against real episodes.

From many moments of fresh episodes the model is told the real actions and nothing else. `DREAMS` dreams begin at each
moment, and their mean is the forecast; a single dream, which is what the policy learns from, errs more, and is given
beside it. Two forecasts that know nothing are the measure: what was seen last goes on, and the mean of all.

Intervals are 95 % bootstrap intervals over episodes, since the moments of an episode are alike.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import distributions as dist
from .agent import Agent
from .dream import Dream, Episode
from .errors import UserMistake
from .out_of_view import TASK as COVER
from .out_of_view import Returns, out_of_view
from .rssm import State
from .spaces import ObservationSpec

HORIZON = 100
LONGEST = 2000  # rows after which an episode is watched no longer
LEAST_EPISODES = 5  # that must reach a step, or all if there are fewer: an interval of one or two tells nothing
MOMENTS = 200  # over all episodes; a third of it where there are images
DREAMS = 19  # so that their extremes are an interval of 90 %, and the middle eleven one of 50 %
LEVELS = {"90 %": 1, "50 %": 5}  # nominal coverage, and the how many-th dream from either end bounds it
RESAMPLES = 1000
FIT = 15  # steps over which the rate of errors is fitted
EVERY = 4  # rows and columns of images that are looked at for the spread of dreams
LIVELY = 2.0  # of 255: the standard deviation from which on a pixel is not background
BUCKETS = 10  # of the value's calibration
CHUNK = 512  # states that are decoded at once
REWARD, GOES_ON = "reward", "goes on"


@dataclass(frozen=True)
class Line:
    """A mean over moments at steps 1 to H, and its interval; NaN where no moment has a step so far ahead."""

    mean: np.ndarray  # (H,)
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Errors:
    """Of one quantity: how far off the forecasts are, in its own units, and what follows from that."""

    unit: str
    model: Line
    single: Line  # of a single dream
    repeat: Line  # of what was seen last
    mean: Line  # of the mean of all that was seen
    is_constant: bool  # never changes: there is nothing to forecast
    better: np.ndarray  # (H,) bool, the model better than both others with 95 % confidence
    rate: float  # of what the model knows more than the mean does, the share that a step loses; NaN if it is not more
    implied: np.ndarray  # (H,) the error that this rate comes to, compounded
    covered: dict[str, Line]  # by nominal share: how often the truth lay between the dreams; empty for integers
    spread: Line  # the dreams' deviation over their mean's error, both as root mean squares; 1 where they are right

    @property
    def trusted(self) -> int:
        """The last step at which the model is better, as it is at most steps up to there; 0 if there is none.

        Not at all of them: where things come and go in step, what was seen last is right again and again.
        """
        steps = np.arange(1, len(self.better) + 1)
        found = steps[self.better & (2 * np.cumsum(self.better) > steps)]
        return int(found[-1]) if len(found) else 0


@dataclass(frozen=True)
class Values:
    """Predicted returns against those that followed, over all rows; where an episode goes on, what it is worth there
    is taken from the prediction."""

    predicted: np.ndarray  # (buckets,) means, of rows sorted by their prediction
    followed: np.ndarray
    rows: int
    bias: float
    error: float  # root of the mean square
    rank_correlation: float  # Spearman's, NaN if either never changes
    rank_low: float
    rank_high: float


@dataclass(frozen=True)
class Diagnosis:
    """All that was measured."""

    task: str
    episodes: int
    rows: int
    moments: np.ndarray  # (H,) how many reach so far
    imagination: int  # steps, in training
    errors: dict[str, Errors]
    drift: Line  # KL of the posterior with the prior of the dream, nats
    one_step: float  # the same KL where the model has seen all that came before
    values: Values
    out_of_view: list[Returns]  # of the task that asks for it, else empty

    @property
    def trusted(self) -> int:
        """Steps: the least over all observations that change."""
        ends = [e.trusted for key, e in self.errors.items() if key not in (REWARD, GOES_ON) and not e.is_constant]
        return min(ends, default=0)

    def to_json(self) -> dict[str, Any]:
        result = _plain(asdict(self))
        for key, errors in self.errors.items():
            result["errors"][key]["trusted"] = errors.trusted
        return result | {"trusted_horizon": self.trusted, "imagination_is_inside": self.trusted >= self.imagination}


def diagnose(
    agent: Agent,
    episodes: Sequence[Episode],
    task: str,
    seed: int = 0,
    horizon: int = HORIZON,
    report: Callable[[str], None] = lambda text: None,
) -> Diagnosis:
    """Measure all of it.

    Args:
        agent: whose world model it is about.
        episodes: that it has not learned from, at least two of two rows or more.
        seed: of the moments and the dreams.
        horizon: steps to look ahead.
        report: is told how far it is.

    Raises:
        UserMistake: there are too few episodes.
    """
    episodes = [episode for episode in episodes if len(episode) > 1]
    if len(episodes) < 2:
        raise UserMistake(f"{len(episodes)} episodes say nothing about their spread; give 2 or more")
    generator = np.random.default_rng(seed)
    dream = Dream(agent, seed)
    spec = agent.observation_spec
    count = max(1, MOMENTS // (3 if spec.images else 1) // len(episodes))
    moments = [
        (number, int(row))
        for number, episode in enumerate(episodes)
        for row in sorted(generator.choice(len(episode) - 1, min(count, len(episode) - 1), replace=False))
    ]
    means = {key: np.mean(np.concatenate([_series(e, key) for e in episodes]), 0) for key in _keys(spec)}
    tally = {key: _Tally(key, spec, episodes, means[key], len(moments), horizon) for key in _keys(spec)}
    posterior = [_posterior(dream, episode) for episode in episodes]
    drift = np.full((len(moments), horizon), np.nan)

    reach = np.array([len(episodes[number]) - 1 - row for number, row in moments])
    here = np.arange(len(moments))
    state = _gather(episodes, moments)
    for step in range(1, horizon + 1):
        report(f"{step} of {horizon} steps ahead, from {len(moments)} moments")
        stays = reach[here] >= step
        if not stays.any():
            break
        dreams = torch.from_numpy(np.repeat(stays, DREAMS)).to(agent.device)
        here, state = here[stays], State(state.deter[dreams], state.stoch[dreams])
        action = torch.stack([episodes[moments[i][0]].action[moments[i][1] + step - 1] for i in here])
        state = dream.step(state, action.repeat_interleave(DREAMS, 0))
        prior = dream.prior(state).unflatten(0, (len(here), DREAMS))
        real = torch.stack([posterior[moments[i][0]][moments[i][1] + step] for i in here])
        drift[here, step - 1] = dist.categorical_kl(real.unsqueeze(1), prior).sum(-1).mean(1).cpu()
        for part, forecasts in _read(dream, state, here):
            for key, forecast in forecasts.items():
                tally[key].add(part, step, forecast, moments)

    numbers = np.array([number for number, _ in moments])
    resample = Resample(numbers, len(episodes), generator)
    one_step = [
        dist.categorical_kl(posterior[i][1:], dream.prior(State(e.state.deter[1:], e.state.stoch[1:]))).sum(-1)
        for i, e in enumerate(episodes)
    ]
    return Diagnosis(
        task=task,
        episodes=len(episodes),
        rows=sum(map(len, episodes)),
        moments=(reach[:, None] >= np.arange(1, horizon + 1)).sum(0),
        imagination=agent.config.behavior.horizon,
        errors={key: each.errors(resample) for key, each in tally.items()},
        drift=resample.line(drift),
        one_step=float(torch.cat(one_step).mean()),
        values=_values(dream, episodes, agent.world_model.discount, generator),
        out_of_view=out_of_view(agent, episodes, seed) if task == COVER else [],
    )


def _keys(spec: ObservationSpec) -> list[str]:
    return [*spec.keys, REWARD, GOES_ON]


def _series(episode: Episode, key: str) -> np.ndarray:
    """(T, ...) of one quantity."""
    return ({REWARD: episode.reward, GOES_ON: episode.goes_on} | episode.observation)[key]


def _posterior(dream: Dream, episode: Episode) -> Tensor:
    """Probabilities (T, S, K) once each row is seen, some rows at a time."""
    parts = []
    for first in range(0, len(episode), CHUNK):
        rows = slice(first, first + CHUNK)
        seen = {key: torch.from_numpy(value[rows]).to(dream.agent.device) for key, value in episode.observation.items()}
        parts.append(dream.posterior(State(episode.state.deter[rows], episode.state.stoch[rows]), seen))
    return torch.cat(parts)


def _gather(episodes: Sequence[Episode], moments: Sequence[tuple[int, int]]) -> State:
    """The posterior states of moments, DREAMS times each."""
    deter = torch.stack([episodes[number].state.deter[row] for number, row in moments])
    stoch = torch.stack([episodes[number].state.stoch[row] for number, row in moments])
    return State(deter.repeat_interleave(DREAMS, 0), stoch.repeat_interleave(DREAMS, 0))


def _read(dream: Dream, state: State, here: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """What the states of moments mean, some at a time: which, and (n, DREAMS, ...) of each quantity."""
    few = max(1, CHUNK // DREAMS)
    images = dream.agent.observation_spec.images
    for first in range(0, len(here), few):
        part = slice(first * DREAMS, (first + few) * DREAMS)
        moment = dream.read(State(state.deter[part], state.stoch[part]))
        found = {key: value * 255 if key in images else value for key, value in moment.observation.items()}
        found |= {REWARD: moment.reward, GOES_ON: moment.goes_on}
        yield here[first : first + few], {key: value.unflatten(0, (-1, DREAMS)) for key, value in found.items()}


class _Tally:
    """The errors of one quantity at all moments and steps, as they come."""

    def __init__(
        self,
        key: str,
        spec: ObservationSpec,
        episodes: Sequence[Episode],
        mean: np.ndarray,
        moments: int,
        horizon: int,
    ):
        self._is_class = key in spec.integers
        self._has_spread = key in spec.images or key in spec.floats  # what is read off as one number has none
        self._unit = "of 255" if key in spec.images else "share wrong" if self._is_class else ""
        self._series = [_series(episode, key) for episode in episodes]
        everything = np.concatenate(self._series)
        if self._is_class:  # the most frequent class
            mean = np.array([np.bincount(column).argmax() for column in everything.T])
        self._mean = mean
        self._picked = _picked(everything, key in spec.images)
        self._found = {
            name: np.full((moments, horizon), np.nan)
            for name in ("model", "single", "repeat", "mean", "variance", "square", *LEVELS)
        }

    def add(self, part: np.ndarray, step: int, forecast: Tensor, moments: Sequence[tuple[int, int]]) -> None:
        """Forecasts (n, DREAMS, ...) of the moments `part`."""
        dreams = forecast.float().cpu().numpy()
        places = [moments[i] for i in part]
        truth = np.stack([self._series[number][row + step] for number, row in places]).astype(np.float32)
        last = np.stack([self._series[number][row] for number, row in places])
        together = torch.mode(forecast.cpu(), 1).values.numpy() if self._is_class else dreams.mean(1)
        found = {
            "model": self._error(together, truth),
            "single": self._error(dreams, truth[:, None], lead=2).mean(1),
            "repeat": self._error(last, truth),
            "mean": self._error(self._mean, truth),
        }
        if self._has_spread and self._picked.any():
            shape = (len(part), DREAMS, -1)
            flat, real = dreams.reshape(shape)[..., self._picked], truth.reshape(len(part), -1)[:, None, self._picked]
            # Of a finite sample: what is drawn once more differs from the mean of the others by this much.
            deviation = flat.std(1, ddof=1) * np.sqrt(1 + 1 / DREAMS)
            found["variance"] = np.square(deviation).mean(-1)
            found["square"] = np.square(flat.mean(1) - real[:, 0]).mean(-1)
            for level, nth in LEVELS.items():
                inside = ((flat <= real).sum(1) >= nth) & ((flat >= real).sum(1) >= nth)
                found[level] = inside.mean(-1)
        for name, values in found.items():
            self._found[name][part, step - 1] = values

    def _error(self, forecast: np.ndarray, truth: np.ndarray, lead: int = 1) -> np.ndarray:
        """Over all but the first `lead` axes."""
        if self._is_class:
            wrong = (forecast != truth).astype(np.float32)
            return wrong.reshape(*wrong.shape[:lead], -1).mean(-1)
        squares = np.square(forecast - truth)
        return np.sqrt(squares.reshape(*squares.shape[:lead], -1).mean(-1))

    def errors(self, resample: "Resample") -> Errors:
        found = self._found
        better = resample.is_less(found["model"], found["repeat"]) & resample.is_less(found["model"], found["mean"])
        lines = {name: resample.line(found[name]) for name in ("model", "single", "repeat", "mean")}
        rate, implied = compounded(lines["model"].mean, lines["mean"].mean)
        return Errors(
            unit=self._unit,
            **lines,
            is_constant=not np.nanmax(found["repeat"]) > 0,
            better=better,
            rate=rate,
            implied=implied,
            covered={level: resample.line(found[level]) for level in LEVELS} if self._has_spread else {},
            spread=_root(resample.line(found["variance"], found["square"])),
        )


def _root(line: Line) -> Line:
    return Line(np.sqrt(line.mean), np.sqrt(line.low), np.sqrt(line.high))


def _picked(everything: np.ndarray, is_image: bool) -> np.ndarray:
    """Which numbers of a row (n,) bool are looked at for the spread of dreams: of images, some that change."""
    if not is_image:
        return np.ones(everything[0].size, bool)
    grid = np.zeros(everything.shape[1:], bool)
    grid[::EVERY, ::EVERY] = True
    return (grid & (everything.astype(np.float32).std(0) > LIVELY)).reshape(-1)


def compounded(model: np.ndarray, mean: np.ndarray) -> tuple[float, np.ndarray]:
    """The share of its lead that the model loses a step, and the errors (H,) that this comes to.

    The lead at step h is `1 - model[h] / mean[h]`, how much better than the mean the model is. If each step loses the
    share r of it, it is `lead[0] (1 - r)^h`; a line is fitted to its logarithm over the first `FIT` steps.
    """
    with np.errstate(all="ignore"):
        lead = 1 - model / mean
    steps = np.arange(1, len(model) + 1)
    use = (steps <= FIT) & (lead > 0.01)
    if use.sum() < 3:
        return float("nan"), np.full(len(model), np.nan)
    slope, start = np.polyfit(steps[use], np.log(lead[use]), 1)
    slope = min(slope, 0.0)
    return float(1 - np.exp(slope)), mean * (1 - np.exp(start + slope * steps))


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
        low, high = np.where(self._enough(values), _quantiles(means, [0.025, 0.975]), np.nan)
        return Line(mean, low, high)

    def _enough(self, values: np.ndarray) -> np.ndarray:
        """(H,) whether enough episodes reach a step."""
        episodes = (self._member @ ~np.isnan(values) > 0).sum(0)
        return episodes >= min(LEAST_EPISODES, len(self._member))

    def is_less(self, values: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(H,) whether the mean of the first is less with 95 % confidence."""
        above, below = self._sums(values - others, None)
        with np.errstate(all="ignore"):
            means = (self._weights @ above) / (self._weights @ below)
        return (_quantiles(means, [0.95])[0] < 0) & self._enough(values)

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


def _values(dream: Dream, episodes: Sequence[Episode], discount: float, generator: np.random.Generator) -> Values:
    predicted, followed, numbers = [], [], []
    for number, episode in enumerate(episodes):
        value = dream.value(episode.state).cpu().numpy()
        result, returns = 0.0 if episode.is_terminal else float(value[-1]), []
        for reward in episode.reward[:0:-1]:
            result = reward + discount * result
            returns.append(result)
        predicted.append(value[:-1])
        followed.append(np.array(returns[::-1]))
        numbers.append(np.full(len(returns), number))
    x, y, who = np.concatenate(predicted), np.concatenate(followed), np.concatenate(numbers)
    buckets = np.array_split(np.argsort(x, kind="stable"), min(BUCKETS, len(x)))
    rank, low, high = rank_correlation(x, y, who, len(episodes), generator)
    return Values(
        predicted=np.array([x[bucket].mean() for bucket in buckets]),
        followed=np.array([y[bucket].mean() for bucket in buckets]),
        rows=len(x),
        bias=float((x - y).mean()),
        error=float(np.sqrt(np.square(x - y).mean())),
        rank_correlation=rank,
        rank_low=low,
        rank_high=high,
    )


def rank_correlation(
    x: np.ndarray, y: np.ndarray, numbers: np.ndarray, groups: int, generator: np.random.Generator
) -> tuple[float, float, float]:
    """Spearman's, of (n,) and (n,), and its bootstrap interval over the groups that `numbers` (n,) names."""
    a, b = _ranks(x), _ranks(y)
    sums = np.stack([np.bincount(numbers, each, groups) for each in (np.ones(len(a)), a, b, a * a, b * b, a * b)], 1)
    weights = generator.multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)

    def correlation(total: np.ndarray) -> np.ndarray:
        n, sa, sb, saa, sbb, sab = np.moveaxis(total, -1, 0)
        with np.errstate(all="ignore"):
            return (sab / n - sa * sb / n**2) / np.sqrt((saa / n - (sa / n) ** 2) * (sbb / n - (sb / n) ** 2))

    low, high = _quantiles(correlation(weights @ sums)[:, None], [0.025, 0.975])[:, 0]
    return float(correlation(sums.sum(0))), float(low), float(high)


def _ranks(x: np.ndarray) -> np.ndarray:
    """From -1/2 to 1/2; equal ones share their mean rank."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - (counts - 1) / 2)[inverse] - (len(x) + 1) / 2) / len(x)


def _plain(value: Any) -> Any:
    """For JSON, which has neither arrays nor NaN."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
