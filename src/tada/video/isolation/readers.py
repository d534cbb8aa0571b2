"""Videos that are decoded in processes of their own, as open videos: ``Recognizer.predict`` takes them as any other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import IO, Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

import tada.errors
from tada.errors import DecodeTimeoutError, VideoError, WorkerLostError
from tada.system.signals import exit_in_words
from tada.video.frames import Shrink, frames_at_once
from tada.video.inputs import VideoSource
from tada.video.isolation.decoding import Answer, Task, read_answer, write_request
from tada.video.isolation.limits import DecodingLimits
from tada.video.reader import VideoInfo, indices_played_at

CAN_FORK = sys.platform == "linux"
"""Elsewhere a process is started anew for each video, which takes seconds: other systems' libraries may not survive a
fork, or they have none."""
_START_SECONDS = 600.0  # on a machine that is busy with other things
_STATUS_SECONDS = 5.0


class DecoderCrashedError(VideoError):
    """The process that decoded a video has died."""

    reason = "crashed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A video file of a request."""

    name: str
    """The client's name of it, for messages and the answer; never a path here."""
    file: int | None
    """The open file, which has no name in any folder; None where the system needs a path."""
    path: str
    """Its path, where it has one."""


class Readers:
    """Starts a decoding process for each video."""

    def __init__(self, *, can_fork: bool = CAN_FORK) -> None:
        self._can_fork = can_fork
        self._lock = threading.Lock()
        self._program: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._is_closed = self._is_loaded = False

    def start(self) -> None:
        """Load the libraries of the processes ahead.

        Raises:
            WorkerLostError: they do not start.
        """
        with self._lock:
            self._start()

    def start_soon(self) -> None:
        """Begin to load them, while this thread does other things; ``start`` waits for the end, and raises."""
        threading.Thread(target=self._start_quietly, daemon=True, name="readers").start()

    def _start_quietly(self) -> None:
        with suppress(WorkerLostError, OSError):
            self.start()

    @property
    def is_alive(self) -> bool:
        """Whether videos can be decoded."""
        return not self._can_fork or (self._program is not None and self._program.poll() is None)

    def _start(self) -> None:
        if not self._can_fork or self._is_closed or (self.is_alive and self._is_loaded):
            return
        if not self.is_alive:
            self._launch()
        assert self._control is not None
        self._control.settimeout(_START_SECONDS)
        with suppress(OSError):
            self._is_loaded = self._control.recv(1) == b"+"
        if not self._is_loaded:
            raise WorkerLostError(
                "the process that opens videos does not start: `python -m tada.video.isolation.decoding once` says why"
            )

    def _launch(self) -> None:
        self._is_loaded = False
        if self._control is not None:
            self._control.close()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._program = subprocess.Popen(
                [sys.executable, "-m", "tada.video.isolation.decoding", "fork", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,
                env=_environment(),
            )

    def source(self, upload: Upload, opened: OpenedVideos, limits: DecodingLimits) -> VideoSource:
        """The upload as a video that can be opened; ``opened`` gets what is opened, to be killed from outside."""

        def opens() -> RemoteVideo:
            video = RemoteVideo(self._connect(upload), upload, limits)
            opened.append(video)  # before it is read, which may take as long as the limit allows
            video.begin()
            return video

        return VideoSource(upload.name, opens)

    def _connect(self, upload: Upload) -> _Forked | _Started:
        if not self._can_fork:
            return _Started()
        with self._lock:
            self._start()  # it ends only if somebody kills it
            if self._control is None:
                raise WorkerLostError("the program is ending")
            data, theirs = socket.socketpair()
            status, of_keeper = socket.socketpair()
            if sys.platform == "win32":
                raise NotImplementedError
            with theirs, of_keeper:
                handed = [theirs.fileno(), of_keeper.fileno()]
                handed += [] if upload.file is None else [upload.file]
                socket.send_fds(self._control, [b"v"], handed)
        return _Forked(data, status)

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._is_closed = True
            if self._control is not None:
                self._control.close()
                self._control = None
            if self._program is not None:
                self._program.kill()
                self._program.wait()


def _environment() -> dict[str, str]:
    """One thread, which a fork survives, and one arena, so that the limit of memory counts what is used."""
    path = os.pathsep.join(path for path in sys.path if path)
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, "PYTHONPATH": path, **one_thread, "MALLOC_ARENA_MAX": "1", "CUDA_VISIBLE_DEVICES": ""}


class _Forked:
    """A connection to a forked process."""

    def __init__(self, data: socket.socket, status: socket.socket) -> None:
        self._data, self._status = data, status
        self.requests: IO[bytes] = data.makefile("wb")
        self.answers: IO[bytes] = data.makefile("rb")

    def kill(self) -> None:
        for end in (self._status, self._data):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def exit_code(self) -> int | None:
        """Negative: the signal that killed it; None: unknown."""
        self._status.settimeout(_STATUS_SECONDS)
        with suppress(OSError, ValueError):
            return int(self._status.recv(16))
        return None

    def close(self) -> None:
        self.kill()
        for end in (self.requests, self.answers, self._data, self._status):
            with suppress(OSError):
                end.close()


