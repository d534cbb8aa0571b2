"""Read bytes that are still being written, to a growing file or a pipe: at the end, reading waits for more."""

from __future__ import annotations

import os
import queue
import select
import stat
import sys
import threading
import time

from tada.errors import ChangedVideoError, NotARegularFileError, VideoNotFoundError

STDIN = "-"
"""Path that stands for the standard input."""
_POLL_SECONDS = 0.02
_SELECTS_PIPES = sys.platform != "win32"  # there ``select`` takes sockets alone
_VIDEO4LINUX = 81  # major number of the devices /dev/video*: linux/Documentation/admin-guide/devices.txt
_BEGINNING_BYTES = 1 << 16


def is_camera(path: str) -> bool:
    """Whether the path is a camera device (Video4Linux)."""
    if sys.platform != "linux":
        return False
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) == _VIDEO4LINUX


class LiveBytes:
    """A growing file, a named pipe or the standard input, as a file object that FFmpeg reads without seeking.

    It ends when no bytes arrived for ``idle_seconds``, when the pipe's writer closes it, or when ``stop`` is set.

    Raises:
        VideoError: the path does not exist, or is neither a file nor a pipe.
    """

    def __init__(self, path: str, *, idle_seconds: float, stop: threading.Event) -> None:
        self.path, self.idle_seconds = path, idle_seconds
        self.beginning = b""
        """The first bytes, from which error messages tell the format."""
        self.is_closed = False
        """The pipe's writer has closed it."""
        self._stop = stop
        self._position, self._has_ended = 0, False
        try:
            if path == STDIN and sys.stdin is None:
                raise ValueError("standard input is closed")
            if path == STDIN:
                self._file = os.dup(sys.stdin.fileno())
            else:
                kind = os.stat(path).st_mode
                if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
                    what = "a folder" if stat.S_ISDIR(kind) else "a socket or a device that is no camera"
                    raise NotARegularFileError(f"{path!r} is {what}; a file, a pipe or a camera is needed", path)
                # Without O_NONBLOCK, opening a pipe waits for its writer.
                self._file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except (OSError, ValueError) as fault:  # ValueError: a zero byte in the name, or no standard input
            if isinstance(fault, NotARegularFileError):
                raise
            why = getattr(fault, "strerror", None) or str(fault)
            raise VideoNotFoundError(f"{path!r} cannot be opened ({why}); check the path", path) from fault
        self._is_pipe = not stat.S_ISREG(os.fstat(self._file).st_mode)
        self._thread = _ReadingThread(self._file) if self._is_pipe and not _SELECTS_PIPES else None

    def read(self, size: int) -> bytes:
        """Wait for bytes and return up to ``size`` of them; b"" at the end.

        Raises:
            ChangedVideoError: the file was truncated below the position already read.
        """
        data = b"" if self._has_ended else self._wait_and_read(size)
        self._has_ended = not data
        self._position += len(data)
        self.beginning += data[: _BEGINNING_BYTES - len(self.beginning)]
        return data

    def _wait_and_read(self, size: int) -> bytes:
        deadline = time.monotonic() + self.idle_seconds
        while not self._stop.is_set():
            if self._is_pipe:
                data = self._poll_pipe(size)
                if data is not None:
                    self.is_closed = not data
                    return data
            else:
                data = os.read(self._file, size)
                if data:
                    return data
                length = os.fstat(self._file).st_size
                if length < self._position:
                    raise ChangedVideoError(
                        f"{self.path!r} became shorter while it was read ({length} bytes, of which {self._position} "
                        "are read); let its writer only add to it",
                        self.path,
                    )
                self._stop.wait(_POLL_SECONDS)
            if time.monotonic() > deadline:
                break
        return b""

    def _poll_pipe(self, size: int) -> bytes | None:
        """Up to ``size`` bytes of the pipe; b"" at its end, None if nothing came within a poll's time."""
        if self._thread is not None:
            return self._thread.poll(size)
        if select.select([self._file], [], [], _POLL_SECONDS)[0]:
            return os.read(self._file, size)
        return None

    def close(self) -> None:
        """Close the file. May be called twice."""
        file, self._file = self._file, -1
        if file >= 0 and self._thread is None:  # closing would wait until the thread's reading ends
            os.close(file)


class _ReadingThread:
    """Reads a pipe in a thread, so that waiting for its bytes can end; the thread ends with the pipe or the process."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._rest = b""
        self._parts: queue.Queue[bytes] = queue.Queue(maxsize=1)
        threading.Thread(target=self._read, name="pipe", daemon=True).start()

    def _read(self) -> None:
        data = b"."
        while data:
            try:
                data = os.read(self._file, _BEGINNING_BYTES)
            except OSError:  # so Windows tells that the writer has closed it
                data = b""
            self._parts.put(data)

    def poll(self, size: int) -> bytes | None:
        """As ``LiveBytes._poll_pipe``."""
        if not self._rest:
            try:
                self._rest = self._parts.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                return None
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
