"""A file's identity is a hash of its content, independent of its path."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest

from tada.data import identity
from tada.data.identity import PART_BYTES, content_id, content_ids


def written(path: Path, size: int, seed: int = 0) -> Path:
    path.write_bytes(np.random.default_rng(seed).bytes(size))
    return path


def test_it_is_the_size_and_a_hash_of_head_middle_and_tail(tmp_path: Path) -> None:
    small = written(tmp_path / "small", 1000)
    assert content_id(small) == f"1000-{hashlib.blake2b(small.read_bytes(), digest_size=16).hexdigest()}"
    large = written(tmp_path / "large", 1_000_001)
    data, middle = large.read_bytes(), (1_000_001 - PART_BYTES) // 2
    parts = data[:PART_BYTES] + data[middle : middle + PART_BYTES] + data[-PART_BYTES:]
    assert content_id(large) == f"1000001-{hashlib.blake2b(parts, digest_size=16).hexdigest()}"


@pytest.mark.parametrize("size", [0, 1, 3 * PART_BYTES, 3 * PART_BYTES + 1, 1_000_000])
def test_copies_and_links_are_the_same_and_others_are_not(size: int, tmp_path: Path) -> None:
    file = written(tmp_path / "a", size)
    copy = tmp_path / "copy"
    copy.write_bytes(file.read_bytes())
    os.utime(copy, (1, 1))
    link = tmp_path / "link"
    link.symlink_to(file)
    assert content_id(file) == content_id(copy) == content_id(link)
    assert content_id(written(tmp_path / "longer", size + 1)) != content_id(file)
    if size:
        assert content_id(written(tmp_path / "other", size, seed=1)) != content_id(file)


@pytest.mark.parametrize("place", [0, 500_000, 999_999])
def test_one_changed_byte_in_head_middle_or_tail_shows(place: int, tmp_path: Path) -> None:
    file = written(tmp_path / "a", 1_000_000)
    before = content_id(file)
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    assert content_id(file) != before


def test_many_at_once_leave_out_what_cannot_be_read(tmp_path: Path) -> None:
    files = [str(written(tmp_path / str(i), 100 + i, seed=i)) for i in range(50)]
    gone = str(tmp_path / "gone")
    assert content_ids([*files, gone, str(tmp_path)]) == {file: content_id(file) for file in files}


def test_an_interruption_does_not_wait_for_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def interrupted(path: str) -> str:
        asked.append(path)
        if path == "20":
            raise KeyboardInterrupt
        time.sleep(0.005)
        return "1-a"

    monkeypatch.setattr(identity, "_content_id_or_empty", interrupted)
    with pytest.raises(KeyboardInterrupt):
        content_ids(map(str, range(2000)))
    assert len(asked) < 1000
