"""Lists without a header, as MMAction2, TSM and VideoMAE use: a video and its class in each line.

    clips/a.mp4 3               number, from 0, or name of a class, after spaces, a tab, a comma or a semicolon
    frames/a 120 3              a folder of frames, their number, and the class (TSM, MMAction2's rawframes)

The names of numbered classes are in a file beside the list, one in each line: classes.txt, labels.txt, or MMAction2's
label_map_k400.txt. If a folder has several lists named after splits (ssv2_train.txt, ssv2_val.txt), each is that split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tada.data.csv_rows import class_number, path_inside, text_lines
from tada.data.listed_videos import ListedVideo, checked_table
from tada.data.table import ACTION, VideoTable, composed
from tada.data.times_and_splits import SPLIT_OF
from tada.errors import DataError, listed
from tada.system.files import absolute_path
from tada.video.numbered import VIDEO_EXTENSIONS

_ENDINGS = "|".join(re.escape(ending) for ending in sorted(VIDEO_EXTENSIONS))
# The path ends with a video's extension before a separator; it may contain spaces and commas itself.
_VIDEO_ROW = re.compile(
    rf"""(?P<quote>["']?)(?P<path>.+?(?:{_ENDINGS}))(?P=quote)\s*[\s,;]\s*(?P<label>.+)""", re.IGNORECASE
)
_FRAMES_ROW = re.compile(r"(?P<path>.*\S)[\s,;]+(?P<count>\d+)[\s,;]+(?P<label>\d+)")
_NUMBER = re.compile(r"\d+")
_CLASS_FILES = ("classes.txt", "labels.txt", "*label_map*.txt", "*classes*.txt")
_SUFFIXES = frozenset((".txt", ".csv", ".list", ".lst"))


@dataclass(frozen=True, slots=True)
class PlainRow:
    """A line of a list without a header."""

    source: str
    """The line's place, for messages: "train.txt line 3"."""
    path: str
    """As it is written in the list."""
    label: str
    split: str | None


def plain_lists(data: Path) -> list[Path]:
    """Find the lists without a header: ``data`` itself, or those in a folder; none if it has another form.

    In a folder, only lists named after splits are used, and only if there are at least two splits.
    """
    if data.is_dir():
        named = [file for file in sorted(data.iterdir()) if _split_of(file) is not None and _is_plain(file)]
        return named if len({_split_of(file) for file in named}) > 1 else []
    return [data] if _is_plain(data) else []


def read_plain_lists(lists: Sequence[Path], root: Path) -> VideoTable:
    """Read lists, whose paths start from ``root``, to a checked table.

    Raises:
        DataError: an error in a line or the videos; the message names it and says what to do.
    """
    name = ", ".join(file.name for file in lists)
    if not root.is_dir():
        raise DataError(f"{name}: the folder {str(root)!r} that its paths start from does not exist")
    top = absolute_path(root)
    found, classes = _read(lists)
    rows = [
        ListedVideo(path_inside(top, row.path, row.source), row.path, (row.label,), row.split, None, row.source)
        for row in found
    ]
    return checked_table(rows, top, kind="list", name=name, heads=(ACTION,), ignored=[], classes=classes)


def _read(lists: Sequence[Path]) -> tuple[list[PlainRow], tuple[str, ...] | None]:
    """The rows of the lists, and the classes in the order of their numbers; None if they are not numbered.

    Raises:
        DataError: a line has another form, some classes are numbers and some names, or a number has no name.
    """
    with_splits = len(lists) > 1
    rows = [row for file in lists for row in _parse_lines(file, _split_of(file) if with_splits else None)]
    numbered = [row for row in rows if _NUMBER.fullmatch(row.label)]
    if not numbered:
        return [PlainRow(row.source, row.path, composed(row.label), row.split) for row in rows], None
    if len(numbered) < len(rows):
        other = next(row for row in rows if not _NUMBER.fullmatch(row.label))
        raise DataError(
            f"{other.source}: the class {other.label!r} is a name, that of {numbered[0].source} a number: write all "
            "as names, or all as numbers"
        )
    file, names = _class_names(lists[0].parent)
    if names is None:
        classes = tuple(sorted({str(int(row.label)) for row in rows}, key=int))
        return [PlainRow(row.source, row.path, str(int(row.label)), row.split) for row in rows], classes
    try:
        named = [
            PlainRow(row.source, row.path, names[class_number(row.source, row.label, len(names), "class")], row.split)
            for row in rows
        ]
    except DataError as error:
        raise DataError(f"{error} in {file}; numbers count from 0") from error
    return named, names


def _parse_lines(file: Path, split: str | None) -> Iterator[PlainRow]:
    for source, line in text_lines(file):
        match = _VIDEO_ROW.fullmatch(line) or _FRAMES_ROW.fullmatch(line)
        if match is None:
            raise DataError(
                f"{source}: {line[:80]!r} should be a video and its class, such as 'clips/a.mp4 3'; or give the file a "
                "header: path,label"
            )
        yield PlainRow(source, match["path"], match["label"].strip().strip("\"'"), split)


def _is_plain(file: Path) -> bool:
    """Whether the first line of a text file is a video and its class."""
    if file.suffix.lower() not in _SUFFIXES or not file.is_file():
        return False
    try:
        _, line = next(text_lines(file))
    except DataError:  # the reader of another form reports the error
        return False
    video = _VIDEO_ROW.fullmatch(line)
    if video is not None:
        # More cells: a row of a CSV whose header is missing.
        return not re.search(r"[,;\t]", video["label"])
    return file.suffix.lower() != ".csv" and _FRAMES_ROW.fullmatch(line) is not None


def _split_of(file: Path) -> str | None:
    """The split that a list is named after: "val" for "kinetics400_val_list.txt"; None if there is none."""
    if file.suffix.lower() not in _SUFFIXES:
        return None
    words = [SPLIT_OF[word] for word in re.split(r"[^a-z]+", file.stem.lower()) if word in SPLIT_OF]
    return words[0] if len(set(words)) == 1 else None


def _class_names(folder: Path) -> tuple[str, tuple[str, ...] | None]:
    """The name of the file with the classes' names, and these names; ("", None) if there is no such file.

    Raises:
        DataError: a class appears twice, or there are two such files.
    """
    files = sorted({file for pattern in _CLASS_FILES for file in folder.glob(pattern)})
    if not files:
        return "", None
    if len(files) > 1:
        raise DataError(f"several files name the classes ({listed(file.name for file in files)}): keep one of them")
    names: dict[str, str] = {}
    for source, line in text_lines(files[0]):
        number, _, name = line.partition(" ")  # "0 archery", as some write it
        label = composed(name.strip() if number == str(len(names)) and name.strip() else line)
        if label in names:
            raise DataError(f"{source}: the class {label!r} is already in {names[label]}; keep one")
        names[label] = source
    return files[0].name, tuple(names)
