"""Clips side by side along a whole video or a stream (sliding windows), at times and not at frame numbers.

Each frame is decoded once and made small at once, however many clips it is part of. A clip's frames are those shown at
times spread evenly around its middle; before the first and after the last frame these stand still.

Shapes: T frames of a clip, N frames, V crops.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tada.errors import OptionError
from tada.video.frames import OpenVideo
from tada.video.sampling import ClipSpec
from tada.video.stream import FrameStream, LiveFrame
from tada.video.transforms import frame_crops

_FRAMES_AT_ONCE = 32


_DENSE_SECONDS, _SPARSE_SECONDS = 2 / 15, 8 / 15  # 0.133 and 0.533 s, the strides of the published features


_SHORT_ACTION_SECONDS = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SlidingWindows:
    """How clips lie in a video."""

    window_seconds: float
    """What a clip spans."""
    stride_seconds: float
    """From one clip's middle to the next."""
    num_crops: Literal[1, 3] = 1
    """The middle of the frame; or three, side by side, as channels one after the other."""

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
        """Fill in what was not given.

        The window is what the network's clips span. A network of segments has seen whole actions: then it is the median
        of ``segment_seconds``. The stride is 0.133 s for actions of less than 4 s, else 0.533 s, as published features
        have it, but at most a fourth of the window, and no less than ``frame_seconds``, for which a frame of the videos
        is shown: between two frames there is nothing new.

        Raises:
            OptionError: a network of segments, and neither a window nor segments; or these are shorter than a frame,
                as events are that are marked with a point in time.
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
        """Those among the plain values of a card of features."""
        return cls(**{entry.name: plain[entry.name] for entry in fields(cls)})

    def count(self, duration_seconds: float) -> int:
        """Features of a video: each whole or half-filled stride has one, and there is at least one."""
        return max(1, math.floor(duration_seconds / self.stride_seconds + 0.5))

    def clip_times(self, index: int, num_frames: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """When the frames of clip ``index`` are shown, [T]: the middles of T equal parts of its window.

        With a millisecond's grace, as in testing: WebM and MKV round times to milliseconds.
        """
        middle = self.stride_seconds / 2 + index * self.stride_seconds
        parts: np.ndarray[tuple[int], np.dtype[np.float64]] = (np.arange(num_frames) + 0.5) / num_frames - 0.5
        return middle + parts * self.window_seconds + 1e-3


def clips_of(reader: OpenVideo, spec: ClipSpec, windows: SlidingWindows, clip_range: range) -> Iterator[Tensor]:
    """The crops of each clip, uint8 [V, T, crop, crop, 3], in order; every frame is decoded once.

    Frames wait, resized and cut, until no later clip needs them.
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
            crops = reader.frames(part, shrink=lambda frames: _crops(frames, spec, windows))
            ready.update(zip(part, torch.from_numpy(crops), strict=True))
        for frame in [frame for frame in ready if frame < clip[0]]:
            del ready[frame]
        yield torch.stack([ready[frame] for frame in clip], dim=1)


def _crops(frames: NDArray[np.uint8], spec: ClipSpec, windows: SlidingWindows) -> NDArray[np.uint8]:
    """Frames [N, H, W, 3], made small and cut: [N, V, crop, crop, 3]."""
    return frame_crops(
        frames,
        short_side=spec.short_side,
        crop=spec.crop,
        num_crops=windows.num_crops,
        antialias=spec.antialias,
    )


class ReadyClip(NamedTuple):
    """A clip, all of whose frames are there."""

    frames: Tensor
    """uint8 [V, T, crop, crop, 3]"""
    arrivals: list[tuple[float, float]]
    """The frames since the last clip: when each is shown, and when it arrived. The last of them made this one ready."""


class _OpenClip(NamedTuple):
    times: list[float]
    """When its frames are shown, T."""
    frames: list[Tensor]
    """Those that are there, [V, crop, crop, 3]."""


def clips_as_they_come(stream: FrameStream, spec: ClipSpec, windows: SlidingWindows) -> Iterator[ReadyClip]:
    """The clips that ``clips_of`` would make of the finished video, each as soon as possible.

    A frame is shown until the next one appears, so a clip is ready with the first frame after its last. Each frame is
    made small at most once, and let go when the clips that need it have it.
    """
    waiting: deque[_OpenClip] = deque()
    num_opened, num_ready = 0, 0
    arrivals: list[tuple[float, float]] = []
    before: LiveFrame | None = None
    next_clip = _open_clip(0, spec, windows)

    def show(frame: LiveFrame, until_seconds: float) -> None:
        """Give a frame to all clips that want it."""
        small: Tensor | None = None
        for clip in waiting:
            while len(clip.frames) < len(clip.times) and clip.times[len(clip.frames)] < until_seconds:
                if small is None:
                    small = torch.from_numpy(_crops(np.ascontiguousarray(frame.pixels())[None], spec, windows)[0])
                clip.frames.append(small)

    for frame in stream:
        arrivals.append((frame.seconds, frame.arrived))
        while next_clip.times[0] < frame.seconds:
            waiting.append(next_clip)
            num_opened += 1
            next_clip = _open_clip(num_opened, spec, windows)
        show(before or frame, frame.seconds)
        before = frame
        while waiting and len(waiting[0].frames) == spec.num_frames:
            yield ReadyClip(torch.stack(waiting.popleft().frames, dim=1), arrivals)
            num_ready, arrivals = num_ready + 1, []
    if before is None:
        return
    # The last frame stands still.
    waiting.extend(_open_clip(i, spec, windows) for i in range(num_opened, windows.count(stream.duration_seconds)))
    show(before, float("inf"))
    for clip in list(waiting)[: windows.count(stream.duration_seconds) - num_ready]:
        yield ReadyClip(torch.stack(clip.frames, dim=1), arrivals)
        arrivals = []


def _open_clip(index: int, spec: ClipSpec, windows: SlidingWindows) -> _OpenClip:
    return _OpenClip(windows.clip_times(index, spec.num_frames).tolist(), [])
