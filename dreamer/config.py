"""Every setting of a run: frozen dataclasses, one for each part of the program that reads it.

The same hyperparameters serve every task. What differs between suites is the protocol (`PROTOCOLS`): how many
frames, how often an action is repeated, how much is learned from each row, how large the model is.
"""

import difflib
import functools
import math
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from .errors import UserMistake
from .own_envs import own_envs


class ConfigError(UserMistake):
    """A setting that cannot be; the message names it, what is allowed and what to do."""


def _size(deter: int, hidden: int, classes: int, depth: int, units: int) -> dict[str, int]:
    return {"deter": deter, "hidden": hidden, "classes": classes, "depth": depth, "units": units}


SIZES: dict[str, dict[str, int]] = {
    "1m": _size(512, 64, 4, 4, 64),
    "12m": _size(2048, 256, 16, 16, 256),
    "25m": _size(3072, 384, 24, 24, 384),
    "50m": _size(4096, 512, 32, 32, 512),
    "100m": _size(6144, 768, 48, 48, 768),
    "200m": _size(8192, 1024, 64, 64, 1024),
    "400m": _size(12288, 1536, 96, 96, 1536),
}

CPU_SIZE = "1m"  # what a machine without a GPU can train


@dataclass(frozen=True)
class Allowed:
    """What a setting may be; numbers are finite, and 0 or more."""

    above: float | None = None
    least: float = 0
    most: float | None = None
    choices: tuple[str, ...] = ()

    def in_words(self) -> str:
        """Empty where any number from 0 on is."""
        if self.choices:
            return ", ".join(self.choices)
        least = f"above {self.above}" if self.above is not None else f"from {self.least}" if self.least else ""
        most = f"up to {self.most:,}" if self.most is not None and self.most < 2**62 else ""
        return f"{least} {most}".strip()

    def check(self, key: str, value: Any) -> None:
        """Raise a ConfigError if `value` is not."""
        if self.choices and value not in self.choices:
            close = difflib.get_close_matches(str(value), self.choices, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{key}={value} is not one of {', '.join(self.choices)}; the nearest is {close}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}={value} must be a finite number")
        if not isinstance(value, int | float):
            return
        if self.above is not None and not value > self.above:
            raise ConfigError(f"{key}={value} must be greater than {self.above}")
        if value < self.least:
            raise ConfigError(f"{key}={value} must be at least {self.least}")
        if self.most is not None and value > self.most:
            raise ConfigError(f"{key}={value} must be at most {self.most}")


def setting(default: Any, meaning: str, **allowed: Any) -> Any:
    """A field of a config with what `dreamer settings` says of it, and what it may be, as `Allowed` takes it."""
    return field(default=default, metadata={"meaning": meaning, "allowed": Allowed(**allowed)})


@dataclass(frozen=True)
class ModelConfig:
    """Widths of the networks; `SIZES` holds the published combinations.

    Widths far beyond the largest size are slips, and would end in an allocation that fails. Classes are kept in one
    byte by the replay.
    """

    deter: int = setting(512, "D, the recurrent state", above=0, most=120_000)
    hidden: int = setting(64, "the layers around it", above=0, most=20_000)
    stoch: int = setting(32, "S, the number of categorical latents", above=0, most=1_000)
    classes: int = setting(4, "K, the classes of each", above=0, most=256)
    blocks: int = setting(8, "of the block-linear layers", above=0)
    depth: int = setting(4, "channels of the CNN are multiples of it", above=0, most=1_000)
    units: int = setting(64, "U, the width of the other layers", above=0, most=20_000)
    free_nats: float = setting(1.0, "KL below this is not trained on")


