"""Episodes as they were played, and the world model stepped on its own."""

import numpy as np
import pytest
import tiny
import torch

from dreamer import distributions as dist
from dreamer.dreams.dream import Dream, record
from dreamer.rssm import State


@pytest.fixture(scope="module")
def agent():
    _, agent, *_ = tiny.tiny_run()
    return agent


@pytest.fixture
def state(agent):
    torch.manual_seed(0)
    model = agent.config.model
    classes = torch.randint(model.classes, (3, model.stoch))
    return State(torch.randn(3, model.deter).tanh(), torch.nn.functional.one_hot(classes, model.classes).float())


# Real episodes -------------------------------------------------------------------------------------------


def test_episodes_are_kept_as_they_were_played(agent):
    episodes = record(agent, tiny.counting_vector(2), 5)
    # Each environment has episodes of 3, 5 and 1 steps, of which the second is cut; the first one plays three.
    assert [len(episode) for episode in episodes] == [4, 6, 2, 4, 6]
    assert [episode.is_terminal for episode in episodes] == [True, False, True, True, False]
    assert all(episode.is_over for episode in episodes)
    assert episodes[0].goes_on.tolist() == [1, 1, 1, 0] and episodes[1].goes_on.tolist() == [1] * 6
    for number, episode in enumerate(episodes):
        where = episode.observation["where"]
        assert (where[:, 0] == (number >= 3)).all() and where[:, 3].tolist() == list(range(len(episode)))
        # The action chosen at a row is the one that led to the next.
        act = episode.action[:, :4].argmax(-1).numpy()
        assert np.array_equal(where[1:, 4], act[:-1])
        np.testing.assert_allclose(where[1:, 5:], episode.action[:-1, 4:].clamp(-1, 1), atol=1e-6)
        assert episode.reward[0] == 0 and np.array_equal(episode.reward[1:], 1 + act[:-1])
        assert (episode.action[-1] == 0).all()
        assert episode.state.deter.shape == (len(episode), 16) and episode.state.stoch.shape == (len(episode), 2, 3)


def test_the_states_are_those_that_the_agent_acted_by(agent):
    (episode,) = record(agent, tiny.counting_vector(1), 1)
    dream = Dream(agent)
    rssm = agent.world_model.rssm
    # The deterministic part of a row follows from the row before and its action, whatever was sampled.
    for row in range(len(episode) - 1):
        before = State(episode.state.deter[row : row + 1], episode.state.stoch[row : row + 1])
        after = dream.step(before, episode.action[row : row + 1])
        torch.testing.assert_close(after.deter[0], episode.state.deter[row + 1], rtol=1e-5, atol=1e-6)
    assert (episode.state.stoch.sum(-1) == 1).all() and rssm.config.stoch == 2


def test_a_long_episode_is_watched_for_a_while(agent):
    first, second = record(agent, tiny.counting_vector(1), 2, longest=3)
    assert len(first) == len(second) == 3 and not first.is_over and not first.is_terminal
    assert second.observation["where"][:, 2].tolist() == [1, 1, 1]  # the next episode, not the rest of the first
    assert first.goes_on.tolist() == [1, 1, 1]


# Dreams --------------------------------------------------------------------------------------------------


def test_a_step_is_that_of_imagination(agent, state):
    action = torch.randn(3, agent.action_spec.width)
    uniform = torch.rand(3, 2, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = agent.world_model.rssm.imagine_step(agent.world_model.rssm.recurrence(), state, action, uniform)
    found = Dream(agent, seed=5).step(state, action)
    assert torch.equal(found.deter, expected.deter) and torch.equal(found.stoch, expected.stoch)


def test_following_actions_is_stepping(agent, state):
    actions = torch.randn(4, 3, agent.action_spec.width)
    found = Dream(agent, seed=2).follow(state, actions)
    dream = Dream(agent, seed=2)
    for step, action in enumerate(actions):
        state = dream.step(state, action)
        assert torch.equal(found.deter[step], state.deter) and torch.equal(found.stoch[step], state.stoch)


def test_the_policy_acts_by_what_it_dreams(agent, state):
    dream, same = Dream(agent, seed=3), Dream(agent, seed=3)
    found = dream.live(state, 3)
    for step in range(3):
        state = same.step(state, same.act(state))
        assert torch.equal(found.deter[step], state.deter)


def test_what_is_read_off_a_state(agent, state):
    dream, model = Dream(agent), agent.world_model
    moment = dream.read(state)
    feature = model.rssm.feature(state)
    with torch.no_grad():
        reward, continuation = model.outcome(feature)
        value = agent.actor_critic.evaluate(feature)[1]
        seen = model.decoder.predict(model.decoder(feature))
    assert torch.equal(moment.reward, reward) and torch.equal(moment.value, value)
    assert torch.equal(moment.observation["where"], seen["where"])
    torch.testing.assert_close(moment.goes_on, (continuation * 333 / 332).clamp(max=1))


def test_certainty_to_go_on_is_one_and_no_more(agent, state, monkeypatch):
    monkeypatch.setattr(agent.world_model.continuation.out.bias, "data", torch.tensor([50.0]))
    assert Dream(agent).read(state).goes_on.tolist() == [1, 1, 1]


def test_prior_and_posterior(agent):
    (episode,) = record(agent, tiny.counting_vector(1), 1)
    dream, rssm = Dream(agent), agent.world_model.rssm
    observation = {key: torch.from_numpy(value) for key, value in episode.observation.items()}
    with torch.no_grad():
        assert torch.equal(dream.prior(episode.state), dist.mixed_probs(rssm.prior_logits(episode.state.deter)))
        keep = torch.ones(1, 1, dtype=torch.bool)
        before = State(episode.state.deter[:1], episode.state.stoch[:1])
        tokens = rssm.embed_tokens(agent.world_model.encoder({key: x[1:2] for key, x in observation.items()}))
        action = rssm.embed_action(episode.action[:1])
        _, logits, _ = rssm.observe_step(rssm.recurrence(), before, action, tokens, keep, torch.zeros(1, 2))
    found = dream.posterior(episode.state, observation)
    torch.testing.assert_close(found[1], dist.mixed_probs(logits)[0], rtol=1e-5, atol=1e-6)
