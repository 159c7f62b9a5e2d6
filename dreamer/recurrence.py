"""The weights of the recurrence as the steps of a sequence use them, and their gradients once for all steps.

What is computed is in `rssm`; this is how it is done fast.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Offsets(NamedTuple):
    """What is added to the products of a step: their biases, (width,) for all rows alike or (N, width)."""

    deter: Tensor
    stoch: Tensor
    hidden: Tensor
    gates: Tensor
    logits: Tensor


class Scales(NamedTuple):
    """The norms' scales, float32."""

    deter: Tensor
    stoch: Tensor
    hidden: Tensor
    posterior: Tensor


class Recurrence(NamedTuple):
    """All that the steps of a sequence share, cast to compute precision and sliced once for the whole sequence.

    The block-linear layer sees its own slice of deter beside inputs that every block shares. The shared part is one
    dense product, so that its input is never repeated for each block.
    """

    deter: Tensor  # (hidden, D)
    stoch: Tensor  # (hidden, S K)
    own: Tensor  # (blocks, D / blocks, D / blocks): each block's own slice of deter
    shared: Tensor  # (D, 3 hidden): what all blocks share
    gates: Tensor  # (blocks, D / blocks, 3 D / blocks)
    posterior: Tensor  # (hidden, D): deter's part; the tokens' part is taken out of the recurrence
    logits: Tensor  # (S K, hidden)
    scales: Scales
    offsets: Offsets

    def detach(self) -> "Recurrence":
        """The same weights without gradient; scales and offsets keep theirs."""
        return Recurrence(
            self.deter.detach(),
            self.stoch.detach(),
            self.own.detach(),
            self.shared.detach(),
            self.gates.detach(),
            self.posterior.detach(),
            self.logits.detach(),
            self.scales,
            self.offsets,
        )


class Inputs(NamedTuple):
    """What the products of a step were applied to; the weights' gradients need it."""

    deter: Tensor  # (N, D)
    stoch: Tensor  # (N, S K)
    shared: Tensor  # (N, 3 hidden)
    hidden: Tensor  # (N, D)
    next_deter: Tensor  # (N, D)
    posterior: Tensor  # (N, hidden)


class WeightGradients(torch.autograd.Function):
    """Gradients of a sequence's weights, once for all its steps.

    Each step adds a row of `offset` to its products with some weights, so the gradient of that row is the gradient of
    the products' output. The weights' gradients are then one product over the whole sequence, instead of one for each
    step that would be added up in low precision. The steps themselves use the weights detached, and append what they
    multiplied them with to `inputs`.
    """

    @staticmethod
    def forward(ctx: Any, offset: Tensor, inputs: list[list[Tensor]], *weights: Tensor) -> Tensor:
        """offset (T, N, width) as it is; one list of inputs (k, N, ...) for each weight, dense or block-diagonal."""
        ctx.inputs = inputs
        ctx.shapes = [weight.shape for weight in weights]
        return offset.view_as(offset)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        outputs = gradient.flatten(0, 1)
        weights = []
        for inputs, shape in zip(ctx.inputs, ctx.shapes):
            x = torch.cat(inputs).flatten(0, 1)
            if len(shape) == 2:
                weights.append(outputs.T @ x)
            else:
                split = x.unflatten(-1, shape[:2]).permute(1, 2, 0)  # (blocks, in / blocks, T N)
                weights.append(split @ outputs.unflatten(-1, (shape[0], shape[2])).transpose(0, 1))
        return gradient, None, *weights


def defer_gradients(weights: Recurrence, tokens: Tensor, record: dict[str, list[Tensor]]) -> tuple[Offsets, Tensor]:
    """Offsets and embedded tokens (T, N, ...), through which `weights` get their gradients.

    `record` holds a list for each name of `Inputs`, which the steps fill. `tokens` is (T, N, hidden).
    """
    length, rows, _ = tokens.shape

    def defer(bias: Tensor, inputs: list[list[Tensor]], *products: Tensor) -> Tensor:
        return WeightGradients.apply(bias.expand(length, rows, -1), inputs, *products)

    biases = weights.offsets
    offsets = Offsets(
        defer(biases.deter, [record["deter"]], weights.deter),
        defer(biases.stoch, [record["stoch"]], weights.stoch),
        defer(biases.hidden, [record["deter"], record["shared"]], weights.own, weights.shared),
        defer(biases.gates, [record["hidden"]], weights.gates),
        defer(biases.logits, [record["posterior"]], weights.logits),
    )
    return offsets, defer(tokens, [record["next_deter"]], weights.posterior)