@dataclass(frozen=True)
class BehaviorConfig:
    """Imagination, actor and critic."""

    horizon: int = setting(15, "H, imagined steps", above=0, most=10_000)
    discount_horizon: int = setting(333, "gamma = 1 - 1 / 333", above=0)
    trace: float = setting(0.95, "lambda of the returns", most=1)
    entropy: float = setting(3e-4, "how much the actor's entropy counts")
    slow_regularizer: float = setting(1.0, "how much the slow critic's prediction counts in the critic's loss")
    slow_rate: float = setting(0.02, "how much of the critic the slow one takes over at each update", most=1)
    return_rate: float = setting(0.01, "of the exponential means of two percentiles of the returns", most=1)
    return_low: float = setting(0.05, "the lower percentile", most=1)
    return_high: float = setting(0.95, "the higher one; what lies between them scales the advantages", most=1)
    return_limit: float = setting(1.0, "the least that advantages are divided by", above=0)


@dataclass(frozen=True)
class LossScales:
    """One scale for each loss; `decoder` holds for every observation key."""

    decoder: float = 1.0
    reward: float = 1.0
    continuation: float = 1.0
    dynamics: float = 1.0
    representation: float = 0.1
    actor: float = 1.0
    critic: float = 1.0
    replay_critic: float = 0.3


@dataclass(frozen=True)
class OptimizerConfig:
    """Adaptive gradient clipping and LaProp."""

    learning_rate: float = setting(4e-5, "how far a weight moves at an update, about", above=0)
    warmup: int = setting(1000, "updates", above=0)
    clip: float = setting(0.3, "largest norm of a tensor's gradient, as a share of the tensor's own", above=0)
    min_norm: float = setting(1e-3, "that a tensor is taken to have at least, for clipping", above=0)
    beta1: float = setting(0.9, "of the momentum", most=0.99999)
    beta2: float = setting(0.999, "of the mean square of the gradients", most=0.99999)
    epsilon: float = setting(1e-20, "beside its root", above=0)


@dataclass(frozen=True)
class ReplayConfig:
    """What is learned from; a length of 2 at least, since the replay critic learns from T - 1 steps."""

    batch: int = setting(16, "B, sequences", above=0, most=100_000)
    length: int = setting(64, "T, steps of each", least=2, most=100_000)
    capacity: int = setting(5_000_000, "rows over all environments", above=0)


@dataclass(frozen=True)
class RunConfig:
    """How the run goes about it; none of it changes what is computed, up to rounding."""

    device: str = setting(
        "auto",
        "where to compute; auto is a CUDA GPU if there is one, else the CPU",
        choices=("auto", "cpu", "cuda", "mps"),
    )
    precision: str = setting(
        "auto", "of matrix products; auto asks the machine", choices=("auto", "float32", "bfloat16")
    )
    compile: bool = setting(True, "by torch.compile")
    checkpoint_seconds: float = setting(300.0, "between two checkpoints", above=0)
    log_seconds: float = setting(15.0, "between two points of the curves", above=0)
    video_seconds: float = setting(600.0, "between two videos", above=0)
    restarts: int = setting(3, "of an environment that fails, since an episode last ended well")
    patience_seconds: float = setting(
        300.0, "an environment in a process of its own that takes longer has failed", above=0
    )


@dataclass(frozen=True)
class Config:
    """All of it. The ratio has a maximum, since whoever asks to stop waits for the updates of a row."""

    task: str
    seed: int = setting(0, "of parameters, environments and all random numbers", most=2**63 - 1)
    frames: int = setting(1_000_000, "environment frames, action repeat included", above=0)
    repeat: int | None = setting(None, "frames for each action; by default the environment's own", above=0)
    ratio: float = setting(512.0, "replayed steps for each row", above=0, most=16_384)
    envs: int = setting(1, "environments that step together", above=0, most=10_000)
    size: str = setting("12m", "of the model", choices=tuple(SIZES))
    environment: dict[str, Any] = field(default_factory=dict)  # options of the suite
    model: ModelConfig = ModelConfig()
    behavior: BehaviorConfig = BehaviorConfig()
    losses: LossScales = LossScales()
    optimizer: OptimizerConfig = OptimizerConfig()
    replay: ReplayConfig = ReplayConfig()
    run: RunConfig = RunConfig()


