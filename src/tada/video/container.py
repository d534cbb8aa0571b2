"""Open a media file safely; all video files are opened here.

Only a regular file on this machine, or a part of a shard (``tada.video.shards``), is opened, never a URL, and FFmpeg
may use only video formats: a playlist, which could make it read other files, is refused whatever its name. FFmpeg's
errors on opening become ours (``tada.errors``).

Pipes, growing files and cameras are opened only where the caller passes ``live``.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import av.error
import av.packet
import av.stream
import numpy as np

from tada.errors import (
    DecodeTimeoutError,
    EmptyFileError,
    NotARegularFileError,
    NotAVideoError,
    NoVideoStreamError,
    TooLargeError,
    TruncatedVideoError,
    UnsupportedCodecError,
    VideoError,
    VideoNotFoundError,
    counted,
    why_unread,
)
from tada.video.boxes import check_samples
from tada.video.live import LiveBytes
from tada.video.pictures import Meaning, Pictures, pictures_of
from tada.video.shards import ffmpeg_source, member_of, open_bytes, size_in_bytes

# This list keeps playlists out: with "file" as the only protocol they could still name other files.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,gif,ivf,h264,hevc,mpegvideo,m4v,mp3,wav,flac"
_CAMERA_FORMAT = "video4linux2"
_MAX_STREAMS = 100
_BEGINNINGS = re.compile(rb"....(ftyp|moov)|\x1a\x45\xdf\xa3|RIFF....AVI |FLV\x01|\x30\x26\xb2\x75|G.{187}G", re.DOTALL)
# These formats store when packets are decoded (DTS), not when pictures are shown (PTS): FFmpeg guesses the PTS.
_WITHOUT_PTS = {"avi", "asf"}
# These formats store no times at all.
_WITHOUT_TIMES = {"h264", "hevc", "mpegvideo", "m4v"}
_SIZE_IN_HEADER = {"mov", "matroska", "avi"}
# These formats store their duration, so that truncation can be detected; MPEG-TS, GIF and raw streams do not.
_WITH_DURATION = {"mov", "matroska", "avi", "flv"}
_MARKED_BYTES = 1024
MAX_ASPECT = 50
"""Largest ratio of a frame's long side to its short side that is opened."""
_WEIGHTS = {"jpeg2000": 2}  # its decoder takes twice the memory per pixel
MAX_KEPT_PIXELS = 696_320 * 256
"""Most pixels of all reference pictures of an H.264 decoder together, as its highest level, 6.2, allows."""
_MAX_REFERENCES = 16  # reference pictures in H.264
_LARGE_PIXELS = MAX_KEPT_PIXELS // _MAX_REFERENCES * 9 // 10  # 9/10, since blocks of 16x16 may extend beyond the edges
_LATEST_SECONDS = 1e6  # largest delay of the first picture after the sound: eleven days


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits on the size of one file and on the time to read it."""

    max_pixels: int
    """Largest frame, width times height."""
    max_frames: int
    """Most packets of the video stream."""
    timeout_seconds: float
    """Longest time for opening, and for each single read."""


class MediaFile:
    """An open container and its first video stream that is not cover art.

    Args:
        live: a stream of bytes to read instead of the file at ``path``; or "camera", where ``path`` is one.

    Raises:
        VideoError: one of its subclasses, by the kind of fault.
    """

    def __init__(self, path: str, limits: Limits, *, live: LiveBytes | Literal["camera"] | None = None) -> None:
        self.path, self.limits = path, limits
        timeout: tuple[float, float] | None = (limits.timeout_seconds, limits.timeout_seconds)
        source: str | LiveBytes
        if live is None:
            _check_regular_file(path)
            check_samples(path)
            (source, protocol), form, formats = ffmpeg_source(path), None, _FORMATS
        elif live == "camera":
            source, form, formats, protocol = path, _CAMERA_FORMAT, _CAMERA_FORMAT, "none"
        else:  # LiveBytes has its own timeout; its content must not make FFmpeg open files
            source, form, formats, protocol, timeout = live, None, _FORMATS, "none", None
        pixels = {"max_pixels": str(limits.max_pixels)}
        try:
            self.container = av.open(
                source,
                mode="r",
                format=form,
                options=pixels,  # else FFmpeg would decode a frame of any size to find the parameters
                container_options={
                    "protocol_whitelist": protocol,
                    "format_whitelist": formats,
                    "max_streams": str(_MAX_STREAMS),
                },
                metadata_errors="replace",
                timeout=timeout,
            )
        except (av.error.FFmpegError, OSError, MemoryError) as fault:
            raise (
                _make_opening_error(fault, path, limits) if live is None else _make_live_error(fault, path, live)
            ) from fault
        try:
            self.kind = self.container.format.name.split(",")[0]
            # Whether the file stores when pictures are shown (PTS).
            self.has_pts = self.kind not in _WITHOUT_PTS | _WITHOUT_TIMES
            cover = av.stream.Disposition.attached_pic
            videos = [stream for stream in self.container.streams.video if not stream.disposition & cover]
            if not videos:
                raise NoVideoStreamError(f"{path!r} holds no video, only sound or cover art", path)
            self.stream = videos[0]
            if self.stream.codec_context is None:
                mark = _read_codec_mark(path) if live is None else "(unknown)"
                raise UnsupportedCodecError(f"{path!r}: no decoder for its codec {mark}; convert it to H.264", path)
            self.context = self.stream.codec_context
            self.codec: str = self.context.codec.canonical_name
            self.context.thread_type, self.context.thread_count = "NONE", 1
            self._check_size()
            # If the header declares small frames, later ones must stay small enough for 16 references to fit in memory.
            self.are_large = self.context.width * self.context.height > _LARGE_PIXELS
            most = limits.max_pixels if self.are_large else min(limits.max_pixels, MAX_KEPT_PIXELS // _MAX_REFERENCES)
            self.context.options = {"max_pixels": str(most // _WEIGHTS.get(self.codec, 1))}
        except BaseException:
            self.close()
            raise

    def _check_size(self) -> None:
        width, height = self.context.width, self.context.height
        weight = _WEIGHTS.get(self.codec, 1)
        # FFmpeg sets the size to 0 if the one in the header exceeds max_pixels.
        is_too_large = self.kind in _SIZE_IN_HEADER if width == 0 else width * height * weight > self.limits.max_pixels
        if is_too_large:
            size = f"of {width}x{height} " if width else ""
            how = f", by which those of {self.codec} count {weight} times" if weight > 1 else ""
            raise TooLargeError(
                f"{self.path!r}: its frames {size}exceed max_pixels={self.limits.max_pixels}{how}; resize the video or "
                "allow more",
                self.path,
            )
        if width:
            self.check_shape(width, height)

    def check_shape(self, width: int, height: int) -> None:
        """Refuse frames that are strips: resizing their short side to a fixed length would make them huge.

        Raises:
            TooLargeError: the long side is more than ``MAX_ASPECT`` times the short one.
        """
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise TooLargeError(
                f"{self.path!r}: its frames of {width}x{height} are strips, more than {MAX_ASPECT} times as long as "
                "wide; cut them",
                self.path,
            )

    def close(self) -> None:
        """Close the file and free its decoder, whose reference frames take hundreds of megabytes at 8K.

        May be called twice.
        """
        if "container" in vars(self):
            self.container.close()
        for name in ("container", "stream", "context"):
            vars(self).pop(name, None)

    def packets(self, *streams: av.stream.Stream) -> Iterator[av.packet.Packet[Any]]:
        """Read the next packets. A read error counts as the end of the file.

        Args:
            streams: whose packets to read; by default the video's.
        """
        packets = self.container.demux(*(streams or [self.stream]))
        while True:
            try:
                packet = next(packets, None)
            except (av.error.ExitError, TimeoutError) as fault:
                raise _make_timeout_error(self.path, self.limits) from fault
            except (av.error.FFmpegError, IndexError):  # IndexError: at the end, if a stream appeared while reading
                return
            if packet is None:
                return
            if packet.size:  # an empty packet would end the decoding
                yield packet

    @property
    def start(self) -> Fraction:
        """The container's start, from which players and ``ffmpeg -ss`` count, in seconds of the file's own clock.

        It is the start of the track that begins first, which may be the sound. An audio encoder's priming samples
        before it do not count.
        """
        start = self.container.start_time
        if start is None:
            return Fraction(0)
        # FFmpeg rounds it to microseconds; the exact value is the start of one of the streams.
        starts = [
            s.start_time * s.time_base for s in self.container.streams if s.start_time is not None and s.time_base
        ]
        exact = min(starts, key=lambda seconds: abs(seconds * 1_000_000 - start), default=Fraction(start, 1_000_000))
        return exact if abs(exact * 1_000_000 - start) <= 1 else Fraction(start, 1_000_000)

    def seconds_late(self, first_ticks: int) -> float:
        """How long after the container's start the first picture appears, in seconds; 0 or more.

        Args:
            first_ticks: when the first picture appears, in units of the stream's time base.
        """
        unit = self.stream.time_base
        if unit is None or self.container.start_time is None:
            return 0.0
        late = float(first_ticks * unit - self.start)
        # In ASF the start may lie after the first picture, and in a damaged file anywhere.
        return late if 0 < late < _LATEST_SECONDS else 0.0

    def scan(self) -> Packets:
        """Read every packet of the file without decoding.

        Raises:
            TooLargeError: the video has more packets than ``max_frames``, or its reference pictures exceed
                ``MAX_KEPT_PIXELS``.
        """
        scan, ours = Packets(), self.stream.index
        pictures = pictures_of(
            self.codec, self.context.extradata, may_have_b=self.context.has_b_frames, are_large=self.are_large
        )
        begins, ends = [0] * len(self.container.streams), [0] * len(self.container.streams)
        is_cut, stream = False, -1
        for packet in self.packets(*self.container.streams):
            stream, pts, duration = packet.stream_index, packet.pts, packet.duration or 0
            is_cut = packet.is_corrupt
            if pts is not None:
                begins[stream] = min(begins[stream], pts)
                ends[stream] = max(ends[stream], pts + duration)
            if stream != ours:
                continue
            content = memoryview(packet)
            meaning = pictures(content)
            if pictures.kept_pixels > MAX_KEPT_PIXELS:
                kept, allowed = (pixels / 1e6 for pixels in (pictures.kept_pixels, MAX_KEPT_PIXELS))
                raise TooLargeError(
                    f"{self.path!r} makes a decoder keep frames with {kept:.0f} million pixels, and H.264 allows "
                    f"{allowed:.0f} million; resize or convert it",
                    self.path,
                )
            if meaning is Meaning.SECOND_FIELD:
                scan.has_fields = True
                continue
            if meaning is Meaning.UNCLEAR:
                scan.is_timed = False
            is_shown = not (packet.is_discard or meaning is Meaning.HIDDEN)
            scan.add(pts, packet.dts, duration, is_key=packet.is_keyframe, is_shown=is_shown, mark=mark_of(content))
            if len(scan.pts) > self.limits.max_frames:
                raise TooLargeError(
                    f"{self.path!r} has more than max_frames={self.limits.max_frames} frames; cut it into parts",
                    self.path,
                )
        if self.kind in _WITH_DURATION:
            scan.breaks_off = is_cut or self._ends_early(begins, ends) or self._lacks_fragment(2 * len(scan.pts))
            if is_cut and stream == ours:
                scan.forget_last()
        scan.is_timed = scan.is_timed and self._has_real_pts(scan, pictures)
        return scan

    def _has_real_pts(self, scan: Packets, pictures: Pictures) -> bool:
        """Whether PTS are real presentation times, and not guessed by FFmpeg in decoding order."""
        if self.kind in _WITHOUT_TIMES or (not self.has_pts and self.codec in ("h264", "hevc")):
            return False
        # With B-frames the two orders differ. FFmpeg's has_b_frames only says that there may be some.
        is_in_order = len(scan.pts) > 1 and bool(np.all(np.diff(scan.pts) > 0))
        return not (is_in_order and self.context.has_b_frames and pictures.has_b)

    def _ends_early(self, begins: list[int], ends: list[int]) -> bool:
        """Whether the packets end earlier than the header's duration, by more than three frames.

        Only the sound's priming packets lie before 0; the header's duration includes them. For AVI only the video is
        compared: the header also counts empty packets of sound, which mark a late start. An MKV does not store how long
        its last frame is shown, but it stores its number of bytes.
        """
        if self.kind == "matroska" and _is_whole_matroska(self.path):
            return False
        units = [float(stream.time_base or 0) for stream in self.container.streams]
        begin = min(ticks * unit for ticks, unit in zip(begins, units, strict=True))
        end = max(ticks * unit for ticks, unit in zip(ends, units, strict=True))
        promised_seconds = (self.container.duration or 0) / 1e6
        if self.kind == "avi" and self.stream.duration:
            ours = self.stream.index
            begin, end = begins[ours] * units[ours], ends[ours] * units[ours]
            promised_seconds = self.stream.duration * units[ours]
        return end - begin < promised_seconds - max(0.1, 3 / float(self.stream.average_rate or 10))

    def _lacks_fragment(self, max_fragment_boxes: int) -> bool:
        """Whether a fragmented MP4, which stores no duration, ends within a fragment (ISO 14496-12, 4.2, 8.8)."""
        if self.kind != "mov":
            return False
        size, place, is_fragmented, name = size_in_bytes(self.path), 0, False, b""
        with open_bytes(self.path) as file:
            for _ in range(max_fragment_boxes + 1000):  # a hostile file might have one every 8 bytes
                if place + 8 > size:
                    break
                file.seek(place)
                header = file.read(16)
                length, name = int.from_bytes(header[:4], "big"), header[4:8]
                if length == 1:
                    length = int.from_bytes(header[8:], "big")
                is_fragmented |= name == b"moof"
                if length < 8:  # 0: to the end of the file
                    return False
                place += length
        return is_fragmented and name in (b"moof", b"mdat") and place > size

    def breaks_off(self, num_frames: int) -> TruncatedVideoError:
        """Make the error for a file that ends, or becomes unreadable, after ``num_frames``."""
        promised = self.stream.frames
        count = f"{num_frames} of {promised} frames" if promised > num_frames else counted(num_frames, "frame")
        error = TruncatedVideoError(
            f"{self.path!r} breaks off: {count} can be read; copy or download it again", self.path
        )
        if num_frames:
            error.add_note("allow_damaged=True uses them")
        return error


class Packets:
    """The packets of a video stream, in file order, as one array per property."""

    def __init__(self) -> None:
        self.pts, self.dts, self.duration = array("q"), array("q"), array("q")
        self.mark = array("Q")
        """``mark_of`` each packet: identifies it after a seek, together with its times, which MPEG-PS changes."""
        self.is_key, self.is_shown = bytearray(), bytearray()
        self.is_timed = True
        """Every packet is a picture with a PTS, and the DTS never decrease."""
        self.are_due_in_turn = True
        """Every packet has a DTS, and these strictly increase."""
        self.has_fields = False
        """Some packets were left out, each being the second field of a picture."""
        self.breaks_off = False
        """The file ends before it should."""
        self._last_dts: int | None = None

    def add(self, pts: int | None, dts: int | None, duration: int, *, is_key: bool, is_shown: bool, mark: int) -> None:
        if pts is None or (dts is not None and self._last_dts is not None and dts < self._last_dts):
            self.is_timed = False
        self.are_due_in_turn &= dts is not None and (self._last_dts is None or dts > self._last_dts)
        self._last_dts = dts
        self.pts.append(pts or 0)
        self.dts.append((pts or 0) if dts is None else dts)
        self.duration.append(duration)
        self.is_key.append(is_key)
        self.is_shown.append(is_shown)
        self.mark.append(mark)

    def forget_last(self) -> None:
        for column in (self.pts, self.dts, self.duration, self.is_key, self.is_shown, self.mark):
            column.pop()


def mark_of(packet: memoryview) -> int:
    """A packet's fingerprint: its size and a checksum of its first bytes."""
    return len(packet) << 32 | zlib.crc32(packet[:_MARKED_BYTES])


