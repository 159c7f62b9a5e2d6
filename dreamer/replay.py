"""Experience: a ring of rows for each environment, and the convention of time that everything else relies on.

A row belongs to one environment at one agent step. It holds what was seen, what was chosen upon it, and what came
with it:

    row             t                 t+1               t+2
    observation     o[t]              o[t+1]            o[t+2]
    reward, flags   arrived with o[t] with o[t+1]       ...
    latent          after seeing o[t] after o[t+1]      ...
    action          chosen at o[t] -> leads to o[t+1] -> ...

    episode    | is_first ............. is_last | is_first ....
    reward     | 0                              | 0
    action     |                        0       |

A reset is a row of its own. `is_last` ends an episode for whatever reason; `is_terminal` only where the task really
ended, not at a time limit.

To train on T steps takes T + 1 rows: row 0 gives the latents to start from and the first previous action. The one place
that shifts actions against the rest is `Replay._take`:

    rows            0      1      2     ...   T
    observation            o[1]   o[2]        o[T]
    prev_action            a[0]   a[1]        a[T-1]
    start           latent[0]
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from .config import Config
from .cuda import fetch, moved
from .errors import UserMistake
from .rssm import State
from .spaces import ActionSpec, ObservationSpec

LATENTS = ("deter", "stoch")  # what is refreshed; the rest of a row never changes


class Transition(NamedTuple):
    """One row of each of N environments."""

    observation: dict[str, Tensor]  # (N, ...)
    action: Tensor  # (N, A)
    reward: Tensor  # (N,)
    is_first: Tensor  # (N,) bool
    is_last: Tensor  # (N,) bool
    is_terminal: Tensor  # (N,) bool
    latent: State  # (N, ...)


class Batch(NamedTuple):
    """B sequences of T steps, aligned for training: `prev_action[t]` led to `observation[t]`."""

    observation: dict[str, Tensor]  # (B, T, ...)
    prev_action: Tensor  # (B, T, A)
    reward: Tensor  # (B, T)
    is_first: Tensor  # (B, T) bool
    is_last: Tensor  # (B, T) bool
    is_terminal: Tensor  # (B, T) bool
    start: State  # (B, ...), before the first step

    def to(self, device: torch.device) -> "Batch":
        return tree_map(lambda value: moved(value, device), self)


class Window(NamedTuple):
    """Rows `start` to `start + T` of one stream, counted from the stream's first row ever."""

    stream: int
    start: int


def row_bytes(observation: ObservationSpec, action_width: int, deter: int, stoch: int) -> int:
    """Bytes that one row takes."""
    layout = _layout(observation, action_width, deter, stoch)
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in layout.values())


