"""Identity of a video file: a hash of its content, independent of its name.

A video that was moved, linked, copied, or is named by another path is still the video that a model was trained on, and
one that was replaced under its old name is not. The identity of a file is its size and a hash of its first, middle and
last bytes, so that a list of 240,000 videos is read in minutes: two different videos of the same size practically never
agree in all three. The identity of a folder of frames is the total size of its pictures and a hash of their sizes and
of the first, the middle and the last picture; the pictures' names do not count.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tada.system.progress import track
from tada.video.numbered import numbered_pictures
from tada.video.shards import member_of, open_bytes

PART_BYTES = 64 * 1024
"""Bytes hashed at the start, in the middle and at the end of a file; up to three times as many are hashed whole."""
_SHA256 = "sha256:"
_FEW = 500  # files, for which no progress bar is needed
_THREADS = 16  # reading waits for the disk, longest for a network drive


def content_id(path: str | os.PathLike[str]) -> str:
    """The identity of a file's content, as "SIZE-HASH": bytes in decimal, 32 hexadecimal digits.

    Files, or folders of frames, with equal content have equal identities; path and modification time do not count. That
    of a video in a shard is in the index, so that no shard is fetched for it.

    Raises:
        OSError: the file cannot be read.
    """
    if os.path.isdir(path):
        return _folder_content_id(path)
    if (member := member_of(path)) is not None:
        return member.content
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(digest_size=16)
        if size <= 3 * PART_BYTES:
            starts, length = [0], size
        else:
            starts, length = [0, (size - PART_BYTES) // 2, size - PART_BYTES], PART_BYTES
        for start in starts:
            file.seek(start)
            digest.update(_read(file.fileno(), length))
    return f"{size}-{digest.hexdigest()}"


def _folder_content_id(path: str | os.PathLike[str]) -> str:
    files, sizes = _pictures(path)
    digest = hashlib.blake2b(",".join(map(str, sizes)).encode(), digest_size=16)
    for place in (0, (len(files) - 1) // 2, len(files) - 1):
        digest.update(content_id(files[place]).encode())
    return f"{sum(sizes)}-{digest.hexdigest()}"


def _pictures(path: str | os.PathLike[str]) -> tuple[list[str], list[int]]:
    """The frames in a folder, in the order of their numbers, and their sizes in bytes.

    Raises:
        OSError: there are none, or one is not a regular file (reading a pipe could wait forever).
    """
    files = [os.path.join(path, name) for name in numbered_pictures(path)]
    if not files:
        raise FileNotFoundError(errno.ENOENT, "no numbered pictures are in it", os.fspath(path))
    statuses = [os.stat(file) for file in files]
    odd = next((file for file, status in zip(files, statuses, strict=True) if not stat.S_ISREG(status.st_mode)), None)
    if odd is not None:
        raise OSError(errno.EINVAL, "no regular file", odd)
    return files, [status.st_size for status in statuses]


def content_ids(paths: Iterable[str], *, show_progress: bool = False) -> dict[str, str]:
    """``content_id`` of many files, by path; a file that cannot be read is left out."""
    wanted = list(dict.fromkeys(paths))
    threads = ThreadPoolExecutor(_THREADS)
    try:
        is_shown = show_progress and len(wanted) > _FEW
        ids = threads.map(_content_id_or_empty, wanted)
        found = track(ids, "looking at the videos' contents", len(wanted), noun="files", is_shown=is_shown)
        return {path: identity for path, identity in zip(wanted, found, strict=True) if identity}
    finally:
        threads.shutdown(cancel_futures=True)  # at Ctrl-C, drop the files not yet begun


def size_of(identity: str) -> int:
    """The file size in bytes, with which an identity begins."""
    return int(identity.partition("-")[0])


def sha256_identity(size_bytes: int, sha256: str) -> str:
    """The identity of a file of which only its SHA-256 was noted, as in old manifests of `tada prepare`."""
    return f"{size_bytes}-{_SHA256}{sha256}"


def is_sha256(identity: str) -> bool:
    """Whether an identity was made by ``sha256_identity``."""
    return identity.partition("-")[2].startswith(_SHA256)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a whole file, in hexadecimal digits; of a folder of frames, the SHA-256 of its pictures' hashes.

    Raises:
        OSError: the file cannot be read.
    """
    if os.path.isdir(path):
        of_all = hashlib.sha256()
        for picture in _pictures(path)[0]:
            of_all.update(sha256_of(picture).encode())
        return of_all.hexdigest()
    with open_bytes(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_id_or_empty(path: str) -> str:
    try:
        return content_id(path)
    except OSError:
        return ""


def _read(descriptor: int, length: int) -> bytes:
    """Read ``length`` bytes, or up to the end of the file: one system call may return fewer."""
    parts = []
    while length > 0 and (part := os.read(descriptor, length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
