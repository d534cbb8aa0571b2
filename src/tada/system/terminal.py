"""Printing to a terminal, file or pipe: control characters are escaped, write errors told, long text cut.

Names of files and classes may hold any characters, and a terminal obeys control characters.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import shlex
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from tada.errors import OutputError, ReaderGoneError

_ESCAPED_KINDS = {"Cc", "Cs", "Zl", "Zp"}  # control characters, surrogates, line and paragraph separators
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they change the direction of writing


def printable(text: str) -> str:
    r"""Text on one line with its control characters escaped: the escape character of "a\x1b[2J" becomes r"\x1b"."""
    if text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _ESCAPED_KINDS or c in _TURNING else c for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def say(line: str) -> None:
    """Print a line, with control characters escaped."""
    print(printable(line), flush=True)


def print_text(text: str) -> None:
    """Print text of any number of lines: with escapes on a terminal, unchanged to a file or another program."""
    if sys.stdout is not None and sys.stdout.isatty():
        text = "".join(printable(line.rstrip("\n")) + "\n" for line in text.splitlines(keepends=True))
    print(text, end="", flush=True)


def markup_cell(text: str) -> str:
    """Text for a cell of a rich table, in which "[bold]" is printed as it is."""
    from rich.markup import escape

    return escape(printable(text))


def accept_all_names() -> None:
    r"""Print characters that the encoding of standard output lacks as escapes ("\xe9"), not as a UnicodeEncodeError.

    Bytes of a file name that are no UTF-8 are written unchanged to a file or another program, which needs them to find
    the file.
    """
    codecs.register_error("tada.names", _escape_names)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream.isatty() else "tada.names")


def _escape_names(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler of ``codecs``: the replacement of the first failing character, and the position after it."""
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # a byte, as ``os.fsdecode`` gives it
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return _escaped(character), error.start + 1


# -- the standard streams ----------------------------------------------------------------------------------------------


def occupy_closed_streams() -> None:
    """Open a replacement for each standard stream that was closed when this process was started.

    Otherwise the next opened file would get its descriptor, and be written to as if it were the stream. Writing to the
    replacement of standard output fails, so that results are not lost silently; standard error is dropped.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(io.FileIO(number, "w", closefd=False))))


class _Output(io.TextIOWrapper):
    """Standard output or error: the first failed write raises, later text is dropped."""

    is_told = True
    """Whether the first failed write raises (standard output), or is dropped too (standard error)."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as fault:
            self._drop_text(fault)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as fault:
            self._drop_text(fault)

    def _drop_text(self, fault: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        if not self.is_told:
            return
        if isinstance(fault, BrokenPipeError):
            raise ReaderGoneError("standard output was closed by its reader") from fault
        reason = "it is closed (> /dev/null drops what is printed)" if fault.errno == errno.EBADF else fault.strerror
        raise OutputError(f"standard output cannot be written: {reason}") from fault


@contextmanager
def told_output() -> Iterator[None]:
    """In the block, raise when anyone prints and standard output cannot be written.

    Raises:
        ReaderGoneError: the reader of a pipe has ended.
        OutputError: the disk is full, or there is no standard output.
    """
    occupy_closed_streams()
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, own in before.items():
        if type(own) is io.TextIOWrapper:  # not a replacement by others, such as by a test
            stream = _Output(
                own.buffer,
                encoding=own.encoding,
                errors=own.errors,
                line_buffering=own.line_buffering,
                write_through=own.write_through,
            )
            stream.is_told = name == "stdout"
            setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, own in before.items():
            stream = getattr(sys, name)
            if isinstance(stream, _Output):
                setattr(sys, name, own)
                with suppress(OutputError):  # already raised, or another error is on its way
                    stream.flush()
                stream.detach()


# -- width -------------------------------------------------------------------------------------------------------------


def is_screen(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal that can erase lines: no file, no pipe, and not TERM=dumb."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def screen_size(stream: TextIO) -> tuple[int, int]:
    """Columns and lines of the terminal now; the environment variable COLUMNS overrides its columns."""
    try:
        columns, lines = os.get_terminal_size(stream.fileno())
    except OSError:  # it was closed, or has no size
        columns, lines = 0, 0
    asked = os.environ.get("COLUMNS", "")
    return int(asked) if asked.isdecimal() and int(asked) else columns or 80, lines or 24


def cut_middle(text: str, width: int) -> str:
    """Cut text to ``width`` columns: a longer text keeps its beginning and its end, which tell names apart."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    if width < 5:
        return set_cell_size(text, width)
    tail = (width - 3) // 2
    end = set_cell_size(text[::-1], tail)[::-1].lstrip()
    return f"{set_cell_size(text, width - 3 - tail).rstrip()}...{end}"


def fitted_lines(items: Iterable[str], width: int, *, gap: str = "  ") -> list[str]:
    """Items side by side in as few lines as possible; an item wider than a line is cut in its middle."""
    from rich.cells import cell_len

    lines: list[str] = []
    for item in items:
        shown = cut_middle(item, width)
        if lines and cell_len(lines[-1]) + len(gap) + cell_len(shown) <= width:
            lines[-1] += gap + shown
        else:
            lines.append(shown)
    return lines


# -- the typed command -------------------------------------------------------------------------------------------------

_typed: list[str] = []


@contextmanager
def carrying_out(arguments: Sequence[str]) -> Iterator[None]:
    """Record the typed arguments of the command that runs in the block, for ``command_line``."""
    before = list(_typed)
    _typed[:] = arguments
    try:
        yield
    finally:
        _typed[:] = before


def command_line() -> str:
    """The command that runs, as it can be typed again; empty where a program has called the library."""
    return shlex.join(["tada", *_typed]) if _typed else ""
