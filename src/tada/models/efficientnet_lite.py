"""EfficientNet-Lite0 on frames, averaged; and tada_lite0, whose depthwise convolutions are temporally adaptive.

EfficientNet-Lite (M. Tan and Q. Le, arXiv 1905.11946, and their code, efficientnet/lite) is a small image network for
ordinary processors: no squeeze-and-excitation, ReLU6 for swish. Frames are mixed only by the calibration, and by the
aggregation where that is on.

Two things are as TensorFlow has them, for the weights that are published: a convolution with a stride pads one pixel
more behind than before, where the size is even ("same"), and norms add 1e-3 to the variance. And the network brings the
pixels, which come as to all networks here (mean .45, std .225), to what it was trained on: (value - 127) / 128.

Shapes: N clips, T frames, C channels, H x W pixels, D features, K classes. Inside, a clip is T images of a batch
[N*T, C, H, W], channels last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tada.adaptation.own_padding import FramePadding, pad_frames
from tada.errors import OptionError
from tada.models.tada2d import check_clips, check_size, check_variance
from tada.tadaconv import (
    Calibrate,
    Calibration,
    Routing,
    TAdaConv2d,
    TemporalAggregation,
    TemporalPool,
    depthwise_hidden_channels,
)
from tada.video.sampling import MEAN, STD

_SCALE, _SHIFT = 255 * STD / 128, (255 * MEAN - 127) / 128
"""From pixels as ``tada.video.transforms.normalize`` gives them to those of EfficientNet-Lite."""
_EPS = 1e-3
"""Of the norms, TensorFlow's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EfficientNetLiteConfig:
    """The shape of a network, and which of the paper's parts it has."""

    depths: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    """Blocks of each stage."""
    widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    """Channels that each stage's blocks give out."""
    expansions: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    """How many times the channels that come into a block its depthwise convolution has, for each stage."""
    kernels: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    """Side of each stage's depthwise kernels, in pixels."""
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    """By how much each stage's first block thins out rows and columns."""
    stem_width: int = 32
    """Channels of the first convolution."""
    last_width: int = 1280
    """D, channels of the last convolution: the features."""
    num_classes: int = 400
    """K, the logits."""
    dropout: float = 0.2
    """Part of the features dropped before the classifier, in training."""
    calibrate: Calibrate | None = "out"
    """The side of the depthwise kernels that is calibrated, which for them is one; None leaves them as they are."""
    routing_ratio: int | None = None
    """r of the routing functions; None: as ``tada.adapt`` has it for depthwise kernels, which have few parameters."""
    routing_kernel_sizes: tuple[int, int] | tuple[int] = (3, 3)
    """Frames that the routing functions' convolutions see."""
    routing_global_context: bool = True
    """Whether the routing functions see the whole clip."""
    aggregation: TemporalPool | None = None
    """How a frame is pooled with its neighbors after a depthwise convolution; None leaves it alone."""

    def __post_init__(self) -> None:
        """Raise OptionError where a field is out of reach, or fields contradict each other."""
        shape = (self.depths, self.widths, self.expansions, self.kernels, self.strides)
        if len({len(of_stages) for of_stages in shape}) > 1:
            raise OptionError(
                f"depths, widths, expansions, kernels, strides = {shape} should have one entry for each stage"
            )
        if min(self.stem_width, self.last_width, *(number for of_stages in shape for number in of_stages)) < 1:
            raise OptionError(f"stem_width={self.stem_width}, last_width={self.last_width}, {shape} should be positive")
        if not all(kernel % 2 for kernel in self.kernels):
            raise OptionError(f"{self.kernels = } should be odd, so that blocks keep the size of a frame")
        if self.num_classes < 1:
            raise OptionError(f"{self.num_classes = } should be at least 1")
        if not 0 <= self.dropout < 1:
            raise OptionError(f"{self.dropout = } should lie in [0, 1)")
        if self.routing_ratio is not None:
            if self.routing_ratio < 1:
                raise OptionError(f"{self.routing_ratio = } should be at least 1")
            if len(self.routing_kernel_sizes) == 1:
                raise OptionError(
                    f"{self.routing_ratio = } is of a hidden layer, which {self.routing_kernel_sizes = } does not "
                    "have: give two kernel sizes, or no ratio"
                )


