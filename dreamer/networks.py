"""The layers that everything is built of, and the encoder and decoder built of them.

Parameters are float32. Products run in the precision of their *input*: whoever feeds a network chooses it
by casting what goes in, norms compute in float32, and outputs that become distributions are cast back.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import distributions as dist
from .spaces import ObservationSpec

INIT_SCALE = 1.1368  # undoes the loss of variance by truncation at two standard deviations


def init_(weight: Tensor, fan_in: int, outscale: float = 1.0) -> Tensor:
    """Fill `weight` in place from a normal truncated at +-2, times `1.1368 sqrt(1 / fan_in) outscale`."""
    nn.init.trunc_normal_(weight, 0.0, 1.0, -2.0, 2.0)
    with torch.no_grad():
        return weight.mul_(INIT_SCALE * math.sqrt(1 / fan_in) * outscale)


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """`x * rsqrt(mean(x^2) + 1e-4) * scale` over the last axis, computed in float32, in x's precision."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-4) * scale).to(x.dtype)


def norm_silu(x: Tensor, scale: Tensor) -> Tensor:
    """The second half of every layer: RMSNorm, then SiLU."""
    return F.silu(rms_norm(x, scale))


def block_linear(x: Tensor, weight: Tensor) -> Tensor:
    """A product with a block-diagonal matrix: (N, I), (blocks, I / blocks, O / blocks) -> (N, O)."""
    blocks, inputs, _ = weight.shape
    grouped = x.reshape(-1, blocks, inputs).transpose(0, 1)
    return torch.bmm(grouped, weight).transpose(0, 1).reshape(x.shape[0], -1)


def max_pool(x: Tensor) -> Tensor:
    """The largest of each 2x2 pixels: (N, C, H, W) -> (N, C, H / 2, W / 2). Equal ones share the gradient.

    On plain backgrounds most are equal, and this compiles to something faster than the library's pooling.
    """
    rows = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


