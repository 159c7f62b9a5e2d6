"""Actor, critic and what they learn from imagined and replayed trajectories (paper eq. 6 to 8)."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import distributions as dist
from .config import BehaviorConfig
from .networks import MLP, Head, Linear
from .spaces import ActionSpec


class Categorical(NamedTuple):
    """One choice among K."""

    probs: Tensor  # (..., K)


class Normal(NamedTuple):
    """n independent continuous numbers."""

    mean: Tensor  # (..., n)
    std: Tensor  # (..., n)


Policy = list[Categorical | Normal]  # the parts of an action, in order


class Actor(nn.Module):
    """The policy: features (..., F) -> one distribution for each part of the action.

    Each key of the action space has its own output layers: logits for one or several categoricals, or a mean and a
    standard deviation. A flat action (..., A) holds the keys in sorted order.
    """

    OUTSCALE = 0.01

    def __init__(self, spec: ActionSpec, inputs: int, units: int):
        super().__init__()
        self.spec = spec
        self.mlp = MLP(inputs, units, layers=3)
        self.heads = nn.ModuleList(
            nn.ModuleList(Linear(units, part.width, self.OUTSCALE) for _ in range(1 if part.classes else 2))
            for part in spec.parts
        )

    def forward(self, feature: Tensor) -> Policy:
        """Distributions, float32: one for each categorical and one for each continuous key."""
        x = self.mlp(feature)
        policy: Policy = []
        for part, heads in zip(self.spec.parts, self.heads.children()):
            outputs = [head(x).float() for head in heads.children()]
            if part.classes:
                policy.extend(Categorical(dist.mixed_probs(logits)) for logits in outputs[0].split(part.classes, -1))
            else:
                policy.append(Normal(*dist.bounded_normal(*outputs)))
        return policy

    def draw_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Random numbers for actions of a shape: (*shape, W), a uniform for each categorical, then the normals."""
        device = generator.device
        return torch.cat(
            [
                torch.rand(*shape, self.spec.categoricals, generator=generator, device=device),
                torch.randn(*shape, self.spec.continuous, generator=generator, device=device),
            ],
            -1,
        )

    def sample(self, policy: Policy, noise: Tensor) -> Tensor:
        """A flat action (..., A), float32, for noise (..., W)."""
        actions, uniform, normal = [], 0, self.spec.categoricals
        for part in policy:
            if isinstance(part, Categorical):
                actions.append(dist.sample_onehot(part.probs, noise[..., uniform]))
                uniform += 1
            else:
                width = part.mean.shape[-1]
                actions.append(dist.sample_normal(part.mean, part.std, noise[..., normal : normal + width]))
                normal += width
        return torch.cat(actions, -1)

    def mode(self, policy: Policy) -> Tensor:
        """The flat action (..., A) of highest probability."""
        actions = []
        for part in policy:
            if isinstance(part, Categorical):
                classes = torch.arange(part.probs.shape[-1], device=part.probs.device)
                actions.append((classes == part.probs.argmax(-1, keepdim=True)).float())
            else:
                actions.append(part.mean)
        return torch.cat(actions, -1)

    def log_prob(self, policy: Policy, action: Tensor) -> Tensor:
        """Log-probability (...) of flat actions (..., A), summed over all parts."""
        terms, start = [], 0
        for part in policy:
            width = part[0].shape[-1]
            chosen = action[..., start : start + width]
            start += width
            if isinstance(part, Categorical):
                terms.append((torch.log(part.probs) * chosen).sum(-1))
            else:
                terms.append(dist.normal_log_prob(chosen, part.mean, part.std))
        return torch.stack(terms).sum(0)

    def entropy(self, policy: Policy) -> Tensor:
        """Entropy (...) in nats, summed over all parts."""
        return torch.stack(
            [
                dist.categorical_entropy(part.probs) if isinstance(part, Categorical) else dist.normal_entropy(part.std)
                for part in policy
            ]
        ).sum(0)


def lambda_return(reward: Tensor, discount: Tensor, value: Tensor, trace: Tensor | float) -> Tensor:
    """Bootstrapped lambda returns (paper eq. 7), time first:

        ret[t] = reward[t+1] + discount[t+1] * ((1 - trace[t+1]) * value[t+1] + trace[t+1] * ret[t+1])
        ret[H] = value[H]

    Args:
        reward, discount, value: (H, ...), for times 1..H.
        trace: lambda, a number or (H, ...) for times 1..H; 0 where the trajectory is cut.

    Returns:
        (H, ...), for times 0..H-1.
    """
    fixed = reward + discount * (1 - trace) * value
    carried = discount * trace
    result, returns = value[-1], []
    for t in reversed(range(len(reward))):
        result = fixed[t] + carried[t] * result
        returns.append(result)
    return torch.stack(returns[::-1])


def quantile(ordered: Tensor, level: float) -> Tensor:
    """What a share of some ascending values (N,) lies below, (), interpolated between two of them.

    As `torch.quantile`, which torch 2.11 does not compile for a CPU.
    """
    place = level * (len(ordered) - 1)
    below = int(place)
    return torch.lerp(ordered[below], ordered[min(below + 1, len(ordered) - 1)], place - below)


class ReturnScale(NamedTuple):
    """Exponential means of a low and a high percentile of the returns, each (), starting at zero (paper eq. 8)."""

    low: Tensor
    high: Tensor

    def updated(self, returns: Tensor, config: BehaviorConfig) -> "ReturnScale":
        ordered = returns.detach().flatten().sort().values
        low, high = (quantile(ordered, level) for level in (config.return_low, config.return_high))
        rate = config.return_rate
        return ReturnScale((1 - rate) * self.low + rate * low, (1 - rate) * self.high + rate * high)

    def divisor(self, config: BehaviorConfig) -> Tensor:
        """Large returns are scaled down, small ones never up."""
        return (self.high - self.low).clamp(min=config.return_limit)


