"""TAdaConvNeXt: its parts against PyTorch's own, its size, and what calibration and stochastic depth do to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_fuse import with_drawn_weights
from torch.utils.flop_counter import FlopCounterMode

from reference.tadaconv_v2 import literal_next_block
from tada.errors import CheckpointError, OptionError
from tada.models import create_model
from tada.models.tadaconvnext import ConvNeXtBlock, Stem, TAdaConvNeXt, TAdaConvNeXtConfig
from tada.models.weights import convert_published

SMALL: dict[str, Any] = {"depths": [1, 2], "widths": [8, 16], "kernel": 5}


def small(name: str = "tadaconvnext_mini", **options: Any) -> TAdaConvNeXt:
    torch.manual_seed(0)
    if name == "tadaconvnextv2_mini":
        options = {"routing_head_channels": 2} | options
    model = create_model(name, num_classes=3, **SMALL, **options)
    assert isinstance(model, TAdaConvNeXt)
    return model.double().eval()


@pytest.mark.parametrize(
    ("name", "millions"),
    [("convnext_t", 27.9), ("convnext_s", 49.5), ("convnext_b", 87.6), ("tadaconvnext_t", 38.66)],
)
def test_parameters(name: str, millions: float) -> None:
    """ConvNeXt's own counts with 1000 classes are 28.6, 50.2 and 88.6 million; here there are 400 classes."""
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=1e-2)


