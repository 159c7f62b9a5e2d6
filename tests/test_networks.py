"""Layers, encoder and decoder against literals and naive versions written out here."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dreamer.actor_critic import ActorCritic
from dreamer.config import SIZES, BehaviorConfig, ModelConfig
from dreamer.networks import (
    MLP,
    BlockLinear,
    Conv,
    Decoder,
    Encoder,
    Head,
    Layer,
    Linear,
    PixelNorm,
    PoolConv,
    UpConv,
    _from_squares,
    _to_squares,
    block_linear,
    init_,
    rms_norm,
)
from dreamer.spaces import ActionPart, ActionSpec, ObservationSpec
from dreamer.world_model import WorldModel

FLOAT = torch.float32


def near(actual, expected, rtol=1e-5, atol=1e-6) -> None:
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    expected = torch.as_tensor(expected, dtype=torch.float64).detach().expand(actual.shape)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def randomized(module: nn.Module) -> nn.Module:
    """No bias is zero and no scale one, so that leaving one out shows."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return module


def silu(x):
    return x / (1 + np.exp(-x))


def naive_norm_silu(x, scale):
    return silu(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * scale.detach().double().numpy())


def naive_linear(linear: Linear, x):
    return x @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()


def naive_mlp(mlp: MLP, x):
    for layer in mlp:
        x = naive_norm_silu(naive_linear(layer.linear, x), layer.scale)
    return x


def images(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# Layers ------------------------------------------------------------------------------------------------


def test_rms_norm_literal():
    x = torch.tensor([[3.0, 4.0], [0.01, 0.01], [0.0, 0.0]])
    root = math.sqrt(12.5 + 1e-4)
    expected = [[2 * 3 / root, 4 / root], [2 * math.sqrt(0.5), math.sqrt(0.5)], [0, 0]]
    near(rms_norm(x, torch.tensor([2.0, 1.0])), expected)


def test_rms_norm_computes_in_float32_and_keeps_the_precision_of_its_input():
    x = torch.randn(50, 33, generator=torch.Generator().manual_seed(0)).bfloat16()
    scale = torch.linspace(0.5, 1.5, 33)
    wide = x.double()
    expected = wide / torch.sqrt((wide**2).mean(-1, keepdim=True) + 1e-4) * scale
    result = rms_norm(x, scale)
    assert result.dtype == torch.bfloat16
    assert (result == expected.bfloat16()).float().mean() > 0.995  # but for ties in the last rounding


def test_a_layer_is_linear_norm_silu():
    layer = Layer(2, 2)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
        layer.linear.bias.copy_(torch.tensor([0.0, 2.0]))
        layer.scale.copy_(torch.tensor([1.0, -2.0]))
    root = math.sqrt(12.5 + 1e-4)  # linear (1, 2) -> (3, 4 + 2 - 2)
    near(layer(torch.tensor([2.0, 1.0])), silu(np.array([3 / root, -2 * 4 / root])))


def test_a_layer_has_no_shift():
    assert {name: p.shape for name, p in Layer(3, 5).named_parameters()} == {
        "linear.weight": (5, 3),
        "linear.bias": (5,),
        "scale": (5,),
    }


def test_an_mlp_is_its_layers_in_turn():
    mlp = randomized(MLP(5, 7, layers=3))
    assert [tuple(layer.linear.weight.shape) for layer in mlp] == [(7, 5), (7, 7), (7, 7)]
    x = torch.randn(2, 3, 5)
    near(mlp(x), naive_mlp(mlp, x.double().numpy()), rtol=1e-4, atol=1e-5)


def test_block_linear_is_a_block_diagonal_matrix():
    layer = randomized(BlockLinear(12, 8, blocks=4))
    assert layer.weight.shape == (4, 3, 2)
    dense = torch.block_diag(*layer.weight)
    x = torch.randn(5, 12)
    near(layer(x), x @ dense + layer.bias, atol=1e-5)
    near(block_linear(x, layer.weight), x @ dense, atol=1e-5)


def test_a_convolution_pads_with_zeros_to_the_same_size():
    conv = Conv(1, 1)
    image = torch.arange(1.0, 31).reshape(1, 1, 5, 6)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 2, 2] = 1  # the centre
    near(conv(image), image)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = 1  # two up and two left, where there is anything
    shifted = F.pad(image, (2, 0, 2, 0))[..., :5, :6]
    near(conv(image), image + shifted)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 2), (3, 4), (8, 2), (9, 3)])
