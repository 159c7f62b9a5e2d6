"""A diagnosis for people: a table, and one page with its plots inside."""

import base64
import html
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..results import published
from . import out_of_view
from .bootstrap import LEAST_EPISODES, Line
from .diagnose import DREAMS, GOES_ON, REWARD, Diagnosis, Errors

SHOWN = (1, 2, 5, 10, 15, 20, 50, 100)
LISTED = 12  # numbers of a vector
NEGLIGIBLE = 0.01  # of the reward that comes
LITTLE = 1e-3  # reward a step, where next to none comes
BY_HEART = 2.0  # times the KL of learned rows, and a nat more than that
LEGEND_INCHES = 1.8  # a column of it
MODEL, SINGLE, REPEAT, MEAN, IMPLIED = "#D55E00", "#E69F00", "#56B4E9", "#888888", "#000000"


def table(found: Diagnosis) -> str:
    """For the terminal: the numbers, and what they say."""
    return "\n".join([numbers(found), "", *sentences(found)])


def numbers(found: Diagnosis) -> str:
    """Errors, rewards, drift and memory by the steps ahead."""
    shown = [step for step in SHOWN if step <= len(found.moments)]
    lines = [
        f"{found.task}: {found.episodes} episodes, {found.rows:,} rows, {found.moments[0]} moments to look ahead from",
        "",
        f"{'steps ahead':<22}" + "".join(f"{step:>9}" for step in shown),
    ]

    def row(name: str, values: np.ndarray) -> None:
        lines.append(f"{name:<22}" + "".join(f"{_number(values[step - 1]):>9}" for step in shown))

    for key, errors in found.errors.items():
        lines.append(f"{key}, error{' (' + errors.unit + ')' if errors.unit else ''}")
        row("  model", errors.model.mean)
        row("  a single dream", errors.single.mean)
        row("  what was seen last", errors.repeat.mean)
        row("  the mean", errors.mean.mean)
    lines.append("reward a step")
    row("  the policy's dreams", found.promise.dreamed.mean)
    row("  what came", found.promise.came.mean)
    row("latents' KL (nats)", found.drift.mean)
    row("moments", found.moments.astype(float))
    if found.out_of_view:
        lines += ["", out_of_view.table(found.out_of_view)]
    return "\n".join(lines)


def sentences(found: Diagnosis) -> list[str]:
    """What the numbers say."""
    steps, looked = found.imagination, int((found.moments > 0).sum())
    lines = [verdict(found)]
    lines.append(f"  A single dream, which is what the policy learns from: {found.single_trusted} steps")
    for key, errors in found.errors.items():
        lines.append(f"  {key}: {_trust(errors, len(found.moments))}{_rate(errors, found)}")
        if errors.numbers:
            lines.append(f"  {key}, each number by itself: {_each(errors)}")
    at = min(steps, looked) - 1
    for key, errors in found.errors.items():
        if errors.is_constant or not errors.covered or np.isnan(errors.covered["90 %"].mean[at]):
            continue
        shares = ", ".join(f"{line.mean[at]:.0%} (of {level})" for level, line in errors.covered.items())
        ratio = _number(errors.spread.mean[at])
        lines.append(
            f"  {key}, {at + 1} steps ahead: the truth lies between its {DREAMS} dreams in {shares}; they differ by "
            f"{ratio} times their error"
        )
    values, ends = found.values, found.ends
    lines.append(_promise(found, at))
    lines.append(
        f"Latents: KL {found.one_step:.3g} nats with all seen, {found.drift.mean[at]:.3g} at {at + 1} steps ahead."
    )
    if not math.isnan(found.learned):
        by_heart = found.one_step > max(BY_HEART * found.learned, found.learned + 1)
        so = ", so much of what it knows is those rows by heart" if by_heart else ""
        lines.append(f"  On rows of the replay, which it has learned from, {found.learned:.3g} with all seen{so}.")
    lines.append(
        f"Value: {abs(values.bias):.3g} too {'high' if values.bias > 0 else 'low'} on the mean, off by "
        f"{values.error:.3g}, rank correlation {_number(values.rank_correlation)} ({_number(values.rank_low)} to "
        f"{_number(values.rank_high)}), over {values.rows:,} rows."
    )
    if values.own_share > 0.01:
        alike = abs(values.bias) / max(1e-9, 1 - values.own_share)
        lines.append(
            f"  Of what followed, {values.own_share:.0%} is its own prediction, where episodes were cut; if that is as "
            f"wrong as the rest, it is {alike:.3g} too {'high' if values.bias > 0 else 'low'}."
        )
    elsewhere = f"a chance of {ends.elsewhere:.2%} to go on"
    if ends.count:
        lines.append(
            f"Ends: where {ends.count} episodes really ended it saw a chance of {ends.seen:.1%} to go on, and expected "
            f"{ends.expected:.1%} one step before; at all other rows it saw {elsewhere}."
        )
    else:
        lines.append(f"Ends: no episode really ended, and it saw {elsewhere}.")
    return lines


