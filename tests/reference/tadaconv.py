"""TAdaConv as the paper writes it: slow forms a reader believes, for the fast one to be held against.

Shapes: N clips, T frames, C channels in, D channels out, g groups, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def literal_tadaconv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    beta: Tensor | None = None,
    *,
    calibrate: str,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """One kernel for every frame, all frames of all clips as groups of one convolution, as the released code does.

    Args:
        x: [N, C, T, H, W].
        weight: [D, C/g, k, k].
        alpha: [N, C or D, T].
        beta: [N, D, T].
    """
    n, c, t, h, w = x.shape
    d, c_of_group, k, _ = weight.shape
    # Each group has kernels of its own, D/g of them, which see its C/g channels and no others.
    kernels = weight.view(groups, d // groups, c_of_group, k, k)
    scale = alpha.transpose(1, 2).reshape(n * t, groups, -1)  # [N*T, g, C/g or D/g]
    scale = scale[:, :, None, :] if calibrate == "in" else scale[:, :, :, None]
    kernels = (kernels * scale[..., None, None]).reshape(n * t * d, c_of_group, k, k)
    biases = None
    if bias is not None:
        factor = x.new_ones(n, d, t) if beta is None else beta
        biases = (bias[:, None] * factor).transpose(1, 2).reshape(n * t * d)
    frames = x.transpose(1, 2).reshape(1, n * t * c, h, w)
    y = F.conv2d(frames, kernels, biases, stride, padding, dilation, groups=n * t * groups)
    return y.view(n, t, d, *y.shape[2:]).transpose(1, 2)


def looped_tadaconv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    beta: Tensor | None = None,
    *,
    calibrate: str,
    groups: int = 1,
    **options: Any,
) -> Tensor:
    """The same, frame by frame and group by group, each kernel written out."""
    clips = []
    for n in range(x.shape[0]):
        frames = []
        for t in range(x.shape[2]):
            parts = []
            for features, kernel, scale in zip(
                x[n, :, t].chunk(groups), weight.chunk(groups), alpha[n, :, t].chunk(groups), strict=True
            ):
                if calibrate == "in":
                    kernel = kernel * scale[None, :, None, None]
                else:
                    kernel = kernel * scale[:, None, None, None]
                parts.append(F.conv2d(features[None], kernel, None, **options)[0])
            y = torch.cat(parts)
            if bias is not None:
                y = y + (bias if beta is None else bias * beta[n, :, t])[:, None, None]
            frames.append(y)
        clips.append(torch.stack(frames, dim=1))
    return torch.stack(clips)


def looped_tadaconv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    beta: Tensor | None = None,
    *,
    calibrate: str,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int] = (0, 0, 0),
    dilation: tuple[int, int, int] = (1, 1, 1),
    groups: int = 1,
) -> Tensor:
    """A kernel over several frames, calibrated by the frame at its middle: output frame by output frame, tap by tap.

    Args:
        x: [N, C, T, H, W].
        weight: [D, C/g, kt, k, k].
        alpha: [N, C or D, T].
        beta: [N, D, T].
    """
    last, taps = x.shape[2] - 1, weight.shape[2]
    options = {"stride": stride[1:], "padding": padding[1:], "dilation": dilation[1:]}
    clips = []
    for n in range(x.shape[0]):
        frames = []
        first = -padding[0]
        while first + dilation[0] * (taps - 1) <= last + padding[0]:
            middle = min(max(first + dilation[0] * (taps - 1) // 2, 0), last)
            factor = None if beta is None else beta[n : n + 1, :, middle : middle + 1]
            y = torch.zeros(())
            for j in range(taps):
                t = first + j * dilation[0]
                frame = x[n : n + 1, :, t : t + 1] if 0 <= t <= last else torch.zeros_like(x[n : n + 1, :, :1])
                scale = alpha[n : n + 1, :, middle : middle + 1]
                y = y + looped_tadaconv(
                    frame, weight[:, :, j], None, scale, calibrate=calibrate, groups=groups, **options
                )
            if bias is not None:
                y = y + bias[:, None, None, None] * (1 if factor is None else factor[..., None, None])
            frames.append(y)
            first += stride[0]
        clips.append(torch.cat(frames, dim=2))
    return torch.cat(clips)


def slow_temporal_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution over time with zeros beyond the ends, as a sum over its taps: [N, C, T] -> [N, D, T]."""
    half = weight.shape[2] // 2
    frames = []
    for t in range(x.shape[2]):
        taps = [
            x[:, :, t + j - half] @ weight[:, :, j].T for j in range(weight.shape[2]) if 0 <= t + j - half < x.shape[2]
        ]
        frames.append(sum(taps, torch.zeros(())) if bias is None else sum(taps, bias))
    return torch.stack(frames, dim=2)


def slow_temporal_pool(x: Tensor, pool: str) -> Tensor:
    """Each frame with the one before and the one after: [N, C, T, H, W] -> the same."""
    frames = []
    for t in range(x.shape[2]):
        near = x[:, :, max(t - 1, 0) : t + 2]
        average = near.sum(2) / 3  # a frame beyond the end counts as zeros
        maximum = near.amax(2)  # a frame beyond the end does not count
        frames.append({"avg": average, "max": maximum, "mix": (average + maximum) / 2}[pool])
    return torch.stack(frames, dim=2)
