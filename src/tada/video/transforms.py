"""Transforms of decoded frames into the input of a network. Clips are uint8 [T, H, W, 3] until ``normalize``.

Every random function takes its ``rng``, so that a clip can be reproduced from its seed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tada.errors import OptionError
from tada.video.sampling import NORMALIZATION, Channels

_FLOATS_AT_ONCE, _MAX_FLOATS, _ROWS_AT_ONCE = 1 << 25, 1 << 26, 128
"""Frames are resized as floats in batches of at most 128 MB, at least one frame; a frame of more than 22 million
pixels in bands of so many rows."""


def normalize(
    clips: Tensor,
    mean: Channels = NORMALIZATION[0],
    std: Channels = NORMALIZATION[1],
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Turn uint8 [..., T, H, W, 3] into float [..., 3, T, H, W], as ``(x / 255 - mean) / std``.

    The memory layout stays channels last, with which convolutions are fastest.

    Args:
        mean: of red, green and blue, with ``std`` a model's ``ClipSpec.normalization``.
    """
    if clips.dtype != torch.uint8 or clips.ndim < 4 or clips.shape[-1] != 3:
        raise OptionError(f"clips are {clips.dtype} {list(clips.shape)}; they must be uint8 [..., T, H, W, 3]")
    pixels = clips.to(dtype).div_(255)
    # Repeated for a whole row of pixels: three numbers at a time take half as long again.
    means, stds = (_row_of(values, pixels) for values in (mean, std))
    return pixels.sub_(means).div_(stds).movedim(-1, -4)


def _row_of(values: Channels, pixels: Tensor) -> Tensor:
    """A row of pixels of one color, [W, 3]; made on the device, since a GPU would be waited for if it were copied."""
    channels = [pixels.new_full((pixels.shape[-2],), value) for value in values]
    return torch.stack(channels, dim=1)


# --- size ---------------------------------------------------------------------------------------------------------


def resize_short_side(clip: Tensor, short_side: int, *, antialias: bool, exact: bool = True) -> Tensor:
    """Resize frames so that the shorter side has ``short_side`` pixels; the other is rounded down.

    Args:
        clip: uint8 [T, H, W, 3].
        antialias: smooth frames before shrinking them. The released code does not; test as the model was trained.
        exact: compute in float32 and round once. Otherwise in 8-bit arithmetic, which on a CPU is five to ten
            times as fast and differs by at most one level of 255 (halves are rounded up, twice).

    Returns:
        uint8 [T, h, w, 3], bilinear, pixel centers at halves (``align_corners=False``).
    """
    height, width = clip.shape[1:3]
    return resize(clip, short_side_size(height, width, short_side), antialias=antialias, exact=exact)


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The (height, width) that ``resize_short_side`` gives to frames of this size, in pixels."""
    # The released code's order of operations (transformations.py:_get_random_crop), since it affects the rounding.
    if height >= width:
        return int(height / width * short_side), short_side
    return short_side, int(width / height * short_side)


def resize(clip: Tensor, size: tuple[int, int], *, antialias: bool, exact: bool = True) -> Tensor:
    """Resize frames to ``size``, (height, width); as ``resize_short_side`` otherwise."""
    if size == tuple(clip.shape[1:3]):
        return clip
    frames = clip.permute(0, 3, 1, 2)  # [T, 3, H, W], channels last in memory
    if clip[0].numel() > _MAX_FLOATS and clip.device.type == "cpu":
        resized = torch.cat([_resize_in_bands(frame[None], size, antialias=antialias) for frame in frames])
    elif exact or clip.device.type != "cpu":
        n = max(1, _FLOATS_AT_ONCE // max(clip[0].numel(), 3 * size[0] * size[1]))  # frames per batch
        parts = [_resize_in_float32(frames[i : i + n], size, antialias=antialias) for i in range(0, len(frames), n)]
        resized = parts[0] if len(parts) == 1 else torch.cat(parts)
    else:
        resized = F.interpolate(frames, size, mode="bilinear", antialias=antialias)
    return resized.permute(0, 2, 3, 1)


def _resize_in_float32(frames: Tensor, size: tuple[int, int], *, antialias: bool) -> Tensor:
    resized = F.interpolate(frames.float(), size, mode="bilinear", antialias=antialias)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def _resize_in_bands(frame: Tensor, size: tuple[int, int], *, antialias: bool) -> Tensor:
    """Resize one huge frame [1, 3, H, W]: first its width, in bands of rows, then its height: 30 MB, not 500."""
    height = frame.shape[2]
    narrow = torch.empty((1, 3, height, size[1]))
    for row in range(0, height, _ROWS_AT_ONCE):
        band = frame[:, :, row : row + _ROWS_AT_ONCE].float()
        narrow[:, :, row : row + _ROWS_AT_ONCE] = F.interpolate(
            band, (band.shape[2], size[1]), mode="bilinear", antialias=antialias
        )
    return _resize_in_float32(narrow, size, antialias=antialias)


def crop(clip: Tensor, top: int, left: int, size: int) -> Tensor:
    """Cut the square [T, size, size, 3] whose upper left pixel is (top, left). Shares memory with ``clip``."""
    height, width = clip.shape[1:3]
    if not (0 <= top <= height - size and 0 <= left <= width - size):
        raise OptionError(f"a square of {size} at ({top}, {left}) does not lie in frames of {width}x{height}")
    return crop_rectangle(clip, top, left, size, size)


def crop_rectangle(clip: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Cut [T, height, width, 3] whose upper left pixel is (top, left). Shares memory with ``clip``."""
    return clip[:, top : top + height, left : left + width]


