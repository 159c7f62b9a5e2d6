"""Learning curves as a paper prints them: runs, the published band, and the model-free baseline behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserMistake
from .published import curve as published
from .scores import Curve
from .video import check_place

FORMATS = (".png", ".svg", ".pdf")
BINS = 40  # means of scores along the frames
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by everybody (Okabe and Ito)
PUBLISHED, BASELINE = "#555555", "#AAAAAA"
COLUMNS = 3
SIZE = (4.2, 3.0)  # inches of a panel


@dataclass(frozen=True)
class Line:
    """Runs that differ in their seed alone: mean, lowest and highest score at some frames, (n,) each."""

    label: str
    seeds: int
    frames: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def check_path(path: Path) -> None:
    """Raise UserMistake if `draw` could not write there."""
    if path.suffix not in FORMATS:
        raise UserMistake(f"{path} does not end in {', '.join(FORMATS)}; give the picture one of these endings")
    check_place(path)


def lines(curves: Sequence[Curve]) -> list[Line]:
    """The lines of one task: one for each method, over its seeds."""
    methods: dict[str, list[Curve]] = {}
    for curve in curves:
        methods.setdefault(curve.method, []).append(curve)
    result = []
    for method, runs in methods.items():
        end = min(run.last for run in runs)  # beyond it, a mean would be of other seeds
        edges = np.linspace(0, end, BINS + 1)
        means = np.stack([run.means(edges) for run in runs])
        there = ~np.isnan(means).any(0)
        centers, means = ((edges[1:] + edges[:-1]) / 2)[there], means[:, there]
        seeds = f"{len(runs)} seeds" if len(runs) > 1 else f"seed {runs[0].config.seed}"
        label = f"{method}, {seeds}"
        result.append(Line(label, len(runs), centers, means.mean(0), means.min(0), means.max(0)))
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
            rows, columns, figsize=(SIZE[0] * columns, SIZE[1] * rows), squeeze=False, layout="constrained"
        )
        for panel, (task, runs) in zip(axes.flat, tasks.items()):
            _draw_panel(panel, task, runs)
        for panel in list(axes.flat)[len(tasks) :]:
            panel.set_visible(False)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=160, metadata=metadata)
        pyplot.close(figure)


def _draw_panel(panel: Any, task: str, curves: list[Curve]) -> None:
    end = max(curve.last for curve in curves)
    for method, name, color in (
        ("ppo_fixhp", "PPO, published", BASELINE),
        ("dreamerv3", "DreamerV3, published", PUBLISHED),
    ):
        bands = published(task, method)
        if not bands:
            continue
        # Up to where our runs end, and the next point, so that the line leads out of the picture.
        bands = [band for i, band in enumerate(bands) if i == 0 or bands[i - 1].frames < end]
        frames = [band.frames for band in bands]
        panel.fill_between(frames, [b.low for b in bands], [b.high for b in bands], color=color, alpha=0.15, lw=0)
        panel.plot(frames, [b.mean for b in bands], color=color, lw=1.2, ls="--", marker=".", ms=4, label=name)
        end = max(end, frames[0])
    for curve in curves:
        panel.plot(curve.frames, curve.scores, ".", color="#000000", alpha=0.2, ms=2.5, mec="none")
    for color, line in zip(COLORS * len(curves), lines(curves)):
        if line.seeds > 1:
            panel.fill_between(line.frames, line.low, line.high, color=color, alpha=0.25, lw=0)
        panel.plot(line.frames, line.mean, color=color, lw=1.8, label=line.label)
    panel.set_title(task, fontsize=10)
    panel.set_xlim(0, end * 1.02)
    panel.set_xlabel("environment frames")
    panel.set_ylabel("score of training episodes")
    panel.xaxis.set_major_locator(_ticks(5))
    panel.xaxis.set_major_formatter(lambda value, _: _frames(value))
    panel.grid(alpha=0.2, lw=0.6)
    panel.legend(framealpha=0.8, edgecolor="none", fontsize=7.5, loc="best")


def _ticks(count: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count)


def _frames(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
