"""Runs beside each other and beside the published scores, and over tasks as one number with an interval.

The statistics are those of rliable (Agarwal et al. 2021), whose figures the tests hold. Its last version, 1.2.0, would
bring four packages along for these few lines, and does not import beside today's pandas.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import UserMistake
from .published import (
    NOT_JUDGED,
    OWN_RUNS,
    Band,
    human_normalized,
    in_words,
    number,
    other_protocol,
    own_at,
    passed,
    short,
    verdict,
    window,
)
from .scores import Curve, grouped

RESAMPLES = 2000
NO_INTERVAL = "no interval, since a task has one seed"
TRIMMED = 0.25  # of the scores at either end, for the interquartile mean


@dataclass(frozen=True)
class Result:
    """The runs of one method on one task: mean scores of the last training episodes up to some frames."""

    task: str
    method: str
    frames: int
    scores: tuple[float, ...]  # one for each run
    published: Band | None  # the last that is not beyond ours
    there: tuple[float, ...]  # the runs' scores at its frames
    verdict: str  # empty where nothing is published, or under another protocol
    protocol: tuple[str, ...]  # in what it differs from the published one
    own: Band | None  # what this package's runs with the same settings had at the frames of the published

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def judgement(self) -> str:
        """The verdict, or why there is none; empty where nothing is published."""
        return self.verdict or (f"{NOT_JUDGED}: {'; '.join(self.protocol)}" if self.protocol else "")

    @property
    def normalized(self) -> tuple[float, ...]:
        """1 is a human in Atari, and the most there is in the Control Suite; empty for other tasks."""
        values = [normalize(self.task, score) for score in self.scores]
        return tuple(value for value in values if value is not None)


@dataclass(frozen=True)
class Aggregate:
    """A statistic of normalised scores over tasks and seeds, with its 95% interval, None where seeds are single."""

    name: str
    value: float
    interval: tuple[float, float] | None


def normalize(task: str, score: float) -> float | None:
    """Human-normalised for Atari, a share of the most there is for the Control Suite, else None."""
    if task.startswith(("dmc/", "dmc_vision/")):
        return score / 1000
    return human_normalized(task, score)


def results(curves: Sequence[Curve], frames: int | None = None) -> list[Result]:
    """One for each task and method, at `frames`, or where the shortest run on the task ends.

    Raises:
        UserMistake: a run has no score there, or is given twice.
    """
    ends: dict[str, int] = {}
    for curve in curves:
        ends[curve.config.task] = min(curve.end, ends.get(curve.config.task, curve.end))
    return [result(runs, frames or ends[task]) for (task, _), runs in grouped(curves).items()]


def cut_short(curves: Sequence[Curve]) -> list[str]:
    """A sentence for each task of which a young run keeps the scores of longer ones from being seen."""
    said = []
    for task in sorted({curve.config.task for curve in curves}):
        runs = sorted((curve for curve in curves if curve.config.task == task), key=lambda curve: curve.end)
        first, last = runs[0], runs[-1]
        if first.end < window(task) * last.end:
            at = f"{task} is compared at {first.end:,} frames, where {first.folder} ends"
            said.append(f"{at}; leave it out to compare later scores, up to {last.end:,}")
    return said


def result(runs: Sequence[Curve], frames: int) -> Result:
    """Of runs that differ in their seed alone, at so many frames; errors as of `results`."""
    task = runs[0].config.task
    for run in runs:
        if run.end < frames:
            raise UserMistake(
                f"{run.folder} has no score at {frames:,} frames; it ends at {run.end:,}: give fewer, or leave it out"
            )
    begun = max(run.frames[0] for run in runs) if all(len(run.frames) for run in runs) else frames
    band = passed(task, begun, frames)
    there = _scores(runs, band.frames) if band else ()
    differing = other_protocol(runs[0].config) if band else []
    own = own_at(runs[0].config, band.frames) if band and differing else None
    if own and own.seeds == len(there) and abs(own.mean - float(np.mean(there))) < 0.01:
        own = None  # these are they
    return Result(
        task=task,
        method=runs[0].method,
        frames=frames,
        scores=_scores(runs, frames),
        published=band,
        there=there,
        verdict=verdict(float(np.mean(there)), band, len(there)) if band and not differing else "",
        protocol=tuple(differing),
        own=own,
    )


def _scores(runs: Sequence[Curve], frames: int) -> tuple[float, ...]:
    scores = []
    for run in runs:
        score = run.at(frames, window(run.config.task))
        if score is None:
            raise UserMistake(
                f"no episode of {run.folder} had ended at {frames:,} frames; leave it out, or compare it later"
            )
        scores.append(score)
    return tuple(scores)


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half: one task moves it less than the mean (Agarwal et al. 2021)."""
    cut = int(len(values) * TRIMMED)
    return float(np.sort(values)[cut : len(values) - cut].mean())


