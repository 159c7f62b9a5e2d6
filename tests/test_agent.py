"""Acting and updating as a whole: what reaches what, what repeats, and what must not move."""

import copy
import math

import pytest
import tiny
import torch

import dreamer.agent
from dreamer.acting import Memory
from dreamer.agent import Agent, total_loss
from dreamer.config import LossScales, make_config
from dreamer.loop import train
from dreamer.replay import Batch
from dreamer.rssm import State
from dreamer.spaces import ActionPart, ActionSpec, ObservationSpec

B, T, H = 2, 4, 3
TINY = (
    "model.deter=16",
    "model.hidden=8",
    "model.stoch=3",
    "model.classes=4",
    "model.depth=2",
    "model.units=8",
    f"behavior.horizon={H}",
)
FAST = ("optimizer.learning_rate=0.01", "optimizer.warmup=1")
VECTOR = ObservationSpec({}, {"x": 3}, {})
IMAGE = ObservationSpec({"image": (48, 64, 3)}, {}, {})
INTEGER = ObservationSpec({}, {}, {"y": (2, 3)})
MIXED = ObservationSpec({"image": (48, 48, 1), "mask": (48, 48, 2)}, {"x.y": 3}, {"y": (2, 3)})
DISCRETE = ActionSpec((ActionPart("action", classes=(4,)),))
CONTINUOUS = ActionSpec((ActionPart("action", size=2),))
MULTI = ActionSpec((ActionPart("action", classes=(2, 5)),))
BOTH = ActionSpec((ActionPart("a", classes=(2, 3)), ActionPart("b", size=2)))


def make(
    observation: ObservationSpec = VECTOR,
    action: ActionSpec = DISCRETE,
    *settings: str,
    seed: int = 0,
    fresh: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Agent:
    config = make_config("test/tiny", settings=[*TINY, *settings], seed=seed)
    agent = Agent(config, observation, action, torch.device("cpu"), dtype)
    if not fresh:  # nothing is zero, and predicted values are a few units
        generator = torch.Generator().manual_seed(seed)
        away = 0.3 * torch.arange(-127, 128).abs()
        with torch.no_grad():
            for p in all_parameters(agent).values():
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
            behavior = agent.actor_critic
            for head in (agent.world_model.reward, behavior.critic, behavior.slow_critic):
                head.out.bias.sub_(away)
    agent.acting.follow()
    return agent


def all_parameters(agent: Agent) -> dict[str, torch.Tensor]:
    parts = {"world_model": agent.world_model, "actor_critic": agent.actor_critic}
    return {f"{name}.{key}": p for name, part in parts.items() for key, p in part.named_parameters()}


def snapshot(agent: Agent) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in all_parameters(agent).items()}


