"""The script that trains another library's PPO in a dream: a few steps of it, where that library is installed."""

import json

import pytest
import tiny
from click.testing import CliRunner

pytest.importorskip("stable_baselines3", reason="pip install stable-baselines3==2.7.0")


def test_a_few_steps(tmp_path):
    from ppo_in_dream import main

    run = tiny.trained_run(tmp_path / "run", "gym/CartPole-v1", 80)
    options = ["--steps", "256", "--envs", "2", "--episodes", "2", "--limit", "20", "--horizon", "5"]
    result = CliRunner().invoke(main, [str(run), *options], catch_exceptions=False)
    assert result.exit_code == 0
    scores = json.loads(result.stdout.splitlines()[-1])
    assert {name: len(found) for name, found in scores.items()} == {"dream": 2, "real": 2, "random, real": 2}
    assert all(0 < score <= 20 for score in scores["real"])
