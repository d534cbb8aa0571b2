"""Sample the frames of a clip: pure functions from the times of a video's frames to the indices of those chosen.

Two rules. The *interval* rule takes frames at a fixed distance, as on Kinetics; a clip is a window on the video.
The *segment* rule cuts the video into as many parts as a clip has frames and takes one from each, as on
Something-Something; a clip is the whole video.

Two modes. ``official`` follows the released code (alibaba-mmai-research/TAdaConv, datasets/base/base_dataset.py)
to the bit, quirks included, since published numbers depend on it. ``exact`` applies the rules to the frames' own
times, and so is also right at a varying frame rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tada.errors import OptionError

Array = npt.NDArray[np.float64]
Times = Sequence[float] | Array

_GRACE_SECONDS = 0.001
"""In testing, a frame counts as shown this much before its time: WebM and MKV round times to milliseconds, and the
frame at 8/30 s should be chosen for 8/30 s. In training this would favor some frames, and the choice is random."""


Channels = tuple[float, float, float]
"""A value for each of red, green and blue."""
MEAN, STD = 0.45, 0.225
"""Mean and standard deviation, for each of red, green and blue, by which the pixels of most networks are normalized."""
NORMALIZATION: tuple[Channels, Channels] = ((MEAN,) * 3, (STD,) * 3)
"""The same by channel: mean, standard deviation."""
CLIP_NORMALIZATION: tuple[Channels, Channels] = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
"""Those of CLIP's networks."""

MAX_CLIP_PIXELS, MAX_SHORT_SIDE = 1 << 26, 4096
"""Upper limits for a clip: 64 frames of 1024 x 1024, 200 MB. A model's card, which may be hostile, sets the size."""


# No slots: jsonargparse 4.53, which reads recipes, cannot take a slotted dataclass as a default value.
@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """Which frames make a clip, and how large they are. Saved in every checkpoint, hence plain values."""

    num_frames: int
    """Frames in a clip, T."""
    sampling: Literal["interval", "segment"] = "interval"
    """Frames at a fixed distance, or one from each of T equal parts of the video."""
    interval: float = 8
    """Frames from one sample to the next, counted at ``fps``. Not used by the segment rule."""
    fps: float | None = 30.0
    """The rate at which ``interval`` is counted, in frames per second; null: the video's own average."""
    mode: Literal["official", "exact"] = "exact"
    """As the released code samples, or exactly by the rule."""
    short_side: int = 256
    """Length of a frame's short side after resizing, in pixels."""
    crop: int = 224
    """Side of the square cut from the resized frame, in pixels."""
    antialias: bool = False
    """Smooth frames before they are made smaller. The published models were trained without it."""
    mean: Channels | None = None
    """Mean of red, green and blue, subtracted from pixels in [0, 1]; null: 0.45 of each, in training a TAdaFormer
    CLIP's."""
    std: Channels | None = None
    """Standard deviation of red, green and blue, by which the difference is divided; null: 0.225 of each, in training
    a TAdaFormer CLIP's."""

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise OptionError(f"num_frames={self.num_frames} must be at least 1")
        if self.sampling not in ("interval", "segment"):
            raise OptionError(f"sampling={self.sampling!r} must be 'interval' or 'segment'")
        if not 0 < self.interval < math.inf:
            raise OptionError(f"interval={self.interval} must be a positive number of frames")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise OptionError(f"fps={self.fps} must be a positive rate, or None for the video's own")
        if self.mode not in ("official", "exact"):
            raise OptionError(f"mode={self.mode!r} must be 'official' or 'exact'")
        if self.crop < 1:
            raise OptionError(f"crop={self.crop} must be at least 1 pixel")
        if self.crop > self.short_side:
            raise OptionError(f"crop={self.crop} does not fit in short_side={self.short_side}; make it smaller")
        if self.short_side > MAX_SHORT_SIDE or self.num_frames * self.crop**2 > MAX_CLIP_PIXELS:
            raise OptionError(
                f"num_frames={self.num_frames} of crop={self.crop} and short_side={self.short_side} is more than a "
                f"network can take: a clip may have {MAX_CLIP_PIXELS} pixels, and a side {MAX_SHORT_SIDE}"
            )
        self._set_channels("mean", "finite", math.isfinite)
        self._set_channels("std", "positive, finite", lambda value: 0 < value < math.inf)

    def _set_channels(self, name: str, rule: str, holds: Callable[[float], bool]) -> None:
        """Check a field of three numbers, and make it a tuple of floats."""
        values = getattr(self, name)
        if values is None:
            return
        try:
            floats = tuple(float(value) for value in values)
        except (TypeError, ValueError, OverflowError):
            floats = ()
        if len(floats) != 3 or not all(map(holds, floats)):
            raise OptionError(f"{name}={values!r} must be three {rule} numbers, for red, green and blue, or None")
        object.__setattr__(self, name, floats)

    @property
    def normalization(self) -> tuple[Channels, Channels]:
        """Mean and standard deviation of red, green and blue, for ``normalize``."""
        return self.mean or NORMALIZATION[0], self.std or NORMALIZATION[1]

    @property
    def needs_times(self) -> bool:
        """Whether sampling depends on the frames' times, and not only on their number."""
        return self.sampling == "interval" and self.fps is not None


