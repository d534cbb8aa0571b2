"""TAdaFormer: CLIP's image transformer with temporally adaptive convolutions in its blocks (arXiv 2308.05787).

The stem sees three frames at a stride of two. After it frames attend only to their own patches; what mixes frames are
the TAda blocks, small branches beside attention: down to half the channels, a depthwise 3x3 TAdaConv on the grid of
patches, aggregation over three frames, and back. Their last layer starts at zero, so a new network is CLIP's image
transformer on every frame.

Shapes: N clips, T frames (half as many after the stem), H x W pixels, h x w patches of a frame, C channels, D features,
K classes. Inside, a clip is T sequences of a batch [N*T, 1 + h*w, C]: a class token, then the patches, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tada.errors import OptionError
from tada.models.tada2d import check_clips, check_variance
from tada.models.tadaconvnext import conv_of_three_frames, kept_clips
from tada.tadaconv import TAdaConv2d, TemporalAggregation, TemporalPool
from tada.tadaconv.routing_v2 import RoutingV2, quick_gelu


@dataclass(frozen=True, kw_only=True, slots=True)
class TAdaFormerConfig:
    """The architecture of a network, and which of the paper's parts it has."""

    width: int
    """Channels of a token."""
    depth: int
    """Number of blocks."""
    heads: int
    """Heads of the attention within a frame."""
    patch: int
    """Side of a patch, in pixels."""
    grid: tuple[int, int]
    """Rows and columns of patches for which there are positional embeddings; for others they are interpolated."""
    num_classes: int = 400
    """K, the number of logits."""
    dropout: float = 0.5
    """Share of the features dropped before the classifier, in training."""
    stochastic_depth: float = 0.0
    """How often a clip skips each branch of the last block, in training; of earlier ones linearly less often, of the
    first never."""
    tada_blocks: int = 1
    """TAda blocks in each block: 1, before attention; 2, also behind it (Something-Something); 0, none (CLIP)."""
    reduce_over_time: bool = False
    """Whether the first layer of a TAda block sees three frames (Something-Something) instead of one."""
    routing_ratio: int = 2
    """r of the routing functions."""
    routing_kernel_sizes: tuple[int, int] = (3, 3)
    """Frames that the routing functions' convolutions see."""
    routing_head_channels: int = 64
    """Channels of a head of the routing functions' attention over time."""
    aggregation: TemporalPool = "avg"
    """How a frame is pooled with its neighbors in a TAda block."""

    def __post_init__(self) -> None:
        """Raise OptionError where a field is out of range, or fields contradict each other."""
        if len(self.grid) != 2:
            raise OptionError(f"{self.grid = } should be two numbers: rows and columns of patches")
        if min(self.width, self.depth, self.heads, self.patch, *self.grid) < 1:
            raise OptionError(f"{self.width, self.depth, self.heads, self.patch, self.grid = } should all be positive")
        if self.width % self.heads or self.width % 2:
            raise OptionError(f"{self.width = } should be even, and divisible by {self.heads = }")
        if self.tada_blocks not in (0, 1, 2):
            raise OptionError(f"{self.tada_blocks = } should be 0, 1 or 2")
        if self.num_classes < 1:
            raise OptionError(f"{self.num_classes = } should be at least 1")
        if not (0 <= self.dropout < 1 and 0 <= self.stochastic_depth < 1):
            raise OptionError(f"{self.dropout = } and {self.stochastic_depth = } should lie in [0, 1)")


