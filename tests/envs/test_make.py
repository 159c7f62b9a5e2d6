import inspect
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import envs

OWN = """
import gymnasium
import numpy as np
from gymnasium import spaces

class Counter(gymnasium.Env):
    observation_space = spaces.Box(0, 1000, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, end=7):
        self.end = end

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, np.float32), float(self.count), self.count >= self.end, False, {}

def seeded(seed, size: int = 3):
    env = Counter(size)
    env.given = seed
    return env

def pong():
    import ale_py
    return gymnasium.make("ALE/Pong-v5")

def nothing():
    return None

class Sized(Counter):
    def __init__(self, size):
        super().__init__(size)

def several():
    return gymnasium.make_vec("CartPole-v1", num_envs=2)

NUMBER = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_environment.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import a_package_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("own_environment", None)
    return "own_environment"


def test_importing_is_quick_and_loads_no_engine():
    code = (
        "import gymnasium, sys, time; start = time.perf_counter(); import envs; "
        "print(time.perf_counter() - start); print(envs.PROJECT); "
        "engines = {'ale_py', 'dm_control', 'mujoco', 'torch', 'dreamer'}; "
        "print(sorted(engines & set(sys.modules)))"
    )
    seconds, project, engines = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert float(seconds) < 0.3
    assert project == "dreamer"
    assert engines == "[]"


def test_suites_describe_themselves():
    suites = envs.suites()
    assert list(suites) == ["atari", "atari100k", "dmc", "dmc_vision", "gym"]
    assert suites["atari"].options == {
        "size": 96,
        "grey": True,
        "sticky": 0.25,
        "actions": "all",
        "noops": 30,
        "time_limit_frames": 108_000,
    }
    assert suites["atari100k"].options == {
        "size": 64,
        "grey": False,
        "sticky": 0.0,
        "actions": "minimal",
        "noops": 30,
        "time_limit_frames": 108_000,
    }
    assert suites["dmc"].options == {} and suites["dmc_vision"].options == {"size": 64}
    assert suites["gym"].options == {} and suites["gym"].takes_any_option
    assert not suites["atari"].takes_any_option
    assert [inspect.signature(suite.make).parameters["repeat"].default for suite in suites.values()] == [
        4,
        4,
        2,
        2,
        None,
    ]
    assert "CartPole-v1" in suites["gym"].names() and "ALE/Pong-v5" in suites["gym"].names()
    assert all(suite.name == name and suite.description for name, suite in suites.items())


# Gymnasium's ids


def test_cartpole():
    env = envs.make("gym/CartPole-v1", seed=1)
    assert env.observation_space["vector"].shape == (4,)
    assert env.action_space == spaces.Dict({"action": spaces.Discrete(2)})
    assert env.repeat == 1
    one, _ = env.reset()
    other, _ = gymnasium.make("CartPole-v1").reset(seed=1)
    assert np.array_equal(one["vector"], other)
    assert not env.can_save_state


def test_options_go_to_gymnasium():
    env = envs.make("gym/CartPole-v1", max_episode_steps=5, seed=0)
    env.reset()
    ends = [env.step({"action": i % 2})[2:4] for i in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]
    assert envs.make("gym/FrozenLake-v1", map_name="8x8").observation_space["vector"].nvec.tolist() == [64]


def test_continuous_actions_of_gymnasium():
    env = envs.make("gym/Pendulum-v1")
    assert env.action_space["action"] == spaces.Box(-1, 1, (1,), np.float32)
    assert env.notes == ["Action 'action' is mapped from [-1, 1] to its bounds, [-2, 2]."]


def test_repeat_wraps_and_sums_and_stops_at_an_end():
    env = envs.make("gym/CartPole-v1", repeat=3, seed=0, max_episode_steps=8)
    env.reset()
    results = [env.step({"action": i % 2}) for i in range(3)]
    assert env.repeat == 3
    assert [result[1] for result in results] == [3, 3, 2]
    assert [result[3] for result in results] == [False, False, True]


def test_ale_ids_are_not_repeated_twice():
    env = envs.make("gym/ALE/Pong-v5", seed=0)
    assert env.repeat == 4
    assert "repeats each action for 4 frames" in " ".join(env.notes)
    assert "resized from 210x160 to 208x160" in " ".join(env.notes)
    ale = env.unwrapped.ale
    env.reset()
    env.step({"action": 0})
    assert ale.getEpisodeFrameNumber() == 4
    assert envs.make("gym/ALE/Pong-v5", repeat=4).repeat == 4
    env = envs.make("gym/ALE/Pong-v5", repeat=8, seed=0)
    env.reset()
    env.step({"action": 0})
    assert env.repeat == 8 and env.unwrapped.ale.getEpisodeFrameNumber() == 8
    assert envs.make("gym/ALE/Pong-v5", frameskip=1).repeat == 1
    with pytest.raises(envs.TaskError, match="repeat=2 is not possible: .* 4 frames"):
        envs.make("gym/ALE/Pong-v5", repeat=2)


def test_a_module_that_registers_an_id(own, tmp_path):
    (tmp_path / "own_registration.py").write_text(
        "import gymnasium\ngymnasium.register('Own-v0', 'own_environment:Counter')"
    )
    env = envs.make("gym/own_registration:Own-v0", end=2)
    env.reset()
    assert env.step({"action": 0})[2] is False and env.step({"action": 0})[2] is True


# The user's own


def test_own_class(own):
    env = envs.make(f"{own}:Counter", end=5)
    env.reset()
    rows = [env.step({"action": 1}) for _ in range(5)]
    assert [row[0]["vector"].tolist() for row in rows] == [[1], [2], [3], [4], [5]]
    assert [row[2] for row in rows] == [False] * 4 + [True]
    assert env.repeat == 1


def test_own_factory_gets_the_seed_only_if_it_takes_it(own):
    assert envs.make(f"{own}:seeded", seed=11).unwrapped.given == 11
    assert envs.make(f"{own}:Counter", seed=11).unwrapped.end == 7


def test_own_factory_with_repeat(own):
    env = envs.make(f"{own}:Counter", end=5, repeat=3)
    env.reset()
    assert [env.step({"action": 1})[1:3] for _ in range(2)] == [(6, False), (9, True)]
    assert env.repeat == 3


def test_own_factory_around_something_that_skips_frames(own):
    assert envs.make(f"{own}:pong").repeat == 4


# Mistakes


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (
            "atary/pong",
            {},
            "no suite 'atary'.*atari, atari100k, dmc, dmc_vision, gym.*Did you mean 'atari/pong'",
        ),
        ("pong", {}, "'pong' is no task.*Did you mean 'atari/pong'"),
        ("atari_pong", {}, "Did you mean 'atari/pong'"),
        ("CartPole-v1", {}, "Did you mean 'gym/CartPole-v1'"),
        ("walker_walk", {}, "Did you mean 'dmc/walker_walk'"),
        ("dmc_walker_walk", {}, "Did you mean 'dmc/walker_walk'"),
        ("atari", {}, "'atari' names no task: use atari/NAME"),
        ("gym/", {}, "'gym/' names no task: use gym/NAME"),
        ("", {}, "'' is no task"),
        ("atari/pogn", {}, "no Atari game 'pogn'. Did you mean 'pong'"),
        ("atari/combat", {}, "no Atari game 'combat'"),
        ("dmc/walker_wlak", {}, "no task 'walker_wlak'. Did you mean 'walker_walk'"),
        ("dmc_vision/walker", {}, "no task 'walker'"),
        ("gym/Carpole-v1", {}, "no environment 'Carpole-v1'. Did you mean 'CartPole-v1'"),
        ("gym/CartPole-v9", {}, "no environment 'CartPole-v9'. Did you mean"),
        ("gym/nowhere:X-v0", {}, "module 'nowhere' of 'nowhere:X-v0' is not found"),
        ("gym/LunarLander-v3", {}, "needs a package that is not installed.*box2d"),
        ("gym/CartPole-v1", {"lenght": 3}, "gym/CartPole-v1 has no option 'lenght'"),
        ("gym/CartPole-v1", {"render_mode": "rgb"}, "no render_mode='rgb': use one of human, rgb_array"),
        ("gym/Copy-v0", {}, "Gymnasium has no environment"),
        (
            "atari/pong",
            {"stiky": 0.0},
            "no option 'stiky' .*it has size, grey, sticky.* Did you mean 'sticky'",
        ),
        ("dmc/walker_walk", {"size": 64}, "dmc tasks have no option 'size' .it has none"),
        ("atari/pong", {"size": "96"}, "size='96' is not possible: use a whole number, such as 96"),
        ("atari/pong", {"grey": 1}, "grey=1 is not possible: use True or False"),
        ("atari/pong", {"size": True}, "size=True is not possible"),
        ("atari/pong", {"sticky": "no"}, "sticky='no' is not possible: use a number"),
        ("atari/pong", {"actions": 18}, "actions=18 is not possible: use a text, such as 'all'"),
        ("atari/pong", {"repeat": 0}, "repeat=0 is not possible"),
        ("atari/pong", {"repeat": 2.0}, "repeat=2.0 is not possible"),
        ("atari/pong", {"seed": -1}, "seed=-1 is not possible"),
        ("atari/pong", {"seed": "1"}, "seed='1' is not possible"),
        ("dmc_vision/walker_walk", {"size": 50}, "size=50 is not possible.*size=48"),
    ],
)
def test_mistakes_are_told_in_plain_words(task, options, message):
    with pytest.raises(envs.TaskError, match=message):
        envs.make(task, **options)


def test_a_number_without_a_point_is_good_for_a_real_one():
    assert envs.make("atari/pong", sticky=0).unwrapped.sticky == 0


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("nowhere_at_all:make", {}, "module 'nowhere_at_all' of 'nowhere_at_all:make' is not found in /"),
        ("own_environment.deeper:make", {}, "module 'own_environment.deeper' .* is not found"),
        ("envs.mine:make", {}, "'envs.mine' .* is not found in .* cannot be called envs: dreamer has one"),
        ("own_environment:Conter", {}, "has no 'Conter'. Did you mean 'Counter'"),
        ("own_environment:NUMBER", {}, "is of type int: name a function or class"),
        ("own_environment:Sized", {}, "needs a value for 'size': --set environment.size=VALUE"),
        ("subprocess:getoutput", {"cmd": "true"}, "'subprocess' of 'subprocess:getoutput' comes with Python"),
        ("os.path:join", {}, "'os.path' of 'os.path:join' comes with Python"),
        ("own_environment:", {}, "'own_environment:' is no task"),
        ("own_environment:Counter", {"ned": 3}, "has no option 'ned'. Did you mean 'end'"),
        ("own_environment:nothing", {}, "returned a NoneType: return a gymnasium.Env"),
        ("own_environment:several", {}, "return a gymnasium.Env. Use Vector to step several"),
        (":make", {}, "':make' is no task"),
        (".own_environment:make", {}, "is no task"),
    ],
)
def test_mistakes_with_own_environments(own, task, options, message):
    with pytest.raises(envs.TaskError, match=message):
        envs.make(task, **options)


def test_what_own_code_raises_is_told_with_its_place(own):
    with pytest.raises(envs.EnvironmentFailed, match=r"imported: No module .*a_package_that_is_not_there.*, line \d+"):
        envs.make("own_broken:make")
    with pytest.raises(envs.EnvironmentFailed, match="raised TypeError in step"):
        envs.make(f"{own}:Counter", end="x")


@pytest.mark.parametrize(
    ("package", "task", "message"),
    [
        ("ale_py", "atari/pong", "pip install ale-py"),
        ("dm_control", "dmc/walker_walk", f"pip install {'--no-deps ' * (sys.version_info >= (3, 13))}dm-control"),
    ],
)
def test_a_missing_package_is_named(package, task, message):
    code = (
        f"import sys; sys.modules['{package}'] = None; import envs\n"
        f"try: envs.make('{task}')\n"
        f"except envs.TaskError as error: print(error)"
    )
    assert message in subprocess.check_output([sys.executable, "-c", code], text=True)


@pytest.mark.parametrize("task", ["dmc/walker_wlk", "atari100k/Pong", "nowhere/x", "dmc/"])
def test_names_that_are_none_are_known_before_anything_is_made(task):
    with pytest.raises(envs.TaskError, match="(?i)use |did you mean"):
        envs.check_name(task)


@pytest.mark.parametrize("task", ["dmc/walker_walk", "atari100k/pong", "gym/MyOwn-v3", "my.module:factory"])
def test_names_that_may_be_tasks(task):
    envs.check_name(task)


def test_a_factory_keeps_its_own_seed_where_none_is_given(tmp_path, monkeypatch):
    lines = ["import gymnasium", "def own(seed=7):", "    env = gymnasium.make('CartPole-v1')", "    env.given = seed"]
    (tmp_path / "seeds.py").write_text("\n".join([*lines, "    return env\n"]))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert envs.make("seeds:own").env.given == 7 and envs.make("seeds:own", seed=3).env.given == 3


def test_a_package_that_a_gymnasium_task_lacks_is_named(monkeypatch):
    def make(*given, **options):
        raise ModuleNotFoundError("No module named 'imageio'", name="imageio")

    monkeypatch.setattr(gymnasium, "make", make)
    with pytest.raises(envs.TaskError, match="gym/HalfCheetah-v5 needs the package imageio: pip install imageio"):
        envs.make("gym/HalfCheetah-v5")
