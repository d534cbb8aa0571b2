"""The process that decodes: one for each video, with limits on memory, that ends when the video is closed.

Run as ``python -m tada.video.isolation.decoding fork FD`` it loads the libraries once and then forks a process for each
video that comes over the socket FD. Run as ``... once`` it decodes one video, over its standard input and output: for
systems without fork. Both sides are in this file: the requests and answers of ``decode_video`` are read and written by
``tada.video.isolation.readers``.

A request is a pickle, since the decoding process trusts the one that starts it. An answer is JSON, and maybe the bytes
of an array: a process that has read a hostile file is not trusted.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import select
import signal
import socket
import sys
import warnings
from dataclasses import asdict, dataclass
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tada.errors import CorruptVideoError, TooLargeError, VideoError
from tada.video.isolation.limits import DecodingLimits
from tada.video.reader import open_video
from tada.video.sliding_windows import clips_of as _loaded_here  # noqa: F401  # before the forks, not in each
from tada.video.transforms import frame_crops as _loaded_too  # noqa: F401

_MOST_HEADER_BYTES = 1 << 20
_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A video to decode."""

    path: str | None
    """Path of the file; None: it is the open file that comes with the task."""
    name: str
    """The video's name in messages."""
    limits: DecodingLimits


class Answer(NamedTuple):
    """An answer of the decoding process."""

    about: dict[str, Any]
    array: NDArray[Any] | None


def write_request(pipe: IO[bytes], request: object) -> None:
    """Send a request to the decoding process."""
    content = pickle.dumps(request)
    pipe.write(len(content).to_bytes(8, "big") + content)
    pipe.flush()


def _read_request(pipe: IO[bytes]) -> Any:
    content = _read(pipe, int.from_bytes(_read(pipe, 8), "big"))
    return pickle.loads(content)


def _write_answer(pipe: IO[bytes], about: dict[str, Any], array: NDArray[Any] | None = None) -> None:
    if array is not None:
        array = np.ascontiguousarray(array)
        about = about | {"dtype": array.dtype.str, "shape": array.shape}
    header = json.dumps(about).encode()
    pipe.write(len(header).to_bytes(4, "big") + header)
    if array is not None:
        pipe.write(array.data)
    pipe.flush()


def read_answer(pipe: IO[bytes], max_bytes: int) -> Answer:
    """Read an answer of the decoding process.

    Raises:
        EOFError: the process has ended.
        ValueError: what it sent is no answer.
    """
    size = int.from_bytes(_read(pipe, 4), "big")
    if size > _MOST_HEADER_BYTES:
        raise ValueError("a header of this size")
    about = json.loads(_read(pipe, size))
    if not isinstance(about, dict):
        raise ValueError("a header that is no object")
    if "dtype" not in about:
        return Answer(about, None)
    dtype, shape = np.dtype({"|u1": "|u1", "<f8": "<f8"}[about["dtype"]]), tuple(map(int, about["shape"]))
    num_bytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or num_bytes > max_bytes:
        raise ValueError("an array of this size")
    content = bytearray(num_bytes)
    view = memoryview(content)
    while len(view):
        count = pipe.readinto(view)  # type: ignore[attr-defined]  # of a buffered reader
        if not count:
            raise EOFError
        view = view[count:]
    return Answer(about, np.frombuffer(content, dtype).reshape(shape))


def _read(pipe: IO[bytes], size: int) -> bytes:
    content = pipe.read(size)
    if len(content) < size:
        raise EOFError
    return content


# -- the decoding process ---------------------------------------------------------------------------------------------


