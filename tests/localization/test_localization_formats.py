"""Annotations as they are published: a miniature of each form that is no ActivityNet JSON, and its faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_localization_annotations import seen

from tada.errors import DataError
from tada.localization.annotations.formats import read_names
from tada.localization.annotations.table import SegmentTable, named_like, read_segments


def write(folder: Path, **files: str) -> Path:
    """Files by their names, with a double underscore for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


# -- EPIC-KITCHENS-100 ------------------------------------------------------------------------------------------------

EPIC_HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
    "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)
EPIC_TRAIN = EPIC_HEADER + (
    "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]\n"
    'P01_01_1,P01,P01_01,00:00:02.629,00:00:04.37,00:01:02.50,262,370,"turn on light, tap",turn-on,6,light,114,'
    "\"['light', 'tap']\",\"[114, 0]\"\n"
)
EPIC_VAL = EPIC_HEADER + (
    "P01_11_0,P01,P01_11,00:00:00.560,00:00:00.00,00:00:01.89,1,113,take plate,take,0,plate,2,['plate'],[2]\n"
)
VERBS = "id,key,instances,category\n" + "".join(f"{i},verb{i},\"['v']\",c\n" for i in range(97))
NOUNS = "id,key,instances,category\n" + "".join(f"{i},noun{i},\"['n']\",c\n" for i in range(300))
INFO = "video_id,duration,fps,resolution\nP01_01,1652.152817,59.94,1920x1080\nP01_11,1.5,50.0,1920x1080\n"


def test_epic_kitchens_is_a_folder_of_two_splits(tmp_path: Path) -> None:
    folder = write(tmp_path, EPIC_100_train__csv=EPIC_TRAIN, EPIC_100_validation__csv=EPIC_VAL, other__csv="x")
    table = read_segments(folder)
    assert seen(table) == [
        ("P01_01", "train", 0.14, 3.37, "3,3"),
        ("P01_01", "train", 4.37, 62.5, "6,114"),
        ("P01_11", "val", 0.0, 1.89, "0,2"),
    ]
    assert [(s.name, len(s.labels)) for s in table.heads] == [("verb", 97), ("noun", 300)]
    write(folder, EPIC_100_verb_classes__csv=VERBS, EPIC_100_noun_classes__csv=NOUNS, EPIC_100_video_info__csv=INFO)
    named = read_segments(folder)
    assert [entry[-1] for entry in seen(named)] == ["verb3,noun3", "verb6,noun114", "verb0,noun2"]
    assert [video.duration_seconds for video in named.videos] == [1652.152817, 1.5]
    assert seen(named)[2][3] == 1.5  # cut where the video ends
    alone = read_segments(folder / "EPIC_100_validation.csv")
    assert seen(alone) == [("P01_11", None, 0.0, 1.5, "verb0,noun2")]


def test_durations_as_the_released_code_lists_them(tmp_path: Path) -> None:
    lengths = "P01_01.MP4,1652.15\nP01_11.MP4,10.5\n"
    folder = write(tmp_path, EPIC_100_validation__csv=EPIC_VAL, epic_videos_len__txt=lengths)
    assert read_segments(folder).videos[0].duration_seconds == 10.5
    write(folder, epic_videos_len__txt="P01_01.MP4 1652.15\n")
    with pytest.raises(DataError, match=r"epic_videos_len.txt line 1: duration = '' should be a time"):
        read_segments(folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("P01_11_0,P01,,0,0,1,1,2,x,take,0,plate,2,[],[]", "row 2: no video_id; fill in the cell"),
        ("P01_11_0,P01,P01_11,0,0,1,1,2,x,take,0,plate,300,[],[]", "row 2: noun '300' is no class .* from 0 to 299"),
        ("P01_11_0,P01,P01_11,0,0,1,1,2,x,take,-1,plate,2,[],[]", "row 2: verb '-1' is no class .* from 0 to 96"),
        ("P01_11_0,P01,P01_11,0,soon,1,1,2,x,take,0,plate,2,[],[]", "row 2: start = 'soon' should be a time"),
        ("P01_11_0,P01,P01_11,0,0,1,1,2,x,take,0,plate,2,[]", "row 2: 14 cells, while the header names 15 columns"),
        (
            "P01_01_0,P01,P01_01,0,0,1,1,2,x,take,0,plate,2,[],[]",
            "row 2: 'P01_01' is in the split 'val' here and in 'train'",
        ),
    ],
)
def test_faults_in_epic_kitchens_lists(row: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, EPIC_100_train__csv=EPIC_TRAIN, EPIC_100_validation__csv=EPIC_HEADER + row + "\n")
    with pytest.raises(DataError, match=f"EPIC_100_validation.csv {message}"):
        read_segments(tmp_path)


def test_the_test_list_has_nothing_to_learn_from(tmp_path: Path) -> None:
    header = "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame\n"
    write(tmp_path, EPIC_100_test_timestamps__csv=header + "P01_11_0,P01,P01_11,0,0,1,1\n")
    with pytest.raises(DataError, match=r"EPIC_100_test_timestamps.csv row 1: no column label among narration_id"):
        read_segments(tmp_path / "EPIC_100_test_timestamps.csv")


# -- THUMOS14 ---------------------------------------------------------------------------------------------------------


def thumos(folder: Path) -> Path:
    write(
        folder / "TH14_Temporal_annotations_validation" / "annotation",
        BaseballPitch_val__txt="video_validation_0000266  72.8 76.4\nvideo_validation_0000681  44.0 50.9\n",
        CliffDiving_val__txt="video_validation_0000266  10.0 12.0\n",
        Diving_val__txt="video_validation_0000266  10.0 12.0\n",
        Ambiguous_val__txt="video_validation_0000681  42.1 44.0\nvideo_validation_0000999  2.0 3.0\n",
    )
    write(folder / "annotation", BaseballPitch_test__txt="video_test_0000324  1.9 2.3 \n\n")
    write(folder, readme__txt="The folder 'annotations' contains text files")
    return folder


