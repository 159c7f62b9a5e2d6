"""Atari games on the Arcade Learning Environment, frame by frame.

This drives the emulator itself rather than ale_py's Gymnasium environment: it renders only the frames that
are looked at, and it draws the sticky actions, since the emulator's own record of the action it holds is not
part of the state that it can save.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .adapt import Adapt
from .errors import TaskError, did_you_mean
from .images import check_size, resize

# 0.299, 0.587, 0.114, of which the last is written so that the sum is 1 in floating point too: with the
# literal a third of all pure greys would come out one too dark, truncated as they are.
GREY = np.array([0.299, 0.587, 1 - (0.299 + 0.587)])
NOOP = 0


def names() -> list[str]:
    """The games that can be played alone, in ale_py's snake_case."""
    ale_py = _ale_py()
    from ale_py import roms

    supported = ale_py.ALEInterface.isSupportedROM
    return [rom for rom in sorted(roms.get_all_rom_ids()) if supported(roms.get_rom_path(rom))]


def make_atari(
    name: str,
    *,
    repeat: int = 4,
    seed: int | None = None,
    size: int = 96,
    grey: bool = True,
    sticky: float = 0.25,
    actions: str = "all",
    noops: int = 30,
    time_limit_frames: int = 108_000,
) -> Adapt:
    """The protocol of 200 million frames. Options as in `Atari`."""
    game = Atari(
        name,
        repeat=repeat,
        size=size,
        grey=grey,
        sticky=sticky,
        actions=actions,
        noops=noops,
        time_limit_frames=time_limit_frames,
    )
    return Adapt(game, repeat=repeat, seed=seed)


def make_atari100k(
    name: str,
    *,
    repeat: int = 4,
    seed: int | None = None,
    size: int = 64,
    grey: bool = False,
    sticky: float = 0.0,
    actions: str = "minimal",
    noops: int = 30,
    time_limit_frames: int = 108_000,
) -> Adapt:
    """The protocol of 400 thousand frames: other defaults, the same game. Options as in `Atari`."""
    return make_atari(
        name,
        repeat=repeat,
        seed=seed,
        size=size,
        grey=grey,
        sticky=sticky,
        actions=actions,
        noops=noops,
        time_limit_frames=time_limit_frames,
    )


