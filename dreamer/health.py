"""Signs that a run learns nothing, in plain words, once each.

A sign counts once it has lasted `LONG` updates, so that what passes by itself says nothing. The thresholds are far
from what runs that learn show; a sign is a reason to look, not a verdict.

    sign                    what it looks at                                  said when
    entropy has collapsed   the policy's entropy, between the least and the   below 2 % of that range
                            most that it can have
    KL at its floor         the dynamics loss, which free bits keep from      within 0.1 % of the floor: nothing is
                            falling below `free_nats`                         left to learn from, anywhere
    return scale is stuck   the two percentiles of imagined returns           neither has moved by 1e-6
    values drift            the critic's mean over imagined states, against   more than twice the best discounted
                            what episodes really gave                         return of the last episodes, and one
    replay is starved       a replay that is full                             fewer than ten batches fit into it
"""

import math
from collections import deque

import numpy as np

from .config import Config
from .distributions import STD_HIGH, STD_LOW, UNIMIX
from .results.published import number
from .spaces import ActionSpec

LONG = 2000  # updates
RECENT = 20  # episodes
COLLAPSED = 0.02
AT_FLOOR = 1e-3
STUCK = 1e-6
DRIFTED = 2.0
FEW_BATCHES = 10


class Health:
    """Looks at the means that a run writes down, and at the rewards of its episodes.

    Args:
        config: of the run.
        action: what the agent does.
        capacity: rows that the replay can hold.
    """

    def __init__(self, config: Config, action: ActionSpec, capacity: int):
        self._config, self._capacity = config, capacity
        self._least, self._most = entropy_range(action, config)
        self._discount = 1 - 1 / config.behavior.discount_horizon
        self.said: set[str] = set()  # names of the signs that were said
        self._past: deque[tuple[int, dict[str, float]]] = deque()  # updates, means since the entry before
        self._best: deque[float] = deque(maxlen=RECENT)

    def episode(self, rewards: list[float], is_terminal: bool) -> None:
        """An episode's rewards, in order."""
        self._best.append(best_return(rewards, is_terminal, self._discount))

    def look(self, updates: int, rows: int, means: dict[str, float]) -> list[str]:
        """What there is to say now: sentences that were not said before.

        Args:
            updates, rows: so far.
            means: of the metrics since the last look.
        """
        self._past.append((updates, means))
        while len(self._past) > 2 and self._past[1][0] <= updates - LONG:
            self._past.popleft()
        signs = {"replay": self._replay(rows)}
        if self._past[-1][0] - self._past[0][0] >= LONG:
            signs |= {"entropy": self._entropy(), "kl": self._kl(), "scale": self._scale(), "values": self._values()}
        new = {name: sentence for name, sentence in signs.items() if sentence and name not in self.said}
        self.said |= set(new)
        return [sentence for sentence in new.values() if sentence]

    def _replay(self, rows: int) -> str | None:
        if not rows > self._capacity < FEW_BATCHES * self._batch:
            return None
        return (
            f"the replay holds only {self._capacity:,} rows, and each update takes {self._batch:,} of them: it will "
            "learn little but the latest episodes; raise replay.capacity"
        )

    def _entropy(self) -> str | None:
        entropy = self._lasting("behavior/entropy")
        if not entropy or max(entropy) >= self._least + COLLAPSED * (self._most - self._least):
            return None
        return (
            f"the policy hardly varies any more (entropy {entropy[-1]:.3g}, between {self._least:.3g} and "
            f"{self._most:.3g} are possible), so it finds nothing new; if the score is not good yet, raise "
            "behavior.entropy, or look at the scale of the rewards"
        )

    def _kl(self) -> str | None:
        floor, dynamics = self._config.model.free_nats, self._lasting("loss/dynamics")
        if not floor or not dynamics or max(dynamics) >= floor * (1 + AT_FLOOR):
            return None
        return (
            f"the KL divergence stays under its floor of {floor:g} nats everywhere, so the world model is asked to "
            "predict nothing; look at the losses of the decoder: the observations may hardly change"
        )

    def _scale(self) -> str | None:
        low, high = self._lasting("behavior/return_low"), self._lasting("behavior/return_high")
        if not low or not high or max(max(low) - min(low), max(high) - min(high)) >= STUCK:
            return None
        return (
            "the imagined returns have been the same for long; look at the rewards: the agent may never have seen one "
            "that differs from the rest"
        )

    def _values(self) -> str | None:
        values, best = self._lasting("behavior/value"), max(self._best, default=math.inf)
        if not values or len(self._best) < RECENT or min(values) <= max(DRIFTED * best, best + 1):
            return None
        return (
            f"the critic expects a return of {number(values[-1])}, but the best of the last {RECENT} episodes gave "
            f"{number(best)} (discounted); do not trust the imagined returns, and look at the losses of reward and "
            "continuation"
        )

    @property
    def _batch(self) -> int:
        return self._config.replay.batch * self._config.replay.length

    def _lasting(self, name: str) -> list[float]:
        """The means of a metric over the last LONG updates; nothing unless it was there all the time."""
        values = [means.get(name, math.nan) for _, means in list(self._past)[1:]]
        return values if all(map(math.isfinite, values)) else []


def entropy_range(action: ActionSpec, config: Config) -> tuple[float, float]:
    """The least and the most entropy in nats that a policy can have, over all parts of its action."""
    least = most = 0.0
    for part in action.parts:
        for classes in part.classes:
            rest = UNIMIX / classes
            probabilities = np.array([1 - UNIMIX + rest, *[rest] * (classes - 1)])
            least -= float(probabilities @ np.log(probabilities))
            most += math.log(classes)
        if not part.classes:
            normal = 0.5 * math.log(2 * math.pi * math.e)
            least += part.size * (normal + math.log(STD_LOW))
            most += part.size * (normal + math.log(STD_HIGH))
    return least, most


def best_return(rewards: list[float], is_terminal: bool, discount: float) -> float:
    """The highest discounted return of an episode's states; a time limit is taken to go on like the episode's mean."""
    value = 0.0 if is_terminal or not rewards else float(np.mean(rewards)) / (1 - discount)
    best = value
    for reward in reversed(rewards):
        value = reward + discount * value
        best = max(best, value)
    return best
