"""PyTorch's data loader, whose worker processes cannot make a run hang.

Batches come in parcels (``shared_batches.py``), so a small /dev/shm is no matter. A worker that dies is told of with
the file it was reading. Workers leave signals to the process that started them, and end at once when it ends, however
it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ctypes import c_char
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tada.data.shared_batches import Packer, Parcel, Unpacker
from tada.data.workers import end_with_parent, exit_in_words
from tada.errors import UserError, WorkerLostError
from tada.system.progress import of_worker
from tada.system.signals import SIGNALS

_SLOT_BYTES = 4096  # of a path, as file systems allow


@dataclass(frozen=True, slots=True)
class _Fault:
    """What a user can mend, on its way from a worker: PyTorch would pass it on with a traceback for a message."""

    error: UserError


class _Worker:
    """What a worker process knows of itself."""

    def __init__(self, number: int, packer: Packer, slots: Any) -> None:
        self.packer = packer
        self._slot = memoryview(slots).cast("B")[number * _SLOT_BYTES : (number + 1) * _SLOT_BYTES]

    def note(self, path: str) -> None:
        data = os.fsencode(path)[: _SLOT_BYTES - 1] + b"\0"
        self._slot[: len(data)] = data


_worker: _Worker | None = None
"""Of this process, if it is one."""


def note_reading(path: str) -> None:
    """Let the file be named if this process dies over it. Does nothing but in a worker."""
    if _worker is not None:
        _worker.note(path)


class _Start:
    """Makes a worker of a new process."""

    def __init__(self) -> None:
        # Where processes are not forked, a server of them may be the parent, which ends when this process does.
        self.parent = os.getpid() if multiprocessing.get_start_method() == "fork" else None
        self.lines: list[socket.socket] = []
        self.slots: Any = None

    def __call__(self, number: int) -> None:
        global _worker
        # Somebody's display may have its own in place of these, whose lock another thread held when we were forked.
        sys.stdout, sys.stderr = of_worker(sys.__stdout__), of_worker(sys.__stderr__)
        for told in SIGNALS:
            signal.signal(told, signal.SIG_IGN)  # who ends a run may signal all its processes: it goes on to save
        end_with_parent(self.parent)
        _worker = _Worker(number, Packer(number, self.lines[number]), self.slots)


class _Samples(Dataset[Any]):
    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # those that are loaded have a length

    def __getitem__(self, key: Any) -> Any:
        if _worker is None:
            return self.dataset[key]
        try:
            return self.dataset[key]
        except UserError as error:
            return _Fault(error)
        except (MemoryError, RuntimeError) as error:
            return _short_of_memory(error)


class _Collate:
    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        if _worker is None:
            return self.collate(samples)
        faults = [sample for sample in (samples if isinstance(samples, list) else [samples]) if type(sample) is _Fault]
        if faults:
            return faults[0]
        try:
            return _worker.packer.pack(self.collate(samples))
        except (MemoryError, RuntimeError) as error:
            return _short_of_memory(error)
        finally:
            _worker.note("")


def _short_of_memory(error: Exception) -> _Fault:
    """What to say where memory was refused; any other error is raised again."""
    if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
        raise error
    return _Fault(WorkerLostError("memory is too short for a batch of videos: fewer --num-workers need less, 0 none"))


def _alone(sample: Any) -> Any:
    return sample


class VideoLoader(DataLoader[Any]):
    """Batches of a data set in an order that is given, prepared by ``num_workers`` processes, or in this one.

    Close it in the end, or the processes stay until this one ends.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        num_workers: int,
        collate: Callable[[Any], Any] = _alone,
        say: Callable[[str], None] = print,
        **order: Any,
    ) -> None:
        """``order`` is what DataLoader takes: a ``batch_sampler`` or a ``batch_size``, None for no batches."""
        self._start = _Start()
        self._unpackers: list[Unpacker] = []
        self._crew = _Crew()
        self._say = say
        with _unadvised():
            super().__init__(
                _Samples(dataset),
                num_workers=num_workers,
                collate_fn=_Collate(collate),
                persistent_workers=num_workers > 0,
                worker_init_fn=self._start,
                **order,
            )
        weakref.finalize(self, self._crew.end)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator serves
        for batch in self._batches():
            if isinstance(batch, _Fault):
                raise batch.error
            yield self._unpackers[batch.worker].unpack(batch) if isinstance(batch, Parcel) else batch

    def _batches(self) -> Iterator[Any]:
        with _unadvised():
            if self.num_workers == 0 or self._crew.processes:
                return super().__iter__()
            others = set(multiprocessing.active_children())
            try:
                self._prepare()
                batches: Any = super().__iter__()
            except OSError as error:
                self.num_workers = 0
                _kill(set(multiprocessing.active_children()) - others)
                self._say(f"no worker processes can be started ({_why(error)}): this process reads the videos itself")
                return super().__iter__()
            self._crew.begin(batches)
            return iter(batches)

    def _get_iterator(self) -> Any:
        if self.num_workers == 0:
            return super()._get_iterator()
        iterator: Any = _MultiProcessingDataLoaderIter.__new__(_MultiProcessingDataLoaderIter)
        try:
            iterator.__init__(self)
        except OSError:
            iterator._shutdown = True  # its end would stumble over what it has not come to have
            raise
        return iterator

    def _prepare(self) -> None:
        """Make what workers find when they start."""
        self._start.slots = multiprocessing.RawArray(c_char, _SLOT_BYTES * self.num_workers)
        for _ in range(self.num_workers):
            ours, theirs = socket.socketpair()
            self._crew.sockets += ours, theirs
            self._unpackers.append(Unpacker(ours))
            self._start.lines.append(theirs)

    def lost(self) -> WorkerLostError | None:
        """What to say of workers that have died, if any have."""
        dead = {number: process for number, process in enumerate(self._crew.processes) if process.exitcode is not None}
        if not dead:
            return None
        slots = bytes(memoryview(self._start.slots).cast("B"))
        files = [slots[number * _SLOT_BYTES : (number + 1) * _SLOT_BYTES].split(b"\0", 1)[0] for number in dead]
        names = " and ".join(repr(os.fsdecode(file)) for file in files if file)
        over = f" while it read {names}" if names else ""
        code = next(iter(dead.values())).exitcode or 0
        is_memory = code in (-signal.SIGKILL, -signal.SIGBUS)
        help = "fewer --num-workers need less memory, 0 the least" if is_memory else "`tada check` finds such files"
        return WorkerLostError(f"a process that reads videos has died ({exit_in_words(code)}){over}; {help}")

    def close(self) -> None:
        """End the worker processes, whatever they are doing: they hold nothing of value."""
        self._crew.end()
        self._iterator = None