# --- errors on opening --------------------------------------------------------------------------------------------


def _check_regular_file(path: str) -> None:
    if member_of(path) is not None:
        return  # a shard has no empty videos, pipes or folders
    try:
        status = os.stat(path)
    except (OSError, ValueError) as fault:  # ValueError: a zero byte in the name
        if isinstance(fault, OSError) and fault.errno in (errno.EACCES, errno.ELOOP):
            raise VideoNotFoundError(f"{path!r} cannot be read: {why_unread(fault)}", path) from fault
        why = fault.strerror if isinstance(fault, OSError) else str(fault)
        raise VideoNotFoundError(f"{path!r}: no such video ({why}); check the path", path) from fault
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise NotARegularFileError(f"{path!r} is {kind}; only regular files are opened as videos", path)
    if status.st_size == 0:
        raise EmptyFileError(f"{path!r} is empty (0 bytes); copy or download it again", path)
    if not os.access(path, os.R_OK):
        raise VideoNotFoundError(f"{path!r} cannot be read: no permission; give this user the right to read it", path)


def _make_opening_error(fault: Exception, path: str, limits: Limits) -> VideoError:
    """Turn FFmpeg's error on opening ``path`` into one of ours."""
    if isinstance(fault, (av.error.ExitError, TimeoutError)):
        return _make_timeout_error(path, limits)
    if isinstance(fault, MemoryError):  # FFmpeg also raises it for too many streams
        return TooLargeError(f"{path!r} has more than {_MAX_STREAMS} streams, or needs too much memory", path)
    try:
        with open_bytes(path) as file:
            beginning = file.read(200)
    except OSError as gone:  # it vanished since the check. FFmpeg also raises OSError for damaged files
        return VideoNotFoundError(f"{path!r} cannot be read: {why_unread(gone)}", path)
    # FFmpeg raises EINVAL if the format is not in the allowed list.
    if _BEGINNINGS.match(beginning) and getattr(fault, "errno", None) != errno.EINVAL:
        return TruncatedVideoError(
            f"{path!r} begins as a video, but 0 frames can be read: its end, or the index that belongs there, is "
            "missing or damaged; copy or download it again",
            path,
        )
    return NotAVideoError(
        f"{path!r} is not a video in a format that is opened (such as MP4, WebM, MKV, AVI, MPEG-TS); "
        "if players show it, convert it to MP4",
        path,
    )


