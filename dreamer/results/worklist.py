"""A list of runs: a CSV with the columns `task` and `seed` and, where wanted, `size`, `ratio`, `frames` and `settings`.

`settings` holds KEY=VALUE, separated by blanks. Empty lines, and those that begin with #, are left out.
"""

import csv
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import config as configs
from ..errors import UserMistake

NEEDED = ("task", "seed")
COLUMNS = (*NEEDED, "size", "ratio", "frames", "settings")


@dataclass(frozen=True)
class Entry:
    """A line of the list."""

    task: str
    seed: int
    size: str | None = None
    ratio: float | None = None
    frames: int | None = None
    settings: tuple[str, ...] = ()

    @property
    def config(self) -> configs.Config:
        ratio = () if self.ratio is None else (f"ratio={self.ratio:g}",)
        return configs.make_config(
            self.task, size=self.size, seed=self.seed, frames=self.frames, settings=(*ratio, *self.settings)
        )

    @property
    def name(self) -> str:
        """Of its folder."""
        config = self.config
        words = [configs.file_name(self.task), config.size, f"ratio{config.ratio:g}"]
        others = "-".join(re.sub(r"[^\w.-]+", "-", setting) for setting in self.settings)
        if others:  # some file systems allow 255 bytes, all in all
            words.append(others if len(others) < 100 else hashlib.sha256(others.encode()).hexdigest()[:12])
        return "-".join([*words, f"seed{self.seed}"])

    def command(self, folder: Path, device: str) -> list[str]:
        """The arguments of `dreamer`."""
        config = self.config
        options = ["--env", self.task, "--seed", str(self.seed), "--size", config.size, "--frames", str(config.frames)]
        settings = [f"ratio={config.ratio:g}", *self.settings]
        words = [word for each in settings for word in ("--set", each)]
        return ["train", *options, *words, "--run", str(folder), "--device", device]


def read(path: Path, check: Callable[[Entry], None] = lambda entry: None) -> list[Entry]:
    """The entries of a list; `check` raises a ValueError for one that cannot be run.

    Raises:
        UserMistake: it cannot be read, or a line is none.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserMistake(f"{path} cannot be read ({why}); give a CSV with the columns {', '.join(COLUMNS)}") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip() and line[0] != "#"]
    cells = [[cell.strip() for cell in row] for row in csv.reader(line for _, line in lines)]
    if not cells:
        raise UserMistake(f"{path} lists no runs; give a line with the columns {', '.join(COLUMNS)}, and one for each")
    _check_head(path, cells[0])
    entries: dict[tuple[str, str, int], Entry] = {}
    names: set[str] = set()
    for (number, _), row in zip(lines[1:], cells[1:]):
        try:
            entry = _entry(dict(zip(cells[0], row)), too_many=row[len(cells[0]) :])
            check(entry)
            run = entry.task, configs.method(entry.config), entry.seed
        except ValueError as error:
            raise UserMistake(f"{path}, line {number}: {error}") from error
        if run in entries:
            task, method, seed = run
            raise UserMistake(
                f"{path}, line {number}: seed {seed} of {task} with {method} is there already; leave one out"
            )
        if (name := entry.name) in names:
            raise UserMistake(f"{path}, line {number}: its folder {name} is that of another line; change one")
        entries[run] = entry
        names.add(name)
    if not entries:
        raise UserMistake(f"{path} lists no runs; give a line for each below its columns")
    return list(entries.values())


def _check_head(path: Path, head: list[str]) -> None:
    unknown = [name or "an empty name" for name in head if name not in COLUMNS]
    missing = [name for name in NEEDED if name not in head]
    if unknown or missing or len(set(head)) < len(head):
        wrong = (
            f"has {', '.join(unknown)}" if unknown else f"lacks {', '.join(missing)}" if missing else "has one twice"
        )
        raise UserMistake(
            f"{path} begins with the names of its columns, separated by commas, and {wrong}; they are "
            f"{', '.join(COLUMNS)}, of which {' and '.join(NEEDED)} are needed"
        )


def _entry(cells: dict[str, str], too_many: list[str]) -> Entry:
    """Raises ValueError for what cannot be."""
    if too_many:
        raise ValueError(f"{too_many[0]!r} belongs to no column; put commas only between columns")
    if missing := [name for name in NEEDED if not cells.get(name)]:
        raise ValueError(f"its {missing[0]} is missing; give it")
    settings = tuple(cells.get("settings", "").split())
    if own := [each for each in settings if each.partition("=")[0] in COLUMNS]:
        raise ValueError(f"{own[0]} is among the settings; give it in the column of that name")
    if any(each.partition("=")[0] == "run.device" for each in settings):
        raise ValueError("run.device is among the settings; give --device to dreamer batch, for all runs")
    return Entry(
        task=cells["task"],
        seed=_whole("seed", cells["seed"]),
        size=cells.get("size") or None,
        ratio=_ratio(cells["ratio"]) if cells.get("ratio") else None,
        frames=_whole("frames", cells["frames"]) if cells.get("frames") else None,
        settings=settings,
    )


def _whole(column: str, text: str) -> int:
    try:
        return configs.whole(text)
    except ValueError:
        raise ValueError(f"{column} {text!r} is no whole number; give one") from None


def _ratio(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"ratio {text!r} is no number; give one") from None
