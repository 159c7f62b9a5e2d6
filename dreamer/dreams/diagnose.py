"""How far a world model can be trusted: what it expects, open loop, held against real episodes.

From many moments of fresh episodes the model is told the real actions and nothing else (`promise.py` lets the policy
act instead). `DREAMS` dreams begin at each moment, and their mean is the forecast; a single dream, which is what the
policy learns from, errs more, and is given beside it. Two forecasts that know nothing are the measure: what was seen
last goes on, and the mean of all.

Intervals are 95 % bootstrap intervals over episodes, since the moments of an episode are alike.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import distributions as dist
from ..agent import Agent
from ..errors import UserMistake
from ..replay import Replay
from ..rssm import State, stack
from ..spaces import ObservationSpec
from .bootstrap import Line, Resample, rank_correlation
from .by_heart import learned_kl
from .dream import Dream, Episode
from .out_of_view import TASK as COVER
from .out_of_view import Returns, out_of_view
from .promise import Promise, promise

HORIZON = 100
LONGEST = 2000  # rows after which an episode is watched no longer
MOMENTS = 200  # over all episodes; a third of it where there are images
DREAMS = 19  # so that their extremes are an interval of 90 %, and the middle eleven one of 50 %
LEVELS = {"90 %": 1, "50 %": 5}  # nominal coverage, and the how many-th dream from either end bounds it
FIT = 15  # steps over which the rate of errors is fitted
EVERY = 4  # rows and columns of images that are looked at for the spread of dreams
LIVELY = 2.0  # of 255: the standard deviation from which on a pixel is not background
BUCKETS = 10  # of the value's calibration
CHUNK = 512  # states that are decoded at once
REWARD, GOES_ON = "reward", "goes on"


def trusted(better: np.ndarray) -> int:
    """The last step at which the model is better (H,), as it is at most steps up to there; 0 if there is none.

    Not at all of them: where things come and go in step, what was seen last is right again and again.
    """
    steps = np.arange(1, len(better) + 1)
    found = steps[better & (2 * np.cumsum(better) > steps)]
    return int(found[-1]) if len(found) else 0


@dataclass(frozen=True)
class Number:
    """One number of a vector by itself: its mean errors (H,), named as in `Errors`."""

    model: np.ndarray
    repeat: np.ndarray
    mean: np.ndarray
    is_constant: bool
    better: np.ndarray

    @property
    def trusted(self) -> int:
        return trusted(self.better)


@dataclass(frozen=True)
class Errors:
    """Of one quantity: how far off the forecasts are, and what follows from that.

    Errors are roots of the mean square in its own units; of classes, the share that is wrong.
    """

    unit: str
    model: Line
    single: Line  # of a single dream
    repeat: Line  # of what was seen last
    mean: Line  # of the mean of all that was seen
    is_constant: bool  # never changes: there is nothing to forecast
    better: np.ndarray  # (H,) bool, the model better than both others with 95 % confidence
    single_better: np.ndarray  # the same of a single dream
    rate: float  # of what the model knows more than the mean does, the share that a step loses; NaN if it is not more
    implied: np.ndarray  # (H,) the error that this rate comes to, compounded
    covered: dict[str, Line]  # by nominal share: how often the truth lay between the dreams; empty for integers
    spread: Line  # the dreams' deviation over their mean's error, both as root mean squares; 1 where they are right
    numbers: list[Number]  # of a vector of several, each by itself; else empty

    @property
    def trusted(self) -> int:
        return trusted(self.better)


@dataclass(frozen=True)
class Values:
    """Predicted returns against those that followed, over all rows; where an episode goes on, what it is worth there
    is taken from the prediction."""

    predicted: np.ndarray  # (buckets,) means, of rows sorted by their prediction
    followed: np.ndarray
    rows: int
    own_share: float  # mean weight that the prediction at an episode's end has in what followed, where it goes on
    bias: float
    error: float  # root of the mean square
    rank_correlation: float  # Spearman's, NaN if either never changes
    rank_low: float
    rank_high: float


@dataclass(frozen=True)
class Ends:
    """The chance to go on that the model gives, NaN where there is nothing to average."""

    count: int  # episodes that really ended
    seen: float  # at their last row, having seen it
    expected: float  # the same one step before, by the action that was taken
    elsewhere: float  # at all other rows, having seen them


@dataclass(frozen=True)
class Diagnosis:
    """All that was measured."""

    task: str
    episodes: int
    rows: int
    moments: np.ndarray  # (H,) how many reach so far
    judged: int  # steps that enough episodes reach to say anything with confidence
    imagination: int  # steps, in training
    errors: dict[str, Errors]
    drift: Line  # KL of the posterior with the prior of the dream, nats
    one_step: float  # the same KL where the model has seen all that came before
    learned: float  # that of rows that it has learned from, NaN without them
    promise: Promise
    values: Values
    ends: Ends
    out_of_view: list[Returns]  # of the task that asks for it, else empty

    @property
    def trusted(self) -> int:
        """Steps: the least over all observations that change."""
        return min((errors.trusted for errors in self._observed()), default=0)

    @property
    def single_trusted(self) -> int:
        """The same of a single dream, which is what the policy learns from."""
        return min((trusted(errors.single_better) for errors in self._observed()), default=0)

    @property
    def imagination_is_inside(self) -> bool | None:
        """Whether the steps of imagination lie within the trusted horizon; None where it cannot be told."""
        if not self._observed() or self.trusted == self.judged < self.imagination:
            return None
        return self.trusted >= self.imagination

    def _observed(self) -> list[Errors]:
        return [e for key, e in self.errors.items() if key not in (REWARD, GOES_ON) and not e.is_constant]

    def to_json(self) -> dict[str, Any]:
        result = _plain(asdict(self))
        for key, errors in self.errors.items():
            result["errors"][key]["trusted"] = errors.trusted
            for number, plain in zip(errors.numbers, result["errors"][key]["numbers"]):
                plain["trusted"] = number.trusted
        return result | {
            "trusted_horizon": self.trusted,
            "trusted_horizon_of_a_single_dream": self.single_trusted,
            "imagination_is_inside": self.imagination_is_inside,
        }


def diagnose(
    agent: Agent,
    episodes: Sequence[Episode],
    task: str,
    seed: int = 0,
    horizon: int = HORIZON,
    report: Callable[[str], None] = lambda text: None,
    rows: Replay | None = None,
) -> Diagnosis:
    """Measure all of it.

    Args:
        agent: whose world model it is about.
        episodes: that it has not learned from, at least two of two rows or more.
        rows: that it has learned from; None if they are not there any more.
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
    tally = {key: _Tally(key, spec, episodes, len(moments), horizon) for key in _keys(spec)}
    posterior = [_posterior(dream, episode) for episode in episodes]
    drift = np.full((len(moments), horizon), np.nan)

    reach = np.array([len(episodes[number]) - 1 - row for number, row in moments])
    here = np.arange(len(moments))
    start = _gather(episodes, moments)
    state = _repeated(start)
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
        judged=int(resample.enough(drift).sum()),
        imagination=agent.config.behavior.horizon,
        errors={key: each.errors(resample) for key, each in tally.items()},
        drift=resample.line(drift),
        one_step=float(torch.cat(one_step).mean()),
        promise=promise(dream, episodes, moments, start, horizon, resample),
        values=_values(dream, episodes, agent.world_model.discount, generator),
        ends=_ends(dream, episodes),
        out_of_view=out_of_view(agent, episodes, seed) if task == COVER else [],
        learned=learned_kl(dream, rows) if rows is not None else float("nan"),  # last: all else is the same without
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
    """The posterior states (N, ...) of moments."""
    return stack([State(*(each[row] for each in episodes[number].state)) for number, row in moments])


