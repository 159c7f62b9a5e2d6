import inspect
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields, is_dataclass
from pathlib import Path

import gymnasium
import pytest
import tiny
import torch
from click.testing import CliRunner
from gymnasium.envs.classic_control import CartPoleEnv
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreamer import config as configs
from dreamer import run as run_module
from dreamer.checkpoint import RunFolder
from dreamer.cli import main
from dreamer.environments import environment_options
from dreamer.errors import UserMistake

ROOT = Path(__file__).parent.parent
WIDTHS = [word for setting in tiny.WIDTHS for word in ("--set", setting)]
CARTPOLE = ["train", "--env", "gym/CartPole-v1", "--size", "1m", *WIDTHS]


def dreamer(*arguments):
    """Run the command in this process; whatever it raises beyond an exit code is a failure."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def works(*arguments):
    result = dreamer(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def mistake(*arguments):
    """The one sentence that the user gets."""
    result = dreamer(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    *before, sentence = result.stderr.splitlines()
    assert all(line.startswith("Starting ") for line in before), result.stderr
    assert sentence.startswith("dreamer: ") and "Traceback" not in sentence
    return sentence


def python(*arguments, cwd=None):
    command = [sys.executable, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)


def counters(folder):
    return RunFolder(folder).newest().state()["counters"]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 60 frames and what was said of it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = works(*CARTPOLE, "--run", folder, "--frames", 60, "--seed", 3)
    return folder, result


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it that a test may change."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


# Help ----------------------------------------------------------------------------------------------------


def test_help_comes_within_a_second():
    def seconds():
        started = time.perf_counter()
        result = python("-m", "dreamer", "--help")
        assert result.returncode == 0 and "train" in result.stdout and "evaluate" in result.stdout
        return time.perf_counter() - started

    assert min(seconds() for _ in range(3)) < 1


def test_help_imports_nothing_heavy():
    code = """
import sys
from dreamer.cli import main
from dreamer.errors import UserMistake
for command in ([], ["train"], ["evaluate"]):
    try:
        main([*command, "--help"])
    except SystemExit:
        pass
