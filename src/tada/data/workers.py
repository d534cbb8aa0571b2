"""Process pools whose processes may crash or be killed: each works on one file at a time.

A decoder that crashes or hangs loses one file, not the others. The pool of the standard library does not fit: it breaks
as a whole when a process dies, and cannot say on which file. The processes are started as programs (``python -m``), not
forked: FFmpeg's threads do not survive a fork, and the user's own script is not run again.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO, Any, Generic, Literal, Protocol, TypeVar

from tada.errors import DecoderLostError
from tada.system.signals import exit_in_words

Task = TypeVar("Task")
Result = TypeVar("Result")
Item = TypeVar("Item")

_POLL_SECONDS = 0.5  # between checks whether the parent is alive
# There is a process for each core: more threads would wait for each other.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_Kind = Literal["answer", "item", "end", "fault"]
"""What a process sends: the one answer, one item of several, the end of the items, or an exception."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Result of a task whose process died, or was killed because it took too long."""

    reason: str
    """For messages: "the decoder crashed (signal SIGSEGV)", "no answer within 60 s"."""
    is_late: bool = False
    """Whether it took too long."""

    def error(self, name: str) -> DecoderLostError:
        """The error that the video of this name was lost with its process."""
        return DecoderLostError(f"{name!r}: {self.reason}; leave it out, or convert it with another program", name)


class Pool(Protocol):
    """What calls a function on each of many tasks: ``in_processes``, or the same on a cluster."""

    def __call__(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        num_processes: int,
        timeout_seconds: float,
    ) -> Generator[tuple[Task, Result | Lost], None, None]: ...


def in_processes(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    num_processes: int,
    timeout_seconds: float,
) -> Generator[tuple[Task, Result | Lost], None, None]:
    """Yield each task and ``function(task)``, in the order in which they are finished. Lost tasks are not tried again.

    When the caller is interrupted or dies, the processes end too. One who may stop early closes the generator
    (``contextlib.closing``): the garbage collector would do it at any time and in any thread, one of those here, too.

    Args:
        function: defined in a module, so that it can be pickled.
        timeout_seconds: for one task; a process that takes longer is killed.

    Raises:
        BaseException: any error of ``function``; it should return errors of single files as results.
    """
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    done: queue.SimpleQueue[tuple[Task, Result | Lost] | BaseException | None] = queue.SimpleQueue()
    processes = [WorkerProcess(function, timeout_seconds) for _ in range(min(num_processes, len(tasks)))]
    is_over = threading.Event()

    def serve(process: WorkerProcess[Task, Result]) -> None:
        try:
            while not is_over.is_set():
                task = waiting.get_nowait()
                for answer in process.answers(task):
                    done.put((task, answer))
        except queue.Empty:
            pass
        except BaseException as fault:  # raised again in the caller's thread
            done.put(fault)
        done.put(None)

    threads = [threading.Thread(target=serve, args=[process], daemon=True) for process in processes]
    try:
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            found = done.get()
            if found is None:
                running -= 1
            elif isinstance(found, BaseException):
                raise found
            else:
                yield found
    finally:
        is_over.set()
        for process in processes:
            process.stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        for process in processes:
            process.close()


class WorkerProcess(Generic[Task, Item]):
    """One process, started at its first task and again after each crash."""

    def __init__(self, function: Callable[[Task], Item | Iterator[Item]], timeout_seconds: float) -> None:
        self._function, self._timeout_seconds = function, timeout_seconds
        self._program: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()
        self._is_stopped = False

    def answers(self, task: Task, *, attempts: int = 1) -> Iterator[Item | Lost]:
        """Yield what the function returns for the task; if that is an iterator, its items as they are made.

        Args:
            attempts: how often the task is begun if its process dies; then its items come again from the first one on.
                One that takes too long is not begun again.
        """
        begun = 0
        while True:
            begun += 1
            lost = None
            for item in self._answers(task):
                if isinstance(item, Lost):
                    lost = item
                else:
                    yield item
            if lost is None:
                return
            if begun == attempts or lost.is_late or self._is_stopped:
                yield lost if begun == 1 else replace(lost, reason=f"{lost.reason}, {begun} times")
                return

    def _answers(self, task: Task) -> Iterator[Item | Lost]:
        program = self._start()
        if program is None:
            yield Lost("stopped")
            return
        assert program.stdin is not None
        assert program.stdout is not None
        is_late = threading.Event()

        def kill() -> None:
            is_late.set()
            program.kill()

        is_begun = False
        kind: _Kind = "item"
        while kind == "item":
            timer = threading.Timer(self._timeout_seconds, kill)
            timer.start()
            try:
                if not is_begun:
                    _send(program.stdin, (self._function, task))
                    is_begun = True
                kind, value = _receive(program.stdout)
            except (EOFError, OSError, pickle.UnpicklingError):  # it died before or during its answer
                code = _end(program)
                self._program = None
                late = f"no answer within {self._timeout_seconds:g} s"
                yield Lost(late, is_late=True) if is_late.is_set() else Lost(_describe_death(code))
                return
            finally:
                timer.cancel()
            if kind == "fault":
                raise value
            if kind != "end":
                yield value

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._starting:
            if self._program is None and not self._is_stopped:
                self._program = subprocess.Popen(
                    [sys.executable, "-m", "tada.data.workers", str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    process_group=0,  # a terminal's Ctrl-C reaches only the caller, which decides when to stop
                    # So that the process can import the function's module.
                    env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                )
            return self._program

    def stop(self) -> None:
        """Kill the process, even in the middle of a task, and start it no more."""
        with self._starting:
            self._is_stopped = True
            program = self._program
        if program is not None:
            program.kill()

    def close(self) -> None:
        if self._program is not None:
            _end(self._program)


def _end(program: subprocess.Popen[bytes]) -> int:
    program.kill()
    for pipe in (program.stdin, program.stdout):
        assert pipe is not None
        with suppress(OSError):  # unwritten data in a broken pipe
            pipe.close()
    return program.wait()


def _describe_death(code: int) -> str:
    return f"the decoder {'crashed' if code < 0 else 'ended its process'} ({exit_in_words(code)})"


def end_with_parent(parent: int | None = None) -> None:
    """Make this process end within a second of its parent, whatever it is doing.

    Args:
        parent: the parent's process id, if known, since the parent may have ended already.
    """
    first = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == first:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# -- the process's own side -------------------------------------------------------------------------------------------


def _send(pipe: IO[bytes], value: object) -> None:
    content = pickle.dumps(value)
    pipe.write(len(content).to_bytes(8, "big") + content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    size = pipe.read(8)
    if len(size) < 8:
        raise EOFError
    content = pipe.read(int.from_bytes(size, "big"))
    return pickle.loads(content)  # only from our own process; a truncated pickle raises UnpicklingError


def _serve() -> None:
    """Answer tasks until the pipe ends, or the caller dies."""
    end_with_parent(int(sys.argv[1]))
    tasks, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # keep printed text out of the answers
    while True:
        try:
            function, task = _receive(tasks)
        except EOFError:
            return
        try:
            for answer in _answer(function, task):
                _send(answers, answer)
        except BrokenPipeError:
            return


def _answer(function: Callable[[Any], Any], task: Any) -> Iterator[tuple[_Kind, Any]]:
    try:
        value = function(task)
        if not isinstance(value, Iterator):
            yield "answer", value
            return
        for item in value:
            yield "item", item
    except Exception as fault:
        yield "fault", fault
    else:
        yield "end", None


if __name__ == "__main__":
    _serve()