def verdict(found: Diagnosis) -> str:
    """The trusted horizon, and whether imagination lies inside it."""
    if not found.judged:
        return f"No verdict: {found.episodes} episodes say nothing with confidence; give {LEAST_EPISODES} or more."
    if all(errors.is_constant for key, errors in found.errors.items() if key not in (REWARD, GOES_ON)):
        return "No verdict: nothing that is observed ever changed where it was looked at."
    inside, steps = found.imagination_is_inside, found.imagination
    where = "reach further than could be judged" if inside is None else f"lie {'inside' if inside else 'beyond'} it"
    return f"Trusted horizon: {found.trusted} steps, by what is observed. The {steps} steps of imagination {where}."


def _each(errors: Errors) -> str:
    """The trusted horizons of a vector's numbers."""
    shown = ["-" if number.is_constant else str(number.trusted) for number in errors.numbers]
    if len(shown) <= LISTED:
        return f"{', '.join(shown)} steps"
    steps = sorted(number.trusted for number in errors.numbers if not number.is_constant)
    if not steps:
        return "none of them changes"
    return f"{steps[0]} to {steps[-1]} steps, {steps[len(steps) // 2]} in the middle of {len(steps)} that change"


def _trust(errors: Errors, horizon: int) -> str:
    if errors.is_constant:
        return "never changed where it was looked at, so there was nothing to forecast"
    last = errors.trusted
    if not last:
        return "not better than what was seen last and the mean"
    better = int(errors.better[:last].sum())
    steps = f"at {better} of the first" if better < last else "at the first"
    return f"better than what was seen last and the mean {steps} {last} steps" + (
        ", as far as was looked" if last == horizon else ""
    )


def _promise(found: Diagnosis, at: int) -> str:
    """What the policy's dreams promise over all steps, and at the last one of imagination."""
    promise = found.promise
    if np.isnan(promise.overall.low[0]):
        return "Promise: too few episodes to tell whether the policy's own dreams hold the reward that comes."
    (low,), (high,) = promise.overall.low, promise.overall.high
    dreams, steps = "the policy's own dreams hold", int((~np.isnan(promise.came.mean)).sum())
    if max(-low, high) <= max(LITTLE, NEGLIGIBLE * np.nanmean(np.abs(promise.came.mean))):
        said = f"{dreams} the reward that comes"
    elif low <= 0 <= high:
        said = f"it cannot be told whether {dreams} more or less reward than comes"
    else:
        said = f"{dreams} {'more' if low > 0 else 'less'} reward than comes"
    ahead = ""
    if not np.isnan(promise.more.low[at]):
        ahead = f"; {at + 1} steps ahead {_difference(promise.more, at)}"
    return f"Promise: over {steps} steps {said}, {_difference(promise.overall, 0)} a step{ahead}."


def _difference(line: Line, i: int) -> str:
    return f"{line.mean[i]:+.2g} ({line.low[i]:+.2g} to {line.high[i]:+.2g})"


def _rate(errors: Errors, found: Diagnosis) -> str:
    if errors.is_constant or not errors.trusted or math.isnan(errors.rate):
        return ""
    at = [step for step in SHOWN if step <= len(found.moments) and not np.isnan(errors.model.mean[step - 1])][-1] - 1
    return (
        f"; loses {errors.rate:.1%} of its lead a step, which comes to {_number(errors.implied[at])} at step {at + 1} "
        f"({_number(errors.model.mean[at])} measured)"
    )


def _number(value: float) -> str:
    return "-" if np.isnan(value) else published.number(value, 3)