def test_a_convolution_and_a_pooling_are_what_their_name_says(inputs, outputs):
    torch.manual_seed(0)
    layer = randomized(PoolConv(inputs, outputs)).double()
    x = torch.randn(2, inputs, 6, 8, dtype=torch.float64, requires_grad=True)
    expected = F.max_pool2d(F.conv2d(x, layer.weight, layer.bias, padding=2), 2)
    assert_same_with_gradients(layer(x), expected, x, layer)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 2), (4, 3)])
def test_a_convolution_of_an_enlarged_image_is_what_its_name_says(inputs, outputs):
    torch.manual_seed(0)
    layer = randomized(UpConv(inputs, outputs)).double()
    x = torch.randn(2, inputs, 3, 4, dtype=torch.float64, requires_grad=True)
    enlarged = F.interpolate(x, scale_factor=2, mode="nearest")
    assert_same_with_gradients(layer(x), F.conv2d(enlarged, layer.weight, layer.bias, padding=2), x, layer)


def assert_same_with_gradients(result, expected, x, layer):
    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    inputs = (x, layer.weight, layer.bias)
    slope = torch.randn_like(expected)
    gradients = torch.autograd.grad(result, inputs, slope), torch.autograd.grad(expected, inputs, slope)
    for mine, theirs in zip(*gradients):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_squares_of_pixels_and_back():
    x = torch.arange(24.0).reshape(1, 1, 4, 6)
    squares = _to_squares(x)
    assert squares.shape == (1, 4, 2, 3) and squares[0, :, 0, 1].tolist() == [2, 3, 8, 9]
    assert torch.equal(_from_squares(squares), x)
    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(_from_squares(_to_squares(x)), x)


def test_pixel_norm_normalises_the_channels_of_each_pixel():
    norm = PixelNorm(2)
    with torch.no_grad():
        norm.scale.copy_(torch.tensor([1.0, 2.0]))
    x = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.02]]]])  # (1, 2 channels, 1, 2 pixels)
    root, small = math.sqrt(12.5 + 1e-4), math.sqrt(2e-4 + 1e-4)
    expected = silu(np.array([[3 / root, 2 * 4 / root], [0, 2 * 0.02 / small]]))
    near(norm(x)[0, :, 0].T, expected)


# Initialisation ----------------------------------------------------------------------------------------


def assert_truncated_normal(weight: torch.Tensor, fan_in: int, outscale: float = 1.0) -> None:
    std = outscale * math.sqrt(1 / fan_in)
    limit = 2 * 1.1368 * std
    assert weight.mean().abs() < 5 * std / math.sqrt(weight.numel())
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert 0.99 * limit < weight.abs().max() <= limit * (1 + 1e-6)
    # Of a normal cut at +-2 about 28% lies beyond +-1.
    beyond = (weight.abs() > 1.1368 * std).float().mean().item()
    assert beyond == pytest.approx((math.erf(2 / 2**0.5) - math.erf(1 / 2**0.5)) / math.erf(2 / 2**0.5), abs=0.01)