def _layout(
    observation: ObservationSpec, action_width: int, deter: int, stoch: int
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for key in observation.keys:
        shape, dtype = observation.shape_and_dtype(key)
        if key in observation.integers:
            few = max(observation.integers[key]) <= 256
            layout[f"observation/{key}"] = (shape, torch.uint8 if few else torch.int32)
        else:
            layout[f"observation/{key}"] = (shape, getattr(torch, dtype.name))
    layout["action"] = ((action_width,), torch.float32)
    layout["reward"] = ((), torch.float32)
    for flag in ("is_first", "is_last", "is_terminal"):
        layout[flag] = ((), torch.bool)
    # Within [-1, 1]. Half precision moves the total loss by a quarter of what other random numbers do.
    layout["deter"] = ((deter,), torch.float16)
    layout["stoch"] = ((stoch,), torch.uint8)  # the class of each one-hot
    return layout


class Replay:
    """The ring, uniform sampling of windows, and the online queue.

    Args:
        observation: what a row sees.
        action_width: A.
        latent: D, S, K of the latents.
        streams: N environments, which advance in lock step, one row each.
        capacity: rows over all streams; the oldest are overwritten.
        length: T.
        generator: draws the windows (on the CPU).
        device: where rows are kept and batches appear.
    """

    def __init__(
        self,
        observation: ObservationSpec,
        action_width: int,
        latent: tuple[int, int, int],
        streams: int,
        capacity: int,
        length: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ):
        self.keys, self.integers = observation.keys, set(observation.integers)
        self.classes = latent[2]
        self.streams = streams
        self.length = length
        self.rows = capacity // streams  # the ring's length in each stream
        if self.rows <= length:
            raise UserMistake(
                f"a replay of {capacity} rows holds {self.rows} for each of {streams} environments; a sequence takes "
                f"{length + 1}: raise replay.capacity to at least {streams * (length + 1)}"
            )
        self.generator = generator
        self.device = torch.device(device)
        self.data = {
            # Not zeros: memory that was never written costs nothing yet.
            key: torch.empty(streams, self.rows, *shape, dtype=dtype, device=device)
            for key, (shape, dtype) in _layout(observation, action_width, *latent[:2]).items()
        }
        self.count = 0  # rows of each stream ever added
        self.first = 0  # rows before it were lost to a shorter ring, before this one was loaded
        self.queue: deque[Window] = deque()
        # Rows whose latents are to be written, their places, and the latents, which may be on their way.
        self._late: tuple[np.ndarray, Tensor, Callable[[], list[Tensor]]] | None = None

    @property
    def bytes(self) -> int:
        """What the ring takes when it is full."""
        return sum(values.numel() * values.element_size() for values in self.data.values())

    @property
    def oldest(self) -> int:
        """The first row of each stream that is still held."""
        return max(self.first, self.count - self.rows)

    @property
    def starts(self) -> int:
        """How many windows of T + 1 rows lie in the ring, over all streams."""
        return self.streams * max(0, self.count - self.oldest - self.length)

    def add(self, transition: Transition) -> None:
        """Append one row to every stream."""
        now, before = self.count % self.rows, (self.count - 1) % self.rows
        if self.count:
            # A run that stopped in mid-episode goes on with a reset: the row before it ends an episode too.
            self.data["is_last"][:, before] |= transition.is_first.to(self.device)
        values: dict[str, Tensor] = {f"observation/{key}": transition.observation[key] for key in self.keys}
        values |= {
            name: getattr(transition, name) for name in ("action", "reward", "is_first", "is_last", "is_terminal")
        }
        values |= {"deter": transition.latent.deter, "stoch": transition.latent.stoch.argmax(-1)}
        for key, value in values.items():
            self.data[key][:, now] = value.to(self.device)
        self.count += 1
        # Disjoint windows: overlapping ones would crowd out uniform sampling.
        if self.count % (self.length + 1) == 0:
            self.queue.extend(Window(stream, self.count - self.length - 1) for stream in range(self.streams))

    def sample(self, batch: int) -> tuple[Batch, list[Window]]:
        """B sequences: first each fresh window once, then uniformly over all start positions."""
        assert self.starts > 0, "sampled from a replay without a whole sequence"
        windows = self._draw(batch)
        places = moved(torch.from_numpy(self._places(windows)), self.device)
        return self._take({key: values.flatten(0, 1) for key, values in self.data.items()}, places), windows

    def blank(self, batch: int, length: int | None = None) -> Batch:
        """A batch of zeros, in all else like one that is sampled, unless its sequences are to be shorter."""
        row = {key: values.new_zeros(1, *values.shape[2:]) for key, values in self.data.items()}
        return self._take(row, torch.zeros(batch, (length or self.length) + 1, dtype=torch.int64, device=self.device))

    def _take(self, rows: dict[str, Tensor], places: Tensor) -> Batch:
        """T training steps from the T + 1 rows at some places (B, T + 1) among rows (n, ...); see the diagram above."""
        first, before, now = places[:, 0], places[:, :-1], places[:, 1:]
        observation = {key: rows[f"observation/{key}"][now] for key in self.keys}
        observation = {key: value.long() if key in self.integers else value for key, value in observation.items()}
        prev_action, reward = rows["action"][before], rows["reward"][now]
        is_first, is_last, is_terminal = (rows[name][now] for name in ("is_first", "is_last", "is_terminal"))
        self.settle()  # after all that does not have to wait for it
        start = State(rows["deter"][first].float(), F.one_hot(rows["stoch"][first].long(), self.classes).float())
        return Batch(observation, prev_action, reward, is_first, is_last, is_terminal, start)

    def _draw(self, batch: int) -> list[Window]:
        windows: list[Window] = []
        while self.queue and len(windows) < batch:
            window = self.queue.popleft()
            if window.start >= self.oldest:
                windows.append(window)
        positions = torch.randint(self.starts, (batch - len(windows),), generator=self.generator)
        per_stream = self.starts // self.streams
        windows.extend(Window(p // per_stream, self.oldest + p % per_stream) for p in positions.tolist())
        return windows

    def _places(self, windows: list[Window]) -> np.ndarray:
        """Where the rows of some windows lie, (B, T + 1), counted over the rings of all streams."""
        streams, starts = np.array(windows).T[..., None]
        return streams * self.rows + (starts + np.arange(self.length + 1)) % self.rows

    def refresh(self, windows: list[Window], latent: State) -> None:
        """Overwrite the latents of rows 1..T of some windows by new posteriors (B, T, ...).

        Windows may overlap; then the last one counts. Where a posterior is not finite the old one stays, since what
        starts from it would not be finite either. A GPU may still compute them and rows may be added meanwhile: they
        are written by `settle`, which everything that looks at latents calls first.
        """
        self.settle()
        written = self._places(windows)[:, 1:].reshape(-1)
        _, last = np.unique(written[::-1], return_index=True)
        picks = len(written) - 1 - last
        chosen = moved(torch.from_numpy(picks), latent.deter.device)
        deter = latent.deter.flatten(0, 1)[chosen].to(self.data["deter"].dtype)
        stoch = latent.stoch.flatten(0, 1)[chosen].argmax(-1).to(self.data["stoch"].dtype)
        rows = np.array([window.start for window in windows])[:, None] + np.arange(1, self.length + 1)
        places = moved(torch.from_numpy(written[picks]), self.device)
        self._late = rows.reshape(-1)[picks], places, fetch([deter, stoch], self.device)

    def settle(self) -> None:
        """Write the latents of the last `refresh`, if they are not yet, but for rows that were overwritten since."""
        if self._late is None:
            return
        rows, places, arrive = self._late
        self._late = None
        deter, stoch = arrive()
        if (rows < self.oldest).any():
            left = moved(torch.from_numpy(np.flatnonzero(rows >= self.oldest)), self.device)
            places, deter, stoch = places[left], deter[left], stoch[left]
        finite = torch.isfinite(deter).all(-1, keepdim=True)
        for key, new in (("deter", deter), ("stoch", stoch)):
            held = self.data[key].flatten(0, 1)
            held.index_copy_(0, places, torch.where(finite, new, held[places]))

    # Saving --------------------------------------------------------------------------------------------

    def export_rows(self, start: int, end: int) -> dict[str, Tensor]:
        """Copies of all that never changes of rows `start` to `end` of every stream: {key: (N, rows, ...)}."""
        return self._export(start, end, [key for key in self.data if key not in LATENTS])

    def export_latents(self, start: int, end: int) -> dict[str, Tensor]:
        """Copies of the latents of rows `start` to `end` of every stream: {key: (N, rows, ...)}."""
        return self._export(start, end, list(LATENTS))

    def export_flags(self, start: int, end: int) -> dict[str, Tensor]:
        """Copies of where episodes begin and end among rows `start` to `end`: {key: (N, rows)}."""
        return self._export(start, end, ["is_first", "is_last", "is_terminal"])

    def _export(self, start: int, end: int, keys: list[str]) -> dict[str, Tensor]:
        self.settle()
        places = torch.arange(start, end, device=self.device) % self.rows
        return {key: self.data[key][:, places].cpu() for key in keys}

    def state_dict(self) -> dict[str, Any]:
        """Everything but the rows themselves."""
        return {"count": self.count, "queue": [list(window) for window in self.queue]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Everything but the rows, which `put` and `hold_from` are to bring."""
        self.count = int(state["count"])
        self.queue = deque(Window(*window) for window in state["queue"])

    def put(self, start: int, values: dict[str, Tensor]) -> None:
        """Put back what was exported from row `start` on, but for what this ring is too small to hold."""
        for key, value in values.items():
            end = start + value.shape[1]
            first = min(end, max(start, self.count - self.rows))
            places = torch.arange(first, end, device=self.device) % self.rows
            # Of the ring's own kind: it was another one once.
            self.data[key][:, places] = value[:, first - start :].to(self.device, self.data[key].dtype)

    def hold_from(self, first: int) -> None:
        """All rows from `first` on were put back; those before it are lost."""
        self.first = first
        # Rows are saved once, so a flag that `add` set afterwards is derived again.
        places = torch.arange(self.oldest, self.count, device=self.device) % self.rows
        self.data["is_last"][:, places[:-1]] |= self.data["is_first"][:, places[1:]]


def new_replay(
    config: Config,
    observation: ObservationSpec,
    action: ActionSpec,
    streams: int,
    capacity: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Replay:
    """An empty one for the agents of a config; the other arguments are those of `Replay`."""
    model = config.model
    latent = model.deter, model.stoch, model.classes
    return Replay(observation, action.width, latent, streams, capacity, config.replay.length, generator, device)
