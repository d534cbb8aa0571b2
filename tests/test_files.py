"""Files are written whole or not at all, and what is made of files has names that tell them apart."""

from __future__ import annotations

import os
import random
import unicodedata
from pathlib import Path

import pytest

from tada.files import distinct_names, whole_file, write_whole


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


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["clips/a.mp4", "clips/b.mp4"], ["a", "b"]),
        (["a/0.mp4", "b/0.mp4", "b/1.mp4"], ["a_0", "b_0", "1"]),
        (["x/a/left/0.mp4", "x/b/right/0.mp4"], ["a_left_0", "b_right_0"]),
        (["0.mp4", "a/0.mp4"], ["0", "a_0"]),
        (["a/0.mp4", "a/0.avi"], ["0.mp4", "0.avi"]),
        (["a/0.mp4", "a/0.avi", "b/0.mp4"], ["a_0.mp4", "a_0.avi", "b_0"]),
        (["a/0.mp4", "b/0.mp4", "c/a_0.mp4"], ["a_0_2", "b_0", "a_0"]),
        (["a/b/0.mp4", "a_b/0.mp4"], ["a_b_0", "a_b_0_2"]),
        (["a/clip.mp4", "b/CLIP.MP4"], ["a_clip", "b_CLIP"]),
        (["clip.mp4", "CLIP.mp4"], ["clip_2", "CLIP"]),
        (["clip.v1.mp4", "clip.v2.mp4"], ["clip.v1", "clip.v2"]),
        (["a/0.mp4", "./a/0.mp4", "a/../a/0.mp4"], ["0", "0", "0"]),
        ([unicodedata.normalize(form, "a/\u00e9.mp4") for form in ("NFC", "NFD")], ["\u00e9_2", "e\u0301"]),
        ([], []),
    ],
)
def test_names_follow_the_differing_parts_of_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str], names: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert distinct_names(paths) == dict(zip(paths, names, strict=True))
    shuffled = [os.path.abspath(path) for path in paths]  # neither the order nor the spelling matters
    random.Random(0).shuffle(shuffled)
    assert {path: distinct_names(shuffled)[os.path.abspath(path)] for path in paths} == distinct_names(paths)
    assert distinct_names(map(Path, paths)) == {Path(path): name for path, name in distinct_names(paths).items()}


def test_joined_names_fit_into_a_folder(tmp_path: Path) -> None:
    deep = [tmp_path / (top + "\u00e9" * 60) / ("b" * 120) / "0.mp4" for top in "xy"]
    names = distinct_names(deep)
    assert len(set(names.values())) == 2
    for name in names.values():
        (tmp_path / f"{name}.png").write_text("")
