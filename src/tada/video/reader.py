"""Exact access to the frames of a video file.

A frame is addressed by its number in the order of presentation. The numbers come from the packets themselves
(a header may promise frames that are not there), and a seek is trusted only where it lands on the very packet
that was sought. ``open_video`` says what is refused, ``Video`` what happens to unusual frames.
"""

from __future__ import annotations

import os
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import chain
from types import TracebackType
from typing import Any, NamedTuple, Self

import av
import av.error
import av.packet
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from tada.errors import CorruptVideoError, OptionError
from tada.video.container import Limits, MediaFile, Packets, mark_of
from tada.video.index import FrameIndex, KeyPacket, index_by_decoding, index_by_packets

MAX_PIXELS = 7680 * 4320
"""Largest frame that is decoded unless the caller allows more: 8K."""
MAX_FRAMES = 2_000_000
"""Longest video that is opened unless the caller allows more: 18 hours at 30 frames a second."""

_FRAMES_AT_ONCE, _BYTES_AT_ONCE = 16, 1 << 26  # that are held at full size where they are to become smaller
_ROWS_AT_ONCE = 256  # where alpha is composited
_SEEK_SAVES = 3  # a seek costs about as much as decoding so many frames
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # ITU-T H.273


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """What a video file holds, counted rather than taken from its header."""

    path: str
    """As it was given."""
    width: int
    """Of a frame as it is shown, in pixels."""
    height: int
    """Of a frame as it is shown, in pixels."""
    fps: float
    """Average rate, in frames per second."""
    container_fps: float | None
    """The average rate that the file declares, right or not; None where it declares none. ``official`` sampling goes by
    it."""
    num_frames: int
    """Frames that are shown: hidden reference frames and those that an edit list cuts off do not count."""
    start_seconds: float
    """When the first frame appears, counted from the container's start: more than 0 where the sound begins first."""
    duration_seconds: float
    """From the container's start to the end of the last frame (in MP4 this lasts as long as the one before)."""
    codec: str
    """FFmpeg's name of it: ``h264``, ``vp9``."""
    rotation_degrees: int
    """By how much players turn the stored frame clockwise: 0, 90, 180 or 270. Frames come already turned."""
    pixel_aspect: Fraction
    """Width of a pixel as it is shown, by its height; 1 where they are square, as nearly always."""


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Find out what the file holds. Errors are those of ``open_video`` and of its first frame."""
    with open_video(path) as video:
        return video.info


def open_video(
    path: str | os.PathLike[str],
    *,
    max_pixels: int = MAX_PIXELS,
    max_frames: int = MAX_FRAMES,
    timeout_seconds: float = 30.0,
    allow_damaged: bool = False,
) -> Video:
    """Open a video file. Close it, or use it in a ``with``.

    Args:
        path: a regular file, or a link to one. Its name and suffix do not matter.
        max_pixels: largest frame, width times height, that is decoded.
        max_frames: longest video that is opened.
        timeout_seconds: for opening, and again for each read, on a file system that stalls.
        allow_damaged: take what is there of a file that breaks off, and frames that decode with errors as the
            decoder mended them. A frame that does not decode at all is an error still.

    Raises:
        VideoError: one of its subclasses, by what is wrong. A file that breaks off is refused here where its
            format says how long it should be (MP4, MKV, WebM, AVI, FLV), to within three frames.
    """
    limits = Limits(max_pixels=max_pixels, max_frames=max_frames, timeout_seconds=timeout_seconds)
    return Video(os.fspath(path), limits, allow_damaged=allow_damaged)


class Video:
    """An open video. Made by ``open_video``; not to be shared with a forked process.

    Frames are RGB, uint8, turned as players show them. Pixels stay as stored where these are not square, and
    interlaced frames stay interlaced. Alpha is composited on black. High dynamic range is cut to 8 bits without
    tone mapping, with a warning. If the size changes within the video, all frames are brought to the first
    one's. Of several video streams the first counts. Frames before the first key frame cannot be decoded and do
    not count.

    A frame that decodes with errors is refused when it is asked for, unless ``allow_damaged``.

    Times count from the container's start, as in players and in ``ffmpeg -ss``. The video track may begin after it
    (screen and USB captures begin with sound): then the first frame's time is more than 0.

    Where packets do not tell which frames there are (raw H.264, H.264 in AVI, times that jump back), opening decodes
    the video once: frames are those that come out, and each jump backward decodes from the start.
    """

    times_seconds: npt.NDArray[np.float64]
    """[num_frames]: when each frame appears, counted from the container's start; strictly increasing."""
    corrupt_frames: set[int]
    """Numbers of the frames handed out that decode with errors; only ``allow_damaged`` hands out any."""

    def __init__(self, path: str, limits: Limits, *, allow_damaged: bool) -> None:
        self._path, self._limits, self._allow_damaged = path, limits, allow_damaged
        self._pid, self._is_closed = os.getpid(), False
        self._decoder: Iterator[tuple[int, av.VideoFrame]] = iter(())
        self._position = -1  # the frame that was decoded last
        self._num_undecodable = 0  # packets
        self._reformatter = VideoReformatter()
        self.corrupt_frames = set()
        self._file = MediaFile(path, limits)
        self._size = self._file.context.width, self._file.context.height  # as stored; decoding may change it there
        try:
            packets = self._file.scan()
            self._index = index_by_packets(self._file, packets) or self._index_by_decoding(packets)
            self.times_seconds = self._index.times_seconds
            self._num_frames = self._index.num_frames
            if self._num_frames == 0 or (packets.breaks_off and not allow_damaged):
                raise self._file.breaks_off(self._num_frames)
            if self._file.context.color_trc in _HDR_TRANSFERS:
                warnings.warn(
                    f"a video is HDR ({_HDR_TRANSFERS[self._file.context.color_trc]}): its frames are cut to 8 bits "
                    "without tone mapping and look flat; convert it to SDR if that matters",
                    stacklevel=3,
                )
        except BaseException:
            self.close()
            raise

    # --- numbers and times ------------------------------------------------------------------------------------

    def _index_by_decoding(self, packets: Packets) -> FrameIndex:
        """Number the frames of a video whose packets do not tell: decode them all."""
        self._index = FrameIndex(times_seconds=np.zeros(0), duration_seconds=0.0, fps=0.0)  # to be counted
        self._restart()
        self._num_undecodable = 0
        index = index_by_decoding(self._file, packets, [(frame.pts, frame.dts) for _, frame in self._decoder])
        if self._num_undecodable and index.num_frames and not self._allow_damaged:
            raise CorruptVideoError(
                f"{self._path!r}: {index.num_frames} frames decode, but {self._num_undecodable} packets do not; copy "
                "or download it again, or pass allow_damaged=True to do without these",
                self._path,
            )
        return index

    @property
    def container_fps(self) -> float | None:
        """``VideoInfo.container_fps``, which costs no decoding."""
        return float(self._file.stream.average_rate) if self._file.stream.average_rate else None

    @cached_property
    def info(self) -> VideoInfo:
        """What the file holds. The first use decodes a frame, if none has been: only frames know their rotation."""
        width, height, quarter_turns = self._geometry
        stream = self._file.stream
        aspect = stream.sample_aspect_ratio or self._file.context.sample_aspect_ratio or Fraction(1)
        if quarter_turns % 2:
            width, height = height, width
        return VideoInfo(
            path=self._path,
            width=width,
            height=height,
            fps=self._index.fps,
            container_fps=self.container_fps,
            num_frames=self._num_frames,
            start_seconds=float(self.times_seconds[0]),
            duration_seconds=self._index.duration_seconds,
            codec=self._file.codec,
            rotation_degrees=-90 * quarter_turns % 360,
            pixel_aspect=1 / aspect if quarter_turns % 2 else aspect,
        )

    @cached_property
    def _geometry(self) -> Geometry:
        self._check_usable()
        if not (self._index.keys and self._seek(self._index.keys[0])):
            self._restart()
        first = next(self._decoder, None)
        if first is None:
            raise self._file.breaks_off(0)
        self._decoder = chain([first], self._decoder)  # for one who reads on from here
        return self._geometry_of(first[1])

    def _geometry_of(self, first: av.VideoFrame) -> Geometry:
        geometry = Geometry.of(first, self._size)
        self._file.check_shape(geometry.width, geometry.height)  # which the header may not say
        return geometry

    # --- frames -----------------------------------------------------------------------------------------------

    def frames(
        self,
        indices: Sequence[int],
        *,
        shrink: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Decode the frames numbered ``indices``, in any order, repeats allowed; each is decoded once.

        Args:
            shrink: makes frames smaller as they come, so that large ones are never all in memory. It gets some at a
                time, [n, H, W, 3], and returns as many of any other shape.

        Returns:
            [len(indices), H, W, 3], RGB; or what ``shrink`` makes of them.

        Raises:
            CorruptVideoError: one of them decodes with errors or not at all.
            TruncatedVideoError: nothing decodes from one of them to the end.
            IndexError: a number is outside of [0, num_frames).
        """
        for index in indices:
            if not 0 <= index < self._num_frames:
                raise IndexError(f"{self._path!r} has no frame {index}; its frames are 0 to {self._num_frames - 1}")
        if not len(indices):
            return np.empty((0, self.info.height, self.info.width, 3), np.uint8)
        wanted, places = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        if shrink is None:
            (found,) = self._stacked(wanted.tolist(), len(wanted), None)
        else:
            # A map and no loop, whose variable would keep frames while the next are made.
            parts = map(shrink, self._stacked(wanted.tolist(), _FRAMES_AT_ONCE, _BYTES_AT_ONCE))
            found = np.concatenate(list(parts))
        return found if np.array_equal(places, np.arange(len(found))) else found[places]

    def _stacked(self, numbers: list[int], at_once: int, max_bytes: int | None) -> Iterator[npt.NDArray[np.uint8]]:
        """Frames [n, H, W, 3] of ascending numbers: ``at_once``, or as many as ``max_bytes`` hold, but at least one."""
        while numbers:
            first = np.ascontiguousarray(self._to_rgb(self._frame(numbers[0])))[None]
            n = at_once if max_bytes is None else max(1, min(at_once, max_bytes // first.nbytes))
            frames = first if n == 1 or len(numbers) == 1 else np.empty((len(numbers[:n]), *first.shape[1:]), np.uint8)
            frames[0] = first
            del first  # each may have 100 MB, so that none is kept longer than it is needed
            for place, number in enumerate(numbers[1:n], start=1):
                frames[place] = self._to_rgb(self._frame(number))
            yield frames
            del frames
            numbers = numbers[n:]

    def frames_played_at(
        self,
        seconds: Sequence[float],
        *,
        shrink: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Decode the frame shown at each of ``seconds``, counted from the container's start.

        Before the first frame appears, where players show nothing, that one is taken.

        Raises:
            OptionError: a time is negative or after the video's end; else as ``frames``.
        """
        duration = self._index.duration_seconds
        for time in seconds:
            if not 0 <= time <= duration:
                raise OptionError(f"{self._path!r} shows nothing at {time} s; it lasts from 0 to {duration:.6g} s")
        # A microsecond's grace: 0.1 s as a float must not fall short of a frame that appears at 0.1 s.
        indices = np.searchsorted(self.times_seconds, np.asarray(seconds, np.float64) + 1e-6, side="right") - 1
        return self.frames(np.maximum(indices, 0).tolist(), shrink=shrink)

    def __len__(self) -> int:
        """How many frames there are."""
        return self._num_frames

    def __iter__(self) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
        """Every frame in turn, each decoded once: (seconds, [H, W, 3])."""
        for index in range(self._num_frames):
            yield float(self.times_seconds[index]), self._to_rgb(self._frame(index))

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        self._is_closed, self._decoder = True, iter(())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- decoding ---------------------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(f"{self._path!r} was opened before a fork; open it in the process that reads it")
        if self._is_closed:
            raise RuntimeError(f"{self._path!r} is closed")

    def _frame(self, index: int) -> av.VideoFrame:
        """Decode one frame: onward from where the decoder is, or from a key frame, at worst from the start."""
        self._check_usable()
        for _ in self._starts(index):
            frame = self._advance(index)
            if frame is not None and frame.is_corrupt and self._allow_damaged:
                self.corrupt_frames.add(index)
                return frame
            if frame is not None and not frame.is_corrupt:
                return frame
        if self._position < index:  # the last try went from the start to the end without meeting it
            raise self._file.breaks_off(self._position + 1)
        raise CorruptVideoError(
            f"{self._path!r}: frame {index} of {self._num_frames} decodes with errors; copy or download the video "
            "again, or leave it out; allow_damaged=True takes frames as the decoder mends them",
            self._path,
        )

    def _starts(self, index: int) -> Iterator[None]:
        """Bring the decoder before frame ``index``, in the cheapest way first; each further one is a safer try."""
        keys = self._index.keys
        last_key = bisect_right(keys, index, key=lambda key: key.frame) - 1
        if self._position < index and (last_key < 0 or keys[last_key].frame <= self._position + _SEEK_SAVES):
            yield
        for back in (0, 1, 4):
            if last_key - back >= 0 and self._seek(keys[last_key - back]):
                yield
        self._restart()
        yield

    def _advance(self, index: int) -> av.VideoFrame | None:
        """Decode up to frame ``index``. None: the decoder leaves it out."""
        for found, frame in self._decoder:
            self._position = found
            if found >= index:
                return frame if found == index else None
        return None

    def _seek(self, key: KeyPacket) -> bool:
        """Let decoding begin with this very packet. False: the container does not lead there."""
        time_base = self._file.stream.time_base
        assert time_base is not None
        for timestamp in (key.pts, key.dts, key.dts - round(2 / time_base)):
            self._decoder = iter(())  # ends the reading in progress, before a new one sets its timeout
            try:
                self._file.container.seek(timestamp, stream=self._file.stream)
            except av.error.FFmpegError:
                return False
            packets = self._file.packets()
            for packet in packets:
                if packet.pts == key.pts and mark_of(memoryview(packet)) == key.mark:
                    self._decoder = self._decode(chain([packet], packets), key)
                    self._position = key.frame - 1
                    return True
                if packet.dts is not None and packet.dts > key.dts:
                    break  # landed too late: its frames would lack the ones they refer to
            del packets
        return False

    def _restart(self) -> None:
        """Open the file anew and decode from its beginning."""
        self._decoder = iter(())
        self._file.close()
        self._file = MediaFile(self._path, self._limits)
        self._decoder = self._decode(self._file.packets())
        self._position = -1

    def _decode(
        self, packets: Iterator[av.packet.Packet[Any]], key: KeyPacket | None = None
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames with their numbers. Packets that cannot be decoded are passed over: their frames are missing.

        Args:
            key: the first packet. Where its picture turns out to refer to others, seeks are given up for good.
        """
        count, pts = 0, self._index.pts
        for packet in chain(packets, [None]):
            try:
                frames = self._file.context.decode(packet)
            except av.error.FFmpegError:
                self._num_undecodable += 1
                continue
            for frame in frames:
                if pts is None:
                    yield count, frame
                    count += 1
                elif key is not None and frame.pts == key.pts and not frame.key_frame:
                    self._index = replace(self._index, keys=())
                    return
                elif frame.pts is not None:
                    index = bisect_left(pts, frame.pts)
                    if index < len(pts) and pts[index] == frame.pts:
                        yield index, frame

    def _to_rgb(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        """[H, W, 3], turned and of the first frame's size."""
        if "_geometry" not in self.__dict__:
            self._geometry = self._geometry_of(frame)
        return to_rgb(frame, self._geometry, self._reformatter)


# --- from a decoded frame to RGB ---------------------------------------------------------------------------------


class Geometry(NamedTuple):
    """To what size the frames of a video are brought, and how they are turned."""

    width: int
    """As stored, in pixels."""
    height: int
    """As stored, in pixels."""
    quarter_turns: int
    """Counterclockwise, to show a frame."""

    @classmethod
    def of(cls, frame: av.VideoFrame, stored: tuple[int, int]) -> Self:
        """That of the first frame; ``stored`` is (width, height) by the header, which may say zero."""
        width, height = stored if all(stored) else (frame.width, frame.height)
        return cls(width, height, round(frame.rotation / 90) % 4)


def to_rgb(frame: av.VideoFrame, geometry: Geometry, reformatter: VideoReformatter) -> npt.NDArray[np.uint8]:
    """[H, W, 3], turned; alpha is composited on black."""
    has_alpha = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    form = "rgba" if has_alpha else "rgb24"
    converted = reformatter.reformat(frame, geometry.width, geometry.height, form, threads=1)
    pixels = _without_copy(converted, 4 if has_alpha else 3)
    if has_alpha:
        shown = np.empty((*pixels.shape[:2], 3), np.uint8)
        for row in range(0, len(pixels), _ROWS_AT_ONCE):  # 16 bits a color of a whole frame of 8K are 200 MB
            rows = pixels[row : row + _ROWS_AT_ONCE]
            weighted = rows[..., :3].astype(np.uint16) * rows[..., 3:]
            shown[row : row + _ROWS_AT_ONCE] = (weighted + 127) // 255
        pixels = shown
    return np.rot90(pixels, geometry.quarter_turns)


def _without_copy(frame: av.VideoFrame, channels: int) -> npt.NDArray[np.uint8]:
    """A packed frame's pixels, [H, W, channels], where they lie; the array keeps them there."""
    (plane,) = frame.planes
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    pixels: npt.NDArray[np.uint8] = rows[:, : plane.width * channels].reshape(plane.height, plane.width, channels)
    return pixels
