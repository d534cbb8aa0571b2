"""Progress display: live lines at the bottom of a terminal; in a file or a pipe, a plain line now and then.

The live lines are drawn on standard error, and are erased at the end. Whatever is printed meanwhile, on either stream,
goes above them and stays. Between two drawings the cursor rests at the first character of the live lines, so that
erasing to the end of the screen removes them in any case: after a resize of the window, which wraps them differently,
after a Ctrl-C, whose "^C" the terminal prints there, or after an exception in the middle of a drawing.

A file or a pipe, a terminal that cannot erase (TERM=dumb), and a notebook get plain lines: the first after half a
minute, the next at growing intervals.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from io import StringIO
from types import TracebackType
from typing import Any, Self, TextIO, TypeVar

from tada.system.terminal import cut_middle, fitted_lines, is_screen, printable, screen_size

Item = TypeVar("Item")

_ERASE = "\r\x1b[J"
_REDRAWN_SECONDS = 0.2
_TOLD_SECONDS = (30.0, 600.0)  # least and most between plain lines; in between a tenth of the elapsed time
_WIDEST_BAR, _NARROWEST_BAR = 40, 5


class Work:
    """The progress of one piece of work, shown inside a ``with``.

        with Work("copying", len(files), noun="files") as work:
            for file in files:
                copy(file)
                work.advance()

    Its fields may be changed at any time. Several can be shown at once, below each other.
    """

    def __init__(self, words: str, total: float | None = None, *, noun: str = "", is_shown: bool = True) -> None:
        """Create it without showing it.

        Args:
            words: the name of the work, such as "copying".
            total: the number of parts to do; None where it is unknown.
            noun: what the parts are, in the plural; without one, a percentage is shown.
            is_shown: false for all ranks but the first, and where the caller wants silence.
        """
        self.words, self.total, self.noun = words, total, noun
        self.details: Sequence[str] = ()
        """More to show, below the first line."""
        self.has_rate = bool(noun)
        """Whether parts per second are shown."""
        self.done = 0.0
        is_shown = is_shown and total != 0
        self._is_drawn = is_shown and is_screen(sys.stderr)
        self._is_told = is_shown and not self._is_drawn
        self._began = self._told_at = self._last = time.monotonic()
        self._first: tuple[float, float] | None = None  # time and parts when the first was done, after the start-up

    def advance(self, part: float = 1.0) -> None:
        """Add ``part`` to what is done."""
        self.advance_to(self.done + part)

    def advance_to(self, done: float) -> None:
        """Set how much is done."""
        self.done, self._last = done, time.monotonic()
        if self._first is None:
            self._first = self._last, done
        if self._is_told:
            least, most = _TOLD_SECONDS
            if self._last - self._told_at >= min(max(least, (self._last - self._began) / 10), most):
                self.note_told()
                print(printable(self.plain_line()), file=sys.stderr, flush=True)

    def note_told(self) -> None:
        """Postpone the next plain line: another line has just told the progress."""
        self._told_at = time.monotonic()

    def numbers(self) -> list[str]:
        """Parts done, time left, and rate, as texts; the most important first."""
        done = int(self.done + 1e-6)
        if self.total is None:
            return [f"{done} {self.noun}"] if self.noun and done else []
        share = f"{100 * self.done / self.total if self.total else 100:.0f} %"
        numbers = [f"{done} of {self.total:.0f} {self.noun}" if self.noun else share]
        if self._first is None:
            return numbers
        seconds, parts = self._last - self._first[0], self.done - self._first[1]
        if seconds <= 0 or parts <= 0:
            return numbers
        if self.done < self.total:
            # During a pause, such as a test between two steps, the time left shrinks by one part at most.
            part = seconds / parts
            left = (self.total - self.done) * part - min(time.monotonic() - self._last, part)
            numbers.append(f"{duration_text(max(left, 1.0))} left")
        if self.has_rate:
            numbers.append(rate_text(parts / seconds, self.noun))
        return numbers

    def plain_line(self) -> str:
        """The progress as one line of any length."""
        return f"{self.words}: {', '.join([*self.numbers(), *self.details])}"

    def lines(self, width: int, *, bar: str = "━─") -> list[str]:
        """The live lines, each at most ``width`` columns wide."""
        share = None if not self.total else min(self.done / self.total, 1.0)
        first = progress_line(printable(self.words), self.numbers(), share, width, bar=bar)
        return [first, *fitted_lines(map(printable, self.details), width)]

    def __enter__(self) -> Self:
        if self._is_drawn:
            _screen.show(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_drawn:
            _screen.hide(self)


def track(
    items: Iterable[Item], words: str, total: int | None = None, *, noun: str, is_shown: bool = True
) -> Iterator[Item]:
    """Yield the items, and show how many of them are done. ``total`` is needed where the items have no length."""
    if total is None:
        total = len(items)  # type: ignore[arg-type]  # as the caller knows
    with Work(words, total, noun=noun, is_shown=is_shown) as work:
        for item in items:
            yield item
            work.advance()


def is_shown() -> bool:
    """Whether live lines are shown now."""
    return bool(_screen.works)


def wipe() -> None:
    """Erase all live lines: the process, or its work, has ended."""
    _screen.close()


# -- words -------------------------------------------------------------------------------------------------------------


def duration_text(seconds: float) -> str:
    """A duration as text: "26 s", "4 min 20 s", "2 h 05 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def rate_text(rate: float, noun: str) -> str:
    """A rate per second as text, or per minute where it is low: "3.4 videos/s"."""
    if rate < 0.2:
        return f"{60 * rate:.1f} {noun}/min"
    return f"{rate:.0f} {noun}/s" if rate >= 100 else f"{rate:.1f} {noun}/s"