# The page ----------------------------------------------------------------------------------------------

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em; margin-bottom: 0.2em } h2 { font-size: 1.15em; margin-top: 2em }
img { max-width: 100% } pre { font-size: 12.5px; overflow-x: auto; background: #f6f6f6; padding: 1em }
.verdict { font-size: 1.15em; border-left: 4px solid #D55E00; padding-left: 0.8em } .note { color: #666 }
"""


def page(found: Diagnosis) -> str:
    """HTML with everything inside: nothing is fetched from anywhere."""
    verdict, *rest = sentences(found)
    sections = [
        ("How errors compound", _figure(_errors, found), "The model is told the real actions and nothing else. The "
         "band is the 95 % interval over episodes. It is trusted as far as it is better than both grey and blue."),
        ("What it knows that it does not know", _figure(_calibration, found), f"Of {DREAMS} dreams from the same "
         "moment, those between which the truth lies in 90 and in 50 of 100 cases, if they are right about it."),
        ("Drift of the latents", _figure(_drift, found), "KL from what the model makes of the real observation to what "
         "the dream expected of it, in nats."),
        ("What the policy's dreams promise", _figure(_promised, found), "The reward of each step ahead where the "
         "policy acts in the dream, and what came when it really acted from the same moments. Where the dreams promise "
         "more, the policy lives off mistakes of its model."),
        ("Value", _figure(_value, found), "Rows sorted by the return that was predicted for them, in groups of equal "
         "size, against the discounted return that followed."),
    ]  # fmt: skip
    if any(errors.numbers for errors in found.errors.values()):
        sections.insert(
            1, ("Each number by itself", _figure(_numbers, found), "The model's error by the mean's: dark is "
            "known well, yellow no better than the mean. A white line ends the trust in a number; without one, what "
            "was seen last is as good from the beginning. Grey never changed.")
        )  # fmt: skip
    if found.out_of_view:
        sections.append(
            ("Out of view", _figure(_out_of_view, found), "How often the ball comes back in the row and the colour "
             "that the model expects, by how long it was hidden; by chance it would be a quarter.")
        )  # fmt: skip
    body = "".join(
        f"<h2>{html.escape(title)}</h2>\n{picture}\n<p class=note>{html.escape(note)}</p>\n"
        for title, picture, note in sections
    )
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{html.escape(found.task)}: its world model</title>"
        f"<style>{STYLE}</style>\n<h1>{html.escape(found.task)}: how far its world model can be trusted</h1>\n"
        f"<p class=note>{found.episodes} episodes, {found.rows:,} rows, {found.moments[0]} moments to look ahead from."
        f"</p>\n<p class=verdict>{html.escape(verdict)}</p>\n<ul>"
        + "".join(f"<li>{html.escape(sentence.strip())}" for sentence in rest)
        + f"</ul>\n{body}<h2>Numbers</h2>\n<pre>{html.escape(numbers(found))}</pre>\n</html>\n"
    )


def _figure(draw: Callable[[Any, Diagnosis], None], found: Diagnosis) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = pyplot.figure(layout="constrained")
        draw(figure, found)
        _legend(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        pyplot.close(figure)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _legend(figure: Any) -> None:
    """Beneath the panels, since curves come through each of their corners."""
    named: dict[str, Any] = {}
    for panel in figure.axes:
        handles, labels = panel.get_legend_handles_labels()
        named |= dict(zip(labels, handles))
    columns = int(figure.get_figwidth() // LEGEND_INCHES)
    if named:
        figure.legend(
            named.values(), named.keys(), loc="outside lower center", ncols=columns, fontsize=8, frameon=False
        )


def _panels(figure: Any, count: int) -> Any:
    columns = min(3, count)
    rows = -(-count // columns)
    figure.set_size_inches(3.5 * columns if columns > 1 else 4.5, 2.7 * rows + 0.3)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[count:]:
        panel.set_visible(False)
    return panels[:count]


def _line(panel: Any, line: Line, color: str, label: str, style: str = "-") -> None:
    steps = np.arange(1, len(line.mean) + 1)
    panel.plot(steps, line.mean, color=color, lw=1.6, ls=style, label=label)
    panel.fill_between(steps, line.low, line.high, color=color, alpha=0.15, lw=0)


def _mark(panel: Any, found: Diagnosis) -> None:
    panel.axvline(found.imagination, color="#666666", lw=0.8, ls=":")
    panel.set_xlim(1, max(2, len(found.moments)))
    panel.set_xlabel(f"steps ahead (dotted: the {found.imagination} of imagination)")
    panel.grid(alpha=0.2, lw=0.6)


def _errors(figure: Any, found: Diagnosis) -> None:
    for panel, (key, errors) in zip(_panels(figure, len(found.errors)), found.errors.items()):
        if errors.trusted:
            panel.axvspan(1, errors.trusted, color="#3CC85A", alpha=0.12, lw=0, label="trusted")
        _line(panel, errors.mean, MEAN, "the mean")
        _line(panel, errors.repeat, REPEAT, "what was seen last")
        _line(panel, errors.single, SINGLE, "a single dream")
        _line(panel, errors.model, MODEL, "model")
        steps = np.arange(1, len(errors.implied) + 1)
        panel.plot(steps, errors.implied, color=IMPLIED, lw=0.9, ls="--", label="its rate, compounded")
        panel.set_title(key)
        panel.set_ylim(bottom=0)
        panel.set_ylabel(f"error{', ' + errors.unit if errors.unit else ''}")
        _mark(panel, found)


def _numbers(figure: Any, found: Diagnosis) -> None:
    shown = {key: errors for key, errors in found.errors.items() if errors.numbers}
    for panel, (key, errors) in zip(_panels(figure, len(shown)), shown.items()):
        with np.errstate(all="ignore"):
            share = np.stack([number.model / number.mean for number in errors.numbers])
        share[[number.is_constant for number in errors.numbers]] = np.nan
        panel.set_facecolor("#cccccc")
        count, steps = share.shape
        edges = np.arange(steps + 1) + 0.5, np.arange(count + 1) - 0.5
        colours = panel.pcolormesh(*edges, share, vmin=0, vmax=1, cmap="viridis")
        for i, number in enumerate(errors.numbers):
            if number.trusted:
                panel.plot([number.trusted + 0.5] * 2, [i - 0.5, i + 0.5], color="white", lw=1.5)
        panel.set_yticks(range(0, count, -(-count // LISTED)))
        panel.invert_yaxis()
        panel.set(title=key, ylabel="number")
        _mark(panel, found)
        panel.grid(visible=False)
        figure.colorbar(colours, ax=panel)


def _calibration(figure: Any, found: Diagnosis) -> None:
    shown = {key: errors for key, errors in found.errors.items() if errors.covered and not errors.is_constant}
    for panel, (key, errors) in zip(_panels(figure, max(1, len(shown))), shown.items()):
        for (level, line), color in zip(errors.covered.items(), (MODEL, REPEAT)):
            _line(panel, line, color, f"interval of {level}")
            panel.axhline(float(level.rstrip(" %")) / 100, color=color, lw=0.9, ls="--")
        panel.set(title=key, ylim=(0, 1.02), ylabel="share that holds the truth")
        _mark(panel, found)


def _drift(figure: Any, found: Diagnosis) -> None:
    (panel,) = _panels(figure, 1)
    _line(panel, found.drift, MODEL, "open loop")
    panel.axhline(found.one_step, color=MEAN, lw=1.2, label="one step ahead, all seen")
    if not math.isnan(found.learned):
        panel.axhline(found.learned, color=MEAN, lw=1.2, ls="--", label="the same, on learned rows")
    panel.set_ylim(bottom=0)
    panel.set_ylabel("KL, nats")
    _mark(panel, found)


def _promised(figure: Any, found: Diagnosis) -> None:
    (panel,) = _panels(figure, 1)
    _line(panel, found.promise.dreamed, MODEL, "in the policy's dreams")
    _line(panel, found.promise.came, IMPLIED, "really")
    panel.set_ylabel("reward a step")
    _mark(panel, found)


def _value(figure: Any, found: Diagnosis) -> None:
    (panel,) = _panels(figure, 1)
    values = found.values
    ends = [min(values.predicted.min(), values.followed.min()), max(values.predicted.max(), values.followed.max())]
    panel.plot(ends, ends, color=MEAN, lw=1, ls="--", label="as predicted")
    panel.plot(values.predicted, values.followed, "o-", color=MODEL, lw=1.2, ms=4)
    panel.set(xlabel="predicted return", ylabel="return that followed")
    panel.grid(alpha=0.2, lw=0.6)


def _out_of_view(figure: Any, found: Diagnosis) -> None:
    (panel,) = _panels(figure, 1)
    names = [f"{each.hidden[0]} to {each.hidden[1]}" for each in found.out_of_view]
    ends = np.array([each.row_interval for each in found.out_of_view]).T
    row = np.array([each.row for each in found.out_of_view])
    panel.errorbar(names, row, np.abs(ends - row), color=MODEL, marker="o", ms=4, capsize=3, label="row")
    panel.plot(names, [each.colour for each in found.out_of_view], "s--", color=REPEAT, ms=4, label="colour")
    panel.axhline(0.25, color=MEAN, lw=0.9, ls="--")
    panel.set(ylim=(0, 1.05), xlabel="steps hidden", ylabel="share that was right")
