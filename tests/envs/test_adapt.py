import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import envs
from envs.adapt import Adapt

FLOAT = spaces.Box(-np.inf, np.inf, (2,), np.float32)
BYTES = (0, 255)


class Stub(gymnasium.Env):
    """Answers with the values it is given, and keeps the action it gets."""

    def __init__(self, observation_space=FLOAT, values=(), action_space=None, reward=0.0, ends=(False, False)):
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Discrete(2)
        self.values = iter(values)
        self.reward, self.ends = reward, ends
        self.seeds, self.action = [], None

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        return next(self.values, None), {}

    def step(self, action):
        self.action = action
        return next(self.values, None), self.reward, *self.ends, {}


def observe(space, value):
    """The canonical space, and `value` in it."""
    env = Adapt(Stub(space, [value]))
    observation, _ = env.reset()
    assert observation.keys() == env.observation_space.keys()
    for key, part in env.observation_space.items():
        assert observation[key].dtype == part.dtype
        assert part.contains(observation[key])
    return env, observation


def act(space, action):
    """The canonical space, and what the environment gets for `action` in it."""
    env = Adapt(Stub(FLOAT, [np.zeros(2)] * 2, space))
    env.reset()
    env.step(action)
    got = env.unwrapped.action
    assert space.contains(got), f"{got!r} is not in {space}"
    return env, got


# Observations


def test_a_float_vector():
    env, observation = observe(FLOAT, np.array([1, 2], np.float32))
    assert env.observation_space == spaces.Dict({"vector": FLOAT})
    assert observation["vector"].tolist() == [1, 2]
    assert env.notes == []


def test_floats_of_any_shape_and_width_are_flattened():
    env, observation = observe(spaces.Box(0, 9, (2, 2), np.float64), np.array([[1.5, 2], [3, 4]]))
    assert env.observation_space["vector"].shape == (4,)
    assert observation["vector"].tolist() == [1.5, 2, 3, 4]
    assert env.notes == ["Observation 'vector' (Box float64 of shape (2, 2)) is flattened to 4 numbers."]
    _, observation = observe(spaces.Box(0, 9, (), np.float32), np.float32(7))
    assert observation["vector"].tolist() == [7]


def test_an_image_of_a_good_size():
    image = np.random.default_rng(0).integers(256, size=(64, 80, 3), dtype=np.uint8)
    env, observation = observe(spaces.Box(*BYTES, (64, 80, 3), np.uint8), image)
    assert np.array_equal(observation["image"], image)
    assert env.notes == []


def test_a_grey_image_gets_a_channel_axis():
    image = np.arange(48 * 48, dtype=np.uint8).reshape(48, 48)
    env, observation = observe(spaces.Box(*BYTES, (48, 48), np.uint8), image)
    assert env.observation_space["image"].shape == (48, 48, 1)
    assert np.array_equal(observation["image"][:, :, 0], image)


def test_channels_that_come_first_are_moved():
    image = np.random.default_rng(0).integers(256, size=(3, 48, 64), dtype=np.uint8)
    env, observation = observe(spaces.Box(*BYTES, (3, 48, 64), np.uint8), image)
    assert env.observation_space["image"].shape == (48, 64, 3)
    assert observation["image"][5, 7].tolist() == image[:, 5, 7].tolist()
    assert env.notes == ["Observation 'image' has its channels moved from the first axis to the last."]


def test_channels_that_come_last_stay_there_whatever_the_height():
    image = np.random.default_rng(0).integers(256, size=(3, 48, 4), dtype=np.uint8)
    _, observation = observe(spaces.Box(*BYTES, (3, 48, 4), np.uint8), image)
    assert observation["image"].shape == (48, 48, 4)


def test_images_are_resized_to_the_nearest_size():
    for height, width, expected in [
        (210, 160, (208, 160)),
        (84, 84, (80, 80)),
        (7, 300, (48, 256)),
        (56, 55, (64, 48)),
    ]:
        space = spaces.Box(*BYTES, (height, width, 3), np.uint8)
        env, observation = observe(space, np.full(space.shape, 200, np.uint8))
        assert observation["image"].shape == (*expected, 3)
        assert (observation["image"] == 200).all()
        assert env.notes == [
            f"Observation 'image' is resized from {height}x{width} to {expected[0]}x{expected[1]} pixels."
        ]


def test_resizing_keeps_the_channels_apart():
    """Four channels are four pictures, not three and a transparency."""
    image = np.zeros((96, 96, 4), np.uint8)
    image[:, :, 0], image[:, :, 2] = 100, 200
    for channels in (1, 2, 3, 4):
        value = np.ascontiguousarray(image[:, :, :channels])
        resized = envs.images.resize(value, (48, 64))
        assert resized.shape == (48, 64, channels)
        assert resized[10, 10].tolist() == [100, 0, 200, 0][:channels]


