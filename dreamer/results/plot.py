"""Learning curves as a paper prints them: runs, the published band, and the model-free baseline behind it."""

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserMistake
from ..video import check_place
from .published import Band, size, window
from .published import curve as published
from .scores import Curve, grouped, thinned

FORMATS = (".png", ".svg", ".pdf")
POINTS = 300  # of a line, at most
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by everybody (Okabe and Ito)
STYLES = ("-", "-.", ":")  # for more than these
PUBLISHED, BASELINE = "#555555", "#AAAAAA"
COLUMNS = 3  # at most, to be read across a page
SIZE = (4.2, 3.0)  # inches of a panel
LETTERS, LETTER_HEIGHT = 17, 0.15  # of the legend's font: how many to an inch, and inches from line to line
PPO, DREAMER = "PPO, published", "DreamerV3, published"
EXPLAINED = (
    "lines: mean of the episodes in the last 10 or 15 % of the frames, as published",
    "dots: single episodes; shaded: from the lowest to the highest seed",
)
WENT_ON = "thin lines: seeds that went on"


@dataclass(frozen=True)
class Line:
    """Runs that differ in their seed alone: mean, lowest and highest score at some frames, (n,) each.

    A score at some frames is what the published one is: the mean of the last episodes up to there. The line ends where
    the first run does, since a mean beyond would be of other seeds; `further` has how each of the others goes on,
    frames and scores, (m,) each.
    """

    method: str
    seeds: tuple[int, ...]
    frames: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    further: tuple[tuple[np.ndarray, np.ndarray], ...]


def check_path(path: Path) -> None:
    """Raise UserMistake if `draw` could not write there."""
    if path.suffix.lower() not in FORMATS:
        raise UserMistake(f"{path} does not end in {', '.join(FORMATS)}; give the picture one of these endings")
    check_place(path)


def lines(curves: Sequence[Curve]) -> list[Line]:
    """The lines of one task: one for each method, over its seeds. Errors as of `scores.grouped`."""
    result = []
    for (_, method), runs in grouped(curves).items():
        begin, end = max(run.frames[0] for run in runs), min(run.end for run in runs)
        ends = np.unique(np.concatenate([_ends(run) for run in runs]))
        frames = _some(ends[(begin <= ends) & (ends <= end)])
        scores = np.array([_scores(run, frames) for run in runs])
        further = []
        for run in runs:
            later = np.unique(_ends(run)[_ends(run) > end]) if begin <= end else run.frames
            if len(later):
                later = np.unique([end, *_some(later)]) if begin <= end else _some(later)
                further.append((later, _scores(run, later)))
        result.append(
            Line(
                method=method,
                seeds=tuple(run.config.seed for run in runs),
                frames=frames,
                mean=scores.mean(0),
                low=scores.min(0),
                high=scores.max(0),
                further=tuple(further),
            )
        )
    return result


def _ends(run: Curve) -> np.ndarray:
    """Frames at which an episode ended, and those at which the run does, where its score is read."""
    return np.append(run.frames, run.end)


def _some(frames: np.ndarray) -> np.ndarray:
    return np.array(thinned(frames.tolist(), POINTS))


def _scores(run: Curve, frames: np.ndarray) -> np.ndarray:
    return np.array([run.at(each, window(run.config.task)) for each in frames], float)


