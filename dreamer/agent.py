"""The agent: acting, and the update that trains everything. The one place that names what is compiled."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .acting import Acting, Memory, restore_generator
from .actor_critic import ActorCritic, ReturnScale
from .config import Config, LossScales, seeds
from .cuda import Aside, Captured
from .imagination import Imagination, Noise
from .optimizer import LaProp
from .replay import Batch
from .rssm import State
from .spaces import ActionSpec, ObservationSpec
from .world_model import WorldModel


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
        self.acting = Acting(
            self.world_model.encoder, self.world_model.rssm, self.actor_critic.actor, seeds(config.seed).acting
        )
        self._metrics: list[str] = []  # their names, in the order in which `_learn` gives them
        self._captured: Captured | None = None
        self._aside = Aside(device)

    @property
    def parameter_count(self) -> int:
        """Trained numbers; the slow critic is a copy and not counted."""
        return sum(p.numel() for p in self.parameters)

    # Acting --------------------------------------------------------------------------------------------

    def start(self, environments: int) -> Memory:
        """The memory before the first step of N environments."""
        return self.acting.start(environments)

    def act(
        self,
        observation: Mapping[str, Tensor],
        is_first: Tensor,
        is_last: Tensor,
        memory: Memory,
        greedy: bool = False,
    ) -> Memory:
        """Choose the next actions of N environments, by the weights that the last update began with.

        The agent of a checkpoint that was loaded to act has the newest.

        Args:
            observation: {key: (N, ...)}.
            is_first: (N,) bool; forgets what was before.
            is_last: (N,) bool; nothing follows, so the action is zero.
            memory: from `start` or the last call.
            greedy: the most likely action instead of a sample.

        Returns:
            The new memory: the flat actions (N, A) and the posterior of this observation.
        """
        return self.acting.act(observation, is_first, is_last, memory, greedy)

    # Learning ------------------------------------------------------------------------------------------

    def learning(self) -> AbstractContextManager[None]:
        """Around an update and all that looks at what comes out of it: on a GPU, what comes after runs beside it."""
        return self._aside.begin()

    def update(self, batch: Batch) -> tuple[dict[str, Tensor], State]:
        """One gradient step on B sequences of T steps; whoever acts does so by the weights before it.

        Returns:
            Metrics, each (), still on the device; and the new posteriors (B, T, ...) for the replay.
        """
        self.acting.follow()
        self._aside.release()
        values, posterior = (self._captured or self._learn)(batch.to(self.device))
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
            (self.acting, "policy"),
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
        generators = self.generator, self.acting.generator
        before = [each.get_state() for each in generators]
        try:
            with self.learning():  # where the memory for it is kept
                self._learn(_unsound(batch.to(self.device)))
            self.act(*self.acting.anything(self._seen(batch, environments)))
        finally:
            for each, state in zip(generators, before):
                each.set_state(state)
            self.optimizer.zero_grad(set_to_none=True)

    def capture(self, batch: Batch, environments: int) -> None:
        """From now on launch an update as one, and the choice of so many environments' actions (on a GPU).

        Raises:
            Exception: whatever keeps it from being captured; then all is as before.
        """
        before = self.generator.get_state(), self.acting.generator.get_state()
        try:
            self._captured = Captured(self._learn, (_unsound(batch.to(self.device)),), self.generator)
            self.capture_acting(batch, environments)
        except BaseException:
            self.release()
            self.optimizer.zero_grad(set_to_none=True)
            # Those that a broken capture has touched may believe in it for good.
            self.generator, self.acting.generator = (torch.Generator(self.device) for _ in before)
            self.generator.set_state(before[0])
            self.acting.generator.set_state(before[1])
            raise

    def capture_acting(self, batch: Batch, environments: int) -> None:
        """The choice of actions alone, for another number of environments."""
        self.acting.capture(self._seen(batch, environments))

    @property
    def is_captured(self) -> bool:
        return self._captured is not None

    def release(self) -> None:
        """Launch one by one again."""
        self._captured = None
        self.acting.release()

    def _seen(self, batch: Batch, environments: int) -> dict[str, Tensor]:
        """What so many environments might show, laid out like it: a view of a batch would keep the batch's strides."""
        return {
            key: value[:1, 0].repeat_interleave(environments, 0).to(self.device)
            for key, value in batch.observation.items()
        }

    # Saving --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "world_model": self.world_model.state_dict(),
            "actor_critic": self.actor_critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "acting": self.acting.state_dict(),
        }

    def is_finite(self) -> bool:
        """Whether all parameters are."""
        return all(bool(torch.isfinite(p).all()) for p in self.parameters)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.world_model.load_state_dict(state["world_model"])
        self.actor_critic.load_state_dict(state["actor_critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        restore_generator(self.generator, state["generator"])
        if "acting" in state:
            self.acting.load_state_dict(state["acting"])
        else:  # of an earlier version, which acted by the newest weights
            self.acting.follow()


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
