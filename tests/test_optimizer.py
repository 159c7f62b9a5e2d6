"""AGC and LaProp against literal steps and an independent scalar computation."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from dreamer.config import OptimizerConfig
from dreamer.optimizer import LaProp

SOUND = torch.tensor(True)
QUICK = OptimizerConfig(learning_rate=0.1, warmup=2)  # rates 0, 0.05, 0.1, 0.1, ...


def run(values: list[list[float]], gradients: list[list[list[float]]], config: OptimizerConfig) -> list[nn.Parameter]:
    """Parameters after one update for each entry of `gradients`: [update][parameter][entry]."""
    parameters = [nn.Parameter(torch.tensor(value)) for value in values]
    optimizer = LaProp(parameters, config)
    for update in gradients:
        for parameter, gradient in zip(parameters, update):
            parameter.grad = torch.tensor(gradient)
        optimizer.step(SOUND)
    return parameters


def plain(values: list[float], gradients: list[list[float]], config: OptimizerConfig) -> list[float]:
    """The rule for one tensor in Python floats, entry by entry."""
    p, v, m = list(values), [0.0] * len(values), [0.0] * len(values)
    for n, gradient in enumerate(gradients):
        limit = config.clip * max(config.min_norm, math.sqrt(sum(x * x for x in p)))
        factor = max(1.0, math.sqrt(sum(x * x for x in gradient)) / limit)
        rate = config.learning_rate * min(1.0, n / config.warmup)
        for i, raw in enumerate(gradient):
            g = raw / factor
            v[i] = config.beta2 * v[i] + (1 - config.beta2) * g * g
            scaled = g / (math.sqrt(v[i] / (1 - config.beta2 ** (n + 1))) + config.epsilon)
            m[i] = config.beta1 * m[i] + (1 - config.beta1) * scaled
            p[i] -= rate * m[i] / (1 - config.beta1 ** (n + 1))
    return p


def clipped(value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient that passes the clipping: the first second moment is 0.001 of its square."""
    parameter = nn.Parameter(value.clone())
    optimizer = LaProp([parameter], OptimizerConfig())
    parameter.grad = gradient.clone()
    optimizer.step(SOUND)
    return (optimizer.state_dict()["scale"][0] / 0.001).sqrt() * gradient.sign()


def test_the_published_settings():
    assert OptimizerConfig() == OptimizerConfig(
        learning_rate=4e-5, warmup=1000, clip=0.3, min_norm=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-20
    )


def test_a_constant_gradient_moves_by_the_learning_rate():
    # Debiased, the scaled gradient and its momentum are exactly 1: only the rate 0, 0.05, 0.1, 0.1 remains.
    for updates, expected in enumerate([1.0, 1.0, 0.95, 0.85, 0.75]):
        (p,) = run([[1.0]], [[[0.1]]] * updates, QUICK)
        assert p.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("without", ["beta1", "beta2"])
def test_without_one_of_the_averages(without):
    config = replace(QUICK, **{without: 0.0})
    gradients = [[[0.1]], [[-0.2]], [[0.3]]]
    (p,) = run([[1.0]], gradients, config)
    assert p.item() == pytest.approx(plain([1.0], [g[0] for g in gradients], config)[0], abs=1e-6)


def test_three_literal_steps_with_a_changing_gradient():
    # update 0: g 0.1, v/debias 0.01, scaled 1, m 0.1, rate 0
    # update 1: g -0.2, v 4.999e-5, debiased by 0.001999: 0.0250075, scaled -1.264718,
    #           m 0.09 - 0.1264718 = -0.0364718, debiased by 0.19: -0.191957, rate 0.05
    (p,) = run([[1.0]], [[[0.1]], [[-0.2]]], QUICK)
    assert p.item() == pytest.approx(1 + 0.05 * 0.191957, abs=1e-6)
    # update 2: g 0.3, below the limit 0.3 * 1.0095979 = 0.30288; v 4.994001e-5 + 9e-5 = 1.3994e-4,
    #           debiased by 0.002997001: 0.0466934, scaled 1.388331, m -0.03282462 + 0.1388331 = 0.1060085,
    #           debiased by 0.271: 0.391175, rate 0.1
    (p,) = run([[1.0]], [[[0.1]], [[-0.2]], [[0.3]]], QUICK)
    assert p.item() == pytest.approx(1.0095979 - 0.1 * 0.391175, abs=1e-6)


