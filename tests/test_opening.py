"""Training and scoring from Python: the same runs as the command line's."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import counting
import pytest
import tiny

import dreamer
from dreamer.errors import UserMistake
from dreamer.opening import as_settings, task_of

TINY = dict(setting.split("=") for setting in tiny.WIDTHS if not setting.startswith("run."))
EAGER = {"run.compile": False}


def train(run, env="gym/CartPole-v1", frames=60, **given):
    settings = TINY | EAGER | given.pop("settings", {})
    return dreamer.train(env, run, frames=frames, device="cpu", precision="float32", settings=settings, **given)


def frames(run):
    counters = json.loads((run / "checkpoint.json").read_text())["counters"]
    return counters["rows"] * counters["repeat"]


def test_a_run_is_trained_continued_scored_and_loaded(tmp_path):
    run = train(tmp_path / "run", seed=3, envs=2)
    config = json.loads((run / "config.json").read_text())
    assert run == tmp_path / "run"
    assert (config["seed"], config["envs"], config["frames"], config["size"]) == (3, 2, 60, "1m")
    assert (config["model"]["deter"], config["run"]["compile"], config["run"]["precision"]) == (16, False, "float32")
    assert frames(run) == 60

    assert dreamer.train(run=run, frames=100) == run
    assert frames(run) == 100

    scores = dreamer.evaluate(run, episodes=3)
    assert len(scores.scores) == 3
    assert scores.scores == tuple(float(length) for length in scores.lengths)  # a point a step
    assert dreamer.evaluate(str(run), 3) == scores
    assert dreamer.load(run).task == "gym/CartPole-v1"


def test_without_a_folder_the_run_gets_one_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(None, seed=4)
    assert run.parent.name == "runs" and run.name.startswith("gym-CartPole-v1-seed4-")
    assert (run / "checkpoint.json").is_file()


def test_a_class_of_a_module_is_an_environment(tmp_path):
    run = train(tmp_path / "run", counting.Counting, frames=40)
    assert json.loads((run / "config.json").read_text())["task"] == "counting:Counting"
    assert len(dreamer.evaluate(run, 2).scores) == 2


def test_names_of_environments():
    def local():
        pass

    class Here:
        pass

    Here.__qualname__ = "Here"
    assert task_of("atari/pong") == "atari/pong"
    assert task_of(counting.Counting) == "counting:Counting"
    assert task_of(Here) == f"{__name__}:Here"
    for unnamed in (local, lambda: None):
        with pytest.raises(UserMistake, match="cannot be imported by others.* define it in a module of its own"):
            task_of(unnamed)
    Here.__module__ = "__main__"
    with pytest.raises(UserMistake, match="^Here cannot be imported by others"):
        task_of(Here)
    for nothing in (3, object()):
        with pytest.raises(UserMistake, match="give a task's name"):
            task_of(nothing)


def test_settings_are_read_as_the_command_line_reads_them():
    given = {"frames": 1e6, "optimizer.learning_rate": 1.6e-4, "run.compile": False, "environment.name": "x"}
    assert as_settings(given) == (
        "frames=1000000.0",
        "optimizer.learning_rate=0.00016",
        "run.compile=false",
        "environment.name=x",
    )


@pytest.mark.parametrize(
    "given, said",
    [
        ({"frames": "many"}, "frames=many is not a whole number"),
        ({"frames": 0}, "frames=0 must be greater than 0"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"size": "2m"}, "size=2m is not one of"),
        ({"settings": {"replay.bach": 8}}, "the nearest is 'replay.batch'"),
        ({"env": None}, "say what to learn"),
    ],
)
def test_mistakes_are_sentences(tmp_path, given, said):
    with pytest.raises(UserMistake, match=said):
        train(tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_another_run_in_the_folder_stays(tmp_path):
    run = train(tmp_path / "run", seed=1)
    before = (run / "config.json").read_text()
    with pytest.raises(UserMistake, match="seed is 1 there, 2 was given"):
        dreamer.train(run=run, seed=2)
    assert (run / "config.json").read_text() == before


@pytest.mark.parametrize("name, raised", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_whoever_stops_it_finds_all_saved_and_signals_as_they_were(tmp_path, name, raised):
    before = signal.getsignal(name)
    run = tmp_path / "run"

    def stop_it():
        while not (run / "metrics.jsonl").exists():
            if done.wait(0.05):
                return
        os.kill(os.getpid(), name)

    done = threading.Event()
    thread = threading.Thread(target=stop_it)
    thread.start()
    try:
        with pytest.raises(raised):
            train(run, frames=10_000_000)
    finally:
        done.set()
        thread.join()
    assert signal.getsignal(name) == before
    assert 0 < frames(run) < 10_000_000


def test_in_a_thread_signals_are_left_alone(tmp_path):
    before, found = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(target=lambda: found.append(train(tmp_path / "run")))
    thread.start()
    thread.join()
    assert found == [tmp_path / "run"]
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("environments", [1, 2])
def test_a_script_that_trains_whenever_it_is_imported(tmp_path, environments):
    """It names an environment of its own: importing that would start the training once more."""
    given = f"'run', frames=40, envs={environments}, device='cpu', settings={TINY | EAGER}"
    (tmp_path / "script.py").write_text(
        f"import dreamer\nfrom counting import Counting\n\ndreamer.train('script:Counting', {given})\n"
    )
    shutil.copy(counting.__file__, tmp_path)
    ended = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode != 0
    assert 'put what starts it behind if __name__ == "__main__":' in ended.stderr
    assert not (tmp_path / "run").exists()
