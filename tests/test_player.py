"""A trained agent in other people's code, and the published scores."""

import numpy as np
import pytest
import tiny
import torch

import dreamer
import envs
from dreamer.agent import Agent
from dreamer.checkpoint import RunFolder
from dreamer.errors import UserMistake
from dreamer.player import Player
from dreamer.results.published import curve, expectation, human_normalized, passes_zero, short
from dreamer.spaces import ObservationSpec


@pytest.fixture(scope="module")
def player() -> Player:
    return Player(tiny.tiny_agent(tiny.tiny_config(), envs.make("gym/CartPole-v1")), "gym/CartPole-v1")


def test_an_episode_with_the_environment_of_the_run(player):
    env = envs.make(player.task, seed=0)
    observation, state, steps, over = env.reset()[0], None, 0, False
    while not over:
        action, state = player.act(observation, state)
        observation, _, terminated, truncated, _ = env.step(action)
        steps, over = steps + 1, terminated or truncated
    assert steps >= 8  # the pole takes so long to fall


def test_another_action_than_the_one_chosen_is_remembered(player):
    observation = envs.make(player.task, seed=0).reset()[0]
    action, state = player.act(observation)
    assert torch.equal(player.instead(action, state).action, state.action)
    other = player.instead({"action": 1 - action["action"]}, state)
    assert torch.equal(other.action, 1 - state.action) and torch.equal(other.state.deter, state.state.deter)
    two = player.act({key: np.stack([value] * 2) for key, value in observation.items()})[1]
    assert player.instead(np.array([0, 1]), two).action.tolist() == [[1, 0], [0, 1]]
    with pytest.raises(UserMistake, match="the action 'action' is 2; give numbers from 0 to 1$"):
        player.instead(2, state)


def test_many_at_once_get_an_action_each(player):
    observation = {"vector": np.zeros((3, 4), np.float32)}
    action, state = player.act(observation)
    assert action["action"].shape == (3,) and state.state.deter.shape[0] == 3
    action, state = player.act(observation, state)
    assert action["action"].shape == (3,)


def test_the_state_carries_memory_and_none_begins_anew(player):
    observation = {"vector": np.full(4, 0.5, np.float32)}
    _, first = player.act(observation)
    _, second = player.act(observation, first)
    _, again = player.act(observation)
    assert torch.equal(first.state.deter, again.state.deter)
    assert not torch.equal(first.state.deter, second.state.deter)


def test_a_wrong_observation_is_named(player):
    with pytest.raises(UserMistake, match="has no 'vector'"):
        player.act({"image": np.zeros(4)})
    with pytest.raises(UserMistake, match=r"has shape \(5,\); this agent was trained on \(4,\)"):
        player.act({"vector": np.zeros((2, 5))})


def test_one_of_many_may_begin_anew(player):
    observation = {"vector": np.stack([np.full(4, 0.5, np.float32)] * 2)}
    _, fresh = player.act(observation)
    _, state = player.act(observation, fresh)
    _, state = player.act(observation, state, is_first=[True, False])
    assert torch.equal(state.state.deter[0], fresh.state.deter[0])
    assert not torch.equal(state.state.deter[1], fresh.state.deter[1])


def test_what_does_not_fit_together_is_said(player):
    one, two = ({"vector": np.zeros((count, 4), np.float32)} for count in (1, 2))
    _, state = player.act(two)
    with pytest.raises(UserMistake, match="together: 1 observations 'vector', 1 is_first, 2 states; give as many of"):
        player.act(one, state)
    for wrong in ([True], [True, False, False]):
        with pytest.raises(UserMistake, match=f"2 observations 'vector', {len(wrong)} is_first, 2 states"):
            player.act(two, state, is_first=wrong)
    with pytest.raises(UserMistake, match="NaN"):
        player.act({"vector": np.array([0, np.nan, 0, 0])})
    with pytest.raises(UserMistake, match="the observation is a ndarray; give a dictionary with vector"):
        player.act(np.zeros(4))


def test_classes_that_there_are_not():
    spec = ObservationSpec(images={}, floats={}, integers={"card": (3,)})
    _, agent, *_ = tiny.tiny_run()
    agent = Agent(agent.config, spec, agent.action_spec, agent.device, agent.dtype)
    player = Player(agent, "test/cards")
    for card in (3, -1):
        with pytest.raises(UserMistake, match=f"'card' has numbers from {card} to {card}; .* trained on 0 to 2"):
            player.act({"card": np.array([card])})
    _, memory = player.act({"card": np.array([2])})
    with pytest.raises(UserMistake, match="the state is a State; give what the last call has returned"):
        player.act({"card": np.array([2])}, memory.state)


def test_load_of_nothing_is_a_sentence(tmp_path):
    with pytest.raises(UserMistake, match="holds no run"):
        dreamer.load(tmp_path)
    assert not RunFolder(tmp_path).has_checkpoint


# Published scores, copied from the tables of the paper's repository ------------------------------------


def test_published_curves():
    bands = curve("dmc/cartpole_swingup")
    assert [band.frames for band in bands][:2] == [50_000, 100_000]
    at_100k = bands[1]
    assert (round(at_100k.mean), round(at_100k.std), at_100k.seeds) == (516, 16, 5)
    assert curve("dmc/cup_catch") == curve("dmc/ball_in_cup_catch") != []
    assert curve("gym/CartPole-v1") == [] and expectation("gym/CartPole-v1") is None


def test_pong_passes_zero_at_about_three_million_frames():
    # -7.16 at 2 million, 9.76 at 4 million: 2 + 2 * 7.16 / 16.92.
    assert passes_zero("atari/pong") == 2_846_336
    assert passes_zero("atari100k/pong") is None  # it ends below
    assert "0 is passed at about 2.8 million" in expectation("atari/pong")


def test_human_normalized():
    # Random play scores -20.7 in Pong, a human 14.6.
    assert human_normalized("atari/pong", -20.7) == 0
    assert human_normalized("atari100k/pong", 14.6) == pytest.approx(1)
    assert human_normalized("dmc/walker_walk", 500) is None


@pytest.mark.parametrize(
    ("frames", "text"),
    [(999, "999"), (50_000, "50 thousand"), (2_846_336, "2.8 million"), (200_000_000, "200 million")],
)
def test_short(frames, text):
    assert short(frames) == text
