"""A whole training by the author's implementation, for the runs here to be set beside.

    pip install click jax==0.10.2 ninjax elements portal chex optax einops granular ruamel.yaml dm-control
    git -C DREAMERV3 checkout f8817c4    # github.com/danijar/dreamerv3
    python tests/author_loop.py DREAMERV3 dmc/walker_walk FOLDER --seed 0 --ratio 512 --rate 4e-4 --frames 40000

Its agent, losses, optimiser and replay, size 1m, in a loop of one thread after its `run/train.py`, which takes a
parallel environment for each. As there, but for the very first, a batch is drawn an update ahead, latents are written
back an update later, and the policy acts with the parameters from before the first update since it last took them over.
Writes to FOLDER the scores of episodes, the means of its metrics every 250 updates, and what its models make of new
episodes every 1,000; what comes after the last of these is left out. Every 1,000 updates also `state.npz`, from which
the same command goes on, with new episodes and a first mean over what is left of its 250 updates, as does a run here
(`tests/across.py`). Runs were made with this JAX; the author's own versions are older.
"""

import csv
import sys
from collections import Counter
from pathlib import Path

import click
import numpy as np
from dm_control import suite

BATCH, LENGTH, CONTEXT = 16, 64, 1
ENVS, REPEAT = 8, 2
PACE, FRESH = 250, 1000  # updates
COUNTERS = ("opt/step/value", "slowval_count/value")  # which nothing is computed from
ACTING = ("enc/", "dyn/", "dec/", "pol/")
TASKS = {f"dmc/{'_'.join(names)}": names for names in suite.ALL_TASKS}
FLAGS = ("reward", "is_first", "is_last", "is_terminal")


class Environment:
    """A task of the Control Suite as the author's wrappers give it: rewards added over a repeat, actions clipped."""

    def __init__(self, task, seed):
        self._env = suite.load(*TASKS[task], task_kwargs={"random": seed})
        self.action_shape = self._env.action_spec().shape
        self.shapes = {key: spec.shape for key, spec in self._env.observation_spec().items()}

    def step(self, action, reset):
        if reset:
            step, reward = self._env.reset(), 0.0
        else:
            reward = 0.0
            for _ in range(REPEAT):
                step = self._env.step(np.clip(action, -1, 1))
                reward += step.reward
                if step.last():
                    break
        seen = {key: np.asarray(value, np.float32) for key, value in step.observation.items()}
        terminal = step.last() and step.discount == 0
        return seen | dict(zip(FLAGS, (np.float32(reward), step.first(), step.last(), terminal), strict=True))


