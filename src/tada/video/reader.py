"""Exact access to the frames of a video file; the one place where media is opened.

``open_video`` takes a regular file on this machine, never an address, and lets FFmpeg use only the formats of
films: a play list or a list of other files, which could make it read elsewhere, is refused whatever its name.

A frame is addressed by its number in the order of presentation. The numbers come from the packets themselves
(a header may promise frames that are not there), and a seek is trusted only where it lands on the very packet
that was sought. See ``Video`` for what happens to unusual frames, ``open_video`` for what is refused.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import warnings
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Any, NamedTuple, Self

import av
import av.container
import av.error
import av.packet
import av.stream
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from tada.errors import (
    CorruptVideoError,
    DecodeTimeoutError,
    EmptyFileError,
    NotARegularFileError,
    NotAVideoError,
    NoVideoStreamError,
    OptionError,
    TooLargeError,
    TruncatedVideoError,
    UnsupportedCodecError,
    VideoError,
    VideoNotFoundError,
)

MAX_PIXELS = 7680 * 4320
"""Largest frame that is decoded unless the caller allows more: 8K."""
MAX_FRAMES = 2_000_000
"""Longest video that is opened unless the caller allows more: 18 hours at 30 frames a second."""

# The control that keeps play lists out: "file" as the only protocol would still let them read other files.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,gif,ivf,h264,hevc,mpegvideo,m4v,mp3,wav,flac"
_CONTAINER_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS, "max_streams": "100"}
_BEGINNINGS = re.compile(rb"....ftyp|....moov|\x1a\x45\xdf\xa3|RIFF....AVI |FLV\x01|\x30\x26\xb2\x75", re.DOTALL)
# These say how long they are, so that an early end shows; MPEG-TS, GIF and raw streams do not.
_SAY_HOW_LONG = {"mov", "matroska", "avi", "flv"}
_ONE_SCALER_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
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
    num_frames: int
    """Frames that are shown: hidden reference frames and those that an edit list cuts off do not count."""
    duration_seconds: float
    """From the start of the first frame to the end of the last."""
    codec: str
    """FFmpeg's name of it: ``h264``, ``vp9``."""
    rotation_degrees: int
    """By how much players turn the stored frame clockwise: 0, 90, 180 or 270. Frames come already turned."""


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Find out what the file holds. Errors are those of ``open_video``."""
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
        VideoError: one of its subclasses, by what is wrong.
    """
    name = os.fspath(path)
    _check_regular_file(name)
    limits = _Limits(max_pixels, max_frames, timeout_seconds, allow_damaged)
    return Video(name, limits)


@dataclass(frozen=True, slots=True)
class _Limits:
    max_pixels: int
    max_frames: int
    timeout_seconds: float
    allow_damaged: bool


def _check_regular_file(path: str) -> None:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as fault:  # ValueError: a zero byte in the name
        why = fault.strerror if isinstance(fault, OSError) else str(fault)
        raise VideoNotFoundError(f"{path!r}: no such video ({why}); check the path", path) from fault
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise NotARegularFileError(f"{path!r} is {kind}; only regular files are opened as videos", path)
    if status.st_size == 0:
        raise EmptyFileError(f"{path!r} is empty (0 bytes); copy or download it again", path)
    if not os.access(path, os.R_OK):
        raise VideoNotFoundError(f"{path!r} may not be read; give this user the right to read it", path)


def _opening_fault(fault: Exception, path: str, timeout_seconds: float) -> VideoError:
    """The typed form of what FFmpeg says when it cannot open ``path``."""
    if isinstance(fault, (av.error.ExitError, TimeoutError)):
        return _timeout(path, timeout_seconds)
    if isinstance(fault, MemoryError):
        return TooLargeError(f"{path!r}: opening takes too much memory, or it has more than 100 streams", path)
    if isinstance(fault, OSError) and fault.errno not in (errno.EINVAL, None):
        return VideoNotFoundError(f"{path!r} cannot be opened ({fault.strerror}); check path and rights", path)
    with open(path, "rb") as file:
        beginning = file.read(16)
    if isinstance(fault, av.error.InvalidDataError) and _BEGINNINGS.match(beginning):
        return TruncatedVideoError(
            f"{path!r}: begins as a video, but its index is missing or damaged, so that 0 frames can be read; "
            "the file is most likely cut off: copy or download it again",
            path,
        )
    return NotAVideoError(
        f"{path!r} is not a video in a format that is opened (such as MP4, WebM, MKV, AVI, MPEG-TS); "
        "if players show it, convert it to MP4",
        path,
    )