class Linear(nn.Module):
    """`x W^T + b`, in the precision of x."""

    def __init__(self, inputs: int, outputs: int, outscale: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(init_(torch.empty(outputs, inputs), inputs, outscale))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Layer(nn.Module):
    """Linear, RMSNorm, SiLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = Linear(inputs, outputs)
        self.scale = nn.Parameter(torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return norm_silu(self.linear(x), self.scale)


class MLP(nn.Sequential):
    """Some layers of equal width: (..., inputs) -> (..., units)."""

    def __init__(self, inputs: int, units: int, layers: int):
        super().__init__(*(Layer(inputs if i == 0 else units, units) for i in range(layers)))


class BlockLinear(nn.Module):
    """A linear layer with a block-diagonal matrix of `blocks` blocks.

    The weight is (blocks, inputs / blocks, outputs / blocks). Its fan-in counts the whole input width.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int):
        super().__init__()
        assert inputs % blocks == 0 and outputs % blocks == 0, (inputs, outputs, blocks)
        self.weight = nn.Parameter(init_(torch.empty(blocks, inputs // blocks, outputs // blocks), inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return block_linear(x, self.weight.to(x.dtype)) + self.bias.to(x.dtype)


class Conv(nn.Module):
    """A 5x5 convolution, stride 1, same padding: (N, I, H, W) -> (N, O, H, W)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        weight = init_(torch.empty(outputs, inputs, 5, 5), 25 * inputs)
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), padding=2)


class PoolConv(Conv):
    """A 5x5 convolution, then 2x2 max pooling: (N, I, H, W) -> (N, O, H / 2, W / 2).

    With few input channels it is computed on squares of 2x2 pixels: a 3x3 convolution from the 4 I numbers of a square
    and its neighbours to the 4 O numbers that are pooled. The products are the same, in matrices of a useful width.
    """

    FEW = 8  # channels

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        # Output row `out` of a square sees row `into` of the square above, its own or the one below through a tap.
        taps = torch.zeros(2, 2, 3, 5)
        for out, into, square in itertools.product(range(2), range(2), range(3)):
            if 0 <= (tap := 2 * square + into - out) < 5:
                taps[out, into, square, tap] = 1
        self.register_buffer("taps", taps, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        outputs, inputs = self.weight.shape[:2]
        if inputs > self.FEW:
            return max_pool(super().forward(x))
        weight = torch.einsum("acpk,bdql,oikl->abocdipq", self.taps, self.taps, self.weight)
        weight = weight.reshape(4 * outputs, 4 * inputs, 3, 3).to(x.dtype)
        squares = F.conv2d(_to_squares(x), weight, self.bias.repeat(4).to(x.dtype), padding=1)
        first, second, third, fourth = squares.unflatten(1, (4, outputs)).unbind(1)
        return torch.maximum(torch.maximum(first, second), torch.maximum(third, fourth))


class UpConv(Conv):
    """Nearest-neighbour up x2, then a 5x5 convolution: (N, I, H, W) -> (N, O, 2 H, 2 W).

    Computed before the enlargement, with 2.8 times fewer products: the 5x5 enlarged pixels around each of the four
    that a pixel becomes are copies of only 3x3, so taps that meet the same pixel are added first.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        upper = [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]  # by pixel (above, own, below) and tap
        lower = [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]
        self.register_buffer("taps", torch.tensor([upper, lower], dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.einsum("apk,bql,oikl->aboipq", self.taps, self.taps, self.weight).flatten(0, 2)
        squares = F.conv2d(x, weight.to(x.dtype), self.bias.repeat(4).to(x.dtype), padding=1)
        return _from_squares(squares)


def _to_squares(x: Tensor) -> Tensor:
    """(N, C, 2 H, 2 W) -> (N, 4 C, H, W): the pixels of each 2x2 square, row by row. Both in channels-last memory."""
    rows = x.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    return rows.transpose(2, 3).flatten(3).permute(0, 3, 1, 2)


def _from_squares(x: Tensor) -> Tensor:
    """(N, 4 C, H, W) -> (N, C, 2 H, 2 W), the inverse of `_to_squares`."""
    rows = x.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1))
    return rows.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class PixelNorm(nn.Module):
    """RMSNorm over the channels of each pixel, then SiLU: (N, C, H, W), best in channels-last memory."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return norm_silu(x.permute(0, 2, 3, 1), self.scale).permute(0, 3, 1, 2)


def _flat(x: Tensor, axes: int) -> Tensor:
    """Merge all but the last `axes` axes."""
    return x.reshape(-1, *x.shape[x.ndim - axes :])


class Encoder(nn.Module):
    """Observations -> tokens (..., E): vectors through an MLP, images through convolutions, side by side."""

    MULTIPLIERS = (2, 3, 4, 4)

    def __init__(self, spec: ObservationSpec, units: int, depth: int, dtype: torch.dtype):
        super().__init__()
        self.spec = spec
        self.dtype = dtype
        self.width = 0
        inputs = sum(spec.floats.values()) + sum(sum(classes) for classes in spec.integers.values())
        if inputs:
            self.mlp = MLP(inputs, units, layers=3)
            self.width += units
        if spec.images:
            height, width, _ = next(iter(spec.images.values()))
            widths = [sum(shape[2] for shape in spec.images.values()), *(depth * m for m in self.MULTIPLIERS)]
            self.convs = nn.ModuleList(PoolConv(i, o) for i, o in zip(widths, widths[1:]))
            self.norms = nn.ModuleList(PixelNorm(o) for o in widths[1:])
            self.width += (height // 16) * (width // 16) * widths[-1]

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """{key: (..., *shape)} -> (..., E) in compute precision."""
        lead = observation[self.spec.keys[0]].shape[: -3 if self.spec.images else -1]
        outputs = []
        if self.spec.floats or self.spec.integers:
            outputs.append(self.mlp(self._vector(observation).to(self.dtype)))
        if self.spec.images:
            outputs.append(self._image(observation).reshape(*lead, -1))
        return torch.cat(outputs, -1)

    def _vector(self, observation: dict[str, Tensor]) -> Tensor:
        parts = []
        for key in sorted([*self.spec.floats, *self.spec.integers]):
            if key in self.spec.floats:
                parts.append(dist.symlog(observation[key].float()))
            else:
                for i, classes in enumerate(self.spec.integers[key]):
                    parts.append(F.one_hot(observation[key][..., i].long(), classes).float())
        return torch.cat(parts, -1)

    def _image(self, observation: dict[str, Tensor]) -> Tensor:
        images = torch.cat([_flat(observation[key], 3) for key in self.spec.images], -1)
        x = (images.float() / 255 - 0.5).to(self.dtype).permute(0, 3, 1, 2)
        for conv, norm in zip(self.convs, self.norms):
            x = norm(conv(x))
        return x.permute(0, 2, 3, 1).flatten(1)


class Decoder(nn.Module):
    """Features -> what each observation key is expected to be, and the loss of that expectation."""

    MULTIPLIERS = (4, 3, 2)
    BLOCKS = 8

    def __init__(self, spec: ObservationSpec, deter: int, stoch: int, units: int, depth: int):
        super().__init__()
        self.spec = spec
        self.deter = deter
        if spec.floats or spec.integers:
            self.mlp = MLP(deter + stoch, units, layers=3)
            widths = spec.floats | {key: sum(classes) for key, classes in spec.integers.items()}
            # Keys are the user's and may hold dots, which module names may not.
            self.vector_keys = sorted(widths)
            self.vector_heads = nn.ModuleList(Linear(units, widths[key]) for key in self.vector_keys)
        if spec.images:
            height, width, _ = next(iter(spec.images.values()))
            channels = depth * Encoder.MULTIPLIERS[-1]
            self.start = (height // 16, width // 16, channels)
            size = math.prod(self.start)
            self.from_deter = BlockLinear(deter, size, self.BLOCKS)
            self.from_stoch = nn.Sequential(Layer(stoch, 2 * units), Linear(2 * units, size))
            self.start_norm = PixelNorm(channels)
            widths_ = [channels, *(depth * m for m in self.MULTIPLIERS)]
            self.convs = nn.ModuleList(UpConv(i, o) for i, o in zip(widths_, widths_[1:]))
            self.norms = nn.ModuleList(PixelNorm(o) for o in widths_[1:])
            self.image_head = UpConv(widths_[-1], sum(shape[2] for shape in spec.images.values()))

    def forward(self, feature: Tensor) -> dict[str, Tensor]:
        """Features (..., F) in compute precision -> raw outputs, float32.

        Images come as (..., H, W, C) in [0, 1], floats as (..., n) in symlog space, integers as logits
        (..., sum of classes).
        """
        outputs = {}
        if self.spec.floats or self.spec.integers:
            x = self.mlp(feature)
            for key, head in zip(self.vector_keys, self.vector_heads):
                outputs[key] = head(x).float()
        if self.spec.images:
            images = self._image(_flat(feature, 1)).unflatten(0, feature.shape[:-1])
            outputs.update(zip(self.spec.images, images.split([s[2] for s in self.spec.images.values()], -1)))
        return outputs

    def _image(self, feature: Tensor) -> Tensor:
        deter, stoch = feature[:, : self.deter], feature[:, self.deter :]
        height, width, channels = self.start
        # A block of the linear layer becomes a group of channels.
        x = self.from_deter(deter).reshape(-1, self.BLOCKS, height, width, channels // self.BLOCKS)
        x = x.permute(0, 2, 3, 1, 4).reshape(-1, height, width, channels)
        x = x + self.from_stoch(stoch).reshape(-1, height, width, channels)
        x = self.start_norm(x.permute(0, 3, 1, 2))
        for conv, norm in zip(self.convs, self.norms):
            x = norm(conv(x))
        x = self.image_head(x)
        return torch.sigmoid(x.permute(0, 2, 3, 1).float())

    def losses(self, outputs: dict[str, Tensor], observation: dict[str, Tensor]) -> dict[str, Tensor]:
        """One loss (...) for each key.

        Squared error, summed over the observation's axes and without a factor 1/2: images against
        `x / 255`, floats against `symlog(x)`. Integers: cross-entropy, summed over the entries.
        """
        losses = {}
        for key, output in outputs.items():
            target = observation[key]
            if key in self.spec.images:
                losses[key] = (output - target.float() / 255).square().sum((-3, -2, -1))
            elif key in self.spec.floats:
                losses[key] = (output - dist.symlog(target.float())).square().sum(-1)
            else:
                entries = zip(output.split(self.spec.integers[key], -1), target.long().unbind(-1))
                losses[key] = torch.stack(
                    [-F.log_softmax(logits, -1).gather(-1, index[..., None])[..., 0] for logits, index in entries]
                ).sum(0)
        return losses

    def predict(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What raw outputs say: images in [0, 1], floats in the observation's own units, most likely classes."""
        predictions = {}
        for key, output in outputs.items():
            if key in self.spec.images:
                predictions[key] = output
            elif key in self.spec.floats:
                predictions[key] = dist.symexp(output)
            else:
                split = output.split(self.spec.integers[key], -1)
                predictions[key] = torch.stack([logits.argmax(-1) for logits in split], -1)
        return predictions


class Head(nn.Module):
    """An MLP with a linear output: features (..., F) in compute precision -> (..., outputs) float32."""

    def __init__(self, inputs: int, units: int, layers: int, outputs: int, outscale: float):
        super().__init__()
        self.mlp = MLP(inputs, units, layers)
        self.out = Linear(units, outputs, outscale)

    def forward(self, feature: Tensor) -> Tensor:
        return self.out(self.mlp(feature)).float()
