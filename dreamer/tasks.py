"""What there is to learn: suites with their protocols, tasks by a pattern, and the names nearest to a mistyped one."""

import fnmatch
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from typing import Any, Protocol

from .config import CPU_SIZE, make_config
from .errors import UserMistake

WIDTH = 80
SUGGESTIONS = 3
CLOSE = 0.6  # how alike two names must be, from 0 to 1
# The first examples of a suite that has them.
WELL_KNOWN = (
    "pong", "breakout", "ms_pacman", "walker_walk", "cheetah_run", "cartpole_swingup",
    "CartPole-v1", "Pendulum-v1", "ALE/Pong-v5",
)  # fmt: skip


class NoSuchTask(UserMistake):
    """A pattern that no name matches; the message has the closest names."""


class Suite(Protocol):
    """What is read of a suite of `envs`, which this package does not import here."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def names(self) -> Callable[[], list[str]]: ...
    @property
    def options(self) -> dict[str, Any]: ...
    @property
    def takes_any_option(self) -> bool: ...


@dataclass(frozen=True)
class Listed:
    """A suite with its tasks as full names, SUITE/NAME; or with the sentence that says why it has none."""

    suite: Suite
    names: list[str]
    missing: str = ""


def read(suites: Mapping[str, Suite], mistake: type[Exception], pattern: str | None = None) -> list[Listed]:
    """The suites that `pattern` may concern: the one that it begins with, else all of them.

    mistake: what `Suite.names` raises where its package is missing.
    """
    head, slash, _ = (pattern or "").lower().partition("/")
    chosen = [suites[head]] if slash and head in suites else list(suites.values())
    return [_read(suite, mistake) for suite in chosen]


def _read(suite: Suite, mistake: type[Exception]) -> Listed:
    try:
        return Listed(suite, [f"{suite.name}/{name}" for name in suite.names()])
    except mistake as error:
        return Listed(suite, [], str(error))


def overview(found: Iterable[Listed]) -> str:
    """All suites, for people."""
    blocks = [_block(listed) for listed in found]
    blocks.append(
        "package.module:factory - your own, a callable that returns a gymnasium.Env\n"
        + _row("protocol", _protocol("package.module:factory"))
        + "\n"
        + _row("options", "the callable's own arguments")
    )
    blocks.append(
        "Names:   dreamer envs PATTERN, for example walker or 'atari/*'\n"
        "Train:   dreamer train --env NAME\n"
        "Change:  --frames, --envs, --size; options by --set environment.OPTION=VALUE\n"
        f"Without a GPU the size is {CPU_SIZE}, unless --size says otherwise."
    )
    return "\n\n".join(blocks)


def _block(listed: Listed) -> str:
    suite = listed.suite
    options = [f"{name}={_as_typed(value)}" for name, value in suite.options.items()]
    if suite.takes_any_option:
        options.append("whatever the environment itself takes")
    known = [name for name in listed.names if name.partition("/")[2] in WELL_KNOWN]
    examples = (sorted(known, key=lambda name: WELL_KNOWN.index(name.partition("/")[2])) or listed.names)[:3]
    return "\n".join(
        (
            f"{suite.name} - {suite.description}",
            _row("protocol", _protocol(f"{suite.name}/")),
            _row("options", ", ".join(options) or "none"),
            _row("tasks", listed.missing or f"{len(listed.names)}, for example {', '.join(examples)}"),
        )
    )


def _protocol(task: str) -> str:
    config = make_config(task)
    repeat = "its own repeat" if config.repeat is None else f"repeat {config.repeat}"
    environments = f"{config.envs} environment{'s' if config.envs > 1 else ''}"
    return f"{config.frames:,} frames, {repeat}, ratio {config.ratio:g}, {environments}, size {config.size}"


def _as_typed(value: Any) -> str:
    """As --set takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _row(label: str, text: str) -> str:
    first = f"  {label:<8}  "
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def matching(found: Iterable[Listed], pattern: str) -> list[str]:
    """The full names that match, without regard to case.

    pattern: a part of a name; or with wildcards (* ? [abc]) all of it, with or without the suite.

    Raises:
        NoSuchTask: there is none.
    """
    found = list(found)
    names = [name for listed in found for name in listed.names]
    if hits := _matches(names, pattern):
        return hits
    close = _closest(found, pattern)
    if not close:
        raise NoSuchTask(f"no task matches {pattern!r}, and no name is close; dreamer envs shows the suites")
    raise NoSuchTask(
        f"no task matches {pattern!r}; the closest {'is' if len(close) == 1 else 'are'} {', '.join(close)}"
    )


def _matches(names: Iterable[str], pattern: str) -> list[str]:
    wanted = pattern.lower()
    if not any(character in wanted for character in "*?["):
        return [name for name in names if wanted in name.lower()]
    expression = re.compile(fnmatch.translate(wanted))
    return [
        name for name in names if expression.match(name.lower()) or expression.match(name.lower().partition("/")[2])
    ]


def _closest(found: list[Listed], pattern: str) -> list[str]:
    """Up to `SUGGESTIONS` names like `pattern`, or one pattern, where its suite was mistyped before a wildcard."""
    by_suite = {listed.suite.name: listed.names for listed in found}
    names = [name for listed in found for name in listed.names]
    head, slash, tail = pattern.partition("/")
    wanted = {pattern, tail or pattern}  # a name of gym may have a slash of its own
    if slash and (near := get_close_matches(head.lower(), by_suite, n=1, cutoff=CLOSE)):
        names, wanted = by_suite[near[0]], {tail}
        corrected = f"{near[0]}/{tail}"
        if hits := _matches(names, corrected):
            return hits if len(hits) <= SUGGESTIONS else [corrected]
    plain = [re.sub(r"[*?\[\]]", "", text).lower() for text in wanted]
    likeness = {name: max(_likeness(text, name.lower()) for text in plain) for name in names}
    close = [name for name in names if likeness[name][0] >= CLOSE]
    return sorted(close, key=likeness.__getitem__, reverse=True)[:SUGGESTIONS]


def _likeness(wanted: str, full: str) -> tuple[float, float]:
    """How alike `wanted` is, from 0 to 1, to the nearest of SUITE/NAME, NAME and its words; and to NAME alone."""
    name = full.partition("/")[2]
    words = re.findall(r"[a-z0-9]{3,}", name)
    return max(_ratio(wanted, text) for text in (full, name, *words)), _ratio(wanted, name)


def _ratio(one: str, other: str) -> float:
    matcher = SequenceMatcher(None, one, other)
    return matcher.ratio() if matcher.real_quick_ratio() >= CLOSE and matcher.quick_ratio() >= CLOSE else 0.0
