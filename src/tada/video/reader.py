"""Exact access to the frames of a video file.

A frame is addressed by its number in the order of presentation. The numbers come from the packets themselves
(a header may declare frames that do not exist), and a seek is used only if it lands exactly on the key packet.
``open_video`` documents which files are refused, ``Video`` how unusual frames are treated.
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

_FRAMES_AT_ONCE, _BYTES_AT_ONCE = 16, 1 << 26  # most held at full size before they are resized
_ROWS_AT_ONCE = 256  # when alpha is composited
_SEEK_SAVES = 3  # a seek costs about as much as decoding so many frames
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # ITU-T H.273


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """Properties of a video file, counted rather than taken from its header."""

    path: str
    """As it was given."""
    width: int
    """Of a frame as it is shown, in pixels."""
    height: int
    """Of a frame as it is shown, in pixels."""
    fps: float
    """Average rate, in frames per second."""
    container_fps: float | None
    """The average rate that the file declares, right or not; None: it declares none. Used by ``official`` sampling."""
    num_frames: int
    """Frames that are shown, without hidden reference frames and those that an edit list cuts off."""
    start_seconds: float
    """When the first frame appears, counted from the container's start: more than 0 if the sound begins first."""
    duration_seconds: float
    """From the container's start to the end of the last frame (in MP4 it lasts as long as the one before)."""
    codec: str
    """FFmpeg's name of it: ``h264``, ``vp9``."""
    rotation_degrees: int
    """Clockwise rotation of the stored frame for display: 0, 90, 180 or 270. ``Video`` returns frames rotated."""
    pixel_aspect: Fraction
    """Width of a displayed pixel divided by its height; nearly always 1 (square pixels)."""


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Read the properties of a video file. Raises the errors of ``open_video`` and of decoding the first frame."""
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
        timeout_seconds: longest time for opening, and for each single read, on a file system that stalls.
        allow_damaged: use the readable frames of a truncated file, and frames that decode with errors as the decoder
            repaired them. A frame that does not decode at all still raises an error.

    Raises:
        VideoError: one of its subclasses, by the kind of fault. A file truncated by more than three frames is refused
            here if its format stores the duration (MP4, MKV, WebM, AVI, FLV). Where ``allow_damaged`` would help, a
            note of the error says so (``__notes__``, the last line of a traceback).
    """
    limits = Limits(max_pixels=max_pixels, max_frames=max_frames, timeout_seconds=timeout_seconds)
    return Video(os.fspath(path), limits, allow_damaged=allow_damaged)


