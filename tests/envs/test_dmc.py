import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import envs
from envs import dmc

PUBLISHED = """
acrobot_swingup ball_in_cup_catch cartpole_balance cartpole_balance_sparse cartpole_swingup
cartpole_swingup_sparse cheetah_run finger_spin finger_turn_easy finger_turn_hard hopper_hop hopper_stand
pendulum_swingup quadruped_run quadruped_walk reacher_easy reacher_hard walker_run walker_stand walker_walk
"""


def play(env, steps, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(steps):
        action = rng.uniform(-1, 1, env.action_space["action"].shape)
        observation, reward, terminated, truncated, _ = env.step({"action": action})
        rows.append((np.concatenate([*observation.values()], axis=None), reward, terminated, truncated))
        if terminated or truncated:
            rows.append((np.concatenate([*env.reset()[0].values()], axis=None), 0, False, False))
    return rows


def same(rows, others):
    pairs = zip(rows, others, strict=True)
    return all(np.array_equal(row[0], other[0]) and row[1:] == other[1:] for row, other in pairs)


def test_every_published_task_is_known():
    assert set(PUBLISHED.split()) <= set(dmc.names())
    assert dmc._find("ball_in_cup_catch") == dmc._find("cup_catch") == ("ball_in_cup", "catch")
    assert dmc._find("cartpole_balance_sparse") == ("cartpole", "balance_sparse")
    assert dmc._find("point_mass_easy") == ("point_mass", "easy")


def test_loading_prints_nothing():
    done = run("import envs; envs.make('dmc/cheetah_run', seed=0).reset()")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_vectors_under_their_own_keys():
    env = envs.make("dmc/walker_walk", seed=0)
    assert {key: space.shape for key, space in env.observation_space.items()} == {
        "orientations": (14,),
        "height": (1,),  # a scalar in the suite
        "velocity": (9,),
    }
    observation, _ = env.reset()
    assert env.observation_space.contains(observation)
    assert all(value.dtype == np.float32 for value in observation.values())
    assert env.action_space["action"] == gymnasium.spaces.Box(-1, 1, (6,), np.float32)
    assert env.repeat == 2
    assert env.notes == []
    env.close()


def test_a_step_is_as_many_frames_as_repeat_and_sums_their_rewards():
    from dm_control import suite

    env = envs.make("dmc/cartpole_balance", seed=3)
    raw = suite.load("cartpole", "balance", task_kwargs={"random": 3})
    observation, _ = env.reset()
    expected = raw.reset()
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 1)):
        assert np.array_equal(observation["position"], expected.observation["position"].astype(np.float32))
        observation, reward, *_ = env.step({"action": action})
        first, expected = raw.step(action), raw.step(action)
        assert reward == first.reward + expected.reward > first.reward


@pytest.mark.parametrize(("repeat", "steps"), [(2, 500), (3, 334)])
def test_an_episode_is_a_thousand_frames_and_truncated(repeat, steps):
    env = envs.make("dmc/cartpole_swingup", seed=0, repeat=repeat)
    env.reset()
    rows = play(env, steps)
    assert [row[2:] for row in rows[:-1]] == [(False, False)] * (steps - 1) + [(False, True)]


def test_a_task_without_limit_is_cut_off_too():
    env = envs.make("dmc/lqr_lqr_2_1", seed=0, repeat=10)
    env.reset()
    assert env.action_space["action"].shape == (1,)
    ends = []
    while not any(ends):
        ends = env.step({"action": np.zeros(1)})[2:4]
    assert any(ends)
    assert env.unwrapped._frames <= 1000


def test_the_last_step_of_a_task_without_limit_is_cut_short(monkeypatch):
    env = envs.make("dmc/cartpole_swingup", seed=0, repeat=3)
    monkeypatch.setattr(env.unwrapped._env, "_step_limit", float("inf"))
    # Without a seed, which would load the task anew.
    env.unwrapped.reset()
    ends = [env.unwrapped.step({"action": np.zeros(1)})[2:4] for _ in range(334)]
    assert ends == [(False, False)] * 333 + [(False, True)]
    assert env.unwrapped._frames == 1000


def test_an_end_with_discount_zero_terminates(monkeypatch):
    env = envs.make("dmc/cartpole_swingup", seed=0)
    env.reset()
    monkeypatch.setattr(env.unwrapped._env.task, "get_termination", lambda physics: 0.0)
    assert env.step({"action": np.zeros(1)})[2:4] == (True, False)
    assert env.unwrapped._frames == 1


def test_an_end_with_discount_one_truncates(monkeypatch):
    env = envs.make("dmc/cartpole_swingup", seed=0)
    env.reset()
    monkeypatch.setattr(env.unwrapped._env.task, "get_termination", lambda physics: 1.0)
    assert env.step({"action": np.zeros(1)})[2:4] == (False, True)


