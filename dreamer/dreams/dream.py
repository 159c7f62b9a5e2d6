"""The world model on its own: real episodes to begin from, and what it expects of the world, step by step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import distributions as dist
from ..agent import Agent
from ..loop import Environments, tensors
from ..rssm import State, stack
from ..scoring import shares


@dataclass(frozen=True)
class Episode:
    """A real episode of T rows, the first of which is its reset; tensors are on the agent's device."""

    observation: dict[str, np.ndarray]  # (T, ...) of each key
    reward: np.ndarray  # (T,) float32, arrived with the row
    action: Tensor  # (T, A), chosen at the row; the last one was not taken
    state: State  # (T, ...), the posterior of the row
    is_over: bool  # else it was only watched until here
    is_terminal: bool  # ended really, not by a time limit

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def goes_on(self) -> np.ndarray:
        """(T,) float32, 0 where the episode really ended, else 1."""
        result = np.ones(len(self), np.float32)
        result[-1] -= self.is_terminal
        return result


class Moment(NamedTuple):
    """What the model reads off N states."""

    observation: dict[str, Tensor]  # (N, ...) of each key in its own units, images float from 0 to 255
    reward: Tensor  # (N,) expected, arriving with the state
    goes_on: Tensor  # (N,) probability that the episode does not end there
    value: Tensor  # (N,) expected discounted return of what follows


class Dream:
    """Steps the dynamics of a trained agent, which stays as it is; nothing here has a gradient.

    Args:
        seed: of what is sampled.
    """

    def __init__(self, agent: Agent, seed: int = 0):
        self.agent = agent
        self._generator = torch.Generator(agent.device).manual_seed(seed)
        with torch.no_grad():
            self._weights = agent.world_model.rssm.recurrence()

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1)."""
        return torch.rand(shape, generator=self._generator, device=self.agent.device)

    def reseed(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    @torch.no_grad()
    def step(self, state: State, action: Tensor) -> State:
        """A sample of what follows N states after flat actions (N, A) (paper eq. 3, the sequence model and prior)."""
        rssm = self.agent.world_model.rssm
        return rssm.imagine_step(self._weights, state, action, self.uniform(len(action), rssm.config.stoch))

    @torch.no_grad()
    def act(self, state: State) -> Tensor:
        """The policy's flat actions (N, A) in N states."""
        actor = self.agent.actor_critic.actor
        policy = actor(self.agent.world_model.rssm.feature(state))
        return actor.sample(policy, actor.draw_noise((len(state.deter),), self._generator))

    @torch.no_grad()
    def read(self, state: State) -> Moment:
        """What N states mean."""
        decoder = self.agent.world_model.decoder
        reward, goes_on = self.outcome(state)
        observation = decoder.predict(decoder(self.agent.world_model.rssm.feature(state)))
        for key in self.agent.observation_spec.images:
            observation[key] = observation[key] * 255
        return Moment(observation, reward, goes_on, self.value(state))

    @torch.no_grad()
    def outcome(self, state: State) -> tuple[Tensor, Tensor]:
        """Expected reward (N,) of N states, and the probability (N,) that the episode does not end there."""
        model = self.agent.world_model
        reward, continuation = model.outcome(model.rssm.feature(state))
        # The head predicts the chance to go on times gamma.
        return reward, (continuation / model.discount).clamp(max=1)

    @torch.no_grad()
    def value(self, state: State) -> Tensor:
        """Expected discounted return (N,) of what follows N states."""
        return self.agent.actor_critic.evaluate(self.agent.world_model.rssm.feature(state))[1]

    @torch.no_grad()
    def prior(self, state: State) -> Tensor:
        """Probabilities (N, S, K) that the model, having come to `state`, gave to its stochastic part."""
        return dist.mixed_probs(self.agent.world_model.rssm.prior_logits(state.deter))

    @torch.no_grad()
    def posterior(self, state: State, observation: dict[str, Tensor]) -> Tensor:
        """Probabilities (N, S, K) of the stochastic part once `observation` {key: (N, ...)} is seen at `state`."""
        model = self.agent.world_model
        tokens = model.rssm.embed_tokens(model.encoder(observation))
        return dist.mixed_probs(model.rssm.posterior_logits(self._weights, state.deter.to(model.rssm.dtype), tokens)[0])

    def follow(self, state: State, actions: Tensor) -> State:
        """Open loop: the states (H, N, ...) after N states and the flat actions (H, N, A) taken from there."""
        states = []
        for action in actions:
            state = self.step(state, action)
            states.append(state)
        return stack(states)

    def live(self, state: State, steps: int) -> State:
        """The states (H, N, ...) after N states in which the policy acts by what it dreams."""
        states = []
        for _ in range(steps):
            state = self.step(state, self.act(state))
            states.append(state)
        return stack(states)


def record(
    agent: Agent,
    environments: Environments,
    episodes: int,
    longest: int | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> list[Episode]:
    """Play episodes and keep all that the agent saw and thought.

    Args:
        agent: acts by its policy.
        environments: N of them, not begun. Each plays its share, as in `evaluate`.
        episodes: at least 1.
        longest: rows after which an episode is watched no longer.
        report: is told how far it is.
    """
    count = len(environments)
    quota = shares(episodes, count)
    open_ = [_Open() for _ in range(count)]
    done: list[list[Episode]] = [[] for _ in range(count)]
    memory = agent.start(count)
    while any(len(found) < wanted for found, wanted in zip(done, quota)):
        rows = environments.step(agent.action_spec.to_environment(memory.action.cpu().numpy()))
        seen = tensors(rows)
        memory = agent.act(seen["observation"], seen["is_first"], seen["is_last"], memory)
        for i in range(count):
            if rows.is_first[i]:
                open_[i] = _Open()
            if len(done[i]) == quota[i]:
                open_[i].is_dropped = True
            if open_[i].is_dropped:
                continue
            # Copies, since one row would keep those of all environments.
            observation = {key: value[i].copy() for key, value in rows.observation.items()}
            state = State(memory.state.deter[i].clone(), memory.state.stoch[i].clone())
            open_[i].rows.append((observation, rows.reward[i], memory.action[i].clone(), state))
            if rows.is_last[i] or len(open_[i].rows) == longest:
                done[i].append(open_[i].close(bool(rows.is_last[i]), bool(rows.is_terminal[i])))
                open_[i] = _Open()
                open_[i].is_dropped = True
        report(f"{sum(map(len, done))} of {episodes} episodes, {max(len(each.rows) for each in open_)} rows")
    return [episode for found in done for episode in found]


class _Open:
    """An episode that is being watched, or not any more."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, np.ndarray], np.ndarray, Tensor, State]] = []
        self.is_dropped = False

    def close(self, is_over: bool, is_terminal: bool) -> Episode:
        observations, rewards, actions, states = zip(*self.rows)
        return Episode(
            observation={key: np.stack([each[key] for each in observations]) for key in observations[0]},
            reward=np.array(rewards, np.float32),
            action=torch.stack(actions),
            state=stack(list(states)),
            is_over=is_over,
            is_terminal=is_terminal,
        )
