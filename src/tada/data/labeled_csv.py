"""CSV files with a video and its labels in each row: read to a checked table, and written."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tada.data.csv_rows import (
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
from tada.data.listed_videos import IDENTITY_COLUMNS, LIST_COLUMNS, SEPARATOR, ListedVideo, checked_table
from tada.data.published_formats import COLUMNS as PUBLISHED_COLUMNS
from tada.data.table import ACTION, VideoTable, composed
from tada.errors import DataError, listed
from tada.system.files import absolute_path, whole_file
from tada.video.numbered import check_fps

_MEANINGS = {"video": "path", "start": "start_seconds", "end": "end_seconds"}


def read_labeled_csv(file: Path, root: Path) -> VideoTable:
    """The checked table of a CSV file whose columns name the video and what it shows.

    Args:
        root: the folder that its paths start from and may not leave.

    Raises:
        DataError: a fault of the file, a row or the videos; the message names it and the way out.
    """
    name = file.name
    if not root.is_dir():
        raise DataError(f"{name}: the folder {str(root)!r} that its paths start from is not there")
    known = LIST_COLUMNS | PUBLISHED_COLUMNS  # so that a list that lacks a column is still read with its delimiter
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
    return checked_table(
        rows,
        top,
        kind="CSV",
        name=name,
        heads=(ACTION,) if classes or heads == ("label",) else heads,
        ignored=ignored_columns(file, [column for column in columns if column not in read], LIST_COLUMNS),
        classes=classes,
        several=classes is not None,
    )


_HAS_CLASS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
"""What cells of class columns say, as people and pandas write it, in small letters."""


def _class_columns(file: Path, names: Sequence[str], known: Collection[str]) -> dict[str, str]:
    """Columns that are classes, and the classes' names, of a file without a label: what no other column is.

    ``names`` are all columns. Empty where there are fewer than two, or the first row has neither 1 nor 0 in any.
    """
    columns = dict(zip(names, csv_header(file, known), strict=True))
    others = {column: composed(name) for column, name in columns.items() if column not in {*known, *IDENTITY_COLUMNS}}
    if sum(column in others for column in names) < 2:
        return {}
    _, first = next(csv_rows(file, known))
    if not any(first[column].lower() in _HAS_CLASS for column in others):
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
        if cells[column].lower() not in _HAS_CLASS:
            raise DataError(
                f"{source}: {name} = {cells[column]!r} should be 1 or 0: without a column label, each column with a "
                "name of its own is a class; mend the cell, or take the column away"
            )
    return tuple(sorted(name for column, name in classes.items() if _HAS_CLASS[cells[column].lower()]))


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


def _row(source: str, cells: Mapping[str, str], labels: tuple[str, ...], root: str, decimal_comma: bool) -> ListedVideo:
    written = required(source, cells, "path")
    split = split_cell(source, cells.get("split", ""))
    start, end = cells.get("start_seconds", ""), cells.get("end_seconds", "")
    rate = cells.get("fps", "")
    try:
        fps = check_fps(decimal_number(rate, decimal_comma=decimal_comma)) if rate else None
    except ValueError as error:
        raise DataError(f"{source}: fps = {rate!r} should be a positive number of frames per second") from error
    return ListedVideo(
        path_inside(root, written, source),
        written,
        labels,
        split,
        cells.get("group") or None,
        source,
        segment(source, start, end, decimal_comma=decimal_comma) if start or end else (None, None),
        fps,
    )


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
