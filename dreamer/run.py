"""A run from its folder to its last checkpoint: puts the parts together, says what it is about to do, and does it."""

import contextlib
import gc
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import preflight, snapshot
from .agent import Agent
from .checkpoint import RunFolder
from .compiling import prepare
from .config import CPU_SIZE, PROTOCOLS, Config, seeds, smallest_capacity
from .errors import UserMistake
from .guards import Restarts, Saver
from .health import Health
from .logger import Logger
from .loop import CPU, Counters, train
from .machine import (
    choose_device,
    choose_dtype,
    device_memory,
    is_out_of_memory,
    keep_compiled_code,
    keep_freed_memory,
    limit_threads,
    total_memory,
)
from .replay import Replay, new_replay, row_bytes
from .results.published import expectation, own_expectation
from .soundness import Soundness
from .spaces import ActionSpec, ObservationSpec, action_spec, observation_spec
from .stopping import StopSignal, asking
from .terminal import Terminal

GPU_SHARE = 0.8  # of its memory, up to which the replay lies there too


def start(config: Config, folder: RunFolder, environments: Any) -> StopSignal | None:
    """Train, from scratch or from the folder's checkpoint, until the frames are seen or somebody stops it.

    Returns what tells whether somebody does, still; None if there was nothing left to train.

    Args:
        config: all settings.
        folder: new, or with a run of this config.
        environments: `config.envs` of them, with the spaces that `spaces` describes.
    """
    terminal = Terminal()
    keep_compiled_code()
    keep_freed_memory()
    limit_threads()
    device = choose_device(config.run.device)
    observation, action = observation_spec(environments.observation_space), action_spec(environments.action_space)
    if folder.holds_run:
        check_spaces(folder, environments)
    with _enough_memory(config, device):
        agent = Agent(config, observation, action, device, choose_dtype(config.run.precision, device))
        replay, need = _placed(config, agent, environments.repeat, folder.rows)
    about = describe(config, agent, replay, environments, need)
    with folder.lock():
        return _train(config, folder, environments, agent, replay, terminal, about)


@contextlib.contextmanager
def _enough_memory(config: Config, device: torch.device) -> Iterator[None]:
    """Where a GPU is shared, another process may have taken what was free a moment ago."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserMistake(
            f"a {config.size} model and its replay do not fit into the memory that others leave on this {device.type} "
            f"device ({preflight.size(device_memory(device))}): give a smaller --size, or wait for them"
        ) from None


def _placed(config: Config, agent: Agent, repeat: int, seen: int) -> tuple[Replay, preflight.Needs]:
    """The replay on the GPU if all fits there, else in the machine's memory; and what the run needs."""
    replay, available = _replay(config, agent, repeat, seen), device_memory(agent.device)
    need = preflight.needs(agent, replay)
    if agent.device.type == "cuda":
        whole = need._replace(replay=_rows(config, repeat, seen) * _row_bytes(agent))
        if sum(whole) <= GPU_SHARE * available:
            replay, need = _replay(config, agent, repeat, seen, agent.device), whole
    preflight.check(need, available, agent, replay)
    return replay, need


