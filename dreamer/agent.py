"""The agent: acting, and the update that trains everything. The one place that names what is compiled."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .actor_critic import ActorCritic, ReturnScale
from .config import Config, LossScales, seeds
from .cuda import Captured, moved
from .imagination import Imagination, Noise
from .optimizer import LaProp
from .replay import Batch
from .rssm import Recurrence, State
from .spaces import ActionSpec, ObservationSpec
from .world_model import WorldModel


class Memory(NamedTuple):
    """What the policy carries from step to step in each of N environments."""

    state: State  # (N, ...)
    action: Tensor  # (N, A), the last one chosen


class Agent:
    """World model, actor-critic and their optimiser.

    Args:
        config: settings; `config.seed` determines the parameters and all random numbers.
        observation, action: the environment's spaces.
        device, dtype: where it runs and in which precision its products are; see `machine`.
    """

    def __init__(
        self,
        config: Config,
        observation: ObservationSpec,
        action: ActionSpec,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.config = config
        self.observation_spec = observation
        self.action_spec = action
        self.device = device
        self.dtype = dtype
        torch.backends.cudnn.allow_tf32 = False  # it is on from the start, and a GPU's float32 is then none
        discount = 1 - 1 / config.behavior.discount_horizon
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds(config.seed).parameters)
            self.world_model = WorldModel(config.model, observation, action, discount, dtype).to(device)
            self.actor_critic = ActorCritic(
                config.behavior, action, self.world_model.feature_width, config.model.units, discount
            ).to(device)
        self.imagination = Imagination(self.world_model.rssm, self.actor_critic.actor)
        self.parameters = [*self.world_model.parameters(), *self.actor_critic.parameters()]
        self.parameters = [p for p in self.parameters if p.requires_grad]
        self.optimizer = LaProp(self.parameters, config.optimizer)
        self.generator = torch.Generator(device).manual_seed(seeds(config.seed).noise)
        self._recurrence: Recurrence | None = None
        self._metrics: list[str] = []  # their names, in the order in which `_learn` gives them
        self._captured_learn: Captured | None = None
        self._captured_choose: Captured | None = None

    @property
    def parameter_count(self) -> int:
        """Trained numbers; the slow critic is a copy and not counted."""
        return sum(p.numel() for p in self.parameters)

    # Acting --------------------------------------------------------------------------------------------

    def start(self, environments: int) -> Memory:
        """The memory before the first step of N environments."""
        action = torch.zeros(environments, self.action_spec.width, device=self.device)
        return Memory(self.world_model.rssm.initial(environments), action)

    @torch.no_grad()
    def act(
        self,
        observation: Mapping[str, Tensor],
        is_first: Tensor,
        is_last: Tensor,
        memory: Memory,
        greedy: bool = False,
    ) -> Memory:
        """Choose the next actions of N environments.

        Args:
            observation: {key: (N, ...)}.
            is_first: (N,) bool; forgets what was before.
            is_last: (N,) bool; nothing follows, so the action is zero.
            memory: from `start` or the last call.
            greedy: the most likely action instead of a sample.

        Returns:
            The new memory: the flat actions (N, A) and the posterior of this observation.
        """
        # In the order in which it was captured, whatever the environment's is.
        seen = {key: moved(observation[key], self.device) for key in self.observation_spec.keys}
        arguments = seen, moved(is_first, self.device), moved(is_last, self.device), memory
        captured = self._captured_choose
        if captured is not None and not greedy and captured.accepts(*arguments):
            return captured(*arguments)
        if self._recurrence is None:
            self._recurrence = self.world_model.rssm.recurrence()
        return self._choose(self._recurrence, *arguments, greedy=greedy)

    @torch.no_grad()
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
        uniform = self._uniform(count, self.config.model.stoch)
        noise = self.actor_critic.actor.draw_noise((count,), self.generator)
        state, sampled, likely = self._policy(weights, memory, observation, is_first, uniform, noise)
        return Memory(state, torch.where(is_last.unsqueeze(-1), 0.0, likely if greedy else sampled))

    def _policy(
        self,
        weights: Recurrence,
        memory: Memory,
        observation: dict[str, Tensor],
        is_first: Tensor,
        uniform: Tensor,
        noise: Tensor,
    ) -> tuple[State, Tensor, Tensor]:
        rssm, actor = self.world_model.rssm, self.actor_critic.actor
        tokens = rssm.embed_tokens(self.world_model.encoder(observation))
        keep = ~is_first.unsqueeze(-1)
        previous = rssm.embed_action(torch.where(keep, memory.action, 0.0))
        state, _, _ = rssm.observe_step(weights, memory.state, previous, tokens, keep, uniform)
        policy = actor(rssm.feature(state))
        return state, actor.sample(policy, noise), actor.mode(policy)

    def forget_weights(self) -> None:
        """They have moved: cast and slice them anew at the next action."""
        self._recurrence = None

    # Learning ------------------------------------------------------------------------------------------

    def update(self, batch: Batch) -> tuple[dict[str, Tensor], State]:
        """One gradient step on B sequences of T steps.

        Returns:
            Metrics, each (), still on the device; and the new posteriors (B, T, ...) for the replay.
        """
        values, posterior = (self._captured_learn or self._learn)(batch.to(self.device))
        self.forget_weights()
        return dict(zip(self._metrics, values.unbind())), posterior

    def _learn(self, batch: Batch) -> tuple[Tensor, State]:
        """As `update`, on the device; all metrics in one tensor."""
        loss, metrics, posterior, scale = self.loss(batch)
        loss.backward()
        metrics |= {f"optimizer/{name}": value for name, value in self.step(loss, scale).items()}
        self._metrics = list(metrics)
        return torch.stack([value.float() for value in metrics.values()]), posterior

    def step(self, loss: Tensor, scale: ReturnScale) -> dict[str, Tensor]:
        """Move all that an update moves, once the gradients are there; returns the optimiser's metrics.

        Nothing moves where the loss or a gradient is not finite.
        """
        sound = self.optimizer.is_sound(loss)
        metrics = self.optimizer.step(sound)
        self.optimizer.zero_grad(set_to_none=True)
        self.actor_critic.keep_scale(scale, sound)
        self.actor_critic.update_slow_critic(sound)
        return metrics

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], State, ReturnScale]:
        """The scaled sum of all losses of a batch, metrics, posteriors and the new return scale; changes nothing."""
        world_model, actor_critic = self.world_model, self.actor_critic
        size, length = batch.reward.shape

        # World model
        posterior, logits = world_model.observe(batch, self._uniform(size, length, self.config.model.stoch))
        feature = world_model.rssm.feature(posterior)
        losses, model_metrics = world_model.losses(feature, posterior.deter, logits, batch)

        # Imagination, from every posterior state
        start = posterior.detach()
        trajectory = self.imagination.rollout(start.flatten(), self._rollout_noise(size * length))
        with torch.no_grad():
            reward, continuation = world_model.outcome(trajectory.feature)

        # Actor and critic
        behavior_losses, returns, scale, behavior_metrics = actor_critic.imagined_losses(
            trajectory.feature, trajectory.action, reward, continuation
        )
        losses |= {name: loss.unflatten(0, (size, length)) for name, loss in behavior_losses.items()}
        losses |= actor_critic.replay_losses(
            feature, batch.reward, batch.is_last, batch.is_terminal, returns[0].unflatten(0, (size, length))
        )

        total, means = total_loss(losses, self.config.losses, (size, length))
        metrics = {f"loss/{name}": mean for name, mean in means.items()}
        metrics |= {f"world_model/{name}": value for name, value in model_metrics.items()}
        metrics |= {f"behavior/{name}": value for name, value in behavior_metrics.items()}
        return total, {name: value.detach() for name, value in metrics.items()}, start, scale

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)

    def _rollout_noise(self, starts: int) -> Noise:
        horizon = self.config.behavior.horizon
        return Noise(
            prior=self._uniform(horizon, starts, self.config.model.stoch),
            action=self.actor_critic.actor.draw_noise((horizon + 1, starts), self.generator),
        )

    # Compiling -----------------------------------------------------------------------------------------

    def _work(self) -> list[tuple[Any, str]]:
        """The functions that do the work, each the step of a sequence rather than the sequence."""
        return [
            (self, "_policy"),
            (self.world_model.encoder, "forward"),
            (self.world_model.rssm, "observe_steps"),
            (self.world_model, "losses"),
            (self.imagination, "step"),
            (self.world_model, "outcome"),
            (self.actor_critic, "imagined_losses"),
            (self.actor_critic, "replay_losses"),
        ]

    def compile(self) -> None:
        """Shadow each of these functions by a compiled one; parameters and their names stay as they are."""
        for owner, name in self._work():
            setattr(owner, name, torch.compile(getattr(owner, name), dynamic=False, fullgraph=True))

    @property
    def is_compiled(self) -> bool:
        return all(name in vars(owner) for owner, name in self._work())

    def uncompile(self) -> None:
        """Back to eager."""
        self.release()
        for owner, name in self._work():
            vars(owner).pop(name, None)

    def warm_up(self, batch: Batch, environments: int) -> None:
        """Run everything that is compiled once, and leave no trace in the agent."""
        before = self.generator.get_state()
        try:
            self._learn(_unsound(batch.to(self.device)))
            self.act(*self._anything(batch, environments))
        finally:
            self._recurrence = None
            self.generator.set_state(before)
            self.optimizer.zero_grad(set_to_none=True)

    def capture(self, batch: Batch, environments: int) -> None:
        """From now on launch an update as one, and the choice of so many environments' actions (on a GPU).

        Raises:
            Exception: whatever keeps it from being captured; then all is as before.
        """
        state = self.generator.get_state()
        try:
            self._captured_learn = Captured(self._learn, (_unsound(batch.to(self.device)),), self.generator)
            self.capture_acting(batch, environments)
        except BaseException:
            self.release()
            self.optimizer.zero_grad(set_to_none=True)
            # One that a broken capture has touched may believe in it for good.
            self.generator = torch.Generator(self.device)
            self.generator.set_state(state)
            raise

    def capture_acting(self, batch: Batch, environments: int) -> None:
        """The choice of actions alone, for another number of environments."""

        def choose(*arguments: Any) -> Memory:
            with torch.no_grad():
                weights = self.world_model.rssm.recurrence()  # anew, since those of a graph stay as they were
            return self._choose(weights, *arguments)

        self._captured_choose = Captured(choose, self._anything(batch, environments), self.generator)

    @property
    def is_captured(self) -> bool:
        return self._captured_learn is not None

    def release(self) -> None:
        """Launch one by one again."""
        self._captured_learn = self._captured_choose = None

    def _anything(self, batch: Batch, environments: int) -> tuple[dict[str, Tensor], Tensor, Tensor, Memory]:
        """Arguments for `act`."""
        observation = {
            # Laid out like what an environment gives; a view of one would keep the batch's strides.
            key: value[:1, 0].repeat_interleave(environments, 0).to(self.device)
            for key, value in batch.observation.items()
        }
        flags = torch.zeros(environments, dtype=torch.bool, device=self.device)
        return observation, flags, flags, self.start(environments)

    # Saving --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "world_model": self.world_model.state_dict(),
            "actor_critic": self.actor_critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def is_finite(self) -> bool:
        """Whether all parameters are."""
        return all(bool(torch.isfinite(p).all()) for p in self.parameters)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.world_model.load_state_dict(state["world_model"])
        self.actor_critic.load_state_dict(state["actor_critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        generator = state["generator"].cpu()
        # Another kind of device has another kind of generator; then the seeded one goes on.
        if generator.shape == self.generator.get_state().shape:
            self.generator.set_state(generator)
        self._recurrence = None


def _unsound(batch: Batch) -> Batch:
    """A batch whose loss is not finite, so that an update by it moves nothing."""
    return batch._replace(reward=torch.full_like(batch.reward, torch.nan))


def total_loss(
    losses: dict[str, Tensor], scales: LossScales, shape: tuple[int, int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean of every loss over (B, T), times its scale, summed; and the means by name.

    A loss of another shape or without a scale, or a scale without a loss, fails at once.
    """
    named = vars(scales)
    groups = {name: name.split("/")[0] for name in losses}
    assert set(groups.values()) == set(named), sorted(set(groups.values()) ^ set(named))
    size, length = shape
    for name, loss in losses.items():
        expected = (size, length - 1) if name == "replay_critic" else (size, length)
        assert loss.shape == expected, (name, tuple(loss.shape), expected)
    means = {name: loss.mean() for name, loss in losses.items()}
    total = torch.stack([named[groups[name]] * mean for name, mean in means.items()]).sum()
    return total, means | {"total": total}
