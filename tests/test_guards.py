import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreamer import checkpoint, logger
from dreamer.checkpoint import CheckpointError, RunFolder
from dreamer.cli import main
from dreamer.curves import Curves, Events
from dreamer.guards import Saver
from dreamer.health import Health
from dreamer.terminal import Terminal

TESTS = Path(__file__).parent
WIDTHS = [part for setting in tiny.WIDTHS for part in ("--set", setting)]


def train(folder, frames, *arguments):
    options = ["--env", "gym/CartPole-v1", "--size", "1m", "--frames", str(frames), "--run", str(folder)]
    return CliRunner().invoke(main, ["train", *options, *WIDTHS, *arguments])


def rows(folder):
    return RunFolder(folder).newest(with_replay=True).state()["counters"]["rows"]


# A disk that takes nothing any more ----------------------------------------------------------------------


class Disk:
    """Refuses to write the n-th checkpoint, for some n."""

    def __init__(self, monkeypatch, refuses, error=errno.ENOSPC):
        self.saves, self.refuses, self.error = 0, refuses, error
        self.real = checkpoint.write_tensors
        monkeypatch.setattr(checkpoint, "write_tensors", self.write)
        monkeypatch.setattr(Saver, "RETRY_SECONDS", 0.0)
        monkeypatch.setattr(Saver, "MOST_TRIES", 3)

    def write(self, path, data):
        if path.name.startswith("rows"):  # the first of each checkpoint
            self.saves += 1
        if self.refuses(self.saves):
            raise OSError(self.error, os.strerror(self.error), str(path))
        return self.real(path, data)


@pytest.mark.parametrize(
    ("error", "words"),
    [(errno.ENOSPC, "No space left on device"), (errno.EACCES, "Permission denied"), (errno.EIO, "Input/output error")],
)
def test_a_disk_that_refuses_is_told_and_tried_again(tmp_path, monkeypatch, error, words):
    Disk(monkeypatch, lambda number: 3 <= number <= 5, error)
    result = train(tmp_path / "run", 60, "--set", "run.checkpoint_seconds=0.0001")
    assert result.exit_code == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if "Cannot save a checkpoint" in line]
    assert len(said) == 3 and f"({words}); the last one stays, and the next try is in" in said[0]
    assert rows(tmp_path / "run") == 60


