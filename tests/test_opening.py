"""Training and scoring from Python: the same runs as the command line's."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import counting
import pytest
import tiny
import torch

import dreamer
import envs
from dreamer import opening
from dreamer.errors import UserMistake
from dreamer.opening import as_given, task_of

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

    assert task_of("atari/pong") == "atari/pong"
    assert task_of(counting.Counting) == "counting:Counting"
    assert task_of(pytest.raises) == "_pytest.raises:raises"
    shadowed = functools.partial(task_of, counting.Counting)
    shadowed.__module__, shadowed.__qualname__ = "counting", "Counting"
    for unnamed in (local, lambda: None, Here, counting.Counting.reset, shadowed):
        with pytest.raises(UserMistake, match="cannot be imported by others.* define it in a module"):
            task_of(unnamed)
    for nothing in (3, object()):
        with pytest.raises(UserMistake, match="give a task's name"):
            task_of(nothing)


def test_settings_are_read_as_the_command_line_reads_them():
    given = {"frames": 1e6, "optimizer.learning_rate": 1.6e-4, "run.compile": False, "environment": 3}
    words = ["frames=1000000.0", "optimizer.learning_rate=0.00016", "run.compile=false", "environment=3"]
    assert as_given(given, {}) == {"settings": words, "options": {}}


def test_what_a_factory_takes_stays_what_it_is():
    values = {"a": [1, 2], "b": None, "c": 5.0, "d": "4", "e": "true", "f": {"x": [1]}, "g": " x "}
    options = as_given({f"environment.{key}": value for key, value in values.items()}, {})["options"]
    assert options == values and type(options["c"]) is float
    config = opening.new_config("counting:Counting", options=options)
    assert opening.configs.from_json(json.loads(json.dumps(opening.configs.to_json(config)))).environment == values
    for value in (counting.Counting, float("nan"), {1, 2}):
        with pytest.raises(UserMistake, match="environment.a is .*which a run's config.json cannot keep"):
            as_given({"environment.a": value}, {})


def test_options_reach_the_factory_and_stay_when_the_run_goes_on(tmp_path):
    run = train(tmp_path / "run", counting.Counting, frames=40, settings={"environment.episodes": [[7, False]]})
    assert set(dreamer.evaluate(run, 2).lengths) == {7}
    dreamer.train(run=run, frames=60)
    with pytest.raises(UserMistake, match="environment.episodes is .* there"):
        dreamer.train(run=run, frames=80, settings={"environment.episodes": [[9, True]]})


@pytest.mark.parametrize(
    "given, said",
    [
        ({"frames": "many"}, "frames=many is not a whole number"),
        ({"frames": 0}, "frames=0 must be greater than 0"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"size": "2m"}, "size=2m is not one of"),
        ({"settings": {"replay.bach": 8}}, "the nearest is 'replay.batch'"),
        ({"env": None}, "say what to learn"),
        ({"settings": {"task": "atari/pong"}}, "would keep the protocol"),
    ],
)
def test_mistakes_are_sentences(tmp_path, given, said):
    with pytest.raises(UserMistake, match=said):
        train(tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_settings_that_are_no_dictionary():
    with pytest.raises(UserMistake, match="give a dictionary"):
        dreamer.train("gym/CartPole-v1", settings="replay.batch=8")


@pytest.mark.parametrize("given", [{"episodes": 0}, {"episodes": 2.5}, {"envs": 0}, {"seed": -1}, {"seed": 2**64}])
def test_numbers_that_cannot_be_are_found_before_anything_is_loaded(given):
    ((name, value),) = given.items()
    with pytest.raises(dreamer.UserMistake, match=f"^{name} is {value}; give a whole number from"):
        dreamer.evaluate("nowhere", **given)


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening.time, "strftime", lambda form: "now")
    runs = [train(None, frames=20), train(None, frames=30)]
    assert [run.name for run in runs] == ["gym-CartPole-v1-seed0-now", "gym-CartPole-v1-seed0-now-2"]
    assert [frames(run) for run in runs] == [20, 30]
    with pytest.raises(UserMistake, match="the folder of a run; give it as run="):
        dreamer.train(str(runs[0]))


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="NoSuchTask-v0"):
        train(None, "gym/NoSuchTask-v0")
    assert not list((tmp_path / "runs").iterdir())


def test_another_run_in_the_folder_stays(tmp_path):
    run = train(tmp_path / "run", seed=1)
    before = (run / "config.json").read_text()
    with pytest.raises(UserMistake, match="seed is 1 there, 2 was given"):
        dreamer.train(run=run, seed=2)
    assert (run / "config.json").read_text() == before


def test_ctrl_c_while_environments_close_is_not_lost(tmp_path, monkeypatch):
    close = envs.Vector.close

    def interrupted(vector):
        os.kill(os.getpid(), signal.SIGINT)
        close(vector)

    monkeypatch.setattr(envs.Vector, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    assert frames(tmp_path / "run") == 60


def test_ctrl_c_twice_stops_at_once(tmp_path, monkeypatch):
    def twice(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr("dreamer.run.train", twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) == before


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


def test_more_variants_than_the_compiler_keeps(tmp_path, monkeypatch, capfd):
    """Their code is what dynamo counts, not their number: each width is another one."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=1):
        for units in (8, 16):
            train(tmp_path / f"run{units}", frames=20, settings={"model.units": units, "run.compile": True})
    assert "Not compiling" not in capfd.readouterr().err


def script_that(calls, folder):
    """What a script says that does so whenever it is imported, as each process of its environments does."""
    shutil.copy(counting.__file__, folder)
    (folder / "script.py").write_text(f"import dreamer\nfrom counting import Counting\n\n{calls}\n")
    words = [sys.executable, "script.py"]
    ended = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode != 0
    return ended.stderr


GUARD = 'put what trains or scores behind if __name__ == "__main__":'


@pytest.mark.parametrize("count", [1, 2])
def test_a_script_that_trains_whenever_it_is_imported(tmp_path, count):
    given = f"'run', frames=40, envs={count}, device='cpu', settings={TINY | EAGER}"
    assert GUARD in script_that(f"dreamer.train('script:Counting', {given})", tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_script_that_scores_whenever_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text("from counting import Counting\n")
    monkeypatch.syspath_prepend(tmp_path)
    train(tmp_path / "run", "script:Counting", frames=40)
    assert GUARD in script_that("dreamer.evaluate('run', envs=1)", tmp_path)
