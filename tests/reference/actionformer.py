"""ActionFormer on one video, step by step as the released codes read: pad, mask, convolve, attend with a whole matrix.

It takes the weights of ``tada``'s network by their names, and shares nothing else with it. ``leak`` says whose masks
are meant: "actionformer" (happyharrycn/actionformer_release, 61ea7eb) masks what a convolution gives and nothing after
the norm behind it; "opentad" (sming256/OpenTAD, 3dd7b03) masks again after the ReLU, but not what attention and heads
are given; "none" masks all of it.

Shapes: C channels, T steps with the padding, V steps of the video.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def padded_length(steps: int, windows: tuple[int, ...], max_length: int) -> int:
    """``max_length``, or for longer videos a multiple of the largest level's blocks."""
    if steps <= max_length:
        return max_length
    factor = 1
    for level, window in enumerate(windows):
        stride = 2**level * (window // 2) * 2 if window > 1 else 2**level
        factor = max(factor, stride)
    return (steps + factor - 1) // factor * factor


def levels_of(
    weights: Mapping[str, Tensor],
    features: Tensor,
    *,
    windows: tuple[int, ...],
    max_length: int,
    num_heads: int,
    positions: bool,
    leak: str,
) -> list[tuple[Tensor, Tensor]]:
    """The logits [V, K] and offsets [V, 2] of each level, of a network in evaluation with one classifier.

    Args:
        features: [C, V].
    """
    video = Video(weights, windows, num_heads, leak)
    total = padded_length(features.shape[1], windows, max_length)
    mask = torch.zeros(total, dtype=features.dtype)
    mask[: features.shape[1]] = 1
    x = torch.zeros(features.shape[0], total, dtype=features.dtype)
    x[:, : features.shape[1]] = features
    for i in range(2):
        x = video.conv_norm(f"embed.{i}", x, mask)
    if positions:
        encodings = sinusoids(max_length, x.shape[0]) / math.sqrt(x.shape[0])
        if total >= max_length:
            encodings = F.interpolate(encodings[None], total, mode="linear", align_corners=False)[0]
        x = x + encodings[:, :total] * mask
    for i in range(2):
        x, mask = video.block(f"stem.{i}", x, mask, windows[0], stride=1)
    outputs = []
    for level in range(len(windows)):
        if level > 0:
            x, mask = video.block(f"branch.{level - 1}", x, mask, windows[level], stride=2)
        y = video.norm(f"neck.{level}.norm", x)
        if leak == "none":
            y = y * mask
        kept = int(mask.sum())
        logits = video.head("classifiers.0", y, mask)[:, :kept].T
        offsets = (video.head("regressor", y, mask) * weights["scales"][level]).clamp(min=0)[:, :kept].T
        outputs.append((logits, offsets))
    return outputs


def sinusoids(length: int, dim: int) -> Tensor:
    """[C, T], entry by entry."""
    table = torch.zeros(dim, length, dtype=torch.float64)
    for place in range(length):
        for channel in range(dim):
            angle = place / 10000 ** (2 * (channel // 2) / dim)
            table[channel, place] = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
    return table


class Video:
    """The layers, each on one video [C, T] with its mask [T]."""

    def __init__(self, weights: Mapping[str, Tensor], windows: tuple[int, ...], num_heads: int, leak: str) -> None:
        self.weights, self.windows, self.num_heads, self.leak = weights, windows, num_heads, leak

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean = x.mean(0, keepdim=True)
        variance = ((x - mean) ** 2).mean(0, keepdim=True)
        y = (x - mean) / torch.sqrt(variance + 1e-5)
        return y * self.weights[f"{name}.weight"][:, None] + self.weights[f"{name}.bias"][:, None]

    def conv(self, name: str, x: Tensor, **options: Any) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        bias = self.weights.get(f"{name}.bias")
        return F.conv1d(x[None], weight, bias, padding=weight.shape[2] // 2, **options)[0]

    def conv_norm(self, name: str, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norm(f"{name}.norm.norm", self.conv(f"{name}.conv", x) * mask).clamp(min=0)
        return y if self.leak == "actionformer" else y * mask

    def head(self, name: str, x: Tensor, mask: Tensor) -> Tensor:
        for i in range(2):
            x = self.conv_norm(f"{name}.layers.{i}", x, mask)
        return self.conv(f"{name}.last", x) * mask

    def block(self, name: str, x: Tensor, mask: Tensor, window: int, *, stride: int) -> tuple[Tensor, Tensor]:
        shortcut = x if stride == 1 else F.max_pool1d(x[None], 3, stride=stride, padding=1)[0]
        y = self.norm(f"{name}.norm1.norm", x)
        if self.leak == "none":
            y = y * mask
        mask = mask[::stride]
        y = self.attention(f"{name}.attention", y, mask, window, stride=stride)
        x = shortcut * mask + self.weights[f"{name}.path1.scale"][0] * y
        y = self.conv(f"{name}.mlp.0", self.norm(f"{name}.norm2.norm", x))
        y = self.conv(f"{name}.mlp.2", F.gelu(y)) * mask
        return x + self.weights[f"{name}.path2.scale"][0] * y, mask

    def attention(self, name: str, x: Tensor, mask: Tensor, window: int, *, stride: int) -> Tensor:
        parts = []
        for i in range(3):
            part = self.conv(f"{name}.convs.{i}", x, stride=stride, groups=len(x)) * mask
            parts.append(self.conv(f"{name}.projections.{i}", self.norm(f"{name}.norms.{i}.norm", part)))
        size = len(x) // self.num_heads
        heads = []
        for h in range(self.num_heads):
            query, key, value = (part[h * size : (h + 1) * size] for part in parts)
            logits = query.T @ key / math.sqrt(size)  # [T, T]
            seen = (mask > 0)[None, :].expand(len(mask), -1)
            if window > 1:  # else global
                places = torch.arange(len(mask))
                seen = seen & ((places[:, None] - places[None, :]).abs() <= window // 2)
            shares = logits.masked_fill(~seen, -torch.inf).softmax(1).nan_to_num(0)
            heads.append((shares @ value.T).T)
        return self.conv(f"{name}.out", torch.cat(heads)) * mask