print(sorted({"torch", "envs", "tensorboard", "matplotlib"} & set(sys.modules)))
"""
    assert python("-c", code).stdout.splitlines()[-1] == "[]"


# Training ------------------------------------------------------------------------------------------------


def test_a_run_is_a_folder_with_everything(trained):
    folder, result = trained
    names = {path.name.partition(".tfevents")[0] for path in folder.iterdir()}
    assert names >= {
        "config.json",
        "spaces.json",
        "versions.json",
        "metrics.jsonl",
        "events.out",
        "checkpoint.json",
        "state-60.pt",
        "replay",
    }
    config = json.loads((folder / "config.json").read_text())
    assert (config["task"], config["seed"], config["frames"]) == ("gym/CartPole-v1", 3, 60)
    assert config["model"]["deter"] == 16 and config["run"]["compile"] is False
    assert json.loads((folder / "spaces.json").read_text())["observation"]["floats"] == {"vector": 4}
    # B * T = 8: the first update after 12 rows, then one every 8 rows.
    assert counters(folder) == {"repeat": 1, "rows": 60, "updates": 1 + 48 // 8, "owed": 0.0}
    assert f"Training gym/CartPole-v1 in {folder}" in result.stderr and result.stdout == ""
    assert result.stderr.splitlines()[-1] == f"Saved. Score it: dreamer evaluate {folder}"


def test_the_curves_hold_losses_and_scores(trained):
    folder, _ = trained
    lines = metrics(folder)
    scores = [line for line in lines if "episode/score" in line]
    # A pole that stands for n steps scores n; a reset is a row of its own.
    assert scores and scores[0]["episode/score"] == scores[0]["episode/length_frames"] == scores[0]["frames"] - 1
    last = lines[-1]
    losses = [name for name in last if name.startswith("loss/")]
    assert {"loss/decoder/vector", "loss/dynamics", "loss/actor", "loss/replay_critic", "loss/total"} <= set(losses)
    assert all(math.isfinite(last[name]) for name in losses)
    assert last["frames"] == 60 and last["speed/updates"] == 7
    accumulator = EventAccumulator(str(folder)).Reload()
    for name in ("episode/score", *losses):
        assert name in accumulator.Tags()["scalars"]
    shown = [(event.step, event.value) for event in accumulator.Scalars("episode/score")]
    assert shown == [(line["frames"], line["episode/score"]) for line in scores]


def test_a_run_is_continued_by_the_same_command_with_more_frames(run):
    result = works(*CARTPOLE, "--run", run, "--frames", 100, "--seed", 3)
    assert "Continuing gym/CartPole-v1" in result.stderr
    assert counters(run) == {"repeat": 1, "rows": 100, "updates": 1 + 88 // 8, "owed": 0.0}
    assert RunFolder(run).config().frames == 100
    frames = [line["frames"] for line in metrics(run)]
    assert frames == sorted(frames) and frames[0] < 60 < frames[-1] == 100
    works("train", "--run", run, "--frames", 108)
    assert counters(run)["updates"] == 13


def test_a_run_is_continued_by_its_folder_alone(run):
    data = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(data | {"frames": 76}))  # as if it had been stopped before
    works("train", "--run", run)
    assert counters(run) == {"repeat": 1, "rows": 76, "updates": 9, "owed": 0.0}


def test_a_run_that_is_done_stays_as_it_is(run):
    before = RunFolder(run).newest().state()
    result = works("train", "--run", run)
    after = RunFolder(run).newest().state()
    assert before["counters"] == after["counters"] and "Go on" not in result.stderr
    assert torch.equal(before["agent"]["generator"], after["agent"]["generator"])
    assert torch.equal(before["sampler"], after["sampler"])
    assert not torch.equal(before["sampler"], torch.Generator().manual_seed(3).get_state())


def test_settings_of_the_run_itself_may_change(run):
    works("train", "--run", run, "--frames", 64, "--set", "run.checkpoint_seconds=0.001", "--device", "cpu")
    assert RunFolder(run).config().run.checkpoint_seconds == 0.001


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--env", "gym/Acrobot-v1"], ["task is gym/CartPole-v1 there, gym/Acrobot-v1 was given"]),
        (["--size", "12m"], ["size is 1m there, 12m was given", "model.deter is 16 there, 2048 was given"]),
        (["--seed", "4"], ["seed is 3 there, 4 was given"]),
        (["--envs", "2"], ["envs is 1 there, 2 was given"]),
        (["--set", "model.units=16"], ["model.units is 8 there, 16 was given"]),
        (["--set", "environment.max_episode_steps=5"], ["environment.max_episode_steps is not set there, 5 was given"]),
        (["--set", "ratio=2", "--set", "replay.batch=3"], ["ratio is 1.0 there, 2.0", "replay.batch is 2 there, 3"]),
    ],
)
def test_another_run_s_folder_is_refused(run, arguments, named):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    sentence = mistake("train", "--run", run, "--frames", 100, *arguments)
    assert "the folder holds another run" in sentence and all(name in sentence for name in named)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


@pytest.mark.parametrize(("key", "value"), [("envs", 2), ("ratio", 3.0), ("seed", 9)])
def test_a_config_that_was_changed_by_hand_is_noticed(run, key, value):
    path = run / "config.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {key: value, "frames": 100}))
    for command in (["train", "--run", run], ["evaluate", run, "--episodes", 1]):
        sentence = mistake(*command)
        assert "config.json was changed (" in sentence and "put it back" in sentence
        assert f"{key} is {data[key]} in the checkpoint, {value} in config.json" in sentence


def test_fewer_frames_and_then_more(run):
    works("train", "--run", run, "--frames", 30)  # too few: nothing is left to do
    assert counters(run)["rows"] == 60
    works("train", "--run", run, "--frames", 120)
    assert counters(run)["rows"] == 120
    (latents,) = run.glob("replay/latents-120-*.pt")
    latents = torch.load(latents, weights_only=True)["deter"]
    rows = [torch.load(path, weights_only=True)["reward"].shape[1] for path in run.glob("replay/rows-*.pt")]
    # However many rows were kept, there are no others.
    assert 60 < latents.shape[1] <= sum(rows) <= 120
    assert latents.isfinite().all() and latents.abs().max() <= 1


def test_a_new_run_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    works(*CARTPOLE, "--frames", 12, "--seed", 5, "--envs", 2)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("gym-CartPole-v1-seed5-20")
    assert counters(folder)["rows"] == 12


def test_a_run_of_a_few_frames_just_ends(tmp_path):
    said = works(*CARTPOLE, "--frames", 3, "--run", tmp_path).stderr
    assert "0 updates in all" in said and "nothing will be learned: the first update comes after 12 frames" in said
    assert counters(tmp_path) == {"repeat": 1, "rows": 3, "updates": 0, "owed": 0.0}


def test_without_a_gpu_the_size_suits_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    few = ["--frames", 5, "--set", "run.compile=false", "--set", "replay.length=2", "--set", "replay.batch=2"]
    result = works("train", "--env", "gym/CartPole-v1", "--run", tmp_path / "run", *few)
    assert "model 1m (the default without a GPU), " in result.stderr
    assert RunFolder(tmp_path / "run").config().model.deter == 512


def test_the_beginning_tells_what_will_happen(tmp_path, monkeypatch):
    def said(frames, *arguments):
        return works(*CARTPOLE, "--run", tmp_path / str(frames), "--frames", frames, *arguments).stderr

    text = said(10)
    # A row: 4 floats, 2 of an action, the reward, 3 flags, 16 of the state in half precision, 2 latents of a byte.
    assert "replay of 11 rows, all that the run collects" in text
    assert "memory: replay 0.715 kB when full, model " in text
    assert "train ratio 1: an update of 8 steps every 8 agent steps (8 frames), 0 updates in all" in text
    assert "8 frames), 1 update in all" in said(12) and "8 frames), 2 updates in all" in said(20)
    assert "Ctrl-C at any time saves a checkpoint, which can be evaluated and continued" in text
    monkeypatch.setattr("dreamer.run.total_memory", lambda: 2 * 60 * 65)
    assert "replay of 60 rows, which is half of this run's memory (replay.capacity is 5,000,000)" in said(90)
    assert "replay of 50 rows\n  memory: replay 3.25 kB when full" in said(91, "--set", "replay.capacity=50")
    # Two sequences of four steps are to begin in one environment, and four rows follow the last beginning.
    monkeypatch.setattr("dreamer.run.total_memory", lambda: 2 * 11 * 65)
    text = mistake(*CARTPOLE, "--run", tmp_path / "92", "--frames", 92)
    assert "memory holds 11 rows of what this task shows, and the first update takes 12: " in text


def test_pong_learns_from_frames(tmp_path):
    arguments = ["--size", "1m", "--envs", 1, "--frames", 4 * 28, *WIDTHS]
    works("train", "--env", "atari/pong", "--run", tmp_path, *arguments)
    assert counters(tmp_path) == {"repeat": 4, "rows": 28, "updates": 3, "owed": 0.0}
    last = metrics(tmp_path)[-1]
    assert last["frames"] == 112 and math.isfinite(last["loss/total"])
    # Untrained, each of the 96 x 96 pixels is off by 0 to 0.5.
    assert 96 * 96 * 0.001 < last["loss/decoder/image"] < 96 * 96 * 0.25


def test_every_setting_is_read(tmp_path, monkeypatch):
    read = set()

    def watch(kind):
        def get(self, name):
            caller = Path(inspect.currentframe().f_back.f_code.co_filename)
            if caller.parent == ROOT / "dreamer" and caller.name not in ("config.py", "checkpoint.py"):
                # `vars(scales)` takes all at once.
                read.update((kind, field.name) for field in fields(kind) if name in (field.name, "__dict__"))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(kind, "__getattribute__", get)

    config = configs.Config(task="")
    kinds = [configs.Config, *(type(value) for value in vars(config).values() if is_dataclass(value))]
    assert len(kinds) == 7
    for kind in kinds:
        watch(kind)
    works(*CARTPOLE, "--run", tmp_path, "--frames", 13)
    monkeypatch.undo()
    assert {
        f"{kind.__name__}.{field.name}" for kind in kinds for field in fields(kind) if (kind, field.name) not in read
    } == set()


ENDLESS = """
import gymnasium
import numpy as np


