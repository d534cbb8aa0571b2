"""TAda2D: a ResNet whose 3x3 convolutions are temporally adaptive; and TSN, the same network with plain convolutions.

Only the calibration and the aggregation of the 3x3 convolutions mix frames; everything else works on single frames. TSN
averages frames and is the baseline of every comparison.

Shapes: N clips, T frames, C channels, H x W pixels, D features, K classes. Inside, a clip is T images of a batch
[N*T, C, H, W], channels last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tada.errors import OptionError
from tada.tadaconv import Calibrate, Routing, TAdaConv2d, TemporalAggregation, TemporalPool


@dataclass(frozen=True, kw_only=True, slots=True)
class TAda2DConfig:
    """The architecture of a network, and which of the paper's parts it has."""

    block: Literal["basic", "bottleneck"]
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the width at the output."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    widths: tuple[int, ...]
    """Channels of the 3x3 convolutions of each stage."""
    stem_width: int = 64
    """Channels of the first convolution."""
    stem_kernel: int = 7
    """Side of the first convolution's kernel, in pixels."""
    num_classes: int = 400
    """K, the number of logits."""
    dropout: float = 0.5
    """Share of the features dropped before the classifier, in training."""
    calibrate: Calibrate | None = "in"
    """The side of the 3x3 kernels that is calibrated; None: plain convolutions (TSN)."""
    routing_ratio: int = 4
    """r of the routing functions."""
    routing_kernel_sizes: tuple[int, int] | tuple[int] = (3, 3)
    """Frames that the routing functions' convolutions see."""
    routing_global_context: bool = True
    """Whether the routing functions see the mean of the whole clip."""
    aggregation: TemporalPool | None = "avg"
    """How a frame is pooled with its neighbors after a 3x3 convolution; None: not at all (TSN)."""
    start: Literal["image", "motion"] = "image"
    """The initialization. 'image': frames are not mixed at first, as in the paper, so that the kernels of an image
    network fit. 'motion': changes over time count from the first step, for training from scratch."""

    def __post_init__(self) -> None:
        """Raise OptionError where a field is out of range, or fields contradict each other."""
        if self.block not in ("basic", "bottleneck"):
            raise OptionError(f"{self.block = } should be 'basic' or 'bottleneck'")
        if len(self.depths) != len(self.widths):
            raise OptionError(f"{self.depths = } and {self.widths = } should have one entry for each stage")
        if min(self.stem_width, self.stem_kernel, *self.depths, *self.widths) < 1:
            raise OptionError(
                f"{self.stem_width, self.stem_kernel, self.depths, self.widths = } should all be positive"
            )
        if self.num_classes < 1:
            raise OptionError(f"{self.num_classes = } should be at least 1")
        if not 0 <= self.dropout < 1:
            raise OptionError(f"{self.dropout = } should lie in [0, 1)")


