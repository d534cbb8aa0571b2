"""A folder of class folders, below train/, val/ and test/ or without splits, as a checked table."""

from __future__ import annotations

import os
from pathlib import Path

from tada.data.listed_videos import ListedVideo, checked_table
from tada.data.table import ACTION, VideoTable, composed
from tada.data.times_and_splits import SPLIT_OF
from tada.errors import DataError, listed, why_unread
from tada.system.files import absolute_path
from tada.video.numbered import VIDEO_EXTENSIONS, is_frame_folder, numbered_pictures


def read_class_folders(data: Path) -> VideoTable:
    """The checked table of a folder of class folders.

    Raises:
        DataError: something lies where no video of a class can be; the message names it and the way out.
    """
    folders, files = _entries(data)
    if not folders:
        tables = [name for name in files if name.lower().endswith(".csv")]
        hint = f"; it holds {tables[0]!r}: give that file" if tables else "; put each class's videos in a folder"
        if not tables and is_frame_folder(data):
            hint = ", but frames of one video: put each video's into DATA/CLASS/VIDEO/, and give DATA"
        raise DataError(f"{str(data)!r} holds no class folders{hint}")
    splits = {name: SPLIT_OF[name.lower()] for name in folders if name.lower() in SPLIT_OF}
    if splits and len(splits) < len(folders):
        others = [name for name in folders if name not in splits]
        raise DataError(
            f"{str(data)!r} holds split folders ({listed(splits)}) beside others ({listed(others)}); keep either "
            "splits or classes there, or list the videos in a CSV file"
        )
    rows: list[ListedVideo] = []
    ignored = _not_videos(data, files)
    if not splits:
        ignored += _read_classes(data, folders, split=None, rows=rows)
    for folder, split in splits.items():
        if list(splits.values()).count(split) > 1:
            raise DataError(
                f"{str(data)!r} holds more than one folder for the split {split!r} ({listed(splits)}); "
                "put their videos into one"
            )
        classes, files = _entries(data / folder)
        if not classes:
            raise DataError(f"{str(data / folder)!r} holds no class folders; put each class's videos in a folder there")
        ignored += _not_videos(data / folder, files)
        ignored += _read_classes(data / folder, classes, split=split, rows=rows)
    return checked_table(rows, absolute_path(data), kind="folder", name=str(data), heads=(ACTION,), ignored=ignored)


def _read_classes(parent: Path, classes: list[str], *, split: str | None, rows: list[ListedVideo]) -> list[str]:
    ignored: list[str] = []
    for name in classes:
        folder = parent / name
        folders, files = _entries(folder)
        other = next((inner for inner in folders if not is_frame_folder(folder / inner)), None)
        if other is not None:
            raise DataError(
                f"{str(folder / other)!r} is a folder inside a class folder; put the videos straight into "
                f"{str(folder)!r}, or list them in a CSV file. (A folder that stands for a video holds its numbered "
                "frames, as img_00001.jpg, and nothing that is more)"
            )
        videos = [file for file in files if _is_video(file)]
        if not videos and not folders:
            raise _no_videos(folder, files)
        both = {os.path.splitext(file)[0]: file for file in videos}.keys() & set(folders)
        if both:
            twin = min(both)
            raise DataError(
                f"class folder {str(folder)!r} holds a video and a folder of frames that are both called {twin!r}: "
                "keep one of them, or rename one if they are of two recordings"
            )
        ignored += [str(folder / file) for file in files if not _is_video(file)]
        path, label = absolute_path(folder), composed(name)
        for file in (*videos, *folders):
            rows.append(ListedVideo(os.path.join(path, file), file, (label,), split, None, str(folder)))
    return ignored


def _no_videos(folder: Path, files: list[str]) -> DataError:
    if is_frame_folder(folder):
        pictures = numbered_pictures(folder)
        return DataError(
            f"class folder {str(folder)!r} holds pictures ({listed(pictures, at_most=2)}): those of one video belong "
            f"into a folder of their own in it, as {str(folder / 'clip_01' / pictures[0])!r}"
        )
    found = f"it holds {listed(files)}" if files else "it is empty"
    endings = " ".join(sorted(VIDEO_EXTENSIONS))
    return DataError(
        f"class folder {str(folder)!r} has no videos ({found}); add some or take it away. "
        f"A video's name ends in one of {endings}, or it is a folder of numbered frames"
    )


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """List names of folders, and of everything else, both sorted, without hidden ones (.DS_Store, .git)."""
    try:
        with os.scandir(folder) as entries:
            seen = sorted((entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"folder {str(folder)!r} cannot be read: {why_unread(error)}") from error
    return [name for name, is_folder in seen if is_folder], [name for name, is_folder in seen if not is_folder]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: opening it as a file reports that
        return False


def _not_videos(folder: Path, files: list[str]) -> list[str]:
    videos = [name for name in files if _is_video(name)]
    if videos:
        raise DataError(
            f"{str(folder / videos[0])!r} lies outside of the class folders, so it has no label; move it into a "
            "class's folder, or list all videos in a CSV file"
        )
    return [str(folder / name) for name in files]


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS
