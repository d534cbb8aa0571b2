"""Opening a media file safely: the one place where it is done.

Only a regular file on this machine is opened, never an address, and FFmpeg may use only the formats of videos:
a play list or a list of other files, which could make it read elsewhere, is refused whatever its name. What
FFmpeg says of a file it cannot open becomes one of the errors of ``tada.errors``.

Pipes, files that still grow and cameras are opened only for a caller who asks for what is live.
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

# The control that keeps play lists out: with "file" as the only protocol they could still name other files.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,gif,ivf,h264,hevc,mpegvideo,m4v,mp3,wav,flac"
_CAMERA_FORMAT = "video4linux2"
_MAX_STREAMS = 100
_BEGINNINGS = re.compile(rb"....(ftyp|moov)|\x1a\x45\xdf\xa3|RIFF....AVI |FLV\x01|\x30\x26\xb2\x75|G.{187}G", re.DOTALL)
# These say when packets are to be decoded, not when pictures are shown. FFmpeg makes that up.
_WITHOUT_PTS = {"avi", "asf"}
# And these say no times at all.
_WITHOUT_TIMES = {"h264", "hevc", "mpegvideo", "m4v"}
_SIZE_IN_HEADER = {"mov", "matroska", "avi"}
# These say how long they are, so that an early end shows; MPEG-TS, GIF and raw streams do not.
_SAY_HOW_LONG = {"mov", "matroska", "avi", "flv"}
_MARKED_BYTES = 1024
MAX_ASPECT = 50
"""Length of a frame by its width, or the other way round, that is opened."""
_WEIGHTS = {"jpeg2000": 2}  # whose decoder takes twice the memory for each pixel
MAX_KEPT_PIXELS = 696_320 * 256
"""Of pictures that an H.264 decoder has to keep since others refer to them; its highest level, 6.2, allows no more."""
_MAX_REFERENCES = 16  # to which pictures of H.264 may refer
_LARGE_PIXELS = MAX_KEPT_PIXELS // _MAX_REFERENCES * 9 // 10  # blocks of 16x16 may reach over the edges
_LATEST_SECONDS = 1e6  # that a picture may come after the sound: eleven days


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much one file may cost."""

    max_pixels: int
    """Largest frame, width times height."""
    max_frames: int
    """Most packets of the video stream."""
    timeout_seconds: float
    """For opening, and again for each read."""


