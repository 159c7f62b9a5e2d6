"""The gate: a whole agent learns what none does in which something is broken."""

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


def test_it_learns_to_remember():
    agent, vector = recall.learn(seed=0, rows=2000)
    assert recall.score(agent, vector) > 85


def test_it_stays_as_random_as_the_return_scale_leaves_it():
    agent, vector = recall.learn(seed=0, rows=1000, settings=recall.TASTE, task=recall.Taste)
    found, right = recall.log_odds(agent, vector)
    # 0.8 to 1.1 over three seeds; 5 where returns are not scaled, below 0 where the continue or the action is wrong.
    assert 0.8 < right < 1.2 and found == pytest.approx(right, abs=0.5)
