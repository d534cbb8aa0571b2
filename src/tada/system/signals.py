"""Signal handling: end in order on Ctrl-C (SIGINT), SIGTERM, or SIGHUP (the terminal is closed).

The first signal is recorded, and raised in the main thread as KeyboardInterrupt (SIGTERM and SIGHUP: SystemExit), so
that every ``with`` and ``finally`` runs. Work that must not be interrupted, such as a training step, runs inside
``deferring``: there nothing is raised, and the work checks ``told`` at points where it can stop.

The command line runs inside ``watching``, which limits how long the end takes. Python runs a signal handler only when
the main thread is back in Python code, which a step of a large network may delay by a minute. So the signal also wakes
a thread; when the process has not ended after some seconds, or a second Ctrl-C comes, the thread calls every
``last_chance`` and ends the process. (Nothing heavy is imported here: a command loads this module first.)
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from tada.system.devices import is_first_process
from tada.system.progress import is_shown, wipe

SIGNALS = tuple(
    signal.Signals(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""The signals that tell a process to end and that it can handle."""

RAISED_SECONDS = 4.0
"""Time for a process to end after the signal was raised."""
DEFERRED_SECONDS = 2.0
"""Time for deferred work to reach a point where it can stop, before its last chance is called."""
_CHANCES_SECONDS = 30.0  # time for all last chances: saving a large state to a slow disk
_SAME_PRESS_SECONDS = 0.1  # one Ctrl-C may come twice: from the terminal, and passed on by a launcher
_SAME_PRESS_OF_RANKS_SECONDS = 2.0  # torchrun and srun pass it on later
_SHOW_CURSOR = b"\x1b[?25h"


def _nothing() -> None:
    pass


class _Ending:
    """The state of this process's end. There is one instance."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.number: int | None = None
        self.heard_at: float | None = None  # when the watching thread received it, on the monotonic clock
        self.is_handled = False
        self.is_watched = False
        self.deferrals = 0
        self.patience_seconds = RAISED_SECONDS
        self.at_once: Callable[[], None] = _nothing
        self.chances: list[Callable[[], None]] = []
        self.state: Callable[[], str] = str
        self.advice: Callable[[str], str] = str
        self.is_said = False
        self.saying = threading.Lock()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The handler: Python calls it in the main thread, between two instructions."""
        if os.getpid() != self.pid:
            return  # a forked child that has not set its own handlers yet
        self.number = self.number or number
        is_again, self.is_handled = self.is_handled, True
        if self.deferrals and not is_again:
            self.at_once()
        elif not (self.is_watched and is_again):  # a second signal is handled by the watching thread
            raise _exception(number)

    def seconds_left(self) -> float:
        """Seconds until the process is ended by force."""
        if self.heard_at is None:
            return math.inf
        return max(self.heard_at + self.patience_seconds - time.monotonic(), 0.0)

    def last_words(self) -> str:
        """The last line: what happened, and how to go on; empty where it was printed already."""
        with self.saying:
            if self.is_said or not is_first_process():
                return ""
            self.is_said = True
        what = "interrupted" if self.number in (None, signal.SIGINT) else "told to end"
        return f"tada: {'; '.join(filter(None, (what, self.way_on())))}\n"

    def way_on(self) -> str:
        try:
            return self.advice(self.state())
        except Exception:  # it reads folders that may have been removed
            return ""


_ending = _Ending()


def _exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(exit_code(number))


def exit_code(number: int) -> int:
    """The exit code after a signal, as in shells: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + number


def told() -> int | None:
    """The signal that this process has received to end; None as long as there is none."""
    return _ending.number


def advise(advice: Callable[[str], str]) -> None:
    """Set how the last line of an interrupted command says how to go on: ``advice(state)``, see ``tell_state``."""
    _ending.advice = advice


def tell_state(state: Callable[[], str]) -> None:
    """Set the function that says in words what was saved of the work; empty where nothing was."""
    _ending.state = state


def way_on() -> str:
    """How to go on, by ``advise``, where some work was saved; also used after an error; else empty."""
    return _ending.way_on() if _ending.state() else ""


def leave() -> NoReturn:
    """End because of a signal in this or another process; for deferred work, at a point where it can stop."""
    _ending.patience_seconds = RAISED_SECONDS
    raise SystemExit(exit_code(_ending.number or signal.SIGTERM))


def say_last_words() -> int:
    """Print the last line, and return the exit code."""
    words = _ending.last_words()
    wipe()
    with suppress(OSError):  # the terminal was closed
        print(words, end="", file=sys.stderr, flush=True)
    return exit_code(_ending.number or signal.SIGINT)


def handle_again() -> None:
    """Install our handlers again, after a library has installed its own in a deferred block."""
    if _ending.deferrals:
        for number in SIGNALS:
            _handle(number)


def _handle(number: signal.Signals) -> Any:
    """Install our handler, unless this process was started to ignore the signal (nohup); return the previous one."""
    before = signal.getsignal(number)
    if before is not signal.SIG_IGN:
        signal.signal(number, _ending.on_signal)
    return before


@contextmanager
def last_chance(action: Callable[[], None]) -> Iterator[None]:
    """Call ``action``, in another thread, if the process is ended by force in the block, without its ``finally``."""
    _ending.chances.append(action)
    try:
        yield
    finally:
        _ending.chances.remove(action)


@contextmanager
def deferring(
    *,
    at_once: Callable[[], None],
    chance: Callable[[], None] = _nothing,
    seconds: float = DEFERRED_SECONDS,
    is_the_end: bool = True,
) -> Iterator[None]:
    """Defer signals: in the block they are only recorded, and ``told`` returns them; at its end they are raised.

    Args:
        at_once: called in the main thread when a signal comes; may raise where an interruption does no harm.
        chance: as for ``last_chance``.
        seconds: time for the block to end after a signal, where the process is watched.
        is_the_end: whether the signal is raised at the end. False: the block has stopped early, and the caller goes on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread handles signals
        return
    ending = _ending
    handlers = {} if ending.is_watched else {number: _handle(number) for number in SIGNALS}
    before = ending.at_once, ending.patience_seconds
    ending.at_once, ending.patience_seconds = at_once, seconds
    ending.deferrals += 1
    try:
        with last_chance(chance):
            yield
    finally:
        ending.deferrals -= 1
        ending.at_once, ending.patience_seconds = before
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        told = ending.number
        if told is not None and not ending.deferrals:
            ending.is_handled = True
            if not (ending.is_watched and is_the_end):  # the caller may go on
                ending.number = ending.heard_at = None
                ending.is_handled = False
            if is_the_end:
                raise _exception(told) from None


