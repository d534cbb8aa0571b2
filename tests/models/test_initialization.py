"""How new networks start: each kind of layer against the released code's formula, by mean, deviation and shape.

Of n draws the mean lies within 5 / sqrt(n) deviations of its value, and the deviation within 5 / sqrt(2n) of itself
(normal; narrower for others), but once in a million times; the fourth moment tells a normal from a uniform.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from image_networks import mobile_network
from tada.adaptation import adapt
from tada.models.resnet3d import Host, HostConfig
from tada.models.tada2d import TAda2D, TAda2DConfig
from tada.models.tadaconvnext import TAdaConvNeXt, TAdaConvNeXtConfig
from tada.models.tadaformer import TAdaFormer, TAdaFormerConfig
from tada.tadaconv import Routing

_FOURTH_MOMENTS = {"normal": 3.0, "uniform": 1.8}


def assert_drawn(weight: Tensor, distribution: str, deviation: float) -> None:
    """Zero mean, the deviation, and the distribution's fourth moment over the squared variance."""
    values = weight.detach().double().flatten()
    n = len(values)
    assert n >= 20_000, "too few to tell"
    assert abs(values.mean()) < 5 * deviation / math.sqrt(n)
    assert values.std() == pytest.approx(deviation, rel=5 / math.sqrt(2 * n))
    fourth = (values / deviation).pow(4).mean()
    assert fourth == pytest.approx(_FOURTH_MOMENTS[distribution], abs=5 * math.sqrt(96 / n))
    if distribution == "uniform":
        assert values.abs().max() <= deviation * math.sqrt(3) * (1 + 1e-6)


def assert_as_pytorch_draws(layer: Any) -> None:
    """Uniform within 1 / sqrt(fan_in), weights and biases."""
    fan_in = layer.weight[0].numel()
    assert_drawn(layer.weight, "uniform", 1 / math.sqrt(3 * fan_in))
    assert layer.bias.abs().max() <= 1 / math.sqrt(fan_in)
    assert layer.bias.std() > 0.4 / math.sqrt(fan_in)


def assert_starts_as_tada2d(routing: Routing | None, *, channels: int, hidden: int) -> None:
    """Normal, variance 2 / fan_out, where fan_out counts outputs times the kernel's frames; biases 0."""
    assert routing is not None
    assert routing.context is not None
    assert routing.reduce is not None
    assert routing.reduce.bias is not None
    context_out = hidden if routing.joins_hidden_layer else channels
    assert routing.context.weight.shape == (context_out, channels)
    assert routing.reduce.weight.shape == (hidden, channels, 3)
    assert_drawn(routing.context.weight, "normal", math.sqrt(2 / context_out))
    assert_drawn(routing.reduce.weight, "normal", math.sqrt(2 / (hidden * 3)))
    for zero in (routing.context.bias, routing.reduce.bias, routing.alpha.weight):
        assert not zero.any()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("start", ["image", "motion"])
def test_tada2d(start: Any) -> None:
    config = TAda2DConfig(block="bottleneck", depths=(1,), widths=(256,), num_classes=100, start=start)
    network = TAda2D(config)
    block: Any = network.stages[0][0]  # type: ignore[index]
    if start == "image":
        assert_starts_as_tada2d(block.conv2.conv.routing, channels=256, hidden=64)
        assert not block.conv2.norm.pooled_norm.weight.any()
    assert_drawn(block.conv2.conv.weight, "normal", math.sqrt(2 / (256 * 9)))
    assert_drawn(block.conv3.weight, "normal", math.sqrt(2 / 1024))
    assert_as_pytorch_draws(network.head)


def test_the_published_networks_routing_functions_are_where_the_release_starts_them() -> None:
    """2.45 and 4.9 times PyTorch's deviations, which they had before."""
    routing = Routing(512)
    assert routing.context is not None
    assert routing.reduce is not None
    assert routing.context.weight.std().item() * math.sqrt(3 * 512) == pytest.approx(2.449, rel=0.02)
    assert routing.reduce.weight.std().item() * math.sqrt(3 * 512 * 3) == pytest.approx(4.899, rel=0.02)


def test_tadaconvnext() -> None:
    network = TAdaConvNeXt(TAdaConvNeXtConfig(depths=(1,), widths=(256,), num_classes=100))
    block: Any = network.stages[0][0]  # type: ignore[index]
    routing = block.conv.routing
    for layer in (routing.context, routing.reduce, network.head):
        assert_as_pytorch_draws(layer)
    assert not routing.alpha.weight.any()
    assert not routing.beta.weight.any()
    # Cut at two deviations, a normal's deviation is 0.8796 of what it was.
    assert block.widen.weight.std().item() == pytest.approx(0.8796 * 0.02, rel=0.01)
    assert block.widen.weight.abs().max() <= 0.04
    assert not block.widen.bias.any()


def test_tadaformer() -> None:
    config = TAdaFormerConfig(
        width=256, depth=1, heads=4, patch=16, grid=(14, 14), tada_blocks=2, reduce_over_time=True
    )
    network = TAdaFormer(config)
    block: Any = network.blocks[0]
    assert_drawn(network.positional_embedding, "normal", 1 / 16)
    for layer in (block.tada.reduce, block.tada2.reduce, block.attention.projection, block.widen, block.narrow):
        assert_drawn(layer.weight, "normal", 0.02)
        assert not layer.bias.any()
    for layer in (block.tada.conv.routing.alpha, block.tada.conv.routing.beta):
        assert_drawn(layer.weight, "normal", 0.02)
    assert_drawn(block.attention.qkv.weight, "uniform", math.sqrt(2 / (4 * 256)))
    for zero in (block.tada.expand.weight, block.tada2.expand.bias, block.tada.norm.pooled_norm.weight):
        assert not zero.any()
    assert_drawn(network.stem.weight, "uniform", 1 / math.sqrt(3 * network.stem.weight[0].numel()))


def test_hosts_and_what_adapt_adds() -> None:
    host = Host(HostConfig(kernel="1x3x3", depths=(1, 1), reduce_frames=(1, 1), temporal_strides=(1, 1), width=128))
    adapt(host, where="slow.stages.1.0.conv2")
    block: Any = host.slow.stages[1][0]  # type: ignore[index]
    assert_starts_as_tada2d(block.conv2.routing, channels=256, hidden=64)
    assert_drawn(host.head.weight, "normal", 0.01)
    assert not host.head.bias.any()
    for kernel in ("3x3x3", "1x3x3+3x1x1"):
        config = HostConfig(kernel=kernel, depths=(1,), reduce_frames=(1,), temporal_strides=(1,))  # type: ignore[arg-type]
        assert_as_pytorch_draws(Host(config).head)


def test_adapted_depthwise_convolutions() -> None:
    network = mobile_network(((1, 64, 1, 1, 3), (64, 64, 1, 1, 3)))
    _, report = adapt(network)
    name = report.changed[-1].name
    conv: Any = dict(network.named_modules())[name]
    assert_starts_as_tada2d(conv.routing, channels=4096, hidden=6)


def test_networks_of_layer_norms_get_routing_functions_as_tadaconvnext_has() -> None:
    blocks = [nn.Sequential(nn.Conv2d(256, 256, 3, padding=1, groups=2), nn.GELU()) for _ in range(2)]
    network = nn.Sequential(*blocks)
    adapt(network, where="0.0")
    conv: Any = blocks[0][0]
    assert_as_pytorch_draws(conv.routing.context)
    assert_as_pytorch_draws(conv.routing.reduce)
