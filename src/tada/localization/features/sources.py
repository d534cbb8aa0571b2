"""Identity of a source video: features and clips note its content, so that a replaced video is recognized."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from tada.data.identity import content_id, size_of
from tada.data.manifest import originals_among
from tada.data.table import stamp_of
from tada.system.files import absolute_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The video file, or folder of frames, from which something was made."""

    path: str
    """Absolute path of the video at that time."""
    content: str
    """``content_id`` of the video."""
    mtime_ns: int
    """Modification time; while it and the size are unchanged, the file is not read again."""
    originals: tuple[str, ...] = ()
    """Content ids of the originals, if ``tada prepare`` made the video as a copy."""

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible path or a malformed content id."""
        for identity in self.identities:
            size_of(identity)
        if "\0" in self.path:
            raise ValueError(f"{self.path!r} is no path")

    @classmethod
    def of(cls, file: str | Path) -> Source:
        """Identify a file as it is now.

        Raises:
            OSError: the file cannot be read, or is no regular file.
        """
        _, mtime_ns = _stamp(file)
        return cls(path=absolute_path(file), content=content_id(file), mtime_ns=mtime_ns).with_originals()

    @property
    def identities(self) -> tuple[str, ...]:
        """Content ids of the video and of its originals."""
        return (self.content, *self.originals)

    def with_originals(self) -> Source:
        """Fill in the originals from the manifest of `tada prepare`, if it still lies beside the video."""
        found = originals_among({self.path: size_of(self.content)})
        return replace(self, originals=found.get(self.path, self.originals))

    def is_untouched(self, file: str | Path) -> bool:
        """Whether path, size and modification time of a file are unchanged, so that it need not be read.

        Raises:
            OSError: the file is missing, or is no regular file.
        """
        size, mtime_ns = _stamp(file)
        is_as_before = self.content.startswith(f"{size}-") and mtime_ns == self.mtime_ns
        return is_as_before and absolute_path(file) == self.path

    def is_now(self, file: str | Path) -> bool:
        """Whether a file, at any path, has the same content.

        Raises:
            OSError: the file cannot be read, or is no regular file.
        """
        return self.is_untouched(file) or content_id(file) == self.content

    def was_replaced(self) -> bool:
        """Whether the file at ``path`` has another content now; false if there is none."""
        try:
            return not self.is_now(self.path)
        except OSError:
            return False

    def is_still_there(self) -> bool:
        """Whether the file at ``path`` has the same content."""
        try:
            return self.is_now(self.path)
        except OSError:
            return False


def _stamp(file: str | Path) -> tuple[int, int]:
    mode = os.stat(file).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(f"{str(file)!r} is no regular file")  # reading a pipe might block for ever
    return stamp_of(os.fspath(file))
