"""What is kept of a run: its curve, its times, what it measured of learning, its config, and how it was made."""

import contextlib
import csv
import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import CheckpointError, write_atomically
from ..config import Config
from ..machine import choose_device, choose_dtype, usable_cores, why_not_compile
from . import scores

TIMES = 200  # points of `times.csv`
POINTS = 100  # of `metrics.csv`
MADE = "record.json"  # in the run's own folder
OWN_RUNS = "dreamer/data/own_runs.csv"  # which is written anew as runs are kept, and computes nothing


def frames(folder: Path) -> int:
    """That a run's newest checkpoint has seen; 0 if there is none."""
    found = scores.counters(folder)
    return int(found.get("rows", 0) * found.get("repeat", 0))


def made_so_far(folder: Path) -> dict[str, Any]:
    """How the run in a folder was made in earlier sittings, as `remember` has it; empty if there was none."""
    try:
        found = json.loads((folder / MADE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(folder: Path, made: dict[str, Any]) -> None:
    """In the run's own folder, so that it is lost with the run alone."""
    if (folder / "config.json").is_file():
        write_atomically(folder / MADE, lambda path: path.write_text(json.dumps(made, indent=2) + "\n"))


def keep(folder: Path, place: Path, made: dict[str, Any]) -> bool:
    """Write what a run's folder shows, up to its newest checkpoint, into `place`; `made`: how it was made.

    What came after the checkpoint would be made again where the run is not ended as it should be.

    Returns:
        No if what is there already is longer, which is left alone.

    Raises:
        CheckpointError: the run has no curve yet, or no checkpoint.
    """
    curve, seen = scores.read(folder), frames(folder)
    if not seen:
        raise CheckpointError(f"{folder} has no checkpoint yet")
    if scores.run_record(place).get("frames", 0) > seen:
        return False
    times = [(frames, hours) for frames, hours in scores.hours(folder) if frames <= seen]
    place.mkdir(parents=True, exist_ok=True)
    # Before the curve, which the index takes a folder by.
    write_atomically(place / "config.json", lambda path: path.write_text((folder / "config.json").read_text()))
    write_atomically(place / "scores.csv", lambda path: scores.write_csv(curve.until(seen), path))
    write_atomically(place / "times.csv", lambda path: _write_times(times, path))
    write_atomically(place / "metrics.csv", lambda path: scores.write_metrics(folder, path, POINTS, seen))
    taken = {"frames": seen, "minutes": round(60 * times[-1][1], 4) if times else 0.0}
    text = json.dumps(made | taken, indent=2) + "\n"
    write_atomically(place / "run.json", lambda path: path.write_text(text))
    return True


def _write_times(times: list[tuple[int, float]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["frames", "hours"])
        writer.writerows((frames, f"{hours:.4f}") for frames, hours in scores.thinned(times, TIMES))


def circumstances(config: Config, device: str, threads: int) -> dict[str, Any]:
    """What computes a run of this config on a device that `machine.choose_device` knows."""
    chosen = choose_device(device)
    return {
        "machine": machine(device),
        "torch": torch.__version__,
        "precision": str(choose_dtype(config.run.precision, chosen)).removeprefix("torch."),
        "compiled": config.run.compile and not why_not_compile(chosen),
        "threads": threads,
    }


def commit() -> str:
    """Of the code that runs, where that is known; dirty if what computes is not as it is there."""
    here = ["git", "-C", str(Path(__file__).parents[2])]
    try:  # what is installed may lie within a repository of somebody else's
        subprocess.run(
            [*here, "ls-files", "--error-unmatch", "dreamer/results/record.py"], capture_output=True, check=True
        )
        name = subprocess.run([*here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*here, "diff", "--quiet", "HEAD", "--", "dreamer", "envs", "setup.cfg", f":!{OWN_RUNS}"]
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip() + "-dirty" * bool(changed.returncode)


def machine(device: str) -> str:
    """What a device is called: the card, or the processor and how many of its cores may be used."""
    if choose_device(device).type == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        model = names[0]
    cores = usable_cores()
    return f"{cores} core{'s' * (cores != 1)} of {model}"