def test_actions_reach_uneven_bounds_and_are_clipped():
    env = envs.make("dmc/quadruped_walk", seed=0)
    env.reset()
    assert "mapped from [-1, 1]" in env.notes[0]
    env.step({"action": np.full(12, 5.0)})
    assert env.unwrapped._actions[-1].tolist() == [1, 1.1, 0.8] * 4
    env.step({"action": np.full(12, -1.0)})
    assert env.unwrapped._actions[-1].tolist() == [-1, -1, -0.8] * 4


def test_a_seed_determines_everything():
    one, other, third = (envs.make("dmc/reacher_hard", seed=seed) for seed in (1, 1, 2))
    for env in (one, other, third):
        env.reset()
    rows = play(one, 20)
    assert same(rows, play(other, 20))
    assert not same(rows, play(third, 20))
    one.reset(seed=1)
    assert same(rows, play(one, 20))
    one.reset()
    assert not same(rows, play(one, 20))


@pytest.mark.parametrize("task", ["cartpole_swingup", "reacher_hard", "point_mass_hard", "lqr_lqr_2_1", "finger_spin"])
def test_a_saved_state_goes_on_exactly(task):
    """Reacher and point_mass randomise their models in each episode, lqr at loading."""
    env, other = envs.make(f"dmc/{task}", seed=1), envs.make(f"dmc/{task}", seed=2)
    env.reset(), env.reset(), other.reset()
    play(env, 30, seed=8)
    state = env.get_state()
    other.set_state(state)
    rows = play(env, 480)
    assert any(np.any(row[2:]) for row in rows)  # so that the next episode is compared too
    assert same(rows, play(other, 480))
    env.set_state(state)
    assert same(rows, play(env, 480))


def test_a_state_saved_before_the_first_reset():
    env, other = envs.make("dmc/cartpole_swingup"), envs.make("dmc/cartpole_swingup")
    other.set_state(env.get_state())
    env.reset(), other.reset()
    assert same(play(env, 3), play(other, 3))


def test_images(gl):
    env = envs.make("dmc_vision/cup_catch", seed=0)
    observation, _ = env.reset()
    assert observation.keys() == env.observation_space.keys() == {"image"}
    image = observation["image"]
    assert image.shape == env.observation_space["image"].shape == (64, 64, 3)
    assert image.dtype == np.uint8 and image.std() > 5
    kept = image.copy()
    for _ in range(5):
        observation, *_ = env.step({"action": np.ones(2)})
    assert np.array_equal(image, kept) and not np.array_equal(observation["image"], image)
    assert env.repeat == 2
    env.close()


@pytest.mark.parametrize(("task", "camera"), [("quadruped_walk", 2), ("walker_walk", 0)])
def test_the_camera(gl, task, camera):
    env = envs.make(f"dmc_vision/{task}", seed=0, size=48)
    image = env.reset()[0]["image"]
    physics = env.unwrapped._env.physics
    assert np.array_equal(image, physics.render(48, 48, camera_id=camera))
    assert not np.array_equal(image, physics.render(48, 48, camera_id=1))
    env.close()


def test_images_go_on_exactly(gl):
    env, other = (envs.make("dmc_vision/reacher_easy", seed=seed) for seed in (1, 2))
    env.reset(), other.reset()
    play(env, 5)
    other.set_state(env.get_state())
    assert same(play(env, 5), play(other, 5))
    env.close(), other.close()


def run(code, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"} | variables
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_a_renderer_that_works_is_chosen_before_the_import(gl):
    code = "import os, envs; envs.make('dmc/cartpole_swingup'); print(os.environ['MUJOCO_GL'])"
    done = run(code)
    assert done.stdout.strip() in dmc.RENDERERS, done.stderr


def test_the_user_chooses_the_renderer():
    done = run("import os, envs; envs.make('dmc/cartpole_swingup'); print(os.environ['MUJOCO_GL'])", MUJOCO_GL="off")
    assert done.stdout.strip() == "off", done.stderr


def test_no_renderer_is_told_in_plain_words():
    code = (
        "import envs, envs.dmc as dmc; dmc._renders = lambda renderer: False\n"
        "try: envs.make('dmc_vision/cartpole_swingup')\n"
        "except envs.TaskError as error: print(error)"
    )
    assert "libegl1 libgl1-mesa-dri libosmesa6" in run(code).stdout
    code = code.replace("dmc._renders = lambda renderer: False", "pass")
    assert "libegl1 libgl1-mesa-dri libosmesa6" in run(code, MUJOCO_GL="off").stdout
    assert "MUJOCO_GL=nonsense" in run(code, MUJOCO_GL="nonsense").stdout
