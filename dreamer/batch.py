"""Work through a list of runs, several side by side, and keep what each has shown.

The list is a CSV with the columns `task` and `seed` and, where wanted, `size`, `ratio`, `frames` and `settings`
(KEY=VALUE, separated by blanks). Each line is a run in a folder of its own, and a process of its own: one that is
finished is left alone, one that was interrupted goes on from its checkpoint. When a run ends, or its time is up, what
it has shown is written beside the others', and the index and the picture of all of them. That is what counts: a run
that is finished there is finished, whether its own folder is still there or not.
"""

import contextlib
import csv
import hashlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import config as configs
from . import published, scores
from .checkpoint import NEWEST, CheckpointError
from .errors import UserMistake
from .index import draw, write_index
from .machine import usable_cores

COLUMNS = ("task", "seed", "size", "ratio", "frames", "settings")
SAY_SECONDS = 60.0
GRACE_SECONDS = 300.0  # to write the last checkpoint
TIMES = 200  # points of `times.csv`
POINTS = 100  # of `metrics.csv`
EPISODES = 10  # of the evaluation at the end


@dataclass(frozen=True)
class Entry:
    """A line of the list."""

    task: str
    seed: int
    size: str | None = None
    ratio: float | None = None
    frames: int | None = None
    settings: tuple[str, ...] = ()

    @property
    def config(self) -> configs.Config:
        ratio = () if self.ratio is None else (f"ratio={self.ratio:g}",)
        return configs.make_config(
            self.task, size=self.size, seed=self.seed, frames=self.frames, settings=(*ratio, *self.settings)
        )

    @property
    def name(self) -> str:
        """Of its folder."""
        config = self.config
        words = [configs.file_name(self.task), config.size, f"ratio{config.ratio:g}"]
        others = "-".join(re.sub(r"[^\w.]+", "-", setting) for setting in self.settings)
        if others:  # some file systems allow 255 bytes, all in all
            words.append(others if len(others) < 100 else hashlib.sha256(others.encode()).hexdigest()[:12])
        return "-".join([*words, f"seed{self.seed}"])

    def command(self, folder: Path) -> list[str]:
        config = self.config
        options = ["--env", self.task, "--seed", str(self.seed), "--size", config.size, "--frames", str(config.frames)]
        settings = [f"ratio={config.ratio:g}", *self.settings]
        return ["train", *options, *(word for each in settings for word in ("--set", each)), "--run", str(folder)]


