"""Checks of the videos that a list or class folders name: each exists, is listed once, in one split, with a label."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tada.data.csv_rows import OtherSpellings, class_names
from tada.data.hold_out import check_each_label_in_each_split
from tada.data.table import Head, LabeledVideo, VideoTable, composed, path_below, segment_text, stamp_of
from tada.errors import DataError, counted, listed
from tada.video.numbered import is_frame_folder
from tada.video.shards import member_of

LIST_COLUMNS = frozenset(
    ("path", "label", "verb", "noun", "split", "group", "start_seconds", "end_seconds", "fps", "video", "start", "end")
)
"""Columns with a meaning in a CSV of videos, in lower case."""
SEPARATOR = ";"
"""The character between several labels of a video in a label cell."""
IDENTITY_COLUMNS = ("content", "original", "mtime_ns")
"""Further columns of a run's list, which identify its files (``tada.data.run_videos``)."""


@dataclass(frozen=True, slots=True)
class ListedVideo:
    """A row of a list, or a file in a class folder, before it is checked."""

    path: str
    """Absolute, and inside the root."""
    written: str
    """The path as it is written in the list, for messages."""
    labels: tuple[str, ...]
    split: str | None
    group: str | None
    source: str
    segment: tuple[float | None, float | None] = (None, None)
    fps: float | None = None


def checked_table(
    rows: list[ListedVideo],
    root: str,
    *,
    kind: str,
    name: str,
    heads: tuple[str, ...],
    ignored: list[str],
    classes: tuple[str, ...] | None = None,
    several: bool = False,
) -> VideoTable:
    """Check the rows and make a table of them.

    Args:
        rows: the listed videos.
        root: absolute path of the folder that contains them.
        kind: as ``VideoTable.kind``; paths in a "folder" are spelled as on the disk.
        name: of the list, for messages.
        heads: names of the heads; each row has a label for each, or several for one.
        ignored: as ``VideoTable.ignored``.
        classes: all classes of the one head in the order of their numbers, if the list sets it; else they are sorted.
        several: whether a video may have several labels, or none.

    Raises:
        DataError: a video is missing, is listed twice, or has a label or a split that is not allowed.
    """
    _check_separator(rows, heads)
    rows, statuses = _find_files(rows, root, name, None if kind == "folder" else OtherSpellings(root))
    _check_once(rows, statuses)
    _check_unicode_forms(rows)
    if classes is None:
        names = [class_names((row.labels[i], row.source) for row in rows) for i in range(len(heads))]
    else:
        names = [classes]
    if several:
        _check_columns(names[0], name)
    numbers = [{label: i for i, label in enumerate(labels)} for labels in names]
    stamps = {
        path: stamp_of(path) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)
        for path, status in statuses.items()
    }
    videos = [
        LabeledVideo(
            path=row.path,
            labels=tuple(numbers[0][label] for label in row.labels)
            if several
            else tuple(number[label] for number, label in zip(numbers, row.labels, strict=True)),
            split=row.split,
            group=row.group,
            source=row.source,
            id=path_below(root, row.path) + segment_text(*row.segment),
            start_seconds=row.segment[0],
            end_seconds=row.segment[1],
            stamp=stamps[row.path],
            is_frames=stat.S_ISDIR(statuses[row.path].st_mode),
            fps=row.fps,
        )
        for row in rows
    ]
    table = VideoTable(
        heads=tuple(Head(name=head, labels=labels, several=several) for head, labels in zip(heads, names, strict=True)),
        videos=tuple(sorted(videos, key=lambda video: (video.path, video.start_seconds or 0.0, video.id))),
        root=root,
        kind=kind,
        ignored=tuple(ignored),
    )
    check_each_label_in_each_split(table)
    return table


def _check_separator(rows: Iterable[ListedVideo], heads: tuple[str, ...]) -> None:
    """Refuse a label that contains a semicolon: in a CSV written from this table it would be read as two labels."""
    for row in rows:
        label = next((label for label in row.labels if SEPARATOR in label), None)
        if label is not None:
            what = (
                "a verb or noun cell has only one" if len(heads) > 1 else "only the label column of a CSV has several"
            )
            raise DataError(
                f"{row.source}: the label {label!r} contains {SEPARATOR!r}, which separates labels of a video, and "
                f"{what}; rename it, or list the videos in a CSV"
            )


def _check_columns(classes: Sequence[str], name: str) -> None:
    """Refuse classes named like a column of a list, since each class becomes a column of the run's list."""
    for label in classes:
        if label.lower() in (*LIST_COLUMNS, *IDENTITY_COLUMNS):
            raise DataError(f"{name}: the class {label!r} has the name of a list's column; rename the class")