def test_a_disk_that_stays_full_costs_only_what_came_after_the_last_checkpoint(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        Disk(patch, lambda number: number >= 30)
        result = train(tmp_path / "run", 60, "--set", "run.checkpoint_seconds=0.0001")
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    assert "could not be saved" in result.stderr.splitlines()[-1]
    assert "run the same command again: it goes on from the last checkpoint" in result.stderr.splitlines()[-1]
    assert rows(tmp_path / "run") == 29
    assert train(tmp_path / "run", 60).exit_code == 0
    assert rows(tmp_path / "run") == 60


def test_who_has_asked_for_the_end_has_not_given_it_up(tmp_path, monkeypatch):
    """A disk that refuses the checkpoint of a Ctrl-C, once, and takes the next."""
    refusals = iter([True])
    Disk(monkeypatch, lambda number: next(refusals, False))
    config, agent, vector, replay, counters = tiny.tiny_run()
    folder, terminal = RunFolder(tmp_path / "run"), Terminal(io.StringIO())
    with folder.lock():
        folder.describe(config, agent.observation_spec, agent.action_spec)
        log = logger.Logger(folder.path, config, terminal, counters, Health(config, agent.action_spec, 400))
        saver = Saver(config, folder, terminal, agent, replay, counters, log, vector)
        saver.save(None)
        assert not folder.has_checkpoint
        saver.finish(lambda: True)
        assert folder.has_checkpoint


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
def test_a_limit_of_the_system_itself(tmp_path):
    """A quota on the size of files, as the system enforces it, and lifts it again."""
    code = f"""
import resource, signal, sys
sys.path.append({str(TESTS)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import test_guards
from dreamer.guards import Saver
from dreamer import checkpoint
Saver.RETRY_SECONDS = 0.0
real, calls = checkpoint.RunFolder.save, []
def save(self, state, replay):
    calls.append(1)
    limit = 20_000 if 2 <= len(calls) <= 3 else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        real(self, state, replay)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpoint.RunFolder.save = save
result = test_guards.train({str(tmp_path / "run")!r}, 30, "--set", "run.checkpoint_seconds=0.0001")
print(result.stderr)
sys.exit(result.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Cannot save a checkpoint") == 2 and "(File too large)" in done.stdout
    assert rows(tmp_path / "run") == 30


def test_a_folder_that_is_removed_under_a_run(tmp_path, monkeypatch):
    real, calls = RunFolder.save, []

    def save(self, state, replay):
        calls.append(1)
        if len(calls) == 20:
            shutil.rmtree(self.path)
        real(self, state, replay)

    monkeypatch.setattr(RunFolder, "save", save)
    result = train(tmp_path / "run", 60, "--set", "run.checkpoint_seconds=0.0001", "--set", "run.log_seconds=0.0001")
    assert result.exit_code == 0, result.stderr
    assert rows(tmp_path / "run") == 60
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["frames"] == 60
    assert train(tmp_path / "run", 70).exit_code == 0


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    config, agent, vector, replay, counters = tiny.tiny_run()
    saver = Saver(config, RunFolder(tmp_path), Terminal(), agent, replay, counters, None, vector)
    with torch.no_grad():
        agent.parameters[3].view(-1)[0] = torch.inf
    with pytest.raises(CheckpointError, match="so they are not saved; the last checkpoint stays"):
        saver.save(None)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_log_on_a_full_disk_ends_nothing(tmp_path):
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:  # closing it fails, too
        terminal = Terminal(full)
        terminal.say("nobody hears this")
        terminal.progress("nor this")
    terminal.say("nor this, when it is closed")
    arguments = ["train", "--env", "gym/CartPole-v1", "--size", "1m", "--frames", "30", "--run", tmp_path / "run"]
    with open("/dev/full", "wb", buffering=0) as full:
        command = [sys.executable, "-m", "dreamer", *map(str, arguments), *WIDTHS]
        subprocess.run(command, stderr=full, cwd=TESTS.parent, timeout=120)
    assert rows(tmp_path / "run") == 30


# Environments that say they can save their state ---------------------------------------------------------


def train_saving(folder, frames):
    options = ["--env", "counting:Saving", "--size", "1m", "--frames", str(frames), "--run", str(folder)]
    result = CliRunner().invoke(main, ["train", *options, *WIDTHS, "--set", "run.checkpoint_seconds=0.0001"])
    assert result.exit_code == 0, result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("fails", "said"),
    [("get", "raised RuntimeError when its state was saved: the simulator says no"), ("odd", "cannot be saved")],
)
def test_episodes_that_cannot_be_saved_after_all(tmp_path, monkeypatch, fails, said):
    monkeypatch.setenv("FAILS", fails)
    lines = train_saving(tmp_path / "run", 30).splitlines()
    (line,) = [line for line in lines if "Checkpoints cannot hold the open episodes: " in line]
    assert said in line
    monkeypatch.delenv("FAILS")
    said = "The open episodes end here, as at a time limit: the checkpoint does not hold them\n"
    assert said in train_saving(tmp_path / "run", 40)
    assert rows(tmp_path / "run") == 40


def test_episodes_that_cannot_be_gone_on_with_after_all(tmp_path, monkeypatch):
    assert "open episodes" not in train_saving(tmp_path / "run", 33)  # two cycles of 15 rows, and the next begun
    monkeypatch.setenv("FAILS", "set")
    said = train_saving(tmp_path / "run", 40)
    assert (
        "The open episodes end here, as at a time limit: environment 1 of 1 raised RuntimeError when its state" in said
    )
    assert rows(tmp_path / "run") == 40
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    later = [line for line in lines if "episode/score" in line and line["frames"] > 33]
    # None holds rows of before: each has begun with a reset of its own.
    assert later and all(line["episode/length_frames"] + 1 <= line["frames"] - 33 for line in later)


# Curves that cannot be written ---------------------------------------------------------------------------


def test_lines_wait_until_they_can_be_written(tmp_path):
    said = []
    folder = tmp_path / "run"
    folder.mkdir()
    curves = Curves(folder, 0, said.append)
    curves.add({"loss": 1.0}, 10)
    shutil.rmtree(folder)
    curves.add({"loss": 2.0}, 20)
    curves.add({"loss": 3.0}, 30)
    assert [line for line in said if "metrics.jsonl" in line] == [
        f"Cannot write {folder / 'metrics.jsonl'} (No such file or directory); its lines wait until it can be written."
    ]
    folder.mkdir()
    for last in (30, 40):
        curves.sync()  # at a checkpoint, after which nothing more may come
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["frames"] for line in lines] == list(range(20, last + 1, 10))
        curves.add({"loss": 4.0}, 40)


def test_a_line_is_written_whole_however_little_the_disk_takes(tmp_path):
    curves = Curves(tmp_path, 0, print)

    class Little:
        def __init__(self, file):
            self.file, self.left = file, 7

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            count = self.file.write(data[: self.left])
            self.left -= count
            return count

    path = curves._path
    curves._path = SimpleNamespace(parent=tmp_path, open=lambda *given, **named: Little(path.open(*given, **named)))
    curves.add({"loss": 1.0}, 10)
    curves.add({"loss": 2.0}, 20)
    curves._path = path
    curves.add({"loss": 3.0}, 30)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"frames": frames, "loss": frames / 10} for frames in (10, 20, 30)]


def test_tensorboard_is_tried_again_later(tmp_path, monkeypatch):
    said, now = [], [0.0]
    monkeypatch.setattr(logger.time, "monotonic", lambda: now[0])
    real, broken = Events.add, [False]

    def add(self, summary, step):
        if broken[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, summary, step)

    monkeypatch.setattr(Events, "add", add)
    curves = Curves(tmp_path, 0, said.append)
    curves.add({"loss": 1.0}, 10)
    broken[0] = True
    curves.add({"loss": 2.0}, 20)
    broken[0] = False
    curves.add({"loss": 3.0}, 30)
    assert said == ["Cannot write for TensorBoard (No space left on device); what comes now is missing there."]
    now[0] += Curves.RETRY_SECONDS + 1
    curves.add({"loss": 4.0}, 40)
    assert len(list(tmp_path.glob("events.*"))) == 2
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in accumulator.Scalars("loss")] == [(10, 1.0), (40, 4.0)]


def test_what_was_shown_survives_a_kill(tmp_path):
    curves = Curves(tmp_path, 0, print)
    for frames in (10, 20):
        curves.add({"loss": 1.0}, frames)
    (path,) = tmp_path.glob("events.*")
    path.write_bytes(path.read_bytes() + b"half an event")
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in accumulator.Scalars("loss")] == [10, 20]
