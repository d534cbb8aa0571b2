"""Image networks as people have them, built here for tests of ``tada.adapt``: MobileNetV2, EfficientNet-Lite0.

And the convolutions that EfficientNets come with, which pad in a forward of their own.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

Stage = tuple[int, int, int, int, int]
"""Expansion, channels, blocks, stride, kernel's side."""

MOBILENET_V2: tuple[Stage, ...] = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 3),
    (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)
EFFICIENTNET_LITE0: tuple[Stage, ...] = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class InvertedBottleneck(nn.Module):
    """1x1 to more channels, a depthwise kernel, 1x1 back."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int, side: int, depthwise: Any) -> None:
        super().__init__()
        wide = channels * expansion
        widen = [] if expansion == 1 else [nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        conv = depthwise(wide, wide, side, stride=stride, padding=side // 2, groups=wide, bias=False)
        narrow = [nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out)]
        self.layers = nn.Sequential(*widen, conv, nn.BatchNorm2d(wide), nn.ReLU6(), *narrow)
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


def mobile_network(
    stages: tuple[Stage, ...], *, stem: int = 32, last: int = 1280, num_classes: int = 10, depthwise: Any = nn.Conv2d
) -> nn.Sequential:
    """A stem, stages of inverted bottlenecks, a wide 1x1, a classifier."""
    layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU6()]
    channels = stem
    for expansion, out, depth, stride, side in stages:
        for i in range(depth):
            layers.append(InvertedBottleneck(channels, out, expansion, stride if i == 0 else 1, side, depthwise))
            channels = out
    layers += [nn.Conv2d(channels, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, num_classes))


class Conv2dSame(nn.Conv2d):
    """As timm's: TensorFlow's padding, of the size that the input has."""

    def __init__(self, *channels_and_side: int, padding: int = 0, **options: Any) -> None:
        super().__init__(*channels_and_side, padding=0, **options)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (
            max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
            for size, k, s, d in zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True)
        )
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class Conv2dStaticSame(nn.Conv2d):
    """As efficientnet_pytorch's: the padding that one size of images needs, for all sizes."""

    def __init__(self, *channels_and_side: int, image_size: int = 64, padding: int = 0, **options: Any) -> None:
        super().__init__(*channels_and_side, padding=0, **options)
        side, stride = self.kernel_size[0], self.stride[0]
        total = max((math.ceil(image_size / stride) - 1) * stride + (side - 1) * self.dilation[0] + 1 - image_size, 0)
        before, after = total // 2, total - total // 2
        self.static_padding = nn.ZeroPad2d((before, after, before, after)) if total else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
