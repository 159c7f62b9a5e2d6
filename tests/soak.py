"""Memory of a tiny run over many updates, as CSV: it must be flat once the replay is full.

python tests/soak.py --updates 20000 > runs/results/faults/memory.csv
"""

import resource
from pathlib import Path

import click
import tiny

from dreamer.train import train


class Watch(tiny.Silent):
    """Prints the process's resident memory now and then."""

    def __init__(self, every: int):
        self.every = every

    def update(self, metrics, batch, counters):
        if counters.updates % self.every == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            print(f"{counters.updates},{counters.rows},{pages * resource.getpagesize() / 2**20:.1f}", flush=True)


@click.command()
@click.option("--updates", default=20_000, show_default=True)
@click.option("--every", default=200, show_default=True)
def main(updates: int, every: int) -> None:
    config, agent, vector, replay, counters = tiny.tiny_run("ratio=8", capacity=2000, frames=10**9)
    print("updates,rows,resident_mib")
    train(config, agent, vector, replay, counters, [Watch(every)], tiny.Unsaved(), lambda: counters.updates >= updates)


if __name__ == "__main__":
    main()