_crop = crop  # for functions with an argument of that name


# --- for training -------------------------------------------------------------------------------------------------


def jitter_and_crop(
    clip: Tensor, *, short_side_range: tuple[int, int], crop: int, antialias: bool, rng: np.random.Generator
) -> Tensor:
    """Resize the short side to a length drawn from the range, both ends included; cut a square at random.

    Returns:
        uint8 [T, crop, crop, 3].

    Differs from: the released code (transformations.py:_get_random_crop), whose truncated draws never reach the
        largest short side, nor a square at the right or lower edge.
    """
    height, width = clip.shape[1:3]
    cut = draw_jitter_and_crop(
        height, width, short_side_range=short_side_range, crop=crop, antialias=antialias, rng=rng
    )
    return cut(clip)


def draw_jitter_and_crop(
    height: int, width: int, *, short_side_range: tuple[int, int], crop: int, antialias: bool, rng: np.random.Generator
) -> Callable[[Tensor], Tensor]:
    """Draw the parameters of ``jitter_and_crop``; return a function that applies them to any part of a clip."""
    low, high = short_side_range
    if not crop <= low <= high:
        raise OptionError(f"{short_side_range=} must ascend and not be below {crop=}")
    short_side = int(rng.integers(low, high, endpoint=True))
    resized_height, resized_width = short_side_size(height, width, short_side)
    top = int(rng.integers(0, resized_height - crop, endpoint=True))
    left = int(rng.integers(0, resized_width - crop, endpoint=True))

    def cut(clip: Tensor) -> Tensor:
        return _crop(resize_short_side(clip, short_side, antialias=antialias, exact=False), top, left, crop)

    return cut


def random_flip(
    clip: Tensor,
    labels: tuple[int, ...],
    *,
    probability: float,
    swaps: Sequence[Mapping[int, int | None]],
    rng: np.random.Generator,
) -> tuple[Tensor, tuple[int, ...]]:
    """Mirror the clip left to right with ``probability``, and its labels with it.

    Args:
        clip: uint8 [T, H, W, 3].
        labels: one class per head.
        swaps: for each head, a map from a class to its mirror image, by ``flip_swaps``. Clips of classes that map to
            None are never mirrored; classes missing from the map keep their label.

    Differs from: the released code at its head, which mirrors once with the label and once without (base_dataset.py
        after its commit af7519e), so that directional labels are wrong half the time.
    """
    mirrored = [swap.get(label, label) for label, swap in zip(labels, swaps, strict=True)]
    known = tuple(label for label in mirrored if label is not None)
    flips = rng.random() < probability  # drawn for every clip, so that later draws do not depend on labels
    if len(known) < len(labels) or not flips:
        return clip, labels
    return clip.flip(2), known


