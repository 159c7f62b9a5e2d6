"""How fast dreams are: a step of `dreamer play` at size 12m, untrained, and the steps of many dreams of a run at once.

PYTHONPATH=. python tests/dream_speed.py                   # play
PYTHONPATH=. python tests/dream_speed.py runs/FOLDER       # many dreams
"""

import json
import time
from pathlib import Path

import click
import numpy as np
import torch

import dreamer
import envs
from dreamer.agent import Agent
from dreamer.config import make_config
from dreamer.dreams.play import Stage
from dreamer.machine import choose_dtype, limit_threads
from dreamer.spaces import action_spec, observation_spec

TASKS = ("atari100k/pong", "dmc_vision/walker_walk", "dmc/walker_walk")
COUNTS = (1, 64, 1024, 4096)
SECONDS = 5.0


def play(task, steps=60, warm_up=10):
    """Milliseconds of a step and what is sent of it, without and with the real one."""
    environment, device = envs.make(task), torch.device("cpu")
    spaces = observation_spec(environment.observation_space), action_spec(environment.action_space)
    agent = Agent(make_config(task, size="12m"), *spaces, device, choose_dtype("auto", device))
    stage = Stage(agent, environment, seed=0)
    for real in (False, True):
        taken = []
        for _ in range(steps):
            begun = time.perf_counter()
            stage.step([], agent=True)
            json.dumps(stage.show(real))
            taken.append(1000 * (time.perf_counter() - begun))
        low, high = np.quantile(taken[warm_up:], [0.5, 0.9])
        print(f"{task}, {'with the real one' if real else 'dream'}: {low:.1f} ms, 90 % within {high:.1f}")


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
def main(run):
    limit_threads()
    if run is None:
        for task in TASKS:
            play(task)
        return
    for observation in ("latent", "decoded"):
        for count in COUNTS:
            dreams = dreamer.WorldModelVectorEnv(run, num_envs=count, observation=observation, device="cpu")
            dreams.reset(seed=0)
            actions = dreams.action_space.sample()
            dreams.step(actions)
            steps, begun = 0, time.perf_counter()
            while time.perf_counter() - begun < SECONDS:
                dreams.step(actions)
                steps += count
            print(f"{observation}, {count} at once: {steps / (time.perf_counter() - begun):,.0f} steps/s")


if __name__ == "__main__":
    main()
