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
    agent, _ = recall.learn(seed=0, rows=250)  # by when returns are far enough apart to be scaled
    return torch.nn.utils.parameters_to_vector(agent.parameters)


@pytest.mark.parametrize("broken", [None, *recall.BREAKS])
def test_what_the_gate_was_tried_with_still_breaks_something(begun, broken):
    with recall.BREAKS[broken]() if broken else contextlib.nullcontext():
        assert torch.equal(begin(), begun) == (broken is None)


@pytest.mark.parametrize("task", recall.TRIALS)
def test_it_learns(task):
    found, passes = recall.TRIALS[task].run(seed=0)
    assert passes, found
