"""TAdaConvV2 as the second paper's release computes it: slow forms, for the fast ones to be held against.

Weights are taken from our networks by name. Shapes: N clips, T frames, C channels, h heads, H x W pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.tadaconv import literal_tadaconv, slow_temporal_conv, slow_temporal_pool
from tada.models.tadaconvnext import ConvNeXtBlock
from tada.models.tadaformer import FormerBlock, TAdaBlock, TAdaFormer
from tada.tadaconv import TemporalAggregation
from tada.tadaconv.routing_v2 import RoutingV2


def looped_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention over time, each head, frame and channel by itself: [C, T] each -> [C, T], without gradients.

    Head j reads the channels j, heads + j, 2 heads + j, ...; its output goes to a row of neighboring channels.
    """
    q, k, v = q.detach(), k.detach(), v.detach()
    c, t = q.shape
    size = c // heads
    y = torch.zeros(c, t, dtype=q.dtype)
    for j in range(heads):
        read = [i * heads + j for i in range(size)]
        for now in range(t):
            scores = [sum(float(q[i, now] * k[i, other]) for i in read) / math.sqrt(c) for other in range(t)]
            shares = [math.exp(score - max(scores)) for score in scores]
            for i in range(size):
                y[j * size + i, now] = sum(
                    share / sum(shares) * float(v[read[i], other]) for other, share in enumerate(shares)
                )
    return y


def looped_routing_v2(routing: RoutingV2, descriptors: Tensor, *, heads: int, plus_one: bool) -> list[Tensor]:
    """Alpha, and beta where there is one, of descriptors [N, C, T]."""
    assert routing.reduce is not None
    assert routing.norm is not None
    h = slow_temporal_conv(descriptors, routing.reduce.weight, routing.reduce.bias)
    h = _norm_of_channels(h, routing.norm.weight, routing.norm.bias)
    h = h / (1 + torch.exp(-1.702 * h))
    attention = routing.attention
    normed = _norm_of_channels(h, attention.norm.weight, attention.norm.bias)
    clips = []
    for one in normed:
        q, k, v = (attention.qkv.weight @ one + attention.qkv.bias[:, None]).chunk(3)
        y = looped_attention(q, k, v, heads)
        clips.append(attention.projection.weight @ y + attention.projection.bias[:, None])
    h = h + torch.stack(clips)
    last = [routing.alpha] if routing.beta is None else [routing.alpha, routing.beta]
    return [slow_temporal_conv(h, layer.weight) + (1 if plus_one else 0) for layer in last]