def _train(
    config: Config,
    folder: RunFolder,
    environments: Any,
    agent: Agent,
    replay: Replay,
    terminal: Terminal,
    about: list[str],
) -> StopSignal | None:
    checkpoint, counters = folder.resume(terminal.say), Counters(environments.repeat)
    state = checkpoint.state() if checkpoint else None
    if state:
        folder.check_settings(state, config)
        counters = Counters(**state["counters"])
        if counters.frames >= config.frames:
            terminal.say(f"{folder.path} has seen its {counters.frames:,} frames; give more --frames to go on")
            return None
    folder.describe(config, agent.observation_spec, agent.action_spec)
    folder.check_writable()
    terminal.say(f"{'Continuing' if state else 'Training'} {config.task} in {folder.path}")
    for line in about:
        terminal.say(f"  {line}")
    stop = StopSignal("saving a checkpoint first")
    health = Health(config, agent.action_spec, replay.rows * replay.streams)
    logger = Logger(folder.path, config, terminal, counters, health)
    memory = None
    if checkpoint and state:
        with terminal.waiting("Loading the replay"):
            checkpoint.fill(replay)
        why = "the checkpoint does not hold them" if environments.can_save_state else "they cannot save their state"
        try:
            memory = snapshot.restore(state, agent, replay, logger, environments)
        except snapshot.EpisodesLost as error:
            why = str(error).rstrip(".")
        if memory is None:
            terminal.say(f"The open episodes end here, as at a time limit: {why}")
            environments.reseed([config.seed, counters.rows])  # or they would begin like the run itself
    del checkpoint, state  # a copy of all weights
    try:
        _prepare(agent, replay, terminal, stop)
    except UserMistake:
        if not folder.has_checkpoint:  # nothing is there yet: what it advises can be done in the same folder
            folder.forget()
        raise

    saver = Saver(config, folder, terminal, agent, replay, counters, logger, environments)
    observers = (logger, Soundness(folder.path))
    environments.on_restart = Restarts(folder, terminal)
    try:
        train(config, agent, environments, replay, counters, observers, saver, stop, memory)
    except Exception as error:
        with contextlib.suppress(OSError):
            terminal.say(
                f"Stopped by an error; its traceback is in {folder.write_failure(traceback.format_exception(error))}"
            )
        raise
    finally:
        logger.close(counters)
    saver.finish(stop)
    terminal.say(f"Saved. Score it: dreamer evaluate {folder.path}")
    if counters.frames < config.frames:
        terminal.say(f"Go on:    dreamer train --run {folder.path}")
    return stop


def check_spaces(folder: RunFolder, environments: Any) -> None:
    """Raise UserMistake if the environment has changed since the run began."""
    before = folder.spaces()
    now = observation_spec(environments.observation_space), action_spec(environments.action_space)
    if before != now:
        raise UserMistake(
            f"{folder.path} holds an agent that {in_words(*before)}, but the environment has changed and now asks "
            f"for one that {in_words(*now)}; give another --run"
        )