def _make_live_error(fault: Exception, path: str, live: LiveBytes | Literal["camera"]) -> VideoError:
    """Turn FFmpeg's error on opening a camera or a live stream into one of ours."""
    if live == "camera":
        why = getattr(fault, "strerror", None) or str(fault)
        return VideoNotFoundError(f"{path!r}: the camera cannot be opened ({why}); does something else use it?", path)
    if not live.beginning and live.is_closed:
        return EmptyFileError(f"{path!r} ended without video: its writer wrote nothing; see what that says", path)
    if not live.beginning:
        return EmptyFileError(f"{path!r}: nothing came for {live.idle_seconds:g} s; start its writer first", path)
    remedy = (
        "what is still being written should be Matroska, MPEG-TS, or MP4 in fragments "
        "(ffmpeg: -movflags frag_keyframe+empty_moov)"
    )
    if _BEGINNINGS.match(live.beginning):
        return TruncatedVideoError(f"{path!r} begins as a video, but no frame of it can be read yet; {remedy}", path)
    return NotAVideoError(f"{path!r} is not a video in a format that is opened; {remedy}", path)


def _make_timeout_error(path: str, limits: Limits) -> VideoError:
    return DecodeTimeoutError(
        f"{path!r}: reading took longer than timeout_seconds={limits.timeout_seconds:g}; is its disk slow or away? "
        "Copy it to a local disk or allow more time",
        path,
    )


def _is_whole_matroska(path: str) -> bool:
    """Whether an MKV or WebM has all bytes that its header declares (RFC 8794, 4-6). False if it declares none."""
    with open_bytes(path) as file:
        place = 0
        for name in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # IDs of the EBML header and of the segment
            file.seek(place)
            content = file.read(12)
            num_bytes = 9 - content[4].bit_length() if len(content) > 4 else 9
            if content[:4] != name or len(content) < 4 + num_bytes:
                return False
            size = int.from_bytes(content[4 : 4 + num_bytes], "big") & ((1 << 7 * num_bytes) - 1)
            place += 4 + num_bytes + size
        return size != (1 << 7 * num_bytes) - 1 and place <= size_in_bytes(path)


def _read_codec_mark(path: str) -> str:
    """The codec's name stored in an MP4 or MKV, for the message that no decoder is known."""
    with open_bytes(path) as file:
        beginning = file.read(1 << 16)
        file.seek(max(size_in_bytes(path) - (1 << 16), 0))
        found = re.search(rb"stsd.{12}([ -~]{4})|(V_[A-Z0-9/_.]+)", beginning + file.read(), re.DOTALL)
    return repr((found[1] or found[2]).decode()) if found else "(it has no name)"
