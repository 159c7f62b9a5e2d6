"""What a machine with a GPU has to show: its tests, bench's tables, profiles of the training loop, short trainings.

    make gpu                     # or: PYTHONPATH=. python tests/gpu_report.py --out runs/results/gpu

Writes report.md after every step, and each bench's JSON beside it. What fails is said there, with exit code 1, and the
rest goes on. ARGS="--part tests" makes one part alone.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from dreamer import bench
from dreamer.agent import Agent
from dreamer.compiling import prepare
from dreamer.config import make_config
from dreamer.loop import Counters, train
from dreamer.machine import MachineError, choose_device, choose_dtype
from dreamer.soundness import Soundness
from dreamer.spaces import action_spec, observation_spec
from envs import Vector, make

PARTS = ("tests", "bench", "profile", "training", "beside")
# Images from Atari: a camera would need OpenGL.
BENCHES = ("dmc/walker_walk:1m", "dmc/walker_walk:12m", "atari100k/pong:12m", "atari100k/pong:200m")
PROFILES = ("atari100k/pong:128", "dmc/walker_walk:512")
BESIDE = (1, 2, 4, 8)  # trainings at once on one card
DREAMER = [sys.executable, "-m", "dreamer"]
TESTS = ("tests/test_cuda.py", "tests/test_golden.py", "tests/test_compile.py", "tests/test_replay.py")
KERNELS = 15  # of a profile that are listed
SLOWER = ("Not compiling", "Not capturing", "AccumulateGrad")  # what dreamer train says where it goes on without


def shell(command: list[str], seconds: float) -> tuple[bool, str, str, float]:
    """Whether it went well, its output and its errors, and how long it took."""
    begun = time.perf_counter()
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
        result = done.returncode == 0, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        result = False, "", f"took longer than {seconds:g} s"
    return *result, time.perf_counter() - begun


def profile(task: str, size: str, ratio: float, settings: tuple[str, ...], seconds: float) -> list[str]:
    """How busy the device is while the training loop runs, and with what."""
    config = make_config(task, size=size, settings=[f"ratio={ratio}", *settings])
    environments = Vector([lambda: make(task) for _ in range(config.envs)], range(config.envs))
    device = choose_device(config.run.device)
    observation, action = observation_spec(environments.observation_space), action_spec(environments.action_space)
    agent = Agent(config, observation, action, device, choose_dtype(config.run.precision, device))
    replay = bench.random_replay(config, observation, action, config.envs, device)
    batch, _ = replay.sample(config.replay.batch)
    with torch.profiler.profile():  # some drivers tell of a graph's kernels only if a profiler came before the graph
        torch.zeros(1, device=device)
    if config.run.compile:
        for problem in prepare(agent, batch, config.envs):
            raise RuntimeError(problem)
    elif device.type == "cuda":
        agent.capture(batch, config.envs)
    counters = Counters(repeat=1, updates=1)

    def run(seconds: float) -> float:
        begun = time.perf_counter()
        train(
            replace(config, frames=sys.maxsize), agent, environments, replay, counters, observers, bench.Unsaved(),
            lambda: time.perf_counter() > begun + seconds,
        )  # fmt: skip
        return time.perf_counter() - begun

    with bench.quiet_logger(config, agent, replay) as (logger, folder):
        observers = (logger, Soundness(folder))
        run(seconds / 2)
        before = counters.updates
        with torch.profiler.profile() as profiler:
            wall = run(seconds)
    environments.close()
    on = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    kernels = [
        each
        for each in profiler.key_averages()
        if device.type != "cuda" or each.device_type == torch.autograd.DeviceType.CUDA
    ]
    if device.type == "cuda":  # acting runs beside learning
        found = [each for each in profiler.events() if each.device_type == torch.autograd.DeviceType.CUDA]
        busy = covered([(each.time_range.start, each.time_range.end) for each in found]) / 1e6
    else:
        busy = sum(getattr(each, on) for each in kernels) / 1e6
    lines = [
        f"{task}, {size}, ratio {ratio:g}: {counters.updates - before} updates in {wall:.2f} s, the device busy for "
        f"{busy:.2f} s, {busy / wall:.0%} (profiled, which slows the launching down)",
        "",
    ]
    for each in sorted(kernels, key=lambda each: -getattr(each, on))[:KERNELS]:
        lines.append(f"{getattr(each, on) / 1e3:10.1f} ms {each.count:8} x  {each.key[:90]}")
    return lines


def covered(spans: list[tuple[float, float]]) -> float:
    """How long at least one of some spans lasts."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


class Report:
    """The report as far as it is, on disk after every part: whoever is stopped keeps what was seen."""

    def __init__(self, out: Path):
        self.out, self.lines, self.failed = out, [], []

    def add(self, *lines: str) -> None:
        self.lines += lines
        text = [*self.lines, "", *(f"FAILED {each}" for each in self.failed)]
        (self.out / "report.md").write_text("\n".join(text).rstrip() + "\n")

    def fail(self, what: str) -> None:
        self.failed.append(what)
        self.add()


