"""The DeepMind Control Suite, seen as vectors or through a camera."""

import importlib.util
import logging
import os
import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .adapt import Adapt
from .errors import TaskError, did_you_mean
from .images import check_size

EPISODE_FRAMES = 1000
# What the suite reports where an actuator has no limit (two tasks of `lqr`).
UNLIMITED = 1e10
ALIASES = {"cup": "ball_in_cup"}
RENDERERS = ("egl", "osmesa")
RENDERING_HELP = (
    "install the Debian packages libegl1 libgl1-mesa-dri libosmesa6 (or what your system calls them), "
    "and leave the variable MUJOCO_GL unset"
)


def names() -> list[str]:
    """All tasks as DOMAIN_TASK."""
    return sorted(_tasks())


def make_dmc(name: str, *, repeat: int = 2, seed: int | None = None) -> Adapt:
    """Vector observations, under the keys that the suite gives them."""
    return Adapt(Control(*_find(name), repeat=repeat), repeat=repeat, seed=seed)


def make_dmc_vision(name: str, *, repeat: int = 2, seed: int | None = None, size: int = 64) -> Adapt:
    """One camera image, `size` pixels high and wide, and nothing else."""
    check_size(size)
    _choose_renderer(required=True)
    return Adapt(ControlVision(*_find(name), repeat=repeat, size=size), repeat=repeat, seed=seed)


class Control(gymnasium.Env[Any, Any]):
    """One task. `repeat` is the number of control steps (frames) per step; rewards of these are summed.

    Observation: each entry of the suite's own, flattened, (n,) float32. Action: `action`, (n,) float64 within
    the actuators' limits. The episode is truncated after 1000 frames; it is terminated where the suite sets
    the discount to 0, which few tasks do.
    """

    render_mode = "rgb_array"
    _env: Any = None

    def __init__(self, domain: str, task: str, *, repeat: int):
        self.domain = domain
        self.task = task
        self.metadata = {"render_modes": ["rgb_array"]}
        self.repeat = repeat
        self._load(int(np.random.SeedSequence().generate_state(1)[0]))
        spec = self._env.action_spec()
        limited = np.abs(spec.minimum) < UNLIMITED
        low, high = np.where(limited, spec.minimum, -1.0), np.where(limited, spec.maximum, 1.0)
        self.action_space = spaces.Dict({"action": spaces.Box(low, high, dtype=np.float64)})
        self.observation_space = self._observation_space()
        self._frames = 0
        self._begun: dict[str, Any] = {}
        self._actions: list[np.ndarray] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            # Some models have random parts, so that a seed calls for a new one.
            self._load(seed)
        return self._observe(self._begin()), {}

    def step(self, action: dict[str, Any]) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        time_step, reward = self._advance(np.array(action["action"], np.float64))
        terminated = time_step.last() and time_step.discount == 0
        truncated = not terminated and (time_step.last() or self._frames >= EPISODE_FRAMES)
        return self._observe(time_step), reward, terminated, truncated, {}

    def render(self) -> np.ndarray:
        """The view of the task's camera, (240, 320, 3) uint8."""
        return self._camera(240, 320)

    def close(self) -> None:
        self._env.close()

    def get_state(self) -> dict[str, Any]:
        """The episode's beginning and the actions since; see `saving`.

        Physics is repeatable, and much of what a task randomises sits in its model, not in its state: acting
        the episode again is exact for every task, whatever it keeps where.
        """
        actions = np.array(self._actions, np.float64)
        return {"load_seed": self._load_seed, "begun": dict(self._begun), "actions": actions}

    def set_state(self, state: dict[str, Any]) -> None:
        """Up to a second: the physics of the episode so far is computed again."""
        if state["load_seed"] != self._load_seed:
            self._load(state["load_seed"])
        if state["begun"]:
            _set_random_state(self._env.task.random, state["begun"])
            self._begin()
        for action in state["actions"]:
            self._advance(action)

    def _load(self, seed: int) -> None:
        if self._env is not None:
            self._env.close()
        self._load_seed = seed
        self._env = _suite().load(self.domain, self.task, task_kwargs={"random": seed % 2**32})

    def _begin(self) -> Any:
        self._begun = _random_state(self._env.task.random)
        self._actions = []
        self._frames = 0
        return self._env.reset()

    def _advance(self, action: np.ndarray) -> tuple[Any, float]:
        """One step. Returns dm_control's last time step and the sum of rewards."""
        self._actions.append(action)
        reward = 0.0
        for _ in range(self.repeat):
            time_step = self._env.step(action)
            reward += time_step.reward or 0.0
            self._frames += 1
            if time_step.last() or self._frames >= EPISODE_FRAMES:
                break
        return time_step, reward

    def _observation_space(self) -> spaces.Dict:
        sizes = {key: int(np.prod(spec.shape)) for key, spec in self._env.observation_spec().items()}
        return spaces.Dict({key: spaces.Box(-np.inf, np.inf, (n,), np.float32) for key, n in sizes.items()})

    def _observe(self, time_step: Any) -> dict[str, np.ndarray]:
        return {key: np.asarray(value, np.float32).reshape(-1) for key, value in time_step.observation.items()}

    def _camera(self, height: int, width: int) -> np.ndarray:
        # The quadruped's first camera looks from far above.
        camera = 2 if self.domain == "quadruped" else 0
        return self._env.physics.render(height, width, camera_id=camera)


