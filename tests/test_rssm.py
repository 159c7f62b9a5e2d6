"""The RSSM against a naive version, literals, and what a reset must forget."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer.config import ModelConfig
from dreamer.rssm import RSSM, State, limit_action

B, T, A, E = 2, 6, 3, 5
CONFIG = ModelConfig(deter=16, hidden=6, stoch=3, classes=4, blocks=8, depth=2, units=8)


def make(config: ModelConfig = CONFIG, dtype: torch.dtype = torch.float32) -> RSSM:
    """Every bias and scale has a value of its own."""
    torch.manual_seed(0)
    rssm = RSSM(config, A, E, dtype)
    with torch.no_grad():
        for p in rssm.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return rssm


def rand(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def onehots(seed: int, *shape: int, classes: int = 4) -> torch.Tensor:
    index = torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.one_hot(index, classes).float()


def near(actual, expected, rtol=1e-5, atol=1e-6) -> None:
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    expected = torch.as_tensor(expected, dtype=torch.float64).detach().expand(actual.shape)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def sequence() -> dict:
    return {
        "start": State(randn(0, B, 16), onehots(1, B, 3)),
        "tokens": randn(2, B, T, E),
        "prev_action": randn(3, B, T, A),
        "is_first": torch.zeros(B, T, dtype=torch.bool),
        "uniform": rand(4, B, T, 3),
    }


# A naive version, differentiable, in float64 -----------------------------------------------------------


def naive_norm_silu(x, scale):
    x = x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-4) * scale.double()
    return x / (1 + torch.exp(-x))


def naive_linear(linear, x):
    return x @ linear.weight.double().T + linear.bias.double()


def naive_layer(layer, x):
    return naive_norm_silu(naive_linear(layer.linear, x), layer.scale)


def naive_deter(rssm: RSSM, deter, stoch, action):
    """The deterministic step with the shared input repeated for every block."""
    action = action / action.abs().clamp(min=1).detach()
    shared = [naive_layer(rssm.deter_in, deter), naive_layer(rssm.stoch_in, stoch), naive_layer(rssm.action_in, action)]
    own = deter.chunk(8, -1)
    x = [torch.cat([own[i], *shared], -1) @ rssm.hidden.weight[i].double() for i in range(8)]
    x = naive_norm_silu(torch.cat(x, -1) + rssm.hidden.bias.double(), rssm.hidden_scale)
    bias = rssm.gates.bias.double().chunk(8)
    result = []
    for i, part in enumerate(x.chunk(8, -1)):
        r, c, u = (part @ rssm.gates.weight[i].double() + bias[i]).chunk(3, -1)
        c = torch.tanh(torch.sigmoid(r) * c)
        u = torch.sigmoid(u - 1)
        result.append(u * c + (1 - u) * own[i])
    return torch.cat(result, -1)


def naive_sample(logits, uniform):
    """Straight-through samples (..., S, K) of the mixed distribution by its cumulative intervals."""
    probs = 0.99 * torch.softmax(logits, -1) + 0.01 / logits.shape[-1]
    index = (probs.cumsum(-1) <= uniform.double().unsqueeze(-1)).sum(-1).clamp(max=logits.shape[-1] - 1)
    return torch.eye(logits.shape[-1], dtype=torch.float64)[index] + probs - probs.detach()


def naive_prior(rssm: RSSM, deter):
    x = naive_layer(rssm.prior[1], naive_layer(rssm.prior[0], deter))
    return naive_linear(rssm.prior_head, x).unflatten(-1, (3, 4))


def naive_sequence(rssm: RSSM, start: State, tokens, prev_action, is_first, uniform):
    deter, stoch = start.deter.double(), start.stoch.double()
    results = []
    for t in range(is_first.shape[1]):
        keep = 1 - is_first[:, t].double().unsqueeze(-1)
        action = keep * prev_action[:, t].double()
        deter = naive_deter(rssm, keep * deter, keep * stoch.flatten(1), action)
        x = naive_layer(rssm.posterior, torch.cat([deter, tokens[:, t].double()], -1))
        logits = naive_linear(rssm.posterior_head, x).unflatten(-1, (3, 4))
        stoch = naive_sample(logits, uniform[:, t])
        results.append((deter, stoch, logits))
    return [torch.stack(result, 1) for result in zip(*results)]


def with_resets() -> dict:
    given = sequence()
    given["is_first"][1, 3] = given["is_first"][0, 0] = True
    return given


def test_a_sequence_is_the_naive_step_repeated():
    rssm, given = make(), with_resets()
    states, logits = rssm.observe(**given)
    assert states.deter.shape == (B, T, 16) and states.stoch.shape == logits.shape == (B, T, 3, 4)
    deter, stoch, expected = naive_sequence(rssm, **given)
    near(states.deter, deter, rtol=1e-4, atol=1e-5)
    near(logits, expected, rtol=1e-4, atol=1e-4)
    near(states.stoch, stoch, atol=1e-5)


def loss_of(deter, stoch, logits, which: str):
    weights = [randn(20 + i, *x.shape).to(x.dtype) for i, x in enumerate((deter, stoch, logits))]
    terms = {name: (x * w) for name, x, w in zip(("deter", "stoch", "logits"), (deter, stoch, logits), weights)}
    if which == "all":
        return sum(term.sum() for term in terms.values())
    name, _, step = which.partition(" ")
    return (terms[name][:, int(step)] if step else terms[name]).sum()


@pytest.mark.parametrize("which", ["all", "deter", "stoch", "logits", "deter 0", "logits 2", "stoch 5"])
def test_the_gradients_of_a_sequence_are_those_of_the_naive_steps(which):
    rssm, given = make(), with_resets()
    given["start"] = State(given["start"].deter.requires_grad_(), given["start"].stoch)
    given["tokens"].requires_grad_()
    given["prev_action"].requires_grad_()
    wanted = {f"rssm.{name}": p for name, p in rssm.named_parameters()}
    wanted |= {"start": given["start"].deter, "tokens": given["tokens"], "prev_action": given["prev_action"]}
    states, logits = rssm.observe(**given)
    ours = torch.autograd.grad(loss_of(*states, logits, which), list(wanted.values()), allow_unused=True)
    naive = loss_of(*naive_sequence(rssm, **given), which)
    theirs = torch.autograd.grad(naive, list(wanted.values()), allow_unused=True)
    compared = 0
    for own, expected in zip(ours, theirs):
        own, expected = (torch.zeros(()) if x is None else x for x in (own, expected))
        size = expected.abs().max().item()
        near(own.expand_as(expected) if own.ndim == 0 else own, expected, rtol=1e-3, atol=1e-4 * size + 1e-7)
        compared += size > 0
    assert compared >= 10


def test_imagining_is_the_naive_step_and_a_sample_of_the_prior():
    rssm = make()
    deter, stoch, action, uniform = randn(0, 40, 16), onehots(1, 40, 3), 2 * randn(2, 40, A), rand(3, 40, 3)
    state = rssm.imagine_step(rssm.recurrence(), State(deter, stoch), action, uniform)
    expected = naive_deter(rssm, deter.double(), stoch.flatten(1).double(), action.double())
    near(state.deter, expected, rtol=1e-4, atol=1e-5)
    near(state.stoch, naive_sample(naive_prior(rssm, expected), uniform))


def test_prior_is_two_layers_and_logits_of_deter():
    rssm, deter = make(), randn(0, 7, 16)
    near(rssm.prior_logits(deter), naive_prior(rssm, deter.double()), rtol=1e-4, atol=1e-4)


def test_the_gates_lie_within_each_block_in_the_order_reset_candidate_update():
    rssm = make()
    own = 2  # units in each block
    gates = torch.zeros(8, 3, own)
    gates[:, 1] = math.log(3)  # reset 1/2, so the candidate is tanh(ln(3) / 2) = 1/2
    gates[:, 2] = torch.tensor([1.0, 1 + math.log(3)])  # the update gate subtracts 1: 1/2 and 3/4
    gates[5, 0] = 1000  # block 5: reset 1, the candidate is tanh(ln 3) = 0.8
    gates[6, 1] = 0  # block 6: the candidate is 0
    gates[7, 2] = -1000  # block 7: nothing is updated
    with torch.no_grad():
        rssm.gates.weight.zero_()
        rssm.gates.bias.copy_(gates.flatten())
    deter = torch.full((1, 16), 0.2)
    state = rssm.imagine_step(rssm.recurrence(), State(deter, onehots(0, 1, 3)), torch.zeros(1, A), rand(0, 1, 3))
    expected = np.full((8, own), [0.5 * 0.5 + 0.5 * 0.2, 0.75 * 0.5 + 0.25 * 0.2])
    expected[5] = [0.5 * 0.8 + 0.5 * 0.2, 0.75 * 0.8 + 0.25 * 0.2]
    expected[6] = [0.5 * 0.2, 0.25 * 0.2]
    expected[7] = 0.2
    near(state.deter[0], expected.flatten())


def test_fan_in_of_the_block_linear_counts_all_blocks_and_their_copies():
    torch.manual_seed(0)
    rssm = RSSM(ModelConfig(deter=512, hidden=16, stoch=4, classes=4, blocks=8), A, E, torch.float32)
    fan_in = 512 + 8 * 3 * 16
    assert rssm.hidden.weight.shape == (8, 512 // 8 + 3 * 16, 64)
    assert rssm.hidden.weight.std().item() == pytest.approx(math.sqrt(1 / fan_in), rel=0.02)
    assert rssm.gates.weight.std().item() == pytest.approx(math.sqrt(1 / 512), rel=0.02)
    assert (rssm.hidden.bias == 0).all() and (rssm.gates.bias == 0).all() and (rssm.hidden_scale == 1).all()


def test_the_initial_state_is_zeros():
    state = make().initial(2)
    assert state.deter.shape == (2, 16) and state.stoch.shape == (2, 3, 4)
    assert not state.deter.any() and not state.stoch.any()


def test_a_feature_is_deter_then_flat_stoch():
    deter, stoch = randn(0, 2, 5, 16), onehots(1, 2, 5, 3)
    near(make().feature(State(deter, stoch)), torch.cat([deter, stoch.reshape(2, 5, 12)], -1))


def test_actions_are_limited_to_one_by_a_divisor_without_a_gradient():
    action = torch.tensor([0.5, -3.0, 1.0, 2.0, -0.25], requires_grad=True)
    limited = limit_action(action)
    near(limited, [0.5, -1, 1, 1, -0.25])
    limited.sum().backward()
    near(action.grad, [1, 1 / 3, 1, 0.5, 1])


def test_the_posterior_samples_from_the_mixture():
    rssm, given = make(), sequence()
    with torch.no_grad():
        rssm.posterior_head.weight.zero_()
        rssm.posterior_head.bias.copy_(torch.tensor([1000.0, 0, 0, 0]).repeat(3))
    # Cumulative: 0.9925, 0.995, 0.9975, 1
    given["uniform"] = torch.tensor([0.9924, 0.9926, 0.996]).expand(B, T, 3)
    states, logits = rssm.observe(**given)
    assert (states.stoch.argmax(-1) == torch.tensor([0, 1, 2])).all()
    assert logits.max() == 1000  # handed out before the mixing
    with torch.no_grad():
        rssm.prior_head.weight.zero_()
        rssm.prior_head.bias.copy_(rssm.posterior_head.bias)
    state = rssm.imagine_step(rssm.recurrence(), given["start"], torch.zeros(B, A), given["uniform"][:, 0])
    assert (state.stoch.argmax(-1) == torch.tensor([0, 1, 2])).all()


def test_posterior_samples_carry_the_gradient_of_their_probabilities():
    rssm, given = make(), sequence()
    states, _ = rssm.observe(**given)
    assert set(states.stoch.detach().unique().tolist()) == {0, 1}
    (states.stoch[:, -1] * randn(9, B, 3, 4)).sum().backward()
    assert rssm.posterior_head.weight.grad.abs().sum() > 0
    assert rssm.gates.weight.grad.abs().sum() > 0


def test_a_sequence_in_two_pieces_is_the_sequence():
    rssm, given = make(), sequence()
    whole, logits = rssm.observe(**given)

    def piece(start: State, times: slice) -> tuple[State, torch.Tensor]:
        cut = {key: value[:, times] for key, value in given.items() if key != "start"}
        return rssm.observe(start, **cut)

    first, _ = piece(given["start"], slice(0, 2))
    second, rest = piece(State(first.deter[:, -1], first.stoch[:, -1]), slice(2, T))
    near(second.deter, whole.deter[:, 2:])
    near(rest, logits[:, 2:], rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, T - 1), st.integers(0, B - 1), st.integers(0, 2**16))
def test_nothing_before_a_reset_changes_anything_after_it(first, row, seed):
    rssm, given = make(), sequence()
    given["is_first"][row, first] = True
    states, logits = rssm.observe(**given)
    changed = {key: value.clone() for key, value in given.items() if key != "start"}
    changed["tokens"][row, :first] = 10 * randn(seed, first, E)
    changed["prev_action"][row, : first + 1] = 10 * randn(seed, first + 1, A)  # its own previous action too
    changed["uniform"][row, :first] = rand(seed, first, 3)
    start = State(given["start"].deter.clone(), given["start"].stoch.clone())
    start.deter[row], start.stoch[row] = randn(seed, 16), onehots(seed + 1, 3)
    others, other_logits = rssm.observe(start, **changed)
    assert torch.equal(others.deter[row, first:], states.deter[row, first:])
    assert torch.equal(others.stoch[row, first:], states.stoch[row, first:])
    assert torch.equal(other_logits[row, first:], logits[row, first:])
    # The other sequence of the batch is untouched.
    assert torch.equal(others.deter[1 - row], states.deter[1 - row])


def test_without_a_reset_state_and_previous_action_matter():
    rssm, given = make(), sequence()
    states, _ = rssm.observe(**given)
    given["prev_action"] = given["prev_action"].clone()
    given["prev_action"][0, 2] += 0.1
    others, _ = rssm.observe(**given)
    assert torch.equal(others.deter[0, :2], states.deter[0, :2])
    assert (others.deter[0, 2:] != states.deter[0, 2:]).any(-1).all()


def test_a_reset_is_the_initial_state_and_a_zero_action():
    rssm, given = make(), sequence()
    given["is_first"][:, 0] = True
    states, _ = rssm.observe(**given)
    given["is_first"][:, 0] = False
    given["start"] = rssm.initial(B)
    given["prev_action"] = given["prev_action"].clone()
    given["prev_action"][:, 0] = 0
    plain, _ = rssm.observe(**given)
    near(states.deter, plain.deter)


def test_no_gradient_crosses_a_reset():
    rssm, given = make(), sequence()
    given["is_first"][:, 3] = True
    given["tokens"].requires_grad_()
    given["prev_action"].requires_grad_()
    states, _ = rssm.observe(**given)
    (states.deter[:, 3:].sum() + (states.stoch[:, 3:] * randn(9, B, 3, 3, 4)).sum()).backward()
    assert not given["tokens"].grad[:, :3].any() and not given["prev_action"].grad[:, :4].any()
    assert given["tokens"].grad[:, 3].any() and given["prev_action"].grad[:, 4].any()


def test_products_in_bfloat16_leave_states_and_logits_in_float32():
    rssm, given = make(dtype=torch.bfloat16), sequence()
    states, logits = rssm.observe(**given | {"tokens": given["tokens"].bfloat16()})
    assert states.deter.dtype == states.stoch.dtype == logits.dtype == torch.float32
    assert rssm.feature(states).dtype == torch.bfloat16


# KL ----------------------------------------------------------------------------------------------------

PAIR = ModelConfig(deter=16, hidden=6, stoch=2, classes=2, blocks=8)


def with_prior(*logits: float) -> RSSM:
    """A prior that predicts the same logits (S * K) everywhere."""
    rssm = make(PAIR)
    with torch.no_grad():
        rssm.prior_head.weight.zero_()
        rssm.prior_head.bias.copy_(torch.tensor(logits))
    return rssm


def kl(p: float, q: float) -> float:
    """Between two coins."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_kl_is_between_mixtures_summed_over_latents_and_clamped_at_each_step():
    rssm = with_prior(0, 0, -1000, 0)  # mixed: 1/2 and 0.005
    ln3 = math.log(3)
    posterior = torch.tensor(
        [
            [
                [[ln3, 0.0], [1000.0, 0.0]],  # 0.7475 and 0.995: far from the prior
                [[0.0, 0.0], [-1000.0, 0.0]],  # the prior itself
                [[ln3, 0.0], [-1000.0, 0.0]],  # 0.1281 nats, below one
            ],
            [
                [[1000.0, 0.0], [-1000.0, 0.0]],  # 0.6617, below one
                [[1000.0, 0.0], [0.0, 0.0]],  # 0.6617 + 1.9585
                [[1000.0, 0.0], [-ln3, 0.0]],  # 0.6617 + 0.7765: each below one, the sum above
            ],
        ]
    )
    expected = [
        [kl(0.7475, 0.5) + kl(0.995, 0.005), 1, 1],
        [1, kl(0.995, 0.5) + kl(0.5, 0.005), kl(0.995, 0.5) + kl(0.2525, 0.005)],
    ]
    dynamics, representation, metrics = rssm.kl(randn(0, 2, 3, 16), posterior)
    near(dynamics, expected)
    near(representation, expected)
    unclamped = sum(sum(row) for row in expected) - 3 + kl(0.7475, 0.5) + kl(0.995, 0.5)
    near(metrics["kl"], unclamped / 6)


