"""Read and write CSV files that have a video and its labels in each row."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tada.data.csv_rows import (
    class_names,
    csv_columns,
    csv_header,
    csv_rows,
    guarded,
    has_decimal_commas,
    ignored_columns,
    path_inside,
    required,
)
from tada.data.listed_videos import IDENTITY_COLUMNS, LIST_COLUMNS, SEPARATOR, ListedVideo, checked_table
from tada.data.published_formats import COLUMNS as PUBLISHED_COLUMNS
from tada.data.table import ACTION, VideoTable, composed
from tada.data.times_and_splits import check_all_or_none_split, decimal_number, segment, split_cell
from tada.errors import DataError, listed
from tada.system.files import absolute_path, whole_file
from tada.video.numbered import check_fps

_MEANINGS = {"video": "path", "start": "start_seconds", "end": "end_seconds"}


def read_labeled_csv(file: Path, root: Path) -> VideoTable:
    """Read a CSV file with columns for the video and its label, or labels, to a checked table.

    Args:
        root: the folder that its paths start from and may not leave.

    Raises:
        DataError: an error in the file, a row or the videos; the message names it and says what to do.
    """
    name = file.name
    if not root.is_dir():
        raise DataError(f"{name}: the folder {str(root)!r} that its paths start from does not exist")
    known = LIST_COLUMNS | PUBLISHED_COLUMNS  # so that a list that lacks a column is still read with its delimiter
    columns = csv_columns(file, known)
    meant = [_MEANINGS.get(column, column) for column in columns]
    heads = ("label",) if "label" in meant else ("verb", "noun")
    is_labeled = set(heads) <= set(meant)
    columns_of_classes = {} if is_labeled or meant.count("path") != 1 else _class_columns(file, columns, known)
    if meant.count("path") != 1 or not (is_labeled or columns_of_classes):
        raise DataError(
            f"{name} row 1: expected the columns path (or video) and label (or verb and noun; or two or more, each "
            "with a class's name and 1 or 0 in every row), and optionally split, group, start_seconds and end_seconds, "
            f"and fps for folders of frames; found {listed(columns)}"
        )
    if ("start_seconds" in meant) != ("end_seconds" in meant):
        raise DataError(f"{name} row 1: a segment needs both start_seconds and end_seconds; add the missing column")
    top, decimal_comma = absolute_path(root), has_decimal_commas(file, known)
    records = [
        (source, {_MEANINGS.get(column, column): cell for column, cell in cells.items()})
        for source, cells in csv_rows(file, known)
    ]
    classes: tuple[str, ...] | None = None
    if columns_of_classes:
        labels = [_classes_of(source, cells, columns_of_classes) for source, cells in records]
        classes = tuple(sorted(columns_of_classes.values()))
    elif heads == ("label",) and any(SEPARATOR in cells["label"] for _, cells in records):
        labels = [_split_labels(source, cells["label"]) for source, cells in records]
        classes = class_names((label, row[0]) for row, own in zip(records, labels, strict=True) for label in own)
    else:
        labels = [tuple(composed(required(source, cells, head)) for head in heads) for source, cells in records]
    rows = [_row(source, cells, own, top, decimal_comma) for (source, cells), own in zip(records, labels, strict=True)]
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
"""Values of the cells of class columns, as people and pandas write them, in lower case."""


def _class_columns(file: Path, names: Sequence[str], known: Collection[str]) -> dict[str, str]:
    """The class columns of a file without a label column, and the classes' names: all columns of no other meaning.

    ``names`` are all columns. Empty if there are fewer than two class columns, or the first row has no 1 or 0 in any.
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
            fault = f"the column {name!r} appears twice; keep one" if column else "a column without a name; name it"
            raise DataError(f"{file.name} row 1: {fault}")
    class_names((name, f"{file.name} row 1") for name in others.values())
    return others


def _classes_of(source: str, cells: Mapping[str, str], classes: Mapping[str, str]) -> tuple[str, ...]:
    """The classes with a 1 in a row's cells."""
    for column, name in classes.items():
        if cells[column].lower() not in _HAS_CLASS:
            raise DataError(
                f"{source}: {name} = {cells[column]!r} should be 1 or 0: without a column label, each column with a "
                "name of its own is a class; correct the cell, or remove the column"
            )
    return tuple(sorted(name for column, name in classes.items() if _HAS_CLASS[cells[column].lower()]))


def _split_labels(source: str, cell: str) -> tuple[str, ...]:
    """Split a cell such as "wave;walk" into its labels."""
    if not cell:
        raise DataError(
            f"{source}: no label, while other rows have several; fill it in, or, if the video shows none of the "
            "classes, write a column for each class instead, with 0 in all of this row"
        )
    labels = [composed(label.strip()) for label in cell.split(SEPARATOR)]
    if not all(labels):
        raise DataError(f"{source}: label = {cell!r} has an empty part; write one {SEPARATOR!r} between two labels")
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
    """Write a table as a CSV that ``read_dataset`` reads: paths, class names, splits, groups, segments.

    Videos without known labels are left out, and so are classes without videos.

    Args:
        root: the folder that the written paths start from; None: write absolute paths.
        more: further columns by name; of each, the cells by the video's path.
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
                if root is None and not os.path.isabs(path):  # a table built by the caller may have relative paths
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
