"""What was made of a video is bound to its content: a video that was replaced under its name does not have it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from tada.data.identity import content_id, size_of
from tada.data.manifest import originals_among
from tada.data.table import stamp_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The video file, or the folder of frames, that something was made of."""

    path: str
    """Absolute, where it lay."""
    content: str
    """Its ``content_id``."""
    mtime_ns: int
    """Its time of change: while that and the size are as they were, the file is not read again."""
    originals: tuple[str, ...] = ()
    """The identities of what it is a copy of, where ``tada prepare`` made it."""

    def __post_init__(self) -> None:
        """Raise ValueError for a path that no file has, or what is no identity."""
        for identity in self.identities:
            size_of(identity)
        if "\0" in self.path:
            raise ValueError(f"{self.path!r} is no path")

    @classmethod
    def of(cls, file: str | Path) -> Source:
        """The source that a file is now.

        Raises:
            OSError: it cannot be read, or is no regular file.
        """
        _, mtime_ns = _stamp(file)
        return cls(path=os.path.abspath(file), content=content_id(file), mtime_ns=mtime_ns).with_originals()

    @property
    def identities(self) -> tuple[str, ...]:
        """All that it is known by: its content, and those of what it is a copy of."""
        return (self.content, *self.originals)

    def with_originals(self) -> Source:
        """The source with what it is a copy of, also where that was not noted: if it still lies beside its manifest."""
        found = originals_among({self.path: size_of(self.content)})
        return replace(self, originals=found.get(self.path, self.originals))

    def is_untouched(self, file: str | Path) -> bool:
        """Whether a file is this very one, by its place, size and time of change: then it need not be read.

        Raises:
            OSError: it is not there, or is no regular file.
        """
        size, mtime_ns = _stamp(file)
        is_as_before = self.content.startswith(f"{size}-") and mtime_ns == self.mtime_ns
        return is_as_before and os.path.abspath(file) == self.path

    def is_now(self, file: str | Path) -> bool:
        """Whether a file, there or elsewhere, has the same content.

        Raises:
            OSError: it cannot be read, or is no regular file.
        """
        return self.is_untouched(file) or content_id(file) == self.content

    def was_replaced(self) -> bool:
        """Whether another file lies where this one lay; not so where none lies there any more."""
        try:
            return not self.is_now(self.path)
        except OSError:
            return False

    def is_still_there(self) -> bool:
        """Whether it lies where it lay, unchanged."""
        try:
            return self.is_now(self.path)
        except OSError:
            return False


def _stamp(file: str | Path) -> tuple[int, int]:
    mode = os.stat(file).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(f"{str(file)!r} is no regular file")  # reading a pipe could wait for ever
    return stamp_of(os.fspath(file))
