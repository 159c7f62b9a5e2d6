"""The index of a folder of results: ours beside the published scores, the runs, tasks together, the time to a score."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..checkpoint import write_atomically
from ..config import PROTOCOLS
from . import compare, published, scores
from .published import number
from .scores import Curve

# The frames at which the tasks of a suite are put together: early, in the middle, and all.
BUDGETS = [
    (suite, frames)
    for suite, known in PROTOCOLS.items()
    for frames in sorted({100_000, 500_000, known["frames"]})
    if frames <= known["frames"]
]
PICTURE = "curve.png"
RECENT = 0.9  # of the frames, from which on means are taken of what was measured
NOTES = {
    "Over tasks": "Of normalised scores; the interval resamples the seeds of each task.\n\n",
    "Time to score": "Until the mean of the training episodes, over the window of the published scores, is as high as "
    "one of them for the first time; it may fall again. Wall-clock minutes of training.\n\n",
}
MARKS = ("<!-- scores -->", "<!-- end of scores -->")  # of the table in the README beside the folder


def write_index(results: Path) -> None:
    """`index.md` of the runs that `dreamer batch` has kept there.

    Its first table is also put between the `MARKS` of the README beside the folder, if that has them.
    """
    curves = _read(results)
    table = _scores(curves)
    sections = {
        "Scores": table,
        "Runs": _runs(curves),
        "What the models and actors had learned": _learned(curves),
        "Over tasks": _aggregates(curves),
        "Time to score": _times(curves),
    }
    text = "\n".join(f"## {name}\n\n{NOTES.get(name, '')}{lines}" for name, lines in sections.items() if lines)
    write_atomically(results / "index.md", lambda path: path.write_text(text))
    _put_into(results.parent / "README.md", table)


def _put_into(readme: Path, table: str) -> None:
    text = readme.read_text() if readme.is_file() else ""
    begin, end = MARKS
    if begin in text and end in text:
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2]
        text = f"{before}{begin}\n\n{table}\n{end}{after}"
        write_atomically(readme, lambda path: path.write_text(text))


def draw(results: Path, changed: Iterable[Path] = ()) -> None:
    """`curves.png` of the same runs, a panel for each task, and `curve.png` in the folders of those that changed."""
    from . import plot

    curves = _read(results)
    for curve in curves:
        if curve.folder in changed:
            plot.draw([curve], curve.folder / PICTURE)
    if curves:
        plot.draw(curves, results / "curves.png")


def _read(results: Path) -> list[Curve]:
    curves = [scores.read(path.parent) for path in sorted(results.glob("*/scores.csv"))]
    return [curve for curve in curves if len(curve.frames)]


def _scores(curves: Sequence[Curve]) -> str:
    """Each task at the last published point that its seeds have passed; several lines if they have come to several."""
    rows = []
    for runs in scores.grouped(curves).values():
        young = [run.end for run in runs if not _passed(run)]
        for frames in sorted({_passed(run) or min(young) for run in runs}):
            there = [run for run in runs if run.frames[0] <= frames <= (_passed(run) or run.end)]
            rows.append(_row(compare.result(there, frames)))
    theirs = ("published", "published range", "published seeds")
    return _table(("task", "size, ratio", "frames", "seeds", "ours", "range", *theirs, "apart", "verdict"), rows)


def _passed(run: Curve) -> int:
    """Frames of the last published score that is not beyond a run; 0 if none."""
    band = published.passed(run.config.task, run.frames[0], run.end)
    return band.frames if band else 0


def _row(result: compare.Result) -> tuple[str, ...]:
    spread = _range(min(result.scores), max(result.scores)) if len(result.scores) > 1 else ""
    ours = (
        f"`{result.task}`", result.method, f"{result.frames:,}", str(len(result.scores)), number(result.mean), spread
    )  # fmt: skip
    band = result.published
    if band is None:
        return *ours, "", "", "", "", ""
    theirs = f"{number(band.mean)} +- {number(band.std, 3)}", _range(band.low, band.high), str(band.seeds)
    return *ours, *theirs, _apart(result.mean - band.mean, band), result.judgement


def _apart(distance: float, band: published.Band) -> str:
    """A distance from the published mean, in points, and as a multiple of its deviation or a share of the mean."""
    relative = [f"{number(abs(distance) / band.std, 2)} sd"] if band.std else []
    relative += [f"{abs(distance / band.mean):.0%}"] if band.mean else []
    sign = "+" if distance > 0 else ""
    return f"{sign}{number(distance, 3)}" + (f" ({', '.join(relative)})" if relative else "")


def _range(low: float, high: float) -> str:
    return f"{number(low)} to {number(high)}"


def _runs(curves: Sequence[Curve]) -> str:
    rows = []
    for curve in curves:
        run = scores.run_record(curve.folder)
        score = curve.at(curve.last, published.window(curve.config.task))
        evaluation = run.get("evaluation") or {}
        again = f"{number(evaluation['mean'])} ({_range(*evaluation['interval_95'])})" if evaluation else ""
        if evaluation.get("frames", curve.end) != curve.end:  # of the agent that it was then
            again += f" after {evaluation['frames']:,} frames"
        rows.append(
            (
                f"`{curve.config.task}`",
                curve.method,
                str(curve.config.seed),
                f"{curve.end:,} of {curve.config.frames:,}",
                "" if score is None else number(score),
                again,
                _where(run),
                f"{taken / 60:.1f}" if (taken := scores.minutes(curve.folder)) else "",
                ", ".join(run.get("commits", [])),
                f"[folder]({curve.folder.name})",
            )
        )
    head = (
        "task",
        "size, ratio",
        "seed",
        "frames",
        "score",
        "new episodes (95 %)",
        "machine",
        "hours",
        "commits",
        "all of it",
    )
    return _table(head, rows)


def _where(run: dict[str, object]) -> str:
    """The machine of a run, and with how many others it shared that."""
    beside = run.get("at_once", 1)
    return f"{run.get('machine', '')}" + (f", {beside} runs at once" if beside != 1 else "")


def _learned(curves: Sequence[Curve]) -> str:
    """Halfway and at the end of each run: what tells a task that works from one that does not."""
    shown = {
        "decoder loss": "loss/decoder",
        "reward loss": "loss/reward",
        "KL (free: 1)": "world_model/kl",
        "entropy": "behavior/entropy",
        "return scale": "behavior/return_scale",
        "return": "behavior/return",
        "value": "behavior/value",
        "gradient norm": "optimizer/gradient_norm",
    }
    rows = []
    for curve in curves:
        measured = scores.metrics(curve.folder)
        for frames in (curve.end // 2, curve.end) if measured else ():
            here = [each for each in measured if RECENT * frames < each["frames"] <= frames]
            means = {key: _of(name, here) for key, name in shown.items()}
            run = f"`{curve.config.task}`", curve.method, str(curve.config.seed), f"{frames:,}"
            rows.append((*run, *(number(float(np.mean(found)), 3) if found else "" for found in means.values())))
    return _table(("task", "size, ratio", "seed", "frames", *shown), rows) if rows else ""


def _of(name: str, rows: Sequence[dict[str, float]]) -> list[float]:
    """A quantity of each row that has it, the sum over its keys where it is measured for each."""
    found = [[value for key, value in row.items() if key == name or key.startswith(f"{name}/")] for row in rows]
    return [sum(values) for values in found if values]


def _aggregates(curves: Sequence[Curve]) -> str:
    """Over the tasks of a suite at the same frames, and the published scores of the same tasks there."""
    rows = []
    for suite, frames in BUDGETS:
        runs = [run for run in curves if run.config.task.startswith(f"{suite}/") and _passed(run) >= frames]
        found = [compare.result(group, frames) for group in scores.grouped(runs).values()]
        found = [each for each in found if each.published and each.published.frames == frames]
        for (method, scale), mine in compare.comparable(found).items():
            # Once for each run of ours, so that a task has the same weight on both sides.
            theirs = [
                replace(each, scores=(each.published.mean,) * len(each.scores)) for each in mine if each.published
            ]
            for value, there in zip(compare.aggregates(mine), compare.aggregates(theirs)):
                interval = "{:.3f} to {:.3f}".format(*value.interval) if value.interval else "one seed"
                numbers = f"{len(mine)}", f"{sum(len(each.scores) for each in mine)}"
                ours = f"{value.value:.3f}", interval, f"{there.value:.3f}"
                rows.append((method, scale, f"{frames:,}", *numbers, value.name, *ours))
    head = ("size, ratio", "scale", "frames", "tasks", "runs", "", "ours", "95 % interval", "published, same tasks")
    return _table(head, rows) if rows else ""


def _times(curves: Sequence[Curve]) -> str:
    rows = []
    for curve in curves:
        task, taken = curve.config.task, np.array(scores.hours(curve.folder)).T
        if not len(taken):
            continue
        for band in published.curve(task):
            frames = curve.reached(band.mean, published.window(task))
            if frames == curve.frames[0]:  # what the first episodes score has not been learned
                continue
            if frames is None and band.frames > curve.end:
                continue
            minutes = f"{60 * np.interp(frames, *taken):.0f}" if frames else f"not in {60 * taken[1][-1]:.0f}"
            mine = f"{frames:,}" if frames else f"not by {curve.end:,}"
            run = f"{curve.method}, seed {curve.config.seed}"
            machine = _where(scores.run_record(curve.folder))
            rows.append((f"`{task}`", run, f"{number(band.mean)} at {band.frames:,}", mine, minutes, machine))
    head = ("task", "run", "published", "frames of ours", "minutes", "machine")
    return _table(head, rows) if rows else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))