def read(path: Path) -> list[Entry]:
    """The entries of a list.

    Raises:
        UserMistake: it cannot be read, or a line is none.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(line for line in file if line.strip() and not line.startswith("#")))
    except (OSError, UnicodeDecodeError) as error:
        raise UserMistake(
            f"{path} cannot be read ({error}); give a CSV with the columns {', '.join(COLUMNS)}"
        ) from None
    entries = []
    for number, row in enumerate(rows, 1):
        unknown = [str(name) for name in row if name not in COLUMNS]
        if unknown or not row.get("task") or not row.get("seed"):
            raise UserMistake(
                f"{path}, run {number}: it needs a task and a seed, and has {', '.join(unknown) or 'not both'}; the "
                f"columns are {', '.join(COLUMNS)}"
            )
        try:
            entry = Entry(
                task=row["task"],
                seed=int(row["seed"]),
                size=row.get("size") or None,
                ratio=float(row["ratio"]) if row.get("ratio") else None,
                frames=int(row["frames"]) if row.get("frames") else None,
                settings=tuple((row.get("settings") or "").split()),
            )
            _ = entry.name
        except ValueError as error:
            raise UserMistake(f"{path}, run {number}: {error}") from error
        entries.append(entry)
    names = [entry.name for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserMistake(f"{path} has {twice} twice; leave one out")
    if not entries:
        raise UserMistake(f"{path} lists no runs")
    return entries


class Batch:
    """A list that is worked through.

    Args:
        entries: in the order in which they are begun.
        runs: where the runs' folders are.
        results: where what they have shown is kept.
        at_once: how many runs side by side.
        minutes: after which all are stopped, each with a checkpoint; None works until all are finished.
        device: of all runs.
        say: is told how it stands.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        runs: Path,
        results: Path,
        at_once: int,
        minutes: float | None,
        device: str,
        say: Callable[[str], object],
    ):
        self._entries, self._runs, self._results = entries, runs, results
        self._at_once, self._device, self._say = at_once, device, say
        self._until = time.monotonic() + 60 * minutes if minutes else None
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._running: dict[str, Entry] = {}
        self._failed: list[str] = []

    def work(self) -> list[str]:
        """Returns the names of the runs that ended by an error; what each has said is in a `.txt` beside its folder."""
        for folder in (self._runs, self._results):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserMistake(f"{folder} cannot be made ({error.strerror}); give another folder") from error
        with ThreadPoolExecutor(self._at_once) as pool:
            waiting = [pool.submit(self._run, entry) for entry in self._entries]
            try:
                said = time.monotonic()
                while not all(each.done() for each in waiting):
                    time.sleep(0.2)
                    if self._until and time.monotonic() > self._until and not self._stop.is_set():
                        self._say("Time is up: stopping, with a checkpoint each")
                        self._stop.set()
                    if time.monotonic() - said > SAY_SECONDS:
                        said = time.monotonic()
                        self._say(self.standing())
            except KeyboardInterrupt:
                self._say("Stopping, with a checkpoint each")
            finally:
                self._stop.set()
        for each in waiting:
            each.result()
        return self._failed

    def standing(self) -> str:
        """One line: what runs, how far it is, its score and where that lies among the published."""
        running = [f"{name}: {_standing(self._runs / name, entry)}" for name, entry in list(self._running.items())]
        done = sum(self._is_done(entry) for entry in self._entries)
        return f"{done} of {len(self._entries)} finished; " + ("; ".join(running) or "nothing runs")

    def _is_done(self, entry: Entry) -> bool:
        made = scores.made(self._results / entry.name)
        return bool(made.get("finished")) and made.get("frames", 0) >= entry.config.frames

    def _run(self, entry: Entry) -> None:
        folder, place = self._runs / entry.name, self._results / entry.name
        if self._stop.is_set() or self._is_done(entry):
            return
        before = scores.made(place) if _frames(folder) else {}  # of a run that goes on
        commits = list(dict.fromkeys([*before.get("commits", []), _commit()]))
        begun = time.monotonic()
        if not is_finished(folder, entry):
            self._train(entry, folder)
        minutes = before.get("minutes", 0) + (time.monotonic() - begun) / 60
        evaluation = _evaluate(folder, self._device) if is_finished(folder, entry) else None
        with contextlib.suppress(CheckpointError), self._writing:  # it was stopped before its first checkpoint
            if keep(folder, entry, place, minutes, commits, evaluation):
                self._write()
            else:
                self._say(f"{place} holds a longer curve of {entry.name}; that is left as it is")
        self._say(f"{entry.name}: {_standing(folder, entry)}")

    def _write(self) -> None:
        try:
            write_index(self._results)
            draw(self._results)
        except UserMistake as error:
            self._say(f"No new index of {self._results}: {error}")

    def _train(self, entry: Entry, folder: Path) -> None:
        self._running[entry.name] = entry
        folder.mkdir(parents=True, exist_ok=True)
        command = [*entry.command(folder), "--device", self._device]
        threads = str(max(1, usable_cores() // self._at_once))
        # Beside the folder: a new run's own has to be empty.
        with (self._runs / f"{entry.name}.txt").open("ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "dreamer", *command],
                stdout=said,
                stderr=said,
                env={"OMP_NUM_THREADS": threads} | dict(os.environ),
                start_new_session=True,  # so that Ctrl-C reaches them through us alone
            )
            try:
                while process.poll() is None and not self._stop.wait(0.2):
                    pass
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
        del self._running[entry.name]
        if process.returncode:
            self._failed.append(entry.name)
            self._say(f"{entry.name} ended by an error: see {self._runs / f'{entry.name}.txt'}")


def is_finished(folder: Path, entry: Entry) -> bool:
    """Whether a run's checkpoint has all its frames."""
    return _frames(folder) >= entry.config.frames


def _frames(folder: Path) -> int:
    try:
        counters = json.loads((folder / NEWEST).read_text())["counters"]
        return int(counters["rows"] * counters["repeat"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _standing(folder: Path, entry: Entry) -> str:
    try:
        curve = scores.Curve(folder, entry.config, *scores.episodes(folder))
    except CheckpointError:
        return "begins"
    frames, score = curve.last, curve.at(curve.last, published.window(entry.task))
    if score is None:
        return "no episode yet"
    text = f"{score:.4g} at {published.short(frames)} frames"
    bands = [band for band in published.curve(entry.task) if band.frames <= frames]
    there = curve.at(bands[-1].frames, published.window(entry.task)) if bands else None
    return text if there is None else f"{text}; {published.standing(entry.config, bands[-1], there)}"


def _evaluate(folder: Path, device: str) -> dict[str, Any] | None:
    """The finished agent in new episodes; None if that fails."""
    words = ["evaluate", str(folder), "--episodes", str(EPISODES), "--device", device, "--json"]
    done = subprocess.run([sys.executable, "-m", "dreamer", *words], capture_output=True, text=True)
    try:
        return {"command": " ".join(["dreamer", *words[:1], *words[2:]]), **json.loads(done.stdout)}
    except ValueError:
        return None


def keep(
    folder: Path, entry: Entry, place: Path, minutes: float, commits: list[str], evaluation: dict[str, Any] | None
) -> bool:
    """Write a run's curve, its times, what it measured, its config and where it was made.

    Returns:
        No if what is there already is longer, which is left alone.

    Raises:
        CheckpointError: the run has no curve yet.
    """
    curve = scores.read(folder)
    if scores.made(place).get("frames", 0) > _frames(folder):
        return False
    place.mkdir(parents=True, exist_ok=True)
    scores.write_csv(curve, place / "scores.csv")
    (place / "config.json").write_text((folder / "config.json").read_text())
    times = scores.hours(folder)
    with (place / "times.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["frames", "hours"])
        writer.writerows((frames, f"{hours:.4f}") for frames, hours in scores.thinned(times, TIMES))
    scores.write_metrics(folder, place / "metrics.csv", POINTS)
    (place / "run.json").write_text(
        json.dumps(
            {
                "command": "dreamer " + " ".join(entry.command(Path("runs") / entry.name)),
                "commits": commits,
                "machine": _machine(),
                "torch": _torch(),
                "minutes": round(minutes, 2),
                "frames": _frames(folder),
                "finished": is_finished(folder, entry),
                "evaluation": evaluation,
            },
            indent=2,
        )
        + "\n"
    )
    return True


def _commit() -> str:
    """Of the code that runs, where that is known."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        model = names[0]
    cores = usable_cores()
    return f"{cores} core{'s' * (cores != 1)} of {model}"


def _torch() -> str:
    import torch

    return torch.__version__
