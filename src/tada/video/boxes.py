"""Count the samples that an MP4 or MOV file declares, before FFmpeg builds an index of them.

A table of sample sizes can declare "85,000,000 samples of one byte" in twelve bytes, and so can a run of samples in a
fragment: FFmpeg then allocates gigabytes for the index of a file of some hundred bytes. Only box headers and the few
tables that hold counts are read (ISO 14496-12, 8.6 to 8.8), never pictures or sound. A file with malformed boxes is
left to FFmpeg, which reports what is wrong with it.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from tada.errors import TooLargeError
from tada.video.shards import open_bytes

MAX_SAMPLES = 8_000_000
"""Most samples of all tracks together; 18 hours of video at 30 pictures a second with sound have five million."""
_MAX_BOXES = 2_000_000
_MAX_COMPRESSED_BYTES, _MAX_HEADER_BYTES = 1 << 24, 1 << 26  # of a compressed "moov", and after decompression
_DEEPEST = 10
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"cmov")
_TABLES = (b"stsz", b"stz2", b"stts", b"trun", b"hdlr")


class _Box(NamedTuple):
    kind: bytes
    start: int
    """Offset of its content in the file, in bytes."""
    end: int
    """Offset of its end, at most the end of the enclosing box."""


class _Track:
    """Sample counts that the tables of a track declare."""

    def __init__(self) -> None:
        self.num_sizes = 0
        self.is_sound = False
        self.is_regular = False
        """The table of times has one entry, of one tick per sample, as for PCM."""

    @property
    def num_samples(self) -> int:
        """Entries in FFmpeg's index. Regular sound counts 0: there it has one per chunk, and a table lists these."""
        return 0 if self.is_sound and self.is_regular else self.num_sizes


def check_samples(path: str) -> None:
    """Refuse an MP4 or MOV file that declares more than ``MAX_SAMPLES``; other files pass.

    Raises:
        TooLargeError: it declares more.
        OSError: the file cannot be read.
    """
    with open_bytes(path) as file:
        # The first bytes of another format, read as a box, give a length beyond the end of the file.
        total = _Counter(path, file).count_inside(_Box(b"", 0, file.seek(0, os.SEEK_END)), None, 0)
    if total > MAX_SAMPLES:
        raise TooLargeError(
            f"{path!r} claims {total} samples, and at most {MAX_SAMPLES} are opened; cut it into parts, or download it "
            "again",
            path,
        )


class _Counter:
    """Sums the samples that the boxes of a file, or of a decompressed index, declare."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._num_boxes = 0

    def count_inside(self, outer: _Box, track: _Track | None, depth: int) -> int:
        """Count the samples declared by all boxes inside ``outer``."""
        total = 0
        for box in self._boxes(outer):
            if box.kind in _CONTAINERS and depth < _DEEPEST:
                own = _Track() if box.kind == b"trak" else track
                total += self.count_inside(box, own, depth + 1)
                if own is not track and own is not None:
                    total += own.num_samples
            elif box.kind == b"cmvd" and depth < _DEEPEST:
                total += self._count_compressed(box, depth + 1)
            elif box.kind in _TABLES:
                total += self._read_table(box, track)
            if total > MAX_SAMPLES:
                break
        return total

    def _boxes(self, outer: _Box) -> Iterator[_Box]:
        place = outer.start
        while place + 8 <= outer.end:
            self._num_boxes += 1
            if self._num_boxes > _MAX_BOXES:
                raise TooLargeError(f"{self._path!r} has more than {_MAX_BOXES} boxes; convert it", self._path)
            self._file.seek(place)
            header = self._file.read(16)
            length, start = int.from_bytes(header[:4], "big"), place + 8
            if length == 1:
                length, start = int.from_bytes(header[8:], "big"), place + 16
            elif length == 0:  # to the end
                length = outer.end - place
            if length < start - place:
                return
            yield _Box(header[4:8], start, min(place + length, outer.end))
            place += length

    def _read_table(self, box: _Box, track: _Track | None) -> int:
        """Record a table's count in its track and return 0; return the count of a fragment's run."""
        self._file.seek(box.start)
        head = self._file.read(16)
        first, second, third = (int.from_bytes(head[place : place + 4], "big") for place in (4, 8, 12))
        if box.kind == b"trun":
            return first
        if track is not None:
            if box.kind == b"hdlr":  # MOV files have a second one, of neither type
                track.is_sound = {b"soun": True, b"vide": False}.get(head[8:12], track.is_sound)
            elif box.kind == b"stts":
                track.is_regular = first == 1 and third == 1
            else:
                track.num_sizes += second
        return 0

    def _count_compressed(self, box: _Box, depth: int) -> int:
        """Count the samples that a compressed "moov" declares (QuickTime File Format, "Compressed Movie Resources")."""
        self._file.seek(box.start + 4)
        size = box.end - box.start - 4
        unpacker = zlib.decompressobj()
        try:
            data = unpacker.decompress(self._file.read(min(size, _MAX_COMPRESSED_BYTES)), _MAX_HEADER_BYTES)
        except zlib.error:
            return 0
        if size > _MAX_COMPRESSED_BYTES or unpacker.unconsumed_tail:
            raise TooLargeError(
                f"{self._path!r}: its index unpacks to more than {_MAX_HEADER_BYTES >> 20} MB; convert it", self._path
            )
        inner = _Counter(self._path, io.BytesIO(data))
        inner._num_boxes = self._num_boxes
        total = inner.count_inside(_Box(b"", 0, len(data)), None, depth)
        self._num_boxes = inner._num_boxes
        return total