class TAda2D(nn.Module):
    """The network: stem, stages of blocks, mean over the clip, classifier.

    Differs from torchvision's ResNet: no max-pool after the stem; the first stage strides instead.
    """

    def __init__(self, config: TAda2DConfig) -> None:
        super().__init__()
        self.config = config
        k = config.stem_kernel
        self.stem_conv = nn.Conv2d(3, config.stem_width, k, stride=2, padding=k // 2, bias=False)
        self.stem_norm: nn.Module = nn.BatchNorm2d(config.stem_width)
        block = BasicBlock if config.block == "basic" else Bottleneck
        channels, stages = config.stem_width, []
        for depth, width in zip(config.depths, config.widths, strict=True):
            blocks = []
            for i in range(depth):
                blocks.append(block(channels, width, stride=2 if i == 0 else 1, config=config))
                channels = width * block.expansion
            stages.append(nn.ModuleList(blocks))
        self.stages = nn.ModuleList(stages)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(channels, config.num_classes)
        self._initialize()

    def forward(self, clips: Tensor) -> Tensor:
        """Clips [N, 3, T, H, W], normalized -> logits [N, K]."""
        logits: Tensor = self.head(self.dropout(self.features(clips)))
        return logits

    def features(self, clips: Tensor) -> Tensor:
        """Clips [N, 3, T, H, W], normalized -> features [N, D], the mean over frames and pixels."""
        self.check_shape(clips)
        check_variance(self, clips, stride=2 ** (1 + len(self.config.depths)))
        n, _, t = clips.shape[:3]
        frames = clips.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        frames = F.relu(self.stem_norm(self.stem_conv(frames)), inplace=True)
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                frames = block(frames, t)
        return frames.mean((2, 3)).view(n, t, -1).mean(1)

    def check_shape(self, clips: Tensor) -> None:
        """Raise OptionError where the network does not take clips of this shape."""
        check_clips(clips)

    def _initialize(self) -> None:
        """Initialize the weights.

        3x3 and 1x1 kernels: normal, variance 2 / (D * k * k). Norms: 1 and 0; pooled norms: 0 and 0. Routing
        functions: likewise, biases and their last layer 0 (``Routing`` does it). Classifier: as PyTorch draws it.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | TAdaConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        if self.config.start == "motion":
            self._initialize_for_motion()

    @torch.no_grad()
    def _initialize_for_motion(self) -> None:
        """Initialize calibration to respond to change over time from the first step on.

        Not in the paper, which starts from ImageNet's kernels. From random kernels the network first learns what single
        frames show, and the order of frames late or never. So: routing functions see how a frame differs from its clip
        (context -1 on the diagonal), and the frame after minus the frame before (first convolution antisymmetric in
        time); shortcuts, which carry single frames past these layers, are weak (norms 0.2).
        """
        for module in self.modules():
            if isinstance(module, Routing):
                if module.context is not None:
                    nn.init.eye_(module.context.weight).neg_()
                    nn.init.zeros_(module.context.bias)
                if module.reduce is not None and module.reduce.kernel_size == (3,):
                    before = module.reduce.weight[:, :, 0]
                    module.reduce.weight.copy_(torch.stack([before, torch.zeros_like(before), -before], dim=2))
            elif isinstance(module, BasicBlock | Bottleneck) and isinstance(module.shortcut, nn.Sequential):
                norm = module.shortcut[1]
                assert isinstance(norm, nn.BatchNorm2d)
                nn.init.constant_(norm.weight, 0.2)


class BasicBlock(nn.Module):
    """Two temporal 3x3 convolutions and a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(self, channels: int, width: int, *, stride: int, config: TAda2DConfig) -> None:
        super().__init__()
        self.conv1 = TemporalConv3x3(channels, width, stride=stride, config=config)
        self.conv2 = TemporalConv3x3(width, width, stride=1, config=config)
        self.shortcut = _shortcut(channels, width, stride)

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        y = F.relu(self.conv1(frames, num_frames))
        y = self.conv2(y, num_frames)
        return F.relu(y + self.shortcut(frames))


class Bottleneck(nn.Module):
    """1x1, temporal 3x3, 1x1 and a shortcut; the stride is the 3x3's (ResNet v1.5)."""

    expansion = 4

    def __init__(self, channels: int, width: int, *, stride: int, config: TAda2DConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = TemporalConv3x3(width, width, stride=stride, config=config)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width * self.expansion)
        self.shortcut = _shortcut(channels, width * self.expansion, stride)

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        y = F.relu(self.norm1(self.conv1(frames)))
        y = F.relu(self.conv2(y, num_frames))
        y = self.norm3(self.conv3(y))
        return F.relu(y + self.shortcut(frames))


class TemporalConv3x3(nn.Module):
    """A 3x3 convolution with its norm: calibrated and aggregated over time, or plain, as the config says."""

    def __init__(self, channels: int, out_channels: int, *, stride: int, config: TAda2DConfig) -> None:
        super().__init__()
        self.conv: TAdaConv2d | nn.Conv2d
        if config.calibrate is None:
            self.conv = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        else:
            routing = Routing(
                channels,
                out_channels=channels if config.calibrate == "in" else out_channels,
                ratio=config.routing_ratio,
                kernel_sizes=config.routing_kernel_sizes,
                global_context=config.routing_global_context,
            )
            self.conv = TAdaConv2d(
                channels,
                out_channels,
                3,
                stride=stride,
                padding=1,
                bias=False,
                calibrate=config.calibrate,
                routing=routing,
            )
        self.norm: TemporalAggregation | nn.BatchNorm2d
        if config.aggregation is None:
            self.norm = nn.BatchNorm2d(out_channels)
        else:
            self.norm = TemporalAggregation(out_channels, pool=config.aggregation)

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        if isinstance(self.conv, TAdaConv2d):
            frames = self.conv(frames, num_frames=num_frames)
        else:
            frames = self.conv(frames)
        if isinstance(self.norm, TemporalAggregation):
            frames = self.norm(frames, num_frames)
        else:
            frames = self.norm(frames)
        return frames


def _shortcut(channels: int, out_channels: int, stride: int) -> nn.Module:
    if channels == out_channels and stride == 1:
        return nn.Identity()
    conv = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def check_clips(clips: Tensor) -> None:
    """Check that a tensor has the shape of clips, [N, 3, T, H, W].

    Raises:
        OptionError: it has not.
    """
    if clips.ndim == 5 and clips.shape[1] == 3 and 0 not in clips.shape:
        return
    way_out = ", and none of the sizes 0" if 0 in clips.shape else ""
    if clips.ndim == 4 and clips.shape[0] == 3:
        way_out = ": this seems to be one clip, clips[None] is a batch of it"
    elif clips.ndim == 5 and clips.shape[2] == 3:
        way_out = ": this seems to be [N, T, 3, H, W], clips.transpose(1, 2) is what is needed"
    raise OptionError(f"clips {list(clips.shape)} should be [N, 3, T, H, W], with three colors{way_out}")


def check_size(clips: Tensor, stride: int) -> None:
    """Check that frames are as large as a network's stride, for networks that do not pad; not in an export.

    Raises:
        OptionError: they are smaller.
    """
    if torch.compiler.is_exporting():  # there sizes are symbols
        return
    if min(clips.shape[3:]) < stride:
        raise OptionError(
            f"clips of {clips.shape[3]} x {clips.shape[4]} pixels are smaller than this network's stride: give frames "
            f"of at least {stride} x {stride} (clip.crop or train_crop)"
        )


def check_variance(model: nn.Module, clips: Tensor, *, stride: int, frame_stride: int = 1) -> None:
    """Check that in training the last batch norms get more than one value per channel: one has no variance.

    Args:
        stride: the network's, of rows and columns.
        frame_stride: the network's, of frames.

    Raises:
        OptionError: they get one value.
    """
    if not model.training:
        return
    n, _, t, h, w = clips.shape
    values = n * -(-t // frame_stride) * -(-h // stride) * -(-w // stride)
    # Those of routing functions (BatchNorm1d) take one value, too.
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.BatchNorm1d)]
    if values == 1 and any(norm.training for norm in norms):
        raise OptionError(
            f"clips {list(clips.shape)} are too few or too small for training: of them the last batch norms see one "
            f"value per channel, which has no variance; give more clips (batch_size), more frames (clip.num_frames) or "
            f"a side of more than {stride} pixels (clip.crop)"
        )


