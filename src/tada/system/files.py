"""Write files atomically, check before long work that a place can be written, and choose distinct file names.

Where a file cannot be written, ``OutputError`` names it, says why and what to do.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from tada.errors import OptionError, OutputError

PathT = TypeVar("PathT", str, Path)

_NAME_BYTES = 200  # file systems allow 255; the rest is for what we add to a name
_PROBE_BYTES = 4096  # a block of most file systems: fewer bytes may still fit on a full disk

# -- atomic writes ----------------------------------------------------------------------------------------------------


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Write ``file`` atomically: yield the path of a temporary part file, which is renamed to ``file`` at the end.

    A reader sees the old file or the new one. When the block raises, ``file`` is unchanged and the part is removed. A
    killed process leaves its part file; the next process that writes into the folder removes it.

    Raises:
        OutputError: it cannot be written.
    """
    if os.path.abspath(file.parent) not in _cleaned:
        remove_dead_parts(file.parent)
    part = _part_of(file)
    try:
        with writing(file, part):
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())  # else a crash of the machine could leave an empty file under the name
            _check_still_ours(file)
            part.replace(file)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_whole(file: Path, data: bytes) -> None:
    """Write a small file atomically.

    Raises:
        OutputError: it cannot be written.
    """
    with whole_file(file) as part:
        part.write_bytes(data)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Write ``folder`` atomically: yield a temporary folder, which replaces ``folder`` at the end.

    When the block raises, ``folder`` is unchanged and the temporary folder is removed.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    if os.path.abspath(folder.parent) not in _cleaned:
        remove_dead_parts(folder.parent)
    part, old = _part_of(folder), _part_of(folder)
    try:
        with writing(folder, part, old):
            part.mkdir()
            yield part
            _check_still_ours(folder)
            if folder.exists():
                folder.rename(old)
            part.rename(folder)
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)


still_ours: dict[str, Callable[[], bool]] = {}
"""The folders that this process holds (``tada.system.locks``), by real path, and whether it holds them still."""


def _check_still_ours(file: Path) -> None:
    """Raise OutputError if a held folder above a file was removed, and made again by somebody else, since."""
    place = os.path.realpath(file.parent) if still_ours else ""
    for folder, is_ours in list(still_ours.items()):
        if (place == folder or place.startswith(folder.rstrip(os.sep) + os.sep)) and not is_ours():
            raise OutputError(
                f"{str(file)!r} is not written: its folder was removed while this command wrote into it, and another "
                "process may write there now; give the same command again, when none does"
            )


_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_PART = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part")
_cleaned: set[str] = set()


def _part_of(file: Path) -> Path:
    """A new path for a part of ``file``. It does not contain the file's name, which may have the maximal length."""
    return file.with_name(f".{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.part")


def is_part(name: str) -> bool:
    """Whether this is the name of a part file, which ``whole_file`` has not renamed yet."""
    return _PART.fullmatch(name) is not None


def remove_dead_parts(folder: Path) -> None:
    """Remove the part files that killed processes of this machine have left in a folder."""
    place = os.path.abspath(folder)
    _cleaned.add(place)
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            match = _PART.fullmatch(entry.name)
            if match and match[1] == _HOST and not is_alive(int(match[2])):
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a temporary folder, and remove it at the end. One left by a killed process is removed by the next call.

    Raises:
        OutputError: a file in it cannot be written.
    """
    place = Path(tempfile.gettempdir())
    remove_dead_parts(place)
    folder = _part_of(place / "scratch")
    try:
        with writing(place, folder):
            folder.mkdir(mode=0o700)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs, as far as can be told."""
    if sys.platform == "win32":
        return True  # signal 0, the test on other systems, is Ctrl-C there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OverflowError:
        return False
    except OSError:  # a process of another user
        return True
    return True


# -- checks before long work ------------------------------------------------------------------------------------------