def make_batch(observation: ObservationSpec = VECTOR, action: ActionSpec = DISCRETE, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    values = {
        k: torch.randint(0, 256, (B, T, *s), dtype=torch.uint8, generator=g) for k, s in observation.images.items()
    }
    values |= {k: torch.randn(B, T, n, generator=g) for k, n in observation.floats.items()}
    values |= {k: torch.randint(0, 2, (B, T, len(n)), generator=g) for k, n in observation.integers.items()}
    index = torch.randint(0, 4, (B, 3), generator=g)
    no = torch.zeros(B, T, dtype=torch.bool)
    return Batch(
        observation=values,
        prev_action=torch.randn(B, T, action.width, generator=g),
        reward=torch.randn(B, T, generator=g),
        is_first=no.clone(),
        is_last=no.clone(),
        is_terminal=no.clone(),
        start=State(torch.randn(B, 16, generator=g), torch.nn.functional.one_hot(index, 4).float()),
    )


def unreduced(agent: Agent, batch: Batch, monkeypatch) -> dict[str, torch.Tensor]:
    """The losses as they arrive at `total_loss`, for the same noise each time."""
    seen: dict[str, torch.Tensor] = {}

    def spy(losses, scales, shape):
        seen.update(losses)
        return total_loss(losses, scales, shape)

    monkeypatch.setattr(dreamer.agent, "total_loss", spy)
    agent.generator.manual_seed(11)
    agent.loss(batch)
    return seen


def near(actual, expected, rtol=1e-5, atol=1e-6) -> None:
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    expected = torch.as_tensor(expected, dtype=torch.float64).detach().expand(actual.shape)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


# The sum of losses -------------------------------------------------------------------------------------


def all_losses() -> dict[str, torch.Tensor]:
    names = ["decoder/a", "decoder/b", "reward", "continuation", "dynamics", "representation", "actor", "critic"]
    losses = {name: torch.full((B, T), i + 1.0) for i, name in enumerate(names)}
    return losses | {"replay_critic": torch.full((B, T - 1), 9.0)}


def test_total_loss_literal():
    total, means = total_loss(all_losses(), LossScales(), (B, T))
    near(total, 1 + 2 + 3 + 4 + 5 + 0.1 * 6 + 7 + 8 + 0.3 * 9)
    near(means["representation"], 6)  # reported before its scale
    near(means["total"], total)
    assert set(means) == set(all_losses()) | {"total"}


def test_every_loss_is_a_mean():
    losses = all_losses()
    losses["reward"] = torch.arange(8.0).reshape(B, T)
    losses["replay_critic"] = torch.arange(6.0).reshape(B, T - 1)
    total, means = total_loss(losses, LossScales(), (B, T))
    near([means["reward"], means["replay_critic"]], [3.5, 2.5])
    near(total, 1 + 2 + 3.5 + 4 + 5 + 0.6 + 7 + 8 + 0.75)


@pytest.mark.parametrize(
    "name", ["reward", "continuation", "dynamics", "representation", "actor", "critic", "replay_critic"]
)
def test_a_missing_loss_fails(name):
    losses = all_losses()
    del losses[name]
    with pytest.raises(AssertionError, match=name):
        total_loss(losses, LossScales(), (B, T))


def test_without_any_decoder_loss_it_fails():
    losses = {name: loss for name, loss in all_losses().items() if "decoder" not in name}
    with pytest.raises(AssertionError, match="decoder"):
        total_loss(losses, LossScales(), (B, T))


def test_a_loss_without_a_scale_fails():
    with pytest.raises(AssertionError, match="curiosity"):
        total_loss(all_losses() | {"curiosity": torch.zeros(B, T)}, LossScales(), (B, T))


@pytest.mark.parametrize("name", ["decoder/b", "reward", "actor", "replay_critic"])
@pytest.mark.parametrize("shape", [(), (B,), (T, B), (B, T, 1), (B, T - 2)])
def test_a_loss_of_another_shape_fails(name, shape):
    with pytest.raises(AssertionError, match=name):
        total_loss(all_losses() | {name: torch.zeros(shape)}, LossScales(), (B, T))


def test_only_the_replayed_critic_loss_is_one_step_shorter():
    for name, shape in {"critic": (B, T - 1), "replay_critic": (B, T)}.items():
        with pytest.raises(AssertionError, match=name):
            total_loss(all_losses() | {name: torch.zeros(shape)}, LossScales(), (B, T))


# Repeating ---------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_parameters_and_updates():
    first, second = make(MIXED, BOTH, *FAST, fresh=True), make(MIXED, BOTH, *FAST, fresh=True)
    assert all(torch.equal(p, snapshot(second)[name]) for name, p in snapshot(first).items())
    batch = make_batch(MIXED, BOTH)
    for _ in range(2):
        (metrics, posterior), (others, other_posterior) = first.update(batch), second.update(batch)
        assert all(torch.equal(value, others[name]) for name, value in metrics.items())
        assert torch.equal(posterior.stoch, other_posterior.stoch)
    assert all(torch.equal(p, snapshot(second)[name]) for name, p in snapshot(first).items())


def test_another_seed_gives_other_parameters_and_noise():
    first, second = make(fresh=True, seed=0), make(fresh=True, seed=1)
    name = "world_model.rssm.gates.weight"
    assert not torch.equal(snapshot(first)[name], snapshot(second)[name])
    assert not torch.equal(first._uniform(5), second._uniform(5))


def test_making_an_agent_leaves_the_global_random_numbers_alone():
    before = torch.random.get_rng_state()
    make(fresh=True)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_noise_differs_from_update_to_update():
    agent = make()
    first, second = agent.update(make_batch())[1], agent.update(make_batch())[1]
    assert not torch.equal(first.stoch, second.stoch)


# Updating ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observation", [VECTOR, IMAGE, INTEGER, MIXED], ids=["vector", "image", "integer", "mixed"])
@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS, MULTI, BOTH], ids=["discrete", "continuous", "multi", "both"])
def test_every_parameter_has_a_finite_gradient_for_every_kind_of_space(observation, action):
    agent = make(observation, action, fresh=True)
    batch = make_batch(observation, action)
    agent.update(batch)
    agent.loss(batch)[0].backward()
    for name, p in all_parameters(agent).items():
        assert p.isfinite().all(), name
        if "slow_critic" in name:
            assert p.grad is None, name
        else:
            assert p.grad is not None and p.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_that_is_trained_moves_once_the_rate_is_above_zero(dtype):
    agent, batch = make(MIXED, BOTH, *FAST, "model.free_nats=0", dtype=dtype), make_batch(MIXED, BOTH)
    before = snapshot(agent)
    agent.update(batch)
    agent.update(batch)
    for name, p in snapshot(agent).items():
        assert p.dtype == torch.float32 and p.isfinite().all() and not torch.equal(p, before[name]), name


