"""Sliding windows: clips at a fixed stride along a whole video or a stream, in seconds rather than in frames.

Each frame is decoded and resized only once, however many clips contain it. A clip's frames are those shown at times
spread evenly around its middle; times before the first or after the last frame get that frame.

Shapes: T frames of a clip, N frames, V crops.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tada.errors import OptionError, TooLargeError
from tada.video.frames import OpenVideo
from tada.video.sampling import ClipSpec
from tada.video.stream import FrameStream, LiveFrame
from tada.video.transforms import frame_crops

MAX_FEATURES = 500_000
"""Most features of a video: 18 hours at the smallest stride of the published features."""
_FRAMES_AT_ONCE = 32


_DENSE_SECONDS, _SPARSE_SECONDS = 2 / 15, 8 / 15  # 0.133 and 0.533 s, the strides of the published features


_SHORT_ACTION_SECONDS = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SlidingWindows:
    """Length and stride of the clips, and crops of each."""

    window_seconds: float
    """Length of a clip, in seconds."""
    stride_seconds: float
    """From one clip's middle to the next, in seconds."""
    num_crops: Literal[1, 3] = 1
    """1: the center crop. 3: three crops along the longer side, whose features are concatenated."""

    def __post_init__(self) -> None:
        for name in ("window_seconds", "stride_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise OptionError(f"{name}={getattr(self, name)} should be a positive number of seconds")
        if self.num_crops not in (1, 3):
            raise OptionError(f"num_crops={self.num_crops} should be 1 or 3")

    @classmethod
    def for_clips(
        cls,
        clip: ClipSpec,
        *,
        window_seconds: float | None = None,
        stride_seconds: float | None = None,
        num_crops: Literal[1, 3] = 1,
        segment_seconds: Sequence[float] = (),
        frame_seconds: float = 0.0,
    ) -> SlidingWindows:
        """Fill in the window and the stride where they are None.

        The default window is the span of the network's training clips. With segment sampling these were whole actions:
        then it is the median of ``segment_seconds``. The default stride is 0.133 s for actions of less than 4 s, else
        0.533 s, as for the published features, but at most a fourth of the window and at least ``frame_seconds``, the
        duration of a frame.

        Raises:
            OptionError: segment sampling with neither a window nor segments; or the segments are shorter than a frame,
                as those of events marked with a point in time.
        """
        median = float(np.median(segment_seconds)) if len(segment_seconds) else None
        if window_seconds is None:
            if clip.sampling == "interval" and clip.fps is not None:
                window_seconds = clip.num_frames * clip.interval / clip.fps
            elif median is not None:
                if median < frame_seconds:
                    raise OptionError(
                        f"half of the segments last {median:.3g} s or less, and one frame of the videos "
                        f"{frame_seconds:.3g} s, so that they do not say how much of a video shows what happens: let "
                        "each last as long as that does, or give --window-seconds, about as long"
                    )
                window_seconds = median
            else:
                raise OptionError(
                    "the network was trained on whole videos cut into segments, so it does not say how long a clip "
                    "lasts: give --window-seconds, about as long as what it is to see"
                )
        if stride_seconds is None:
            dense = median is not None and median < _SHORT_ACTION_SECONDS
            stride_seconds = min(_DENSE_SECONDS if dense else _SPARSE_SECONDS, window_seconds / 4)
            stride_seconds = max(stride_seconds, frame_seconds)
        return cls(window_seconds=window_seconds, stride_seconds=stride_seconds, num_crops=num_crops)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> SlidingWindows:
        """Read the windows from the plain values of a card of features; other keys are ignored."""
        return cls(**{entry.name: plain[entry.name] for entry in fields(cls)})

    def count(self, duration_seconds: float) -> int:
        """Number of clips, and so of features, of a video: duration / stride rounded (half up), at least 1."""
        return max(1, math.floor(duration_seconds / self.stride_seconds + 0.5))

    def checked_count(self, duration_seconds: float, name: str) -> int:
        """As ``count``, for the video of this name.

        Raises:
            TooLargeError: there would be more than ``MAX_FEATURES``.
        """
        count = self.count(duration_seconds)
        if count > MAX_FEATURES:
            raise TooLargeError(
                f"{name!r} lasts {duration_seconds:.0f} s by its own account, which gives {count} features, and at "
                f"most {MAX_FEATURES} are made of a video; cut it into parts, or let --stride-seconds be larger",
                name,
            )
        return count

    def clip_times(self, index: int, num_frames: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """When the frames of clip ``index`` are shown, [T]: the middles of T equal parts of its window.

        They are 1 ms late, as in testing: WebM and MKV round the frames' times to milliseconds.
        """
        middle = self.stride_seconds / 2 + index * self.stride_seconds
        parts: np.ndarray[tuple[int], np.dtype[np.float64]] = (np.arange(num_frames) + 0.5) / num_frames - 0.5
        return middle + parts * self.window_seconds + 1e-3


def clips_of(reader: OpenVideo, spec: ClipSpec, windows: SlidingWindows, clip_range: range) -> Iterator[Tensor]:
    """Yield the crops of each clip, uint8 [V, T, crop, crop, 3], in order; every frame is decoded once.

    Cropped frames are kept until no later clip needs them.
    """
    times = reader.times_seconds
    needed = np.empty((len(clip_range), spec.num_frames), np.int64)
    for row, index in enumerate(clip_range):
        shown = np.searchsorted(times, windows.clip_times(index, spec.num_frames), side="right") - 1
        needed[row] = np.clip(shown, 0, len(times) - 1)
    wanted = iter(np.unique(needed).tolist())
    ready: dict[int, Tensor] = {}  # [V, crop, crop, 3]
    for clip in map(np.ndarray.tolist, needed):
        while clip[-1] not in ready:
            part = [frame for _, frame in zip(range(_FRAMES_AT_ONCE), wanted, strict=False)]
            crops = reader.frames(part, shrink=partial(_crop_frames, spec=spec, windows=windows))
            ready.update(zip(part, torch.from_numpy(crops), strict=True))
        for frame in [frame for frame in ready if frame < clip[0]]:
            del ready[frame]
        yield torch.stack([ready[frame] for frame in clip], dim=1)


def _crop_frames(frames: NDArray[np.uint8], spec: ClipSpec, windows: SlidingWindows) -> NDArray[np.uint8]:
    """Resize and crop frames [N, H, W, 3] to [N, V, crop, crop, 3]."""
    return frame_crops(
        frames,
        short_side=spec.short_side,
        crop=spec.crop,
        num_crops=windows.num_crops,
        antialias=spec.antialias,
    )


class ReadyClip(NamedTuple):
    """A complete clip of a stream."""

    frames: Tensor
    """uint8 [V, T, crop, crop, 3]"""
    arrivals: list[tuple[float, float]]
    """(time shown, time of arrival) of the frames since the previous clip; the last one completed this clip."""


class _OpenClip(NamedTuple):
    times: list[float]
    """Times of its T frames, in seconds."""
    frames: list[Tensor]
    """Its frames so far, each [V, crop, crop, 3]."""


def clips_as_they_come(stream: FrameStream, spec: ClipSpec, windows: SlidingWindows) -> Iterator[ReadyClip]:
    """Yield the same clips as ``clips_of`` for the finished video, each as soon as it is complete.

    A frame is shown until the next one appears, so a clip is complete when the frame after its last one arrives. Each
    frame is resized at most once, and kept only in the clips that contain it.
    """
    waiting: deque[_OpenClip] = deque()
    num_opened, num_ready = 0, 0
    arrivals: list[tuple[float, float]] = []
    before: LiveFrame | None = None
    next_clip = _open_clip(0, spec, windows)

    def append_shown(frame: LiveFrame, until_seconds: float) -> None:
        """Append a frame, shown until ``until_seconds``, to all open clips that contain it."""
        small: Tensor | None = None
        for clip in waiting:
            while len(clip.frames) < len(clip.times) and clip.times[len(clip.frames)] < until_seconds:
                if small is None:
                    small = torch.from_numpy(_crop_frames(np.ascontiguousarray(frame.pixels())[None], spec, windows)[0])
                clip.frames.append(small)

    for frame in stream:
        arrivals.append((frame.seconds, frame.arrived))
        while next_clip.times[0] < frame.seconds:
            waiting.append(next_clip)
            num_opened += 1
            next_clip = _open_clip(num_opened, spec, windows)
        append_shown(before or frame, frame.seconds)
        before = frame
        while waiting and len(waiting[0].frames) == spec.num_frames:
            yield ReadyClip(torch.stack(waiting.popleft().frames, dim=1), arrivals)
            num_ready, arrivals = num_ready + 1, []
    if before is None:
        return
    # The last frame fills the clips that are still open.
    waiting.extend(_open_clip(i, spec, windows) for i in range(num_opened, windows.count(stream.duration_seconds)))
    append_shown(before, float("inf"))
    for clip in list(waiting)[: windows.count(stream.duration_seconds) - num_ready]:
        yield ReadyClip(torch.stack(clip.frames, dim=1), arrivals)
        arrivals = []


def _open_clip(index: int, spec: ClipSpec, windows: SlidingWindows) -> _OpenClip:
    return _OpenClip(windows.clip_times(index, spec.num_frames).tolist(), [])
