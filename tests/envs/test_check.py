import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import envs


class Good(gymnasium.Env):
    """Correct, and made wrong by what a test replaces."""

    observation_space = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (48, 48, 3), np.uint8),
            "speed": spaces.Box(-1, 1, (2,), np.float32),
            "gear": spaces.Discrete(5),
            "pair": spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(2)]),
        }
    )
    action_space = spaces.Discrete(3)
    change: object = {}
    reward: object = 1.0
    terminated: object = False
    info: object = {}
    resets = 0

    def values(self):
        return {
            "image": np.zeros((48, 48, 3), np.uint8),
            "speed": np.zeros(2, np.float32),
            "gear": 4,
            "pair": (1, np.array([0, 1], np.int8)),
            **self.change,
        }

    def reset(self, *, seed=None, options=None):
        self.resets += 1
        self.seed = seed
        return self.values(), {}

    def step(self, action):
        return self.values(), self.reward, self.terminated, False, self.info


def test_a_good_environment_passes():
    env = Good()
    envs.check(env, seed=3)
    assert (env.resets, env.seed) == (1, 3)
    env.terminated = np.bool_(True)
    env.reward = np.float32(2)
    envs.check(env)
    assert env.resets == 1 + 4  # one at first, and one after each step


@pytest.mark.parametrize("speed", [np.zeros(2), [0.0, 0.0], np.array([7, 9])])
def test_harmless_liberties_pass(speed):
    """Wider numbers, lists, whole numbers, and floats beyond their bounds."""
    env = Good()
    env.change = {"speed": speed}
    envs.check(env)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "the observation with the keys .*'extra'.* but its space has the keys"),
        (
            {"image": np.zeros((48, 48), np.uint8)},
            "'image' with shape .48, 48., but its space says .48, 48, 3.",
        ),
        (
            {"image": np.zeros((48, 48, 3))},
            "'image' as float64, but its space says uint8: convert it with astype",
        ),
        ({"image": np.full((48, 48, 3), 256)}, "'image' with values from 256 to 256, outside its space"),
        ({"speed": np.array([0, np.nan], np.float32)}, "'speed' with NaN or infinite"),
        ({"speed": np.array([0, np.inf], np.float32)}, "'speed' with NaN or infinite"),
        ({"speed": np.zeros(3, np.float32)}, "'speed' with shape .3,., but its space says .2,."),
        ({"speed": None}, "'speed' with shape ..,"),
        ({"gear": 5}, "'gear' with values from 5 to 5, outside its space Discrete.5."),
        ({"gear": 1.0}, "'gear' as float64, but its space says int64"),
        ({"pair": (1,)}, "'pair': return 2 values"),
        ({"pair": (1, np.array([0, 2]))}, "'pair'/1 with values from 0 to 2"),
    ],
)
def test_observations_that_do_not_fit(change, message):
    env = Good()
    env.change = change
    with pytest.raises(envs.TaskError, match=f"^reset returned .*{message}"):
        envs.check(env)


def test_an_observation_that_is_no_dict():
    env = Good()
    env.values = lambda: np.zeros(3)
    with pytest.raises(envs.TaskError, match="a ndarray as observation, but its space is a Dict: return a dict"):
        envs.check(env)


def test_a_missing_key():
    env = Good()
    env.values = lambda: {"image": np.zeros((48, 48, 3), np.uint8)}
    with pytest.raises(envs.TaskError, match="make them the same"):
        envs.check(env)


def test_observations_of_steps_are_looked_at_too():
    class Late(Good):
        def step(self, action):
            self.change = {"gear": 9}
            return super().step(action)

    with pytest.raises(envs.TaskError, match="^step returned the observation 'gear'"):
        envs.check(Late())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("reward", None, "the reward None: return a single finite number"),
        ("reward", np.zeros(1), "return a single finite number"),
        ("reward", float("nan"), "return a single finite number"),
        ("reward", "1", "return a single finite number"),
        ("terminated", 0, "terminated as a int: return True or False"),
        ("terminated", None, "terminated as a NoneType"),
        ("info", None, "a NoneType for info"),
    ],
)
def test_values_of_a_step_that_do_not_fit(name, value, message):
    env = Good()
    setattr(env, name, value)
    with pytest.raises(envs.TaskError, match=message):
        envs.check(env)


def test_the_interface_of_old():
    class OldStep(Good):
        def step(self, action):
            return self.values(), 0.0, False, {}

    class OldReset(Good):
        def reset(self, *, seed=None, options=None):
            return self.values()

    class OldArguments(Good):
        def reset(self):
            return self.values(), {}

    class NoSpaces(Good):
        action_space = None

    with pytest.raises(envs.TaskError, match="step returned a tuple of 4 values: return the five values"):
        envs.check(OldStep())
    with pytest.raises(envs.TaskError, match="reset returned a dict: return the observation and a dict"):
        envs.check(OldReset())
    with pytest.raises(envs.TaskError, match="reset of OldArguments does not take the arguments seed and options"):
        envs.check(gymnasium.wrappers.TimeLimit(OldArguments(), 5))
    with pytest.raises(envs.TaskError, match="has no action_space"):
        envs.check(NoSpaces())


def test_spaces_are_refused_before_a_step_is_tried():
    class Unbounded(Good):
        action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

        def step(self, action):
            raise AssertionError("stepped")

    with pytest.raises(envs.TaskError, match="'action' has no finite bounds"):
        envs.check(Unbounded())


@pytest.mark.parametrize("method", ["reset", "step"])
def test_what_the_environment_raises_is_told_with_its_place(method):
    def broken(self, *arguments, **options):
        return np.array([1.0])[7]

    with pytest.raises(envs.EnvironmentFailed) as caught:
        envs.check(type("Broken", (Good,), {method: broken})())
    line = broken.__code__.co_firstlineno + 1
    expected = f"The environment raised IndexError in {method}: index 7 is out of bounds for axis 0 with size 1"
    assert str(caught.value) == f"{expected} ({__file__}, line {line})."