class _Started:
    """A connection to a process that was started for one video."""

    def __init__(self) -> None:
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tada.video.isolation.decoding", "once"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
        )
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self.requests: IO[bytes] = self._program.stdin
        self.answers: IO[bytes] = self._program.stdout

    def kill(self) -> None:
        self._program.kill()

    def exit_code(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self._program.wait(_STATUS_SECONDS)
        return None

    def close(self) -> None:
        self.kill()
        for pipe in (self.requests, self.answers):
            with suppress(OSError):
                pipe.close()
        self._program.wait()


class RemoteVideo:
    """A video that another process decodes, with the interface of ``tada.video.frames.OpenVideo``.

    Time counts while the process is waited for, over all calls together.

    Raises:
        VideoError: as the reader's; DecodeTimeoutError after ``decode_seconds``; DecoderCrashedError if the process
            died; this one goes on.
    """

    def __init__(self, process: _Forked | _Started, upload: Upload, limits: DecodingLimits) -> None:
        self._process, self._upload, self._name, self._limits = process, upload, upload.name, limits
        self._left_seconds = limits.decode_seconds
        self._why: str = ""

    def begin(self) -> None:
        """Open the file.

        Raises:
            VideoError: it cannot be opened; the process has ended.
        """
        file = self._upload.file
        task = Task(path=self._upload.path if file is None else None, name=self._name, limits=self._limits)
        try:
            about, times = self._ask(task)
            assert times is not None
            aspect = Fraction(*about["info"]["pixel_aspect"])
            self._info = VideoInfo(**about["info"] | {"pixel_aspect": aspect})
            self.times_seconds: NDArray[np.float64] = times
        except BaseException:
            self._process.close()
            raise

    @property
    def info(self) -> VideoInfo:
        """The file's properties."""
        return self._info

    @property
    def container_fps(self) -> float | None:
        """As ``VideoInfo.container_fps``."""
        return self._info.container_fps

    def __len__(self) -> int:
        """How many frames there are."""
        return len(self.times_seconds)

    def frames(self, indices: Sequence[int], *, shrink: Shrink | None = None) -> NDArray[np.uint8]:
        """Decode frames, as ``tada.video.reader.Video.frames``; ``shrink`` is pickled."""
        found = self._ask(([int(index) for index in indices], shrink)).array
        assert found is not None
        return found

    def frames_played_at(self, seconds: Sequence[float], *, shrink: Shrink | None = None) -> NDArray[np.uint8]:
        """The frames shown at ``seconds``, as ``tada.video.reader.Video.frames_played_at``."""
        return self.frames(
            indices_played_at(seconds, self.times_seconds, self._info.duration_seconds, repr(self._name)), shrink=shrink
        )

    def __iter__(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """Every frame in turn, [H, W, 3], and when it is shown."""
        yield from self.each()

    def each(self, shrink: Shrink | None = None) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """Every frame in turn, [H, W, 3], and when it is shown, some at a time; ``shrink`` is pickled."""
        most = frames_at_once(self._info.height, self._info.width)
        for start in range(0, len(self), most):
            indices = range(start, min(start + most, len(self)))
            yield from zip(self.times_seconds[indices].tolist(), self.frames(indices, shrink=shrink), strict=True)

    def ask_of_file(self, question: Callable[[str], bool]) -> bool:
        """The answer to a question about the file at a path, which is asked in the process; ``question`` is pickled."""
        return bool(self._ask(question).about["answer"])

    def stop(self, why: str) -> None:
        """Kill the process, from any thread; what reads it gets a VideoError that says ``why``."""
        self._why = self._why or why
        self._process.kill()

    def _ask(self, request: object) -> Answer:
        begin = time.monotonic()
        late = f"it takes more than {self._limits.decode_seconds:g} s to decode, which is {self._limits.owner}'s limit"
        timer = threading.Timer(max(self._left_seconds, 0.001), self.stop, [late])
        timer.daemon = True
        timer.start()
        try:
            write_request(self._process.requests, request)
            answer = read_answer(self._process.answers, self._limits.max_bytes)
        except (EOFError, OSError, ValueError, KeyError):
            self._raise_lost(late)
        finally:
            timer.cancel()
            self._left_seconds -= time.monotonic() - begin
        if "error" in answer.about:
            self._raise_error(answer.about)
        return answer

    def _raise_lost(self, late: str) -> NoReturn:
        """The process has died, was killed, or sends nonsense."""
        code = None if self._why else self._process.exit_code()
        self._process.kill()
        if self._why == late:
            raise DecodeTimeoutError(f"{self._name!r} was given up: {late}", self._name) from None
        if self._why:
            raise DecoderCrashedError(f"{self._name!r} was given up: {self._why}", self._name) from None
        how = f" ({exit_in_words(code)})" if code else ""
        raise DecoderCrashedError(f"{self._name!r} crashed its decoder{how}; no answer", self._name) from None

    def _raise_error(self, about: dict[str, Any]) -> NoReturn:
        kind = getattr(tada.errors, str(about["error"]), VideoError)
        kind = kind if isinstance(kind, type) and issubclass(kind, VideoError) else VideoError
        raise kind(str(about.get("message", "")), self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._process.close()


class OpenedVideos:
    """The open videos of a request or a visitor, which can be stopped from another thread."""

    def __init__(self) -> None:
        self._videos: list[RemoteVideo] = []
        self._why: str | None = None
        self._lock = threading.Lock()

    def append(self, video: RemoteVideo) -> None:
        """Add a video; it is killed at once if the others were."""
        with self._lock:
            self._videos.append(video)
            if self._why is not None:
                video.stop(self._why)

    def stop(self, why: str) -> None:
        """Kill their processes, and those of videos that are opened later."""
        with self._lock:
            self._why = why
            for video in self._videos:
                video.stop(why)
