"""Returns, their scale, the policy and the behaviour losses, worked out by hand or by a plain numpy version."""

import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer.actor_critic import Actor, ActorCritic, Policy, ReturnScale, lambda_return, quantile
from dreamer.config import BehaviorConfig
from dreamer.spaces import ActionPart, ActionSpec, action_spec

GAMMA, LAMBDA = 332 / 333, 0.95
LN2, LN4 = math.log(2), math.log(4)
F, U = 10, 8
DEFAULT = BehaviorConfig()
FOUR = ActionSpec((ActionPart("action", classes=(4,)),))
STICK = ActionSpec((ActionPart("action", size=2),))
# Flat: [one-hot of 2, one-hot of 3] [2 numbers] [one-hot of 4]
MIXED = ActionSpec((ActionPart("a", classes=(2, 3)), ActionPart("b", size=2), ActionPart("c", classes=(4,))))


def near(actual, expected, rtol=1e-5, atol=1e-6) -> None:
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    expected = torch.as_tensor(expected, dtype=torch.float64).detach().expand(actual.shape)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def make(config: BehaviorConfig = DEFAULT, action: ActionSpec = FOUR, *, fresh: bool = False) -> ActorCritic:
    torch.manual_seed(0)
    actor_critic = ActorCritic(config, action, F, U, GAMMA)
    if not fresh:
        with torch.no_grad():
            for p in actor_critic.parameters():
                p.add_(0.3 * torch.randn_like(p))
            for critic in (actor_critic.critic, actor_critic.slow_critic):  # values of a few units
                critic.out.bias.sub_(0.3 * torch.arange(-127, 128).abs())
    return actor_critic


def column(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32).unsqueeze(-1)


def say(linear, bias: list[float]) -> None:
    """Make an output layer give the same everywhere."""
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(torch.tensor(bias))


# Lambda return -----------------------------------------------------------------------------------------
# Times 1..3: rewards 1, 2, 4, values 8, 16, 32; discount 1/2, lambda 1/2 unless said otherwise.

REWARD, VALUE, HALF = column(1, 2, 4), column(8, 16, 32), column(0.5, 0.5, 0.5)


def test_lambda_return_literal():
    # 4 + 32/2; 2 + (16/2 + 20/2)/2; 1 + (8/2 + 11/2)/2
    near(lambda_return(REWARD, HALF, VALUE, 0.5), column(5.75, 11, 20))


def test_lambda_return_with_lambda_zero_and_one():
    near(lambda_return(REWARD, HALF, VALUE, 0.0), column(5, 10, 20))
    near(lambda_return(REWARD, HALF, VALUE, 1.0), column(7, 12, 20))


def test_nothing_flows_back_through_a_terminal():
    # Time 2 is terminal: its return is its reward; 1 + (8/2 + 2/2)/2
    near(lambda_return(REWARD, column(0.5, 0, 0.5), VALUE, HALF), column(3.5, 2, 20))


def test_a_time_limit_bootstraps_with_the_value_of_its_last_state():
    # Time 2 cuts the trace: 2 + 16/2; 1 + (8/2 + 10/2)/2
    near(lambda_return(REWARD, HALF, VALUE, column(0.5, 0, 0.5)), column(5.5, 10, 20))


def test_predicted_continues_discount_each_step_by_itself():
    # 4 + 32/4; 2 + 1 * (16/2 + 12/2); 1 + (8/2 + 16/2)/2
    near(lambda_return(REWARD, column(0.5, 1, 0.25), VALUE, 0.5), column(7, 16, 12))


def test_lambda_return_works_on_each_trajectory_by_itself():
    both = lambda_return(
        torch.cat([REWARD, REWARD], -1), torch.cat([HALF, column(0.5, 0, 0.5)], -1), torch.cat([VALUE, VALUE], -1), 0.5
    )
    near(both, torch.cat([column(5.75, 11, 20), column(3.5, 2, 20)], -1))


# Replayed returns --------------------------------------------------------------------------------------
# Steps 0..3 of one sequence; reward and bootstrap of step 0 must not matter.

STEPS = torch.tensor([[9.0, 1, 2, 4]]), torch.tensor([[7.0, 8, 16, 32]])


