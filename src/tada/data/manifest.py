"""The list of copies that ``tada prepare`` leaves beside them: which original each copy is of.

A copy has other bytes than its original. Where its manifest is at hand, it is still known as the same video.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tada.data.identity import sha256_identity
from tada.system.documents import parse_json, typed

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
    """``content_id`` of the original; empty in manifests of before it was noted."""
    earlier: tuple[str, ...] = ()
    """Where the original was itself a copy: the identities of what it was copied from, the very first last."""

    @property
    def originals(self) -> tuple[str, ...]:
        """The identities of all that this is a copy of."""
        source = self.source_content or sha256_identity(self.source_size_bytes, self.source_sha256)
        return (source, *self.earlier)


def read_manifest(file: Path) -> dict[str, Copy]:
    """The copies by their originals' paths; a later line replaces an earlier one."""
    copies: dict[str, Copy] = {}
    if file.exists():
        for line in file.read_bytes().splitlines():
            try:
                copy = typed(Copy, parse_json(line.decode("utf-8", "surrogateescape")))
            except ValueError:  # an empty line, or one that was cut off
                continue
            copies.pop(copy.source, None)  # so that the order is that of the last lines
            copies[copy.source] = copy
    return copies


def originals_among(sizes: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Of those files that are copies that ``tada prepare`` made, what they are copies of.

    Args:
        sizes: as for ``copies_among``.
    """
    return {path: copy.originals for path, copy in copies_among(sizes).items()}


def copies_among(sizes: Mapping[str, int]) -> dict[str, Copy]:
    """Which of some files are copies that ``tada prepare`` made, and have not been changed since.

    Args:
        sizes: of each file in bytes, by its absolute path.

    Returns:
        By path the line of the manifest, for those files that one is found of.
    """
    below: dict[str, tuple[str, str] | None] = {}
    manifests: dict[str, Mapping[str, Copy]] = {}

    def line_of(path: str) -> Copy | None:
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
            manifests[top] = _by_file(file, stamp.st_size, stamp.st_mtime_ns)
        return manifests[top].get(f"{inner}{name}")

    copies = {}
    for path, size in sizes.items():
        copy = line_of(path) or (line_of(os.path.realpath(path)) if os.path.islink(path) else None)
        if copy is not None and copy.size_bytes == size:
            copies[path] = copy
    return copies


@lru_cache(maxsize=1)  # who asks for one file after the other does not have it read each time
def _by_file(manifest: Path, size: int, mtime_ns: int) -> Mapping[str, Copy]:
    """The copies by their own paths; ``size`` and ``mtime_ns`` are the manifest's now."""
    return {copy.file: copy for copy in read_manifest(manifest).values()}


def _folder_of_copies(folder: str) -> tuple[str, str] | None:
    """The folder of copies that a folder lies in or is, and how it is called from there: "x/y/", or nothing."""
    for start in dict.fromkeys((folder, os.path.realpath(folder))):
        top = start
        while os.path.dirname(top) != top:
            if os.path.basename(top) == COPIES and os.path.isfile(os.path.join(os.path.dirname(top), MANIFEST)):
                inner = start[len(top) + 1 :].replace(os.sep, "/")
                return top, f"{inner}/" if inner else ""
            top = os.path.dirname(top)
    return None
