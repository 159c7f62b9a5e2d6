"""One small problem, worked through by the reference implementation, reproduced by the real modules.

`data/golden_vector.npz` holds parameters, a batch, every intermediate result, every loss, all gradients, and the
parameters after three updates, computed in float32 by the author's implementation. Eager and compiled code have to
reproduce it. Sampling is deterministic there:
latents take the mode, actions are mean + 0.5 standard deviations.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamer import distributions as dist
from dreamer.agent import Agent
from dreamer.config import make_config
from dreamer.imagination import Noise
from dreamer.machine import why_not_compile
from dreamer.replay import Batch
from dreamer.rssm import State
from dreamer.spaces import ActionPart, ActionSpec, ObservationSpec

GOLDEN = np.load(Path(__file__).parent / "data/golden_vector.npz")
DETER, STOCH, CLASSES = 64, 4, 5
LOSSES = {
    "decoder/position": "position",
    "decoder/velocity": "velocity",
    "reward": "rew",
    "continuation": "con",
    "dynamics": "dyn",
    "representation": "rep",
    "actor": "policy",
    "critic": "value",
    "replay_critic": "repval",
}


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(np.array(GOLDEN[name]))


def dense(theirs: str, ours: str) -> dict[str, str]:
    return {f"{ours}.weight": f"{theirs}/kernel", f"{ours}.bias": f"{theirs}/bias"}


def layer(theirs: str, norm: str, ours: str) -> dict[str, str]:
    return dense(theirs, f"{ours}.linear") | {f"{ours}.scale": f"{norm}/scale"}


def mlp(theirs: str, ours: str, layers: int) -> dict[str, str]:
    names: dict[str, str] = {}
    for i in range(layers):
        names |= layer(f"{theirs}/linear{i}", f"{theirs}/norm{i}", f"{ours}.{i}")
    return names


def names() -> dict[str, str]:
    """Our parameter name -> the reference's, for all that is trained."""
    rssm = "world_model.rssm"
    result: dict[str, str] = {}
    for i in range(3):
        result |= layer(f"enc/mlp{i}", f"enc/mlp{i}norm", f"world_model.encoder.mlp.{i}")
    for i, name in enumerate(("deter_in", "stoch_in", "action_in")):
        result |= layer(f"dyn/dynin{i}", f"dyn/dynin{i}norm", f"{rssm}.{name}")
    result |= dense("dyn/dynhid0", f"{rssm}.hidden") | {f"{rssm}.hidden_scale": "dyn/dynhid0norm/scale"}
    result |= dense("dyn/dyngru", f"{rssm}.gates")
    for i in range(2):
        result |= layer(f"dyn/prior{i}", f"dyn/prior{i}norm", f"{rssm}.prior.{i}")
    result |= dense("dyn/priorlogit", f"{rssm}.prior_head")
    result |= layer("dyn/obs0", "dyn/obs0norm", f"{rssm}.posterior")
    result |= dense("dyn/obslogit", f"{rssm}.posterior_head")
    result |= mlp("dec/mlp", "world_model.decoder.mlp", 3)
    for i, key in enumerate(("position", "velocity")):
        result |= dense(f"dec/vec/{key}/pred", f"world_model.decoder.vector_heads.{i}")
    result |= mlp("rew/mlp", "world_model.reward.mlp", 1) | dense("rew/head/logits", "world_model.reward.out")
    result |= mlp("con/mlp", "world_model.continuation.mlp", 1)
    result |= dense("con/head/logit", "world_model.continuation.out")
    result |= mlp("pol/mlp", "actor_critic.actor.mlp", 3)
    for i, name in enumerate(("mean", "stddev")):
        result |= dense(f"pol/head/action/{name}", f"actor_critic.actor.heads.0.{i}")
    result |= mlp("val/mlp", "actor_critic.critic.mlp", 3) | dense("val/head/logits", "actor_critic.critic.out")
    return result


def slow_names() -> dict[str, str]:
    return {
        ours.replace(".critic.", ".slow_critic."): theirs.replace("val/", "slowval/", 1)
        for ours, theirs in names().items()
        if ".critic." in ours
    }


def converted(prefix: str, theirs: str) -> torch.Tensor:
    """A parameter of the reference, or its gradient, in our layout."""
    value = golden(f"{prefix}/{theirs}")
    if theirs.startswith("dec/mlp/linear0/kernel"):
        value = torch.cat([value[STOCH * CLASSES :], value[: STOCH * CLASSES]])  # [stoch, deter] there
    if value.shape[-1] == dist.BINS:  # bins in ascending order there
        value = value[..., dist.twohot_places(torch.arange(dist.BINS)).argsort()]
    return value.T if value.ndim == 2 else value


