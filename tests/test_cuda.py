"""An update as one CUDA graph. What needs a GPU is skipped where there is none; the rest looks after the buffers."""

import copy
import gc

import pytest
import test_compile
import tiny
import torch
from click.testing import CliRunner

from dreamer import compiling, run
from dreamer.agent import Agent
from dreamer.bench import random_replay
from dreamer.cli import main
from dreamer.cuda import Aside, Captured, fetch, finish, moved
from dreamer.errors import UserMistake
from dreamer.loop import train
from dreamer.machine import device_memory
from dreamer.preflight import Needs
from dreamer.replay import new_replay

FAST = ("optimizer.learning_rate=0.01", "optimizer.warmup=1")
LONG = 200_000_000  # cycles, a tenth of a second
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])


def make_agents(device, plain, captured, dtype=torch.float32):
    """Alike. On a GPU all are compiled."""
    agents = [test_compile.make_agent(device, dtype) for _ in range(plain + captured)]
    blank = test_compile.make_agent_blank(agents[0])
    for agent in agents:
        if device == "cuda":
            agent.compile()
            agent.warm_up(blank, environments=2)
    for agent in agents[plain:]:
        agent.capture(blank, environments=2)
    return agents


def batches(count):
    agent = test_compile.make_agent()
    return [test_compile.make_batch(agent, seed) for seed in range(count)]


def same_numbers(one, other):
    """Whether both would draw the same ones."""
    pairs = (one.generator, other.generator), (one.acting.generator, other.acting.generator)
    return all(torch.equal(ours.get_state(), theirs.get_state()) for ours, theirs in pairs)


def distance(one, other):
    return torch.stack([(ours - theirs).norm() for ours, theirs in zip(one.parameters, other.parameters)]).norm()


def close(ours, theirs, device, dtype=torch.float32):
    """To the bit on a CPU; a GPU may choose other kernels in a graph."""
    rtol, atol = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (2e-2, 1e-2)}[dtype] if device == "cuda" else (0, 0)
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


@devices
@precisions
def test_captured_updates_are_plain_ones(device, dtype):
    plain, shaken, captured = make_agents(device, 2, 1, dtype)
    start = make_agents(device, 1, 0, dtype)[0]
    with torch.no_grad():
        for p in shaken.parameters:  # by what rounding might do
            p.mul_(1 + 1e-6 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).to(p))
    for number, batch in enumerate(batches(50)):
        (metrics, posterior), (others, other_posterior) = plain.update(batch), captured.update(batch)
        shaken.update(batch)
        assert list(metrics) == list(others) and len(metrics) > 20
        if number < 3:  # from where on a GPU's rounding may have changed a sample
            close(others["loss/total"], metrics["loss/total"], device, dtype)
            close(other_posterior.deter, posterior.deter, device, dtype)
    assert plain.optimizer.updates == captured.optimizer.updates == 50
    assert same_numbers(plain, captured)
    # The smallest gradients make the way of a parameter a matter of rounding, so that is the measure.
    assert 0 < distance(shaken, plain) < distance(start, plain)
    assert distance(captured, plain) <= (0 if device == "cpu" else 3) * distance(shaken, plain)


@devices
@precisions
def test_captured_actions_are_plain_ones(device, dtype, monkeypatch):
    plain, captured = make_agents(device, 1, 1, dtype)
    calls, call = [], Captured.__call__
    monkeypatch.setattr(Captured, "__call__", lambda self, *given: calls.append(self) or call(self, *given))
    memories = [each.start(2) for each in (plain, captured)]
    for number, batch in enumerate(batches(3)):
        observation = {key: value[:2, 0].contiguous() for key, value in batch.observation.items()}
        flags = torch.tensor([number == 0, True]), torch.tensor([False, number == 2])
        observation = dict(reversed(observation.items()))  # an environment's order is its own
        memories = [agent.act(observation, *flags, memory) for agent, memory in zip((plain, captured), memories)]
        close(memories[1].state.deter, memories[0].state.deter, device, dtype)
        close(memories[1].action, memories[0].action, device, dtype)
        # The weights that it acts by move: each update begins with handing over those of the last one.
        for agent in (plain, captured):
            agent.update(batch)
    assert (memories[1].action[1] == 0).all() and same_numbers(plain, captured)
    assert calls == 3 * [captured.acting._captured, captured._captured]


@devices
def test_capturing_leaves_no_trace(device):
    before, after = make_agents(device, 1, 1)
    assert same_numbers(before, after)
    for ours, theirs in zip(after.parameters, before.parameters):
        assert torch.equal(ours, theirs) and ours.grad is None
    assert after.optimizer.updates == 0 and after.actor_critic.return_high == 0
    for state in after.optimizer.state.values():
        assert not state["scale"].any() and not state["momentum"].any()


@devices
def test_random_numbers_differ_between_replays_and_results_outlive_them(device):
    (agent,) = make_agents(device, 0, 1)
    (batch,) = batches(1)
    first, one = agent.update(batch)
    kept = first["loss/total"].clone(), one.stoch.clone()
    second, other = agent.update(batch)
    assert not torch.equal(one.stoch, other.stoch) and first["loss/total"] != second["loss/total"]
    assert torch.equal(kept[0], first["loss/total"]) and torch.equal(kept[1], one.stoch)


