import csv
import math
from collections import deque
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner

from dreamer import loop
from dreamer.cli import main
from dreamer.config import make_config
from dreamer.health import LONG, Health, best_return, entropy_range
from dreamer.spaces import ActionPart, ActionSpec

TURN = ActionSpec((ActionPart("turn", classes=(2,)),))
MOVE = ActionSpec((ActionPart("move", size=2), ActionPart("press", classes=(3, 4))))
CONFIG = make_config("gym/CartPole-v1")
WELL = {
    "behavior/entropy": 0.4,
    "loss/dynamics": 1.05,
    "behavior/return_low": 1.0,
    "behavior/return_high": 3.0,
    "behavior/value": 2.0,
}


def test_what_entropy_there_can_be():
    # Of two, 0.995 and 0.005: 0.995 * ln(1 / 0.995) + 0.005 * ln(1 / 0.005).
    assert entropy_range(TURN, CONFIG) == pytest.approx((0.0314790, math.log(2)), abs=1e-6)
    least, most = entropy_range(MOVE, CONFIG)
    # Normals of 0.1 and 1: ln(0.1) + 1.4189385, and 1.4189385.
    assert most == pytest.approx(2 * 1.4189385 + math.log(12), abs=1e-6)
    assert least == pytest.approx(2 * (1.4189385 + math.log(0.1)) + 0.0446 + 0.0526, abs=1e-3)


def test_the_best_return_of_an_episode():
    assert best_return([1.0, 0.0, 4.0], True, 0.5) == 4.0  # of the last state; the first has 1 + 4 / 4
    assert best_return([1.0, 1.0], True, 0.5) == 1.5
    assert best_return([1.0, 1.0], False, 0.5) == 2.0  # a time limit: 1 / (1 - 0.5)
    assert best_return([-1.0], True, 0.5) == 0.0
    assert best_return([], False, 0.5) == 0.0


class Patient:
    """A run's health, looked at every 100 updates."""

    def __init__(self, config=CONFIG, action=TURN, capacity=10**6):
        self.health, self.updates = Health(config, action, capacity), 0

    def live(self, updates=3 * LONG, rows=0, **changed):
        said = []
        for number in range(updates // 100):
            self.updates += 100
            # What learns moves.
            means = {name: value * (1 + 1e-3 * math.sin(number)) for name, value in WELL.items()}
            means |= {name.replace("_", "/", 1): value for name, value in changed.items()}
            said += self.health.look(self.updates, rows, means)
        return said


def test_a_run_that_learns_hears_nothing():
    patient = Patient()
    for _ in range(30):
        patient.health.episode([1.0] * 100, True)
    assert patient.live() == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"behavior_entropy": 0.04}, "the policy hardly varies any more (entropy 0.04, between 0.0315 and 0.693"),
        ({"loss_dynamics": 1.0}, "stays under its floor of 1 nats everywhere"),
        ({"behavior_return_low": 0.0, "behavior_return_high": 0.0}, "the imagined returns have been the same"),
    ],
)
def test_a_sign_is_said_once_and_not_before_it_has_lasted(changed, said):
    patient = Patient()
    assert patient.live(LONG, **changed) == []
    (sentence,) = patient.live(**changed)
    assert said in sentence
    assert patient.live(**changed) == []


def test_what_passes_says_nothing():
    patient = Patient()
    for _ in range(5):
        assert patient.live(LONG - 200, behavior_entropy=0.04) == []
        assert patient.live(100) == []


def test_just_inside_the_thresholds():
    assert Patient().live(behavior_entropy=0.0315 + 0.021 * (0.693 - 0.0315)) == []
    assert Patient().live(loss_dynamics=1.0011) == []


def test_values_that_no_episode_bears_out():
    patient = Patient()
    for _ in range(20):
        patient.health.episode([1.0] * 10, True)  # the best state has 10 to come, discounted 9.87
    assert patient.live(behavior_value=19.0) == []
    (sentence,) = patient.live(behavior_value=20.0)
    assert "expects a return of 20, but the best of the last 20 episodes gave 9.866" in sentence


