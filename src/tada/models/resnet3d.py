"""The video networks of the plug-in experiments: SlowOnly, SlowFast, R(2+1)D and R3D, on ResNet-50 and tiny.

All are ResNets of 3-D convolutions and differ in where their kernels see more than one frame:

    SlowOnly   1x3x3, and 3x1x1 for the first convolution of blocks in the last two stages
    SlowFast   a SlowOnly on few frames, and a narrow fast pathway on all frames, joined by lateral connections
    R(2+1)D    1x3x3 followed by 3x1x1
    R3D        3x3x3

With ``adapted``, the middle convolutions of their blocks are made temporally adaptive by ``tada.adapt``.

Shapes: N clips, T frames, C channels, H x W pixels, D features, K classes. Inside, a clip is [N, C, T, H, W].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tada.adaptation import adapt
from tada.errors import OptionError
from tada.models.tada2d import check_clips, check_variance


@dataclass(frozen=True, kw_only=True, slots=True)
class HostConfig:
    """The architecture of a network."""

    kernel: Literal["1x3x3", "1x3x3+3x1x1", "3x3x3"]
    """The middle convolution of every block; "+" means two convolutions in a row."""
    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage."""
    width: int = 64
    """Channels of the stem and of the first stage's middle convolutions; each stage has twice as many."""
    expansion: int = 4
    """Output channels of a block, as a multiple of those of its middle convolution."""
    stem_sides: int = 7
    """Rows and columns of the first kernel."""
    stem_frames: int = 1
    """Frames of the first kernel; where ``kernel`` has a "+", of a second convolution after it."""
    reduce_frames: tuple[int, ...] = (1, 1, 1, 1)
    """Frames of the kernel of each block's first convolution, for each stage."""
    temporal_strides: tuple[int, ...] = (1, 1, 1, 1)
    """Stride in time of each stage."""
    fast_ratio: int = 0
    """SlowFast: the fast pathway sees this many times the frames of the slow one; 0: no fast pathway."""
    fast_width: int = 8
    """SlowFast: channels of the fast pathway's stem."""
    num_classes: int = 400
    """K, the number of logits."""
    dropout: float = 0.5
    """Share of the features dropped before the classifier, in training."""
    adapted: bool = False
    """Whether the blocks' middle convolutions are temporally adaptive, as in the paper."""

    def __post_init__(self) -> None:
        """Raise OptionError where a field is out of range, or fields contradict each other."""
        if self.kernel not in ("1x3x3", "1x3x3+3x1x1", "3x3x3"):
            raise OptionError(f"{self.kernel = } should be '1x3x3', '1x3x3+3x1x1' or '3x3x3'")
        if not len(self.depths) == len(self.reduce_frames) == len(self.temporal_strides):
            raise OptionError(
                f"{self.depths, self.reduce_frames, self.temporal_strides = } should have one entry for each stage"
            )
        sizes = (self.width, self.expansion, self.fast_width, *self.depths, *self.temporal_strides)
        if min(sizes) < 1 or self.fast_ratio < 0:
            raise OptionError(f"{self.depths, self.width, self.expansion, self.fast_width = } should all be positive")
        if not all(size % 2 for size in (self.stem_sides, self.stem_frames, *self.reduce_frames)):
            raise OptionError(f"{self.stem_sides, self.stem_frames, self.reduce_frames = } should all be odd")
        if self.num_classes < 1:
            raise OptionError(f"{self.num_classes = } should be at least 1")
        if not 0 <= self.dropout < 1:
            raise OptionError(f"{self.dropout = } should lie in [0, 1)")


