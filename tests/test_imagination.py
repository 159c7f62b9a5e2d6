"""Rollouts: where they start, who acts, what predicts, and that nothing is learned through them."""

import torch

from dreamer.actor_critic import Actor
from dreamer.config import ModelConfig
from dreamer.imagination import Imagination, Noise
from dreamer.rssm import RSSM, State
from dreamer.spaces import ActionPart, ActionSpec

H, N, D, S, K = 4, 6, 16, 3, 4
CONFIG = ModelConfig(deter=D, hidden=6, stoch=S, classes=K, blocks=8, units=8)
ACTION = ActionSpec((ActionPart("buttons", classes=(2, 3)), ActionPart("stick", size=2)))  # A = 7


def make() -> Imagination:
    torch.manual_seed(0)
    imagination = Imagination(RSSM(CONFIG, ACTION.width, 5, torch.float32), Actor(ACTION, D + S * K, 8))
    with torch.no_grad():
        for module in (imagination.rssm, imagination.actor):
            for p in module.parameters():
                p.add_(0.5 * torch.randn_like(p))
    return imagination


def make_start(seed: int = 0) -> State:
    g = torch.Generator().manual_seed(seed)
    index = torch.randint(0, K, (N, S), generator=g)
    return State(torch.randn(N, D, generator=g), torch.nn.functional.one_hot(index, K).float())


def make_noise(imagination: Imagination, seed: int = 1) -> Noise:
    g = torch.Generator().manual_seed(seed)
    return Noise(torch.rand(H, N, S, generator=g), imagination.actor.draw_noise((H + 1, N), g))


def state_of(feature: torch.Tensor) -> State:
    return State(feature[:, :D], feature[:, D:].unflatten(-1, (S, K)))


def test_a_rollout_has_h_plus_one_states_and_an_action_at_each():
    imagination = make()
    trajectory = imagination.rollout(make_start(), make_noise(imagination))
    assert trajectory.feature.shape == (H + 1, N, D + S * K)
    assert trajectory.action.shape == (H + 1, N, 7)


def test_state_0_is_where_it_started():
    imagination, start = make(), make_start()
    trajectory = imagination.rollout(start, make_noise(imagination))
    assert torch.equal(trajectory.feature[0], torch.cat([start.deter, start.stoch.flatten(1)], -1))


def test_every_action_is_sampled_at_the_state_it_is_stored_with():
    imagination = make()
    noise = make_noise(imagination)
    trajectory = imagination.rollout(make_start(), noise)
    for t in range(H + 1):
        expected = imagination.actor.sample(imagination.actor(trajectory.feature[t]), noise.action[t])
        torch.testing.assert_close(trajectory.action[t], expected)
    buttons = trajectory.action[..., :5]
    assert ((buttons == 0) | (buttons == 1)).all() and (buttons.sum(-1) == 2).all()


def test_every_state_follows_from_the_state_and_the_action_before_by_the_prior():
    imagination = make()
    rssm, noise = imagination.rssm, make_noise(imagination)
    trajectory = imagination.rollout(make_start(), noise)
    weights = rssm.recurrence()
    for t in range(H):
        before, after = state_of(trajectory.feature[t]), state_of(trajectory.feature[t + 1])
        expected = rssm.imagine_step(weights, before, trajectory.action[t], noise.prior[t])
        torch.testing.assert_close(after.deter, expected.deter)
        torch.testing.assert_close(after.stoch, expected.stoch)
        # The sample lies in the interval of the prior's mixed distribution that holds the uniform number.
        probs = 0.99 * torch.softmax(rssm.prior_logits(after.deter), -1) + 0.01 / K
        upper = (probs.cumsum(-1) * after.stoch).sum(-1)
        lower = upper - (probs * after.stoch).sum(-1)
        assert ((lower - 1e-6 <= noise.prior[t]) & (noise.prior[t] <= upper + 1e-6)).all()


def test_a_first_action_changes_the_second_state_and_not_the_first():
    imagination = make()
    noise = make_noise(imagination)
    before = imagination.rollout(make_start(), noise)
    changed = noise.action.clone()
    changed[1, :, 2:] += 1  # the normals of the second action
    after = imagination.rollout(make_start(), noise._replace(action=changed))
    assert torch.equal(before.feature[:2], after.feature[:2]) and torch.equal(before.action[0], after.action[0])
    assert (before.action[1] != after.action[1]).any(-1).all()
    assert (before.feature[2] != after.feature[2]).any(-1).all()


def test_rollouts_do_not_mix():
    imagination, start = make(), make_start()
    noise = make_noise(imagination)
    together = imagination.rollout(start, noise)
    alone = imagination.rollout(
        State(start.deter[2:3], start.stoch[2:3]), Noise(noise.prior[:, 2:3], noise.action[:, 2:3])
    )
    torch.testing.assert_close(together.feature[:, 2:3], alone.feature, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.action[:, 2:3], alone.action, rtol=1e-4, atol=1e-5)


def test_nothing_of_a_rollout_has_a_gradient():
    imagination, start = make(), make_start()
    start = State(start.deter.requires_grad_(), start.stoch.requires_grad_())
    trajectory = imagination.rollout(start, make_noise(imagination))
    assert not trajectory.feature.requires_grad and not trajectory.action.requires_grad


def test_the_same_noise_gives_the_same_rollout_and_other_noise_another():
    imagination = make()
    first, second, third = (imagination.rollout(make_start(), make_noise(imagination, seed)) for seed in (1, 1, 2))
    assert torch.equal(first.feature, second.feature) and torch.equal(first.action, second.action)
    assert not torch.equal(first.feature[1], third.feature[1])
