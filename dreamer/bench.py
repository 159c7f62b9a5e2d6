"""How fast this machine is: one update and its parts, acting, replay, environments; on random data.

Whatever is timed has run before, so compiling and the first touch of memory are in `first_update_s` and nowhere else.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from .agent import Agent
from .compiling import prepare
from .config import Config
from .cuda import finish
from .health import Health
from .logger import Logger
from .loop import CPU, Counters, Environments, Observer, train
from .machine import choose_device, choose_dtype, keep_compiled_code, keep_freed_memory, limit_threads, product_seconds
from .replay import Batch, Replay, Transition, new_replay
from .results.published import number
from .rssm import State
from .spaces import ActionSpec, ObservationSpec, action_spec, observation_spec
from .terminal import Terminal

WARM_UPS = 3
REPEATS = (5, 30)  # at least, at most
SECONDS = 15.0  # after which no more than the least are made
STEP_SECONDS = 2.0  # of stepping environments
EPISODE = 100  # steps, in the random experience
ACTING = (1, 16)  # environments at once
NEVER = 1e-12  # a train ratio at which no update is ever due


@dataclass(frozen=True)
class Spread:
    """Seconds that a call takes: median, 10th and 90th percentile."""

    median_s: float
    low_s: float
    high_s: float
    repeats: int


@dataclass(frozen=True)
class Training:
    """The training loop as `dreamer train` runs it, at the configured ratio, and where its time goes."""

    ratio: float
    steps_per_second: float
    updates_per_second: float
    of_allowed: float  # its speed, as a share of what it would be if only updates and environments, as alone, took time
    shares: dict[str, float]  # of its time, as measured within; a GPU is launched and not waited for until `the rest`
    overlap: bool  # rows are collected while a GPU learns


@dataclass(frozen=True)
class Report:
    """What was measured, all times in seconds."""

    task: str
    size: str
    parameters: int
    device: str
    precision: str
    compiled: bool
    cold: bool  # with an empty compile cache
    threads: int
    torch: str
    update: Spread
    parts: dict[str, float]  # of an update timed apart, on a GPU launched one by one; they add up to its time
    first_update_s: float  # from making the agent, compiling included
    acting: dict[str, Spread]  # by the number of environments
    replay_sample: Spread
    replay_refresh: Spread
    environment_steps_per_second: float  # of all environments, with random actions, drawn anew, and nothing else
    collected_steps_per_second: float  # the training loop without learning
    training: Training
    peak_memory_bytes: int
    update_flop: int  # of the matrix products and convolutions of one update
    peak_flop_per_second: float  # of large matrix products on this machine

    @property
    def peak_share(self) -> float:
        """How much of the time an update's arithmetic would take at the machine's peak."""
        return self.update_flop / self.update.median_s / self.peak_flop_per_second

    def to_json(self) -> dict[str, Any]:
        derived = {"updates_per_second": 1 / self.update.median_s, "peak_share": self.peak_share}
        return asdict(self) | derived | {"parts_s": sum(self.parts.values())}


def measure(config: Config, environments: Any, say: Callable[[str], None], cold: bool = False) -> Report:
    """Measure all of it; takes a minute or two, and longer where compiling does.

    Args:
        config: its task, size, batch, device, precision and `run.compile` count.
        environments: of that task, not begun.
        say: is told what comes next.
        cold: the compile cache is empty.
    """
    keep_compiled_code()
    keep_freed_memory()
    limit_threads()
    device = choose_device(config.run.device)
    observation, action = observation_spec(environments.observation_space), action_spec(environments.action_space)
    replay = random_replay(config, observation, action, 1, device)

    say("Compiling, or reading what was compiled before" if config.run.compile else "Running eager code (as asked)")
    begun = time.perf_counter()
    agent = Agent(config, observation, action, device, choose_dtype(config.run.precision, device))
    batch, windows = replay.sample(config.replay.batch)
    problems = prepare(agent, batch, config.envs) if config.run.compile else []
    for problem in problems:
        say(f"{problem}; measuring without")
    posterior = agent.update(batch)[1]
    finish(device)
    first_update = time.perf_counter() - begun

    say("Timing updates")
    update = timed(lambda: agent.update(batch), device)
    memory = peak_memory(device)

    say("Timing acting, replay and environments")
    acting = {str(count): timed(_acting(agent, replay, count, batch), device) for count in ACTING}
    sample = timed(lambda: replay.sample(config.replay.batch), device)
    refresh = timed(lambda: replay.refresh(windows, posterior), device)
    bare = _steps_per_second(environments, agent.action_spec)
    if agent.is_captured:
        agent.capture_acting(batch, config.envs)
    collected = _collected_per_second(config, agent, environments)
    training = _training(config, agent, environments, batch, update, bare)

    say("Timing the parts of an update, and counting its arithmetic")
    agent.release()  # what a graph has captured has no parts
    parts = time_parts(agent, lambda: agent.update(batch))
    compiled = agent.is_compiled
    agent.uncompile()
    return Report(
        task=config.task,
        size=config.size,
        parameters=agent.parameter_count,
        device=torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        precision=str(agent.dtype).removeprefix("torch."),
        compiled=compiled,
        cold=cold,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        update=update,
        parts=parts,
        first_update_s=first_update,
        acting=acting,
        replay_sample=sample,
        replay_refresh=refresh,
        environment_steps_per_second=bare,
        collected_steps_per_second=collected,
        training=training,
        peak_memory_bytes=memory,
        update_flop=count_flop(agent, batch),
        peak_flop_per_second=matrix_peak(device, agent.dtype),
    )


def count_flop(agent: Agent, batch: Batch) -> int:
    """Of the matrix products and convolutions of an update, told from one of its sequences."""

    def first(value: Any) -> Any:
        return tree_map(lambda x: x[:1], value)

    with FlopCounterMode(display=False) as counter:
        agent.loss(first(batch).to(agent.device))[0].backward()
    agent.optimizer.zero_grad(set_to_none=True)
    return counter.get_total_flops() * len(batch.reward)


def random_replay(
    config: Config, observation: ObservationSpec, action: ActionSpec, streams: int, device: torch.device = CPU
) -> Replay:
    """Rows of random numbers, enough for a batch of different sequences."""
    rows = config.replay.length + 1 + 2 * config.replay.batch * config.replay.length // streams
    model, generator = config.model, torch.Generator().manual_seed(0)
    replay = new_replay(config, observation, action, streams, streams * rows, generator, device)
    for row in range(rows):
        is_first = torch.full((streams,), row % EPISODE == 0)
        is_last = torch.full((streams,), row % EPISODE == EPISODE - 1)
        stoch = torch.eye(model.classes)[:1].expand(streams, model.stoch, -1)
        replay.add(
            Transition(
                observation=random_observation(observation, streams, generator),
                action=torch.rand(streams, action.width, generator=generator),
                reward=torch.rand(streams, generator=generator),
                is_first=is_first,
                is_last=is_last,
                is_terminal=is_last,
                latent=State(torch.zeros(streams, model.deter), stoch),
            )
        )
    return replay


def random_observation(spec: ObservationSpec, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """What `count` environments might see."""
    result = {key: torch.randn(count, size, generator=generator) for key, size in spec.floats.items()}
    for key, shape in spec.images.items():
        result[key] = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    for key, classes in spec.integers.items():
        result[key] = torch.stack([torch.randint(n, (count,), generator=generator) for n in classes], -1)
    return result


def timed(function: Callable[[], Any], device: torch.device) -> Spread:
    """Seconds of a call, after some that do not count; each call waits until the device is done."""
    for _ in range(WARM_UPS):
        function()
    seconds: list[float] = []
    while _goes_on(seconds):
        finish(device)
        begun = time.perf_counter()
        function()
        finish(device)
        seconds.append(time.perf_counter() - begun)
    low, median, high = np.quantile(seconds, [0.1, 0.5, 0.9])
    return Spread(float(median), float(low), float(high), len(seconds))


def time_parts(agent: Agent, update: Callable[[], Any]) -> dict[str, float]:
    """Seconds of each part of the update that took the median time, waiting for the device after each.

    They add up to the whole of that update: the rest is what lies between the other parts.
    """
    model, actor_critic = agent.world_model, agent.actor_critic
    names = ["encoder", "posterior scan", "imagination", "heads and losses", "backward", "optimiser", "the rest"]
    watch = Stopwatch(agent.device)
    measured: list[dict[str, float]] = []
    with watch.around(
        (model.encoder, "forward", "encoder"),
        (model.rssm, "observe", "posterior scan"),
        (agent.imagination, "rollout", "imagination"),
        (model, "losses", "heads and losses"),
        (model, "outcome", "heads and losses"),
        (actor_critic, "imagined_losses", "heads and losses"),
        (actor_critic, "replay_losses", "heads and losses"),
        (torch.Tensor, "backward", "backward"),
        (agent, "step", "optimiser"),
    ):
        for _ in range(WARM_UPS):
            update()
        while _goes_on([sum(parts.values()) for parts in measured]):
            watch.seconds.clear()
            finish(agent.device)
            begun = time.perf_counter()
            update()
            finish(agent.device)
            whole = time.perf_counter() - begun
            seconds = watch.seconds
            seconds["the rest"] = whole - sum(seconds.values())
            measured.append({name: seconds[name] for name in names})
    return sorted(measured, key=lambda parts: sum(parts.values()))[len(measured) // 2]


class Stopwatch:
    """Adds up the seconds of named parts while it is around the functions that do them."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def around(self, *places: tuple[Any, str, str]) -> Iterator[None]:
        """places: (owner, function's name, part)."""
        before = [(owner, name, vars(owner).get(name)) for owner, name, _ in places]
        for owner, name, part in places:
            setattr(owner, name, self._timed(getattr(owner, name), part))
        try:
            yield
        finally:
            for owner, name, function in before:
                if function is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, function)

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            finish(self.device)
            begun = time.perf_counter()
            result = function(*arguments, **named)
            finish(self.device)
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begun
            return result

        return run