def clip_in_words(clip: ClipSpec) -> str:
    """A clip specification in words."""
    size = f"short side {clip.short_side}, crop {clip.crop} x {clip.crop} pixels"
    if clip.normalization != NORMALIZATION:
        size += f", {normalization_in_words(clip.normalization)}"
    if clip.sampling == "segment":
        return f"{clip.num_frames} frames, one of each of {clip.num_frames} equal parts of the video; {size}"
    if clip.fps is None:
        return f"{clip.num_frames} frames, one of every {clip.interval:g} of the video; {size}"
    seconds = clip.num_frames * clip.interval / clip.fps
    return (
        f"{clip.num_frames} frames, one of every {clip.interval:g} at {clip.fps:g} a second: {seconds:.2f} s of "
        f"video; {size}"
    )


def normalization_in_words(normalization: tuple[Channels, Channels]) -> str:
    """Mean and standard deviation in words, with the digits that tell common ones apart."""
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in normalization)
    return f"normalized by mean {mean} and deviation {std}"


def train_indices(
    spec: ClipSpec, times_seconds: Times, rng: np.random.Generator, *, container_fps: float | None = None
) -> list[int]:
    """Choose the frames of a clip at random: a random window, or a random frame of each segment.

    Args:
        times_seconds: when each frame of the video appears, [L], increasing.
        rng: the source of all randomness.
        container_fps: the average rate that the file declares, used by ``official`` as in the released code; None:
            the average rate of the frames. ``exact`` uses only their times.

    Returns:
        ``spec.num_frames`` indices in [0, L), never decreasing. Where the video is shorter than the clip, the
        interval rule repeats the last frame.

    Raises:
        OptionError: the video has no frames.
    """
    times = _times_from_first(times_seconds)
    if spec.sampling == "segment":
        places = rng.random(spec.num_frames)
        if spec.mode == "official":
            return official_segments(len(times), spec.num_frames, where=places)
        return exact_segments(times, spec.num_frames, where=places)
    where = rng.random()
    if spec.mode == "official":
        if spec.num_frames == 1:
            return [int(where * len(times))]
        length = _official_clip_length(spec, times, container_fps)
        return official_interval(len(times), spec.num_frames, length, start=where * max(len(times) - length, 0))
    # The slack reaches to the end of the last frame, so that all start frames are equally likely.
    step = _step_seconds(spec, times)
    slack = max(_duration_seconds(times) - (spec.num_frames - 1) * step, 0.0)
    return exact_interval(times, spec.num_frames, step, start_seconds=where * slack)