def flags(*steps: int) -> torch.Tensor:
    return torch.tensor([[t in steps for t in range(4)]])


def implied_return(loss: torch.Tensor, actor_critic: ActorCritic) -> float:
    """The return a cross-entropy was taken with, from its gradient `softmax - twohot` to a critic of equal logits."""
    (gradient,) = torch.autograd.grad(loss, [actor_critic.critic.out.bias], retain_graph=True)
    twohot = 1 / 255 - gradient.double()[tiny.BINS_TO_LOGITS]
    twohot[twohot.abs() < 1e-6] = 0
    steps = torch.arange(-127, 128, dtype=torch.float64) * 20 / 127
    return (twohot @ (steps.sign() * steps.abs().expm1())).item()


def replayed(is_last: torch.Tensor, is_terminal: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """Losses (T - 1) without the slow critic's part, and the returns they were taken with."""
    actor_critic = make(replace(DEFAULT, slow_regularizer=0.0), fresh=True)
    reward, bootstrap = STEPS
    losses = actor_critic.replay_losses(torch.randn(1, 4, F), reward, is_last, is_terminal, bootstrap)
    assert set(losses) == {"replay_critic"}
    loss = losses["replay_critic"]
    assert loss.shape == (1, 3)
    return loss[0], [implied_return(step, actor_critic) for step in loss[0]]


def test_replayed_returns_in_mid_episode():
    third = 4 + GAMMA * 32
    second = 2 + GAMMA * (0.05 * 16 + 0.95 * third)
    first = 1 + GAMMA * (0.05 * 8 + 0.95 * second)
    assert third == pytest.approx(35.903904) and second == pytest.approx(36.803878)
    loss, returns = replayed(flags(), flags())
    near(loss, math.log(255))
    near(returns, [first, second, third], rtol=1e-4)


def test_a_replayed_terminal_ends_the_return():
    loss, returns = replayed(flags(2), flags(2))
    near(returns[:2], [1 + GAMMA * (0.05 * 8 + 0.95 * 2), 2], rtol=1e-4)
    near(loss, [math.log(255), math.log(255), 0])  # no return at the last step of an episode


def test_a_replayed_time_limit_bootstraps_with_the_imagined_return():
    loss, returns = replayed(flags(2), flags())
    second = 2 + GAMMA * 16
    near(returns[:2], [1 + GAMMA * (0.05 * 8 + 0.95 * second), second], rtol=1e-4)
    near(loss, [math.log(255), math.log(255), 0])


def test_an_end_at_the_last_step_of_the_sequence():
    _, returns = replayed(flags(3), flags(3))
    near(returns[2], 4, rtol=1e-4)
    _, returns = replayed(flags(3), flags())
    near(returns[2], 4 + GAMMA * 32, rtol=1e-4)


def test_the_replayed_loss_holds_the_critic_to_its_slow_copy_too():
    actor_critic = make(fresh=True)
    bias = torch.zeros(255)
    bias[127] = LN2  # 2/256 for the value 0, else 1/256
    say(actor_critic.critic.out, tiny.placed(bias).tolist())
    reward = torch.tensor([[0.0, 1e12, 0, 0]])
    zero = torch.zeros(1, 4)
    losses = actor_critic.replay_losses(torch.randn(1, 4, F), reward, flags(1), flags(1), zero)["replay_critic"]
    # The slow critic says 0: ln 128. The return is beyond the last bin, then nothing (the last step), then 0.
    near(losses, [[math.log(256) + math.log(128), 0, 2 * math.log(128)]])


# Return scale ------------------------------------------------------------------------------------------


def test_two_updates_of_the_return_scale_from_zero():
    scale = ReturnScale(torch.zeros(()), torch.zeros(()))
    scale = scale.updated(torch.arange(101.0).flip(0).reshape(1, 101), DEFAULT)  # percentiles 5 and 95
    near([scale.low, scale.high], [0.05, 0.95])
    assert scale.divisor(DEFAULT) == 1.0  # 0.9
    scale = scale.updated(2 * torch.arange(101.0), DEFAULT)  # percentiles 10 and 190
    near([scale.low, scale.high], [0.99 * 0.05 + 0.1, 0.99 * 0.95 + 1.9])
    near(scale.divisor(DEFAULT), 2.8405 - 0.1495)


def test_percentiles_between_two_returns_are_interpolated():
    scale = ReturnScale(torch.zeros(()), torch.zeros(())).updated(torch.tensor([[3.0, 1], [0, 2], [4, -1]]), DEFAULT)
    near([scale.low, scale.high], [0.01 * -0.75, 0.01 * 3.75])


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), st.floats(0, 1))
def test_quantiles_are_those_of_numpy(values, level):
    values = np.sort(np.float32(values))
    expected = np.quantile(values.astype(float), level)
    near(quantile(torch.from_numpy(values), level), expected, atol=1e-6 * abs(values).max() + 1e-12)


