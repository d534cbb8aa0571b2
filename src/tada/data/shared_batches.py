"""Shared memory for batches sent from a worker process to the training process.

PyTorch itself writes every tensor to a file in /dev/shm. In Docker that folder has 64 MB, less than the batches that
workers prefetch, and a worker that finds it full hangs without a message. Here a batch is in anonymous memory without
a limit of its own (``memfd_create``), whose descriptor is sent through a socket; so no file can be left behind either.
On systems without it, and for small batches, the bytes are sent through the loader's queue.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tada.errors import OptionError

_SMALL_BYTES = 1 << 16  # the capacity of a pipe
_ALIGNMENT = 64
_TIMEOUT_SECONDS = 60.0  # to receive a descriptor, which was sent before its parcel


@dataclass(frozen=True, slots=True)
class Parcel:
    """A packed batch, to be sent through a queue."""

    worker: int
    """Number of the worker that packed it."""
    number: int
    """Its number, from 1, among the worker's parcels in shared memory."""
    content: bytes
    """The pickled batch without the tensors' data."""
    places: tuple[tuple[int, int], ...]
    """Start and end of each tensor in the memory, in bytes."""
    memory: bytes | None
    """The tensors' data; None if it is in shared memory."""


class _Pickler(pickle.Pickler):
    """Writes tensors' data to out-of-band buffers instead of the pickle."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        flat = value.detach().contiguous().view(-1).view(torch.uint8)
        return _make_tensor, (pickle.PickleBuffer(flat.numpy().data), value.dtype, tuple(value.shape))


def _make_tensor(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not len(buffer):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype).view(shape)


class Packer:
    """The sender, in a worker."""

    def __init__(self, worker: int, line: socket.socket) -> None:
        self._worker, self._line = worker, line
        self._number = 0

    def pack(self, batch: Any) -> Parcel:
        """Pack a batch: any picklable values, with tensors on the CPU."""
        content = io.BytesIO()
        buffers: list[pickle.PickleBuffer] = []
        _Pickler(content, protocol=5, buffer_callback=buffers.append).dump(batch)
        places, end = [], 0
        raw = [buffer.raw() for buffer in buffers]
        for part in raw:
            start = -end % _ALIGNMENT + end
            end = start + part.nbytes
            places.append((start, end))
        memory = None
        if end < _SMALL_BYTES or not self._share(raw, places):
            memory = _join(raw, places, end)
        else:
            self._number += 1
        return Parcel(self._worker, self._number, content.getvalue(), tuple(places), memory)

    def _share(self, raw: Sequence[memoryview], places: Sequence[tuple[int, int]]) -> bool:
        """Write the parts to shared memory and send its descriptor; False if that is not possible."""
        if sys.platform == "win32" or not hasattr(os, "memfd_create"):
            return False
        try:
            descriptor = os.memfd_create("tada_batch")
            try:
                for part, (start, _) in zip(raw, places, strict=True):
                    written = 0
                    while written < part.nbytes:
                        written += os.pwrite(descriptor, part[written:], start + written)
                socket.send_fds(self._line, [(self._number + 1).to_bytes(8, "big")], [descriptor])
            finally:
                os.close(descriptor)
        except OSError:  # out of memory or of file descriptors
            return False
        return True


def _join(raw: Sequence[memoryview], places: Sequence[tuple[int, int]], size: int) -> bytes:
    memory = bytearray(size)
    for part, (start, end) in zip(raw, places, strict=True):
        memory[start:end] = part
    return bytes(memory)


class Unpacker:
    """The receiver of one worker's batches."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._line.settimeout(_TIMEOUT_SECONDS)

    def unpack(self, parcel: Parcel) -> Any:
        """Unpack a batch. Unpack parcels in the order in which they were packed; some may be left out.

        Raises:
            OptionError: this process has too many open files.
        """
        memory: Any = bytearray(parcel.memory) if parcel.memory is not None else self._receive_memory(parcel)
        whole = memoryview(memory)
        return pickle.loads(parcel.content, buffers=[whole[start:end] for start, end in parcel.places])

    def _receive_memory(self, parcel: Parcel) -> mmap.mmap:
        if sys.platform == "win32":
            raise AssertionError("Packer._share shares nothing there")
        number = 0
        while number != parcel.number:
            message, descriptors, _, _ = socket.recv_fds(self._line, 8, 1)
            if not descriptors:
                raise OptionError("too many open files: raise the limit with `ulimit -n`, or use --num-workers 0")
            number = int.from_bytes(message, "big")
            try:
                if number == parcel.number:
                    return mmap.mmap(descriptors[0], 0)
            finally:
                os.close(descriptors[0])
        raise AssertionError("a parcel's memory has a number from 1 on")
