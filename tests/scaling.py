"""How the cost of an update grows with the size, the batch, the length and the horizon.

    PYTHONPATH=. python tests/scaling.py --out runs/results/speed/scaling.csv

Each line compiles anew, a minute or two where nothing is cached, half an hour in all. Leave the machine
alone meanwhile.
"""

import csv
import time
from pathlib import Path

import click
import torch

from dreamer import bench
from dreamer.agent import Agent
from dreamer.compiling import prepare
from dreamer.config import make_config
from dreamer.machine import choose_device, choose_dtype, keep_freed_memory, limit_threads
from dreamer.spaces import action_spec, observation_spec
from envs import make

USUAL = {"size": "1m", "batch": 16, "length": 64, "horizon": 15}
CHANGES = [
    {}, {"size": "12m"}, {"size": "25m"}, {"size": "50m"}, {"batch": 4}, {"batch": 8}, {"batch": 32},
    {"length": 16}, {"length": 32}, {"length": 128}, {"horizon": 5}, {"horizon": 30},
]  # fmt: skip


def measure(task, size, batch, length, horizon):
    """One line, of the shapes of a task."""
    torch.compiler.reset()
    settings = [f"replay.batch={batch}", f"replay.length={length}", f"behavior.horizon={horizon}"]
    config = make_config(task, size=size, settings=settings)
    environment = make(task)
    observation, action = observation_spec(environment.observation_space), action_spec(environment.action_space)
    environment.close()
    device = choose_device("auto")
    agent = Agent(config, observation, action, device, choose_dtype("auto", device))
    sample, _ = bench.random_replay(config, observation, action, 1, device).sample(batch)
    begun = time.perf_counter()
    assert prepare(agent, sample, 1) == []
    agent.update(sample)
    first = time.perf_counter() - begun
    spread = bench.timed(lambda: agent.update(sample), device)
    agent.uncompile()
    return {
        "parameters": agent.parameter_count,
        "update_ms": round(1000 * spread.median_s, 1),
        "low_ms": round(1000 * spread.low_s, 1),
        "high_ms": round(1000 * spread.high_s, 1),
        "us_per_step": round(1e6 * spread.median_s / (batch * length), 1),
        "gflop": round(bench.count_flop(agent, sample) / 1e9, 1),
        "first_update_s": round(first, 1),
    }


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("scaling.csv"), show_default=True)
@click.option("--env", "task", default="dmc/walker_walk", show_default=True)
def main(out, task):
    keep_freed_memory()
    limit_threads()
    with out.open("w", newline="") as file:
        writer = None
        for change in CHANGES:
            line = USUAL | change
            line |= measure(task, **line)
            if writer is None:
                writer = csv.DictWriter(file, line, lineterminator="\n")
                writer.writeheader()
            writer.writerow(line)
            file.flush()
            print(line, flush=True)


if __name__ == "__main__":
    main()