def _repeated(state: State) -> State:
    """Each of the states DREAMS times."""
    return State(state.deter.repeat_interleave(DREAMS, 0), state.stoch.repeat_interleave(DREAMS, 0))


def _read(dream: Dream, state: State, here: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """What the states of moments mean, some at a time: which, and (n, DREAMS, ...) of each quantity."""
    few = max(1, CHUNK // DREAMS)
    for first in range(0, len(here), few):
        part = slice(first * DREAMS, (first + few) * DREAMS)
        moment = dream.read(State(state.deter[part], state.stoch[part]))
        found = moment.observation | {REWARD: moment.reward, GOES_ON: moment.goes_on}
        yield here[first : first + few], {key: value.unflatten(0, (-1, DREAMS)) for key, value in found.items()}


class _Tally:
    """The errors of one quantity at all moments and steps, as they come."""

    def __init__(self, key: str, spec: ObservationSpec, episodes: Sequence[Episode], moments: int, horizon: int):
        self._is_class = key in spec.integers
        self._has_spread = key in spec.images or key in spec.floats  # what is read off as one number has none
        self._unit = "of 255" if key in spec.images else "share wrong" if self._is_class else ""
        self._series = [_series(episode, key) for episode in episodes]
        if self._is_class:  # the most frequent class
            self._mean = np.array([np.bincount(column).argmax() for column in np.concatenate(self._series).T])
        else:
            self._mean = _mean(self._series)
        self._picked = _picked(self._series, self._mean, key in spec.images)
        apart = 0 if key in spec.images or self._mean.size == 1 else self._mean.size
        self._apart = {
            name: np.full((moments, horizon, apart), np.nan, np.float32) for name in ("model", "repeat", "mean")
        }
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
        off = {
            "model": self._off(together, truth),
            "repeat": self._off(last, truth),
            "mean": self._off(self._mean, truth),
        }
        found = {name: each.reshape(len(part), -1).mean(-1) for name, each in off.items()}
        found["single"] = self._off(dreams, truth[:, None]).reshape(len(part), -1).mean(-1)
        for name, each in off.items():
            if self._apart[name].size:
                self._apart[name][part, step - 1] = each.reshape(len(part), -1)
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

    def _off(self, forecast: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """The square of how far each number is off; whether a class is wrong at all.

        What is averaged are squares, since no forecast is better by them than what is to be expected. By the distance
        itself one of what is rare would lose against saying that it never comes.
        """
        return (forecast != truth).astype(np.float32) if self._is_class else np.square(forecast - truth)

    def _line(self, resample: Resample, values: np.ndarray) -> Line:
        """In the quantity's own units again."""
        line = resample.line(values)
        return line if self._is_class else _root(line)

    def errors(self, resample: Resample) -> Errors:
        found = self._found
        lines = {name: self._line(resample, found[name]) for name in ("model", "single", "repeat", "mean")}
        rate, implied = compounded(lines["model"].mean, lines["mean"].mean)
        return Errors(
            unit=self._unit,
            **lines,
            is_constant=_is_constant(found["repeat"]),
            better=_is_better(resample, found, "model"),
            single_better=_is_better(resample, found, "single"),
            rate=rate,
            implied=implied,
            covered={level: resample.line(found[level]) for level in LEVELS} if self._has_spread else {},
            spread=_root(resample.line(found["variance"], found["square"])),
            numbers=[self._number(i, resample) for i in range(self._apart["model"].shape[-1])],
        )

    def _number(self, i: int, resample: Resample) -> Number:
        found = {name: values[..., i] for name, values in self._apart.items()}
        return Number(
            **{name: self._line(resample, values).mean for name, values in found.items()},
            is_constant=_is_constant(found["repeat"]),
            better=_is_better(resample, found, "model"),
        )


def _is_constant(repeat: np.ndarray) -> bool:
    """Whether what was seen last is always right."""
    return not np.nanmax(repeat) > 0


def _is_better(resample: Resample, found: dict[str, np.ndarray], name: str) -> np.ndarray:
    return resample.is_less(found[name], found["repeat"]) & resample.is_less(found[name], found["mean"])


def _mean(series: Sequence[np.ndarray]) -> np.ndarray:
    """Over the rows of all, which would be large in one piece."""
    return np.sum([each.sum(0, dtype=float) for each in series], 0) / sum(map(len, series))


def _root(line: Line) -> Line:
    return Line(np.sqrt(line.mean), np.sqrt(line.low), np.sqrt(line.high))


def _picked(series: Sequence[np.ndarray], mean: np.ndarray, is_image: bool) -> np.ndarray:
    """Which numbers of a row (n,) bool are looked at for the spread of dreams: of images, some that change."""
    if not is_image:
        return np.ones(mean.size, bool)
    some = np.s_[::EVERY, ::EVERY]
    variance = _mean([np.square(each[:, ::EVERY, ::EVERY] - mean[some]) for each in series])
    grid = np.zeros(mean.shape, bool)
    grid[some] = variance > LIVELY**2
    return grid.reshape(-1)


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


def _values(dream: Dream, episodes: Sequence[Episode], discount: float, generator: np.random.Generator) -> Values:
    predicted, followed, numbers, own = [], [], [], []
    for number, episode in enumerate(episodes):
        value = dream.value(episode.state).cpu().numpy()
        result, returns = 0.0 if episode.is_terminal else float(value[-1]), []
        for reward in episode.reward[:0:-1]:
            result = reward + discount * result
            returns.append(result)
        own.append(0.0 if episode.is_terminal else discount ** np.arange(len(returns), 0, -1))
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
        own_share=float(np.concatenate([np.broadcast_to(w, len(y)) for w, y in zip(own, followed)]).mean()),
        bias=float((x - y).mean()),
        error=float(np.sqrt(np.square(x - y).mean())),
        rank_correlation=rank,
        rank_low=low,
        rank_high=high,
    )


def _ends(dream: Dream, episodes: Sequence[Episode]) -> Ends:
    ended = [episode for episode in episodes if episode.is_terminal]
    goes_on = [dream.outcome(episode.state)[1].cpu() for episode in episodes]
    seen = [each[-1] for each, episode in zip(goes_on, episodes) if episode.is_terminal]
    others = [each[: len(each) - episode.is_terminal] for each, episode in zip(goes_on, episodes)]
    expected = float("nan")
    if ended:
        before = _repeated(_gather(ended, [(i, len(episode) - 2) for i, episode in enumerate(ended)]))
        actions = torch.stack([episode.action[-2] for episode in ended]).repeat_interleave(DREAMS, 0)
        expected = float(dream.outcome(dream.step(before, actions))[1].mean())
    return Ends(
        count=len(ended),
        seen=float(torch.stack(seen).mean()) if ended else float("nan"),
        expected=expected,
        elsewhere=float(torch.cat(others).mean()),
    )


def _plain(value: Any) -> Any:
    """For JSON, which has neither arrays nor NaN."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
