import json

import numpy as np
import pytest
import torch
from gymnasium import spaces

import envs
from dreamer.errors import UserMistake
from dreamer.spaces import (
    ActionPart,
    ActionSpec,
    ObservationSpec,
    SpaceError,
    action_spec,
    from_json,
    observation_spec,
    to_json,
)


def box(*shape, low=-1, high=1, dtype=np.float32):
    return spaces.Box(low, high, shape, dtype)


def image(*shape):
    return box(*shape, low=0, high=255, dtype=np.uint8)


MIXED = {"zoom": box(2), "arm": box(3), "gear": spaces.Discrete(3), "keys": spaces.MultiDiscrete([2, 4, 3])}


# What is seen --------------------------------------------------------------------------------------------


def test_observations_are_sorted_by_kind_and_key():
    space = {
        "speed": box(4, low=-np.inf, high=np.inf),
        "map": image(48, 64, 1),
        "cards": spaces.MultiDiscrete([5, 2]),
        "camera": image(48, 64, 3),
        "angle": box(1),
    }
    spec = observation_spec(spaces.Dict(space))
    assert spec == ObservationSpec(
        images={"camera": (48, 64, 3), "map": (48, 64, 1)}, floats={"angle": 1, "speed": 4}, integers={"cards": (5, 2)}
    )
    assert spec.keys == ["camera", "map", "angle", "speed", "cards"]
    assert spec.shape_and_dtype("map") == ((48, 64, 1), np.dtype(np.uint8))
    assert spec.shape_and_dtype("speed") == ((4,), np.dtype(np.float32))
    assert spec.shape_and_dtype("cards") == ((2,), np.dtype(np.int64))


@pytest.mark.parametrize("task", ["atari/pong", "gym/CartPole-v1", "gym/FrozenLake-v1", "gym/Pendulum-v1"])
def test_the_project_s_environments_are_taken(task):
    env = envs.make(task)
    spec, action = observation_spec(env.observation_space), action_spec(env.action_space)
    observation, _ = env.reset(seed=0)
    assert set(spec.keys) == set(observation)
    for key, value in observation.items():
        assert (value.shape, value.dtype) == spec.shape_and_dtype(key)
    flat = np.zeros((1, action.width), np.float32)
    chosen = {key: value[0] for key, value in action.to_environment(flat).items()}
    assert env.action_space.contains(chosen)
    env.step(chosen)
    env.close()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            spaces.Dict({"camera": image(50, 64, 3)}),
            "'camera' is 50x64; its sides must be multiples of 16 from 48 to 256",
        ),
        (spaces.Dict({"camera": image(32, 64, 3)}), "'camera' is 32x64"),
        (spaces.Dict({"camera": image(64, 272, 3)}), "'camera' is 64x272"),
        (spaces.Dict({"camera": image(64, 64)}), "'camera' is Box"),
        (spaces.Dict({"one": image(64, 64, 3), "two": image(64, 48, 3)}), "must have one size"),
        (spaces.Dict({"speed": box(2, 3)}), "'speed' is Box"),
        (spaces.Dict({"speed": box(2, dtype=np.float64)}), "'speed' is Box"),
        (spaces.Dict({"speed": box()}), "'speed' is Box"),
        (spaces.Dict({"card": spaces.Discrete(3)}), "'card' is Discrete"),
        (spaces.Dict({"card": spaces.MultiDiscrete([[2, 3]])}), "'card' is MultiDiscrete"),
        (spaces.Dict({"card": spaces.MultiDiscrete([2, 3], start=[1, 0])}), "'card' is MultiDiscrete"),
        (spaces.Dict({"in": spaces.Dict({"speed": box(2)})}), "'in' is Dict"),
        (spaces.Dict({}), "observation space is empty"),
        (box(2), "observation space is Box"),
    ],
)
def test_other_observations_are_refused(space, message):
    with pytest.raises(SpaceError, match=message) as error:
        observation_spec(space)
    assert isinstance(error.value, UserMistake)


# What is done --------------------------------------------------------------------------------------------


def test_the_flat_action_holds_sorted_keys():
    spec = action_spec(spaces.Dict(MIXED))
    assert spec.parts == (
        ActionPart("arm", size=3),
        ActionPart("gear", classes=(3,)),
        ActionPart("keys", classes=(2, 4, 3)),
        ActionPart("zoom", size=2),
    )
    assert (spec.width, spec.categoricals, spec.continuous) == (3 + 3 + 9 + 2, 4, 5)
    assert [part.width for part in spec.parts] == [3, 3, 9, 2]