def test_the_scale_is_a_difference_and_never_below_one():
    near(ReturnScale(torch.tensor(-100.0), torch.tensor(-90.0)).divisor(DEFAULT), 10)
    near(ReturnScale(torch.tensor(7.0), torch.tensor(7.5)).divisor(DEFAULT), 1)


# Actor -------------------------------------------------------------------------------------------------


def test_a_discrete_policy_has_one_percent_of_uniform():
    actor = make(action=FOUR).actor
    say(actor.heads[0][0], [1000, 0, 0, 0])
    policy = actor(torch.randn(2, 3, F))
    near(policy[0].probs, torch.tensor([0.9925, 0.0025, 0.0025, 0.0025]).expand(2, 3, 4))
    action = torch.eye(4)[torch.tensor([[0, 1, 2], [3, 0, 0]])]
    rare, common = math.log(0.0025), math.log(0.9925)
    near(actor.log_prob(policy, action), [[common, rare, rare], [rare, common, common]])
    near(actor.entropy(policy), torch.full((2, 3), -0.9925 * common - 3 * 0.0025 * rare))


def test_a_continuous_policy_has_a_tanh_mean_and_a_bounded_deviation():
    actor = make(action=STICK).actor
    say(actor.heads[0][0], [math.log(3) / 2, 0])  # means 1/2 and 0
    say(actor.heads[0][1], [-2, math.log(3) - 2])  # deviations 0.55 and 0.775
    policy = actor(torch.randn(1, F))
    near(policy[0].mean, [[0.5, 0]])
    near(policy[0].std, [[0.55, 0.775]])
    near(actor.sample(policy, torch.tensor([[2.0, -1.0]])), [[1.6, -0.775]])  # not clipped
    log_prob = -0.5 * 4 - 0.5 * 1 - math.log(0.55 * 0.775) - math.log(2 * math.pi)
    near(actor.log_prob(policy, torch.tensor([[1.6, -0.775]])), [log_prob])
    near(actor.entropy(policy), [math.log(0.55 * 0.775) + math.log(2 * math.pi * math.e)])
    near(actor.mode(policy), [[0.5, 0]])


def mixed_policy() -> tuple[Actor, Policy]:
    """Probabilities near (1/4, 3/4), (1/2, 1/4, 1/4) and (1/8, 1/8, 1/2, 1/4); means 0, 1/2, deviations 0.55."""
    actor = make(action=MIXED).actor
    say(actor.heads[0][0], [0, math.log(3), LN2, 0, 0])
    say(actor.heads[1][0], [0, math.log(3) / 2])
    say(actor.heads[1][1], [-2, -2])
    say(actor.heads[2][0], [0, 0, LN4, LN2])
    return actor, actor(torch.randn(3, F))


def mix(probability: float, classes: int) -> float:
    return 0.99 * probability + 0.01 / classes


