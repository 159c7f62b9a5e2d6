"""Learning curves as a paper prints them: runs, the published band, and the model-free baseline behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserMistake
from .published import curve as published
from .published import size, window
from .scores import Curve
from .video import check_place

FORMATS = (".png", ".svg", ".pdf")
POINTS = 60  # of a line, evenly along the frames
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by everybody (Okabe and Ito)
PUBLISHED, BASELINE = "#555555", "#AAAAAA"
COLUMNS = 3
SIZE = (4.2, 3.0)  # inches of a panel
LEGEND = 0.9  # inches below them


@dataclass(frozen=True)
class Line:
    """Runs that differ in their seed alone: mean, lowest and highest score at some frames, (n,) each.

    A score at some frames is what the published one is: the mean of the last episodes up to there.
    """

    method: str
    label: str
    seeds: int
    frames: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def check_path(path: Path) -> None:
    """Raise UserMistake if `draw` could not write there."""
    if path.suffix.lower() not in FORMATS:
        raise UserMistake(f"{path} does not end in {', '.join(FORMATS)}; give the picture one of these endings")
    check_place(path)


def lines(curves: Sequence[Curve]) -> list[Line]:
    """The lines of one task: one for each method, over its seeds."""
    methods: dict[str, list[Curve]] = {}
    for curve in curves:
        methods.setdefault(curve.method, []).append(curve)
    result = []
    for method, runs in methods.items():
        # From where all seeds have a score to where the first ends: elsewhere a mean would be of other seeds.
        begin, end = max(run.frames[0] for run in runs), min(run.last for run in runs)
        frames = np.linspace(begin, end, POINTS) if begin < end else np.empty(0)
        scores = np.array([[run.at(each, window(run.config.task)) for each in frames] for run in runs], float)
        seeds = f"{len(runs)} seeds" if len(runs) > 1 else f"seed {runs[0].config.seed}"
        label = f"{method}, {seeds}"
        result.append(Line(method, label, len(runs), frames, scores.mean(0), scores.min(0), scores.max(0)))
    return result


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
    methods = list(dict.fromkeys(curve.method for curve in curves))
    colors = {method: COLORS[i % len(COLORS)] for i, method in enumerate(methods)}
    columns = min(COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "dreamer",  # the same picture is the same file
    }
    with matplotlib.rc_context(style):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(SIZE[0] * columns, SIZE[1] * rows + LEGEND), squeeze=False, layout="constrained"
        )
        for i, (panel, (task, runs)) in enumerate(zip(axes.flat, tasks.items())):
            _draw_panel(panel, task, runs, colors)
            panel.set_xlabel("environment frames" if i + columns >= len(tasks) else "")
            panel.set_ylabel("" if i % columns else "score of training episodes")
        for panel in list(axes.flat)[len(tasks) :]:
            panel.set_visible(False)
        named = {name: line for panel in axes.flat for line, name in zip(*panel.get_legend_handles_labels())}
        figure.legend(
            named.values(),
            named.keys(),
            loc="outside lower center",
            ncols=1 if columns == 1 else 2,
            frameon=False,
            fontsize=7.5,
            title="means of the last episodes; dots: episodes;\nshaded: from the lowest to the highest seed",
            title_fontsize=7.5,
        )
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
        figure.savefig(path, dpi=160, metadata=metadata)
        pyplot.close(figure)


def _draw_panel(panel: Any, task: str, curves: list[Curve], colors: dict[str, str]) -> None:
    end = max(curve.last for curve in curves)
    for method, agent, color in (("ppo_fixhp", "PPO", BASELINE), ("dreamerv3", "DreamerV3", PUBLISHED)):
        bands = published(task, method)
        if not bands:
            continue
        seeds = bands[-1].seeds
        name = f"{agent}{f' {size(task)}' if agent == 'DreamerV3' else ''}, published, {seeds} seed{'s' * (seeds > 1)}"
        # Up to where our runs end, and the next point, so that the line leads out of the picture.
        bands = [band for i, band in enumerate(bands) if i == 0 or bands[i - 1].frames < end]
        frames = [band.frames for band in bands]
        panel.fill_between(frames, [b.low for b in bands], [b.high for b in bands], color=color, alpha=0.15, lw=0)
        panel.plot(frames, [b.mean for b in bands], color=color, lw=1.2, ls="--", marker=".", ms=4, label=name)
        end = max(end, frames[0])
    for curve in curves:
        panel.plot(curve.frames, curve.scores, ".", color=colors[curve.method], alpha=0.35, ms=3, mec="none")
    for line in lines(curves):
        color = colors[line.method]
        if line.seeds > 1:
            panel.fill_between(line.frames, line.low, line.high, color=color, alpha=0.25, lw=0)
        panel.plot(line.frames, line.mean, color=color, lw=1.8, label=line.label)
    panel.set_title(task, fontsize=10)
    panel.set_xlim(0, end * 1.02)
    panel.xaxis.set_major_locator(_ticks(5))
    panel.xaxis.set_major_formatter(lambda value, _: _frames(value))
    panel.grid(alpha=0.2, lw=0.6)


def _ticks(count: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count)


def _frames(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