def test_initialisation_of_each_kind_of_layer():
    torch.manual_seed(0)
    linear = Linear(400, 300)
    assert_truncated_normal(linear.weight, 400)
    assert_truncated_normal(Linear(400, 300, outscale=0.01).weight, 400, 0.01)
    block = BlockLinear(512, 1024, blocks=8)
    assert_truncated_normal(block.weight, 512)  # the whole input, not 64
    conv = Conv(12, 64)
    assert_truncated_normal(conv.weight, 25 * 12)
    layer = Layer(300, 200)
    assert_truncated_normal(layer.linear.weight, 300)
    for biased in (linear, block, conv, layer.linear):
        assert (biased.bias == 0).all()
    assert (layer.scale == 1).all() and (PixelNorm(9).scale == 1).all()


def test_an_outscale_of_zero_is_all_zeros():
    assert (Linear(40, 30, outscale=0.0).weight == 0).all()
    assert (init_(torch.ones(3, 3), 3, 0.0) == 0).all()


def test_the_outscale_of_a_head_concerns_its_output_layer_only():
    torch.manual_seed(0)
    head = Head(300, 200, layers=2, outputs=255, outscale=0.01)
    assert_truncated_normal(head.out.weight, 200, 0.01)
    assert_truncated_normal(head.mlp[0].linear.weight, 300)
    assert_truncated_normal(head.mlp[1].linear.weight, 200)


# Sizes -------------------------------------------------------------------------------------------------


def trained_parameters(deter: int, hidden: int, classes: int, depth: int, units: int) -> int:
    """Counted from the description of the architecture, for 96x96x1 images and 18 discrete actions."""
    latents, actions = 32 * classes, 18
    feature = deter + latents
    grid = 6 * 6 * 4 * depth

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    def layer(inputs: int, outputs: int) -> int:
        return linear(inputs, outputs) + outputs

    def blocks(inputs: int, outputs: int) -> int:
        return 8 * (inputs // 8) * (outputs // 8) + outputs

    def conv(inputs: int, outputs: int) -> int:
        return 25 * inputs * outputs + outputs

    def normed_convs(*widths: int) -> int:
        return sum(conv(i, o) + o for i, o in zip(widths, widths[1:]))

    encoder = normed_convs(1, 2 * depth, 3 * depth, 4 * depth, 4 * depth)
    step = layer(deter, hidden) + layer(latents, hidden) + layer(actions, hidden)
    step += blocks(deter + 8 * 3 * hidden, deter) + deter + blocks(deter, 3 * deter)
    prior = layer(deter, hidden) + layer(hidden, hidden) + linear(hidden, latents)
    posterior = layer(deter + grid, hidden) + linear(hidden, latents)
    decoder = blocks(deter, grid) + layer(latents, 2 * units) + linear(2 * units, grid) + 4 * depth
    decoder += normed_convs(4 * depth, 4 * depth, 3 * depth, 2 * depth) + conv(2 * depth, 1)
    reward = layer(feature, units) + linear(units, 255)
    continuation = layer(feature, units) + linear(units, 1)
    three_layers = layer(feature, units) + 2 * layer(units, units)
    actor, critic = three_layers + linear(units, actions), three_layers + linear(units, 255)
    return encoder + step + prior + posterior + decoder + reward + continuation + actor + critic


@pytest.mark.parametrize(
    "size, widths, expected, published",
    [
        ("1m", (512, 64, 4, 4, 64), 769_762, 0.77e6),
        ("12m", (2048, 256, 16, 16, 256), 11_808_850, 11.8e6),
        ("25m", (3072, 384, 24, 24, 384), 26_444_402, 26.4e6),
        ("50m", (4096, 512, 32, 32, 512), 46_900_882, 46.9e6),
        ("100m", (6144, 768, 48, 48, 768), 105_276_626, 105e6),
        ("200m", (8192, 1024, 64, 64, 1024), 186_936_082, 187e6),
        ("400m", (12288, 1536, 96, 96, 1536), 420_106_130, 420e6),
    ],
)
def test_parameter_counts(size, widths, expected, published):
    assert trained_parameters(*widths) == expected == pytest.approx(published, rel=0.005)
    config = ModelConfig(**SIZES[size])
    action = ActionSpec((ActionPart("action", classes=(18,)),))
    with torch.device("meta"):
        world_model = WorldModel(config, ObservationSpec({"image": (96, 96, 1)}, {}, {}), action, 0.997, FLOAT)
        actor_critic = ActorCritic(BehaviorConfig(), action, world_model.feature_width, config.units, 0.997)
    trained = [*world_model.parameters(), *actor_critic.parameters()]
    assert sum(p.numel() for p in trained if p.requires_grad) == expected
    slow = sum(p.numel() for p in trained if not p.requires_grad)
    assert slow == sum(p.numel() for p in actor_critic.critic.parameters())


# Encoder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec, width",
    [
        (ObservationSpec({"image": (64, 64, 3)}, {}, {}), 4 * 4 * 8),
        (ObservationSpec({"image": (96, 96, 1)}, {}, {}), 6 * 6 * 8),
        (ObservationSpec({"image": (48, 256, 3)}, {}, {}), 3 * 16 * 8),
        (ObservationSpec({"left": (64, 64, 3), "right": (64, 64, 1)}, {}, {}), 4 * 4 * 8),
        (ObservationSpec({}, {"position": 3}, {}), 5),
        (ObservationSpec({}, {}, {"card": (4, 2)}), 5),
        (ObservationSpec({"image": (48, 64, 3)}, {"position": 3}, {"card": (4,)}), 3 * 4 * 8 + 5),
    ],
)
def test_encoder_width_for_any_observation_and_any_leading_axes(spec, width):
    encoder = Encoder(spec, units=5, depth=2, dtype=FLOAT)
    observation = {key: images(i, 2, 3, *shape) for i, (key, shape) in enumerate(spec.images.items())}
    observation |= {key: torch.randn(2, 3, n) for key, n in spec.floats.items()}
    observation |= {key: torch.ones(2, 3, len(classes), dtype=torch.int64) for key, classes in spec.integers.items()}
    tokens = encoder(observation)
    assert encoder.width == width and tokens.shape == (2, 3, width)
    flat = encoder({key: value.flatten(0, 1) for key, value in observation.items()})
    near(flat, tokens.flatten(0, 1), atol=1e-5)


