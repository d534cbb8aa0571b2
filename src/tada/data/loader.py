"""PyTorch's data loader, with worker processes that cannot make a run hang.

Workers send batches without /dev/shm (``shared_batches.py``), so its size does not matter. If a worker dies, the error
names the file it was reading. Workers ignore signals, which their parent process handles, and end within a second of
the parent, however it ends.
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
from tada.data.workers import end_with_parent
from tada.errors import UserError, WorkerLostError
from tada.system.progress import of_worker
from tada.system.signals import SIGNALS, exit_in_words

_SLOT_BYTES = 4096  # the longest path that file systems allow
_SIGNALS_OF_SHORT_MEMORY = {getattr(signal, name) for name in ("SIGKILL", "SIGBUS") if hasattr(signal, name)}


@dataclass(frozen=True, slots=True)
class _Fault:
    """A user's error, sent from a worker as a batch: PyTorch would raise it with a traceback as its message."""

    error: UserError


class _Worker:
    """The state of a worker process: its packer, and shared memory for the path of the file it is reading."""

    def __init__(self, number: int, packer: Packer, slots: Any) -> None:
        self.packer = packer
        self._slot = memoryview(slots).cast("B")[number * _SLOT_BYTES : (number + 1) * _SLOT_BYTES]

    def note_path(self, path: str) -> None:
        data = os.fsencode(path)[: _SLOT_BYTES - 1] + b"\0"
        self._slot[: len(data)] = data


_worker: _Worker | None = None
"""The state of this process, if it is a worker."""


def note_reading(path: str) -> None:
    """Note the file that this worker is reading, for the error if it dies. Does nothing outside of a worker."""
    if _worker is not None:
        _worker.note_path(path)


class _WorkerInit:
    """``worker_init_fn`` of the loader: sets up a new worker process."""

    def __init__(self) -> None:
        # Without fork, the parent may be a fork server, which ends when this process ends.
        self.parent = os.getpid() if multiprocessing.get_start_method() == "fork" else None
        self.lines: list[socket.socket] = []
        self.slots: Any = None

    def __call__(self, number: int) -> None:
        global _worker
        # A progress display may have replaced these, and another thread may have held its lock during the fork.
        sys.stdout, sys.stderr = of_worker(sys.__stdout__), of_worker(sys.__stderr__)
        for number_of_signal in SIGNALS:
            # A signal may be sent to all processes of a run: workers go on, so that the run can save its state.
            signal.signal(number_of_signal, signal.SIG_IGN)
        end_with_parent(self.parent)
        _worker = _Worker(number, Packer(number, self.lines[number]), self.slots)


class _Samples(Dataset[Any]):
    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # all data sets given to VideoLoader have a length

    def __getitem__(self, key: Any) -> Any:
        if _worker is None:
            return self.dataset[key]
        try:
            return self.dataset[key]
        except UserError as error:
            return _Fault(error)
        except (MemoryError, RuntimeError) as error:
            return _memory_fault(error)


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
            return _memory_fault(error)
        finally:
            _worker.note_path("")


def _memory_fault(error: Exception) -> _Fault:
    """The fault to report if memory could not be allocated; any other error is raised again."""
    if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
        raise error
    return _Fault(WorkerLostError("not enough memory for a batch of videos: use fewer --num-workers, or 0"))


def _keep_sample(sample: Any) -> Any:
    return sample


