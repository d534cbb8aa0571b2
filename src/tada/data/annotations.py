"""Which videos there are and what each shows: a data set in any of its forms becomes one checked table.

    DATA/left/a.mp4                     a folder of class folders
    DATA/left/a/img_00001.jpg ...       the same with folders of frames (``tada.video.numbered``)
    DATA/train/left/a.mp4               the same below train/, val/ and test/ (one of them is enough)
    DATA.csv                            the columns path (or video) and label, and, if wanted, split, group,
                                        start_seconds and end_seconds, and fps of folders of frames; or verb and noun
                                        in the place of label. Several labels of a video: parted by semicolons
                                        (wave;walk), or a column for each class (path,wave,walk) with 1 or 0
    DATA.txt                            a video and its class in each line: see ``tada.data.plain_lists``
    DATA                                annotations as they are published: see ``tada.data.published_formats``

Everything is checked before training starts: no video is opened here, but each must be there once, in one split,
with a label that training meets too. Paths stay inside one folder, the CSV file's own or ``root``; links inside it
are followed.

The table's paths are absolute, so that they hold in every folder, but links in them stay what the user calls them:
messages, reports and the choice of what is held out go by these names. Whether two files are the same is never asked
of their names (``tada.data.run_videos``).
"""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tada.data.csv_rows import (
    SPLIT_OF,
    OtherSpellings,
    check_all_or_none_split,
    class_names,
    csv_columns,
    csv_header,
    csv_rows,
    decimal_number,
    guarded,
    has_decimal_commas,
    ignored_columns,
    path_inside,
    required,
    segment,
    split_cell,
)
from tada.data.hold_out import check_each_label_in_each_split
from tada.data.plain_lists import plain_lists, read_plain
from tada.data.published import find_published, read_published
from tada.data.published_formats import COLUMNS as PUBLISHED_COLUMNS
from tada.data.table import (
    ACTION,
    Head,
    LabeledVideo,
    VideoTable,
    composed,
    path_below,
    segment_text,
    stamp_of,
    with_fps,
)
from tada.errors import DataError, OptionError, listed, why_unread
from tada.system.files import absolute_path, whole_file
from tada.video.numbered import VIDEO_EXTENSIONS, check_fps, is_frame_folder, numbered_pictures

_MEANINGS = {"video": "path", "start": "start_seconds", "end": "end_seconds"}
_KNOWN_COLUMNS = frozenset(
    ("path", "label", "verb", "noun", "split", "group", "start_seconds", "end_seconds", "fps", *_MEANINGS)
)
SEPARATOR = ";"
"""What parts several labels of a video in the cell of a label."""
IDENTITY_COLUMNS = ("content", "original", "mtime_ns")
"""What a run's list says of its files, beside the columns that are read here (``tada.data.run_videos``)."""


def read_dataset(data: Path, *, root: Path | None = None, fold: int = 1, fps: float | None = None) -> VideoTable:
    """Read a folder, a CSV file, or annotations as they are published.

    Args:
        root: the folder that a CSV file's paths start from and may not leave, or below which a published list's videos
            lie; by default the file's own.
        fold: which of the three divisions of UCF101 and HMDB51.
        fps: the rate of folders of frames, where a CSV's column of this name does not say it, in frames per second.

    Raises:
        DataError: something about the data set is wrong; the message names the file and row, the rule and the way
            out.
        OptionError: ``root`` was given with a folder of class folders, or there is no such fold; ``fps`` is no rate, or
            there are no folders of frames.
    """
    return with_fps(_read(data, root, fold), fps)


def _read(data: Path, root: Path | None, fold: int) -> VideoTable:
    status = _status(str(data))
    if status is None:
        raise DataError(
            f"{str(data)!r} is not there (or may not be read); give a folder of class folders or a CSV file"
        )
    mode = status.st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise DataError(f"{str(data)!r} is neither a folder nor a regular file; give a folder or a CSV file")
    published = find_published(data, fold)
    if published is not None:
        kind, lists = published
        return read_published(kind, lists, root or lists[0].parent)
    plain = plain_lists(data)
    if plain:
        return _read_plain(plain, root or plain[0].parent)
    if stat.S_ISDIR(mode):
        if root is not None:
            raise OptionError(f"root {str(root)!r} goes with a CSV file; {str(data)!r} is a folder")
        return _read_folder(data)
    if data.suffix.lower() in VIDEO_EXTENSIONS:
        raise DataError(f"{str(data)!r} is a video; give a folder of class folders or a CSV file that names videos")
    return _read_csv(data, data.parent if root is None else root)


# -- folders ----------------------------------------------------------------------------------------------------------


