import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from dreamer.acting import Memory
from dreamer.errors import UserMistake
from dreamer.rssm import State
from dreamer.scoring import Scores, evaluate


class Script:
    """Environments whose episodes are lists of rewards, and an agent that notes what it is asked."""

    def __init__(self, *streams):
        self.streams = [list(episodes) for episodes in streams]
        self.where = [None] * len(streams)
        self.action_spec = SimpleNamespace(to_environment=lambda action: action)
        self.calls, self.asked, self.given = 0, [], []

    def __len__(self):
        return len(self.streams)

    def step(self, actions):
        self.given.append(actions.tolist())
        self.calls += 1
        rewards, first, last = [], [], []
        for i, episodes in enumerate(self.streams):
            if self.where[i] is None:
                self.where[i] = 0
                rewards.append(0.0)
            else:
                rewards.append(episodes[0][self.where[i]])
                self.where[i] += 1
            first.append(self.where[i] == 0)
            last.append(self.where[i] == len(episodes[0]))
            if last[-1]:
                # The last one goes on and on.
                self.where[i] = None
                self.streams[i] = episodes[1:] or episodes
        return SimpleNamespace(
            observation={"call": np.full((len(self), 1), self.calls, np.float32)},
            reward=np.array(rewards, np.float32),
            is_first=np.array(first),
            is_last=np.array(last),
            is_terminal=np.array(last),
        )

    def render(self, index):
        return None

    def start(self, count):
        return self.memory(count, 0)

    def memory(self, count, number):
        return Memory(
            State(torch.full((count, 2), float(number)), torch.zeros(count, 1, 2)), torch.full((count, 1), number)
        )

    def act(self, observation, is_first, is_last, memory, greedy=False):
        assert int(observation["call"][0, 0]) == self.calls and int(memory.action[0, 0]) == self.calls - 1
        self.asked.append((is_first.tolist(), is_last.tolist(), greedy))
        return self.memory(len(self), self.calls)


def test_scores_and_lengths_of_one_environment():
    world = Script([[1, 2, 3], [10], [0.5, -1], [100, 100]])
    result = evaluate(world, world, episodes=3)
    assert result == Scores((6.0, 10.0, -0.5), (3, 1, 2))
    assert world.calls == 4 + 2 + 3
    assert world.given == [[[n]] for n in range(9)]
    assert world.asked[:5] == [
        ([True], [False], False),
        ([False], [False], False),
        ([False], [False], False),
        ([False], [True], False),
        ([True], [False], False),
    ]


def test_the_greedy_wish_reaches_the_agent():
    world = Script([[1]])
    evaluate(world, world, 2, greedy=True)
    assert {greedy for *_, greedy in world.asked} == {True}


def test_each_environment_plays_its_share_so_that_short_episodes_do_not_crowd_out_long_ones():
    # Whoever takes the first five ends sees only the short ones.
    short, long = [[1.0]] * 40, [[1.0] * 30] * 4
    world = Script(short, long)
    result = evaluate(world, world, 5)
    assert result.scores == (1, 1, 1, 30, 30)
    assert result.lengths == (1, 1, 1, 30, 30)


@pytest.mark.parametrize(
    ("episodes", "environments", "shares"), [(1, 1, [1]), (2, 4, [1, 1]), (7, 3, [3, 2, 2]), (6, 3, [2, 2, 2])]
)
def test_shares(episodes, environments, shares):
    # The score says which environment it was.
    world = Script(*([[float(name)]] for name in range(environments)))
    result = evaluate(world, world, episodes)
    assert result.scores == tuple(float(name) for name, share in enumerate(shares) for _ in range(share))


def test_nothing_to_play_is_a_plain_error():
    world = Script([[1]])
    with pytest.raises(UserMistake, match="give 1 or more"):
        evaluate(world, world, 0)


def test_an_agent_is_scored_on_whole_episodes_and_stays_as_it_is():
    config = tiny.tiny_config(envs=2)
    vector = tiny.counting_vector(2)
    agent = tiny.tiny_agent(config, vector)
    before = [p.clone() for p in agent.parameters]
    result = evaluate(agent, vector, 8)
    # Episodes of a counting environment are 3, 5, 1 and 2 steps long, again and again.
    assert result.lengths == (3, 5, 1, 2) * 2
    assert all(length <= score <= 4 * length for score, length in zip(result.scores, result.lengths, strict=True))
    assert all(torch.equal(p, old) for p, old in zip(agent.parameters, before, strict=True))


def test_greedy_play_does_not_depend_on_the_generator():
    def play(seed, greedy):
        config = tiny.tiny_config("model.stoch=1", "model.classes=1")  # the latents' sampling aside
        vector = tiny.counting_vector(1, episodes=((20, True),))
        agent = tiny.tiny_agent(config, vector)
        agent.acting.generator.manual_seed(seed)
        return evaluate(agent, vector, 2, greedy)

    assert play(1, True) == play(2, True)
    assert play(1, False) == play(1, False) != play(2, False)


# Statistics ----------------------------------------------------------------------------------------------


def test_mean_and_standard_deviation():
    scores = Scores((1.0, 2.0, 6.0), (1, 1, 1))
    assert scores.mean == 3
    assert scores.std == pytest.approx(7**0.5)  # (4 + 1 + 9) / (3 - 1)
    assert Scores((5.0,), (1,)).std == 0


def test_the_interval_holds_the_mean_and_narrows():
    values = np.random.default_rng(1).normal(50, 10, 400)
    few, many = Scores(tuple(values[:20]), (1,) * 20), Scores(tuple(values), (1,) * 400)
    for scores in (few, many):
        low, high = scores.interval()
        assert low < scores.mean < high
        error = scores.std / len(scores.scores) ** 0.5
        assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
        wide = scores.interval(0.99)
        assert wide[0] < low and high < wide[1]
    assert few.interval() == few.interval()


def test_the_interval_of_equal_or_single_scores():
    assert Scores((5.0,), (1,)).interval() == (5, 5)
    assert Scores((2.0,) * 7, (1,) * 7).interval() == (2, 2)


def test_the_interval_of_two_scores_is_of_their_means():
    # A quarter of the resamples each is (0, 0) and (10, 10).
    assert Scores((0.0, 10.0), (1, 1)).interval() == (0, 10)
    assert Scores((0.0, 10.0), (1, 1)).interval(0.4) == (5, 5)


def test_json_has_the_mean_at_its_top():
    scores = Scores((1.0, 2.0, 6.0), (4, 5, 6))
    text = json.dumps(scores.to_json())
    assert text.startswith('{"mean": 3.0, "std": 2.6')
    data = json.loads(text)
    assert data["scores"] == [1, 2, 6] and data["lengths"] == [4, 5, 6]
    assert data["interval_95"] == list(scores.interval())
