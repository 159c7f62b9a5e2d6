import json
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from dreamer import config as configs
from dreamer.agent import total_loss
from dreamer.config import (
    Config,
    ConfigError,
    LossScales,
    amend,
    described,
    flatten,
    from_json,
    make_config,
    to_json,
    whole,
)
from dreamer.errors import UserMistake

# What the paper says -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "deter", "hidden", "classes", "depth", "units"),
    [
        ("1m", 512, 64, 4, 4, 64),
        ("12m", 2048, 256, 16, 16, 256),
        ("25m", 3072, 384, 24, 24, 384),
        ("50m", 4096, 512, 32, 32, 512),
        ("100m", 6144, 768, 48, 48, 768),
        ("200m", 8192, 1024, 64, 64, 1024),
        ("400m", 12288, 1536, 96, 96, 1536),
    ],
)
def test_sizes(size, deter, hidden, classes, depth, units):
    model = make_config("gym/CartPole-v1", size=size).model
    assert (model.deter, model.hidden, model.classes) == (deter, hidden, classes)
    assert (model.depth, model.units) == (depth, units)
    assert (model.stoch, model.blocks, model.free_nats) == (32, 8, 1.0)


def test_there_are_no_other_sizes():
    assert list(configs.SIZES) == ["1m", "12m", "25m", "50m", "100m", "200m", "400m"]


@pytest.mark.parametrize(
    ("task", "frames", "repeat", "ratio", "envs", "size"),
    [
        ("atari/pong", 200_000_000, 4, 32, 16, "200m"),
        ("atari100k/pong", 400_000, 4, 128, 1, "200m"),
        ("dmc/walker_walk", 500_000, 2, 512, 8, "12m"),
        ("dmc_vision/walker_walk", 1_000_000, 2, 512, 8, "12m"),
        ("gym/CartPole-v1", 1_000_000, None, 512, 1, "12m"),
        ("my.module:factory", 1_000_000, None, 512, 1, "12m"),
    ],
)
def test_protocols(task, frames, repeat, ratio, envs, size):
    config = make_config(task)
    assert (config.task, config.frames, config.repeat) == (task, frames, repeat)
    assert (config.ratio, config.envs, config.size) == (ratio, envs, size)
    assert config.model == make_config("gym/x", size=size).model


def test_hyperparameters():
    config = flatten(make_config("atari/pong"))
    expected = {
        "behavior.horizon": 15,
        "behavior.discount_horizon": 333,
        "behavior.trace": 0.95,
        "behavior.entropy": 3e-4,
        "behavior.slow_regularizer": 1.0,
        "behavior.slow_rate": 0.02,
        "behavior.return_rate": 0.01,
        "behavior.return_low": 0.05,
        "behavior.return_high": 0.95,
        "behavior.return_limit": 1.0,
        "losses.decoder": 1.0,
        "losses.reward": 1.0,
        "losses.continuation": 1.0,
        "losses.dynamics": 1.0,
        "losses.representation": 0.1,
        "losses.actor": 1.0,
        "losses.critic": 1.0,
        "losses.replay_critic": 0.3,
        "optimizer.learning_rate": 4e-5,
        "optimizer.warmup": 1000,
        "optimizer.clip": 0.3,
        "optimizer.min_norm": 1e-3,
        "optimizer.beta1": 0.9,
        "optimizer.beta2": 0.999,
        "optimizer.epsilon": 1e-20,
        "replay.batch": 16,
        "replay.length": 64,
        "replay.capacity": 5_000_000,
    }
    assert {key: config[key] for key in expected} == expected
    covered = {key for key in config if key.split(".")[0] in ("behavior", "losses", "optimizer", "replay")}
    assert covered == set(expected)


# What the user gives -------------------------------------------------------------------------------------