def try_folder(folder: Path) -> None:
    """Check, before long work, that files can be written into a folder. Leaves no file behind.

    Raises:
        OutputError: they cannot.
    """
    with made_folder(folder):
        probe = _part_of(folder / "probe")
        try:
            with writing(folder, probe):
                probe.write_bytes(bytes(_PROBE_BYTES))
                with probe.open("rb") as written:
                    os.fsync(written.fileno())
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)


def try_file(file: Path) -> None:
    """Check, before long work, that a file can be written. Leaves no file behind.

    Raises:
        OutputError: it cannot.
    """
    with writing(file):  # is_dir raises for a name that is too long, or below a file
        if file.is_dir():
            raise OutputError(f"{str(file)!r} cannot be written: it is a folder; give a name in it")
    try_folder(file.parent)


def check_ending(path: Path, ending: str, rule: str) -> None:
    """Refuse a file name with an ending other than ``ending``; a name without one is allowed.

    Raises:
        OptionError: it has another ending; the message states ``rule``.
    """
    if path.suffix.lower() not in ("", ending):
        raise OptionError(f"{str(path)!r} ends in {path.suffix}, and {rule}: end it in {ending}")


def check_not_there(folder: Path, names: Iterable[str], *, overwrite: bool) -> None:
    """Check that a folder holds no report yet, which a new one would replace.

    Args:
        names: patterns of the report's file names.

    Raises:
        OptionError: such a file exists, and ``overwrite`` is false.
    """
    there = () if overwrite else (file for name in names for file in sorted(folder.glob(name)))
    if (file := next(iter(there), None)) is not None:
        raise OptionError(
            f"{str(folder)!r} holds a report ({file.name}): give another folder (--out), or replace it (--overwrite)"
        )


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; at the end remove those that were made and are still empty.

    Raises:
        OutputError: it cannot be made.
    """
    made: list[Path] = []
    above = Path(os.path.abspath(folder))
    while not os.path.lexists(above) and above != above.parent:
        made.append(above)
        above = above.parent
    try:
        with writing(folder):
            os.makedirs(folder, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # stops at the first that is not empty
            for empty in made:
                empty.rmdir()


@contextmanager
def writing(target: Path, *parts: Path) -> Iterator[None]:
    """Turn an OSError in the block into an ``OutputError``: the file or folder ``target`` cannot be written.

    An error that names a file outside of ``target`` is raised unchanged.

    Args:
        parts: part files of ``target``; an error that names one of them is told with the name of ``target``.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save raises a RuntimeError from the OSError of its file.
        fault = error if isinstance(error, OSError) else error.__context__
        if not isinstance(fault, OSError) or not _is_about(fault, (target, *parts)):
            raise
        name = fault.filename or ""
        is_part = not name or Path(os.fsdecode(name).removeprefix("file:")).name in {part.name for part in parts}
        raise OutputError(cannot_be_written(target if is_part else Path(os.fsdecode(name)), fault)) from error


def _is_about(fault: OSError, places: Iterable[Path]) -> bool:
    if isinstance(fault, BrokenPipeError | ConnectionError | TimeoutError):
        return False
    if fault.filename is None:
        return True
    if isinstance(fault.filename, int):
        return False
    file = Path(os.path.abspath(os.fsdecode(fault.filename).removeprefix("file:")))  # as FFmpeg is given it
    return any(file.is_relative_to(place) or place.is_relative_to(file) for place in map(Path.absolute, places))


_FULL = {errno.ENOSPC, errno.EDQUOT}


