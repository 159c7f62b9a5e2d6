import io
import json
import math
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreamer import curves, logger, terminal
from dreamer.config import make_config
from dreamer.curves import Curves
from dreamer.health import Health
from dreamer.logger import Logger
from dreamer.loop import Counters
from dreamer.results import published
from dreamer.results.published import compact
from dreamer.terminal import Terminal, duration


class Clock:
    """Time that passes when told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (logger, curves, terminal):
        monkeypatch.setattr(module, "time", clock)
    return clock


class Tty(io.StringIO):
    def isatty(self):
        return True


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def events(path, name):
    """(step, value) of a scalar, as TensorBoard shows it."""
    accumulator = EventAccumulator(str(path)).Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def age(path):
    """Make the events so old that those of later runs come after them: their names begin with the second."""
    for file in path.glob("events.*"):
        file.rename(path / f"events.out.tfevents.1000000000.{file.name.rpartition('.')[2]}")


def rows(reward, first, last):
    return SimpleNamespace(
        observation={},
        reward=np.array(reward, np.float32),
        is_first=np.array(first, bool),
        is_last=np.array(last, bool),
        is_terminal=np.array(last, bool),
    )


class Watched:
    """A logger, and the counters that the loop would keep."""

    def __init__(self, path, stream=None, counters=None, **given):
        self.stream = stream or io.StringIO()
        self.config = tiny.tiny_config("run.log_seconds=5", frames=4000, **given)
        self.counters = counters or Counters(repeat=4)
        self.health = Health(self.config, tiny.ACTION, capacity=400)
        self.logger = Logger(path, self.config, Terminal(self.stream), self.counters, self.health)

    def rows(self, reward, first, last):
        self.counters.rows += len(reward)
        self.logger.rows(rows(reward, first, last), self.counters)

    def update(self, **metrics):
        self.counters.updates += 1
        self.logger.update({name: torch.tensor(value) for name, value in metrics.items()}, None, self.counters)

    def close(self):
        self.logger.close(self.counters)


def test_speed_begins_with_the_first_row(tmp_path, clock):
    watched = Watched(tmp_path)
    clock.now += 600  # loading and compiling
    watched.rows([0.0], [True], [False])
    clock.now += 6
    watched.rows([0.0], [False], [False])
    watched.update(loss=1.0)
    watched.logger.flush(watched.counters)  # as for a checkpoint, right after it
    speed = "speed/agent_steps_per_second"
    assert [line.get(speed) for line in lines(tmp_path)] == [pytest.approx(2 / 6), None]


# Curves --------------------------------------------------------------------------------------------------


def test_scores_and_lengths_over_resets_with_two_environments(tmp_path):
    watched = Watched(tmp_path, envs=2)
    watched.rows([0, 0], [1, 1], [0, 0])
    watched.rows([1, 5], [0, 0], [0, 1])  # 8 rows of 4 frames in all: the second ends after one step
    watched.rows([2, 0], [0, 1], [0, 0])
    watched.rows([4, 3], [0, 0], [1, 0])
    watched.rows([0, 3], [1, 0], [0, 1])
    watched.close()
    scores = [line for line in lines(tmp_path) if "episode/score" in line]
    assert scores == [
        {"frames": 16, "episode/score": 5.0, "episode/length_frames": 4.0},
        {"frames": 32, "episode/score": 7.0, "episode/length_frames": 12.0},
        {"frames": 40, "episode/score": 6.0, "episode/length_frames": 8.0},
    ]
    assert events(tmp_path, "episode/score") == [(16, 5), (32, 7), (40, 6)]
    assert events(tmp_path, "episode/length_frames") == [(16, 4), (32, 12), (40, 8)]


def test_both_environments_may_end_at_once(tmp_path):
    watched = Watched(tmp_path, envs=2)
    watched.rows([0, 0], [1, 1], [0, 0])
    watched.rows([1, 2], [0, 0], [1, 1])
    watched.close()
    assert [line["episode/score"] for line in lines(tmp_path) if "episode/score" in line] == [1, 2]


def test_metrics_are_means_over_the_updates_since_the_last_line(tmp_path, clock):
    watched = Watched(tmp_path)
    watched.rows([0], [1], [0])
    watched.update(loss=1.0)
    watched.update(loss=4.0)
    clock.now += 6
    watched.rows([0], [0], [0])
    watched.update(loss=7.0)
    clock.now += 4
    watched.rows([0], [0], [0])  # not yet: a line is due every 5 seconds
    watched.close()
    first, last = lines(tmp_path)
    assert first["frames"] == 8 and first["loss"] == 2.5 and first["speed/updates"] == 2
    assert first["speed/updates_per_second"] == pytest.approx(2 / 6)
    assert first["speed/agent_steps_per_second"] == pytest.approx(2 / 6)
    assert last["frames"] == 12 and last["loss"] == 7 and last["speed/updates"] == 3
    assert last["speed/updates_per_second"] == pytest.approx(1 / 4)
    assert events(tmp_path, "loss") == [(8, 2.5), (12, 7.0)]


def test_metrics_are_not_changed_under_the_hands_of_the_agent(tmp_path):
    watched = Watched(tmp_path)
    value = torch.tensor(1.0)
    for _ in range(3):
        watched.counters.updates += 1
        watched.logger.update({"loss": value}, None, watched.counters)
    assert value == 1
    watched.close()
    assert lines(tmp_path)[-1]["loss"] == 1


def test_there_is_no_nan_in_json(tmp_path):
    watched = Watched(tmp_path)
    watched.rows([0], [1], [0])
    watched.update(loss=math.nan, other=math.inf, good=1.0)
    watched.close()
    text = (tmp_path / "metrics.jsonl").read_text()

    def refuse(name):
        raise AssertionError(name)

    line = json.loads(text, parse_constant=refuse)
    assert line["loss"] is None and line["other"] is None and line["good"] == 1


def test_a_run_that_is_continued_drops_what_came_after_its_checkpoint(tmp_path):
    curves = Curves(tmp_path, 0, print)
    for frames in (100, 200, 300, 400):
        curves.add({"score": frames / 10}, frames)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"frames": 500, "sco')
    age(tmp_path)
    curves = Curves(tmp_path, 250, print)
    curves.add({"score": 33.0}, 300)
    assert [(line["frames"], line["score"]) for line in lines(tmp_path)] == [(100, 10), (200, 20), (300, 33)]
    assert events(tmp_path, "score") == [(100, 10), (200, 20), (300, 33)]


def test_what_was_written_at_the_checkpoint_itself_stays(tmp_path):
    curves = Curves(tmp_path, 0, print)
    curves.add({"score": 1.0}, 200)
    age(tmp_path)
    Curves(tmp_path, 200, print)
    assert [line["frames"] for line in lines(tmp_path)] == [200]
    assert events(tmp_path, "score") == [(200, 1)]


def test_a_run_that_begins_anew_in_its_folder_drops_everything(tmp_path):
    curves = Curves(tmp_path, 0, print)
    curves.add({"score": 1.0}, 100)
    age(tmp_path)
    curves = Curves(tmp_path, 0, print)
    curves.add({"score": 2.0}, 50)
    assert [(line["frames"], line["score"]) for line in lines(tmp_path)] == [(50, 2)]
    assert events(tmp_path, "score") == [(50, 2)]


def test_lines_are_there_while_the_run_goes_on(tmp_path):
    curves = Curves(tmp_path, 0, print)
    curves.add({"score": 1.0}, 100)
    assert lines(tmp_path) == [{"frames": 100, "score": 1.0}]


# Progress ------------------------------------------------------------------------------------------------


def test_plain_lines_where_there_is_no_terminal(tmp_path, clock):
    watched, spoken = Watched(tmp_path), []
    for _ in range(400):
        clock.now += 0.5
        before = watched.stream.tell()
        watched.rows([0], [0], [0])
        if watched.stream.tell() > before:
            spoken.append(clock.now)
    silence = [later - earlier for earlier, later in zip(spoken, spoken[1:], strict=False)]
    assert spoken[0] == 1000.5 and terminal.QUIET_SECONDS <= 10
    assert max(silence) <= terminal.QUIET_SECONDS + 0.5 and min(silence) >= terminal.QUIET_SECONDS - 0.5
    text = watched.stream.getvalue()
    assert "\r" not in text and text.endswith("\n")
    assert text.splitlines()[0] == "4 of 4,000 frames, 0 episodes, 0 updates"
    watched.close()


def test_updates_count_as_news_too(tmp_path, clock):
    watched = Watched(tmp_path)
    for _ in range(30):
        clock.now += 3
        watched.update(loss=1.0)
    assert len(watched.stream.getvalue().splitlines()) >= 7
    watched.close()


def test_one_live_line_in_a_terminal(clock):
    stream = Tty()
    terminal = Terminal(stream)
    for i in range(10):
        clock.now += 0.1
        terminal.progress(f"step {i}")
    terminal.say("a line that stays")
    clock.now += 1
    terminal.progress("on")
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert show(text) == ["a line that stays", "on"]
    assert 3 <= text.count("step") <= 6  # not more often than five times a second


def show(text):
    """What is on the screen at last: a carriage return goes back, what is written covers what was there."""
    screen = []
    for line in text.split("\n"):
        shown = ""
        for piece in line.split("\r"):
            shown = piece + shown[len(piece) :]
        screen.append(shown.rstrip())
    return screen


def test_a_shorter_live_line_leaves_nothing_of_a_longer_one(clock):
    stream = Tty()
    terminal = Terminal(stream)
    for text in ("a long line of text", "short"):
        clock.now += 1
        terminal.progress(text)
    assert show(stream.getvalue()) == ["short"]


def test_a_live_line_is_not_longer_than_the_terminal(clock, monkeypatch):
    # A line that wraps cannot be taken back: each refresh would leave a line behind.
    monkeypatch.setenv("COLUMNS", "40")
    stream = Tty()
    Terminal(stream).progress("x" * 100)
    assert 30 <= len(stream.getvalue()) < 40


def test_parts_that_do_not_fit_are_left_out_from_the_end(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream = Tty()
    Terminal(stream).progress("12.3k of 60k frames", "72 min left", "score 7", "4 episodes")
    assert stream.getvalue() == "12.3k of 60k frames"
    monkeypatch.setenv("COLUMNS", "80")
    stream = Tty()
    Terminal(stream).progress("12.3k of 60k frames", "72 min left", "score 7", "4 episodes")
    assert stream.getvalue() == "12.3k of 60k frames, 72 min left, score 7, 4 episodes"


def test_a_line_that_is_taken_back(clock):
    stream = Tty()
    terminal = Terminal(stream)
    terminal.progress("0 of 3 episodes")
    terminal.clear()
    assert show(stream.getvalue()) == [""]


@pytest.mark.parametrize(
    ("frames", "text"),
    [(9_999, "9,999"), (12_345, "12.35k"), (1_234_567, "1235k"), (9_999_600, "10M"), (200_000_000, "200M")],
)
def test_compact(frames, text):
    assert compact(frames) == text


def test_what_matters_most_fits_into_80_columns(tmp_path, clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    watched = Watched(tmp_path, stream=Tty(), counters=Counters(repeat=4, rows=30_000_000))
    object.__setattr__(watched.config, "frames", 200_000_000)
    for row in range(210):
        clock.now += 3
        watched.update(loss=1.0)
        watched.rows([-20.75 * (row == 9)], [row % 50 == 0], [row % 50 == 49])
    line = show(watched.stream.getvalue())[-1]
    assert "120M of 200M frames" in line and "days left" in line and "mean of 4: -5.1875" in line
    watched.close()


def test_skipped_updates_are_counted(tmp_path, clock):
    watched = Watched(tmp_path)
    for skipped in (0.0, 1.0, 1.0):
        watched.update(**{"optimizer/skipped": skipped})
    clock.now += 6
    watched.rows([0], [1], [0])
    watched.close()
    assert "2 updates skipped (not finite)" in watched.stream.getvalue().splitlines()[-1]


def test_a_signal_that_speaks_while_a_line_is_written_does_not_hang():
    class Interrupted(io.StringIO):
        def flush(self):
            if not spoken:
                spoken.append(True)
                signal.raise_signal(signal.SIGTERM)

    spoken, stream = [], Interrupted()
    terminal = Terminal(stream)
    signal.signal(signal.SIGTERM, lambda *_: terminal.say("stopping"))
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("it hangs")))
    signal.alarm(5)
    try:
        terminal.progress("on")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert stream.getvalue() == "on\nstopping\n"


def test_waiting_goes_on_saying_so(monkeypatch):
    monkeypatch.setattr(terminal, "QUIET_SECONDS", 0.05)
    stream = io.StringIO()
    with Terminal(stream).waiting("Compiling"):
        threading.Event().wait(0.3)
    said = stream.getvalue().splitlines()
    assert (
        said[0] == "Compiling ..." and len(said) >= 3 and all(line.startswith("Compiling ... (") for line in said[1:])
    )
    length = len(stream.getvalue())
    threading.Event().wait(0.12)
    assert len(stream.getvalue()) == length


def test_waiting_ends_with_an_error():
    stream = io.StringIO()
    with pytest.raises(RuntimeError, match="no compiler"), Terminal(stream).waiting("Compiling"):
        raise RuntimeError("no compiler")
    assert stream.getvalue() == "Compiling ...\n"


def test_the_last_line_says_how_it_stands(tmp_path):
    watched = Watched(tmp_path)
    watched.rows([0], [1], [0])
    watched.rows([7], [0], [1])
    watched.close()
    last = watched.stream.getvalue().splitlines()[-1]
    assert last == "8 of 4,000 frames, score 7, mean of 1: 7, 1 episode, 0 updates"


def test_time_left_follows_the_pace_of_learning(tmp_path, clock):
    watched = Watched(tmp_path)
    for _ in range(100):
        watched.rows([0], [0], [0])  # before the first update: quick, and no measure
    for _ in range(100):
        clock.now += 6
        watched.rows([0], [0], [0])
        watched.update(loss=1.0)
    # 200 of 1000 rows are done, 800 to go at 6 seconds each.
    assert "1 h 20 min left" in watched.stream.getvalue().splitlines()[-1]
    watched.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 min"),
        (89, "1 min"),
        (3540, "59 min"),
        (3660, "1 h 01 min"),
        (47 * 3600, "47 h 00 min"),
        (72 * 3600, "3 days"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_published_scores_are_set_beside_ours(tmp_path):
    task = {"task": "dmc/cartpole_swingup"}
    watched = Watched(tmp_path, counters=Counters(repeat=2, rows=24_997), **task)
    watched.rows([0], [1], [0])
    watched.rows([512], [0], [1])  # at 49,998 frames
    assert "published" not in watched.stream.getvalue()
    watched.rows([0], [1], [0])
    watched.close()
    said = (
        "At 50 thousand frames: 512; published 310 +- 31.98 (5 seeds): not judged, another protocol: ratio 512, here 1"
    )
    band = published.curve("dmc/cartpole_swingup")[0]
    said = said.replace("310", f"{band.mean:.4g}").replace("31.98", f"{band.std:.3g}")
    assert said in watched.stream.getvalue()
    assert events(tmp_path, "published/here") == [(50_000, 512)]
    allowed = max(2.3 * band.std, 0.15 * band.mean)
    for name, value in (("mean", band.mean), ("low", band.mean - allowed), ("high", band.mean + allowed)):
        assert events(tmp_path, f"published/{name}") == [(50_000, pytest.approx(value))]


def test_the_line_of_progress_has_room_for_the_published_score(tmp_path, clock, monkeypatch):
    watched = Watched(tmp_path, counters=Counters(repeat=2, rows=24_997), task="dmc/cartpole_swingup")
    for first in (1, 0, 1):
        watched.rows([512], [first], [1 - first])
    assert watched.logger._parts(watched.counters)[:4] == [
        "50k of 4,000 frames",
        "score 512",
        "512 at 50k, published 321.6 (other protocol)",
        "mean of 1: 512",
    ]
    task = "dmc/cartpole_swingup"
    same = published.standing_in_short(make_config(task), published.curve(task)[0], 322.0)
    assert same == "322 at 50k, published 321.6 (within)"
    # With the time left, in the line of a usual terminal.
    assert len(", ".join(["123.4k of 500k frames", "72 min left", "score 512.34", same])) < 90