def test_thumos_as_it_was_first_published(tmp_path: Path) -> None:
    table = read_segments(thumos(tmp_path))
    assert seen(table) == [
        ("video_test_0000324", "test", 1.9, 2.3, "BaseballPitch"),
        ("video_validation_0000266", "train", 10.0, 12.0, "CliffDiving"),  # a dive off a cliff is both
        ("video_validation_0000266", "train", 10.0, 12.0, "Diving"),
        ("video_validation_0000266", "train", 72.8, 76.4, "BaseballPitch"),
        ("video_validation_0000681", "train", 44.0, 50.9, "BaseballPitch"),
    ]
    assert table.notes == ("Ambiguous_val.txt: 2 segments marked as ambiguous: left out",)
    one = read_segments(tmp_path / "annotation" / "BaseballPitch_test.txt")
    assert [entry[-1] for entry in seen(one)] == ["BaseballPitch"]


def test_multithumos_has_both_parts_in_one_file(tmp_path: Path) -> None:
    lines = "video_validation_0000051 67.5 71.9\nvideo_test_0000004 0.2 1.1\n"
    write(tmp_path, Dribble__txt=lines, class_list__txt="1 BaseballPitch\n")
    assert [entry[1::3] for entry in seen(read_segments(tmp_path))] == [("test", "Dribble"), ("train", "Dribble")]


@pytest.mark.parametrize("line", ["video_validation_0000266 72.8", "v_BaseballPitch_g01 1 2", "video_test_1 1 2 3"])
def test_faults_in_thumos_lists(line: str, tmp_path: Path) -> None:
    write(tmp_path, Diving_val__txt=f"video_validation_0000266 1 2\n\n{line}\n")
    with pytest.raises(
        DataError, match=r"Diving_val.txt line 3: .* should be a video, a start and an end: video_test_0"
    ):
        read_segments(tmp_path)


def test_faulty_segments_of_published_files_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, Diving_val__txt="video_validation_0000266 3 1\nvideo_validation_0000266 1 3\n")
    table = read_segments(tmp_path)
    assert table.num_segments == 1
    assert "Diving_val.txt line 1: the segment ends (1.0 s) before it starts (3.0 s): left out" in table.notes
    write(tmp_path, Diving_val__txt="video_validation_0000266 nan 1\n")
    with pytest.raises(DataError, match=r"Diving_val.txt line 1: start = 'nan' should be a time"):
        read_segments(tmp_path)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    write(tmp_path, segments__csv="video,start,end,label\na,0,1,b\n")
    with pytest.raises(
        DataError, match=r"holds no annotations that are read from a folder .* give the file of segments"
    ):
        read_segments(tmp_path)
    write(tmp_path, Ambiguous_test__txt="video_test_0000004 0.2 1.1\n")
    with pytest.raises(DataError, match="has no segments: nothing to learn from"):
        read_segments(tmp_path)


# -- HACS Clips -------------------------------------------------------------------------------------------------------

CLIPS = """classname,youtube_id,subset,start,end,label
Archery,a2X2hz1G6i8,training,15.5,17.5,1
Archery,NUdji_CqvcY,training,77.5,79.5,-1
Archery,-0O_qMHxBfXg,validation,24.5,26.5,1
"""


def test_hacs_clips(tmp_path: Path) -> None:
    table = read_segments(write(tmp_path, c__csv=CLIPS) / "c.csv")
    assert seen(table) == [
        ("-0O_qMHxBfXg", "val", 24.5, 26.5, "Archery"),
        ("a2X2hz1G6i8", "train", 15.5, 17.5, "Archery"),
    ]
    assert table.notes == ("c.csv: 1 clip in which the class does not happen (label -1): left out",)
    write(tmp_path, c__csv=CLIPS.replace("17.5,1\n", "17.5,2\n"))
    with pytest.raises(DataError, match=r"c.csv row 2: label = '2' should be 1 \(it happens\) or -1"):
        read_segments(tmp_path / "c.csv")
    write(tmp_path, c__csv=CLIPS.replace("subset", "part"))
    with pytest.raises(DataError, match=r"c.csv row 1: no column 'subset'; found"):
        read_segments(tmp_path / "c.csv")


def test_lists_of_videos_to_leave_out(tmp_path: Path) -> None:
    write(tmp_path, a__json='["v_x", "y.mp4"]', b__json='{"v_x": {}, "y": {}}', c__txt="v_x\n\ny\n", d__json="[]")
    assert all(read_names(tmp_path / name) == {"v_x", "y"} for name in ("a.json", "b.json", "c.txt"))
    with pytest.raises(DataError, match=r"d.json holds no names of videos; give a JSON list, or a name in each line"):
        read_names(tmp_path / "d.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_names(tmp_path / "e.json")
    table = read_segments(write(tmp_path, c__csv=CLIPS) / "c.csv")
    assert [video.name for video in table.leaving_out({"v_a2X2hz1G6i8"}).videos] == ["-0O_qMHxBfXg"]


def test_videos_may_be_called_with_or_without_their_prefix(tmp_path: Path) -> None:
    table: SegmentTable = read_segments(write(tmp_path, c__csv=CLIPS) / "c.csv")
    names = [video.name for video in named_like(table, {"v_a2X2hz1G6i8", "other"}).videos]
    assert names == ["-0O_qMHxBfXg", "v_a2X2hz1G6i8"]
    back = named_like(named_like(table, {"v_a2X2hz1G6i8"}), {"a2X2hz1G6i8"})
    assert back == table
