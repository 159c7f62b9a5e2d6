"""The index of a folder of results: ours beside the published scores, tasks together, and the time to each score."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import compare, published, scores
from .scores import Curve

HALFWAY = 0.5  # of the frames of the longest run of the same kind


def write_index(results: Path) -> None:
    """`index.md` of the runs that `dreamer batch` has kept there."""
    curves, waiting = _read(results)
    found = compare.results(curves)
    lines = [*_results(found, curves), *_waiting(waiting), *_aggregates(found), *_times(curves)]
    (results / "index.md").write_text("\n".join(lines) + "\n")


def draw(results: Path) -> None:
    """`curves.png` of the same runs, a panel for each task."""
    from . import plot

    curves, _ = _read(results)
    if curves:
        plot.draw(curves, results / "curves.png")


def _read(results: Path) -> tuple[list[Curve], list[Curve]]:
    """The runs that are compared, and those that have begun."""
    curves = [scores.read(path.parent) for path in sorted(results.glob("*/scores.csv"))]
    curves = [curve for curve in curves if len(curve.frames)]
    longest: dict[tuple[str, str], int] = {}
    for curve in curves:
        key = curve.config.task, curve.method
        longest[key] = max(curve.last, longest.get(key, 0))
    # Seeds are compared where the shortest ends; one that has just begun waits until it is half as far as the others.
    is_far = [each.last >= HALFWAY * longest[each.config.task, each.method] for each in curves]
    far, begun = ([each for each, far in zip(curves, is_far) if far is wanted] for wanted in (True, False))
    return far, begun


def _results(found: Sequence[compare.Result], curves: Sequence[Curve]) -> list[str]:
    lines = [
        "| task | size, ratio | seeds | frames | ours | range | published (range, seeds) | ours there | verdict "
        "| machine | hours | commit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        mine = [curve.folder for curve in curves if (curve.config.task, curve.method) == (each.task, each.method)]
        made: list[dict[str, Any]] = [scores.made(path) for path in mine]
        spread = f"{min(each.scores):.4g} to {max(each.scores):.4g}" if len(each.scores) > 1 else ""
        band, there, here = each.published, "", ""
        if band is not None:
            there = f"{band.mean:.4g} +- {band.std:.3g} at {band.frames:,} "
            there += f"({band.low:.4g} to {band.high:.4g}, {band.seeds})"
            here = f"{np.mean(each.there):.4g}"
        machines = "; ".join(sorted({run["machine"] for run in made}))
        hours = " + ".join(f"{run['minutes'] / 60:.2g}" for run in made)
        commits = ", ".join(dict.fromkeys(commit for run in made for commit in run["commits"]))
        lines.append(
            f"| `{each.task}` | {each.method} | {len(each.scores)} | {each.frames:,} | {each.mean:.4g} | {spread} | "
            f"{there} | {here} | {each.verdict or '; '.join(each.protocol)} | {machines} | {hours} | {commits} |"
        )
    return lines


def _waiting(curves: Sequence[Curve]) -> list[str]:
    """The seeds that are not in the table yet."""
    return ["", *(f"Begun: `{c.config.task}`, {c.method}, seed {c.config.seed}, {c.end:,} frames." for c in curves)]


def _aggregates(found: Sequence[compare.Result]) -> list[str]:
    rows = []
    for (method, scale), mine in compare.comparable(found).items():
        for value in compare.aggregates(mine):
            interval = f"{value.interval[0]:.3f} to {value.interval[1]:.3f}" if value.interval else "one seed"
            rows.append(f"| {method} | {scale} | {len(mine)} | {value.name} | {value.value:.3f} | {interval} |")
    head = [
        "",
        "## Over tasks",
        "",
        "| size, ratio | scale | tasks | | value | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    return [*head, *rows] if rows else []


def _times(curves: Sequence[Curve]) -> list[str]:
    rows = []
    for curve in curves:
        taken = _hours(curve.folder / "times.csv")
        for band in published.curve(curve.config.task):
            frames = reached(curve, band.mean)
            # What the first episodes score has not been learned.
            if frames in (None, curve.frames[0]) or not len(taken):
                continue
            run, there = f"{curve.method}, seed {curve.config.seed}", f"{band.mean:.4g} at {band.frames:,}"
            minutes = 60 * np.interp(frames, *taken)
            rows.append(f"| `{curve.config.task}` | {run} | {there} | {frames:,} | {minutes:.3g} |")
    head = [
        "",
        "## Time to score",
        "",
        "| task | run | published | frames of ours | minutes |",
        "|---|---|---|---|---|",
    ]
    return [*head, *rows] if rows else []


def reached(curve: Curve, score: float) -> int | None:
    """The frames at which a run first has a score, over the same window as the published ones; None if never."""
    window = published.window(curve.config.task)
    for frames in np.unique(curve.frames).tolist():
        mine = curve.at(frames, window)
        if mine is not None and mine >= score:
            return int(frames)
    return None


def _hours(path: Path) -> np.ndarray:
    """Frames and hours, (2, n)."""
    if not path.is_file():
        return np.zeros(0)
    with path.open() as lines:
        pairs = [(float(row["frames"]), float(row["hours"])) for row in csv.DictReader(lines)]
    return np.array(pairs).reshape(-1, 2).T