def test_both_kl_losses_are_from_posterior_to_prior():
    rssm = with_prior(1000, 0, 1000, 0)
    posterior = torch.zeros(1, 1, 2, 2)
    for loss in rssm.kl(randn(0, 1, 1, 16), posterior)[:2]:
        near(loss, 2 * kl(0.5, 0.995))


def kl_gradients(which: int, *, far: bool = True) -> tuple[torch.Tensor | None, ...]:
    """Of one KL loss, to the posterior's logits, the prior's bias and deter."""
    rssm = make(PAIR)
    deter = randn(0, 2, 3, 16).requires_grad_()
    posterior = ((20 if far else 0.0) * randn(1, 2, 3, 2, 2)).requires_grad_()
    if not far:
        with torch.no_grad():
            rssm.prior_head.weight.zero_()
            rssm.prior_head.bias.zero_()
    loss = rssm.kl(deter, posterior)[which]
    return torch.autograd.grad(loss.sum(), [posterior, rssm.prior_head.bias, deter], allow_unused=True)


def test_the_dynamics_loss_teaches_the_prior_only():
    posterior, prior, deter = kl_gradients(0)
    assert posterior is None
    assert prior.abs().sum() > 0 and deter.abs().sum() > 0


def test_the_representation_loss_teaches_the_posterior_only():
    posterior, prior, deter = kl_gradients(1)
    assert posterior.abs().sum() > 0
    assert prior is None and deter is None


def test_the_gradient_of_the_dynamics_loss_is_the_one_of_the_mixture():
    rssm = with_prior(0, math.log(3), 0, 0)
    posterior = torch.tensor([[[[1000.0, 0.0], [1000.0, 0.0]]]])
    dynamics, _, _ = rssm.kl(randn(0, 1, 1, 16), posterior)
    dynamics.sum().backward()

    def loss(shift: float) -> float:
        p = math.exp(shift) / (math.exp(shift) + 3)
        return kl(0.995, 0.99 * p + 0.005)

    near(rssm.prior_head.bias.grad[0], (loss(1e-5) - loss(-1e-5)) / 2e-5, rtol=1e-4)


@pytest.mark.parametrize("which", [0, 1])
def test_below_the_free_nats_nothing_is_taught(which):
    assert all(gradient is None or not gradient.any() for gradient in kl_gradients(which, far=False))
