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
from .recurrence import Inputs, Offsets, Recurrence, Scales, defer_gradients

STEPS = 4  # of a sequence that are compiled as one function; more take longer to compile and gain little


class State(NamedTuple):
    """The latents of a moment. `deter` (..., D), `stoch` (..., S, K) one-hot, both float32."""

    deter: Tensor
    stoch: Tensor

    def detach(self) -> "State":
        return State(self.deter.detach(), self.stoch.detach())

    def flatten(self) -> "State":
        """Merge batch and time: (B, T, ...) -> (B * T, ...)."""
        return State(self.deter.flatten(0, 1), self.stoch.flatten(0, 1))


def stack(states: list[State], axis: int = 0) -> State:
    """States along a new axis."""
    return State(
        torch.stack([state.deter for state in states], axis), torch.stack([state.stoch for state in states], axis)
    )


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

        own = self.config.deter // self.config.blocks
        block, shared = cast(self.hidden.weight).split([own, 3 * self.config.hidden], 1)
        return Recurrence(
            deter=cast(self.deter_in.linear.weight),
            stoch=cast(self.stoch_in.linear.weight),
            own=block.contiguous(),
            shared=shared.transpose(1, 2).flatten(0, 1),
            gates=cast(self.gates.weight),
            posterior=cast(self.posterior.linear.weight[:, : self.config.deter]).contiguous(),
            logits=cast(self.posterior_head.weight),
            scales=Scales(self.deter_in.scale, self.stoch_in.scale, self.hidden_scale, self.posterior.scale),
            offsets=Offsets(
                deter=cast(self.deter_in.linear.bias),
                stoch=cast(self.stoch_in.linear.bias),
                hidden=cast(self.hidden.bias),
                gates=cast(self.gates.bias),
                logits=cast(self.posterior_head.bias),
            ),
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
    ) -> tuple[State, Tensor, Inputs]:
        """The posterior of the next step.

        Args:
            weights: from `recurrence`.
            state: the step before, (N, ...).
            action: embedded previous action (N, hidden), zeroed *before* the embedding where the episode begins.
            tokens: embedded tokens (N, hidden).
            keep: (N, 1) bool, no where the episode begins.
            uniform: (N, S), random numbers in [0, 1).

        Returns:
            The posterior state, its sample carrying a straight-through gradient; its logits (N, S, K); and what the
            weights were multiplied with.
        """
        # Not by a product: 0 times infinity would carry into the next episode what broke this one.
        deter, stoch = torch.where(keep, state.deter, 0.0), torch.where(keep.unsqueeze(-1), state.stoch, 0.0)
        deter, inputs = deterministic_step(weights, deter, stoch.flatten(-2), action)
        narrow = deter.to(self.dtype)
        logits, hidden = self.posterior_logits(weights, narrow, tokens)
        probs = dist.mixed_probs(logits)
        sample = dist.straight_through(dist.sample_onehot(probs, uniform), probs)
        return State(deter, sample), logits, Inputs(*(x.detach() for x in (*inputs, narrow, hidden)))

    def posterior_logits(self, weights: Recurrence, deter: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, S, K), float32, and the layer before them, for deter (N, D) in compute precision."""
        hidden = norm_silu(deter @ weights.posterior.T + tokens, weights.scales.posterior)
        logits = (hidden @ weights.logits.T + weights.offsets.logits).float()
        return logits.unflatten(-1, (self.config.stoch, self.config.classes)), hidden

    def observe_steps(
        self,
        weights: Recurrence,
        offsets: Offsets,
        state: State,
        actions: Tensor,
        tokens: Tensor,
        keep: Tensor,
        uniform: Tensor,
    ) -> tuple[State, State, Tensor, Inputs]:
        """A few steps as one function, since calling a compiled one costs as much as several of its products.

        Args:
            weights: without gradient; `offsets` (k, N, width) carries it.
            state: the step before, (N, ...).
            actions, tokens, keep, uniform: as for `observe_step`, for k steps, time first.

        Returns:
            The last state (N, ...); all states, logits and what the weights were multiplied with, (k, N, ...) each.
        """
        states, logits, inputs = [], [], []
        for *row, action, token, kept, noise in zip(*offsets, actions, tokens, keep, uniform):
            state, logit, used = self.observe_step(
                weights._replace(offsets=Offsets(*row)), state, action, token, kept, noise
            )
            states.append(state)
            logits.append(logit)
            inputs.append(used)
        return state, stack(states), torch.stack(logits), Inputs(*(torch.stack(x) for x in zip(*inputs)))

    def imagine_step(self, weights: Recurrence, state: State, action: Tensor, uniform: Tensor) -> State:
        """A sample of the prior for the next step, after a raw action (N, A); `uniform` is (N, S)."""
        deter, _ = deterministic_step(weights, state.deter, state.stoch.flatten(-2), self.embed_action(action))
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
        keep = ~is_first.unsqueeze(-1)
        actions = self.embed_action(torch.where(keep, prev_action, 0.0))
        weights = self.recurrence()
        record: dict[str, list[Tensor]] = {name: [] for name in Inputs._fields}
        offsets, embedded = defer_gradients(weights, self.embed_tokens(tokens).transpose(0, 1), record)
        fixed = weights.detach()
        # Each call alike, also the first: another kind of arguments would be compiled for itself.
        state = State(*(x if x.requires_grad else x.detach().requires_grad_(torch.is_grad_enabled()) for x in start))
        parts = []
        few = [x.split(STEPS) for x in (*offsets, actions.transpose(0, 1), embedded, keep.transpose(0, 1))]
        for *rows, action, token, kept, noise in zip(*few, uniform.transpose(0, 1).split(STEPS)):
            state, states, logits, used = self.observe_steps(fixed, Offsets(*rows), state, action, token, kept, noise)
            parts.append((states.deter, states.stoch, logits))
            for name, x in used._asdict().items():
                record[name].append(x)
        deter, stoch, logits = (torch.cat(part).transpose(0, 1) for part in zip(*parts))
        return State(deter, stoch), logits

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


def deterministic_step(
    weights: Recurrence, deter: Tensor, stoch: Tensor, action: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The block-diagonal GRU.

    Args:
        weights: from `RSSM.recurrence`.
        deter: (N, D).
        stoch: (N, S K).
        action: embedded (N, hidden), in compute precision.

    Returns:
        The next deter (N, D), float32, and the first four of `Inputs`.
    """
    offsets, scales, blocks = weights.offsets, weights.scales, weights.gates.shape[0]
    narrow, stoch = deter.to(action.dtype), stoch.to(action.dtype)
    from_deter = norm_silu(narrow @ weights.deter.T + offsets.deter, scales.deter)
    from_stoch = norm_silu(stoch @ weights.stoch.T + offsets.stoch, scales.stoch)
    shared = torch.cat([from_deter, from_stoch, action], -1)
    x = shared @ weights.shared.T + block_linear(narrow, weights.own) + offsets.hidden
    hidden = norm_silu(x, scales.hidden)
    # Within each block lie a reset gate, a candidate and an update gate, each as wide as the block's slice of deter.
    gates = (block_linear(hidden, weights.gates) + offsets.gates).float().unflatten(-1, (blocks, 3, -1))
    reset, candidate, update = (gate.flatten(-2) for gate in gates.unbind(-2))
    # tanh(x) = 2 sigmoid(2 x) - 1, which compilers make faster.
    candidate = 2 * torch.sigmoid(2 * torch.sigmoid(reset) * candidate) - 1
    update = torch.sigmoid(update - 1)
    return update * candidate + (1 - update) * deter, (narrow, stoch, shared, hidden)
