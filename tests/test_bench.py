"""The benchmark measures what it says it measures."""

import json
import time

import pytest
import tiny
import torch
from click.testing import CliRunner

from dreamer import bench
from dreamer.agent import Agent
from dreamer.bench import Spread, Stopwatch, matrix_peak, random_replay, time_parts, timed
from dreamer.cli import main
from dreamer.loop import Counters
from dreamer.spaces import ActionPart, ActionSpec, ObservationSpec

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(bench, "REPEATS", (3, 5))
    monkeypatch.setattr(bench, "SECONDS", 0.2)
    monkeypatch.setattr(bench, "STEP_SECONDS", 0.05)


def run(*arguments):
    widths = [word for setting in tiny.WIDTHS for word in ("--set", setting)]
    return CliRunner().invoke(main, ["bench", "--env", "gym/CartPole-v1", "--size", "1m", *widths, *arguments])


def test_the_report_for_machines():
    result = run("--eager", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["task"], report["size"], report["device"]) == ("gym/CartPole-v1", "1m", "cpu")
    assert (report["precision"], report["compiled"]) == ("float32", False)
    update = report["update"]
    assert 0 < update["low_s"] <= update["median_s"] <= update["high_s"] and update["repeats"] >= 3
    assert report["updates_per_second"] == pytest.approx(1 / update["median_s"])
    assert set(report["acting"]) == {"1", "16"}
    for name in ("environment_steps_per_second", "collected_steps_per_second", "first_update_s", "peak_memory_bytes"):
        assert report[name] > 0
    assert report["environment_steps_per_second"] > report["collected_steps_per_second"]
    assert sum(report["parts"].values()) == pytest.approx(report["parts_s"]) and min(report["parts"].values()) > 0
    expected = report["update_flop"] / update["median_s"] / report["peak_flop_per_second"]
    assert report["peak_share"] == pytest.approx(expected)
    training = report["training"]
    assert set(training["shares"]) == {"updates", "environments", "acting", "replay", "logging", "the rest"}
    assert sum(training["shares"].values()) == pytest.approx(1) and min(training["shares"].values()) > 0
    # A ratio of 1 with batches of 2 x 4 steps: an update every 8 steps.
    assert training["updates_per_second"] == pytest.approx(training["steps_per_second"] / 8)
    assert 0 < training["of_allowed"] < 1.5


def test_the_report_for_people():
    result = run("--eager")
    assert result.exit_code == 0, result.output
    for part in ("one update", "posterior scan", "imagination", "backward", "first update", "GFLOP an update"):
        assert part in result.stdout
    assert "eager" in result.stdout and "Timing updates" in result.stderr


def test_a_wrong_size_is_one_sentence():
    result = run("--set", "size=2m")
    assert result.exit_code == 2 and "size=2m is not one of 1m" in result.stderr and result.stdout == ""


def test_a_device_that_is_too_small_is_one_sentence(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Agent, "_learn", full)
    result = run("--eager")
    assert result.exit_code == 2 and "does not fit into the memory of this device; give a smaller" in result.stderr


def test_precision_is_an_option():
    report = json.loads(run("--eager", "--json", "--precision", "bfloat16").stdout)
    assert report["precision"] == "bfloat16"


def test_parts_add_up_to_an_update_and_leave_no_trace():
    config, agent, *_ = tiny.tiny_run()
    replay = random_replay(config, agent.observation_spec, agent.action_spec, streams=1)
    batch, _ = replay.sample(config.replay.batch)
    before = [set(vars(owner)) for owner in (agent, agent.world_model, agent.world_model.rssm, agent.imagination)]
    slow = agent.imagination.rollout

    def rollout(*arguments):
        time.sleep(0.05)
        return slow(*arguments)

    agent.imagination.rollout = rollout
    parts = time_parts(agent, lambda: agent.update(batch))
    del agent.imagination.rollout
    assert list(parts) == [
        "encoder", "posterior scan", "imagination", "heads and losses", "backward", "optimiser", "the rest"
    ]  # fmt: skip
    assert all(seconds > 0 for seconds in parts.values())
    assert parts["imagination"] > 0.05 > parts["posterior scan"]
    whole = timed(lambda: agent.update(batch), CPU).median_s + 0.05
    assert sum(parts.values()) == pytest.approx(whole, rel=0.5)
    assert before == [
        set(vars(owner)) for owner in (agent, agent.world_model, agent.world_model.rssm, agent.imagination)
    ]


def test_the_first_calls_do_not_count():
    calls = []

    def function():
        time.sleep(0.2 if len(calls) < bench.WARM_UPS else 0.001)
        calls.append(1)

    spread = timed(function, CPU)
    assert spread.high_s < 0.1 and len(calls) == bench.WARM_UPS + spread.repeats


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_device_that_works_on_its_own_is_waited_for(monkeypatch, kind):
    waited = []
    monkeypatch.setattr(getattr(torch, kind), "synchronize", lambda: waited.append(kind))
    timed(lambda: None, torch.device(kind))
    assert len(waited) >= 2
    timed(lambda: None, CPU)
    assert set(waited) == {kind}


def test_a_stopwatch_adds_up():
    class Owner:
        def work(self):
            time.sleep(0.01)
            return 7

    owner, watch = Owner(), Stopwatch(CPU)
    with watch.around((owner, "work", "part")):
        assert owner.work() + owner.work() == 14
    assert 0.02 <= watch.seconds["part"] < 0.1
    assert vars(owner) == {}


def test_random_experience_has_every_kind_of_observation():
    observation = ObservationSpec(images={"eye": (48, 48, 1)}, floats={"speed": 3}, integers={"card": (4, 2)})
    action = ActionSpec((ActionPart("action", classes=(2,)),))
    config = tiny.tiny_config()
    batch, _ = random_replay(config, observation, action, streams=2).sample(2)
    length = config.replay.length
    assert batch.observation["eye"].shape == (2, length, 48, 48, 1) and batch.observation["eye"].float().std() > 50
    assert batch.observation["speed"].shape == (2, length, 3)
    assert (batch.observation["card"] < torch.tensor([4, 2])).all()


def test_the_peak_is_that_of_a_product():
    product = timed(lambda: torch.ones(256, 256) @ torch.ones(256, 256), CPU)
    assert isinstance(product, Spread) and matrix_peak(CPU, torch.float32) > 2 * 256**3 / product.high_s / 10


def test_a_slow_first_step_is_no_division_by_zero():
    counters = Counters(repeat=1)
    clock = bench.Clock(warm_up=0.001, seconds=0.002, counters=counters)
    assert not clock()
    for _ in range(3):
        time.sleep(0.01)
        counters.rows += 2
        if clock():
            break
    assert counters.rows == 4 and 50 < clock.rows / clock.span <= 200