def test_the_first_update_moves_no_parameter():
    agent = make(fresh=True)
    before = snapshot(agent)
    metrics, _ = agent.update(make_batch())
    assert metrics["optimizer/learning_rate"] == 0 and metrics["optimizer/gradient_norm"] > 0
    assert all(torch.equal(p, before[name]) for name, p in snapshot(agent).items())
    agent.update(make_batch())
    assert not torch.equal(snapshot(agent)["world_model.rssm.gates.weight"], before["world_model.rssm.gates.weight"])


def test_an_update_is_one_optimiser_step_on_the_gradient_of_the_total():
    agent, twin, batch = make(), make(), make_batch()
    agent.update(batch)
    twin.loss(batch)[0].backward()
    own = all_parameters(agent)
    for name, p in all_parameters(twin).items():
        if p.grad is not None:
            limit = 0.3 * max(1e-3, p.detach().norm().item())
            expected = p.grad / max(1, p.grad.norm().item() / limit)
            near(agent.optimizer.state[own[name]]["scale"], 0.001 * expected**2, rtol=1e-3, atol=1e-10)
    assert all(p.grad is None for p in agent.parameters)


def test_the_slow_critic_follows_the_updated_critic():
    agent = make(VECTOR, DISCRETE, *FAST)
    agent.update(make_batch())
    before = snapshot(agent)
    agent.update(make_batch())
    after = snapshot(agent)
    for name in before:
        if "slow_critic" in name:
            online = after[name.replace("slow_critic", "critic")].double()
            near(after[name], 0.02 * online + 0.98 * before[name].double())


def test_an_update_keeps_the_return_scale():
    agent, batch = make(), make_batch()
    behavior = agent.actor_critic
    metrics, _ = agent.update(batch)
    assert behavior.return_low == metrics["behavior/return_low"] != 0
    assert behavior.return_high == metrics["behavior/return_high"] != 0


def test_the_loss_alone_changes_nothing():
    agent = make()
    before = {name: value.clone() for name, value in agent.actor_critic.state_dict().items()}
    parameters = snapshot(agent)
    agent.loss(make_batch())
    assert all(torch.equal(value, before[name]) for name, value in agent.actor_critic.state_dict().items())
    assert all(torch.equal(p, parameters[name]) for name, p in snapshot(agent).items())
    assert agent.optimizer.updates == 0


def test_an_update_hands_out_the_posteriors_of_its_batch():
    agent, batch = make(), make_batch()
    agent.generator.manual_seed(3)
    uniform = agent._uniform(B, T, 3)
    agent.generator.manual_seed(3)
    expected, _ = agent.world_model.observe(batch, uniform)
    _, posterior = agent.update(batch)
    assert posterior.deter.shape == (B, T, 16) and posterior.stoch.shape == (B, T, 3, 4)
    assert torch.equal(posterior.deter, expected.deter) and torch.equal(posterior.stoch, expected.stoch)
    assert not posterior.deter.requires_grad and not posterior.stoch.requires_grad