def test_values_need_episodes_to_compare_with():
    patient = Patient()
    for _ in range(19):
        patient.health.episode([0.0], True)
    assert patient.live(behavior_value=20.0) == []


def test_small_values_are_not_compared():
    patient = Patient()
    for _ in range(20):
        patient.health.episode([0.01], True)
    assert patient.live(behavior_value=0.9) == []


def test_a_replay_that_is_too_small():
    batch = CONFIG.replay.batch * CONFIG.replay.length
    assert Patient(capacity=10 * batch).live(100, rows=10**6) == []
    assert Patient(capacity=10 * batch - 1).live(100, rows=10 * batch - 1) == []  # all that was seen is still there
    (sentence,) = Patient(capacity=10 * batch - 1).live(200, rows=10**6)
    assert "the replay holds only 10,239 rows, and each update takes 1,024 of them" in sentence


def test_what_a_run_does_not_measure_is_not_judged():
    assert Health(CONFIG, TURN, 10**6).look(10**6, 0, {}) == []
    assert Patient().live(behavior_entropy=math.nan) == []


# With the real thing -------------------------------------------------------------------------------------


def said_by(folder, monkeypatch, task, *settings):
    """What a tiny run says, where signs need only 30 updates."""
    monkeypatch.setattr("dreamer.health.LONG", 30)
    monkeypatch.setattr("dreamer.health.RECENT", 3)
    pairs = [part for setting in (*tiny.WIDTHS, "run.log_seconds=0.01", *settings) for part in ("--set", setting)]
    arguments = ["train", "--env", task, "--size", "1m", "--envs", "1", "--frames", "400", "--run", str(folder), *pairs]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return [line for line in result.stderr.splitlines() if line.startswith("A sign that something may be wrong: ")]


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        (
            "counting:Lever",
            ["behavior.entropy=0", "optimizer.learning_rate=0.01", "optimizer.warmup=1", "ratio=16"],
            "the policy hardly varies any more",
        ),
        ("gym/CartPole-v1", ["model.free_nats=50"], "stays under its floor of 50 nats"),
        ("gym/CartPole-v1", ["behavior.return_rate=0"], "the imagined returns have been the same"),
        ("gym/CartPole-v1", ["replay.capacity=40"], "the replay holds only 40 rows, and each update takes 8"),
    ],
)
def test_runs_that_are_broken_on_purpose(tmp_path, monkeypatch, task, settings, said):
    assert any(said in line for line in said_by(tmp_path, monkeypatch, task, *settings))


def test_a_run_whose_values_no_episode_bears_out(tmp_path, monkeypatch):
    """It learns from twenty times the reward that its episodes give."""
    real = loop.tensors

    def broken(*given):
        seen = real(*given)
        return seen | {"reward": 20 * seen["reward"]}

    monkeypatch.setattr(loop, "tensors", broken)
    settings = ["optimizer.learning_rate=0.01", "optimizer.warmup=1", "ratio=16"]
    said = said_by(tmp_path, monkeypatch, "counting:Lever", *settings)
    assert any("the critic expects" in line for line in said), said


RESULTS = Path(__file__).parents[1] / "runs" / "results"


def table(path):
    with path.open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("cartpole", TURN),
        ("camera", ActionSpec((ActionPart("action", size=1),))),
        ("mixed", ActionSpec((ActionPart("action", classes=(2, 3)),))),
    ],
)
def test_runs_that_learned_hear_nothing(name, action):
    """The means that a run wrote down, and for CartPole, whose rewards are all 1, its episodes."""
    health = Health(CONFIG, action, 10**6)
    episodes = deque(table(RESULTS / "cartpole" / "earlier" / "scores.csv") if name == "cartpole" else [])
    means = table(RESULTS / "health" / f"{name}.csv")
    assert means[-1]["speed/updates"] > LONG
    for line in means:
        while episodes and episodes[0]["frames"] <= line["frames"]:
            score = int(episodes.popleft()["score"])
            health.episode([1.0] * score, score < 500)
        assert health.look(int(line["speed/updates"]), int(line["frames"]), line) == []
