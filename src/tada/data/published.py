"""Published data sets: reads their lists (``tada.data.published_formats``) and finds the videos.

A list names videos by their ids. The files are searched for anywhere below one folder, by file names without their
extension, so that every layout of folders, and webm, avi or mp4, is found.

A file is one list; of a folder, all labeled lists are read. Copies of these data sets are seldom complete: videos that
were not found are noted in the table (``missing``), and the others are used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from tada.data.csv_rows import csv_columns, ignored_columns
from tada.data.published_formats import COLUMNS, FORMS, Entry
from tada.data.table import LabeledVideo, MissingVideo, VideoTable, composed, stamp_of
from tada.data.times_and_splits import SPLIT_OF
from tada.errors import DataError, listed
from tada.system.files import absolute_path
from tada.video.numbered import VIDEO_EXTENSIONS, are_frames


def find_published(data: Path, fold: int) -> tuple[str, list[Path]] | None:
    """Recognize a published data set by a file or folder: its kind, and its lists; None if it is not a known one.

    Raises:
        OptionError: the folder has lists, but none of this fold.
    """
    for form in FORMS:
        lists = form.lists(data, fold) if data.is_dir() else [data] if form.is_list(data) else []
        if lists:
            return form.kind, lists
    return None


def read_published(kind: str, lists: Sequence[Path], root: Path) -> VideoTable:
    """Read the lists of one data set, and find their videos below ``root``.

    Raises:
        DataError: an error in a list, with its file and row; or none of its videos was found.
    """
    form = next(form for form in FORMS if form.kind == kind)
    entries = [entry for file in lists for entry in form.read(file, _split_in_name(file.name))]
    name = ", ".join(file.name for file in lists)
    if not entries:
        raise DataError(f"{name}: no videos are listed; give the list as it was published")
    _check_ids(entries)
    heads = form.heads(lists[0].parent, entries)
    if not root.is_dir():
        raise DataError(f"{name}: the folder {str(root)!r} for its videos does not exist")
    top = absolute_path(root)
    files = _files_below(top)
    numbers = [{label: i for i, label in enumerate(head.labels)} for head in heads]
    videos, missing = [], []
    for entry in entries:
        found = _find(entry, files, root)
        if found is None:
            missing.append(MissingVideo(id=entry.id, split=entry.split, source=entry.source))
            continue
        path, span = found
        videos.append(
            LabeledVideo(
                path=path,
                labels=tuple(numbers[head][label] for head, label in enumerate(entry.labels)),
                split=entry.split,
                group=entry.group,
                source=entry.source,
                id=entry.id,
                start_seconds=span[0] if span else None,
                end_seconds=span[1] if span else None,
                stamp=stamp_of(path),
                is_frames=os.path.isdir(path),
            )
        )
    if not videos:
        raise DataError(
            f"{name}: none of its {len(entries)} videos is below {str(root)!r}, such as the first, "
            f"{entries[0].stem + '.mp4'!r} (or .webm, .avi, ...); give the folder that holds them as --videos"
        )
    return VideoTable(
        heads=heads,
        videos=tuple(sorted(videos, key=lambda video: (video.path, video.start_seconds or 0.0, video.id))),
        root=top,
        kind=kind,
        ignored=tuple(
            text
            for file in (lists if form.columns else ())
            for text in ignored_columns(file, csv_columns(file, COLUMNS), form.columns)
        ),
        missing=tuple(missing),
    )


def _split_in_name(name: str) -> str | None:
    words = re.split(r"[^a-z]+", name.lower().replace("trainlist", "train").replace("testlist", "test"))
    found = {SPLIT_OF[word] for word in words if word in SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def _check_ids(entries: Sequence[Entry]) -> None:
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.id, entry)
        if other is not entry:
            where = f"{entry.source}: {entry.id!r} is already in {other.source}"
            if other.split != entry.split:
                raise DataError(f"{where}, there in {other.split!r} and here in {entry.split!r}; keep it in one split")
            raise DataError(f"{where}; each video is listed once: remove one, or give only one of the lists")


# -- the files --------------------------------------------------------------------------------------------------------


def _files_below(root: str) -> dict[str, list[str]]:
    """The paths of all videos by file name without extension, and of all folders of frames by folder name.

    Links to folders are followed, each folder once.
    """
    files: dict[str, list[str]] = {}
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if folder != root and are_frames(names):
            files.setdefault(composed(os.path.basename(folder)), []).append(folder)
            continue
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending.lower() in VIDEO_EXTENSIONS and not name.startswith("."):
                files.setdefault(composed(stem), []).append(os.path.join(folder, name))
    return files


def _find(entry: Entry, files: dict[str, list[str]], root: Path) -> tuple[str, tuple[float, float] | None] | None:
    """The path of an entry's file and the segment's start and end in it, in seconds; None if it was not found."""
    tries: list[tuple[str | None, tuple[float, float] | None]] = [(entry.stem, entry.segment), (entry.cut_stem, None)]
    for stem, span in tries:
        paths = files.get(composed(stem), []) if stem else []
        if entry.folder is not None and len(paths) > 1:
            paths = [path for path in paths if os.path.basename(os.path.dirname(path)) == entry.folder]
        if len(paths) > 1:  # prefer a file over the folder of frames extracted from it
            paths = [path for path in paths if not os.path.isdir(path)] or paths
        if len(paths) > 1:
            shown = listed(os.path.relpath(path, root) for path in paths)
            raise DataError(f"{entry.source}: {stem!r} is there {len(paths)} times ({shown}); keep one of these files")
        if paths:
            return paths[0], span
    return None
