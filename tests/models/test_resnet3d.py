"""The hosts of the plug-in experiments: their sizes, what they make of clips, and that adapting changes no output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tada.adaptation import adapt
from tada.errors import OptionError
from tada.models import create_model, list_models
from tada.models.resnet3d import Host, HostConfig
from tada.tadaconv import TAdaConv3d

HOSTS = [f"{name}_{size}" for name in ("slowonly", "slowfast", "r2plus1d", "r3d") for size in ("tiny", "r50")]


def host(name: str, **options: Any) -> Host:
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, **options)
    assert isinstance(model, Host)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):  # a trained network's norms are not those of a new one
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return model.double().eval()


@pytest.mark.parametrize(
    ("name", "millions"),
    [("slowonly_r50", 32.45), ("slowfast_r50", 34.48), ("r3d_r50", 46.98), ("r2plus1d_r50", 28.12)],
)
def test_parameters(name: str, millions: float) -> None:
    """SlowOnly and SlowFast 4x16 as in SlowFast's model zoo, which counts 400 classes."""
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_all_are_listed() -> None:
    assert set(HOSTS) <= set(list_models())


@pytest.mark.parametrize("name", HOSTS)
def test_adapting_changes_no_output(name: str) -> None:
    model = host(name)
    before = {key: parameter for key, parameter in model.named_parameters()}
    clips = torch.randn(1, 3, 8, 32, 40).double()
    with torch.no_grad():
        expected = model(clips)
        adapted, report = adapt(model)
        output = adapted(clips)
    assert adapted is model
    assert (output - expected).norm() <= 1e-9 * expected.norm()
    after = dict(adapted.named_parameters())
    assert all(after[key] is parameter for key, parameter in before.items())
    assert all(".routing." in key for key in after.keys() - before.keys())
    adaptive = {key for key, module in model.named_modules() if isinstance(module, TAdaConv3d)}
    assert adaptive == {convolution.name for convolution in report.changed}
    k_above_one = {
        k for k, module in model.named_modules() if "stages" in k and max(getattr(module, "kernel_size", (1,))) > 1
    }
    assert adaptive == {key for key in k_above_one if ".routing." not in key}


@pytest.mark.parametrize("name", HOSTS[::2])
def test_adapted_is_an_option(name: str) -> None:
    model, plain = host(name, adapted=True), host(name)
    plain.load_state_dict({key: v for key, v in model.state_dict().items() if ".routing." not in key})
    clips = torch.randn(2, 3, 8, 24, 24).double()
    torch.testing.assert_close(model(clips), plain(clips), rtol=1e-9, atol=1e-12)
    assert model.features(clips).shape == (2, model.head.in_features)
    model.train()(clips).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_temporal_strides_thin_out_frames() -> None:
    model = host("r2plus1d_tiny", temporal_strides=[1, 2, 2], adapted=True)
    x = model.slow.stem(torch.randn(1, 3, 8, 24, 24).double())
    frames = []
    for stage in range(3):
        x = model.slow.run_stage(stage, x)
        frames.append(x.shape[2])
    assert frames == [8, 4, 2]


def test_slowfast_needs_whole_groups_of_frames() -> None:
    with pytest.raises(OptionError, match=r"a clip of 6 frames; SlowFast needs a multiple of 4 \(clip.num_frames\)"):
        host("slowfast_tiny")(torch.randn(1, 3, 6, 24, 24).double())


@pytest.mark.parametrize("shape", [(2, 4, 8, 24, 24), (2, 1, 8, 24, 24), (3, 8, 24, 24), (2, 8, 3, 24, 24)])
def test_other_than_clips_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=r"clips \[.*24\] should be \[N, 3, T, H, W\], with three colors"):
        host("slowonly_tiny", adapted=True)(torch.zeros(shape).double())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel": "5x5x5"}, r"self.kernel = '5x5x5' should be '1x3x3', '1x3x3\+3x1x1' or '3x3x3'"),
        ({"depths": (1,)}, r"should have one entry for each stage"),
        ({"width": 0}, r"should all be positive"),
        ({"stem_sides": 4}, r"should all be odd"),
        ({"num_classes": 0}, r"self.num_classes = 0 should be at least 1"),
        ({"dropout": 1.0}, r"self.dropout = 1.0 should lie in \[0, 1\)"),
    ],
)
def test_bad_configs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        HostConfig(**{"kernel": "3x3x3"} | fields)
