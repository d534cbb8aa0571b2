"""How a process ends that is told to: by Ctrl-C (SIGINT), by SIGTERM, or by SIGHUP when its terminal is closed.

The first signal is noted, and raised in the main thread as KeyboardInterrupt (SIGTERM and SIGHUP: SystemExit), so
that every ``with`` and ``finally`` is gone through. Work that must not be torn apart, such as a training step, runs
inside of ``deferring``: there nothing is raised, and the work looks at ``told`` where it can end in order.

The command line runs inside of ``watching``, which bounds how long that takes. Python runs a signal's handler only when
the main thread comes back to Python code, which a step of a large network may not do for a minute. So a thread is
woken by the signal itself; when the process has not ended after some seconds, or a second Ctrl-C comes, it ends the
process, after everyone's ``last_chance``. (Nothing heavy is imported here: it is the first thing that a command loads.)
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
"""Those that tell a process to end and let it do something before."""

RAISED_SECONDS = 4.0
"""What a process has for its end once the signal was raised."""
DEFERRED_SECONDS = 2.0
"""What deferred work has to come to where it can end in order, and its last chance comes."""
_CHANCES_SECONDS = 30.0  # that the last chances have: saving a large state to a slow disk
_SAME_PRESS_SECONDS = 0.1  # one Ctrl-C may come twice: from the terminal, and passed on by a launcher
_SAME_PRESS_OF_RANKS_SECONDS = 2.0  # torchrun and srun pass it on later
_SHOW_CURSOR = b"\x1b[?25h"


def _nothing() -> None:
    pass


class _Ending:
    """What is known of this process's end. There is one."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.number: int | None = None
        self.heard_at: float | None = None  # by the thread that watches, on the monotonic clock
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
            return  # a child that was just forked and has not chosen its own handlers yet
        self.number = self.number or number
        is_again, self.is_handled = self.is_handled, True
        if self.deferrals and not is_again:
            self.at_once()
        elif not (self.is_watched and is_again):  # then the thread that watches ends the process
            raise _exception(number)

    def seconds_left(self) -> float:
        """Until the process is ended by force."""
        if self.heard_at is None:
            return math.inf
        return max(self.heard_at + self.patience_seconds - time.monotonic(), 0.0)

    def last_words(self) -> str:
        """What is said at the end and how to go on, in a line; nothing where it was said already."""
        with self.saying:
            if self.is_said or not is_first_process():
                return ""
            self.is_said = True
        what = "interrupted" if self.number in (None, signal.SIGINT) else "told to end"
        return f"tada: {'; '.join(filter(None, (what, self.way_on())))}\n"

    def way_on(self) -> str:
        try:
            return self.advice(self.state())
        except Exception:  # it looks into folders that may be gone
            return ""


_ending = _Ending()


def _exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(exit_code(number))


def exit_code(number: int) -> int:
    """As shells have it: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + number


def told() -> int | None:
    """The signal that has told this process to end; None as long as none has."""
    return _ending.number


def advise(advice: Callable[[str], str]) -> None:
    """Let the line at an interrupted command's end say how to go on; ``advice`` is given what ``tell_state`` told."""
    _ending.advice = advice


def tell_state(state: Callable[[], str]) -> None:
    """Have it known what of the work is kept, in words."""
    _ending.state = state


def way_on() -> str:
    """What ``advise`` has given, where something of the work is kept: also after a mistake that has ended it."""
    return _ending.way_on() if _ending.state() else ""


def leave() -> NoReturn:
    """Inside of ``deferring``, where nothing is under way: end because of a signal, here or in another process."""
    _ending.patience_seconds = RAISED_SECONDS
    raise SystemExit(exit_code(_ending.number or signal.SIGTERM))


def say_last_words() -> int:
    """Say that this process ends, and how to go on; its exit code."""
    words = _ending.last_words()
    wipe()
    with suppress(OSError):  # the terminal was closed
        print(words, end="", file=sys.stderr, flush=True)
    return exit_code(_ending.number or signal.SIGINT)


