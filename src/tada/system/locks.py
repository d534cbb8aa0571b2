"""Locks on folders and files: one process at a time writes into a folder, and others are told which one.

The lock is the operating system's (``flock``): it ends with the process, however that ends, and works across
containers, and over NFS across machines. On Windows, and on file systems without locks, the lock file itself counts: it
names its process, and holds as long as that process lives, or, for a process of another machine, until it is removed.
"""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from tada.errors import OutputError
from tada.system.devices import is_first_process
from tada.system.files import (
    cannot_be_written,
    is_alive,
    is_part,
    made_folder,
    short_name,
    still_ours,
    try_file,
    try_folder,
    writing,
)

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

P = ParamSpec("P")
R = TypeVar("R")

LOCK_FILE = ".tada.lock"
"""The lock file in a held folder; removed when the folder is released."""
_CLOSES_BEFORE_REMOVING = sys.platform == "win32"
"""Windows does not remove an open file. There the process named in the file holds it, not an open descriptor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The process that holds a folder."""

    pid: int
    host: str
    started: str
    """When the process was started, in its machine's clock ticks; tells it from a later process with the same pid."""
    since: str
    """When it took the lock, as text."""

    @classmethod
    def this_process(cls) -> Holder:
        """This process, holding from now on."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(pid=os.getpid(), host=socket.gethostname(), started=_read_start_time(os.getpid()), since=since)

    def may_live(self) -> bool:
        """Whether the process may be running; always true for another machine."""
        if self.host != socket.gethostname():
            return True
        return is_alive(self.pid) and _read_start_time(self.pid) in (self.started, "")

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def names_in(folder: Path) -> list[str]:
    """Names in a folder, without lock and part files; none if the folder does not exist."""
    if not folder.exists():
        return []
    return sorted(name for name in os.listdir(folder) if not (name == LOCK_FILE or is_part(name)))


def is_used(folder: Path) -> bool:
    """Whether a folder holds any file but lock and part files."""
    return bool(names_in(folder))


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for this process in the block; make it first, and check that files can be written there.

    A folder that was made here and is still empty at the end is removed again. In a run on several devices rank 0 holds
    the lock for all. A folder that this process already holds may be held again.

    Raises:
        OutputError: the folder cannot be written, now or later in the block; or another process holds it.
    """
    if not is_first_process():
        yield
        return
    place = os.path.realpath(folder)
    if place in _held:
        yield
        return
    is_new = not os.path.lexists(folder)
    with made_folder(folder):
        try_folder(folder)
        with _locked(folder / LOCK_FILE, f"{str(folder)!r} is") as is_ours:
            _held[place], still_ours[place] = is_new, is_ours
            try:
                yield
            except OSError as fault:
                # An error that no ``writing`` has seen, such as one of a logger's file.
                is_gone = not folder.is_dir()
                if not (is_gone if fault.filename else fault.errno in _DISK):
                    raise
                file = Path(fault.filename or folder)
                if is_gone and os.path.realpath(file) == place:
                    raise OutputError(f"{str(folder)!r} cannot be written: it is not there any more") from fault
                raise OutputError(cannot_be_written(file, fault)) from fault
            finally:
                _held.pop(place, None)
                still_ours.pop(place, None)


def was_made(folder: Path) -> bool:
    """Whether a folder is held by this process and did not exist before."""
    return _held.get(os.path.realpath(folder), False)


@contextmanager
def held_file(file: Path) -> Iterator[None]:
    """Lock a file that is to be written, and check that it can be written; as ``held_folder``."""
    if not is_first_process():
        yield
        return
    with made_folder(file.parent):
        try_file(file)
        with _locked(file.with_name(f".{short_name(file.name)}.lock"), f"{str(file)!r} is"):
            yield


def holds(argument: str, *, unless: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function to lock the folder given as its argument ``argument`` while it runs (``held_folder``).

    Args:
        unless: the name of an argument; where it is true, the function writes nothing and no folder is locked.
    """
    return _holding(held_folder, argument, unless)


def holds_file(argument: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function to lock the file given as its argument ``argument`` while it runs (``held_file``)."""
    return _holding(held_file, argument)


def _holding(
    held: Callable[[Path], AbstractContextManager[None]], argument: str, unless: str = ""
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call_locked(*args: P.args, **kwargs: P.kwargs) -> R:
            arguments = signature.bind(*args, **kwargs).arguments
            with nullcontext() if arguments.get(unless) else held(Path(arguments[argument])):
                return function(*args, **kwargs)

        return call_locked

    return decorate


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_held: dict[str, bool] = {}
"""The folders that this process holds, by real path; the value: whether the folder was made for it."""
_descriptors: set[int] = set()


def _forget_in_child() -> None:
    """After a fork: close the child's copies of the locks, which belong to the parent."""
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()
    _held.clear()
    still_ours.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


@contextmanager
def _locked(file: Path, what: str) -> Iterator[Callable[[], bool]]:
    """Lock a file in the block; yield what tells whether the lock still is the one at its path."""
    descriptor = _take(file, what)
    _descriptors.add(descriptor)
    try:
        yield lambda: _is_file_at(descriptor, file)
    finally:
        if descriptor in _descriptors:  # not in a fork of the process that took it
            _descriptors.discard(descriptor)
            with suppress(OSError):
                is_ours = _is_file_at(descriptor, file)
                if _CLOSES_BEFORE_REMOVING:
                    os.close(descriptor)
                if is_ours:
                    file.unlink()  # before others can lock it
            if not _CLOSES_BEFORE_REMOVING:
                with suppress(OSError):
                    os.close(descriptor)


def _take(file: Path, what: str) -> int:
    """Lock a file, write this process into it, and return its descriptor.

    Raises:
        OutputError: another process has it.
    """
    while True:
        with writing(file):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            holder = _read_holder(descriptor)
            is_locked = _try_lock(descriptor)
            if is_locked is False:
                raise OutputError(
                    f"{what} in use by {holder or 'another process'}: wait until it ends, or give another place"
                )
            if is_locked is None and holder is not None and holder.may_live():
                raise OutputError(
                    f"{what} in use by {holder}: wait until it ends, or give another place; if that process is gone, "
                    f"remove {str(file)!r}"
                )
            if _is_file_at(descriptor, file):
                with writing(file):
                    os.ftruncate(descriptor, 0)
                    os.lseek(descriptor, 0, os.SEEK_SET)
                    os.write(descriptor, json.dumps(asdict(Holder.this_process())).encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the last holder has just removed the file: try again with a new one


def _try_lock(descriptor: int) -> bool | None:
    """Try to lock a file, and return whether that worked; None where the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
    return True


def _is_file_at(descriptor: int, file: Path) -> bool:
    """Whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(file))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _read_holder(descriptor: int) -> Holder | None:
    """The process that is written in a lock file; None if the file is empty or incomplete."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        found = Holder(**json.loads(os.read(descriptor, 4096)))
        return found if isinstance(found.pid, int) else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _read_start_time(pid: int) -> str:
    """When a process was started, in clock ticks since its machine's boot; empty where that is unknown (not Linux)."""
    try:
        # The program's name stands in parentheses and may hold spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
