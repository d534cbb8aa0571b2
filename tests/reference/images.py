"""Image networks under the names that others publish weights with, as short as they can be.

ResNet: torchvision's names, which are timm's. ConvNeXt: the authors' names (``facebook``), from which ``timm_name`` and
``torchvision_name`` lead to the others'.
"""

from __future__ import annotations

import re
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