def decode_video(requests: IO[bytes], answers: IO[bytes], file: int | None = None) -> None:
    """Answer the requests for one video: first a ``Task``, then others, until the pipe ends.

    Others are (indices, shrink) for frames, or a function of the path that gives True or False.

    Args:
        file: the open video, if the task has no path.
    """
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        task: Task = _read_request(requests)
        path = f"/dev/fd/{file}" if task.path is None else task.path
        _limit_process(task.limits.max_bytes)
        try:
            _answer_requests(task, path, requests, answers)
        except VideoError as error:
            kind = type(error)
            if kind.__module__ != VideoError.__module__:  # pragma: no cover  # there is none
                kind = VideoError
            said = str(error).replace(repr(path), repr(task.name))
            if "Cannot allocate memory" in said:
                kind, said = TooLargeError, _no_memory(task)
            _write_answer(answers, {"error": kind.__name__, "message": said})
        except MemoryError:
            _write_answer(answers, {"error": TooLargeError.__name__, "message": _no_memory(task)})
        except (OSError, RuntimeError, ValueError, ArithmeticError) as error:  # of a library, by a file no test has
            if isinstance(error, BrokenPipeError | ConnectionResetError):
                raise
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            message = f"{task.name!r} cannot be decoded ({first_line})"
            _write_answer(answers, {"error": CorruptVideoError.__name__, "message": message})


def _no_memory(task: Task) -> str:
    return (
        f"{task.name!r} takes more than {task.limits.max_memory_megabytes:.0f} MB of memory to decode, "
        f"{task.limits.owner}'s limit; make its frames smaller"
    )


def _answer_requests(task: Task, path: str, requests: IO[bytes], answers: IO[bytes]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # HDR: there is nobody to read it
        with open_video(path) as video:
            info = video.info
            if info.duration_seconds > task.limits.max_seconds:
                raise TooLargeError(
                    f"{task.name!r} lasts {info.duration_seconds:.0f} s, and {task.limits.owner} takes at most "
                    f"{task.limits.max_seconds:g} s; cut it into parts",
                    task.name,
                )
            aspect = info.pixel_aspect
            about = asdict(info) | {"path": task.name, "pixel_aspect": [aspect.numerator, aspect.denominator]}
            _write_answer(answers, {"info": about}, np.asarray(video.times_seconds, "<f8"))
            while True:
                request = _read_request(requests)
                if callable(request):
                    _write_answer(answers, {"answer": request(path)})
                else:
                    indices, shrink = request
                    _write_answer(answers, {}, video.frames(indices, shrink=shrink))


def _limit_process(max_bytes: int) -> None:
    """Limit this process's memory, where the system can, and forbid it to write files."""
    if sys.platform == "win32":
        return
    import resource

    limits = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)]
    if sys.platform == "linux":  # elsewhere the system does not say how much is in use
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        limits.append((resource.RLIMIT_AS, used + max_bytes))
    for kind, most in limits:
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


# -- the process that forks -------------------------------------------------------------------------------------------


def _fork_for_each(control: socket.socket) -> None:
    """Fork a process for each message on ``control``: one byte, and the descriptors of two sockets and maybe a file."""
    if sys.platform != "linux":
        raise NotImplementedError
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies are kept
    control.send(b"+")  # the libraries are loaded
    while True:
        message, handed, _, _ = socket.recv_fds(control, 1, 3)
        if not message:
            return
        if os.fork() == 0:
            code = 1
            try:
                control.close()
                _keep(*handed)
                code = 0
            finally:
                os._exit(code)
        for descriptor in handed:
            os.close(descriptor)


def _keep(data: int, status: int, *file: int) -> None:
    """Fork the decoding process, and kill it when ``status`` is closed; write there how it ended."""
    if sys.platform != "linux":
        raise NotImplementedError
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(status)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            with socket.socket(fileno=data) as pipe:
                requests, answers = pipe.makefile("rb"), pipe.makefile("wb")
                decode_video(requests, answers, file[0] if file else None)
            code = 0
        finally:
            os._exit(code)
    for descriptor in (data, *file):
        os.close(descriptor)
    while True:
        ended, how = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if select.select([status], [], [], 0)[0]:  # it was closed: nothing is sent there
            os.kill(child, signal.SIGKILL)
        signal.sigtimedwait([signal.SIGCHLD], _POLL_SECONDS)
    with contextlib.suppress(OSError):
        os.write(status, str(os.waitstatus_to_exitcode(how)).encode())


def _main() -> None:
    # A terminal's Ctrl-C reaches this process, too; who started it decides when it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.argv[1] == "fork":
        with contextlib.suppress(OSError):
            _fork_for_each(socket.socket(fileno=int(sys.argv[2])))
        return
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # keep printed text out of the answers
    decode_video(sys.stdin.buffer, answers)


if __name__ == "__main__":
    _main()
