"""Distributions against numbers worked out by hand."""

import math

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer import distributions as dist

LN2, LN3 = math.log(2), math.log(3)
JUST_BELOW_ONE = 1 - 2**-24  # the largest float32 under 1
BIN1 = math.expm1(20 / 127)  # the first bin above zero: 127 equal steps from symlog 0 to symlog 20


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def near(actual, expected, rtol=1e-5, atol=1e-6) -> None:
    actual = torch.as_tensor(actual, dtype=torch.float64)
    expected = torch.as_tensor(expected, dtype=torch.float64).expand(actual.shape)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


# Symlog ------------------------------------------------------------------------------------------------


def test_symlog_literals():
    near(dist.symlog(tensor(math.e - 1, 0, 1 - math.e**2, 1)), [1, 0, -2, LN2])


def test_symexp_literals():
    near(dist.symexp(tensor(LN3, 0, -LN3, 1)), [2, 0, -2, math.e - 1])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(-1e6, 1e6, width=32))
def test_symexp_inverts_symlog(x):
    near(dist.symexp(dist.symlog(tensor(x))), [x], rtol=1e-5)


# Categoricals ------------------------------------------------------------------------------------------


def test_one_percent_of_uniform_is_mixed_in():
    near(dist.mixed_probs(tensor(0, LN3)), [0.99 * 0.25 + 0.005, 0.99 * 0.75 + 0.005])
    near(dist.mixed_probs(tensor(0, 0, 0, 1000)), [0.0025, 0.0025, 0.0025, 0.9925])


def test_mixed_probabilities_are_float32_whatever_the_logits():
    logits = torch.randn(3, 5).bfloat16()
    probs = dist.mixed_probs(logits)
    assert probs.dtype == torch.float32
    softmax = np.exp(logits.double().numpy())
    softmax /= softmax.sum(-1, keepdims=True)
    near(probs, 0.99 * softmax + 0.01 / 5, atol=1e-7)


@pytest.mark.parametrize(
    "uniform, expected",
    [
        (0.0, 0),
        (0.25 - 2**-26, 0),
        (0.25, 1),  # the interval of a class is closed below and open above
        (0.75 - 2**-24, 1),
        (0.75, 2),
        (JUST_BELOW_ONE, 2),
    ],
)
def test_the_class_is_the_one_whose_interval_holds_the_uniform_number(uniform, expected):
    sample = dist.sample_onehot(tensor(0.25, 0.5, 0.25), torch.tensor(uniform))
    assert sample.tolist() == [float(i == expected) for i in range(3)]


def test_a_class_of_probability_zero_is_never_drawn():
    assert dist.sample_onehot(tensor(0, 0.5, 0, 0.5), torch.tensor(0.0)).tolist() == [0, 1, 0, 0]
    assert dist.sample_onehot(tensor(0, 0.5, 0, 0.5), torch.tensor(0.5)).tolist() == [0, 0, 0, 1]


def test_rounding_in_the_sum_of_probabilities_still_gives_a_class():
    short = tensor(0.2, 0.3, 0.4999)
    assert dist.sample_onehot(short, torch.tensor(JUST_BELOW_ONE)).tolist() == [0, 0, 1]


def test_frequencies_over_many_uniforms_are_the_probabilities():
    probs = tensor(0.05, 0.2, 0.45, 0.3)
    uniform = (torch.arange(2000) + 0.5) / 2000
    counts = dist.sample_onehot(probs.expand(2000, 4), uniform).sum(0)
    near(counts, [100, 400, 900, 600], atol=1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.floats(-30, 30, width=32), min_size=7, max_size=7), min_size=1, max_size=4),
    st.floats(0, JUST_BELOW_ONE, width=32),
)
def test_a_sample_has_exactly_one_one(logits, uniform):
    probs = dist.mixed_probs(torch.tensor(logits))
    sample = dist.sample_onehot(probs, torch.full((len(logits),), uniform))
    assert sample.shape == probs.shape and sample.dtype == torch.float32
    assert ((sample == 0) | (sample == 1)).all()
    assert (sample.sum(-1) == 1).all()


