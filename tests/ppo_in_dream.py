"""Train the PPO of Stable-Baselines3 inside the dream of a run alone, then let it act in the real environment.

    pip install stable-baselines3==2.7.0
    PYTHONPATH=. python tests/ppo_in_dream.py runs/FOLDER --steps 300000

Prints its score in the dream and in reality, from the beginnings of episodes, and that of a random policy. What it
scores only in the dream, it owes to the mistakes of the model.
"""

import json
from pathlib import Path

import click
import gymnasium
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

import dreamer


class Dreams(VecEnv):
    """A vector of dreams as Stable-Baselines3 wants it: one that ends is reset at once."""

    def __init__(self, env):
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self):
        return self.env.reset(seed=int(self._seeds[0] or 0))[0]

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        observation, reward, ended, cut, _ = self.env.step(self.actions)
        done, infos = ended | cut, [{} for _ in range(self.num_envs)]
        if done.any():
            # The next step is the reset of those that ended; the others stay where they are.
            final, observation = observation, self.env.restart(done)
            for i in np.flatnonzero(done):
                infos[i] = {
                    "terminal_observation": _row(final, i),
                    "TimeLimit.truncated": bool(cut[i] and not ended[i]),
                }
        return observation, reward.astype(np.float32), done, infos

    def close(self):
        pass

    def get_attr(self, name, indices=None):
        return [getattr(self.env, name, None)] * self.num_envs

    def set_attr(self, name, value, indices=None):
        raise NotImplementedError

    def env_method(self, name, *arguments, indices=None, **named):
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


def _row(observation, i):
    return {key: value[i] for key, value in observation.items()} if isinstance(observation, dict) else observation[i]


def scores(env, act, episodes, seed, limit):
    found = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        total, over, steps = 0.0, False, 0
        while not over and steps < limit:
            observation, reward, ended, cut, _ = env.step(act(observation))
            total, over, steps = total + float(reward), ended or cut, steps + 1
        found.append(total)
    return np.array(found)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--steps", default=300_000, show_default=True, help="Of PPO, in the dream.")
@click.option("--horizon", default=30, show_default=True, help="Steps after which a dream is cut while PPO learns.")
@click.option("--limit", default=500, show_default=True, help="Steps of an episode that is scored.")
@click.option("--envs", default=64, show_default=True)
@click.option("--episodes", default=10, show_default=True, help="To score.")
@click.option("--seed", default=0, show_default=True)
def main(run, steps, horizon, limit, envs, episodes, seed):
    dreams = dreamer.WorldModelVectorEnv(run, num_envs=envs, horizon=horizon, device="cpu")
    kind = "MultiInputPolicy" if isinstance(dreams.single_observation_space, gymnasium.spaces.Dict) else "MlpPolicy"
    ppo = PPO(kind, VecMonitor(Dreams(dreams)), n_steps=128, batch_size=512, seed=seed, device="cpu", verbose=1)
    ppo.learn(steps)
    dream = dreamer.WorldModelEnv(run, horizon=limit, starts="first", device="cpu")
    real = dream.real()

    def act(observation):
        return ppo.predict(observation, deterministic=True)[0]

    real.action_space.seed(seed)
    result = {
        "dream": scores(dream, act, episodes, 1000 + seed, limit),
        "real": scores(real, act, episodes, 1000 + seed, limit),
        "random, real": scores(real, lambda _: real.action_space.sample(), episodes, 1000 + seed, limit),
    }
    for name, found in result.items():
        print(f"{name}: {found.mean():.1f}, {found.min():.1f} to {found.max():.1f} over {episodes} episodes")
    print(json.dumps({name: found.tolist() for name, found in result.items()}))


if __name__ == "__main__":
    main()
