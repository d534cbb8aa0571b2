"""TAdaConvNeXt: a ConvNeXt whose 7x7 convolutions are temporally adaptive; and the same network with plain ones.

The stem sees three frames at a stride of two. After it only the calibration mixes frames, as in TAda2D; here it scales
the output channels of depthwise kernels and their bias.

TAdaConvNeXtV2 (arXiv 2308.05787) has attention over time in its routing functions, aggregates each frame with its
neighbors behind the convolution, and has QuickGELU for GELU.

Shapes: N clips, T frames (half as many after the stem), C channels, H x W pixels, D features, K classes. Inside, a
clip is T images of a batch [N*T, C, H, W], channels last, which norms and linear layers read without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tada.errors import OptionError
from tada.models.tada2d import check_clips, check_size
from tada.tadaconv import Calibrate, Routing, TAdaConv2d, TemporalAggregation, TemporalPool
from tada.tadaconv.routing_v2 import RoutingV2, quick_gelu

Activation = Literal["gelu", "quick_gelu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TAdaConvNeXtConfig:
    """The architecture of a network, and which of the paper's parts it has."""

    depths: tuple[int, ...]
    """Blocks of each stage."""
    widths: tuple[int, ...]
    """Channels of each stage."""
    kernel: int = 7
    """Side of the depthwise kernels, in pixels."""
    num_classes: int = 400
    """K, the number of logits."""
    dropout: float = 0.5
    """Share of the features dropped before the classifier, in training."""
    stochastic_depth: float = 0.4
    """How often a clip skips the last block, in training; earlier blocks linearly less often, the first never."""
    layer_scale: float = 1e-6
    """Initial factor of the channels of a block before they are added."""
    calibrate: Calibrate | None = "out"
    """The side of the depthwise kernels that is calibrated; None: plain convolutions (ConvNeXt)."""
    routing_ratio: int = 4
    """r of the routing functions."""
    routing_kernel_sizes: tuple[int, int] | tuple[int] = (3, 3)
    """Frames that the routing functions' convolutions see."""
    routing_global_context: bool = True
    """Whether the routing functions see the mean of the whole clip."""
    routing_head_channels: int | None = None
    """Channels of a head of the routing functions' attention over time (V2), which takes the place of the global
    context; None: no attention."""
    aggregation: TemporalPool | None = None
    """How a frame is pooled with its neighbors after a depthwise convolution (V2: "avg"); None: not at all."""
    activation: Activation = "gelu"
    """Between the wide layers of a block."""

    def __post_init__(self) -> None:
        """Raise OptionError where a field is out of range, or fields contradict each other."""
        if len(self.depths) != len(self.widths):
            raise OptionError(f"{self.depths = } and {self.widths = } should have one entry for each stage")
        if min(*self.depths, *self.widths) < 1:
            raise OptionError(f"{self.depths, self.widths = } should all be positive")
        if self.kernel % 2 == 0:
            raise OptionError(f"{self.kernel = } should be odd, so that blocks keep the size of a frame")
        if self.num_classes < 1:
            raise OptionError(f"{self.num_classes = } should be at least 1")
        if not (0 <= self.dropout < 1 and 0 <= self.stochastic_depth < 1):
            raise OptionError(f"{self.dropout = } and {self.stochastic_depth = } should lie in [0, 1)")
        if self.activation not in get_args(Activation):
            raise OptionError(f"{self.activation = } should be 'gelu' or 'quick_gelu'")
        if self.routing_head_channels is not None and self.routing_global_context:
            raise OptionError(
                f"{self.routing_head_channels = } and {self.routing_global_context = } exclude each other: attention "
                "over time takes the place of the global context"
            )


class TAdaConvNeXt(nn.Module):
    """The network: stem, stages of blocks with a downsampling before each but the first, mean, norm, classifier."""

    def __init__(self, config: TAdaConvNeXtConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config.widths[0])
        before_last = max(sum(config.depths) - 1, 1)
        downsamplings: list[nn.Module] = []
        stages: list[nn.Module] = []
        num_blocks = 0
        for i, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            downsamplings.append(Downsampling(config.widths[i - 1], width) if i else nn.Identity())
            blocks = []
            for _ in range(depth):
                drop = config.stochastic_depth * num_blocks / before_last
                blocks.append(ConvNeXtBlock(width, drop=drop, config=config))
                num_blocks += 1
            stages.append(nn.ModuleList(blocks))
        self.downsamplings = nn.ModuleList(downsamplings)
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(config.widths[-1], eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.widths[-1], config.num_classes)
        self._initialize()

    def forward(self, clips: Tensor) -> Tensor:
        """Clips [N, 3, T, H, W], normalized -> logits [N, K]."""
        logits: Tensor = self.head(self.dropout(self.features(clips)))
        return logits

    def features(self, clips: Tensor) -> Tensor:
        """Clips [N, 3, T, H, W], normalized -> features [N, D], the norm of the mean over frames and pixels."""
        self.check_shape(clips)
        frames, t = self.stem(clips)
        for downsampling, stage in zip(self.downsamplings, self.stages, strict=True):
            frames = downsampling(frames)
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                frames = block(frames, t)
        means = frames.mean((2, 3))
        features: Tensor = self.norm(means.view(-1, t, means.shape[1]).mean(1))
        return features

    def check_shape(self, clips: Tensor) -> None:
        """Raise OptionError where the network does not take clips of this shape."""
        check_clips(clips)
        check_size(clips, 4 * 2 ** (len(self.config.depths) - 1))

    def _initialize(self) -> None:
        """Initialize the weights for training from scratch.

        Kernels and linear layers: normal, std 0.02, truncated at two std; biases 0, as in ConvNeXt. Norms: 1 and 0;
        pooled norms: 0 and 0. Routing functions and classifier: as PyTorch draws them, the routing functions' last
        layers 0; ``RoutingV2`` draws itself.
        """
        drawn = {layer for module in self.modules() if isinstance(module, Routing) for layer in module.modules()}
        drawn.add(self.head)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear | TAdaConv2d) and module not in drawn:
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, nn.Conv2d | TAdaConv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