def test_a_fresh_agent_predicts_rewards_and_values_of_exactly_zero():
    agent = make(MIXED, BOTH, fresh=True)
    metrics = agent.loss(make_batch(MIXED, BOTH))[1]
    for name in ("reward", "value", "return", "advantage_magnitude", "return_low", "return_high"):
        assert metrics[f"behavior/{name}"] == 0.0, name
    near(metrics["loss/reward"], math.log(255))
    near(metrics["loss/replay_critic"], 2 * math.log(255))


# Who teaches whom --------------------------------------------------------------------------------------


def taught(agent: Agent, loss: torch.Tensor) -> set[str]:
    """Which networks a loss sends a gradient to."""
    parameters = {name: p for name, p in all_parameters(agent).items() if p.requires_grad}
    gradients = torch.autograd.grad(loss.sum(), list(parameters.values()), allow_unused=True, retain_graph=True)
    reached = [name for name, gradient in zip(parameters, gradients) if gradient is not None and gradient.any()]
    return {name.split(".")[1] for name in reached}


@pytest.mark.parametrize("action", [DISCRETE, BOTH], ids=["discrete", "both"])
def test_where_the_gradient_of_each_loss_ends(action, monkeypatch):
    agent = make(VECTOR, action, "model.free_nats=0")
    losses = unreduced(agent, make_batch(VECTOR, action), monkeypatch)
    assert {name: taught(agent, loss) for name, loss in losses.items()} == {
        "decoder/x": {"encoder", "rssm", "decoder"},
        "reward": {"encoder", "rssm", "reward"},
        "continuation": {"encoder", "rssm", "continuation"},
        "dynamics": {"encoder", "rssm"},
        "representation": {"encoder", "rssm"},
        "actor": {"actor"},
        "critic": {"critic"},
        "replay_critic": {"encoder", "rssm", "critic"},
    }


def test_the_slow_critic_gets_no_gradient():
    agent = make()
    agent.loss(make_batch())[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in agent.actor_critic.slow_critic.parameters())
    assert not {id(p) for p in agent.parameters} & {id(p) for p in agent.actor_critic.slow_critic.parameters()}
    assert len(agent.parameters) == sum(p.requires_grad for p in all_parameters(agent).values())
    assert agent.parameter_count == sum(p.numel() for p in all_parameters(agent).values() if p.requires_grad)


# Imagination within an update --------------------------------------------------------------------------


def test_imagination_starts_from_every_posterior_state(monkeypatch):
    agent, batch = make(), make_batch()
    batch.is_last[0, 1] = batch.is_first[0, 2] = True
    starts, trajectories = [], []
    rollout = agent.imagination.rollout

    def spy(start, noise):
        starts.append(start)
        trajectories.append(rollout(start, noise))
        return trajectories[-1]

    agent.imagination.rollout = spy
    losses = unreduced(agent, batch, monkeypatch)
    agent.generator.manual_seed(11)
    posterior, _ = agent.world_model.observe(batch, agent._uniform(B, T, 3))
    assert starts[0].deter.shape == (B * T, 16) and not starts[0].stoch.requires_grad
    trajectory = trajectories[0]
    assert trajectory.feature.shape == (H + 1, B * T, 16 + 12)
    # Losses and bootstraps come back to the step each rollout started from.
    reward, continuation = (x.detach() for x in agent.world_model.outcome(trajectory.feature))
    imagined, returns, _, _ = agent.actor_critic.imagined_losses(*trajectory, reward, continuation)
    for b in range(B):
        for t in range(T):
            expected = torch.cat([posterior.deter[b, t], posterior.stoch[b, t].flatten()])
            near(trajectory.feature[0, b * T + t], expected)
            near(losses["actor"][b, t], imagined["actor"][b * T + t])
            near(losses["critic"][b, t], imagined["critic"][b * T + t])
    bootstrap = torch.stack([returns[0, b * T : (b + 1) * T] for b in range(B)])
    feature = agent.world_model.rssm.feature(posterior)
    replayed = agent.actor_critic.replay_losses(feature, batch.reward, batch.is_last, batch.is_terminal, bootstrap)
    near(losses["replay_critic"], replayed["replay_critic"])
    assert losses["replay_critic"][0, 1] == 0 and (losses["replay_critic"] != 0).sum() == B * (T - 1) - 1