def test_each_latent_uses_its_own_uniform_number():
    probs = tensor(0.5, 0.5).expand(2, 3, 2)
    uniform = torch.tensor([[0.1, 0.9, 0.1], [0.9, 0.9, 0.1]])
    assert dist.sample_onehot(probs, uniform).argmax(-1).tolist() == [[0, 1, 0], [1, 1, 0]]


def test_straight_through_is_the_sample_forward_and_the_probabilities_backward():
    logits = tensor(0, LN3).requires_grad_()
    probs = dist.mixed_probs(logits)
    sample = dist.sample_onehot(probs, torch.tensor(0.1))
    assert not sample.requires_grad
    through = dist.straight_through(sample, probs)
    assert through.tolist() == [1, 0]
    (through * tensor(1, 3)).sum().backward()
    # softmax (1/4, 3/4), mean weight 2.5: 0.99 * p_i * (w_i - 2.5)
    near(logits.grad, [-0.37125, 0.37125])


def test_straight_through_leaves_ones_and_zeros_exact():
    probs = dist.mixed_probs(torch.randn(200, 7, generator=torch.Generator().manual_seed(0)))
    sample = dist.sample_onehot(probs, torch.full((200,), 0.4))
    assert torch.equal(dist.straight_through(sample, probs), sample)


def test_kl_literal_and_its_direction():
    p, q = tensor(0.5, 0.5), tensor(0.25, 0.75)
    near(dist.categorical_kl(p, q), 0.5 * math.log(4 / 3))
    near(dist.categorical_kl(q, p), 0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    near(dist.categorical_kl(p, p), 0)


def test_categorical_entropy_literal():
    near(dist.categorical_entropy(torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]])), [1.5 * LN2, LN3])


# Bounded normal ----------------------------------------------------------------------------------------


def test_bounded_normal_literals():
    mean, std = dist.bounded_normal(tensor(0, LN3 / 2, 100, -100), tensor(-2, LN3 - 2, 100, -100))
    near(mean, [0, 0.5, 1, -1])
    near(std, [0.9 * 0.5 + 0.1, 0.9 * 0.75 + 0.1, 1.0, 0.1])
    near(dist.bounded_normal(tensor(0), tensor(0))[1], [0.9 / (1 + math.exp(-2)) + 0.1])


def test_a_normal_sample_is_not_clipped():
    near(dist.sample_normal(tensor(0.9, -0.9), tensor(0.5, 1), tensor(3, -2)), [2.4, -2.9])


def test_normal_log_prob_sums_over_the_dimensions():
    log_prob = dist.normal_log_prob(tensor(1, 0), tensor(0, 0), tensor(1, 0.5))
    near(log_prob, -0.5 + LN2 - math.log(2 * math.pi))


def test_normal_entropy_sums_over_the_dimensions():
    near(dist.normal_entropy(tensor(1, 0.5)), math.log(2 * math.pi * math.e) - LN2)


# Two-hot -----------------------------------------------------------------------------------------------


def test_mirrored_bins_lie_at_the_same_places_of_two_slices():
    assert sorted(tiny.BINS_TO_LOGITS.tolist()) == list(range(255))
    bins = tiny.placed(dist.twohot_bins())
    assert torch.equal(bins[:127], -bins[127:254]) and bins[254] == 0
    assert (bins[:127].diff() > 0).all()


def spread(target: float) -> torch.Tensor:
    """The two-hot distribution of a target: with equal logits the loss has the gradient `1/255 - twohot`."""
    logits = torch.zeros(255, requires_grad=True)
    dist.twohot_loss(logits, torch.tensor(target), dist.twohot_bins()).backward()
    result = 1 / 255 - logits.grad[tiny.BINS_TO_LOGITS]
    return torch.where(result.abs() < 1e-6, 0, result)


def test_bins_are_symexp_of_equal_steps_in_raw_space():
    bins = dist.twohot_bins()
    assert bins.shape == (255,) and bins.dtype == torch.float32
    assert bins[127] == 0
    assert torch.equal(bins, -bins.flip(0))
    near(bins[127:], [math.expm1(20 * i / 127) for i in range(128)], rtol=1e-5)
    near(bins[-1], 485165194.4, rtol=1e-6)
    near(bins[0], -485165194.4, rtol=1e-6)
    assert (bins.diff() > 0).all()


