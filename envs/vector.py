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

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .errors import EnvironmentFailed, TaskError
from .workers import Factory, Local, Outcome, Worker


class Rows(NamedTuple):
    """One row of each of N streams."""

    observation: dict[str, np.ndarray]  # (N, ...) of each key
    reward: np.ndarray  # (N,) float32
    is_first: np.ndarray  # (N,) bool
    is_last: np.ndarray  # (N,) bool
    is_terminal: np.ndarray  # (N,) bool


class Vector:
    """N environments, stepped one after the other in this process or at the same time in processes of their own.

    factories: each makes an environment as `make` returns it; see `Worker` for what processes ask of them.
    seeds: one for each, used at its first reset only. processes: the rows are the same either way; see
    `steps_in_processes` for when it is faster. restarts: how often in one episode an environment that fails is
    closed and made anew. Its episode ends there, as at a time limit: the answer is a row that `is_first`.
    patience: seconds to wait for an environment in a process of its own before it has failed.

    Raises TaskError if an environment resets itself, or if the spaces differ; EnvironmentFailed and WorkerDied as
    `Local` and `Worker` do, once the restarts are used up.
    """

    def __init__(
        self,
        factories: Sequence[Factory],
        seeds: Sequence[int],
        processes: bool = False,
        restarts: int = 0,
        patience: float = math.inf,
    ):
        assert len(factories) == len(seeds) > 0, "one seed for each environment, and one at least"
        self._factories = list(factories)
        self._processes, self._patience = processes, patience
        self._restarts = restarts
        self._failures = [0] * len(factories)  # of each, since it last ended an episode well
        self.on_restart: Callable[[EnvironmentFailed], object] = lambda error: None
        self._envs: list[Local | Worker] = []
        try:
            for index in range(len(self._factories)):
                self._envs.append(self._open(index))
            facts = [env.facts for env in self._envs]
            for other in facts:
                if other[:2] != facts[0][:2]:
                    raise TaskError("The environments differ in their spaces: step together only those that are alike.")
        except BaseException:
            self.close()
            raise
        self._seeds = [int(seed) for seed in seeds]
        self._needs_reset = np.ones(len(self), bool)
        self._is_seeded = np.zeros(len(self), bool)
        self._made_anew = 0  # environments so far; none begins like another
        self.observation_space, self.action_space, self.repeat, self.notes, _ = facts[0]
        self.can_save_state = all(fact.can_save_state for fact in facts)

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
        answers = []
        for i, env in enumerate(self._envs):
            if self._needs_reset[i]:
                answers.append(env.ask("reset", None if self._is_seeded[i] else self._seeds[i]))
            else:
                answers.append(env.ask("step", {key: action[i] for key, action in actions.items()}))
        for i, answer in enumerate(answers):
            values, reward, terminated, truncated = self._outcome(i, answer)
            rows.is_first[i] = self._needs_reset[i]
            rows.reward[i] = reward
            rows.is_terminal[i] = terminated
            rows.is_last[i] = terminated or truncated
            self._is_seeded[i] = True
            self._needs_reset[i] = rows.is_last[i]
            if rows.is_last[i]:
                self._failures[i] = 0
            for key, target in observation.items():
                target[i] = values[key]
        return rows

    def _outcome(self, i: int, answer: Callable[[], Outcome]) -> Outcome:
        """The answer of environment i, or the first row of the one that takes its place."""
        while True:
            try:
                return answer()
            except EnvironmentFailed as error:
                if self._failures[i] >= self._restarts:
                    raise
                self._failures[i] += 1
                self._needs_reset[i] = True
                self.on_restart(error)
                answer = functools.partial(self._make_anew, i)

    def _make_anew(self, i: int) -> Outcome:
        self._envs[i].close()
        try:
            self._envs[i] = self._open(i)
            facts = self._envs[i].facts
        except EnvironmentFailed:
            raise
        except TaskError as error:  # it was sound once, so this counts as a failure like any other
            raise EnvironmentFailed(str(error)) from error
        if facts[:2] != (self.observation_space, self.action_space):
            raise TaskError("The environment that was made anew differs in its spaces from the one that failed.")
        self._made_anew += 1
        seed = np.random.SeedSequence((self._seeds[i], self._made_anew)).generate_state(1)
        return self._envs[i].reset(int(seed[0]))

    def reseed(self, seed: list[int]) -> None:
        """Other seeds for those that have not been reset yet; `seed` is what they come from."""
        self._seeds = np.random.SeedSequence(seed).generate_state(len(self)).tolist()

    def render(self, index: int) -> np.ndarray | None:
        """A picture (H, W, 3) uint8 of one environment, None if it draws none."""
        picture = self._envs[index].ask("render")()
        drawn = isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.dtype == np.uint8
        return picture if drawn else None

    def get_state(self) -> dict[str, Any]:
        """See `saving`. Only where `can_save_state`."""
        answers = [env.ask("get_state") for env in self._envs]
        return {
            "needs_reset": self._needs_reset.copy(),
            "failures": np.array(self._failures),
            "made_anew": self._made_anew,
            "seeds": np.array(self._seeds),
            "is_seeded": self._is_seeded.copy(),
            "envs": {str(i): answer() for i, answer in enumerate(answers)},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Of a Vector of as many environments, made with the same arguments; the seeds may differ.

        Where one refuses its state, this raises, and all of them still begin anew.
        """
        assert len(state["envs"]) == len(self), "saved with another number of environments"
        answers = [env.ask("set_state", state["envs"][str(i)]) for i, env in enumerate(self._envs)]
        for answer in answers:
            answer()
        self._failures, self._made_anew = state["failures"].tolist(), state["made_anew"]
        self._seeds = state["seeds"].tolist()
        self._needs_reset = state["needs_reset"].copy()
        self._is_seeded = state["is_seeded"].copy()

    def close(self) -> None:
        for env in self._envs:
            env.hang_up()
        for env in self._envs:
            env.close()

    def _open(self, index: int) -> Local | Worker:
        name = f"environment {index + 1} of {len(self._factories)}"
        if self._processes:
            return Worker(self._factories[index], name, self._patience)
        return Local(self._factories[index], name)
