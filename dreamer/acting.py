"""The part of an agent that acts, by weights of its own."""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .actor_critic import Actor
from .cuda import Captured, moved
from .networks import Encoder
from .recurrence import Recurrence
from .rssm import RSSM, State


class Memory(NamedTuple):
    """What the policy carries from step to step in each of N environments."""

    state: State  # (N, ...)
    action: Tensor  # (N, A), the last one chosen


class Acting:
    """Sees with an encoder, remembers with an RSSM, chooses with an actor: with copies of those that learn.

    The copies are as these were at the last `follow`, which an update begins with. So whoever acts need not wait for
    it. The author's implementation also hands its policy the parameters that an update has started from, a row later.

    Args:
        encoder, rssm, actor: those that learn.
        seed: of the actions that are sampled.
    """

    def __init__(self, encoder: Encoder, rssm: RSSM, actor: Actor, seed: int):
        self._learning = nn.ModuleList([encoder, rssm, actor])
        self._encoder, self._rssm, self._actor = copy.deepcopy((encoder, rssm, actor))
        self._copies = nn.ModuleList([self._encoder, self._rssm, self._actor]).requires_grad_(False)
        self.device = rssm.hidden_scale.device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._recurrence: Recurrence | None = None
        self._captured: Captured | None = None

    @torch.no_grad()
    def follow(self) -> None:
        """From now on act by the newest weights."""
        torch._foreach_copy_(self.parameters, [*self._learning.parameters()])
        self.forget_weights()

    def forget_weights(self) -> None:
        """They have moved: cast and slice them anew at the next action."""
        self._recurrence = None

    @property
    def parameters(self) -> list[Tensor]:
        """The copies."""
        return [*self._copies.parameters()]

    def start(self, environments: int) -> Memory:
        """The memory before the first step of N environments."""
        action = torch.zeros(environments, self._actor.spec.width, device=self.device)
        return Memory(self._rssm.initial(environments), action)

    @torch.no_grad()
    def act(
        self,
        observation: Mapping[str, Tensor],
        is_first: Tensor,
        is_last: Tensor,
        memory: Memory,
        greedy: bool = False,
    ) -> Memory:
        """As `Agent.act`."""
        # In the order in which it was captured, whatever the environment's is.
        seen = {key: moved(observation[key], self.device) for key in self._encoder.spec.keys}
        arguments = seen, moved(is_first, self.device), moved(is_last, self.device), memory
        if self._captured is not None and not greedy and self._captured.accepts(*arguments):
            return self._captured(*arguments)
        if self._recurrence is None:
            self._recurrence = self._rssm.recurrence()
        return self._choose(self._recurrence, *arguments, greedy=greedy)

    def _choose(
        self,
        weights: Recurrence,
        observation: dict[str, Tensor],
        is_first: Tensor,
        is_last: Tensor,
        memory: Memory,
        greedy: bool = False,
    ) -> Memory:
        """As `act`, on the device."""
        count = is_first.shape[0]
        uniform = self._uniform(count, self._rssm.config.stoch)
        noise = self._actor.draw_noise((count,), self.generator)
        state, sampled, likely = self.policy(weights, memory, observation, is_first, uniform, noise)
        return Memory(state, torch.where(is_last.unsqueeze(-1), 0.0, likely if greedy else sampled))

    def policy(
        self,
        weights: Recurrence,
        memory: Memory,
        observation: dict[str, Tensor],
        is_first: Tensor,
        uniform: Tensor,
        noise: Tensor,
    ) -> tuple[State, Tensor, Tensor]:
        """Posterior (N, ...), a sampled and the most likely action (N, A), for given random numbers."""
        rssm, actor = self._rssm, self._actor
        tokens = rssm.embed_tokens(self._encoder(observation))
        keep = ~is_first.unsqueeze(-1)
        previous = rssm.embed_action(torch.where(keep, memory.action, 0.0))
        state, _, _ = rssm.observe_step(weights, memory.state, previous, tokens, keep, uniform)
        policy = actor(rssm.feature(state))
        return state, actor.sample(policy, noise), actor.mode(policy)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)

    # Capturing -----------------------------------------------------------------------------------------

    def capture(self, observation: dict[str, Tensor]) -> None:
        """From now on launch the choice of actions as one, for as many environments as are in {key: (N, ...)}."""

        def choose(*arguments: Any) -> Memory:
            with torch.no_grad():
                # Cast anew, since those of a graph stay as they were.
                return self._choose(self._rssm.recurrence(), *arguments)

        self._captured = Captured(choose, self.anything(observation), self.generator, urgent=True)

    def anything(self, observation: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor, Memory]:
        """Arguments for `act` that go with an observation."""
        count = len(observation[self._encoder.spec.keys[0]])
        flags = torch.zeros(count, dtype=torch.bool, device=self.device)
        return observation, flags, flags, self.start(count)

    def release(self) -> None:
        """Launch one by one again."""
        self._captured = None

    # Saving --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._copies.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._copies.load_state_dict(state["weights"])
        restore_generator(self.generator, state["generator"])
        self.forget_weights()


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Put a generator's state back, unless it is of another kind of device, which has another kind of generator."""
    state = state.cpu()
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
