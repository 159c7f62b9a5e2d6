"""What a run leaves for people to look at: TensorBoard curves, the same as JSON lines, one line of progress."""

import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .agent import Agent
from .config import Config
from .cuda import finish
from .curves import Curves
from .errors import UserMistake
from .health import Health
from .loop import Counters, Rows
from .replay import Batch
from .results.published import (
    Band,
    compact,
    curve,
    number,
    passes_zero,
    short,
    standing,
    standing_in_short,
    tolerance,
    window,
)
from .results.scores import Curve, episodes
from .terminal import Terminal, duration
from .video import comparison, open_loop, to_rgb

FIRST_VIDEO_SECONDS = 60.0
LONGEST_EPISODE = 200_000  # steps; what is longer, or never ends, is not looked at as a whole


class Logger:
    """Watches a run (`loop.Observer`) and writes what it sees.

    Args:
        folder: of the run.
        config: of the run.
        terminal: for progress.
        counters: where the run begins or goes on.
        health: is shown what is written.
    """

    def __init__(self, folder: Path, config: Config, terminal: Terminal, counters: Counters, health: Health):
        self._folder = folder
        self._health = health
        self._rewards: list[list[float] | None] = [None] * config.envs  # of open episodes seen from their beginning
        self._config = config
        self._terminal = terminal
        self._curves = Curves(folder, counters.frames, terminal.say)
        self._scores = np.zeros(config.envs)
        self._lengths = np.zeros(config.envs, int)
        self._recent: deque[float] = deque(maxlen=10)
        self._episodes = 0
        self._sums: dict[str, torch.Tensor] = {}
        self._updates = 0
        self._skipped = 0  # updates that were not finite
        self._standing = ""  # beside the last published score
        now = time.monotonic()
        self._shown = now - config.run.video_seconds + FIRST_VIDEO_SECONDS
        self._film = Film()
        self._pace = Pace()
        self._said_when = False
        self._milestones = deque(band for band in curve(config.task) if band.frames > counters.frames)
        self._mark: tuple[float, int, int] | None = None  # when speeds were last written, and how far it was then

    def rows(self, rows: Rows, counters: Counters) -> None:
        """Count scores and lengths; at the end of an episode write them down."""
        if self._mark is None:  # here, since what came before was loading and compiling
            self._mark = time.monotonic(), counters.rows - len(rows.reward), counters.updates
        self._film.add(rows)
        self._scores = np.where(rows.is_first, 0.0, self._scores + rows.reward)
        self._lengths = np.where(rows.is_first, 0, self._lengths + 1)
        frames = counters.frames
        for place, reward in enumerate(rows.reward.tolist()):
            if rows.is_first[place]:
                self._rewards[place] = []
            elif (seen := self._rewards[place]) is not None:
                seen.append(reward)
                if len(seen) > LONGEST_EPISODE:
                    self._rewards[place] = None
        for i in np.flatnonzero(rows.is_last):
            if (seen := self._rewards[i]) is not None:
                self._health.episode(seen, bool(rows.is_terminal[i]))
            self._episodes += 1
            self._recent.append(float(self._scores[i]))
            length = float(self._lengths[i] * counters.repeat)
            self._curves.add({"episode/score": self._recent[-1], "episode/length_frames": length}, frames)
        while self._milestones and frames >= self._milestones[0].frames:
            self._compare(self._milestones.popleft())
        self._terminal.progress(*self._parts(counters))
        if time.monotonic() - self._mark[0] > self._config.run.log_seconds:
            self.flush(counters)

    def update(self, metrics: dict[str, torch.Tensor], batch: Batch, counters: Counters) -> None:
        """Add up the metrics of an update, on the device: reading each would make a GPU wait."""
        if self._sums:
            torch._foreach_add_([*self._sums.values()], [metrics[name] for name in self._sums])  # one launch for all
        else:
            self._sums = {name: value.clone() for name, value in metrics.items()}
        self._updates += 1
        self._say_when(counters)
        self._terminal.progress(*self._parts(counters))

    def show(self, agent: Agent, batch: Batch, counters: Counters) -> None:
        """Now and then, for each image key: the last episode, and what the model expects beside what came."""
        now = time.monotonic()
        if not agent.observation_spec.images or now - self._shown < self._config.run.video_seconds:
            return
        self._shown = now
        try:
            self._film_and_predict(agent, batch, counters)
        except Exception as error:  # a picture is not worth a run
            self._shown = math.inf
            self._terminal.say(f"No more pictures for TensorBoard, since drawing one failed: {error}")

    def _film_and_predict(self, agent: Agent, batch: Batch, counters: Counters) -> None:
        few = 4  # sequences side by side
        if self._film.finished:
            self._curves.add_video("episode/video", np.stack(self._film.finished), counters.frames)
        predictions = open_loop(agent, batch)
        for key in agent.observation_spec.images:
            frames = comparison(batch.observation[key][:few], predictions[key][:few])
            self._curves.add_video(f"open_loop/{key}", frames, counters.frames)

    def flush(self, counters: Counters) -> None:
        """Write down the means of all updates since the last time, and speeds."""
        now = time.monotonic()
        since, rows_before, updates_before = self._mark or (now, counters.rows, counters.updates)
        seconds = max(now - since, 1e-9)
        rows, updates = counters.rows - rows_before, counters.updates - updates_before
        if not rows and not self._updates:
            return
        scalars = {}
        if self._updates:
            names = list(self._sums)
            finish(next(iter(self._sums.values())).device)  # an update may be under way
            means = torch.stack([self._sums[name].float() for name in names]).cpu() / self._updates
            scalars = dict(zip(names, means.tolist()))
            self._skipped += round(scalars.get("optimizer/skipped", 0.0) * self._updates)
            for sentence in self._health.look(counters.updates, counters.rows, scalars):
                self._terminal.say(f"A sign that something may be wrong: {sentence}.")
        if rows:  # else this is a checkpoint's, right after another
            scalars |= {
                "speed/updates_per_second": updates / seconds,
                "speed/agent_steps_per_second": rows / seconds,
            }
        scalars["speed/updates"] = float(counters.updates)
        self._curves.add(scalars, counters.frames)
        self._sums, self._updates = {}, 0
        self._mark = (now, counters.rows, counters.updates)

    def get_state(self) -> dict[str, Any]:
        """The scores of open and recent episodes, to go on from."""
        return {
            "scores": self._scores,
            "lengths": self._lengths,
            "recent": list(self._recent),
            "episodes": self._episodes,
            "skipped": self._skipped,
            "standing": self._standing,
            "signs": sorted(self._health.said),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._scores, self._lengths = state["scores"].copy(), state["lengths"].copy()
        self._recent.extend(state["recent"])
        self._episodes, self._skipped = state["episodes"], state["skipped"]
        self._standing = state.get("standing", "")
        self._health.said |= set(state["signs"])

    def sync(self) -> None:
        """See that the curves survive a loss of power."""
        self._curves.sync()

    def close(self, counters: Counters) -> None:
        self.flush(counters)
        self._terminal.say(", ".join(self._parts(counters)))

    def _parts(self, counters: Counters) -> list[str]:
        """How it stands, what matters most first."""
        frames, goal = counters.frames, self._config.frames
        parts = [f"{compact(frames)} of {compact(goal)} frames"]
        rows_rate, updates_rate = self._pace.rates(counters)
        if rows_rate:
            parts.append(f"{duration((goal - frames) / counters.repeat / rows_rate)} left")
        if self._recent:
            parts.append(f"score {number(self._recent[-1], 5)}")
            parts += [self._standing] * bool(self._standing)
            parts.append(f"mean of {len(self._recent)}: {number(float(np.mean(self._recent)), 5)}")
        if rows_rate:
            parts.append(f"{number(updates_rate, 2)} updates/s")
            parts.append(f"{number(rows_rate, 3)} steps/s")
        parts.append(f"{self._episodes:,} episode{'s' * (self._episodes != 1)}")
        parts.append(f"{counters.updates:,} update{'s' * (counters.updates != 1)}")
        if self._skipped:
            parts.insert(1, f"{self._skipped} updates skipped (not finite)")
        return parts

    def _compare(self, band: Band) -> None:
        """The score so far beside the published one."""
        task = self._config.task
        try:
            score = Curve(self._folder, self._config, *episodes(self._folder)).at(band.frames, window(task))
        except (OSError, UserMistake) as error:  # somebody has removed the scores
            self._terminal.say(f"Cannot compare with the published score: {error}")
            return
        if score is None:
            return
        sentence = standing(self._config, band, score)
        self._standing = standing_in_short(self._config, band, score)
        self._terminal.say(sentence[0].upper() + sentence[1:])
        allowed = tolerance(band)
        scalars = {"here": score, "mean": band.mean, "low": band.mean - allowed, "high": band.mean + allowed}
        self._curves.add({f"published/{name}": value for name, value in scalars.items()}, band.frames)

    def _say_when(self, counters: Counters) -> None:
        """Once the speed of learning is known: when a published milestone and the end will be reached here."""
        rows_rate, _ = self._pace.rates(counters)
        if self._said_when or not self._pace.settled or not rows_rate:
            return
        self._said_when = True
        frames_rate = rows_rate * counters.repeat
        text = f"At this speed the run takes {duration((self._config.frames - counters.frames) / frames_rate)} more"
        zero = passes_zero(self._config.task)
        if zero and counters.frames < zero:
            away = duration((zero - counters.frames) / frames_rate)
            text += f"; {short(zero)} frames, where the published agent passes 0, are {away} away"
        self._terminal.say(text + ".")


class Film:
    """The beginning of the first environment's last episode, if it sees images."""

    FRAMES = 300

    def __init__(self) -> None:
        self.finished: list[np.ndarray] = []  # (H, W, 3) uint8 each
        self._now: list[np.ndarray] = []

    def add(self, rows: Rows) -> None:
        image = next((value[0] for value in rows.observation.values() if value.ndim == 4), None)
        if image is None:
            return
        if rows.is_first[0]:
            self._now = []
        if len(self._now) < self.FRAMES:
            self._now.append(to_rgb(image))
        if rows.is_last[0] or len(self._now) == self.FRAMES:
            self.finished = self._now


class Pace:
    """Rows and updates a second since learning began: what came before was quicker and tells nothing."""

    SETTLED_SECONDS = 60.0

    def __init__(self) -> None:
        self._begin: tuple[float, int, int] | None = None

    @property
    def settled(self) -> bool:
        return self._begin is not None and time.monotonic() - self._begin[0] > self.SETTLED_SECONDS

    def rates(self, counters: Counters) -> tuple[float, float]:
        """Rows and updates a second, zeros while there is nothing to tell."""
        now = time.monotonic()
        if self._begin is None:
            if counters.updates:
                self._begin = (now, counters.rows, counters.updates)
            return 0.0, 0.0
        began, rows, updates = self._begin
        seconds = now - began
        if seconds < 2:
            return 0.0, 0.0
        return (counters.rows - rows) / seconds, (counters.updates - updates) / seconds