def test_a_mixed_action_is_sampled_part_by_part():
    actor, policy = mixed_policy()
    assert MIXED.width == 11 and MIXED.categoricals == 3 and MIXED.continuous == 2
    # Uniform numbers for the three categoricals, then the normals.
    noise = torch.tensor([[0.1, 0.1, 0.3, 0, 0], [0.3, 0.6, 0.7, 1, -1], [0.9, 0.9, 0.9, -2, 2]])
    expected = [
        [1, 0, 1, 0, 0, 0.0, 0.5, 0, 0, 1, 0],
        [0, 1, 0, 1, 0, 0.55, -0.05, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, -1.1, 1.6, 0, 0, 0, 1],
    ]
    near(actor.sample(policy, noise), expected)
    near(actor.mode(policy), [[0, 1, 1, 0, 0, 0, 0.5, 0, 0, 1, 0]] * 3)


def test_log_prob_and_entropy_of_a_mixed_action_are_sums_over_its_parts():
    actor, policy = mixed_policy()
    action = torch.tensor([[1.0, 0, 0, 1, 0, 0, 0.5, 0, 0, 0, 1]] * 2 + [[0.0, 1, 1, 0, 0, 0.55, 0.5, 1, 0, 0, 0]])
    normal = -2 * math.log(0.55) - math.log(2 * math.pi)
    first = math.log(mix(1 / 4, 2)) + math.log(mix(1 / 4, 3)) + normal + math.log(mix(1 / 4, 4))
    third = math.log(mix(3 / 4, 2)) + math.log(mix(1 / 2, 3)) + normal - 0.5 + math.log(mix(1 / 8, 4))
    near(actor.log_prob(policy, action), [first, first, third])
    parts = [
        [mix(p, len(ps)) for p in ps] for ps in ([1 / 4, 3 / 4], [1 / 2, 1 / 4, 1 / 4], [1 / 8, 1 / 8, 1 / 2, 1 / 4])
    ]
    entropy = -sum(p * math.log(p) for part in parts for p in part)
    near(actor.entropy(policy), [entropy + 2 * math.log(0.55) + math.log(2 * math.pi * math.e)] * 3)


def test_samples_follow_the_policy():
    actor, policy = mixed_policy()
    policy = [type(part)(*(x[:1].expand(20_000, -1) for x in part)) for part in policy]
    sample = actor.sample(policy, actor.draw_noise((20_000,), torch.Generator().manual_seed(0)))
    expected = [1 / 4, 3 / 4, 1 / 2, 1 / 4, 1 / 4, 0, 0.5, 1 / 8, 1 / 8, 1 / 2, 1 / 4]
    near(sample.mean(0), expected, rtol=0, atol=0.02)
    near(sample[:, 5:7].std(0), [0.55, 0.55], rtol=0, atol=0.02)
    # The parts are drawn independently of each other.
    near(torch.corrcoef(sample[:, [0, 2, 5, 6, 9]].T), torch.eye(5), rtol=0, atol=0.03)


def test_noise_is_uniform_for_categoricals_and_normal_for_the_rest():
    noise = make(action=MIXED).actor.draw_noise((4000, 2), torch.Generator().manual_seed(0))
    assert noise.shape == (4000, 2, 5)
    uniform, normal = noise[..., :3], noise[..., 3:]
    assert uniform.min() >= 0 and uniform.max() < 1
    near(uniform.mean((0, 1)), 0.5, atol=0.02)
    near(normal.mean((0, 1)), 0, atol=0.05)
    near(normal.std((0, 1)), 1, atol=0.05)


def test_the_flat_action_holds_the_keys_in_sorted_order_and_goes_back_to_the_environment():
    space = gymnasium.spaces.Dict(
        {
            "c": gymnasium.spaces.Discrete(4),
            "b": gymnasium.spaces.Box(-1, 1, (2,)),
            "a": gymnasium.spaces.MultiDiscrete([2, 3]),
        }
    )
    assert action_spec(space) == MIXED
    flat = np.array([[0, 1, 0, 0, 1, 0.25, -3, 0, 0, 1, 0], [1, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0]], dtype=np.float32)
    parts = MIXED.to_environment(flat)
    assert parts["a"].tolist() == [[1, 2], [0, 0]]
    assert parts["b"].tolist() == [[0.25, -3], [0, 1]]
    assert parts["c"].tolist() == [2, 0]


