"""Files as they are written: whole or not at all, and under names that tell them apart."""

from __future__ import annotations

import hashlib
import os
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

PathT = TypeVar("PathT", str, Path)

_NAME_BYTES = 200  # file systems take 255, ours and an ending together


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


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder to write into in place of ``folder``.

    When the block ends well, it becomes ``folder``, in place of one that was there. When it does not, ``folder`` is as
    it was, and nothing is left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    old = part.with_suffix(".old")
    part.mkdir()
    try:
        yield part
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)


def distinct_names(paths: Iterable[PathT]) -> dict[PathT, str]:
    """Names for what is made of files, by the files' paths: the picture of ``path`` is "NAME.png".

    A name is the file's own without its ending where no other file has the same. Files of one name get the folders
    that tell them apart before it: a/0.mp4 and b/0.mp4 become "a_0" and "b_0"; 0.mp4 and 0.avi in one folder keep their
    endings; what is alike even then (a/0.mp4, b/0.mp4 and a_0.mp4) gets a number. Names that differ in the case of
    letters or the form of accents only count as the same, as they are on many file systems. The order of the paths
    plays no part; two spellings of one path get one name.
    """
    given = {path: os.path.abspath(path) for path in paths}
    names: dict[str, str] = {}
    for same_stem in _groups({file: Path(file).stem for file in given.values()}):
        if len(same_stem) == 1:
            names[same_stem[0]] = Path(same_stem[0]).stem
            continue
        common = os.path.commonpath([os.path.dirname(file) for file in same_stem])
        joined = {file: os.path.splitext(os.path.relpath(file, common).replace(os.sep, "_")) for file in same_stem}
        for same_place in _groups({file: name for file, (name, _) in joined.items()}):
            endings = {_same(joined[file][1]) for file in same_place}
            if len(same_place) == len(endings) > 1:
                names |= {file: "".join(joined[file]) for file in same_place}
            else:
                names |= {file: joined[file][0] for file in same_place}
    # A name that is the file's own comes before those that were joined, so that it stays as it is.
    taken: set[str] = set()
    for file in sorted(names, key=lambda file: (names[file] != Path(file).stem, file)):
        name = _short(names[file])
        number = 1
        while _same(f"{name}_{number}" if number > 1 else name) in taken:
            number += 1
        names[file] = f"{name}_{number}" if number > 1 else name
        taken.add(_same(names[file]))
    return {path: names[file] for path, file in given.items()}


def _groups(names: Mapping[str, str]) -> list[list[str]]:
    """The files that have the same name, together."""
    found: dict[str, list[str]] = {}
    for file in sorted(names):
        found.setdefault(_same(names[file]), []).append(file)
    return list(found.values())


def _same(name: str) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _short(name: str) -> str:
    """A joined name may be longer than a file's name can be: then its head, and a hash in place of the rest."""
    data = os.fsencode(name)
    if len(data) <= _NAME_BYTES:
        return name
    head = data[: _NAME_BYTES - 17].decode(errors="ignore")
    return f"{head}-{hashlib.sha256(data).hexdigest()[:16]}"
