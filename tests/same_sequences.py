"""What agents that begin anew make of a fixed list of sequences, so that another implementation can be given the same.

    PYTHONPATH=. python tests/same_sequences.py runs/FOLDER sequences.npz [--first first.npz]

Writes sequences of a run's replay, drawn uniformly, and learns from them in their order, once with each seed. Every
sequence begins from nothing: what one implementation remembers is of no use to another. `first.npz` holds the other's
first parameters, by the names and in the layouts of the author's implementation, for both seeds to begin with.
"""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
import trained
from golden import Golden, vectors

from dreamer.agent import Agent
from dreamer.config import make_config
from dreamer.replay import Batch

EVERY = 100  # updates
SEEDS = 2
SEEN = "observation/"
SHOWN = {
    "KL": "world_model/kl",
    "reward": "loss/reward",
    "replay critic": "loss/replay_critic",
    "value": "behavior/value",
    "entropy": "behavior/entropy",
}


def written(replay, batches, size, path):
    """Keep so many batches of B sequences of T steps in a file: each name (batches, B, T, ...)."""
    drawn = [replay.sample(size)[0]._replace(start=None) for _ in range(batches)]
    parts = [
        {SEEN + key: value for key, value in batch.observation.items()}
        | {name: getattr(batch, name) for name in ("prev_action", "reward", "is_first", "is_last", "is_terminal")}
        for batch in drawn
    ]
    np.savez(path, **{name: np.stack([part[name].numpy() for part in parts]) for name in parts[0]})


def read(path, start):
    """The batches of such a file, one after the other."""
    arrays = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    for i in range(len(arrays["reward"])):
        named = {name: array[i] for name, array in arrays.items()}
        observation = {key.removeprefix(SEEN): named.pop(key) for key in list(named) if key.startswith(SEEN)}
        yield Batch(observation=observation, start=start, **named)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("sequences", type=click.Path(path_type=Path))
@click.option("--updates", default=1000, show_default=True, help="Of a file that is yet to be written.")
@click.option("--rate", default=4e-4, show_default=True, help="Learning rate.")
@click.option("--first", type=click.Path(path_type=Path), help="First parameters of the other implementation.")
def main(run, sequences, updates, rate, first):
    agent, replay = trained.load(run)
    if not sequences.exists():
        written(replay, updates, agent.config.replay.batch, sequences)
    config = make_config(agent.config.task, size=agent.config.size, settings=[f"optimizer.learning_rate={rate}"])
    shown = {key: f"loss/decoder/{key}" for key in agent.observation_spec.keys} | SHOWN
    print("seed,updates," + ",".join(shown))
    for seed in range(SEEDS):
        made = Agent(replace(config, seed=seed), agent.observation_spec, agent.action_spec, agent.device, agent.dtype)
        if first:
            model = config.model
            Golden(first, model.stoch * model.classes, vectors(agent.observation_spec.keys)).give(made)
        made.compile()
        sums = torch.zeros(len(shown))
        for number, batch in enumerate(read(sequences, made.world_model.rssm.initial(config.replay.batch)), 1):
            metrics, _ = made.update(batch)
            sums += torch.stack([metrics[each].float() for each in shown.values()])
            if number % EVERY == 0:
                print(f"{seed},{number}," + ",".join(f"{each / EVERY:.4g}" for each in sums.tolist()), flush=True)
                sums.zero_()


if __name__ == "__main__":
    main()
