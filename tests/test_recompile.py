"""Each function is compiled once, before the first step, and never again. Dynamo decides that; no code is generated."""

from functools import partial

import pytest
import tiny
import torch

from dreamer.agent import Agent
from dreamer.loop import train
from dreamer.machine import why_not_compile
from dreamer.rssm import STEPS

pytestmark = pytest.mark.skipif(bool(why_not_compile(torch.device("cpu"))), reason="nothing to compile with")


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Traced, guarded, and run as it is; functions of other agents are forgotten, which would count as well."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch.compiler.reset()


def a_run(count):
    return tiny.tiny_run("ratio=2", f"replay.length={2 * STEPS}", envs=count, frames=60 * count)


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_training(count):
    config, agent, vector, replay, counters = a_run(count)
    agent.compile()
    agent.warm_up(replay.blank(config.replay.batch), count)
    assert graphs() == len(agent._work())
    train(config, agent, vector, replay, counters, [tiny.Silent()], tiny.Unsaved(), tiny.never)
    assert counters.updates > 3 and graphs() == len(agent._work())


def test_what_is_laid_out_in_another_way_is_found_out(monkeypatch):
    """With one environment, a view of a batch has the strides of the batch."""

    def seen(self, batch, environments):
        return {key: value[:1, 0] for key, value in batch.observation.items()}

    monkeypatch.setattr(Agent, "_seen", seen)
    config, agent, vector, replay, counters = a_run(1)
    agent.compile()
    agent.warm_up(replay.blank(config.replay.batch), 1)
    with pytest.raises(torch._dynamo.exc.RecompileError, match="stride"):
        train(config, agent, vector, replay, counters, [tiny.Silent()], tiny.Unsaved(), tiny.never)
