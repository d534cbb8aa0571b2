"""Arrays that claim more than they have, unpack to more than is good, or lie elsewhere are refused before they cost."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tada.errors import CheckpointError, DataError
from tada.localization.features.importing import read_feature_file
from tada.recognition.results import load_scores
from tada.system.array_files import check_memory, read_hdf5, read_npy, read_npz
from tada.training.checkpoints import WholeFileCheckpoints


def npy_header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def packed(path: Path, num_bytes: int) -> Path:
    """A file of some kilobytes whose array of zeros is whole, and that long."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("feats.npy", "w") as member:
        member.write(npy_header((num_bytes // 4,)))
        for _ in range(num_bytes // 1_000_000):
            member.write(bytes(1_000_000))
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    wanted = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(3, np.float16), "c": np.zeros((0, 4), np.int64)}
    np.savez(tmp_path / "x.npz", **wanted)  # type: ignore[arg-type]  # its last option is no array
    np.savez_compressed(tmp_path / "y.npz", **wanted)  # type: ignore[arg-type]  # as above
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, rows in wanted.items():
            file[f"group/{name}"] = rows
    for found in (read_npz(tmp_path / "x.npz"), read_npz(tmp_path / "y.npz"), read_hdf5(tmp_path / "x.h5")):
        for name, rows in wanted.items():
            got = found[name] if name in found else found[f"group/{name}"]
            np.testing.assert_array_equal(got, rows)
            assert got.dtype == rows.dtype
    np.save(tmp_path / "x.npy", wanted["a"])
    np.testing.assert_array_equal(read_npy(tmp_path / "x.npy"), wanted["a"])


def test_a_header_that_claims_more_than_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy_header((10, 10)) + bytes(100))
    with pytest.raises(ValueError, match=r"claims an array of \[10, 10\], and has 228 bytes"):
        read_npy(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("feats.npy", npy_header((1 << 40, 1 << 10)))
    with pytest.raises(ValueError, match=r"claims an array of"):
        read_npz(tmp_path / "a.npz")
    (tmp_path / "b.npy").write_bytes(npy_header((1 << 40, 0)))  # nothing, of which there is a lot
    assert read_npy(tmp_path / "b.npy").size == 0


def test_what_unpacks_to_too_much_is_refused_everywhere(tmp_path: Path) -> None:
    bomb = packed(tmp_path / "scores.npz", 700_000_000)
    assert bomb.stat().st_size < 1_000_000
    with pytest.raises(ValueError, match=r"take 700 MB, and at most 600 MB are read"):
        read_npz(bomb)
    with pytest.raises(DataError, match=r"take 700 MB"):
        load_scores(tmp_path)
    with pytest.raises(DataError, match=r"cannot be read as features .*take 700 MB"):
        read_feature_file(bomb)


def test_an_hdf5_file_of_zeros_that_were_never_written(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("feats", (1 << 20, 1 << 12), "f4", chunks=(1024, 1024), compression="gzip")
    assert (tmp_path / "a.h5").stat().st_size < 100_000
    with pytest.raises(DataError, match=r"take 17180 MB"):
        read_feature_file(tmp_path / "a.h5")


def test_an_hdf5_file_reads_no_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret"
    secret.write_bytes(b"a secret")
    with h5py.File("outside.h5", "w") as file:
        file.create_dataset("feats", (1, 8), "u1", external=[(str(secret), 0, 8)])
    with h5py.File("other.h5", "w") as file:
        file["feats"] = np.ones((1, 8))
    layout = h5py.VirtualLayout((1, 8), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "feats", (1, 8))
    with h5py.File("virtual.h5", "w") as file:
        file.create_virtual_dataset("feats", layout)
    for name in ("outside.h5", "virtual.h5"):
        with pytest.raises(DataError, match=r"'feats' lie in other files, which are not opened"):
            read_feature_file(Path(name))
    with h5py.File("links.h5", "w") as file:
        file["link"] = h5py.ExternalLink("other.h5", "feats")
        file["text"] = "no numbers"
    with pytest.raises(DataError, match="'text' holds no numbers"):
        read_feature_file(Path("links.h5"))
    with h5py.File("links.h5", "a") as file:
        del file["text"]
    assert read_hdf5("links.h5") == {}


def save_packed(content: Any, path: Path) -> None:
    plain = io.BytesIO()
    torch.save(content, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))


def test_a_saved_state_that_claims_or_packs_more_than_it_has(tmp_path: Path) -> None:
    weights = torch.zeros(1000, 1000)
    right = {"state_dict": {"w": weights, "same": weights, "part": weights[3:5, ::2]}, "steps": [1, (2.0, "x")]}
    torch.save(right, tmp_path / "right.ckpt")
    files = WholeFileCheckpoints()
    assert files.load_checkpoint(tmp_path / "right.ckpt")["steps"] == right["steps"]
    save_packed(right, tmp_path / "packed.ckpt")
    torch.save({"optimizer_states": [{"state": (torch.zeros(1).expand(1 << 20, 1 << 12),)}]}, tmp_path / "claims.ckpt")
    os.mkfifo(tmp_path / "pipe.ckpt")
    for name in ("packed", "claims", "pipe"):
        with pytest.raises(CheckpointError, match=rf"{name}.ckpt is damaged and cannot be read: start anew without"):
            files.load_checkpoint(tmp_path / f"{name}.ckpt")


def test_a_torch_file_that_claims_or_packs_more_than_it_has(tmp_path: Path) -> None:
    torch.save(torch.zeros(1).expand(1 << 20, 1 << 12), tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"take 17180 MB"):
        read_feature_file(tmp_path / "a.pt")
    save_packed(torch.zeros(1000, 1000), tmp_path / "b.pt")
    with pytest.raises(DataError, match=r"b.pt' .*it is compressed: it unpacks to 400"):
        read_feature_file(tmp_path / "b.pt")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".pt", ".safetensors", ".csv"])
def test_a_pipe_is_not_waited_for(suffix: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"a{suffix}")
    with pytest.raises(DataError, match="no regular file"):
        read_feature_file(tmp_path / f"a{suffix}")


def test_memory_is_counted_with_the_copy_in_float32() -> None:
    check_memory([((150_000_000,), np.float32)])
    check_memory([((50_000_000,), np.float64)])
    for shape, kind in (((150_000_001,), np.float32), ((50_000_001,), np.float64), ((120_000_001,), np.uint8)):
        with pytest.raises(ValueError, match=r"at most 600 MB"):
            check_memory([(shape, kind)])
