"""Stronger augmentation, for large data sets: random resized crops, RandAugment, color jitter, erasing, mixing.

Random parameters are drawn once per clip and applied to all its frames, so that augmentation adds no motion; the
histograms and means that some operations need are also those of the whole clip. Clips are uint8 [T, H, W, 3] in and
out; only mixing works on normalized batches, on their device. All randomness comes from ``rng``.

Shapes: N clips, T frames, H x W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tada.video.sampling import NORMALIZATION, Channels
from tada.video.transforms import crop_rectangle, resize

_MEAN, _STD = NORMALIZATION


# --- crops ----------------------------------------------------------------------------------------------------------


def draw_resized_crop(
    height: int,
    width: int,
    *,
    area_range: tuple[float, float],
    ratio_range: tuple[float, float],
    size: int,
    antialias: bool,
    rng: np.random.Generator,
) -> Callable[[Tensor], Tensor]:
    """Draw a random rectangle; return a function that crops a clip to it and resizes that to [T, size, size, 3].

    As in torchvision: ten draws; if none fits in the frame, the largest centered rectangle that the ratios allow.

    Args:
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        area_range: of the rectangle, as a fraction of the frame's area.
        ratio_range: of width to height, drawn on a logarithmic scale.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*area_range)
        ratio = math.exp(rng.uniform(math.log(ratio_range[0]), math.log(ratio_range[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h, endpoint=True))
            left = int(rng.integers(0, width - w, endpoint=True))
            break
    else:
        ratio = min(max(width / height, ratio_range[0]), ratio_range[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        top, left = (height - h) // 2, (width - w) // 2

    def cut(clip: Tensor) -> Tensor:
        return resize(crop_rectangle(clip, top, left, h, w), (size, size), antialias=antialias, exact=False)

    return cut


# --- color ---------------------------------------------------------------------------------------------------------


def color_jitter(
    clip: Tensor, *, brightness: float, contrast: float, saturation: float, hue: float, rng: np.random.Generator
) -> Tensor:
    """Change brightness, contrast, saturation and hue, in random order.

    Args:
        brightness: the factor is drawn from [1 - brightness, 1 + brightness], not below 0.
        contrast: as ``brightness``.
        saturation: as ``brightness``.
        hue: the shift is drawn from [-hue, hue], as a fraction of the color circle; at most 0.5.
    """
    changes: list[Callable[[Tensor], Tensor]] = []
    for strength, change in ((brightness, _brightness), (contrast, _contrast), (saturation, _color)):
        factor = rng.uniform(max(0.0, 1 - strength), 1 + strength)
        if strength:
            changes.append(partial(change, factor=factor))
    shift = rng.uniform(-hue, hue)
    if hue:
        changes.append(partial(_shift_hue, shift=shift))
    for i in rng.permutation(len(changes)):
        clip = changes[int(i)](clip)
    return clip


def _blend(clip: Tensor, other: Tensor | float, factor: float) -> Tensor:
    """Interpolate from ``other`` (factor 0) to the clip (1); larger factors extrapolate."""
    return ((clip.float() - other) * factor + other).round_().clamp_(0, 255).to(torch.uint8)


def _luma(clip: Tensor) -> Tensor:
    """Brightness of each pixel, rounded, [T, H, W, 1], by the weights of ITU-R 601 (as in Pillow's convert("L"))."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=clip.device)
    return (clip.float() @ weights).round_().unsqueeze(-1)


def _brightness(clip: Tensor, factor: float) -> Tensor:
    return _blend(clip, 0.0, factor)


def _contrast(clip: Tensor, factor: float) -> Tensor:
    return _blend(clip, float(_luma(clip).mean().add_(0.5).floor_()), factor)


def _color(clip: Tensor, factor: float) -> Tensor:
    return _blend(clip, _luma(clip), factor)


def _shift_hue(clip: Tensor, shift: float) -> Tensor:
    """Shift the hue by a fraction of the color circle, in HSV space."""
    colors = clip.float() / 255
    value, value_at = colors.max(-1)
    span = value - colors.amin(-1)
    r, g, b = (colors[..., i] for i in range(3))
    divisor = torch.where(span > 0, span, 1.0)
    sector = torch.stack([(g - b) / divisor, 2 + (b - r) / divisor, 4 + (r - g) / divisor], -1)
    hue = sector.gather(-1, value_at[..., None])[..., 0] / 6 + shift
    # HSV to RGB: each channel lies between value - span and value, by its distance from the hue on the circle.
    channels = []
    for offset in (5, 3, 1):
        place = (offset + hue * 6) % 6
        channels.append(value - span * torch.minimum(place, 4 - place).clamp(0, 1))
    return (torch.stack(channels, -1) * 255).round_().clamp_(0, 255).to(torch.uint8)


# --- RandAugment ----------------------------------------------------------------------------------------------------


def rand_augment(
    clip: Tensor,
    *,
    num_operations: int,
    magnitude: float,
    magnitude_std: float,
    rng: np.random.Generator,
    mean: Channels = _MEAN,
) -> Tensor:
    """Apply random operations one after the other, each with probability 1/2.

    With 4, 9 and 0.5 it is timm's ``rand-m9-n4-mstd0.5-inc1``: fifteen operations, chosen with replacement. Each one's
    strength grows with a magnitude (0 to 10) drawn from a normal distribution around ``magnitude``.

    Args:
        mean: value of pixels from outside the frame, in [0, 1]: what ``normalize`` turns into 0.

    Differs from: timm (auto_augment.py), where "equalize", "auto contrast" and "contrast" use each image's own
        histogram, so that a clip would flicker; here the whole clip's.
    """
    for name in rng.choice(list(OPERATIONS), num_operations):
        applies, negative = rng.random(2) < 0.5
        level = float(np.clip(rng.normal(magnitude, magnitude_std), 0, 10)) / 10
        if applies:
            fill = {"mean": mean} if name in _WARPS else {}
            clip = OPERATIONS[name](clip, level, -1 if negative else 1, **fill)
    return clip


def _auto_contrast(clip: Tensor, level: float, sign: int) -> Tensor:
    return torch.stack([_stretch(clip[..., i]) for i in range(3)], -1)


def _stretch(channel: Tensor) -> Tensor:
    """Stretch a channel's values to the full range [0, 255], rounding down as Pillow does."""
    low, high = int(channel.min()), int(channel.max())
    if low >= high:
        return channel
    scale = 255 / (high - low)
    values = torch.arange(256, dtype=torch.float64) * scale - low * scale
    return values.clamp_(0, 255).to(torch.uint8)[channel.int()]


def _equalize(clip: Tensor, level: float, sign: int) -> Tensor:
    tables = [_equalizing_table(torch.bincount(clip[..., i].flatten().int(), minlength=256)) for i in range(3)]
    return torch.stack([tables[i][clip[..., i].int()] for i in range(3)], -1)


def _equalizing_table(histogram: Tensor) -> Tensor:
    """The lookup table of Pillow's ``equalize``, [256] uint8, for a histogram [256]."""
    filled = histogram[histogram > 0]
    step = int(filled[:-1].sum()) // 255
    if step == 0:
        return torch.arange(256, dtype=torch.uint8)
    before = histogram.cumsum(0) - histogram
    return ((before + step // 2) // step).clamp(0, 255).to(torch.uint8)


def _invert(clip: Tensor, level: float, sign: int) -> Tensor:
    return 255 - clip


def _posterize(clip: Tensor, level: float, sign: int) -> Tensor:
    bits = 4 - int(level * 4)
    return clip & (256 - (1 << (8 - bits)))


def _solarize(clip: Tensor, level: float, sign: int) -> Tensor:
    return torch.where(clip < 256 - int(level * 256), clip, 255 - clip)


def _solarize_add(clip: Tensor, level: float, sign: int) -> Tensor:
    added = (clip.int() + int(level * 110)).clamp_(max=255).to(torch.uint8)
    return torch.where(clip < 128, added, clip)


def _sharpness(clip: Tensor, factor: float) -> Tensor:
    """Blend with the clip smoothed by a 3x3 kernel; pixels at the frames' edges stay."""
    kernel = torch.ones(3, 3, device=clip.device)
    kernel[1, 1] = 5
    frames = clip.permute(0, 3, 1, 2).flatten(0, 1)[:, None].float()
    smooth = clip.float().clone()
    inner = F.conv2d(frames, kernel[None, None] / 13).round_().view(clip.shape[0], 3, *(n - 2 for n in clip.shape[1:3]))
    smooth[:, 1:-1, 1:-1] = inner.permute(0, 2, 3, 1)
    return _blend(clip, smooth, factor)


def _make_operation(change: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float, int], Tensor]:
    return lambda clip, level, sign: change(clip, max(0.1, 1 + sign * 0.9 * level))


def _affine(
    clip: Tensor,
    matrix: tuple[float, float, float, float],
    shift: tuple[float, float] = (0.0, 0.0),
    *,
    mean: Channels,
) -> Tensor:
    """Warp the frames: the result's pixel (x, y) is the clip's at ``matrix @ (x, y) + shift``, both from the center.

    Bilinear; the mean where the source lies outside the frame.
    """
    t, height, width = clip.shape[:3]
    a, b, c, d = matrix
    # From pixels to grid_sample's [-1, 1].
    theta = torch.tensor(
        [[a, b * height / width, 2 * shift[0] / width], [c * width / height, d, 2 * shift[1] / height]],
        device=clip.device,
    )
    grid = F.affine_grid(theta[None], [1, 3, height, width], align_corners=False).expand(t, -1, -1, -1)
    fill = torch.tensor([float(round(255 * value)) for value in mean], device=clip.device).view(3, 1, 1)
    frames = clip.permute(0, 3, 1, 2).float() - fill
    moved = F.grid_sample(frames, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + fill
    return moved.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _rotate(clip: Tensor, level: float, sign: int, mean: Channels = _MEAN) -> Tensor:
    angle = math.radians(sign * 30 * level)
    return _affine(clip, (math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)), mean=mean)


def _shear_x(clip: Tensor, level: float, sign: int, mean: Channels = _MEAN) -> Tensor:
    return _affine(clip, (1.0, sign * 0.3 * level, 0.0, 1.0), mean=mean)


def _shear_y(clip: Tensor, level: float, sign: int, mean: Channels = _MEAN) -> Tensor:
    return _affine(clip, (1.0, 0.0, sign * 0.3 * level, 1.0), mean=mean)


def _translate_x(clip: Tensor, level: float, sign: int, mean: Channels = _MEAN) -> Tensor:
    return _affine(clip, (1.0, 0.0, 0.0, 1.0), (sign * 0.45 * level * clip.shape[2], 0.0), mean=mean)


def _translate_y(clip: Tensor, level: float, sign: int, mean: Channels = _MEAN) -> Tensor:
    return _affine(clip, (1.0, 0.0, 0.0, 1.0), (0.0, sign * 0.45 * level * clip.shape[1]), mean=mean)


_WARPS: dict[str, Callable[..., Tensor]] = {
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _make_operation(_color),
    "contrast": _make_operation(_contrast),
    "brightness": _make_operation(_brightness),
    "sharpness": _make_operation(_sharpness),
    **{name: warp for name, warp in _WARPS.items() if name != "rotate"},
}
"""RandAugment's operations: each maps a clip, a level in [0, 1] and a sign to a clip; those that move pixels also take
the mean with which they fill."""


# --- erasing --------------------------------------------------------------------------------------------------------


def random_erase(
    clip: Tensor, *, probability: float, rng: np.random.Generator, mean: Channels = _MEAN, std: Channels = _STD
) -> Tensor:
    """Fill a random rectangle with Gaussian noise of the data's mean and deviation, the same in all frames.

    The rectangle covers 2 % to a third of the frame, at an aspect ratio of 0.3 to 3.3, as in timm (mode "pixel").
    """
    if rng.random() >= probability:
        return clip
    height, width = clip.shape[1:3]
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 1 / 3)
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = int(rng.integers(0, height - h, endpoint=True)), int(rng.integers(0, width - w, endpoint=True))
            noise = (np.array(mean) + np.array(std) * rng.standard_normal((h, w, 3))) * 255
            clip = clip.clone()
            clip[:, top : top + h, left : left + w] = torch.from_numpy(noise.round().clip(0, 255).astype(np.uint8))
            return clip
    return clip


# --- mixing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """How the clips of a batch are mixed in pairs: neighbors, the first with the second, the third with the fourth.

    Pairs are neighbors so that a pair never lies on two devices: the number of devices does not change the result.
    """

    share: float
    """Weight of the clip itself, in [0, 1]: of its pixel values (mixup) or of its area (CutMix)."""
    box: tuple[float, float, float, float] | None
    """CutMix: top, bottom, left and right of the pasted box, in fractions of the frame. None: mixup."""

    def clips(self, clips: Tensor) -> Tensor:
        """Mix float clips [N, 3, T, H, W]."""
        others = clips[_partners(clips)]
        if self.box is None:
            return clips * self.share + others * (1 - self.share)
        top, bottom, left, right = self._box_pixels(clips)
        mixed = clips.clone()
        mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
        return mixed

    def targets(self, targets: Tensor, clips: Tensor) -> Tensor:
        """Mix the targets [N, K] of float clips [N, 3, T, H, W]."""
        share = self.share
        if self.box is not None:  # the exact share, after the box was rounded to whole pixels
            top, bottom, left, right = self._box_pixels(clips)
            share = 1 - (bottom - top) * (right - left) / (clips.shape[-2] * clips.shape[-1])
        return targets * share + targets[_partners(targets)] * (1 - share)

    def _box_pixels(self, clips: Tensor) -> tuple[int, int, int, int]:
        assert self.box is not None
        height, width = clips.shape[-2:]
        top, bottom, left, right = self.box
        return round(top * height), round(bottom * height), round(left * width), round(right * width)


def draw_mixture(
    *, mixup_alpha: float, cutmix_alpha: float, cutmix_probability: float, rng: np.random.Generator
) -> Mixture | None:
    """Draw how a batch is mixed; None where both alphas are 0.

    Args:
        mixup_alpha: mixup's share is drawn from Beta(alpha, alpha); 0 for no mixup.
        cutmix_alpha: the same for CutMix, whose share is one of the frame's area.
        cutmix_probability: probability of CutMix where both are on.
    """
    if not mixup_alpha and not cutmix_alpha:
        return None
    cuts = cutmix_alpha and (not mixup_alpha or rng.random() < cutmix_probability)
    if not cuts:
        return Mixture(share=float(rng.beta(mixup_alpha, mixup_alpha)), box=None)
    share = float(rng.beta(cutmix_alpha, cutmix_alpha))
    side, (y, x) = math.sqrt(1 - share), rng.random(2)
    top, bottom = max(y - side / 2, 0.0), min(y + side / 2, 1.0)
    left, right = max(x - side / 2, 0.0), min(x + side / 2, 1.0)
    return Mixture(share=share, box=(top, bottom, left, right))


def _partners(batch: Tensor) -> Tensor:
    """[N]: the index of each clip's partner; N is even."""
    return torch.arange(len(batch), device=batch.device) ^ 1