def test_the_continue_of_the_starting_state_weighs_its_whole_rollout(monkeypatch):
    agent = make()
    outcome = agent.world_model.outcome

    def ended(feature):
        reward, continuation = outcome(feature)
        continuation = continuation.clone()
        continuation[0, 3] = 0.0
        return reward, continuation

    agent.world_model.outcome = ended
    losses = unreduced(agent, make_batch(), monkeypatch)
    assert losses["actor"].flatten()[3] == 0 and losses["critic"].flatten()[3] == 0
    assert (losses["critic"] != 0).sum() == B * T - 1


@pytest.mark.parametrize("first", range(T))
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_before_a_reset_changes_a_loss_after_it(first, seed, monkeypatch):
    agent = make(VECTOR, DISCRETE, "behavior.return_rate=0")  # else the scale of returns joins all steps
    batch, other = make_batch(), make_batch(seed=seed)
    batch.is_first[0, first] = True
    before = unreduced(agent, batch, monkeypatch)

    def spliced(old: torch.Tensor, new: torch.Tensor, until: int) -> torch.Tensor:
        result = old.clone()
        result[0, :until] = new[0, :until]
        return result

    changed = Batch(
        observation={"x": spliced(batch.observation["x"], other.observation["x"], first)},
        prev_action=spliced(batch.prev_action, other.prev_action, first + 1),
        reward=spliced(batch.reward, other.reward, first),
        is_first=batch.is_first,
        is_last=spliced(batch.is_last, ~batch.is_last, first),
        is_terminal=spliced(batch.is_terminal, ~batch.is_last, first),
        start=other.start,
    )
    after = unreduced(agent, changed, monkeypatch)
    for name, loss in before.items():
        torch.testing.assert_close(after[name][0, first:], loss[0, first:], rtol=1e-5, atol=1e-6)
        if first:
            assert (after[name][0, :first] != loss[0, :first]).any() or name in ("dynamics", "representation"), name


# Acting ------------------------------------------------------------------------------------------------

NO = torch.zeros(3, dtype=torch.bool)


def observation_of(n: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))}


def memory_of(agent: Agent, n: int = 3, seed: int = 5) -> Memory:
    g = torch.Generator().manual_seed(seed)
    index = torch.randint(0, 4, (n, 3), generator=g)
    state = State(torch.randn(n, 16, generator=g), torch.nn.functional.one_hot(index, 4).float())
    return Memory(state, torch.randn(n, agent.action_spec.width, generator=g))


def act(agent: Agent, *args, **kwargs) -> Memory:
    """By the newest weights."""
    agent.acting.follow()
    return act_as_it_is(agent, *args, **kwargs)


def act_as_it_is(agent: Agent, *args, **kwargs) -> Memory:
    agent.acting.generator.manual_seed(7)
    return agent.act(*args, **kwargs)


def test_the_memory_before_the_first_step_is_zeros():
    memory = make(VECTOR, BOTH).start(3)
    assert memory.action.shape == (3, 7) and memory.state.deter.shape == (3, 16)
    assert not any(x.any() for x in (memory.action, *memory.state))


@pytest.mark.parametrize("action", [DISCRETE, BOTH], ids=["discrete", "both"])
def test_is_first_forgets_what_was_before(action):
    agent = make(VECTOR, action)
    is_first = torch.tensor([True, False, True])
    forgotten = act(agent, observation_of(), is_first, NO, memory_of(agent))
    blank = act(agent, observation_of(), NO, NO, agent.start(3))
    kept = act(agent, observation_of(), NO, NO, memory_of(agent))
    assert torch.equal(forgotten.state.deter[is_first], blank.state.deter[is_first])
    assert torch.equal(forgotten.action[is_first], blank.action[is_first])
    assert torch.equal(forgotten.state.deter[1], kept.state.deter[1])
    assert (kept.state.deter != blank.state.deter).any(-1).all()


