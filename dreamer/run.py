"""A run from its folder to its last checkpoint: puts the parts together, says what it is about to do, and does it."""

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from .agent import Agent
from .checkpoint import RunFolder
from .config import CPU_SIZE, PROTOCOLS, Config, seeds
from .logger import Logger, Terminal
from .machine import choose_device, choose_dtype, keep_freed_memory, total_memory, why_not_compile
from .published import expectation
from .replay import Replay, row_bytes
from .spaces import action_spec, observation_spec
from .train import Counters, progress, train


def start(config: Config, folder: RunFolder, environments: Any) -> None:
    """Train, from scratch or from the folder's checkpoint, until the frames are seen or somebody stops it.

    Args:
        config: all settings.
        folder: new, or with a run of this config.
        environments: `config.envs` of them, with the spaces that `spaces` describes.
    """
    terminal = Terminal()
    keep_freed_memory()
    device = choose_device(config.run.device)
    observation, action = observation_spec(environments.observation_space), action_spec(environments.action_space)
    agent = Agent(config, observation, action, device, choose_dtype(config.run.precision, device))
    counters = Counters(environments.repeat)
    resumed = folder.has_checkpoint
    if resumed:
        state = folder.load()
        agent.load_state_dict(state["agent"])
        counters = Counters(**state["counters"])
    replay = _replay(config, agent, counters)
    if resumed and counters.frames >= config.frames:
        terminal.say(f"{folder.path} has seen its {counters.frames:,} frames; give more --frames to go on")
        return
    if resumed:
        replay.generator.set_state(state["sampler"])
        with terminal.waiting("Loading the replay"):
            folder.load_replay(replay)
        folder.write_config(config)
    else:
        folder.create(config, observation, action)

    terminal.say(f"{'Continuing' if resumed else 'Training'} {config.task} in {folder.path}")
    for line in describe(config, agent, replay, environments):
        terminal.say(f"  {line}")
    stop = _StopSignal()
    _compile(agent, replay, terminal)

    logger = Logger(folder.path, config, terminal, counters)
    saver = _Saver(config, folder, agent, replay, counters)
    try:
        train(config, agent, environments, replay, counters, logger, saver.save, saver.due, stop)
    finally:
        logger.close(counters)
    saver.save()
    terminal.say(f"Saved. Score it: dreamer evaluate {folder.path}")
    if counters.frames < config.frames:
        terminal.say(f"Go on:    dreamer train --run {folder.path}")


def describe(config: Config, agent: Agent, replay: Replay, environments: Any) -> list[str]:
    """What is about to happen, line by line."""
    spec, repeat = agent.observation_spec, environments.repeat
    sees = [f"{key} {'x'.join(map(str, shape))} (image)" for key, shape in spec.images.items()]
    sees += [f"{key} {size} (vector)" for key, size in spec.floats.items()]
    sees += [f"{key} {len(classes)} (integers)" for key, classes in spec.integers.items()]
    does = [
        f"{part.key}: " + (f"one of {' x '.join(map(str, part.classes))}" if part.classes else f"{part.size} numbers")
        for part in agent.action_spec.parts
    ]
    usual = PROTOCOLS.get(config.task.split("/")[0], {}).get("size", Config.size)
    note = f" (the protocol has {usual}; without a GPU the default is {CPU_SIZE})" if config.size != usual else ""
    batch = config.replay.batch * config.replay.length
    waiting = batch + config.envs * config.replay.length  # rows before the first update
    updates = max(0, int((config.frames / repeat - waiting) * config.ratio / batch) + 1)
    expected = expectation(config.task)
    return [
        f"sees {', '.join(sees)}; does {', '.join(does)}",
        *environments.notes,
        f"model {config.size}{note}, {agent.parameter_count / 1e6:.2f} million parameters, on {agent.device.type} in "
        f"{str(agent.dtype).removeprefix('torch.')}",
        f"{config.frames:,} frames, {repeat} for each action, {config.envs} environment{'s' * (config.envs > 1)}",
        f"train ratio {config.ratio:g}: an update of {batch} steps every {batch / config.ratio:g} agent steps "
        f"({batch / config.ratio * repeat:g} frames), {updates:,} updates in all",
        f"replay of {replay.streams * replay.rows:,} rows, {replay.bytes / 1e9:.1f} GB when full",
        *([expected] if expected else []),
    ]


def _replay(config: Config, agent: Agent, counters: Counters) -> Replay:
    """As large as configured, but no larger than the run needs, and within half of the memory."""
    model = config.model
    row = row_bytes(agent.observation_spec, agent.action_spec.width, model.deter, model.stoch)
    rows = max(-(-config.frames // counters.repeat), counters.rows, config.envs * config.replay.length)
    return Replay(
        agent.observation_spec,
        agent.action_spec.width,
        (model.deter, model.stoch, model.classes),
        streams=config.envs,
        capacity=min(config.replay.capacity, rows + config.envs, total_memory() // 2 // row),
        length=config.replay.length,
        generator=torch.Generator().manual_seed(seeds(config.seed).sampling),
    )


def _compile(agent: Agent, replay: Replay, terminal: Terminal) -> None:
    """Compile, or say why not and go on without."""
    config = agent.config
    if not config.run.compile:
        return
    problem = why_not_compile(agent.device)
    if problem is None:
        for _ in range(2):
            agent.compile()
            try:
                with terminal.waiting("Compiling, once for this machine and model"):
                    agent.warm_up(replay.blank(config.replay.batch), config.envs)
                return
            except Exception as error:  # whatever a compiler may raise
                agent.uncompile()
                problem = (str(error).strip() or type(error).__name__).splitlines()[0]
                if not _removed_broken_library(error):
                    break
    terminal.say(f"Not compiling: {problem}. Everything works, more slowly.")


def _removed_broken_library(error: Exception) -> bool:
    """Whether compiling failed on what an interrupted compilation had left half written, which is then removed."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    found = re.search(r"(/\S+\.so): file too short", str(error))
    if found is None or not Path(found[1]).is_relative_to(cache_dir()):
        return False
    Path(found[1]).unlink(missing_ok=True)
    torch.compiler.reset()
    return True


class _Saver:
    """Writes checkpoints, now and then or when told to."""

    def __init__(self, config: Config, folder: RunFolder, agent: Agent, replay: Replay, counters: Counters):
        self._seconds = config.run.checkpoint_seconds
        self._folder, self._agent, self._replay, self._counters = folder, agent, replay, counters
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last > self._seconds

    def save(self) -> None:
        state = progress(self._counters, self._agent) | {"sampler": self._replay.generator.get_state()}
        self._folder.save(state, self._replay)
        self._last = time.monotonic()


class _StopSignal:
    """Ctrl-C and SIGTERM ask the loop to finish its row and save; a second one stops at once."""

    def __init__(self) -> None:
        self.requested = False
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._ask)

    def __call__(self) -> bool:
        return self.requested

    def _ask(self, number: int, frame: Any) -> None:
        if self.requested:
            sys.exit(128 + number)
        self.requested = True
        # Not by print, which the signal may have interrupted.
        os.write(2, b"\nStopping: saving a checkpoint first.\n")
