"""Videos inside shards: tar files with many videos, each found by its offset.

`tada prepare --shards` writes (``tada.data.shards``), below a folder::

    shard-000000.tar ...   videos, and a .json about each, in the layout of WebDataset
    shards.jsonl           the index: for each shard its size and hashes, for each video its offset, size and hashes

A video inside a shard has a path like a file: FOLDER/shard-000000.tar/left/a.mp4 is what `tar` calls left/a.mp4. It is
read where it is, from its offset, so that videos can be read in any order and nothing is unpacked.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from tada.errors import DataError, VideoNotFoundError, why_unread
from tada.system.documents import parse_json
from tada.system.files import absolute_path
from tada.video.fetched_shards import cached_shard, origin_of

INDEX = "shards.jsonl"
_INSIDE = re.compile(r"(?P<folder>.*)[/\\](?P<shard>shard-\d{6,}\.tar)[/\\](?P<name>.+)", re.DOTALL)
_AGAIN = "copy it again, or make it anew (`tada prepare` with --shards, as before)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A video in a shard."""

    name: str
    """Its name in the tar file: the path below the data set's root, dots before the extension as ``member_name``."""
    start_bytes: int
    """Offset of its first byte in the tar file."""
    size_bytes: int
    sha256: str
    content: str
    """Its ``tada.data.identity.content_id``."""
    about_crc: int
    """CRC-32 of the .json beside it, by which changed labels are noticed."""
    source: str
    """Path of the file that it is a copy of, below the data set's root."""
    source_size_bytes: int
    source_mtime_ns: int
    originals: tuple[str, ...]
    """For a copy that is not the same bytes: the identities of the files it was copied from, the first one last."""


