"""The world model as an environment: dreams that begin at real states, for anything that takes a Gymnasium environment.

A dream goes on from what the run has seen, by the model's own samples; a step's reward is the expected one. It ends by
chance, as often as the model says: at each step with the probability that its continue head gives.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from .. import video
from ..agent import Agent
from ..checkpoint import Checkpoint, RunFolder
from ..environments import environment_options
from ..errors import UserMistake
from ..own_envs import own_envs
from ..player import Player, flat
from ..rssm import State
from ..spaces import ActionSpec, ObservationSpec, observation_spec
from .dream import Dream

HORIZON = 500  # steps, after which a dream is cut
Observation = Literal["decoded", "latent"]


class _Dreams:
    """N dreams, and what the two environments below share.

    Args: as theirs.
    """

    def __init__(
        self, run: str | Path, observation: Observation, horizon: int, starts: str, device: str, render_mode: str | None
    ):
        if observation not in ("decoded", "latent"):
            raise UserMistake(f"observation={observation!r} is not possible; use 'decoded' or 'latent'")
        if starts not in ("any", "first"):
            raise UserMistake(f"starts={starts!r} is not possible; use 'any' or 'first'")
        if type(horizon) is not int or horizon < 1:
            raise UserMistake(f"horizon={horizon!r} is not possible; use a whole number from 1")
        folder = RunFolder(Path(run))
        folder.config()  # where there is no run at all, it says so best
        checkpoint = folder.newest(with_replay=True)
        self.agent: Agent = folder.load_agent(device, checkpoint=checkpoint)
        self.render_modes = ["rgb_array"] if self.agent.observation_spec.images else []
        if render_mode is not None and render_mode not in self.render_modes:
            instead = "use 'rgb_array'" if self.render_modes else "this agent sees no images: leave it out"
            raise UserMistake(f"render_mode={render_mode!r} is not possible; {instead}")
        self.dream = Dream(self.agent)
        self.horizon, self._kind = horizon, observation
        self._begun = real_states(
            checkpoint, self.agent, starts == "first"
        )  # now: a run that goes on removes the files
        self.observation_space = (
            spaces.Box(-1.0, 1.0, (self.agent.world_model.feature_width,), np.float32)
            if observation == "latent"
            else _alone(_observation_space(self.agent.observation_spec))
        )
        self.action_space = _alone(_action_space(self.agent.action_spec))

    def starts(self, generator: np.random.Generator, count: int) -> State:
        """Real states (count, ...) of the run's replay."""
        picks = torch.from_numpy(generator.integers(len(self._begun[0]), size=count)).to(self.agent.device)
        classes = self.agent.config.model.classes
        return State(self._begun[0][picks].float(), F.one_hot(self._begun[1][picks].long(), classes).float())

    def begin(self, generator: np.random.Generator, count: int, options: Mapping[str, Any] | None) -> State:
        """What `count` dreams begin with: a state or an observation that was given, else real states of the replay."""
        options = {key: value for key, value in (options or {}).items() if value is not None}
        if len(options) > 1 or set(options) - {"state", "observation"}:
            raise UserMistake(
                f"a dream cannot begin with the options {', '.join(map(repr, options))}; give 'state' or 'observation'"
            )
        if "state" in options:
            return self.given(options["state"], count)
        if "observation" in options:
            return self.given(self.seen(options["observation"]), count)
        return self.starts(generator, count)

    def given(self, state: Any, count: int) -> State:
        """`count` states (count, ...) of as many, or of a single one (1, ...)."""
        model = self.agent.config.model
        widths = (model.deter,), (model.stoch, model.classes)
        if not isinstance(state, State) or any(
            part.shape not in ((count, *width), (1, *width)) for part, width in zip(state, widths)
        ):
            found = (
                f"shapes {', '.join(str(tuple(part.shape)) for part in state)}"
                if isinstance(state, State)
                else f"the type {type(state).__name__}"
            )
            raise UserMistake(
                f"the state or observation is of {found}; give those of 1 or {count}: the `state` of such an "
                "environment or of what `dreamer.load(run).act` returns, or what the real environment shows"
            )
        parts = (torch.as_tensor(part, dtype=torch.float32, device=self.agent.device) for part in state)
        return State(*(part.expand(count, *part.shape[1:]) for part in parts))

    def seen(self, observation: Any) -> State:
        """The states (n, ...) after real observations, one or several, each the first of its episode."""
        given = observation if isinstance(observation, Mapping) else {self.agent.observation_spec.keys[0]: observation}
        return Player(self.agent, self.agent.config.task).act(given)[1].state

    def reseed(self, generator: np.random.Generator) -> None:
        self.dream.reseed(int(generator.integers(2**62)))
        self.agent.acting.generator.manual_seed(int(generator.integers(2**62)))

    def flat(self, action: Any, count: int) -> Tensor:
        """Actions of the action space, (count, ...), as flat ones (count, A)."""
        return torch.from_numpy(flat(self.agent.action_spec, action, count)).to(self.agent.device)

    def look(self, state: State) -> tuple[Any, np.ndarray, np.ndarray]:
        """Observations (N, ...) of the observation space, rewards (N,) and whether each ends (N,)."""
        if self._kind == "latent":
            reward, goes_on = self.dream.outcome(state)
            observation: Any = torch.cat([state.deter, state.stoch.flatten(-2)], -1).cpu().numpy()
        else:
            moment = self.dream.read(state)
            reward, goes_on = moment.reward, moment.goes_on
            found = {key: self._stored(key, value) for key, value in moment.observation.items()}
            observation = next(iter(found.values())) if len(found) == 1 else found
        return observation, reward.cpu().double().numpy(), (self.dream.uniform(len(goes_on)) >= goes_on).cpu().numpy()

    def _stored(self, key: str, value: Tensor) -> np.ndarray:
        """As the environment itself gives it."""
        if key in self.agent.observation_spec.images:
            return value.round().to(torch.uint8).cpu().numpy()
        return value.cpu().numpy().astype(self.agent.observation_spec.shape_and_dtype(key)[1])

    def pictures(self, state: State) -> np.ndarray:
        """(N, H, W, 3) uint8 of N states, where the agent sees images."""
        key = next(iter(self.agent.observation_spec.images))
        return video.to_rgb(self._stored(key, self.dream.read(state).observation[key]))


