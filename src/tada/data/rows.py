"""Tables as text: CSV files read row by row with their faults named, and cells that are safe to open elsewhere."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from tada.data.table import listed
from tada.errors import DataError

# What FFmpeg would open instead of a file. "a:b.mp4" is a file's name like any other.
_PROTOCOL = re.compile(
    r"[a-z][a-z0-9+.-]+://|(async|cache|concat|concatf|crypto|data|fd|ffrtmphttp|file|ftp|gopher|hls|http|https|ipfs"
    r"|md5|mmsh|pipe|prompeg|rtmp|rtp|rtsp|sftp|smb|srt|subfile|tcp|tee|tls|udp|unix|zmq)[:,]",
    re.IGNORECASE,
)
_FORMULA = ("=", "+", "-", "@")


def csv_columns(file: Path, known: Collection[str], *, example: str = "path,label") -> list[str]:
    """The columns that a CSV file's header names, in small letters.

    Args:
        known: names that tell the delimiter (comma, semicolon or tab), and that may stand there once only.
        example: of such a header, for the message about an empty file.

    Raises:
        DataError: the file cannot be read, is empty or no text, or names a known column twice.
    """
    check_text(file, f"its first row should name the columns: {example}")
    with _opened(file) as lines:
        columns = [_plain(column) for column in next(csv.reader(lines, delimiter=_delimiter(lines, known)), [])]
    for column in columns:
        if column in known and columns.count(column) > 1:
            raise DataError(f"{file.name} row 1: the column {column!r} stands there twice; keep one")
    return columns


def csv_rows(file: Path, known: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row below the header: where it stands ("clips.csv row 12"), and its cells by column, without their margins.

    One row is held at a time. Empty lines are passed over. ``known`` is as in ``csv_columns``.

    Raises:
        DataError: a fault of the file, a row with too many or too few cells, or no rows at all.
    """
    columns = csv_columns(file, known)
    name, is_empty = file.name, True
    with _opened(file) as lines:
        reader = csv.reader(lines, delimiter=_delimiter(lines, known), strict=True)
        try:
            next(reader)
            for cells in reader:
                if not any(cell.strip() for cell in cells):  # an empty line at the end is no row
                    continue
                source = f"{name} row {reader.line_num}"
                if len(cells) != len(columns):
                    raise DataError(
                        f"{source}: {len(cells)} cells, while the header names {len(columns)} columns; quote cells "
                        "that hold commas"
                    )
                is_empty = False
                yield source, dict(zip(columns, map(_cell_text, cells), strict=True))
        except csv.Error as error:
            raise DataError(
                f"{name} row {reader.line_num}: {error}; save it as CSV, with cells quoted whole"
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{name} is not text in UTF-8; save it as CSV UTF-8") from error
    if is_empty:
        raise DataError(f"{name} has no rows below its header; see whether it is the right file")


def check_text(file: Path, hint: str) -> None:
    """Raise DataError where a file cannot be read, is empty, or is not text; ``hint`` says what an empty one lacks."""
    try:
        with file.open("rb") as raw:
            head = raw.read(4096)
    except OSError as error:
        raise DataError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    if not head.removeprefix(b"\xef\xbb\xbf").strip():
        raise DataError(f"{file.name} is empty; {hint}")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{file.name} is in UTF-16; save it as CSV UTF-8")
    if b"\0" in head:
        raise DataError(f"{file.name} holds zero bytes: it is no text, or text in UTF-16; save it as CSV UTF-8")


def text_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not empty: where it stands ("classInd.txt line 3"), and its text without margins.

    Raises:
        DataError: the file cannot be read, or is empty or no text.
    """
    check_text(file, "it should hold a video in each line, as it was published")
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file.name} line {number}", line.strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{file.name} is not text in UTF-8; copy or download it again") from error


def _opened(file: Path) -> TextIO:
    return file.open(encoding="utf-8-sig", newline="")


def _delimiter(lines: TextIO, known: Collection[str]) -> str:
    """The mark that parts the header into most columns we know.

    Spreadsheets of some countries write semicolons, and a table that was pasted has tabs.
    """
    try:
        header = lines.readline()
    except UnicodeDecodeError as error:
        raise DataError(f"{os.path.basename(lines.name)} is not text in UTF-8; save it as CSV UTF-8") from error
    lines.seek(0)
    return max(",;\t", key=lambda mark: len({_plain(cell) for cell in header.split(mark)} & set(known)))


def _plain(column: str) -> str:
    return column.strip().strip('"').lower()


# -- cells ------------------------------------------------------------------------------------------------------------


def guarded(text: str) -> str:
    """Keep a spreadsheet from running a name as a formula: "=1+1" becomes "'=1+1"; ``csv_rows`` undoes it."""
    return f"'{text}" if text.startswith(_FORMULA) or text.startswith("'") else text


def _cell_text(cell: str) -> str:
    cell = cell.strip()
    return cell[1:] if cell[:1] == "'" and cell[1:2] in (*_FORMULA, "'") else cell


def required(source: str, cells: Mapping[str, str], column: str) -> str:
    """A cell that may not be empty.

    Raises:
        DataError: it is.
    """
    if not cells[column]:
        raise DataError(f"{source}: no {column}; fill in the cell or take the row away")
    return cells[column]


def class_number(source: str, text: str, num_classes: int, what: str) -> int:
    """A class written as a number from 0.

    Raises:
        DataError: it is no whole number, or there is no such class.
    """
    if not re.fullmatch(r"-?[0-9]+", text):
        raise DataError(f"{source}: {what} = {text!r} should be a whole number, from 0 to {num_classes - 1}")
    if not 0 <= int(text) < num_classes:
        raise DataError(f"{source}: {what} = {text} should be from 0 to {num_classes - 1}, as there are classes")
    return int(text)


def seconds(source: str, text: str, what: str) -> float:
    """A time written as seconds, MM:SS or HH:MM:SS, with a fraction or without.

    Raises:
        DataError: it is none of these, or negative, or no finite number.
    """
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    value = sum(part * unit for part, unit in zip(reversed(parts), (1, 60, 3600), strict=False))
    if not 1 <= len(parts) <= 3 or not math.isfinite(value) or any(part < 0 for part in parts):
        raise DataError(f"{source}: {what} = {text!r} should be a time, in seconds or as HH:MM:SS.ss")
    return value


def segment(source: str, start: str, end: str) -> tuple[float, float]:
    """Start and end of a part of a video, in seconds.

    Raises:
        DataError: one is no time, or the end is not after the start.
    """
    start_seconds, end_seconds = seconds(source, start, "start"), seconds(source, end, "end")
    if end_seconds <= start_seconds:
        raise DataError(f"{source}: the segment ends at {end}, not after its start at {start}; mend the times")
    return start_seconds, end_seconds


def path_inside(root: Path, written: str, source: str) -> str:
    """The absolute path of the file that a row names.

    Raises:
        DataError: it is no path of a file, or leads out of ``root``.
    """
    if _PROTOCOL.match(written) or "\0" in written:
        raise DataError(
            f"{source}: {written!r} is no path of a file; only files are read: download it and give its path"
        )
    top = os.path.abspath(root)
    path = os.path.normpath(os.path.join(top, written))
    if not Path(path).is_relative_to(top):
        raise DataError(
            f"{source}: {written!r} leaves the folder {str(root)!r} that paths start from; give paths inside it, or as "
            "root a folder that holds them all"
        )
    return path


def check_known(columns: Collection[str], needed: Collection[str], file: Path) -> None:
    """Raise DataError where a published table lacks a column that it is published with."""
    lacking = [column for column in needed if column not in columns]
    if lacking:
        raise DataError(f"{file.name} row 1: no column {listed(lacking)}; found {listed(columns, at_most=20)}")
