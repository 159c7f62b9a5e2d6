"""What the author's implementation has worked through: its parameters by our names, and how close is close."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

import dreamer.agent
from dreamer import distributions as dist
from dreamer.agent import Agent
from dreamer.replay import Batch
from dreamer.rssm import State

LOSSES = {
    "reward": "rew",
    "continuation": "con",
    "dynamics": "dyn",
    "representation": "rep",
    "actor": "policy",
    "critic": "value",
    "replay_critic": "repval",
}
MEANS = {"advantage": "adv", "reward": "rew", "continuation": "con", "return": "tar", "value": "val"}
FOLDER = Path(__file__).parent / "data"


class Golden:
    """The figures of a problem, which have the reference's names and layouts.

    Args:
        path: of the file.
        latents: width of the flat stochastic part, which is in front of the deterministic one there.
        own: our parameter's name -> the reference's, of the parts that not every problem has.
    """

    def __init__(self, path: Path, latents: int, own: dict[str, str]):
        self._figures = np.load(path)
        self._latents = latents
        self.names = common() | own
        self.slow_names = slow(self.names)

    def __getitem__(self, name: str) -> torch.Tensor:
        value = torch.from_numpy(np.array(self._figures[name]))
        return value.float() if value.is_floating_point() else value

    def batch(self, observation: dict[str, torch.Tensor], prev_action: torch.Tensor) -> Batch:
        """What the losses are of, given the parts whose layout is the problem's own."""
        return Batch(
            observation=observation,
            prev_action=prev_action,
            reward=self["batch/reward"],
            is_first=self["batch/is_first"],
            is_last=self["batch/is_last"],
            is_terminal=self["batch/is_terminal"],
            start=State(self["carry/deter"], self["carry/stoch"]),
        )

    def parameter(self, prefix: str, theirs: str) -> torch.Tensor:
        """A parameter of the reference, or its gradient, in our layout."""
        return as_ours(theirs, self[f"{prefix}/{theirs}"], self._latents)

    def give(self, agent: Agent) -> None:
        """The parameters at the start."""
        own = parameters(agent)
        assert set(own) == set(self.names) | set(self.slow_names)
        with torch.no_grad():
            for ours, theirs in (self.names | self.slow_names).items():
                own[ours].copy_(self.parameter("init", theirs))


def as_ours(theirs: str, value: torch.Tensor, latents: int) -> torch.Tensor:
    """What belongs to a parameter of the reference, in our layout; `latents` as for `Golden`."""
    if theirs.startswith("dec/mlp/linear0/kernel"):
        value = torch.cat([value[latents:], value[:latents]])  # [stoch, deter] there
    if value.shape[-1:] == (dist.BINS,):  # bins in ascending order there
        value = value[..., dist.twohot_places(torch.arange(dist.BINS)).argsort()]
    if value.ndim == 4:  # height, width, in, out
        return value.permute(3, 2, 0, 1)
    return value.T if value.ndim == 2 else value


def as_there(theirs: str, value: torch.Tensor, latents: int) -> torch.Tensor:
    """The way back from `as_ours`."""
    value = value.permute(2, 3, 1, 0) if value.ndim == 4 else value.T if value.ndim == 2 else value
    if value.shape[-1:] == (dist.BINS,):
        value = value[..., dist.twohot_places(torch.arange(dist.BINS))]
    if theirs.startswith("dec/mlp/linear0/kernel"):
        value = torch.cat([value[-latents:], value[:-latents]])
    return value


def slow(names: dict[str, str]) -> dict[str, str]:
    """Our parameter name -> the reference's, of the slow critic, given those of the critic among others."""
    return {
        ours.replace(".critic.", ".slow_critic."): theirs.replace("val/", "slowval/", 1)
        for ours, theirs in names.items()
        if ".critic." in ours
    }


def parameters(agent: Agent) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": parameter
        for part in ("world_model", "actor_critic")
        for name, parameter in getattr(agent, part).named_parameters()
    }


def dense(theirs: str, ours: str) -> dict[str, str]:
    return {f"{ours}.weight": f"{theirs}/kernel", f"{ours}.bias": f"{theirs}/bias"}


def layer(theirs: str, norm: str, ours: str) -> dict[str, str]:
    return dense(theirs, f"{ours}.linear") | {f"{ours}.scale": f"{norm}/scale"}


def mlp(theirs: str, ours: str, layers: int) -> dict[str, str]:
    names: dict[str, str] = {}
    for i in range(layers):
        names |= layer(f"{theirs}/linear{i}", f"{theirs}/norm{i}", f"{ours}.{i}")
    return names


def common() -> dict[str, str]:
    """Our parameter name -> the reference's, for what every problem has."""
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
    result |= mlp("rew/mlp", "world_model.reward.mlp", 1) | dense("rew/head/logits", "world_model.reward.out")
    result |= mlp("con/mlp", "world_model.continuation.mlp", 1)
    result |= dense("con/head/logit", "world_model.continuation.out")
    result |= mlp("pol/mlp", "actor_critic.actor.mlp", 3)
    result |= mlp("val/mlp", "actor_critic.critic.mlp", 3) | dense("val/head/logits", "actor_critic.critic.out")
    return result


def vectors(keys: Iterable[str]) -> dict[str, str]:
    """The same for what is observed as floats, and one action of numbers."""
    result: dict[str, str] = {}
    for i, key in enumerate(keys):
        result |= dense(f"dec/vec/{key}/pred", f"world_model.decoder.vector_heads.{i}")
    return result | numbers("action", 0)


def numbers(key: str, part: int) -> dict[str, str]:
    """The same for the part of an action that is numbers."""
    head = f"actor_critic.actor.heads.{part}"
    return dense(f"pol/head/{key}/mean", f"{head}.0") | dense(f"pol/head/{key}/stddev", f"{head}.1")


def mode(probs, uniform):
    return torch.nn.functional.one_hot(probs.argmax(-1), probs.shape[-1]).float()


def close(ours: torch.Tensor, theirs: torch.Tensor, relative: float, what: str) -> None:
    """Largest difference, relative to the largest entry."""
    if ours.is_cuda:  # which adds up in another order
        relative *= 10
    theirs = theirs.to(ours.device)
    error = (ours.detach() - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)
    assert ours.shape == theirs.shape and error < relative, f"{what}: relative error {error:.1e}"


def unreduced_losses(agent: Agent, batch: Batch, monkeypatch) -> dict[str, torch.Tensor]:
    """The losses as `Agent.loss` hands them to `total_loss`."""
    seen = {}
    total = dreamer.agent.total_loss

    def spy(losses, scales, shape):
        seen.update(losses)
        return total(losses, scales, shape)

    monkeypatch.setattr(dreamer.agent, "total_loss", spy)
    agent.loss(batch.to(agent.device))
    return seen
