"""Folders of frames: find the numbered pictures that stand for a video, and their order, without opening any.

    clip_07/img_00001.jpg  img_00002.jpg  ...       as MMAction2, TSM and many others extract them
    P01_01/frame_0000000001.jpg  ...                EPIC-KITCHENS
    take/1.png  2.png  ...  10.png                  numbers without zeros before them: 2 comes before 10

The last number in a name is the frame's; the first frame may have any number. Hidden files, files that are no pictures,
and the pictures of optical flow that some tools write beside the frames (flow_x_00001.jpg) are ignored.
"""

from __future__ import annotations

import errno
import math
import os
import re
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from tada.errors import (
    FrameFolderError,
    NotARegularFileError,
    NotAVideoError,
    OptionError,
    TooLargeError,
    VideoError,
    VideoNotFoundError,
    why_unread,
)

VIDEO_EXTENSIONS = frozenset(
    # Split, since a literal would be sixteen lines.
    ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # noqa: SIM905
)
"""Lower-case extensions of the files in a folder that are videos. A CSV file may name any file."""
PICTURE_EXTENSIONS = frozenset((".jpg", ".jpeg", ".png"))
"""Lower-case extensions of pictures that may be frames."""
MIN_FPS, MAX_FPS = 0.001, 100_000.0
"""Lowest and highest frame rate that a caller may give."""
_MAX_FRAMES = 2_000_000  # as for a video file
_NUMBERED = re.compile(r"(.*?)([0-9]+)([^0-9]*)", re.DOTALL)
_FLOW = re.compile(r"(optical_?)?flow_?([xyuv]_?)?|[xyuv]_", re.IGNORECASE)  # before a number
_LITTER = frozenset(("thumbs.db", "desktop.ini"))  # from Windows; other systems' are hidden files
_SETTLED_NS = 2_000_000_000  # a folder changed more recently is not cached: its mtime is coarse
_SHOWN = 3
_FOLDER = "a folder"


def check_fps(fps: object) -> float:
    """Convert a frame rate to a float.

    Raises:
        OptionError: it is no number, or out of range.
    """
    try:
        rate = float(fps)  # type: ignore[arg-type]  # whatever is a number
    except (TypeError, ValueError):
        rate = math.nan
    if isinstance(fps, bool | str) or not MIN_FPS <= rate <= MAX_FPS:
        raise OptionError(
            f"{fps = } should be a positive number of frames per second, from {MIN_FPS:g} up to {MAX_FPS:g}"
        )
    return rate


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameFolder:
    """The frames in a folder, numbered without gaps."""

    path: str
    """As it was given."""
    before: str
    """The part of a picture's name before its number."""
    digits: int
    """Least number of digits; shorter numbers are padded with zeros."""
    after: str
    """The part of the name after its number, with the extension."""
    first: int
    """The first picture's number."""
    num_frames: int
    others: tuple[str, ...]
    """Names of all other entries: files, hidden ones too, folders, pictures of optical flow."""

    def file(self, index: int) -> str:
        """The path of a frame's picture; ``index`` counts from 0."""
        return os.path.join(self.path, f"{self.before}{self.first + index:0{self.digits}d}{self.after}")


def is_frame_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder stands for a video: most of its files are numbered pictures, and none is a video.

    A single picture beside subfolders is no frame, but a poster for their content.
    """
    try:
        files, folders, *_ = _list_folder(path)
        return are_frames(files) and not (folders and sum(_split_name(name) is not None for name in files) == 1)
    except (OSError, ValueError):
        return False


def are_frames(names: Iterable[str]) -> bool:
    """Whether most of a folder's file names are numbered pictures, and none is a video."""
    numbered = others = 0
    for name in names:
        if _is_litter(name):  # a Mac leaves "._img_00001.jpg" beside each picture
            continue
        if os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS:
            return False
        if _split_name(name) is None:
            others += 1
        else:
            numbered += 1
    return numbered > others


