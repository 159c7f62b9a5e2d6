"""One small problem, worked through by the reference implementation, reproduced by the real modules.

`data/golden_vector.npz` holds parameters, a batch, every intermediate result, every loss, all gradients, and the
parameters after three updates, computed in float32 by the author's implementation. Eager and compiled code have to
reproduce it. Sampling is deterministic there:
latents take the mode, actions are mean + 0.5 standard deviations.
"""

from dataclasses import replace

import pytest
import torch
from golden import FOLDER, LOSSES, MEANS, Golden, close, mode, parameters, unreduced_losses, vectors

from dreamer import distributions as dist
from dreamer.agent import Agent
from dreamer.config import make_config
from dreamer.imagination import Noise
from dreamer.machine import why_not_compile
from dreamer.replay import Batch
from dreamer.spaces import ActionPart, ActionSpec, ObservationSpec

DETER, STOCH, CLASSES = 64, 4, 5
GOLDEN = Golden(FOLDER / "golden_vector.npz", STOCH * CLASSES, vectors(("position", "velocity")))
LOSSES = LOSSES | {"decoder/position": "position", "decoder/velocity": "velocity"}


def make_agent(device: str = "cpu") -> Agent:
    config = make_config("golden/vector", settings=["optimizer.learning_rate=1e-3", "optimizer.warmup=2"])
    model = replace(config.model, deter=DETER, hidden=16, stoch=STOCH, classes=CLASSES, units=16)
    config = replace(config, model=model, behavior=replace(config.behavior, horizon=5))
    observation = ObservationSpec(images={}, floats={"position": 5, "velocity": 3}, integers={})
    agent = Agent(config, observation, ActionSpec((ActionPart("action", size=2),)), torch.device(device), torch.float32)

    def noise(starts: int) -> Noise:
        """Actions are mean + 0.5 standard deviations."""
        return Noise(
            torch.zeros(5, starts, STOCH, device=agent.device), torch.full((6, starts, 2), 0.5, device=agent.device)
        )

    agent._rollout_noise = noise  # type: ignore[method-assign]
    GOLDEN.give(agent)
    return agent


@pytest.fixture(autouse=True)
def mode_instead_of_sample(monkeypatch):
    monkeypatch.setattr(dist, "sample_onehot", mode)


@pytest.fixture(scope="module")
def compiled() -> Agent:
    """Compiled at its first use, with what `mode_instead_of_sample` puts there."""
    agent = make_agent()
    agent.compile()
    return agent


@pytest.fixture(params=["eager", "compiled", "captured"])
def agent(request, batch) -> Agent:
    """The last one is compiled and on a GPU where there is one; on a CPU its buffers alone are like a graph's."""
    agent = make_agent("cuda" if request.param == "captured" and torch.cuda.is_available() else "cpu")
    if request.param == "eager":
        return agent
    if request.param == "captured":
        if agent.device.type == "cuda":
            agent.compile()
            agent.warm_up(batch, environments=2)
        agent.capture(batch, environments=2)
        return agent
    if problem := why_not_compile(agent.device):
        pytest.skip(problem)
    compiled = request.getfixturevalue("compiled")
    compiled.load_state_dict(agent.state_dict())
    compiled.optimizer.zero_grad()
    return compiled


@pytest.fixture
def batch() -> Batch:
    observation = {key: GOLDEN[f"batch/{key}"] for key in ("position", "velocity")}
    return GOLDEN.batch(observation, GOLDEN["batch/prev_action"])


def test_forward(agent, batch):
    model, batch = agent.world_model, batch.to(agent.device)
    close(model.encoder(batch.observation), GOLDEN["out/tokens"], 1e-5, "tokens")
    posterior, logits = model.observe(batch, torch.zeros(3, 8, STOCH, device=agent.device))
    close(posterior.deter, GOLDEN["out/deter"], 1e-5, "deter")
    close(posterior.stoch, GOLDEN["out/stoch"], 1e-5, "stoch")
    close(logits, GOLDEN["out/posterior_logit"], 1e-5, "posterior logits")


def test_losses(agent, batch, monkeypatch):
    losses = unreduced_losses(agent, batch, monkeypatch)
    assert set(losses) == set(LOSSES)
    for ours, theirs in LOSSES.items():
        close(losses[ours], GOLDEN[f"out/loss/{theirs}"], 1e-5, ours)


def test_imagination_means(agent, batch):
    _, metrics, _, _ = agent.loss(batch.to(agent.device))
    for ours, theirs in MEANS.items():
        close(metrics[f"behavior/{ours}"], GOLDEN[f"out/imagination/{theirs}"], 1e-5, ours)


def test_total_and_gradients(agent, batch):
    total, _, _, _ = agent.loss(batch.to(agent.device))
    close(total, GOLDEN["out/total_loss"], 1e-5, "total loss")
    total.backward()
    own = parameters(agent)
    for ours, theirs in GOLDEN.names.items():
        close(own[ours].grad, GOLDEN.parameter("grad", theirs), 1e-4, ours)


def test_three_updates(agent, batch):
    for step in range(3):
        metrics, _ = agent.update(batch)
        close(metrics["loss/total"], GOLDEN[f"out/total_loss_step{step}"], 1e-5, f"loss {step}")
        close(
            metrics["optimizer/gradient_norm"],
            GOLDEN[f"out/grad_norm_step{step}"],
            1e-4,
            f"gradient norm {step}",
        )
    own = parameters(agent)
    compared = 0
    for ours, theirs in (GOLDEN.names | GOLDEN.slow_names).items():
        movement = own[ours] - GOLDEN.parameter("init", theirs).to(own[ours].device)
        expected = GOLDEN.parameter("after3", theirs) - GOLDEN.parameter("init", theirs)
        if theirs.startswith("slowval"):
            # The slow critic moves along with those entries of the critic that count.
            gradient = GOLDEN.parameter("grad", theirs.replace("slowval", "val", 1))
        else:
            gradient = GOLDEN.parameter("grad", theirs)
        # Elsewhere an epsilon of 1e-20 turns rounding noise in the gradient into a full step.
        counts = gradient.abs() > 1e-4 * gradient.abs().max()
        compared += int(counts.sum())
        if counts.any():
            close(movement[counts], expected[counts], 1e-3, ours)
    assert compared > 20_000
    close(agent.actor_critic.return_low, GOLDEN["after3/retnorm/lo/value"], 1e-5, "return scale, low")
    close(agent.actor_critic.return_high, GOLDEN["after3/retnorm/hi/value"], 1e-5, "return scale, high")