def test_initial_scale_of_the_actors_outputs_is_a_hundredth():
    torch.manual_seed(0)
    wide = ActionSpec((ActionPart("a", classes=(200,)), ActionPart("b", size=200)))
    actor = Actor(wide, inputs=40, units=300)
    for linear in (actor.heads[0][0], actor.heads[1][0], actor.heads[1][1]):
        assert linear.weight.std().item() == pytest.approx(0.01 * math.sqrt(1 / 300), rel=0.02)
        assert (linear.bias == 0).all()
    assert [layer.linear.weight.shape[1] for layer in actor.mlp] == [40, 300, 300]
    assert actor.mlp[1].linear.weight.std().item() == pytest.approx(math.sqrt(1 / 300), rel=0.02)


# Critic ------------------------------------------------------------------------------------------------


def test_a_fresh_critic_says_exactly_zero_and_its_slow_copy_the_same():
    actor_critic = make(fresh=True)
    logits, value = actor_critic.evaluate(10 * torch.randn(20, 3, F))
    assert logits.shape == (20, 3, 255) and value.shape == (20, 3)
    assert (value == 0.0).all()
    assert len(actor_critic.critic.mlp) == 3
    online, slow = actor_critic.critic.state_dict(), actor_critic.slow_critic.state_dict()
    assert all(torch.equal(online[key], slow[key]) for key in online)
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(online.values(), slow.values()))


def test_the_slow_critic_moves_by_two_percent():
    actor_critic = make()
    online = {key: value.clone() for key, value in actor_critic.critic.state_dict().items()}
    slow = {key: value.clone() for key, value in actor_critic.slow_critic.state_dict().items()}
    assert any(not torch.equal(online[key], slow[key]) for key in online)
    actor_critic.update_slow_critic(torch.tensor(True))
    for key, value in actor_critic.slow_critic.state_dict().items():
        near(value, 0.02 * online[key].double() + 0.98 * slow[key].double())
    assert all(torch.equal(actor_critic.critic.state_dict()[key], value) for key, value in online.items())


# Imagined losses ---------------------------------------------------------------------------------------


