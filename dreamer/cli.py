"""The command line. Nothing heavy is imported before a command needs it."""

import json
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .agent import Agent
    from .config import Config

DEVICES = click.Choice(["auto", "cpu", "cuda", "mps"])
CPU_SIZE = "1m"


class UserError(click.ClickException):
    """A mistake that the user can mend: one sentence, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"dreamer: {self.format_message()}", err=True)


class Commands(click.Group):
    """Turns users' mistakes, whichever module finds them, into one sentence."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ValueError as error:
            if isinstance(error, _mistakes()):
                raise UserError(str(error)) from error
            raise


def _mistakes() -> tuple[type[ValueError], ...]:
    from .errors import UserMistake

    # `envs` knows nothing of this package, so its mistakes have a class of their own.
    return (UserMistake, *((sys.modules["envs"].TaskError,) if "envs" in sys.modules else ()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dreamer")
def main() -> None:
    """DreamerV3: learn a world model, and a policy inside it."""


@main.command()
@click.option("--env", "task", metavar="SUITE/TASK", help="What to learn, for example atari/pong.")
@click.option("--run", type=click.Path(path_type=Path), help="The run's folder; one that holds a run is continued.")
@click.option("--frames", type=click.IntRange(min=1), help="Environment frames, action repeat included.")
@click.option("--size", metavar="SIZE", help="Model size: 1m, 12m, 25m, 50m, 100m, 200m, 400m.")
@click.option("--seed", type=click.IntRange(min=0), help="Of parameters, environments and all random numbers.")
@click.option("--envs", type=click.IntRange(min=1), help="Environments that step together.")
@click.option("--device", type=DEVICES, help="Where to compute.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other setting, for example replay.batch=8."
)
def train(
    task: str | None,
    run: Path | None,
    frames: int | None,
    size: str | None,
    seed: int | None,
    envs: int | None,
    device: str | None,
    settings: tuple[str, ...],
) -> None:
    """Train an agent, from scratch or from where RUN stopped."""
    from . import config as configs
    from .checkpoint import RunFolder

    if device:
        settings = (*settings, f"run.device={device}")
    given: dict[str, Any] = {"size": size, "settings": settings, "frames": frames, "seed": seed, "envs": envs}
    if run is not None and (folder := RunFolder(run)).holds_run:
        config = _continued(folder.config(), task, given)
    else:
        if task is None:
            raise UserError("say what to learn with --env, for example --env atari/pong")
        config = configs.make_config(task, **given)
        if size is None and not any(setting.startswith(("size=", "model.")) for setting in settings):
            config = _suited_to_machine(config)
        folder = RunFolder(run or _new_folder(config))
    _train(config, folder)


def _continued(stored: "Config", task: str | None, given: dict[str, Any]) -> "Config":
    """The stored config of a run with more frames or other `run.` settings; nothing else may change."""
    from . import config as configs

    wanted = configs.flatten(configs.amend(stored, **given, task=task))
    differing = [
        f"{key} is {value} there, {wanted[key]} was given"
        for key, value in configs.flatten(stored).items()
        if wanted.get(key) != value and key != "frames" and not key.startswith("run.")
    ]
    if differing:
        raise UserError(
            f"the folder holds another run ({'; '.join(differing)}); give another --run, or leave these out"
        )
    return configs.amend(stored, **given)


def _suited_to_machine(config: "Config") -> "Config":
    from . import config as configs
    from .machine import choose_device

    if choose_device(config.run.device).type == "cpu" and config.size != CPU_SIZE:
        click.echo(
            f"No GPU here: model size {CPU_SIZE} instead of {config.size}; --size {config.size} brings it back.",
            err=True,
        )
        return configs.amend(config, size=CPU_SIZE)
    return config


def _new_folder(config: "Config") -> Path:
    name = config.task.replace("/", "-").replace(":", "-")
    return Path("runs") / f"{name}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def _train(config: "Config", folder: Any) -> None:
    import torch

    from .agent import Agent
    from .logger import Logger, Terminal
    from .machine import choose_device, choose_dtype, keep_freed_memory, why_not_compile
    from .replay import Replay, row_bytes
    from .spaces import action_spec, observation_spec
    from .train import Counters
    from .train import progress as run_progress
    from .train import train as train_loop

    terminal = Terminal()
    device = choose_device(config.run.device)
    dtype = choose_dtype(config.run.precision, device)
    keep_freed_memory()
    environments = _environments(config, config.envs, config.seed)
    try:
        observation, action = observation_spec(environments.observation_space), action_spec(environments.action_space)
        agent = Agent(config, observation, action, device, dtype)
        model = config.model
        capacity = _capacity(
            config, environments.repeat, row_bytes(observation, action.width, model.deter, model.stoch)
        )
        replay = Replay(
            observation,
            action.width,
            (model.deter, model.stoch, model.classes),
            streams=config.envs,
            capacity=capacity,
            length=config.replay.length,
            generator=torch.Generator().manual_seed(config.seed),
        )
        counters = Counters(environments.repeat)
        resumed = folder.has_checkpoint
        if resumed:
            state = folder.load()
            agent.load_state_dict(state["agent"])
            counters = Counters(**state["counters"])
            replay.generator.set_state(state["sampler"])
            folder.load_replay(replay)
        else:
            folder.create(config, observation, action)
        folder.write_config(config)
        for line in _summary(config, agent, environments, replay, counters, resumed, folder.path):
            terminal.say(line)

        problem = why_not_compile(device)
        if config.run.compile and problem:
            terminal.say(f"Not compiling: {problem}. Everything works, more slowly.")
        elif config.run.compile:
            agent.compile()
            with terminal.waiting("Compiling, once for this machine and model"):
                _warm_up(agent, replay, terminal)

        logger = Logger(folder.path, config, terminal, counters)
        stop = _StopSignal(terminal)
        saved = time.monotonic()

        def save() -> None:
            nonlocal saved
            folder.save(run_progress(counters, agent) | {"sampler": replay.generator.get_state()}, replay)
            saved = time.monotonic()

        def save_due() -> bool:
            return time.monotonic() - saved > config.run.checkpoint_seconds

        try:
            train_loop(
                config, agent, environments, replay, counters, logger, save, save_due, stopped=lambda: stop.requested
            )
        finally:
            logger.close(counters)
        save()
        terminal.say(f"Saved. Score it: dreamer evaluate {folder.path}")
        if counters.frames < config.frames:
            terminal.say(f"Go on:    dreamer train --run {folder.path}")
    finally:
        environments.close()


class _StopSignal:
    """Ctrl-C and SIGTERM ask the loop to finish its row and save; a second one stops at once."""

    def __init__(self, terminal: Any):
        self.requested = False
        self._terminal = terminal
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        if self.requested:
            sys.exit(128 + number)
        self.requested = True
        self._terminal.say("Stopping: saving a checkpoint first.")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--episodes", default=10, show_default=True, help="Episodes to play.")
@click.option("--greedy", is_flag=True, help="The most likely action instead of a sample.")
@click.option("--seed", default=1_000_000, show_default=True, help="Of the environments and of the sampled actions.")
@click.option("--device", type=DEVICES, default="auto", show_default=True, help="Where to compute.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the mean score at its top.")
def evaluate(run: Path, episodes: int, greedy: bool, seed: int, device: str, as_json: bool) -> None:
    """Score the checkpoint of RUN on whole episodes."""
    from .checkpoint import RunFolder
    from .evaluate import evaluate as play

    if episodes < 1:
        raise UserError(f"{episodes} episodes leave nothing to score; give 1 or more")
    folder = RunFolder(run)
    config = folder.config()
    agent = _load_agent(folder, config, device, seed)
    environments = _environments(config, min(episodes, 8), seed)
    try:
        scores = play(agent, environments, episodes, greedy)
    finally:
        environments.close()
    if as_json:
        click.echo(json.dumps(scores.to_json()))
        return
    low, high = scores.interval()
    click.echo(
        f"{config.task}: mean score {scores.mean:.6g} (95% interval {low:.6g} to {high:.6g}), "
        f"standard deviation {scores.std:.6g}, "
        f"{episodes} episodes of {min(scores.lengths)} to {max(scores.lengths)} steps"
    )


def _load_agent(folder: Any, config: "Config", device: str, seed: int) -> "Agent":
    from .agent import Agent
    from .machine import choose_device, choose_dtype

    chosen = choose_device(device)
    observation, action = folder.spaces()
    agent = Agent(config, observation, action, chosen, choose_dtype(config.run.precision, chosen))
    agent.load_state_dict(folder.load()["agent"])
    agent.generator.manual_seed(seed)
    return agent


def _import_envs() -> ModuleType:
    """The project's own `envs`. The name is a common one, so make sure that nobody else's was found."""
    import envs

    if getattr(envs, "PROJECT", None) != "dreamer":
        raise UserError(
            f"Python found another package called envs, at {envs.__path__[0]}; run from another folder, or uninstall it"
        )
    return envs


def _environments(config: "Config", count: int, seed: int) -> Any:
    package = _import_envs()

    def make() -> Any:
        return package.make(config.task, repeat=config.repeat, **config.environment)

    # Far apart, so that neither runs with neighbouring seeds nor their evaluations share an environment.
    return package.Vector([make] * count, seeds=[seed * 10_000 + i for i in range(count)])


def _capacity(config: "Config", repeat: int, row: int) -> int:
    """Rows that the replay may hold: as configured, no more than the run has, within half of the memory."""
    from .machine import total_memory

    wanted = min(config.replay.capacity, -(-config.frames // repeat) + config.envs)
    affordable = total_memory() // 2 // row
    return min(wanted, affordable)


def _warm_up(agent: "Agent", replay: Any, terminal: Any) -> None:
    """Call what is compiled once, on zeros, so that it compiles now; without a trace in the agent."""
    try:
        agent.warm_up(replay.blank(agent.config.replay.batch), replay.streams)
    except Exception as error:  # whatever a compiler may raise
        agent.uncompile()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        terminal.say(f"Not compiling: {reason}. Everything works, more slowly.")


def _summary(
    config: "Config", agent: "Agent", environments: Any, replay: Any, counters: Any, resumed: bool, path: Path
) -> list[str]:
    spec = agent.observation_spec
    seen = [f"{key} {'x'.join(map(str, shape))} (image)" for key, shape in spec.images.items()]
    seen += [f"{key} {size} (vector)" for key, size in spec.floats.items()]
    seen += [f"{key} {len(classes)} (integers)" for key, classes in spec.integers.items()]
    done = [
        f"{part.key}: " + (f"one of {'x'.join(map(str, part.classes))}" if part.classes else f"{part.size} numbers")
        for part in agent.action_spec.parts
    ]
    batch = config.replay.batch * config.replay.length
    rows = config.frames // counters.repeat
    gigabytes = sum(values.numel() * values.element_size() for values in replay.data.values()) / 1e9
    millions, precision = agent.parameter_count / 1e6, str(agent.dtype).removeprefix("torch.")
    return [
        f"{'Continuing' if resumed else 'Training'} {config.task} in {path}",
        f"  sees {', '.join(seen)}; does {', '.join(done)}",
        *(f"  {note}" for note in environments.notes),
        f"  model {config.size}, {millions:.2f} million parameters, {agent.device.type}, {precision}",
        f"  {config.frames:,} frames, {counters.repeat} for each action, {config.envs} environments",
        f"  train ratio {config.ratio:g}: an update of {batch} steps every {batch / config.ratio:g} agent steps, "
        f"{int(rows * config.ratio / batch):,} updates in all",
        f"  replay of {replay.streams * replay.rows:,} rows, {gigabytes:.1f} GB when full",
    ]
