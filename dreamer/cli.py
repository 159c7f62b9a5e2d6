"""The command line. Nothing heavy is imported before a command needs it."""

import contextlib
import functools
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .own_envs import own_envs
from .stopping import StoppedAtOnce

if TYPE_CHECKING:
    from .config import Config
    from .results.worklist import Entry
    from .scoring import Scores

DEVICES = click.Choice(["auto", "cpu", "cuda", "mps"])
SEEDS = click.IntRange(0, 2**63 - 1)
PRECISIONS = click.Choice(["auto", "float32", "bfloat16"])


class Count(click.ParamType):
    """A whole number from 1, as people write large ones."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        from .config import whole

        with contextlib.suppress(ValueError):
            if (number := value if isinstance(value, int) else whole(value)) >= 1:
                return number
        self.fail(f"{value!r} is no whole number from 1: write 500000, 500k or 5e5", param, context)


class UserError(click.ClickException):
    """A mistake that the user can mend: one sentence, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"dreamer: {self.format_message()}", err=True)


class Commands(click.Group):
    """Turns users' mistakes, whichever module finds them, into one sentence."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except StoppedAtOnce as error:
            raise SystemExit(error.args[0]) from None
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "dreamer"
            raise UserError(f"{error.format_message().rstrip('.')}; see {path} --help") from error
        except ValueError as error:
            if isinstance(error, _mistakes()):
                raise UserError(str(error)) from error
            raise
        except OSError as error:
            if error.filename is None:
                raise
            raise UserError(f"{error.filename} cannot be used: {error.strerror}") from error


def _mistakes() -> tuple[type[ValueError], ...]:
    from .errors import UserMistake

    # `envs` knows nothing of this package, so its mistakes have a class of their own.
    theirs = getattr(sys.modules.get("envs"), "TaskError", None)
    return (UserMistake, theirs) if theirs else (UserMistake,)


@click.group("dreamer", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dreamer")
def main() -> None:
    """DreamerV3: learn a world model, and a policy inside it."""


@main.command()
@click.option(
    "--env", "task", metavar="SUITE/TASK", help="What to learn: a name of `dreamer envs`, or your module:factory."
)
@click.option("--run", type=click.Path(path_type=Path), help="The run's folder; one that holds a run is continued.")
@click.option("--frames", type=Count(), help="Environment frames, action repeat included.")
@click.option("--size", metavar="SIZE", help="Model size: 1m, 12m, 25m, 50m, 100m, 200m, 400m.")
@click.option("--seed", type=SEEDS, help="Of parameters, environments and all random numbers.")
@click.option("--envs", type=click.IntRange(min=1), help="Environments that step together.")
@click.option("--device", type=DEVICES, help="Where to compute.")
@click.option("--precision", type=PRECISIONS, help="Of matrix products; auto asks the machine.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other setting, for example replay.batch=8."
)
def train(
    task: str | None,
    run: Path | None,
    frames: int | None,
    size: str | None,
    seed: int | None,
    envs: int | None,
    device: str | None,
    precision: str | None,
    settings: tuple[str, ...],
) -> None:
    """Train an agent, from scratch or from where RUN stopped.

    What is left out is as in the suite's protocol (`dreamer envs`), but for the size, which is 1m without a GPU.
    """
    from .opening import train as begin

    settings = (*settings, *_machine_settings(device, precision))
    begin(task, run, size=size, settings=settings, frames=frames, seed=seed, envs=envs)


def _machine_settings(device: str | None, precision: str | None) -> list[str]:
    given = {"run.device": device, "run.precision": precision}
    return [f"{key}={value}" for key, value in given.items() if value]


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--episodes", default=10, show_default=True, help="Episodes to play.")
@click.option("--envs", type=click.IntRange(min=1), default=8, show_default=True, help="Environments at once, at most.")
@click.option("--greedy", is_flag=True, help="The most likely action instead of a sample.")
@click.option(
    "--seed",
    type=SEEDS,
    default=1_000_000,
    show_default=True,
    help="Of the environments and of the sampled actions.",
)
@click.option("--device", type=DEVICES, default="auto", show_default=True, help="Where to compute.")
@click.option("--video", type=click.Path(path_type=Path), help="Also film the first episode, as .gif or .mp4.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the mean score at its top.")
def evaluate(
    run: Path,
    episodes: int,
    envs: int,
    greedy: bool,
    seed: int,
    device: str,
    video: Path | None,
    as_json: bool,
) -> None:
    """Score the checkpoint of RUN on whole episodes.

    Ctrl-C ends it with the scores of those that are over.
    """
    from .opening import played
    from .scoring import evaluate as play
    from .stopping import StopSignal, signals_given_back
    from .video import check_path, write

    if episodes < 1:
        raise UserError(f"{episodes} episodes leave nothing to score; give 1 or more")
    if video is not None:
        check_path(video)
    film: list[Any] | None = [] if video is not None else None
    with (
        contextlib.redirect_stdout(sys.stderr),  # of what environments print
        signals_given_back(),
        played(run, min(episodes, envs), seed, device, drawn=film is not None) as (config, _, agent, environments, on),
    ):
        stop = StopSignal("the episodes that are over are scored")
        scores = play(agent, environments, episodes, greedy, film, on.progress, stop)
    if (over := len(scores.scores)) < episodes:
        click.echo(f"Stopped after {over} of {episodes} episodes" + ", which favours short ones" * (over > 0), err=True)
    if over:
        _print_scores(config, scores, as_json)
    if video is not None and film:
        write(video, film)
        click.echo(f"Wrote {video}", err=True)
    elif video is not None and over == episodes:
        raise UserError(f"{config.task} draws nothing, so there is no video; leave out --video")
    if over < episodes:
        raise SystemExit(128 + stop.requested)


def _print_scores(config: "Config", scores: "Scores", as_json: bool) -> None:
    from .results.published import human_normalized, number

    human = human_normalized(config.task, scores.mean)
    if as_json:
        click.echo(json.dumps(scores.to_json() | ({} if human is None else {"human_normalized": human})))
        return
    mean, low, high, std = (number(value, 6) for value in (scores.mean, *scores.interval(), scores.std))
    click.echo(
        f"{config.task}: mean score {mean} (95% interval {low} to {high}), standard deviation {std}, "
        f"{len(scores.scores)} episodes of {min(scores.lengths)} to {max(scores.lengths)} steps"
        + ("" if human is None else f"; human-normalised {human:.3g} (0 is random play, 1 a human)")
    )


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="dream.gif", show_default=True, help="GIF, MP4 or PNG.")
@click.option("--horizon", type=click.IntRange(1, 1_000), default=50, show_default=True, help="Steps of the dream.")
@click.option(
    "--context",
    type=click.IntRange(1, 1_000),
    default=5,
    show_default=True,
    help="Steps before it, seen.",
)
@click.option("--scenes", type=click.IntRange(1, 8), default=1, show_default=True, help="Episodes, side by side.")
@click.option("--policy", is_flag=True, help="Let the agent act inside its dream, instead of the real actions.")
@click.option("--seed", type=SEEDS, default=1_000_000, show_default=True, help="Of the episodes and the dreams.")
@click.option("--device", type=DEVICES, default="auto", show_default=True, help="Where to compute.")
def imagine(
    run: Path, out: Path, horizon: int, context: int, scenes: int, policy: bool, seed: int, device: str
) -> None:
    """Show real episodes beside what the model of RUN dreams of them.

    The model sees a few steps, marked green; then it is on its own and only told the real actions. A .png is one sheet
    of ten moments.
    """
    from .dreams import imagine as pictures
    from .dreams.dream import record
    from .opening import played

    pictures.check_path(out)
    with played(run, scenes, seed, device) as (config, _, agent, environments, terminal):
        episodes = record(agent, environments, scenes, pictures.WATCHED + context + horizon, terminal.progress)
    found = pictures.scenes(agent, episodes, context, horizon, policy, seed)
    pictures.draw(found, f"{config.task}, {run.name}", out)
    click.echo(f"Wrote {out}")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--episodes", type=click.IntRange(2, 10_000), default=10, show_default=True, help="Fresh ones, to play.")
@click.option("--horizon", type=click.IntRange(1, 1_000), default=100, show_default=True, help="Steps to look ahead.")
@click.option("--envs", type=click.IntRange(min=1), default=8, show_default=True, help="Environments at once, at most.")
@click.option("--page", type=click.Path(path_type=Path), help="Also write a page with all plots, as .html.")
@click.option("--seed", type=SEEDS, default=2_000_000, show_default=True, help="Of the episodes and the dreams.")
@click.option("--device", type=DEVICES, default="auto", show_default=True, help="Where to compute.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diagnose(
    run: Path, episodes: int, horizon: int, envs: int, page: Path | None, seed: int, device: str, as_json: bool
) -> None:
    """Measure how far the world model of RUN can be trusted.

    Open loop with the real actions of fresh episodes: errors by steps ahead against simple forecasts, the latents'
    drift, whether dreams differ as much as they err, and predicted against real returns.
    """
    from .checkpoint import CheckpointError
    from .dreams import diagnose as diagnosis
    from .dreams import report
    from .dreams.dream import record
    from .opening import played
    from .video import check_place

    if page is not None:
        if page.suffix.lower() != ".html":
            raise UserError(f"{page} does not end in .html; give the page that ending")
        check_place(page)
    with (
        contextlib.redirect_stdout(sys.stderr),  # of what environments print
        played(run, min(episodes, envs), seed, device) as (config, checkpoint, agent, environments, terminal),
    ):
        rows = None
        with contextlib.suppress(CheckpointError):  # the replay may be left out of a folder
            rows = checkpoint.newest_rows(agent)
        episodes_played = record(agent, environments, episodes, diagnosis.LONGEST, terminal.progress)
        found = diagnosis.diagnose(agent, episodes_played, config.task, seed, horizon, terminal.progress, rows)
    click.echo(json.dumps(found.to_json()) if as_json else report.table(found))
    if page is not None:
        page.write_text(report.page(found))
        click.echo(f"Wrote {page}", err=True)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="Of the page; 0 is any.")
@click.option("--seed", type=SEEDS, default=3_000_000, show_default=True, help="Of the episodes and the dream.")
@click.option("--device", type=DEVICES, default="auto", show_default=True, help="Where to compute.")
def play(run: Path, port: int, seed: int, device: str) -> None:
    """Play the dream of RUN in the browser.

    With the keyboard, and with the real environment beside it on request. The page is served to this machine alone.
    """
    import signal

    from .checkpoint import RunFolder
    from .dreams.play import Server, Stage
    from .environments import environment_options
    from .machine import limit_threads
    from .run import check_spaces

    limit_threads()
    folder = RunFolder(run)
    config, agent = folder.config(), folder.load_agent(device, seed)
    options = environment_options(config, drawn=True)
    environment = own_envs().make(config.task, **options)
    try:
        check_spaces(folder, environment)
        for name in (signal.SIGINT, signal.SIGTERM):  # which a drawing library may have taken over
            signal.signal(name, signal.default_int_handler)
        server = Server(Stage(agent, environment, seed), f"{config.task}, dreamt", port)
        click.echo(f"Open {server.address} in a browser; Ctrl-C ends it.")
        server.run()
    except KeyboardInterrupt:
        click.echo("")
    finally:
        environment.close()


@main.command()
@click.argument("pattern", default="")
@click.option("--env", "task", default="gym", show_default=True, metavar="SUITE", help="Whose defaults.")
def settings(pattern: str, task: str) -> None:
    """List the settings that `--set` takes, or those whose name holds PATTERN, and what they mean."""
    from .config import ALIASES, described

    if (suites := own_envs().suites()).keys().isdisjoint([task.partition("/")[0]]):
        raise UserError(f"there is no suite {task!r}; there are {', '.join(suites)}")
    pattern = pattern.lower()
    found = [each for each in described(task) if pattern in each.key or each.key == ALIASES.get(pattern)]
    if not found:
        for suite in suites:
            if any(pattern in each.key for each in described(suite)):
                raise UserError(f"{pattern!r} is a setting of {suite}: dreamer settings {pattern} --env {suite}")
        raise UserError(f"no setting's name holds {pattern!r}; `dreamer settings` lists them all")
    rows = [("setting", "default", "allowed", "")]
    rows += [(each.key, "own" if each.default is None else f"{each.default}", *each[2:]) for each in found]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]).rstrip())


@main.command()
@click.argument("runs", metavar="[NAME=]RUN...", nargs=-1, required=True)
@click.option(
    "--out", default="curves.png", show_default=True, type=click.Path(path_type=Path), help="PNG, SVG or PDF."
)
def plot(runs: tuple[str, ...], out: Path) -> None:
    """Draw the learning curves of RUNs, with the published band where there is one.

    A panel for each task. Runs that differ in their seed alone become one line with a band; those of one NAME do, too,
    which tells two runs of the same settings apart.
    """
    from .results import plot as pictures
    from .results.scores import named

    pictures.check_path(out)
    pictures.draw([named(run) for run in runs], out)
    click.echo(f"Wrote {out}")


@main.command()
@click.argument("runs", metavar="[NAME=]RUN...", nargs=-1, required=True)
@click.option("--frames", type=Count(), help="Where to compare; else at the end of the shortest run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(runs: tuple[str, ...], frames: int | None, as_json: bool) -> None:
    """Compare the scores of RUNs with each other and with the published ones.

    A NAME tells runs of the same settings apart, as in before=runs/A after=runs/B.
    """
    from .results import compare as comparison
    from .results.scores import named

    curves = [named(run) for run in runs]
    found = comparison.results(curves, frames)
    if frames is None:
        for sentence in comparison.cut_short(curves):
            click.echo(sentence, err=True)
    click.echo(json.dumps(comparison.to_json(found)) if as_json else comparison.table(found))


@main.command()
@click.argument("file", metavar="LIST", type=click.Path(path_type=Path))
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default="runs/batch",
    show_default=True,
    help="Where the runs' folders are.",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default="runs/results/curves",
    show_default=True,
    help="Where curves, times and an index of them are kept.",
)
@click.option("--at-once", type=click.IntRange(min=1), default=1, show_default=True, help="Runs side by side.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="After which all are stopped and saved.")
@click.option("--device", type=DEVICES, default="auto", show_default=True, help="Where to compute.")
def batch(file: Path, runs: Path, results: Path, at_once: int, minutes: float | None, device: str) -> None:
    """Work through a LIST of runs.

    LIST is a CSV with the columns task and seed and, where wanted, size, ratio, frames and settings. Runs that are
    finished are left alone, interrupted ones go on. With --minutes, a run that would end within so many but not in what
    is left of them is not begun. The exit code is 1 if one ended by an error or could not be kept.
    """
    import signal

    from .errors import UserMistake
    from .results.batch import Runner
    from .results.worklist import read
    from .stopping import asking
    from .terminal import Terminal

    def stop(number: int, frame: Any) -> None:
        for name in asked:  # what the runs have shown is being written: no second one may cut that short
            signal.signal(name, lambda number, frame: None)
        raise KeyboardInterrupt

    asked = asking()
    for name in asked:  # a shell that starts it in the background has it ignore the first
        signal.signal(name, stop)
    if minutes is not None and math.isnan(minutes):
        raise UserMistake("--minutes nan is no time; give a number above 0, or leave it out")
    entries = read(file, _check_entry)
    work = Runner(entries, runs, results, at_once, minutes, device, Terminal().say)
    if work.work():
        raise SystemExit(1)


def _check_entry(entry: "Entry") -> None:
    """Raise a ValueError if there is no such task or option; what only making it tells is tried, once."""
    from .environments import environment_options, only_making_tells

    config, package = entry.config, own_envs()
    package.check_name(config.task, **config.environment)
    if only_making_tells(config.task):
        _try_environment(config.task, json.dumps(environment_options(config)))


@functools.cache  # which wants what can be hashed
def _try_environment(task: str, options: str) -> None:
    own_envs().make(task, **json.loads(options)).close()


@main.command()
@click.option("--env", "task", default="dmc/walker_walk", show_default=True, help="Whose shapes and environments.")
@click.option("--size", metavar="SIZE", help="Model size: 1m, 12m, 25m, 50m, 100m, 200m, 400m.")
@click.option("--device", type=DEVICES, help="Where to compute.")
@click.option("--precision", type=PRECISIONS, help="Of matrix products; auto asks the machine.")
@click.option("--eager", is_flag=True, help="Do not compile.")
@click.option("--cold", is_flag=True, help="Compile as on a new machine, with an empty cache.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As for train.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, times in seconds.")
def bench(
    task: str,
    size: str | None,
    device: str | None,
    precision: str | None,
    eager: bool,
    cold: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure how fast this machine trains, acts and steps.

    On random data of the task's shapes and on its environments; takes a minute or two, and longer where it compiles.
    """
    with tempfile.TemporaryDirectory() as empty:
        if cold:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
            os.environ["TRITON_CACHE_DIR"] = os.path.join(empty, "triton")
        from . import bench as benchmark
        from .environments import make_environments
        from .machine import is_out_of_memory
        from .opening import new_config

        settings = (*settings, *_machine_settings(device, precision), *(["run.compile=false"] if eager else []))
        config = new_config(task, size=size, settings=settings)
        environments = make_environments(config, config.envs, config.seed, guarded=True)
        try:
            report = benchmark.measure(config, environments, lambda text: click.echo(f"{text} ...", err=True), cold)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"a {config.size} model with batches of {config.replay.batch} x {config.replay.length} steps does not "
                "fit into the memory of this device; give a smaller --size or --set replay.batch"
            ) from None
        finally:
            environments.close()
    click.echo(json.dumps(report.to_json()) if as_json else benchmark.table(report))