def test_vectors_are_symlogged_integers_are_one_hot_and_all_are_concatenated_by_key():
    encoder = randomized(Encoder(ObservationSpec({}, {"b": 2, "d": 1}, {"a": (3,), "c": (2, 2)}), 6, 2, FLOAT))
    observation = {
        "d": torch.tensor([[1.0]]),
        "c": torch.tensor([[1, 0]]),
        "b": torch.tensor([[math.e - 1, 1 - math.e**2]]),
        "a": torch.tensor([[2]]),
    }
    inputs = np.array([[0, 0, 1, 1, -2, 0, 1, 1, 0, math.log(2)]])
    assert [tuple(layer.linear.weight.shape) for layer in encoder.mlp] == [(6, 10), (6, 6), (6, 6)]
    near(encoder(observation), naive_mlp(encoder.mlp, inputs), rtol=1e-4, atol=1e-5)


def test_image_encoder_is_conv_pool_norm_silu_four_times():
    spec = ObservationSpec({"left": (48, 64, 1), "right": (48, 64, 2)}, {}, {})
    encoder = randomized(Encoder(spec, 5, 2, FLOAT))
    assert [tuple(c.weight.shape) for c in encoder.convs] == [(4, 3, 5, 5), (6, 4, 5, 5), (8, 6, 5, 5), (8, 8, 5, 5)]
    left, right = images(0, 2, 48, 64, 1), images(1, 2, 48, 64, 2)
    x = torch.cat([left, right], -1).double().permute(0, 3, 1, 2) / 255 - 0.5
    for conv, norm in zip(encoder.convs, encoder.norms):
        x = F.conv2d(x, conv.weight.double(), conv.bias.double(), padding=2)
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).amax((3, 5))
        x = torch.from_numpy(naive_norm_silu(x.detach().permute(0, 2, 3, 1).numpy(), norm.scale)).permute(0, 3, 1, 2)
    tokens = encoder({"left": left, "right": right})
    # In which order pixels and channels are flattened does not matter.
    near(tokens.sort(-1)[0], x.flatten(1).sort(-1)[0], rtol=1e-3, atol=1e-4)