def _timeout(path: str, timeout_seconds: float) -> VideoError:
    return DecodeTimeoutError(
        f"{path!r}: reading took longer than timeout_seconds={timeout_seconds:g}; is its disk slow or away? "
        "Copy it to a local disk or allow more time",
        path,
    )


def _codec_mark(path: str) -> str:
    """What an MP4 or MKV itself calls its codec, for the message that no decoder knows it."""
    with open(path, "rb") as file:
        beginning = file.read(1 << 16)
        file.seek(max(os.path.getsize(path) - (1 << 16), 0))
        found = re.search(rb"stsd.{12}([ -~]{4})|(V_[A-Z0-9/_.]+)", beginning + file.read(), re.DOTALL)
    return repr((found[1] or found[2]).decode()) if found else "(it has no name)"


class _Scan:
    """The packets of a video stream, in the order of the file."""

    def __init__(self) -> None:
        self.pts, self.dts, self.duration = array("q"), array("q"), array("q")
        self.is_key, self.is_shown = bytearray(), bytearray()
        self.timed = True
        """Every packet says when its frame appears, and the decoding times never go back."""
        self.breaks_off = False
        """The file ends before it should."""
        self._last_dts: int | None = None

    def add(self, packet: av.packet.Packet[Any], *, is_shown: bool) -> None:
        if packet.pts is None or (
            packet.dts is not None and self._last_dts is not None and packet.dts < self._last_dts
        ):
            self.timed = False
        self._last_dts = packet.dts
        pts = packet.pts or 0
        self.pts.append(pts)
        self.dts.append(pts if packet.dts is None else packet.dts)
        self.duration.append(packet.duration or 0)
        self.is_key.append(packet.is_keyframe)
        self.is_shown.append(is_shown)

    def forget_last(self) -> None:
        for column in (self.pts, self.dts, self.duration, self.is_key, self.is_shown):
            column.pop()


class _KeyPacket(NamedTuple):
    """A packet from which decoding can start."""

    frame: int  # its index
    pts: int
    dts: int


