"""Folders of frames: numbered pictures that stand for a video. Which they are, and in which order; none is opened here.

    clip_07/img_00001.jpg  img_00002.jpg  ...       as MMAction2, TSM and many others extract them
    P01_01/frame_0000000001.jpg  ...                EPIC-KITCHENS
    take/1.png  2.png  ...  10.png                  numbers without zeros before them: 2 comes before 10

The last number in a name counts, from wherever the first one starts. What is hidden, or lies between them and is no
picture, is passed over, and so are pictures of optical flow that some tools write beside the frames: flow_x_00001.jpg.
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
"""Endings, in small letters, by which a folder's videos are told from other files. A CSV file may name any file."""
PICTURE_EXTENSIONS = frozenset((".jpg", ".jpeg", ".png"))
"""Endings, in small letters, of pictures that may be frames."""
MIN_FPS, MAX_FPS = 0.001, 100_000.0
"""The highest rate that frames may be said to have."""
_MAX_FRAMES = 2_000_000  # as of a file
_NUMBERED = re.compile(r"(.*?)([0-9]+)([^0-9]*)", re.DOTALL)
_FLOW = re.compile(r"(optical_?)?flow_?([xyuv]_?)?|[xyuv]_", re.IGNORECASE)  # before a number
_LITTER = frozenset(("thumbs.db", "desktop.ini"))  # which Windows leaves; what others leave is hidden
_SETTLED_NS = 2_000_000_000  # a folder that was changed within is listed anew: its time of change has coarse steps
_SHOWN = 3
_FOLDER = "a folder"


def check_fps(fps: object) -> float:
    """A rate of frames, as a number.

    Raises:
        OptionError: it is none.
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
    """The frames in a folder, by their numbers, of which none is missing."""

    path: str
    """As it was given."""
    before: str
    """What stands before a picture's number in its name."""
    digits: int
    """As many digits a number has at least."""
    after: str
    """What stands behind the number, with the ending."""
    first: int
    """The first picture's number."""
    num_frames: int
    others: tuple[str, ...]
    """Names of what else lies there: other files, hidden ones too, folders, pictures of optical flow."""

    def file(self, index: int) -> str:
        """The path of a frame's picture; ``index`` counts from 0."""
        return os.path.join(self.path, f"{self.before}{self.first + index:0{self.digits}d}{self.after}")


def is_frame_folder(path: str | os.PathLike[str]) -> bool:
    """Whether it is a folder that stands for a video: most of its files are numbered pictures, and none is a video.

    One picture beside other folders is no frame, but a poster of what these hold.
    """
    try:
        files, folders, *_ = _files(path)
        return are_frames(files) and not (folders and sum(_parts(name) is not None for name in files) == 1)
    except (OSError, ValueError):
        return False


def are_frames(names: Iterable[str]) -> bool:
    """The same, by the names of a folder's files."""
    numbered = others = 0
    for name in names:
        if _is_litter(name):  # a Mac leaves "._img_00001.jpg" beside each picture
            continue
        if os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS:
            return False
        if _parts(name) is None:
            others += 1
        else:
            numbered += 1
    return numbered > others


def frame_folder(path: str | os.PathLike[str]) -> FrameFolder:
    """Find the frames in a folder.

    Raises:
        VideoNotFoundError: there is no such folder, or it may not be read; or a frame is a link that leads nowhere.
        NotAVideoError: no numbered pictures are in it, or only one.
        NotARegularFileError: a folder, a pipe or a device is called as one of them.
        FrameFolderError: a number is missing or there twice, or there are several series.
        TooLargeError: there are more frames than a video may have.
    """
    name = os.fspath(path)
    try:
        changed = os.stat(name).st_mtime_ns
        if abs(time.time_ns() - changed) < _SETTLED_NS:
            return _series(name)
        return _settled_series(name, changed)
    except OSError as error:
        raise VideoNotFoundError(f"the folder {name!r} cannot be read: {why_unread(error)}", name) from error