def test_many_steps_equal_a_scalar_computation():
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(3, generator=generator).tolist(), [0.0, 0.0], torch.randn(1, generator=generator).tolist()]
    gradients = [
        [
            (torch.randn(len(v), generator=generator) * 10 ** torch.randn((), generator=generator)).tolist()
            for v in values
        ]
        for _ in range(30)
    ]
    config = OptimizerConfig(learning_rate=0.02, warmup=10)
    for i, p in enumerate(run(values, gradients, config)):
        expected = plain(values[i], [update[i] for update in gradients], config)
        torch.testing.assert_close(p.detach(), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_a_gradient_above_the_limit_is_clipped_to_it():
    # ||p|| = 5, limit 1.5; ||g|| = 3
    gradient = torch.tensor([2.4, -1.8])
    torch.testing.assert_close(clipped(torch.tensor([3.0, 4.0]), gradient), gradient / 2)


def test_a_gradient_below_the_limit_is_untouched():
    gradient = torch.tensor([1.0, -1.0])  # norm 1.41
    torch.testing.assert_close(clipped(torch.tensor([3.0, 4.0]), gradient), gradient)


def test_a_tensor_of_zeros_is_clipped_by_the_minimal_norm():
    # limit 0.3 * 1e-3
    torch.testing.assert_close(clipped(torch.zeros(2), torch.tensor([3e-4, -4e-4])), torch.tensor([1.8e-4, -2.4e-4]))
    torch.testing.assert_close(clipped(torch.zeros(2), torch.tensor([1e-4, -2e-4])), torch.tensor([1e-4, -2e-4]))


def test_clipping_is_by_the_whole_tensor_not_its_rows():
    # ||p|| = 5, limit 1.5. By rows the limits would be 0.9 and 1.2.
    value = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    gradient = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    torch.testing.assert_close(clipped(value, gradient), gradient / 2)
    below = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(clipped(value, below), below)


def test_clipping_one_tensor_leaves_the_others():
    a, b = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))
    optimizer = LaProp([a, b], OptimizerConfig())
    a.grad, b.grad = torch.tensor([30.0]), torch.tensor([0.2])
    metrics = optimizer.step(SOUND)
    scales = optimizer.state_dict()["scale"]
    assert scales[0].item() == pytest.approx(0.001 * 0.3**2)
    assert scales[1].item() == pytest.approx(0.001 * 0.2**2)
    # The metric is the norm over everything, before clipping.
    assert metrics["gradient_norm"].item() == pytest.approx(math.hypot(30, 0.2))
    assert metrics["parameter_norm"].item() == pytest.approx(math.sqrt(2))


def test_the_first_update_moves_nothing():
    (p,) = run([[0.3, -1.7]], [[[5.0, -1e-6]]], OptimizerConfig())
    assert p.tolist() == torch.tensor([0.3, -1.7]).tolist()


@pytest.mark.parametrize("update, rate", [(0, 0.0), (1, 4e-8), (500, 2e-5), (1000, 4e-5), (5000, 4e-5)])
def test_the_learning_rate_warms_up_over_a_thousand_updates(update, rate):
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = LaProp([parameter], OptimizerConfig())
    optimizer.updates.fill_(update)
    parameter.grad = torch.tensor([0.1])
    assert optimizer.step(SOUND)["learning_rate"].item() == pytest.approx(rate, rel=1e-6)
    assert optimizer.updates.item() == update + 1


def test_epsilon_is_added_outside_the_root():
    # 0.1 / (sqrt(0.01) + 0.1) = 1/2; inside the root it would be 0.30
    config = OptimizerConfig(learning_rate=0.1, warmup=1, epsilon=0.1)
    (p,) = run([[1.0]], [[[0.1]], [[0.1]]], config)
    assert p.item() == pytest.approx(1 - 0.1 * 0.5, abs=1e-6)


def test_a_tiny_gradient_still_makes_a_full_step():
    (p,) = run([[1.0]], [[[1e-12]], [[1e-12]]], QUICK)
    assert p.item() == pytest.approx(0.95, abs=1e-5)


def test_without_a_gradient_nothing_decays():
    (p,) = run([[2.0, -3.0]], [[[0.0, 0.0]]] * 5, QUICK)
    assert p.tolist() == [2.0, -3.0]


def test_a_parameter_that_no_loss_reaches_is_an_error():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    a.grad = torch.ones(1)
    with pytest.raises(AssertionError):
        LaProp([a, b], QUICK).step(SOUND)


def test_a_loaded_state_goes_on_as_if_nothing_had_happened():
    gradients = [[[0.1, -0.2]], [[0.3, 0.1]], [[-0.1, 0.2]], [[0.2, 0.2]]]
    (expected,) = run([[1.0, -2.0]], gradients, QUICK)
    first = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = LaProp([first], QUICK)
    for (gradient,) in gradients[:2]:
        first.grad = torch.tensor(gradient)
        optimizer.step(SOUND)
    second = nn.Parameter(first.detach().clone())
    resumed = LaProp([second], QUICK)
    resumed.load_state_dict(optimizer.state_dict())
    for (gradient,) in gradients[2:]:
        second.grad = torch.tensor(gradient)
        resumed.step(SOUND)
    assert torch.equal(second, expected)


def test_an_update_that_is_not_sound_changes_nothing():
    a, b = (torch.nn.Parameter(torch.tensor(values)) for values in ([1.0, 2.0], [3.0]))
    optimizer = LaProp([a, b], QUICK)

    def gradients(first, second):
        a.grad, b.grad = torch.tensor(first), torch.tensor(second)
        return optimizer.is_sound(torch.tensor(1.0))

    for _ in range(3):
        assert optimizer.step(gradients([0.1, 0.2], [0.3]))["skipped"] == 0
    before = copy.deepcopy((a.data, b.data, optimizer.state_dict()))
    for bad in (math.nan, math.inf):
        sound = gradients([0.1, 0.2], [bad])
        assert not sound and optimizer.step(sound)["skipped"] == 1
    gradients([0.1, 0.2], [0.3])
    assert not optimizer.is_sound(torch.tensor(math.nan))
    torch.testing.assert_close((a.data, b.data, optimizer.state_dict()), before, rtol=0, atol=0)
    assert optimizer.step(gradients([0.1, 0.2], [0.3]))["skipped"] == 0 and not torch.equal(a.data, before[0])