def aggregates(found: Sequence[Result]) -> list[Aggregate]:
    """Of one method's results; the interval resamples the seeds of each task (stratified bootstrap, same paper)."""
    tasks = [np.array(result.normalized) for result in found if result.normalized]
    if not tasks:
        return []
    statistics: dict[str, Callable[[list[np.ndarray]], float]] = {
        "interquartile mean": lambda tasks: interquartile_mean(np.concatenate(tasks)),
        "mean": lambda tasks: float(np.mean([scores.mean() for scores in tasks])),
        "median": lambda tasks: float(np.median([scores.mean() for scores in tasks])),
    }
    generator = np.random.default_rng(0)
    resampled = [
        [scores[generator.integers(len(scores), size=len(scores))] for scores in tasks] for _ in range(RESAMPLES)
    ]
    several = min(len(scores) for scores in tasks) > 1
    result = []
    for name, statistic in statistics.items():
        low, high = np.quantile([statistic(each) for each in resampled], [0.025, 0.975])
        result.append(Aggregate(name, statistic(tasks), (float(low), float(high)) if several else None))
    return result


def to_json(found: Sequence[Result]) -> dict[str, Any]:
    return {
        "results": [asdict(result) | {"mean": result.mean, "normalized": result.normalized} for result in found],
        "aggregates": [
            {"method": method, "scale": scale, "tasks": len(mine), "frames": spanned(mine)} | asdict(value)
            for (method, scale), mine in comparable(found).items()
            for value in aggregates(mine)
        ],
    }


def comparable(found: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """The results by method, and by suite and scale, where there is more than one score."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in found:
        if result.normalized:
            suite = result.task.split("/")[0]
            scale = "human-normalised" if suite.startswith("atari") else "scores as a share of 1000"
            groups.setdefault((result.method, f"{suite}, {scale}"), []).append(result)
    return {key: mine for key, mine in groups.items() if sum(len(result.scores) for result in mine) > 1}


def spanned(found: Sequence[Result]) -> tuple[int, int]:
    """The fewest and the most frames that results are at."""
    frames = [result.frames for result in found]
    return min(frames), max(frames)


def table(found: Sequence[Result]) -> str:
    """For people."""
    rows = [("task", "method", "seeds", "frames", "score", "range", "normalised", "published", "ours there", "")]
    for each in found:
        normalized = f"{np.mean(each.normalized):.3f}" if each.normalized else ""
        spread = f"{number(min(each.scores))} to {number(max(each.scores))}" if len(each.scores) > 1 else ""
        band, there, ours = each.published, "", ""
        if band is not None:
            there = f"{number(band.mean)} +- {number(band.std, 3)} at {short(band.frames)}"
            ours = number(float(np.mean(each.there)))
        rows.append(
            (
                each.task, each.method, str(len(each.scores)), f"{each.frames:,}", number(each.mean),
                spread, normalized, there, ours, each.judgement,
            )
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    for (method, scale), mine in comparable(found).items():
        low, high = spanned(mine)
        where = f"{low:,} frames" if low == high else f"{low:,} to {high:,} frames; --frames N sets them all to one"
        lines.append(f"\n{method}, {scale}, over {len(mine)} task{'s' * (len(mine) > 1)} at {where}:")
        for value in aggregates(mine):
            interval = "95% interval {:.3f} to {:.3f}".format(*value.interval) if value.interval else NO_INTERVAL
            lines.append(f"  {value.name:<18} {value.value:.3f} ({interval})")
    kept = [
        f"  {each.task}, {each.method}: {in_words(each.own)} at {short(each.own.frames)} frames"
        for each in found
        if each.own
    ]
    lines += [f"\n{OWN_RUNS}:", *kept] if kept else []
    if any(each.published for each in found):
        lines.append("\npublished: Hafner et al. 2025, training episodes, mean and standard deviation over seeds")
    return "\n".join(lines)
