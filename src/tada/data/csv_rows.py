"""CSV files: read row by row, with errors that name the row; parsers of cells; escaping of cells for spreadsheets.

Recognition and localization parse class names and paths with these functions (times and splits: ``times_and_splits``).

Lists are moved between machines. Paths in them may have backslashes (Windows) or another Unicode normal form than the
disk (macOS writes "é" as two code points, most other systems as one); both are accepted.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TextIO

from tada.data.table import composed
from tada.errors import DataError, listed, why_unread
from tada.system.addresses import masked
from tada.system.documents import open_regular

# Prefixes that FFmpeg would open as a protocol instead of a file. "a:b.mp4" is an ordinary file name.
_PROTOCOL = re.compile(
    r"[a-z][a-z0-9+.-]+://|(async|cache|concat|concatf|crypto|data|fd|ffrtmphttp|file|ftp|gopher|hls|http|https|ipfs"
    r"|md5|mmsh|pipe|prompeg|rtmp|rtp|rtsp|sftp|smb|srt|subfile|tcp|tee|tls|udp|unix|zmq)[:,]",
    re.IGNORECASE,
)
_MAX_COLUMNS = 1000
_FORMULA = ("=", "+", "-", "@")


def csv_columns(file: Path, known: Collection[str], *, example: str = "path,label") -> list[str]:
    """The column names in a CSV file's header, in lower case.

    Args:
        known: names by which the delimiter (comma, semicolon or tab) is recognized; each may occur once only.
        example: a header, for the message about an empty file.

    Raises:
        DataError: the file cannot be read, is empty or not text, or has a known column twice.
    """
    columns = list(map(_normalize_column, csv_header(file, known, example=example)))
    for column in columns:
        if column in known and columns.count(column) > 1:
            raise DataError(f"{file.name} row 1: the column {column!r} appears twice; keep one")
    return columns


def csv_header(file: Path, known: Collection[str], *, example: str = "path,label") -> list[str]:
    """A CSV file's first row, in its own spelling; arguments and errors are those of ``csv_columns``."""
    check_text(file, f"its first row should name the columns: {example}")
    _, header = next(_cells(file, known), (1, []))
    if len(header) > _MAX_COLUMNS:
        raise DataError(
            f"{file.name} row 1 names {len(header)} columns, more than {_MAX_COLUMNS}: is it a table of rows?"
        )
    return [_cell_text(cell) for cell in header]


def csv_rows(file: Path, known: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row below the header: its place ("clips.csv row 12"), and its cells by column, with spaces stripped.

    Reads one row at a time and skips empty lines. ``known`` is as in ``csv_columns``.

    Raises:
        DataError: an error of the file, a row with too many or too few cells, or no rows at all.
    """
    columns = csv_columns(file, known)
    name, is_empty = file.name, True
    for line, cells in islice(_cells(file, known), 1, None):
        if not any(cell.strip() for cell in cells):  # an empty line, as at the end of many files
            continue
        source = f"{name} row {line}"
        if len(cells) != len(columns):
            raise DataError(
                f"{source}: {len(cells)} cells, while the header names {len(columns)} columns; quote cells "
                "that contain commas (or semicolons, where these separate the cells)"
            )
        is_empty = False
        yield source, dict(zip(columns, map(_cell_text, cells), strict=True))
    if is_empty:
        raise DataError(f"{name} has no rows below its header; check that it is the right file")


def _cells(file: Path, known: Collection[str]) -> Iterator[tuple[int, list[str]]]:
    """Every row, the header first: the number of its (last) line, and its raw cells."""
    with _open_text(file) as lines:
        reader = csv.reader(lines, delimiter=_delimiter(lines, known), strict=True)
        try:
            for cells in reader:
                yield reader.line_num, cells
        except csv.Error as error:  # such as a quote that is never closed
            raise DataError(
                f"{file.name} row {reader.line_num}: {error}; save it as CSV, with cells quoted whole"
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{file.name} is not text in UTF-8; save it as CSV UTF-8") from error


def check_text(file: Path, hint: str) -> None:
    """Raise DataError if a file cannot be read, is empty, or is not text; ``hint`` says what it should hold."""
    try:
        with open_regular(file) as raw:  # not a pipe, which could be read only once
            head = raw.read(4096)
    except OSError as error:
        raise DataError(f"{str(file)!r} cannot be read: {why_unread(error)}") from error
    if not head.removeprefix(b"\xef\xbb\xbf").strip():
        raise DataError(f"{file.name} is empty; {hint}")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{file.name} is in UTF-16; save it as CSV UTF-8")
    if b"\0" in head:
        raise DataError(f"{file.name} contains zero bytes: it is not text, or text in UTF-16; save it as CSV UTF-8")


def text_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not empty: its place ("classInd.txt line 3"), and its text with spaces stripped.

    Raises:
        DataError: the file cannot be read, or is empty or not text.
    """
    check_text(file, "it should have one video in each line, as it was published")
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file.name} line {number}", line.strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{file.name} is not text in UTF-8; copy or download it again") from error