def _norm_of_channels(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm (eps 1e-6) over the channels of each frame: [N, C, ...] -> the same shape."""
    centered = h - h.mean(1, keepdim=True)
    normed = centered / (centered.square().mean(1, keepdim=True) + 1e-6).sqrt()
    shape = (1, -1, *[1] * (h.ndim - 2))
    return normed * weight.view(shape) + bias.view(shape)


def literal_next_block(block: ConvNeXtBlock, x: Tensor, *, heads: int) -> Tensor:
    """A block of TAdaConvNeXtV2 in evaluation: clips [N, C, T, H, W] -> the same shape."""
    conv, norm = block.conv, block.norm
    assert isinstance(conv.routing, RoutingV2)
    assert isinstance(norm, TemporalAggregation)
    alpha, beta = looped_routing_v2(conv.routing, x.mean((3, 4)), heads=heads, plus_one=True)
    k = conv.weight.shape[-1]
    y = literal_tadaconv(x, conv.weight, conv.bias, alpha, beta, calibrate="out", padding=k // 2, groups=x.shape[1])
    pooled = slow_temporal_pool(y, "avg")
    y = _norm_of_channels(y, norm.norm.weight, norm.norm.bias) + _norm_of_channels(
        pooled, norm.pooled_norm.weight, norm.pooled_norm.bias
    )
    wide = F.linear(y.movedim(1, -1), block.widen.weight, block.widen.bias)
    y = F.linear(wide / (1 + torch.exp(-1.702 * wide)), block.narrow.weight, block.narrow.bias)
    return x + (y * block.layer_scale).movedim(-1, 1)


def literal_former(model: TAdaFormer, clips: Tensor, *, heads_over_time: int) -> Tensor:
    """Features of a TAdaFormer in evaluation, on clips of the size of its positional embedding: -> [N, D]."""
    x = F.conv3d(clips, model.stem.weight, None, model.stem.stride, model.stem.padding)
    n, c, t, h, w = x.shape
    tokens = x.movedim(1, -1).reshape(n, t, h * w, c)
    tokens = torch.cat([model.class_embedding.expand(n, t, 1, c), tokens], dim=2) + model.positional_embedding
    tokens = F.layer_norm(tokens, (c,), model.first_norm.weight, model.first_norm.bias, 1e-5)
    for block in model.blocks:
        assert isinstance(block, FormerBlock)
        if block.tada is not None:
            tokens = _with_tada(block.tada, tokens, (h, w), heads_over_time)
        normed = F.layer_norm(tokens, (c,), block.norm1.weight, block.norm1.bias, 1e-5)
        tokens = tokens + _attention_of_frames(block, normed)
        if block.tada2 is not None:
            tokens = _with_tada(block.tada2, tokens, (h, w), heads_over_time)
        wide = block.widen(F.layer_norm(tokens, (c,), block.norm2.weight, block.norm2.bias, 1e-5))
        tokens = tokens + block.narrow(wide / (1 + torch.exp(-1.702 * wide)))
    return F.layer_norm(tokens[:, :, 0].mean(1), (c,), model.norm.weight, model.norm.bias, 1e-5)


def _attention_of_frames(block: FormerBlock, tokens: Tensor) -> Tensor:
    """PyTorch's own attention, with the block's weights: [N, T, L, C] -> the same shape."""
    attention, c = block.attention, tokens.shape[-1]
    theirs = torch.nn.MultiheadAttention(c, attention.heads, batch_first=True, dtype=tokens.dtype).eval()
    weights = {"in_proj_weight": attention.qkv.weight, "in_proj_bias": attention.qkv.bias}
    weights |= {"out_proj.weight": attention.projection.weight, "out_proj.bias": attention.projection.bias}
    theirs.load_state_dict(weights)
    frames = tokens.flatten(0, 1)
    return theirs(frames, frames, frames, need_weights=False)[0].view(tokens.shape)


def _with_tada(tada: TAdaBlock, tokens: Tensor, grid: tuple[int, int], heads: int) -> Tensor:
    patches = tokens[:, :, 1:].unflatten(2, grid).movedim(-1, 1)  # [N, C, T, h, w]
    kernel = tada.reduce.weight
    kernel = kernel[:, :, None, None, None] if kernel.ndim == 2 else kernel[..., None]
    y = F.conv3d(patches, kernel, tada.reduce.bias, padding=(kernel.shape[2] // 2, 0, 0))
    assert isinstance(tada.conv.routing, RoutingV2)
    alpha, beta = looped_routing_v2(tada.conv.routing, y.mean((3, 4)), heads=heads, plus_one=False)
    y = literal_tadaconv(
        y, tada.conv.weight, tada.conv.bias, alpha, beta, calibrate="out", padding=1, groups=y.shape[1]
    )
    y = _batch_norm(tada.norm.norm, y) + _batch_norm(tada.norm.pooled_norm, slow_temporal_pool(y, "avg"))
    y = y / (1 + torch.exp(-1.702 * y))
    y = F.linear(y.movedim(1, -1), tada.expand.weight, tada.expand.bias).flatten(2, 3)
    return torch.cat([tokens[:, :, :1], tokens[:, :, 1:] + y], dim=2)


def _batch_norm(norm: torch.nn.Module, y: Tensor) -> Tensor:
    assert isinstance(norm, torch.nn.BatchNorm2d)
    return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)


def slow_bicubic(table: Tensor, rows: int, columns: int) -> Tensor:
    """Resize a grid by cubic convolution (a = -0.75), cell by cell: [h, w, C] -> [rows, columns, C]."""

    def share(distance: float) -> float:
        x, a = abs(distance), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    h, w, _ = table.shape
    resized = torch.zeros(rows, columns, table.shape[2], dtype=table.dtype)
    for r in range(rows):
        for c in range(columns):
            y, x = (r + 0.5) * h / rows - 0.5, (c + 0.5) * w / columns - 0.5
            for i in range(math.floor(y) - 1, math.floor(y) + 3):
                for j in range(math.floor(x) - 1, math.floor(x) + 3):
                    near = table[min(max(i, 0), h - 1), min(max(j, 0), w - 1)]
                    resized[r, c] += share(y - i) * share(x - j) * near
    return resized
