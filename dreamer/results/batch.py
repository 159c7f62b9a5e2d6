"""Work through a list of runs, several side by side, and keep what each has shown.

Each line is a run in a folder of its own, and a process of its own: one that is finished is left alone, one that was
interrupted goes on from its checkpoint. What a run has shown is written beside the others' every few minutes, when it
ends and when it is stopped, with the index and the picture of all of them. That is what counts: a run that is finished
there is finished, whether its own folder is still there or not.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from ..checkpoint import CheckpointError
from ..config import method
from ..errors import UserMistake
from ..machine import SHARED_BY, usable_cores
from . import published, record, scores
from .index import draw, write_index
from .worklist import Entry

SAY_SECONDS = 60.0
KEEP_SECONDS = 600.0
GRACE_SECONDS = 300.0  # to write the last checkpoint
EPISODES = 10  # of the evaluation at the end


@dataclass
class Work:
    """A run that is under way.

    before: how it was made until now, of a run that goes on. commit: of the code that it goes on with. evaluation: the
    last there was, with the frames after which; None if none.
    """

    entry: Entry
    before: dict[str, Any]
    commit: str
    evaluation: dict[str, Any] | None
    evaluates: bool = False


class Runner:
    """A list that is worked through.

    Args:
        entries: in the order in which they are begun.
        runs: where the runs' folders are.
        results: where what they have shown is kept.
        at_once: how many runs side by side.
        minutes: after which all are stopped, each with a checkpoint; None works until all are finished. A run that
            would end within so many, but not in what is left of them, is not begun.
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
        self._at_once, self._device, self._say = min(at_once, len(entries)), device, say
        self._threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, usable_cores() // self._at_once))
        self._minutes = minutes
        self._until = time.monotonic() + 60 * minutes if minutes else None
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._running: dict[str, Work] = {}
        self._failed: list[str] = []
        self._unkept: set[str] = set()  # what they have shown is newer than what could be written

    def work(self) -> list[str]:
        """Returns the names of the runs that ended by an error or could not be kept.

        What each has said is in a `.txt` beside its folder.

        Raises:
            UserMistake: a folder cannot be written to.
        """
        for folder in (self._runs, self._results):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserMistake(f"{folder} cannot be made ({error.strerror}); give another folder") from error
            try:
                TemporaryFile(dir=folder).close()
            except OSError as error:
                raise UserMistake(f"{folder} cannot be written to ({error.strerror}); give another folder") from error
        with ThreadPoolExecutor(self._at_once) as pool:
            waiting = [pool.submit(self._run, entry) for entry in self._entries]
            try:
                said = kept = time.monotonic()
                while not all(each.done() for each in waiting):
                    time.sleep(0.2)
                    if self._until and time.monotonic() > self._until and not self._stop.is_set():
                        self._say("Time is up: stopping, with a checkpoint each")
                        self._stop.set()
                    if time.monotonic() - said > SAY_SECONDS:
                        said = time.monotonic()
                        self._say(self.standing())
                    if time.monotonic() - kept > KEEP_SECONDS:
                        kept = time.monotonic()
                        self._keep(*list(self._running.values()))
            except KeyboardInterrupt:
                self._say(f"Stopping, with a checkpoint each, for which they have {GRACE_SECONDS:.0f} s")
            finally:
                self._stop.set()
        for each in waiting:
            each.result()
        self._say(f"{self._finished()} of {len(self._entries)} finished")
        return [*self._failed, *(name for name in self._unkept if name not in self._failed)]

    def standing(self) -> str:
        """One line: what runs, how far it is, its score and where that lies among the published."""
        running = [self._in_words(work) for work in list(self._running.values())]
        return " | ".join([f"{self._finished()} of {len(self._entries)} finished", *(running or ["nothing runs"])])

    def _finished(self) -> int:
        return sum(self._is_done(entry) for entry in self._entries)

    def _in_words(self, work: Work) -> str:
        score = standing(self._runs / work.entry.name, work.entry)
        return f"{work.entry.name} {'evaluates' if work.evaluates else score}"

    def _is_done(self, entry: Entry) -> bool:
        """Also where it was not evaluated, if the agent is no longer there."""
        kept = scores.run_record(self._results / entry.name)
        is_whole = bool(kept.get("finished")) and kept.get("frames", 0) >= entry.config.frames
        evaluated = (kept.get("evaluation") or {}).get("frames", 0)
        return is_whole and (evaluated >= entry.config.frames or not self._is_trained(entry))

    def _is_trained(self, entry: Entry) -> bool:
        return record.frames(self._runs / entry.name) >= entry.config.frames

    def _run(self, entry: Entry) -> None:
        if self._stop.is_set() or self._is_done(entry):
            return
        if (needed := self._needs_another_time(entry)) is not None:
            self._say(f"{entry.name} takes some {needed:.0f} minutes, and is left for another time")
            return
        folder = self._runs / entry.name
        before, kept = record.made_so_far(folder), scores.run_record(self._results / entry.name)
        if (frames := kept.get("frames", 0)) > record.frames(folder):
            other = f"{self._results / entry.name} holds {frames:,} frames of a run that {self._runs} has lost"
            self._say(f"{other}; the one that is there now is kept once it is longer")
        else:
            before = before or kept  # of a version that did not write it into the folder
        work = self._running[entry.name] = Work(entry, before, record.commit(), before.get("evaluation"))
        try:
            if not self._is_trained(entry):
                folder.mkdir(parents=True, exist_ok=True)
                self._process(entry, entry.command(folder, self._device), subprocess.DEVNULL)
            is_kept = self._keep(work)  # before anything else can go wrong
            if is_kept and self._is_trained(entry) and not self._stop.is_set():
                work.evaluates = True
                work.evaluation = self._evaluate(entry) or work.evaluation
                self._keep(work)
        finally:
            del self._running[entry.name]
        if entry.name not in self._failed:
            self._say(f"{entry.name}: {standing(folder, entry)}")

    def _needs_another_time(self, entry: Entry) -> float | None:
        """Minutes that a run takes, if they fit into a whole sitting but not into the rest of this one."""
        if self._until is None or self._minutes is None:
            return None
        needed, left = self.minutes_needed(entry), (self._until - time.monotonic()) / 60
        return needed if needed is not None and left < needed <= self._minutes else None

    def minutes_needed(self, entry: Entry) -> float | None:
        """Minutes up to a run's end, as long as it or one of its kind has taken for a frame; None if none has yet."""
        folder = self._runs / entry.name
        rest = entry.config.frames - record.frames(folder)
        if pace := scores.minutes_per_frame(folder):
            return rest * pace
        same: list[float] = []
        for place in sorted(self._results.glob("*/times.csv")):
            try:
                other, pace = scores.read(place.parent), scores.minutes_per_frame(place.parent)
            except CheckpointError:  # the index says so
                continue
            if not pace or not self._is_of_its_kind(entry, other):
                continue
            if other.config.task == entry.task:
                return rest * pace
            same.append(pace)
        return rest * max(same) if same else None

    def _is_of_its_kind(self, entry: Entry, other: scores.Curve) -> bool:
        """Whether a run that is kept was of the same suite and method, on this machine, beside as many others."""
        made, suite = scores.run_record(other.folder), entry.task.split("/")[0]
        is_as_here = made.get("machine") == record.machine(self._device) and made.get("at_once") == self._at_once
        return is_as_here and other.config.task.split("/")[0] == suite and other.method == method(entry.config)

    def _keep(self, *works: Work) -> bool:
        """Write what runs have shown so far, and the index if there was anything to write; whether there was."""
        with self._writing:
            kept = [self._results / work.entry.name for work in works if self._write(work)]
            if kept:
                self._write_index(kept)
        return bool(kept)

    def _write(self, work: Work) -> bool:
        """Write what a run has shown so far; whether there was anything to write."""
        entry, folder, before = work.entry, self._runs / work.entry.name, work.before
        now = record.circumstances(entry.config, self._device, self._threads)
        machines = dict.fromkeys([*filter(None, before.get("machine", "").split("; ")), now["machine"]])
        made = now | {
            "command": " ".join(["dreamer", *entry.command(folder, self._device)]),
            "commits": list(dict.fromkeys([*before.get("commits", []), work.commit])),
            "machine": "; ".join(machines),
            "at_once": max(self._at_once, before.get("at_once", 1)),
            "finished": self._is_trained(entry),
            "evaluation": work.evaluation,
        }
        try:
            record.remember(folder, made)
        except OSError as error:
            self._say(f"{folder} cannot be written to ({error.strerror}); mend that")
        try:
            written = record.keep(folder, self._results / entry.name, made)
            self._unkept.discard(entry.name)
            if written:
                return True
            self._say(f"{self._results / entry.name} holds a longer curve; that is left as it is")
        except CheckpointError:  # it has written no curve yet
            pass
        except OSError as error:
            self._unkept.add(entry.name)
            place = f"{self._results} ({error.strerror})"
            self._say(f"{entry.name} cannot be kept in {place}; mend that, and give the same command again")
        return False

    def _write_index(self, changed: list[Path]) -> None:
        try:
            write_index(self._results)
            draw(self._results, changed)
        except Exception as error:  # whatever lies among the results: the runs go on, and can be kept
            self._say(f"No new index of {self._results}: {error or type(error).__name__}")

    def _evaluate(self, entry: Entry) -> dict[str, Any] | None:
        """The finished agent in new episodes; None if that fails, which is said, or is stopped."""
        words = ["evaluate", str(self._runs / entry.name), "--episodes", str(EPISODES), "--device", self._device]
        out, frames = self._runs / f"{entry.name}.json", record.frames(self._runs / entry.name)
        with out.open("wb") as file:
            if not self._process(entry, [*words, "--json"], file):
                return None
        try:  # before it, and after it, may be what an environment prints
            found = next(line for line in reversed(out.read_text().splitlines()) if line.startswith('{"'))
            return {"command": " ".join(["dreamer", *words]), "frames": frames, **json.loads(found)}
        except (ValueError, StopIteration):
            self._say(f"{entry.name} is not evaluated: {out} has no scores")
            return None

    def _process(self, entry: Entry, words: list[str], out: Any) -> bool:
        """Run `dreamer` with these arguments; whether it has ended as it should. A stop of ours is no failure."""
        # Beside the folder: a new run's own has to be empty.
        with (self._runs / f"{entry.name}.txt").open("ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "dreamer", *words],
                stdout=out,
                stderr=said,
                env=dict(os.environ) | {"OMP_NUM_THREADS": str(self._threads), SHARED_BY: str(self._at_once)},
                start_new_session=True,  # so that Ctrl-C reaches them through us alone
            )
            try:
                while process.poll() is None and not self._stop.wait(0.2):
                    pass
                stopped = process.poll() is None
                if stopped:
                    process.send_signal(signal.SIGINT)
                    process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._say(f"{entry.name} did not stop in {GRACE_SECONDS:.0f} s, and goes on from its last checkpoint")
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
        if process.returncode and not stopped:
            self._failed.append(entry.name)
            text = self._runs / f"{entry.name}.txt"
            self._say(f"{entry.name} ended by an error, see {text}: {_last_line(text)}")
        return not process.returncode


def _last_line(path: Path) -> str:
    return next((line for line in reversed(path.read_text(errors="replace").splitlines()) if line.strip()), "")


def standing(folder: Path, entry: Entry) -> str:
    """How far a run is, its score, and the last published one beside it."""
    try:
        curve = scores.read(folder)
    except CheckpointError:
        return "begins"
    score = curve.at(curve.last, published.window(entry.task))
    if score is None:
        return "no episode yet"
    text = f"{published.compact(curve.end)} {published.number(score)}"
    band = published.passed(entry.task, curve.frames[0], curve.end)
    there = curve.at(band.frames, published.window(entry.task)) if band else None
    if band is None or there is None:
        return text
    return f"{text}, {published.standing_in_short(entry.config, band, there)}"