class Seeds(NamedTuple):
    """Seeds of independent streams of random numbers."""

    parameters: int
    noise: int  # of learning
    sampling: int  # of the replay
    acting: int


def seeds(seed: int) -> Seeds:
    """The seeds that stem from the one of a run."""
    return Seeds(*np.random.SeedSequence(seed).generate_state(4).tolist())


# The protocols of the published scores. A suite that is not listed is the user's own.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "atari": {"frames": 200_000_000, "repeat": 4, "ratio": 32.0, "envs": 16, "size": "200m"},
    "atari100k": {"frames": 400_000, "repeat": 4, "ratio": 128.0, "envs": 1, "size": "200m"},
    "dmc": {"frames": 500_000, "repeat": 2, "ratio": 512.0, "envs": 8, "size": "12m"},
    "dmc_vision": {"frames": 1_000_000, "repeat": 2, "ratio": 512.0, "envs": 8, "size": "12m"},
}

ALIASES = {  # what other programs call it
    "batch_length": "replay.length",
    "batch_size": "replay.batch",
    "buffer_size": "replay.capacity",
    "gamma": "behavior.discount_horizon",
    "lambda": "behavior.trace",
    "lr": "optimizer.learning_rate",
    "num_envs": "envs",
    "seq_len": "replay.length",
    "steps": "frames",
    "train_ratio": "ratio",
}


def file_name(task: str) -> str:
    """A task's name as a part of a file's."""
    return task.replace("/", "-").replace(":", "-")


def may_change(key: str) -> bool:
    """Whether a setting may differ when a run goes on: it does not change what is learned from a row."""
    return key in ("frames", "replay.capacity") or key.startswith("run.")


def lasting(config: Config) -> dict[str, Any]:
    """The settings, by their names, that a run cannot change."""
    return {key: value for key, value in flatten(config).items() if not may_change(key)}


def make_config(task: str, *, size: str | None = None, **given: Any) -> Config:
    """The config of a task: defaults, the suite's protocol, the model of a size, then what the user gave.

    Args:
        task: `SUITE/NAME`.
        size: a name of `SIZES`; None takes the protocol's.
        given: as for `amend`, whose errors it raises.
    """
    protocol = PROTOCOLS.get(task.split("/", 1)[0], {})
    config = replace(Config(task=task), **protocol)
    return amend(config, size=size or config.size, **given)


def amend(
    config: Config,
    *,
    size: str | None = None,
    settings: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
    **given: Any,
) -> Config:
    """`config` with what the user gave on top of it.

    Args:
        size: a name of `SIZES`; None means not given.
        settings: `key=value` strings, keys as `flatten` names them, `environment.NAME` for the suite's options.
        options: of the suite or of the user's factory, as values.
        given: top-level fields of `Config`; None means not given.

    Raises:
        ConfigError: an unknown key (the nearest real one is named), a value of the wrong type or out of range.
    """
    fields_given = {key: value for key, value in given.items() if value is not None}
    config = replace(config, environment=config.environment | dict(options or {}), **fields_given)
    pairs = [_split(text) for text in settings]
    # The size comes first, so that single widths can be set on top of it.
    for key, text in pairs:
        size = text if key == "size" else size
    if size is not None:
        _check("size", size)
        config = replace(config, size=size, model=replace(config.model, **SIZES[size]))
    for key, text in pairs:
        if key == "task":
            raise ConfigError(f"--set task={text} would keep the protocol of {config.task}; give --env {text} instead")
        if key != "size":
            config = _with(config, key, text)
    for key, value in flatten(config).items():
        _check(key, value)
    if config.model.deter % config.model.blocks:
        raise ConfigError(
            f"model.deter={config.model.deter} is not a multiple of model.blocks={config.model.blocks}; "
            "change one of them"
        )
    if config.model.deter % 8 or config.model.depth % 2:
        raise ConfigError(
            f"model.deter={config.model.deter} must be a multiple of 8 and model.depth={config.model.depth} one of 2, "
            "since the image decoder works in 8 blocks"
        )
    low, high = config.behavior.return_low, config.behavior.return_high
    if low >= high:
        raise ConfigError(f"behavior.return_low={low} must lie below behavior.return_high={high}; change one of them")
    if config.replay.capacity < smallest_capacity(config):
        raise ConfigError(
            f"replay.capacity={config.replay.capacity} is too small: the first update takes "
            f"replay.batch={config.replay.batch} sequences of replay.length={config.replay.length} from "
            f"envs={config.envs}, so {smallest_capacity(config)} rows at least"
        )
    return config


