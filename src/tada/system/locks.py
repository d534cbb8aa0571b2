"""One process at a time writes into a folder: it holds the folder while it works, and others are told who does.

The lock is the operating system's (``flock``): it ends with the process, however that ends, and is seen from other
containers, and over NFS from other machines. Where a file system has none, or the system is Windows, the file that
says who holds the folder is all there is: it counts for as long as that process lives, or, if that is one of another
machine, until someone removes it.
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
"""In the folder that is held; removed when it is given back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who holds a folder."""

    pid: int
    host: str
    started: str
    """When the process was started, in ticks of its machine; tells it from a later one of the same number."""
    since: str
    """When it took the folder, in words."""

    @classmethod
    def this_process(cls) -> Holder:
        """Us, now."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(pid=os.getpid(), host=socket.gethostname(), started=_start_of(os.getpid()), since=since)

    def may_live(self) -> bool:
        """Whether the process is there, as far as can be told."""
        if self.host != socket.gethostname():
            return True
        return is_alive(self.pid) and _start_of(self.pid) in (self.started, "")

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def names_in(folder: Path) -> list[str]:
    """What a folder holds, beside a lock and what killed processes have left of files; nothing if it is not there."""
    if not folder.exists():
        return []
    return sorted(name for name in os.listdir(folder) if not (name == LOCK_FILE or is_part(name)))


def is_used(folder: Path) -> bool:
    """Whether a folder holds anything that counts."""
    return bool(names_in(folder))


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; make it before, and try whether files can be written there.

    A folder that was made and is empty when the block ends is removed again. Of a run on several devices the first
    process holds the folder for all. What this process holds already, it may hold once more.

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
        with _locked(folder / LOCK_FILE, f"{str(folder)!r} is"):
            _held[place] = is_new
            try:
                yield
            except OSError as fault:
                # Such as a log's, which no one of us writes, and which names no file.
                is_gone = not folder.is_dir()
                if not (is_gone if fault.filename else fault.errno in _DISK):
                    raise
                file = Path(fault.filename or folder)
                if is_gone and os.path.realpath(file) == place:
                    raise OutputError(f"{str(folder)!r} cannot be written: it is not there any more") from fault
                raise OutputError(cannot_be_written(file, fault)) from fault
            finally:
                _held.pop(place, None)


def was_made(folder: Path) -> bool:
    """Whether a folder is held, and was not there before."""
    return _held.get(os.path.realpath(folder), False)


@contextmanager
def held_file(file: Path) -> Iterator[None]:
    """Hold a file that is to be written, and try whether it can be: as ``held_folder``."""
    if not is_first_process():
        yield
        return
    with made_folder(file.parent):
        try_file(file)
        with _locked(file.with_name(f".{short_name(file.name)}.lock"), f"{str(file)!r} is"):
            yield


def holds(argument: str, *, unless: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Of a function: it holds the folder that it is given as ``argument`` while it runs.

    Args:
        unless: an argument; where it is true, the function writes nothing, and nothing is held.
    """
    return _holding(held_folder, argument, unless)


def holds_file(argument: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Of a function: it holds the file that it is given as ``argument`` while it runs."""
    return _holding(held_file, argument)


def _holding(
    held: Callable[[Path], AbstractContextManager[None]], argument: str, unless: str = ""
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def holding(*args: P.args, **kwargs: P.kwargs) -> R:
            arguments = signature.bind(*args, **kwargs).arguments
            with nullcontext() if arguments.get(unless) else held(Path(arguments[argument])):
                return function(*args, **kwargs)

        return holding

    return decorate


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_held: dict[str, bool] = {}
"""What this process holds, and whether it was made for that."""
_descriptors: set[int] = set()


def _forget() -> None:
    """In a process that was forked: the lock is its parent's, and ends with that."""
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def _locked(file: Path, what: str) -> Iterator[None]:
    descriptor = _take(file, what)
    _descriptors.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _descriptors:  # not where we are a fork of who took it
            _descriptors.discard(descriptor)
            with suppress(OSError):
                if _is_same(descriptor, file):
                    file.unlink()  # before others can lock it
            with suppress(OSError):
                os.close(descriptor)


def _take(file: Path, what: str) -> int:
    """Lock the file and write into it who we are; its descriptor.

    Raises:
        OutputError: another process has it.
    """
    while True:
        with writing(file):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            holder = _read(descriptor)
            is_locked = _lock(descriptor)
            if is_locked is False:
                raise OutputError(
                    f"{what} in use by {holder or 'another process'}: wait until it ends, or give another place"
                )
            if is_locked is None and holder is not None and holder.may_live():
                raise OutputError(
                    f"{what} in use by {holder}: wait until it ends, or give another place; if that process is gone, "
                    f"remove {str(file)!r}"
                )
            if _is_same(descriptor, file):
                with writing(file):
                    os.ftruncate(descriptor, 0)
                    os.lseek(descriptor, 0, os.SEEK_SET)
                    os.write(descriptor, json.dumps(asdict(Holder.this_process())).encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # who held it has just removed the file: again, with a new one


def _lock(descriptor: int) -> bool | None:
    """Whether we have the file now; None where the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
    return True


def _is_same(descriptor: int, file: Path) -> bool:
    """Whether the file still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(file))
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> Holder | None:
    """Who wrote into a lock; None if nobody did, or has just begun to."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        found = Holder(**json.loads(os.read(descriptor, 4096)))
        return found if isinstance(found.pid, int) else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _start_of(pid: int) -> str:
    """When a process was started, in ticks since its machine was; empty where that cannot be told (Linux tells it)."""
    try:
        # The name of the program, in parentheses, may hold anything.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
