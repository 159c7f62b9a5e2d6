"""How much of what a world model learns holds for episodes that it has not learned from, by its size.

    PYTHONPATH=. python tests/held_out.py runs/FOLDER

Agents that begin anew learn side by side from the first rows of a run's replay, but for those of its last two
environments, which they are tried on. Every sequence begins from nothing. They imagine two steps only: the world model
is what is looked at.
"""

from dataclasses import replace
from pathlib import Path

import click
import torch
import trained

from dreamer.agent import Agent
from dreamer.config import make_config
from dreamer.replay import new_replay

SIZES = "1m", "12m"
EVERY = 100  # updates
TRIED = 5  # batches
HELD = 2  # environments


def part(agent, replay, streams, rows):
    """The first rows of some environments."""
    made = new_replay(
        agent.config, agent.observation_spec, agent.action_spec, len(streams), len(streams) * rows,
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    made.load_state_dict({"count": rows, "queue": []})
    for values in (replay.export_rows(0, rows), replay.export_latents(0, rows)):
        made.put(0, {key: value[streams] for key, value in values.items()})
    made.hold_from(0)
    return made


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--updates", default=1000, show_default=True)
@click.option("--rows", default=1503, show_default=True, help="Of each environment: three episodes of walker.")
@click.option("--rate", default=4e-4, show_default=True, help="Learning rate, ten times the usual one.")
def main(run, updates, rows, rate):
    agent, replay = trained.load(run)
    size, streams = agent.config.replay.batch, list(range(replay.streams))
    known = part(agent, replay, streams[:-HELD], rows)
    new = part(agent, replay, streams[-HELD:], rows)
    tried = [new.sample(size)[0] for _ in range(TRIED)]
    learners = {}
    for name in SIZES:
        config = make_config(agent.config.task, size=name, settings=["behavior.horizon=2"])
        config = replace(config, optimizer=replace(config.optimizer, learning_rate=rate))
        learners[name] = Agent(config, agent.observation_spec, agent.action_spec, agent.device, agent.dtype)
        learners[name].compile()
    shown = {"KL": "world_model/kl"}
    shown |= {key: f"loss/decoder/{key}" for key in agent.observation_spec.keys} | {"reward": "loss/reward"}
    print(
        "updates," + ",".join(f"{name} {rows}: {what}" for name in SIZES for rows in ("known", "new") for what in shown)
    )
    sums = torch.zeros(len(SIZES), len(shown))
    for number in range(1, updates + 1):
        batch, _ = known.sample(size)
        for i, made in enumerate(learners.values()):
            metrics, _ = made.update(batch._replace(start=made.world_model.rssm.initial(size)))
            sums[i] += torch.stack([metrics[each].float() for each in shown.values()])
        if number % EVERY == 0:
            cells = [*zip(sums / EVERY, (on(made, tried, shown) for made in learners.values()))]
            print(
                f"{number}," + ",".join(f"{each:.4g}" for pair in cells for line in pair for each in line), flush=True
            )
            sums.zero_()


@torch.no_grad()
def on(agent, batches, shown):
    """The mean of some metrics over batches that nothing is learned from."""
    found = []
    for batch in batches:
        start = agent.world_model.rssm.initial(len(batch.reward))
        metrics = agent.loss(batch._replace(start=start))[1]
        found.append(torch.stack([metrics[each].float() for each in shown.values()]))
    return torch.stack(found).mean(0)


if __name__ == "__main__":
    main()