def smallest_capacity(config: Config) -> int:
    """Rows of the smallest replay with B * T start positions: each environment has the same share of the rows."""
    batch, length = config.replay.batch, config.replay.length
    return config.envs * (length + -(-batch * length // config.envs))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """All settings by dotted key, `replay.batch` for example; options of the environment are single keys."""
    result: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            result |= flatten(value, f"{prefix}{item.name}.")
        elif isinstance(value, dict):
            result |= {f"{prefix}{item.name}.{key}": option for key, option in value.items()}
        else:
            result[prefix + item.name] = value
    return result


class Setting(NamedTuple):
    """What `dreamer settings` says of one."""

    key: str
    default: Any
    allowed: str  # in words; empty where any number from 0 on is
    meaning: str  # empty where the name says it


def described(task: str) -> list[Setting]:
    """All settings, with the values that a task begins with."""
    values = flatten(make_config(task))
    values |= {key: value for key, value in _usual_options(task).items() if value is not None}
    return [
        Setting(key, value, _allowed(key).in_words(), _meaning(key)) for key, value in values.items() if key != "task"
    ]


def unusual(config: Config) -> dict[str, tuple[Any, Any]]:
    """What is not as the task's protocol has it and changes what is learned: {key: (usual, here)}."""
    protocol = make_config(config.task)
    usual = _usual_options(config.task) | flatten(make_config(config.task, size=config.size)) | {"size": protocol.size}
    return {
        key: (usual.get(key), value)
        for key, value in flatten(config).items()
        if usual.get(key) != value and key != "seed" and not may_change(key)
    }


def method(config: Config) -> str:
    """What two seeds of one experiment share: size, ratio, and what else is not as the protocol has it."""
    other = [f"{key} {here}" for key, (_, here) in unusual(config).items() if key not in ("size", "ratio")]
    return ", ".join([f"size {config.size}", f"ratio {config.ratio:g}", *other])


def _usual_options(task: str) -> dict[str, Any]:
    """A suite's defaults by key; empty for environments from elsewhere."""
    suite = own_envs().suites().get(task.partition("/")[0])
    return {f"environment.{name}": value for name, value in suite.options.items()} if suite else {}


def to_json(config: Config) -> dict[str, Any]:
    return asdict(config)


def from_json(data: dict[str, Any]) -> Config:
    """The inverse of `to_json`; strict about keys, so that no setting is lost silently."""
    return _build(Config, data, "")


def _build(cls: Any, data: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    if not isinstance(data, dict):
        raise ConfigError(f"this config was written by something else: {prefix.rstrip('.') or 'it'} holds {data!r}")
    if cls is RunConfig:
        # These change nothing that is computed, so a run of an earlier version goes on with the defaults of new ones.
        data = asdict(RunConfig()) | data
    unknown = set(data) - set(hints)
    missing = set(hints) - set(data)
    if unknown or missing:
        raise ConfigError(
            f"this config was written by another version: unknown {sorted(prefix + key for key in unknown)}, "
            f"missing {sorted(prefix + key for key in missing)}"
        )
    return cls(
        **{
            key: _build(kind, data[key], f"{prefix}{key}.")
            if is_dataclass(kind)
            else _stored(prefix + key, data[key], kind)
            for key, kind in hints.items()
        }
    )


def _stored(key: str, value: Any, kind: Any) -> Any:
    """A value as JSON gave it, if it is of the kind that the field holds."""
    kind = dict if typing.get_origin(kind) is dict else float | int if kind is float else kind
    if not isinstance(value, kind):
        raise ConfigError(f"this config holds {key}={value!r}, which is of the wrong kind")
    return value


def _split(setting: str) -> tuple[str, str]:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {setting!r} is not of the form key=value, for example replay.batch=8")
    return key.strip(), text.strip()


def _with(config: Any, key: str, text: str, path: str = "") -> Any:
    """`config` with one dotted key replaced by a value parsed from text."""
    head, _, rest = key.partition(".")
    names = {item.name for item in fields(config)}
    if head not in names or (is_dataclass(getattr(config, head)) != bool(rest) and head != "environment"):
        raise ConfigError(_unknown(path + key, config.task if isinstance(config, Config) else ""))
    value = getattr(config, head)
    if is_dataclass(value):
        return replace(config, **{head: _with(value, rest, text, f"{path}{head}.")})
    if isinstance(value, dict):
        if not rest:
            raise ConfigError(f"{head} takes the name of an option, for example {head}.size=64")
        return replace(config, **{head: value | {rest: _literal(text)}})
    return replace(config, **{head: _parse(path + head, text, typing.get_type_hints(type(config))[head])})


def _unknown(key: str, task: str) -> str:
    known, last = [*flatten(Config(task="")), *_usual_options(task)], key.rpartition(".")[2]
    by_name = [name for name in known if name == ALIASES.get(last) or name.rpartition(".")[2] == last]
    close = by_name or difflib.get_close_matches(key, known, n=1)
    if not close:
        return f"there is no setting {key!r}; `dreamer settings` lists them"
    return f"there is no setting {key!r}; the nearest is {close[0]!r}"


def _parse(key: str, text: str, kind: type) -> Any:
    if kind is str:
        return text
    kind = int if kind == int | None else kind
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is int:
            return whole(text)
        return float(text)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise ConfigError(f"{key}={text} is not {wanted}") from None


def whole(text: str) -> int:
    """A whole number as people write large ones: 500000, 500_000, 5e5, 500k, 0.5M. Raises ValueError for others."""
    plain = text.strip().replace("_", "")
    parts = re.fullmatch(r"([+-]?\d*\.?\d+(?:e\+?\d{1,2})?)([km]?)", plain, re.IGNORECASE)
    if parts is not None:
        value = Fraction(parts[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[parts[2].lower()]
        if value.denominator == 1:
            return int(value)
    raise ValueError(f"{text} is no whole number")


def _literal(text: str) -> Any:
    """The value of an environment's option: a number, true, false or a word, as 4_4 and inf are."""
    if "_" in text or not re.search(r"\d", text) and text.lower() not in ("true", "false"):
        return text
    for kind in (int, float, bool):
        try:
            return _parse("", text, kind)
        except ConfigError:
            continue
    return text


def _check(key: str, value: Any) -> None:
    if not key.startswith("environment."):
        _allowed(key).check(key, value)


def _allowed(key: str) -> Allowed:
    found: Allowed = _metadata().get(key, {}).get("allowed", Allowed())
    return found


def _meaning(key: str) -> str:
    found: str = _metadata().get(key, {}).get("meaning", "")
    return found


@functools.cache
def _metadata(kind: Any = None, prefix: str = "") -> dict[str, Any]:
    """What `setting` keeps of each field, by dotted key."""
    result: dict[str, Any] = {}
    for item in fields(kind or Config):
        key, inner = prefix + item.name, type(item.default)
        result |= _metadata(inner, f"{key}.") if is_dataclass(inner) else {key: item.metadata}
    return result
