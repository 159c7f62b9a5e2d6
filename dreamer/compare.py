"""Runs beside each other and beside the published scores, and over tasks as one number with an interval."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .errors import UserMistake
from .published import Band, human_normalized, other_protocol, short, verdict, window
from .published import curve as published
from .scores import Curve

RESAMPLES = 2000
TRIMMED = 0.25  # of the scores at either end, for the interquartile mean


@dataclass(frozen=True)
class Result:
    """The runs of one method on one task: mean scores of the last training episodes up to some frames."""

    task: str
    method: str
    frames: int
    scores: tuple[float, ...]  # one for each run
    published: float | None  # at the last published frames that are not beyond ours
    published_frames: int | None
    verdict: str  # empty where nothing is published, or under another protocol

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

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
    """One for each task and method, at `frames`, or where the shortest of its runs ends.

    Raises:
        UserMistake: a run has no score there.
    """
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.config.task, curve.method), []).append(curve)
    return [_result(task, method, runs, frames) for (task, method), runs in sorted(groups.items())]


def _result(task: str, method: str, runs: list[Curve], frames: int | None) -> Result:
    at = min(run.last for run in runs) if frames is None else frames
    scores = []
    for run in runs:
        score = run.at(at, window(task))
        if score is None or run.last < window(task) * at:
            raise UserMistake(f"{run.folder} has no score at {at:,} frames; it ends at {run.last:,}")
        scores.append(score)
    band = _band_at(task, at)
    judged = band is not None and band.frames > window(task) * at and not other_protocol(runs[0].config)
    return Result(
        task=task,
        method=method,
        frames=at,
        scores=tuple(scores),
        published=band.mean if band else None,
        published_frames=band.frames if band else None,
        verdict=verdict(float(np.mean(scores)), band, len(scores)) if band and judged else "",
    )


def _band_at(task: str, frames: int) -> Band | None:
    before = [band for band in published(task) if band.frames <= frames]
    return before[-1] if before else None


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half: one task moves it less than the mean (Agarwal et al. 2021)."""
    cut = int(len(values) * TRIMMED)
    return float(np.sort(values)[cut : len(values) - cut].mean())


def aggregates(found: Sequence[Result]) -> list[Aggregate]:
    """Of one method's results; the interval resamples the seeds of each task (stratified bootstrap, same paper)."""
    tasks = [np.array(result.normalized) for result in found if result.normalized]
    if not tasks:
        return []
    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "interquartile mean": interquartile_mean,
        "mean": lambda values: float(values.mean()),
        "median": lambda values: float(np.median(values)),
    }
    generator = np.random.default_rng(0)
    resampled = [
        np.concatenate([task[generator.integers(len(task), size=len(task))] for task in tasks])
        for _ in range(RESAMPLES)
    ]
    several = min(len(task) for task in tasks) > 1
    whole, result = np.concatenate(tasks), []
    for name, statistic in statistics.items():
        low, high = np.quantile([statistic(values) for values in resampled], [0.025, 0.975])
        result.append(Aggregate(name, statistic(whole), (float(low), float(high)) if several else None))
    return result


def to_json(found: Sequence[Result]) -> dict[str, Any]:
    return {
        "results": [asdict(result) | {"mean": result.mean, "normalized": result.normalized} for result in found],
        "aggregates": [
            {"method": method, "scale": scale, "tasks": len(mine)} | asdict(value)
            for (method, scale), mine in comparable(found).items()
            for value in aggregates(mine)
        ],
    }


def comparable(found: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """The results by method and scale, those whose scores are normalised in the same way."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in found:
        if result.normalized:
            scale = "human-normalised" if result.task.startswith("atari") else "scores as a share of 1000"
            groups.setdefault((result.method, scale), []).append(result)
    return groups


def table(found: Sequence[Result]) -> str:
    """For people."""
    rows = [("task", "method", "seeds", "frames", "score", "range", "normalised", "published", "")]
    for result in found:
        normalized = f"{np.mean(result.normalized):.3f}" if result.normalized else ""
        spread = f"{min(result.scores):.4g} to {max(result.scores):.4g}" if len(result.scores) > 1 else ""
        there = ""
        if result.published is not None and result.published_frames is not None:
            there = f"{result.published:.4g} at {short(result.published_frames)}"
        rows.append(
            (
                result.task, result.method, str(len(result.scores)), f"{result.frames:,}", f"{result.mean:.4g}",
                spread, normalized, there, result.verdict,
            )
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    for (method, scale), mine in comparable(found).items():
        if len(mine) < 2:
            continue
        lines.append(f"\n{method}, {scale}, over {len(mine)} tasks:")
        for value in aggregates(mine):
            interval = f" (95% interval {value.interval[0]:.3f} to {value.interval[1]:.3f})" if value.interval else ""
            lines.append(f"  {value.name:<18} {value.value:.3f}{interval}")
    return "\n".join(lines)