@pytest.mark.parametrize(("frames", "side", "giga"), [(16, 224, 36.02), (16, 256, 47.02), (32, 224, 72.03)])
def test_multiply_adds(frames: int, side: int, giga: float) -> None:
    """As the paper counts them, with five for each value that a block normalizes."""
    with torch.device("meta"):
        model, clips = create_model("tadaconvnext_t").eval(), torch.empty(1, 3, frames, side, side)
    normalized: list[int] = []
    for block in model.modules():
        if isinstance(block, ConvNeXtBlock):
            block.norm.register_forward_hook(lambda module, inputs, output: normalized.append(output.numel()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(clips)
    multiply_adds = counter.get_total_flops() // 2 + 5 * sum(normalized)
    assert round(multiply_adds / 1e9, 2) == giga


def test_frames_smaller_than_its_stride_are_refused() -> None:
    model = small()
    assert model(torch.zeros(1, 3, 2, 8, 9, dtype=torch.float64)).shape == (1, 3)
    with pytest.raises(OptionError, match=r"clips of 9 x 7 pixels are smaller than this network's stride: .* 8 x 8 "):
        model(torch.zeros(1, 3, 2, 9, 7, dtype=torch.float64))


@pytest.mark.parametrize("t", [1, 2, 5, 8])
def test_stem_is_its_3d_convolution(t: int) -> None:
    torch.manual_seed(0)
    stem = Stem(8).double()
    clips = torch.randn(2, 3, t, 10, 13).double()
    frames, num_frames = stem(clips)
    y = stem.conv(clips)
    expected = F.layer_norm(y.movedim(1, -1), (8,), stem.norm.weight, stem.norm.bias, 1e-6).movedim(-1, 1)
    assert num_frames == y.shape[2] == (t + 1) // 2
    torch.testing.assert_close(frames.view(2, num_frames, 8, 2, 3).transpose(1, 2), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["tadaconvnext_mini", "convnext_mini", "tadaconvnextv2_mini"])
@pytest.mark.parametrize("t", [1, 2, 5])
def test_takes_clips_of_any_length(name: str, t: int) -> None:
    model = small(name)
    clips = torch.randn(2, 3, t, 24, 20).double()
    features = model.features(clips)
    assert features.shape == (2, 16)
    torch.testing.assert_close(model(clips), model.head(features))
    assert model.train()(clips).shape == (2, 3)


@pytest.mark.parametrize("name", ["tadaconvnext_mini", "tadaconvnextv2_mini"])
def test_a_new_network_is_its_convnext(name: str) -> None:
    """Calibration starts at one, so only the shared weights count; and afterwards the order of frames does."""
    model = small(name)
    plain = small("convnext_mini", activation=model.config.activation)
    weights = {key.replace(".norm.norm.", ".norm."): value for key, value in model.state_dict().items()}
    plain.load_state_dict({key: v for key, v in weights.items() if ".routing." not in key and "pooled" not in key})
    clips = torch.randn(2, 3, 8, 24, 20).double()
    torch.testing.assert_close(model(clips), plain(clips), rtol=1e-12, atol=1e-12)
    for name, parameter in model.named_parameters():
        if "routing.alpha" in name or "routing.beta" in name:
            torch.nn.init.normal_(parameter)
    assert not torch.allclose(model(clips), plain(clips), atol=1e-4)


@pytest.mark.parametrize(("n", "t", "head_channels", "heads"), [(2, 3, 4, 1), (1, 5, 2, 2), (1, 1, 1, 4)])
def test_a_block_of_v2_is_its_slow_form(n: int, t: int, head_channels: int, heads: int) -> None:
    block = small("tadaconvnextv2_mini", routing_head_channels=head_channels).stages[0][0]  # type: ignore[index]
    assert isinstance(block, ConvNeXtBlock)
    with_drawn_weights(block)
    clips = torch.randn(n, 8, t, 5, 7).double()
    with torch.no_grad():
        frames = block(clips.transpose(1, 2).flatten(0, 1), t)
        expected = literal_next_block(block, clips, heads=heads)
    torch.testing.assert_close(frames.unflatten(0, (n, t)).transpose(1, 2), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["tadaconvnext_mini", "tadaconvnextv2_mini"])
def test_every_weight_is_trained(name: str) -> None:
    model = small(name, layer_scale=0.5).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model(torch.randn(2, 3, 6, 24, 20).double()).square().sum().backward()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert still == []


def test_a_clip_leaves_out_a_block_as_a_whole() -> None:
    torch.manual_seed(0)
    block = ConvNeXtBlock(8, drop=0.5, config=TAdaConvNeXtConfig(depths=(1,), widths=(8,), layer_scale=1.0)).train()
    frames = torch.randn(16 * 3, 8, 6, 6)
    added = (block(frames, 3) - frames).detach().view(16, 3, -1).abs().amax(2)
    left_out = (added == 0).all(1)
    assert ((added == 0).any(1) == left_out).all()
    assert 2 <= left_out.sum() <= 14
    block.eval()
    mean = torch.stack([block.train()(frames, 3) for _ in range(400)]).mean(0)
    torch.testing.assert_close(mean, block.eval()(frames, 3), rtol=0.2, atol=0.4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (8,)}, r"should have one entry for each stage"),
        ({"depths": (1, 0)}, r"should all be positive"),
        ({"kernel": 4}, r"self.kernel = 4 should be odd"),
        ({"num_classes": 0}, r"self.num_classes = 0 should be at least 1"),
        ({"stochastic_depth": 1.0}, r"self.stochastic_depth = 1.0 should lie in \[0, 1\)"),
        ({"dropout": -0.1}, r"self.dropout = -0.1 and"),
        ({"activation": "relu"}, r"self.activation = 'relu' should be 'gelu' or 'quick_gelu'"),
        (
            {"routing_head_channels": 4},
            r"= 4 and self.routing_global_context = True exclude each other: atten",
        ),
    ],
)
def test_bad_configs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TAdaConvNeXtConfig(**{"depths": (1, 1), "widths": (8, 8)} | fields)


def test_released_weights_of_another_shape() -> None:
    released = {
        f"backbone.stages.{stage}.{block}.gamma": torch.zeros(96)
        for stage, depth in enumerate((3, 3, 9, 3))
        for block in range(depth)
    }
    with pytest.raises(CheckpointError, match=r"not the weights of a released tadaconvnext_t: \d+ of \d+ weights do"):
        convert_published(released)
    del released["backbone.stages.3.2.gamma"]
    with pytest.raises(CheckpointError, match=r"stages of \[3, 3, 9, 2\] blocks from 96 channels instead of \[3, 3, 9"):
        convert_published(released)
