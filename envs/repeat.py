"""Repeating each action of an environment that does not do so itself."""

from typing import Any

import gymnasium

from .saving import can_save_state


class ActionRepeat(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Takes each action `times` times or until the episode ends. Rewards are summed."""

    def __init__(self, env: gymnasium.Env[Any, Any], times: int):
        super().__init__(env)
        self.times = times

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.times):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info

    @property
    def can_save_state(self) -> bool:
        return can_save_state(self.env)

    def get_state(self) -> dict[str, Any]:
        return self.env.get_state()  # type: ignore[attr-defined]

    def set_state(self, state: dict[str, Any]) -> None:
        self.env.set_state(state)  # type: ignore[attr-defined]
