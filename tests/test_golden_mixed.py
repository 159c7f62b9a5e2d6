"""A second problem of the reference: two images, integers, and an action of a choice and two numbers.

`data/golden_mixed.npz` was made as `golden_vector.npz` was (`test_golden.py`), by the author's implementation in
float32 (github.com/danijar/dreamerv3, commit f8817c4 of its `agent.py` and `rssm.py`, with the 1 % of uniform choice
that its actor has by now): first parameters, moved away from zeros and ones, a batch with a real end and a time limit,
every loss and all gradients. Its images are coarse tiles, so that the file is small. Eager code alone: that compiled
code agrees with it is in `test_compile.py`.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from golden import FOLDER, LOSSES, MEANS, Golden, close, dense, layer, mode, numbers, parameters, unreduced_losses

from dreamer import distributions as dist
from dreamer.agent import Agent
from dreamer.config import make_config
from dreamer.imagination import Noise
from dreamer.spaces import ActionPart, ActionSpec, ObservationSpec

STOCH, CLASSES, HORIZON = 4, 5, 4
OBSERVATION = ObservationSpec(
    images={"camera": (48, 64, 3), "map": (48, 64, 1)}, floats={"dial": 3}, integers={"keys": (3, 3)}
)
ACTION = ActionSpec((ActionPart("move", classes=(3,)), ActionPart("turn", size=2)))


def own():
    encoder, decoder = "world_model.encoder", "world_model.decoder"
    names = dense("dec/vec/dial/pred", f"{decoder}.vector_heads.0")
    names |= dense("dec/vec/keys/logits", f"{decoder}.vector_heads.1")
    for i in range(4):
        names |= dense(f"enc/cnn{i}", f"{encoder}.convs.{i}") | {f"{encoder}.norms.{i}.scale": f"enc/cnn{i}norm/scale"}
    names |= dense("dec/sp0", f"{decoder}.from_deter") | layer("dec/sp1", "dec/sp1norm", f"{decoder}.from_stoch.0")
    names |= dense("dec/sp2", f"{decoder}.from_stoch.1") | {f"{decoder}.start_norm.scale": "dec/spnorm/scale"}
    for i in range(3):  # counted from the image there
        names |= dense(f"dec/conv{2 - i}", f"{decoder}.convs.{i}")
        names |= {f"{decoder}.norms.{i}.scale": f"dec/conv{2 - i}norm/scale"}
    names |= dense("dec/imgout", f"{decoder}.image_head")
    names |= dense("pol/head/move/logits", "actor_critic.actor.heads.0.0")
    return names | numbers("turn", 1)


GOLDEN = Golden(FOLDER / "golden_mixed.npz", STOCH * CLASSES, own())


@pytest.fixture(autouse=True)
def mode_instead_of_sample(monkeypatch):
    monkeypatch.setattr(dist, "sample_onehot", mode)


@pytest.fixture
def agent():
    config = make_config("golden/mixed")
    model = replace(config.model, deter=64, hidden=16, stoch=STOCH, classes=CLASSES, units=16, depth=4)
    config = replace(config, model=model, behavior=replace(config.behavior, horizon=HORIZON))
    agent = Agent(config, OBSERVATION, ACTION, torch.device("cpu"), torch.float32)
    # Choices take the mode, numbers are mean + 0.5 standard deviations.
    agent._rollout_noise = lambda starts: Noise(
        torch.zeros(HORIZON, starts, STOCH), torch.tensor([0, 0.5, 0.5]).expand(HORIZON + 1, starts, 3)
    )
    GOLDEN.give(agent)
    return agent


@pytest.fixture
def batch():
    images = GOLDEN["batch/tiles"].repeat_interleave(8, 2).repeat_interleave(8, 3)
    move = F.one_hot(GOLDEN["batch/prev_action/move"].long(), 3).float()
    observation = {
        "camera": images[..., :3],
        "map": images[..., 3:],
        "dial": GOLDEN["batch/dial"],
        "keys": GOLDEN["batch/keys"].long(),
    }
    return GOLDEN.batch(observation, torch.cat([move, GOLDEN["batch/prev_action/turn"]], -1))


def test_forward(agent, batch):
    model = agent.world_model
    close(model.encoder(batch.observation), GOLDEN["out/tokens"], 1e-5, "tokens")
    posterior, logits = model.observe(batch, torch.zeros(2, 5, STOCH))
    close(posterior.deter, GOLDEN["out/deter"], 1e-5, "deter")
    close(posterior.stoch, GOLDEN["out/stoch"], 1e-5, "stoch")
    close(logits, GOLDEN["out/posterior_logit"], 1e-5, "posterior logits")


def test_losses(agent, batch, monkeypatch):
    losses = unreduced_losses(agent, batch, monkeypatch)
    named = LOSSES | {f"decoder/{key}": key for key in OBSERVATION.keys}
    assert set(losses) == set(named)
    for ours, theirs in named.items():
        close(losses[ours], GOLDEN[f"out/loss/{theirs}"], 1e-5, ours)


def test_imagination_means(agent, batch):
    _, metrics, _, _ = agent.loss(batch)
    for ours, theirs in MEANS.items():
        close(metrics[f"behavior/{ours}"], GOLDEN[f"out/imagination/{theirs}"], 1e-5, ours)


def test_total_and_gradients(agent, batch):
    total, _, _, _ = agent.loss(batch)
    close(total, GOLDEN["out/total_loss"], 1e-5, "total loss")
    total.backward()
    found = parameters(agent)
    for ours, theirs in GOLDEN.names.items():
        close(found[ours].grad, GOLDEN.parameter("grad", theirs), 1e-4, ours)