def test_bfloat16_tokens_come_from_bfloat16_products():
    encoder = Encoder(ObservationSpec({"image": (48, 48, 1)}, {"x": 2}, {}), 4, 2, torch.bfloat16)
    assert encoder({"image": images(0, 1, 48, 48, 1), "x": torch.ones(1, 2)}).dtype == torch.bfloat16


# Decoder -----------------------------------------------------------------------------------------------

MIXED = ObservationSpec({"image": (48, 64, 3), "mask": (48, 64, 1)}, {"my.position": 2}, {"card": (2, 3)})


def test_decoder_shapes_and_ranges():
    decoder = Decoder(MIXED, deter=16, stoch=12, units=5, depth=2)
    outputs = decoder(torch.randn(2, 3, 28, dtype=torch.bfloat16))
    shapes = {"image": (2, 3, 48, 64, 3), "mask": (2, 3, 48, 64, 1), "my.position": (2, 3, 2), "card": (2, 3, 5)}
    assert {key: tuple(output.shape) for key, output in outputs.items()} == shapes
    assert all(output.dtype == torch.float32 for output in outputs.values())
    assert 0 < outputs["image"].min() < outputs["image"].max() < 1
    observation = {
        "image": images(0, 2, 3, 48, 64, 3),
        "mask": images(1, 2, 3, 48, 64, 1),
        "my.position": torch.randn(2, 3, 2),
        "card": torch.ones(2, 3, 2, dtype=torch.int64),
    }
    losses = decoder.losses(outputs, observation)
    assert set(losses) == set(shapes) and all(loss.shape == (2, 3) for loss in losses.values())


def test_image_loss_is_the_plain_sum_of_squares():
    decoder = Decoder(ObservationSpec({"image": (48, 64, 3)}, {}, {}), 16, 4, 4, 2)
    outputs = {"image": torch.full((3, 48, 64, 3), 0.5)}
    target = torch.zeros(3, 48, 64, 3, dtype=torch.uint8)
    target[1] = 255
    target[2] = 51  # 51/255 = 0.2
    pixels = 48 * 64 * 3
    near(decoder.losses(outputs, {"image": target})["image"], [pixels / 4, pixels / 4, pixels * 0.09], rtol=1e-4)


def test_float_loss_is_the_plain_sum_of_squares_in_symlog_space():
    decoder = Decoder(ObservationSpec({}, {"x": 2}, {}), 16, 4, 4, 2)
    target = {"x": torch.tensor([[math.e - 1, 0.0], [1 - math.e**2, 1 - math.e]])}
    near(decoder.losses({"x": torch.tensor([[1.0, 2.0], [1.0, 1.0]])}, target)["x"], [4.0, 9 + 4])


def test_integer_loss_is_the_cross_entropy_of_each_entry():
    decoder = Decoder(ObservationSpec({}, {}, {"x": (2, 3)}), 16, 4, 4, 2)
    logits = torch.tensor([[math.log(3), 0, 0, 0, 0], [math.log(3), 0, math.log(2), 0, 0]])
    target = {"x": torch.tensor([[0, 2], [1, 0]])}
    # -ln(3/4) - ln(1/3), and -ln(1/4) - ln(1/2)
    near(decoder.losses({"x": logits}, target)["x"], [math.log(4), math.log(8)])


def test_predictions_are_in_the_units_of_the_observation():
    decoder = Decoder(ObservationSpec({"image": (48, 48, 1)}, {"x": 2}, {"y": (2, 3)}), 16, 4, 4, 2)
    image = torch.rand(1, 48, 48, 1)
    outputs = {
        "image": image,
        "x": torch.tensor([[math.log(3), -math.log(11)]]),
        "y": torch.tensor([[0.0, 1.0, 0.0, 0.0, 5.0]]),
    }
    predictions = decoder.predict(outputs)
    near(predictions["image"], image)
    near(predictions["x"], [[2, -10]])
    assert predictions["y"].tolist() == [[1, 2]]