def parameters(agent: Agent) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": parameter
        for part in ("world_model", "actor_critic")
        for name, parameter in getattr(agent, part).named_parameters()
    }


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
    own = parameters(agent)
    assert set(own) == set(names()) | set(slow_names())
    with torch.no_grad():
        for ours, theirs in (names() | slow_names()).items():
            own[ours].copy_(converted("init", theirs))
    return agent


def mode(probs, uniform):
    return torch.nn.functional.one_hot(probs.argmax(-1), probs.shape[-1]).float()


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
    return Batch(
        observation={key: golden(f"batch/{key}") for key in ("position", "velocity")},
        prev_action=golden("batch/prev_action"),
        reward=golden("batch/reward"),
        is_first=golden("batch/is_first"),
        is_last=golden("batch/is_last"),
        is_terminal=golden("batch/is_terminal"),
        start=State(golden("carry/deter"), golden("carry/stoch")),
    )


def close(ours: torch.Tensor, theirs: torch.Tensor, relative: float, what: str) -> None:
    """Largest difference, relative to the largest entry."""
    if ours.is_cuda:  # which adds up in another order
        relative *= 10
    theirs = theirs.to(ours.device)
    error = (ours.detach() - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)
    assert ours.shape == theirs.shape and error < relative, f"{what}: relative error {error:.1e}"


def test_forward(agent, batch):
    model, batch = agent.world_model, batch.to(agent.device)
    close(model.encoder(batch.observation), golden("out/tokens"), 1e-5, "tokens")
    posterior, logits = model.observe(batch, torch.zeros(3, 8, STOCH, device=agent.device))
    close(posterior.deter, golden("out/deter"), 1e-5, "deter")
    close(posterior.stoch, golden("out/stoch"), 1e-5, "stoch")
    close(logits, golden("out/posterior_logit"), 1e-5, "posterior logits")


def unreduced_losses(agent: Agent, batch: Batch, monkeypatch) -> dict[str, torch.Tensor]:
    """The losses as `Agent.loss` hands them to `total_loss`."""
    import dreamer.agent

    seen = {}
    total = dreamer.agent.total_loss

    def spy(losses, scales, shape):
        seen.update(losses)
        return total(losses, scales, shape)

    monkeypatch.setattr(dreamer.agent, "total_loss", spy)
    agent.loss(batch.to(agent.device))
    return seen


def test_losses(agent, batch, monkeypatch):
    losses = unreduced_losses(agent, batch, monkeypatch)
    assert set(losses) == set(LOSSES)
    for ours, theirs in LOSSES.items():
        close(losses[ours], golden(f"out/loss/{theirs}"), 1e-5, ours)


def test_imagination_means(agent, batch):
    _, metrics, _, _ = agent.loss(batch.to(agent.device))
    for ours, theirs in {
        "advantage": "adv",
        "reward": "rew",
        "continuation": "con",
        "return": "tar",
        "value": "val",
    }.items():
        close(metrics[f"behavior/{ours}"], golden(f"out/imagination/{theirs}"), 1e-5, ours)


def test_total_and_gradients(agent, batch):
    total, _, _, _ = agent.loss(batch.to(agent.device))
    close(total, golden("out/total_loss"), 1e-5, "total loss")
    total.backward()
    own = parameters(agent)
    for ours, theirs in names().items():
        close(own[ours].grad, converted("grad", theirs), 1e-4, ours)


def test_three_updates(agent, batch):
    for step in range(3):
        metrics, _ = agent.update(batch)
        close(metrics["loss/total"], golden(f"out/total_loss_step{step}"), 1e-5, f"loss {step}")
        close(
            metrics["optimizer/gradient_norm"],
            golden(f"out/grad_norm_step{step}"),
            1e-4,
            f"gradient norm {step}",
        )
    own = parameters(agent)
    compared = 0
    for ours, theirs in (names() | slow_names()).items():
        movement = own[ours] - converted("init", theirs).to(own[ours].device)
        expected = converted("after3", theirs) - converted("init", theirs)
        if theirs.startswith("slowval"):
            # The slow critic moves along with those entries of the critic that count.
            gradient = converted("grad", theirs.replace("slowval", "val", 1))
        else:
            gradient = converted("grad", theirs)
        # Elsewhere an epsilon of 1e-20 turns rounding noise in the gradient into a full step.
        counts = gradient.abs() > 1e-4 * gradient.abs().max()
        compared += int(counts.sum())
        if counts.any():
            close(movement[counts], expected[counts], 1e-3, ours)
    assert compared > 20_000
    close(agent.actor_critic.return_low, golden("after3/retnorm/lo/value"), 1e-5, "return scale, low")
    close(agent.actor_critic.return_high, golden("after3/retnorm/hi/value"), 1e-5, "return scale, high")