def _acting(agent: Agent, replay: Replay, count: int, batch: Batch) -> Callable[[], Tensor]:
    if agent.is_captured:
        agent.capture_acting(batch, count)
    observation = random_observation(agent.observation_spec, count, replay.generator)
    flags, memory = torch.zeros(count, dtype=torch.bool), agent.start(count)

    def act() -> Tensor:
        agent.acting.forget_weights()  # as after an update
        return agent.act(observation, flags, flags, memory).action.cpu()

    return act


def _steps_per_second(environments: Environments, spec: ActionSpec) -> float:
    generator = np.random.default_rng(0)

    def step() -> None:
        flat = generator.uniform(-1, 1, (len(environments), spec.width)).astype(np.float32)
        environments.step(spec.to_environment(flat))

    for _ in range(WARM_UPS):
        step()
    steps, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < STEP_SECONDS:
        step()
        steps += len(environments)
    return steps / (time.perf_counter() - begun)


def _collected_per_second(config: Config, agent: Agent, environments: Environments) -> float:
    """By the training loop itself, without learning."""
    rows = config.replay.length + 1
    streams, generator = len(environments), torch.Generator().manual_seed(0)
    spaces = agent.observation_spec, agent.action_spec
    replay = new_replay(config, *spaces, streams, streams * rows, generator, agent.device)
    return _loop(replace(config, ratio=NEVER), agent, environments, replay, (), STEP_SECONDS, Stopwatch(CPU))[0]


