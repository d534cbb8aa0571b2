"""Which video is meant: equal names in several folders, names as annotations write them, accents."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from drawn_videos import draw_plain
from tada.errors import DataError
from tada.localization.annotations.frame_clock import FrameClock
from tada.localization.annotations.table import SegmentTable, named_like, read_segments
from tada.localization.annotations.video_names import KnownVideos, short_names, video_name, video_path, videos_by_name


def test_a_path_is_written_in_many_ways() -> None:
    same = ("a/b.MP4", "./a/b.mp4", "a\\b.mp4", " a//b ", "/a/b.webm")
    assert {video_path(written) for written in same} == {"a/b"}
    assert {video_name(written) for written in same} == {"b"}
    assert video_path("x/v_1.5") == "x/v_1.5"
    assert len({video_path(unicodedata.normalize(form, "caf\u00e9.mp4")) for form in ("NFC", "NFD")}) == 1


def test_names_are_short_where_they_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def names(*files: str, root: str | None = None) -> list[str]:
        return list(videos_by_name(files, root))

    assert names("videos/a/0.mp4", "videos/b/1.mp4") == ["0", "1"]
    assert names("videos/a/0.mp4", "videos/b/0.mp4", "videos/b/1.mp4") == ["a/0", "b/0", "1"]
    assert names("videos/a/0.mp4", "videos/a/x/0.mp4", root="videos") == ["a/0", "a/x/0"]
    assert names("videos/a/0.mp4", "videos/a/x/0.mp4") == ["0", "x/0"]
    assert names("a/clip.mp4", "b/Clip.avi") == ["a/clip", "b/Clip"]  # one file's name on some file systems
    assert names("a/0.mp4", "./a/0.mp4") == ["0"]
    assert names("elsewhere/0.mp4", "videos/0.mp4", root="videos") == ["elsewhere/0", "videos/0"]
    assert names() == []
    for two in (("a/0.mp4", "a/0.avi"), ("a/0.mp4", "a/0.MP4"), ("a/clip.mp4", "a/CLIP.mp4")):
        with pytest.raises(DataError, match=r"are both called '\w+'; rename one, or take it away"):
            names(*two)
    nfc, nfd = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    assert names(f"{nfd}.mp4") == [nfc]
    with pytest.raises(DataError, match="are both called"):
        names(f"{nfd}.mp4", f"{nfc}.mp4")


def test_short_names_keep_what_tells_them_apart() -> None:
    assert short_names(["a/0", "b/0", "c/1", "2"]) == {"a/0": "a/0", "b/0": "b/0", "c/1": "1", "2": "2"}


def test_folders_tell_which_video_is_meant() -> None:
    known = KnownVideos({"a/0": "/data/videos/a/0.mp4", "b/0": "/data/videos/b/0.mp4", "1": "/data/videos/c/1.mp4"})
    for written, name in {
        "a/0": "a/0",
        "videos/b/0": "b/0",
        "elsewhere/b/0": "b/0",
        "1": "1",
        "x/1": "1",
        "v_1": "1",
        "c/0": None,  # that folder is there, and 0 is not in it
        "videos/c/0": None,
        "videos/1": "1",  # somewhere below it
        "2": None,
        "v_2": None,
    }.items():
        assert known.find(written, "s.csv") == name
    for unclear in ("0", "d/0"):
        with pytest.raises(DataError, match=rf"s.csv: the video '{unclear}' may be each of 'a/0', 'b/0'; write its fo"):
            known.find(unclear, "s.csv")


def test_two_that_are_written_are_never_one_video() -> None:
    known = KnownVideos({"0": "videos/a/0.mp4"})
    assert known.find_all({"x": "a/0", "y": "b/0"}, "s.csv") == {"x": "0"}  # b/0 is not there
    for one, other in (("b/0", "c/0"), ("0", "a/0"), ("0", "v_0")):
        with pytest.raises(
            DataError, match=r"s.csv: '.*' and '.*' would both be the video '0'; write a video the same"
        ):
            known.find_all({one: one, other: other}, "s.csv")


def read(folder: Path, *videos: str) -> SegmentTable:
    rows = "".join(f"{video},{i},{i + 1},jump\n" for i, video in enumerate(videos))
    (folder / "s.csv").write_text("video,start,end,label\n" + rows, encoding="utf-8")
    return read_segments(folder / "s.csv")


def test_a_video_of_another_folder_is_not_taken_for_one_that_is_lacking(tmp_path: Path) -> None:
    """tuesday/0 is not there, and monday/0 has its name."""
    places = {"0": "/w/monday/0.mp4", "1": "/w/monday/1.mp4", "9": "/w/tuesday/9.mp4", "5": "/w/tuesday/noon/5.mp4"}
    said: list[str] = []
    table = named_like(read(tmp_path, "tuesday/9.mp4", "tuesday/0.mp4", "old/tuesday/1", "v_5"), places, said.append)
    assert [video.name for video in table.videos] == ["5", "9", "old/tuesday/1", "tuesday/0"]
    assert said == []
    known = KnownVideos(places)
    assert known.elsewhere("tuesday/0") == "/w/monday/0.mp4"
    assert known.elsewhere("tuesday/2") is None
    assert known.find("tuesday/5", "s.csv") == "5"  # it lies deeper in it
    assert known.find("monday/tuesday/9", "s.csv") == "9"
    # Where no such folder is there, it may be the same one, moved: that is said.
    table = named_like(read(tmp_path, "wednesday/0", "friday/1", "monday/9"), places, said.append)
    assert [video.name for video in table.videos] == ["0", "1", "monday/9"]
    assert said == [
        "s.csv: 2 videos taken by name alone, from another folder than is written: 'wednesday/0' for one, which "
        "is '/w/monday/0.mp4' here"
    ]
    again = named_like(table, places, said.append)
    assert (again.videos, len(said)) == (table.videos, 1)  # and said once


def test_frames_are_not_counted_in_a_video_of_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, num_frames in (("monday/0", 10), ("monday/1", 20), ("tuesday/1", 30), ("tuesday/9", 40)):
        file = Path("w", f"{name}.mp4")
        file.parent.mkdir(parents=True, exist_ok=True)
        draw_plain(file, num_frames, width=32, height=32, fps=10)
    clock = FrameClock([Path("w"), Path()])
    for written, seconds in {"tuesday/1.mp4": 3.0, "old/tuesday/1.mp4": 3.0, "0.mp4": 1.0, "x/9.mp4": 4.0}.items():
        assert clock.duration(written, "task 1") == pytest.approx(seconds)
    with pytest.raises(
        DataError, match=r"task 1 counts frames, and only the video 'tuesday/0.mp4' knows when they are"
    ):
        clock.duration("tuesday/0.mp4", "task 1")
    with pytest.raises(
        DataError, match="task 1: the video '1' may be each of 'monday/1', 'tuesday/1'; write its folder"
    ):
        clock.duration("1.mp4", "task 1")


def test_annotations_of_equal_names_stay_apart(tmp_path: Path) -> None:
    table = read(tmp_path, "a/0.mp4", "b/0.mp4", "a/0.mp4", "c/1.mp4")
    assert {video.name: len(video.segments) for video in table.videos} == {"1": 1, "a/0": 2, "b/0": 1}
    there = named_like(table, {"a/0": "/v/a/0.mp4", "b/0": "/v/b/0.mp4", "1": "/v/c/1.mp4"})
    assert {video.name: len(video.segments) for video in there.videos} == {"1": 1, "a/0": 2, "b/0": 1}
    one = named_like(read(tmp_path, "a/0.mp4"), {"a/0": "/v/a/0.mp4", "b/0": "/v/b/0.mp4"})  # unique in the rows only
    assert [video.name for video in one.videos] == ["a/0"]
    with pytest.raises(DataError, match=r"s.csv: the video '0' may be each of 'a/0', 'b/0'"):
        named_like(read(tmp_path, "0.mp4"), {"a/0": "/v/a/0.mp4", "b/0": "/v/b/0.mp4"})
    with pytest.raises(DataError, match="'a/0' and 'b/0' would both be the video '0'"):
        named_like(table, {"0", "1"})


def test_names_and_labels_with_accents_are_one_in_all_their_forms(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    (tmp_path / "s.csv").write_text(f"video,start,end,label\n{nfc},0,1,{nfd}\n{nfd}.mp4,2,3,{nfc}\n", encoding="utf-8")
    table = read_segments(tmp_path / "s.csv")
    assert [(video.name, len(video.segments)) for video in table.videos] == [(nfc, 2)]
    assert table.heads[0].labels == (nfc,)


def test_labels_that_look_alike_are_refused_as_by_the_recognizer(tmp_path: Path) -> None:
    for label, message in (
        ("JUMP", r"s.csv row 3: the label 'JUMP' differs from 'jump' \(s.csv row 2\) in capitals only; write it one"),
        ("ju\u200bmp", r"row 3: the label 'ju\\u200bmp' has unprintable characters; rename it"),
    ):
        text = f"video,start,end,label\na,0,1,jump\na,2,3,{label}\n"
        (tmp_path / "s.csv").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read_segments(tmp_path / "s.csv")
    pairs = "video,start,end,verb,noun\na,0,1,open,door\na,2,3,open,Door\n"
    (tmp_path / "s.csv").write_text(pairs)
    with pytest.raises(DataError, match=r"row 3: the label 'Door' differs from 'door'"):
        read_segments(tmp_path / "s.csv")
