"""Lists without a header: a video and its class in each line, as MMAction2, TSM and VideoMAE write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tada.data.annotations import read_dataset
from tada.data.table import VideoTable
from tada.errors import DataError


def draw(folder: Path, *names: str) -> None:
    """Files that nobody opens here."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"%d" % i)


def told(table: VideoTable) -> dict[str, tuple[str, str | None]]:
    return {video.id: (table.label_names(video)[0], video.split) for video in table.videos}


@pytest.mark.parametrize("mark", [" ", "  ", "\t", ",", ", ", ";", " ; "])
@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_classes_as_numbers(name: str, mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path, "v/a.mp4", "v/b c.MP4", "v/d,e.avi", "v/f.mkv")
    Path(name).write_text(f"v/a.mp4{mark}10\nv/b c.MP4{mark}2\n\nv/d,e.avi{mark}02\nv/f.mkv{mark}0\n")
    table = read_dataset(Path(name))
    assert table.labels == ("0", "2", "10")  # in the order of the numbers
    assert told(table) == {"v/a.mp4": ("10", None), "v/b c.MP4": ("2", None), "v/d,e.avi": ("2", None),
                           "v/f.mkv": ("0", None)}  # fmt: skip
    assert table.kind == "list"


def test_classes_as_names(tmp_path: Path) -> None:
    draw(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list.txt").write_text("a.mp4 playing the flute\n'b.mp4' \"Über\"\n")
    assert told(read_dataset(tmp_path / "list.txt")) == {
        "a.mp4": ("playing the flute", None),
        "b.mp4": ("Über", None),
    }


@pytest.mark.parametrize("name", ["classes.txt", "labels.txt", "label_map_k400.txt"])
@pytest.mark.parametrize("text", ["zumba\narchery\njudo\n", "0 zumba\n1 archery\n2 judo\n"])
def test_numbers_have_names_beside_the_list(name: str, text: str, tmp_path: Path) -> None:
    draw(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / name).write_text(text)
    (tmp_path / "list.txt").write_text("a.mp4 0\nb.mp4 1\n")
    table = read_dataset(tmp_path / "list.txt")
    assert table.labels == ("zumba", "archery", "judo")
    assert told(table) == {"a.mp4": ("zumba", None), "b.mp4": ("archery", None)}


def test_lists_called_after_splits_are_these(tmp_path: Path) -> None:
    draw(tmp_path, *(f"v/{i}.mp4" for i in range(6)))
    (tmp_path / "k400_train_list_videos.txt").write_text("v/0.mp4 0\nv/1.mp4 1\n")
    (tmp_path / "k400_val_list_videos.txt").write_text("v/2.mp4 0\nv/3.mp4 1\n")
    (tmp_path / "k400_test_list_videos.txt").write_text("v/4.mp4 0\nv/5.mp4 1\n")
    table = read_dataset(tmp_path)
    assert [video.split for video in table.videos] == ["train", "train", "val", "val", "test", "test"]
    assert read_dataset(tmp_path / "k400_val_list_videos.txt").splits == ()


def test_paths_start_from_root(tmp_path: Path) -> None:
    draw(tmp_path / "disk", "a.mp4", "b.mp4")
    (tmp_path / "list.txt").write_text("a.mp4 0\nb.mp4 1\n")
    assert len(read_dataset(tmp_path / "list.txt", root=tmp_path / "disk")) == 2
    with pytest.raises(DataError, match=r"list.txt: 2 of 2 videos are not in .*'a.mp4' \(line 1\)"):
        read_dataset(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 0\nb.mp4 up\n", r"list.txt line 2: the class 'up' is a name, that of list.txt line 1 a number"),
        ("a.mp4 0\nb\n", r"list.txt line 2: 'b' should be a video and its class, such as 'clips/a.mp4 3'"),
        ("a.mp4 0\na.mp4 1\n", r"list.txt line 2: 'a.mp4' is already in list.txt line 1, there as '0' and here as"),
        ("a.mp4 0\n../b.mp4 1\n", r"list.txt line 2: '../b.mp4' leaves the folder"),
    ],
)
def test_a_wrong_line_is_named(text: str, message: str, tmp_path: Path) -> None:
    draw(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path / "list.txt")


def test_faults_of_the_names(tmp_path: Path) -> None:
    draw(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list.txt").write_text("a.mp4 1\nb.mp4 2\n")
    (tmp_path / "classes.txt").write_text("left\nright\n")
    with pytest.raises(DataError, match=r"list.txt line 2: class = 2 should be from 0 to 1, .* in classes.txt"):
        read_dataset(tmp_path / "list.txt")
    (tmp_path / "classes.txt").write_text("left\nright\nleft\n")
    with pytest.raises(DataError, match=r"classes.txt line 3: the class 'left' is already in classes.txt line 1"):
        read_dataset(tmp_path / "list.txt")
    (tmp_path / "labels.txt").write_text("left\n")
    with pytest.raises(DataError, match=r"several files name the classes \(.*classes.txt.*labels.txt.*\): keep one"):
        read_dataset(tmp_path / "list.txt")


def test_a_table_without_its_header_is_told_so(tmp_path: Path) -> None:
    draw(tmp_path, "a.mp4")
    (tmp_path / "list.csv").write_text("a.mp4,up,train\n")
    with pytest.raises(DataError, match=r"list.csv row 1: expected the columns path \(or video\) and label"):
        read_dataset(tmp_path / "list.csv")