class Endless(gymnasium.Env):
    \"\"\"The second episode, after that of the check, ends after three steps; then none does.\"\"\"

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    episodes = steps = 0

    def reset(self, *, seed=None, options=None):
        self.episodes, self.steps = self.episodes + 1, 0
        print("a new episode")
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        over = self.steps == 3 and self.episodes == 2
        return np.zeros(1, np.float32), 1.0, over, False, {}
"""


def test_what_an_environment_prints_is_not_among_the_scores(run, monkeypatch):
    """In this process, where quick ones are played."""
    reset, close = CartPoleEnv.reset, CartPoleEnv.close
    monkeypatch.setattr(CartPoleEnv, "reset", lambda *given, **named: print("a reset") or reset(*given, **named))
    monkeypatch.setattr(CartPoleEnv, "close", lambda env: print("closed") or close(env))
    result = works("evaluate", run, "--episodes", 1, "--json")
    assert json.loads(result.stdout)["mean"] > 0
    assert "a reset\n" in result.stderr and "closed\n" in result.stderr


@pytest.fixture
def evaluating(tmp_path, monkeypatch):
    """Begins to evaluate an agent in an environment of one's own, whose source is given; killed after two minutes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    running = []

    def begin(source, *arguments):
        (tmp_path / "endless.py").write_text(ENDLESS)
        tiny.trained_run(Path("run"), "endless:Endless", 20)
        (tmp_path / "endless.py").write_text(source)
        command = [sys.executable, "-m", "dreamer", "evaluate", "run", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=environment, **pipes)
        deadline = threading.Timer(120, process.kill)
        deadline.start()
        running.append((process, deadline))
        return process

    yield begin
    for process, deadline in running:
        deadline.cancel()
        process.kill()


def test_an_evaluation_that_is_stopped_scores_what_is_over(evaluating):
    process = evaluating(ENDLESS, "--episodes", "4", "--envs", "2", "--json")
    assert any("2 of 4 episodes" in line for line in process.stderr)  # it has no end of its own
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130 and "Traceback" not in errors
    assert "Stopping: the episodes that are over are scored." in errors
    assert "Stopped after 2 of 4 episodes, which favours short ones" in errors
    assert json.loads(output)["scores"] == [3.0, 3.0]