def test_acting_remembers_the_previous_action():
    agent = make()
    memory = memory_of(agent)
    one = act(agent, observation_of(), NO, NO, memory)
    other = act(agent, observation_of(), NO, NO, memory._replace(action=memory.action.roll(1, -1)))
    assert (one.state.deter != other.state.deter).any(-1).all()


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("action", [DISCRETE, BOTH], ids=["discrete", "both"])
def test_at_is_last_the_action_is_zero_and_the_observation_is_seen(action, greedy):
    agent = make(VECTOR, action)
    is_last = torch.tensor([False, True, False])
    memory = act(agent, observation_of(), NO, is_last, memory_of(agent), greedy=greedy)
    plain = act(agent, observation_of(), NO, NO, memory_of(agent), greedy=greedy)
    assert not memory.action[1].any() and plain.action[1].any()
    assert torch.equal(memory.action[~is_last], plain.action[~is_last])
    assert torch.equal(memory.state.deter, plain.state.deter)


def biased_agent() -> Agent:
    agent = make()
    (head,) = agent.actor_critic.actor.heads[0]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0, math.log(2), 0, 0]))  # 1/5, 2/5, 1/5, 1/5
    return agent


def test_actions_are_sampled_unless_greedy_is_asked_for():
    agent, n = biased_agent(), 4000
    no = torch.zeros(n, dtype=torch.bool)
    sampled = act(agent, observation_of(n), no, no, agent.start(n)).action
    assert (sampled.sum(-1) == 1).all()
    expected = [0.99 * p + 0.0025 for p in (0.2, 0.4, 0.2, 0.2)]
    near(sampled.mean(0), expected, rtol=0, atol=0.03)
    greedy = act(agent, observation_of(n), no, no, agent.start(n), greedy=True).action
    assert (greedy == torch.tensor([0.0, 1, 0, 0])).all()


def test_greedy_continuous_actions_are_the_mean():
    agent = make(VECTOR, CONTINUOUS)
    mean_head, _ = agent.actor_critic.actor.heads[0]
    with torch.no_grad():
        mean_head.weight.zero_()
        mean_head.bias.copy_(torch.tensor([math.log(3) / 2, 0]))
    near(act(agent, observation_of(), NO, NO, agent.start(3), greedy=True).action, [[0.5, 0]] * 3)
    assert (act(agent, observation_of(), NO, NO, agent.start(3)).action != torch.tensor([0.5, 0])).all()


def test_successive_actions_use_fresh_noise():
    agent, n = biased_agent(), 50
    no = torch.zeros(n, dtype=torch.bool)
    first, second = (agent.act(observation_of(n), no, no, agent.start(n)) for _ in range(2))
    assert not torch.equal(first.action, second.action)
    assert not torch.equal(first.state.stoch, second.state.stoch)


@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS, BOTH], ids=["discrete", "continuous", "both"])
def test_acting_step_by_step_gives_the_posteriors_of_the_sequence(action):
    agent = make(MIXED, action)
    batch = make_batch(MIXED, action)
    is_first, is_last = torch.zeros(B, T, dtype=torch.bool), torch.zeros(B, T, dtype=torch.bool)
    is_first[0, 0] = is_last[1, 1] = is_first[1, 2] = True
    uniform = torch.rand(B, T, 3, generator=torch.Generator().manual_seed(2))
    memory = Memory(batch.start, batch.prev_action[:, 0])
    actions, states = [], []
    for t in range(T):
        agent.acting._uniform = lambda *shape, t=t: uniform[:, t]
        actions.append(memory.action)
        observation = {key: value[:, t] for key, value in batch.observation.items()}
        memory = agent.act(observation, is_first[:, t], is_last[:, t], memory)
        states.append(memory.state)
    batch = batch._replace(prev_action=torch.stack(actions, 1), is_first=is_first, is_last=is_last)
    posterior, _ = agent.world_model.observe(batch, uniform)
    for t, state in enumerate(states):
        near(state.deter, posterior.deter[:, t], rtol=1e-4, atol=1e-5)
        assert torch.equal(state.stoch, posterior.stoch[:, t])