def _find_files(
    rows: list[ListedVideo], root: str, name: str, spellings: OtherSpellings | None
) -> tuple[list[ListedVideo], dict[str, os.stat_result]]:
    """The rows with paths as the disk spells them, and the ``stat`` of each file by its path; all files must exist."""
    statuses: dict[str, os.stat_result] = {}
    found, missing = [], []
    for row in rows:
        status = statuses.get(row.path) or status_of(row.path)
        if status is None and spellings is not None:
            path = spellings.find(row.written, row.source)
            if path is not None:
                row, status = replace(row, path=path), status_of(path)
        if status is None:
            missing.append(row)
        elif stat.S_ISDIR(status.st_mode) and not is_frame_folder(row.path):
            raise DataError(
                f"{row.source}: {row.written!r} is a folder, and most of its files are not numbered frames "
                "(such as img_00001.jpg); list its videos, or the folder of one video's frames"
            )
        elif row.fps is not None and not stat.S_ISDIR(status.st_mode):
            raise DataError(
                f"{row.source}: fps is for folders of frames, and {row.written!r} is a file with times of its own; "
                "leave the cell empty"
            )
        elif not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise DataError(f"{row.source}: {row.written!r} is not a regular file; remove the row")
        else:
            statuses[row.path] = status
            found.append(row)
    dangling = [row for row in missing if os.path.islink(row.path)]
    if dangling:
        more = f", and {counted(len(dangling) - 1, 'other')}" if len(dangling) > 1 else ""
        raise DataError(
            f"{dangling[0].source}: {dangling[0].written!r} is a link to {os.readlink(dangling[0].path)!r}, where "
            f"nothing is{more}: remove the link, or put the file there"
        )
    if missing:
        shown = listed((f"{row.written!r} ({row.source.removeprefix(name + ' ')})" for row in missing), quote=False)
        hint = ""
        if any("\\" in row.written for row in missing):
            hint = "; nor are they there with slashes in place of backslashes"
        raise DataError(
            f"{name}: {len(missing)} of {len(rows)} videos are not in {root!r}: {shown}{hint}; put them there, remove "
            "their rows, or give another root"
        )
    return found, statuses


def status_of(path: str) -> os.stat_result | None:
    """The ``stat`` of a path; None if nothing is there, or a broken link. A video in a shard is a regular file."""
    member = member_of(path)
    if member is not None:
        inode = hash(path)  # files with the same are compared by their real paths, which takes long
        times = {"st_mtime_ns": member.source_mtime_ns}
        return os.stat_result((stat.S_IFREG, inode, 0, 1, 0, 0, member.size_bytes, 0, 0, 0), times)
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def _check_once(rows: list[ListedVideo], statuses: Mapping[str, os.stat_result]) -> None:
    """Refuse a file, or a segment of it, that is listed twice, and a file in two splits."""
    first: dict[str, ListedVideo] = {}
    first_segment: dict[tuple[str, tuple[float | None, float | None]], ListedVideo] = {}
    one_path = _one_path_of_each_file(statuses)
    for row in rows:
        real = one_path[row.path]
        other = first.setdefault(real, row)
        if other is row:
            first_segment[real, row.segment] = row
            continue
        where = f"{row.source}: {row.written!r} is already in {other.source}"
        if other.written != row.written:
            where += f" as {other.written!r}"
        if other.split != row.split:
            raise DataError(f"{where}, there in {other.split!r} and here in {row.split!r}; keep it in one split")
        if (other.segment == (None, None)) != (row.segment == (None, None)):
            raise DataError(f"{where}, once whole and once as a segment; give the times of both")
        same = first_segment.setdefault((real, row.segment), row)
        if same is row:
            continue
        if same.labels != row.labels:
            there, here = (" and ".join(map(repr, labels)) for labels in (same.labels, row.labels))
            raise DataError(f"{where}, there as {there} and here as {here}; keep the right one")
        raise DataError(f"{where}; each video is listed once: remove one")


def _one_path_of_each_file(statuses: Mapping[str, os.stat_result]) -> dict[str, str]:
    """For each path, the first path that leads to the same file. Resolves links only of paths with equal inodes."""
    found: dict[str, str] = {}
    alike: dict[tuple[int, int], dict[str, str]] = {}
    for path, status in statuses.items():
        others = alike.setdefault((status.st_dev, status.st_ino), {})
        if not others:
            others[""] = found[path] = path  # resolved only if a second path has this inode, which is rare
            continue
        if "" in others:
            first = others.pop("")
            others[os.path.realpath(first)] = first
        found[path] = others.setdefault(os.path.realpath(path), path)  # hard links count as separate files
    return found


def _check_unicode_forms(rows: Iterable[ListedVideo]) -> None:
    """Refuse two files whose names differ in Unicode form only: other systems take them for one file."""
    first: dict[str, ListedVideo] = {}
    for row in rows:
        if not row.path.isascii():
            other = first.setdefault(composed(row.path), row)
            if other.path != row.path:
                raise DataError(
                    f"{row.source}: {row.written!a} and {other.written!a} ({other.source}) differ in Unicode form "
                    "only, and look the same; rename one of them"
                )