def frame_folder(path: str | os.PathLike[str]) -> FrameFolder:
    """Find the frames in a folder.

    Raises:
        VideoNotFoundError: the folder is missing or unreadable, or a frame is a broken link.
        NotAVideoError: it holds no numbered pictures, or only one.
        NotARegularFileError: a folder, a pipe or a device has a frame's name.
        FrameFolderError: a number is missing or occurs twice, or there are several series.
        TooLargeError: there are more frames than a video may have.
    """
    name = os.fspath(path)
    try:
        changed = os.stat(name).st_mtime_ns
        if abs(time.time_ns() - changed) < _SETTLED_NS:
            return _find_series(name)
        return _find_series_cached(name, changed)
    except OSError as error:
        raise VideoNotFoundError(f"the folder {name!r} cannot be read: {why_unread(error)}", name) from error


def numbered_pictures(path: str | os.PathLike[str]) -> list[str]:
    """Names of all numbered pictures in a folder, in the order of their numbers; the numbering is not checked.

    Raises:
        OSError: the folder cannot be read.
    """
    found = [(parts, name) for name in _list_folder(path)[0] if (parts := _split_name(name)) is not None]
    return [name for _, name in sorted(found, key=lambda entry: _sort_key(*entry))]


def frame_folder_stamp(path: str) -> tuple[int, int]:
    """A stamp that changes when frames are replaced: size of all pictures in bytes, newest mtime in ns.

    It is cached as long as the folder and its first, middle and last picture are unchanged.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        folder = frame_folder(path)
    except VideoError:  # reading the folder reports the fault
        return _make_stamp([os.path.join(path, name) for name in numbered_pictures(path)])
    last = folder.num_frames - 1
    marks = tuple(_make_stamp([folder.file(index)]) for index in (0, last // 2, last))
    return _stamp_cached(folder, (os.stat(path).st_mtime_ns, *marks))


@lru_cache(maxsize=1 << 16)
def _stamp_cached(folder: FrameFolder, marks: tuple[object, ...]) -> tuple[int, int]:
    """Stamp of all pictures; ``marks`` are only part of the cache key."""
    return _make_stamp([folder.file(index) for index in range(folder.num_frames)])


def _make_stamp(files: Iterable[str]) -> tuple[int, int]:
    size = newest = 0
    for file in files:
        with suppress(OSError):  # a broken link: reading it reports that
            status = os.stat(file)
            size, newest = size + status.st_size, max(newest, status.st_mtime_ns)
    return size, newest


@lru_cache(maxsize=1 << 16)
def _find_series_cached(path: str, changed_ns: int) -> FrameFolder:
    return _find_series(path)


def _find_series(path: str) -> FrameFolder:
    files, folders, litter, odd = _list_folder(path)
    found: dict[tuple[str, str], list[str]] = {}
    others = [name for name in files if _split_name(name) is None] + [f"{name}/" for name in folders] + litter
    for name in files:
        parts = _split_name(name)
        if parts is not None:
            found.setdefault((parts[0], parts[2]), []).append(parts[1])
    flow = [series for series in found if _FLOW.fullmatch(series[0])]
    if len(flow) < len(found):
        for before, after in flow:
            others += [f"{before}{number}{after}" for number in found.pop((before, after))]
    for name in sorted(odd):
        parts = _split_name(name)
        if parts is not None and (parts[0], parts[2]) in found:
            kind = NotARegularFileError if os.path.exists(os.path.join(path, name)) else VideoNotFoundError
            raise kind(f"{path!r}: {name!r} is {odd[name]}, no picture; extract or copy the frames again", path)
    if not found:
        held = f"it holds {_listed(others)}" if others else "it is empty"
        raise NotAVideoError(
            f"{path!r} is a folder without numbered pictures ({held}); frames are called as img_00001.jpg or 1.png",
            path,
        )
    if len(found) > 1:
        raise _make_several_error(path, found)
    ((before, after), numbers), *_ = found.items()
    if len(numbers) == 1:
        raise NotAVideoError(
            f"{path!r} holds one picture, {before + numbers[0] + after!r}: a video has two frames or more", path
        )
    if len(numbers) > _MAX_FRAMES:
        raise TooLargeError(f"{path!r} holds more than {_MAX_FRAMES} frames; part them into several folders", path)
    digits = len(next((number for number in numbers if number[0] == "0" and len(number) > 1), "1"))
    unlike = next((number for number in numbers if number != f"{int(number):0{digits}d}"), None)
    if unlike is not None:
        alike = min(number for number in numbers if len(number) == digits)
        raise FrameFolderError(
            f"{path!r}: {before + unlike + after!r} is numbered otherwise than {before + alike + after!r}: give all "
            "numbers as many digits, or none of them zeros in front",
            path,
        )
    have = sorted(map(int, numbers))
    folder = FrameFolder(
        path=path,
        before=before,
        digits=digits,
        after=after,
        first=have[0],
        num_frames=len(have),
        others=tuple(sorted(others)),
    )
    gap = next((i for i, number in enumerate(have) if number != have[0] + i), None)
    if gap is not None:
        missing = have[-1] - have[0] + 1 - len(have)
        name = os.path.basename(folder.file(gap))
        also = f", and {missing - 1} more up to {os.path.basename(folder.file(have[-1] - have[0]))!r}" * (missing > 1)
        raise FrameFolderError(
            f"{path!r}: {name!r} is missing{also}; extract or copy the frames again, or number those that are there "
            "without gaps",
            path,
        )
    return folder


def _make_several_error(path: str, found: dict[tuple[str, str], list[str]]) -> FrameFolderError:
    """Make the error for pictures of several series."""
    endings = sorted({f".{after.rpartition('.')[2]}" for _, after in found})
    if len({(before, after.rpartition(".")[0]) for before, after in found}) == 1:
        return FrameFolderError(
            f"{path!r} holds {_listed(endings)} mixed: the frames of a video have one ending; convert or rename them",
            path,
        )
    examples = [f"{before}{min(numbers, key=int)}{after}" for (before, after), numbers in sorted(found.items())]
    return FrameFolderError(
        f"{path!r} holds several series of pictures, those of {_listed(examples)}: put each video's frames into a "
        "folder of its own",
        path,
    )


def _list_folder(path: str | os.PathLike[str]) -> tuple[list[str], list[str], list[str], dict[str, str]]:
    """List a folder: names of files, of folders, of hidden or litter entries, and {name: kind} of the odd ones.

    Odd are entries that are no regular files: folders, and pipes, devices and broken links among the files.
    """
    files: list[str] = []
    folders: list[str] = []
    litter: list[str] = []
    odd: dict[str, str] = {}
    with os.scandir(path) as entries:
        for entry in entries:
            if _is_litter(entry.name):
                litter.append(entry.name)
                continue
            kind = _describe_kind(entry)
            (folders if kind == _FOLDER else files).append(entry.name)
            if kind:
                odd[entry.name] = kind
    return files, folders, litter, odd


def _describe_kind(entry: os.DirEntry[str]) -> str:
    """The kind of an entry in words; "" for a regular file. Only links cost a system call."""
    try:
        if entry.is_file():
            return ""
        return _FOLDER if entry.is_dir() else kind_in_words(entry.stat().st_mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a symbolic link that leads back to itself"
        if error.errno == errno.ENOENT:
            return "a symbolic link that leads nowhere"
        return f"something that cannot be looked at ({error.strerror})"


def kind_in_words(mode: int) -> str:
    """The kind of a file in words, from the mode of ``os.stat``; not for regular files."""
    if stat.S_ISDIR(mode):
        return _FOLDER
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _split_name(name: str) -> tuple[str, str, str] | None:
    """Split a name into the parts before its number, the number, and after it. None: not a numbered picture."""
    stem, ending = os.path.splitext(name)
    if ending.lower() not in PICTURE_EXTENSIONS:
        return None
    match = _NUMBERED.fullmatch(stem)
    return None if match is None else (match[1], match[2], match[3] + ending)


def _sort_key(parts: tuple[str, str, str], name: str) -> tuple[str, int, str, str]:
    before, number, after = parts
    return before, int(number), after, name


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    shown = ", ".join(repr(name) for name in found[:_SHOWN])
    return shown + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