class _Crew:
    """The worker processes of a loader.

    PyTorch's own way to end them waits for those that are busy, and for locks that a killed one may hold; Python's, at
    its exit, asks them to end, which they do not hear, and waits for ever.
    """

    def __init__(self) -> None:
        self.parent = os.getpid()
        self.processes: list[BaseProcess] = []
        self.sockets: list[socket.socket] = []
        self._iterator: weakref.ref[Any] | None = None

    def begin(self, iterator: Any) -> None:
        """Take over the processes of an iterator of DataLoader."""
        self.processes += iterator._workers
        self._iterator = weakref.ref(iterator)

    def end(self) -> None:
        if self.parent != os.getpid():
            return  # a worker has inherited this with all else
        for end in self.sockets:
            end.close()
        iterator = None if self._iterator is None else self._iterator()
        if iterator is not None and not iterator._shutdown:
            iterator._shutdown = True
            _remove_worker_pids(id(iterator))  # or their end would be taken for an accident
            iterator._worker_pids_set = False
        _kill(self.processes)
        self.processes.clear()


def _kill(processes: Iterable[BaseProcess]) -> None:
    processes = list(processes)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


@contextmanager
def closing(*loaders: VideoLoader | None) -> Iterator[None]:
    """Close the loaders at the end; say of workers that died which file they were reading.

    Raises:
        WorkerLostError: in place of what PyTorch says of it, which may come at any moment.
    """
    used = [loader for loader in loaders if loader is not None]
    try:
        yield
    except Exception as error:
        lost = [found for found in (loader.lost() for loader in used) if found is not None]
        if lost and not isinstance(error, UserError):
            raise lost[0] from error
        raise
    finally:
        for loader in used:
            loader.close()


def _why(error: OSError) -> str:
    return error.strerror or str(error)


@contextmanager
def _unadvised() -> Iterator[None]:
    """Leave unsaid how many workers PyTorch thinks right."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield
