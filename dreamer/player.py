"""A trained agent for other people's code."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .acting import Memory
from .agent import Agent
from .errors import UserMistake
from .spaces import ActionPart, ActionSpec


class Player:
    """Chooses actions as the agent of a run would; `dreamer.load` makes one.

        agent = dreamer.load("runs/FOLDER")
        observation, state = env.reset()[0], None
        action, state = agent.act(observation, state)

    Observations and actions are those of `envs.make(agent.task, **agent.options)`: dictionaries of arrays. `state` is
    what the agent remembers of the episode; None begins a new one.
    """

    def __init__(self, agent: Agent, task: str, options: Mapping[str, Any] | None = None):
        self._agent = agent
        self.task = task
        self.options = dict(options or {})  # for `envs.make`, as the run had them

    def act(
        self,
        observation: Mapping[str, Any],
        state: Memory | None = None,
        greedy: bool = False,
        is_first: Any = None,
    ) -> tuple[dict[str, Any], Memory]:
        """The action for one observation {key: (...)}, or for N at once {key: (N, ...)}, and the state to go on with.

        Args:
            observation: of each key that the agent was trained on.
            state: what the last call returned; None where all episodes begin.
            greedy: the most likely action instead of a sample.
            is_first: (N,) bool, which of N observations begin an episode, so that their part of the state is forgotten.

        Raises:
            UserMistake: a key is missing, an array is not as in training, or the numbers of observations, of states
                and of `is_first` differ.
        """
        spec = self._agent.observation_spec
        if not isinstance(observation, Mapping):
            raise UserMistake(
                f"the observation is a {type(observation).__name__}; give a dictionary with {', '.join(spec.keys)}, as "
                "environments of envs.make do"
            )
        single = False
        tensors = {}
        for key in spec.keys:
            if key not in observation:
                raise UserMistake(f"the observation has no {key!r}; this agent was trained on {', '.join(spec.keys)}")
            shape, dtype = spec.shape_and_dtype(key)
            value = np.asarray(observation[key])
            single = value.ndim == len(shape)
            value = value[None] if single else value
            if value.shape[1:] != shape:
                raise UserMistake(
                    f"the observation {key!r} has shape {value.shape[1:]}; this agent was trained on {shape}"
                )
            if key in spec.images and value.dtype != np.uint8:
                raise UserMistake(f"the observation {key!r} is {value.dtype}; images are uint8, from 0 to 255")
            if key in spec.integers and value.dtype.kind not in "iub":
                raise UserMistake(f"the observation {key!r} is {value.dtype}; this agent was trained on integers")
            if key in spec.integers and ((value < 0) | (value >= spec.integers[key])).any():
                most = ", ".join(str(classes - 1) for classes in spec.integers[key])
                raise UserMistake(
                    f"the observation {key!r} has numbers from {value.min()} to {value.max()}; this agent was trained "
                    f"on 0 to {most}"
                )
            tensors[key] = torch.from_numpy(np.ascontiguousarray(value, dtype))
            if dtype.kind == "f" and not torch.isfinite(tensors[key]).all():
                raise UserMistake(f"the observation {key!r} has NaN or infinite numbers")
        if state is not None and not isinstance(state, Memory):
            raise UserMistake(f"the state is a {type(state).__name__}; give what the last call has returned")
        count = len(tensors[spec.keys[0]])
        begins = np.zeros(count, bool) if is_first is None else np.asarray(is_first, bool).reshape(-1)
        given = {f"observations {key!r}": len(value) for key, value in tensors.items()} | {"is_first": len(begins)}
        if state is not None:
            given["states"] = len(state.action)
        if set(given.values()) != {count}:
            words = ", ".join(f"{many} {name}" for name, many in given.items())
            raise UserMistake(f"what was given does not go together: {words}; give as many of each")
        first = torch.from_numpy(begins | (state is None))
        state = self._agent.start(count) if state is None else state
        state = self._agent.act(tensors, first, torch.zeros(count, dtype=torch.bool), state, greedy)
        action = self._agent.action_spec.to_environment(state.action.cpu().numpy())
        return ({key: value[0] for key, value in action.items()} if single else action), state

    def instead(self, action: Any, state: Memory) -> Memory:
        """What `act` returned as the state, had it chosen this action: for whoever decides otherwise, as planners do.

        Args:
            action: as `act` returns it, for as many as there are states.
            state: what `act` returned last.

        Raises:
            UserMistake: it is no action of the task.
        """
        chosen = flat(self._agent.action_spec, action, len(state.action))
        return state._replace(action=torch.from_numpy(chosen).to(state.action))


def flat(spec: ActionSpec, action: Any, count: int) -> np.ndarray:
    """Actions of the action space, {key: (count, ...)} or one key's values alone, as flat ones (count, A) float32.

    Raises:
        UserMistake: they are none that could be taken.
    """
    given = action if isinstance(action, Mapping) else {spec.parts[0].key: action}
    return spec.from_environment({part.key: _checked(part, given.get(part.key), count) for part in spec.parts})


def _checked(part: ActionPart, value: Any, count: int) -> np.ndarray:
    """A part of `count` actions, (count, ...).

    Raises:
        UserMistake: it is none that could be taken.
    """
    try:
        found = np.asarray(value, float).reshape(count, -1)
    except (TypeError, ValueError):
        found = np.zeros((count, 0))
    width = len(part.classes) or part.size
    asked = f"numbers from 0 to {', '.join(str(n - 1) for n in part.classes)}" if part.classes else f"{width} numbers"
    if found.shape[1] != width or not np.isfinite(found).all():
        raise UserMistake(f"the action {part.key!r} is {value!r}; give {asked} for each of {count} states")
    if part.classes and ((found < 0) | (found >= part.classes) | (found % 1 != 0)).any():
        raise UserMistake(f"the action {part.key!r} is {value!r}; give {asked}")
    return found.astype(np.int64) if part.classes else found