def real_states(checkpoint: Checkpoint, agent: Agent, first: bool = False) -> tuple[Tensor, Tensor]:
    """The latents of a checkpoint's newest rows but those that end an episode, as the replay keeps them.

    Args:
        first: only those that begin one.

    Raises:
        UserMistake: there are no such rows.

    Returns:
        deter (N, D) in half precision, and the class (N, S) of each one-hot.
    """
    replay = checkpoint.newest_rows(agent)
    rows, latents = (export(replay.oldest, replay.count) for export in (replay.export_flags, replay.export_latents))
    usable = rows["is_first"] & ~rows["is_last"] if first else ~rows["is_last"]
    if not usable.any():
        instead = "use starts='any'" if first and not rows["is_last"].all() else "train for longer"
        raise UserMistake(f"the newest rows of {checkpoint.folder} hold none to begin a dream from; {instead}")
    return latents["deter"][usable].to(agent.device), latents["stoch"][usable].to(agent.device)


def _alone(space: spaces.Dict) -> spaces.Space[Any]:
    """The space of the only key, where there is one: most libraries take nothing else."""
    return next(iter(space.values())) if len(space) == 1 else space


def _observation_space(spec: ObservationSpec) -> spaces.Dict:
    found: dict[str, spaces.Space[Any]] = {}
    for key in spec.keys:
        shape, dtype = spec.shape_and_dtype(key)
        if key in spec.images:
            found[key] = spaces.Box(0, 255, shape, np.uint8)
        elif key in spec.floats:
            found[key] = spaces.Box(-np.inf, np.inf, shape, np.float32)
        else:
            found[key] = spaces.MultiDiscrete(list(spec.integers[key]))
    return spaces.Dict(found)


