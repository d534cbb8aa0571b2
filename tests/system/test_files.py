"""Files are written whole or not at all, and what is made of files has names that tell them apart."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import tempfile
import unicodedata
from pathlib import Path

import pytest
import torch

from killed import killed_in_a_write
from tada.errors import OutputError
from tada.system.files import distinct_names, is_part, scratch_folder, try_file, try_folder, whole_file, write_whole


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


def failing(file: Path, error: Exception) -> None:
    """Begin to write a file, and fail."""
    with whole_file(file) as part:
        part.write_text("ne")
        raise error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; make room, and give the same command"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (OSError(errno.EFBIG, "File too large"), "it is larger than the system lets a file be"),
        (OSError(errno.EROFS, "Read-only file system"), "the file system is read-only; give another place"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; give another place"),
        (OSError("what a library says"), "what a library says; give another place"),
    ],
)
def test_what_fails_leaves_the_old_file_and_nothing_else(error: OSError, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(OutputError, match=rf"a\.txt' cannot be written: {re.escape(reason)}"):
        failing(file, error)
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_errors_of_other_files_and_our_own_faults_stay_what_they_are(tmp_path: Path) -> None:
    """Such as a video that is read while its copy is written."""
    for error in (FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/a.mp4"), ValueError("a fault of ours")):
        with pytest.raises(type(error)) as told:
            failing(tmp_path / "a.txt", error)
        assert told.value is error
    assert list(tmp_path.iterdir()) == []


def test_torch_says_why_it_cannot_write(tmp_path: Path) -> None:
    """It raises a RuntimeError about positions in a file; a disk that is full is found behind it."""

    def save() -> None:
        with whole_file(tmp_path / "a.pt") as part, part.open("wb") as file:
            torch.save(torch.zeros(10**5), file)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**4, before[1]))
    try:
        with pytest.raises(OutputError, match=r"a\.pt' cannot be written: it is larger than the system lets a file be"):
            save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_file_may_have_the_longest_name_there_is(tmp_path: Path) -> None:
    write_whole(tmp_path / ("n" * 255), b"x")
    assert (tmp_path / ("n" * 255)).read_bytes() == b"x"
    with pytest.raises(OutputError, match="its name is too long for the file system; give a shorter one"):
        write_whole(tmp_path / ("n" * 256), b"x")


def test_what_a_killed_process_left_is_removed_and_what_others_write_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = killed_in_a_write(tmp_path / "a.txt")
    ours, others = left.replace(left.split("-")[1], str(os.getppid())), left.replace(left[1:9], "01234567")
    for name in (ours, others, "mine.part", ".mine.part"):
        (tmp_path / name).touch()
    write_whole(tmp_path / "b.txt", b"x")
    assert {path.name for path in tmp_path.iterdir()} == {"b.txt", ours, others, "mine.part", ".mine.part"}
    assert is_part(ours)
    assert not is_part(".mine.part")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / left).mkdir()
    (tmp_path / left / "model.onnx").touch()
    with scratch_folder() as folder:
        assert folder.parent == tmp_path
        assert not (tmp_path / left).exists()
    assert not folder.exists()


def test_trying_leaves_nothing(tmp_path: Path) -> None:
    try_folder(tmp_path / "a" / "b")
    try_folder(tmp_path)
    try_file(tmp_path / "a" / "b.txt")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "b.txt").write_text("mine")
    try_file(tmp_path / "b.txt")
    assert (tmp_path / "b.txt").read_text() == "mine"
    with pytest.raises(OutputError, match=r"b\.txt' cannot be written: a file has the name of the folder"):
        try_folder(tmp_path / "b.txt")
    with pytest.raises(OutputError, match=r"cannot be written: .*b\.txt' is a file, no folder; give another place"):
        try_file(tmp_path / "b.txt" / "c" / "d.txt")
    with pytest.raises(OutputError, match="cannot be written: it is a folder; give a name in it"):
        try_file(tmp_path)
    with pytest.raises(OutputError, match="cannot be written: nothing can be made in '/proc'; give another place"):
        try_folder(Path("/proc/x/y"))
    with pytest.raises(OutputError, match="its name is too long"):
        try_file(tmp_path / ("n" * 256))
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]


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