def test_vector_decoder_is_three_layers_and_a_linear_for_each_key():
    decoder = randomized(Decoder(ObservationSpec({}, {"b": 2}, {"a": (3,)}), 16, 4, 6, 2))
    feature = torch.randn(5, 20)
    x = naive_mlp(decoder.mlp, feature.double().numpy())
    assert len(decoder.mlp) == 3 and decoder.vector_keys == ["a", "b"]
    outputs = decoder(feature)
    near(outputs["a"], naive_linear(decoder.vector_heads[0], x), rtol=1e-4, atol=1e-4)
    near(outputs["b"], naive_linear(decoder.vector_heads[1], x), rtol=1e-4, atol=1e-4)


def naive_start(decoder: Decoder, feature: torch.Tensor, height: int, width: int, channels: int):
    """Where the image decoder begins: blocks of deter become channel groups, stoch is laid out plainly."""
    deter, stoch = feature[:, : decoder.deter].double(), feature[:, decoder.deter :].double().numpy()
    flat = deter @ torch.block_diag(*decoder.from_deter.weight).double() + decoder.from_deter.bias
    grouped = np.stack(  # 'n (g h w c) -> n h w (g c)'
        [x.reshape(8, height, width, channels // 8).transpose(1, 2, 0, 3) for x in flat.detach().numpy()]
    ).reshape(-1, height, width, channels)
    layer, linear = decoder.from_stoch
    x = naive_norm_silu(naive_linear(layer.linear, stoch), layer.scale)
    return grouped + naive_linear(linear, x).reshape(-1, height, width, channels)


def test_blocks_of_deter_become_channel_groups():
    decoder = randomized(Decoder(ObservationSpec({"image": (48, 64, 1)}, {}, {}), 24, 6, 5, depth=4))
    seen = []
    decoder.start_norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    feature = torch.randn(2, 30)
    decoder(feature)
    expected = naive_start(decoder, feature, 3, 4, 16)
    near(seen[0].permute(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-4)
    # One number of block 5 moves exactly the channels 10 and 11 of 16, at every pixel.
    feature[0, 5 * 3] += 1
    decoder(feature)
    moved = (seen[1] - seen[0]).abs()[0].amax((1, 2)) > 0
    assert moved.nonzero().flatten().tolist() == [10, 11]


def test_image_decoder_is_up_conv_norm_silu_and_ends_in_a_sigmoid():
    spec = ObservationSpec({"left": (48, 64, 1), "right": (48, 64, 2)}, {}, {})
    decoder = randomized(Decoder(spec, 16, 6, 5, depth=2))
    assert decoder.from_stoch[0].linear.weight.shape == (2 * 5, 6)
    assert [tuple(c.weight.shape[:2]) for c in decoder.convs] == [(8, 8), (6, 8), (4, 6)]
    feature = torch.randn(2, 22)
    x = naive_norm_silu(naive_start(decoder, feature, 3, 4, 8), decoder.start_norm.scale)
    for i, conv in enumerate([*decoder.convs, decoder.image_head]):
        x = torch.from_numpy(x.repeat(2, axis=1).repeat(2, axis=2)).permute(0, 3, 1, 2)
        x = F.conv2d(x, conv.weight.double(), conv.bias.double(), padding=2).detach().permute(0, 2, 3, 1).numpy()
        if i < 3:
            x = naive_norm_silu(x, decoder.norms[i].scale)
    expected = 1 / (1 + np.exp(-x))
    outputs = decoder(feature)
    near(outputs["left"], expected[..., :1], atol=1e-4)
    near(outputs["right"], expected[..., 1:], atol=1e-4)