class ActorCritic(nn.Module):
    """Actor, critic, slow critic and the return scale.

    Args: settings, what can be done, width F of the features, width of the layers, gamma.
    """

    bins: Tensor
    return_low: Tensor
    return_high: Tensor

    def __init__(self, config: BehaviorConfig, action: ActionSpec, inputs: int, units: int, discount: float):
        super().__init__()
        self.config = config
        self.discount = discount
        self.actor = Actor(action, inputs, units)
        self.critic = Head(inputs, units, layers=3, outputs=dist.BINS, outscale=0.0)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.register_buffer("return_low", torch.zeros(()))
        self.register_buffer("return_high", torch.zeros(()))
        self.register_buffer("bins", dist.twohot_bins(), persistent=False)

    def evaluate(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The critic's logits (..., 255) for features (..., F), and their mean, the value (...), without gradient."""
        logits = self.critic(feature)
        return logits, dist.twohot_mean(logits.detach(), self.bins)

    def imagined_losses(
        self, feature: Tensor, action: Tensor, reward: Tensor, continuation: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, ReturnScale, dict[str, Tensor]]:
        """Losses of N imagined trajectories, time first.

        Args:
            feature: (H + 1, N, F) without gradient.
            action: (H + 1, N, A), chosen at each state.
            reward, continuation: (H + 1, N), predicted at each state, without gradient.

        Returns:
            Losses (N,), means over the H steps; the returns (H, N); the updated return scale, which the caller
            keeps by `keep_scale`; and metrics.
        """
        config = self.config
        logits, value = self.evaluate(feature)
        returns = lambda_return(reward[1:], continuation[1:], value[1:], config.trace)
        # The first continue counts too: an imagined trajectory that starts at an end teaches nothing.
        weight = continuation.cumprod(0)[:-1]
        scale = ReturnScale(self.return_low, self.return_high).updated(returns, config)
        advantage = (returns - value[:-1]) / scale.divisor(config)

        actor_loss, entropy = self.actor_loss(feature[:-1], action[:-1], advantage)
        losses = {
            "actor": (weight * actor_loss).mean(0),
            "critic": (weight * self.critic_loss(logits[:-1], feature[:-1], returns)).mean(0),
        }
        metrics = {
            "advantage": advantage.mean(),
            "advantage_magnitude": advantage.abs().mean(),
            "entropy": entropy,
            "reward": reward.mean(),
            "continuation": continuation.mean(),
            "return": returns.mean(),
            "value": value.mean(),
            "weight": weight.mean(),
            "return_scale": scale.divisor(config),
            "return_low": scale.low,
            "return_high": scale.high,
        }
        return losses, returns, scale, metrics

    def replay_losses(
        self, feature: Tensor, reward: Tensor, is_last: Tensor, is_terminal: Tensor, bootstrap: Tensor
    ) -> dict[str, Tensor]:
        """The critic's loss (B, T - 1) along the replayed sequence itself, from real rewards and ends.

        Args:
            feature: (B, T, F); its gradient reaches the world model.
            reward, is_last, is_terminal: (B, T).
            bootstrap: (B, T), the imagined return from each state.
        """
        logits, value = self.evaluate(feature)
        discount = (~is_terminal).float() * self.discount
        trace = (~is_last).float() * self.config.trace
        returns = lambda_return(reward.T[1:], discount.T[1:], bootstrap.T[1:], trace.T[1:])
        # The last step of a sequence has no return; it takes part in the product and is dropped from the loss.
        padded = torch.cat([returns.T, value[:, -1:]], 1)
        loss = self.critic_loss(logits, feature, padded)[:, :-1]
        # After the last step of an episode comes a reset: there is no return to learn.
        return {"replay_critic": (~is_last[:, :-1]).float() * loss}

    def actor_loss(self, feature: Tensor, action: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """REINFORCE with an entropy bonus (...), before the weight (paper eq. 8), and the mean entropy ()."""
        policy = self.actor(feature)
        entropy = self.actor.entropy(policy)
        loss = -(self.actor.log_prob(policy, action) * advantage + self.config.entropy * entropy)
        return loss, entropy.detach().mean()

    def critic_loss(self, logits: Tensor, feature: Tensor, returns: Tensor) -> Tensor:
        """Cross-entropy (...) with the returns, and with the slow critic's prediction as a regulariser."""
        with torch.no_grad():
            slow = dist.twohot_mean(self.slow_critic(feature), self.bins)
        regularizer = self.config.slow_regularizer * dist.twohot_loss(logits, slow, self.bins)
        return dist.twohot_loss(logits, returns, self.bins) + regularizer

    @torch.no_grad()
    def keep_scale(self, scale: ReturnScale, sound: Tensor) -> None:
        """Unless the update that made it was not `sound`, (), bool."""
        self.return_low.copy_(torch.where(sound, scale.low, self.return_low))
        self.return_high.copy_(torch.where(sound, scale.high, self.return_high))

    @torch.no_grad()
    def update_slow_critic(self, sound: Tensor) -> None:
        """`slow = 0.02 online + 0.98 slow`, after every update that was sound."""
        rate = torch.where(sound, self.config.slow_rate, 0.0)
        for slow, online in zip(self.slow_critic.parameters(), self.critic.parameters()):
            slow.lerp_(online, rate)