def random_reverse(
    clip: Tensor,
    labels: tuple[int, ...],
    *,
    probability: float,
    swaps: Sequence[Mapping[int, int]],
    rng: np.random.Generator,
) -> tuple[Tensor, tuple[int, ...]]:
    """Play the clip backwards with ``probability``, if each of its classes has a reverse class.

    Args:
        clip: uint8 [T, H, W, 3].
        labels: one class per head.
        swaps: for each head, a map from a class to its reverse, by ``reverse_swaps``.
    """
    reversed_labels = tuple(swap[label] for label, swap in zip(labels, swaps, strict=True) if label in swap)
    reverses = rng.random() < probability
    if len(reversed_labels) < len(labels) or not reverses:
        return clip, labels
    return clip.flip(0), reversed_labels


def recolor(
    clip: Tensor,
    *,
    strength: float,
    shuffle_probability: float,
    grayscale_probability: float,
    invert_probability: float,
    rng: np.random.Generator,
) -> Tensor:
    """Change a clip's colors at random, the same for all frames, so that the model learns motion instead of color.

    Args:
        clip: uint8 [T, H, W, 3].
        strength: s of gain and offset. Around the clip's mean, all channels are multiplied by exp(U(-s, s)), each one
            also by exp(U(-s/2, s/2)), and shifted by U(-s, s) * 0.4 of the full range.
        shuffle_probability: of permuting red, green and blue.
        grayscale_probability: of replacing each by their mean.
        invert_probability: of inverting the colors.

    Returns:
        uint8 [T, H, W, 3].
    """
    mixing = np.eye(3)
    if rng.random() < shuffle_probability:
        mixing = mixing[:, rng.permutation(3)]
    if rng.random() < grayscale_probability:
        mixing = np.full((3, 3), 1 / 3)
    gain = np.exp(rng.uniform(-strength, strength) + rng.uniform(-strength / 2, strength / 2, 3))
    offset = rng.uniform(-strength, strength) * 0.4 * 255
    mean = float(clip.float().mean())
    scale, shift = mixing * gain, mean * (1 - gain) + offset
    if rng.random() < invert_probability:
        scale, shift = -scale, 255 - shift
    if np.array_equal(scale, np.eye(3)):
        return clip
    # All changes together are one affine map of (r, g, b).
    colors = clip.float() @ torch.from_numpy(scale).float() + torch.from_numpy(shift).float()
    return colors.round_().clamp_(0, 255).to(torch.uint8)


def flip_swaps(labels: Sequence[str]) -> dict[int, int | None]:
    """Find the pairs of classes that mirroring swaps, from their names.

    Names are compared word by word, regardless of case and of whether spaces, hyphens, underscores or capitals separate
    the words: left and right, clockwise and counterclockwise (or anticlockwise) are swapped.

    Returns:
        For each directional class its mirror image, or None if that is not among ``labels`` (or is ambiguous): then a
        mirrored clip has no correct label. Other classes are left out.
    """
    return _find_swaps(labels, lambda name: _swap_words(name, _MIRRORED))


def reverse_swaps(labels: Sequence[str]) -> dict[int, int]:
    """Find the pairs of classes that playing backwards swaps, from their names.

    Left and right, up and down, towards and away, clockwise and counterclockwise are swapped; "circle" and "circle
    backwards" are a pair too. Other classes are left out: their names do not tell what they become.
    """

    def reverse(name: str) -> str:
        exchanged = _swap_words(name, _REVERSED)
        if exchanged != name:
            return exchanged
        return name.removesuffix(" backwards") if name.endswith(" backwards") else f"{name} backwards"

    return {label: other for label, other in _find_swaps(labels, reverse).items() if other is not None}


