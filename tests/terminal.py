"""A command at a terminal of its own, as a person has it: what it prints, Ctrl-C, and how it ends."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from hang import HANG_SECONDS

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


_START = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)  # who runs the tests may have them ignored, as shells do in the background
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A process at a pseudo-terminal, the leader of a session of its own. Use it in a ``with``.

    Args:
        columns: of the terminal; without them the variable COLUMNS says that there are 200.
        stdout: a file in place of the terminal.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        folder: Path,
        environment: dict[str, str] | None = None,
        columns: int | None = None,
        stdout: Path | None = None,
    ) -> None:
        self.output = ""
        self._fd, theirs = os.openpty()
        own = {"TERM": "xterm", "COLUMNS": "200" if columns is None else "", "OMP_NUM_THREADS": "1"}
        if columns is not None:
            self.resize(columns)
        into = theirs if stdout is None else os.open(stdout, os.O_WRONLY | os.O_CREAT)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, command)],
            cwd=folder,
            env={**os.environ, **own, **(environment or {})},
            stdin=theirs,
            stdout=into,
            stderr=theirs,
            start_new_session=True,
        )
        self.pid = self._process.pid
        for end in {theirs, into}:
            os.close(end)

    def resize(self, columns: int) -> None:
        """Give the window another width."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def wait_for(self, text: str) -> None:
        """Read until the text was printed."""
        limit = time.monotonic() + HANG_SECONDS
        while text not in self.output:
            assert time.monotonic() < limit, f"{text!r} did not come:\n{self.output}"
            assert self.read(1.0), f"it ended before {text!r}:\n{self.output}"

    def press_ctrl_c(self) -> None:
        """As a person does: the terminal sends SIGINT to the whole foreground process group."""
        os.write(self._fd, b"\x03")

    def close(self) -> None:
        """Close the terminal, as its window is closed: the session's leader gets SIGHUP."""
        os.close(self._fd)
        self._fd = -1

    def end(self) -> int:
        """Read to the end; the exit code."""
        limit = time.monotonic() + HANG_SECONDS
        while self._fd >= 0 and self.read(1.0):
            assert time.monotonic() < limit, f"it does not end:\n{self.output}"
        return self._process.wait(HANG_SECONDS)

    def read(self, seconds: float) -> bool:
        """Read what comes; whether more may come."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # nobody has the terminal open any more
            return False
        self.output += data.decode(errors="replace")
        return bool(data)

    def processes(self) -> list[int]:
        """Those of the session that are still there, but for ones that have ended and nobody has asked how."""
        return processes_of_session(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self._process.wait()
        if self._fd >= 0:
            os.close(self._fd)


class Screen:
    """What a terminal shows of an output, by the few control sequences that are used; others are an error.

    Lines that are too long are wrapped, and wrapped anew when the width changes, as most terminals have it.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self._lines = [""]
        self._line = self._at = 0  # the cursor: a line, however often it is wrapped, and a place in it
        self._has_printed = False  # last: then the cursor stays behind a row's last character, and not in the next

    def rows(self) -> list[str]:
        """As they are shown."""
        return [self._lines[line][start : start + self.columns].rstrip() for line, start in self._starts()]

    def text(self) -> str:
        """The rows, without empty ones at the end."""
        return "\n".join(self.rows()).rstrip("\n")

    def feed(self, output: str) -> None:
        """Take what a process prints."""
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+|\x1b", output):
            self._take(part)

    def resize(self, columns: int, *, wraps_anew: bool = True) -> None:
        """Change the width. Some terminals cut what is wider than a smaller one."""
        if not wraps_anew:
            starts, row = self._starts(), self._row()
            column = self._at - starts[row][1]
            self._lines = [self._lines[line][start : start + self.columns][:columns] for line, start in starts]
            self._line, self._at = row, min(column, columns - 1)
        self.columns = columns

    def _take(self, part: str) -> None:
        line = self._lines[self._line]
        row = self._row()
        self._has_printed = not part.startswith(("\r", "\n", "\x1b"))
        if part == "\r":
            self._at = self._starts()[row][1]
        elif part == "\n":
            self._move(row, row + 1)
        elif part in ("\x1b[J", "\x1b[K"):
            self._lines[self._line] = line[: self._at]
            if part == "\x1b[J":
                del self._lines[self._line + 1 :]
        elif up := re.fullmatch(r"\x1b\[(\d+)A", part):
            self._move(row, row - int(up[1]))
        elif part.startswith("\x1b") and part not in (HIDE_CURSOR, SHOW_CURSOR):
            assert re.fullmatch(r"\x1b\[[0-9;]*m", part), f"{part!r} is not known here"
        elif not part.startswith("\x1b"):
            self._lines[self._line] = line[: self._at].ljust(self._at) + part + line[self._at + len(part) :]
            self._at += len(part)

    def _starts(self) -> list[tuple[int, int]]:
        """Where each row begins: the line, and the place in it."""
        return [
            (line, start)
            for line, text in enumerate(self._lines)
            for start in range(0, max(len(text), 1), self.columns)
        ]

    def _row(self) -> int:
        at = self._at - 1 if self._has_printed else self._at
        return max(row for row, start in enumerate(self._starts()) if start <= (self._line, at))

    def _move(self, row: int, to: int) -> None:
        starts = self._starts()
        column = self._at - starts[row][1]
        if to == len(starts):
            self._lines.append("")
            starts.append((len(self._lines) - 1, 0))
        self._line, start = starts[to]
        self._at = start + column


def processes_of_session(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:  # it has just gone
                continue
            if int(of) == session and state != "Z":
                found.append(int(folder.name))
    return found


def wait_until_gone(session: int) -> None:
    """Wait until no process of a session is left."""
    limit = time.monotonic() + HANG_SECONDS
    while left := processes_of_session(session):
        assert time.monotonic() < limit, f"still there: {left}"
        time.sleep(0.05)
