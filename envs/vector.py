"""Several environments in lock step.

One act, one row. A reset is a row of its own: an environment whose last row was `is_last`, or that has not
begun, ignores its action, is reset, and answers with `is_first` and reward 0. So each call gives one row of
every stream:

    call           1     2     3     4     5     6
    action               a0    a1    a2   (any)  a0'       chosen at the observation of the row before
    observation    o0    o1    o2    o3    o0'   o1'
    reward         0     r1    r2    r3    0     r1'       arrives with the observation that it led to
    is_first       yes                     yes
    is_last                          yes                   the episode ended, really or by a time limit
    is_terminal                      yes                   it ended really; stays no at a time limit

No environment may reset itself: its first observation would be taken for the last one's successor.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from .errors import TaskError
from .saving import can_save_state


class Rows(NamedTuple):
    """One row of each of N streams."""

    observation: dict[str, np.ndarray]  # (N, ...) of each key
    reward: np.ndarray  # (N,) float32
    is_first: np.ndarray  # (N,) bool
    is_last: np.ndarray  # (N,) bool
    is_terminal: np.ndarray  # (N,) bool


class Vector:
    """N environments, stepped one after the other in this process.

    factories: each makes an environment as `make` returns it. seeds: one for each, used at its first reset
    only.

    Raises TaskError if an environment resets itself, or if the spaces differ.
    """

    def __init__(self, factories: Sequence[Callable[[], gymnasium.Env[Any, Any]]], seeds: Sequence[int]):
        assert len(factories) == len(seeds) > 0, "one seed for each environment, and one at least"
        self._envs: list[Any] = []
        try:
            for factory in factories:
                self._envs.append(_refuse_autoreset(factory()))
            first = self._envs[0]
            for env in self._envs:
                same = (
                    env.observation_space == first.observation_space,
                    env.action_space == first.action_space,
                )
                if not all(same):
                    raise TaskError("The environments differ in their spaces: step together only those that are alike.")
        except BaseException:
            self.close()
            raise
        self._seeds = [int(seed) for seed in seeds]
        self._needs_reset = np.ones(len(self), bool)
        self._is_seeded = np.zeros(len(self), bool)
        self.observation_space: gymnasium.spaces.Dict = first.observation_space
        self.action_space: gymnasium.spaces.Dict = first.action_space
        self.repeat: int = getattr(first, "repeat", 1)
        self.notes: list[str] = list(getattr(first, "notes", []))

    def __len__(self) -> int:
        return len(self._envs)

    def step(self, actions: Mapping[str, np.ndarray]) -> Rows:
        """actions: (N, ...) for each key of the action space. The arrays returned are fresh ones."""
        count = len(self)
        observation = {
            key: np.empty((count, *(space.shape or ())), space.dtype)
            for key, space in self.observation_space.spaces.items()
        }
        rows = Rows(
            observation,
            reward=np.zeros(count, np.float32),
            is_first=np.zeros(count, bool),
            is_last=np.zeros(count, bool),
            is_terminal=np.zeros(count, bool),
        )
        for i, env in enumerate(self._envs):
            if self._needs_reset[i]:
                seed = None if self._is_seeded[i] else self._seeds[i]
                values, _ = env.reset(seed=seed)
                self._is_seeded[i] = True
                rows.is_first[i] = True
            else:
                values, reward, terminated, truncated, info = env.step(
                    {key: action[i] for key, action in actions.items()}
                )
                rows.reward[i] = reward
                rows.is_terminal[i] = terminated
                rows.is_last[i] = terminated or truncated
                if rows.is_last[i] and ("final_obs" in info or "final_observation" in info):
                    raise TaskError(_RESETS_ITSELF)
            self._needs_reset[i] = rows.is_last[i]
            for key, target in observation.items():
                target[i] = values[key]
        return rows

    @property
    def can_save_state(self) -> bool:
        return all(can_save_state(env) for env in self._envs)

    def get_state(self) -> dict[str, Any]:
        """See `saving`. Only where `can_save_state`."""
        return {
            "needs_reset": self._needs_reset.copy(),
            "is_seeded": self._is_seeded.copy(),
            "envs": {str(i): env.get_state() for i, env in enumerate(self._envs)},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Of a Vector of as many environments, made with the same arguments; the seeds may differ."""
        assert len(state["envs"]) == len(self), "saved with another number of environments"
        self._needs_reset = state["needs_reset"].copy()
        self._is_seeded = state["is_seeded"].copy()
        for i, env in enumerate(self._envs):
            env.set_state(state["envs"][str(i)])

    def close(self) -> None:
        for env in self._envs:
            env.close()


_RESETS_ITSELF = (
    "The environment resets itself at the end of an episode, which would mix two episodes: take "
    "away the wrapper that does so (gymnasium.wrappers.Autoreset) and return a single environment."
)


def _refuse_autoreset(env: Any) -> gymnasium.Env[Any, Any]:
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, gymnasium.wrappers.Autoreset):
            env.close()
            raise TaskError(_RESETS_ITSELF)
        layer = layer.env
    if isinstance(layer, gymnasium.vector.VectorEnv):
        env.close()
        raise TaskError(_RESETS_ITSELF)
    return env