class Author:
    """The author's agent and what is compiled of it."""

    def __init__(self, checkout, environment, seed, rate, dtype):
        import elements
        import embodied.jax
        import jax
        import jax.numpy as jnp
        import ninjax
        import ruamel.yaml
        from dreamerv3.agent import Agent

        embodied.jax.nets.COMPUTE_DTYPE = embodied.jax.utils.COMPUTE_DTYPE = getattr(jnp, dtype)
        presets = ruamel.yaml.YAML(typ="safe").load((checkout / "dreamerv3" / "configs.yaml").read_text())
        config = elements.Config(presets["defaults"]).update(presets["size1m"]).update({"agent.opt.lr": rate})
        seen = {key: elements.Space(np.float32, shape) for key, shape in environment.shapes.items()}
        seen |= {key: elements.Space(np.float32 if key == "reward" else bool) for key in FLAGS}
        done = {"action": elements.Space(np.float32, environment.action_shape, -1, 1)}
        agent = object.__new__(Agent)  # without the threads and devices of its own loop
        agent.__init__(seen, done, elements.Config(**config.agent, replay_context=CONTEXT))
        spaces = {**seen, **done, **agent.ext_space}

        self._seed = seed
        self._first = lambda n: ninjax.pure(agent.init_policy)({}, n, seed=self._key(0))[1]
        rows = (BATCH, LENGTH + CONTEXT)
        nothing = {key: jnp.zeros((*rows, *space.shape), space.dtype) for key, space in spaces.items()}
        self.carry = self._first(BATCH)
        self.params = jax.jit(ninjax.init(agent.train))({}, self.carry, nothing, seed=self._key(1))
        self._train = jax.jit(lambda p, key, *args: ninjax.pure(agent.train)(p, *args, seed=key))
        self._policy = jax.jit(lambda p, key, *args: ninjax.pure(agent.policy)(p, *args, seed=key))

        def losses(seen, action):
            """Means over whole episodes, (N, T, ...), read from the beginning; and the value of each state, (N, T)."""
            encoder, dynamics, decoder, _ = agent.init_policy(len(action))
            before = {"action": jnp.concatenate([0 * action[:, :1], action[:, :-1]], 1)}
            tokens = agent.enc(encoder, seen, seen["is_first"], False)[2]
            loss, features = agent.dyn.loss(dynamics, tokens, before, seen["is_first"], False)[2:4]
            said = agent.dec(decoder, features, seen["is_first"], False)[2]
            both = agent.feat2tensor(features)
            means = {"dyn": loss["dyn"], "rew": agent.rew(both, 2).loss(seen["reward"])}
            means |= {key: each.loss(seen[key]) for key, each in said.items()}
            return {key: each.mean() for key, each in means.items()}, agent.val(both, 2).pred()

        self._losses = jax.jit(lambda p, key, *args: ninjax.pure(losses)(p, *args, seed=key)[1])

    def _key(self, *numbers):
        return np.random.default_rng([self._seed, *numbers]).integers(0, 2**32 - 1, 2, np.uint32)

    @property
    def acting(self):
        """The parameters that acting needs."""
        return {key: value for key, value in self.params.items() if key.startswith(ACTING)}

    def act(self, params, carry, seen, *numbers):
        """Latents (None: at the beginning), actions (N, A), and what the replay keeps beside them."""
        carry = self._first(ENVS) if carry is None else carry
        _, (carry, action, kept) = self._policy(params, self._key(*numbers), carry, seen)
        kept.pop("finite")
        action = np.asarray(action["action"], np.float32) * ~seen["is_last"][:, None]
        return carry, action, {key: np.asarray(value, np.float32) for key, value in kept.items()}

    def update(self, number, batch):
        """Latents to be written back, and metrics."""
        self.params, (self.carry, out, metrics) = self._train(self.params, self._key(3, number), self.carry, batch)
        return out["replay"], {key: float(value) for key, value in metrics.items()}

    def restore(self, params):
        """Parameters, and what goes with them: slow critic, return scale, the optimiser's moments and counts."""
        assert self.params.keys() - params.keys() <= set(COUNTERS), self.params.keys() - params.keys()
        for key, value in params.items():
            assert self.params[key].shape == value.shape, key
            self.params[key] = value.astype(self.params[key].dtype)

    def fresh(self, environments, number):
        """What it makes of an episode in each environment, and what its values come to: in discounted reward."""
        carry, rows = None, []
        action, reset = np.zeros((ENVS, *environments[0].action_shape)), True
        while True:
            seen = stacked([each.step(one, reset) for each, one in zip(environments, action, strict=True)])
            carry, action, _ = self.act(self.acting, carry, seen, 5, number, len(rows))
            reset = False
            rows.append(seen | {"action": action})
            if seen["is_last"].all():
                break
        seen = {key: np.stack([row[key] for row in rows], 1) for key in rows[0]}
        means, value = self._losses(self.params, self._key(4, number), seen, seen.pop("action"))
        reward, discount = seen["reward"], 1 - 1 / 333
        came, after = np.zeros_like(reward), reward.mean(1) / (1 - discount)  # a time limit, not an end
        for t in reversed(range(reward.shape[1] - 1)):
            came[:, t] = after = reward[:, t + 1] + discount * after
        whole = {"score": reward.sum(1).mean(), "value": np.mean(value[:, :-1]), "came": came[:, :-1].mean()}
        return {key: float(each) for key, each in (means | whole).items()}


def stacked(rows):
    rows = list(rows)
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


class Table:
    """A CSV whose columns are those of its first row."""

    def __init__(self, path):
        self._path = path

    def add(self, **row):
        begun = self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file)
            if not begun:
                writer.writerow(row)
            writer.writerow(value if isinstance(value, int) else f"{value:.6g}" for value in row.values())

    def cut(self, updates):
        """Leaves out what comes after so many updates."""
        if self._path.exists():
            head, *rows = csv.reader(self._path.open(newline=""))
            at = head.index("updates")
            with self._path.open("w", newline="") as file:
                csv.writer(file).writerows([head, *(row for row in rows if int(row[at]) <= updates)])


def streams(replay):
    """The steps of each environment, in time: a dict of (T, ...) for each."""
    later = {chunk.succ for chunk in replay.chunks.values()}
    for chunk in [chunk for chunk in replay.chunks.values() if chunk.uuid not in later]:
        parts = []
        while chunk and chunk.length:
            parts.append(chunk.slice(0, chunk.length))
            chunk = replay.chunks.get(chunk.succ)
        yield {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if key != "stepid"}


