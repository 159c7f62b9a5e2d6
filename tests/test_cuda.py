"""An update as one CUDA graph. What needs a GPU is skipped where there is none; the rest looks after the buffers."""

import copy

import pytest
import test_compile
import tiny
import torch
from click.testing import CliRunner

from dreamer import run
from dreamer.bench import random_replay
from dreamer.cli import main
from dreamer.cuda import Captured, fetch, moved

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])


def make_agents(device, count):
    """Alike; the first is plain. On a GPU all are compiled."""
    agents = [test_compile.make_agent(device) for _ in range(count)]
    blank = test_compile.make_agent_blank(agents[0])
    for agent in agents:
        if device == "cuda":
            agent.compile()
            agent.warm_up(blank, environments=2)
    for agent in agents[1:]:
        agent.capture(blank, environments=2)
    return agents


def batches(count):
    agent = test_compile.make_agent()
    return [test_compile.make_batch(agent, seed) for seed in range(count)]


def norm(tensors):
    return torch.stack([each.norm() for each in tensors]).norm()


def close(ours, theirs, device):
    """To the bit on a CPU; a GPU may choose other kernels in a graph."""
    torch.testing.assert_close(ours, theirs, rtol=0 if device == "cpu" else 1e-4, atol=0 if device == "cpu" else 1e-5)


@devices
def test_captured_updates_are_plain_ones(device):
    plain, captured = make_agents(device, 2)
    before = [p.clone() for p in plain.parameters]
    for number, batch in enumerate(batches(50)):
        (metrics, posterior), (others, other_posterior) = plain.update(batch), captured.update(batch)
        assert list(metrics) == list(others) and len(metrics) > 20
        if number < 10:  # from where on a GPU's rounding may have changed a sample
            close(others["loss/total"], metrics["loss/total"], device)
            close(other_posterior.deter, posterior.deter, device)
    assert plain.optimizer.updates == captured.optimizer.updates == 50
    assert torch.equal(plain.generator.get_state(), captured.generator.get_state())
    # Against what they have moved, which the smallest gradients make a matter of their rounding.
    errors = [ours - theirs for ours, theirs in zip(captured.parameters, plain.parameters)]
    ways = [theirs - start for theirs, start in zip(plain.parameters, before)]
    assert all(error.norm() <= (0 if device == "cpu" else 0.5) * way.norm() for error, way in zip(errors, ways))
    assert norm(errors) <= (0 if device == "cpu" else 0.05) * norm(ways) and norm(ways) > 0
    close(captured.actor_critic.return_high, plain.actor_critic.return_high, device)


@devices
def test_captured_actions_are_plain_ones(device, monkeypatch):
    plain, captured = make_agents(device, 2)
    calls, call = [], Captured.__call__
    monkeypatch.setattr(Captured, "__call__", lambda self, *given: calls.append(self) or call(self, *given))
    memories = [each.start(2) for each in (plain, captured)]
    for number, batch in enumerate(batches(3)):
        observation = {key: value[:2, 0].contiguous() for key, value in batch.observation.items()}
        flags = torch.tensor([number == 0, True]), torch.tensor([False, number == 2])
        observation = dict(reversed(observation.items()))  # an environment's order is its own
        memories = [agent.act(observation, *flags, memory) for agent, memory in zip((plain, captured), memories)]
        close(memories[1].state.deter, memories[0].state.deter, device)
        close(memories[1].action, memories[0].action, device)
        # The weights that it acts by are those after the update.
        for agent in (plain, captured):
            agent.update(batch)
    assert (memories[1].action[1] == 0).all()
    assert calls == 3 * [captured._captured_choose, captured._captured_learn]


@devices
def test_capturing_leaves_no_trace(device):
    before, after = make_agents(device, 2)
    assert torch.equal(before.generator.get_state(), after.generator.get_state())
    for ours, theirs in zip(after.parameters, before.parameters):
        assert torch.equal(ours, theirs) and ours.grad is None
    assert after.optimizer.updates == 0 and after.actor_critic.return_high == 0
    for state in after.optimizer.state.values():
        assert not state["scale"].any() and not state["momentum"].any()


@devices
def test_random_numbers_differ_between_replays_and_results_outlive_them(device):
    _, agent = make_agents(device, 2)
    (batch,) = batches(1)
    first, one = agent.update(batch)
    kept = first["loss/total"].clone(), one.stoch.clone()
    second, other = agent.update(batch)
    assert not torch.equal(one.stoch, other.stoch) and first["loss/total"] != second["loss/total"]
    assert torch.equal(kept[0], first["loss/total"]) and torch.equal(kept[1], one.stoch)


