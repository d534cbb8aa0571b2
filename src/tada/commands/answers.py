"""Print the answers of `tada predict` and `localize` one by one: as a table, JSON, CSV or subtitles."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Any, Generic, TypeVar

from tada.system.terminal import cut_middle, fitted_lines, print_text, printable, screen_size

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Form(Generic[Answer]):
    """An output format of answers."""

    text: Callable[[Answer], str]
    """An answer -> whole lines."""
    head: str = ""
    """Printed before the first answer."""
    starts: tuple[str, str] = ("", "")
    """Prefix of the first answer, and of each later one."""
    tail: str = ""
    """Printed after the last answer."""


class Answers(Generic[Answer]):
    """Prints answers one by one, and at the end, also an early one, what makes the output valid (such as "]").

    ``add`` and ``end`` may be called from different threads.
    """

    def __init__(self, form: str) -> None:
        """Create it without printing.

        Args:
            form: the value of --format.
        """
        self.count = 0
        """Answers printed so far."""
        self._kind = form
        self._form: Form[Answer] | None = None
        self._is_ended = False
        self._lock = threading.Lock()

    def begin(self, form: Form[Answer]) -> None:
        """Set the format. Its head is printed with the first answer, so that an error has no heading above it."""
        self._form = form

    def add(self, answer: Answer) -> None:
        """Print an answer."""
        assert self._form is not None
        text = self._form.starts[self.count > 0] + self._form.text(answer)
        if not self.count:
            text = self._form.head + text
        with self._lock:
            if not self._is_ended:
                print_text(text)
                self.count += 1

    def end(self) -> None:
        """Print the tail; later answers are not printed."""
        with self._lock:
            if not self._is_ended:
                self._is_ended = True
                print_text(self._tail())

    def _tail(self) -> str:
        if self._kind == "json" and not self.count:
            return "[]\n"
        if self._form is None:
            return ""
        return self._form.tail if self.count or self._kind != "csv" else self._form.head


def json_form(as_dict: Callable[[Answer], dict[str, Any]]) -> Form[Answer]:
    """A JSON list. Commas are at the beginning of lines, since it is not known whether another answer follows."""

    def text(answer: Answer) -> str:
        return indent(json.dumps(as_dict(answer), indent=2), "  ")[2:] + "\n"

    return Form(text=text, head="[\n", starts=("  ", ", "), tail="]\n")


def json_lines(as_dict: Callable[[Answer], dict[str, Any]]) -> Form[Answer]:
    """JSON Lines: one line of JSON for each answer."""
    return Form(text=lambda answer: json.dumps(as_dict(answer)) + "\n")


def csv_form(csv: Callable[[Sequence[Answer]], str]) -> Form[Answer]:
    """CSV; ``csv`` returns the header and the rows of some answers."""
    head = csv([])
    return Form(text=lambda answer: csv([answer]).removeprefix(head), head=head)


class Columns:
    """Formats the rows of a table: a name, then columns of numbers, then a last column of any length.

    On a terminal, long names are cut in the middle, and the last column is wrapped. In a file or a pipe nothing is cut.
    """

    def __init__(self, headings: Sequence[str], names: Sequence[str], widths: Sequence[int]) -> None:
        """Compute the widths of the columns.

        Args:
            headings: headings of all columns.
            names: all names that may appear in the first column.
            widths: widths of the columns of numbers, in characters.
        """
        from rich.cells import cell_len

        self.headings = headings
        self.widths = widths
        self.longest = max(map(cell_len, (headings[0], *map(printable, names))))

    def head(self) -> str:
        """The headings."""
        name, *numbers, last = self.headings
        return self.row(name, numbers, [last])

    def row(self, name: str, numbers: Sequence[str], items: Sequence[str]) -> str:
        """A row: one line, or several on a narrow terminal. ``items`` are side by side in the last column.

        Without numbers they begin in the first column of numbers.
        """
        from rich.cells import cell_len, set_cell_size

        is_terminal = sys.stdout is not None and sys.stdout.isatty()
        columns = screen_size(sys.stdout)[0] if is_terminal else 0
        room = columns - sum(self.widths) - 2 * len(self.widths) - 45
        width = min(self.longest, max(room, 2 * columns // 5, 12)) if is_terminal else self.longest
        cells = [set_cell_size(cut_middle(printable(name), width), width)]
        cells += [number.rjust(size) for number, size in zip(numbers, self.widths, strict=bool(numbers))]
        begin = "  ".join([*cells, ""])
        items = [printable(item) for item in items]
        if not is_terminal:
            return f"{begin}{'  '.join(items)}".rstrip() + "\n"
        lines = fitted_lines(items, max(columns - cell_len(begin), 10)) or [""]
        return "".join(f"{' ' * cell_len(begin) if i else begin}{line}".rstrip() + "\n" for i, line in enumerate(lines))
