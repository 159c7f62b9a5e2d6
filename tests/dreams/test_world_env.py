"""The dream as an environment."""

import re
import warnings

import gymnasium
import numpy as np
import pytest
import tiny
import torch
from gymnasium.utils.env_checker import check_env

import dreamer
import envs
from dreamer.checkpoint import RunFolder
from dreamer.dreams.world_env import real_states
from dreamer.errors import UserMistake
from dreamer.rssm import State


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    return tiny.trained_run(tmp_path_factory.mktemp("runs") / "cartpole", "gym/CartPole-v1", 80, "--envs", "2")


@pytest.fixture(scope="module")
def signals(tmp_path_factory):
    return tiny.trained_run(tmp_path_factory.mktemp("runs") / "signals", "mixed:Signals", 40)


@pytest.mark.parametrize("observation", ["decoded", "latent"])
def test_gymnasium_s_own_check(cartpole, signals, observation):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*infinity.*")  # nothing bounds what a vector may hold
        for run, mode in ((signals, "rgb_array"), (signals, None), (cartpole, None)):
            options = {"run": run, "observation": observation, "device": "cpu", "render_mode": mode}
            if mode is None:
                warnings.filterwarnings("ignore", message=".*render_mode.*|.*render modes.*|.*render fps.*")
            check_env(gymnasium.make("dreamer/WorldModel-v0", **options).unwrapped)


def test_the_spaces_are_those_of_the_task(cartpole, signals):
    dream, real = dreamer.WorldModelEnv(cartpole), envs.make("gym/CartPole-v1")
    assert dream.observation_space.shape == real.observation_space["vector"].shape
    assert dream.action_space == real.action_space["action"]
    dream, real = dreamer.WorldModelEnv(signals), envs.make("mixed:Signals")
    assert dream.observation_space == real.observation_space
    assert dream.action_space == real.action_space["action"]


def test_the_real_one_has_the_same_spaces_where_its_own_are_bounded(tmp_path, monkeypatch):
    run, bounded = tiny.trained_run(tmp_path / "run", "gym/CartPole-v1", 30), envs.make("gym/CartPole-v1")
    bounded.observation_space = gymnasium.spaces.Dict({"vector": gymnasium.spaces.Box(-9, 9, (4,), np.float32)})
    env = dreamer.WorldModelEnv(run)
    monkeypatch.setattr(envs, "make", lambda task, **options: bounded)
    assert env.real().observation_space == env.observation_space


def test_a_run_that_goes_on_takes_no_dreams_away(tmp_path):
    """Its checkpoints remove the files of those before."""
    run = tiny.trained_run(tmp_path / "run", "gym/CartPole-v1", 30)
    many = dreamer.WorldModelVectorEnv(run, num_envs=3, device="cpu")
    for path in (run / "replay").iterdir():
        path.unlink()
    assert many.reset(seed=0)[0].shape == (3, 4)


def test_gymnasium_finds_it(cartpole):
    env = gymnasium.make("dreamer/WorldModel-v0", run=cartpole, horizon=3)
    env.unwrapped._dreams.agent.world_model.continuation.out.bias.data.fill_(50.0)
    env.reset(seed=1)
    ends = [env.step(0)[2:4] for _ in range(3)]
    assert [any(end) for end in ends] == [False, False, True]
    many = gymnasium.make_vec(
        "dreamer/WorldModel-v0", 7, vectorization_mode="vector_entry_point", run=cartpole, observation="latent"
    )
    assert many.reset(seed=1)[0].shape == (7, 16 + 2 * 3)


def test_a_dream_steps_by_the_model(cartpole):
    env = dreamer.WorldModelEnv(cartpole, observation="latent", device="cpu")
    env.reset(seed=3)
    agent, state = env._dreams.agent, env._state
    observation, reward, *_ = env.step(1)
    with torch.no_grad():
        rssm = agent.world_model.rssm
        after = rssm.imagine_step(rssm.recurrence(), state, torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2))
        expected = agent.world_model.outcome(rssm.feature(env._state))[0]
    np.testing.assert_allclose(observation[:16], after.deter[0], rtol=1e-5, atol=1e-6)
    assert reward == pytest.approx(float(expected[0]), abs=1e-6)


def test_it_ends_where_the_continue_head_says(cartpole):
    env = dreamer.WorldModelEnv(cartpole, horizon=5, device="cpu")
    bias = env._dreams.agent.world_model.continuation.out.bias.data
    env.reset(seed=0)
    for chance, ends in ((50.0, False), (-50.0, True)):
        bias.fill_(chance)
        assert env.step(0)[2] is ends


def test_it_ends_as_often_as_the_continue_head_says(cartpole):
    many = dreamer.WorldModelVectorEnv(cartpole, num_envs=4000, observation="latent", device="cpu")
    many.reset(seed=0)
    goes_on = many._dreams.dream.outcome(many._state)[1].mean()
    ended = many._dreams.look(many._state)[2].mean()
    assert 0.2 < goes_on < 0.8 and ended == pytest.approx(1 - float(goes_on), abs=0.04)


