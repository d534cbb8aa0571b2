"""Lists as data sets publish them, in miniature: what they become, what is missing, every fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_annotations import touch

from drawn_videos import draw_plain, draw_webm, read_stamps
from published_lists import EPIC, EPIC_ROW, KINETICS
from tada.data.annotations import read_dataset
from tada.data.hold_out import hold_out, hold_out_groups
from tada.data.labeled_csv import write_table
from tada.data.table import Head, VideoTable
from tada.data.views import Views, read_views
from tada.errors import DataError, OptionError
from tada.video.sampling import ClipSpec


def seen(table: VideoTable) -> list[tuple[str, tuple[str, ...], str | None]]:
    return [(video.id, table.label_names(video), video.split) for video in table.videos]


def refused(data: Path, message: str, root: Path | None = None) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_dataset(data, root=root)
    assert "\n" not in str(error.value)


class TestKinetics:
    def write(self, folder: Path) -> Path:
        (folder / "lists").mkdir(parents=True)
        (folder / "lists" / "train.csv").write_text(
            KINETICS + "waving hand,aB-_1,10,20,train\nabseiling,xyz,3,13,train\nabseiling,gone,0,10,train\n"
        )
        (folder / "lists" / "validate.csv").write_text(KINETICS + "abseiling,-vV,5,15,validate\n")
        (folder / "lists" / "test.csv").write_text("youtube_id,time_start,time_end,split\nttt,1,11,test\n")
        return folder / "lists"

    def test_a_folder_of_lists(self, tmp_path: Path) -> None:
        lists = self.write(tmp_path)
        videos = touch(
            tmp_path / "videos",
            *("train/waving_hand/aB-_1_000010_000020.mp4", "train/xyz.mkv", "val/-vV_000005_000015.webm"),
            *("val/other.mp4", ".trash/gone_000000_000010.mp4"),
        )
        table = read_dataset(lists, root=videos)
        assert table.kind == "Kinetics"
        assert table.labels == ("abseiling", "waving hand")
        assert seen(table) == [
            ("aB-_1_000010_000020", ("waving hand",), "train"),
            ("xyz_000003_000013", ("abseiling",), "train"),
            ("-vV_000005_000015", ("abseiling",), "val"),
        ]
        assert [(video.id, video.source) for video in table.missing] == [("gone_000000_000010", "train.csv row 4")]
        assert table.coverage() == "3 of 4 videos (75.0 %)"
        assert table.of_split("val").coverage() == ""
        assert table.videos[0].start_seconds is None  # the file is the clip, cut already

    def test_one_list_and_one_without_labels(self, tmp_path: Path) -> None:
        lists = self.write(tmp_path)
        touch(tmp_path, "v/ttt_000001_000011.mp4", "v/-vV_000005_000015.mp4")
        assert seen(read_dataset(lists / "validate.csv", root=tmp_path / "v")) == [
            ("-vV_000005_000015", ("abseiling",), "val")
        ]
        table = read_dataset(lists / "test.csv", root=tmp_path / "v")
        assert seen(table) == [("ttt_000001_000011", (), "test")]
        assert table.counts() == {}

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("x,a,1,11,train\nx,a,1,11,train\n", r"row 3: 'a_000001_000011' is already in train.csv row 2; each"),
            ("x,a,1,11,train\nx,a,1,11,test\n", r"row 3: .*, there in 'train' and here in 'test'; keep it in one"),
            ("x,a,11,11,train\n", r"train.csv row 2: the segment ends at 11, not after its start at 11"),
            ("x,a,nan,11,train\n", r"train.csv row 2: start = 'nan' should be a time"),
            ("x,a,-1,11,train\n", r"train.csv row 2: start = '-1' should be a time"),
            ("x,a,1,inf,train\n", r"train.csv row 2: end = 'inf' should be a time"),
            ("x,a,1,11,dev\n", r"row 2: split = 'dev' should be train, validate or test"),
            (",a,1,11,train\n", r"row 2: no label"),
            ("x,,1,11,train\n", r"row 2: no youtube_id"),
            ("x,a,1,11\n", r"row 2: 4 cells, while the header names 5"),
            ("", r"train.csv has no rows below its header"),
            ("x,zzz,1,11,train\n", r"none of its 1 videos is below .*'zzz_000001_000011.mp4' .*as --videos"),
        ],
    )
    def test_faults(self, tmp_path: Path, rows: str, message: str) -> None:
        touch(tmp_path, "a_000001_000011.mp4")
        (tmp_path / "train.csv").write_text(KINETICS + rows)
        refused(tmp_path / "train.csv", message)

    def test_a_video_that_is_there_twice(self, tmp_path: Path) -> None:
        touch(tmp_path, "one/a_000001_000011.mp4", "two/a_000001_000011.webm")
        (tmp_path / "train.csv").write_text(KINETICS + "x,a,1,11,train\n")
        refused(
            tmp_path / "train.csv", r"row 2: 'a_000001_000011' is there 2 times \('one/a_.*', 'two/a_.*'\); keep one"
        )
        refused(tmp_path / "train.csv", r"the folder '.*nowhere' for its videos does not exist", tmp_path / "nowhere")


class TestSomething:
    LABELS = ("Pushing something from left to right", "Holding something")

    def write(self, folder: Path, **changes: object) -> Path:
        rows = {
            "train": [
                {"id": "7", "label": "holding a cup", "template": "Holding [something]", "placeholders": ["a cup"]}
            ],
            "validation": [{"id": 8, "template": "Pushing [something] from left to right"}],
            "test": [{"id": "9"}],
            "labels": {label: str(i) for i, label in enumerate(self.LABELS)},
        }
        for name, value in {**rows, **changes}.items():
            (folder / f"something-something-v2-{name}.json").write_text(json.dumps(value))
        return folder

    def test_templates_without_brackets_in_the_published_order(self, tmp_path: Path) -> None:
        table = read_dataset(self.write(touch(tmp_path, "v/7.webm", "v/8.webm")))
        assert table.kind == "Something-Something-v2"
        assert table.labels == self.LABELS  # not sorted
        assert seen(table) == [("7", (self.LABELS[1],), "train"), ("8", (self.LABELS[0],), "val")]

    def test_webm_is_read_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "v").mkdir()
        draw_webm(tmp_path / "v" / "7.webm", 12)
        draw_webm(tmp_path / "v" / "8.webm", 12, codec="libvpx")
        for video in read_dataset(self.write(tmp_path)).videos:
            spec = ClipSpec(num_frames=4, sampling="segment", short_side=48, crop=48)
            assert read_views(video, spec, Views()).shape == (1, 4, 48, 48, 3)

    def test_without_labels_json_and_the_list_without_labels(self, tmp_path: Path) -> None:
        self.write(touch(tmp_path, "v/7.webm", "v/9.webm"))
        assert seen(read_dataset(tmp_path / "something-something-v2-test.json")) == [("9", (), "test")]
        (tmp_path / "something-something-v2-labels.json").unlink()
        table = read_dataset(tmp_path / "something-something-v2-train.json")
        assert table.labels == ("Holding something",)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"labels": {"Holding something": "0", "Pushing x": "2"}},
                r"labels.json class 'P.*number = 2 should be from 0 to",
            ),
            ({"labels": {"Holding something": "0", "Pushing something": "x"}}, r"number = 'x' should be a whole"),
            (
                {"labels": {"Holding something": "0", "Holding [something]": "1"}},
                r"'Holding something' or the .* twice",
            ),
            ({"labels": {"Holding something": "0"}}, r"validation.json entry 1: the class 'Pushing.*' is not in"),
            ({"labels": []}, r"should hold \{\"class\": \"number\", ...\}"),
            ({"train": [{"id": "7", "template": "Holding [x]"}, {"template": "x"}]}, r"train.json entry 2: no id"),
            ({"train": [{"id": "7", "template": ""}]}, r"entry 1: template = '' should be a class"),
            (
                {"train": [{"id": "8", "template": "Holding [something]"}]},
                r"'8' is already in .* entry 1, there in 'train'",
            ),
        ],
    )
    def test_faults(self, tmp_path: Path, changes: dict[str, object], message: str) -> None:
        refused(self.write(touch(tmp_path, "v/7.webm", "v/8.webm"), **changes), message)

    def test_a_list_that_was_cut_off(self, tmp_path: Path) -> None:
        file = self.write(touch(tmp_path, "v/7.webm")) / "something-something-v2-train.json"
        file.write_bytes(file.read_bytes()[:60])
        refused(file, r"train.json is not JSON \(.*\); copy or download it again")


class TestEpic:
    def write(self, folder: Path, rows: str | None = None, *, val: str = "") -> Path:
        folder.mkdir(exist_ok=True)
        row = EPIC_ROW.format
        if rows is None:
            rows = row(id="P01_01_0", start="00:00:00.50", stop="00:00:01.00", verb="pick-up", v=0, noun="plate", n=2)
            rows += row(id="P01_01_1", start="00:00:00.80", stop="00:00:01.50", verb="put", v=1, noun="tap", n=0)
        (folder / "EPIC_100_train.csv").write_text(EPIC + rows)
        if val:
            (folder / "EPIC_100_validation.csv").write_text(EPIC + val)
        (folder / "EPIC_100_test_timestamps.csv").write_text(
            "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
            "stop_frame\nP01_101_0,P01,P01_101,00:00:02.851,00:00:00.20,00:00:01.00,143,193\n"
        )
        (folder / "EPIC_100_verb_classes.csv").write_text(
            "id,key,instances,category\n0,take,\"['take', 'get']\",x\n1,put,['put'],y\n"
        )
        (folder / "EPIC_100_noun_classes.csv").write_text(
            "id,key,instances,category\n0,tap,[],a\n1,spoon,[],b\n2,plate,[],c\n"
        )
        return folder

    @pytest.mark.parametrize("fps", [50, 60])
    def test_segments_are_cut_from_the_recording_by_time(self, tmp_path: Path, fps: int) -> None:
        """By time, at either of the two rates; the frame numbers of the list are of neither."""
        (tmp_path / "P01" / "videos").mkdir(parents=True)
        draw_plain(tmp_path / "P01" / "videos" / "P01_01.MP4", 2 * fps, fps=fps)
        table = read_dataset(self.write(tmp_path / "lists"), root=tmp_path)
        assert table.kind == "EPIC-KITCHENS-100"
        assert table.heads == (
            Head(name="verb", labels=("take", "put")),
            Head(name="noun", labels=("tap", "spoon", "plate")),
        )
        assert seen(table) == [("P01_01_0", ("take", "plate"), "train"), ("P01_01_1", ("put", "tap"), "train")]
        assert [video.labels for video in table.videos] == [(0, 2), (1, 0)]
        assert table.groups == ("P01",)
        assert table.counts(1) == {"tap": 1, "spoon": 0, "plate": 1}
        spec = ClipSpec(num_frames=5, sampling="segment", short_side=48, crop=48)
        numbers = read_stamps(read_views(table.videos[0], spec, Views())[0].numpy())
        assert numbers == [int(fps * (0.5 + 0.05 + 0.1 * i) + 1e-6) for i in range(5)]

    def test_clips_cut_beforehand(self, tmp_path: Path) -> None:
        """As the released code reads them: a file for each narration."""
        touch(tmp_path, "clips/P01_01_1.MP4")
        table = read_dataset(self.write(tmp_path / "lists"), root=tmp_path / "clips")
        assert [(video.id, video.start_seconds) for video in table.videos] == [("P01_01_1", None)]
        assert [video.id for video in table.missing] == ["P01_01_0"]

    def test_one_label_is_not_enough_and_the_test_list_has_none(self, tmp_path: Path) -> None:
        touch(tmp_path, "P01_01.MP4", "P01_101.MP4")
        table = read_dataset(self.write(tmp_path / "lists"), root=tmp_path)
        with pytest.raises(
            DataError, match=r"each video has several labels here \(verb and noun\), while one is needed"
        ):
            _ = table.labels
        with pytest.raises(DataError, match=r"videos with a verb and a noun are not held out by class"):
            hold_out(table, fraction=0.5, seed=0)
        with pytest.raises(DataError, match=r"groups 'P01' hold all training videos"):
            hold_out_groups(table, ["P01"])
        test = read_dataset(tmp_path / "lists" / "EPIC_100_test_timestamps.csv", root=tmp_path)
        assert seen(test) == [("P01_101_0", (), "test")]
        assert [head.name for head in test.heads] == ["verb", "noun"]

    def test_labels_are_numbered_as_a_model_numbers_them(self, tmp_path: Path) -> None:
        touch(tmp_path, "P01_01.MP4")
        table = read_dataset(self.write(tmp_path / "lists"), root=tmp_path)
        nouns, verbs = (
            Head(name="noun", labels=("plate", "spoon", "tap")),
            Head(name="verb", labels=("put", "take", "cut")),
        )
        other = table.numbered_as([nouns, verbs])
        assert [video.labels for video in other.videos] == [(0, 1), (2, 0)]
        assert seen(other) == [(id, names[::-1], split) for id, names, split in seen(table)]
        with pytest.raises(DataError, match=r"the model does not know 1 of the 3 classes: plate; it knows tap, spoon"):
            table.numbered_as([Head(name="noun", labels=("tap", "spoon")), verbs])
        with pytest.raises(DataError, match=r"the model predicts action of a video, and the data have verb and noun"):
            table.numbered_as([Head(name="action", labels=("x",))])

    def test_a_table_is_written_and_read_back(self, tmp_path: Path) -> None:
        touch(tmp_path, "P01_01.MP4")
        table = read_dataset(self.write(tmp_path / "lists"), root=tmp_path)
        write_table(table, tmp_path / "videos.csv")
        again = read_dataset(tmp_path / "videos.csv", root=Path("/"))
        assert again.fingerprint() == table.fingerprint()
        assert [head.name for head in again.heads] == ["verb", "noun"]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"v": 2}, r"row 2: verb_class = 2 should be from 0 to 1, as there are 2"),
            ({"n": -1}, r"row 2: noun_class = -1 should be from 0 to 2"),
            ({"n": "1.0"}, r"row 2: noun_class = '1.0' should be a whole number, from 0 to 2"),
            ({"n": ""}, r"row 2: noun_class = '' should be a whole number"),
            ({"stop": "00:00:00.50"}, r"row 2: the segment ends at 00:00:00.50, not after its start at 00:00:00.50"),
            ({"start": "1:2:3:4"}, r"row 2: start = '1:2:3:4' should be a time, in seconds or as HH:MM:SS.ss"),
            ({"stop": ""}, r"row 2: end = '' should be a time"),
            ({"id": ""}, r"row 2: no narration_id"),
        ],
    )
    def test_faults(self, tmp_path: Path, changes: dict[str, object], message: str) -> None:
        touch(tmp_path, "P01_01.MP4")
        fine = {
            "id": "P01_01_0",
            "start": "00:00:00.50",
            "stop": "00:00:01",
            "verb": "take",
            "v": 0,
            "noun": "tap",
            "n": 0,
        }
        refused(self.write(tmp_path / "lists", EPIC_ROW.format(**{**fine, **changes})), message, tmp_path)

    def test_the_files_beside_the_lists(self, tmp_path: Path) -> None:
        lists = self.write(tmp_path / "lists")
        touch(tmp_path, "P01_01.MP4")
        verbs = lists / "EPIC_100_verb_classes.csv"
        verbs.write_text("id,key\n0,take\n0,put\n")
        refused(lists, r"EPIC_100_verb_classes.csv row 3: 'put' or the number 0 appears twice", tmp_path)
        verbs.write_text("id,name\n0,take\n")
        refused(lists, r"EPIC_100_verb_classes.csv row 1: no column 'key'; found 'id', 'name'", tmp_path)
        verbs.unlink()
        refused(
            lists, r"EPIC_100_verb_classes.csv is not in .*; copy it there; it comes with the annotations", tmp_path
        )
        text = (lists / "EPIC_100_train.csv").read_text().replace("participant_id", "person")
        (lists / "EPIC_100_train.csv").write_text(text)
        refused(
            lists / "EPIC_100_train.csv", r"row 1: no column 'participant_id'; found 'narration_id', 'person'", tmp_path
        )


class TestUcf:
    def write(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "classInd.txt").write_bytes(b"1 Archery\r\n2 Basketball\r\n")
        for fold in (1, 2, 3):
            (folder / f"trainlist0{fold}.txt").write_text(
                f"Archery/v_Archery_g0{fold}_c01.avi 1\nBasketball/v_Basketball_g0{fold}_c01.avi 2\n"
            )
            (folder / f"testlist0{fold}.txt").write_text(f"Archery/v_Archery_g1{fold}_c02.avi\n")
        return folder

    def test_a_fold(self, tmp_path: Path) -> None:
        lists = self.write(tmp_path / "ucfTrainTestlist")
        names = [
            f"UCF-101/{label}/v_{label}_g{g}_c0{c}.avi"
            for label in ("Archery", "Basketball")
            for g, c in (("02", 1), ("12", 2))
        ]
        table = read_dataset(lists, root=touch(tmp_path, *names), fold=2)
        assert table.kind == "UCF101"
        assert seen(table) == [
            ("Archery/v_Archery_g02_c01.avi", ("Archery",), "train"),
            ("Archery/v_Archery_g12_c02.avi", ("Archery",), "test"),
            ("Basketball/v_Basketball_g02_c01.avi", ("Basketball",), "train"),
        ]
        assert table.groups == ("Archery g02", "Archery g12", "Basketball g02")
        assert len(read_dataset(lists / "testlist02.txt", root=tmp_path)) == 1
        with pytest.raises(OptionError, match=r"fold 4: .* has the folds 1, 2, 3; give one of these"):
            read_dataset(lists, root=tmp_path, fold=4)

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("trainlist01.txt", "Archery/a.avi 2\n", r"line 1: number 2, while classInd.txt has 1 for 'Archery'"),
            ("trainlist01.txt", "Archery/a.avi x\n", r"line 1: number = 'x' should be a whole number"),
            ("trainlist01.txt", "Golf/a.avi 1\n", r"line 1: the class 'Golf' is not in classInd.txt"),
            ("trainlist01.txt", "a.avi 1\n", r"line 1: 'a.avi 1' should be CLASS/VIDEO.avi"),
            ("testlist01.txt", "Archery/v_Archery_g01_c01.avi\n", r"line 1: .* is already in .*list01.txt"),
            ("trainlist01.txt", "\n", r"trainlist01.txt is empty; it should have one video in each line"),
            ("classInd.txt", "1 Archery\n1 Basketball\n", r"classInd.txt line 2: 'Basketball' or the number 0 appears"),
            ("classInd.txt", "Archery\n", r"classInd.txt line 1: 'Archery' should be a number and a class"),
            ("classInd.txt", "1 Archery\n3 Golf\n", r"classInd.txt line 2: number = 2 should be from 0 to 1"),
        ],
    )
    def test_faults(self, tmp_path: Path, name: str, text: str, message: str) -> None:
        lists = self.write(touch(tmp_path, "Archery/v_Archery_g01_c01.avi"))
        (lists / name).write_text(text)
        refused(lists, message)


class TestHmdb:
    def test_a_fold(self, tmp_path: Path) -> None:
        lists = tmp_path / "testTrainMulti_7030_splits"
        lists.mkdir()
        (lists / "wave_test_split1.txt").write_text("a_0.avi 1 \nb 0.avi 2 \nc_0.avi 0 \n")
        (lists / "brush_hair_test_split1.txt").write_text("a_0.avi 1 \n")
        (lists / "wave_test_split2.txt").write_text("a_0.avi 2 \n")
        touch(tmp_path, "v/wave/a_0.avi", "v/wave/b 0.avi", "v/wave/c_0.avi", "v/brush_hair/a_0.avi")
        table = read_dataset(lists, root=tmp_path)
        assert table.kind == "HMDB51"
        assert table.labels == ("brush_hair", "wave")
        assert seen(table) == [
            ("brush_hair/a_0.avi", ("brush_hair",), "train"),
            ("wave/a_0.avi", ("wave",), "train"),
            ("wave/b 0.avi", ("wave",), "test"),
        ]
        assert len(read_dataset(lists, root=tmp_path, fold=2)) == 1
        (lists / "wave_test_split1.txt").write_text("a_0.avi 3\n")
        refused(lists, r"wave_test_split1.txt line 1: 'a_0.avi 3' should be VIDEO.avi and 1 \(training\), 2")


class TestSegmentsInCsv:
    @pytest.fixture
    def write(self, tmp_path: Path) -> Callable[[str], Path]:
        touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4")

        def write_csv(text: str) -> Path:
            (tmp_path / "clips.csv").write_text(text)
            return tmp_path / "clips.csv"

        return write_csv

    def test_times(self, write: Callable[[str], Path]) -> None:
        table = read_dataset(write("video,start,end,label\na.mp4,00:01:02.5,65,x\na.mp4,1,2.25,y\nb.mp4,,,x\n"))
        assert [(v.id, v.start_seconds, v.end_seconds) for v in table.videos] == [
            ("a.mp4#t=1,2.25", 1.0, 2.25),
            ("a.mp4#t=62.5,65", 62.5, 65.0),
            ("b.mp4", None, None),
        ]
        assert table.ignored == ()

    def test_all_segments_of_a_file_are_held_out_together(self, write: Callable[[str], Path]) -> None:
        rows = [f"{file}.mp4,{i},{i + 1},{label}" for file in "abcd" for i, label in enumerate("xyx")]
        table = hold_out(
            read_dataset(write("path,start_seconds,end_seconds,label\n" + "\n".join(rows))), fraction=0.25, seed=0
        )
        sides = {(video.path, video.split) for video in table.videos}
        assert len(sides) == 4
        assert table.of_split("val").counts() == {"x": 2, "y": 1}

    def test_verb_and_noun(self, write: Callable[[str], Path]) -> None:
        table = read_dataset(write("path,verb,noun,split\na.mp4,take,cup,train\nb.mp4,put,cup,val\n"))
        assert [head.labels for head in table.heads] == [("put", "take"), ("cup",)]
        assert table.splits == ("train", "val")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("path,start,label\na.mp4,1,x\n", r"row 1: a segment needs both start_seconds and end_seconds; add the"),
            ("path,start,end,label\na.mp4,1,,x\n", r"row 2: end = '' should be a time"),
            ("path,start,end,label\na.mp4,2,2,x\n", r"row 2: the segment ends at 2, not after its start at 2"),
            ("path,start,end,label\na.mp4,1,NaN,x\n", r"row 2: end = 'NaN' should be a time"),
            ("path,start,end,label\na.mp4,1,2,x\na.mp4,1,2,y\n", r"row 3: .* there as 'x' and here as 'y'; keep the"),
            (
                "path,start,end,label\na.mp4,1,2,x\na.mp4,1,2,x\n",
                r"row 3: 'a.mp4' is already in clips.csv row 2; each",
            ),
            ("path,start,end,label\na.mp4,1,2,x\na.mp4,,,x\n", r"row 3: .*, once whole and once as a segment"),
            (
                "path,start,end,label,split\na.mp4,1,2,x,train\na.mp4,3,4,x,val\n",
                r"row 3: .*there in 'train' and here in",
            ),
        ],
    )
    def test_faults(self, write: Callable[[str], Path], text: str, message: str) -> None:
        refused(write(text), message)

    def test_names_that_spreadsheets_would_run_are_guarded(self, write: Callable[[str], Path], tmp_path: Path) -> None:
        table = read_dataset(write("path,label\na.mp4,=1+1\nb.mp4,'-x\nc.mp4,@y\n"))
        assert table.labels == ("-x", "=1+1", "@y")
        write_table(table, tmp_path / "out.csv")
        assert "'=1+1" in (tmp_path / "out.csv").read_text()
        assert read_dataset(tmp_path / "out.csv", root=tmp_path).labels == table.labels