class Video:
    """An open video, made by ``open_video``. A forked process must open its own.

    Frames are RGB, uint8, rotated as players show them. Pixels that are not square stay so, and interlaced frames stay
    interlaced. Alpha is composited on black. High dynamic range is cut to 8 bits without tone mapping, with a warning.
    If the size changes within the video, all frames are resized to the first one's. Of several video streams the first
    is used. Frames before the first key frame cannot be decoded and are not counted.

    Reading a frame that decodes with errors raises ``CorruptVideoError``, unless ``allow_damaged``.

    Times count from the container's start, as in players and in ``ffmpeg -ss``. The video track may begin after it
    (screen and USB captures begin with sound): then the first frame's time is more than 0.

    If the packets do not tell which frames there are (raw H.264, H.264 in AVI, times that jump back), opening decodes
    the video once to number its frames, and each access to an earlier frame decodes from the start.
    """

    times_seconds: npt.NDArray[np.float64]
    """[num_frames]: when each frame appears, counted from the container's start; strictly increasing."""
    corrupt_frames: set[int]
    """Numbers of the returned frames that decoded with errors; empty unless ``allow_damaged``."""

    def __init__(self, path: str, limits: Limits, *, allow_damaged: bool) -> None:
        self._path, self._limits, self._allow_damaged = path, limits, allow_damaged
        self._pid, self._is_closed = os.getpid(), False
        self._decoder: Iterator[tuple[int, av.VideoFrame]] = iter(())
        self._position = -1  # the frame that was decoded last
        self._num_undecodable = 0  # packets
        self._reformatter = VideoReformatter()
        self.corrupt_frames = set()
        self._file = MediaFile(path, limits)
        self._size = self._file.context.width, self._file.context.height  # as stored; decoding may change the context's
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
        """Decode the whole video to number its frames, if its packets do not suffice."""
        self._index = FrameIndex(times_seconds=np.zeros(0), duration_seconds=0.0, fps=0.0)  # empty: frames are counted
        self._restart()
        self._num_undecodable = 0
        index = index_by_decoding(self._file, packets, [(frame.pts, frame.dts) for _, frame in self._decoder])
        if self._num_undecodable and index.num_frames and not self._allow_damaged:
            error = CorruptVideoError(
                f"{self._path!r}: {index.num_frames} frames decode, but {self._num_undecodable} packets do not; copy "
                "or download it again",
                self._path,
            )
            error.add_note("allow_damaged=True does without these packets")
            raise error
        return index

    @property
    def container_fps(self) -> float | None:
        """``VideoInfo.container_fps``, without decoding a frame."""
        return float(self._file.stream.average_rate) if self._file.stream.average_rate else None

    @cached_property
    def info(self) -> VideoInfo:
        """The file's properties. The first use decodes a frame, if none was: the rotation is stored only in frames."""
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
        self._decoder = chain([first], self._decoder)  # a caller who reads frame 0 next gets it
        return self._geometry_of(first[1])

    def _geometry_of(self, first: av.VideoFrame) -> Geometry:
        geometry = Geometry.of(first, self._size)
        self._file.check_shape(geometry.width, geometry.height)  # the header may not have declared it
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
            shrink: called with batches of frames [n, H, W, 3] as they are decoded; returns n smaller ones, so that
                full-size frames are never all in memory.

        Returns:
            [len(indices), H, W, 3], RGB; or the concatenated results of ``shrink``.

        Raises:
            CorruptVideoError: one of them decodes with errors or not at all.
            TruncatedVideoError: no frame decodes from one of them to the end.
            IndexError: a number is outside [0, num_frames).
        """
        for index in indices:
            if not 0 <= index < self._num_frames:
                raise IndexError(f"{self._path!r} has no frame {index}; its frames are 0 to {self._num_frames - 1}")
        if not len(indices):
            return np.empty((0, self.info.height, self.info.width, 3), np.uint8)
        wanted, places = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        if shrink is None:
            (found,) = self._decode_batches(wanted.tolist(), len(wanted), None)
        else:
            # Not a loop: its variable would keep a batch in memory while the next one is decoded.
            parts = map(shrink, self._decode_batches(wanted.tolist(), _FRAMES_AT_ONCE, _BYTES_AT_ONCE))
            found = np.concatenate(list(parts))
        return found if np.array_equal(places, np.arange(len(found))) else found[places]

    def _decode_batches(
        self, numbers: list[int], at_once: int, max_bytes: int | None
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield batches [n, H, W, 3] of frames of ascending numbers; n is limited by both arguments, but at least 1."""
        while numbers:
            first = np.ascontiguousarray(self._to_rgb(self._frame(numbers[0])))[None]
            n = at_once if max_bytes is None else max(1, min(at_once, max_bytes // first.nbytes))
            frames = first if n == 1 or len(numbers) == 1 else np.empty((len(numbers[:n]), *first.shape[1:]), np.uint8)
            frames[0] = first
            del first  # a frame may take 100 MB: free each as soon as possible
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

        For a time before the first frame, where players show nothing, it is the first frame.

        Raises:
            OptionError: a time is negative or after the video's end.
            VideoError: as for ``frames``.
        """
        duration = self._index.duration_seconds
        return self.frames(indices_played_at(seconds, self.times_seconds, duration, repr(self._path)), shrink=shrink)

    def __len__(self) -> int:
        """How many frames there are."""
        return self._num_frames

    def __iter__(self) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
        """Yield (seconds, [H, W, 3]) for each frame in order, each decoded once."""
        for index in range(self._num_frames):
            yield float(self.times_seconds[index]), self._to_rgb(self._frame(index))

    def close(self) -> None:
        """Close the file. May be called twice."""
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
        """Decode one frame: from the decoder's position, from a key frame, or at worst from the start."""
        self._check_usable()
        for _ in self._try_starts(index):
            frame = self._advance(index)
            if frame is not None and frame.is_corrupt and self._allow_damaged:
                self.corrupt_frames.add(index)
                return frame
            if frame is not None and not frame.is_corrupt:
                return frame
        if self._position < index:  # the last try decoded from start to end without finding it
            raise self._file.breaks_off(self._position + 1)
        error = CorruptVideoError(
            f"{self._path!r}: frame {index} of {self._num_frames} decodes with errors; copy or download the video "
            "again, or leave it out",
            self._path,
        )
        error.add_note("allow_damaged=True takes frames as the decoder repairs them")
        raise error

    def _try_starts(self, index: int) -> Iterator[None]:
        """Position the decoder before frame ``index``: yields after each try, from the cheapest to the safest."""
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
        """Decode up to frame ``index``. None: the decoder does not return it."""
        for found, frame in self._decoder:
            self._position = found
            if found >= index:
                return frame if found == index else None
        return None

    def _seek(self, key: KeyPacket) -> bool:
        """Seek so that decoding starts at this key packet. False: the container cannot seek to it."""
        time_base = self._file.stream.time_base
        assert time_base is not None
        for timestamp in (key.pts, key.dts, key.dts - round(2 / time_base)):
            self._decoder = iter(())  # ends the read in progress before a new one sets its timeout
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
                    break  # landed too late: reference frames would be missing
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
        """Yield (number, frame). Packets that cannot be decoded are skipped: their frames are missing.

        Args:
            key: the first packet. If its picture is no key frame after all, seeking is disabled for this video.
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
        """Convert to RGB [H, W, 3], rotated for display, at the first frame's size."""
        if "_geometry" not in self.__dict__:
            self._geometry = self._geometry_of(frame)
        return to_rgb(frame, self._geometry, self._reformatter)


def indices_played_at(
    seconds: Sequence[float], times_seconds: npt.NDArray[np.float64], duration_seconds: float, name: str
) -> list[int]:
    """Which frame is shown at each of ``seconds``; before the first frame, where players show nothing, it is that.

    Args:
        times_seconds: when each frame is shown.
        name: the video's, for messages.

    Raises:
        OptionError: a time is negative or after the video's end.
    """
    for time in seconds:
        if not 0 <= time <= duration_seconds:
            raise OptionError(f"{name} shows nothing at {time} s; it lasts from 0 to {duration_seconds:.6g} s")
    # Tolerance of 1 us: 0.1 s as a float must find the frame that appears at 0.1 s.
    indices = np.searchsorted(times_seconds, np.asarray(seconds, np.float64) + 1e-6, side="right") - 1
    found: list[int] = np.maximum(indices, 0).tolist()
    return found


# --- from a decoded frame to RGB ---------------------------------------------------------------------------------


class Geometry(NamedTuple):
    """Size and rotation of the frames that a video returns."""

    width: int
    """As stored, in pixels."""
    height: int
    """As stored, in pixels."""
    quarter_turns: int
    """Counterclockwise rotation for display, in quarter turns."""

    @classmethod
    def of(cls, frame: av.VideoFrame, stored: tuple[int, int]) -> Self:
        """The geometry of a first frame; ``stored`` is the header's (width, height), zero if unknown."""
        width, height = stored if all(stored) else (frame.width, frame.height)
        return cls(width, height, round(frame.rotation / 90) % 4)


def to_rgb(frame: av.VideoFrame, geometry: Geometry, reformatter: VideoReformatter) -> npt.NDArray[np.uint8]:
    """Convert a decoded frame to RGB [H, W, 3], rotated for display; alpha is composited on black."""
    has_alpha = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    form = "rgba" if has_alpha else "rgb24"
    converted = reformatter.reformat(frame, geometry.width, geometry.height, form, threads=1)
    pixels = _view_pixels(converted, 4 if has_alpha else 3)
    if has_alpha:
        shown = np.empty((*pixels.shape[:2], 3), np.uint8)
        for row in range(0, len(pixels), _ROWS_AT_ONCE):  # a whole 8K frame at 16 bits per color would take 200 MB
            rows = pixels[row : row + _ROWS_AT_ONCE]
            weighted = rows[..., :3].astype(np.uint16) * rows[..., 3:]
            shown[row : row + _ROWS_AT_ONCE] = (weighted + 127) // 255
        pixels = shown
    return np.rot90(pixels, geometry.quarter_turns)


def _view_pixels(frame: av.VideoFrame, channels: int) -> npt.NDArray[np.uint8]:
    """View a packed frame's pixels as [H, W, channels]; the array keeps the memory alive."""
    (plane,) = frame.planes
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    pixels: npt.NDArray[np.uint8] = rows[:, : plane.width * channels].reshape(plane.height, plane.width, channels)
    return pixels
