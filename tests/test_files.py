"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tada.files import whole_file, write_whole


def test_a_file_is_replaced_when_all_is_written(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with whole_file(file) as part:
        part.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    write_whole(file, b"newer")
    assert file.read_bytes() == b"newer"


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def fail() -> None:
        with whole_file(file) as part:
            part.write_text("ne")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        fail()
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
