"""Rollouts inside the world model: where the policy acts and is trained."""

from typing import NamedTuple

import torch
from torch import Tensor

from .actor_critic import Actor
from .recurrence import Recurrence
from .rssm import RSSM, State


class Noise(NamedTuple):
    """The random numbers of a rollout from N states: H prior samples and H + 1 actions."""

    prior: Tensor  # (H, N, S), in [0, 1)
    action: Tensor  # (H + 1, N, W), as `Actor.draw_noise` makes them


class Trajectory(NamedTuple):
    """States 0..H of each rollout, the first being where it started, and the action chosen at each; time first."""

    feature: Tensor  # (H + 1, N, F) in compute precision
    action: Tensor  # (H + 1, N, A)


class Imagination:
    """The world model's dynamics and the actor, taking turns."""

    def __init__(self, rssm: RSSM, actor: Actor):
        self.rssm = rssm
        self.actor = actor

    def act(self, state: State, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Feature (N, F) of a state and the action (N, A) sampled there."""
        feature = self.rssm.feature(state)
        return feature, self.actor.sample(self.actor(feature), noise)

    def step(self, weights: Recurrence, state: State, prior: Tensor, noise: Tensor) -> tuple[State, Tensor, Tensor]:
        """Act, then predict: the next state, and the feature and action of this one."""
        feature, action = self.act(state, noise)
        return self.rssm.imagine_step(weights, state, action, prior), feature, action

    @torch.no_grad()
    def rollout(self, start: State, noise: Noise) -> Trajectory:
        """Imagine from N states (N, ...). The actor learns by REINFORCE, so nothing here has a gradient."""
        weights = self.rssm.recurrence()
        state, features, actions = start, [], []
        for prior, action_noise in zip(noise.prior, noise.action):
            state, feature, action = self.step(weights, state, prior, action_noise)
            features.append(feature)
            actions.append(action)
        feature, action = self.act(state, noise.action[-1])
        return Trajectory(torch.stack([*features, feature]), torch.stack([*actions, action]))