def _find_swaps(labels: Sequence[str], change: Callable[[str], str]) -> dict[int, int | None]:
    words = [_normalize_name(label) for label in labels]
    classes: dict[str, list[int]] = {}
    for index, name in enumerate(words):
        classes.setdefault(name, []).append(index)
    swaps: dict[int, int | None] = {}
    for index, name in enumerate(words):
        changed = change(name)
        if changed != name:
            found = classes.get(changed, [])
            swaps[index] = found[0] if len(found) == len(classes[name]) == 1 else None
    return swaps


def _swap_words(name: str, opposites: Mapping[str, str]) -> str:
    return re.sub(rf"\b({'|'.join(opposites)})\b", lambda word: opposites[word[0]], name)


def _map_both_ways(*pairs: tuple[str, str]) -> dict[str, str]:
    return {word: opposite for a, b in pairs for word, opposite in ((a, b), (b, a))}


_MIRRORED = _map_both_ways(("left", "right"), ("clockwise", "counterclockwise"))
_REVERSED = _MIRRORED | _map_both_ways(("up", "down"), ("towards", "away"))


def _normalize_name(label: str) -> str:
    """Normalize a name: 'Turn_Left' and 'TurnLeft' to 'turn left', 'anti-clockwise' to 'counterclockwise'."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)
    spaced = re.sub(r"[\s_-]+", " ", spaced).strip().lower()
    return re.sub(r"\b(counter|anti) ?clockwise\b", "counterclockwise", spaced)


# --- for testing --------------------------------------------------------------------------------------------------


def center_crop(clip: Tensor, size: int) -> Tensor:
    """Cut the square [T, size, size, 3] from the middle."""
    height, width = clip.shape[1:3]
    return _crop(clip, (height - size) // 2, (width - size) // 2, size)


def three_crops(clip: Tensor, size: int) -> list[Tensor]:
    """Cut three squares along the longer side: left, middle, right, or top, middle, bottom."""
    height, width = clip.shape[1:3]
    top, left = (height - size) // 2, (width - size) // 2
    if height < width:
        places = [(top, 0), (top, left), (top, width - size)]
    else:
        places = [(0, left), (top, left), (height - size, left)]
    return [_crop(clip, *place, size) for place in places]


def test_crops(clip: Tensor, *, short_side: int, crop: int, num_crops: Literal[1, 3], antialias: bool) -> list[Tensor]:
    """Resize and crop as in testing: the center square, or three along the longer side.

    Returns:
        A list of ``num_crops`` clips, uint8 [T, crop, crop, 3].
    """
    if num_crops not in (1, 3):
        raise OptionError(f"{num_crops=} must be 1 or 3")
    resized = resize_short_side(clip, short_side, antialias=antialias)
    return [center_crop(resized, crop)] if num_crops == 1 else three_crops(resized, crop)


test_crops.__test__ = False  # type: ignore[attr-defined]  # pytest: not a test, wherever it is imported


def frame_crops(
    frames: NDArray[np.uint8], *, short_side: int, crop: int, num_crops: Literal[1, 3], antialias: bool
) -> NDArray[np.uint8]:
    """The ``test_crops`` of frames [N, H, W, 3], stacked: [N, num_crops, crop, crop, 3].

    Made for the ``shrink`` argument of ``Video.frames``.
    """
    clip = torch.from_numpy(frames)
    crops = test_crops(clip, short_side=short_side, crop=crop, num_crops=num_crops, antialias=antialias)
    return torch.stack(crops, dim=1).numpy()


# --- for display -------------------------------------------------------------------------------------------------


def shrink_to(frames: NDArray[np.uint8], *, short_side: int) -> NDArray[np.uint8]:
    """Shrink frames [N, H, W, 3] to this short side, in pixels; smaller frames are returned unchanged."""
    if min(frames.shape[1:3]) <= short_side:
        return frames
    return resize_short_side(torch.from_numpy(frames), short_side, antialias=True).numpy()
