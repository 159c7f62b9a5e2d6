"""What the published agent scores, and when (Hafner et al., Nature 2025; training episodes, mean over seeds).

And what runs of this package have scored, with settings that nobody has published.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

from ..config import PROTOCOLS, Config, method, unusual

CURVES = {
    "atari": "atari57.csv",
    "atari100k": "atari100k.csv",
    "dmc": "dmc_proprio.csv",
    "dmc_vision": "dmc_vision.csv",
}
OWN = "own_runs.csv"
TOLERATED_STDS = 2.3  # a correct agent leaves so wide a band once in fifty times
TOLERATED_SHARE = 0.15  # of the mean, since a few seeds may lie closer together than the truth does
OWN_RUNS = "Runs of this package with these settings"
NOT_JUDGED = "not judged, another protocol"
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
    return _bands(CURVES[suite], key, method) if suite in CURVES else []


def own(config: Config) -> list[Band]:
    """The curve of this package's runs on the same task with the same settings; empty where there is none."""
    return _bands(OWN, config.task, method(config))


def _bands(file: str, task: str, method: str) -> list[Band]:
    bands = [
        Band(
            int(row["frames"]),
            int(row["seeds"]),
            *(float(row[name] or 0) for name in ("mean", "min", "max", "stdev")),  # one seed has no deviation
        )
        for row in _rows(file)
        if row["task"] == task and row["method"] == method
    ]
    return sorted(bands, key=lambda band: band.frames)


def own_at(config: Config, frames: int) -> Band | None:
    """What `own` has at exactly so many frames, as at each published score that it has come to."""
    return next((band for band in own(config) if band.frames == frames), None)


def passed(task: str, begin: float, end: float) -> Band | None:
    """The last published scores at frames from `begin` to `end`, None where there are none."""
    return next((band for band in reversed(curve(task)) if begin <= band.frames <= end), None)


def window(task: str) -> float:
    """The published score at some frames is the mean of the episodes that ended between this share of them and all."""
    return 0.85 if _key(task)[0] in ("dmc", "atari100k") else 0.9


def tolerance(band: Band) -> float:
    """How far from the published mean a score may lie."""
    return max(TOLERATED_STDS * band.std, TOLERATED_SHARE * abs(band.mean))


def verdict(score: float, band: Band, seeds: int) -> str:
    """within, behind or ahead; with a single seed of ours the last two are only likely."""
    distance = score - band.mean
    if abs(distance) <= tolerance(band):
        return "within"
    word = "behind" if distance < 0 else "ahead"
    return f"likely {word}" if seeds == 1 else word


def other_protocol(config: Config) -> list[str]:
    """In what a run differs from the protocol of the published scores, in words."""
    return [
        f"here {key}={value}" if usual is None else f"{key} {_plain(usual)}, here {_plain(value)}"
        for key, (usual, value) in unusual(config).items()
    ]


def size(task: str) -> str:
    """Of the model whose scores are published."""
    return str(PROTOCOLS[_key(task)[0]]["size"])


def standing(config: Config, band: Band, score: float) -> str:
    """The score of one seed beside the published one; judged only where the protocol is the same, else that is told."""
    there = f"{number(band.mean)} +- {number(band.std, 3)}"
    text = f"at {short(band.frames)} frames: {number(score)}; published {there} ({_seeds([band])}): "
    differing = other_protocol(config)
    if not differing:
        return text + verdict(score, band, 1)
    text += f"{NOT_JUDGED}: {'; '.join(differing)}"
    mine = own_at(config, band.frames)
    return text + (f". {OWN_RUNS}: {in_words(mine)}" if mine else "")


def in_words(band: Band) -> str:
    """Mean, seeds and, where there are several, range."""
    spread = f", {number(band.low)} to {number(band.high)}" if band.seeds > 1 else ""
    return f"{number(band.mean)} ({_seeds([band])}{spread})"


def _seeds(bands: Iterable[Band]) -> str:
    counts = sorted({band.seeds for band in bands})
    return f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seed{'s' * (counts[-1] != 1)}"


def standing_in_short(config: Config, band: Band, score: float) -> str:
    """As `standing`, for a line that has little room."""
    judged = "other protocol" if other_protocol(config) else verdict(score, band, 1)
    return f"{number(score)} at {compact(band.frames)}, published {number(band.mean)} ({judged})"


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    sentence = f"Published scores ({bands[-1].seeds} seeds): {_points(dict.fromkeys(chosen))}"
    zero = passes_zero(task)
    return f"{sentence}; 0 is passed at about {short(zero)}" if zero else sentence


def own_expectation(config: Config) -> str | None:
    """One sentence on what has come of the same settings; None where nothing is known."""
    bands = own(config)
    if not bands:
        return None
    chosen = dict.fromkeys([bands[0], bands[len(bands) // 2], bands[-1]])
    return f"{OWN_RUNS} ({_seeds(chosen)}): {_points(chosen)}"


def _points(bands: Iterable[Band]) -> str:
    return ", ".join(f"{number(band.mean)} at {short(band.frames)} frames" for band in bands)


def number(value: float, digits: int = 4) -> str:
    """A score in so many digits, or all before its point: 75182.3 -> 75,182."""
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def short(frames: int) -> str:
    """1234567 -> 1.2 million."""
    for unit, word in ((1_000_000, "million"), (1_000, "thousand")):
        if frames >= 0.9995 * unit:
            return f"{frames / unit:.2g} {word}" if frames < 99.5 * unit else f"{frames / unit:.0f} {word}"
    return str(frames)


def compact(frames: int) -> str:
    """1234567 -> 1235k, 12345678 -> 12.35M: in four digits, so that it moves."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if frames >= 9.9995 * size:
            return f"{frames / size:.4g}{letter}"
    return f"{frames:,}"