def describe(config: Config, agent: Agent, replay: Replay, environments: Any, need: preflight.Needs) -> list[str]:
    """What is about to happen, line by line."""
    repeat = environments.repeat
    usual = PROTOCOLS.get(config.task.split("/")[0], {}).get("size")
    notes = ["the default without a GPU"] if config.size == CPU_SIZE and agent.device.type == "cpu" else []
    notes += [f"the protocol has {usual}"] if usual not in (None, config.size) else []
    note = f" ({'; '.join(notes)})" if notes else ""
    batch = config.replay.batch * config.replay.length
    # Rows of all environments, before the first update and in all.
    waiting = smallest_capacity(config)
    rows = config.envs * -(-config.frames // (repeat * config.envs))
    updates = int((rows - waiting) * config.ratio / batch) + 1 if rows >= waiting else 0
    expected = filter(None, (expectation(config.task), own_expectation(config)))
    return [
        in_words(agent.observation_spec, agent.action_spec),
        *environments.notes,
        f"model {config.size}{note}, {agent.parameter_count / 1e6:.2f} million parameters, on {agent.device.type} in "
        f"{str(agent.dtype).removeprefix('torch.')}",
        f"{config.frames:,} frames, {repeat} for each action, {config.envs} environment{'s' * (config.envs > 1)}",
        f"train ratio {config.ratio:g}: an update of {batch} steps every {batch / config.ratio:g} agent steps "
        f"({batch / config.ratio * repeat:g} frames), {updates:,} update{'s' * (updates != 1)} in all",
        *([] if updates else [f"nothing will be learned: the first update comes after {waiting * repeat:,} frames"]),
        f"replay of {_amount(replay.streams * replay.rows, config, repeat)}"
        + ", on the GPU" * (replay.device.type == "cuda"),
        f"memory: {preflight.in_words(need)}",
        *expected,
        *(["Ctrl-C at any time saves a checkpoint, which can be evaluated and continued"] if asking() else []),
    ]


def in_words(observation: ObservationSpec, action: ActionSpec) -> str:
    """What an agent sees, and by which network, and what it does."""
    sees = [f"{key}, an image of {'x'.join(map(str, shape))}, by CNN" for key, shape in observation.images.items()]
    sees += [f"{key}, {_count(size, 'number')}, by MLP" for key, size in observation.floats.items()]
    sees += [f"{key}, {_count(len(classes), 'integer')}, by MLP" for key, classes in observation.integers.items()]
    does = [
        f"{part.key}, "
        + (f"one of {' x '.join(map(str, part.classes))}" if part.classes else _count(part.size, "number"))
        for part in action.parts
    ]
    return f"sees {'; '.join(sees)}; does {'; '.join(does)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _amount(rows: int, config: Config, repeat: int) -> str:
    """How large the replay is, and why it is not as large as configured."""
    if rows >= config.frames // repeat:
        return f"{rows:,} rows, all that the run collects"
    if rows <= config.replay.capacity - config.envs:
        return f"{rows:,} rows, which is half of this run's memory (replay.capacity is {config.replay.capacity:,})"
    return f"{rows:,} rows"


def _replay(config: Config, agent: Agent, repeat: int, seen: int, device: torch.device = CPU) -> Replay:
    """As large as configured, but no larger than the run needs, and within half of the machine's memory if there."""
    rows = _rows(config, repeat, seen)
    if device == CPU:
        fitting, least = total_memory() // 2 // _row_bytes(agent), min(rows, smallest_capacity(config))
        if fitting < least:
            raise UserMistake(
                f"half of this run's memory holds {max(0, fitting):,} rows of what this task shows, and the first "
                f"update takes {least:,}: give smaller observations, fewer --envs, or a smaller replay.batch"
            )
        rows = min(rows, fitting)
    return new_replay(
        config,
        agent.observation_spec,
        agent.action_spec,
        streams=config.envs,
        capacity=rows,
        generator=torch.Generator().manual_seed(seeds(config.seed).sampling),
        device=device,
    )


def _rows(config: Config, repeat: int, seen: int) -> int:
    """That the run can make use of."""
    needed = max(-(-config.frames // repeat), seen, config.envs * config.replay.length)
    return min(config.replay.capacity, needed + config.envs)


def _row_bytes(agent: Agent) -> int:
    model = agent.config.model
    return row_bytes(agent.observation_spec, agent.action_spec.width, model.deter, model.stoch)


def _prepare(agent: Agent, replay: Replay, terminal: Terminal, stop: Callable[[], bool]) -> None:
    """Compile, and capture on a GPU, or say why not and go on without.

    Where somebody asks to stop meanwhile, nothing is said: Ctrl-C ends the compilers as well.

    Raises:
        UserMistake: an update does not fit into the device's memory.
    """
    config, blank = agent.config, replay.blank(agent.config.replay.batch)
    fits, problems = True, []
    try:
        if config.run.compile:
            with terminal.waiting("Compiling, once for this machine and model"):
                problems = prepare(agent, blank, config.envs)
        elif agent.device.type == "cuda":
            agent.warm_up(blank, config.envs)  # to know whether it fits
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        fits = False  # what is on the stack of an error stays in memory until the error is gone
    if not fits:
        raise UserMistake(_does_not_fit(agent, replay))
    for problem in problems if not stop() else []:
        terminal.say(f"{problem}. Everything works, more slowly.")


def _does_not_fit(agent: Agent, replay: Replay) -> str:
    """What to do about an update for which there was not enough memory, by trying smaller ones."""
    config = agent.config
    agent.uncompile()
    batch, fits = config.replay.batch, False
    while not fits and (batch := batch // 2):
        gc.collect()
        if agent.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            agent.warm_up(replay.blank(batch), config.envs)
            fits = True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    hint = f"replay.batch={batch} fits, as does" if fits else "even a single sequence does not fit: give"
    hint += " a smaller --size"
    return (
        f"an update of a {config.size} model with batches of {config.replay.batch} x {config.replay.length} steps does "
        f"not fit into the memory of this {agent.device.type} device "
        f"({preflight.size(device_memory(agent.device))}); {hint}"
    )
