"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Give a path to write to in place of ``file``.

    When the block ends well, what was written becomes ``file`` at once: a reader meets the old file or the new one.
    When it does not, ``file`` is as it was, and nothing is left.
    """
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())  # or a crash of the machine could leave the new name with old content
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def write_whole(file: Path, data: bytes) -> None:
    """Write a small file, whole or not at all."""
    with whole_file(file) as part:
        part.write_bytes(data)