def numbered_pictures(path: str | os.PathLike[str]) -> list[str]:
    """Names of all numbered pictures in a folder, in the order of their numbers, whatever is wrong with these.

    Raises:
        OSError: the folder cannot be read.
    """
    found = [(parts, name) for name in _files(path)[0] if (parts := _parts(name)) is not None]
    return [name for _, name in sorted(found, key=lambda entry: _order(*entry))]


def frame_folder_stamp(path: str) -> tuple[int, int]:
    """What tells that frames were replaced: the size of all pictures in bytes, the newest time of change in ns.

    Where neither the folder has changed nor its first, middle and last picture, the others are not asked again.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        folder = frame_folder(path)
    except VideoError:  # who reads it says what is wrong
        return _stamp([os.path.join(path, name) for name in numbered_pictures(path)])
    last = folder.num_frames - 1
    marks = tuple(_stamp([folder.file(index)]) for index in (0, last // 2, last))
    return _settled_stamp(folder, (os.stat(path).st_mtime_ns, *marks))


@lru_cache(maxsize=1 << 16)
def _settled_stamp(folder: FrameFolder, marks: tuple[object, ...]) -> tuple[int, int]:
    """Of the folder as it is; ``marks`` change with it."""
    return _stamp([folder.file(index) for index in range(folder.num_frames)])


def _stamp(files: Iterable[str]) -> tuple[int, int]:
    size = newest = 0
    for file in files:
        with suppress(OSError):  # a link that leads nowhere: reading it says so
            status = os.stat(file)
            size, newest = size + status.st_size, max(newest, status.st_mtime_ns)
    return size, newest


@lru_cache(maxsize=1 << 16)
def _settled_series(path: str, changed_ns: int) -> FrameFolder:
    return _series(path)


def _series(path: str) -> FrameFolder:
    files, folders, litter, odd = _files(path)
    found: dict[tuple[str, str], list[str]] = {}
    others = [name for name in files if _parts(name) is None] + [f"{name}/" for name in folders] + litter
    for name in files:
        parts = _parts(name)
        if parts is not None:
            found.setdefault((parts[0], parts[2]), []).append(parts[1])
    flow = [series for series in found if _FLOW.fullmatch(series[0])]
    if len(flow) < len(found):
        for before, after in flow:
            others += [f"{before}{number}{after}" for number in found.pop((before, after))]
    for name in sorted(odd):
        parts = _parts(name)
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
        raise _several(path, found)
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


def _several(path: str, found: dict[tuple[str, str], list[str]]) -> FrameFolderError:
    """The error that pictures are not of one series."""
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


def _files(path: str | os.PathLike[str]) -> tuple[list[str], list[str], list[str], dict[str, str]]:
    """Names of files, and of folders, in a folder; of what is hidden or litter, and is neither.

    Of what is no regular file also what it is, in words: folders, and pipes, devices and broken links among the files.
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
            kind = _kind(entry)
            (folders if kind == _FOLDER else files).append(entry.name)
            if kind:
                odd[entry.name] = kind
    return files, folders, litter, odd


def _kind(entry: os.DirEntry[str]) -> str:
    """What an entry is that is no regular file, in words; only links are asked for more than the folder says."""
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
    """What a place is that is no regular file, by the mode that ``os.stat`` gives."""
    if stat.S_ISDIR(mode):
        return _FOLDER
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _parts(name: str) -> tuple[str, str, str] | None:
    """What stands before a picture's number, the number, and what stands behind it; None: it is no such picture."""
    stem, ending = os.path.splitext(name)
    if ending.lower() not in PICTURE_EXTENSIONS:
        return None
    match = _NUMBERED.fullmatch(stem)
    return None if match is None else (match[1], match[2], match[3] + ending)


def _order(parts: tuple[str, str, str], name: str) -> tuple[str, int, str, str]:
    before, number, after = parts
    return before, int(number), after, name


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    shown = ", ".join(repr(name) for name in found[:_SHOWN])
    return shown + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
