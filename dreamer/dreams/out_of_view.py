"""Whether a world model remembers what it does not see: the ball of `envs.cover`, when it comes back.

From the last moment at which the ball was hidden, which the model has come to with open eyes, it is on its own until
the ball is whole again. Held against the truth: in which row it expects the ball and in which colour, and how far its
pixels are off, where 1 is as far as if there were none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..agent import Agent
from ..rssm import State
from .bootstrap import LEAST_EPISODES
from .dream import Dream, Episode

TASK = "envs.cover:Cover"
DREAMS = 9  # whose mean is the forecast
BUCKETS = ((1, 5), (6, 10), (11, 15), (16, 20), (21, 30))  # steps hidden, from and to


@dataclass(frozen=True)
class Returns:
    """Of some lengths of hiding."""

    hidden: tuple[int, int]  # steps, from and to
    count: int
    row: float  # share of returns in which the mean of the dreams has the right row
    colour: float  # and the right colour
    error: float  # of its pixels, 1 as if there were no ball
    row_interval: tuple[float, float]  # 95 % bootstrap, over episodes; NaN where these are too few


def out_of_view(agent: Agent, episodes: Sequence[Episode], seed: int = 0) -> list[Returns]:
    """By how long the ball was hidden; lengths that never came are left out."""
    dream, generator = Dream(agent, seed), np.random.default_rng(seed)
    found: list[tuple[int, bool, bool, float, int]] = []
    for number, episode in enumerate(episodes):
        for last, back, hidden in returns(episode.observation["image"]):
            found.append((hidden, *_judge(dream, episode, last, back), number))
    result = []
    for low, high in BUCKETS:
        rows = [each for each in found if low <= each[0] <= high]
        if not rows:
            continue
        row, colour, error, whose = (np.array(column, float) for column in list(zip(*rows))[1:])
        who, place = np.unique(whose, return_inverse=True)
        weights = generator.multinomial(len(who), np.full(len(who), 1 / len(who)), 1000)
        means = (weights @ np.bincount(place, row)) / (weights @ np.bincount(place))
        interval = np.quantile(means, [0.025, 0.975]) if len(who) >= LEAST_EPISODES else (np.nan, np.nan)
        result.append(
            Returns(
                hidden=(low, high),
                count=len(rows),
                row=float(row.mean()),
                colour=float(colour.mean()),
                error=float(error.mean()),
                row_interval=(float(interval[0]), float(interval[1])),
            )
        )
    return result


def returns(pictures: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """The last row of each hiding, the first row at which the ball is whole again, and how many steps it was hidden."""
    from envs.cover import BALL, visible

    seen = visible(pictures).sum((1, 2))
    gone: int | None = None  # the first row at which it is not seen
    for row in range(1, len(seen)):
        if seen[row] == 0 and seen[row - 1] > 0:
            gone = row
        if gone is not None and seen[row] > 0 and seen[row - 1] == 0:
            whole = next((back for back in range(row, len(seen)) if seen[back] == BALL * BALL), None)
            if whole is not None:
                yield row - 1, whole, row - gone
            gone = None


def _judge(dream: Dream, episode: Episode, last: int, back: int) -> tuple[bool, bool, float]:
    from envs.cover import BALL, COLOURS, ROWS, visible

    picture = episode.observation["image"][back]
    start = State(
        episode.state.deter[last : last + 1].expand(DREAMS, -1),
        episode.state.stoch[last : last + 1].expand(DREAMS, -1, -1),
    )
    actions = episode.action[last:back].unsqueeze(1).expand(-1, DREAMS, -1)
    states = dream.follow(start, actions)
    expected = dream.read(State(states.deter[-1], states.stoch[-1])).observation["image"]
    forecast = expected.mean(0).cpu().numpy()
    ball = visible(picture[None])[0]
    columns = np.flatnonzero(ball.any(0))
    bands = np.stack([forecast[row : row + BALL, columns].mean((0, 1)) for row in ROWS])  # (rows, 3)
    row = int(bands.max(-1).argmax())
    colour = int(np.square(COLOURS - bands[row]).sum(-1).argmin())
    truth = ROWS.index(int(np.flatnonzero(ball.any(1))[0])), int((picture[ball][0] == COLOURS).all(-1).argmax())
    real = picture.astype(float)[ball]
    error = float(np.abs(forecast[ball] - real).sum() / np.abs(real).sum())
    return row == truth[0], colour == truth[1], error


def table(found: Sequence[Returns]) -> str:
    """For people."""
    lines = [
        "Out of view: the ball, when it comes back",
        f"{'steps hidden':<22}{'returns':>9}{'row':>9}{'':18}{'colour':>9}{'error':>9}",
    ]
    for each in found:
        low, high = each.row_interval
        span = "" if np.isnan(low) else f" ({low:.0%} to {high:.0%})"
        lines.append(
            f"{f'{each.hidden[0]} to {each.hidden[1]}':<22}{each.count:>9}{each.row:>9.0%}"
            f"{span:<18}{each.colour:>9.0%}{each.error:>9.2f}"
        )
    return "\n".join([*lines, "By chance a quarter of the rows and of the colours would be right."])