_TSN: dict[str, Any] = {"calibrate": None, "aggregation": None}
_R18: dict[str, Any] = {"block": "basic", "depths": (2, 2, 2, 2), "widths": (64, 128, 256, 512)}
_R50: dict[str, Any] = {"block": "bottleneck", "depths": (3, 4, 6, 3), "widths": (64, 128, 256, 512)}
_R101: dict[str, Any] = _R50 | {"depths": (3, 4, 23, 3)}
# Small enough to train on a laptop's CPU in a minute or two: see docs/benchmarks.md.
_TINY: dict[str, Any] = {
    "block": "basic",
    "depths": (1, 1, 1, 1),
    "widths": (24, 48, 96, 128),
    "stem_width": 16,
    "dropout": 0.2,
    "start": "motion",
}


def tada2d_tiny(**options: Any) -> TAda2D:
    """TAda2D for the CPU and for clips of about 48 x 48 pixels."""
    return TAda2D(TAda2DConfig(**_TINY | options))


def tsn_tiny(**options: Any) -> TAda2D:
    """``tada2d_tiny`` without calibration and aggregation: frames are averaged."""
    return TAda2D(TAda2DConfig(**_TINY | _TSN | options))


def tada2d_r18(**options: Any) -> TAda2D:
    """TAda2D on ResNet-18: both 3x3 convolutions of a block are calibrated."""
    return TAda2D(TAda2DConfig(**_R18 | options))


def tsn_r18(**options: Any) -> TAda2D:
    """ResNet-18 on frames, averaged."""
    return TAda2D(TAda2DConfig(**_R18 | _TSN | options))


def tada2d_r50(**options: Any) -> TAda2D:
    """TAda2D-R50, the paper's network: 27.5 M parameters with 400 classes."""
    return TAda2D(TAda2DConfig(**_R50 | options))


def tsn_r50(**options: Any) -> TAda2D:
    """ResNet-50 on frames, averaged."""
    return TAda2D(TAda2DConfig(**_R50 | _TSN | options))


def tada2d_r101(**options: Any) -> TAda2D:
    """TAda2D on ResNet-101."""
    return TAda2D(TAda2DConfig(**_R101 | options))


def tsn_r101(**options: Any) -> TAda2D:
    """ResNet-101 on frames, averaged."""
    return TAda2D(TAda2DConfig(**_R101 | _TSN | options))
