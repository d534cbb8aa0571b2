"""A command at a terminal of its own, as a person has it: what it prints, Ctrl-C, and how it ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
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
    """A process at a pseudo-terminal, the leader of a session of its own. Use it in a ``with``."""

    def __init__(
        self, command: Sequence[str | Path], *, folder: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.output = ""
        self._fd, theirs = os.openpty()
        own = {"TERM": "xterm", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, command)],
            cwd=folder,
            env={**os.environ, **own, **(environment or {})},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        self.pid = self._process.pid
        os.close(theirs)

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
