"""The table of videos: three forms of data set, and every fault that a user can make in one."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tada.data.annotations import read_dataset
from tada.data.hold_out import hold_out, hold_out_groups
from tada.data.labeled_csv import write_table
from tada.data.table import Head, VideoTable
from tada.errors import DataError, OptionError, UnknownNameError
from tada.system.files import absolute_path


def touch(folder: Path, *names: str) -> Path:
    """Files that stand for videos: the table never opens them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"video")
    return folder


def rows(table: VideoTable) -> list[tuple[str, str, str | None, str | None]]:
    return [(table.relative(v), table.labels[v.label], v.split, v.group) for v in table.videos]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write DATA.csv beside the videos a.mp4 to f.mp4."""
    touch(tmp_path, *(f"{name}.mp4" for name in "abcdef"))

    def write_csv(text: str | bytes) -> Path:
        file = tmp_path / "clips.csv"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return file

    return write_csv


class TestFolder:
    def test_class_folders(self, tmp_path: Path) -> None:
        touch(tmp_path, "right/b.mp4", "left/c.MKV", "left/a 'é\n.mp4", "left/notes.txt", "README.md", ".git/x.mp4")
        table = read_dataset(tmp_path)
        assert table.labels == ("left", "right")
        assert rows(table) == [
            ("left/a 'é\n.mp4", "left", None, None),
            ("left/c.MKV", "left", None, None),
            ("right/b.mp4", "right", None, None),
        ]
        assert table.counts() == {"left": 2, "right": 1}
        assert table.splits == ()
        assert table.videos[0].source == str(tmp_path / "left")
        assert table.ignored == (str(tmp_path / "README.md"), str(tmp_path / "left/notes.txt"))

    def test_split_folders(self, tmp_path: Path) -> None:
        touch(tmp_path, "Training/l/a.mp4", "Training/r/b.mp4", "validation/l/a.mp4", "validation/r/b.mp4")
        table = read_dataset(tmp_path)
        assert table.splits == ("train", "val")
        assert rows(table.of_split("val")) == [
            ("validation/l/a.mp4", "l", "val", None),
            ("validation/r/b.mp4", "r", "val", None),
        ]
        assert table.of_split("val").labels == ("l", "r")
        with pytest.raises(DataError, match=r"no 'test' split \(they have train, val\)"):
            table.of_split("test")

    def test_names_that_are_no_text(self, tmp_path: Path) -> None:
        touch(tmp_path, "left/a.mp4")
        name = os.fsdecode(b"\xff.mp4")
        try:
            touch(tmp_path, f"left/{name}")
        except OSError:
            pytest.skip("this file system takes text only")
        table = read_dataset(tmp_path)
        assert table.relative(table.videos[1]) == f"left/{name}"
        assert len(table.fingerprint()) == 64

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ([], r"holds no class folders; put each class's videos in a folder"),
            (["a.mp4", "clips.csv"], r"holds no class folders; it holds 'clips.csv': give that file"),
            (["left/x/a.mp4", "right/b.mp4"], r"x' is a folder inside a class folder; put the videos straight into"),
            (["left/a.mp4", "b.mp4"], r"b.mp4' lies outside of the class folders, so it has no label; move it"),
            (["left/a.jpg", "right/b.mp4"], r"left' has no videos \(it holds 'a.jpg'\).*ends in one of .3gp .avi"),
            (["train/l/a.mp4", "l/b.mp4"], r"holds split folders \('train'\) beside others \('l'\); keep either"),
            (["val/l/a.mp4", "valid/l/b.mp4"], r"more than one folder for the split 'val' \('val', 'valid'\)"),
            (["train/a.mp4"], r"train' holds no class folders"),
            (["train/l/a.mp4", "train/r/a.mp4", "val/l/b.mp4"], r"train.r: 'r' is in 'train' but not in 'val'"),
            (["train/l/a.mp4", "test/l/b.mp4", "test/r/b.mp4"], r"test.r: 'r' is in 'test' but not in 'train'"),
            (["Left/a.mp4", "left/b.mp4"], r"'left' differs from 'Left' .* in capitals only"),
            (["le\x1bft/a.mp4"], r"label 'le\\x1bft' has unprintable characters"),
        ],
    )
    def test_faults(self, tmp_path: Path, files: list[str], message: str) -> None:
        touch(tmp_path, *files)
        with pytest.raises(DataError, match=message) as error:
            read_dataset(tmp_path)
        assert "\n" not in str(error.value)

    def test_empty_class_folder(self, tmp_path: Path) -> None:
        touch(tmp_path, "left/a.mp4")
        (tmp_path / "right").mkdir()
        with pytest.raises(DataError, match=r"class folder '.*right' has no videos \(it is empty\); add some or take"):
            read_dataset(tmp_path)

    def test_a_link_that_leads_nowhere(self, tmp_path: Path) -> None:
        touch(tmp_path, "left/a.mp4")
        (tmp_path / "left/b.mp4").symlink_to(tmp_path / "gone.mp4")
        with pytest.raises(DataError, match=r"b.mp4' is a link to .*gone.mp4', where nothing is: remove the link"):
            read_dataset(tmp_path)

    def test_a_pipe(self, tmp_path: Path) -> None:
        touch(tmp_path, "left/a.mp4")
        os.mkfifo(tmp_path / "left/b.mp4")
        with pytest.raises(DataError, match=r"left: 'b.mp4' is not a regular file"):
            read_dataset(tmp_path)

    def test_one_file_linked_into_two_splits(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/l/a.mp4", "val/l/b.mp4")
        (tmp_path / "val/l/c.mp4").symlink_to(tmp_path / "train/l/a.mp4")
        with pytest.raises(DataError, match=r"'c.mp4' is already in .*train.l as 'a.mp4', there in 'train' and here"):
            read_dataset(tmp_path)

    def test_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nothing' is not there"):
            read_dataset(tmp_path / "nothing")

    def test_root_goes_with_a_csv_file(self, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match=r"goes with a CSV file"):
            read_dataset(tmp_path, root=tmp_path)


class TestCsv:
    def test_all_columns(self, write: Callable[..., Path]) -> None:
        table = read_dataset(
            write("Video,label,split,group,id\n./b.mp4,right,train,P1,7\na.mp4,right,Validation,P2,8\n\n\n")
        )
        assert rows(table) == [("a.mp4", "right", "val", "P2"), ("b.mp4", "right", "train", "P1")]
        assert [video.source for video in table.videos] == ["clips.csv row 3", "clips.csv row 2"]
        assert all(os.path.isabs(video.path) for video in table.videos)
        assert table.groups == ("P1", "P2")
        assert table.ignored == ("clips.csv column 'id'",)

    @pytest.mark.parametrize(
        "text",
        [
            "path,label\na.mp4,x\nb.mp4,y\n",
            b"\xef\xbb\xbfpath,label\r\na.mp4,x\r\nb.mp4,y\r\n",
            "path;label\na.mp4;x\nb.mp4;y",
            "label\tpath\nx\ta.mp4\ny\tb.mp4\n",
            '"path","label"\n"a.mp4","x"\n"b.mp4","y"\n',
            "path, label\na.mp4, x\nb.mp4, y\n",
        ],
        ids=["plain", "spreadsheet", "semicolons", "tabs", "quotes", "spaces"],
    )
    def test_ways_of_writing(self, write: Callable[..., Path], text: str | bytes) -> None:
        assert rows(read_dataset(write(text))) == [("a.mp4", "x", None, None), ("b.mp4", "y", None, None)]

    def test_quoted_commas(self, write: Callable[..., Path], tmp_path: Path) -> None:
        touch(tmp_path, "a, b.mp4", "video:1.mp4")
        table = read_dataset(write('path,label\n"a, b.mp4","push, then pull"\nvideo:1.mp4,x\n'))
        assert rows(table)[0] == ("a, b.mp4", "push, then pull", None, None)

    def test_root(self, write: Callable[..., Path], tmp_path: Path) -> None:
        touch(tmp_path / "videos", "g.mp4")
        table = read_dataset(write("path,label\ng.mp4,x\n"), root=tmp_path / "videos")
        assert table.relative(table.videos[0]) == "g.mp4"
        inside = read_dataset(write(f"path,label\n{tmp_path}/a.mp4,x\n"))
        assert inside.relative(inside.videos[0]) == "a.mp4"
        with pytest.raises(
            DataError, match=r"clips.csv: the folder '.*nowhere' that its paths start from does not exist"
        ):
            read_dataset(tmp_path / "clips.csv", root=tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"clips.csv is empty; its first row should name the columns: path,label"),
            (b"\xef\xbb\xbf\r\n", r"clips.csv is empty"),
            ("path,label\n", r"clips.csv has no rows below its header"),
            (
                "file,class\na.mp4,x\n",
                r"row 1: expected the columns path \(or video\) and label.*found 'file', 'class'",
            ),
            ("path,video,label\na.mp4,a.mp4,x\n", r"expected the columns path \(or video\)"),
            ("path,label,label\na.mp4,x,y\n", r"row 1: the column 'label' appears twice; keep one"),
            ("path,label\na.mp4,x,y\n", r"row 2: 3 cells, while the header names 2 columns; quote cells"),
            ('path,label\n"a.mp4,x\nb.mp4,y\n', r"row 3: unexpected end of data"),
            ("path,label\na.mp4,\n", r"row 2: no label; fill in the cell or remove the row"),
            ("path,label\n,x\n", r"row 2: no path"),
            ("path,label\na.mp4,x\na.mp4,x\n", r"row 3: 'a.mp4' is already in clips.csv row 2; each video"),
            ("path,label\na.mp4,x\n./a.mp4,y\n", r"row 3: './a.mp4' .* as 'a.mp4', there as 'x' and here as 'y'"),
            ("path,label,split\na.mp4,x,train\na.mp4,x,val\n", r"row 3: .* there in 'train' and here in 'val'"),
            (
                "path,label,split\na.mp4,x,train\nb.mp4,y,val\n",
                r"row 2: 'x' is in 'train' but not in 'val'; each class",
            ),
            ("path,label,split\na.mp4,x,train\nb.mp4,x,\n", r"row 3: no split, while other rows have one"),
            ("path,label,split\na.mp4,x,dev\n", r"row 2: split = 'dev' should be train, val or test"),
            (
                "path,label\na.mp4,x\ng.mp4,x\nh.mp4,y\n",
                r"2 of 3 videos are not in .*: 'g.mp4' \(row 3\), 'h.mp4' \(row 4\)",
            ),
            ("path,label\n../a.mp4,x\n", r"row 2: '../a.mp4' leaves the folder .* give paths inside it, or a root"),
            ("path,label\nx/../../a.mp4,x\n", r"row 2: .* leaves the folder"),
            ("path,label\n/etc/passwd,x\n", r"row 2: '/etc/passwd' leaves the folder"),
            ("path,label\nhttp://h/a.mp4,x\n", r"row 2: 'http://h/a.mp4' is not a file path; .* download it"),
            ("path,label\nconcat:a.mp4|b.mp4,x\n", r"row 2: 'concat:a.mp4|b.mp4' is not a file path"),
            ("path,label\nPIPE:0,x\n", r"row 2: 'PIPE:0' is not a file path"),
            ('path,label\n"subfile,,start,0,end,9,,:a.mp4",x\n', r"row 2: 'subfile,.*' is not a file path"),
            ("path,label\n.,x\n", r"row 2: '.' is a folder, and most of its files are not numbered frames"),
            (
                "path,label\na.mp4,Left\nb.mp4,left\n",
                r"row 3: the label 'left' differs from 'Left' \(clips.csv row 2\)",
            ),
            ("path,label\na.mp4,x\x1b[2J\n", r"row 2: the label 'x\\x1b\[2J' has unprintable characters"),
            ("path,label\na.mp4,x\n".encode("utf-16"), r"clips.csv is in UTF-16; save it as CSV UTF-8"),
            ("path,label\na.mp4,x\n".encode("utf-16-le"), r"clips.csv contains zero bytes"),
            ("path,label\na.mp4,é\n".encode("latin-1"), r"clips.csv is not text in UTF-8; save it as CSV UTF-8"),
        ],
    )
    def test_faults(self, write: Callable[..., Path], text: str | bytes, message: str) -> None:
        file = write(text)
        with pytest.raises(DataError, match=message) as error:
            read_dataset(file)
        assert "\n" not in str(error.value)

    def test_a_video_is_no_data_set(self, write: Callable[..., Path], tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a.mp4' is a video; give a folder"):
            read_dataset(touch(tmp_path, "a.mp4") / "a.mp4")

    def test_a_pipe_is_not_opened(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "clips.csv")
        with pytest.raises(DataError, match=r"neither a folder nor a regular file"):
            read_dataset(tmp_path / "clips.csv")


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


class TestPlaces:
    """Work as people do: in a folder, with paths that start from it."""

    @pytest.fixture
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        touch(tmp_path, "clips/left/a.mp4", "clips/right/b.mp4", "elsewhere/x.mp4")
        (tmp_path / "clips.csv").write_text("path,label\nclips/left/a.mp4,left\nclips/right/b.mp4,right\n")
        (tmp_path / "videos").mkdir()
        for name, target in (("left_000001_000002", "left/a"), ("right_000001_000002", "right/b")):
            (tmp_path / "videos" / f"{name}.mp4").symlink_to(f"../clips/{target}.mp4")
        (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end\nleft,left,1,2\nright,right,1,2\n")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("data", "root"),
        [
            ("clips", None),
            ("./clips/", None),
            ("elsewhere/../clips", None),
            ("clips.csv", None),
            ("clips.csv", "."),
            ("train.csv", "videos"),
        ],
    )
    def test_rows_of_every_form_hold_absolute_paths(self, here: Path, data: str, root: str | None) -> None:
        table = read_dataset(Path(data), root=None if root is None else Path(root))
        folder = here / (root if data == "train.csv" and root else "clips")
        assert [Path(video.path).is_relative_to(folder) for video in table.videos] == [True, True]
        assert os.path.isabs(table.root)
        os.chdir("elsewhere")
        assert all(os.path.isfile(video.path) for video in table.videos)
        write_table(table, here / "list.csv")
        assert read_dataset(here / "list.csv", root=Path("/")).fingerprint() == table.fingerprint()

    def test_a_table_made_by_hand_is_written_with_absolute_paths(self, here: Path) -> None:
        table = read_dataset(Path("clips"))
        by_hand = replace(table, videos=tuple(replace(v, path=os.path.relpath(v.path)) for v in table.videos))
        write_table(by_hand, here / "list.csv")
        os.chdir("elsewhere")
        assert [v.path for v in read_dataset(here / "list.csv", root=here).videos] == [v.path for v in table.videos]

    def test_links_stay_what_they_are_called(self, here: Path) -> None:
        (here / "link").symlink_to("clips")
        table = read_dataset(Path("link"))
        assert [video.path for video in table.videos] == [f"{here}/link/left/a.mp4", f"{here}/link/right/b.mp4"]
        assert table.videos[0].source == "link/left"  # as it was typed

    def test_above_a_link_is_above_its_target(self, here: Path) -> None:
        (here / "elsewhere" / "inner").mkdir()
        (here / "link").symlink_to("elsewhere/inner")
        assert absolute_path("link/../x.mp4") == f"{here}/elsewhere/x.mp4"
        assert absolute_path("clips/./left/../right") == f"{here}/clips/right"
        assert absolute_path("/a//b/") == "/a/b"
        assert absolute_path(".") == str(here)

    def test_hard_links_are_files_of_their_own_and_symbolic_links_are_not(self, here: Path) -> None:
        os.link("clips/left/a.mp4", "clips/left/hard.mp4")
        assert len(read_dataset(Path("clips"))) == 3
        (here / "clips" / "left" / "soft.mp4").symlink_to("hard.mp4")
        with pytest.raises(DataError, match=r"left: 'soft.mp4' is already in clips/left as 'hard.mp4'"):
            read_dataset(Path("clips"))

    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    def test_the_other_unicode_form_of_a_name_is_found(self, here: Path, form: str) -> None:
        """A list of a Mac has "é" as two signs, while the disk has one; or the reverse, in folders and files."""
        other = {"NFC": DECOMPOSED, "NFD": COMPOSED}[form]
        touch(here, unicodedata.normalize(form, f"{COMPOSED} 1/{DECOMPOSED}.mp4"), f"{other} 2/{COMPOSED}.mp4")
        (here / "mac.csv").write_text(f"path,label\n{other} 1/{other}.mp4,x\n{COMPOSED} 2/{DECOMPOSED}.mp4,x\n")
        table = read_dataset(Path("mac.csv"))
        assert sorted(unicodedata.normalize("NFC", table.relative(video)) for video in table.videos) == [
            f"{COMPOSED} 1/{COMPOSED}.mp4",
            f"{COMPOSED} 2/{COMPOSED}.mp4",
        ]
        assert all(os.path.isfile(video.path) for video in table.videos)

    def test_two_files_that_differ_in_their_unicode_form_only(self, here: Path) -> None:
        touch(here, f"clips/left/{COMPOSED}.mp4", f"clips/left/{DECOMPOSED}.mp4")
        if len(list((here / "clips/left").iterdir())) < 3:
            pytest.skip("this file system takes them for one")
        message = r"left: 'caf\\xe9.mp4' and 'cafe\\u0301.mp4' \(clips/left\) differ in Unicode form"
        with pytest.raises(DataError, match=message):
            read_dataset(Path("clips"))
        (here / "one.csv").write_text(f"path,label\nclips/left/{COMPOSED}.mp4,x\n")
        assert read_dataset(Path("one.csv")).videos[0].path == f"{here}/clips/left/{COMPOSED}.mp4"  # as it is written
        touch(here, f"{COMPOSED}/{DECOMPOSED}.mp4", f"{DECOMPOSED}/{DECOMPOSED}.mp4")
        (here / "none.csv").write_text(f"path,label\n{COMPOSED}/{COMPOSED}.mp4,x\n")
        with pytest.raises(DataError, match=r"none.csv row 2: '.*' may be '.*' or '.*', whose names differ only in"):
            read_dataset(Path("none.csv"))

    def test_a_class_is_one_in_both_unicode_forms(self, here: Path) -> None:
        touch(here, f"words/{COMPOSED}/a.mp4", f"words/{DECOMPOSED}/b.mp4")
        table = read_dataset(Path("words"))
        assert table.labels == (COMPOSED,)
        assert len(table) == 2
        model = Head(name="action", labels=("x", DECOMPOSED))  # of a model that was trained before
        assert [video.labels for video in table.numbered_as([model]).videos] == [(1,), (1,)]

    def test_backslashes_of_windows(self, here: Path) -> None:
        (here / "windows.csv").write_text("path,label\nclips\\left\\a.mp4,x\n.\\clips\\right\\b.mp4,x\n")
        assert rows(read_dataset(Path("windows.csv"))) == [
            ("clips/left/a.mp4", "x", None, None),
            ("clips/right/b.mp4", "x", None, None),
        ]
        touch(here, "clips\\left\\a.mp4")  # a name like any other, and the one that is written
        assert read_dataset(Path("windows.csv")).videos[0].path == f"{here}/clips/right/b.mp4"
        (here / "windows.csv").write_text("path,label\nC:\\clips\\a.mp4,x\n")
        message = r"1 of 1 videos are not in .*: 'C:\\\\clips\\\\a.mp4' \(row 2\); nor are they there with slashes"
        with pytest.raises(DataError, match=message):
            read_dataset(Path("windows.csv"))
        (here / "clips" / "windows.csv").write_text("path,label\n..\\elsewhere\\x.mp4,x\n")
        with pytest.raises(DataError, match=r"row 2: '\.\./elsewhere/x.mp4' leaves the folder"):
            read_dataset(Path("clips/windows.csv"))

    def test_decimal_commas(self, here: Path) -> None:
        (here / "comma.csv").write_text(
            "path;start;end;label\nclips/left/a.mp4;0,5;1,25;x\nclips/left/a.mp4;2.5;00:00:03,5;x\n"
        )
        assert [(video.start_seconds, video.end_seconds) for video in read_dataset(Path("comma.csv")).videos] == [
            (0.5, 1.25),
            (2.5, 3.5),
        ]
        (here / "comma.csv").write_text('path,start,end,label\nclips/left/a.mp4,"1,5",2,x\n')
        with pytest.raises(DataError, match=r"row 2: start = '1,5' should be a time.* semicolons or tabs .* 1\.5"):
            read_dataset(Path("comma.csv"))

    def test_columns_that_are_not_read_may_share_a_name(self, here: Path) -> None:
        (here / "clips.csv").write_text("path,note,label,note\nclips/left/a.mp4,1,x,2\n")
        (video,) = read_dataset(Path("clips.csv")).videos
        assert read_dataset(Path("clips.csv")).label_names(video) == ("x",)

    def test_a_column_that_is_not_read_is_told(self, here: Path) -> None:
        (here / "clips.csv").write_text("path,label,splits,camera\nclips/left/a.mp4,x,train,7\n")
        assert read_dataset(Path("clips.csv")).ignored == (
            "clips.csv column 'splits' (did you mean 'split'?)",
            "clips.csv column 'camera'",
        )
        (here / "train.csv").write_text("label,youtube_id,time_start,time_end,is_cc,room\nleft,left,1,2,0,A\n")
        assert read_dataset(Path("train.csv"), root=Path("videos")).ignored == ("train.csv column 'room'",)


class TestFingerprint:
    def test_does_not_depend_on_the_place_or_the_order(self, tmp_path: Path) -> None:
        tables = []
        for folder, text in (("one", "a.mp4,x\nb.mp4,y\n"), ("two", "b.mp4,y\na.mp4,x\n")):
            touch(tmp_path / folder, "a.mp4", "b.mp4")
            (tmp_path / folder / "clips.csv").write_text("path,label\n" + text)
            tables.append(read_dataset(tmp_path / folder / "clips.csv"))
        assert tables[0].fingerprint() == tables[1].fingerprint()
        assert rows(tables[0]) == rows(tables[1])

    def test_does_not_depend_on_the_root(self, write: Callable[..., Path], tmp_path: Path) -> None:
        table = read_dataset(write("path,label\na.mp4,x\nb.mp4,y\n"))
        file = write(f"path,label\n{tmp_path}/a.mp4,x\n{tmp_path}/b.mp4,y\n")
        assert read_dataset(file, root=Path("/")).fingerprint() == table.fingerprint()

    @pytest.mark.parametrize(
        "text",
        [
            "path,label\na.mp4,x\nb.mp4,x\n",
            "path,label\na.mp4,x\nc.mp4,y\n",
            "path,label\na.mp4,x\n",
            "path,label,split\na.mp4,x,test\nb.mp4,y,test\n",
        ],
    )
    def test_changes_with_the_data(self, write: Callable[..., Path], text: str) -> None:
        before = read_dataset(write("path,label\na.mp4,x\nb.mp4,y\n")).fingerprint()
        assert read_dataset(write(text)).fingerprint() != before


class TestHoldOut:
    def table(self, folder: Path, num_x: int = 10, num_y: int = 2) -> VideoTable:
        names = [f"x/{i}.mp4" for i in range(num_x)] + [f"y/{i}.mp4" for i in range(num_y)]
        return read_dataset(touch(folder, *names))

    def test_takes_its_part_of_each_class(self, tmp_path: Path) -> None:
        table = hold_out(self.table(tmp_path), fraction=0.3, seed=0)
        assert table.of_split("val").counts() == {"x": 3, "y": 1}
        assert table.of_split("train").counts() == {"x": 7, "y": 1}

    def test_is_drawn_by_seed_and_name(self, tmp_path: Path) -> None:
        held = [
            rows(hold_out(self.table(tmp_path / folder), fraction=0.3, seed=seed))
            for folder, seed in (("one", 0), ("two", 0), ("one", 1))
        ]
        assert held[0] == held[1]
        assert held[0] != held[2]

    def test_hardly_changes_with_more_videos(self, tmp_path: Path) -> None:
        few = hold_out(self.table(tmp_path, num_x=10), fraction=0.5, seed=0)
        more = hold_out(self.table(tmp_path, num_x=12), fraction=0.5, seed=0)
        before, after = ({video.path for video in table.of_split("val").videos} for table in (few, more))
        assert len(before - after) <= 1

    def test_leaves_the_test_split_alone(self, write: Callable[..., Path]) -> None:
        table = read_dataset(write("path,label,split\na.mp4,x,train\nb.mp4,x,train\nc.mp4,x,test\n"))
        assert hold_out(table, fraction=0.5, seed=0).splits == ("train", "val", "test")

    def test_faults(self, tmp_path: Path) -> None:
        table = self.table(tmp_path / "all")
        with pytest.raises(DataError, match=r"class 'y' has one video \('.*0.mp4'\); to hold out a part"):
            hold_out(self.table(tmp_path / "few", num_y=1), fraction=0.5, seed=0)
        with pytest.raises(OptionError, match=r"fraction = 1.0 should lie between 0 and 1"):
            hold_out(table, fraction=1.0, seed=0)
        with pytest.raises(DataError, match=r"have a 'val' split already"):
            hold_out(hold_out(table, fraction=0.5, seed=0), fraction=0.5, seed=0)

    def test_groups(self, write: Callable[..., Path]) -> None:
        text = "path,label,group\na.mp4,x,A\nb.mp4,y,A\nc.mp4,x,B\nd.mp4,y,C\n"
        table = hold_out_groups(read_dataset(write(text)), ["B", "C"])
        assert [video.split for video in table.videos] == ["train", "train", "val", "val"]

    def test_faults_of_groups(self, write: Callable[..., Path], tmp_path: Path) -> None:
        table = read_dataset(write("path,label,group\na.mp4,x,Ann\nb.mp4,y,Ann\nc.mp4,x,Bob\n"))
        with pytest.raises(UnknownNameError, match=r"no group is called 'Anm'; did you mean 'Ann'\?"):
            hold_out_groups(table, ["Anm"])
        with pytest.raises(DataError, match=r"row 3: 'y' is in 'train' but not in 'val'"):
            hold_out_groups(table, ["Bob"])
        with pytest.raises(DataError, match=r"have no groups; add a column 'group'"):
            hold_out_groups(self.table(tmp_path / "no"), ["Ann"])
        with pytest.raises(DataError, match=r"the groups 'Ann', 'Bob' hold all training videos; leave one"):
            hold_out_groups(table, ["Ann", "Bob"])