def _action_space(spec: ActionSpec) -> spaces.Dict:
    found: dict[str, spaces.Space[Any]] = {}
    for part in spec.parts:
        if not part.classes:
            found[part.key] = spaces.Box(-1.0, 1.0, (part.size,), np.float32)
        elif len(part.classes) == 1:
            found[part.key] = spaces.Discrete(part.classes[0])
        else:
            found[part.key] = spaces.MultiDiscrete(list(part.classes))
    return spaces.Dict(found)


class WorldModelEnv(gymnasium.Env[Any, Any]):
    """One dream: `gymnasium.make("dreamer/WorldModel-v0", run="runs/FOLDER")`.

    Observations and actions are those of the run's task as `envs.make` gives them, but for dictionaries with a single
    key, which are left away. `reset(options={"observation": ...})` begins after a real first observation,
    `reset(options={"state": ...})` at a `state` of such an environment or of what `Player.act` returns.

    Args:
        run: the run's folder.
        observation: "decoded" as the environment would give it, or "latent", all that the policy sees (D + S K,).
        horizon: steps after which a dream is cut.
        starts: "any" real state of the run's replay that ends no episode, or those that come "first" in one.
        device: auto, cpu, cuda or mps.
        render_mode: "rgb_array" where the agent sees images, of which `render` then gives the first.

    Raises:
        UserMistake: the folder holds no readable checkpoint or no replay, or an argument is none of these.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(
        self,
        run: str | Path,
        observation: Observation = "decoded",
        horizon: int = HORIZON,
        starts: str = "any",
        device: str = "auto",
        render_mode: str | None = None,
    ):
        self._dreams = _Dreams(run, observation, horizon, starts, device, render_mode)
        self.metadata = self.metadata | {"render_modes": self._dreams.render_modes}
        self.observation_space = self._dreams.observation_space
        self.action_space = self._dreams.action_space
        self.render_mode = render_mode
        self._state: State | None = None
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._state is None:
            self._dreams.reseed(self.np_random)
        self._state = self._dreams.begin(self.np_random, 1, options)
        self._steps = 0
        return _first(self._dreams.look(self._state)[0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._state is None:
            raise gymnasium.error.ResetNeeded("stepped before its reset")
        self._state = self._dreams.dream.step(self._state, self._dreams.flat(action, 1))
        self._steps += 1
        observation, reward, ends = self._dreams.look(self._state)
        return _first(observation), float(reward[0]), bool(ends[0]), self._steps >= self._dreams.horizon, {}

    @property
    def state(self) -> State:
        """Where it is, (1, ...), to begin other dreams at."""
        return _begun(self._state)

    def real(self) -> gymnasium.Env[Any, Any]:
        """The environment that the run has learned from, with the same spaces as the dream that is decoded."""
        config = self._dreams.agent.config
        env = own_envs().make(config.task, **environment_options(config))
        spec = self._dreams.agent.observation_spec
        keys = spec.keys[0] if len(spec.keys) == 1 else None, _only(self._dreams.agent.action_spec)
        return _Bare(env, *keys)

    def render(self) -> Any:
        """What the model sees (H, W, 3) uint8; None without a render_mode, or before the first reset."""
        if self._state is None or self.render_mode is None:
            return None
        return self._dreams.pictures(self._state)[0]


class _Bare(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Without the dictionaries that have a single key, whose names these are."""

    def __init__(self, env: gymnasium.Env[Any, Any], observation: str | None, action: str | None):
        super().__init__(env)
        self._observation, self._action = observation, action
        self.observation_space = _alone(_observation_space(observation_spec(env.observation_space)))
        self.action_space = _alone(env.action_space)  # type: ignore[arg-type]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation[self._observation] if self._observation else observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, *rest = self.env.step({self._action: action} if self._action else action)
        return (observation[self._observation] if self._observation else observation, *rest)


