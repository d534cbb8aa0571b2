"""``tada.adapt``: the same output before and after, the right convolutions, and everything a network is used for."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tada
from image_networks import EFFICIENTNET_LITE0, MOBILENET_V2, Conv2dSame, Conv2dStaticSame, mobile_network
from tada import adaptation
from tada.adaptation import AdaptReport, ClipNetwork, FrameConv2d, adapt
from tada.adaptation.own_padding import find_own_padding
from tada.errors import OptionError
from tada.models import create_model
from tada.models.fuse import fuse
from tada.tadaconv import Routing, TAdaConv2d, TAdaConv3d
from tada.tadaconv.routing_v2 import AttentionOverTime, RoutingV2


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, conv: type[nn.Module] = nn.Conv2d, **options: Any) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if conv is nn.Conv2d else nn.BatchNorm3d
        self.conv1, self.norm1 = conv(channels, channels, 3, padding=1, **options), norm(channels)
        self.conv2, self.norm2 = conv(channels, channels, 1), norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class ImageNetwork(nn.Module):
    """A stem, stages of blocks with a downsampling between them, a head: as image networks are."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.layer1 = nn.Sequential(ResidualBlock(8, **options), ResidualBlock(8, **options))
        self.down = nn.Conv2d(8, 12, 2, stride=2)
        self.layer2 = nn.Sequential(ResidualBlock(12, **options))
        self.head = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer2(self.down(self.layer1(self.stem(images))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def image_network(**options: Any) -> ImageNetwork:
    torch.manual_seed(0)
    return ImageNetwork(**options).double().eval()


def awaken(network: nn.Module) -> None:
    """Draw the last layers of the routing functions, so that alpha differs from 1."""
    for module in network.modules():
        if isinstance(module, Routing):
            nn.init.normal_(module.alpha.weight, std=0.3)


def randomize_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    """As after training: nothing is left at 0 or 1, where it would hide a mistake."""
    for value in (*norm.parameters(), norm.running_mean, norm.running_var):
        assert value is not None
        nn.init.uniform_(value, 0.5, 1.5)


def clips(n: int = 2, t: int = 4, side: int = 16) -> Tensor:
    return torch.randn(n, 3, t, side, side, dtype=torch.float64)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


class TestImageNetworks:
    def test_output_is_that_of_every_frame(self) -> None:
        network, x = image_network(), clips()
        expected = torch.stack([network(frame) for frame in x.unbind(2)], dim=1)
        adapted, report = adapt(network)
        assert isinstance(adapted, ClipNetwork)
        assert adapted(x).shape == (2, 4, 5)
        assert relative(adapted(x), expected) <= 1e-12
        assert [c.name for c in report.changed] == ["layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1"]

    def test_in_float32(self) -> None:
        network, x = image_network().float(), clips().float()
        expected = network(x.transpose(1, 2).flatten(0, 1)).view(2, 4, 5)
        assert relative(adapt(network)[0](x), expected) <= 1e-6

    def test_a_trained_one_sees_the_clip(self) -> None:
        adapted, _ = adapt(image_network())
        awaken(adapted)
        x = clips()
        alone = torch.cat([adapted(x[:1]), adapted(x[1:])])
        torch.testing.assert_close(adapted(x), alone, rtol=1e-10, atol=1e-12)  # clips are apart
        assert relative(adapted(x[:, :, :1]), adapted(x)[:, :1]) > 1e-3  # frames are not
        assert adapted(clips(t=7)).shape == (2, 7, 5)  # another T at each call

    def test_parameters_are_kept(self) -> None:
        network = image_network()
        before = dict(network.named_parameters())
        _, report = adapt(network)
        after = dict(network.named_parameters())
        assert all(after[name] is parameter for name, parameter in before.items())
        assert all(".conv1.routing." in name for name in after.keys() - before.keys())
        added = sum(p.numel() for p in after.values()) - sum(p.numel() for p in before.values())
        assert report.parameters_after - report.parameters_before == sum(c.parameters for c in report.changed) == added

    def test_a_fixed_number_of_frames(self) -> None:
        adapted, _ = adapt(image_network(), num_frames=4)
        awaken(adapted)
        x = clips()
        frames = x.transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(adapted(frames), adapted(x).flatten(0, 1))
        assert isinstance(adapted, ClipNetwork)
        assert isinstance(adapted.network, ImageNetwork)
        assert adapted.network.layer1(adapted.network.stem(frames)).shape == (8, 8, 8, 8)  # parts know T too
        with pytest.raises(ValueError, match=r"clips of 5 frames; the network was adapted to 4"):
            adapted(clips(t=5))
        with pytest.raises(ValueError, match=r"num_frames = 4 should divide the 7 frames of x"):
            adapted(frames[:7])

    def test_bad_input(self) -> None:
        network = image_network()
        adapted, _ = adapt(network)
        for shape in ((8, 3, 16, 16), (2, 3, 0, 16, 16)):
            message = rf"clips of shape {re.escape(str(shape))} should be \[N, C, T, H, W\], of at least one frame"
            with pytest.raises(ValueError, match=message):
                adapted(torch.zeros(shape))
        for where in (3, ["stem", 3]):
            wrong: Any = where
            with pytest.raises(
                OptionError, match=rf"where = {re.escape(str(where))} should be names or patterns, or a"
            ):
                adapt(image_network(), where=wrong)
        with pytest.raises(ValueError, match=r"T is not known: call the network that adapt returned, or adapt with"):
            network(clips()[:, :, 0])
        with pytest.raises(OptionError, match=r"num_frames = 0 should be at least 1"):
            adapt(image_network(), num_frames=0)

    def test_any_output(self) -> None:
        class Many(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.blocks = nn.ModuleList([ResidualBlock(4), ResidualBlock(4)])

            def forward(self, x: Tensor, factor: float = 1.0) -> dict[str, Any]:
                y = self.blocks[0](x.mean(1, keepdim=True).expand(-1, 4, -1, -1)) * factor
                return {"maps": y, "both": (y.mean((2, 3)), [y.sum(1)]), "loss": y.sum(), "name": "many"}

        adapted, _ = adapt(Many().double())
        output = adapted(clips(), factor=2.0)
        assert output["maps"].shape == (2, 4, 4, 16, 16)
        assert output["both"][0].shape == (2, 4, 4)
        assert output["both"][1][0].shape == (2, 4, 16, 16)
        assert output["loss"].shape == ()
        assert output["name"] == "many"

    def test_networks_that_fold_frames_themselves(self) -> None:
        for num_frames in (None, 4):
            network = create_model("tsn_tiny", num_classes=3).double().eval()
            x = clips(side=32)
            expected = network(x)
            adapted, _ = adapt(network, num_frames=num_frames, folds_frames=True)
            assert (adapted is network) == (num_frames == 4)
            assert relative(adapted(x), expected) <= 1e-12

    def test_2d_among_3d(self) -> None:
        network = create_model("convnext_mini", num_classes=3, layer_scale=0.5).double().eval()
        x = clips(t=8, side=32)
        expected = network(x)
        with pytest.raises(OptionError, match=r"2-D among 3-D convolutions: give num_frames, as many as one clip has"):
            adapt(network)
        adapted, report = adapt(network, num_frames=4)  # the stem halves them
        assert adapted is network
        assert len(report.changed) == 4
        assert relative(adapted(x), expected) <= 1e-12

    def test_again(self) -> None:
        adapted, _ = adapt(image_network(), where="layer1.*.conv1")
        with pytest.raises(OptionError, match=r"temporally adaptive already \(network.layer1.0.conv1\)"):
            adapt(adapted, where="*.layer1.0.conv1")
        again, report = adapt(adapted, where="*.layer2.0.conv1")
        assert again is adapted
        assert [c.name for c in report.changed] == ["network.layer2.0.conv1"]
        awaken(again)
        assert again(clips(t=3)).shape == (2, 3, 5)


class TestWhichConvolutions:
    def names(self, network: nn.Module, **options: Any) -> list[str]:
        return [c.name for c in adapt(network, **options)[1].changed]

    def test_patterns(self) -> None:
        assert self.names(image_network(), where="layer1.*") == [
            "layer1.0.conv1",
            "layer1.0.conv2",
            "layer1.1.conv1",
            "layer1.1.conv2",
        ]
        assert self.names(image_network(), where=["stem", "layer2.0.conv?"]) == [
            "stem",
            "layer2.0.conv1",
            "layer2.0.conv2",
        ]
        with pytest.raises(OptionError, match=r"no convolution is called 'layer3\*'; there are stem, layer1.0.conv1"):
            adapt(image_network(), where=["stem", "layer3*"])

    def test_function(self) -> None:
        def strided(name: str, module: nn.Module) -> bool:
            return max(getattr(module, "stride", (1,))) > 1

        assert self.names(image_network(), where=strided) == ["stem", "down"]

    def test_the_reasons_of_the_default(self) -> None:
        _, report = adapt(image_network())
        assert {s.name: s.reason for s in report.skipped} == {
            "stem": "a stem, which reads images",
            "layer1.0.conv2": "a kernel of 1",
            "layer1.1.conv2": "a kernel of 1",
            "down": "a kernel no larger than its stride, which cuts patches",
            "layer2.0.conv2": "a kernel of 1",
        }

    def test_a_network_that_is_one_convolution(self) -> None:
        conv = nn.Conv3d(4, 6, 3, padding=1).double()
        x = torch.randn(2, 4, 5, 6, 6).double()
        expected = conv(x)
        adapted, _ = adapt(conv, where=lambda name, module: True)
        assert isinstance(adapted, TAdaConv3d)
        assert adapted.weight is conv.weight
        assert relative(adapted(x), expected) <= 1e-12

    @pytest.mark.parametrize("options", [{"groups": 4}, {"groups": 2}, {"dilation": 2}, {"bias": False}, {"stride": 1}])
    @pytest.mark.parametrize("t", [1, 4])
    def test_options_of_convolutions(self, options: dict[str, Any], t: int) -> None:
        class Clips(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Sequential(nn.Conv3d(3, 4, 1), nn.Conv3d(4, 8, 3, padding=2, **options))
                self.b = nn.Conv3d(8, 8, (1, 3, 3), **options | {"stride": (2, 1, 2)})
                self.c = nn.Conv3d(8, 4, (3, 1, 1), padding="same", **options | {"stride": 1})

            def forward(self, x: Tensor) -> Tensor:
                return self.c(self.b(self.a(x)))  # type: ignore[no-any-return]

        torch.manual_seed(0)
        network, x = Clips().double(), clips(t=t)
        expected = network(x)
        adapted, report = adapt(network, where=["a.1", "b", "c"])
        assert len(report.changed) == 3
        assert relative(adapted(x), expected) <= 1e-9

    def test_a_convolution_that_is_held_twice_stays_one(self) -> None:
        network = image_network()
        network.layer1[1].conv1 = network.layer1[0].conv1
        x = clips()
        expected = network(x.transpose(1, 2).flatten(0, 1)).view(2, 4, 5)
        adapted, report = adapt(network)
        assert [c.name for c in report.changed] == ["layer1.0.conv1", "layer2.0.conv1"]
        assert network.layer1[1].conv1 is network.layer1[0].conv1
        assert isinstance(network.layer1[1].conv1, FrameConv2d)
        assert relative(adapted(x), expected) <= 1e-12

    def test_convolutions_that_share_a_kernel_go_on_to(self) -> None:
        network = image_network()
        network.layer1[1].conv1.weight = network.layer1[0].conv1.weight
        adapt(network)
        assert network.layer1[1].conv1.weight is network.layer1[0].conv1.weight
        assert network.layer1[1].conv1.routing is not network.layer1[0].conv1.routing


class OwnForward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class WeightStandardized(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight - mean, self.bias)


class NoisyInTraining(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y + torch.randn_like(y) if self.training else y


class TakesAMask(nn.Conv2d):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(input if mask is None else input * mask)


class GainBeside(nn.Conv2d):
    def __init__(self, *channels_and_side: int, padding: int) -> None:
        super().__init__(*channels_and_side, padding=padding)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.gain


class OwnName(nn.Conv2d):
    """As torchvision's Conv3DSimple: only built otherwise."""


class QuantizedConv2d(nn.Module):
    __module__ = "torch.ao.nn.quantized.modules.conv"


def weight_normalized(conv: nn.Conv2d) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(conv)


def hooked(conv: nn.Conv2d) -> nn.Module:
    conv.register_forward_pre_hook(lambda module, inputs: None)
    return conv


def without_weight(conv: nn.Conv2d) -> nn.Module:
    weight = conv.weight.detach()
    del conv.weight
    conv.weight = weight  # type: ignore[assignment]
    return conv


class TestWhatIsSkipped:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (weight_normalized, r"parametrized, as by weight_norm: remove that, adapt, and add it again"),
            (hooked, r"with hooks, as by the old weight_norm or pruning"),
            (without_weight, r"with a weight that is no plain parameter of floats but a Tensor"),
            (lambda conv: OwnForward(8, 8, 3, padding=1), r"a OwnForward, with a forward of its own"),
            (lambda conv: nn.ConvTranspose2d(8, 8, 3, padding=1), r"a ConvTranspose2d"),
            (lambda conv: nn.Conv1d(8, 8, 3, padding=1), r"a Conv1d"),
            (lambda conv: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), r"padded by 'reflect' instead of"),
            (lambda conv: WeightStandardized(8, 8, 3, padding=1), r"a WeightStandardized, with a forward of its own"),
            (lambda conv: NoisyInTraining(8, 8, 3, padding=1), r"a NoisyInTraining, with a forward of its own"),
            (lambda conv: TakesAMask(8, 8, 3, padding=1), r"a TakesAMask, with a forward of its own"),
            (lambda conv: GainBeside(8, 8, 3, padding=1), r"a GainBeside, with a forward of its own"),
            (lambda conv: QuantizedConv2d(), r"quantized: adapt first, then quantize"),
        ],
    )
    def test_is_told_by_name(self, change: Callable[[nn.Conv2d], nn.Module], reason: str) -> None:
        network = image_network()
        network.layer1[0].conv1 = change(network.layer1[0].conv1)
        kept = network.layer1[0].conv1
        with pytest.raises(OptionError, match=rf"no conv.*ImageNetwork was changed: {reason}.* \(layer1.0.conv1\)"):
            adapt(network, where=lambda name, module: name == "layer1.0.conv1")
        assert network.layer1[0].conv1 is kept
        _, report = adapt(network)
        assert [s.name for s in report.skipped if reason.split(":")[0] in s.reason] == ["layer1.0.conv1"]
        assert [c.name for c in report.changed] == ["layer1.1.conv1", "layer2.0.conv1"]

    def test_3d_convolutions_whose_sides_differ(self) -> None:
        with pytest.raises(OptionError, match=r"padded more on one side than on the other, by 'same', in 3-D"):
            adapt(nn.Conv3d(4, 4, (3, 4, 3), padding="same"), where=lambda name, module: True)

    def test_a_subclass_without_a_forward_of_its_own_is_changed(self) -> None:
        network = image_network()
        network.layer1[0].conv1 = OwnName(8, 8, 3, padding=1).double()
        assert len(adapt(network)[1].changed) == 3

    def test_scripted(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            scripted = torch.jit.script(image_network())
        with pytest.raises(OptionError, match=r"scripted: adapt first, then script \(stem, layer1.0.conv1"):
            adapt(scripted, where="*")

    def test_lazy_layers(self) -> None:
        network = image_network()
        network.head = nn.LazyLinear(5)  # type: ignore[assignment]
        with pytest.raises(OptionError, match=r"head.weight, head.bias: lazy layers have no weights yet; run the netw"):
            adapt(network)

    def test_nothing_to_change(self) -> None:
        with pytest.raises(OptionError, match=r"no convolution of this Linear was changed: it has none; pick others"):
            adapt(nn.Linear(3, 3))
        plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        message = (
            r"was changed: a stem, which reads images \(0\); outside of the stacked blocks \(2\); pick others with"
        )
        with pytest.raises(OptionError, match=message):
            adapt(plain)

    def test_wrapped_networks(self) -> None:
        with pytest.raises(OptionError, match=r"is wrapped by OptimizedModule, which would not know of new weights"):
            adapt(torch.compile(image_network(), backend="eager"))  # type: ignore[arg-type]


class TestDepthwiseNetworks:
    @pytest.mark.parametrize(
        ("stages", "num_convolutions", "before", "after", "unbounded"),
        [(MOBILENET_V2, 17, 2_236_682, 1.134, 4.534), (EFFICIENTNET_LITE0, 16, 3_383_818, 1.111, 4.892)],
    )
    def test_grow_little(self, stages: Any, num_convolutions: int, before: int, after: float, unbounded: float) -> None:
        with torch.device("meta"):
            network = mobile_network(stages)
        _, report = adapt(copy.deepcopy(network))
        assert len(report.changed) == num_convolutions
        assert report.parameters_before == before
        assert report.parameters_after / before == pytest.approx(after, abs=5e-4)
        assert report.parameters_unbounded / before == pytest.approx(unbounded, abs=5e-4)
        lines = (f"(+{after - 1:.1%})\n", f"with ratio=4: {report.parameters_unbounded:,} (+")
        assert all(line in str(report) for line in lines)
        _, wide = adapt(network, ratio=4)
        assert wide.parameters_after == wide.parameters_unbounded == report.parameters_unbounded
        warning = "\nmore than 15%: a larger ratio, or fewer convolutions (where), add less\n"
        assert warning in str(wide)
        assert warning not in str(report)

    def test_the_last_one_of_mobilenet(self) -> None:
        with torch.device("meta"):
            network = mobile_network(MOBILENET_V2)
        _, report = adapt(network)
        last = report.changed[-1]
        # Linear 960->6, Conv1d 960->6 of 3 frames, a norm of 6, Conv1d 6->960 of 3 frames.
        assert last.parameters == (960 * 6 + 6) + (960 * 6 * 3 + 6) + 2 * 6 + 6 * 960 * 3
        assert (last.multiply_adds_per_frame, last.multiply_adds_per_clip) == (2 * 960 * 6 * 3, 960 * 6)

    def test_other_convolutions_get_the_papers_routing_functions(self) -> None:
        torch.manual_seed(0)
        weights, report = adapt(ImageNetwork())[0].state_dict(), adapt(ImageNetwork())[1]
        assert report.parameters_after == report.parameters_unbounded
        torch.manual_seed(0)
        of_four = adapt(ImageNetwork(), ratio=4)[0].state_dict()
        assert all(torch.equal(weights[name], value) for name, value in of_four.items())
        _, narrow = adapt(ImageNetwork(), ratio=8)
        assert narrow.parameters_after < narrow.parameters_unbounded == report.parameters_after
        with pytest.raises(OptionError, match=r"ratio = 0 should be at least 1"):
            adapt(ImageNetwork(), ratio=0)
        for ratio in (2.5, "4", True):
            with pytest.raises(OptionError, match=rf"ratio = {ratio!r} should be a whole number or None"):
                adapt(ImageNetwork(), ratio=ratio)  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="network = 'mobilenet' should be a Module"):
            adapt("mobilenet")  # type: ignore[arg-type]


OWN_PADDING: list[tuple[type[nn.Conv2d], dict[str, Any]]] = [
    (Conv2dSame, {}),
    (Conv2dSame, {"stride": 2}),
    (Conv2dSame, {"stride": (3, 2), "dilation": (1, 2)}),
    (Conv2dSame, {"stride": 2, "groups": 4, "bias": False}),
    (Conv2dStaticSame, {}),
    (Conv2dStaticSame, {"stride": 2}),
    (Conv2dStaticSame, {"stride": 2, "image_size": 63, "groups": 4, "bias": False}),
    (nn.Conv2d, {"padding": "same"}),
]


def sees(change: Callable[[Tensor], Tensor]) -> type[nn.Conv2d]:
    """A convolution of something else than its input."""

    def forward(self: nn.Conv2d, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, change(x))

    return type("Changed", (nn.Conv2d,), {"forward": forward})


def without_gradient(self: nn.Conv2d, x: Tensor) -> Tensor:
    with torch.no_grad():
        return nn.Conv2d.forward(self, x)


class TestConvolutionsThatPadThemselves:
    @pytest.mark.parametrize(
        "kind",
        [
            sees(F.relu),
            sees(F.relu6),
            sees(torch.abs),
            sees(lambda x: x.mul_(2)),
            sees(lambda x: x.roll(1, 0)),
            sees(lambda x: F.pad(x, (1, 1, 1, 1) if x.shape[-1] > 12 else (0, 2, 0, 2))),
            sees(torch.detach),
            type("Bounded", (nn.Conv2d,), {"forward": lambda self, x: nn.Conv2d.forward(self, x).clamp(-30, 30)}),
            type("WithoutGradient", (nn.Conv2d,), {"forward": without_gradient}),
        ],
    )
    def test_what_does_more_is_left(self, kind: type[nn.Conv2d]) -> None:
        assert find_own_padding(sees(lambda x: x)(4, 4, 3)) == (0, 0, 0, 0)
        torch.manual_seed(0)
        with pytest.raises(OptionError, match=r"with a forward of its own that does more than pad and convolve"):
            adapt(kind(4, 4, 3), where=lambda name, module: True)

    def test_a_forward_set_on_one_convolution_is_left(self) -> None:
        conv = nn.Conv2d(4, 4, 3)
        conv.forward = MethodType(lambda self, x: 3 * nn.Conv2d.forward(self, x), conv)  # type: ignore[method-assign]
        with pytest.raises(OptionError, match=r"a Conv2d, with a forward of its own that does more than pad"):
            adapt(conv, where=lambda name, module: True)

    @pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # PyTorch's, of the host
    @pytest.mark.parametrize("side", [3, 4, 5])
    @pytest.mark.parametrize(("kind", "options"), OWN_PADDING)
    def test_are_adapted(self, kind: type[nn.Conv2d], options: dict[str, Any], side: int) -> None:
        torch.manual_seed(0)
        host = kind(4, 4, side, **options).double()
        kept = copy.deepcopy(host)
        adapted, report = adapt(host, where=lambda name, module: True)
        assert isinstance(adapted, ClipNetwork)
        assert len(report.changed) == 1
        for height, width in ((8, 8), (9, 8), (10, 13), (11, 6), (33, 40)):
            x = torch.randn(6, 4, height, width, dtype=torch.float64)
            torch.testing.assert_close(adapted.network(x, num_frames=3), kept(x), rtol=1e-12, atol=1e-12)
        # Trained, its kernel is scaled by what the frames show; the zeros around them do not count.
        awaken(adapted)
        conv = adapted.network
        assert isinstance(conv, FrameConv2d)
        assert conv.routing is not None
        alpha = conv.routing(x.mean((2, 3)).view(2, 3, 4).transpose(1, 2)).alpha
        scaled = x * alpha.transpose(1, 2).reshape(6, 4, 1, 1)  # scaling a kernel's inputs is scaling what it reads
        torch.testing.assert_close(conv(x, num_frames=3), kept(scaled), rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize(("kind", "options"), OWN_PADDING)
    def test_on_the_meta_device_their_padding_is_the_same_and_looked_for_once(
        self, kind: type[nn.Conv2d], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looked_for = []

        def find(conv: nn.Conv2d) -> Any:
            looked_for.append(conv)
            return find_own_padding(conv)

        monkeypatch.setattr(adaptation, "find_own_padding", find)
        here: Any = adapt(kind(4, 4, 3, **options), where=lambda name, module: True)[0]
        with torch.device("meta"):
            there: Any = adapt(kind(4, 4, 3, **options), where=lambda name, module: True)[0]
        assert there.network.weight.is_meta
        assert (there.network.padded_before, there.network.padding) == (
            here.network.padded_before,
            here.network.padding,
        )
        assert len(looked_for) == (0 if kind is nn.Conv2d else 2)

    @pytest.mark.parametrize("depthwise", [Conv2dSame, Conv2dStaticSame])
    def test_in_a_network_that_is_used_as_others_are(self, depthwise: Any, tmp_path: Path) -> None:
        stages = ((1, 8, 1, 1, 3), (2, 12, 1, 2, 5))

        def build() -> nn.Module:
            torch.manual_seed(0)
            return mobile_network(stages, stem=8, last=16, num_classes=5, depthwise=depthwise).double().eval()

        for x in (clips(side=32), clips(t=1, side=27)):
            expected = build()(x.transpose(1, 2).flatten(0, 1)).view(2, -1, 5)
            adapted, report = adapt(build())
            assert len(report.changed) == 2
            assert relative(adapted(x), expected) <= 1e-12
        awaken(adapted)
        safetensors.torch.save_file(adapted.state_dict(), tmp_path / "adapted.safetensors")
        again, _ = adapt(build())
        again.load_state_dict(safetensors.torch.load_file(tmp_path / "adapted.safetensors"))
        assert torch.equal(again(x), adapted(x))
        assert torch.equal(pickle.loads(pickle.dumps(adapted))(x), adapted(x))
        for module in adapted.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                randomize_norm(module)
        x = clips(t=3, side=32)
        torch.testing.assert_close(fuse(adapted)(x), adapted(x), rtol=1e-9, atol=1e-12)


def test_report() -> None:
    _, report = adapt(image_network())
    first = report.changed[0]
    # Routing of 8 channels, r = 4: Linear 8->8, Conv1d 8->2 of 3 and its norm, Conv1d 2->8 of 3 without a bias.
    assert first.parameters == (8 * 8 + 8) + (8 * 2 * 3 + 2) + 2 * 2 + 2 * 8 * 3
    assert (first.multiply_adds_per_frame, first.multiply_adds_per_clip) == (8 * 2 * 3 + 2 * 8 * 3, 64)
    assert report.multiply_adds(5) == 2 * (5 * 96 + 64) + 5 * (12 * 3 * 3 + 3 * 12 * 3) + 144
    text = str(report)
    for line in (
        r"3 convolutions are temporally adaptive now, 5 are unchanged",
        r"  layer1.0.conv1      3x3          8->8          +174              +96",
        r"unchanged: a stem, which reads images (stem); a kernel of 1 (layer1.0.conv2, layer1.1.conv2",
        f"parameters: {report.parameters_before:,} -> {report.parameters_after:,} (+",
    ):
        assert line in text
    empty = AdaptReport(
        changed=report.changed, skipped=(), parameters_before=1, parameters_after=2, parameters_unbounded=2
    )
    assert "unchanged: none" in str(empty)
    assert "with ratio=4" not in text + str(empty)


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_frames_can_attend_to_each_other(kind: str) -> None:
    torch.manual_seed(0)
    network: nn.Module = image_network()
    if kind == "clips":
        network = create_model("slowonly_tiny", num_classes=3, width=8).double().eval()
    x = clips(n=2, t=4, side=24)
    before = network(x.transpose(1, 2).flatten(0, 1)).view(2, 4, -1) if kind == "images" else network(x)
    adapted, report = adapt(network, attention=True)
    torch.testing.assert_close(adapted(x), before, rtol=1e-9, atol=1e-12)
    routings = [module for module in adapted.modules() if isinstance(module, RoutingV2)]
    assert len(routings) == len(report.changed)
    for routing in routings:
        nn.init.normal_(routing.alpha.weight, std=0.1)
    assert not torch.allclose(adapted(x), before)
    torch.testing.assert_close(fuse(adapted)(x), adapted(x), rtol=1e-9, atol=1e-12)
    if kind == "images":
        # Of 8 channels, r = 2: Conv1d 8->4 of 3, two norms, attention 4->12 and 4->4, Conv1d 4->8 of 3 without a bias.
        first = report.changed[0]
        assert first.parameters == (8 * 4 * 3 + 4) + 2 * 8 + (4 * 12 + 12) + (4 * 4 + 4) + 4 * 8 * 3
        assert (first.multiply_adds_per_frame, first.multiply_adds_per_clip) == (2 * 96 + 48 + 16, 0)
        assert report.parameters_unbounded == report.parameters_after


def test_heads_of_attention_fit_any_width() -> None:
    wide = nn.Sequential(*(nn.Sequential(nn.Conv2d(c, c, 3, padding=1)) for c in (6, 128, 192, 258)))
    adapted, _ = adapt(wide, where="*", attention=True)
    heads = [module.head_channels for module in adapted.modules() if isinstance(module, AttentionOverTime)]
    assert heads == [3, 64, 48, 43]


class TestAnAdaptedNetwork:
    def test_trains(self) -> None:
        torch.manual_seed(0)
        network = image_network().train()
        network.stem.requires_grad_(False)
        adapted, _ = adapt(network)
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.01)
        x, labels = clips(n=6), torch.arange(6) % 5
        losses = []
        for _ in range(15):
            loss = F.cross_entropy(adapted(x).mean(1), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]
        assert network.stem.weight.grad is None
        for name, parameter in adapted.named_parameters():
            if "routing.alpha" in name:
                assert parameter.abs().sum() > 0, name

    def test_saves_and_loads(self, tmp_path: Path) -> None:
        adapted, _ = adapt(image_network())
        awaken(adapted)
        safetensors.torch.save_file(adapted.state_dict(), tmp_path / "adapted.safetensors")
        other, _ = adapt(ImageNetwork().double().eval())
        other.load_state_dict(safetensors.torch.load_file(tmp_path / "adapted.safetensors"))
        x = clips()
        assert torch.equal(other(x), adapted(x))

    def test_is_copied_and_pickled(self) -> None:
        adapted, _ = adapt(image_network())
        awaken(adapted)
        x = clips()
        for twin in (copy.deepcopy(adapted), pickle.loads(pickle.dumps(adapted))):
            assert torch.equal(twin(x), adapted(x))
            twin(clips(t=6))
            assert adapted.clip.num_frames == 4  # a copy's T is its own
            assert twin.clip.num_frames == 6

    def test_checkpointed_activations(self) -> None:
        """A part that runs again in the backward pass still finds T."""
        adapted, _ = adapt(image_network())
        awaken(adapted)
        assert isinstance(adapted, ClipNetwork)
        x = clips()
        adapted(x).square().sum().backward()
        expected = {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}
        adapted.zero_grad()
        layer = adapted.network.layer1
        assert isinstance(layer, nn.Module)
        inner = layer.forward
        layer.forward = lambda frames: checkpoint(inner, frames, use_reentrant=False)  # type: ignore[method-assign]
        adapted(x).square().sum().backward()
        for name, parameter in adapted.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, expected[name], msg=name)

    def test_in_evaluation_as_adapted(self) -> None:
        adapted, _ = adapt(image_network().train())
        assert all(module.training for module in adapted.modules())
        assert not any(module.training for module in adapt(image_network())[0].network.modules())  # type: ignore[union-attr]

    def test_frozen_norms_or_none(self) -> None:
        """A network without batch norms gets routing functions without."""
        network = nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GELU()) for _ in range(2)))
        adapt(network, where="*")
        conv = network[0][0]
        assert isinstance(conv, TAdaConv2d)
        assert conv.routing is not None
        assert isinstance(conv.routing.norm, nn.LayerNorm)


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_compiles_into_one_graph(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "images":
        network: nn.Module = image_network()
        network.layer1[0].conv1 = Conv2dSame(8, 8, 3).double()  # type: ignore[index, union-attr]  # pads by the size
    else:
        network = create_model("slowonly_tiny", num_classes=3).double().eval()
    adapted, _ = adapt(network)
    awaken(adapted)
    torch._dynamo.reset()
    compiled = torch.compile(adapted, fullgraph=True, backend="eager")  # what is traced is what counts
    for t in (4, 6):
        x = clips(t=t, side=24)
        torch.testing.assert_close(compiled(x), adapted(x), rtol=1e-9, atol=1e-12)


def _train_in_parallel(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    adapted, _ = adapt(image_network())
    awaken(adapted)
    model = nn.parallel.DistributedDataParallel(adapted)
    torch.manual_seed(1)
    x = clips(n=4)[2 * rank : 2 * rank + 2]
    model(x).square().mean().backward()
    torch.save({name: p.grad for name, p in adapted.named_parameters()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_trains_in_parallel() -> None:
    """Two processes find the gradients of the whole batch."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=_train_in_parallel, args=(rank, folder)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
        gradients = [torch.load(os.path.join(folder, f"{rank}.pt"), weights_only=True) for rank in range(2)]
    adapted, _ = adapt(image_network())
    awaken(adapted)
    torch.manual_seed(1)
    adapted(clips(n=4)).square().mean().backward()
    for name, parameter in adapted.named_parameters():
        torch.testing.assert_close(gradients[0][name], parameter.grad, msg=name)
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=0, atol=0)


def test_the_public_name_is_the_function() -> None:
    assert tada.adapt is adapt
    assert tada.TAdaConv3d is TAdaConv3d


class TestNetworksOfOthers:
    """transformers' image networks, built from their configurations."""

    @pytest.mark.parametrize(
        ("name", "options", "num_changed"),
        [
            ("ResNet", {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 2]}, 3),
            ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"}, 6),
            ("RegNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "groups_width": 4}, 3),
            (
                "ConvNext",
                {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "layer_scale_init_value": 0.5},
                3,
            ),
        ],
    )
    def test_identity(self, name: str, options: dict[str, Any], num_changed: int) -> None:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(num_labels=5, **options)
        network = getattr(transformers, f"{name}ForImageClassification")(config).double().eval()
        x = clips(side=64)
        with torch.no_grad():
            expected = network(x.transpose(1, 2).flatten(0, 1), output_hidden_states=True)
            adapted, report = adapt(network)
            output = adapted(x, output_hidden_states=True)
        assert type(output) is type(expected)
        assert relative(output.logits, expected.logits.view(2, 4, 5)) <= 1e-9
        for ours, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
            assert relative(ours.flatten(0, 1), theirs) <= 1e-9
        assert len(report.changed) == num_changed
        assert all(max(c.kernel_size) > 1 for c in report.changed)
        awaken(adapted)
        assert relative(adapted(x).logits, output.logits) > 1e-4