class VideoLoader(DataLoader[Any]):
    """Data loader whose batches are made by ``num_workers`` processes, or, with 0, by this one.

    Call ``close`` in the end; else the processes run until this one ends.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        num_workers: int,
        collate: Callable[[Any], Any] = _keep_sample,
        say: Callable[[str], None] = print,
        **order: Any,
    ) -> None:
        """``order`` has arguments of DataLoader: a ``batch_sampler`` or a ``batch_size`` (None: single samples)."""
        self._start = _WorkerInit()
        self._unpackers: list[Unpacker] = []
        self._pool = _WorkerProcesses()
        self._say = say
        with _without_advice():
            super().__init__(
                _Samples(dataset),
                num_workers=num_workers,
                collate_fn=_Collate(collate),
                persistent_workers=num_workers > 0,
                worker_init_fn=self._start,
                **order,
            )
        weakref.finalize(self, self._pool.end)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator is enough
        for batch in self._batches():
            if isinstance(batch, _Fault):
                raise batch.error
            yield self._unpackers[batch.worker].unpack(batch) if isinstance(batch, Parcel) else batch

    def _batches(self) -> Iterator[Any]:
        with _without_advice():
            if self.num_workers == 0 or self._pool.processes:
                return super().__iter__()
            others = set(multiprocessing.active_children())
            try:
                self._open_channels()
                batches: Any = super().__iter__()
            except OSError as error:
                self.num_workers = 0
                _kill(set(multiprocessing.active_children()) - others)
                self._say(f"no worker processes can be started ({_why(error)}): this process reads the videos itself")
                return super().__iter__()
            self._pool.begin(batches)
            return iter(batches)

    def _get_iterator(self) -> Any:
        if self.num_workers == 0:
            return super()._get_iterator()
        iterator: Any = _MultiProcessingDataLoaderIter.__new__(_MultiProcessingDataLoaderIter)
        try:
            iterator.__init__(self)
        except OSError:
            iterator._shutdown = True  # else its __del__ would fail on attributes that were not set
            raise
        return iterator

    def _open_channels(self) -> None:
        """Make the shared memory and the sockets that workers use."""
        self._start.slots = multiprocessing.RawArray(c_char, _SLOT_BYTES * self.num_workers)
        for _ in range(self.num_workers):
            ours, theirs = socket.socketpair()
            self._pool.sockets += ours, theirs
            self._unpackers.append(Unpacker(ours))
            self._start.lines.append(theirs)

    def lost(self) -> WorkerLostError | None:
        """The error for workers that have died; None if all live, or have ended in order (exit code 0)."""
        dead = {number: process for number, process in enumerate(self._pool.processes) if process.exitcode}
        if not dead:
            return None
        slots = bytes(memoryview(self._start.slots).cast("B"))
        files = [slots[number * _SLOT_BYTES : (number + 1) * _SLOT_BYTES].split(b"\0", 1)[0] for number in dead]
        names = " and ".join(repr(os.fsdecode(file)) for file in files if file)
        over = f" while it read {names}" if names else ""
        code = next(iter(dead.values())).exitcode or 0
        is_memory = -code in _SIGNALS_OF_SHORT_MEMORY
        help = "use fewer --num-workers, which need less memory" if is_memory else "`tada check` finds such files"
        return WorkerLostError(f"a process that reads videos has died ({exit_in_words(code)}){over}; {help}")

    def close(self) -> None:
        """Kill the worker processes, even in the middle of a batch."""
        self._pool.end()
        self._iterator = None


class _WorkerProcesses:
    """The worker processes of a loader.

    They are killed, since PyTorch's own shutdown waits for busy workers, and for locks that a killed worker may hold;
    and Python, at exit, sends a SIGTERM, which workers ignore, and waits forever.
    """

    def __init__(self) -> None:
        self.parent = os.getpid()
        self.processes: list[BaseProcess] = []
        self.sockets: list[socket.socket] = []
        self._iterator: weakref.ref[Any] | None = None

    def begin(self, iterator: Any) -> None:
        """Take over the processes of a DataLoader's iterator."""
        self.processes += iterator._workers
        self._iterator = weakref.ref(iterator)

    def end(self) -> None:
        if self.parent != os.getpid():
            return  # a forked worker has a copy of this object
        for end in self.sockets:
            end.close()
        iterator = None if self._iterator is None else self._iterator()
        if iterator is not None and not iterator._shutdown:
            iterator._shutdown = True
            _remove_worker_pids(id(iterator))  # else PyTorch would report their end as a crash
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
    """Close the loaders at the end.

    Raises:
        WorkerLostError: a worker has died; raised in place of PyTorch's error, it names the file that was being read.
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
def _without_advice() -> Iterator[None]:
    """Suppress PyTorch's warning about the number of workers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield
