"""Tables as text: CSV files read row by row with their faults named, and cells that are safe to open elsewhere.

What a time, a split or a class may be written as is decided here, for recognition and localization alike.

Lists travel between machines. The names of files in them may be written with backslashes (Windows) or in the other of
Unicode's two forms (a Mac writes "é" as two signs, most others as one), and times with decimal commas; all of these are
understood here.
"""

from __future__ import annotations

import contextlib
import csv
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TextIO

from tada.data.table import SPLITS, composed
from tada.errors import DataError, listed, why_unread
from tada.system.documents import open_regular

# What FFmpeg would open instead of a file. "a:b.mp4" is a file's name like any other.
_PROTOCOL = re.compile(
    r"[a-z][a-z0-9+.-]+://|(async|cache|concat|concatf|crypto|data|fd|ffrtmphttp|file|ftp|gopher|hls|http|https|ipfs"
    r"|md5|mmsh|pipe|prompeg|rtmp|rtp|rtsp|sftp|smb|srt|subfile|tcp|tee|tls|udp|unix|zmq)[:,]",
    re.IGNORECASE,
)
_MAX_COLUMNS = 1000
_FORMULA = ("=", "+", "-", "@")
# HH:MM:SS, or MM:SS in which minutes have as many digits as they need: 100:00 is an hour and forty minutes.
_CLOCK = re.compile(r"(?:([0-9]+):([0-9]{1,2})|([0-9]+)):([0-9]{1,2}(?:\.[0-9]*)?)")
_DECIMAL_COMMA = re.compile(r"[0-9:]*[0-9],[0-9]+")
SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What data sets call their splits, in small letters, and what they are called here."""


def csv_columns(file: Path, known: Collection[str], *, example: str = "path,label") -> list[str]:
    """The columns that a CSV file's header names, in small letters.

    Args:
        known: names that tell the delimiter (comma, semicolon or tab), and that may stand there once only.
        example: of such a header, for the message about an empty file.

    Raises:
        DataError: the file cannot be read, is empty or no text, or names a known column twice.
    """
    columns = list(map(_plain, csv_header(file, known, example=example)))
    for column in columns:
        if column in known and columns.count(column) > 1:
            raise DataError(f"{file.name} row 1: the column {column!r} stands there twice; keep one")
    return columns


def csv_header(file: Path, known: Collection[str], *, example: str = "path,label") -> list[str]:
    """A CSV file's first row as it is written; arguments and errors as those of ``csv_columns``."""
    check_text(file, f"its first row should name the columns: {example}")
    _, header = next(_cells(file, known), (1, []))
    if len(header) > _MAX_COLUMNS:
        raise DataError(
            f"{file.name} row 1 names {len(header)} columns, more than {_MAX_COLUMNS}: is it a table of rows?"
        )
    return [_cell_text(cell) for cell in header]