class TAdaFormer(nn.Module):
    """The network: stem, class tokens and positions, blocks, mean of the class tokens, norm, classifier."""

    def __init__(self, config: TAdaFormerConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch
        self.stem = nn.Conv3d(3, width, (3, patch, patch), stride=(2, patch, patch), padding=(1, 0, 0), bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + config.grid[0] * config.grid[1], width))
        self.first_norm = nn.LayerNorm(width)
        before_last = max(config.depth - 1, 1)
        drops = [config.stochastic_depth * i / before_last for i in range(config.depth)]
        self.blocks = nn.ModuleList(FormerBlock(config, drop=drop) for drop in drops)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(width, config.num_classes)
        self._initialize()

    def forward(self, clips: Tensor) -> Tensor:
        """Clips [N, 3, T, H, W], normalized -> logits [N, K].

        Raises:
            OptionError: they are no clips, or their height or width is not divisible by the patch's side.
        """
        logits: Tensor = self.head(self.dropout(self.features(clips)))
        return logits

    def features(self, clips: Tensor) -> Tensor:
        """Clips [N, 3, T, H, W], normalized -> features [N, D], the norm of the mean class token; raises as forward."""
        self.check_shape(clips)
        if torch.compiler.is_exporting():
            clips = self._of_whole_patches(clips)
        else:
            check_variance(self, clips, stride=self.config.patch, frame_stride=2)
        frames, t = conv_of_three_frames(self.stem, clips)  # [N*T, C, h, w]
        h, w = frames.shape[2:]
        classes = self.class_embedding.expand(frames.shape[0], 1, -1)
        tokens = torch.cat([classes, frames.flatten(2).transpose(1, 2)], dim=1)
        tokens = self.first_norm(tokens + self._positions(h, w))
        for block in self.blocks:
            tokens = block(tokens, t, h, w)
        means = tokens[:, 0].view(-1, t, self.config.width).mean(1)
        features: Tensor = self.norm(means)
        return features

    def check_shape(self, clips: Tensor) -> None:
        """Raise OptionError where the network does not take clips of this shape; not for their size in an export."""
        check_clips(clips)
        if torch.compiler.is_exporting():  # there sizes are symbols
            return
        patch, sides = self.config.patch, clips.shape[3:]
        if any(side < patch or side % patch for side in sides):
            height, width = (max(round(side / patch), 1) * patch for side in sides)
            raise OptionError(
                f"clips {list(clips.shape)} cannot be cut into patches of {patch} x {patch} pixels: give frames of "
                f"{height} x {width} (clip.crop or train_crop a multiple of {patch})"
            )

    def _of_whole_patches(self, clips: Tensor) -> Tensor:
        """The same clips. An exported graph fails here, not in ``check_shape``; its stem would cut pixels off."""
        n, c, t, height, width = clips.shape
        patch = self.config.patch
        return clips.reshape(n, c, t, height // patch * patch, width // patch * patch)

    def _positions(self, h: int, w: int) -> Tensor:
        """The positional embedding of a class token and h x w patches: [1 + h*w, C]."""
        rows, columns = self.config.grid
        if not torch.compiler.is_exporting() and (h, w) == (rows, columns):
            return self.positional_embedding
        grid = self.positional_embedding[1:].T.view(1, -1, rows, columns)
        grid = F.interpolate(grid, (h, w), mode="bicubic", align_corners=False)
        return torch.cat([self.positional_embedding[:1], grid[0].flatten(1).T])

    def _initialize(self) -> None:
        """Initialize the weights as in the authors' release.

        Embeddings: normal, std C^-0.5, as CLIP's. Blocks: layers and kernels normal, std 0.02, biases 0; the first
        layer of attention uniform (Xavier), as PyTorch's attention draws it; the last layers of TAda blocks 0. Norms:
        1 and 0; pooled norms: 0 and 0. Stem and classifier: as PyTorch draws them.
        """
        for embedding in (self.class_embedding, self.positional_embedding):
            nn.init.normal_(embedding, std=self.config.width**-0.5)
        for module in self.blocks.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | TAdaConv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, nn.Conv2d | TAdaConv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        for module in self.blocks.modules():
            if isinstance(module, Attention):
                nn.init.xavier_uniform_(module.qkv.weight)
            elif isinstance(module, TAdaBlock):
                nn.init.zeros_(module.expand.weight)


class FormerBlock(nn.Module):
    """A TAda block, attention within the frame, in the Something-Something form another TAda block, two wide layers."""

    def __init__(self, config: TAdaFormerConfig, *, drop: float) -> None:
        super().__init__()
        width = config.width
        self.drop = drop
        self.tada = TAdaBlock(config, drop=drop) if config.tada_blocks >= 1 else None
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, config.heads)
        self.tada2 = TAdaBlock(config, drop=drop) if config.tada_blocks == 2 else None
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor, num_frames: int, h: int, w: int) -> Tensor:
        """Tokens [N*T, 1 + h*w, C] -> the same shape."""
        if self.tada is not None:
            tokens = _on_patches(self.tada, tokens, num_frames, h, w)
        tokens = tokens + self._kept(self.attention(self.norm1(tokens)), num_frames)
        if self.tada2 is not None:
            tokens = _on_patches(self.tada2, tokens, num_frames, h, w)
        return tokens + self._kept(self.narrow(quick_gelu(self.widen(self.norm2(tokens)))), num_frames)

    def _kept(self, y: Tensor, num_frames: int) -> Tensor:
        return y * kept_clips(y, num_frames, self.drop) if self.training and self.drop else y


