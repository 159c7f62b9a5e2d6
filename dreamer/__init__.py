"""DreamerV3: learn a world model, and a policy inside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from .dreams.world_env import WorldModelEnv, WorldModelVectorEnv
    from .player import Player

__all__ = ["WorldModelEnv", "WorldModelVectorEnv", "load"]

gymnasium.register(
    "dreamer/WorldModel-v0",
    entry_point="dreamer.dreams.world_env:WorldModelEnv",
    vector_entry_point="dreamer.dreams.world_env:WorldModelVectorEnv",
)


def __getattr__(name: str) -> Any:
    # Here, so that `import dreamer` and the command line's help do not wait for torch.
    if name in ("WorldModelEnv", "WorldModelVectorEnv"):
        from .dreams import world_env

        return getattr(world_env, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(run: str | Path, device: str = "auto", seed: int = 0) -> "Player":
    """The agent of a run's checkpoint, ready to act.

    Args:
        run: the run's folder.
        device: auto, cpu, cuda or mps.
        seed: of the actions that it samples.

    Raises:
        UserMistake: the folder holds no readable checkpoint, or there is no such device.
    """
    from .checkpoint import RunFolder
    from .player import Player

    folder = RunFolder(Path(run))
    config = folder.config()
    return Player(folder.load_agent(device, seed), config.task, {"repeat": config.repeat, **config.environment})