def csv_rows(file: Path, known: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row below the header: where it stands ("clips.csv row 12"), and its cells by column, without their margins.

    One row is held at a time. Empty lines are passed over. ``known`` is as in ``csv_columns``.

    Raises:
        DataError: a fault of the file, a row with too many or too few cells, or no rows at all.
    """
    columns = csv_columns(file, known)
    name, is_empty = file.name, True
    for line, cells in islice(_cells(file, known), 1, None):
        if not any(cell.strip() for cell in cells):  # an empty line at the end is no row
            continue
        source = f"{name} row {line}"
        if len(cells) != len(columns):
            raise DataError(
                f"{source}: {len(cells)} cells, while the header names {len(columns)} columns; quote cells "
                "that hold commas (or semicolons, where these part the cells)"
            )
        is_empty = False
        yield source, dict(zip(columns, map(_cell_text, cells), strict=True))
    if is_empty:
        raise DataError(f"{name} has no rows below its header; see whether it is the right file")


def _cells(file: Path, known: Collection[str]) -> Iterator[tuple[int, list[str]]]:
    """Every row, the header first: the number of its (last) line, and its cells as they are written."""
    with _opened(file) as lines:
        reader = csv.reader(lines, delimiter=_delimiter(lines, known), strict=True)
        try:
            for cells in reader:
                yield reader.line_num, cells
        except csv.Error as error:  # such as a quote that is never closed, and a cell as long as the rest of the file
            raise DataError(
                f"{file.name} row {reader.line_num}: {error}; save it as CSV, with cells quoted whole"
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{file.name} is not text in UTF-8; save it as CSV UTF-8") from error


def check_text(file: Path, hint: str) -> None:
    """Raise DataError where a file cannot be read, is empty, or is not text; ``hint`` says what an empty one lacks."""
    try:
        with open_regular(file) as raw:  # a pipe can be read once only
            head = raw.read(4096)
    except OSError as error:
        raise DataError(f"{str(file)!r} cannot be read: {why_unread(error)}") from error
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


def has_decimal_commas(file: Path, known: Collection[str]) -> bool:
    """Whether a comma in a number of this CSV file is a decimal one: where cells are parted by semicolons or tabs.

    Where they are parted by commas, "1,500" in quotes may as well be a thousand and a half.
    """
    with _opened(file) as lines:
        return _delimiter(lines, known) != ","


def ignored_columns(file: Path, columns: Collection[str], known: Collection[str]) -> list[str]:
    """The columns that are not read, in words for whoever may have meant another: "clips.csv column 'splits' (...)"."""
    found = []
    for column in columns:
        if column not in known:
            near = get_close_matches(column, sorted(set(known) - set(columns)), n=1, cutoff=0.75)
            found.append(f"{file.name} column {column!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return found


def _plain(column: str) -> str:
    return column.strip().strip('"').lower()


# -- cells ------------------------------------------------------------------------------------------------------------


def guarded(text: str) -> str:
    """Keep a spreadsheet from running a name as a formula: "=1+1" becomes "'=1+1"; ``csv_rows`` undoes it."""
    return f"'{text}" if text.startswith(_FORMULA) or text.startswith("'") else text


def unguarded(cell: str) -> str:
    """A cell's text as it was before ``guarded``."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in (*_FORMULA, "'") else cell


def _cell_text(cell: str) -> str:
    return unguarded(cell.strip())


def required(source: str, cells: Mapping[str, str], column: str) -> str:
    """A cell that may not be empty.

    Raises:
        DataError: it is.
    """
    if not cells[column]:
        raise DataError(f"{source}: no {column}; fill in the cell or take the row away")
    return cells[column]


def class_names(labeled: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The classes that occur, sorted.

    Args:
        labeled: their names (``composed``), each with where it stands.

    Raises:
        DataError: a name that cannot be printed, or two that differ in capitals only.
    """
    first: dict[str, tuple[str, str]] = {}
    for label, source in labeled:
        if not label.isprintable():
            raise DataError(f"{source}: the label {label!r} holds signs that cannot be printed; rename it")
        other, where = first.setdefault(label.casefold(), (label, source))
        if other != label:
            raise DataError(
                f"{source}: the label {label!r} differs from {other!r} ({where}) in capitals only; write it one way"
            )
    return tuple(sorted(label for label, _ in first.values()))


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


def decimal_number(text: str, *, decimal_comma: bool) -> float:
    """A number; ``decimal_comma``: "1,5" is understood too.

    Raises:
        ValueError: it is none.
    """
    return float(text.replace(",", ".", 1) if decimal_comma else text)


def parse_seconds(written: object) -> float:
    """Seconds from a number, or from a text of seconds, MM:SS or HH:MM:SS, with a fraction or without.

    Raises:
        ValueError: it is none of these, or no finite number.
    """
    text = str(written).strip()
    clock = _CLOCK.fullmatch(text)
    try:
        if clock:
            hours, minutes, only_minutes, rest = clock.groups()
            value = float(hours or 0) * 3600 + float(minutes or only_minutes) * 60 + float(rest)
        else:
            value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no time: write seconds or HH:MM:SS")
    return value


def seconds(
    source: str, written: object, what: str, *, decimal_comma: bool = False, may_be_negative: bool = False
) -> float:
    """A time as ``parse_seconds`` reads it, its faults named.

    Args:
        decimal_comma: "1,5" is understood too.
        may_be_negative: published lists and labeling tools have times before their video; those who write a list for
            tada do not mean any.

    Raises:
        DataError: it is no time.
    """
    text = str(written).strip()
    hint = ""
    if _DECIMAL_COMMA.fullmatch(text) and not decimal_comma:
        hint = (
            f"; a decimal comma is understood where semicolons or tabs part the cells: write {text.replace(',', '.')}"
        )
    try:
        value = parse_seconds(text.replace(",", ".", 1) if decimal_comma else text)
    except ValueError:
        value = math.nan
    if math.isnan(value) or (value < 0 and not may_be_negative):
        raise DataError(f"{source}: {what} = {text!r} should be a time, in seconds or as HH:MM:SS.ss{hint}")
    return value


def segment(source: str, start: str, end: str, *, decimal_comma: bool = False) -> tuple[float, float]:
    """Start and end of a part of a video, in seconds; ``decimal_comma`` is as in ``seconds``.

    Raises:
        DataError: one is no time, or the end is not after the start.
    """
    start_seconds = seconds(source, start, "start", decimal_comma=decimal_comma)
    end_seconds = seconds(source, end, "end", decimal_comma=decimal_comma)
    if end_seconds <= start_seconds:
        raise DataError(f"{source}: the segment ends at {end}, not after its start at {start}; mend the times")
    return start_seconds, end_seconds


def split_name(written: object) -> str:
    """What a split is called here: "Validation" and "valid" are "val"; an unknown name stays, in small letters."""
    text = str(written).strip().lower()
    return SPLIT_OF.get(text, text)


def split_cell(source: str, text: str) -> str | None:
    """The split that a cell names; None where it is empty.

    Raises:
        DataError: there is no such split.
    """
    if text and split_name(text) not in SPLITS:
        raise DataError(f"{source}: split = {text!r} should be train, val or test")
    return split_name(text) if text else None


def check_all_or_none_split(splits: Iterable[tuple[str, str | None]]) -> None:
    """Raise DataError where some rows have a split and some have none; each comes with where it stands."""
    rows = list(splits)
    unsplit = [source for source, split in rows if split is None]
    if 0 < len(unsplit) < len(rows):
        raise DataError(f"{unsplit[0]}: no split, while other rows have one; fill in all of them or none")


# -- names of files ---------------------------------------------------------------------------------------------------


def path_inside(root: str, written: str, source: str) -> str:
    """The absolute path of the file that a row names.

    Args:
        root: an absolute path.

    Raises:
        DataError: it is no path of a file, or leads out of ``root``.
    """
    if _PROTOCOL.match(written) or "\0" in written:
        raise DataError(
            f"{source}: {written!r} is no path of a file; only files are read: download it and give its path"
        )
    path = os.path.normpath(os.path.join(root, written))
    if path != root and not path.startswith(root.rstrip(os.sep) + os.sep):
        raise DataError(
            f"{source}: {written!r} leaves the folder {root!r} that paths start from; give paths inside it, or as "
            "root a folder that holds them all"
        )
    return path


class OtherSpellings:
    """Finds files whose names a list spells otherwise than the disk: with backslashes, or in another Unicode form.

    It is asked only about names that are not there as they are written, and reads each folder once.

    Args:
        root: the folder that paths start from, and may not leave; an absolute path.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._folders: dict[str, dict[str, list[str]]] = {}

    def find(self, written: str, source: str) -> str | None:
        """The absolute path of the one file that may be meant; None if there is none.

        Raises:
            DataError: there are two, whose names differ in their Unicode form only; or it leads out of ``root``.
        """
        names = [written, written.replace("\\", "/")] if "\\" in written else [written]
        for name in names:
            path = path_inside(self.root, name, source)
            if name != written and os.path.exists(path):
                return path
            if path.isascii():
                continue
            found = self._in_any_form(self.root, os.path.relpath(path, self.root).split(os.sep))
            if len(found) > 1:
                raise DataError(
                    f"{source}: {written!r} may be {found[0]!a} or {found[1]!a}, whose names differ in their Unicode "
                    "form only; rename one of them"
                )
            if found:
                return found[0]
        return None

    def _in_any_form(self, folder: str, parts: list[str]) -> list[str]:
        if folder not in self._folders:
            entries: dict[str, list[str]] = {}
            with contextlib.suppress(OSError):  # no folder: nothing is in it
                for name in sorted(os.listdir(folder)):
                    entries.setdefault(composed(name), []).append(name)
            self._folders[folder] = entries
        paths = [os.path.join(folder, name) for name in self._folders[folder].get(composed(parts[0]), [])]
        if len(parts) == 1:
            return paths
        return [path for inner in paths for path in self._in_any_form(inner, parts[1:])]


def check_known(columns: Collection[str], needed: Collection[str], file: Path) -> None:
    """Raise DataError where a published table lacks a column that it is published with."""
    lacking = [column for column in needed if column not in columns]
    if lacking:
        raise DataError(f"{file.name} row 1: no column {listed(lacking)}; found {listed(columns, at_most=20)}")