def test_actions_as_the_environment_takes_them():
    spec = action_spec(spaces.Dict(MIXED))
    arm, zoom = [[0.5, -1, 1.5], [0, 0, -0.25]], [[0.125, 2], [-2, 0]]
    gear, keys = [[0, 0, 1], [1, 0, 0]], [[0, 1, 0, 0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 1, 0, 0, 0, 1]]
    flat = np.concatenate([arm, gear, keys, zoom], 1, dtype=np.float32)
    result = spec.to_environment(flat)
    assert {key: value.tolist() for key, value in result.items()} == {
        "arm": arm,
        "gear": [2, 0],
        "keys": [[1, 3, 0], [0, 2, 2]],
        "zoom": zoom,
    }
    assert {key: value.dtype for key, value in result.items()} == {
        "arm": np.float32,
        "gear": np.int64,
        "keys": np.int64,
        "zoom": np.float32,
    }


def test_there_and_back():
    space = spaces.Dict(MIXED)
    spec = action_spec(space)
    space.seed(0)
    actions = [space.sample() for _ in range(50)]

    def flatten(action):
        parts = []
        for part in spec.parts:
            value = np.atleast_1d(action[part.key])
            parts += [np.eye(n)[v] for v, n in zip(value, part.classes, strict=True)] if part.classes else [value]
        return np.concatenate(parts)

    result = spec.to_environment(np.stack([flatten(action) for action in actions]))
    for i, action in enumerate(actions):
        row = {key: value[i] for key, value in result.items()}
        assert space.contains(row)
        assert all(np.array_equal(row[key], action[key]) for key in action)


def test_the_actor_samples_what_the_environment_takes():
    from dreamer.actor_critic import Actor

    space = spaces.Dict(MIXED)
    spec = action_spec(space)
    actor, generator = Actor(spec, 5, 8), torch.Generator().manual_seed(0)
    noise = actor.draw_noise((200,), generator)
    flat = actor.sample(actor(torch.zeros(200, 5)), noise)
    assert flat.shape == (200, spec.width)
    result = spec.to_environment(flat.detach().numpy())
    for key in ("gear", "keys"):
        assert all(space[key].contains(value) for value in result[key])
    assert {tuple(value) for value in result["keys"].tolist()} == set(np.ndindex(2, 4, 3))
    assert set(result["gear"].tolist()) == {0, 1, 2}


def test_an_action_of_zeros_can_be_given_to_an_environment():
    space = spaces.Dict(MIXED)
    result = action_spec(space).to_environment(np.zeros((2, 17), np.float32))
    assert all(space.contains({key: value[i] for key, value in result.items()}) for i in range(2))


@pytest.mark.parametrize(
    "part",
    [
        box(2, low=-2, high=2),
        box(2, low=0, high=1),
        box(2, low=-1, high=5),
        box(2, low=-5, high=-1),
        box(2, 2),
        spaces.Discrete(3, start=1),
        spaces.MultiDiscrete([[2, 3]]),
        spaces.MultiDiscrete([2, 3], start=[0, 1]),
        spaces.MultiBinary(3),
        spaces.Dict({"arm": box(2)}),
    ],
    ids=repr,
)
def test_other_actions_are_refused(part):
    with pytest.raises(SpaceError, match=rf"'act' is {type(part).__name__}"):
        action_spec(spaces.Dict({"act": part}))


@pytest.mark.parametrize(
    ("space", "message"), [(spaces.Dict({}), "action space is empty"), (spaces.Discrete(2), "action space is Discrete")]
)
def test_what_is_no_dict_of_actions_is_refused(space, message):
    with pytest.raises(SpaceError, match=message):
        action_spec(space)


# Saved ---------------------------------------------------------------------------------------------------


def test_there_and_back_through_json():
    observation = observation_spec(
        spaces.Dict({"camera": image(48, 64, 3), "speed": box(4), "cards": spaces.MultiDiscrete([5, 2])})
    )
    action = action_spec(spaces.Dict(MIXED))
    data = json.loads(json.dumps(to_json(observation, action)))
    assert from_json(data) == (observation, action)
    assert isinstance(from_json(data)[1], ActionSpec)
