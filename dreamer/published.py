"""What the published agent scores, and when (Hafner et al., Nature 2025; training episodes, mean over seeds)."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

CURVES = {
    "atari": "atari57.csv",
    "atari100k": "atari100k.csv",
    "dmc": "dmc_proprio.csv",
    "dmc_vision": "dmc_vision.csv",
}
ALIASES = {"cup_catch": "ball_in_cup_catch"}


@dataclass(frozen=True)
class Band:
    """Scores of several seeds at a number of environment frames."""

    frames: int
    seeds: int
    mean: float
    low: float
    high: float
    std: float


@cache
def _rows(file: str) -> list[dict[str, str]]:
    with resources.files("dreamer").joinpath("data", file).open() as lines:
        return list(csv.DictReader(lines))


def _key(task: str) -> tuple[str, str]:
    """The suite, and the name under which the tables list the task."""
    suite, _, name = task.partition("/")
    return suite, f"{suite.split('_')[0].removesuffix('100k')}_{ALIASES.get(name, name)}"


def curve(task: str, method: str = "dreamerv3") -> list[Band]:
    """The published curve of a task, in order of frames; empty where there is none."""
    suite, key = _key(task)
    if suite not in CURVES:
        return []
    bands = [
        Band(
            int(row["frames"]),
            int(row["seeds"]),
            *(float(row[name]) for name in ("mean", "min", "max", "stdev")),
        )
        for row in _rows(CURVES[suite])
        if row["task"] == key and row["method"] == method
    ]
    return sorted(bands, key=lambda band: band.frames)


def human_normalized(task: str, score: float) -> float | None:
    """`(score - random) / (human - random)` for an Atari game, None for anything else."""
    suite, key = _key(task)
    if suite not in ("atari", "atari100k"):
        return None
    for row in _rows("atari_human.csv"):
        if row["task"] == key:
            random, human = float(row["random"]), float(row["human"])
            return (score - random) / (human - random)
    return None


def passes_zero(task: str) -> int | None:
    """Frames at which the published mean passes 0, where it begins below; interpolated between its points."""
    bands = curve(task)
    for before, after in zip(bands, bands[1:]):
        if before.mean < 0 <= after.mean:
            part = -before.mean / (after.mean - before.mean)
            return round(before.frames + part * (after.frames - before.frames))
    return None


def expectation(task: str) -> str | None:
    """One sentence on what to expect, and when; None where nothing is published."""
    bands = curve(task)
    if not bands:
        return None
    chosen = [bands[0], bands[len(bands) // 3], bands[-1]]
    points = ", ".join(f"{band.mean:.4g} at {short(band.frames)} frames" for band in dict.fromkeys(chosen))
    sentence = f"Published scores ({bands[-1].seeds} seeds): {points}"
    zero = passes_zero(task)
    return f"{sentence}; 0 is passed at about {short(zero)}" if zero else sentence


def short(frames: int) -> str:
    """1234567 -> 1.2 million."""
    for size, word in ((1_000_000, "million"), (1_000, "thousand")):
        if frames >= size:
            return f"{frames / size:.2g} {word}" if frames < 100 * size else f"{frames / size:.0f} {word}"
    return str(frames)