# A value for each field that is no number of its own.
OTHER = {
    "task": ("gym/Acrobot-v1", "gym/Acrobot-v1"),
    "size": ("25m", "25m"),
    "run.device": ("cpu", "cpu"),
    "run.precision": ("bfloat16", "bfloat16"),
    "run.compile": ("false", False),
    "model.deter": ("1_024", 1024),
    "model.blocks": ("4", 4),
    "model.depth": ("18", 18),
    "replay.capacity": ("123_456", 123456),
    "repeat": ("3", 3),
    "behavior.return_low": ("0.25", 0.25),
}


@pytest.mark.parametrize("key", [key for key in flatten(Config(task="")) if key != "task"])
def test_every_setting_can_be_set(key):
    before = make_config("gym/CartPole-v1")
    value = flatten(before)[key]
    text, expected = OTHER.get(key) or (
        (str(value + 1), value + 1) if type(value) is int else (str(value / 2), value / 2)
    )
    after = flatten(make_config("gym/CartPole-v1", settings=[f" {key} = {text} "]))
    changed = {name for name in after if after[name] != flatten(before)[name]}
    assert after[key] == expected and type(after[key]) is type(expected)
    assert changed == {key} if key != "size" else changed > {"size", "model.deter"}


@pytest.mark.parametrize("setting", ["task=atari/pong", "model.depth=3", "model.deter=20"])
def test_what_would_break_the_model_or_mix_protocols_is_refused(setting):
    with pytest.raises(ConfigError, match=setting.replace("/", ".")):
        make_config("gym/CartPole-v1", settings=[setting])


def test_what_is_given_beats_size_beats_protocol():
    config = make_config("atari/pong", frames=1000, envs=None, seed=0)
    assert (config.frames, config.envs, config.seed) == (1000, 16, 0)
    for settings in (["model.deter=64", "size=25m"], ["size=25m", "model.deter=64"]):
        config = make_config("atari/pong", size="50m", settings=settings)
        assert (config.size, config.model.deter, config.model.units) == ("25m", 64, 384)
    assert make_config("atari/pong", settings=["ratio=8", "ratio=16"]).ratio == 16


def test_amending_keeps_the_rest():
    config = make_config("dmc/walker_walk", settings=["model.deter=64", "environment.camera=2"])
    assert amend(config, frames=5) == replace(config, frames=5)
    assert amend(config) == config
    assert amend(config, size="25m").model == make_config("gym/x", size="25m").model


def test_options_of_the_environment():
    settings = ["environment.size=64", "environment.sticky=0.25", "environment.full=true", "environment.mode=rgb"]
    config = make_config("gym/CartPole-v1", settings=settings)
    assert config.environment == {"size": 64, "sticky": 0.25, "full": True, "mode": "rgb"}
    assert type(config.environment["size"]) is int and config.environment["full"] is True
    assert Config(task="").environment == {}


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [
        ("replay.bach=4", "replay.batch"),
        ("batch=4", "replay.batch"),
        ("model.learning_rate=4", "optimizer.learning_rate"),
        ("framse=4", "frames"),
        ("run.devise=cpu", "run.device"),
        ("losses.continue=1", "losses.continuation"),
        ("ratios=1", "ratio"),
        ("lr=1e-4", "optimizer.learning_rate"),
        ("gamma=0.99", "behavior.discount_horizon"),
        ("agent.batch_size=4", "replay.batch"),
    ],
)
def test_an_unknown_key_names_the_nearest(setting, nearest):
    key = setting.partition("=")[0]
    with pytest.raises(ConfigError) as error:
        make_config("gym/CartPole-v1", settings=[setting])
    assert str(error.value) == f"there is no setting {key!r}; the nearest is {nearest!r}"


def test_an_option_of_the_suite_is_found_by_its_name():
    with pytest.raises(ConfigError, match="no setting 'sticky'; the nearest is 'environment.sticky'"):
        make_config("atari/pong", settings=["sticky=0"])


def test_a_key_that_is_near_to_none_is_told_where_they_are():
    with pytest.raises(ConfigError, match="no setting 'flux'; `dreamer settings` lists them"):
        make_config("gym/CartPole-v1", settings=["flux=0"])