def test_resizing_keeps_up_and_left():
    image = np.zeros((100, 200, 3), np.uint8)
    image[:50, 100:] = 255
    resized = envs.images.resize(image, (48, 96))
    assert resized[5, 90].tolist() == [255] * 3 and resized[40, 90].tolist() == [0] * 3
    assert resized[5, 5].tolist() == [0] * 3


def test_all_images_get_the_size_of_the_largest():
    space = spaces.Dict({"b": spaces.Box(*BYTES, (100, 100, 3), np.uint8), "a": spaces.Box(*BYTES, (64, 48), np.uint8)})
    value = {"a": np.zeros((64, 48), np.uint8), "b": np.ones((100, 100, 3), np.uint8)}
    env, observation = observe(space, value)
    assert observation["a"].shape == (96, 96, 1)
    assert observation["b"].shape == (96, 96, 3)
    assert env.notes == [
        "Observation 'a' gets an axis for its single channel.",
        "Observation 'a' is resized from 64x48 to 96x96 pixels.",
        "Observation 'b' is resized from 100x100 to 96x96 pixels.",
    ]


def test_two_images_of_good_but_unequal_sizes_are_not_canonical():
    space = spaces.Dict({key: spaces.Box(*BYTES, (side, side, 1), np.uint8) for key, side in (("a", 48), ("b", 64))})
    _, observation = observe(space, {"a": np.zeros((48, 48, 1), np.uint8), "b": np.zeros((64, 64, 1), np.uint8)})
    assert observation["a"].shape == observation["b"].shape == (64, 64, 1)


def test_wide_and_high_images_are_made_no_smaller():
    sides = {"a": (48, 200), "b": (200, 48)}
    space = spaces.Dict({key: spaces.Box(*BYTES, (*side, 3), np.uint8) for key, side in sides.items()})
    _, observation = observe(space, {key: np.zeros((*side, 3), np.uint8) for key, side in sides.items()})
    assert observation["a"].shape == observation["b"].shape == (208, 208, 3)


def test_too_many_classes_are_refused_however_they_are_offered():
    for space in (spaces.Discrete(10**8), spaces.Dict(a=spaces.MultiDiscrete([10**8]))):
        with pytest.raises(envs.TaskError, match="would be 100000000 numbers as one-hot vectors"):
            observe(space, None)


def test_stacked_frames_that_come_first_are_channels():
    env, observation = observe(spaces.Box(*BYTES, (9, 64, 64), np.uint8), np.zeros((9, 64, 64), np.uint8))
    assert observation["image"].shape == (64, 64, 9)
    assert env.notes == ["Observation 'image' has its channels moved from the first axis to the last."]


@pytest.mark.parametrize("shape", [(4, 64, 64, 3), (84, 84), (3, 84, 84)])
def test_what_may_be_an_image_is_said(shape):
    space = spaces.Box(0, 1, shape, np.float32)
    env, _ = observe(space, np.zeros(shape, np.float32))
    assert "If 'vector' is an image, offer it as uint8" in env.notes[-1]


@pytest.mark.parametrize(
    ("space", "value", "counts", "indices"),
    [
        (spaces.Discrete(5), 3, [5], [3]),
        (spaces.Discrete(5, start=-2), np.int64(-2), [5], [0]),
        (spaces.MultiDiscrete([3, 4]), np.array([2, 3]), [3, 4], [2, 3]),
        (
            spaces.MultiDiscrete([[3, 4], [5, 6]], start=[[1, 1], [0, 0]]),
            [[1, 4], [4, 5]],
            [3, 4, 5, 6],
            [0, 3, 4, 5],
        ),
        (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [2, 2, 2], [1, 0, 1]),
        (spaces.MultiBinary((2, 2)), np.array([[1, 0], [0, 1]], np.int8), [2] * 4, [1, 0, 0, 1]),
        (spaces.Box(-3, 3, (2,), np.int32), np.array([-3, 3], np.int32), [7, 7], [0, 6]),
        (spaces.Box(0, 1, (2,), bool), np.array([True, False]), [2, 2], [1, 0]),
        (spaces.Box(0, 254, (1,), np.uint8), np.array([254], np.uint8), [255], [254]),
        (spaces.Box(0, 9, (2, 2), np.uint8), np.array([[9, 0], [1, 2]], np.uint8), [10] * 4, [9, 0, 1, 2]),
    ],
)
def test_integers_of_few_values_become_classes(space, value, counts, indices):
    env, observation = observe(space, value)
    assert env.observation_space == spaces.Dict({"vector": spaces.MultiDiscrete(counts)})
    assert observation["vector"].tolist() == indices


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (spaces.Box(*BYTES, (2,), np.uint8), [7, 255]),  # the console's memory, for one
        (spaces.Box(0, 1000, (2,), np.int32), [7, 1000]),
        (spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64), [-7, 7]),
        (spaces.Box(np.array([0, 0]), np.array([1, 10**6]), dtype=np.int64), [1, 7]),  # one entry decides
    ],
)
def test_integers_of_many_values_become_a_vector(space, value):
    env, observation = observe(space, np.array(value, space.dtype))
    assert env.observation_space["vector"].dtype == np.float32
    assert observation["vector"].tolist() == value
    assert env.notes and "taken as a vector of 2 numbers" in env.notes[0]


