"""Parse packets to tell which of them become pictures, without decoding.

Most packets are one picture each, with its presentation time. These are not:

- VP8 has hidden reference frames, which are not shown.
- H.264 may code a picture as two fields, as camcorders do, and the second may be a packet of its own.
- MPEG-4 may mark a picture as not coded, the same as the one before it: the decoder returns none.
- DivX and XviD pack a P and a B picture into one packet of an AVI, followed by an empty packet. Codecs for screen
  captures also write empty packets where nothing changed. What these become is only known by decoding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum, auto
from typing import NamedTuple

_BEGINNING = 256  # bytes at the start of a picture; all that is parsed lies within
_VOP = b"\0\0\1\xb6"  # start code of a picture in MPEG-4 (ISO 14496-2, 6.2.5)
_VOL = re.compile(rb"\x00\x00\x01[\x20-\x2f]")  # start code of the header of the pictures after it (6.2.3)
_PACKED = re.compile(rb"\x00\x00\x01\xb2DivX\d+(?:Build|b)\d+p")  # FFmpeg tests the same
_LARGEST_EMPTY = 19  # bytes of a packet that may stand for no picture: FFmpeg's MAX_NVOP_SIZE


class Meaning(Enum):
    """What a packet becomes when decoded."""

    PICTURE = auto()
    HIDDEN = auto()
    """A picture that is not shown."""
    SECOND_FIELD = auto()
    """The second field of the previous packet's picture."""
    UNCLEAR = auto()
    """Maybe no picture, or more than one."""


class Pictures:
    """Classifies packets, called with each in decoding order. This class, for most codecs: each is a picture."""

    has_b: bool = True
    """There may be B pictures, which are shown before pictures that are decoded earlier."""
    kept_pixels: int = 0
    """Most pixels of all reference pictures that the decoder keeps, together; 0: unknown."""

    def __call__(self, packet: memoryview) -> Meaning:
        return Meaning.PICTURE


def pictures_of(codec: str, extradata: bytes | None, *, may_have_b: bool = True, are_large: bool = False) -> Pictures:
    """Make the ``Pictures`` for a codec.

    Args:
        codec: FFmpeg's name of it.
        extradata: the codec's headers stored in the container, outside the packets.
        may_have_b: False: B pictures need not be searched for.
        are_large: True: every packet is parsed for ``kept_pixels``.
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


# In these codecs even a packet of a few bytes is a picture: tested with FFmpeg's encoders on still scenes.
_SMALL_PICTURES = {
    *("hevc", "vp9", "av1", "theora", "gif", "h263", "flv1", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2"),
    *("svq1", "snow", "msvideo1", "zmbv", "flashsv", "flashsv2", "qtrle", "smc"),
}


class _Others(Pictures):
    """Other codecs: a small packet may be no picture, as for a screen that has not changed."""

    def __call__(self, packet: memoryview) -> Meaning:
        return Meaning.UNCLEAR if len(packet) <= _LARGEST_EMPTY else Meaning.PICTURE


class _VP8(Pictures):
    """Pictures without the show_frame bit are hidden (RFC 6386, 9.1)."""

    has_b = False

    def __call__(self, packet: memoryview) -> Meaning:
        return Meaning.PICTURE if packet[0] >> 4 & 1 else Meaning.HIDDEN


class _MPEG2(Pictures):
    """B pictures are told by the picture header (ISO 13818-2, 6.2.3)."""

    has_b = False

    def __call__(self, packet: memoryview) -> Meaning:
        content = bytes(packet[:_BEGINNING])
        place = content.find(b"\0\0\1\0")
        self.has_b |= 0 <= place < len(content) - 5 and content[place + 5] >> 3 & 7 == 3
        return Meaning.PICTURE


class _Bits:
    """Reads bits one after the other.

    Raises:
        IndexError: by all methods, at the end of the bits.
    """

    def __init__(self, content: bytes) -> None:
        self._value, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError("the bits end")
        return self._value >> self._left & ((1 << count) - 1)

    def ue(self) -> int:
        """Read a number in Exp-Golomb code (ITU-T H.264, 9.1)."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def skip_scaling_list(self, count: int) -> None:
        """Skip a list of quantizer weights (7.3.2.1.1.1), coded as differences; a weight of 0 ends it."""
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
            with suppress(IndexError):  # damaged; the decoder will fail too
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
            bits.read(2)  # picture type
            while bits.read(1):  # whole seconds
                pass
            bits.read(1 + self._time_bits + 1)
            return self._time_bits > 0 and not bits.read(1)
        return False