def _only(spec: ActionSpec) -> str | None:
    return spec.parts[0].key if len(spec.parts) == 1 else None


class WorldModelVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Many dreams at once, each step one product on the device: `gymnasium.make_vec("dreamer/WorldModel-v0", 1024,
    vectorization_mode="vector_entry_point", run="runs/FOLDER")`.

    One that ended is reset by the step after, as Gymnasium's vector environments do by default: its action is ignored,
    and it begins anew at a state of the replay, whatever `reset` was given.
    `reset` takes the options of `WorldModelEnv`, for one that all dreams begin with or for one for each.

    Args: the number of dreams; the others as for `WorldModelEnv`.
    """

    metadata = {
        "autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP,
        "render_modes": ["rgb_array"],
        "render_fps": 15,
    }

    def __init__(
        self,
        run: str | Path,
        num_envs: int = 1,
        observation: Observation = "decoded",
        horizon: int = HORIZON,
        starts: str = "any",
        device: str = "auto",
        render_mode: str | None = None,
    ):
        self._dreams = _Dreams(run, observation, horizon, starts, device, render_mode)
        self.metadata = self.metadata | {"render_modes": self._dreams.render_modes}
        self.render_mode = render_mode
        if type(num_envs) is not int or num_envs < 1:
            raise UserMistake(f"num_envs={num_envs!r} is not possible; use a whole number from 1")
        self.num_envs = num_envs
        self.single_observation_space = self._dreams.observation_space
        self.single_action_space = self._dreams.action_space
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self._state: State | None = None
        self._steps = np.zeros(num_envs, int)
        self._over = np.zeros(num_envs, bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None and not isinstance(seed, int | np.integer):
            raise UserMistake(f"seed={seed!r} is not possible; all dreams have one, give a whole number")
        super().reset(seed=seed)
        if seed is not None or self._state is None:
            self._dreams.reseed(self.np_random)
        self._state = self._dreams.begin(self.np_random, self.num_envs, options)
        self._steps[:] = 0
        self._over[:] = False
        return self._dreams.look(self._state)[0], {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self._state is None:
            raise gymnasium.error.ResetNeeded("stepped before its reset")
        begins = self._over.copy()
        self._state = self._dreams.dream.step(self._state, self._dreams.flat(actions, self.num_envs))
        if begins.any():
            self._begin(begins)
        observation, reward, ends = self._dreams.look(self._state)
        self._steps += ~begins
        reward, ends = np.where(begins, 0.0, reward), ends & ~begins
        cut = self._steps >= self._dreams.horizon
        self._over = ends | cut
        return observation, reward, ends, cut, {}

    def render(self) -> tuple[Any, ...] | None:
        """What each sees (H, W, 3) uint8; None without a render_mode, or before the first reset."""
        if self._state is None or self.render_mode is None:
            return None
        return tuple(self._dreams.pictures(self._state))

    @property
    def state(self) -> State:
        """Where they are, (N, ...), to begin other dreams at."""
        return _begun(self._state)

    def restart(self, which: np.ndarray) -> Any:
        """Begin some dreams anew, (N,) bool, without a step of the others, for libraries that do so at once.

        Returns:
            The observations of all.

        Raises:
            gymnasium.error.ResetNeeded: none has begun yet.
        """
        self._begin(which)
        return self._dreams.look(self.state)[0]

    def _begin(self, which: np.ndarray) -> None:
        state = self.state
        begins = torch.from_numpy(which).to(state.deter.device)
        fresh = self._dreams.starts(self.np_random, self.num_envs)
        self._state = State(
            torch.where(begins[:, None], fresh.deter, state.deter),
            torch.where(begins[:, None, None], fresh.stoch, state.stoch),
        )
        self._steps[which] = 0
        self._over = self._over & ~which


def _begun(state: State | None) -> State:
    if state is None:
        raise gymnasium.error.ResetNeeded("there is no state before its reset")
    return state


def _first(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: value[0] for key, value in observation.items()}
    return observation[0]
