"""The scores of a run's training episodes, read back: the curve, and what it is worth at a number of frames."""

import contextlib
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import CheckpointError, RunFolder
from .config import Config, flatten, make_config

FILES = ("metrics.jsonl", "scores.csv")  # a run's own, and the short form that is kept of one


@dataclass(frozen=True)
class Curve:
    """Scores of one run's training episodes, in the order in which they ended.

    `frames` (E,) counts environment frames at each end, `scores` (E,).
    """

    folder: Path
    config: Config
    frames: np.ndarray
    scores: np.ndarray

    @property
    def last(self) -> int:
        """Frames at the last episode's end."""
        return int(self.frames[-1]) if len(self.frames) else 0

    def at(self, frames: float, window: float) -> float | None:
        """Mean score of the episodes that ended after `window * frames` and up to `frames`; None without any."""
        inside = (self.frames > window * frames) & (self.frames <= frames)
        return float(self.scores[inside].mean()) if inside.any() else None

    def means(self, edges: np.ndarray) -> np.ndarray:
        """Mean score between each two edges (n + 1,) -> (n,), NaN where no episode ended."""
        places = np.digitize(self.frames, edges, right=True) - 1
        inside = (places >= 0) & (places < len(edges) - 1)
        sums = np.bincount(places[inside], self.scores[inside], len(edges) - 1)
        counts = np.bincount(places[inside], minlength=len(edges) - 1)
        return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)

    @property
    def method(self) -> str:
        """What two seeds of one experiment share: size, ratio, and what else was not as the protocol has it."""
        config = self.config
        usual = flatten(make_config(config.task, size=config.size))
        other = [
            f"{key} {value}"
            for key, value in flatten(config).items()
            if usual.get(key) != value and key not in ("seed", "frames", "ratio") and not key.startswith("run.")
        ]
        return ", ".join([f"size {config.size}", f"ratio {config.ratio:g}", *other])


def read(path: Path) -> Curve:
    """The curve of a run's folder, or of one that holds `config.json` and a `scores.csv` of frames and scores.

    Raises:
        CheckpointError: it is neither.
    """
    return Curve(path, RunFolder(path).config(), *episodes(path))


def episodes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames and scores (E,) of the episodes in a folder; errors as of `read`."""
    file = next((path / name for name in FILES if (path / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{path} has no scores: neither {' nor '.join(FILES)} is there")
    try:
        pairs = _from_csv(file) if file.suffix == ".csv" else _from_lines(file)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error})") from error
    frames, scores = np.array(pairs, float).reshape(-1, 2).T
    return frames.astype(np.int64), scores


def hours(path: Path) -> list[tuple[int, float]]:
    """Frames, and hours of training up to there, interruptions left out, of a run's own folder."""
    repeat, found, before, total = RunFolder(path).config().repeat or 1, [], 0, 0.0
    for values in _lines(path / "metrics.jsonl"):
        rate = values.get("speed/agent_steps_per_second")
        if rate:
            total += (values["frames"] - before) / repeat / rate / 3600
            before = values["frames"]
            found.append((before, total))
    return found


def write_csv(curve: Curve, path: Path) -> None:
    """The short form, for keeping."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["frames", "score"])
        writer.writerows(
            (frames, f"{score:.6g}") for frames, score in zip(curve.frames.tolist(), curve.scores.tolist())
        )


def _from_csv(file: Path) -> list[tuple[float, float]]:
    with file.open() as lines:
        return [(float(row["frames"]), float(row["score"])) for row in csv.DictReader(lines)]


def _from_lines(file: Path) -> list[tuple[float, float]]:
    lines = _lines(file)
    return [(line["frames"], line["episode/score"]) for line in lines if line.get("episode/score") is not None]


def _lines(file: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    found = []
    for line in file.read_text().splitlines():
        with contextlib.suppress(ValueError):  # a line cut short
            found.append(json.loads(line))
    return found
