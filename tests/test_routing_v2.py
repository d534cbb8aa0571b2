"""The routing function with attention over time against loops over heads, frames and channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reference.tadaconv import looped_tadaconv
from reference.tadaconv_v2 import looped_routing_v2
from tada.errors import OptionError
from tada.tadaconv import TAdaConv2d
from tada.tadaconv.routing_v2 import RoutingV2


def stirred(routing: RoutingV2) -> RoutingV2:
    torch.manual_seed(0)
    for parameter in routing.parameters():
        nn.init.normal_(parameter, std=0.5)
    return routing.double()


@pytest.mark.parametrize("zero_init", [True, False])
@pytest.mark.parametrize(("ratio", "head_channels", "heads"), [(2, 6, 1), (2, 3, 2), (2, 2, 3), (1, 3, 4), (3, 1, 4)])
@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_the_scales_are_those_of_the_loops(
    zero_init: bool, ratio: int, head_channels: int, heads: int, num_frames: int
) -> None:
    routing = stirred(RoutingV2(12, bias_channels=12, ratio=ratio, head_channels=head_channels, zero_init=zero_init))
    descriptors = torch.randn(2, 12, num_frames).double()
    alpha, beta = looped_routing_v2(routing, descriptors, heads=heads, plus_one=zero_init)
    found = routing(descriptors)
    torch.testing.assert_close(found.alpha, alpha, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found.beta, beta, rtol=1e-11, atol=1e-11)


def test_in_a_convolution_of_frames_that_are_not_square() -> None:
    """With other numbers of channels in and out, and no bias to scale."""
    torch.manual_seed(0)
    conv = TAdaConv2d(
        4, 6, 3, padding=1, bias=False, calibrate="out", routing=RoutingV2(4, out_channels=6, head_channels=1)
    ).double()
    assert isinstance(conv.routing, RoutingV2)
    stirred(conv.routing)
    clips = torch.randn(2, 4, 3, 5, 8).double()
    (alpha,) = looped_routing_v2(conv.routing, clips.mean((3, 4)), heads=2, plus_one=True)
    expected = looped_tadaconv(clips, conv.weight, None, alpha, calibrate="out", padding=1)
    torch.testing.assert_close(conv(clips), expected, rtol=1e-11, atol=1e-11)


def test_how_it_starts() -> None:
    torch.manual_seed(0)
    new, drawn = (RoutingV2(256, bias_channels=256, zero_init=zero_init) for zero_init in (True, False))
    descriptors = torch.randn(1, 256, 4)
    assert all((scales == 1).all() for scales in new(descriptors))
    for routing, layers in (
        (new, [new.reduce, new.attention.qkv, new.attention.projection]),
        (drawn, [drawn.reduce, drawn.attention.qkv, drawn.attention.projection, drawn.alpha, drawn.beta]),
    ):
        for layer in layers:
            assert isinstance(layer, nn.Conv1d | nn.Linear)
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
            assert layer.bias is None or not layer.bias.any()
        assert drawn(descriptors).alpha.abs().mean() < 0.5, "nothing is added"
        assert routing.attention.norm.weight.eq(1).all()
    torch.manual_seed(0)
    again = RoutingV2(256, bias_channels=256)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in new.state_dict().items())


def test_faults() -> None:
    with pytest.raises(OptionError, match=r"head_channels = 48 should divide the 32 hidden channels of a routing"):
        RoutingV2(64, head_channels=48)
    with pytest.raises(OptionError, match=r"kernel_sizes = \(3,\) should be two numbers: attention needs a hidden"):
        RoutingV2(64, kernel_sizes=(3,))  # type: ignore[arg-type]
