"""A run that was stopped and goes on ends like one that was not."""

import json
import shutil
import subprocess
import sys

import pytest
import tiny
import torch
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreamer.checkpoint import RunFolder, _parts
from dreamer.cli import main

WIDTHS = [part for setting in tiny.WIDTHS for part in ("--set", setting)]


def train(folder, task, rows, envs=1, *arguments):
    """Until so many agent steps are seen."""
    repeat = {"atari": 4, "dmc": 2, "dmc_vision": 2}.get(task.split("/")[0], 1)
    options = ["--size", "1m", "--envs", str(envs), "--frames", str(rows * repeat), "--run", str(folder)]
    result = CliRunner().invoke(main, ["train", "--env", task, *options, *WIDTHS, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stderr


def leaves(value, name=""):
    """All that nested containers hold, by path."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for k, part in items for key, leaf in leaves(part, f"{name}/{k}").items()}
    return {name: value}


def replay(folder):
    """Rows and latents of a run, oldest first."""
    files = RunFolder(folder).newest(with_replay=True).files
    found = {}
    for kind in ("rows", "latents"):
        parts = [torch.load(folder / part.name, weights_only=True) for part in _parts(kind, files)]
        found |= {key: torch.cat([part[key] for part in parts], 1) for key in parts[0]}
    return found


def scores(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "episode/score" in line]


def assert_same(one, other):
    mine, theirs = (leaves(RunFolder(folder).newest().state()) for folder in (one, other))
    assert mine.keys() == theirs.keys() and len(mine) > 100
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name], name
    rows, expected = replay(one), replay(other)
    for key, value in rows.items():
        assert torch.equal(value, expected[key]), key
    assert scores(one) == scores(other)
    for folder in (one, other):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        names = {name for line in scores(folder) for name in line} - {"frames"}
        for name in names:
            shown = [(event.step, event.value) for event in events.Scalars(name)]
            assert shown == [(line["frames"], pytest.approx(line[name], rel=1e-6)) for line in scores(folder)]


@pytest.mark.parametrize(
    ("task", "envs", "stops", "arguments"),
    [
        ("atari/pong", 1, (17, 40), []),
        ("atari100k/breakout", 2, (31, 32), ["--set", "environment.noops=30"]),
        ("dmc/cartpole_swingup", 1, (20, 33), ["--set", "run.precision=bfloat16"]),
        ("dmc/reacher_easy", 3, (18, 39), []),  # whose target lies in the model, not in the state
    ],
)
def test_bit_for_bit(tmp_path, task, envs, stops, arguments):
    rows = 48
    train(tmp_path / "whole", task, rows, envs, *arguments)
    for stop in (*stops, rows):
        said = train(tmp_path / "parts", task, stop // envs * envs, envs, *arguments)
        assert "The open episodes end here" not in said
    assert_same(tmp_path / "parts", tmp_path / "whole")


def test_bit_for_bit_over_the_ends_of_episodes(tmp_path):
    """Short episodes, from the project's own environment that can save its state."""
    train(tmp_path / "whole", "counting:Saving", 200)
    assert len(scores(tmp_path / "whole")) > 20
    for stop in range(7, 200, 11):
        train(tmp_path / "parts", "counting:Saving", stop)
    train(tmp_path / "parts", "counting:Saving", 200)
    assert_same(tmp_path / "parts", tmp_path / "whole")


def test_the_same_seed_gives_the_same_run(tmp_path):
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        train(tmp_path / name, "gym/CartPole-v1", 60, 2, "--seed", str(seed))
    assert_same(tmp_path / "one", tmp_path / "same")
    assert not torch.equal(replay(tmp_path / "one")["action"], replay(tmp_path / "other")["action"])


def test_episodes_that_cannot_be_saved_end_where_the_run_stopped(tmp_path):
    train(tmp_path, "gym/CartPole-v1", 31, 1)
    said = train(tmp_path, "gym/CartPole-v1", 60, 1)
    assert said.count("The open episodes end here, as at a time limit: they cannot save their state") == 1
    rows = replay(tmp_path)
    assert rows["is_first"][0, 31] and not rows["is_terminal"][0, 30]
    # What follows is not what the run began with.
    assert not torch.equal(rows["observation/vector"][0, 31], rows["observation/vector"][0, 0])


def test_a_second_process_is_refused(tmp_path):
    with RunFolder(tmp_path / "run").lock():
        command = [sys.executable, "-m", "dreamer", "train", "--env", "gym/CartPole-v1", "--frames", "9"]
        arguments = ["--size", "1m", "--run", str(tmp_path / "run"), *WIDTHS]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "is in use: process" in done.stderr and "Traceback" not in done.stderr
    shutil.rmtree(tmp_path / "run")
    train(tmp_path / "run", "gym/CartPole-v1", 9)
