"""What speaks for a class, against a slow Grad-CAM; where it is in the frame; and which calibrations were in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from reference.gradcam import literal_gradcam
from reference.tadaconv import literal_tadaconv
from tada.adaptation import adapt
from tada.data.motion import draw_motion
from tada.errors import CheckpointError, OptionError, UnknownNameError
from tada.models import create_model
from tada.models.efficientnet_lite import EfficientNetLite
from tada.models.gradcam import MIN_CELLS, look
from tada.recognition.recognizer import load_recognizer
from tada.tadaconv import Routing, TAdaConv2d, TAdaConv3d, TemporalAggregation
from tada.video.transforms import normalize, test_crops


def trained(network: nn.Module) -> nn.Module:
    """A network in float64 whose norms and routing functions are not those of a new one."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, Routing):
            nn.init.normal_(module.alpha.weight, std=0.3)
    return network.double().eval()


def small(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    shapes: dict[str, dict[str, Any]] = {
        "t": {"widths": (4, 5), "depths": (1, 1), "stem_width": 3, "routing_ratio": 1},
        "c": {"widths": (4, 6), "depths": (1, 2), "kernel": 3, "layer_scale": 1.0, "routing_ratio": 1},
        "e": {"depths": (1, 2), "widths": (3, 4), "expansions": (1, 2), "kernels": (3, 5), "strides": (1, 2)}
        | {"stem_width": 3, "last_width": 5},
        "f": {"width": 12, "depth": 2, "heads": 2, "patch": 4, "grid": (2, 3), "routing_head_channels": 3},
        "h": {"width": 4, "depths": (1, 1), "reduce_frames": (1, 1), "temporal_strides": (1, 2), "stem_sides": 3},
    }
    kinds = {"tada2d": "t", "tsn": "t", "tadaconvnext": "c", "convnext": "c", "tada": "e", "efficientnet": "e"}
    kinds["tadaformer"] = "f"
    kind = kinds.get(name.split("_")[0], "h")
    return trained(create_model(name, num_classes=3, **shapes[kind] | options))


class Images(nn.Module):
    """An image network that nobody here wrote, with layers that write over their input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(*(Block() for _ in range(2)))
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(images)).mean((2, 3)))
        return logits


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y += x
        output: Tensor = self.relu(y)
        return output


def adapted_images() -> nn.Module:
    torch.manual_seed(0)
    return trained(adapt(Images())[0])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "tada2d": lambda: small("tada2d_tiny"),
    "tada2d bottlenecks, output channels": lambda: small("tada2d_tiny", block="bottleneck", calibrate="out"),
    "tsn": lambda: small("tsn_tiny"),
    "tadaconvnext": lambda: small("tadaconvnext_mini"),
    "convnext": lambda: small("convnext_mini"),
    "tadaformer": lambda: small("tadaformer_tiny"),
    "lite": lambda: small("tada_lite0"),
    "slowonly": lambda: small("slowonly_tiny", adapted=True),
    "slowfast": lambda: small("slowfast_tiny", adapted=True, fast_ratio=2, fast_width=3),
    "r2plus1d": lambda: small("r2plus1d_tiny", adapted=True),
    "r3d": lambda: small("r3d_tiny", adapted=True),
    "adapted": adapted_images,
}


def check_heat(network: nn.Module, clip: Tensor, layer: str | None = None) -> None:
    """The heat for and against a class is that of the slow form."""
    found = look(network, clip, lambda logits: logits[1], layer=layer)
    against = look(network, clip, lambda logits: -logits[1], layer=layer)
    total = torch.zeros_like(found.heat)
    for cam in literal_gradcam(network, clip, lambda logits: logits[1], found.layers):
        # A map thinned out in time lies on every second frame; one between two has half of each.
        frames = [cam[0], (cam[0] + cam[-1]) / 2, cam[-1], cam[-1]] if len(cam) < len(total) else list(cam)
        total += cam.numel() * torch.stack(frames)
    assert max(total.max(), -total.min()) > 0
    for heat, expected in ((found.heat, total.relu()), (against.heat, (-total).relu())):
        torch.testing.assert_close(heat, expected / expected.max() if expected.any() else heat * 0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_heat_is_that_of_the_slow_form(name: str) -> None:
    check_heat(NETWORKS[name](), torch.randn(1, 3, 4, 8, 12, dtype=torch.float64))


@pytest.mark.parametrize("layer", ["stages.1.0", "stages.0.0.conv1", "stem_conv"])
def test_a_layer_can_be_chosen(layer: str) -> None:
    network, clip = small("tada2d_tiny", depths=(1, 2)), torch.randn(1, 3, 3, 8, 12, dtype=torch.float64)
    check_heat(network, clip, layer)
    assert look(network, clip, lambda logits: logits[1], layer=layer).layers == (layer,)


def test_by_default_it_is_the_last_stage_that_is_fine_enough() -> None:
    network = small("tada2d_tiny", depths=(1, 2, 1), widths=(4, 5, 6))

    def layer(side: int) -> tuple[str, ...]:
        return look(network, torch.randn(1, 3, 2, side, side).double(), lambda logits: logits[0]).layers

    assert MIN_CELLS == 7
    assert layer(112) == ("stages.2.0",)
    assert layer(56) == ("stages.1.1",)
    assert layer(28) == ("stages.0.0",)
    assert layer(8) == ("stages.0.0",)  # none is
    pathways = look(NETWORKS["slowfast"](), torch.randn(1, 3, 4, 64, 64).double(), lambda logits: logits[0]).layers
    assert pathways == ("slow.stages.1.0", "fast.stages.1.0")
    assert look(adapted_images(), torch.randn(1, 3, 2, 9, 9).double(), lambda x: x[0]).layers == ("network.blocks",)


@pytest.mark.parametrize("num_frames", [1, 2, 5, 16])
@pytest.mark.parametrize("name", ["tada2d", "tadaconvnext", "r3d", "adapted"])
def test_any_number_of_frames(name: str, num_frames: int) -> None:
    network = NETWORKS[name]()
    found = look(network, torch.randn(1, 3, num_frames, 16, 16).double(), lambda logits: logits[2])
    assert len(found.heat) == num_frames
    assert 0 <= found.heat.min() <= found.heat.max() <= 1
    for alpha in found.calibrations.values():
        assert len(alpha) == (-(-num_frames // 2) if name == "tadaconvnext" else num_frames)


def test_the_network_is_as_it_was() -> None:
    network = small("tada2d_tiny")
    clip = torch.randn(1, 3, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        before = network(clip)
    look(network, clip, lambda logits: logits[0])
    with pytest.raises(ZeroDivisionError):
        look(network, clip, lambda logits: logits[0] / (1 // 0))
    assert torch.is_grad_enabled()
    assert torch.equal(network(clip), before)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_within_inference_mode_too() -> None:
    network = small("tada2d_tiny")
    clip = torch.randn(1, 3, 3, 16, 16, dtype=torch.float64)
    expected = look(network, clip, lambda logits: logits[0])
    with torch.inference_mode():
        found = look(network, clip * 1, lambda logits: logits[0])
    assert torch.equal(found.heat, expected.heat)


def test_nothing_speaks_for_a_class_that_all_speaks_against() -> None:
    network = small("tsn_tiny")
    network.head.weight.data[1] = -1.0  # type: ignore[union-attr]  # of features that are not negative
    clip = torch.randn(1, 3, 2, 16, 16, dtype=torch.float64)
    assert look(network, clip, lambda logits: logits[1], layer="stages.1.0").heat.eq(0).all()
    assert look(network, clip, lambda logits: -logits[1], layer="stages.1.0").heat.max() == 1


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 3)

    def forward(self, clips: Tensor) -> Tensor:
        self.unused(clips[:, :, 0])
        logits: Tensor = self.head(clips.mean((2, 3, 4)))
        return logits


def test_what_cannot_be_looked_at_is_refused() -> None:
    network, clip = small("tada2d_tiny"), torch.randn(1, 3, 2, 16, 16).double()
    with pytest.raises(UnknownNameError, match=r"no layer with a feature map is called 'stages\.1\.1'; did you mean"):
        look(network, clip, lambda logits: logits[0], layer="stages.1.1")
    with pytest.raises(OptionError, match=r"'head' gives no feature map .*; the last that does is 'stages\.1\.0'"):
        look(network, clip, lambda logits: logits[0], layer="head")
    clip_alone = small("tadaformer_tiny", tada_blocks=0)
    with pytest.raises(OptionError, match=r"without TAda blocks \(tada_blocks: 0\) has no module that gives"):
        look(clip_alone, clip, lambda logits: logits[0])
    with pytest.raises(OptionError, match=r"this Sequential has no feature map of more than one pixel"):
        look(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), torch.zeros(1, 3, 2, 1, 1), lambda logits: logits[0])
    with pytest.raises(OptionError, match=r"the logits do not depend on the layer 'unused'"):
        look(Mean(), clip.float(), lambda logits: logits[0], layer="unused")


def test_a_network_that_has_diverged_is_refused() -> None:
    network = small("tada2d_tiny")
    nn.init.constant_(network.get_parameter("stem_conv.weight"), float("nan"))
    with pytest.raises(CheckpointError, match=r"grow beyond all bounds for this clip \(NaN\): train it anew"):
        look(network, torch.randn(1, 3, 2, 16, 16).double(), lambda logits: logits[0])


# -- where ------------------------------------------------------------------------------------------------------------


def even(network: nn.Module) -> nn.Module:
    """All kernels the same positive number and nothing between them, so that a cell sees as much left as right."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | TAdaConv2d | TAdaConv3d):
            nn.init.constant_(module.weight, 1.0)
            if module.bias is not None:
                nn.init.constant_(module.bias, 1.0)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.constant_(module.weight, 1.0 if not isinstance(network, EfficientNetLite) else 1e-3)  # below 6
    return network.double().eval()


@pytest.mark.parametrize(
    ("name", "step"),
    [("tada2d_tiny", 8), ("tsn_tiny", 8), ("tsn_r18", 32), ("tada2d_r50", 32), ("r2plus1d_tiny", 8), ("tada_lite0", 8)],
)
def test_a_cell_is_in_the_middle_of_what_it_sees(name: str, step: int) -> None:
    options = {"block": "basic", "depths": (1, 1), "widths": (2, 2), "stem_width": 2} if step == 8 else {}
    if name == "r2plus1d_tiny":
        options = {"depths": (1, 1), "width": 2, "reduce_frames": (1, 1), "temporal_strides": (1, 1)}
    elif name == "tada_lite0":
        options = {"depths": (1, 2), "widths": (2, 2), "expansions": (1, 2), "kernels": (3, 5), "strides": (2, 2)}
    elif step == 32:
        options = {"widths": (2, 2, 2, 2), "stem_width": 2, "depths": (1, 1, 1, 1)}
    network = even(create_model(name, num_classes=2, **options))
    side = 16 * step
    clip = torch.ones(1, 3, 1, side, side + step, dtype=torch.float64)
    for module in network.modules():  # a maximum sees one pixel, of a flat clip the first
        for pool_name, pool in module.named_children():
            if isinstance(pool, nn.MaxPool3d):
                setattr(module, pool_name, nn.AvgPool3d(pool.kernel_size, pool.stride, pool.padding))
    last = [f"stages.{1 if step == 8 else 3}.0", f"slow.stages.{1 if step == 8 else 3}.0"][name == "r2plus1d_tiny"]
    found = look(network, clip, lambda logits: logits[0], layer=last)
    features: list[Tensor] = []
    network.get_submodule(last).register_forward_hook(lambda module, inputs, output: features.append(output))
    clip.requires_grad_()
    network(clip)
    row, column = 8, 9
    cell = features[0][..., row, column].sum()
    (seen,) = torch.autograd.grad(cell, clip)
    seen = seen[0, :, 0].sum(0)
    pixels = torch.arange(seen.shape[1], dtype=torch.float64)
    assert float((seen.sum(1) * pixels[: len(seen)]).sum() / seen.sum()) == pytest.approx(float(found.rows[row]))
    assert float((seen.sum(0) * pixels).sum() / seen.sum()) == pytest.approx(float(found.columns[column]))
    assert found.rows.diff().tolist() == [step] * (len(found.rows) - 1)


def test_cells_of_patches_lie_in_their_middle() -> None:
    network = small("tadaconvnext_mini")
    found = look(network, torch.randn(1, 3, 2, 32, 48).double(), lambda logits: logits[0], layer="stages.1.1")
    assert found.rows.tolist() == [3.5, 11.5, 19.5, 27.5]
    assert found.columns.tolist() == [3.5 + 8 * i for i in range(6)]


def moving_patch(direction: str, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A bright patch that moves over a dark, blotched scene, 8 frames of 54 x 54 pixels; and where it is in each."""
    blotches = np.kron(rng.uniform(20, 70, (6, 6, 3)), np.ones((9, 9, 1)))
    texture = rng.uniform(150, 255, (14, 14, 3))
    frames = np.repeat(blotches[None], 8, axis=0)
    mask = np.zeros((8, 54, 54), bool)
    across = int(rng.integers(8, 32))
    for i in range(8):
        along = 4 + round(32 * i / 7)
        along = 40 - along if direction in ("left", "up") else along
        top, left = (across, along) if direction in ("left", "right") else (along, across)
        frames[i, top : top + 14, left : left + 14] = texture
        mask[i, top : top + 14, left : left + 14] = True
    return frames.astype(np.uint8), mask


def test_the_heat_of_the_shipped_weights_lies_on_what_moves() -> None:
    """The pointing game: in each frame the hottest pixel should lie on the patch, or within 3 pixels of it."""
    recognizer = load_recognizer("tada2d_tiny_motion", device="cpu")
    shares, hits, chances = [], [], []
    for number, direction in enumerate(("left", "right", "up", "down") * 4):
        frames, mask = moving_patch(direction, np.random.default_rng(number))
        (view,) = test_crops(torch.from_numpy(frames), short_side=54, crop=48, num_crops=1, antialias=True)
        seen = torch.from_numpy(mask[:, 3:51, 3:51])
        chosen = recognizer.labels.index(direction)
        with torch.no_grad():
            assert recognizer.model(normalize(view[None])).argmax() == chosen
        found = look(recognizer.model, normalize(view[None]), lambda logits, i=chosen: logits[i])
        rows, columns = (
            torch.from_numpy(np.stack([np.interp(np.arange(48), at.numpy(), cell) for cell in np.eye(len(at))], 1))
            for at in (found.rows, found.columns)
        )
        heat = torch.einsum("yh,thw,xw->tyx", rows, found.heat.double(), columns)
        near = F.max_pool2d(seen.double()[None], 7, 1, 3)[0] > 0
        shares.append(float(heat[seen].sum() / heat.sum() / seen.double().mean()))
        hits += [bool(near[t].flatten()[heat[t].argmax()]) for t in range(8)]
        chances.append(float(near.double().mean()))
    assert np.mean(shares) > 1.5, "the heat on the patch is no denser than elsewhere"
    assert np.mean(hits) > 2 * np.mean(chances)
    assert np.mean(np.array(shares) > 1) > 0.85


# -- calibrations -----------------------------------------------------------------------------------------------------


def convolutions(network: nn.Module) -> dict[str, TAdaConv2d | TAdaConv3d]:
    return {n: m for n, m in network.named_modules() if isinstance(m, TAdaConv2d | TAdaConv3d)}


@pytest.mark.parametrize("name", ["tada2d", "tada2d bottlenecks, output channels", "tadaconvnext", "adapted", "r3d"])
def test_calibrations_are_those_that_the_kernels_had(name: str) -> None:
    network = NETWORKS[name]()
    clip = torch.randn(1, 3, 6, 16, 16, dtype=torch.float64)
    found = look(network, clip, lambda logits: logits[0])
    convs = convolutions(network)
    assert list(found.calibrations) == list(convs)
    assert any(alpha.abs().max() > 0.1 for alpha in found.calibrations.values())
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    for conv_name, conv in convs.items():
        conv.register_forward_hook(lambda m, x, y, n=conv_name: calls.update({n: (x[0].detach(), y.detach())}))
    network(clip)
    for conv_name, conv in convs.items():
        x, y = calls[conv_name]
        alpha = 1 + found.calibrations[conv_name].T[None]
        if isinstance(conv, TAdaConv3d):
            torch.testing.assert_close(conv(x, alpha), y, rtol=0, atol=1e-12)
            continue
        t = alpha.shape[2]
        literal = literal_tadaconv(
            x.view(1, t, *x.shape[1:]).transpose(1, 2),
            conv.weight,
            None,
            alpha,
            calibrate=conv.calibrate,
            stride=conv.stride,
            padding=conv.padding,
            groups=conv.groups,
        )
        plain = y
        if conv.bias is not None:  # its scale is another output of the routing function
            assert conv.routing is not None
            descriptors = x.mean((2, 3)).view(1, t, -1).transpose(1, 2)
            beta = conv.routing(descriptors).beta
            factor = torch.ones(t, 1) if beta is None else beta[0].T
            plain = y - (conv.bias * factor)[..., None, None]
        torch.testing.assert_close(literal[0].transpose(0, 1), plain, rtol=0, atol=1e-12)


def test_a_layer_that_is_called_twice_has_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = TAdaConv2d(3, 3, 3, padding=1, routing=Routing(3, ratio=1))

        def forward(self, clips: Tensor) -> Tensor:
            return self.conv(self.conv(clips)).mean((2, 3, 4))

    network = trained(Twice())
    found = look(network, torch.randn(1, 3, 4, 8, 8).double(), lambda logits: logits[0])
    assert list(found.calibrations) == ["conv", "conv #2"]
    assert not torch.equal(*found.calibrations.values())


def test_a_still_video_has_one_calibration_but_for_its_ends() -> None:
    """Each convolution over time, and each aggregation, carries the zeros beyond the ends one frame further in."""
    network = load_recognizer("tada2d_tiny_motion", device="cpu").model
    frame = torch.randn(1, 3, 1, 48, 48)
    still = look(network, frame.expand(-1, -1, 64, -1, -1), lambda logits: logits[0]).calibrations
    drawn = draw_motion("left", np.random.default_rng(0), num_frames=64, width=48, height=48)
    moving = look(network, normalize(torch.from_numpy(drawn)[None]), lambda logits: logits[0]).calibrations
    reach = 0
    for name, alpha in still.items():
        reach += 2  # two convolutions of the routing function
        inner = alpha[reach : len(alpha) - reach]
        assert len(inner) > 10
        torch.testing.assert_close(inner, inner[:1].expand_as(inner), rtol=1e-4, atol=1e-4)
        assert (moving[name][reach:-reach].std(0) > 1e-3).any()
        reach += 1  # the aggregation
    assert isinstance(network.get_submodule("stages.0.0.conv1.norm"), TemporalAggregation)
    first = still["stages.0.0.conv1.conv"]
    assert not torch.allclose(first[0], first[2], atol=1e-3)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 3)])
def test_a_reversed_clip_has_reversed_calibrations_without_local_context(sizes: tuple[int, int]) -> None:
    """A routing function that sees one frame at a time, beside the whole clip, knows no direction of time."""
    network = small("tada2d_tiny", routing_kernel_sizes=sizes)
    clip = torch.randn(1, 3, 7, 24, 24, dtype=torch.float64)
    forward = look(network, clip, lambda logits: logits[0]).calibrations
    backward = look(network, clip.flip(2), lambda logits: logits[0]).calibrations
    closes = [torch.allclose(backward[n], alpha.flip(0), rtol=0, atol=1e-10) for n, alpha in forward.items()]
    assert all(closes) == (sizes == (1, 1))
    assert any((alpha.std(0) > 1e-3).any() for alpha in forward.values())


def test_without_tadaconv_there_are_none() -> None:
    assert look(small("tsn_tiny"), torch.randn(1, 3, 2, 16, 16).double(), lambda x: x[0]).calibrations == {}