def handle_again() -> None:
    """Take the signals back from a library that has installed its own handlers meanwhile."""
    if _ending.deferrals:
        for number in SIGNALS:
            _handle(number)


def _handle(number: signal.Signals) -> Any:
    """Let our handler receive a signal, unless this process was started to ignore it (nohup); the handler before."""
    before = signal.getsignal(number)
    if before is not signal.SIG_IGN:
        signal.signal(number, _ending.on_signal)
    return before


@contextmanager
def last_chance(action: Callable[[], None]) -> Iterator[None]:
    """Let ``action`` be called, in another thread, if the process is ended without going through ``finally``."""
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
    """Only note signals inside of the block, which looks at ``told``; raise what came at its end, however it ends.

    Args:
        at_once: called in the main thread when a signal comes; may raise where that tears nothing apart.
        chance: as for ``last_chance``.
        seconds: that the block has, where the process is watched.
        is_the_end: whether what came is raised. Else the block has ended in order because of it, and that is all.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to another thread
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
            if not (ending.is_watched and is_the_end):  # whoever called may go on
                ending.number = ending.heard_at = None
                ending.is_handled = False
            if is_the_end:
                raise _exception(told) from None


# -- the command line's side ------------------------------------------------------------------------------------------


@contextmanager
def watching() -> Iterator[None]:
    """Bound how long this process takes to end when it is told to. For the owner of the process, in its main thread."""
    global _ending
    if _ending.is_watched or threading.current_thread() is not threading.main_thread():
        yield
        return
    _ending = _Ending()  # nothing is known yet of this command's end
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
        with suppress(OSError):  # it is full: then the watcher is awake
            waking.send(b"\0")
        watcher.join()
        _ending.is_watched = False
        awake.close()
        waking.close()


def _watch(awake: socket.socket) -> None:
    """Wait for signals, whose numbers come as bytes; end the process where it does not end by itself."""
    is_forced = False
    while True:
        left = _ending.seconds_left()
        is_quiet = is_forced or _ending.heard_at is None
        select.select([awake], [], [], None if is_quiet else min(left, 0.2))  # what is left may change meanwhile
        try:
            numbers = awake.recv(64)
        except BlockingIOError:
            numbers = b""
        for number in numbers:
            if number == 0:
                return
            if number in SIGNALS:  # others have handlers too
                _hear(number)
        if not is_forced and _ending.seconds_left() == 0:
            is_forced = True
            threading.Thread(target=_force, daemon=True).start()  # a second Ctrl-C is still listened to


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


def _force() -> None:
    _within(_CHANCES_SECONDS, *reversed(_ending.chances))
    _exit()


def _exit() -> None:
    """End the process at once."""
    ends_line = b"" if is_shown() else b"\n"  # on which the terminal has printed "^C"
    _within(0.5, wipe)
    for fd in (1, 2):
        if os.isatty(fd):
            _write(fd, _SHOW_CURSOR + ends_line)
            break
    _within(0.5, sys.stdout.flush)
    _within(0.5, lambda: _write(2, _ending.last_words().encode(errors="backslashreplace")))
    os._exit(exit_code(_ending.number or signal.SIGINT))


def _within(seconds: float, *actions: Callable[[], object]) -> None:
    """Do them one after the other, but wait no longer than this: what they need may be held by the main thread."""

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
    """Let what is written to a terminal that was closed go nowhere: it would raise before the state is saved."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if os.isatty(fd):
            os.dup2(nowhere, fd)
    os.close(nowhere)


def end(code: int) -> None:
    """End the process of a command; one that was told to end does not wait for what others do at a process's exit."""
    if _ending.number is not None:
        _within(1.0, sys.stdout.flush, sys.stderr.flush)
        os._exit(code)
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # whatever is left to do ends at once, without a traceback
    sys.exit(code)


def _reset_in_children() -> None:
    """Let a child that is forked neither wake our thread nor meet a signal before it has chosen its own handlers."""
    global _is_reset_in_children
    if _is_reset_in_children or not hasattr(os, "register_at_fork"):
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
