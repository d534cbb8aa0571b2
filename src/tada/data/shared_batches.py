"""Batches on their way from a worker process to the one that trains, in memory that both see.

PyTorch's own way makes a file in /dev/shm of every tensor. Docker makes that folder 64 MB large, less than what
workers prepare ahead, and a worker that finds it full delivers nothing and says nothing. Here a batch lies in memory
that has no name and no limit of its own (``memfd_create``), whose descriptor goes through a socket; so nothing can be
left behind either. Where a system has no such memory, and for small batches, the bytes go through the loader's queue.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tada.errors import OptionError

_SMALL_BYTES = 1 << 16  # a pipe holds as much
_ALIGNMENT = 64
_PATIENCE_SECONDS = 60.0  # with a descriptor that was sent before its parcel


@dataclass(frozen=True, slots=True)
class Parcel:
    """A batch that was packed: plain bytes, for a queue."""

    worker: int
    """Who packed it."""
    number: int
    """Its place among the worker's parcels that have shared memory."""
    content: bytes
    """The batch, pickled, without the tensors' numbers."""
    places: tuple[tuple[int, int], ...]
    """Of each tensor in the memory: where it begins and ends, in bytes."""
    memory: bytes | None
    """The memory itself, where it is not shared."""


class _Pickler(pickle.Pickler):
    """Leaves the tensors' numbers out, for the buffers."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        flat = value.detach().contiguous().view(-1).view(torch.uint8)
        return _tensor, (pickle.PickleBuffer(flat.numpy().data), value.dtype, tuple(value.shape))


def _tensor(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not len(buffer):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype).view(shape)


class Packer:
    """A worker's side."""

    def __init__(self, worker: int, line: socket.socket) -> None:
        self._worker, self._line = worker, line
        self._number = 0

    def pack(self, batch: Any) -> Parcel:
        """Make a parcel of a batch: any values that can be pickled, with tensors in main memory."""
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
            memory = _joined(raw, places, end)
        else:
            self._number += 1
        return Parcel(self._worker, self._number, content.getvalue(), tuple(places), memory)

    def _share(self, raw: Sequence[memoryview], places: Sequence[tuple[int, int]]) -> bool:
        """Put the parts into memory and send its descriptor; whether that is possible here and now."""
        if not hasattr(os, "memfd_create"):
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
        except OSError:  # memory, or descriptors, are short
            return False
        return True


def _joined(raw: Sequence[memoryview], places: Sequence[tuple[int, int]], size: int) -> bytes:
    memory = bytearray(size)
    for part, (start, end) in zip(raw, places, strict=True):
        memory[start:end] = part
    return bytes(memory)


class Unpacker:
    """The other side of a worker's line."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._line.settimeout(_PATIENCE_SECONDS)

    def unpack(self, parcel: Parcel) -> Any:
        """The batch. Parcels come in the order in which they were packed; some may have been dropped in between.

        Raises:
            OptionError: this process may open no more files.
        """
        memory: Any = bytearray(parcel.memory) if parcel.memory is not None else self._shared(parcel)
        whole = memoryview(memory)
        return pickle.loads(parcel.content, buffers=[whole[start:end] for start, end in parcel.places])

    def _shared(self, parcel: Parcel) -> mmap.mmap:
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
