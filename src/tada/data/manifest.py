"""Manifest of ``tada prepare``: a file beside the copies that names the original of each.

A copy has other bytes than its original. By its manifest it is still recognized as the same video.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tada.data.identity import sha256_identity
from tada.system.documents import parse_json, typed
from tada.video.shards import member_of

MANIFEST = "manifest.jsonl"
COPIES = "videos"
"""The folder of the copies, beside the manifest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """A line of the manifest: one file and its copy."""

    source: str
    """Path below the data set's root."""
    source_size_bytes: int
    source_mtime_ns: int
    source_sha256: str
    file: str
    """Path below OUT/videos."""
    size_bytes: int
    sha256: str
    width: int
    height: int
    num_frames: int
    fps: float
    keyframe_interval_frames: int
    source_content: str = ""
    """``content_id`` of the original; empty in manifests of old versions."""
    earlier: tuple[str, ...] = ()
    """If the original was itself a copy: the identities of the files it was copied from, the first original last."""

    @property
    def originals(self) -> tuple[str, ...]:
        """The identities of all files that this is a copy of: its source, and those in ``earlier``."""
        source = self.source_content or sha256_identity(self.source_size_bytes, self.source_sha256)
        return (source, *self.earlier)


def read_manifest(file: Path) -> dict[str, Copy]:
    """The copies in a manifest, by their originals' paths; a later line replaces an earlier one."""
    copies: dict[str, Copy] = {}
    if file.exists():
        for line in file.read_bytes().splitlines():
            try:
                copy = typed(Copy, parse_json(line.decode("utf-8", "surrogateescape")))
            except ValueError:  # an empty or truncated line
                continue
            copies.pop(copy.source, None)  # so that the copies are in the order of their last lines
            copies[copy.source] = copy
    return copies


def originals_among(sizes: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """The identities of the originals of those files that are unchanged copies by ``tada prepare``, by path.

    Args:
        sizes: as for ``copies_among``.
    """
    members = {path: member for path in sizes if (member := member_of(path)) is not None}
    in_shards = {path: member.originals for path, member in members.items() if member.originals}
    files = {path: size for path, size in sizes.items() if path not in members}
    return in_shards | {path: copy.originals for path, copy in copies_among(files).items()}


def copies_among(sizes: Mapping[str, int]) -> dict[str, Copy]:
    """Find which files are unchanged copies made by ``tada prepare``.

    Args:
        sizes: each file's size in bytes, by its absolute path.

    Returns:
        The manifest's line of each file that has one, by the file's path.
    """
    below: dict[str, tuple[str, str] | None] = {}
    manifests: dict[str, Mapping[str, Copy]] = {}

    def find_line(path: str) -> Copy | None:
        folder, name = os.path.split(path)
        if folder not in below:
            below[folder] = _folder_of_copies(folder)
        place = below[folder]
        if place is None:
            return None
        top, inner = place
        if top not in manifests:
            file = Path(top).parent / MANIFEST
            stamp = file.stat()
            manifests[top] = _read_by_copy(file, stamp.st_size, stamp.st_mtime_ns)
        return manifests[top].get(f"{inner}{name}")

    copies = {}
    for path, size in sizes.items():
        copy = find_line(path) or (find_line(os.path.realpath(path)) if os.path.islink(path) else None)
        if copy is not None and copy.size_bytes == size:
            copies[path] = copy
    return copies


@lru_cache(maxsize=1)  # callers that ask for one file at a time do not read the manifest each time
def _read_by_copy(manifest: Path, size: int, mtime_ns: int) -> Mapping[str, Copy]:
    """The copies by their own paths; ``size`` and ``mtime_ns`` of the manifest make the cache read a changed one."""
    return {copy.file: copy for copy in read_manifest(manifest).values()}


def _folder_of_copies(folder: str) -> tuple[str, str] | None:
    """The folder of copies that ``folder`` is or is in, and the path from there to ``folder``: "x/y/", or ""."""
    for start in dict.fromkeys((folder, os.path.realpath(folder))):
        top = start
        while os.path.dirname(top) != top:
            if os.path.basename(top) == COPIES and os.path.isfile(os.path.join(os.path.dirname(top), MANIFEST)):
                inner = start[len(top) + 1 :].replace(os.sep, "/")
                return top, f"{inner}/" if inner else ""
            top = os.path.dirname(top)
    return None
