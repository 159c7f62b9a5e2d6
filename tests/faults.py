"""Kill a run again and again, and compare its end with that of a run that nobody killed.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/faults.py > runs/results/faults/kills.txt

Each time the process is killed (SIGKILL) after a random time, and the same command is given again. Checkpoints are
written all the time, so that many kills fall into the writing of one. Processes are forked from one that has imported
everything, since else most kills would fall into the imports.
"""

import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import click
import test_resume
import tiny
from click.testing import CliRunner

from dreamer.checkpoint import RunFolder
from dreamer.cli import main as dreamer


def arguments(folder: Path, task: str, rows: int, envs: int) -> list[str]:
    settings = [*tiny.WIDTHS, "run.checkpoint_seconds=0.1", "ratio=0.2"]
    pairs = [part for setting in settings for part in ("--set", setting)]
    options = ["--size", "1m", "--envs", str(envs), "--frames", str(rows * 2), "--run", str(folder)]
    return ["train", "--env", task, *options, *pairs]


def begin(folder: Path, log: Path, task: str, rows: int, envs: int) -> int:
    """Returns the process that trains."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        dreamer(arguments(folder, task, rows, envs))  # which exits
    return child


@click.command()
@click.option("--kills", default=100, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--task", default="dmc/cartpole_swingup", show_default=True)
@click.option("--envs", default=2, show_default=True)
@click.option("--rows", default=20_000, show_default=True, help="Agent steps of the whole run.")
@click.option("--seconds", nargs=2, default=(0.2, 3.0), show_default=True, help="Between start and kill, from and to.")
def main(kills: int, seed: int, task: str, envs: int, rows: int, seconds: tuple[float, float]) -> None:
    moments = random.Random(seed)
    place = Path(tempfile.mkdtemp())
    killed, whole, log = place / "killed", place / "whole", place / "said.txt"
    partial, done, idle = 0, 0, 0
    # Imports what a run needs, but updates nothing: autograd does not survive a fork.
    CliRunner().invoke(dreamer, arguments(place / "few", task, 4, envs), catch_exceptions=False)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)  # which that run has taken
    print(f"{task}, {envs} environments, {rows} agent steps; {kills} kills, each after {seconds[0]} to {seconds[1]} s")
    for number in range(1, kills + 1):
        child = begin(killed, log, task, rows, envs)
        wait = moments.uniform(*seconds)
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"it ended by itself before kill {number}: give more --rows\n{log.read_text()[-2000:]}")
        unfinished = [path.name for path in killed.rglob("*.partial")]
        partial += bool(unfinished)
        before, done = done, RunFolder(killed).rows if killed.exists() else 0
        assert done >= before, "a checkpoint was lost"
        idle += done == before
        where = f", while {unfinished[0]} was written" if unfinished else ""
        print(f"{number:4} after {wait:4.2f} s: {done:6} rows saved{where}", flush=True)
    for folder in (killed, whole):
        _, status = os.waitpid(begin(folder, log, task, rows, envs), 0)
        assert status == 0, log.read_text()[-2000:]
    test_resume.assert_same(killed, whole)
    damaged = log.read_text().count("the checkpoint before it is used")
    print(f"{partial} of {kills} kills fell into the writing of a file, {idle} came before a new checkpoint")
    print(f"checkpoints found damaged: {damaged}")
    print("The end is the same, bit for bit: parameters, optimiser, generators, replay, latents, scores.")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
