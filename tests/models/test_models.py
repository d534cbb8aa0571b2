"""The networks by name; that each takes any number of frames; what the paper's parts do to their weights."""

from __future__ import annotations

import pytest
import torch

from tada.errors import OptionError, UnknownNameError
from tada.models import MODELS, create_model, list_models
from tada.models.tada2d import TAda2D, TAda2DConfig
from tada.tadaconv import Routing, TAdaConv2d, TemporalAggregation


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(name: str, **options: object) -> TAda2D:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return create_model(name, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
def test_every_name_builds_its_network(name: str) -> None:
    model = on_meta(name, num_classes=7)
    assert model.head.out_features == 7
    temporal = any(isinstance(module, TAdaConv2d | TemporalAggregation) for module in model.modules())
    assert temporal == name.startswith("tada")


def test_parameters() -> None:
    assert num_parameters(on_meta("tada2d_r50")) == 27_485_472
    # torchvision's resnet50 and resnet101 have as many.
    assert num_parameters(on_meta("tsn_r50", num_classes=1000)) == 25_557_032
    assert num_parameters(on_meta("tsn_r101", num_classes=1000)) == 44_549_160
    # resnet18 has 11,689,512; here its first block strides, so that it needs a shortcut of 64 * 64 and a norm of 128.
    assert num_parameters(on_meta("tsn_r18", num_classes=1000)) == 11_689_512 + 64 * 64 + 128
    assert num_parameters(on_meta("tada2d_tiny", num_classes=10)) < 1_500_000


@pytest.mark.parametrize("name", ["tsn_tiny", "tada2d_tiny"])
@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_takes_clips_of_any_length(name: str, num_frames: int) -> None:
    model = create_model(name, num_classes=3, num_frames=num_frames).eval()
    clips = torch.randn(2, 3, num_frames, 24, 32)
    features = model.features(clips)
    assert features.shape == (2, model.head.in_features)
    torch.testing.assert_close(model(clips), model.head(features))


@pytest.mark.parametrize(
    ("name", "num_frames", "side"),
    [("tada2d_tiny", 1, 32), ("tada_lite0", 1, 32), ("slowonly_tiny", 1, 16), ("slowfast_tiny", 4, 16)],
)
def test_training_on_one_value_per_channel_is_refused(name: str, num_frames: int, side: int) -> None:
    model = create_model(name, num_classes=3)
    clips = torch.randn(1, 3, num_frames, side, side)
    message = rf"clips \[1, 3, {num_frames}, {side}, {side}\] are too few or too small .* more than {side} pixels"
    with pytest.raises(OptionError, match=message):
        model(clips)
    model(torch.randn(1, 3, num_frames, side, side + 1))  # two values have a variance
    model(torch.cat([clips, clips], dim=2))
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    model(clips)


def test_tsn_averages_frames() -> None:
    torch.manual_seed(0)
    model = create_model("tsn_tiny", num_classes=3).double().eval()
    clips = torch.randn(2, 3, 4, 24, 24).double()
    frames = torch.stack([model.features(clips[:, :, t : t + 1]) for t in range(4)]).mean(0)
    torch.testing.assert_close(model.features(clips), frames, rtol=1e-12, atol=1e-12)


def test_a_new_tada2d_is_its_tsn() -> None:
    """Calibration starts at one and the pooled norms at zero, so only the shared weights count."""
    torch.manual_seed(0)
    tada2d = create_model("tada2d_tiny", num_classes=3, start="image").eval()
    tsn = create_model("tsn_tiny", num_classes=3, start="image").eval()
    theirs = tada2d.state_dict()
    shared = {name: theirs.get(name, theirs.get(name.replace(".norm.", ".norm.norm."))) for name in tsn.state_dict()}
    tsn.load_state_dict(shared)
    clips = torch.randn(1, 3, 4, 24, 24)
    torch.testing.assert_close(tada2d(clips), tsn(clips))


def test_started_for_motion_a_still_clip_moves_no_routing_function() -> None:
    torch.manual_seed(0)
    model = create_model("tada2d_tiny", num_classes=3, start="motion")
    routings = [module for module in model.modules() if isinstance(module, Routing)]
    assert len(routings) == 8
    for routing in routings:
        still = torch.randn(2, routing.in_channels, 1).expand(-1, -1, 5)
        assert routing.context is not None
        assert routing.reduce is not None
        seen = still + routing.context(still.mean(2))[:, :, None]
        torch.testing.assert_close(seen, torch.zeros_like(seen))
        # A steady change gives a frame the change around it; played backwards, its opposite.
        change = torch.randn(2, routing.in_channels, 5)
        forwards = routing.reduce(change) - routing.reduce.bias[:, None]
        backwards = routing.reduce(change.flip(2)) - routing.reduce.bias[:, None]
        torch.testing.assert_close(forwards, -backwards.flip(2))
    norms = [module for module in model.modules() if isinstance(module, TemporalAggregation)]
    assert not any(norm.pooled_norm.weight.any() for norm in norms)  # as in the paper: what is still stays visible


def test_order_of_frames_counts_once_trained() -> None:
    torch.manual_seed(0)
    model = create_model("tada2d_tiny", num_classes=3).eval()
    for name, parameter in model.named_parameters():
        if "routing.alpha" in name:
            torch.nn.init.normal_(parameter)
    clips = torch.randn(1, 3, 4, 24, 24)
    assert not torch.allclose(model.features(clips), model.features(clips.flip(2)), rtol=1e-2)


def test_list_models() -> None:
    assert list_models() == list(MODELS)
    assert list_models("tada2d_r*") == ["tada2d_r18", "tada2d_r50", "tada2d_r101"]
    assert list_models("x3d*") == []


def test_options() -> None:
    model = create_model("tada2d_tiny", num_classes=3, depths=[1, 1], widths=[8, 16], routing_kernel_sizes=[1, 1])
    assert model.config == TAda2DConfig(
        block="basic",
        depths=(1, 1),
        widths=(8, 16),
        stem_width=model.config.stem_width,
        stem_kernel=model.config.stem_kernel,
        dropout=model.config.dropout,
        num_classes=3,
        routing_kernel_sizes=(1, 1),
        start="motion",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, r"num_frames = 0 should be at least 1"),
        ({"width": 3}, r"tada2d_tiny has no option 'width'; it has aggregation, block, calibrate, depths, dropout"),
        ({"depths": 3}, r"tada2d_tiny cannot be built with \{'depths': 3\}: "),
        ({"depths": (1, 1)}, r"self.depths = \(1, 1\) and self.widths = .* should have one entry for each stage"),
        ({"widths": (8, 16, 0, 8)}, r"self.widths = .*\(8, 16, 0, 8\)\) should all be positive"),
        ({"block": "wide"}, r"self.block = 'wide' should be 'basic' or 'bottleneck'"),
        ({"dropout": 1.0}, r"self.dropout = 1.0 should lie in \[0, 1\)"),
        ({"num_classes": 0}, r"self.num_classes = 0 should be at least 1"),
        ({"calibrate": "cin"}, r"calibrate = 'cin' should be 'in' or 'out'"),
        ({"aggregation": "sum"}, r"pool = 'sum' should be 'avg', 'max' or 'mix'"),
        ({"routing_ratio": 0}, r"ratio = 0 should be at least 1"),
        ({"routing_kernel_sizes": (2, 3)}, r"kernel_sizes = \(2, 3\) should be odd"),
    ],
)
def test_faults_of_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create_model("tada2d_tiny", **options)  # type: ignore[arg-type]


def test_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match=r"no model is called 'tada2d_r5O'; did you mean 'tada2d_r50'\?"):
        create_model("tada2d_r5O")
