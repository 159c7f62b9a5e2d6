"""The scores of a run's training episodes, read back: the curve, and what it is worth at a number of frames."""

import contextlib
import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import NEWEST, CheckpointError, RunFolder
from ..config import Config, method
from ..errors import UserMistake

FILES = ("metrics.jsonl", "scores.csv")  # a run's own, and the short form that is kept of one


@dataclass(frozen=True)
class Curve:
    """Scores of one run's training episodes, in the order in which they ended.

    `frames` (E,) counts environment frames at each end, `scores` (E,); `seen` those of the whole run, since an episode
    may be under way when it ends. `name` is what the user calls it by, in place of its method.
    """

    folder: Path
    config: Config
    frames: np.ndarray
    scores: np.ndarray
    seen: int = 0
    name: str = ""

    @property
    def last(self) -> int:
        """Frames at the last episode's end."""
        return int(self.frames[-1]) if len(self.frames) else 0

    @property
    def end(self) -> int:
        """Frames up to which every episode that ended is known."""
        return max(self.seen, self.last)

    def at(self, frames: float, window: float) -> float | None:
        """Mean score of the episodes that ended after `window * frames` and up to `frames`.

        Where none ended there, it is the score of the last before; None before the first.
        """
        ended = self.frames <= frames
        if not ended.any():
            return None
        inside = ended & (self.frames > min(window * frames, self.frames[ended].max() - 1))
        return float(self.scores[inside].mean())

    def until(self, frames: int) -> "Curve":
        """As it was after so many frames."""
        ended = self.frames <= frames
        return replace(self, frames=self.frames[ended], scores=self.scores[ended], seen=min(self.seen, frames))

    def reached(self, score: float, window: float) -> int | None:
        """Frames at which the run first has a score, as `at` has it; None if never."""
        left = np.ceil(self.frames / window).astype(np.int64)  # where each episode is no longer counted
        changes = np.unique(np.concatenate([self.frames, left[left <= self.end]])).tolist()
        for frames in changes:
            mine = self.at(frames, window)
            if mine is not None and mine >= score:
                return int(frames)
        return None

    @property
    def method(self) -> str:
        """What is said of runs that differ in their seed alone."""
        return self.name or method(self.config)


def read(path: Path) -> Curve:
    """The curve of a run's folder, or of one that holds `config.json` and a `scores.csv` of frames and scores.

    Raises:
        CheckpointError: it is neither, or of another version.
    """
    return Curve(path, RunFolder(path).config(), *episodes(path), _seen(path))


def named(argument: str) -> Curve:
    """The curve of `RUN`, or of `NAME=RUN` under that name; errors as of `read`."""
    name, equals, folder = argument.partition("=")
    if not equals or Path(argument).exists():
        return read(Path(argument))
    return replace(read(Path(folder)), name=name.strip())