class Stem(nn.Module):
    """A 3x4x4 convolution over the clip with stride 2 in time and 4 in space, and a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, width, (3, 4, 4), stride=(2, 4, 4), padding=(1, 0, 0))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, clips: Tensor) -> tuple[Tensor, int]:
        """Clips [N, 3, T, H, W] -> frames [N*T', C, H/4, W/4], and T'."""
        frames, t = conv_of_three_frames(self.conv, clips)
        return _over_channels(self.norm, frames), t


def conv_of_three_frames(conv: nn.Conv3d, clips: Tensor) -> tuple[Tensor, int]:
    """A stem's convolution with a kernel of three frames, a stride of two frames and a padding of one, over clips.

    It is computed as a 2-D convolution on images of nine channels: the three frames that the kernel sees.

    Returns:
        Frames [N*T', D, H', W'], and T'.
    """
    windows = F.pad(clips, (0, 0, 0, 0, 1, 1)).unfold(2, 3, 2)  # [N, 3, T', H, W, 3]
    images = windows.permute(0, 2, 1, 5, 3, 4).flatten(2, 3).flatten(0, 1)  # [N*T', 9, H, W]
    images = images.contiguous(memory_format=torch.channels_last)
    kernel = conv.weight.flatten(1, 2).contiguous(memory_format=torch.channels_last)
    return F.conv2d(images, kernel, conv.bias, conv.stride[1:]), windows.shape[2]


class Downsampling(nn.Module):
    """A norm, and a 2x2 convolution that halves the frames' sides."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.conv = nn.Conv2d(channels, width, 2, stride=2)

    def forward(self, frames: Tensor) -> Tensor:
        y: Tensor = self.conv(_over_channels(self.norm, frames))
        return y


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, a layer to four times the channels, GELU, a layer back; scaled and added.

    In V2 the norm is that of the frame, plus that of its mean with its neighbors.
    """

    def __init__(self, width: int, *, drop: float, config: TAdaConvNeXtConfig) -> None:
        super().__init__()
        self.drop = drop
        self.conv: TAdaConv2d | nn.Conv2d
        padding = config.kernel // 2
        if config.calibrate is None:
            self.conv = nn.Conv2d(width, width, config.kernel, padding=padding, groups=width)
        else:
            self.conv = TAdaConv2d(
                width,
                width,
                config.kernel,
                padding=padding,
                groups=width,
                calibrate=config.calibrate,
                routing=_routing(width, config),
            )
        self.norm: nn.LayerNorm | TemporalAggregation
        if config.aggregation is None:
            self.norm = nn.LayerNorm(width, eps=1e-6)
        else:
            self.norm = TemporalAggregation(width, pool=config.aggregation, norm="layer")
        self.activation = config.activation
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.layer_scale = nn.Parameter(torch.full((width,), config.layer_scale))

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        if isinstance(self.conv, TAdaConv2d):
            y = self.conv(frames, num_frames=num_frames)
        else:
            y = self.conv(frames)
        if isinstance(self.norm, TemporalAggregation):
            pixels = self.norm(y, num_frames).permute(0, 2, 3, 1)  # [N*T, H, W, C], a view
        else:
            pixels = self.norm(y.permute(0, 2, 3, 1))
        wide = self.widen(pixels)
        wide = F.gelu(wide) if self.activation == "gelu" else quick_gelu(wide)
        pixels = self.narrow(wide) * self.layer_scale
        y = pixels.permute(0, 3, 1, 2)
        if self.training and self.drop:
            y = y * kept_clips(y, num_frames, self.drop)
        frames = frames + y
        return frames


def _routing(width: int, config: TAdaConvNeXtConfig) -> Routing:
    options: dict[str, Any] = {"bias_channels": width, "ratio": config.routing_ratio}
    options["kernel_sizes"] = config.routing_kernel_sizes
    if config.routing_head_channels is not None:
        return RoutingV2(width, head_channels=config.routing_head_channels, **options)
    return Routing(width, global_context=config.routing_global_context, norm="layer", **options)


def kept_clips(y: Tensor, num_frames: int, drop: float) -> Tensor:
    """Stochastic depth: 0 for the frames of a clip that skips a block, else 1 / (1 - drop).

    Args:
        y: [N*T, ...], what the block would add.

    Returns:
        [N*T, 1, ...], with as many dimensions as y.
    """
    kept = y.new_empty(y.shape[0] // num_frames, 1).bernoulli_(1 - drop) / (1 - drop)
    return kept.expand(-1, num_frames).reshape(-1, *[1] * (y.ndim - 1))


def _over_channels(norm: nn.LayerNorm, frames: Tensor) -> Tensor:
    """Apply a norm over the channels of each pixel: frames [N*T, C, H, W] -> the same shape."""
    pixels: Tensor = norm(frames.permute(0, 2, 3, 1))
    return pixels.permute(0, 3, 1, 2)


_T: dict[str, Any] = {"depths": (3, 3, 9, 3), "widths": (96, 192, 384, 768)}
_S: dict[str, Any] = {"depths": (3, 3, 27, 3), "widths": (96, 192, 384, 768)}
_B: dict[str, Any] = {"depths": (3, 3, 27, 3), "widths": (128, 256, 512, 1024)}
_V2: dict[str, Any] = {
    "routing_ratio": 2,
    "routing_global_context": False,
    "routing_head_channels": 48,
    "aggregation": "avg",
    "activation": "quick_gelu",
    "stochastic_depth": 0.2,
}
# Small enough for a laptop's CPU and small clips: little depth, so layers count from the first step on.
_MINI: dict[str, Any] = {
    "depths": (1, 1, 2),
    "widths": (32, 64, 128),
    "dropout": 0.2,
    "stochastic_depth": 0.0,
    "layer_scale": 1.0,
}


def tadaconvnext_mini(**options: Any) -> TAdaConvNeXt:
    """TAdaConvNeXt for the CPU and for small clips (64 x 64 pixels)."""
    return TAdaConvNeXt(TAdaConvNeXtConfig(**_MINI | options))


def convnext_mini(**options: Any) -> TAdaConvNeXt:
    """``tadaconvnext_mini`` without calibration."""
    return TAdaConvNeXt(TAdaConvNeXtConfig(**_MINI | {"calibrate": None} | options))


def tadaconvnext_t(**options: Any) -> TAdaConvNeXt:
    """TAdaConvNeXt-T: 38.7 M parameters with 400 classes."""
    return TAdaConvNeXt(TAdaConvNeXtConfig(**_T | options))


def convnext_t(**options: Any) -> TAdaConvNeXt:
    """ConvNeXt-T behind the same stem, frames averaged."""
    return TAdaConvNeXt(TAdaConvNeXtConfig(**_T | {"calibrate": None} | options))


def tadaconvnext_s(**options: Any) -> TAdaConvNeXt:
    """TAdaConvNeXt-S."""
    return TAdaConvNeXt(TAdaConvNeXtConfig(**_S | options))


def convnext_s(**options: Any) -> TAdaConvNeXt:
    """ConvNeXt-S behind the same stem, frames averaged."""
    return TAdaConvNeXt(TAdaConvNeXtConfig(**_S | {"calibrate": None} | options))


def tadaconvnext_b(**options: Any) -> TAdaConvNeXt:
    """TAdaConvNeXt-B."""
    return TAdaConvNeXt(TAdaConvNeXtConfig(**_B | options))


def convnext_b(**options: Any) -> TAdaConvNeXt:
    """ConvNeXt-B behind the same stem, frames averaged."""
    return TAdaConvNeXt(TAdaConvNeXtConfig(**_B | {"calibrate": None} | options))


def tadaconvnextv2_mini(**options: Any) -> TAdaConvNeXt:
    """TAdaConvNeXtV2 for the CPU and for small clips (64 x 64 pixels)."""
    return TAdaConvNeXt(TAdaConvNeXtConfig(**_V2 | _MINI | {"routing_head_channels": 16} | options))


def tadaconvnextv2_t(**options: Any) -> TAdaConvNeXt:
    """TAdaConvNeXtV2-T: 46.0 M parameters with 400 classes."""
    return TAdaConvNeXt(TAdaConvNeXtConfig(**_T | _V2 | options))


def tadaconvnextv2_s(**options: Any) -> TAdaConvNeXt:
    """TAdaConvNeXtV2-S."""
    return TAdaConvNeXt(TAdaConvNeXtConfig(**_S | _V2 | {"stochastic_depth": 0.4} | options))


def tadaconvnextv2_b(**options: Any) -> TAdaConvNeXt:
    """TAdaConvNeXtV2-B."""
    b = _B | _V2 | {"routing_head_channels": 64, "stochastic_depth": 0.6}
    return TAdaConvNeXt(TAdaConvNeXtConfig(**b | options))
