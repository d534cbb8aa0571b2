"""Image networks under the names that others publish weights with, as short as they can be.

ResNet: torchvision's names, which are timm's. ConvNeXt: the authors' names (``facebook``), from which ``timm_name`` and
``torchvision_name`` lead to the others'. EfficientNet-Lite: efficientnet_pytorch's, from which
``lite_timm_name`` leads to timm's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class ResNetBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        end = width * 4 if bottleneck else width
        if bottleneck:
            self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3, self.bn3 = nn.Conv2d(width, end, 1, bias=False), nn.BatchNorm2d(end)
        else:
            self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or channels != end:
            self.downsample = nn.Sequential(nn.Conv2d(channels, end, 1, stride=stride, bias=False), nn.BatchNorm2d(end))
        self.bottleneck = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """``forward`` gives the features before the classifier, without the stem's max-pool."""

    def __init__(
        self, depths: tuple[int, ...], widths: tuple[int, ...], *, bottleneck: bool, stem: int = 64, classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(stem)
        channels = stem
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(ResNetBlock(channels, width, stride, bottleneck=bottleneck))
                channels = width * 4 if bottleneck else width
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)
        self.depths = depths

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(len(self.depths)):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return x.mean((2, 3))


class ChannelNorm(nn.LayerNorm):
    """A norm over the channels of each pixel of [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(self.norm.weight.detach() * 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(self.dwconv(x).movedim(1, -1)))))
        return x + (self.gamma * y).movedim(-1, 1)


class ConvNeXt(nn.Module):
    """``forward`` gives the features before the classifier."""

    def __init__(self, depths: tuple[int, ...], widths: tuple[int, ...], *, classes: int = 1000) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), ChannelNorm(widths[0], eps=1e-6))
        self.downsample_layers = nn.ModuleList([stem])
        for before, width in pairwise(widths):
            layers = ChannelNorm(before, eps=1e-6), nn.Conv2d(before, width, 2, stride=2)
            self.downsample_layers.append(nn.Sequential(*layers))
        stages = zip(depths, widths, strict=True)
        self.stages = nn.ModuleList(nn.Sequential(*(ConvNeXtBlock(w) for _ in range(d))) for d, w in stages)
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        normalized: Tensor = self.norm(x.mean((2, 3)))
        return normalized


def timm_name(name: str) -> str:
    """The authors' name of a ConvNeXt's weight -> timm's."""
    name = re.sub(r"^norm\.", "head.norm.", re.sub(r"^head\.", "head.fc.", name))
    name = re.sub(r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2.", name)
    name = name.replace("dwconv", "conv_dw").replace("pwconv", "mlp.fc")
    return re.sub(r"^downsample_layers\.(\d)", lambda m: "stem" if m[1] == "0" else f"stages.{m[1]}.downsample", name)


def torchvision_form(name: str, value: Tensor) -> tuple[str, Tensor]:
    """The authors' name and form of a ConvNeXt's weight -> torchvision's, where layer scales are [C, 1, 1]."""
    parts = {"dwconv": "block.0", "norm": "block.2", "pwconv1": "block.3", "pwconv2": "block.5", "gamma": "layer_scale"}

    def in_stage(match: re.Match[str]) -> Any:
        return f"features.{2 * int(match[1]) + 1}.{match[2]}.{parts[match[3]]}"

    if name.endswith("gamma"):
        value = value[:, None, None]
    name = re.sub(r"^norm\.", "classifier.0.", re.sub(r"^head\.", "classifier.2.", name))
    name = re.sub(r"^downsample_layers\.(\d)", lambda m: f"features.{2 * int(m[1])}", name)
    return re.sub(r"^stages\.(\d)\.(\d+)\.(\w+)", in_stage, name), value


# -- EfficientNet-Lite ------------------------------------------------------------------------------------------------

Stage = tuple[int, int, int, int, int]
"""Blocks, channels, expansion, kernel's side, stride."""
LITE0: tuple[Stage, ...] = (
    (1, 16, 1, 3, 1),
    (2, 24, 6, 3, 2),
    (2, 40, 6, 5, 2),
    (3, 80, 6, 3, 2),
    (3, 112, 6, 5, 1),
    (4, 192, 6, 5, 2),
    (1, 320, 6, 3, 1),
)


BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def lite_shapes(stages: Sequence[Stage], *, stem: int = 32, last: int = 1280, classes: int = 1000) -> dict[str, Any]:
    """The weights of an EfficientNet-Lite under efficientnet_pytorch's names, and their shapes."""
    shapes: dict[str, Any] = {}

    def conv(name: str, norm: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes.update({f"{norm}.{part}": shape[:1] for part in BATCH_NORM})
        shapes[f"{norm}.num_batches_tracked"] = ()

    conv("_conv_stem", "_bn0", stem, 3, 3, 3)
    channels, number = stem, 0
    for depth, width, expansion, kernel, _ in stages:
        for _ in range(depth):
            block, wide = f"_blocks.{number}", channels * expansion
            if expansion > 1:
                conv(f"{block}._expand_conv", f"{block}._bn0", wide, channels, 1, 1)
            conv(f"{block}._depthwise_conv", f"{block}._bn1", wide, 1, kernel, kernel)
            conv(f"{block}._project_conv", f"{block}._bn2", width, wide, 1, 1)
            channels, number = width, number + 1
    conv("_conv_head", "_bn1", last, channels, 1, 1)
    return shapes | {"_fc.weight": (classes, last), "_fc.bias": (classes,)}


def lite_logits(weights: Mapping[str, Tensor], images: Tensor, stages: Sequence[Stage]) -> Tensor:
    """What an EfficientNet-Lite says of uint8 images [N, H, W, 3]: [N, K], in float64."""

    def conv(x: Tensor, name: str, norm: str, *, stride: int = 1, groups: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"].double()
        # TensorFlow's "same": as many windows as fit a stride, and the zeros they need; an odd one below and right.
        (h, w), side = x.shape[2:], kernel.shape[2]
        rows, columns = (max((math.ceil(size / stride) - 1) * stride + side - size, 0) for size in (h, w))
        canvas = x.new_zeros(*x.shape[:2], h + rows, w + columns)
        canvas[:, :, rows // 2 : rows // 2 + h, columns // 2 : columns // 2 + w] = x
        y = F.conv2d(canvas, kernel, stride=stride, groups=groups)
        weight, bias, mean, var = (weights[f"{norm}.{part}"].double()[:, None, None] for part in BATCH_NORM)
        return (y - mean) / (var + 0.001).sqrt() * weight + bias

    x = (images.permute(0, 3, 1, 2).double() - 127) / 128
    x = conv(x, "_conv_stem", "_bn0", stride=2).clamp(0, 6)
    number = 0
    for depth, _, expansion, _, stride in stages:
        for i in range(depth):
            block, before = f"_blocks.{number}", x
            if expansion > 1:
                x = conv(x, f"{block}._expand_conv", f"{block}._bn0").clamp(0, 6)
            x = conv(
                x,
                f"{block}._depthwise_conv",
                f"{block}._bn1",
                stride=stride if i == 0 else 1,
                groups=x.shape[1],
            ).clamp(0, 6)
            x = conv(x, f"{block}._project_conv", f"{block}._bn2")
            x = x + before if x.shape == before.shape and (i > 0 or stride == 1) else x
            number += 1
    x = conv(x, "_conv_head", "_bn1").clamp(0, 6)
    return F.linear(x.mean((2, 3)), weights["_fc.weight"].double(), weights["_fc.bias"].double())


def lite_timm_name(name: str, stages: Sequence[Stage]) -> str:
    """efficientnet_pytorch's name of a weight -> timm's, which counts blocks anew in each stage."""
    ends = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    if not name.startswith("_blocks."):
        part, _, last = name.partition(".")
        return f"{ends[part]}.{last}"
    _, number, part, last = name.split(".")
    stage, block = [(i, j) for i, (depth, *_) in enumerate(stages) for j in range(depth)][int(number)]
    names = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    if stages[stage][2] == 1:  # a block of two convolutions: depthwise, pointwise
        names = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    return f"blocks.{stage}.{block}.{names[part]}.{last}"