class Host(nn.Module):
    """The network: one pathway, or two (SlowFast); mean over the clip; classifier."""

    def __init__(self, config: HostConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.fast: Pathway | None = None
        handed_over: tuple[int, ...] = (0,) * len(config.depths)
        if config.fast_ratio:
            self.fast = Pathway(config, width=config.fast_width, stem_frames=5, reduce_frames=(3,) * len(config.depths))
            sources = (config.fast_width, *self.fast.stage_channels[:-1])
            handed_over = tuple(2 * channels for channels in sources)
            stride = (config.fast_ratio, 1, 1)
            self.lateral_convs = nn.ModuleList(
                nn.Conv3d(channels, 2 * channels, (5, 1, 1), stride=stride, padding=(2, 0, 0), bias=False)
                for channels in sources
            )
            self.lateral_norms = nn.ModuleList(nn.BatchNorm3d(channels) for channels in handed_over)
        self.slow = Pathway(
            config,
            width=width,
            stem_frames=config.stem_frames,
            reduce_frames=config.reduce_frames,
            handed_over=handed_over,
        )
        num_features = self.slow.stage_channels[-1] + (self.fast.stage_channels[-1] if self.fast else 0)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(num_features, config.num_classes)
        self._initialize()
        if config.adapted:
            adapt(self, where=_is_middle)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips [N, 3, T, H, W], normalized -> logits [N, K].

        Raises:
            OptionError: they are no clips, or T is no multiple of ``fast_ratio`` (SlowFast); or, in training, they
                leave the last batch norms one value per channel.
        """
        logits: Tensor = self.head(self.dropout(self.features(clips)))
        return logits

    def features(self, clips: Tensor) -> Tensor:
        """Clips [N, 3, T, H, W], normalized -> features [N, D], the mean over frames and pixels of each pathway."""
        self.check_shape(clips)
        config = self.config
        frame_stride = math.prod(config.temporal_strides) * max(config.fast_ratio, 1)
        check_variance(self, clips, stride=2 ** (1 + len(config.depths)), frame_stride=frame_stride)
        clips = clips.contiguous(memory_format=torch.channels_last_3d)
        if self.fast is None:
            slow: Tensor = self.slow.stem(clips)
            for stage in range(len(self.slow.stages)):
                slow = self.slow.run_stage(stage, slow)
            return slow.mean((2, 3, 4))
        ratio = config.fast_ratio
        slow, fast = self.slow.stem(clips[:, :, ::ratio]), self.fast.stem(clips)
        for stage in range(len(self.slow.stages)):
            handed_over = F.relu(self.lateral_norms[stage](self.lateral_convs[stage](fast)))
            slow = self.slow.run_stage(stage, torch.cat([slow, handed_over], dim=1))
            fast = self.fast.run_stage(stage, fast)
        return torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], dim=1)

    def check_shape(self, clips: Tensor) -> None:
        """Raise OptionError where the network does not take clips of this shape."""
        check_clips(clips)
        if self.fast is not None and clips.shape[2] % self.config.fast_ratio:
            raise OptionError(
                f"a clip of {clips.shape[2]} frames; SlowFast needs a multiple of {self.config.fast_ratio} "
                "(clip.num_frames)"
            )

    def _initialize(self) -> None:
        """Initialize the weights for training from scratch.

        Kernels: normal, variance 2 / (D * kt * k * k). Norms: 1 and 0. Classifier: of SlowOnly and SlowFast
        N(0, 0.01) and bias 0, of R(2+1)D and R3D as PyTorch draws it; so are the released heads.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        if self.config.kernel == "1x3x3":
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)