class EfficientNetLite(nn.Module):
    """The network: stem, stages of blocks, a last 1x1 convolution, mean over the clip, classifier."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__()
        self.config = config
        self.stem_conv = SameConv2d(3, config.stem_width, 3, stride=2, bias=False)
        self.stem_norm: nn.Module = nn.BatchNorm2d(config.stem_width, eps=_EPS)
        channels, stages = config.stem_width, []
        of_stages = zip(config.depths, config.widths, config.expansions, config.kernels, config.strides, strict=True)
        for depth, width, expansion, kernel, stride in of_stages:
            blocks = []
            for i in range(depth):
                blocks.append(
                    InvertedResidual(
                        channels,
                        width,
                        expansion=expansion,
                        kernel=kernel,
                        stride=stride if i == 0 else 1,
                        config=config,
                    )
                )
                channels = width
            stages.append(nn.ModuleList(blocks))
        self.stages = nn.ModuleList(stages)
        self.last_conv = nn.Conv2d(channels, config.last_width, 1, bias=False)
        self.last_norm: nn.Module = nn.BatchNorm2d(config.last_width, eps=_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.last_width, config.num_classes)
        self._initialize()

    def forward(self, clips: Tensor) -> Tensor:
        """Clips [N, 3, T, H, W], normalized -> logits [N, K]."""
        logits: Tensor = self.head(self.dropout(self.features(clips)))
        return logits

    def features(self, clips: Tensor) -> Tensor:
        """Clips [N, 3, T, H, W], normalized -> features [N, D], the mean over frames and pixels.

        Raises:
            OptionError: they are not, or a side is shorter than the network's stride.
        """
        self.check_shape(clips)
        check_variance(self, clips, stride=self._stride)
        n, _, t = clips.shape[:3]
        frames = clips.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        frames = frames * _SCALE + _SHIFT
        frames = F.relu6(self.stem_norm(self.stem_conv(frames)), inplace=True)
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                frames = block(frames, t)
        frames = F.relu6(self.last_norm(self.last_conv(frames)), inplace=True)
        return frames.mean((2, 3)).view(n, t, -1).mean(1)

    def check_shape(self, clips: Tensor) -> None:
        """Raise OptionError where the network does not take clips of this shape."""
        check_clips(clips)
        check_size(clips, self._stride)

    @property
    def _stride(self) -> int:
        return 2 * math.prod(self.config.strides)

    def _initialize(self) -> None:
        """Draw the weights for training from scratch.

        Kernels: normal, variance 2 / (D * k * k), of depthwise ones 2 / (k * k). Norms: 1 and 0; pooled norms: 0 and 0.
        Routing functions: ``Routing`` draws them. Classifier: as PyTorch draws it.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | TAdaConv2d):
                fan_out = module.weight[:, 0].numel() // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


class InvertedResidual(nn.Module):
    """1x1 to more channels (not in the first stage), depthwise, 1x1 back; added to what came in where sizes agree."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        expansion: int,
        kernel: int,
        stride: int,
        config: EfficientNetLiteConfig,
    ) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand: nn.Conv2d | None = None
        self.expand_norm: nn.Module | None = None
        if expansion > 1:
            self.expand = nn.Conv2d(channels, wide, 1, bias=False)
            self.expand_norm = nn.BatchNorm2d(wide, eps=_EPS)
        self.conv = _depthwise(wide, kernel, stride, config)
        self.norm: TemporalAggregation | nn.BatchNorm2d
        if config.aggregation is None:
            self.norm = nn.BatchNorm2d(wide, eps=_EPS)
        else:
            self.norm = TemporalAggregation(wide, pool=config.aggregation)
            self.norm.norm.eps = self.norm.pooled_norm.eps = _EPS
        self.project = nn.Conv2d(wide, out_channels, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(out_channels, eps=_EPS)
        self.adds = stride == 1 and channels == out_channels

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        y: Tensor = frames
        if self.expand is not None and self.expand_norm is not None:
            y = F.relu6(self.expand_norm(self.expand(y)))
        y = self.conv(y, num_frames=num_frames) if isinstance(self.conv, TAdaConv2d) else self.conv(y)
        y = self.norm(y, num_frames) if isinstance(self.norm, TemporalAggregation) else self.norm(y)
        y = self.project_norm(self.project(F.relu6(y)))
        return y + frames if self.adds else y


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": ceil(size / stride) pixels come out, an odd zero goes behind."""

    padded_before: FramePadding = "same"

    def forward(self, input: Tensor) -> Tensor:
        """Frames [N*T, C, H, W] -> [N*T, D, H', W']."""
        y: Tensor = super().forward(pad_frames(input, self.padded_before, self))
        return y


class SameTAdaConv2d(TAdaConv2d):
    """A TAdaConv2d padded so."""

    padded_before: FramePadding = "same"

    def forward(self, x: Tensor, alpha: Tensor | Calibration | None = None, *, num_frames: int | None = None) -> Tensor:
        """Frames [N*T, C, H, W] -> [N*T, D, H', W']; alpha comes from the frames as they are, without the zeros."""
        assert num_frames is not None
        calibration = self._calibration(x, alpha, num_frames)
        y: Tensor = super().forward(pad_frames(x, self.padded_before, self), calibration, num_frames=num_frames)
        return y


def _depthwise(channels: int, kernel: int, stride: int, config: EfficientNetLiteConfig) -> nn.Conv2d | TAdaConv2d:
    """A depthwise convolution. With a stride of 1 "same" is the ordinary padding."""
    options: dict[str, Any] = {"stride": stride, "groups": channels, "bias": False}
    options["padding"] = kernel // 2 if stride == 1 else 0
    if config.calibrate is None:
        plain = nn.Conv2d if stride == 1 else SameConv2d
        return plain(channels, channels, kernel, **options)
    has_hidden_layer = len(config.routing_kernel_sizes) == 2
    routing = Routing(
        channels,
        hidden_channels=depthwise_hidden_channels(channels, config.routing_ratio) if has_hidden_layer else None,
        kernel_sizes=config.routing_kernel_sizes,
        global_context=config.routing_global_context,
    )
    adaptive = TAdaConv2d if stride == 1 else SameTAdaConv2d
    return adaptive(channels, channels, kernel, calibrate=config.calibrate, routing=routing, **options)


def efficientnet_lite0(**options: Any) -> EfficientNetLite:
    """EfficientNet-Lite0 on frames, averaged: 4.7 M parameters with ImageNet's 1000 classes."""
    return EfficientNetLite(EfficientNetLiteConfig(**{"calibrate": None} | options))


def tada_lite0(**options: Any) -> EfficientNetLite:
    """EfficientNet-Lite0 with TAdaConv for its depthwise convolutions: 8 % more parameters."""
    return EfficientNetLite(EfficientNetLiteConfig(**options))