def _read_folder(data: Path) -> VideoTable:
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
    rows: list[_Row] = []
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
    return _table(rows, absolute_path(data), kind="folder", name=str(data), heads=(ACTION,), ignored=ignored)


def _read_classes(parent: Path, classes: list[str], *, split: str | None, rows: list[_Row]) -> list[str]:
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
        rows += [
            _Row(os.path.join(path, file), file, (label,), split, None, str(folder)) for file in (*videos, *folders)
        ]
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
    """Names of folders and of everything else, both sorted; hidden ones (.DS_Store, .git) do not count."""
    try:
        with os.scandir(folder) as entries:
            seen = sorted((entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"folder {str(folder)!r} cannot be read: {why_unread(error)}") from error
    return [name for name, is_folder in seen if is_folder], [name for name, is_folder in seen if not is_folder]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: who opens it as a file says so
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


# -- CSV files --------------------------------------------------------------------------------------------------------


def _read_csv(file: Path, root: Path) -> VideoTable:
    name = file.name
    if not root.is_dir():
        raise DataError(f"{name}: the folder {str(root)!r} that its paths start from is not there")
    known = _KNOWN_COLUMNS | PUBLISHED_COLUMNS  # so that a list that lacks a column is still read with its delimiter
    columns = csv_columns(file, known)
    meant = [_MEANINGS.get(column, column) for column in columns]
    heads = ("label",) if "label" in meant else ("verb", "noun")
    is_labeled = set(heads) <= set(meant)
    columns_of_classes = {} if is_labeled or meant.count("path") != 1 else _class_columns(file, columns, known)
    if meant.count("path") != 1 or not (is_labeled or columns_of_classes):
        raise DataError(
            f"{name} row 1: expected the columns path (or video) and label (or verb and noun; or two or more, each "
            "with a class's name and 1 or 0 in every row), and if wanted split, group, start_seconds and end_seconds, "
            f"and fps of folders of frames; found {listed(columns)}"
        )
    if ("start_seconds" in meant) != ("end_seconds" in meant):
        raise DataError(f"{name} row 1: a segment has start_seconds and end_seconds; add the one that is lacking")
    top, decimal_comma = absolute_path(root), has_decimal_commas(file, known)
    cells_of = [
        (source, {_MEANINGS.get(column, column): cell for column, cell in cells.items()})
        for source, cells in csv_rows(file, known)
    ]
    classes: tuple[str, ...] | None = None
    if columns_of_classes:
        said = [_classes_of(source, cells, columns_of_classes) for source, cells in cells_of]
        classes = tuple(sorted(columns_of_classes.values()))
    elif heads == ("label",) and any(SEPARATOR in cells["label"] for _, cells in cells_of):
        said = [_parted(source, cells["label"]) for source, cells in cells_of]
        classes = class_names((label, row[0]) for row, own in zip(cells_of, said, strict=True) for label in own)
    else:
        said = [tuple(composed(required(source, cells, head)) for head in heads) for source, cells in cells_of]
    rows = [_row(source, cells, own, top, decimal_comma) for (source, cells), own in zip(cells_of, said, strict=True)]
    check_all_or_none_split((row.source, row.split) for row in rows)
    read = {*IDENTITY_COLUMNS, *columns_of_classes}
    return _table(
        rows,
        top,
        kind="CSV",
        name=name,
        heads=(ACTION,) if classes or heads == ("label",) else heads,
        ignored=ignored_columns(file, [column for column in columns if column not in read], _KNOWN_COLUMNS),
        classes=classes,
        several=classes is not None,
    )


def _class_columns(file: Path, names: Sequence[str], known: Collection[str]) -> dict[str, str]:
    """Columns that are classes, and the classes' names, of a file without a label: what no other column is.

    ``names`` are all columns. Empty where there are fewer than two, or the first row has neither 1 nor 0 in any.
    """
    columns = dict(zip(names, csv_header(file, known), strict=True))
    others = {column: composed(name) for column, name in columns.items() if column not in {*known, *IDENTITY_COLUMNS}}
    if sum(column in others for column in names) < 2:
        return {}
    _, first = next(csv_rows(file, known))
    if not any(first[column] in ("0", "1") for column in others):
        return {}
    for column, name in others.items():
        if not column or names.count(column) > 1:
            fault = (
                f"the column {name!r} stands there twice; keep one" if column else "a column without a name; name it"
            )
            raise DataError(f"{file.name} row 1: {fault}")
    class_names((name, f"{file.name} row 1") for name in others.values())
    return others


def _classes_of(source: str, cells: Mapping[str, str], classes: Mapping[str, str]) -> tuple[str, ...]:
    """The classes whose cells say 1."""
    for column, name in classes.items():
        if cells[column] not in ("0", "1"):
            raise DataError(
                f"{source}: {name} = {cells[column]!r} should be 1 or 0: without a column label, each column with a "
                "name of its own is a class; mend the cell, or take the column away"
            )
    return tuple(sorted(name for column, name in classes.items() if cells[column] == "1"))


def _parted(source: str, cell: str) -> tuple[str, ...]:
    """The labels of a cell such as "wave;walk"."""
    if not cell:
        raise DataError(
            f"{source}: no label, where other rows have several: it may be forgotten, or mean none of them; fill it "
            "in, or write a column for each class, with 0 in all of this row"
        )
    labels = [composed(label.strip()) for label in cell.split(SEPARATOR)]
    if not all(labels):
        raise DataError(
            f"{source}: label = {cell!r} has an empty part; write labels with one {SEPARATOR!r} between two"
        )
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise DataError(f"{source}: label = {cell!r} has {twice!r} twice; keep one")
    return tuple(sorted(labels))


def _row(source: str, cells: Mapping[str, str], labels: tuple[str, ...], root: str, decimal_comma: bool) -> _Row:
    written = required(source, cells, "path")
    split = split_cell(source, cells.get("split", ""))
    start, end = cells.get("start_seconds", ""), cells.get("end_seconds", "")
    rate = cells.get("fps", "")
    try:
        fps = check_fps(decimal_number(rate, decimal_comma=decimal_comma)) if rate else None
    except ValueError as error:
        raise DataError(f"{source}: fps = {rate!r} should be a positive number of frames per second") from error
    return _Row(
        path_inside(root, written, source),
        written,
        labels,
        split,
        cells.get("group") or None,
        source,
        segment(source, start, end, decimal_comma=decimal_comma) if start or end else (None, None),
        fps,
    )


def _read_plain(lists: Sequence[Path], root: Path) -> VideoTable:
    name = ", ".join(file.name for file in lists)
    if not root.is_dir():
        raise DataError(f"{name}: the folder {str(root)!r} that its paths start from is not there")
    top = absolute_path(root)
    found, classes = read_plain(lists)
    rows = [
        _Row(path_inside(top, row.path, row.source), row.path, (row.label,), row.split, None, row.source)
        for row in found
    ]
    return _table(rows, top, kind="list", name=name, heads=(ACTION,), ignored=[], classes=classes)


def write_table(
    table: VideoTable,
    file: Path,
    *,
    root: Path | None = None,
    more: Mapping[str, Mapping[str, object]] | None = None,
) -> None:
    """Write a table as the CSV that ``read_dataset`` reads: paths, names of classes, splits, groups, segments.

    Videos whose labels are not known are left out, and so are classes without videos.

    Args:
        root: the folder that paths start from; without it they are absolute.
        more: further columns by their names, with a cell for each file by its path.
    """
    more = more or {}
    has_segments = any(video.start_seconds is not None for video in table.videos)
    with (
        whole_file(file) as part,
        part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as lines,
    ):
        writer = csv.writer(lines)
        times = ("start_seconds", "end_seconds") if has_segments else ()
        rate = ("fps",) if any(video.fps is not None for video in table.videos) else ()
        writer.writerow(["path", *map(guarded, table.label_columns()), "split", "group", *times, *rate, *more])
        for video in table.videos:
            if table.is_told(video):
                path = os.path.relpath(video.path, root) if root is not None else video.path
                if root is None and not os.path.isabs(path):  # of a table that was made by hand
                    path = absolute_path(path)
                cells = [path, *table.label_cells(video), video.split or "", video.group or ""]
                numbers = [video.start_seconds, video.end_seconds] if has_segments else []
                numbers += [video.fps] if rate else []
                writer.writerow(
                    [
                        *map(guarded, cells),
                        *("" if number is None else repr(number) for number in numbers),
                        *(of_path.get(video.path, "") for of_path in more.values()),
                    ]
                )


# -- what both have in common -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    path: str
    written: str
    """The path as the user knows it."""
    labels: tuple[str, ...]
    split: str | None
    group: str | None
    source: str
    segment: tuple[float | None, float | None] = (None, None)
    fps: float | None = None


def _table(
    rows: list[_Row],
    root: str,
    *,
    kind: str,
    name: str,
    heads: tuple[str, ...],
    ignored: list[str],
    classes: tuple[str, ...] | None = None,
    several: bool = False,
) -> VideoTable:
    """The checked table; ``classes`` is the order of the classes of one head, where a list has numbered them."""
    _check_separator(rows, heads)
    rows, statuses = _found(rows, root, name, None if kind == "folder" else OtherSpellings(root))
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


def _check_separator(rows: Iterable[_Row], heads: tuple[str, ...]) -> None:
    """Refuse a label with a semicolon in it, which would be two in a list that is written of it."""
    for row in rows:
        label = next((label for label in row.labels if SEPARATOR in label), None)
        if label is not None:
            what = (
                "of a verb and a noun each has one" if len(heads) > 1 else "only the label column of a CSV has several"
            )
            raise DataError(
                f"{row.source}: the label {label!r} holds a {SEPARATOR!r}, which parts several labels of a video, and "
                f"{what}; rename it, or list the videos in a CSV"
            )


def _check_columns(classes: Sequence[str], name: str) -> None:
    """Refuse classes that are called as a column, since each becomes a column of the run's list."""
    for label in classes:
        if label.lower() in (*_KNOWN_COLUMNS, *IDENTITY_COLUMNS):
            raise DataError(f"{name}: the class {label!r} is called as a column of a list; call it something else")


def _found(
    rows: list[_Row], root: str, name: str, spellings: OtherSpellings | None
) -> tuple[list[_Row], dict[str, os.stat_result]]:
    """The rows with paths as the disk spells them, and the status of each file by its path; all must be there."""
    statuses: dict[str, os.stat_result] = {}
    found, missing = [], []
    for row in rows:
        status = statuses.get(row.path) or _status(row.path)
        if status is None and spellings is not None:
            path = spellings.find(row.written, row.source)
            if path is not None:
                row, status = replace(row, path=path), _status(path)
        if status is None:
            missing.append(row)
        elif stat.S_ISDIR(status.st_mode) and not is_frame_folder(row.path):
            raise DataError(
                f"{row.source}: {row.written!r} is a folder, and most of its files are no numbered frames (as "
                "img_00001.jpg); name its videos, or the folder of one video's frames"
            )
        elif row.fps is not None and not stat.S_ISDIR(status.st_mode):
            raise DataError(
                f"{row.source}: fps is for folders of frames, and {row.written!r} is a file with times of its own; "
                "leave the cell empty"
            )
        elif not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise DataError(f"{row.source}: {row.written!r} is not a regular file; only files are read, take it away")
        else:
            statuses[row.path] = status
            found.append(row)
    if missing:
        shown = listed((f"{row.written!r} ({row.source.removeprefix(name + ' ')})" for row in missing), quote=False)
        hint = ""
        if any("\\" in row.written for row in missing):
            hint = "; with slashes in place of backslashes they are not there either"
        raise DataError(
            f"{name}: {len(missing)} of {len(rows)} videos are not in {root!r}: {shown}{hint}; put them there, take "
            "their rows away, or give another root"
        )
    return found, statuses


def _status(path: str) -> os.stat_result | None:
    """Of what lies at a path; None if nothing does, or a link that leads nowhere."""
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def _check_once(rows: list[_Row], statuses: Mapping[str, os.stat_result]) -> None:
    first: dict[str, _Row] = {}
    first_segment: dict[tuple[str, tuple[float | None, float | None]], _Row] = {}
    one_path = _one_path_of_each_file(statuses)
    for row in rows:
        real = one_path[row.path]
        other = first.setdefault(real, row)
        if other is row:
            first_segment[real, row.segment] = row
            continue
        where = f"{row.source}: {row.written!r} stands already in {other.source}"
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
        raise DataError(f"{where}; each video belongs there once: take one away")


def _one_path_of_each_file(statuses: Mapping[str, os.stat_result]) -> dict[str, str]:
    """For each path the first that leads to the same file. Links are resolved only where the disk says it may be."""
    found: dict[str, str] = {}
    alike: dict[tuple[int, int], dict[str, str]] = {}
    for path, status in statuses.items():
        others = alike.setdefault((status.st_dev, status.st_ino), {})
        if not others:
            others[""] = found[path] = path  # resolved when another one comes, which is seldom
            continue
        if "" in others:
            first = others.pop("")
            others[os.path.realpath(first)] = first
        found[path] = others.setdefault(os.path.realpath(path), path)  # hard links are files of their own
    return found


def _check_unicode_forms(rows: Iterable[_Row]) -> None:
    """Two files that only a byte-wise comparison of their names tells apart would be one on other machines."""
    first: dict[str, _Row] = {}
    for row in rows:
        if not row.path.isascii():
            other = first.setdefault(composed(row.path), row)
            if other.path != row.path:
                raise DataError(
                    f"{row.source}: {row.written!a} and {other.written!a} ({other.source}) differ in their Unicode "
                    "form only, and look the same; rename one of them"
                )