def run_benches(report: Report, benches: tuple[str, ...], given: list[str]) -> None:
    report.add(
        "",
        "| one update | time | updates/s | first update | share of the peak | acting, 16 at once | of the allowed |",
        "|---|---|---|---|---|---|---|",
    )
    for each in benches:
        where, which = each.rsplit(":", 1)
        click.echo(f"bench {each} ...", err=True)
        command = [*DREAMER, "bench", "--cold", "--env", where, "--size", which, "--json", *given]
        done, said, wrong, _ = shell(command, 900)
        if not done:
            report.fail(f"bench {each}: {last(wrong)}")
            continue
        look_for_slower(report, f"bench {each}", wrong)
        found = json.loads(said)
        (report.out / f"{where.replace('/', '-')}-{which}.json").write_text(json.dumps(found, indent=2) + "\n")
        report.add(
            f"| {where}, {which} | {1000 * found['update']['median_s']:.2f} ms | {found['updates_per_second']:.1f} | "
            f"{found['first_update_s']:.1f} s | {found['peak_share']:.0%} | "
            f"{1000 * found['acting']['16']['median_s']:.2f} ms | {found['training']['of_allowed']:.0%} |"
        )


def run_tests(report: Report, tests: tuple[str, ...]) -> None:
    report.add("", "## Tests", "")
    for each in tests:  # each in a process of its own: torch.compile forgets nothing within one
        click.echo(f"{each} ...", err=True)
        done, said, wrong, _ = shell([sys.executable, "-m", "pytest", "-q", "-rs", each], 1200)
        report.add(*("    " + line for line in (said or wrong).splitlines()[-12:] if line))
        if not done:
            report.fail(each)


def run_profiles(report: Report, profiles: tuple[str, ...], size: str, *arguments: Any) -> None:
    report.add("", "## Profile", "")
    for each in profiles:
        click.echo(f"profile {each} ...", err=True)
        task, ratio = each.rsplit(":", 1)
        try:
            report.add(*("    " + line for line in profile(task, size, float(ratio), *arguments)), "")
        except Exception as error:  # the rest is worth having
            report.fail(f"profile {each}: {error}")


def look_for_slower(report: Report, what: str, said: str) -> None:
    """What was measured without the compiler, or without a graph, is not what was to be measured."""
    for line in said.splitlines():
        if any(sign in line for sign in SLOWER):
            report.fail(f"{what}: {line.strip()}")


def trained(report: Report, options: list[str], given: list[str]) -> tuple[float, float]:
    """Updates a second of a training at their median, and the seconds it took in all; 0 if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        done, _, wrong, took = shell([*DREAMER, "train", *options, *given, "--run", f"{folder}/run"], 1800)
        if not done:
            report.fail(f"training {' '.join(options)}: {last(wrong)}")
            return 0.0, took
        look_for_slower(report, "training", wrong)
        seen = [json.loads(line) for line in Path(folder, "run/metrics.jsonl").read_text().splitlines()]
        rates = [each["speed/updates_per_second"] for each in seen if each.get("speed/updates_per_second")]
        return (statistics.median(rates) if rates else 0.0), took


def run_training(report: Report, options: list[str], given: list[str]) -> None:
    click.echo("training ...", err=True)
    rate, took = trained(report, options, given)
    words = f"`dreamer train {' '.join(options)}`: {took:.1f} s, compiling included; {rate:.1f} updates/s at the median"
    report.add("", "## A short training", "", words)


def run_beside(report: Report, counts: tuple[int, ...], options: list[str], given: list[str]) -> None:
    report.add("", "## Side by side on one card", "", "| runs | updates/s each | updates/s in all |", "|---|---|---|")
    for count in counts:
        click.echo(f"{count} side by side ...", err=True)
        with ThreadPoolExecutor(count) as pool:
            seeds = [[*options, "--seed", str(seed)] for seed in range(count)]
            rates = [rate for rate, _ in pool.map(lambda each: trained(report, each, given), seeds)]
        report.add(f"| {count} | {statistics.median(rates):.1f} | {sum(rates):.1f} |")


def last(text: str) -> str:
    return " ".join(text.split())[-400:]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/results/gpu"), show_default=True)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS, show_default=True)
@click.option("--bench", "benches", multiple=True, default=BENCHES, show_default=True, help="TASK:SIZE")
@click.option("--test", "tests", multiple=True, default=TESTS, show_default=True)
@click.option("--profile", "profiles", multiple=True, default=PROFILES, show_default=True, help="TASK:RATIO")
@click.option("--task", default="atari100k/pong", show_default=True, help="To train.")
@click.option("--size", default="12m", show_default=True, help="To profile and to train.")
@click.option("--ratio", default=128.0, show_default=True, help="To train.")
@click.option("--frames", default=40_000, show_default=True, help="Of the short trainings.")
@click.option("--beside", "counts", multiple=True, default=BESIDE, show_default=True, help="So many runs at once.")
@click.option("--seconds", default=1.0, show_default=True, help="Of a profile.")
@click.option("--set", "settings", multiple=True, help="For all, as for dreamer train.")
@click.option("--device", default="cuda", show_default=True, help="cpu takes hours; it is there to try this file.")
def main(out, parts, benches, tests, profiles, task, size, ratio, frames, counts, seconds, settings, device):
    try:
        device = choose_device(device)
    except MachineError as error:
        raise click.UsageError(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    report = Report(out)
    report.add("# What a GPU shows", "", f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}")
    given = [word for setting in settings for word in ("--set", setting)]
    options = ["--env", task, "--size", size, "--frames", str(frames), "--set", f"ratio={ratio:g}"]
    if "tests" in parts:
        run_tests(report, tests)
    if "bench" in parts:
        run_benches(report, benches, given)
    if "profile" in parts:
        run_profiles(report, profiles, size, settings, seconds)
    if "training" in parts:
        run_training(report, options, given)
    if "beside" in parts:
        run_beside(report, counts, options, given)
    click.echo(f"Wrote {out / 'report.md'}")
    sys.exit(bool(report.failed))


if __name__ == "__main__":
    main()
