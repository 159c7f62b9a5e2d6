"""Kill a run again and again, and compare its end with that of a run that nobody killed.

    PYTHONPATH=. python tests/faults.py --kills 100 > runs/results/faults/kills.txt

Each time the process is killed (SIGKILL) after a random time, and the same command is given again. Checkpoints are
written all the time, so that many kills fall into the writing of one.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import test_resume
import tiny

from dreamer.checkpoint import RunFolder


def command(folder: Path, task: str, rows: int, envs: int) -> list[str]:
    settings = [*tiny.WIDTHS, "run.checkpoint_seconds=0.1", "ratio=0.2"]
    pairs = [part for setting in settings for part in ("--set", setting)]
    options = ["--size", "1m", "--envs", str(envs), "--frames", str(rows * 2), "--run", str(folder)]
    return [sys.executable, "-m", "dreamer", "train", "--env", task, *options, *pairs]


@click.command()
@click.option("--kills", default=100, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--task", default="dmc/cartpole_swingup", show_default=True)
@click.option("--envs", default=2, show_default=True)
@click.option("--rows", default=60_000, show_default=True, help="Agent steps of the whole run.")
@click.option("--seconds", default=(3.0, 8.0), show_default=True, help="Between start and kill, from and to.")
def main(kills: int, seed: int, task: str, envs: int, rows: int, seconds: tuple[float, float]) -> None:
    moments = random.Random(seed)
    place = Path(tempfile.mkdtemp())
    killed, whole = place / "killed", place / "whole"
    said, partial, done = set(), 0, 0
    print(
        f"{task}, {envs} environments, {rows} agent steps; {kills} kills, each after {seconds[0]:g} to {seconds[1]:g} s"
    )
    for number in range(1, kills + 1):
        with (place / "said.txt").open("w") as log:
            process = subprocess.Popen(command(killed, task, rows, envs), stderr=log)
            wait = moments.uniform(*seconds)
            time.sleep(wait)
            ended = process.poll()
            process.kill()
            process.wait()
        if ended is not None:
            print((place / "said.txt").read_text())
            raise SystemExit(f"it ended by itself before kill {number}, with exit code {ended}: give more --rows")
        said |= {
            line for line in (place / "said.txt").read_text().splitlines() if "damaged" in line or "missing" in line
        }
        unfinished = [path.name for path in killed.rglob("*.partial")]
        partial += bool(unfinished)
        before, done = done, RunFolder(killed).rows if killed.exists() else 0
        assert done >= before, "a checkpoint was lost"
        print(
            f"{number:4} after {wait:4.1f} s: {done:6} rows saved" + f", in {unfinished[0]}" * bool(unfinished),
            flush=True,
        )
    for folder in (killed, whole):
        subprocess.run(command(folder, task, rows, envs), check=True, stderr=subprocess.DEVNULL)
    test_resume.assert_same(killed, whole)
    print(f"{partial} of {kills} kills fell into the writing of a file; damaged checkpoints met: {len(said)}")
    print("The end is the same, bit for bit: parameters, optimiser, generators, replay, latents, scores.")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
