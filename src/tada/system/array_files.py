"""Read arrays from untrusted .npy, .npz and HDF5 files: sizes are checked before memory is allocated.

A file of two megabytes can unpack to gigabytes, a header can claim any shape, and an HDF5 file can take its values from
other files of this machine. Each fault is a ValueError or an OSError whose message is written for the user; callers
turn it into their own kind of error.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from tada.system.documents import open_regular

MAX_BYTES = 600_000_000
"""The most memory for all arrays of a file and their float32 copies: scores of 240,000 videos, 400 classes: 384 MB."""


def read_npy(file: str | os.PathLike[str], *, allow_pickle: bool = False) -> NDArray[Any]:
    """Read the array of a .npy file.

    Raises:
        ValueError: it takes more memory than allowed, or more bytes than the file has.
        OSError: no regular file.
    """
    with open_regular(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        check_memory([_read_header(opened, size)])
        opened.seek(0)
        array: NDArray[Any] = np.load(opened, allow_pickle=allow_pickle)
        return array


def read_npz(file: str | os.PathLike[str], *, allow_pickle: bool = False) -> dict[str, NDArray[Any]]:
    """Read all arrays of a .npz file, by name.

    Raises:
        ValueError: as ``read_npy``.
        zipfile.BadZipFile: it is no .npz file.
        OSError: no regular file.
    """
    with open_regular(file) as opened:
        with zipfile.ZipFile(opened) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > MAX_BYTES:  # before the headers are read, of which there may be millions
                raise ValueError(_memory_message(unpacked))
            declared = []
            for entry in entries:
                with archive.open(entry) as member:
                    declared.append(_read_header(member, entry.file_size))
            check_memory(declared)
        opened.seek(0)
        with np.load(opened, allow_pickle=allow_pickle) as arrays:
            return {name: arrays[name] for name in arrays.files}


def read_hdf5(file: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Read all arrays of numbers in an HDF5 file, by path. Soft and external links are not followed.

    Raises:
        ImportError: h5py is not installed.
        ValueError: as ``read_npy``; or an array lies in other files, or holds no numbers.
        OSError: no regular file, or no HDF5.
    """
    import h5py

    with open_regular(file) as opened, h5py.File(opened, "r") as content:
        found: dict[str, Any] = {}

        def note(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item

        content.visititems(note)
        for name, dataset in found.items():
            if dataset.external or dataset.is_virtual:
                raise ValueError(f"the values of {name!r} lie in other files, which are not opened")
            if dataset.shape is None or dataset.dtype.kind not in "fiub":
                raise ValueError(f"{name!r} holds no numbers")
        check_memory((dataset.shape, dataset.dtype) for dataset in found.values())
        return {name: dataset[()] for name, dataset in found.items()}


def check_unpacked(file: BinaryIO) -> None:
    """Check that a file of ``torch.save`` is not compressed: PyTorch never compresses, so it would be a zip bomb.

    Raises:
        ValueError: it is compressed.
        zipfile.BadZipFile: it is damaged.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > os.fstat(file.fileno()).st_size:
            raise ValueError(f"it is compressed: it unpacks to {unpacked} bytes, and torch.save does not compress")
    file.seek(0)


def check_memory(arrays: Iterable[tuple[tuple[int, ...], DTypeLike]]) -> None:
    """Check the memory that arrays of these shapes and types take together with their float32 copies.

    Raises:
        ValueError: more than ``MAX_BYTES``.
    """
    needed = 0
    for shape, kind in arrays:
        dtype = np.dtype(kind)
        needed += math.prod(shape) * (dtype.itemsize + (0 if dtype == np.float32 else 4))
    if needed > MAX_BYTES:
        raise ValueError(_memory_message(needed))


def _memory_message(needed: int) -> str:
    return f"its arrays take {needed / 1e6:.0f} MB, and at most {MAX_BYTES / 1e6:.0f} MB are read; divide it"


def _read_header(file: BinaryIO | Any, size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read shape and type from the header of a .npy file of ``size`` bytes.

    Raises:
        ValueError: the array would need more bytes than the file has.
    """
    version = npy.read_magic(file)
    read_array_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_array_header(file)
    # An array of objects is a pickle of any length; numpy refuses it unless the caller allows pickles.
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"it claims an array of {list(shape)}, and has {size} bytes")
    return shape, dtype