@devices
def test_a_resumed_run_captures_again_and_goes_on(device):
    whole, stopped, resumed = make_agents(device, 3)
    for batch in batches(3):
        whole.update(batch)
        stopped.update(batch)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    for batch in batches(5)[3:]:
        whole.update(batch)
        resumed.update(batch)
    for ours, theirs in zip(resumed.parameters, whole.parameters):
        close(ours, theirs, device)
    assert torch.equal(resumed.generator.get_state(), whole.generator.get_state())


@devices
def test_what_was_not_captured_is_launched_plainly(device):
    plain, captured = make_agents(device, 2)
    (batch,) = batches(1)
    observation = {key: value[:1, 0].contiguous() for key, value in batch.observation.items()}
    flag = torch.zeros(1, dtype=torch.bool)
    one, other = (each.act(observation, flag, flag, each.start(1)) for each in (plain, captured))
    close(other.action, one.action, device)
    captured.release()
    assert not captured.is_captured and captured.update(batch)[0]["optimizer/skipped"] == 0


def test_buffers_stay_and_results_are_copies():
    seen = []

    def double(given):
        seen.append(given["x"].data_ptr())
        return {"y": given["x"].mul_(2)}

    captured = Captured(double, ({"x": torch.zeros(2)},), torch.Generator())
    given = torch.tensor([1.0, 2.0])
    results = [captured({"x": given})["y"] for _ in range(2)]
    assert seen[0] == seen[1] and given.tolist() == [1, 2]
    assert [result.tolist() for result in results] == [[2, 4], [2, 4]]
    assert not captured.accepts({"x": torch.zeros(3)}) and not captured.accepts({"z": torch.zeros(2)})
    assert not captured.accepts({"x": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(AssertionError, match="not what was captured"):
        captured({"x": torch.zeros(3)})


@gpu
@pytest.mark.parametrize("home", ["cuda", "cpu"])
def test_nothing_waits_for_the_update(home):
    config, agent, *_ = tiny.tiny_run("run.device=cuda")
    agent = type(agent)(config, agent.observation_spec, agent.action_spec, torch.device("cuda"), torch.float32)
    replay = random_replay(config, agent.observation_spec, agent.action_spec, 1, torch.device(home))
    batch, _ = replay.sample(config.replay.batch)
    agent.capture(batch, 1)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            # A replay in the machine's memory waits for the latents of the last update, and for nothing else.
            batch, windows = replay.sample(config.replay.batch)
            replay.refresh(windows, agent.update(batch)[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
def test_a_replay_on_the_gpu_is_the_same():
    config, agent, *_ = tiny.tiny_run()
    spaces = agent.observation_spec, agent.action_spec
    replays = [random_replay(config, *spaces, 1, torch.device(device)) for device in ("cpu", "cuda")]
    for _ in range(5):
        (mine, windows), (other, others) = (replay.sample(4) for replay in replays)
        assert windows == others
        assert torch.equal(mine.reward, other.reward.cpu()) and torch.equal(mine.start.deter, other.start.deter.cpu())
        latent = type(mine.start)(torch.rand(4, config.replay.length, 16), torch.rand(4, config.replay.length, 2, 3))
        for replay in replays:
            replay.refresh(windows, latent)
            replay.settle()
    for key, value in replays[0].data.items():
        assert torch.equal(value[:, : replays[0].count], replays[1].data[key][:, : replays[0].count].cpu()), key


@pytest.mark.parametrize("said", ["by torch", "by a library, within another error"])
def test_what_does_not_fit_says_what_would(monkeypatch, tmp_path, said):
    """Where memory for no more than three sequences is left."""
    real = run.Agent._learn

    def learn(self, batch):
        if len(batch.reward) > 3:
            if said == "by torch":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            raise ValueError("the backend failed") from RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
        return real(self, batch)

    monkeypatch.setattr(run.Agent, "_learn", learn)
    widths = [word for setting in tiny.WIDTHS for word in ("--set", setting)]
    options = ["--env", "gym/CartPole-v1", "--size", "1m", "--frames", "200", "--run", str(tmp_path / "run"), *widths]
    options += ["--set", "run.compile=true", "--set", "replay.batch=16"]
    result = CliRunner().invoke(main, ["train", *options])
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "does not fit" in line]
    assert "an update of a 1m model with batches of 16 x 4 steps does not fit into the memory of this cpu" in line
    assert "replay.batch=2 fits" in line


def test_float32_is_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    test_compile.make_agent()
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_moving_to_a_cpu_copies_nothing():
    value = torch.zeros(3)
    assert moved(value, torch.device("cpu")) is value
    assert fetch([value], torch.device("cpu"))()[0] is value


@gpu
def test_what_is_fetched_is_as_it_was_then():
    value = torch.arange(1 << 20, device="cuda")
    torch.cuda._sleep(100_000_000)  # cycles, within which nothing arrives
    arrive = fetch([value + 1], torch.device("cpu"))
    (here,) = arrive()
    assert here.device.type == "cpu" and torch.equal(here, torch.arange(1 << 20) + 1)