def progress_line(words: str, numbers: Sequence[str], share: float | None, width: int, *, bar: str = "━─") -> str:
    """Words, a bar and numbers in one line; a narrow line drops the bar, then the last numbers.

    Args:
        share: the share that is done, from 0 to 1; None for no bar.
        width: the most columns of the line.
        bar: the characters for the done part and the rest.
    """
    from rich.cells import cell_len

    words = cut_middle(words, width if not numbers else max(width // 3, width - 2 - len("  ".join(numbers))))
    kept = list(numbers)
    while kept and cell_len("  ".join([words, *kept])) > width:
        kept.pop()
    room = min(width - cell_len("  ".join([words, "", *kept])), _WIDEST_BAR)
    if share is None or room < _NARROWEST_BAR:
        return "  ".join([words, *kept])
    filled = int(share * room)
    return "  ".join([words, bar[0] * filled + bar[1] * (room - filled), *kept])


# -- the terminal ------------------------------------------------------------------------------------------------------


class _Screen:
    """The live lines at the bottom of the terminal. There is one instance."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.works: list[Work] = []
        self._stream: TextIO = sys.stderr
        self.above: dict[str, _Above] = {}
        self._ended = threading.Event()
        self._drawn: tuple[int, list[str]] | None = None
        self.is_of_parent = False  # in a forked child: the live lines are drawn by its parent
        self._console: Any = None

    def show(self, work: Work) -> None:
        with self.lock:
            self.works.append(work)
            try:
                if len(self.works) == 1:
                    self._begin()
                self._draw()
            except BaseException:  # a signal came
                self.hide(work)
                raise

    def hide(self, work: Work) -> None:
        with self.lock:
            if work in self.works:
                self.works.remove(work)
            if self.works:
                self._draw()
            else:
                self.close()

    def close(self) -> None:
        """Erase the live lines, and restore the streams."""
        with self.lock:
            if self.works or self.above:
                self._write(_ERASE)
            self.works.clear()
            self._ended.set()
            above, self.above = self.above, {}
            for name, stream in above.items():
                if getattr(sys, name) is stream:
                    setattr(sys, name, stream.stream)
                stream.finish()

    def print_above(self, stream: TextIO, text: str) -> None:
        """Print whole lines on a stream, above the live lines."""
        stream.write(_ERASE + text if self.works or self.is_of_parent else text)
        stream.flush()
        self._drawn = None
        self._draw()

    def _begin(self) -> None:
        from rich.console import Console

        self._stream = sys.stderr
        self._console = Console(file=StringIO(), force_terminal=True)  # it detects colors, and NO_COLOR
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if is_screen(stream):  # a stream into a file is left alone
                stream.flush()
                self.above[name] = _Above(stream)
                setattr(sys, name, self.above[name])
        self._drawn = None
        self._ended = threading.Event()
        threading.Thread(target=self._keep_drawing, args=[self._ended], name="progress", daemon=True).start()

    def _keep_drawing(self, ended: threading.Event) -> None:
        while not ended.wait(_REDRAWN_SECONDS):
            with self.lock:
                if not ended.is_set():
                    self._draw()

    def _draw(self) -> None:
        if not self.works:
            return
        columns, height = screen_size(self._stream)
        bar = "━─" if _can_print("━─", self._stream) else "#-"
        lines = [line for work in self.works for line in work.lines(columns - 1, bar=bar)][: max(height - 1, 1)]
        if (columns, lines) != self._drawn:
            up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
            self._write(_ERASE + "\n".join(map(self._colored, lines)) + "\r" + up)
            self._drawn = columns, lines

    def _colored(self, line: str) -> str:
        from rich.text import Text

        text = Text(line)
        text.highlight_regex("━+", "green")
        with self._console.capture() as captured:
            self._console.print(text, end="", soft_wrap=True, highlight=False)
        return str(captured.get())

    def _write(self, text: str) -> None:
        # Not through the stream: a process forked meanwhile would inherit the stream's lock and wait for it forever.
        with suppress(OSError, ValueError):  # the terminal was closed
            os.write(self._stream.fileno(), text.encode(self._stream.encoding, "backslashreplace"))


class _Above:
    """Replaces a stream to the terminal: whole lines are printed above the live lines, the rest at a flush."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.part = ""

    def write(self, text: str) -> int:
        with _screen.lock:
            lines, end, self.part = (self.part + text).rpartition("\n")
            if end:
                _screen.print_above(self.stream, lines + end)
        return len(text)

    def flush(self) -> None:
        with _screen.lock:
            if self.part:  # such as a debugger's prompt
                _screen.print_above(self.stream, self.part + "\n")
                self.part = ""

    def finish(self) -> None:
        """Print an unfinished line."""
        if self.part:
            self.stream.write(self.part)
            self.stream.flush()
            self.part = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _can_print(text: str, stream: TextIO) -> bool:
    try:
        text.encode(stream.encoding)
    except UnicodeEncodeError:
        return False
    return True


_screen = _Screen()


def of_worker(stream: TextIO | None) -> Any:
    """A stream for a forked process to print on: it erases its parent's live lines, which the parent draws again."""
    return _Above(stream) if stream is not None and _screen.is_of_parent and is_screen(stream) else stream


def _in_child() -> None:
    _screen.is_of_parent = _screen.is_of_parent or bool(_screen.works)
    _screen.works.clear()
    for above in _screen.above.values():
        above.part = ""  # the parent prints it
    _screen.lock.release()


if hasattr(os, "register_at_fork"):
    # Fork only between two drawings: a child that inherited the held lock of our thread could not print.
    os.register_at_fork(before=_screen.lock.acquire, after_in_parent=_screen.lock.release, after_in_child=_in_child)
