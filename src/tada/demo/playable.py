"""Videos that browsers play, and small copies of others.

``is_playable`` runs in the process that decodes a video, so this module imports no more than that has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import av.error
import numpy as np
from numpy.typing import NDArray

from tada.errors import VideoError
from tada.video.container import Limits, MediaFile
from tada.video.isolation.readers import RemoteVideo
from tada.video.reader import MAX_FRAMES, MAX_PIXELS
from tada.video.transforms import shrink_to
from tada.video.writer import write_video

_COPY_PIXELS = 360  # short side
_PLAYED = {"mov": ("h264",), "matroska": ("vp8", "vp9", "av1")}
"""Containers and codecs that all browsers play."""


def is_playable(path: str) -> bool:
    """Whether all browsers play a video file, and seek in it."""
    media = MediaFile(path, Limits(max_pixels=MAX_PIXELS, max_frames=MAX_FRAMES, timeout_seconds=30.0))
    try:
        seekable = media.container.duration is not None  # recordings of a browser's camera lack it
        return (
            seekable and media.codec in _PLAYED.get(media.kind, ()) and media.context.pix_fmt in ("yuv420p", "yuvj420p")
        )
    finally:
        media.close()


def write_playable(video: RemoteVideo, target: Path, advance: Callable[[float], None] = lambda part: None) -> None:
    """Write a small silent copy of a video that browsers play.

    Raises:
        VideoError: the video cannot be read to its end.
    """
    times, last = [], -1.0
    for seconds in video.times_seconds.tolist():
        last = max(seconds, last + 1e-4)
        times.append(last)

    def small() -> Iterator[NDArray[np.uint8]]:
        for number, (_, frame) in enumerate(video.each(partial(shrink_to, short_side=_COPY_PIXELS)), start=1):
            height, width = (side - side % 2 for side in frame.shape[:2])
            advance(number / len(times))
            yield frame[: max(height, 2), : max(width, 2)]

    try:
        write_video(target, small(), times_seconds=times, crf=26, keyframe_interval_frames=15, fast_encode=True)
    except av.error.FFmpegError as fault:
        name = video.info.path
        raise VideoError(f"{name!r} cannot be converted for the browser: {fault}", name) from fault