@devices
def test_a_resumed_run_captures_again_and_goes_on(device):
    whole, stopped, resumed = make_agents(device, 1, 2)
    for batch in batches(3):
        whole.update(batch)
        stopped.update(batch)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    for batch in batches(5)[3:]:
        whole.update(batch)
        resumed.update(batch)
    for ours, theirs in zip(resumed.parameters, whole.parameters):
        close(ours, theirs, device)
    assert same_numbers(resumed, whole)


@devices
def test_what_was_not_captured_is_launched_plainly(device):
    plain, captured = make_agents(device, 1, 1)
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


class NoNumbers:
    """A generator of a device without values."""

    def __init__(self, device="cpu"):
        self.device = torch.device(device)

    def manual_seed(self, seed):
        return self


@precisions
def test_neither_update_nor_actions_ask_the_device_for_a_value(dtype, monkeypatch):
    batch = test_compile.make_replay().blank(test_compile.BATCH)
    monkeypatch.setattr(torch, "Generator", NoNumbers)
    for name in ("rand", "randn"):
        draw = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *shape, generator, draw=draw, **given: draw(*shape, **given))
    agent = test_compile.make_agent("meta", dtype)  # has none, and joins no tensors of others but single numbers
    metrics, posterior = agent.update(batch)
    memory = agent.act(*agent.acting.anything(agent._seen(batch, 3)))
    there = [*agent.parameters, *metrics.values(), *posterior, memory.action, *memory.state]
    assert {value.device.type for value in there} == {"meta"}
    with pytest.raises(RuntimeError, match="meta"):
        bool(metrics["loss/total"].isfinite())