def test_nesting_is_flattened():
    space = spaces.Dict(
        {
            "hand": spaces.Dict({"cards": spaces.MultiDiscrete([13, 13]), "cash": spaces.Box(0, 1, (1,), np.float32)}),
            "pair": spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (2, 1), np.float32)]),
        }
    )
    value = {
        "hand": {"cards": np.array([12, 0]), "cash": np.array([0.5], np.float32)},
        "pair": (1, np.array([[0.25], [0.75]], np.float32)),
    }
    _, observation = observe(space, value)
    assert {key: entry.tolist() for key, entry in observation.items()} == {
        "hand/cards": [12, 0],
        "hand/cash": [0.5],
        "pair/0": [1],
        "pair/1": [0.25, 0.75],
    }


def test_what_is_canonical_is_handed_on_as_it_is():
    space = spaces.Dict(
        {
            "camera": spaces.Box(*BYTES, (48, 64, 3), np.uint8),
            "speed": FLOAT,
            "gear": spaces.MultiDiscrete([5]),
        }
    )
    value = space.sample()
    env = Adapt(Stub(space, [value]))
    assert env.reset()[0] is value
    assert env.observation_space == space
    assert env.notes == []


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Text(5), "'vector' is a Text space"),
        (spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))}), "'a' is a Sequence space"),
        (spaces.Dict({"a": spaces.Graph(FLOAT, None)}), "'a' is a Graph space"),
        (spaces.OneOf([spaces.Discrete(2), FLOAT]), "OneOf space"),
        (spaces.Dict({"reward": FLOAT}), "key 'reward'"),
        (spaces.Dict({"is_first": FLOAT}), "key 'is_first'"),
        (
            spaces.Dict({"a/b": FLOAT, "a": spaces.Dict({"b": FLOAT})}),
            "Two observations would be called 'a/b'",
        ),
        (spaces.Dict({}), "empty"),
        (spaces.Dict({"a": spaces.Box(0, 1, (0,), np.float32)}), "'a' has shape .0,., so no entries"),
        (spaces.Box(0, 254, (84, 84, 3), np.uint8), "an image as Box.0, 255"),
    ],
)
def test_observations_that_cannot_be_used(space, message):
    with pytest.raises(envs.TaskError, match=message):
        Adapt(Stub(space))


@pytest.mark.parametrize(("space", "value"), [(spaces.Discrete(3), 3), (spaces.Box(2, 4, (2,), np.int32), [1, 4])])
def test_integers_outside_their_space_are_refused(space, value):
    env = Adapt(Stub(space, [value]))
    with pytest.raises(envs.TaskError, match="outside its space"):
        env.reset()


# Actions


@pytest.mark.filterwarnings("ignore:.*multi-dimensional MultiDiscrete")  # of Gymnasium's own `contains`
@pytest.mark.parametrize(
    ("space", "canonical", "action", "expected"),
    [
        (spaces.Discrete(3), spaces.Discrete(3), np.int64(2), 2),
        (spaces.Discrete(3, start=5), spaces.Discrete(3), 0, 5),
        (spaces.MultiDiscrete([2, 5]), spaces.MultiDiscrete([2, 5]), [1, 4], [1, 4]),
        (spaces.MultiDiscrete([2, 5], start=[1, -1]), spaces.MultiDiscrete([2, 5]), [1, 0], [2, -1]),
        (
            spaces.MultiDiscrete([[2, 3], [4, 5]]),
            spaces.MultiDiscrete([2, 3, 4, 5]),
            [1, 2, 3, 4],
            [[1, 2], [3, 4]],
        ),
        (spaces.MultiBinary(2), spaces.MultiDiscrete([2, 2]), [1, 0], [1, 0]),
        (spaces.Box(-2, 3, (2,), np.int32), spaces.MultiDiscrete([6, 6]), [0, 5], [-2, 3]),
    ],
)
def test_discrete_actions(space, canonical, action, expected):
    env, got = act(space, {"action": action})
    assert env.action_space == spaces.Dict({"action": canonical})
    assert np.asarray(got).tolist() == expected