class Atari(gymnasium.Env[Any, Any]):
    """One game. Rewards are the game's own points, and only its end is a terminal, not the loss of a life.

    Observation: `image` (size, size, 1 or 3) uint8, the maximum over the last two frames of a step (one frame
    alone after a reset, and where the game ends before the last frame of a step), resized, then grey if
    asked.
    Action: `action`, an index into the game's actions.

    repeat: frames per step. sticky: the chance, each frame, that the console holds the last action instead.
    actions: 'all' the console knows or the 'minimal' set that has an effect in this game. noops: at most so
    many idle frames after a reset. time_limit_frames: a game is cut off (truncated) after so many frames,
    idle ones included.

    Raises TaskError for an unknown game or an option out of range.
    """

    render_mode = "rgb_array"

    def __init__(
        self,
        game: str,
        *,
        repeat: int,
        size: int,
        grey: bool,
        sticky: float,
        actions: str,
        noops: int,
        time_limit_frames: int,
    ):
        ale_py = _ale_py()
        if game not in names():
            raise TaskError(f"There is no Atari game '{game}'.{did_you_mean(game, names())}")
        check_size(size)
        if not 0 <= sticky < 1:
            raise TaskError(f"sticky={sticky} is not possible: it is a probability from 0 to below 1.")
        if actions not in ("all", "minimal"):
            raise TaskError(f"actions='{actions}' is not possible: use 'all' or 'minimal'.")
        if noops < 0:
            raise TaskError(f"noops={noops} is not possible: use 0 or more.")
        if time_limit_frames < 1:
            raise TaskError(f"time_limit_frames={time_limit_frames} is not possible: use 1 or more.")

        self.game = game
        self.metadata = {"render_modes": ["rgb_array"]}
        self.repeat = repeat
        self.size = size
        self.grey = grey
        self.sticky = sticky
        self.noops = noops
        self.time_limit_frames = time_limit_frames

        self.ale = ale_py.ALEInterface()
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.setInt("random_seed", 0)  # else the clock's, though without stickiness nothing depends on it
        self._used = False
        self._insert_cartridge()
        legal = self.ale.getLegalActionSet() if actions == "all" else self.ale.getMinimalActionSet()
        self._actions = [action.value for action in legal]
        self._meanings = [action.name for action in legal]
        self._held = NOOP

        height, width = self.ale.getScreenDims()
        self._frames = [np.zeros((height, width, 3), np.uint8) for _ in range(2)]
        channels = 1 if grey else 3
        self.observation_space = spaces.Dict({"image": spaces.Box(0, 255, (size, size, channels), np.uint8)})
        self.action_space = spaces.Dict({"action": spaces.Discrete(len(self._actions))})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None and self._used:
            # Some games keep memory across a reset of the console.
            self._insert_cartridge()
        self._used = True
        self._start_game()
        for _ in range(self.np_random.integers(self.noops + 1)):
            self.ale.act(NOOP)
            if self.ale.game_over():
                self._start_game()
                break
        self.ale.getScreenRGB(self._frames[0])
        return self._observation(self._frames[0]), {}

    def step(self, action: dict[str, Any]) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        wanted = self._actions[int(action["action"])]
        reward, over, out_of_time, rendered = 0.0, False, False, 0
        for frame in range(self.repeat):
            if not self.sticky or self.np_random.random() >= self.sticky:
                self._held = wanted
            reward += self.ale.act(self._held)
            over = self.ale.game_over()
            out_of_time = self.ale.getEpisodeFrameNumber() >= self.time_limit_frames
            ends = over or out_of_time
            if ends or frame >= self.repeat - 2:
                self.ale.getScreenRGB(self._frames[rendered])
                rendered += 1
            if ends:
                break
        image = self._frames[0] if rendered == 1 else np.maximum(*self._frames)
        return self._observation(image), reward, over, out_of_time and not over, {}

    def get_action_meanings(self) -> list[str]:
        """As of the joystick: NOOP, FIRE, UP, UPRIGHTFIRE ..."""
        return list(self._meanings)

    def render(self) -> np.ndarray:
        """The console's screen (H, W, 3) uint8, as large as it is."""
        return self.ale.getScreenRGB()

    def get_state(self) -> dict[str, Any]:
        """Everything that the next observations depend on; see `saving`."""
        return {
            "console": self.ale.cloneState(include_rng=True).serialize(),
            "held": self._held,
            "random": _generator_state(self.np_random),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Exact in every game from repeat 3 on. With 1 or 2 the first image afterwards may lack what a game
        that draws half a screen per frame (yars_revenge) had drawn before."""
        ale_py = _ale_py()
        saved = ale_py.ALEState(state["console"])
        # The reset switch is still pressed after a reset, until the first frame, and is no part of the state.
        self.ale.reset_game()
        if saved.getEpisodeFrameNumber() > 0:
            self.ale.act(NOOP)
        self.ale.restoreState(saved)
        self._held = state["held"]
        self._used = True
        _set_generator_state(self.np_random, state["random"])

    def _insert_cartridge(self) -> None:
        from ale_py import roms

        self.ale.loadROM(roms.get_rom_path(self.game))
        self._used = False

    def _start_game(self) -> None:
        self.ale.reset_game()
        self._held = NOOP

    def _observation(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        image = resize(frame, (self.size, self.size))
        return {"image": to_grey(image) if self.grey else image}


def to_grey(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W, 1) uint8: 0.299 red + 0.587 green + 0.114 blue, truncated."""
    return (image @ GREY).astype(np.uint8)[:, :, None]


def _generator_state(generator: np.random.Generator) -> np.ndarray:
    """A PCG64 generator's state as (6,) uint64."""
    state: Any = generator.bit_generator.state
    halves = [(state["state"][name] >> shift) & (2**64 - 1) for name in ("state", "inc") for shift in (64, 0)]
    return np.array([*halves, state["has_uint32"], state["uinteger"]], np.uint64)


def _set_generator_state(generator: np.random.Generator, words: np.ndarray) -> None:
    state_high, state_low, inc_high, inc_low, has_uint32, uinteger = (int(word) for word in words)
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": state_high << 64 | state_low, "inc": inc_high << 64 | inc_low},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }


def _ale_py() -> Any:
    try:
        import ale_py
    except ImportError as error:
        raise TaskError("Atari games need the package ale_py: pip install ale-py.") from error
    # Before the first console, which would print a banner.
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return ale_py