def test_dreams_begin_at_a_given_state(cartpole):
    one = dreamer.WorldModelEnv(cartpole, device="cpu", observation="latent")
    many = dreamer.WorldModelVectorEnv(cartpole, num_envs=3, device="cpu", observation="latent")
    first = one.reset(seed=3)[0]
    seen = many.reset(seed=0, options={"state": one.state})[0]
    assert np.array_equal(seen, np.stack([first] * 3))
    many.step(np.array([0, 1, 1]))
    states = many.state
    later = many.reset(options={"state": states})[0]
    assert not np.array_equal(later[0], later[1])  # each at its own
    both = torch.cat([states.deter, states.stoch.flatten(-2)], -1).numpy()
    assert np.array_equal(later, both)
    alone = State(states.deter[1:2], states.stoch[1:2])
    assert np.array_equal(one.reset(options={"state": alone})[0], later[1])


def test_many_begin_after_one_observation(cartpole):
    one = dreamer.WorldModelEnv(cartpole, device="cpu", observation="latent")
    many = dreamer.WorldModelVectorEnv(cartpole, num_envs=2, device="cpu", observation="latent")
    given = {"observation": np.array([0.1, 0, 0.02, 0], np.float32)}
    first, seen = (env.reset(seed=1, options=given)[0] for env in (one, many))
    assert seen.shape == (2, len(first)) and np.array_equal(seen[0], seen[1])
    two = many.reset(seed=1, options={"observation": np.array([[0.1, 0, 0.02, 0], [1, 0, 0.02, 0]], np.float32)})[0]
    assert not np.array_equal(two[0], two[1])
    width = one._dreams.agent.config.model.deter
    assert np.allclose(seen[0][:width], first[:width])  # the rest is a sample


@pytest.mark.parametrize("options", [{"states": 1}, {"state": 1, "observation": 2}])
def test_options_that_are_none(cartpole, options):
    env = dreamer.WorldModelEnv(cartpole, device="cpu")
    with pytest.raises(UserMistake, match="cannot begin with the options .*; give 'state' or 'observation'"):
        env.reset(options=options)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.state  # noqa: B018


def test_states_that_do_not_fit(cartpole):
    many = dreamer.WorldModelVectorEnv(cartpole, num_envs=3, device="cpu")
    many.reset(seed=0)
    two = State(many.state.deter[:2], many.state.stoch[:2])
    for state, named in ((np.zeros(3), "the type ndarray"), (two, r"shapes \(2, ")):
        with pytest.raises(UserMistake, match=f"the state or observation is of {named}.*; give those of 1 or 3: "):
            many.reset(options={"state": state})
    double = State(two.deter[:1].numpy().astype(float), two.stoch[:1].double())
    many.reset(options={"state": double})
    many.step(np.zeros(3, int))


def test_one_of_many_is_the_same_dream(cartpole):
    one = dreamer.WorldModelEnv(cartpole, device="cpu")
    many = dreamer.WorldModelVectorEnv(cartpole, num_envs=1, device="cpu")
    for env in (one, many):  # untrained, it would end at once
        env._dreams.agent.world_model.continuation.out.bias.data.fill_(50.0)
    np.testing.assert_array_equal(one.reset(seed=4)[0], many.reset(seed=4)[0][0])
    for action in (0, 1, 1):
        mine, theirs = one.step(action), many.step(np.array([action]))
        np.testing.assert_array_equal(mine[0], theirs[0][0])
        assert mine[1:4] == (theirs[1][0], theirs[2][0], theirs[3][0])


def test_those_that_ended_begin_anew(cartpole):
    many = dreamer.WorldModelVectorEnv(cartpole, num_envs=64, horizon=2, starts="first", device="cpu")
    bias = many._dreams.agent.world_model.continuation.out.bias.data
    bias.fill_(50.0)
    begun = real_states(RunFolder(cartpole).newest(with_replay=True), many._dreams.agent, first=True)
    many.reset(seed=0)
    actions = np.zeros(64, int)
    assert not many.step(actions)[3].any()
    assert many.step(actions)[3].all()
    _, reward, ended, cut, _ = many.step(actions)
    assert (reward == 0).all() and not ended.any() and not cut.any()
    # Each is one of the states that really began an episode.
    difference = (many._state.deter[:, None] - begun[0][None].float()).abs().sum(-1).min(1).values
    assert (difference == 0).all() and len(begun[0]) >= 2
    assert not many.step(actions)[3].any() and many.step(actions)[3].all()


def test_dreams_begin_at_what_the_run_has_seen(cartpole):
    env = dreamer.WorldModelEnv(cartpole, device="cpu")
    states = real_states(RunFolder(cartpole).newest(with_replay=True), env._dreams.agent)
    # 80 rows, less those that end an episode; two latents of three classes.
    deter, classes = states
    assert 60 < len(deter) < 80 and deter.dtype == torch.float16 and classes.shape == (len(deter), 2)
    seen = {float(env.reset(seed=seed)[0][0]) for seed in range(20)}
    assert len(seen) > 5


