"""Take a training across, to go on in the other implementation from the very state in which this one left it.

    PYTHONPATH=. python tests/across.py here THERE/state.npz runs/LIKE runs/NEW
    PYTHONPATH=. python tests/across.py there runs/FOLDER THERE/state.npz

THERE is a folder of `tests/author_loop.py`. After the first, `dreamer train --run runs/NEW` goes on with what was
trained there; runs/LIKE is any run of the same task and settings, whose seed and random numbers it takes. After the
second, the author's loop goes on in THERE with what was trained in runs/FOLDER. Weights, the optimiser's moments,
return scale, slow critic, rows and latents go along; random numbers, batches drawn in advance and the rest of open
episodes do not. Observations are vectors, and the action is one of numbers.
"""

from pathlib import Path

import click
import golden
import numpy as np
import torch
import torch.nn.functional as F
import trained

from dreamer.checkpoint import RunFolder
from dreamer.replay import new_replay

ROWS = ("action", "reward", "is_first", "is_last", "is_terminal")  # by these names in both
# Its optimiser is a chain: clipping, scaling by the root of mean squares (1), momentum (2), the learning rate (3).
COUNTS = ("opt/state/1/0", "opt/state/2/0", "opt/state/3/count")
MOMENTS = {"scale": "opt/state/1/1", "momentum": "opt/state/2/1"}
RETURNS = {"return_low": "retnorm/lo/value", "return_high": "retnorm/hi/value"}


def pairs(agent):
    """(theirs, tensor) for all that is learned or remembered of learning, in our layout."""
    own, critic = golden.parameters(agent), agent.actor_critic
    names = golden.common() | golden.vectors(agent.observation_spec.keys)
    yield from ((theirs, own[ours].detach()) for ours, theirs in (names | golden.slow(names)).items())
    yield from ((theirs, getattr(critic, ours)) for ours, theirs in RETURNS.items())
    yield from ((theirs, agent.optimizer.updates) for theirs in COUNTS)
    for ours, theirs in names.items():
        state = agent.optimizer.state[own[ours]]
        yield from ((f"{where}/{theirs}", state[moment]) for moment, where in MOMENTS.items())


def layout(theirs):
    """The parameter that a moment belongs to, whose layout it shares; of all else its own name."""
    return theirs.removeprefix(f"{MOMENTS['scale']}/").removeprefix(f"{MOMENTS['momentum']}/")


@click.group()
def main():
    pass


@main.command()
@click.argument("state", type=click.Path(path_type=Path, exists=True))
@click.argument("like", type=click.Path(path_type=Path, exists=True))
@click.argument("new", type=click.Path(path_type=Path))
def here(state, like, new):
    """Write STATE of the author's loop as a run NEW."""
    if new.exists():
        raise click.UsageError(f"{new} is there already; give a new folder")
    kept = np.load(state)
    alike = RunFolder(like)
    checkpoint = alike.newest()
    agent = alike.load_agent("cpu", checkpoint=checkpoint)
    config, observation = agent.config, agent.observation_spec
    for theirs, value in pairs(agent):
        given = torch.from_numpy(np.array(kept[f"params/{theirs}"]))
        taken = golden.as_ours(layout(theirs), given, config.model.stoch * config.model.classes)
        assert taken.shape == value.shape, theirs
        value.copy_(taken)
    agent.acting.follow()

    seen = {key: torch.from_numpy(kept[f"rows/{key}"]) for key in (*ROWS, *observation.keys)}
    streams, count = seen["reward"].shape
    assert streams == config.envs
    rows = {key: seen[key] for key in ROWS}
    rows |= {f"observation/{key}": seen[key].reshape(streams, count, -1) for key in observation.keys}
    rows["deter"] = torch.from_numpy(kept["rows/dyn/deter"])
    rows["stoch"] = torch.from_numpy(kept["rows/dyn/stoch"]).argmax(-1)
    capacity = streams * (count + config.replay.length)
    replay = new_replay(config, observation, agent.action_spec, streams, capacity, torch.Generator())
    replay.load_state_dict({"count": count, "queue": []})
    replay.put(0, rows)
    replay.hold_from(0)

    counters = {"repeat": config.repeat, "rows": streams * count, "updates": int(kept["updates"]), "owed": 0.0}
    told = {"counters": counters, "agent": agent.state_dict(), "episodes": None}
    folder = RunFolder(new)
    folder.describe(config, observation, agent.action_spec)
    folder.save(checkpoint.state() | told, replay)


@main.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.argument("state", type=click.Path(path_type=Path))
def there(run, state):
    """Write the newest checkpoint of RUN as a STATE of the author's loop."""
    agent, replay = trained.load(run)
    assert replay.oldest == 0, "its oldest rows are no longer there"
    model = agent.config.model
    kept = {
        f"params/{theirs}": golden.as_there(layout(theirs), value, model.stoch * model.classes).numpy()
        for theirs, value in pairs(agent)
    }
    rows = replay.export_rows(0, replay.count) | replay.export_latents(0, replay.count)
    rows |= {"dyn/deter": rows["deter"].float(), "dyn/stoch": F.one_hot(rows["stoch"].long(), model.classes).float()}
    seen = {key: rows[f"observation/{key}"] for key in agent.observation_spec.keys}
    seen |= {key: rows[key] for key in (*ROWS, "dyn/deter", "dyn/stoch")}
    kept |= {f"rows/{key}": value.numpy() for key, value in seen.items()}
    state.parent.mkdir(parents=True, exist_ok=True)
    np.savez(state, **kept, steps=replay.count * replay.streams, updates=int(agent.optimizer.updates))


if __name__ == "__main__":
    main()