@main.command("envs")
@click.argument("pattern", required=False)
def list_envs(pattern: str | None) -> None:
    """List suites and protocols, or the tasks that match PATTERN.

    PATTERN is a part of a name, or has wildcards, best in quotes: walker, 'atari/*', 'gym/Cart*'.
    """
    from . import tasks

    package = own_envs()
    found = tasks.read(package.suites(), package.TaskError, pattern)
    if pattern is None:
        click.echo(tasks.overview(found))
        return
    for reason in dict.fromkeys(listed.missing for listed in found if listed.missing):
        click.echo(f"Not searched: {reason}", err=True)
    click.echo("\n".join(tasks.matching(found, pattern)))


@main.command()
@click.pass_context
def doctor(context: click.Context) -> None:
    """Check this machine, and say how to mend it.

    A line for each thing that training needs; what is missing comes with the command that installs it. The exit code
    is 0 if everything needed works. Without a GPU or a compiler training works too, more slowly.
    """
    from . import doctor as examination

    findings = []
    for check in examination.checks(own_envs, Path("runs")):
        with examination.saying(check.meanwhile, sys.stderr):
            findings.append(examination.run(check))
        click.echo(examination.report(findings[-1]))
    click.echo("\n" + examination.conclusion(findings))
    if any(finding.state == "problem" for finding in findings):
        context.exit(1)
