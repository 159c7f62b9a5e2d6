"""The compiled path computes what the eager one does. Compiling takes a minute, so one agent serves all tests."""

import copy
from dataclasses import replace

import pytest
import torch

from dreamer.agent import Agent
from dreamer.bench import random_replay
from dreamer.config import Config, make_config
from dreamer.machine import why_not_compile
from dreamer.replay import Batch, Replay
from dreamer.spaces import ActionPart, ActionSpec, ObservationSpec
from dreamer.video import open_loop

pytestmark = pytest.mark.skipif(bool(why_not_compile(torch.device("cpu"))), reason="nothing to compile with")

OBSERVATION = ObservationSpec(images={"camera": (48, 48, 3)}, floats={"pose": 3}, integers={"switch": (2, 3)})
ACTION = ActionSpec((ActionPart("buttons", classes=(2, 3)), ActionPart("stick", size=2)))
BATCH, LENGTH = 2, 8


def config() -> Config:
    base = make_config("test/compile")
    model = replace(base.model, deter=16, hidden=8, stoch=2, classes=3, blocks=2 * 4, depth=2, units=8)
    return replace(base, model=model, behavior=replace(base.behavior, horizon=3))


def make_agent(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Agent:
    return Agent(config(), OBSERVATION, ACTION, torch.device(device), dtype)


def make_batch(agent: Agent, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(BATCH, LENGTH, *shape, generator=generator)

    return Batch(
        observation={
            "camera": (uniform(48, 48, 3) * 255).to(torch.uint8),
            "pose": uniform(3) * 10 - 5,
            "switch": torch.stack([(uniform() * 2).long(), (uniform() * 3).long()], -1),
        },
        prev_action=uniform(ACTION.width),
        reward=uniform() * 4 - 2,
        is_first=uniform() < 0.3,
        is_last=uniform() < 0.3,
        is_terminal=uniform() < 0.2,
        start=agent.world_model.rssm.initial(BATCH),
    )


@pytest.fixture(scope="session")
def compiled() -> Agent:
    agent = make_agent()
    agent.compile()
    agent.warm_up(make_replay().blank(BATCH), environments=2)
    return agent


def make_replay() -> Replay:
    shape = replace(config(), replay=replace(config().replay, batch=BATCH, length=LENGTH))
    return random_replay(shape, OBSERVATION, ACTION, streams=2)


def make_agent_blank(agent: Agent) -> Batch:
    batch = make_batch(agent, 0)
    zeros = {key: torch.zeros_like(value) for key, value in batch.observation.items()}
    return batch._replace(observation=zeros)


def fresh(compiled: Agent) -> tuple[Agent, Agent]:
    """An eager agent and the compiled one, both as they were in the beginning."""
    eager = make_agent()
    compiled.load_state_dict(eager.state_dict())
    return eager, compiled


def test_warm_up_leaves_no_trace(compiled):
    eager = make_agent()
    agent = fresh(compiled)[1]
    generators = agent.generator, agent.acting.generator
    before = [each.get_state() for each in generators]
    agent.warm_up(make_agent_blank(agent), environments=2)
    assert all(torch.equal(each.get_state(), state) for each, state in zip(generators, before))
    assert all(torch.equal(a, b) for a, b in zip(agent.parameters, eager.parameters))
    assert all(p.grad is None for p in agent.parameters)
    assert agent.actor_critic.return_high == 0


def test_losses_and_gradients_agree(compiled):
    eager, agent = fresh(compiled)
    results = []
    for each in (eager, agent):
        total, metrics, posterior, _ = each.loss(make_batch(each, 1))
        total.backward()
        results.append((metrics, posterior, [p.grad.clone() for p in each.parameters]))
        each.optimizer.zero_grad()
    (metrics, posterior, gradients), (metrics_c, posterior_c, gradients_c) = results
    assert set(metrics) == set(metrics_c)
    for name in metrics:
        torch.testing.assert_close(metrics_c[name], metrics[name], rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(posterior_c.deter, posterior.deter, rtol=1e-5, atol=1e-6)
    assert torch.equal(posterior_c.stoch.argmax(-1), posterior.stoch.argmax(-1))
    for ours, theirs in zip(gradients_c, gradients):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7


def test_predictions_start_at_exactly_zero(compiled):
    _, agent = fresh(compiled)
    feature = torch.randn(4, 8, agent.world_model.feature_width)
    reward, _ = agent.world_model.outcome(feature)
    _, value = agent.actor_critic.evaluate(feature)
    assert (reward == 0).all() and (value == 0).all()
    metrics = agent.loss(make_batch(agent, 1))[1]  # as they are compiled within it
    assert metrics["behavior/reward"] == metrics["behavior/value"] == metrics["behavior/return"] == 0


def test_acting_agrees(compiled):
    eager, agent = fresh(compiled)
    batch = make_batch(eager, 2)
    first, last = torch.tensor([True, False]), torch.tensor([False, False])
    memories = [each.start(2) for each in (eager, agent)]
    for t in range(3):
        observation = {key: value[:, t].contiguous() for key, value in batch.observation.items()}
        memories = [each.act(observation, first, last, memory) for each, memory in zip((eager, agent), memories)]
        torch.testing.assert_close(memories[1].state.deter, memories[0].state.deter, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(memories[1].action, memories[0].action, rtol=1e-4, atol=1e-5)


def test_nothing_is_compiled_again(compiled):
    """Over ends of episodes, checkpoints and the open-loop video, on batches as they are sampled."""
    _, agent = fresh(compiled)
    replay, memory = make_replay(), agent.start(2)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(4):
            batch, windows = replay.sample(BATCH)
            _, posterior = agent.update(batch)
            replay.refresh(windows, posterior)
            observation = {key: value[:, 0].contiguous() for key, value in batch.observation.items()}
            flags = torch.tensor([number == 1, False]), torch.tensor([number == 0, False])
            memory = agent.act(observation, *flags, memory)
            open_loop(agent, batch, context=2)
            agent.load_state_dict(copy.deepcopy(agent.state_dict()))


def test_going_on_is_exact_to_the_bit(compiled, tmp_path):
    """As in `test_resume`, which runs whole trainings, but does so eagerly."""
    _, agent = fresh(compiled)
    begun = copy.deepcopy(agent.state_dict())
    ends = []
    for stop in (None, 2):
        agent.load_state_dict(begun)
        for number in range(5):
            if number == stop:
                torch.save(agent.state_dict(), tmp_path / "state.pt")
                for p in agent.parameters:
                    p.data.normal_()
                agent.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            agent.update(make_batch(agent, number))
        ends.append(copy.deepcopy(agent.state_dict()))
    whole, parts = ends
    for name in ("world_model", "actor_critic"):
        assert all(torch.equal(value, parts[name][key]) for key, value in whole[name].items())
        assert not all(torch.equal(value, begun[name][key]) for key, value in whole[name].items())
    for name in ("scale", "momentum"):
        assert all(map(torch.equal, whole["optimizer"][name], parts["optimizer"][name]))
    assert torch.equal(whole["generator"], parts["generator"])


def test_uncompile_goes_back_to_eager():
    agent = make_agent()
    before = {name: getattr(owner, name) for owner, name in agent._work()}
    agent.compile()
    assert all(getattr(owner, name) != before[name] for owner, name in agent._work() if name != "forward")
    agent.uncompile()
    for owner, name in agent._work():
        assert name not in vars(owner)
