"""The gate: a whole agent learns what none does in which something is broken."""

import contextlib

import pytest
import recall
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """For products as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def begun():
    return begin()


def begin():
    """All parameters after a few updates."""
    agent, _ = recall.learn(seed=0, rows=200)
    return torch.nn.utils.parameters_to_vector(agent.parameters)


@pytest.mark.parametrize("broken", [None, *recall.BREAKS])
def test_what_the_gate_was_tried_with_still_breaks_something(begun, broken):
    with recall.BREAKS[broken]() if broken else contextlib.nullcontext():
        assert torch.equal(begin(), begun) == (broken is None)


def test_it_learns_to_remember():
    agent, vector = recall.learn(seed=0, rows=1500)
    assert recall.score(agent, vector) > 85


def test_it_stays_as_random_as_the_return_scale_leaves_it():
    agent, vector = recall.learn(seed=0, rows=1000, settings=recall.TASTE, task=recall.Taste)
    found, right = recall.log_odds(agent, vector)
    # 0.7 to 1.2 over three seeds; 5 where returns are not scaled, below 0 where actions are shifted.
    assert 0.8 < right < 1.2 and found == pytest.approx(right, abs=0.5)


def test_it_cares_for_what_may_never_come_as_much_as_its_chance_is():
    with recall.blind():
        agent, _ = recall.learn(seed=0, rows=500, settings=recall.ENCORE, task=recall.Encore)
        assert recall.first_share(agent) > 0.9