def view_indices(
    spec: ClipSpec, times_seconds: Times, view: int, num_views: int, *, container_fps: float | None = None
) -> list[int]:
    """Choose the frames of one of the ``num_views`` clips on which a video is tested; nothing is random.

    A single view lies in the middle. ``exact`` spreads several evenly: by interval from the video's start to its end,
    by segment over each segment. ``official`` starts view i at i/num_views of the possible range by interval, so that
    no view reaches the end; by segment, the last view takes the last frame of each segment.

    Args:
        times_seconds: when each frame of the video appears, [L], increasing.
        view: the view's index, from 0.
        container_fps: as for ``train_indices``.

    Returns:
        As ``train_indices``.

    Raises:
        OptionError: the video has no frames, or there is no such view.

    Differs from: the released code for clips of one frame, which it draws at random even in testing.
    """
    if not 0 <= view < num_views:
        raise OptionError(f"view={view} must be from 0 to num_views - 1 = {num_views - 1}")
    times = _times_from_first(times_seconds)
    if spec.mode == "official" and spec.sampling == "interval":
        length = _official_clip_length(spec, times, container_fps)
        slack = max(len(times) - length, 0)
        start = slack / 2 if num_views == 1 else slack * view / num_views
        return official_interval(len(times), spec.num_frames, length, start=start)
    if spec.mode == "official":
        return official_segments(len(times), spec.num_frames, view=view, num_views=num_views)
    if spec.sampling == "interval":
        step = _step_seconds(spec, times)
        slack = max(float(times[-1]) - (spec.num_frames - 1) * step, 0.0)
        where = 0.5 if num_views == 1 else view / (num_views - 1)
        start = where * slack
        return exact_interval(times, spec.num_frames, step, start_seconds=start, grace_seconds=_GRACE_SECONDS)
    places = np.full(spec.num_frames, (view + 0.5) / num_views)
    return exact_segments(times, spec.num_frames, where=places, grace_seconds=_GRACE_SECONDS)


def segment_frames(times_seconds: Times, start_seconds: float | None, end_seconds: float | None) -> range:
    """Find the frames in a segment of a video: those that appear from its start up to its end.

    A segment shorter than a frame gets the frame shown at its start. A segment may reach past the video's end by up to
    one frame; it is cut there. If the first frame appears late, a segment that begins before it starts with that frame,
    and so does one that ends up to one frame before it.

    Args:
        times_seconds: when each frame of the video appears, [L], increasing, on the same clock as the segment.
        start_seconds: None for the whole video.
        end_seconds: None for the whole video.

    Raises:
        OptionError: the video has no frames, the segment starts at its end or later, or the segment ends more than one
            frame after the video's end or before its first frame.
    """
    times = _times(times_seconds)
    if start_seconds is None or end_seconds is None:
        return range(len(times))
    duration_seconds, frame_seconds = _duration_seconds(times), 1 / average_fps(times)
    if start_seconds >= duration_seconds or end_seconds > duration_seconds + frame_seconds + _GRACE_SECONDS:
        raise OptionError(
            f"the segment from {start_seconds:g} to {end_seconds:g} s is not within the video, which lasts "
            f"{duration_seconds:.2f} s"
        )
    if end_seconds < times[0] - frame_seconds - _GRACE_SECONDS:
        raise OptionError(
            f"the segment from {start_seconds:g} to {end_seconds:g} s lies before the video's first frame, which "
            f"appears at {times[0]:.2f} s, since its sound begins earlier"
        )
    first = int(np.searchsorted(times, start_seconds - _GRACE_SECONDS))
    last = int(np.searchsorted(times, end_seconds - _GRACE_SECONDS))
    if first < last:
        return range(first, last)
    shown = max(int(np.searchsorted(times, start_seconds + _GRACE_SECONDS, side="right")) - 1, 0)
    return range(shown, shown + 1)


# --- the exact rules ----------------------------------------------------------------------------------------------


def exact_interval(
    times: Array, num_frames: int, step_seconds: float, *, start_seconds: float, grace_seconds: float = 0.0
) -> list[int]:
    """The frames shown at ``start_seconds`` and every ``step_seconds`` after; past the end, the last frame.

    At 30 frames a second, 8 frames at a step of 8/30 s from 0 are 0, 8, 16, .. 56.
    """
    return _find_shown(times, start_seconds + grace_seconds + step_seconds * np.arange(num_frames))


def exact_segments(times: Array, num_frames: int, *, where: Array, grace_seconds: float = 0.0) -> list[int]:
    """Cut the video into ``num_frames`` parts of equal duration; take the frame shown at ``where`` of each.

    ``where`` is [T] in [0, 1): 0 is a part's start. 48 frames in 8 parts give 3, 9, .. 45 at 0.5.
    """
    part_seconds = _duration_seconds(times) / num_frames
    return _find_shown(times, (np.arange(num_frames) + where) * part_seconds + grace_seconds)


