"""Read frames live, as they arrive: from a growing file, a pipe or a camera."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.packet import Packet
from av.video.reformatter import VideoReformatter

from tada.errors import CorruptVideoError, EmptyFileError, OptionError
from tada.video.container import Limits, MediaFile
from tada.video.live import LiveBytes, is_camera
from tada.video.reader import MAX_PIXELS, Geometry, to_rgb

_OPENING_SECONDS = 30.0  # for a camera
_LONGEST_JUMP_BACK_SECONDS, _LONGEST_JUMP_AHEAD_SECONDS = 1.0, 4 * 3600.0


class LiveFrame(NamedTuple):
    """A frame of a stream."""

    seconds: float
    """When it is shown, in seconds from the container's start, as in ``Video``."""
    arrived: float
    """``time.perf_counter()`` when its last byte had been read."""
    pixels: Callable[[], npt.NDArray[np.uint8]]
    """Converts it to RGB, uint8 [H, W, 3]; called only for frames that are used."""


class FrameStream:
    """The frames of a source that is still being written, each decoded once, in the order of presentation.

    Args:
        source: a file, a named pipe, "-" for the standard input, or a camera such as /dev/video0. Addresses are not
            opened: let ffmpeg fetch them into a pipe.
        idle_seconds: the stream ends when no bytes arrived for so long.
        max_pixels: largest frame, width times height, that is decoded.

    Frames are converted as by ``Video``. A frame that decodes with errors, or whose time is not after its
    predecessor's, is left out and counted; the frame before it is then shown longer.
    """

    duration_seconds: float
    """From the container's start to the end of the last frame, as far as they have been read."""
    num_frames: int
    """Frames yielded so far."""
    num_left_out: int
    """Frames that decoded with errors or were out of order, and packets that did not decode at all."""

    def __init__(
        self, source: str | os.PathLike[str], *, idle_seconds: float = 10.0, max_pixels: int = MAX_PIXELS
    ) -> None:
        if not idle_seconds > 0:
            raise OptionError(f"idle_seconds={idle_seconds:g} should be positive")
        self.path = os.fspath(source)
        self.duration_seconds, self.num_frames, self.num_left_out = 0.0, 0, 0
        self._idle_seconds, self._max_pixels = idle_seconds, max_pixels
        self._stop = threading.Event()

    def stop(self) -> None:
        """End the stream after the frames already read. May be called from any thread or a signal handler."""
        self._stop.set()

    def __iter__(self) -> Iterator[LiveFrame]:
        """Yield each frame as it arrives. Works only once.

        Raises:
            VideoError: one of its subclasses: the source cannot be opened, holds no video, became shorter, or its
                times are missing or jump back.
        """
        if is_camera(self.path):
            limits = Limits(max_pixels=self._max_pixels, max_frames=0, timeout_seconds=_OPENING_SECONDS)
            media = MediaFile(self.path, limits, live="camera")
        else:
            limits = Limits(max_pixels=self._max_pixels, max_frames=0, timeout_seconds=self._idle_seconds)
            live = LiveBytes(self.path, idle_seconds=self._idle_seconds, stop=self._stop)
            try:
                media = MediaFile(self.path, limits, live=live)
            except BaseException:
                live.close()
                raise
        try:
            yield from self._frames(media)
        finally:
            media.close()
        if self.num_frames == 0:
            raise EmptyFileError(
                f"{self.path!r} ended before a frame could be decoded; see to its writer. (An MP4 from a pipe needs "
                "its index in front: ffmpeg -movflags +faststart, or write MPEG-TS)",
                self.path,
            )

    def _frames(self, media: MediaFile) -> Iterator[LiveFrame]:
        stored = media.context.width, media.context.height
        geometry, reformatter = None, VideoReformatter()
        unit = media.stream.time_base  # frame.time_base is not set while the decoder is flushed
        first, last, late, seconds = 0, 0, 0.0, 0.0  # the first two in ticks
        for frame, arrived in self._decode(media):
            if frame.is_corrupt:
                self.num_left_out += 1
                continue
            if frame.pts is None or unit is None:
                raise CorruptVideoError(
                    f"{self.path!r} does not say when its frames are shown: send it as Matroska or MPEG-TS", self.path
                )
            if geometry is None:
                geometry, first = Geometry.of(frame, stored), frame.pts
                media.check_shape(geometry.width, geometry.height)
                late = media.seconds_late(first) if media.has_pts else 0.0
            elif frame.pts <= last:
                back = float((last - frame.pts) * unit)
                if back > _LONGEST_JUMP_BACK_SECONDS:
                    raise CorruptVideoError(
                        f"{self.path!r}: after {seconds:.1f} s its times jump back by {back:.1f} s; its writer began "
                        "anew: start again",
                        self.path,
                    )
                self.num_left_out += 1
                continue
            ahead = float((frame.pts - last) * unit) if self.num_frames else 0.0
            if ahead > _LONGEST_JUMP_AHEAD_SECONDS:  # sliding windows would have to fill the whole gap
                raise CorruptVideoError(
                    f"{self.path!r}: after {seconds:.1f} s its times jump ahead by {ahead:.1f} s; see to its writer, "
                    "and start again",
                    self.path,
                )
            last = frame.pts
            # The same order of operations as in index.py, so that times are equal to the last bit.
            before, seconds = seconds, (last - first) * unit.numerator / unit.denominator + late
            self.num_frames += 1
            lasts = float(frame.duration * unit)
            if media.kind == "mov" and self.num_frames > 1:  # its durations are differences of DTS, not of PTS
                lasts = seconds - before
            self.duration_seconds = seconds + (lasts or 1 / float(media.stream.average_rate or 25))
            yield LiveFrame(seconds, arrived, partial(to_rgb, frame, geometry, reformatter))

    def _decode(self, media: MediaFile) -> Iterator[tuple[av.VideoFrame, float]]:
        """Yield frames in the order of presentation, with the time at which their packet had been read."""
        arrivals: dict[int | None, float] = {}
        arrived = time.perf_counter()
        for packet in self._packets(media):
            if packet is not None:
                arrived = arrivals[packet.pts] = time.perf_counter()
            try:
                frames = media.context.decode(packet)
            except av.error.FFmpegError:
                self.num_left_out += 1
                continue
            for frame in frames:
                yield frame, arrivals.pop(frame.pts, arrived)
                for older in [pts for pts in arrivals if pts is None or (frame.pts is not None and pts < frame.pts)]:
                    del arrivals[older]

    def _packets(self, media: MediaFile) -> Iterator[Packet[Any] | None]:
        for packet in media.packets():
            yield packet
            if self._stop.is_set():  # a camera does not end by itself
                break
        yield None  # flushes the decoder