def grouped(curves: Iterable[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """The curves by task and method, in order of both; those of a group differ in their seed alone.

    Raises:
        UserMistake: two have the same seed, too, or have been given one name though more differs.
    """
    groups: dict[tuple[str, str], dict[int, Curve]] = {}
    for curve in curves:
        task, seed = curve.config.task, curve.config.seed
        seeds = groups.setdefault((task, curve.method), {})
        if seed in seeds:
            other = seeds[seed].folder
            raise UserMistake(
                f"{curve.folder} is seed {seed} of {task} with {curve.method}, as {other} is; give one, "
                f"or each a name: before={other} after={curve.folder}"
            )
        for first in seeds.values():
            if method(first.config) != method(curve.config):
                raise UserMistake(
                    f"{curve.name} names {first.folder} with {method(first.config)} and {curve.folder} with "
                    f"{method(curve.config)}; give them different names"
                )
        seeds[seed] = curve
    return {key: list(groups[key].values()) for key in sorted(groups)}


def episodes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames and scores (E,) of the episodes in a folder; errors as of `read`."""
    file = next((path / name for name in FILES if (path / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{path} has no scores: neither {' nor '.join(FILES)} is there")
    with _reading(file):
        pairs = _from_csv(file) if file.suffix == ".csv" else _from_lines(file)
        frames, scores = np.array(pairs, float).reshape(-1, 2).T
        if not np.isfinite(frames).all() or (np.diff(frames) < 0).any():
            raise ValueError("its frames are not in order")
        if not np.isfinite(scores).all():
            raise ValueError("a score in it is no number")
    return frames.astype(np.int64), scores


def _seen(path: Path) -> int:
    """Frames that the run in a folder has made, as far as it tells; 0 if it does not."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if (path / FILES[0]).is_file():
            return int(max(line["frames"] for line in _lines(path / FILES[0])))
        return int(run_record(path)["frames"])
    return 0


def run_record(path: Path) -> dict[str, Any]:
    """What is kept of how a run was made, its `run.json`; empty where there is none."""
    try:
        found = json.loads((path / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("frames", 0), int) else {}


def thinned(values: list[Any], points: int) -> list[Any]:
    """Some `points` of them, evenly, the last among them."""
    step = max(1, -(-len(values) // points))
    return [*values[:-1:step], *values[-1:]]


def hours(path: Path) -> list[tuple[int, float]]:
    """Frames, and hours of training up to there, interruptions left out; errors as of `read`.

    From a run's own folder, or the `times.csv` that is kept of one; empty where there is neither.
    """
    if (path / "times.csv").is_file():
        with _reading(path / "times.csv"), (path / "times.csv").open() as lines:
            return [(int(row["frames"]), float(row["hours"])) for row in csv.DictReader(lines)]
    if not (path / FILES[0]).is_file():
        return []
    repeat = counters(path).get("repeat") or RunFolder(path).config().repeat or 1
    found, before, total = [], 0, 0.0
    for values in _lines(path / FILES[0]):
        rate = values.get("speed/agent_steps_per_second")
        if rate:
            total += (values["frames"] - before) / repeat / rate / 3600
            before = values["frames"]
            found.append((before, total))
    return found


def counters(path: Path) -> dict[str, Any]:
    """Those of a run's newest checkpoint, see `loop.Counters`; empty if there is none."""
    try:
        found = json.loads((path / NEWEST).read_text())["counters"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def minutes(path: Path) -> float:
    """That a run has taken, as far as `hours` knows; 0 if it does not."""
    found = hours(path)
    return 60 * found[-1][1] if found else 0.0


def minutes_per_frame(path: Path) -> float | None:
    """As far as `hours` knows; None if it does not."""
    found = hours(path)
    return 60 * found[-1][1] / found[-1][0] if found and found[-1][0] else None


def write_metrics(path: Path, out: Path, points: int, seen: int) -> None:
    """What a run's own folder has measured of learning in the frames `seen`: losses, entropy, returns, norms.

    A row is the mean over the same number of frames each, so that it stays as it is while the run goes on; so many
    `points` are a whole run. It names the last frames that are in it.
    """
    groups = ("loss/", "world_model/", "behavior/", "optimizer/")
    lines = [line for line in _lines(path / "metrics.jsonl") if line["frames"] <= seen]
    lines = [line for line in lines if any(key.startswith(groups) for key in line)]
    names = list(dict.fromkeys(key for line in lines for key in line if key.startswith(groups)))
    width = -(-RunFolder(path).config().frames // points)
    bins: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        bins.setdefault((line["frames"] - 1) // width, []).append(line)
    with out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["frames", *names])
        for row in bins.values():
            found = [[line[name] for line in row if line.get(name) is not None] for name in names]
            means = (f"{np.mean(values):.5g}" if values else "" for values in found)
            writer.writerow([max(line["frames"] for line in row), *means])


def metrics(path: Path) -> list[dict[str, float]]:
    """The rows of `metrics.csv`, as `write_metrics` has written it; none where it is not there."""
    if not (path / "metrics.csv").is_file():
        return []
    with (path / "metrics.csv").open() as lines:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(lines)]


def write_csv(curve: Curve, path: Path) -> None:
    """The short form, for keeping."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["frames", "score"])
        writer.writerows(
            (frames, f"{score:.6g}") for frames, score in zip(curve.frames.tolist(), curve.scores.tolist())
        )


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raises CheckpointError for what is not in a file as it should be."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error})") from error


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
    return [line for line in found if isinstance(line, dict)]
