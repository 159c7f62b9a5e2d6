"""The recurrent state-space model: the world model's memory and its dynamics (paper eq. 3).

A state is a deterministic part, a wide vector that a block-diagonal GRU carries on, and a stochastic part, S
one-hot samples of K classes. The *posterior* has seen the observation of its step, the *prior* predicts without it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import distributions as dist
from .config import ModelConfig
from .networks import MLP, BlockLinear, Layer, Linear, block_linear, norm_silu


class State(NamedTuple):
    """The latents of a moment. `deter` (..., D), `stoch` (..., S, K) one-hot, both float32."""

    deter: Tensor
    stoch: Tensor

    def detach(self) -> "State":
        return State(self.deter.detach(), self.stoch.detach())

    def flatten(self) -> "State":
        """Merge batch and time: (B, T, ...) -> (B * T, ...)."""
        return State(self.deter.flatten(0, 1), self.stoch.flatten(0, 1))


class Product(NamedTuple):
    """A layer inside the recurrence: weight and bias in compute precision, norm scale in float32."""

    weight: Tensor
    bias: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return norm_silu(F.linear(x, self.weight, self.bias), self.scale)


class Recurrence(NamedTuple):
    """All weights that the steps of a sequence share, cast and sliced once for the whole sequence.

    The block-linear layer sees its own slice of deter beside inputs that every block shares. The shared part is one
    dense product, so that its input is never repeated for each block.
    """

    deter: Product
    stoch: Product
    action: Product
    hidden_block: Tensor  # (blocks, D / blocks, D / blocks): each block's own slice of deter
    hidden: Product  # (D, 3 hidden): what all blocks share
    gates_weight: Tensor  # (blocks, D / blocks, 3 D / blocks)
    gates_bias: Tensor
    posterior_weight: Tensor  # (hidden, D): deter's part; the tokens' part is taken out of the recurrence
    posterior_scale: Tensor
    posterior_logits: tuple[Tensor, Tensor]


class RSSM(nn.Module):
    """Args: widths, A, E, and the precision of the products."""

    def __init__(self, config: ModelConfig, action_width: int, token_width: int, dtype: torch.dtype):
        super().__init__()
        self.config = config
        self.dtype = dtype
        deter, hidden, latents = config.deter, config.hidden, config.stoch * config.classes
        self.deter_in = Layer(deter, hidden)
        self.stoch_in = Layer(latents, hidden)
        self.action_in = Layer(action_width, hidden)
        self.hidden = BlockLinear(deter + config.blocks * 3 * hidden, deter, config.blocks)
        self.hidden_scale = nn.Parameter(torch.ones(deter))
        self.gates = BlockLinear(deter, 3 * deter, config.blocks)
        self.prior = MLP(deter, hidden, layers=2)
        self.prior_head = Linear(hidden, latents)
        self.posterior = Layer(deter + token_width, hidden)
        self.posterior_head = Linear(hidden, latents)

    def initial(self, batch: int) -> State:
        """Zeros, not learned: what precedes an episode."""
        config, device = self.config, self.hidden_scale.device
        return State(
            torch.zeros(batch, config.deter, device=device),
            torch.zeros(batch, config.stoch, config.classes, device=device),
        )

    def feature(self, state: State) -> Tensor:
        """What every head sees: [deter, flat stoch] (..., D + S K) in compute precision."""
        return torch.cat([state.deter.to(self.dtype), state.stoch.flatten(-2).to(self.dtype)], -1)

    def recurrence(self) -> Recurrence:
        """Cast and slice the weights for a sequence; differentiable, so gradients reach the parameters."""

        def cast(x: Tensor) -> Tensor:
            return x.to(self.dtype)

        def product(layer: Layer) -> Product:
            return Product(cast(layer.linear.weight), cast(layer.linear.bias), layer.scale)

        own = self.config.deter // self.config.blocks
        block, shared = cast(self.hidden.weight).split([own, 3 * self.config.hidden], 1)
        posterior = self.posterior.linear.weight[:, : self.config.deter]
        return Recurrence(
            deter=product(self.deter_in),
            stoch=product(self.stoch_in),
            action=product(self.action_in),
            hidden_block=block.contiguous(),
            hidden=Product(shared.transpose(1, 2).flatten(0, 1), cast(self.hidden.bias), self.hidden_scale),
            gates_weight=cast(self.gates.weight),
            gates_bias=cast(self.gates.bias),
            posterior_weight=cast(posterior).contiguous(),
            posterior_scale=self.posterior.scale,
            posterior_logits=(cast(self.posterior_head.weight), cast(self.posterior_head.bias)),
        )

    # The two branches that do not depend on the recurrence, for a whole sequence at once.

    def embed_action(self, action: Tensor) -> Tensor:
        """The action's branch of the deterministic step, (..., A) -> (..., hidden)."""
        return self.action_in(limit_action(action).to(self.dtype))

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """The tokens' part of the posterior layer before its norm, (..., E) -> (..., hidden)."""
        linear = self.posterior.linear
        weight = linear.weight[:, self.config.deter :]
        return F.linear(tokens, weight.to(tokens.dtype), linear.bias.to(tokens.dtype))

    def prior_logits(self, deter: Tensor) -> Tensor:
        """Logits (..., S, K), float32, of the prior at deter (..., D)."""
        logits = self.prior_head(self.prior(deter.to(self.dtype))).float()
        return logits.unflatten(-1, (self.config.stoch, self.config.classes))

    # One step. Pure functions of their arguments (and, for the prior, of the parameters).

    def observe_step(
        self, weights: Recurrence, state: State, action: Tensor, tokens: Tensor, keep: Tensor, uniform: Tensor
    ) -> tuple[State, Tensor]:
        """The posterior of the next step.

        Args:
            weights: from `recurrence`.
            state: the step before, (N, ...).
            action: embedded previous action (N, hidden), zeroed *before* the embedding where the episode begins.
            tokens: embedded tokens (N, hidden).
            keep: (N, 1), 0 where the episode begins, else 1.
            uniform: (N, S), random numbers in [0, 1).

        Returns:
            The posterior state, its sample carrying a straight-through gradient, and its logits (N, S, K).
        """
        stoch = (state.stoch * keep.unsqueeze(-1)).flatten(-2)
        deter = deterministic_step(weights, state.deter * keep, stoch, action)
        x = norm_silu(F.linear(deter.to(self.dtype), weights.posterior_weight) + tokens, weights.posterior_scale)
        logits = F.linear(x, *weights.posterior_logits).float()
        logits = logits.unflatten(-1, (self.config.stoch, self.config.classes))
        probs = dist.mixed_probs(logits)
        sample = dist.straight_through(dist.sample_onehot(probs, uniform), probs)
        return State(deter, sample), logits

    def imagine_step(self, weights: Recurrence, state: State, action: Tensor, uniform: Tensor) -> State:
        """A sample of the prior for the next step, after a raw action (N, A); `uniform` is (N, S)."""
        embedded = weights.action(limit_action(action).to(self.dtype))
        deter = deterministic_step(weights, state.deter, state.stoch.flatten(-2), embedded)
        probs = dist.mixed_probs(self.prior_logits(deter))
        return State(deter, dist.sample_onehot(probs, uniform))

    # A sequence.

    def observe(
        self, start: State, tokens: Tensor, prev_action: Tensor, is_first: Tensor, uniform: Tensor
    ) -> tuple[State, Tensor]:
        """Posterior states along a sequence.

        Args:
            start: the state before step 0, (B, ...).
            tokens: (B, T, E).
            prev_action: (B, T, A), the action *before* each step.
            is_first: (B, T) bool; resets the carried state and the previous action.
            uniform: (B, T, S), random numbers in [0, 1).

        Returns:
            States (B, T, ...) and raw posterior logits (B, T, S, K).
        """
        weights = self.recurrence()
        keep = (~is_first).float().unsqueeze(-1)
        actions = self.embed_action(prev_action * keep)
        embedded = self.embed_tokens(tokens)
        state, states, logits = start, [], []
        for t in range(is_first.shape[1]):
            state, logit = self.observe_step(weights, state, actions[:, t], embedded[:, t], keep[:, t], uniform[:, t])
            states.append(state)
            logits.append(logit)
        stacked = State(torch.stack([s.deter for s in states], 1), torch.stack([s.stoch for s in states], 1))
        return stacked, torch.stack(logits, 1)

    def kl(self, deter: Tensor, posterior_logits: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The two KL losses of a sequence (paper eq. 5): the prior learns fast, the posterior slowly.

        Between the distributions with their 1% of uniform, summed over the S latents, then never below the free nats.

        Args:
            deter: (B, T, D).
            posterior_logits: (B, T, S, K).

        Returns:
            Dynamics loss and representation loss, (B, T) each, and metrics.
        """
        posterior = dist.mixed_probs(posterior_logits)
        prior = dist.mixed_probs(self.prior_logits(deter))
        dynamics = dist.categorical_kl(posterior.detach(), prior).sum(-1)
        representation = dist.categorical_kl(posterior, prior.detach()).sum(-1)
        metrics = {
            "kl": dynamics.detach().mean(),
            "prior_entropy": dist.categorical_entropy(prior.detach()).sum(-1).mean(),
            "posterior_entropy": dist.categorical_entropy(posterior.detach()).sum(-1).mean(),
        }
        free = self.config.free_nats
        return dynamics.clamp(min=free), representation.clamp(min=free), metrics


def limit_action(action: Tensor) -> Tensor:
    """`a / max(1, |a|)` elementwise, the divisor without a gradient."""
    return action / action.abs().clamp(min=1).detach()


def deterministic_step(weights: Recurrence, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    """The block-diagonal GRU: deter (N, D), flat stoch (N, S K), action (N, hidden) -> deter (N, D), float32."""
    dtype, blocks = action.dtype, weights.gates_weight.shape[0]
    narrow = deter.to(dtype)
    shared = torch.cat([weights.deter(narrow), weights.stoch(stoch.to(dtype)), action], -1)
    x = F.linear(shared, weights.hidden.weight, weights.hidden.bias) + block_linear(narrow, weights.hidden_block)
    x = block_linear(norm_silu(x, weights.hidden.scale), weights.gates_weight) + weights.gates_bias
    # Within each block lie a reset gate, a candidate and an update gate, each as wide as the block's slice of deter.
    gates = x.float().unflatten(-1, (blocks, 3, -1))
    reset, candidate, update = (gate.flatten(-2) for gate in gates.unbind(-2))
    candidate = torch.tanh(torch.sigmoid(reset) * candidate)
    update = torch.sigmoid(update - 1)
    return update * candidate + (1 - update) * deter
