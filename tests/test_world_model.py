"""What the world model is taught: literal losses, which step they belong to, and where their gradients go."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer.config import ModelConfig
from dreamer.replay import Batch
from dreamer.rssm import State
from dreamer.spaces import ActionPart, ActionSpec, ObservationSpec
from dreamer.world_model import WorldModel

B, T = 2, 5
GAMMA = 332 / 333
LN3 = math.log(3)
CONFIG = ModelConfig(deter=16, hidden=6, stoch=3, classes=4, blocks=8, depth=2, units=8)
VECTOR = ObservationSpec({}, {"x": 3}, {})
MIXED = ObservationSpec({"image": (48, 48, 1)}, {"x": 3}, {"y": (2, 3)})
ACTION = ActionSpec((ActionPart("action", classes=(3,)),))
MODEL_LOSSES = {"reward", "continuation", "dynamics", "representation"}


def make(
    spec: ObservationSpec = VECTOR,
    *,
    config: ModelConfig = CONFIG,
    fresh: bool = False,
    dtype: torch.dtype = torch.float32,
) -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(config, spec, ACTION, GAMMA, dtype)
    if not fresh:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p))
    return model


def make_batch(spec: ObservationSpec = VECTOR, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    observation = {
        "image": torch.randint(0, 256, (B, T, 48, 48, 1), dtype=torch.uint8, generator=g),
        "x": torch.randn(B, T, 3, generator=g),
        "y": torch.randint(0, 2, (B, T, 2), generator=g),
    }
    index = torch.randint(0, 4, (B, 3), generator=g)
    return Batch(
        observation={key: observation[key] for key in spec.keys},
        prev_action=torch.nn.functional.one_hot(torch.randint(0, 3, (B, T), generator=g), 3).float(),
        reward=torch.randn(B, T, generator=g),
        is_first=torch.zeros(B, T, dtype=torch.bool),
        is_last=torch.zeros(B, T, dtype=torch.bool),
        is_terminal=torch.zeros(B, T, dtype=torch.bool),
        start=State(torch.randn(B, 16, generator=g), torch.nn.functional.one_hot(index, 4).float()),
    )


def model_losses(model: WorldModel, batch: Batch) -> dict[str, torch.Tensor]:
    uniform = torch.rand(B, T, 3, generator=torch.Generator().manual_seed(5))
    posterior, logits = model.observe(batch, uniform)
    return model.losses(model.rssm.feature(posterior), posterior.deter, logits, batch)[0]


def flags(*steps: tuple[int, int]) -> torch.Tensor:
    result = torch.zeros(B, T, dtype=torch.bool)
    for step in steps:
        result[step] = True
    return result


def near(actual, expected, rtol=1e-5, atol=1e-6) -> None:
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    expected = torch.as_tensor(expected, dtype=torch.float64).detach().expand(actual.shape)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def biased(head, bias: torch.Tensor) -> None:
    """Make a head say the same everywhere."""
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.copy_(bias)


def test_there_is_one_loss_for_each_key_and_head_at_every_step():
    losses = model_losses(make(MIXED), make_batch(MIXED))
    assert set(losses) == {"decoder/image", "decoder/x", "decoder/y"} | MODEL_LOSSES
    for loss in losses.values():
        assert loss.shape == (B, T) and loss.dtype == torch.float32 and loss.isfinite().all()


def test_losses_and_states_are_float32_when_products_are_bfloat16():
    model, batch = make(MIXED, dtype=torch.bfloat16), make_batch(MIXED)
    losses = model_losses(model, batch)
    assert all(loss.dtype == torch.float32 and loss.isfinite().all() for loss in losses.values())
    outcome = model.outcome(torch.zeros(2, model.feature_width, dtype=torch.bfloat16))
    assert all(prediction.dtype == torch.float32 for prediction in outcome)


def test_the_continue_target_is_gamma_and_zero_at_a_terminal():
    model, batch = make(), make_batch()
    biased(model.continuation, torch.tensor([LN3]))  # predicts 3/4
    batch = batch._replace(is_terminal=flags((0, 2)), is_last=flags((0, 2), (1, 3)), is_first=flags((0, 3), (1, 4)))
    expected = torch.full((B, T), -GAMMA * math.log(0.75) - (1 - GAMMA) * math.log(0.25))
    expected[0, 2] = -math.log(0.25)
    near(model_losses(model, batch)["continuation"], expected)


def test_the_gradient_of_the_continue_loss_shows_its_target_exactly():
    model, batch = make(), make_batch()
    biased(model.continuation, torch.zeros(1))
    batch = batch._replace(is_terminal=flags((1, 4)), is_last=flags((1, 4), (0, 1)))
    losses = model_losses(model, batch)["continuation"]
    for step, target in {(0, 0): GAMMA, (0, 1): GAMMA, (1, 4): 0.0}.items():
        (gradient,) = torch.autograd.grad(losses[step], [model.continuation.out.bias], retain_graph=True)
        near(0.5 - gradient, [target])  # sigmoid - target


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.booleans(), min_size=B * T, max_size=B * T))
def test_a_time_limit_changes_no_loss_of_the_world_model(pattern):
    model, batch = make(), make_batch()
    plain = model_losses(model, batch)
    limited = model_losses(model, batch._replace(is_last=torch.tensor(pattern).reshape(B, T)))
    for name, loss in plain.items():
        assert torch.equal(limited[name], loss), name


def test_a_fresh_model_predicts_a_reward_of_exactly_zero():
    model = make(MIXED, fresh=True)
    reward, _ = model.outcome(10 * torch.randn(50, model.feature_width))
    assert reward.shape == (50,) and (reward == 0.0).all()
    near(model_losses(model, make_batch(MIXED))["reward"], math.log(255))


def test_the_reward_loss_belongs_to_the_step_the_reward_came_with():
    model, batch = make(), make_batch()
    bias = torch.zeros(255)
    bias[127] = math.log(2)  # reward 0 has probability 2/256, every other 1/256
    biased(model.reward, tiny.placed(bias))
    reward = torch.zeros(B, T)
    reward[0, 0], reward[1, 3], reward[0, 4] = 5.0, -2.0, 1e12
    expected = torch.full((B, T), math.log(128))
    expected[0, 0] = expected[1, 3] = expected[0, 4] = math.log(256)
    near(model_losses(model, batch._replace(reward=reward))["reward"], expected)


def test_the_first_reward_of_an_episode_is_learned_too():
    model, batch = make(), make_batch()
    batch = batch._replace(is_first=flags((0, 2)))
    changed = batch.reward.clone()
    changed[0, 2] += 3
    before, after = model_losses(model, batch)["reward"], model_losses(model, batch._replace(reward=changed))["reward"]
    assert (before != after).nonzero().tolist() == [[0, 2]]


def test_outcome_is_the_mean_reward_and_the_probability_to_continue():
    model = make()
    bias = torch.full((255,), -1e4)
    bias[130] = 1e4
    biased(model.reward, tiny.placed(bias))
    biased(model.continuation, torch.tensor([LN3]))
    reward, continuation = model.outcome(torch.randn(4, 6, model.feature_width))
    near(reward, torch.full((4, 6), math.expm1(3 * 20 / 127)))
    near(continuation, torch.full((4, 6), 0.75))


def test_each_observation_is_decoded_at_its_own_step():
    model, batch = make(), make_batch()
    states = torch.randn(B, T, 16), torch.randn(B, T, 3, 4)
    feature = torch.randn(B, T, model.feature_width)
    before = model.losses(feature, *states, batch)[0]["decoder/x"]
    x = batch.observation["x"].clone()
    x[1, 2] += 1
    after = model.losses(feature, *states, batch._replace(observation={"x": x}))[0]["decoder/x"]
    assert (before != after).nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("name", ["reward", "continuation", "decoder/x", "representation"])
def test_losses_teach_the_whole_way_to_the_encoder(name):
    model = make(config=replace(CONFIG, free_nats=0.0))  # such a small model is below the free nats
    model_losses(model, make_batch())[name].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.encoder.parameters())
    assert model.rssm.gates.weight.grad.any()


def test_initial_scales_of_the_heads():
    torch.manual_seed(0)
    wide = ModelConfig(deter=256, hidden=100, stoch=10, classes=10, blocks=8, depth=2, units=120)
    model = WorldModel(wide, MIXED, ACTION, GAMMA, torch.float32)
    assert (model.reward.out.weight == 0).all() and (model.reward.out.bias == 0).all()
    ones = {
        model.continuation.out: 120,
        model.rssm.prior_head: 100,
        model.rssm.posterior_head: 100,
        model.decoder.from_stoch[1]: 240,
        model.reward.mlp[0].linear: 356,
        model.rssm.posterior.linear: 256 + model.encoder.width,
    }
    for linear, fan_in in ones.items():
        tolerance = 4 / math.sqrt(2 * linear.weight.numel())
        assert linear.weight.std().item() == pytest.approx(math.sqrt(1 / fan_in), rel=max(0.03, tolerance))
        assert (linear.bias == 0).all()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, T - 1), st.integers(0, 2**16))
def test_nothing_before_a_reset_changes_a_loss_after_it(first, seed):
    model, batch = make(), make_batch()._replace(is_first=flags((0, first)))
    other = make_batch(seed=seed + 1)

    def spliced(old: torch.Tensor, new: torch.Tensor, until: int) -> torch.Tensor:
        result = old.clone()
        result[0, :until] = new[0, :until]
        return result

    changed = batch._replace(
        observation={"x": spliced(batch.observation["x"], other.observation["x"], first)},
        prev_action=spliced(batch.prev_action, 5 * other.prev_action - 1, first + 1),
        reward=spliced(batch.reward, other.reward, first),
        is_terminal=spliced(batch.is_terminal, ~batch.is_terminal, first),
        start=other.start,
    )
    before, after = model_losses(model, batch), model_losses(model, changed)
    for name, loss in before.items():
        assert torch.equal(loss[0, first:], after[name][0, first:]), name
    if first:
        assert (before["reward"][0, :first] != after["reward"][0, :first]).all()