@pytest.mark.parametrize("index", [0, 1, 100, 126, 127, 128, 200, 253, 254])
def test_a_target_on_a_bin_is_that_bin_alone(index):
    target = spread(dist.twohot_bins()[index].item())
    near(target, [float(i == index) for i in range(255)], atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_target_between_bins_is_split_linearly_in_raw_space(sign):
    target = spread(sign * 0.1)
    near(target[127], 1 - 0.1 / BIN1)
    near(target[127 + sign], 0.1 / BIN1)
    assert (target != 0).sum() == 2


def test_a_target_between_wide_bins_is_split_linearly_in_raw_space():
    low, high = math.expm1(20 * 100 / 127), math.expm1(20 * 101 / 127)
    target = spread(0.75 * low + 0.25 * high)
    near(target[[227, 228]], [0.75, 0.25], atol=1e-4)
    assert (target != 0).sum() == 2


@pytest.mark.parametrize("target, index", [(1e12, 254), (5e8, 254), (math.inf, 254), (-1e12, 0), (-math.inf, 0)])
def test_a_target_beyond_the_last_bin_goes_to_it(target, index):
    near(spread(target), [float(i == index) for i in range(255)], atol=1e-6)


def test_twohot_loss_literals():
    bins = dist.twohot_bins()
    near(dist.twohot_loss(torch.zeros(2, 255), tensor(0, 1e3), bins), math.log(255))
    logits = torch.zeros(3, 255)
    logits[:, 128] = LN2  # then all 255 probabilities are 1/256 but for one of 2/256
    loss = dist.twohot_loss(tiny.placed(logits), tensor(BIN1, 0, BIN1 / 4), bins)
    near(loss, [math.log(128), math.log(256), 0.25 * math.log(128) + 0.75 * math.log(256)])


def test_twohot_loss_is_float32_and_sends_no_gradient_to_the_target():
    target = tensor(1.5).requires_grad_()
    logits = torch.zeros(1, 255, dtype=torch.bfloat16, requires_grad=True)
    loss = dist.twohot_loss(logits, target, dist.twohot_bins())
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert target.grad is None and logits.grad is not None


@pytest.mark.parametrize("constant", [0.0, -0.0, 3.7, -250.0])
def test_the_mean_of_uniform_logits_is_exactly_zero(constant):
    mean = dist.twohot_mean(torch.full((3, 4, 255), constant), dist.twohot_bins())
    assert mean.shape == (3, 4) and mean.dtype == torch.float32
    assert (mean == 0.0).all()


@pytest.mark.parametrize("index", [0, 60, 126, 127, 128, 200, 254])
def test_the_mean_of_one_bin_is_that_bin(index):
    logits = torch.full((255,), -1e4)
    logits[index] = 1e4
    near(dist.twohot_mean(tiny.placed(logits), dist.twohot_bins()), dist.twohot_bins()[index])


def test_the_mean_is_the_sum_of_probability_times_bin():
    logits = torch.randn(6, 255, generator=torch.Generator().manual_seed(1))
    probs = np.exp(logits.double().numpy())
    probs /= probs.sum(-1, keepdims=True)
    steps = np.arange(-127, 128) * 20 / 127
    expected = probs @ (np.sign(steps) * np.expm1(np.abs(steps)))
    near(dist.twohot_mean(tiny.placed(logits), dist.twohot_bins()), expected, rtol=1e-4)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(-1e5, 1e5, width=32))
def test_the_mean_of_a_two_hot_target_is_the_target(x):
    mean = spread(x).double() @ dist.twohot_bins().double()
    near(mean, x, rtol=1e-4, atol=1e-4)


# Bernoulli ---------------------------------------------------------------------------------------------


def test_bernoulli_loss_takes_soft_targets():
    loss = dist.bernoulli_loss(tensor(LN3, LN3, LN3, 0), tensor(1, 0, 0.5, 0.3))
    near(loss, [-math.log(0.75), -math.log(0.25), -0.5 * math.log(0.75) - 0.5 * math.log(0.25), LN2])
