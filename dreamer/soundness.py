"""Updates that are not finite: the first of their batches is kept, and too many in a row end the run."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .agent import Agent
from .checkpoint import write_tensors
from .errors import UserMistake
from .loop import Counters, Rows
from .replay import Batch

MOST_IN_A_ROW = 100
FILE = "not_finite.pt"


class NotFinite(UserMistake):
    """Learning has broken down; the message says what to look at."""


class Soundness:
    """Watches a run (`loop.Observer`) for updates that were skipped since a loss or a gradient was not finite.

    Args:
        folder: of the run. The batch of the first such update is written there, as tensors: "batch" by field,
            "metrics" of the update, and its number.

    Raises:
        NotFinite: from `rows`, after too many in a row.
    """

    def __init__(self, folder: Path):
        self._path = folder / FILE
        self._in_a_row = 0
        self._kept = False
        self._unread: list[tuple[Batch, dict[str, Tensor], int]] = []

    def update(self, metrics: dict[str, Tensor], batch: Batch, counters: Counters) -> None:
        self._unread.append((batch, metrics, counters.updates))

    def rows(self, rows: Rows, counters: Counters) -> None:
        """Read what became of updates; the last one may still be under way."""
        unread, self._unread = self._unread[:-1], self._unread[-1:]
        for batch, metrics, number in unread:
            if not metrics["optimizer/skipped"]:
                self._in_a_row = 0
                continue
            self._in_a_row += 1
            if not self._kept:
                self._keep(batch, metrics, number)
            if self._in_a_row >= MOST_IN_A_ROW:
                raise NotFinite(
                    f"the last {MOST_IN_A_ROW} updates were skipped, since {blame(metrics)}; {reach(batch)}"
                    + f"; the first such batch is in {self._path}" * self._kept
                )

    def show(self, agent: Agent, batch: Batch, counters: Counters) -> None:
        """Nothing."""

    def _keep(self, batch: Batch, metrics: dict[str, Tensor], number: int) -> None:
        fields: dict[str, Any] = batch._asdict() | {"start": batch.start._asdict()}
        with contextlib.suppress(OSError):  # a disk that is full is said elsewhere
            write_tensors(self._path, {"update": number, "batch": fields, "metrics": metrics})
            self._kept = True


def blame(metrics: dict[str, Tensor]) -> str:
    """Which of the losses are not finite, in words."""
    names = [name.removeprefix("loss/") for name, value in metrics.items() if name.startswith("loss/")]
    bad = [name for name in names if name != "total" and not torch.isfinite(metrics[f"loss/{name}"])]
    if not bad:
        return "a gradient was not finite, though all losses were"
    return f"the loss{'es' * (len(bad) > 1)} of {', '.join(bad)} {'were' if len(bad) > 1 else 'was'} not finite"


def reach(batch: Batch) -> str:
    """The largest magnitudes in a batch, in words."""
    values = {f"observation {key}": value for key, value in batch.observation.items() if value.is_floating_point()}
    values["rewards"] = batch.reward
    found = [f"{name} up to {value.abs().max().item():.3g}" for name, value in values.items()]
    return f"in the last batch there are {', '.join(found)}"