class ControlVision(Control):
    """The same task seen through its camera: `image` (size, size, 3) uint8."""

    def __init__(self, domain: str, task: str, *, repeat: int, size: int):
        self.size = size
        super().__init__(domain, task, repeat=repeat)
        try:
            self._camera(size, size)
        except Exception as error:
            # OpenGL fails in many ways, and each of them means the same to the user.
            raise TaskError(f"This machine cannot render images of a task: {RENDERING_HELP}.") from error

    def _observation_space(self) -> spaces.Dict:
        return spaces.Dict({"image": spaces.Box(0, 255, (self.size, self.size, 3), np.uint8)})

    def _observe(self, time_step: Any) -> dict[str, np.ndarray]:
        return {"image": self._camera(self.size, self.size)}


def _find(name: str) -> tuple[str, str]:
    """(domain, task) of DOMAIN_TASK; TaskError if there is none."""
    tasks = _tasks()
    for short, domain in ALIASES.items():
        if name.startswith(short + "_"):
            name = domain + name.removeprefix(short)
    if name not in tasks:
        raise TaskError(f"The Control Suite has no task '{name}'.{did_you_mean(name, tasks)}")
    return tasks[name]


def _tasks() -> dict[str, tuple[str, str]]:
    return {f"{domain}_{task}": (domain, task) for domain, task in _suite().ALL_TASKS}


def _random_state(random: np.random.RandomState) -> dict[str, Any]:
    state: Any = random.get_state(legacy=False)
    return {
        "key": state["state"]["key"].copy(),
        "position": int(state["state"]["pos"]),
        "has_gauss": int(state["has_gauss"]),
        "gauss": float(state["gauss"]),
    }


def _set_random_state(random: np.random.RandomState, state: dict[str, Any]) -> None:
    random.set_state(("MT19937", state["key"], state["position"], state["has_gauss"], state["gauss"]))


def _suite() -> Any:
    """dm_control.suite, imported once a renderer is chosen."""
    _choose_renderer(required=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a missing display, on machines that have none
            from dm_control import suite
    except ModuleNotFoundError as error:
        if error.name not in ("dm_control", "mujoco"):
            raise
        # From 3.13 on there are no wheels of labmaze, which dm-control asks for and of which the suite needs nothing.
        alone = "--no-deps " * (sys.version_info >= (3, 13))
        raise TaskError(f"The Control Suite needs the package dm_control: pip install {alone}dm-control.") from error
    except Exception as error:
        chosen = os.environ.get("MUJOCO_GL")
        raise TaskError(f"dm_control cannot be loaded with MUJOCO_GL={chosen}: {RENDERING_HELP}.") from error
    # The suite's own models are written in ways that its own compiler warns about, each time they are loaded.
    logging.getLogger("absl").setLevel(logging.ERROR)
    return suite


def _choose_renderer(required: bool) -> None:
    """Sets MUJOCO_GL, which dm_control reads once at its import, to what renders on this machine.

    Without it dm_control takes a windowing library even where there is no display. Does nothing where the
    user has chosen, where dm_control is imported already, and on systems that render through their own
    windows.
    """
    if "MUJOCO_GL" in os.environ or "dm_control" in sys.modules or sys.platform != "linux":
        return
    if importlib.util.find_spec("dm_control") is None:
        return
    for renderer in RENDERERS:
        if _renders(renderer):
            os.environ["MUJOCO_GL"] = renderer
            return
    if required:
        raise TaskError(f"Neither EGL nor OSMesa can render images here: {RENDERING_HELP}.")


def _renders(renderer: str) -> bool:
    """Whether a process of its own can draw an image with it: a failing driver may take its process down."""
    draw = "from dm_control import mujoco; mujoco.Physics.from_xml_string('<mujoco/>').render(16, 16)"
    environment = {**os.environ, "MUJOCO_GL": renderer}
    try:
        done = subprocess.run(
            [sys.executable, "-c", draw], env=environment, capture_output=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
