"""Arrays in files that others may have written: their sizes are asked before any memory is taken.

A file of two megabytes can unpack to gigabytes, a header can claim any shape, and an HDF5 file can name other files of
this machine as the place of its values. Whatever is wrong is a ValueError or an OSError with words for the user: who
reads a file knows which of its own errors that becomes.
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
"""Of memory for all arrays of a file, in float32 too: 240,000 videos with scores of 400 classes take 384 MB."""


def read_npy(file: str | os.PathLike[str], *, allow_pickle: bool = False) -> NDArray[Any]:
    """Read the array of a .npy file.

    Raises:
        ValueError: it takes more memory than allowed, or more bytes than the file has.
        OSError: no regular file.
    """
    with open_regular(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        check_memory([_declared(opened, size)])
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
            if unpacked > MAX_BYTES:  # before the headers, so that there are not millions of them
                raise ValueError(_too_much(unpacked))
            declared = []
            for entry in entries:
                with archive.open(entry) as member:
                    declared.append(_declared(member, entry.file_size))
            check_memory(declared)
        opened.seek(0)
        with np.load(opened, allow_pickle=allow_pickle) as arrays:
            return {name: arrays[name] for name in arrays.files}


def read_hdf5(file: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Read all arrays of numbers in an HDF5 file, by path. Links, soft and external ones, are not followed.

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
    """See that a file of ``torch.save`` is not packed: PyTorch never packs, so it would be a bomb.

    Raises:
        ValueError: it is.
        zipfile.BadZipFile: it is damaged.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > os.fstat(file.fileno()).st_size:
            raise ValueError(f"it is packed: it unpacks to {unpacked} bytes, and torch.save packs nothing")
    file.seek(0)


def check_memory(arrays: Iterable[tuple[tuple[int, ...], DTypeLike]]) -> None:
    """Add up what arrays of these shapes and types take, as they are and in float32.

    Raises:
        ValueError: more than ``MAX_BYTES``.
    """
    needed = 0
    for shape, kind in arrays:
        dtype = np.dtype(kind)
        needed += math.prod(shape) * (dtype.itemsize + (0 if dtype == np.float32 else 4))
    if needed > MAX_BYTES:
        raise ValueError(_too_much(needed))


def _too_much(needed: int) -> str:
    return f"its arrays take {needed / 1e6:.0f} MB, and at most {MAX_BYTES / 1e6:.0f} MB are read; divide it"


def _declared(file: BinaryIO | Any, size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array that a .npy file of ``size`` bytes begins with."""
    version = npy.read_magic(file)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(file)
    # What holds objects is a pickle, of any length; reading one is a matter of trust.
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"it claims an array of {list(shape)}, and has {size} bytes")
    return shape, dtype
