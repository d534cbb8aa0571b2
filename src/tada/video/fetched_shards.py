"""Shards of an object store, fetched whole into a cache folder that keeps at most so many bytes.

The cache is ``TADA_CACHE_DIR`` (by default ~/.cache/tada/shards), and holds at most ``TADA_CACHE_GIGABYTES`` (by
default 100) of shards, of all data sets together. A shard is fetched when a video of it is read; if there is no room,
the shard is removed that was not used for the longest time. A process keeps the shard that it reads, so that no other
removes it.

Below the cache::

    HASH/origin.json         the address that the folder's files come from
    HASH/shard-000000.tar    fetched whole, with the hash of the index
    HASH/.fetch-SIZE-PID-*   shards on their way, which count as bytes of the cache
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from tada.errors import DataError, OptionError, VideoError
from tada.system.documents import read_json
from tada.system.files import is_alive, write_whole, writing

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

ORIGIN = "origin.json"
_SHARD = re.compile(r"shard-\d{6,}\.tar")
_USED_SECONDS = 10.0  # a use is noted again after so long, since each note writes to the disk
_WAIT_SECONDS = 0.05  # until another process leaves its shard, so that it may be removed
_pinned: tuple[str, int] | None = None
"""The shard that this process reads last, and the descriptor that holds its lock."""


def cache_folder() -> Path:
    """The folder of all fetched shards."""
    return Path(os.environ.get("TADA_CACHE_DIR") or Path.home() / ".cache" / "tada" / "shards").absolute()


def max_cache_bytes() -> int:
    """Most bytes of fetched shards.

    Raises:
        OptionError: TADA_CACHE_GIGABYTES is no positive number.
    """
    text = os.environ.get("TADA_CACHE_GIGABYTES") or "100"
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < float("inf"):
        raise OptionError(f"TADA_CACHE_GIGABYTES={text!r} should be a number of gigabytes (1e9 bytes) above 0")
    return round(gigabytes * 1e9)


def folder_for(address: str) -> Path:
    """The folder in the cache for the shards below an address; made if it is not there.

    Raises:
        OutputError: it cannot be made.
    """
    folder = cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ORIGIN).exists():
        write_whole(folder / ORIGIN, json.dumps({"address": address}).encode())
    return folder


@lru_cache(maxsize=64)
def origin_of(folder: str) -> str | None:
    """The address that a folder's shards come from; None for a folder that is not in a cache.

    Raises:
        DataError: the file that says it is damaged.
    """
    file = os.path.join(folder, ORIGIN)
    if not os.path.exists(file):
        return None
    try:
        return str(read_json(file)["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file!r} is damaged ({error}); remove the folder, and it is fetched again") from error


def cached_shard(folder: str, name: str, *, size_bytes: int, sha256: str) -> str:
    """The path of a shard in the cache, fetched if it is not there. It stays until this process asks for another.

    Raises:
        DataError: the shard at the address is missing, or is not the one of the index; it is larger than the cache; or
            the store cannot be reached.
        OutputError: the disk is full.
    """
    file = os.path.join(folder, name)
    if _pinned is not None and _pinned[0] == file and os.path.exists(file):
        return file
    _unpin()  # first, so that two processes that wait for room do not wait for each other
    while not _pin(file):
        with _locked(Path(folder, f".{name}.lock")):
            if not os.path.exists(file):  # else another process has fetched it
                _fetch(Path(folder), name, size_bytes, sha256)
    if os.path.getsize(file) != size_bytes:
        raise DataError(f"{file!r} is not the shard of the index; remove it, and it is fetched again")
    return file


def _fetch(folder: Path, name: str, size_bytes: int, sha256: str) -> None:
    from tada.system.object_store import ObjectStore

    address = origin_of(str(folder)) or ""
    store = ObjectStore(allowed=(address,), max_file_bytes=max(size_bytes, 1))
    with _room(folder, size_bytes) as place:
        try:
            fetched = store.fetch(address + name, place)
        except VideoError as error:  # not a fault of one video, which training would replace by another
            raise DataError(f"a shard is out of reach: {error}; then give the same command again") from error
        with fetched.open("rb") as file:
            is_same = hashlib.file_digest(file, "sha256").hexdigest() == sha256
        if not is_same:
            raise DataError(
                f"{address + name!r} is not the shard of the index: its bytes are others; it was replaced, or the "
                "index was: upload both again"
            )
        with writing(folder / name, fetched):
            fetched.replace(folder / name)


# -- room -------------------------------------------------------------------------------------------------------------


@contextmanager
def _room(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Make room for a shard: yield a temporary folder in ``folder`` whose name counts as so many bytes."""
    cache, limit = folder.parent, max_cache_bytes()
    if size_bytes > limit:
        raise DataError(
            f"a shard has {size_bytes / 1e9:.3g} GB, and the cache holds {limit / 1e9:.3g}: let it hold more "
            "(TADA_CACHE_GIGABYTES), or make smaller shards (--shard-megabytes)"
        )
    place = folder / f".fetch-{size_bytes}-{os.getpid()}-{time.monotonic_ns():x}"
    while True:
        with _locked(cache / ".lock"):
            if _remove_oldest(cache, limit - size_bytes):
                with writing(place):
                    place.mkdir()
                break
        time.sleep(_WAIT_SECONDS)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _remove_oldest(cache: Path, max_bytes: int) -> bool:
    """Remove shards, those first that were not used for the longest time, until there are at most ``max_bytes``.

    False: there are more, since other processes read or fetch them.
    """
    total, shards = 0, []
    ours = (folder for folder in cache.iterdir() if (folder / ORIGIN).is_file())  # nothing else is removed
    for entry in (entry for folder in ours for entry in os.scandir(folder)):
        if entry.name.startswith(".fetch-"):
            _, size, pid, _ = entry.name[1:].split("-")
            if is_alive(int(pid)):
                total += int(size)
            else:
                shutil.rmtree(entry.path, ignore_errors=True)
        elif _SHARD.fullmatch(entry.name):
            with suppress(FileNotFoundError):
                shards.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
                total += shards[-1][1]
    for _, num_bytes, path in sorted(shards):
        if total <= max_bytes:
            break
        if _remove_unused(path):
            total -= num_bytes
    return total <= max_bytes


def _remove_unused(file: str) -> bool:
    """Remove a shard unless a process reads it."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(file)
    except OSError:  # held; on Windows, open files cannot be removed
        return False
    finally:
        os.close(descriptor)
    return True


# -- the shard that this process reads --------------------------------------------------------------------------------


def _pin(file: str) -> bool:
    """Keep a shard from being removed by others. False: it is not there."""
    global _pinned
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    _pinned = file, descriptor
    try:
        status = os.stat(file)
    except FileNotFoundError:  # removed before the lock was held
        _unpin()
        return False
    if time.time() - status.st_mtime > _USED_SECONDS:
        with suppress(OSError):
            os.utime(file)
    return True


def _unpin() -> None:
    global _pinned
    if _pinned is not None:
        os.close(_pinned[1])
        _pinned = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unpin)  # the lock is the parent's


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Wait for a lock between the processes of this machine; it ends with the process."""
    with writing(file):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