def _find_shown(times: Array, seconds: npt.NDArray[np.floating[Any]]) -> list[int]:
    index = np.searchsorted(times, seconds, side="right") - 1
    chosen: list[int] = np.clip(index, 0, len(times) - 1).tolist()
    return chosen


def _step_seconds(spec: ClipSpec, times: Array) -> float:
    return spec.interval / (spec.fps or average_fps(times))


def _duration_seconds(times: Array) -> float:
    """Time from 0 to the end of the last frame, which is assumed to last as long as the average one."""
    return float(times[-1]) + 1 / average_fps(times)


# --- the released code's rules ------------------------------------------------------------------------------------


def official_interval(num_video_frames: int, num_frames: int, clip_length: float, *, start: float) -> list[int]:
    """``base_dataset.py:_interval_based_sampling``: a clip of ``clip_length`` frames from ``start``.

    The last sample lies at the window's last frame, not one step before its end: 8 frames in a window of 64
    are 0, 9, 18, .. 63. Computed in single precision, like the original.
    """
    positions = _linspace(start, start + clip_length - 1, num_frames)
    chosen: list[int] = np.clip(positions, 0, num_video_frames - 1).astype(np.int64).tolist()
    return chosen


def official_segments(
    num_video_frames: int,
    num_frames: int,
    *,
    where: Array | None = None,
    view: int = 0,
    num_views: int = 1,
) -> list[int]:
    """``base_dataset.py:_segment_based_sampling``: one frame of each of ``num_frames`` parts.

    The frame at ``where`` ([T], in [0, 1)) of each part, if given; else a single view takes the middles, and view i of
    k the frames at (i + 1)/k: the last view takes the right edges. Rounds half to even, in single precision, like the
    original.
    """
    edges = _linspace(0, num_video_frames, num_frames + 1)
    left, width = edges[:-1], edges[1:] - edges[:-1]
    if where is not None:
        positions = left + width * where.astype(np.float32)
    elif num_views == 1:
        positions = (left + edges[1:]) / np.float32(2)
    else:
        positions = left + width * np.float32(view + 1) / np.float32(num_views)
    chosen: list[int] = np.round(np.clip(positions, 0, num_video_frames - 1)).astype(np.int64).tolist()
    return chosen


def _official_clip_length(spec: ClipSpec, times: Array, container_fps: float | None) -> float:
    """The length of a clip, in frames of the video."""
    if spec.fps is None:
        return spec.num_frames * spec.interval
    return spec.num_frames * spec.interval * (container_fps or average_fps(times)) / spec.fps


def _linspace(start: float, end: float, num: int) -> npt.NDArray[np.float32]:
    """Compute ``torch.linspace`` in float32 to the bit: from both ends to the middle, with a fused multiply-add."""
    first, last = np.float32(start), np.float32(end)
    if num == 1:
        return np.array([first])
    step = np.float64((last - first) / np.float32(num - 1))
    i = np.arange(num)
    up, down = np.float64(first) + step * i, np.float64(last) - step * (num - 1 - i)
    return np.where(i < num // 2, up, down).astype(np.float32)


# --- times ---------------------------------------------------------------------------------------------------------


def average_fps(times: Array) -> float:
    """The average rate of frames that appear at ``times``, in frames per second; 30 for a single frame.

    If all times are whole milliseconds, as WebM and MKV round them, the rate is uncertain: then it is snapped to the
    nearest whole rate or its NTSC form (29.97 for 30), if that is within the uncertainty.
    """
    if len(times) == 1:
        return 30.0
    times = times - times[0]
    span = float(times[-1])
    rate = (len(times) - 1) / span
    if np.abs(times * 1000 - np.round(times * 1000)).max() < 1e-6:
        nominal = min((round(rate), round(rate * 1.001) / 1.001), key=lambda other: abs(other - rate))
        if nominal and abs((len(times) - 1) / nominal - span) <= _GRACE_SECONDS:
            return float(nominal)
    return rate


def _times(times_seconds: Times) -> Array:
    times: Array = np.asarray(times_seconds, np.float64)
    if times.ndim != 1 or len(times) == 0:
        raise OptionError(f"times_seconds of shape {list(times.shape)}: a video has at least one frame")
    return times


def _times_from_first(times_seconds: Times) -> Array:
    times = _times(times_seconds)
    from_first: Array = times - times[0]
    return from_first