# -- for the command line ---------------------------------------------------------------------------------------------


@contextmanager
def watching() -> Iterator[None]:
    """Limit the time that this process takes to end after a signal. For the main thread of the command line."""
    global _ending
    if _ending.is_watched or threading.current_thread() is not threading.main_thread():
        yield
        return
    _ending = _Ending()  # forget the signals of an earlier command
    _reset_in_children()
    awake, waking = socket.socketpair()
    for end in (awake, waking):
        end.setblocking(False)
    _ending.is_watched = True
    before = {number: _handle(number) for number in SIGNALS}
    fd_before = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=[awake], name="interruption", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        with suppress(OSError):  # the buffer is full, so the watcher is awake
            waking.send(b"\0")
        watcher.join()
        _ending.is_watched = False
        awake.close()
        waking.close()


def _watch(awake: socket.socket) -> None:
    """Read signal numbers, one byte each, from the socket; end the process by force when its time is over."""
    is_forced = False
    while True:
        left = _ending.seconds_left()
        is_quiet = is_forced or _ending.heard_at is None
        select.select([awake], [], [], None if is_quiet else min(left, 0.2))  # the time left may change meanwhile
        try:
            numbers = awake.recv(64)
        except BlockingIOError:
            numbers = b""
        for number in numbers:
            if number == 0:
                return
            if number in SIGNALS:  # other handled signals are written too
                _hear(number)
        if not is_forced and _ending.seconds_left() == 0:
            is_forced = True
            threading.Thread(target=_force_end, daemon=True).start()  # this thread still waits for a second Ctrl-C


def _hear(number: int) -> None:
    now = time.monotonic()
    if number == getattr(signal, "SIGHUP", None):
        _leave_terminal()
    if _ending.heard_at is None:
        _ending.heard_at = now
        _ending.number = _ending.number or number
    elif number == signal.SIGINT and now > _ending.heard_at + _same_press_seconds():
        _exit()


def _same_press_seconds() -> float:
    by_launcher = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ
    return _SAME_PRESS_OF_RANKS_SECONDS if by_launcher else _SAME_PRESS_SECONDS


def _force_end() -> None:
    _within(_CHANCES_SECONDS, *reversed(_ending.chances))
    _exit()


def _exit() -> None:
    """End the process at once, with the last line."""
    ends_line = b"" if is_shown() else b"\n"  # the terminal has printed "^C" on this line
    _within(0.5, wipe)
    for fd in (1, 2):
        if os.isatty(fd):
            _write(fd, _SHOW_CURSOR + ends_line)
            break
    _within(0.5, sys.stdout.flush)
    _within(0.5, lambda: _write(2, _ending.last_words().encode(errors="backslashreplace")))
    os._exit(exit_code(_ending.number or signal.SIGINT))


def _within(seconds: float, *actions: Callable[[], object]) -> None:
    """Call the actions in a thread, and wait for it at most so long: the main thread may hold a lock they need."""

    def do() -> None:
        for action in actions:
            with suppress(Exception):
                action()

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(seconds)


def _write(fd: int, data: bytes) -> None:
    with suppress(OSError):  # the terminal was closed, or nobody reads
        os.write(fd, data)


def _leave_terminal() -> None:
    """Send output for a closed terminal to /dev/null: a failed write would raise before the state is saved."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if os.isatty(fd):
            os.dup2(nowhere, fd)
    os.close(nowhere)


def end(code: int) -> None:
    """End the process of a command; after a signal without exit handlers, which could take long."""
    if _ending.number is not None:
        _within(1.0, sys.stdout.flush, sys.stderr.flush)
        os._exit(code)
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C in exit handlers then prints no traceback
    sys.exit(code)


def _reset_in_children() -> None:
    """Make forked children ignore signals until they set their own handlers, and never wake our thread."""
    global _is_reset_in_children
    if sys.platform == "win32" or _is_reset_in_children or not hasattr(os, "register_at_fork"):
        return
    _is_reset_in_children = True
    masks: dict[int, set[Any]] = {}

    def before() -> None:
        masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop(threading.get_ident()))

    def in_child() -> None:
        if _ending.is_watched:
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        unblock()

    os.register_at_fork(before=before, after_in_parent=unblock, after_in_child=in_child)


_is_reset_in_children = False


def exit_in_words(code: int) -> str:
    """Describe an exit code: "exit code 3", or "signal SIGSEGV" for a negative one."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return f"signal {name}{'; was memory short?' if name == 'SIGKILL' else ''}"