_FIELDS = tuple(field.name for field in fields(Member))
_TYPES = (str, int, int, str, str, int, str, int, int, list)  # as JSON has them


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A line of the index: one tar file."""

    file: str
    """Name in the folder."""
    size_bytes: int
    sha256: str
    content: str
    """Its ``tada.data.identity.content_id``: a replaced shard is noticed without reading all of it."""
    members: Mapping[str, Member]
    """By name, in the order of the tar file."""

    def to_line(self) -> bytes:
        """The line, as JSON."""
        line = {"file": self.file, "size_bytes": self.size_bytes, "sha256": self.sha256, "content": self.content}
        return json.dumps({**line, "members": list(map(asdict, self.members.values()))}).encode()


class Place(NamedTuple):
    """Where the bytes of a video in a shard are."""

    shard: str
    """Path of the tar file on this machine."""
    start_bytes: int
    size_bytes: int


# -- names ------------------------------------------------------------------------------------------------------------


def member_name(path: str) -> str:
    """The name in a tar file for a path below the data set's root: "left/a.b.mp4" becomes "left/a%2Eb.mp4".

    WebDataset takes files for parts of one sample if their names are equal up to the first dot. Bytes that are not text
    are escaped too.
    """
    text = "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in path.replace("%", "%25"))
    folder, slash, name = text.rpartition("/")
    stem, ending = os.path.splitext(name)
    return folder + slash + stem.replace(".", "%2E") + ending


def path_without_shard(path: str) -> str:
    """The path that a video in a shard would have if it were a file: FOLDER/left/a.b.mp4; others are unchanged.

    By it, a data set in shards is the same as one of files: held-out videos, their order and their names are.
    """
    inside = _INSIDE.fullmatch(path) if ".tar" in path else None
    if inside is None:
        return path
    return os.path.join(inside["folder"], os.fsdecode(unquote_to_bytes(inside["name"])))


# -- the index --------------------------------------------------------------------------------------------------------


def read_index(folder: str | os.PathLike[str]) -> Mapping[str, Shard]:
    """The shards of a folder, by file name; none if it has no index. A line that was cut off is left out.

    Raises:
        DataError: the index cannot be read.
    """
    file = os.path.join(folder, INDEX)
    try:
        status = os.stat(file)
        return _parse_index(file, status.st_size, status.st_mtime_ns)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DataError(f"{file!r} cannot be read: {why_unread(error)}") from error


@lru_cache(maxsize=4)  # size and time make it read a changed file; data sets are read one or two at a time
def _parse_index(file: str, size_bytes: int, mtime_ns: int) -> Mapping[str, Shard]:
    shards = {}
    with open(file, "rb") as lines:
        for line in lines:
            try:
                shard = _parse_line(parse_json(line))
            except (ValueError, TypeError, KeyError):  # an empty line, or one that was cut off
                continue
            shards[shard.file] = shard
    return shards


def _parse_line(line: dict[str, Any]) -> Shard:
    members = {}
    for row in line["members"]:  # a million of them: ``typed`` would take a minute
        values = [row[name] for name in _FIELDS]
        if tuple(map(type, values)) != _TYPES:
            raise ValueError(f"a member with other types: {values}")
        members[values[0]] = Member(**dict(zip(_FIELDS, values, strict=True)) | {"originals": tuple(values[-1])})
    shard = Shard(**{**line, "members": members})
    if not _INSIDE.fullmatch(f"/{shard.file}/x") or type(shard.size_bytes) is not int:
        raise ValueError(f"no shard: {shard.file!r}")
    return shard


def member_of(path: str | os.PathLike[str]) -> Member | None:
    """What the index has about a path inside a shard; None for other paths. The shard itself is not looked at."""
    found = _find(os.fspath(path))
    return None if found is None else found[2]


def place_of(path: str) -> Place | None:
    """Where the bytes of a path inside a shard are; None for other paths. Fetches the shard if it is in a store.

    Raises:
        DataError: the shard is missing, or is not the one of the index.
        VideoNotFoundError: the shard has no such video.
    """
    found = _find(path)
    if found is None:
        return None
    folder, shard, member = found
    if member is None:
        raise VideoNotFoundError(f"{path!r}: {INDEX} has no such video; read the data set again", path)
    return Place(local_shard(folder, shard), member.start_bytes, member.size_bytes)


def _find(path: str) -> tuple[str, Shard, Member | None] | None:
    inside = _INSIDE.fullmatch(path) if ".tar" in path else None
    shard = None if inside is None else read_index(inside["folder"]).get(inside["shard"])
    if inside is None or shard is None:
        return None
    return inside["folder"], shard, shard.members.get(inside["name"].replace("\\", "/"))


def local_shard(folder: str, shard: Shard) -> str:
    """The path of a shard on this machine's disk. This is the one place where it is asked for.

    Raises:
        DataError: it is missing, has another size than the index says, or is in a store that cannot be reached.
    """
    if origin_of(folder) is not None:
        return cached_shard(folder, shard.file, size_bytes=shard.size_bytes, sha256=shard.sha256)
    file = os.path.join(folder, shard.file)
    try:
        size_bytes = os.stat(file).st_size
    except OSError as error:
        raise DataError(f"{file!r} is not there ({error.strerror}), and {INDEX} lists it; {_AGAIN}") from error
    if size_bytes != shard.size_bytes:
        raise DataError(
            f"{file!r} has {size_bytes} bytes, and {shard.size_bytes} by {INDEX}: it was cut off or replaced; {_AGAIN}"
        )
    return file


# -- reading ----------------------------------------------------------------------------------------------------------


def ffmpeg_source(path: str) -> tuple[str, str]:
    """What FFmpeg opens for a file, or for a video in a shard, and the protocols that this needs.

    Raises:
        VideoError, DataError: as ``place_of``.
    """
    place = place_of(path)
    if place is None:
        return "file:" + absolute_path(path), "file"
    end = place.start_bytes + place.size_bytes
    return f"subfile,,start,{place.start_bytes},end,{end},,:file:{absolute_path(place.shard)}", "subfile,file"


def open_bytes(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file, or a video in a shard, for reading its bytes.

    Raises:
        OSError: it cannot be opened.
        VideoError, DataError: as ``place_of``.
    """
    place = place_of(os.fspath(path))
    if place is None:
        return open(path, "rb")
    return io.BufferedReader(_Part(place))


def size_in_bytes(path: str) -> int:
    """Size of a file, or of a video in a shard. Raises OSError as ``os.stat``."""
    member = member_of(path)
    return os.stat(path).st_size if member is None else member.size_bytes


class _Part(io.RawIOBase):
    """The bytes of one video of a shard, as a file."""

    def __init__(self, place: Place) -> None:
        self._file = io.FileIO(place.shard)
        self._start, self._size, self._at = place.start_bytes, place.size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence], 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        count = self._file.readinto(memoryview(buffer)[: max(self._size - self._at, 0)])
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