def cannot_be_written(place: Path, fault: OSError) -> str:
    """The message that a file or folder cannot be written: the reason, and the way out."""
    above = next((folder for folder in place.absolute().parents if os.path.lexists(folder)), None)
    if fault.errno in _FULL:
        reason = "the disk is full; make room, and give the same command again"
    elif fault.errno == errno.EFBIG:
        reason = "it is larger than the system lets a file be (ulimit -f); raise the limit, or give another place"
    elif fault.errno == errno.EROFS:
        reason = "the file system is read-only; give another place"
    elif fault.errno in (errno.EACCES, errno.EPERM):
        reason = "there are no rights to write there; give another place, or change the rights"
    elif fault.errno in (errno.EEXIST, errno.ENOTDIR) and os.path.lexists(place):
        reason = "a file has the name of the folder; give another name"
    elif fault.errno == errno.ENOTDIR and above is not None:
        reason = f"{str(above)!r} is a file, no folder; give another place"
    elif fault.errno == errno.EISDIR:
        reason = "it is a folder; give the name of a file"
    elif fault.errno == errno.ENAMETOOLONG:
        reason = "its name is too long for the file system; give a shorter one"
    elif fault.errno == errno.ENOENT and above != place.absolute().parent:
        reason = f"its folder is not there any more, only {str(above)!r} is"
    elif fault.errno == errno.ENOENT:
        reason = f"nothing can be made in {str(above)!r}; give another place"
    else:
        reason = f"{fault.strerror or fault}; give another place"
    return f"{str(place)!r} cannot be written: {reason}"


# -- names ------------------------------------------------------------------------------------------------------------


def distinct_names(paths: Iterable[PathT]) -> dict[PathT, str]:
    """A distinct name for the outputs of each file: the picture of ``path`` is "NAME.png".

    The name is the file's stem where no other file has it. Files of the same stem are prefixed with the folders that
    differ: a/0.mp4 and b/0.mp4 become "a_0" and "b_0". 0.mp4 and 0.avi in one folder keep their endings. Names that
    are still equal (a/0.mp4, b/0.mp4 and a_0.mp4) are numbered. Names that differ only in upper and lower case or in
    the encoding of accents count as equal, as on many file systems. The order of the paths does not matter; two
    spellings of one path get one name.
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
            endings = {_fold_name(joined[file][1]) for file in same_place}
            if len(same_place) == len(endings) > 1:
                names |= {file: "".join(joined[file]) for file in same_place}
            else:
                names |= {file: joined[file][0] for file in same_place}
    # Files that keep their stem come first, so that only prefixed names are numbered.
    taken: set[str] = set()
    for file in sorted(names, key=lambda file: (names[file] != Path(file).stem, file)):
        name = short_name(names[file])
        number = 1
        while _fold_name(f"{name}_{number}" if number > 1 else name) in taken:
            number += 1
        names[file] = f"{name}_{number}" if number > 1 else name
        taken.add(_fold_name(names[file]))
    return {path: names[file] for path, file in given.items()}


def _groups(names: Mapping[str, str]) -> list[list[str]]:
    """Group files by equal names."""
    found: dict[str, list[str]] = {}
    for file in sorted(names):
        found.setdefault(_fold_name(names[file]), []).append(file)
    return list(found.values())


def _fold_name(name: str) -> str:
    """A key that is equal for names that some file system treats as one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def short_name(name: str) -> str:
    """The name itself, or, where it is too long for a file, its beginning and a hash of all of it."""
    data = os.fsencode(name)
    if len(data) <= _NAME_BYTES:
        return name
    head = data[: _NAME_BYTES - 17].decode(errors="ignore")
    return f"{head}-{hashlib.sha256(data).hexdigest()[:16]}"


def absolute_path(path: str | os.PathLike[str]) -> str:
    """The absolute path of ``path``. Symbolic links are kept, not resolved.

    Except before "..", where links are resolved as the system does: LINK/.. is the folder above the link's target.
    """
    parts = os.path.join(os.getcwd(), path).split(os.sep)
    if ".." in parts:
        end = len(parts) - parts[::-1].index("..")
        parts = [os.path.realpath(os.sep.join(parts[:end])), *parts[end:]]
    return os.path.normpath(os.sep.join(parts))