@pytest.mark.parametrize(
    ("action", "expected"),
    [([-1, -1], [0, -3]), ([1, 1], [0.1, 5]), ([0, 0.5], [0.05, 3]), ([-9, 9], [0, 5])],
)
def test_continuous_actions_are_mapped_and_clipped(action, expected):
    space = spaces.Box(np.array([0, -3], np.float32), np.array([0.1, 5], np.float32))
    env, got = act(space, {"action": np.array(action, np.float32)})
    assert env.action_space == spaces.Dict({"action": spaces.Box(-1, 1, (2,), np.float32)})
    assert got == pytest.approx(expected)
    assert env.notes == ["Action 'action' is mapped from [-1, 1] to its bounds, which lie between -3 and 5."]


def test_bounds_of_minus_one_and_one_change_nothing_but_clip():
    values = np.random.default_rng(0).uniform(-1, 1, 50).astype(np.float32)
    env, got = act(spaces.Box(-1, 1, (50,), np.float32), {"action": values})
    assert np.array_equal(got, values)
    assert env.notes == []
    _, got = act(spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32)}), {"a": np.array([-3.0, 3.0])})
    assert got["a"].tolist() == [-1, 1]


def test_continuous_actions_of_any_shape():
    env, got = act(spaces.Box(0, 2, (2, 2), np.float64), {"action": np.array([-1, 0, 1, 1])})
    assert env.action_space["action"].shape == (4,)
    assert got.tolist() == [[0, 1], [2, 2]]


def test_nested_actions():
    space = spaces.Dict(
        {
            "tool": spaces.Discrete(3, start=1),
            "move": spaces.Tuple([spaces.Box(0, 10, (1,), np.float32), spaces.MultiBinary(2)]),
        }
    )
    env, got = act(space, {"tool": 2, "move/0": np.array([0.0]), "move/1": np.array([0, 1])})
    assert list(env.action_space) == ["move/0", "move/1", "tool"]
    assert got["tool"] == 3
    assert isinstance(got["move"], tuple)
    assert (got["move"][0].tolist(), got["move"][1].tolist()) == ([5], [0, 1])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(-np.inf, np.inf, (1,), np.float32), "no finite bounds.*TransformAction"),
        (spaces.Box(np.array([0, 0]), np.array([1, np.inf]), dtype=np.float64), "no finite bounds"),
        (spaces.Box(-3e38, 3e38, (1,), np.float32), "no finite bounds"),
        (spaces.Box(0, 1000, (1,), np.int32), "256 values or more"),
        (spaces.Box(-1, 1, (0,), np.float32), "has nothing to choose: leave it out"),
        (spaces.Text(5), "'action' is a Text space"),
        (spaces.Dict({"a": spaces.Sequence(FLOAT)}), "'a' is a Sequence space"),
        (spaces.Dict({"a/b": FLOAT, "a": spaces.Dict({"b": FLOAT})}), "finite|Two actions"),
    ],
)
def test_actions_that_cannot_be_used(space, message):
    with pytest.raises(envs.TaskError, match=message):
        Adapt(Stub(FLOAT, action_space=space))


# The rest of a step


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((True, False), (True, False)),
        ((False, True), (False, True)),
        ((True, True), (True, False)),
        ((np.bool_(False), np.bool_(False)), (False, False)),
    ],
)
def test_an_end_is_either_terminated_or_truncated(ends, expected):
    env = Adapt(Stub(FLOAT, [np.zeros(2)] * 2, reward=np.float64(1.5), ends=ends))
    env.reset()
    _, reward, *got, _ = env.step({"action": 0})
    assert tuple(got) == expected
    assert reward == 1.5 and type(reward) is float


def test_the_seed_is_for_the_first_reset_unless_it_is_given_one():
    stub = Stub(FLOAT, [np.zeros(2)] * 9)
    env = Adapt(stub, seed=4)
    env.reset(), env.reset(), env.reset(seed=7)
    assert stub.seeds == [4, None, 7]
    stub = Stub(FLOAT, [np.zeros(2)] * 9)
    env = Adapt(stub, seed=4)
    env.reset(seed=7), env.reset()
    assert stub.seeds == [7, None]


def test_saving_is_offered_only_by_what_is_wrapped_itself():
    class Saving(Stub):
        state = 3

        def get_state(self):
            return {"state": self.state}

        def set_state(self, state):
            self.state = state["state"]

    saving = Saving()
    assert Adapt(saving).can_save_state
    Adapt(saving).set_state({"state": 8})
    assert Adapt(saving).get_state() == {"state": 8}
    assert Adapt(envs.repeat.ActionRepeat(saving, 2)).can_save_state
    # A time limit has a counter that it does not save.
    assert not Adapt(gymnasium.wrappers.TimeLimit(saving, 5)).can_save_state
    assert not Adapt(Stub()).can_save_state
    assert not Adapt(envs.repeat.ActionRepeat(Stub(), 2)).can_save_state
