"""What the bytes of a packet say of the picture that it becomes.

Most packets are one picture each, which says when it is shown. These are not:

- VP8 has frames that others refer to and that are not shown.
- H.264 may code a picture as two fields, as camcorders do, and the second may be a packet of its own.
- MPEG-4 may say that a picture is as the one before it: that becomes none.
- DivX and XviD pack a P and a B picture into one packet of an AVI, and then write one for no picture. So do codecs of
  captured screens where nothing has changed. What comes of such packets only decoding tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum, auto
from typing import NamedTuple

_BEGINNING = 256  # bytes; what is read here of a picture stands among its first ones
_VOP = b"\0\0\1\xb6"  # what a picture begins with in MPEG-4 (ISO 14496-2, 6.2.5)
_VOL = re.compile(rb"\x00\x00\x01[\x20-\x2f]")  # and what says how the pictures that follow are coded (6.2.3)
_PACKED = re.compile(rb"\x00\x00\x01\xb2DivX\d+(?:Build|b)\d+p")  # FFmpeg goes by that, too
_LARGEST_EMPTY = 19  # bytes of a packet that may stand for no picture: FFmpeg's MAX_NVOP_SIZE


class Meaning(Enum):
    """What a packet is."""

    PICTURE = auto()
    HIDDEN = auto()
    """A picture that is not shown."""
    SECOND_FIELD = auto()
    """The rest of the picture that the packet before it begins."""
    UNCLEAR = auto()
    """Maybe no picture, or more than one."""


class Pictures:
    """What packets are, to be asked of each in the order of decoding. Those of most codecs are pictures."""

    has_b: bool = True
    """There may be B pictures among them, which are shown before pictures that are decoded earlier."""
    kept_pixels: int = 0
    """Of pictures that a decoder may have to keep since others refer to them, the most; 0 where that is unknown."""

    def __call__(self, packet: memoryview) -> Meaning:
        return Meaning.PICTURE


def pictures_of(codec: str, extradata: bytes | None, *, may_have_b: bool = True, are_large: bool = False) -> Pictures:
    """What knows the pictures of a codec.

    Args:
        codec: FFmpeg's name of it.
        extradata: what the container holds beside the packets.
        may_have_b: whether it is of use to look for B pictures.
        are_large: whether each packet is to be looked at for ``kept_pixels``.
    """
    if codec == "h264":
        return _H264(extradata or b"", may_have_b=may_have_b, are_large=are_large)
    if codec == "vp8":
        return _VP8()
    if codec == "mpeg4":
        return _MPEG4(extradata or b"")
    if codec in ("mpeg1video", "mpeg2video"):
        return _MPEG2()
    return Pictures() if codec in _SMALL_PICTURES else _Others()


# Of these a few bytes are a picture: each packet that FFmpeg's encoders made of still scenes became one.
_SMALL_PICTURES = {
    *("hevc", "vp9", "av1", "theora", "gif", "h263", "flv1", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2"),
    *("svq1", "snow", "msvideo1", "zmbv", "flashsv", "flashsv2", "qtrle", "smc"),
}


class _Others(Pictures):
    """Screens that have not changed are small packets and may be no pictures."""

    def __call__(self, packet: memoryview) -> Meaning:
        return Meaning.UNCLEAR if len(packet) <= _LARGEST_EMPTY else Meaning.PICTURE


class _VP8(Pictures):
    """Some pictures are not shown: show_frame (RFC 6386, 9.1)."""

    has_b = False

    def __call__(self, packet: memoryview) -> Meaning:
        return Meaning.PICTURE if packet[0] >> 4 & 1 else Meaning.HIDDEN


class _MPEG2(Pictures):
    """Whether there are B pictures stands at the beginning of each (ISO 13818-2, 6.2.3)."""

    has_b = False

    def __call__(self, packet: memoryview) -> Meaning:
        content = bytes(packet[:_BEGINNING])
        place = content.find(b"\0\0\1\0")
        self.has_b |= 0 <= place < len(content) - 5 and content[place + 5] >> 3 & 7 == 3
        return Meaning.PICTURE


class _Bits:
    """Bits, read one after the other.

    Raises:
        IndexError: there are no more.
    """

    def __init__(self, content: bytes) -> None:
        self._value, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError("the bits end")
        return self._value >> self._left & ((1 << count) - 1)

    def ue(self) -> int:
        """A number in Exp-Golomb code (ITU-T H.264, 9.1)."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def skip_scaling_list(self, count: int) -> None:
        """Pass over weights of the quantiser (7.3.2.1.1.1): differences, until one leads to 0."""
        weight = 8
        for _ in range(count):
            code = self.ue()
            weight = (weight + ((code + 1) // 2 if code % 2 else -(code // 2))) % 256
            if weight == 0:
                return


# --- MPEG-4 -------------------------------------------------------------------------------------------------------


class _MPEG4(Pictures):
    """Pictures may be packed, or not coded."""

    has_b = False

    def __init__(self, extradata: bytes) -> None:
        self._extradata, self._is_first = extradata, True
        self._is_packed = False
        self._time_bits = 0

    def __call__(self, packet: memoryview) -> Meaning:
        if self._is_first:
            headers = self._extradata + bytes(packet[:_BEGINNING])
            self._is_first, self._is_packed = False, _PACKED.search(headers) is not None
            with suppress(IndexError):  # then the decoder will not know either
                self._time_bits = _time_bits(headers)
        if self._is_packed:
            is_one = len(packet) > _LARGEST_EMPTY and bytes(packet).count(_VOP) == 1
            return Meaning.PICTURE if is_one else Meaning.UNCLEAR
        beginning = bytes(packet[:_BEGINNING])
        place = beginning.find(_VOP)
        if place < 0:
            return Meaning.HIDDEN if len(packet) <= _LARGEST_EMPTY else Meaning.PICTURE
        content = beginning[place + 4 :]
        self.has_b |= content[:1] != b"" and content[0] >> 6 == 2
        is_empty = len(packet) - place <= _LARGEST_EMPTY and self._is_not_coded(content)
        return Meaning.HIDDEN if is_empty else Meaning.PICTURE

    def _is_not_coded(self, content: bytes) -> bool:
        bits = _Bits(content)
        with suppress(IndexError):
            bits.read(2)  # kind of picture
            while bits.read(1):  # whole seconds
                pass
            bits.read(1 + self._time_bits + 1)
            return self._time_bits > 0 and not bits.read(1)
        return False


def _time_bits(headers: bytes) -> int:
    """How many bits of a picture say when in a second it is shown; 0 if that is unknown."""
    found = _VOL.search(headers)
    if found is None:
        return 0
    bits = _Bits(headers[found.end() : found.end() + 40])
    bits.read(1 + 8)
    version = 1
    if bits.read(1):
        version = bits.read(4)
        bits.read(3)
    if bits.read(4) == 15:  # the shape of pixels
        bits.read(16)
    if bits.read(1):
        bits.read(3)
        if bits.read(1):
            bits.read(79)
    if bits.read(2) == 3 and version != 1:
        bits.read(4)
    bits.read(1)
    return max((bits.read(16) - 1).bit_length(), 1)


# --- H.264 --------------------------------------------------------------------------------------------------------


class _H264(Pictures):
    """Second fields and B pictures are known by what the slices of a picture begin with (ITU-T H.264, 7.3.3)."""

    has_b = False

    def __init__(self, extradata: bytes, *, may_have_b: bool, are_large: bool) -> None:
        self._may_have_b, self._are_large = may_have_b, are_large
        # Units of a stream begin with a mark, in MP4 and MKV with their length.
        self._length_bytes = (extradata[4] & 3) + 1 if len(extradata) > 6 and extradata[0] == 1 else 0
        self._settings: _Settings | None = None  # unknown
        self._is_first_packet = True
        self._first: tuple[int, int] | None = None  # frame_num and parity of a first field whose second may follow
        if self._length_bytes:
            self._learn(extradata[8:])  # the first settings, after their number and length
        else:
            for unit in _units(extradata, 0):
                self._learn(unit)

    def __call__(self, packet: memoryview) -> Meaning:
        may_be_field = self._is_first_packet or self._settings is None or self._settings.may_have_fields
        if not may_be_field and (self.has_b or not self._may_have_b) and not self._are_large:
            return Meaning.PICTURE
        self._is_first_packet = False
        field, has_slice = None, False
        for unit in _units(bytes(packet), self._length_bytes):
            self._learn(unit)
            if unit[0] & 31 in (1, 5) and not has_slice:
                field, has_slice = self._field(unit), True
                if not self._are_large:
                    break
        is_second = field is not None and self._first == (field[0], 1 - field[1])
        self._first = None if is_second else field
        return Meaning.SECOND_FIELD if is_second else Meaning.PICTURE

    def _learn(self, unit: bytes) -> None:
        if unit and unit[0] & 31 == 7:
            with suppress(IndexError):  # cut short: the decoder will say so
                self._settings = _Settings.of(unit)
                self.kept_pixels = max(self.kept_pixels, self._settings.kept_pixels)

    def _field(self, unit: bytes) -> tuple[int, int] | None:
        """Frame_num and parity of a slice of a field; None for one of a whole picture. Says ``has_b``, too."""
        with suppress(IndexError):
            bits = _Bits(_unescaped(unit[1:40]))
            bits.ue()
            self.has_b |= bits.ue() % 5 == 1
            bits.ue()
            if self._settings is None or not self._settings.may_have_fields:
                return None
            bits.read(2 * self._settings.has_planes)
            frame_num = bits.read(self._settings.frame_num_bits)
            if bits.read(1):
                return frame_num, bits.read(1)
        return None


class _Settings(NamedTuple):
    """What a sequence parameter set says of the slices of its pictures (ITU-T H.264, 7.3.2.1.1)."""

    may_have_fields: bool
    frame_num_bits: int
    has_planes: bool
    kept_pixels: int

    @classmethod
    def of(cls, unit: bytes) -> _Settings:
        bits, has_planes = _Bits(_unescaped(unit[1:])), False
        profile = bits.read(8)
        bits.read(16)
        bits.ue()
        if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
            chroma = bits.ue()
            has_planes = chroma == 3 and bits.read(1) == 1
            bits.ue()
            bits.ue()
            bits.read(1)
            if bits.read(1):
                for i in range(12 if chroma == 3 else 8):
                    if bits.read(1):
                        bits.skip_scaling_list(16 if i < 6 else 64)
        frame_num_bits = bits.ue() + 4
        order = bits.ue()
        if order == 0:
            bits.ue()
        elif order == 1:
            bits.read(1)
            for _ in range(2):
                bits.ue()
            for _ in range(bits.ue()):
                bits.ue()
        num_references = bits.ue()
        bits.read(1)
        width, height = 16 * (bits.ue() + 1), 16 * (bits.ue() + 1)  # the latter of a field, where there may be fields
        may_have_fields = not bits.read(1)
        pixels = width * height * (2 if may_have_fields else 1)
        return cls(may_have_fields, frame_num_bits, has_planes, num_references * pixels)


def _units(content: bytes, length_bytes: int) -> Iterator[bytes]:
    """The units of a packet, those that hold anything, without what marks their beginnings.

    Args:
        length_bytes: of the number before each that says how long it is; 0: a mark stands before each.
    """
    place = 0
    if length_bytes:
        while place + length_bytes < len(content):
            begin = place + length_bytes
            place = begin + int.from_bytes(content[place:begin], "big")
            if place > begin:
                yield content[begin:place]
        return
    place = content.find(b"\0\0\1")
    while 0 <= place < len(content) - 3:
        begin, place = place + 3, content.find(b"\0\0\1", place + 3)
        if place != begin:  # in a damaged stream two marks may stand side by side
            yield content[begin : place if place >= 0 else len(content)]


def _unescaped(content: bytes) -> bytes:
    """Without the bytes that keep marks from occurring within a unit."""
    return content.replace(b"\0\0\3", b"\0\0")
