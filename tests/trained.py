"""A run that was trained, to measure something on it."""

import torch

from dreamer.checkpoint import RunFolder
from dreamer.replay import new_replay


def load(run):
    """The agent of a run's folder, on the CPU, and its whole replay, none of it waiting to be sampled first."""
    folder = RunFolder(run)
    checkpoint = folder.newest(with_replay=True)
    agent = folder.load_agent("cpu", checkpoint=checkpoint)
    config = agent.config
    replay = new_replay(
        config, agent.observation_spec, agent.action_spec, config.envs,
        checkpoint.rows + config.envs * (config.replay.length + 1), torch.Generator().manual_seed(0),
    )  # fmt: skip
    checkpoint.fill(replay)
    replay.queue.clear()
    return agent, replay
