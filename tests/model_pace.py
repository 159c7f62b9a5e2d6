"""How fast a world model learns to say what it sees and what comes next, by its size and learning rate.

    PYTHONPATH=. python tests/model_pace.py runs/FOLDER

Agents that begin anew learn side by side from the same sequences of a run's replay, each as in a training, up to the
first step, which nothing is known before. They imagine two steps only: the world model is what is looked at.
"""

from dataclasses import replace
from pathlib import Path

import click
import torch
import trained

from dreamer.agent import Agent
from dreamer.config import make_config

# Size, learning rate times.
KINDS = {"1m": ("1m", 1), "1m, learning rate x 4": ("1m", 4), "12m": ("12m", 1)}
EVERY = 250  # updates


def learner(agent, size, rate):
    config = make_config(agent.config.task, size=size, settings=["behavior.horizon=2"])
    faster = replace(config.optimizer, learning_rate=rate * config.optimizer.learning_rate)
    config = replace(config, optimizer=faster)
    made = Agent(config, agent.observation_spec, agent.action_spec, agent.device, agent.dtype)
    made.compile()
    return made


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--updates", default=2000, show_default=True)
def main(run, updates):
    agent, replay = trained.load(run)
    learners = {name: learner(agent, *kind) for name, kind in KINDS.items()}
    shown = {f"observation {key}": f"loss/decoder/{key}" for key in agent.observation_spec.keys}
    shown |= {"reward": "loss/reward", "KL": "world_model/kl"}
    print("updates," + ",".join(f"{name}: {what}" for name in learners for what in shown))
    sums = torch.zeros(len(learners), len(shown))
    for number in range(1, updates + 1):
        batch, _ = replay.sample(agent.config.replay.batch)
        for i, made in enumerate(learners.values()):
            start = made.world_model.rssm.initial(agent.config.replay.batch)
            metrics, _ = made.update(batch._replace(start=start))
            sums[i] += torch.stack([metrics[name].float() for name in shown.values()])
        if number % EVERY == 0:
            print(f"{number}," + ",".join(f"{value / EVERY:.3f}" for value in sums.flatten().tolist()), flush=True)
            sums.zero_()


if __name__ == "__main__":
    main()