def imagine(horizon: int, n: int, action: ActionSpec = FOUR, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    actor = make(action=action).actor
    feature = torch.randn(horizon + 1, n, F, generator=g)
    with torch.no_grad():
        chosen = actor.sample(actor(feature), actor.draw_noise((horizon + 1, n), g))
    return {
        "feature": feature,
        "action": chosen,
        "reward": 3 * torch.randn(horizon + 1, n, generator=g),
        "continuation": torch.rand(horizon + 1, n, generator=g),
    }


def hand_made() -> dict[str, torch.Tensor]:
    """Two steps of one rollout; the rewards at 0 must not matter."""
    return imagine(2, 1) | {"reward": column(5, 1, 2), "continuation": column(0.5, 0.5, 0.8)}


def test_imagined_losses_literal():
    actor_critic = make(fresh=True)  # values 0
    say(actor_critic.actor.heads[0][0], [0, 0, 0, 0])  # every action -ln 4, entropy ln 4
    losses, returns, scale, metrics = actor_critic.imagined_losses(**hand_made())
    # ret_1 = 2; ret_0 = 1 + 0.5 * 0.95 * 2; weights 0.5 and 0.25: the continue of state 0 counts, the last does not.
    near(returns, column(1.95, 2))
    actor = 0.5 * (LN4 * 1.95 - 3e-4 * LN4) + 0.25 * (LN4 * 2 - 3e-4 * LN4)
    near(losses["actor"], [actor / 2])
    near(losses["critic"], [(0.5 + 0.25) * 2 * math.log(255) / 2])
    near([scale.low, scale.high], [0.01 * (1.95 + 0.05 * 0.05), 0.01 * (1.95 + 0.95 * 0.05)])
    near(metrics["weight"], 0.375)
    assert actor_critic.return_high == 0  # kept by the caller
    actor_critic.keep_scale(scale, torch.tensor(True))
    near([actor_critic.return_low, actor_critic.return_high], [scale.low, scale.high])


def test_the_critic_learns_the_imagined_returns():
    actor_critic = make(replace(DEFAULT, slow_regularizer=0.0), fresh=True)
    losses, _, _, _ = actor_critic.imagined_losses(**hand_made())
    # Mean over two steps, each with its weight; equal logits pull with 1/255 towards each bin, which cancels out.
    (gradient,) = torch.autograd.grad(losses["critic"][0], [actor_critic.critic.out.bias])
    twohot = 0.375 / 255 - gradient.double()[tiny.BINS_TO_LOGITS]
    twohot[twohot.abs() < 1e-6] = 0
    steps = torch.arange(-127, 128, dtype=torch.float64) * 20 / 127
    near(twohot @ (steps.sign() * steps.abs().expm1()), (0.5 * 1.95 + 0.25 * 2) / 2, rtol=1e-4)


def test_the_return_scale_divides_the_advantage_and_subtracts_nothing():
    config = replace(DEFAULT, entropy=0.0, return_rate=0.0)
    losses = []
    for low, high in ((0.0, 1.0), (50.0, 60.0), (0.0, 0.5)):
        actor_critic = make(config)
        actor_critic.keep_scale(ReturnScale(torch.tensor(low), torch.tensor(high)), torch.tensor(True))
        losses.append(actor_critic.imagined_losses(**imagine(3, 5))[0]["actor"])
    near(losses[1], losses[0] / 10)
    near(losses[2], losses[0])


def test_the_return_scale_is_updated_before_it_is_used():
    config = replace(DEFAULT, entropy=0.0)
    given = imagine(3, 40) | {"continuation": torch.zeros(4, 40)}
    given["continuation"][0] = 1  # only the first step counts, and a return is a single reward
    given["reward"][1:] = torch.linspace(-5000, 5000, 120).reshape(3, 40)  # percentiles -4500 and 4500
    losses = []
    for rate in (0.01, 0.0):
        actor_critic = make(replace(config, return_rate=rate))
        losses.append(actor_critic.imagined_losses(**given)[0]["actor"])
    near(losses[0] * 90, losses[1], rtol=1e-4, atol=1e-3)


def naive_imagined(actor_critic: ActorCritic, given: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Actor and critic loss (N,) in numpy; only the networks' policy are taken from the code."""
    with torch.no_grad():
        logits = actor_critic.critic(given["feature"])[..., tiny.BINS_TO_LOGITS].double().numpy()
        slow_logits = actor_critic.slow_critic(given["feature"])[..., tiny.BINS_TO_LOGITS].double().numpy()
        raw = actor_critic.actor.heads[0][0](actor_critic.actor.mlp(given["feature"])).double().numpy()
    reward, con = given["reward"].double().numpy(), given["continuation"].double().numpy()
    bins = np.arange(-127, 128) * 20 / 127
    bins = np.sign(bins) * np.expm1(np.abs(bins))

    def softmax(x):
        x = np.exp(x - x.max(-1, keepdims=True))
        return x / x.sum(-1, keepdims=True)

    def cross_entropy(logits, target):
        above = min(max(int((bins <= target).sum()), 1), 254)
        share = min(max((target - bins[above - 1]) / (bins[above] - bins[above - 1]), 0), 1)
        log_probs = np.log(softmax(logits))
        return -(1 - share) * log_probs[above - 1] - share * log_probs[above]

    value, slow = softmax(logits) @ bins, softmax(slow_logits) @ bins
    probs = 0.99 * softmax(raw) + 0.01 / 4
    steps, n = reward.shape[0] - 1, reward.shape[1]
    returns = np.zeros((steps, n))
    for i in range(n):
        ret = value[steps, i]
        for t in reversed(range(steps)):
            ret = reward[t + 1, i] + con[t + 1, i] * (0.05 * value[t + 1, i] + 0.95 * ret)
            returns[t, i] = ret
    scale = max(1.0, 0.01 * (np.percentile(returns, 95) - np.percentile(returns, 5)))
    actor, critic = np.zeros(n), np.zeros(n)
    for i in range(n):
        weight = 1.0
        for t in range(steps):
            weight *= con[t, i]
            p = probs[t, i]
            log_prob = np.log(p[int(given["action"][t, i].argmax())])
            advantage = (returns[t, i] - value[t, i]) / scale
            actor[i] -= weight * (log_prob * advantage - 3e-4 * (p * np.log(p)).sum()) / steps
            targets = (returns[t, i], slow[t, i])
            critic[i] += weight * sum(cross_entropy(logits[t, i], target) for target in targets) / steps
    return actor, critic


def test_imagined_losses_equal_a_plain_version():
    actor_critic, given = make(), imagine(4, 6)
    # A critic with values of a few hundred, its slow copy with others: the return scale is above one.
    bias = torch.full((255,), -8.0)
    bias[165:172] = 3.0
    say_bias(actor_critic.critic.out, tiny.placed(bias))
    say_bias(actor_critic.slow_critic.out, tiny.placed(bias.roll(-12)))
    losses, _, scale, metrics = actor_critic.imagined_losses(**given)
    assert metrics["return_scale"] > 1 and losses["actor"].shape == losses["critic"].shape == (6,)
    actor, critic = naive_imagined(actor_critic, given)
    near(losses["actor"], actor, rtol=1e-3, atol=1e-3)
    near(losses["critic"], critic, rtol=1e-3, atol=1e-3)


def say_bias(linear, bias: torch.Tensor) -> None:
    with torch.no_grad():
        linear.bias.copy_(bias)


@pytest.mark.parametrize("action", [FOUR, STICK, MIXED])
def test_each_imagined_loss_teaches_its_own_network_only(action):
    for name, own, others in (
        ("actor", "actor", ("critic", "slow_critic")),
        ("critic", "critic", ("actor", "slow_critic")),
    ):
        actor_critic = make(action=action)
        losses, returns, _, _ = actor_critic.imagined_losses(**imagine(3, 5, action))
        assert not returns.requires_grad
        losses[name].sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in getattr(actor_critic, own).parameters())
        for other in others:
            assert all(p.grad is None for p in getattr(actor_critic, other).parameters())


def test_the_actor_learns_by_reinforce_at_the_given_action():
    """The gradient of the log-probability times a constant, not one through the sample or the advantage."""
    actor_critic, given = make(replace(DEFAULT, entropy=0.0), STICK), imagine(1, 1, STICK)
    given["continuation"] = torch.ones(2, 1)
    losses, returns, _, _ = actor_critic.imagined_losses(**given)
    bias = actor_critic.actor.heads[0][0].bias
    (gradient,) = torch.autograd.grad(losses["actor"][0], [bias])
    with torch.no_grad():
        mean, std = actor_critic.actor(given["feature"][0])[0]
        value = actor_critic.evaluate(given["feature"][0])[1]
        # d log p / d mean = (a - mean) / std^2, d tanh(m) / d m = 1 - tanh(m)^2
        expected = -(returns[0] - value) * (given["action"][0] - mean) / std**2 * (1 - mean**2)
    near(gradient, expected[0], rtol=1e-4)


def test_the_entropy_bonus_makes_a_policy_more_random():
    actor_critic, given = make(fresh=True), hand_made() | {"reward": torch.zeros(3, 1)}
    say(actor_critic.actor.heads[0][0], [2, 0, 0, 0])
    actor_critic.imagined_losses(**given)[0]["actor"].sum().backward()
    gradient = actor_critic.actor.heads[0][0].bias.grad
    assert gradient[0] > 0 and (gradient[1:] < 0).all()  # a step downhill takes from the first, gives to the others


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 3), st.integers(0, 2**16))
def test_after_a_predicted_end_nothing_is_learned(end, seed):
    actor_critic, given = make(replace(DEFAULT, return_rate=0.0)), imagine(4, 3, seed=seed)
    given["continuation"][end, 0] = 0
    before, returns, _, _ = actor_critic.imagined_losses(**given)
    changed = given | {"reward": given["reward"].clone(), "continuation": given["continuation"].clone()}
    changed["reward"][end + 1 :, 0] += 0.5
    changed["continuation"][end + 1 :, 0] = 0.3
    after, others, _, _ = actor_critic.imagined_losses(**changed)
    near(after["critic"], before["critic"])
    near(after["actor"], before["actor"])
    near(others[:end, 0], returns[:end, 0])
    if end == 0:
        assert before["actor"][0] == 0 and before["critic"][0] == 0