@gpu
@pytest.mark.parametrize("home", ["cuda", "cpu"])
def test_nothing_waits_for_the_update(home):
    config, agent, *_ = tiny.tiny_run("run.device=cuda")
    agent = type(agent)(config, agent.observation_spec, agent.action_spec, torch.device("cuda"), torch.float32)
    replay = random_replay(config, agent.observation_spec, agent.action_spec, 1, torch.device(home))
    batch, _ = replay.sample(config.replay.batch)
    agent.capture(batch, 1)
    replay.refresh(replay.sample(config.replay.batch)[1], agent.update(batch)[1])  # what is loaded at its first launch
    replay.sample(config.replay.batch)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            batch, windows = replay.sample(config.replay.batch)
            torch.cuda._sleep(LONG)
            replay.refresh(windows, agent.update(batch)[1])
            assert not torch.cuda.current_stream().query()  # it is still at work
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
def test_environments_step_and_actions_are_chosen_while_an_update_runs():
    config, _, vector, _, counters = tiny.tiny_run("ratio=4", frames=40)
    device = torch.device("cuda")
    agent = Agent(config, *tiny.spaces(vector), device, torch.float32)
    replay = random_replay(config, *tiny.spaces(vector), 1, device)
    counters.updates = 1
    agent.capture(replay.blank(config.replay.batch), 1)
    update, step, busy = agent.update, vector.step, []

    def slow_update(batch):
        result = update(batch)
        torch.cuda._sleep(LONG)
        return result

    def watched_step(actions):
        busy.append(not agent._aside._stream.query())
        return step(actions)

    agent.update, vector.step = slow_update, watched_step
    train(config, agent, vector, replay, counters, [tiny.Silent()], tiny.Unsaved(), tiny.never)
    # An update follows every second row. The first step after it has waited for nothing; before the second one actions
    # were chosen, which waited for the update before, not for this one.
    assert counters.updates > 10 and all(busy[len(busy) // 2 :])  # by then nothing is loaded or allocated any more


def a_slow_run(device, ratio, beside, monkeypatch):
    """All that is left of a run whose updates take long, beside all else or not."""
    config, _, vector, _, counters = tiny.tiny_run(*FAST, f"ratio={ratio}", frames=60)
    agent = Agent(config, *tiny.spaces(vector), torch.device(device), torch.float32)
    generator = torch.Generator().manual_seed(0)
    replay = new_replay(config, *tiny.spaces(vector), streams=1, capacity=20, generator=generator, device=device)
    agent.capture(replay.blank(config.replay.batch), 1)
    if not beside:
        agent._aside = Aside(torch.device("cpu"))
    nap = torch.cuda._sleep if device == "cuda" else lambda cycles: None
    order, actions, step = [], [], vector.step

    def slowly(owner, name):
        function = getattr(owner, name)

        def slow(*arguments):
            nap(LONG // 20)
            order.append(name)
            result = function(*arguments)
            nap(LONG // 20)
            return result

        monkeypatch.setattr(owner, name, slow)

    def watched(given):
        actions.append([value.tolist() for value in given.values()])
        return step(given)

    for owner, name in ((replay, "sample"), (agent, "_captured"), (replay, "refresh")):
        slowly(owner, name)
    vector.step = watched

    class Now:
        states = []

        def due(self):
            return counters.rows == 31

        def save(self, memory):
            finish(agent.device)
            self.states.append(copy.deepcopy([agent.state_dict(), replay.export_latents(replay.oldest, replay.count)]))

    train(config, agent, vector, replay, counters, [tiny.Silent()], Now(), tiny.never)
    assert len(actions) == 60 and order == counters.updates * ["sample", "_captured", "refresh"]
    return actions, Now.states, replay.export_rows(replay.oldest, replay.count), agent.state_dict()


@devices
@pytest.mark.parametrize("ratio", [4, 12])
def test_what_runs_side_by_side_is_as_if_it_came_one_after_the_other(device, ratio, monkeypatch):
    """With an update every second row, and with one and two for a row in turn; rows overwrite others all the while."""
    one, other = (a_slow_run(device, ratio, beside, monkeypatch) for beside in (True, False))
    assert one[0] == other[0]
    torch.testing.assert_close(one[1:], other[1:], rtol=1e-5, atol=1e-6)


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


@gpu
def test_what_really_does_not_fit_says_what_would(monkeypatch, tmp_path):
    """In little more than the process holds already, and told so too late."""
    monkeypatch.setattr(run.preflight, "check", lambda *_: None)
    gc.collect()
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 1.2e9) / whole)
    try:
        options = ["--env", "gym/CartPole-v1", "--size", "25m", "--frames", "4000", "--run", str(tmp_path / "run")]
        result = CliRunner().invoke(main, ["train", *options, "--set", "run.compile=false"])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    assert "does not fit into the memory of this cuda device" in result.stderr and "fits" in result.stderr


def test_memory_that_somebody_else_has_taken_meanwhile():
    config = tiny.tiny_config()
    said = "do not fit into the memory that others leave on this cpu device"
    with pytest.raises(UserMistake, match=said), run._enough_memory(config, torch.device("cpu")):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(ValueError, match="another"), run._enough_memory(config, torch.device("cpu")):
        raise ValueError("another")


def test_the_memory_of_a_card_is_what_others_leave(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5)
    assert device_memory(torch.device("cuda")) == 65


@pytest.mark.parametrize(("card", "where"), [(2_000_000, "cuda"), (100_000, "cpu")])
def test_the_replay_lies_on_the_gpu_where_all_fits(monkeypatch, card, where):
    config, agent, *_ = tiny.tiny_run(frames=4000)
    agent.device = torch.device("cuda")
    made, real = [], run.new_replay

    def new_replay(*arguments, device, **named):
        made.append((str(device), named["capacity"]))
        return real(*arguments, **named)

    monkeypatch.setattr(run, "new_replay", new_replay)
    monkeypatch.setattr(run, "total_memory", lambda: 100_000)  # half of it for a replay
    monkeypatch.setattr(run, "device_memory", lambda device: card)
    monkeypatch.setattr(run.preflight, "needs", lambda agent, replay: Needs(replay.bytes, 1000, 500, 500))
    replay, need = run._placed(config, agent, repeat=1, seen=0)
    assert made[-1][0] == where and need.replay == replay.bytes
    # 4,000 frames and one more row; in the machine's memory, what half of it holds.
    assert made[-1][1] == (4001 if where == "cuda" else 50_000 // run._row_bytes(agent)) and made[0][1] < 4001


@pytest.mark.parametrize("part", ["agent", "acting"])
def test_a_capture_that_fails_leaves_no_trace(monkeypatch, part):
    class Broken:
        def __init__(self, function, arguments, generator, urgent=False):
            function(*arguments)
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(f"dreamer.{part}.Captured", Broken)
    agent = test_compile.make_agent()
    with pytest.raises(RuntimeError, match="not permitted"):
        agent.capture(test_compile.make_agent_blank(agent), 2)
    assert not agent.is_captured and same_numbers(agent, test_compile.make_agent())
    assert all(p.grad is None for p in agent.parameters)


def test_why_it_is_not_captured_is_said():
    class Agent:
        device = torch.device("cuda")

        def capture(self, batch, environments):
            raise RuntimeError("operation not permitted when stream is capturing\nand what to do about it")

    said = compiling._capture(Agent(), None, 1)
    assert said == "Not capturing the update as one CUDA graph: operation not permitted when stream is capturing"


def test_moving_to_a_cpu_copies_nothing():
    value = torch.zeros(3)
    assert moved(value, torch.device("cpu")) is value
    assert fetch([value], torch.device("cpu"))()[0] is value


@gpu
def test_what_is_fetched_is_as_it_was_then():
    value = torch.arange(1 << 20, device="cuda")
    fetch([value + 1], torch.device("cpu"))()  # what is loaded at its first launch
    torch.cuda._sleep(LONG)
    arrive = fetch([value + 1], torch.device("cpu"))
    assert not torch.cuda.current_stream().query()
    (here,) = arrive()
    assert here.device.type == "cpu" and torch.equal(here, torch.arange(1 << 20) + 1)
