"""The distributions of the model: pure functions of tensors.

Randomness is always an argument: a uniform number per categorical, a standard normal one per continuous
dimension. All of it is computed in float32, whatever precision the networks run in.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

UNIMIX = 0.01
STD_LOW, STD_HIGH = 0.1, 1.0


def symlog(x: Tensor) -> Tensor:
    """`sign(x) ln(1 + |x|)`, elementwise (paper eq. 9)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """`sign(x) (exp|x| - 1)`, the inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


# Categoricals ------------------------------------------------------------------------------------------


def mixed_probs(logits: Tensor) -> Tensor:
    """Probabilities (..., K) `0.99 softmax(logits) + 0.01 / K`, float32.

    The floor keeps every KL finite and every class reachable (paper, "Robust predictions").
    """
    return (1 - UNIMIX) * torch.softmax(logits.float(), -1) + UNIMIX / logits.shape[-1]


def sample_onehot(probs: Tensor, uniform: Tensor) -> Tensor:
    """One-hot samples by inverting the cumulative distribution: one random number for each categorical.

    Args:
        probs: (..., K), summing to 1.
        uniform: (...), in [0, 1).

    Returns:
        (..., K) float32, without a gradient: the class whose cumulative interval holds `uniform`.
    """
    # The last bound is 1 by definition, so rounding in the sum can never lead past the last class.
    bounds = torch.cumsum(probs.detach(), -1)[..., :-1]
    index = (bounds <= uniform.unsqueeze(-1)).sum(-1, keepdim=True)
    return (torch.arange(probs.shape[-1], device=probs.device) == index).float()


def straight_through(onehot: Tensor, probs: Tensor) -> Tensor:
    """`onehot + p - sg(p)`: the sample forward, the gradient of the probabilities backward."""
    return onehot + (probs - probs.detach())


def categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    """`KL(p || q)` in nats over the last axis: (..., K), (..., K) -> (...)."""
    return (p * (torch.log(p) - torch.log(q))).sum(-1)


def categorical_entropy(p: Tensor) -> Tensor:
    """Entropy in nats over the last axis: (..., K) -> (...)."""
    return -(p * torch.log(p)).sum(-1)


# Bounded normal ----------------------------------------------------------------------------------------


def bounded_normal(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `tanh(m)` and standard deviation `0.9 sigmoid(s + 2) + 0.1` from raw outputs (..., n)."""
    return torch.tanh(mean), (STD_HIGH - STD_LOW) * torch.sigmoid(std + 2) + STD_LOW


def sample_normal(mean: Tensor, std: Tensor, normal: Tensor) -> Tensor:
    """`mean + std * normal`, not clipped: the environment clips."""
    return mean + std * normal


def normal_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density (...) of x (..., n), summed over the last axis."""
    return (-0.5 * ((x - mean) / std) ** 2 - torch.log(std) - 0.5 * math.log(2 * math.pi)).sum(-1)


def normal_entropy(std: Tensor) -> Tensor:
    """Entropy (...) in nats of independent normals (..., n), summed over the last axis."""
    return (torch.log(std) + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


# Two-hot -----------------------------------------------------------------------------------------------

BINS = 255
HALF = BINS // 2


def twohot_bins() -> Tensor:
    """The 255 bin centres: `symexp(linspace(-20, 0, 128))` and its mirror, in raw value space, ascending."""
    half = symexp(torch.linspace(-20, 0, (BINS + 1) // 2, dtype=torch.float32))
    return torch.cat([half, -half[:-1].flip(0)])


def twohot_places(bins: Tensor) -> Tensor:
    """Where the logits of bins lie, which are numbered from the lowest: (...) -> (...).

    First those of negative bins, ascending; then their mirror images, in the same order; last that of 0. What
    `twohot_mean` adds pairwise lies in two slices of the same order: a reversed one would be read number by number.
    """
    return torch.where(bins < HALF, bins, torch.where(bins == HALF, BINS - 1, BINS - 1 + HALF - bins))


def twohot_loss(logits: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    """Cross-entropy (...) of logits (..., 255), in the order of `twohot_places`, with the two-hot target (...).

    The raw target is split linearly between its two neighbouring bins; beyond the last bin it goes to
    that bin (paper eq. 10). The target gets no gradient.
    """
    target = target.detach().float().contiguous()
    above = torch.searchsorted(bins, target, right=True).clamp(1, len(bins) - 1)
    below = above - 1
    low, high = bins[below], bins[above]
    weight = ((target - low) / (high - low)).clamp(0, 1)
    # Dense targets, since a gather's gradient is a scatter, which costs more than everything else here.
    index = torch.arange(len(bins), device=bins.device)
    shares = torch.where(index == twohot_places(below).unsqueeze(-1), (1 - weight).unsqueeze(-1), 0.0)
    shares = torch.where(index == twohot_places(above).unsqueeze(-1), weight.unsqueeze(-1), shares)
    return -(shares * F.log_softmax(logits.float(), -1)).sum(-1)


def twohot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """Expected value (...) of logits (..., 255), in the order of `twohot_places`; exactly 0 for uniform logits.

    Mirrored bins are added pairwise before the sum, so that equal probabilities cancel in whatever order
    a compiler adds the pairs: `p[i] b[i] + p[-i] b[-i] = (p[-i] - p[i]) |b[i]|`.
    """
    probs = torch.softmax(logits.float(), -1)
    negative, positive = probs[..., :HALF], probs[..., HALF : 2 * HALF]
    return ((positive - negative) * -bins[:HALF]).sum(-1)


# Bernoulli ---------------------------------------------------------------------------------------------


def bernoulli_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (...) of a logit (...) with a soft target in [0, 1] (...)."""
    return F.binary_cross_entropy_with_logits(logit.float(), target.float(), reduction="none")