def _on_patches(tada: nn.Module, tokens: Tensor, num_frames: int, h: int, w: int) -> Tensor:
    """Apply a TAda block to the patches, as frames [N*T, C, h, w]; class tokens are left alone."""
    patches = tokens[:, 1:].reshape(-1, h, w, tokens.shape[2]).permute(0, 3, 1, 2)
    patches = tada(patches, num_frames)
    return torch.cat([tokens[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


class Attention(nn.Module):
    """Self-attention between the tokens of a frame."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N*T, L, C] -> the same shape."""
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1))  # [N*T, L, 3, heads, channels]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        attended: Tensor = self.projection(y.transpose(1, 2).flatten(2))
        return attended


class TAdaBlock(nn.Module):
    """Half the channels, a depthwise TAdaConv with aggregation over time, QuickGELU, a layer back; added to the input.

    The calibration has no 1 added to it (``RoutingV2.zero_init``): the last layer is what starts at zero.
    """

    def __init__(self, config: TAdaFormerConfig, *, drop: float) -> None:
        super().__init__()
        self.drop = drop
        width, half = config.width, config.width // 2
        self.reduce: nn.Conv2d | nn.Linear
        if config.reduce_over_time:
            self.reduce = nn.Conv2d(width, half, (3, 1), padding=(1, 0))  # of images with a row for each frame
        else:
            self.reduce = nn.Linear(width, half)
        routing = RoutingV2(
            half,
            bias_channels=half,
            ratio=config.routing_ratio,
            head_channels=config.routing_head_channels,
            kernel_sizes=config.routing_kernel_sizes,
            zero_init=False,
        )
        self.conv = TAdaConv2d(half, half, 3, padding=1, groups=half, calibrate="out", routing=routing)
        self.norm = TemporalAggregation(half, pool=config.aggregation)
        self.expand = nn.Linear(half, width)

    def forward(self, patches: Tensor, num_frames: int) -> Tensor:
        """Frames of patches [N*T, C, h, w] -> the same shape."""
        y = self.conv(reduced(self.reduce, patches, num_frames), num_frames=num_frames)
        y = quick_gelu(self.norm(y, num_frames))
        y = self.expand(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.training and self.drop:
            y = y * kept_clips(y, num_frames, self.drop)
        added: Tensor = patches + y
        return added


def reduced(layer: nn.Conv2d | nn.Linear, patches: Tensor, num_frames: int) -> Tensor:
    """The first layer of a TAda block, on frames of patches: [N*T, C, h, w] -> [N*T, C/2, h, w]."""
    pixels = patches.permute(0, 2, 3, 1)  # [N*T, h, w, C]
    _, h, w, c = pixels.shape
    if isinstance(layer, nn.Linear):
        # As rows: of tokens without the class tokens, which do not lie side by side, PyTorch would multiply each row of
        # patches by a copy of the weight.
        rows: Tensor = layer(pixels.reshape(-1, c))
        return rows.reshape(-1, h, w, layer.out_features).permute(0, 3, 1, 2)
    images = pixels.reshape(-1, num_frames, h * w, c).permute(0, 3, 1, 2)  # [N, C, T, h*w]
    y: Tensor = layer(images).permute(0, 2, 3, 1).reshape(-1, h, w, layer.out_channels)
    return y.permute(0, 3, 1, 2)


_B16: dict[str, Any] = {"width": 768, "depth": 12, "heads": 12, "patch": 16, "grid": (14, 14)}
_L14: dict[str, Any] = {"width": 1024, "depth": 24, "heads": 16, "patch": 14, "grid": (16, 16)}
_SSV2: dict[str, Any] = {"tada_blocks": 2, "reduce_over_time": True}
# Small enough for a laptop's CPU and clips of about 48 x 48 pixels.
_TINY: dict[str, Any] = {
    "width": 96,
    "depth": 4,
    "heads": 3,
    "patch": 8,
    "grid": (6, 6),
    "routing_head_channels": 24,
    "dropout": 0.2,
}


def tadaformer_tiny(**options: Any) -> TAdaFormer:
    """TAdaFormer for the CPU and for clips of about 48 x 48 pixels."""
    return TAdaFormer(TAdaFormerConfig(**_TINY | options))


def tadaformer_b16(**options: Any) -> TAdaFormer:
    """TAdaFormer-B/16, as for Kinetics: 104.2 M parameters with 400 classes."""
    return TAdaFormer(TAdaFormerConfig(**_B16 | options))


def tadaformer_l14(**options: Any) -> TAdaFormer:
    """TAdaFormer-L/14, as for Kinetics."""
    return TAdaFormer(TAdaFormerConfig(**_L14 | options))


def tadaformer_b16_ssv2(**options: Any) -> TAdaFormer:
    """TAdaFormer-B/16, as for Something-Something: two TAda blocks in each block, with three frames at their start."""
    return TAdaFormer(TAdaFormerConfig(**_B16 | _SSV2 | options))


def tadaformer_l14_ssv2(**options: Any) -> TAdaFormer:
    """TAdaFormer-L/14, as for Something-Something."""
    return TAdaFormer(TAdaFormerConfig(**_L14 | _SSV2 | options))