def test_it_acts_by_the_weights_that_the_last_update_began_with():
    agent, twin, given = make(VECTOR, DISCRETE, *FAST), make(VECTOR, DISCRETE, *FAST), (observation_of(), NO, NO)
    memory = memory_of(agent)
    stale = agent.act(*given, memory)
    for _ in range(3):
        agent.update(make_batch())
    for _ in range(2):
        twin.update(make_batch())
    ours = act_as_it_is(agent, *given, memory)
    theirs = act(twin, *given, memory)
    assert torch.equal(ours.state.deter, theirs.state.deter) and torch.equal(ours.action, theirs.action)
    assert not torch.allclose(ours.state.deter, stale.state.deter)
    newest = act(agent, *given, memory)
    assert not torch.allclose(ours.state.deter, newest.state.deter, rtol=1e-6, atol=1e-7)


def test_what_acts_is_saved_with_what_learns():
    agent, twin, given = make(VECTOR, DISCRETE, *FAST), make(VECTOR, DISCRETE, *FAST), (observation_of(), NO, NO)
    for _ in range(3):
        agent.update(make_batch())
    state = copy.deepcopy(agent.state_dict())
    twin.load_state_dict(state)
    memory = memory_of(agent)
    for _ in range(2):  # the random numbers go on as well
        ours, theirs = agent.act(*given, memory), twin.act(*given, memory)
        assert torch.equal(ours.state.deter, theirs.state.deter) and torch.equal(ours.action, theirs.action)
    del state["acting"]  # as earlier versions saved it
    twin.load_state_dict(state)
    newest, theirs = act(agent, *given, memory), act_as_it_is(twin, *given, memory)
    assert torch.equal(newest.state.deter, theirs.state.deter)


def test_warming_up_leaves_no_trace():
    agent, batch = make(), make_batch()
    before, noise, acting = snapshot(agent), agent.generator.get_state(), copy.deepcopy(agent.acting.state_dict())
    agent.warm_up(batch, environments=2)
    assert torch.equal(agent.generator.get_state(), noise)
    torch.testing.assert_close(agent.acting.state_dict(), acting, rtol=0, atol=0)
    assert all(torch.equal(p, before[name]) for name, p in snapshot(agent).items())
    assert all(p.grad is None for p in agent.parameters)
    assert agent.optimizer.updates == 0 and agent.actor_critic.return_high == 0


def test_a_generator_of_another_device_is_left_alone():
    config = tiny.tiny_config()
    agent = tiny.tiny_agent(config, tiny.counting_vector(1))
    state = agent.state_dict() | {"generator": torch.zeros(16, dtype=torch.uint8)}  # as long as a GPU's
    before = agent.generator.get_state()
    agent.load_state_dict(state)
    assert torch.equal(agent.generator.get_state(), before)


def test_an_update_with_a_loss_that_is_not_finite_moves_nothing():
    config, agent, vector, replay, counters = tiny.tiny_run()
    train(config, agent, vector, replay, counters, [tiny.Silent()], tiny.Unsaved(), lambda: counters.rows > 20)
    batch, windows = replay.sample(config.replay.batch)
    before = copy.deepcopy(agent.state_dict())
    latents = replay.data["deter"].clone()
    batch.reward[0, 1] = math.nan
    batch.start.deter[1] = math.inf
    metrics, posterior = agent.update(batch)
    replay.refresh(windows, posterior)
    replay.settle()
    assert metrics["optimizer/skipped"] == 1
    after = agent.state_dict()
    for state in (before, after):  # what acts has caught up
        del state["generator"], state["acting"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert torch.isfinite(replay.data["deter"][:, : replay.count]).all()
    assert torch.isfinite(latents[:, : replay.count]).all()
    metrics, _ = agent.update(replay.sample(config.replay.batch)[0])
    assert metrics["optimizer/skipped"] == 0 and torch.isfinite(metrics["loss/total"])