def _time_bits(headers: bytes) -> int:
    """Number of bits of vop_time_increment in each picture; 0: unknown."""
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
    """Second fields and B pictures are told by the slice headers (ITU-T H.264, 7.3.3)."""

    has_b = False

    def __init__(self, extradata: bytes, *, may_have_b: bool, are_large: bool) -> None:
        self._may_have_b, self._are_large = may_have_b, are_large
        # NAL units begin with a start code in a raw stream, with their length in MP4 and MKV.
        self._length_bytes = (extradata[4] & 3) + 1 if len(extradata) > 6 and extradata[0] == 1 else 0
        self._settings: _Settings | None = None  # of the latest parameter set; None: not seen yet
        self._is_first_packet = True
        self._first: tuple[int, int] | None = None  # frame_num and parity of a first field whose second may follow
        if self._length_bytes:
            self._read_settings(extradata[8:])  # the first parameter set, after the count and its length
        else:
            for unit in _split_units(extradata, 0):
                self._read_settings(unit)

    def __call__(self, packet: memoryview) -> Meaning:
        may_be_field = self._is_first_packet or self._settings is None or self._settings.may_have_fields
        if not may_be_field and (self.has_b or not self._may_have_b) and not self._are_large:
            return Meaning.PICTURE
        self._is_first_packet = False
        field, has_slice = None, False
        for unit in _split_units(bytes(packet), self._length_bytes):
            self._read_settings(unit)
            if unit[0] & 31 in (1, 5) and not has_slice:
                field, has_slice = self._parse_slice(unit), True
                if not self._are_large:
                    break
        is_second = field is not None and self._first == (field[0], 1 - field[1])
        self._first = None if is_second else field
        return Meaning.SECOND_FIELD if is_second else Meaning.PICTURE

    def _read_settings(self, unit: bytes) -> None:
        if unit and unit[0] & 31 == 7:
            with suppress(IndexError):  # truncated: the decoder will report it
                self._settings = _Settings.of(unit)
                self.kept_pixels = max(self.kept_pixels, self._settings.kept_pixels)

    def _parse_slice(self, unit: bytes) -> tuple[int, int] | None:
        """Parse a slice: (frame_num, parity) if it belongs to a field, else None. Updates ``has_b``."""
        with suppress(IndexError):
            bits = _Bits(_unescape(unit[1:40]))
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
    """Values of a sequence parameter set, needed to parse slices (ITU-T H.264, 7.3.2.1.1)."""

    may_have_fields: bool
    frame_num_bits: int
    has_planes: bool
    kept_pixels: int

    @classmethod
    def of(cls, unit: bytes) -> _Settings:
        bits, has_planes = _Bits(_unescape(unit[1:])), False
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
        width, height = 16 * (bits.ue() + 1), 16 * (bits.ue() + 1)  # height of a field, if there may be fields
        may_have_fields = not bits.read(1)
        pixels = width * height * (2 if may_have_fields else 1)
        return cls(may_have_fields, frame_num_bits, has_planes, num_references * pixels)


def _split_units(content: bytes, length_bytes: int) -> Iterator[bytes]:
    """Split a packet into its NAL units, without start codes or lengths; empty units are skipped.

    Args:
        length_bytes: size of the length before each unit; 0: the units begin with start codes.
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
        if place != begin:  # a damaged stream may hold two start codes in a row
            yield content[begin : place if place >= 0 else len(content)]


def _unescape(content: bytes) -> bytes:
    """Remove the emulation prevention bytes, which keep start codes from occurring within a unit."""
    return content.replace(b"\0\0\3", b"\0\0")
