"""The authors' networks computed as their released code computes them: what benchmarks call the literal form.

TAda2D, TAdaConvNeXt, its second version, and TAdaFormer. A clip stays [N, C, T, H, W] from end to end, contiguous. All
convolutions, norms and pools are the 3-D ones; every TAdaConv builds a kernel for each frame and runs all frames of all
clips as groups of one convolution (``literal_tadaconv``); norms are not folded. TAdaFormer's tokens lie as CLIP's,
[tokens, frames, channels], and go through PyTorch's own attention. The networks are made from ours and have copies of
their weights, so their logits can be held against each other. Written after the description in the papers and what the
released code does (commit 75b7839; TAdaConvNeXt as published in ModelScope), not taken from it.

Shapes: N clips, T frames, C channels, H x W pixels, K classes, L tokens of a frame.
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.tadaconv import literal_tadaconv
from tada.models.tada2d import Bottleneck, TAda2D
from tada.models.tadaconvnext import ConvNeXtBlock, Downsampling, TAdaConvNeXt
from tada.models.tadaformer import FormerBlock, TAdaBlock, TAdaFormer
from tada.tadaconv import Calibration, Routing, TAdaConv2d, TemporalAggregation
from tada.tadaconv.routing_v2 import RoutingV2, quick_gelu


def released(model: nn.Module) -> nn.Module:
    """The released form of a TAda2D of bottlenecks, a TAdaConvNeXt or a TAdaFormer, its weights copied from ``model``.

    Raises:
        TypeError: no released form of such a network, or of its options, is known.
    """
    if isinstance(model, TAda2D):
        return ReleasedTAda2D(model).train(model.training)
    if isinstance(model, TAdaConvNeXt):
        return ReleasedTAdaConvNeXt(model).train(model.training)
    if isinstance(model, TAdaFormer):
        return ReleasedTAdaFormer(model).train(model.training)
    raise TypeError(f"a {type(model).__name__} has no released form")


def stir(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Move norms, routing functions and layer scales away from where they start, as training does.

    A new routing function gives 1 and a new pooled norm 0, whatever else is wrong with them.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                uniform(module.weight, 0.3, 0.7)
                uniform(module.bias, -0.2, 0.2)
                uniform(module.running_mean, -0.2, 0.2)
                uniform(module.running_var, 0.8, 1.2)
            elif isinstance(module, Routing):
                for last in (module.alpha, module.beta):
                    if last is not None:
                        uniform(last.weight, -0.2, 0.2)
            elif isinstance(module, ConvNeXtBlock):
                uniform(module.layer_scale, 0.1, 0.5)
                if isinstance(module.norm, TemporalAggregation):
                    uniform(module.norm.pooled_norm.weight, 0.3, 0.7)
                    uniform(module.norm.pooled_norm.bias, -0.2, 0.2)
            elif isinstance(module, TAdaBlock):
                uniform(module.expand.weight, -0.2, 0.2)
    return model


# --- what both networks have -----------------------------------------------------------------------------------------


def _conv3d(layer: nn.Module) -> nn.Conv3d:
    """A layer as a 3-D convolution: of images, over time, on channels alone, or one that is 3-D already."""
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    weight, sides, stride, padding = layer.weight, (1, 1, 1), (1, 1, 1), (0, 0, 0)
    if isinstance(layer, nn.Conv1d):
        sides, padding = (*layer.kernel_size, 1, 1), (*layer.padding, 0, 0)
    elif isinstance(layer, nn.Conv2d):
        sides, stride, padding = (1, *layer.kernel_size), (1, *layer.stride), (0, *layer.padding)
    elif isinstance(layer, nn.Conv3d):
        sides, stride, padding = layer.kernel_size, layer.stride, layer.padding
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    conv = nn.Conv3d(
        weight.shape[1] * groups, weight.shape[0], sides, stride, padding, groups=groups, bias=layer.bias is not None
    )
    conv.weight = nn.Parameter(weight.detach().reshape(conv.weight.shape).clone(memory_format=torch.contiguous_format))
    if layer.bias is not None:
        conv.bias = nn.Parameter(layer.bias.detach().clone())
    return conv


def _norm3d(norm: nn.Module) -> nn.BatchNorm3d:
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    copy = nn.BatchNorm3d(norm.num_features, eps=norm.eps, momentum=norm.momentum)
    copy.load_state_dict(norm.state_dict())
    return copy.to(norm.weight.dtype)


class PoolOfThree(nn.AvgPool3d):
    """The mean of each frame and its neighbors; beyond the clip's ends there are zeros."""

    def __init__(self, aggregation: TemporalAggregation) -> None:
        if aggregation.pool != "avg":
            raise TypeError("the released networks aggregate by average")
        super().__init__((3, 1, 1), stride=1, padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > 1:  # PyTorch's pool refuses clips of two frames, unless they are padded
            return super().forward(x) if x.shape[2] > 2 else F.avg_pool3d(F.pad(x, (0, 0, 0, 0, 1, 1)), (3, 1, 1), 1)
        return x / 3


class ChannelsFirstNorm(nn.Module):
    """A layer norm over the channels of [N, C, T, H, W], in elementary operations."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight = nn.Parameter(norm.weight.detach().clone())
        self.bias = nn.Parameter(norm.bias.detach().clone())
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(1, keepdim=True)
        normed = centered / torch.sqrt(centered.pow(2).mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None, None] * normed + self.bias[:, None, None, None]


class ReleasedRouting(nn.Module):
    """Pools, 1x1x1 and 3x1x1 convolutions on clips of one pixel."""

    def __init__(self, routing: Routing) -> None:
        super().__init__()
        if routing.context is None or routing.reduce is None or routing.norm is None:
            raise TypeError("the released routing function has global context and two layers")
        self.frame_pool = nn.AdaptiveAvgPool3d((None, 1, 1))
        self.clip_pool = nn.AdaptiveAvgPool3d(1)
        self.context = _conv3d(routing.context)
        self.reduce = _conv3d(routing.reduce)
        if isinstance(routing.norm, nn.LayerNorm):
            self.norm = nn.Sequential(ChannelsFirstNorm(routing.norm), nn.GELU())
        else:
            self.norm = nn.Sequential(_norm3d(routing.norm), nn.ReLU(inplace=True))
        self.alpha = _conv3d(routing.alpha)
        self.beta = None if routing.beta is None else _conv3d(routing.beta)

    def forward(self, x: Tensor) -> Calibration:
        h = self.frame_pool(x) + self.context(self.clip_pool(x))
        h = self.norm(self.reduce(h))
        alpha = (self.alpha(h) + 1).flatten(2)
        return Calibration(alpha, None if self.beta is None else (self.beta(h) + 1).flatten(2))


class ReleasedRoutingV2(nn.Module):
    """Convolutions on clips of one pixel, and attention between their frames."""

    def __init__(self, routing: RoutingV2) -> None:
        super().__init__()
        assert routing.reduce is not None
        assert isinstance(routing.norm, nn.LayerNorm)
        self.frame_pool = nn.AdaptiveAvgPool3d((None, 1, 1))
        self.reduce = _conv3d(routing.reduce)
        self.norm = ChannelsFirstNorm(routing.norm)
        self.attention_norm = ChannelsFirstNorm(routing.attention.norm)
        self.qkv, self.projection = _conv3d(routing.attention.qkv), _conv3d(routing.attention.projection)
        self.head_channels, self.offset = routing.attention.head_channels, routing.offset
        self.alpha = _conv3d(routing.alpha)
        self.beta = None if routing.beta is None else _conv3d(routing.beta)

    def forward(self, x: Tensor) -> Calibration:
        h = quick_gelu(self.norm(self.reduce(self.frame_pool(x))))
        h = h + self._attended(self.attention_norm(h))
        alpha = (self.alpha(h) + self.offset).flatten(2)
        return Calibration(alpha, None if self.beta is None else (self.beta(h) + self.offset).flatten(2))

    def _attended(self, h: Tensor) -> Tensor:
        n, c, t = h.shape[:3]
        q, k, v = self.qkv(h).view(n, 3, self.head_channels, c // self.head_channels, t).permute(1, 0, 3, 4, 2)
        shares = (q @ k.transpose(-2, -1) * c**-0.5).softmax(-1)  # [N, heads, T, T]
        return self.projection((shares @ v).transpose(-2, -1).reshape(n, c, t, 1, 1))


class ReleasedTAdaConv(nn.Module):
    """The operator with its routing function, on clips [N, C, T, H, W]."""

    def __init__(self, conv: TAdaConv2d) -> None:
        super().__init__()
        assert conv.routing is not None
        routing = conv.routing
        self.routing = ReleasedRoutingV2(routing) if isinstance(routing, RoutingV2) else ReleasedRouting(routing)
        self.weight = nn.Parameter(conv.weight.detach().clone(memory_format=torch.contiguous_format))
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        self.calibrate, self.groups = conv.calibrate, conv.groups
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = self.routing(x)
        return literal_tadaconv(
            x,
            self.weight,
            self.bias,
            alpha,
            beta,
            calibrate=self.calibrate,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )


# --- TAda2D ----------------------------------------------------------------------------------------------------------


class ReleasedTAda2D(nn.Module):
    """TAda2D of bottlenecks; ``forward`` takes clips [N, 3, T, H, W] and gives logits [N, K], as ours."""

    def __init__(self, model: TAda2D) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv3d(model.stem_conv), _norm3d(model.stem_norm), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(*(ReleasedBottleneck(block) for stage in model.stages for block in stage))
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.dropout = deepcopy(model.dropout)
        self.head = deepcopy(model.head)

    def forward(self, clips: Tensor) -> Tensor:
        features = self.pool(self.blocks(self.stem(clips))).flatten(1)
        return self.head(self.dropout(features))


class ReleasedBottleneck(nn.Module):
    """1x1x1, TAdaConv with both norms, 1x1x1, and a shortcut."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        temporal = block.conv2 if isinstance(block, Bottleneck) else None
        if temporal is None or not isinstance(temporal.conv, TAdaConv2d):
            raise TypeError("the released TAda2D is of bottlenecks with TAdaConv")
        if not isinstance(temporal.norm, TemporalAggregation):
            raise TypeError("the released TAda2D aggregates frames")
        assert isinstance(block, Bottleneck)
        self.conv1, self.norm1 = _conv3d(block.conv1), _norm3d(block.norm1)
        self.conv2 = ReleasedTAdaConv(temporal.conv)
        self.norm2, self.pooled_norm2 = _norm3d(temporal.norm.norm), _norm3d(temporal.norm.pooled_norm)
        self.pool = PoolOfThree(temporal.norm)
        self.conv3, self.norm3 = _conv3d(block.conv3), _norm3d(block.norm3)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if isinstance(block.shortcut, nn.Sequential):
            self.shortcut = nn.Sequential(_conv3d(block.shortcut[0]), _norm3d(block.shortcut[1]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.conv2(y)
        y = self.relu(self.norm2(y) + self.pooled_norm2(self.pool(y)))
        y = self.norm3(self.conv3(y))
        return self.relu(self.shortcut(x) + y)


# --- TAdaConvNeXt ----------------------------------------------------------------------------------------------------


class ReleasedTAdaConvNeXt(nn.Module):
    """TAdaConvNeXt; ``forward`` takes clips [N, 3, T, H, W] and gives logits [N, K], as ours."""

    def __init__(self, model: TAdaConvNeXt) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv3d(model.stem.conv), ChannelsFirstNorm(model.stem.norm)]
        for downsampling, stage in zip(model.downsamplings, model.stages, strict=True):
            if isinstance(downsampling, Downsampling):
                layers += [ChannelsFirstNorm(downsampling.norm), _conv3d(downsampling.conv)]
            layers += [ReleasedBlock(block) for block in stage]
        self.layers = nn.Sequential(*layers)
        self.norm = deepcopy(model.norm)
        self.dropout = deepcopy(model.dropout)
        self.head = deepcopy(model.head)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.dropout(self.norm(self.layers(clips).mean((-3, -2, -1)))))


class ReleasedBlock(nn.Module):
    """TAdaConv, then norm and layers on channels laid out last, and back; in V2 with the norm of neighboring frames."""

    def __init__(self, block: ConvNeXtBlock) -> None:
        super().__init__()
        if not isinstance(block.conv, TAdaConv2d):
            raise TypeError("the released TAdaConvNeXt has TAdaConv in its blocks")
        self.drop = block.drop
        self.conv = ReleasedTAdaConv(block.conv)
        self.pool = self.pooled_norm = None
        norm: nn.Module = block.norm
        if isinstance(norm, TemporalAggregation):
            self.pool, self.pooled_norm = PoolOfThree(norm), deepcopy(norm.pooled_norm)
            norm = norm.norm
        self.norm, self.widen, self.narrow = map(deepcopy, (norm, block.widen, block.narrow))
        self.activation = F.gelu if block.activation == "gelu" else quick_gelu
        self.layer_scale = nn.Parameter(block.layer_scale.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        normed = self.norm(y.permute(0, 2, 3, 4, 1))  # [N, T, H, W, C]
        if self.pool is not None and self.pooled_norm is not None:
            normed = normed + self.pooled_norm(self.pool(y).permute(0, 2, 3, 4, 1))
        y = self.layer_scale * self.narrow(self.activation(self.widen(normed)))
        y = y.permute(0, 4, 1, 2, 3)
        if self.training and self.drop:
            kept = y.new_empty(y.shape[0], 1, 1, 1, 1).bernoulli_(1 - self.drop)
            y = y.div(1 - self.drop) * kept
        return x + y


# --- TAdaFormer ------------------------------------------------------------------------------------------------------


class ReleasedTAdaFormer(nn.Module):
    """TAdaFormer; ``forward`` takes clips [N, 3, T, H, W] and gives logits [N, K], as ours."""

    def __init__(self, model: TAdaFormer) -> None:
        super().__init__()
        self.stem = _conv3d(model.stem)
        self.class_embedding = nn.Parameter(model.class_embedding.detach().clone())
        self.positional_embedding = nn.Parameter(model.positional_embedding.detach().clone())
        self.grid = model.config.grid
        self.first_norm, self.norm = deepcopy(model.first_norm), deepcopy(model.norm)
        self.blocks = nn.ModuleList(ReleasedFormerBlock(block) for block in model.blocks)
        self.dropout, self.head = deepcopy(model.dropout), deepcopy(model.head)

    def forward(self, clips: Tensor) -> Tensor:
        patches = self.stem(clips)
        n, c, t, h, w = patches.shape
        patches = patches.permute(0, 2, 3, 4, 1).reshape(n * t, h * w, c)
        tokens = torch.cat([self.class_embedding.expand(n * t, 1, c), patches], dim=1) + self._positions(h, w)
        tokens = self.first_norm(tokens).permute(1, 0, 2)  # [L, N*T, C]
        for block in self.blocks:
            tokens = block(tokens, (n, t, h, w))
        return self.head(self.dropout(self.norm(tokens[0].view(n, t, c).mean(1))))

    def _positions(self, h: int, w: int) -> Tensor:
        if (h, w) == self.grid:
            return self.positional_embedding
        grid = self.positional_embedding[1:].T.unflatten(1, self.grid)[None]
        grid = F.interpolate(grid, (h, w), mode="bicubic", align_corners=False)
        return torch.cat([self.positional_embedding[:1], grid[0].flatten(1).T])


class ReleasedFormerBlock(nn.Module):
    """TAda block, PyTorch's attention, maybe another TAda block, two wide layers."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        assert isinstance(block, FormerBlock)
        if block.tada is None:
            raise TypeError("the released TAdaFormer has TAda blocks")
        self.drop = block.drop
        self.tada = ReleasedTAdaBlock(block.tada)
        self.tada2 = None if block.tada2 is None else ReleasedTAdaBlock(block.tada2)
        self.norm1, self.norm2, self.widen, self.narrow = map(
            deepcopy, (block.norm1, block.norm2, block.widen, block.narrow)
        )
        attention = block.attention
        self.attention = nn.MultiheadAttention(attention.projection.out_features, attention.heads)
        self.attention.to(attention.qkv.weight.dtype).load_state_dict(
            {
                "in_proj_weight": attention.qkv.weight,
                "in_proj_bias": attention.qkv.bias,
                "out_proj.weight": attention.projection.weight,
                "out_proj.bias": attention.projection.bias,
            }
        )

    def forward(self, tokens: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        tokens = self.tada(tokens, shape)
        normed = self.norm1(tokens)
        y = self.attention(normed, normed, normed, need_weights=False)[0]
        tokens = tokens + y * _kept(self, y, shape)
        if self.tada2 is not None:
            tokens = self.tada2(tokens, shape)
        y = self.narrow(quick_gelu(self.widen(self.norm2(tokens))))
        return tokens + y * _kept(self, y, shape)


class ReleasedTAdaBlock(nn.Module):
    """A layer to half the channels, TAdaConv with both norms, QuickGELU, a layer back; class tokens are left alone."""

    def __init__(self, block: TAdaBlock) -> None:
        super().__init__()
        self.drop = block.drop
        self.reduce: nn.Module
        if isinstance(block.reduce, nn.Linear):
            self.reduce = _conv3d(block.reduce)
        else:
            over_time = block.reduce  # of images with a row for each frame
            self.reduce = nn.Conv3d(over_time.in_channels, over_time.out_channels, (3, 1, 1), padding=(1, 0, 0))
            self.reduce.weight = nn.Parameter(over_time.weight.detach()[..., None].contiguous())
            assert over_time.bias is not None
            self.reduce.bias = nn.Parameter(over_time.bias.detach().clone())
        self.conv = ReleasedTAdaConv(block.conv)
        self.norm, self.pooled_norm = _norm3d(block.norm.norm), _norm3d(block.norm.pooled_norm)
        self.pool = PoolOfThree(block.norm)
        self.expand = deepcopy(block.expand)

    def forward(self, tokens: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        n, t, h, w = shape
        clips = tokens[1:].view(h, w, n, t, -1).permute(2, 4, 3, 0, 1)
        y = self.conv(self.reduce(clips))
        y = quick_gelu(self.norm(y) + self.pooled_norm(self.pool(y)))
        y = self.expand(y.permute(3, 4, 0, 2, 1).reshape(h * w, n * t, -1))
        return torch.cat([tokens[:1], tokens[1:] + y * _kept(self, y, shape)])


def _kept(
    block: ReleasedFormerBlock | ReleasedTAdaBlock, y: Tensor, shape: tuple[int, int, int, int]
) -> Tensor | float:
    """Stochastic depth of tokens [L, N*T, C], drawn for each clip."""
    if not (block.training and block.drop):
        return 1.0
    n, t = shape[:2]
    kept = y.new_empty(n, 1).bernoulli_(1 - block.drop) / (1 - block.drop)
    return kept.expand(n, t).reshape(n * t, 1)