def draw(curves: Sequence[Curve], path: Path) -> None:
    """A panel for each task, written as PNG, SVG or PDF."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks: dict[str, list[Curve]] = {}
    for curve in curves:
        if not len(curve.frames):
            raise UserMistake(f"{curve.folder} has no episode yet; wait until one has ended, or leave it out")
        tasks.setdefault(curve.config.task, []).append(curve)
    # The most common first, so that it looks the same in all pictures.
    methods = [method for method, _ in Counter(curve.method for curve in curves).most_common()]
    looks = {
        method: (COLORS[i % len(COLORS)], STYLES[i // len(COLORS) % len(STYLES)]) for i, method in enumerate(methods)
    }
    columns = min(COLUMNS, len(tasks) if len(tasks) != 4 else 2)
    rows = -(-len(tasks) // columns)
    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "dreamer",  # the same picture is the same file
    }
    ncols, letters = 1 if columns == 1 else 2, int(LETTERS * SIZE[0] * columns)
    ours = {task: lines(runs) for task, runs in tasks.items()}
    went_on = any(line.further for drawn in ours.values() for line in drawn)
    explained = "\n".join(textwrap.fill(line, letters) for line in (*EXPLAINED, *[WENT_ON] * went_on))
    wrapped = {method: textwrap.fill(method, letters // ncols - 12) for method in methods}
    names = sum(name.count("\n") + 1.4 for name in [PPO, DREAMER, *wrapped.values()])  # with the gaps between them
    height = SIZE[1] * rows + LETTER_HEIGHT * (explained.count("\n") + 1 + math.ceil(names / ncols))
    with matplotlib.rc_context(style):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(SIZE[0] * columns, height), squeeze=False, layout="constrained"
        )
        for i, (panel, (task, runs)) in enumerate(zip(axes.flat, tasks.items())):
            _draw_panel(panel, task, runs, ours[task], looks)
            panel.set_xlabel("environment frames" if i + columns >= len(tasks) else "")
            panel.set_ylabel("" if i % columns else "score of training episodes")
        for panel in list(axes.flat)[len(tasks) :]:
            panel.set_visible(False)
        named = {name: line for panel in axes.flat for line, name in zip(*panel.get_legend_handles_labels())}
        figure.legend(
            named.values(),
            [wrapped.get(name, name) for name in named],
            loc="outside lower center",
            ncols=ncols,
            frameon=False,
            fontsize=7.5,
            title=explained,
            title_fontsize=7.5,
        )
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
        figure.savefig(path, dpi=160, metadata=metadata)
        pyplot.close(figure)


def _draw_panel(
    panel: Any, task: str, curves: list[Curve], ours: list[Line], looks: dict[str, tuple[str, str]]
) -> None:
    baseline, agent = published(task, "ppo_fixhp"), published(task)
    # Beyond the first published score, for a run that is not there yet.
    right = max(
        [1.02 * curve.end for curve in curves] + [1.2 * bands[0].frames for bands in (baseline, agent) if bands]
    )
    if baseline:
        _draw_bands(panel, baseline, right, PPO, BASELINE)
    if agent:
        _draw_bands(panel, agent, right, DREAMER, PUBLISHED)
    for curve in curves:
        panel.plot(curve.frames, curve.scores, ".", color=looks[curve.method][0], alpha=0.5, ms=4, mec="none")
    for line in sorted(ours, key=lambda line: -max(curve.end for curve in curves if curve.method == line.method)):
        # The longest first: what is shorter stays in sight.
        color, style = looks[line.method]
        panel.fill_between(line.frames, line.low, line.high, color=color, alpha=0.25, lw=0)
        panel.plot(line.frames, line.mean, color=color, lw=1.8, ls=style, label=line.method)
        for frames, scores in line.further:
            panel.plot(frames, scores, color=color, lw=0.9, ls=style)
    title = f"{task}, {_seeds(ours)}"
    panel.set_title(f"{title}\n{_of_published(task, agent, right)}" if agent else title, fontsize=9)
    panel.set_xlim(0, right)
    panel.xaxis.set_major_locator(_ticks(5))
    panel.xaxis.set_major_formatter(lambda value, _: _frames(value))
    panel.grid(alpha=0.2, lw=0.6)


def _seeds(ours: Sequence[Line]) -> str:
    """In words, of all lines."""
    if len({line.seeds for line in ours}) == 1:
        return f"{len(ours[0].seeds)} seeds" if len(ours[0].seeds) > 1 else f"seed {ours[0].seeds[0]}"
    counts = sorted({len(line.seeds) for line in ours})
    several = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"{several} seed{'s' * (counts != [1])} each"


def _of_published(task: str, bands: Sequence[Band], right: float) -> str:
    """The model and the seeds of the published scores that a picture shows."""
    seeds = sorted({band.seeds for band in bands if band.frames <= right})
    several = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    return f"published: size {size(task)}, {several} seed{'s' * (seeds != [1])}"


def _draw_bands(panel: Any, bands: Sequence[Band], right: float, name: str, color: str) -> None:
    """Mean and range, up to the picture's right edge."""
    points = np.array([(band.frames, band.mean, band.low, band.high) for band in bands]).T
    frames = points[0][points[0] <= right]
    edge = [right] if right < points[0][-1] else []
    place = np.concatenate([frames, edge])
    mean, low, high = (np.interp(place, points[0], values) for values in points[1:])
    panel.fill_between(place, low, high, color=color, alpha=0.15, lw=0)
    panel.plot(place, mean, color=color, lw=1.2, ls="--", label=name)
    shown = len(frames)
    errors = [(mean - low)[:shown], (high - mean)[:shown]]
    panel.errorbar(frames, mean[:shown], errors if len(place) == 1 else None, fmt=".", ms=4, color=color, lw=1.2)


def _ticks(count: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])


def _frames(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