class Video:
    """An open video. Made by ``open_video``; not to be shared with a forked process.

    Frames are RGB, uint8, turned as players show them. Pixels stay as stored where these are not square, and
    interlaced frames stay interlaced. Alpha is composited on black. High dynamic range is cut to 8 bits without
    tone mapping, with a warning. If the size changes within the video, all frames are brought to the first
    one's. Of several video streams the first counts; pictures of sleeves are none. Frames before the first key
    frame cannot be decoded and do not count.

    Where the file gives no usable times (raw H.264, H.264 in AVI, times that jump back), opening decodes it
    once to count the frames, they are taken to be evenly spaced, and each jump backward decodes from the start.
    """

    def __init__(self, path: str, limits: _Limits) -> None:
        self._path, self._limits, self._pid = path, limits, os.getpid()
        self._container: av.container.InputContainer | None = None
        self._decoder: Iterator[tuple[int, av.VideoFrame]] = iter(())
        self._position = -1  # the frame that was decoded last
        self.corrupt_frames: set[int] = set()
        """Numbers of the frames handed out that decode with errors; only ``allow_damaged`` hands out any."""
        try:
            self._connect()
            self._set_up()
        except BaseException:
            self.close()
            raise

    # --- opening ----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Open the container, and choose and prepare the stream. Nothing is decoded yet."""
        if self._container is not None:
            self._container.close()
        seconds = self._limits.timeout_seconds
        try:
            self._container = av.open(
                "file:" + os.path.abspath(self._path),
                mode="r",
                container_options=_CONTAINER_OPTIONS,
                metadata_errors="replace",
                timeout=(seconds, seconds),
            )
        except (av.error.FFmpegError, OSError, MemoryError) as fault:
            raise _opening_fault(fault, self._path, seconds) from fault
        cover = av.stream.Disposition.attached_pic
        films = [stream for stream in self._container.streams.video if not stream.disposition & cover]
        if not films:
            raise NoVideoStreamError(f"{self._path!r} holds no video, only sound or pictures of a sleeve", self._path)
        self._stream = films[0]
        if self._stream.codec_context is None:
            raise UnsupportedCodecError(
                f"{self._path!r}: no decoder for its codec {_codec_mark(self._path)}; convert it to H.264", self._path
            )
        self._context = self._stream.codec_context
        self._context.thread_type, self._context.thread_count = "NONE", 1
        self._context.options = {"max_pixels": str(self._limits.max_pixels)}
        self._check_size(self._context.width, self._context.height)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._limits.max_pixels:
            raise TooLargeError(
                f"{self._path!r}: its frames of {width}x{height} exceed max_pixels={self._limits.max_pixels}; "
                "resize the video or allow more",
                self._path,
            )

    def _set_up(self) -> None:
        scan = self._scan()
        if scan.timed and not self._index_frames(scan):
            scan.timed = False
        self._timed = scan.timed
        if not scan.timed:
            self._count_frames()
        if scan.breaks_off and not self._limits.allow_damaged:
            raise self._broken_off(self._num_frames)
        if not (self._timed and self._seek(self._keys[0])):
            self._restart()
        first = next(self._decoder, None)
        if first is None:
            raise self._broken_off(0)
        self._decoder = chain([first], self._decoder)  # not decoded twice by one who reads on from here
        self._describe(scan, first[1])

    def _scan(self) -> _Scan:
        """Read every packet of the file, decoding none."""
        assert self._container is not None
        scan = _Scan()
        kind, codec = self._container.format.name.split(",")[0], self._context.codec.canonical_name
        # Seconds from the first of all packets; before 0 lie only those with which sound starts its coder.
        begins, ends, last_is_cut, last_is_ours = 0.0, 0.0, False, False
        for packet in self._read(*self._container.streams):
            if packet.pts is not None:
                time_base = packet.time_base.numerator / packet.time_base.denominator
                begins = min(begins, packet.pts * time_base)
                ends = max(ends, (packet.pts + (packet.duration or 0)) * time_base)
            last_is_cut, last_is_ours = packet.is_corrupt, packet.stream_index == self._stream.index
            if not last_is_ours:
                continue
            # A VP8 packet may hold a frame that others refer to but that is not shown: bit 4 of its first byte.
            is_hidden = packet.is_discard or (codec == "vp8" and not memoryview(packet)[0] >> 4 & 1)
            scan.add(packet, is_shown=not is_hidden)
            if len(scan.pts) > self._limits.max_frames:
                raise TooLargeError(
                    f"{self._path!r} has more than max_frames={self._limits.max_frames} frames; cut it into parts",
                    self._path,
                )
        if kind in _SAY_HOW_LONG:
            promised_seconds = (self._container.duration or 0) / 1e6
            rate = float(self._stream.average_rate or 10)
            scan.breaks_off = last_is_cut or ends - begins < promised_seconds - max(0.1, 3 / rate)
            if last_is_cut and last_is_ours:
                scan.forget_last()
        # AVI holds no presentation times, and FFmpeg makes them up in the order of decoding for these two.
        if kind == "avi" and codec in ("h264", "hevc"):
            scan.timed = False
        return scan

    def _index_frames(self, scan: _Scan) -> bool:
        """Number the frames by their times, and find where decoding can start. False: the times collide."""
        if not scan.pts:
            raise self._broken_off(0)
        packets = [i for i, is_key in enumerate(scan.is_key) if is_key] or [0]
        pts, is_shown = np.asarray(scan.pts), np.frombuffer(scan.is_shown, np.bool_)
        shown = np.flatnonzero(is_shown & (pts >= pts[packets[0]]))
        shown = shown[np.argsort(pts[shown])]
        times = pts[shown]
        self._pts = array("q", times.tobytes())
        self._num_frames = len(times)
        # A hidden key frame, before the place where an edit list begins, stands for the first frame after it.
        self._keys = [_KeyPacket(int(np.searchsorted(times, scan.pts[i])), scan.pts[i], scan.dts[i]) for i in packets]
        self._last_ticks = scan.duration[shown[-1]] if len(shown) else 0
        return len(shown) > 0 and bool(np.all(np.diff(times) > 0))

    def _count_frames(self) -> None:
        """Number the frames of a video without usable times: decode them all."""
        self._timed, self._num_frames, self._keys = False, 0, []
        self._restart()
        self._num_frames = sum(1 for _ in self._decoder)
        if self._num_frames == 0:
            raise self._broken_off(0)

    def _describe(self, scan: _Scan, first: av.VideoFrame) -> None:
        """Set ``info`` and ``times_seconds``."""
        self._size = first.width, first.height
        self._check_size(*self._size)
        self._quarter_turns = round(first.rotation / 90) % 4  # counterclockwise
        self._reformatter = VideoReformatter()
        if self._context.color_trc in _HDR_TRANSFERS:
            warnings.warn(
                f"a video is HDR ({_HDR_TRANSFERS[self._context.color_trc]}): its frames are cut to 8 bits without "
                "tone mapping and look flat; convert it to SDR if that matters",
                stacklevel=5,
            )
        if self._timed:
            time_base = self._stream.time_base
            assert time_base is not None
            ticks = np.asarray(self._pts) - self._pts[0]
            self.times_seconds = ticks * time_base.numerator / time_base.denominator
            declared = float(self._stream.average_rate or 0)
            last = self._last_ticks * float(time_base) or 1 / (declared or 25.0)
            duration = float(self.times_seconds[-1]) + last
            # Headers round, or count frames that are not shown: one is believed if it is right within a frame.
            is_right = declared > 0 and abs(declared * duration - self._num_frames) <= 1
            fps = declared if is_right else self._num_frames / duration
        else:
            fps = float(self._stream.guessed_rate or self._stream.average_rate or 25)
            self.times_seconds = np.arange(self._num_frames) / fps
            duration = self._num_frames / fps
        self.times_seconds.flags.writeable = False
        width, height = self._size if self._quarter_turns % 2 == 0 else self._size[::-1]
        self.info = VideoInfo(
            path=self._path,
            width=width,
            height=height,
            fps=fps,
            num_frames=self._num_frames,
            duration_seconds=duration,
            codec=self._context.codec.canonical_name,
            rotation_degrees=-90 * self._quarter_turns % 360,
        )

    def _broken_off(self, num_frames: int) -> TruncatedVideoError:
        promised = self._stream.frames
        count = f"{num_frames} of {promised} frames" if promised > num_frames else f"{num_frames} frames"
        remedy = "copy or download it again" + (", or pass allow_damaged=True to use them" if num_frames else "")
        return TruncatedVideoError(f"{self._path!r} breaks off: {count} can be read; {remedy}", self._path)

    # --- frames -----------------------------------------------------------------------------------------------

    def frames(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Decode the frames numbered ``indices``, in any order, repeats allowed; each is decoded once.

        Returns:
            [len(indices), H, W, 3], RGB.

        Raises:
            CorruptVideoError: one of them decodes with errors or not at all.
            TruncatedVideoError: nothing decodes from one of them to the end.
            IndexError: a number is outside of [0, num_frames).
        """
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            if not 0 <= index < self._num_frames:
                raise IndexError(f"{self._path!r} has no frame {index}; its frames are 0 to {self._num_frames - 1}")
            places.setdefault(int(index), []).append(place)
        out = np.empty((len(indices), self.info.height, self.info.width, 3), np.uint8)
        for index in sorted(places):
            out[places[index]] = self._to_rgb(self._frame(index))
        return out

    def frames_at(self, seconds: Sequence[float]) -> npt.NDArray[np.uint8]:
        """Decode the frame shown at each of ``seconds``, counted from the first frame's appearance.

        Raises:
            OptionError: a time is negative or after the video's end; else as ``frames``.
        """
        for time in seconds:
            if not 0 <= time <= self.info.duration_seconds:
                raise OptionError(
                    f"{self._path!r} shows nothing at {time} s; it lasts from 0 to {self.info.duration_seconds:.6g} s"
                )
        # A microsecond's grace: 0.1 s as a float must not fall short of a frame that appears at 0.1 s.
        indices = np.searchsorted(self.times_seconds, np.asarray(seconds, np.float64) + 1e-6, side="right") - 1
        return self.frames(indices.tolist())

    def __iter__(self) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
        """Every frame in turn, each decoded once: (seconds, [H, W, 3])."""
        for index in range(self._num_frames):
            yield float(self.times_seconds[index]), self._to_rgb(self._frame(index))

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Video({self.info})" if hasattr(self, "info") else f"Video({self._path!r})"

    # --- decoding ---------------------------------------------------------------------------------------------

    def _frame(self, index: int) -> av.VideoFrame:
        """Decode one frame: onward from where the decoder is, or from a key frame, at worst from the start."""
        if os.getpid() != self._pid:
            raise RuntimeError(f"{self._path!r} was opened before a fork; open it in the process that reads it")
        if self._container is None:
            raise RuntimeError(f"{self._path!r} is closed")
        for _ in self._starts(index):
            frame = self._advance(index)
            if frame is not None and frame.is_corrupt and self._limits.allow_damaged:
                self.corrupt_frames.add(index)
                return frame
            if frame is not None and not frame.is_corrupt:
                return frame
        if self._position < index:  # the last try went from the start to the end without meeting it
            raise self._broken_off(self._position + 1)
        raise CorruptVideoError(
            f"{self._path!r}: frame {index} of {self._num_frames} decodes with errors; copy or download the video "
            "again, or leave it out; allow_damaged=True takes frames as the decoder mends them",
            self._path,
        )

    def _starts(self, index: int) -> Iterator[None]:
        """Bring the decoder before frame ``index``, in the cheapest way first; each further one is a safer try."""
        last_key = bisect_right(self._keys, index, key=lambda key: key.frame) - 1
        if self._position < index and (last_key < 0 or self._keys[last_key].frame <= self._position + _SEEK_SAVES):
            yield
        for back in (0, 1, 4):
            if last_key - back >= 0 and self._seek(self._keys[last_key - back]):
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

    def _seek(self, key: _KeyPacket) -> bool:
        """Let decoding begin with this very packet. False: the container does not lead there."""
        assert self._container is not None
        assert self._stream.time_base is not None
        two_seconds = round(2 / self._stream.time_base)
        for timestamp in (key.pts, key.dts, key.dts - two_seconds):
            self._decoder = iter(())  # ends the reading in progress, before a new one sets its timeout
            try:
                self._container.seek(timestamp, stream=self._stream)
            except av.error.FFmpegError:
                return False
            packets = self._read(self._stream)
            for packet in packets:
                if packet.pts == key.pts:
                    self._decoder = self._decode(chain([packet], packets))
                    self._position = key.frame - 1
                    return True
                if packet.dts is not None and packet.dts > key.dts:
                    break  # landed too late: its frames would lack the ones they refer to
            del packets
        return False

    def _restart(self) -> None:
        """Open the file anew and decode from its beginning."""
        self._decoder = iter(())
        self._connect()
        self._decoder = self._decode(self._read(self._stream))
        self._position = -1

    def _read(self, *streams: av.stream.Stream) -> Iterator[av.packet.Packet[Any]]:
        """Packets to the end of the file; where it cannot be read further, that is its end."""
        assert self._container is not None
        packets = self._container.demux(*streams)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.ExitError, TimeoutError) as fault:
                raise _timeout(self._path, self._limits.timeout_seconds) from fault
            except av.error.FFmpegError:
                return
            if packet is None:
                return
            if packet.size:  # those without a byte would end the decoding
                yield packet

    def _decode(self, packets: Iterator[av.packet.Packet[Any]]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames with their numbers. Packets that cannot be decoded are passed over: their frames are missing."""
        count = 0
        for packet in chain(packets, [None]):
            try:
                frames = self._context.decode(packet)
            except av.error.FFmpegError:
                continue
            for frame in frames:
                if not self._timed:
                    yield count, frame
                    count += 1
                elif frame.pts is not None:
                    index = bisect_left(self._pts, frame.pts)
                    if index < self._num_frames and self._pts[index] == frame.pts:
                        yield index, frame

    def _to_rgb(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        """[H, W, 3], turned and of the first frame's size."""
        width, height = self._size
        has_alpha = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
        pixels = self._reformatter.reformat(
            frame, width, height, "rgba" if has_alpha else "rgb24", **_ONE_SCALER_THREAD
        ).to_ndarray()
        if has_alpha:
            weighted = pixels[..., :3].astype(np.uint16) * pixels[..., 3:]
            pixels = ((weighted + 127) // 255).astype(np.uint8)
        return np.rot90(pixels, self._quarter_turns)