class Pathway(nn.Module):
    """A stem and stages of blocks.

    Args:
        width: channels of the stem.
        handed_over: channels that a lateral connection adds to the input of each stage.
    """

    def __init__(
        self,
        config: HostConfig,
        *,
        width: int,
        stem_frames: int,
        reduce_frames: tuple[int, ...],
        handed_over: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        k = config.stem_sides
        frames = 1 if "+" in config.kernel else stem_frames
        layers: list[nn.Module] = [*_conv_norm(3, width, (frames, k, k), stride=(1, 2, 2)), nn.ReLU()]
        if "+" in config.kernel:
            layers += [*_conv_norm(width, width, (stem_frames, 1, 1)), nn.ReLU()]
        channels = width
        self.stem = nn.Sequential(*layers, nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
        stages, stage_channels = [], []
        for i, depth in enumerate(config.depths):
            channels += handed_over[i] if handed_over else 0
            blocks = []
            for j in range(depth):
                stride = (config.temporal_strides[i] if j == 0 else 1, *((2, 2) if i and j == 0 else (1, 1)))
                block = Bottleneck3d(channels, width * 2**i, frames=reduce_frames[i], stride=stride, config=config)
                channels = block.out_channels
                blocks.append(block)
            stages.append(nn.ModuleList(blocks))
            stage_channels.append(channels)
        self.stages = nn.ModuleList(stages)
        self.stage_channels = tuple(stage_channels)

    def run_stage(self, stage: int, x: Tensor) -> Tensor:
        blocks = self.stages[stage]
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            x = block(x)
        return x


class Bottleneck3d(nn.Module):
    """A bottleneck: ``frames`` x1x1 to fewer channels, the middle convolution, 1x1x1 back, and a shortcut."""

    def __init__(
        self, channels: int, width: int, *, frames: int, stride: tuple[int, int, int], config: HostConfig
    ) -> None:
        super().__init__()
        self.out_channels = width * config.expansion
        self.conv1, self.norm1 = _conv_norm(channels, width, (frames, 1, 1))
        self.temporal_conv: nn.Module | None = None
        self.temporal_norm: nn.Module | None = None
        if config.kernel == "1x3x3+3x1x1":
            self.conv2, self.norm2 = _conv_norm(width, width, (1, 3, 3), stride=(1, *stride[1:]))
            self.temporal_conv, self.temporal_norm = _conv_norm(width, width, (3, 1, 1), stride=(stride[0], 1, 1))
        else:
            self.conv2, self.norm2 = _conv_norm(width, width, (int(config.kernel[0]), 3, 3), stride=stride)
        self.conv3, self.norm3 = _conv_norm(width, self.out_channels, (1, 1, 1))
        self.shortcut: nn.Module = nn.Identity()
        if channels != self.out_channels or max(stride) > 1:
            self.shortcut = nn.Sequential(*_conv_norm(channels, self.out_channels, (1, 1, 1), stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        if self.temporal_conv is not None and self.temporal_norm is not None:
            y = F.relu(self.temporal_norm(self.temporal_conv(y)))
        y = self.norm3(self.conv3(y))
        return F.relu(y + self.shortcut(x))


def _is_middle(name: str, module: nn.Module) -> bool:
    # The first convolution of a block is not adapted, even where it sees three frames: it has four times the input
    # channels, and its routing function would be sixteen times as large.
    return name.endswith((".conv2", ".temporal_conv"))


def _conv_norm(
    channels: int, out_channels: int, kernel: tuple[int, int, int], *, stride: tuple[int, int, int] = (1, 1, 1)
) -> tuple[nn.Conv3d, nn.BatchNorm3d]:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    conv = nn.Conv3d(channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
    return conv, nn.BatchNorm3d(out_channels)


_SLOWONLY: dict[str, Any] = {"kernel": "1x3x3", "reduce_frames": (1, 1, 3, 3)}
_SLOWFAST: dict[str, Any] = _SLOWONLY | {"fast_ratio": 8}
_R2PLUS1D: dict[str, Any] = {"kernel": "1x3x3+3x1x1", "stem_frames": 3}
_R3D: dict[str, Any] = {"kernel": "3x3x3", "stem_frames": 3}
# Small enough to train on a laptop's CPU and on small clips (64 x 64 pixels).
_TINY: dict[str, Any] = {
    "depths": (1, 1, 1),
    "reduce_frames": (1, 1, 1),
    "temporal_strides": (1, 1, 1),
    "width": 24,
    "expansion": 2,
    "stem_sides": 5,
    "dropout": 0.2,
}


def slowonly_r50(**options: Any) -> Host:
    """SlowOnly on ResNet-50, the slow pathway of SlowFast by itself."""
    return Host(HostConfig(**_SLOWONLY | options))


def slowfast_r50(**options: Any) -> Host:
    """SlowFast 4x16 on ResNet-50: 32 frames, of which the slow pathway sees four."""
    return Host(HostConfig(**_SLOWFAST | options))


def r2plus1d_r50(**options: Any) -> Host:
    """R(2+1)D on ResNet-50."""
    return Host(HostConfig(**_R2PLUS1D | options))


def r3d_r50(**options: Any) -> Host:
    """R3D on ResNet-50."""
    return Host(HostConfig(**_R3D | options))


def slowonly_tiny(**options: Any) -> Host:
    """A SlowOnly for the CPU."""
    return Host(HostConfig(**_SLOWONLY | _TINY | {"reduce_frames": (1, 1, 3)} | options))


def slowfast_tiny(**options: Any) -> Host:
    """A SlowFast for the CPU: the slow pathway sees every fourth frame."""
    return Host(HostConfig(**_SLOWFAST | _TINY | {"reduce_frames": (1, 1, 3), "fast_ratio": 4} | options))


def r2plus1d_tiny(**options: Any) -> Host:
    """An R(2+1)D for the CPU."""
    return Host(HostConfig(**_R2PLUS1D | _TINY | options))


def r3d_tiny(**options: Any) -> Host:
    """An R3D for the CPU."""
    return Host(HostConfig(**_R3D | _TINY | options))