def test_large_numbers_are_read_as_people_write_them():
    texts = ["500000", "500_000", "5e5", "500k", "0.5M", "1.5K", ".5m", "-3", "9223372036854775807"]
    assert [whole(text) for text in texts] == [500_000] * 5 + [1500, 500_000, -3, 2**63 - 1]
    assert make_config("dmc/walker_walk", settings=["frames=1e6", "replay.capacity=2M"]).replay.capacity == 2_000_000
    for text in ("", "k", "1e", "2.5", "1e-3", "0.5", "4x", "1 000", "inf", "nan", "1e1000"):
        with pytest.raises(ValueError, match="is no whole number"):
            whole(text)


def test_every_setting_is_described():
    found = {each.key: each for each in described("dmc_vision/walker_walk")}
    assert found.keys() == flatten(make_config("dmc_vision/walker_walk")).keys() - {"task"} | {"environment.size"}
    assert found["model.deter"] == ("model.deter", 2048, "above 0 up to 120,000", "D, the recurrent state")
    assert found["run.precision"].allowed == "auto, float32, bfloat16" and found["ratio"].default == 512
    undescribed = {key for key, each in found.items() if not each.meaning}
    assert undescribed == {key for key in found if key.startswith(("losses.", "environment."))}


@pytest.mark.parametrize(
    "key", ["model", "run", "", "x.y.z", "replay.", ".batch", "__class__", "environment", "environment."]
)
def test_what_is_no_setting_is_refused(key):
    with pytest.raises(ConfigError):
        make_config("gym/CartPole-v1", settings=[f"{key}=4"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("replay.batch=four", "replay.batch=four is not a whole number"),
        ("replay.batch=4.5", "replay.batch=4.5 is not a whole number"),
        ("repeat=often", "repeat=often is not a whole number"),
        ("ratio=much", "ratio=much is not a number"),
        ("run.compile=maybe", "run.compile=maybe is not true or false"),
        ("ratio=", "ratio= is not a number"),
        ("ratio", "not of the form key=value"),
        ("=4", "not of the form key=value"),
        ("ratio=nan", "ratio=nan must be"),
        ("ratio=inf", "ratio=inf must be a finite number"),
        ("losses.actor=nan", "losses.actor=nan must be a finite number"),
        ("ratio=0", "ratio=0.0 must be greater than 0"),
        ("frames=-1", "frames=-1 must be greater than 0"),
        ("repeat=0", "repeat=0 must be greater than 0"),
        ("envs=0", "envs=0 must be greater than 0"),
        ("replay.length=0", "replay.length=0 must be"),
        ("run.log_seconds=0", "run.log_seconds=0.0 must be greater than 0"),
        ("size=201m", "size=201m is not one of 1m, 12m.*the nearest is 200m"),
        ("run.device=gpu", "run.device=gpu is not one of auto, cpu, cuda, mps"),
        ("run.precision=float16", "the nearest is (float32|bfloat16)"),
        ("model.blocks=7", "model.deter=2048 is not a multiple of model.blocks=7"),
    ],
)
def test_a_wrong_value_is_a_plain_error(setting, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_config("gym/CartPole-v1", settings=[setting])
    assert isinstance(error.value, UserMistake) and "\n" not in str(error.value)


# Each of these would end in a stack trace, in NaN, or in a run that never learns.
@pytest.mark.parametrize(
    "setting",
    [
        "seed=-1",
        "behavior.return_low=2",
        "behavior.return_high=-0.1",
        "behavior.trace=1.5",
        "behavior.slow_rate=-1",
        "behavior.return_rate=2",
        "behavior.return_limit=0",
        "optimizer.beta1=1",
        "optimizer.beta2=1",
        "optimizer.clip=0",
        "optimizer.min_norm=-1",
        "replay.length=1",
        "model.classes=257",
        "losses.actor=-1",
        "model.units=100000000",
        "behavior.return_low=0.99",
        "replay.capacity=1000",  # fewer than the start positions of the first update
    ],
)
def test_a_value_out_of_range_is_refused(setting):
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        make_config("gym/CartPole-v1", settings=[setting])


def test_options_of_the_environment_may_be_anything():
    assert make_config("gym/x", settings=["environment.low=-5"]).environment == {"low": -5}


def test_the_smallest_capacity_is_that_of_the_first_update():
    # 16 * 64 start positions in 4 streams take 64 more rows in each.
    settings = ["replay.capacity=1280", "envs=4"]
    assert make_config("gym/CartPole-v1", settings=settings).replay.capacity == 1280
    with pytest.raises(ConfigError, match="replay.capacity=1279 .* 1280"):
        make_config("gym/CartPole-v1", settings=["replay.capacity=1279", "envs=4"])
    # Each of three has a third of it: 341 start positions and 64 rows before the first of them would be one too few.
    assert make_config("gym/CartPole-v1", settings=["replay.capacity=1218", "envs=3"]).envs == 3
    with pytest.raises(ConfigError, match="replay.capacity=1217 .* 1218"):
        make_config("gym/CartPole-v1", settings=["replay.capacity=1217", "envs=3"])


def test_a_wrong_size_argument_is_a_plain_error():
    with pytest.raises(ConfigError, match="size=112m is not one of .* the nearest is 12m"):
        make_config("gym/CartPole-v1", size="112m")


def test_a_config_does_not_change():
    config = make_config("gym/CartPole-v1")
    with pytest.raises(FrozenInstanceError):
        config.seed = 3
    with pytest.raises(FrozenInstanceError):
        config.model.deter = 3


# Saved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["atari/pong", "gym/CartPole-v1", "dmc_vision/walker_walk"])
def test_there_and_back_through_json(task):
    settings = ["environment.a=1", "environment.b=word", "environment.c=0.5", "optimizer.epsilon=1e-20"]
    config = make_config(task, seed=3, settings=[*settings, "losses.actor=0.125", "run.compile=false"])
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_json_of_another_version_names_what_differs():
    data = to_json(make_config("gym/CartPole-v1"))
    data["replay"]["bach"] = data["replay"].pop("batch")
    with pytest.raises(ConfigError, match=r"unknown \['replay.bach'\], missing \['replay.batch'\]"):
        from_json(data)


@pytest.mark.parametrize("data", [5, None, [], "text", {"model": 5}])
def test_json_of_something_else_is_a_plain_error(data):
    with pytest.raises(ConfigError):
        from_json({**to_json(make_config("gym/x")), **data} if data and isinstance(data, dict) else data)


@pytest.mark.parametrize(
    ("key", "value"), [("frames", "many"), ("ratio", None), ("task", 5), ("environment", [1]), ("repeat", "often")]
)
def test_json_with_a_value_of_the_wrong_kind_names_it(key, value):
    with pytest.raises(ConfigError, match=f"{key}={value!r}".replace("[", r"\[")):
        from_json(to_json(make_config("gym/x")) | {key: value})


def test_json_may_write_a_whole_number_for_a_fraction():
    assert from_json(to_json(make_config("gym/x")) | {"ratio": 32}).ratio == 32


# Read ----------------------------------------------------------------------------------------------------


def test_every_loss_scale_scales_its_loss():
    names = [item.name for item in fields(LossScales)]
    losses = {name if name != "decoder" else "decoder/key": torch.full((2, 3), 2.0) for name in names}
    losses["replay_critic"] = torch.full((2, 2), 2.0)
    zero = LossScales(**dict.fromkeys(names, 0.0))
    assert total_loss(losses, zero, (2, 3))[0] == 0
    for name in names:
        assert total_loss(losses, replace(zero, **{name: 0.5}), (2, 3))[0] == 1


def test_options_of_an_environment_are_numbers_truths_or_words():
    given = {"a": "4", "b": "4.5", "c": "true", "d": "4_4", "e": "inf", "f": "nan", "g": "1e3", "h": "rgb_array"}
    config = make_config("gym/X", settings=[f"environment.{key}={value}" for key, value in given.items()])
    assert config.environment == {
        "a": 4, "b": 4.5, "c": True, "d": "4_4", "e": "inf", "f": "nan", "g": 1000.0, "h": "rgb_array"
    }  # fmt: skip