class MediaFile:
    """An open container and its first video stream that is not cover art.

    Args:
        live: bytes that still come, which are read in place of the file at ``path``; or "camera": it is a camera.

    Raises:
        VideoError: one of its subclasses, by what is wrong.
    """

    def __init__(self, path: str, limits: Limits, *, live: LiveBytes | Literal["camera"] | None = None) -> None:
        self.path, self.limits = path, limits
        timeout: tuple[float, float] | None = (limits.timeout_seconds, limits.timeout_seconds)
        source: str | LiveBytes
        if live is None:
            _check_regular_file(path)
            check_samples(path)
            source, form, formats, protocol = "file:" + os.path.abspath(path), None, _FORMATS, "file"
        elif live == "camera":
            source, form, formats, protocol = path, _CAMERA_FORMAT, _CAMERA_FORMAT, "none"
        else:  # these know themselves when to give up; nothing that they hold may lead to a file
            source, form, formats, protocol, timeout = live, None, _FORMATS, "none", None
        pixels = {"max_pixels": str(limits.max_pixels)}
        try:
            self.container = av.open(
                source,
                mode="r",
                format=form,
                options=pixels,  # or FFmpeg would decode a frame, however large, to know the stream
                container_options={
                    "protocol_whitelist": protocol,
                    "format_whitelist": formats,
                    "max_streams": str(_MAX_STREAMS),
                },
                metadata_errors="replace",
                timeout=timeout,
            )
        except (av.error.FFmpegError, OSError, MemoryError) as fault:
            raise (_opening_fault(fault, path, limits) if live is None else _live_fault(fault, path, live)) from fault
        try:
            self.kind = self.container.format.name.split(",")[0]
            # The file says when pictures are shown.
            self.has_pts = self.kind not in _WITHOUT_PTS | _WITHOUT_TIMES
            cover = av.stream.Disposition.attached_pic
            videos = [stream for stream in self.container.streams.video if not stream.disposition & cover]
            if not videos:
                raise NoVideoStreamError(f"{path!r} holds no video, only sound or cover art", path)
            self.stream = videos[0]
            if self.stream.codec_context is None:
                mark = _codec_mark(path) if live is None else "(unknown)"
                raise UnsupportedCodecError(f"{path!r}: no decoder for its codec {mark}; convert it to H.264", path)
            self.context = self.stream.codec_context
            self.codec: str = self.context.codec.canonical_name
            self.context.thread_type, self.context.thread_count = "NONE", 1
            self._check_size()
            # Where a header says that frames are small, they may not become so large that the kept ones would be many.
            self.are_large = self.context.width * self.context.height > _LARGE_PIXELS
            most = limits.max_pixels if self.are_large else min(limits.max_pixels, MAX_KEPT_PIXELS // _MAX_REFERENCES)
            self.context.options = {"max_pixels": str(most // _WEIGHTS.get(self.codec, 1))}
        except BaseException:
            self.close()
            raise

    def _check_size(self) -> None:
        width, height = self.context.width, self.context.height
        weight = _WEIGHTS.get(self.codec, 1)
        # FFmpeg forgets a size that is in the header if it exceeds max_pixels.
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
        """See that frames are no strips, which would become huge where their short side is brought to some length.

        Raises:
            TooLargeError: they are.
        """
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise TooLargeError(
                f"{self.path!r}: its frames of {width}x{height} are strips, more than {MAX_ASPECT} times as long as "
                "wide; cut them",
                self.path,
            )

    def close(self) -> None:
        """Let go of the file, and of its decoder with the frames it keeps: at 8K, hundreds of megabytes.

        May be called twice.
        """
        if "container" in vars(self):
            self.container.close()
        for name in ("container", "stream", "context"):
            vars(self).pop(name, None)

    def packets(self, *streams: av.stream.Stream) -> Iterator[av.packet.Packet[Any]]:
        """Read on, packet by packet. Where the file cannot be read further, that is its end.

        Args:
            streams: of which packets; by default those of the video.
        """
        packets = self.container.demux(*(streams or [self.stream]))
        while True:
            try:
                packet = next(packets, None)
            except (av.error.ExitError, TimeoutError) as fault:
                raise _timeout(self.path, self.limits) from fault
            except (av.error.FFmpegError, IndexError):  # the latter at the end, where a stream has appeared meanwhile
                return
            if packet is None:
                return
            if packet.size:  # those without a byte would end the decoding
                yield packet

    @property
    def start(self) -> Fraction:
        """What players and ``ffmpeg -ss`` count from, in seconds of the file's own clock.

        It is the start of the track that begins first, which may be the sound. What a coder of sound writes before it,
        to start itself, does not count.
        """
        start = self.container.start_time
        if start is None:
            return Fraction(0)
        # It comes rounded to microseconds. Exactly it is the start of one of the streams.
        starts = [
            s.start_time * s.time_base for s in self.container.streams if s.start_time is not None and s.time_base
        ]
        exact = min(starts, key=lambda seconds: abs(seconds * 1_000_000 - start), default=Fraction(start, 1_000_000))
        return exact if abs(exact * 1_000_000 - start) <= 1 else Fraction(start, 1_000_000)

    def seconds_late(self, first_ticks: int) -> float:
        """How long after the container's start the first picture appears, in seconds; 0 or more.

        Args:
            first_ticks: when the first picture appears, in the stream's unit.
        """
        unit = self.stream.time_base
        if unit is None or self.container.start_time is None:
            return 0.0
        late = float(first_ticks * unit - self.start)
        # ASF may say a start that lies behind the first picture, and a damaged file any.
        return late if 0 < late < _LATEST_SECONDS else 0.0

    def scan(self) -> Packets:
        """Read every packet of the file, decoding none.

        Raises:
            TooLargeError: the video has more packets than ``max_frames``, or more is to be kept than any decoder keeps.
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
        if self.kind in _SAY_HOW_LONG:
            scan.breaks_off = is_cut or self._ends_early(begins, ends) or self._lacks_fragment(2 * len(scan.pts))
            if is_cut and stream == ours:
                scan.forget_last()
        scan.is_timed = scan.is_timed and self._says_when_shown(scan, pictures)
        return scan

    def _says_when_shown(self, scan: Packets, pictures: Pictures) -> bool:
        """Whether times are those at which pictures are shown, and not made up in the order of decoding."""
        if self.kind in _WITHOUT_TIMES or (not self.has_pts and self.codec in ("h264", "hevc")):
            return False
        # With B-frames the two orders differ. FFmpeg's word for these means no more than that there may be some.
        is_in_order = len(scan.pts) > 1 and bool(np.all(np.diff(scan.pts) > 0))
        return not (is_in_order and self.context.has_b_frames and pictures.has_b)

    def _ends_early(self, begins: list[int], ends: list[int]) -> bool:
        """Whether the packets last shorter than the header says, by more than three frames.

        Before 0 lie only packets with which sound starts its coder; the header's duration counts them. AVI is judged by
        its video alone: of its sound the header also counts packets of no bytes, such as stand for a late start. An MKV
        does not say how long its last frame stands, but how many bytes it has.
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
        """Whether an MP4 in fragments, which says nowhere how long it is, ends within one (ISO 14496-12, 4.2, 8.8)."""
        if self.kind != "mov":
            return False
        size, place, is_fragmented, name = os.path.getsize(self.path), 0, False, b""
        with open(self.path, "rb") as file:
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
        """The error that the file ends, or turns to noise, after ``num_frames``."""
        promised = self.stream.frames
        count = f"{num_frames} of {promised} frames" if promised > num_frames else counted(num_frames, "frame")
        remedy = "copy or download it again" + (", or pass allow_damaged=True to use them" if num_frames else "")
        return TruncatedVideoError(f"{self.path!r} breaks off: {count} can be read; {remedy}", self.path)


class Packets:
    """The packets of a video stream, in the order of the file: a column for each thing known of them."""

    def __init__(self) -> None:
        self.pts, self.dts, self.duration = array("q"), array("q"), array("q")
        self.mark = array("Q")
        """By what a packet is known again, beside its times: those of MPEG-PS differ after a seek."""
        self.is_key, self.is_shown = bytearray(), bytearray()
        self.is_timed = True
        """Every packet is a picture and says when it appears, and the times of decoding never go back."""
        self.are_due_in_turn = True
        """Every packet says when it is to be decoded, which is after the one before it."""
        self.has_fields = False
        """There were packets that are not here, since each was the second field of a picture."""
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
    """A number by which a packet can be known again: its size and a checksum of its beginning."""
    return len(packet) << 32 | zlib.crc32(packet[:_MARKED_BYTES])


# --- what can be wrong --------------------------------------------------------------------------------------------


def _check_regular_file(path: str) -> None:
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


def _opening_fault(fault: Exception, path: str, limits: Limits) -> VideoError:
    """The typed form of what FFmpeg says when it cannot open ``path``."""
    if isinstance(fault, (av.error.ExitError, TimeoutError)):
        return _timeout(path, limits)
    if isinstance(fault, MemoryError):  # FFmpeg's word for too many streams, too
        return TooLargeError(f"{path!r} has more than {_MAX_STREAMS} streams, or needs too much memory", path)
    try:
        with open(path, "rb") as file:
            beginning = file.read(200)
    except OSError as gone:  # since it was looked at; FFmpeg says so of damaged files, too
        return VideoNotFoundError(f"{path!r} cannot be read: {why_unread(gone)}", path)
    # FFmpeg calls an argument invalid if the format is not among those allowed.
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


def _live_fault(fault: Exception, path: str, live: LiveBytes | Literal["camera"]) -> VideoError:
    """The typed form of what FFmpeg says of a camera, or of bytes that still come."""
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


def _timeout(path: str, limits: Limits) -> VideoError:
    return DecodeTimeoutError(
        f"{path!r}: reading took longer than timeout_seconds={limits.timeout_seconds:g}; is its disk slow or away? "
        "Copy it to a local disk or allow more time",
        path,
    )


def _is_whole_matroska(path: str) -> bool:
    """Whether an MKV or WebM has all the bytes that it says it has (RFC 8794, 4-6). False: it does not say."""
    with open(path, "rb") as file:
        place = 0
        for name in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # its header, and all the rest
            file.seek(place)
            content = file.read(12)
            num_bytes = 9 - content[4].bit_length() if len(content) > 4 else 9
            if content[:4] != name or len(content) < 4 + num_bytes:
                return False
            size = int.from_bytes(content[4 : 4 + num_bytes], "big") & ((1 << 7 * num_bytes) - 1)
            place += 4 + num_bytes + size
        return size != (1 << 7 * num_bytes) - 1 and place <= os.path.getsize(path)


def _codec_mark(path: str) -> str:
    """What an MP4 or MKV itself calls its codec, for the message that no decoder knows it."""
    with open(path, "rb") as file:
        beginning = file.read(1 << 16)
        file.seek(max(os.path.getsize(path) - (1 << 16), 0))
        found = re.search(rb"stsd.{12}([ -~]{4})|(V_[A-Z0-9/_.]+)", beginning + file.read(), re.DOTALL)
    return repr((found[1] or found[2]).decode()) if found else "(it has no name)"