def _training(
    config: Config,
    agent: Agent,
    environments: Environments,
    batch: Batch,
    update: Spread,
    bare: float,
) -> Training:
    """By the training loop itself, with the logger that `dreamer train` has.

    Args:
        batch: of more updates, after the loop: a machine's speed may drift, so their time is that of before and after.
        update: as measured alone, before.
        bare: steps per second of all environments alone.
    """
    spaces = agent.observation_spec, agent.action_spec
    replay = random_replay(config, *spaces, len(environments), agent.device)
    watch = Stopwatch(CPU)
    with (
        quiet_logger(config, agent, replay) as (logger, _),
        watch.around(
            (agent, "update", "updates"),
            (environments, "step", "environments"),
            (agent, "act", "acting"),
            *((replay, name, "replay") for name in ("add", "sample", "refresh")),
            *((logger, name, "logging") for name in ("rows", "update", "show")),
        ),
    ):
        seconds = max(STEP_SECONDS, 10 * update.median_s)
        rate, shares = _loop(config, agent, environments, replay, (logger,), seconds, watch)
    updates = rate * config.ratio / (config.replay.batch * config.replay.length)
    alone = (update.median_s + timed(lambda: agent.update(batch), agent.device).median_s) / 2
    needed, overlap = (updates * alone, rate / bare), agent.device.type == "cuda"
    return Training(config.ratio, rate, updates, max(needed) if overlap else sum(needed), shares, overlap)