def _open_text(file: Path) -> TextIO:
    return file.open(encoding="utf-8-sig", newline="")


def _delimiter(lines: TextIO, known: Collection[str]) -> str:
    """The delimiter (comma, semicolon or tab) that splits the header into the most known columns.

    Spreadsheets write semicolons in some countries, and tabs into the clipboard.
    """
    try:
        header = lines.readline()
    except UnicodeDecodeError as error:
        raise DataError(f"{os.path.basename(lines.name)} is not text in UTF-8; save it as CSV UTF-8") from error
    lines.seek(0)
    return max(",;\t", key=lambda mark: len({_normalize_column(cell) for cell in header.split(mark)} & set(known)))


def has_decimal_commas(file: Path, known: Collection[str]) -> bool:
    """Whether a comma in a number is a decimal comma: it is if semicolons or tabs separate the file's cells.

    If commas separate them, a quoted "1,500" could also mean fifteen hundred.
    """
    with _open_text(file) as lines:
        return _delimiter(lines, known) != ","


def ignored_columns(file: Path, columns: Collection[str], known: Collection[str]) -> list[str]:
    """The columns that are not read, each with the known name it is close to: "clips.csv column 'splits' (did ...)"."""
    found = []
    for column in columns:
        if column not in known:
            near = get_close_matches(column, sorted(set(known) - set(columns)), n=1, cutoff=0.75)
            found.append(f"{file.name} column {column!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return found


def _normalize_column(column: str) -> str:
    return column.strip().strip('"').lower()


# -- cells ------------------------------------------------------------------------------------------------------------


def guarded(text: str) -> str:
    """Escape a cell that a spreadsheet would run as a formula: "=1+1" becomes "'=1+1". ``csv_rows`` undoes it."""
    return f"'{text}" if text.startswith(_FORMULA) or text.startswith("'") else text


def unguarded(cell: str) -> str:
    """Undo ``guarded``."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in (*_FORMULA, "'") else cell


def _cell_text(cell: str) -> str:
    return unguarded(cell.strip())


def required(source: str, cells: Mapping[str, str], column: str) -> str:
    """The cell of a row in ``column``, which may not be empty.

    Raises:
        DataError: it is empty.
    """
    if not cells[column]:
        raise DataError(f"{source}: no {column}; fill in the cell or remove the row")
    return cells[column]


def class_names(labeled: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The names of the classes that occur, sorted.

    Args:
        labeled: the label of each row (``composed``), with the row's place.

    Raises:
        DataError: a name has unprintable characters, or two differ in capitals only.
    """
    first: dict[str, tuple[str, str]] = {}
    for label, source in labeled:
        if not label.isprintable():
            raise DataError(f"{source}: the label {label!r} has unprintable characters; rename it")
        other, where = first.setdefault(label.casefold(), (label, source))
        if other != label:
            raise DataError(
                f"{source}: the label {label!r} differs from {other!r} ({where}) in capitals only; write it one way"
            )
    return tuple(sorted(label for label, _ in first.values()))


def class_number(source: str, text: str, num_classes: int, what: str) -> int:
    """Parse the number of a class, counted from 0.

    Args:
        what: the cell's name, for messages.

    Raises:
        DataError: it is not an integer, or there is no such class.
    """
    if not re.fullmatch(r"-?[0-9]+", text):
        raise DataError(f"{source}: {what} = {text!r} should be a whole number, from 0 to {num_classes - 1}")
    if not 0 <= int(text) < num_classes:
        raise DataError(f"{source}: {what} = {text} should be from 0 to {num_classes - 1}, as there are {num_classes}")
    return int(text)


# -- paths ------------------------------------------------------------------------------------------------------------


def path_inside(root: str, written: str, source: str) -> str:
    """The absolute path of the file that a row names.

    Args:
        root: an absolute path.

    Raises:
        DataError: it is not a file path (such as a URL), or leads out of ``root``.
    """
    if _PROTOCOL.match(written) or "\0" in written:
        raise DataError(
            f"{source}: {masked(written)!r} is not a file path; only files are read: download it and give its path"
        )
    path = os.path.normpath(os.path.join(root, written))
    if ".." in written.split(os.sep):
        opened = os.path.realpath(os.path.join(root, written))  # LINK/.. is the folder above the link's target
        if os.path.realpath(path) != opened:
            raise DataError(
                f"{source}: {written!r} leads through a link to {opened!r}; write that path, or the one that is meant"
            )
    if path != root and not path.startswith(root.rstrip(os.sep) + os.sep):
        raise DataError(
            f"{source}: {written!r} leaves the folder {root!r} that paths start from; give paths inside it, or a root "
            "that contains them all"
        )
    return path


class OtherSpellings:
    """Finds files whose paths a list spells unlike the disk: with backslashes, or in another Unicode normal form.

    Call it only for paths that do not exist as written. It reads each folder once.

    Args:
        root: absolute path of the folder that paths start from, and may not leave.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._folders: dict[str, dict[str, list[str]]] = {}

    def find(self, written: str, source: str) -> str | None:
        """The absolute path of the one file that matches; None if there is none.

        Raises:
            DataError: two files match, whose names differ in Unicode form only; or the path leads out of ``root``.
        """
        names = [written, written.replace("\\", "/")] if "\\" in written else [written]
        for name in names:
            path = path_inside(self.root, name, source)
            if name != written and os.path.exists(path):
                return path
            if path.isascii():
                continue
            found = self._find_in_any_form(self.root, os.path.relpath(path, self.root).split(os.sep))
            if len(found) > 1:
                raise DataError(
                    f"{source}: {written!r} may be {found[0]!a} or {found[1]!a}, whose names differ only in Unicode "
                    "form; rename one of them"
                )
            if found:
                return found[0]
        return None

    def _find_in_any_form(self, folder: str, parts: list[str]) -> list[str]:
        """The paths in ``folder`` whose parts equal ``parts`` once both are in one Unicode form."""
        if folder not in self._folders:
            entries: dict[str, list[str]] = {}
            with contextlib.suppress(OSError):  # not a folder: it has no files
                for name in sorted(os.listdir(folder)):
                    entries.setdefault(composed(name), []).append(name)
            self._folders[folder] = entries
        paths = [os.path.join(folder, name) for name in self._folders[folder].get(composed(parts[0]), [])]
        if len(parts) == 1:
            return paths
        return [path for inner in paths for path in self._find_in_any_form(inner, parts[1:])]


def check_known(columns: Collection[str], needed: Collection[str], file: Path) -> None:
    """Raise DataError if a published table lacks one of the columns that it is published with."""
    lacking = [column for column in needed if column not in columns]
    if lacking:
        raise DataError(f"{file.name} row 1: no column {listed(lacking)}; found {listed(columns, at_most=20)}")