def save(path, author, replay, steps, updates):
    kept = {f"params/{key}": np.asarray(value) for key, value in author.params.items()}
    kept |= {f"rows/{key}": value for key, value in stacked(streams(replay)).items()}
    np.savez(path.with_name("new.npz"), **kept, steps=steps, updates=updates)
    path.with_name("new.npz").replace(path)


def load(path, author, replay, shapes):
    """Put back what was saved, into an empty replay; steps and updates until then."""
    kept = np.load(path)
    author.restore({key.removeprefix("params/"): kept[key] for key in kept.files if key.startswith("params/")})
    rows = {key.removeprefix("rows/"): kept[key] for key in kept.files if key.startswith("rows/")}
    rows |= {key: rows[key].reshape(ENVS, -1, *shape) for key, shape in shapes.items()}
    steps, updates = int(kept["steps"]), int(kept["updates"])
    for i in range(ENVS):
        for t in range(steps // ENVS):
            replay.add({key: value[i, t] for key, value in rows.items()}, i)
    replay.queue.clear()  # of what was drawn at once, when it was new
    return steps, updates


@click.command()
@click.argument("checkout", type=click.Path(path_type=Path, exists=True))
@click.argument("task", type=click.Choice(TASKS), metavar="TASK")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
@click.option("--ratio", default=512.0, show_default=True)
@click.option("--rate", default=4e-5, show_default=True, help="Learning rate.")
@click.option("--frames", default=100_000, show_default=True)
@click.option("--dtype", default="float32", show_default=True, help="Of matrix products.")
def main(checkout, task, folder, seed, ratio, rate, frames, dtype):
    sys.path.insert(0, str(checkout))
    import elements
    from embodied.core.replay import Replay

    folder.mkdir(parents=True, exist_ok=True)
    scores, pace, fresh = (Table(folder / f"{name}.csv") for name in ("scores", "pace", "fresh"))
    environments = [Environment(task, 1000 * seed + i) for i in range(ENVS)]
    author = Author(checkout, environments[0], seed, rate, dtype)
    replay = Replay(length=LENGTH + CONTEXT, capacity=5_000_000, online=True, chunksize=1024, seed=seed)
    due = elements.when.Ratio(ratio / (BATCH * LENGTH))

    def draw():
        return replay.sample(BATCH) | {"consec": np.zeros((BATCH, LENGTH + CONTEXT), np.int32)}

    params, carry, taken = author.acting, None, None
    ahead = late = None
    action, reset = np.zeros((ENVS, *environments[0].action_shape), np.float32), np.ones(ENVS, bool)
    steps = updates = 0
    score, sums = np.zeros(ENVS), Counter()
    summed = saved = 0
    state = folder / "state.npz"
    if state.exists():
        steps, updates = load(state, author, replay, environments[0].shapes)
        params, saved = author.acting, updates
        due(steps)  # from here on
        environments = [Environment(task, 10**7 * (seed + 1) + updates + i) for i in range(ENVS)]
    for table in (scores, pace, fresh):
        table.cut(updates)
    while steps * REPEAT < frames:
        seen = stacked([each.step(*given) for each, *given in zip(environments, action, reset, strict=True)])
        carry, action, kept = author.act(params, carry, seen, 2, steps)
        params, taken = taken or params, None
        reset = seen["is_last"]
        score = np.where(seen["is_first"], 0, score) + seen["reward"]
        for i in range(ENVS):
            steps += 1
            replay.add({key: value[i] for key, value in (seen | kept | {"action": action}).items()}, i)
            if reset[i]:
                scores.add(frames=steps * REPEAT, score=score[i], updates=updates)
            for _ in range(due(steps) if len(replay) >= BATCH * LENGTH else 0):
                batch, taken = ahead or draw(), taken or author.acting
                written, metrics = author.update(updates, batch)
                ahead = draw()
                if late:
                    replay.update({key: np.asarray(value) for key, value in late.items()})
                late = written
                updates += 1
                sums.update(metrics)
                summed += 1
                at = {"updates": updates, "frames": steps * REPEAT}
                if updates % PACE == 0:
                    pace.add(**at, **{key: total / summed for key, total in sorted(sums.items())})
                    sums.clear()
                    summed = 0
                if updates % FRESH == 0:
                    new = [Environment(task, 10**6 * (seed + 1) + updates + i) for i in range(ENVS)]
                    fresh.add(**at, **author.fresh(new, updates))
        if updates >= saved + FRESH:
            save(state, author, replay, steps, updates)
            saved = updates


if __name__ == "__main__":
    main()