@contextmanager
def quiet_logger(config: Config, agent: Agent, replay: Replay) -> Iterator[tuple[Logger, Path]]:
    """The logger that `dreamer train` has, and the folder it writes to, which lasts as long."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        health = Health(config, agent.action_spec, replay.streams * replay.rows)
        logger = Logger(Path(folder), config, Terminal(nowhere), Counters(repeat=1), health)
        yield logger, Path(folder)
        logger.close(Counters(repeat=1))


def _loop(
    config: Config,
    agent: Agent,
    environments: Environments,
    replay: Replay,
    observers: Sequence[Observer],
    seconds: float,
    watch: "Stopwatch",
) -> tuple[float, dict[str, float]]:
    """Agent steps per second of the training loop after a warm-up, and the share of each part that is watched."""
    counters = Counters(repeat=1, updates=1)
    clock = Clock(seconds / 4, seconds, counters, learns=config.ratio > NEVER, begin=watch.seconds.clear)
    config = replace(config, frames=sys.maxsize)
    train(config, agent, environments, replay, counters, observers, saver=Unsaved(), stopped=clock)
    shares = {part: spent / clock.span for part, spent in watch.seconds.items()}
    return clock.rows / clock.span, shares | {"the rest": 1 - sum(shares.values())}


class Clock:
    """Stops the loop, and knows how many rows it made in which span of seconds after a warm-up.

    Where it `learns`, from an update to an update, so that the span holds its share of steps. `begin` is called at the
    span's begin.
    """

    def __init__(
        self,
        warm_up: float,
        seconds: float,
        counters: Counters,
        learns: bool = False,
        begin: Callable[[], Any] = lambda: None,
    ):
        self.counters = counters
        self.learns = learns
        self.begin = begin
        self.updates = counters.updates
        self.warm = time.perf_counter() + warm_up
        self.seconds = seconds
        self.mark: tuple[float, int] | None = None
        self.rows = 0
        self.span = 0.0

    def __call__(self) -> bool:
        now, before, self.updates = time.perf_counter(), self.updates, self.counters.updates
        if self.learns and self.updates == before:
            return False
        if self.mark is None:
            # However long the first step takes, at least one more is measured.
            if now > self.warm and self.counters.rows:
                self.mark = now, self.counters.rows
                self.begin()
            return False
        if now < self.mark[0] + self.seconds:
            return False
        self.span, self.rows = now - self.mark[0], self.counters.rows - self.mark[1]
        return True


class Unsaved:
    """A saver that saves nothing."""

    def due(self) -> bool:
        return False

    def save(self, memory: Any) -> None: ...


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of the fastest matrix product, among larger and larger ones until one takes a fifth of a second."""
    best = 0.0
    for size in (512, 1024, 2048, *((4096, 8192) if device.type == "cuda" else ())):
        seconds = product_seconds(size, device, dtype)
        best = max(best, 2 * size**3 / seconds)
        if seconds > 0.2:
            break
    return best


def peak_memory(device: torch.device) -> int:
    """Bytes: what torch took on a GPU, else the most that this process ever had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return 0  # not told
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _goes_on(seconds: list[float]) -> bool:
    least, most = REPEATS
    return len(seconds) < least or (len(seconds) < most and sum(seconds) < SECONDS)


def table(report: Report) -> str:
    """The report for people."""
    whole = sum(report.parts.values())
    apart = ", launched one by one" if report.training.overlap else ""
    cache = f", compiling included, {'nothing' if report.cold else 'some of it maybe'} compiled before"
    cache = cache if report.compiled else ""
    kind, training = "compiled" if report.compiled else "eager", report.training
    lines = [
        f"{report.task}, size {report.size}, {report.parameters / 1e6:.3g} million parameters",
        f"{report.device}, {report.precision}, {kind}, {report.threads} threads, torch {report.torch}",
        "",
        "median (10th to 90th percentile)",
        "",
        f"one update          {_spread(report.update)}, {number(1 / report.update.median_s, 3)} updates/s",
        f"one in parts        {_time(whole)}, timed apart{apart}",
        *(f"  {name:<16}  {_time(seconds)}  {seconds / whole:4.0%}" for name, seconds in report.parts.items()),
        f"first update        {_time(report.first_update_s)}{cache}",
        *(
            f"acting, {count:>2} at once  {_spread(spread)}, {int(count) / spread.median_s:,.0f} actions/s"
            for count, spread in report.acting.items()
        ),
        f"replay, a batch     {_spread(report.replay_sample)}",
        f"  writing latents   {_spread(report.replay_refresh)}",
        f"environment         {report.environment_steps_per_second:,.0f} steps/s alone, "
        f"{report.collected_steps_per_second:,.0f} with acting and storing",
        f"training            {number(training.steps_per_second, 3)} steps/s, "
        f"{number(training.updates_per_second, 3)} updates/s at "
        f"ratio {training.ratio:g}: {training.of_allowed:.0%} of what updates and environments allow",
        "  its time          " + ", ".join(f"{name} {share:.0%}" for name, share in training.shares.items()),
        f"peak memory         {_memory(report)}",
        f"arithmetic          {number(report.update_flop / 1e9)} GFLOP an update, {report.peak_share:.0%} of the peak "
        f"of {report.peak_flop_per_second / 1e12:.3g} TFLOP/s",
    ]
    return "\n".join(lines)


def _memory(report: Report) -> str:
    if not report.peak_memory_bytes:
        return "not told"
    of = "" if report.training.overlap else " of the process" + ", compiling included" * report.compiled
    return f"{report.peak_memory_bytes / 1e9:.3g} GB{of}"


def _spread(spread: Spread) -> str:
    return f"{_time(spread.median_s)} ({_time(spread.low_s).strip()} to {_time(spread.high_s).strip()})"


def _time(seconds: float) -> str:
    return f"{seconds:7.3g} s " if seconds >= 1 else f"{1000 * seconds:7.3g} ms"