def test_who_asks_twice_does_not_wait(evaluating):
    hangs = 'if self.episodes == 2:\n            print("hangs", flush=True)\n            import time; time.sleep(1000)'
    process = evaluating(ENDLESS.replace("self.steps += 1", f"self.steps += 1\n        {hangs}"), "--episodes", "1")
    assert any("hangs" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    assert any("Stopping: the episodes that are over are scored." in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert (process.returncode, output) == (130, "") and "Traceback" not in errors


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_leaves_a_checkpoint(tmp_path, name):
    folder = tmp_path / "run"
    arguments = [*CARTPOLE, "--run", folder, "--frames", 1_000_000, "--set", "run.log_seconds=0.05"]
    command = [sys.executable, "-m", "dreamer", *(str(argument) for argument in arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not (folder / "metrics.jsonl").exists() or metrics_so_far(folder) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        assert not (folder / "checkpoint.json").exists()
        process.send_signal(getattr(signal, name))
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and output == "" and "Traceback" not in errors
    said = errors.splitlines()
    assert "Stopping: saving a checkpoint first." in said and said[-1] == f"Go on:    dreamer train --run {folder}"
    done = counters(folder)
    assert done["updates"] >= 2
    assert json.loads(works("evaluate", folder, "--episodes", 2, "--json").stdout)["mean"] >= 1
    works("train", "--run", folder, "--frames", done["rows"] + 8)
    assert counters(folder)["updates"] == done["updates"] + 1


def metrics_so_far(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    return max((json.loads(line).get("speed/updates", 0) for line in lines if line.endswith("\n")), default=0)


# Evaluation ----------------------------------------------------------------------------------------------


def test_evaluation_as_json(trained):
    result = works("evaluate", trained[0], "--episodes", 10, "--json")
    data = json.loads(result.stdout)
    assert next(iter(data)) == "mean" and len(data["scores"]) == len(data["lengths"]) == 10
    assert data["scores"] == data["lengths"] and data["mean"] == pytest.approx(sum(data["scores"]) / 10)
    low, high = data["interval_95"]
    assert low <= data["mean"] <= high and 5 < data["mean"] < 200
    assert result.stdout.count("\n") == 1


def test_evaluation_in_words(trained):
    text = works("evaluate", trained[0], "--episodes", 3).stdout
    assert text.startswith("gym/CartPole-v1: mean score ") and "95% interval" in text and "3 episodes of " in text


def test_evaluation_depends_on_its_seed_alone_and_changes_nothing(trained):
    folder, _ = trained
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    def scores(*arguments):
        return json.loads(works("evaluate", folder, "--episodes", 4, "--json", *arguments).stdout)["scores"]

    assert scores() == scores("--seed", 1_000_000) != scores("--seed", 7)
    assert len(scores("--greedy")) == 4
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_evaluation_needs_a_checkpoint(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert "holds no run" in mistake("evaluate", tmp_path / "empty")
    assert "holds no run" in mistake("evaluate", tmp_path / "nothing")
    assert "is a file" in mistake("evaluate", tmp_path / "file")
    assert "give 1 or more" in mistake("evaluate", run, "--episodes", 0)
    (run / "state-60.pt").write_bytes(b"PK")
    assert "state-60.pt is damaged: it is not what was saved" in mistake("evaluate", run)
    (run / "state-60.pt").unlink()
    assert "state-60.pt is missing" in mistake("evaluate", run)
    (run / "checkpoint.json").unlink()
    assert "has no checkpoint yet" in mistake("evaluate", run)


# Mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "say what to learn with --env"),
        (["--run", "runs/mistyped"], "runs/mistyped holds no run to go on with; say what to learn with --env"),
        (["--env", "atary/pong"], "There is no suite 'atary'"),
        (["--env", "pong"], "Did you mean 'atari/pong'"),
        (["--env", "atari/pnog"], "Did you mean '(atari/)?pong'"),
        (["--env", "gym/CartPol-v1"], "Did you mean '(gym/)?CartPole-v1'"),
        (["--env", "gym/"], "names no task"),
        (["--env", "no_such_module:factory"], "no_such_module"),
        (["--env", "gym/CartPole-v1", "--size", "2m"], "size=2m is not one of 1m, 12m"),
        (["--env", "gym/CartPole-v1", "--set", "replay.bach=2"], "nearest is 'replay.batch'"),
        (["--env", "gym/CartPole-v1", "--set", "replay.batch=two"], "replay.batch=two is not a whole number"),
        (["--env", "gym/CartPole-v1", "--set", "replay.batch"], "key=value"),
        (["--env", "gym/CartPole-v1", "--set", "environment.gravty=2"], "no option 'gravty'"),
        (["--env", "atari/pong", "--set", "environment.stick=2"], "no option 'stick'"),
        (["--env", "gym/CartPole-v1", "--set", "seed=-1"], "seed=-1"),
        (["--env", "gym/CartPole-v1", "--set", "replay.capacity=100"], "replay.capacity"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, arguments, named):
    sentence = mistake("train", "--run", tmp_path / "run", *arguments)
    assert re.search(named, sentence), sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments", [["--device", "gpu"], ["--frames", "0"], ["--frames", "many"], ["--envs", "0"], ["--what"]]
)
def test_a_wrong_option_is_named(arguments):
    result = dreamer("train", "--env", "gym/CartPole-v1", *arguments)
    assert result.exit_code == 2 and arguments[0] in result.stderr and "Traceback" not in result.stderr


def test_evaluation_refuses_a_seed_that_none_can_have(trained):
    assert dreamer("evaluate", trained[0], "--seed", -1).exit_code == 2


def test_a_checkpoint_without_its_config_is_refused(run):
    (run / "config.json").unlink()
    mistake("train", "--env", "gym/Acrobot-v1", "--size", "1m", *WIDTHS, "--run", run, "--frames", 100)


def test_a_device_that_is_not_there(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["train", "--env", "gym/CartPole-v1", "--device", "cuda", "--run", tmp_path / "run"]
    for size in ([], ["--size", "1m"]):
        assert "no cuda device that torch can use; give --device" in mistake(*arguments, *size)
    assert not (tmp_path / "run").exists()
    assert "no cuda device" in mistake("evaluate", trained[0], "--device", "cuda")


def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in mistake(*CARTPOLE, "--run", tmp_path / "file")
    assert "cannot write to" in mistake(*CARTPOLE, "--run", tmp_path / "file" / "run")


OWN = """
import faulthandler
import time
import gymnasium
import numpy as np
from gymnasium import spaces

class Good(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    count = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.zeros(2, np.float32), 1.0, False, self.count % 10 == 0, {}

class Drawn(Good):
    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        return np.zeros((48, 64, 3), np.uint8) if self.render_mode == "rgb_array" else None

class Text(Good):
    observation_space = spaces.Text(5)

class NoBounds(Good):
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

class NaN(Good):
    def reset(self, *, seed=None, options=None):
        return np.array([0, np.nan], np.float32), {}

class OldReset(Good):
    def reset(self):
        return np.zeros(2, np.float32), {}

class Raising(Good):
    def step(self, action):
        raise RuntimeError("out of fuel")

class NoSuchFile(Good):
    def __init__(self):
        open("level.txt")

class NotAnEnv:
    pass

class Later(Good):
    def step(self, action):
        if self.count == 30:
            return self.fail()
        return super().step(action)

    def fail(self):
        raise RuntimeError("out of fuel")

class Lists(Good):
    observation_space = spaces.Dict({"v": spaces.Box(-1, 1, (2,), np.float32), "c": spaces.MultiDiscrete([3])})

    def reset(self, *, seed=None, options=None):
        return {"v": [0.0, 1.0], "c": [2]}, {}

    def step(self, action):
        _, *rest = super().step(action)
        return self.late() if self.count > 30 else {"v": [0.0, 1.0], "c": [2]}, *rest

    def late(self):
        return {"v": [1.0, 0.0], "c": [0]}

class LateShape(Lists):
    def late(self):
        return {"v": [1.0], "c": [0]}

class LateKey(Lists):
    def late(self):
        return {"v": [1.0, 2.0]}

class LateClass(Lists):
    def late(self):
        return {"v": [1.0, 2.0], "c": [3]}

class LateNone(Lists):
    def late(self):
        return None

class LateWord(Lists):
    def late(self):
        return {"v": ["a", "b"], "c": [0]}

class LateTuple(Later):
    def fail(self):
        return np.zeros(2, np.float32), 0.0, False, {}

class LateReward(Later):
    def fail(self):
        return np.zeros(2, np.float32), np.zeros(2), False, False, {}

class LaterNaN(Later):
    def fail(self):
        return np.full(2, np.nan, np.float32), 0.0, False, False, {}

class MyBox(spaces.Box):
    pass

class OwnBox(Good):
    observation_space = spaces.Dict({"vector": MyBox(-1, 1, (2,), np.float32)})

    def reset(self, *, seed=None, options=None):
        return {"vector": np.zeros(2, np.float32)}, {}

    def step(self, action):
        _, *rest = super().step(action)
        return {"vector": np.zeros(2, np.float32)}, *rest

class Unmakeable(Good):
    def __init__(self):
        faulthandler._sigsegv()

class Hanging(Later):
    def fail(self):
        time.sleep(600)

class Crashing(Later):
    def fail(self):
        faulthandler._sigsegv()

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module with environments of a user's own, good and bad."""
    (tmp_path / "my_worlds.py").write_text(OWN)
    (tmp_path / "my_typo.py").write_text("def world(:")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_worlds", None)


def test_spaces_of_the_user_s_own_kind(own, tmp_path):
    arguments = ["--env", "my_worlds:OwnBox", "--size", "1m", *WIDTHS, "--run", tmp_path / "run", "--frames", 20]
    assert "sees vector, 2 numbers" in works("train", *arguments).stderr


@pytest.mark.skipif(sys.platform == "win32", reason="has no signals")
def test_one_that_crashes_while_it_is_made(own, tmp_path):
    sentence = mistake("train", "--env", "my_worlds:Unmakeable", "--size", "1m", *WIDTHS, "--run", tmp_path / "run")
    assert "was killed by signal SIGSEGV (" in sentence and "my_worlds.py, line" in sentence


def change_own(folder):
    """Good has another action from now on."""
    with (folder / "my_worlds.py").open("a") as file:
        file.write("\nGood.action_space = spaces.Discrete(3)\n")
    sys.modules.pop("my_worlds", None)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("my_worlds:Text", "is a Text space, which cannot be used: offer it as"),
        ("my_worlds:NoBounds", "has no finite bounds: declare"),
        ("my_worlds:NaN", "reset returned the observation with NaN or infinite numbers"),
        ("my_worlds:OldReset", "declare it as reset(self, *, seed=None, options=None)"),
        ("my_worlds:Raising", "The environment raised RuntimeError in step: out of fuel (/"),
        ("my_worlds:NoSuchFile", "my_worlds:NoSuchFile raised FileNotFoundError when it was called"),
        ("my_worlds:NotAnEnv", "returned a NotAnEnv: return a gymnasium.Env"),
        ("my_worlds:Goood", "Did you mean 'Good'?"),
        ("my_worlds:number", "is of type int: name a function or class"),
        ("my_typo:world", "The module 'my_typo' raised SyntaxError when it was imported"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_environments_that_cannot_be_used(own, tmp_path, name, named, count):
    arguments = ["--size", "1m", *WIDTHS, "--run", tmp_path / "run", "--frames", 50, "--envs", count]
    assert named in mistake("train", "--env", name, *arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("Later", "environment 1 of 1 raised RuntimeError in step: out of fuel (/"),
        ("LaterNaN", "environment 1 of 1 returned NaN or infinite numbers in the observation 'vector'."),
        ("LateShape", "returned the observation 'v' with shape (1,); its space has (2,)."),
        ("LateKey", "returned an observation without 'c', which its space has."),
        ("LateClass", "returned values from 3 to 3 in the observation 'c', beyond its space."),
        ("LateNone", "returned an observation that is no dict"),
        ("LateWord", "raised ValueError when its observation 'v' was read: could not convert string to float: 'a'"),
        ("LateTuple", "did not return the five values observation, reward, terminated, truncated, info"),
        ("LateReward", "returned the reward array([0., 0.]), which is no single number"),
    ],
)
def test_an_environment_that_fails_later_costs_nothing(own, tmp_path, name, named):
    folder = tmp_path / "run"
    arguments = ["--env", f"my_worlds:{name}", "--size", "1m", *WIDTHS, "--run", folder, "--frames", 500]
    result = dreamer("train", *arguments, "--set", "run.restarts=0")
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    assert named in result.stderr.splitlines()[-1]
    assert f"its traceback is in {folder / 'failures.txt'}" in result.stderr
    assert "Traceback" in (folder / "failures.txt").read_text()
    # The check took 3 of the 30 steps; the rest took 4 resets.
    assert counters(folder)["rows"] >= 31 and counters(folder)["updates"] > 0
    assert len(json.loads(works("evaluate", folder, "--episodes", 1, "--json").stdout)["scores"]) == 1


def test_an_environment_that_fails_now_and_then_is_made_anew(own, tmp_path):
    folder = tmp_path / "run"
    arguments = ["--env", "my_worlds:Later", "--size", "1m", *WIDTHS, "--run", folder, "--frames", 100]
    result = works("train", *arguments)
    said = [line for line in result.stderr.splitlines() if "Made anew; its episode ends here" in line]
    assert len(said) == 3 and "Environment 1 of 1 raised RuntimeError in step: out of fuel (/" in said[0]
    assert (folder / "failures.txt").read_text().count("RuntimeError: out of fuel\n") == 3
    assert counters(folder)["rows"] == 100
    (rows,) = (folder / "replay").glob("rows-*.pt")
    rows = {key: value[0] for key, value in torch.load(rows, weights_only=True).items()}
    follows = torch.nonzero(rows["is_first"][1:]).squeeze(1)
    assert rows["is_last"][follows].all() and not rows["is_terminal"].any()


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("Hanging", "Environment 1 of 1 did not answer within 5 s ("),
        pytest.param(
            "Crashing",
            "was killed by signal SIGSEGV (",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="has no signals"),
        ),
    ],
)
def test_an_environment_that_hangs_or_crashes_is_made_anew(own, tmp_path, name, named):
    folder = tmp_path / "run"
    arguments = ["--env", f"my_worlds:{name}", "--size", "1m", *WIDTHS, "--run", folder, "--frames", 50]
    result = works("train", *arguments, "--set", "run.patience_seconds=5")
    said = [line for line in result.stderr.splitlines() if "Made anew; its episode ends here" in line]
    assert len(said) == 1 and named in said[0] and "); its traceback is in" in said[0]
    line = OWN.splitlines().index(f"class {name}(Later):") + 3
    assert f'my_worlds.py", line {line} in fail' in (folder / "failures.txt").read_text()
    assert counters(folder)["rows"] == 50


@pytest.mark.parametrize("name", ["checkpoint.json", "state-60.pt", "config.json", "spaces.json"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{}", b"import os; os.remove('x')"])
def test_a_damaged_run_is_refused_and_left_alone(run, name, content):
    (run / name).write_bytes(content)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for command in (("evaluate", run), ("train", "--run", run, "--frames", 100)):
        mistake(*command)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_an_environment_that_has_changed_since(own, tmp_path):
    folder = tmp_path / "run"
    works("train", "--env", "my_worlds:Good", "--size", "1m", *WIDTHS, "--run", folder, "--frames", 20)
    change_own(tmp_path)
    sentence = mistake("train", "--run", folder, "--frames", 40)
    assert "holds an agent that sees vector, 2 numbers, by MLP; does action, one of 2, but" in sentence
    assert "one that sees vector, 2 numbers, by MLP; does action, one of 3; give another --run" in sentence


def test_evaluation_notices_an_environment_that_has_changed(own, tmp_path):
    folder = tmp_path / "run"
    works("train", "--env", "my_worlds:Good", "--size", "1m", *WIDTHS, "--run", folder, "--frames", 20)
    change_own(tmp_path)
    assert "one that sees vector, 2 numbers, by MLP; does action, one of 3" in mistake("evaluate", folder)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert "is not empty and holds no run" in mistake(*CARTPOLE, "--run", tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_folder_that_cannot_be_written_is_refused_before_training(run, monkeypatch):
    def refuse(*arguments, dir=None, **named):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    sentence = mistake("train", "--run", run, "--frames", 100)
    assert "cannot write to" in sentence and "(Permission denied); give another --run" in sentence
    assert counters(run)["rows"] == 60


def test_names_that_no_file_can_have(tmp_path):
    assert "File name too long" in mistake(*CARTPOLE, "--run", tmp_path / ("x" * 300))
    assert "cannot be used" in mistake("plot", tmp_path / ("x" * 300))


def test_settings_are_listed_with_what_they_mean():
    text = works("settings", "--env", "dmc").stdout
    assert (
        "\nratio                      512.0    above 0 up to 16,384                 replayed steps for each row\n"
        in text
    )
    (head, line) = works("settings", "lr").stdout.splitlines()
    assert head.split() == ["setting", "default", "allowed"] and line.startswith("optimizer.learning_rate")
    assert "no setting's name holds 'flux'; `dreamer settings` lists them all" in mistake("settings", "flux")
    assert "'sticky' is a setting of atari: dreamer settings sticky --env atari" in mistake("settings", "STICKY")
    assert "no suite 'dcm'; there are atari, atari100k, dmc, dmc_vision, gym" in mistake("settings", "--env", "dcm")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--frames", "many"], "'many' is no whole number from 1: write 500000, 500k or 5e5"),
        (["train", "--frames", "0"], "'0' is no whole number from 1"),
        (["evaluate"], "Missing argument 'RUN'; see dreamer evaluate --help"),
        (["evaluat"], "No such command 'evaluat'"),
        (["train", "--fames", "3"], "dreamer train --help"),
    ],
)
def test_a_mistyped_command_is_one_sentence_too(arguments, named):
    assert named in mistake(*arguments)


def test_the_replay_of_a_run_may_become_smaller(run):
    works("train", "--run", run, "--frames", 70, "--set", "replay.capacity=40")
    assert RunFolder(run).config().replay.capacity == 40


def test_an_environment_that_draws_nothing_still_gets_its_score(own, tmp_path):
    folder, film = tmp_path / "run", tmp_path / "film.gif"
    works("train", "--env", "my_worlds:Good", "--size", "1m", *WIDTHS, "--run", folder, "--frames", 20)
    result = dreamer("evaluate", folder, "--episodes", 1, "--envs", 1, "--video", film)
    assert result.exit_code == 2 and "mean score" in result.stdout and not film.exists()
    assert "my_worlds:Good draws nothing, so there is no video; leave out --video" in result.stderr.splitlines()[-1]


def test_an_environment_that_draws_in_gymnasium_s_way_is_filmed(own, tmp_path):
    folder, film = tmp_path / "run", tmp_path / "film.gif"
    works("train", "--env", "my_worlds:Drawn", "--size", "1m", *WIDTHS, "--run", folder, "--frames", "0.02k")
    works("evaluate", folder, "--episodes", 1, "--envs", 1, "--video", film)
    with Image.open(film) as picture:
        assert picture.size == (64, 48)


def test_an_environment_that_draws_nothing_is_filmed_by_what_it_sees(tmp_path):
    folder, film = tmp_path / "run", tmp_path / "film.GIF"
    works("train", "--env", "mixed:Signals", "--size", "1m", *WIDTHS, "--run", folder, "--frames", 20)
    result = works("evaluate", folder, "--episodes", 1, "--video", film)
    assert f"Wrote {film}" in result.stderr
    with Image.open(film) as picture:
        assert picture.size == (48, 48)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder where nobody may write")
def test_a_folder_without_permission_to_write():
    assert "cannot write to /proc/runs" in mistake(*CARTPOLE, "--run", "/proc/runs")


def test_somebody_else_s_envs_is_found_out(tmp_path):
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("")
    arguments = ["train", "--env", "gym/CartPole-v1", "--size", "1m", "--frames", 10, "--run", tmp_path / "run"]
    result = python("-m", "dreamer", *arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "found another package called envs" in result.stderr and str(tmp_path) in result.stderr
    assert "Traceback" not in result.stderr and result.stderr.count("\n") == 1


def test_somebody_else_s_envs_may_be_a_single_file(tmp_path, monkeypatch):
    (tmp_path / "envs.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "envs")
    sentence = mistake(*CARTPOLE, "--run", tmp_path / "run")
    assert "found another package called envs" in sentence and str(tmp_path) in sentence


def test_a_finished_run_says_so_and_does_nothing(run):
    before = (run / "checkpoint.json").read_bytes()
    result = works("train", "--run", run)
    assert "give more --frames to go on" in result.stderr
    assert (run / "checkpoint.json").read_bytes() == before


def test_a_start_that_is_refused_leaves_the_folder_free(tmp_path, monkeypatch):
    few = ["--env", "gym/CartPole-v1", "--run", tmp_path / "run", "--frames", 5, "--set", "run.compile=false"]

    def refuse(*_):
        raise UserMistake("an update does not fit; replay.batch=2 fits")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_prepare", refuse)
        assert dreamer("train", *few, "--set", "replay.batch=4").exit_code == 2
    works("train", *few, "--set", "replay.batch=2")


class Plain(CartPoleEnv):
    def __init__(self):
        super().__init__()


class Asserting(CartPoleEnv):
    metadata = {"render_modes": ["human"]}

    def __init__(self, render_mode=None):
        assert render_mode is None or render_mode in self.metadata["render_modes"]
        super().__init__(render_mode)


@pytest.mark.parametrize("made", [Plain, Asserting])
def test_an_environment_that_knows_no_such_render_mode_is_made_without(made, monkeypatch):
    gymnasium.register("Undrawn-v0", made)
    try:
        assert environment_options(configs.make_config("gym/Undrawn-v0"), drawn=True) == {"repeat": None}
    finally:
        del gymnasium.registry["Undrawn-v0"]
    assert environment_options(configs.make_config("gym/CartPole-v1"), drawn=True)["render_mode"] == "rgb_array"


def test_single_widths_do_not_bring_back_the_large_size(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    few = ["--frames", 5, "--set", "run.compile=false", "--set", "replay.length=2", "--set", "replay.batch=2"]
    works("train", "--env", "atari/pong", "--run", tmp_path / "run", "--set", "model.free_nats=0.5", *few)
    config = RunFolder(tmp_path / "run").config()
    assert (config.size, config.model.deter, config.model.free_nats) == ("1m", 512, 0.5)


def test_every_kind_of_observation_and_an_action_of_parts(tmp_path):
    arguments = ["--env", "mixed:Signals", "--size", "1m", "--frames", 40, "--run", tmp_path, *WIDTHS]
    result = works("train", *arguments)
    sees = "sees screen, an image of 48x48x1, by CNN; dial, 2 numbers, by MLP; panel/key, 1 integer, by MLP; "
    assert sees + "panel/switches, 2 integers, by MLP" in result.stderr
    assert "does action, one of 2 x 3" in result.stderr
    last = metrics(tmp_path)[-1]
    assert last["speed/updates"] > 3
    for key in ("screen", "dial", "panel/key", "panel/switches"):
        assert math.isfinite(last[f"loss/decoder/{key}"])
    assert len(json.loads(works("evaluate", tmp_path, "--episodes", 2, "--json").stdout)["scores"]) == 2