def test_a_dream_may_begin_at_a_real_observation(cartpole, signals):
    env = dreamer.WorldModelEnv(cartpole, observation="latent", device="cpu")
    observation = np.array([0.01, 0.02, 0.03, 0.04], np.float32)
    first = env.reset(seed=0, options={"observation": observation})[0]
    player = dreamer.load(cartpole, device="cpu")
    _, memory = player.act({"vector": observation})
    np.testing.assert_allclose(first[:16], memory.state.deter[0], rtol=1e-5, atol=1e-6)
    again = env.reset(seed=0, options={"observation": observation})[0]
    assert np.array_equal(first, again) and set(first[16:]) == {0, 1}
    env = dreamer.WorldModelEnv(signals, device="cpu")
    real, _ = envs.make("mixed:Signals").reset(seed=0)
    assert env.reset(options={"observation": real})[0]["screen"].shape == (48, 48, 1)
    with pytest.raises(UserMistake, match="the observation has no 'dial'"):
        env.reset(options={"observation": {"screen": real["screen"]}})


def test_what_it_sees_can_be_drawn(cartpole, signals):
    env = dreamer.WorldModelEnv(signals, render_mode="rgb_array", device="cpu")
    assert env.render() is None
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (48, 48, 3) and picture.dtype == np.uint8
    many = gymnasium.make_vec(
        "dreamer/WorldModel-v0", 3, vectorization_mode="vector_entry_point", run=signals, render_mode="rgb_array"
    )
    many.reset(seed=0)
    pictures = many.render()
    assert len(pictures) == 3 and all(each.shape == (48, 48, 3) and each.dtype == np.uint8 for each in pictures)
    assert len({each.tobytes() for each in pictures}) > 1
    mute = dreamer.WorldModelEnv(signals, device="cpu")
    mute.reset(seed=0)
    assert mute.render() is None
    with pytest.raises(UserMistake, match="this agent sees no images: leave it out"):
        dreamer.WorldModelEnv(cartpole, render_mode="rgb_array", device="cpu")


def test_the_real_one_has_the_same_spaces(cartpole, signals):
    for run in (cartpole, signals):
        env = dreamer.WorldModelEnv(run, device="cpu")
        real = env.real()
        assert real.action_space == env.action_space
        assert type(real.observation_space) is type(env.observation_space)
        observation, _ = real.reset(seed=0)
        assert real.observation_space.contains(observation)
        observation, reward, *_ = real.step(real.action_space.sample())
        assert real.observation_space.contains(observation) and isinstance(reward, float)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"observation": "pixels"}, "observation='pixels' is not possible; use 'decoded' or 'latent'"),
        ({"starts": "last"}, "starts='last' is not possible; use 'any' or 'first'"),
        ({"render_mode": "human"}, "render_mode='human' is not possible; this agent sees no images: leave it out"),
        ({"device": "tpu"}, "there is no device 'tpu'; give auto, cuda, mps, cpu"),
        ({"horizon": 0}, "horizon=0 is not possible; use a whole number from 1"),
    ],
)
def test_bad_arguments(cartpole, given, named):
    with pytest.raises(UserMistake, match=named):
        dreamer.WorldModelEnv(cartpole, **given)


@pytest.mark.parametrize(
    ("action", "named"),
    [
        (5, "the action 'action' is 5; give numbers from 0 to 1"),
        (0.5, "the action 'action' is 0.5; give numbers from 0 to 1"),
        ([0, 1], "give numbers from 0 to 1 for each of 1 states"),
        (float("nan"), "the action 'action' is nan"),
        ("left", "the action 'action' is 'left'"),
    ],
)
def test_bad_actions(cartpole, action, named):
    env = dreamer.WorldModelEnv(cartpole, device="cpu")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(UserMistake, match=re.escape(named)):
        env.step(action)


def test_nothing_begins_anew_that_has_not_begun(cartpole):
    many = dreamer.WorldModelVectorEnv(cartpole, num_envs=2, device="cpu")
    with pytest.raises(gymnasium.error.ResetNeeded):
        many.restart(np.array([True, False]))


def test_bad_counts_seeds_and_observations(cartpole):
    for count in (0, -1, 1.5, "3"):
        with pytest.raises(UserMistake, match="num_envs=.* is not possible"):
            dreamer.WorldModelVectorEnv(cartpole, num_envs=count, device="cpu")
    with pytest.raises(UserMistake, match="all dreams have one, give a whole number"):
        dreamer.WorldModelVectorEnv(cartpole, num_envs=2, device="cpu").reset(seed=[1, 2])
    with pytest.raises(UserMistake, match=r"is of shapes \(3, .*; give those of 1 or 1: "):
        env = dreamer.WorldModelEnv(cartpole, device="cpu")
        env.reset(options={"observation": np.zeros((3, 4), np.float32)})


def test_bad_runs(tmp_path):
    with pytest.raises(UserMistake, match="holds no run"):
        dreamer.WorldModelEnv(tmp_path)
