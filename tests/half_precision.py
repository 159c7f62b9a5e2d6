"""What it does to the losses if the replay keeps deter in half precision: on batches of a trained run's own replay.

    PYTHONPATH=. python tests/half_precision.py runs/FOLDER

For each kind of number: how far the losses of the same batches, by the same random numbers, move from float32's,
beside how far they move if other random numbers are drawn. Nothing is trained.
"""

from pathlib import Path

import click
import numpy as np
import torch
import trained

REFRESHED = 3  # times that a row is, in the mean
KINDS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--batches", default=20, show_default=True)
def main(run, batches):
    agent, replay = trained.load(run)
    config = agent.config
    refresh(agent, replay, config.replay.batch)
    found = {kind: [] for kind in ("other noise", *KINDS)}
    for number in range(batches):
        batch, _ = replay.sample(config.replay.batch)
        plain = losses(agent, batch, number)
        found["other noise"].append(losses(agent, batch, 1000 + number) - plain)
        for kind, dtype in KINDS.items():
            start = batch.start._replace(deter=batch.start.deter.to(dtype).float())
            found[kind].append(losses(agent, batch._replace(start=start), number) - plain)
    names = list(agent.loss(batch)[1])
    keep = [i for i, name in enumerate(names) if name.startswith("loss/")]
    print(f"{'mean difference, its deviation':<30}" + "".join(f"{kind:>26}" for kind in found))
    for i in keep:
        print(f"{names[i]:<30}" + "".join(f"{np.mean(d, 0)[i]:>13.2e}{np.std(d, 0)[i]:>13.2e}" for d in found.values()))


@torch.no_grad()
def refresh(agent, replay, batch):
    """Latents in float32, as they would be with a ring of that kind: of the model's own posteriors."""
    replay.data["deter"] = replay.data["deter"].float()
    for _ in range(REFRESHED * replay.count * replay.streams // (batch * replay.length)):
        sample, windows = replay.sample(batch)
        replay.refresh(windows, agent.loss(sample)[2])


@torch.no_grad()
def losses(agent, batch, seed):
    agent.generator.manual_seed(seed)
    return np.array([float(value) for value in agent.loss(batch)[1].values()])


if __name__ == "__main__":
    main()
