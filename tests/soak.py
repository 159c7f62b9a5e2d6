"""Memory of a tiny run over many updates, as CSV: it must be flat once the replay is full.

    PYTHONPATH=. python tests/soak.py --updates 20000 > runs/results/faults/memory.csv

A whole run, as `dreamer train` starts it: an environment in a process of its own, logger, TensorBoard, health, and a
checkpoint every five seconds.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import tiny


@click.command()
@click.option("--updates", default=20_000, show_default=True)
@click.option("--every", default=5.0, show_default=True, help="Seconds.")
def main(updates: int, every: float) -> None:
    settings = [*tiny.WIDTHS, "ratio=8", "replay.capacity=2000", "run.checkpoint_seconds=5", "run.log_seconds=1"]
    pairs = [word for setting in settings for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        options = ["--env", "gym/CartPole-v1", "--size", "1m", "--frames", str(updates + 10), "--run", str(run)]
        command = [sys.executable, "-m", "dreamer", "train", *options, *pairs]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        print("updates,resident_mib,environment_mib")
        while process.poll() is None:
            time.sleep(every)
            if done := _updates(run / "metrics.jsonl"):
                with contextlib.suppress(OSError):  # it has just ended
                    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                    sizes = [f"{_resident(pid):.1f}" for pid in (process.pid, *children)]
                    print(",".join([str(done), *sizes]), flush=True)
        assert process.returncode == 0


def _resident(pid: int | str) -> float:
    """MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _updates(path: Path) -> int:
    lines = path.read_text().splitlines() if path.exists() else []
    found = (json.loads(line).get("speed/updates") for line in reversed(lines) if line.endswith("}"))
    return int(next((number for number in found if number), 0))


if __name__ == "__main__":
    main()
