"""Annotations of untrimmed videos: every published form, and what is wrong with a CSV."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tada.errors import DataError, OptionError
from tada.localization.annotations.table import (
    SegmentTable,
    check_for_training,
    read_segments,
    with_durations,
    with_splits,
)
from tada.localization.annotations.video_names import video_name
from tada.localization.metrics import detection_map

PLAIN = """video,start,end,label,split
a.mp4,1.5,4,jump,training
a.mp4,00:00:05,0:07.5,run,training
clips/b.mp4,0,2,run,validation
"""


def read(tmp_path: Path, content: str | dict[str, Any], name: str = "segments.csv") -> SegmentTable:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_segments(path)


def seen(table: SegmentTable) -> list[tuple[str, str | None, float, float, str]]:
    return [
        (video.name, video.split, segment.start_seconds, segment.end_seconds, table.label_of(segment))
        for video in table.videos
        for segment in video.segments
    ]


def test_names_of_videos() -> None:
    assert [video_name(n) for n in ("x/a.b.MP4", "P01_01", "v_1.5", "c:\\d\\e.webm")] == ["a.b", "P01_01", "v_1.5", "e"]


def test_a_plain_csv(tmp_path: Path) -> None:
    table = read(tmp_path, PLAIN)
    assert seen(table) == [
        ("a", "train", 1.5, 4, "jump"),
        ("a", "train", 5, 7.5, "run"),
        ("b", "val", 0, 2, "run"),
    ]
    assert [(s.name, s.labels) for s in table.heads] == [("action", ("jump", "run"))]
    assert table.splits == ("train", "val")
    assert table.counts() == [{"jump": 1, "run": 2}]
    assert table.of_split("val").num_segments == 1
    assert not table.notes
    # Semicolons, other names of columns, and one that is not used.
    other = PLAIN.replace(",", ";").replace("video;start", "path;start").replace("label;", "label;subset;").splitlines()
    other[0] = "path;start;end;label;subset;person"
    other[1:] = [f"{line};p1" for line in other[1:]]
    again = read(tmp_path, "\n".join(other))
    assert seen(again) == seen(table)
    assert again.notes == ("segments.csv column 'person': not read",)
    assert again.fingerprint() == table.fingerprint()


def test_decimal_commas_where_they_can_be_meant(tmp_path: Path) -> None:
    table = read(tmp_path, "video;start;end;label\na.mp4;1,5;0:04,25;jump\n")
    assert seen(table) == [("a", None, 1.5, 4.25, "jump")]
    with pytest.raises(DataError, match=r"row 2: start = '1,5' should be a time.* semicolons or tabs .* 1\.5"):
        read(tmp_path, 'video,start,end,label\na.mp4,"1,5",4,jump\n')


def test_columns_that_may_have_been_meant_otherwise_are_told(tmp_path: Path) -> None:
    table = read(tmp_path, "video,start,end,label,splits\na.mp4,1,2,jump,val\n")
    assert table.notes == ("segments.csv column 'splits' (did you mean 'split'?): not read",)


def test_a_video_in_which_nothing_happens(tmp_path: Path) -> None:
    table = read(tmp_path, PLAIN + "quiet.mp4,,,,training\n")
    assert [(video.name, video.split, len(video.segments)) for video in table.videos][-1] == ("quiet", "train", 0)
    with pytest.raises(
        DataError, match=r"row 5: no label; fill in the cell, .* \(a video in which nothing happens has"
    ):
        read(tmp_path, PLAIN + "quiet.mp4,1,2,,training\n")
    with pytest.raises(DataError, match=r"row 5: 'a' is in the split 'val' here and in 'train' before"):
        read(tmp_path, PLAIN + "a.mp4,,,,val\n")


def test_verbs_and_nouns_in_a_plain_csv(tmp_path: Path) -> None:
    table = read(tmp_path, "video,start,end,verb,noun\na,0,1,open,door\na,2,3,close,door\n")
    assert [(s.name, s.labels) for s in table.heads] == [("verb", ("close", "open")), ("noun", ("door",))]
    assert [entry[-1] for entry in seen(table)] == ["open,door", "close,door"]


def test_epic_kitchens_by_header_name(tmp_path: Path) -> None:
    header = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
        "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
    )
    row = "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:01:03.37,8,202,open door,open,3,door,3,\"['door']\",[3]"
    table = read(tmp_path, f"{header}\n{row}\n")
    assert seen(table) == [("P01_01", None, 0.14, 63.37, "3,3")]
    assert [len(s.labels) for s in table.heads] == [97, 300]  # not those that occur
    with pytest.raises(DataError, match=r"segments.csv row 2: verb '97' is no class .* from 0 to 96"):
        read(tmp_path, f"{header}\n{row}\n".replace("open,3", "open,97"))


def anet(**changes: Any) -> dict[str, Any]:
    entry = {"duration": 60.0, "subset": "training", "annotations": [{"segment": [5, 15], "label": "jump"}]} | changes
    return {"version": "VERSION 1.3", "taxonomy": [], "database": {"v_x": entry}}


def test_activitynet_and_hacs(tmp_path: Path) -> None:
    assert seen(read(tmp_path, anet(), "a.json")) == [("v_x", "train", 5, 15, "jump")]
    hacs = read(tmp_path, anet(duration="92.166667", subset="validation"), "h.json")  # a string, as HACS has it
    assert hacs.videos[0].duration_seconds == pytest.approx(92.166667)
    assert hacs.splits == ("val",)
    assert detection_map(
        hacs.ground_truth(),
        {"results": {"v_x": [{"segment": [5, 15], "label": "jump", "score": 1}]}},
        subset="validation",
    ).average == pytest.approx(1.0)


def test_thumos_trains_on_its_validation_part(tmp_path: Path) -> None:
    document = anet(subset="Validation")
    document["version"] = "Thumos14-30fps"
    document["database"]["t"] = {
        "subset": "Test",
        "duration": 30.0,
        "annotations": [{"segment": [1, 2], "label": "jump"}, {"segment": [3, 4], "label": "Ambiguous"}],
    }
    table = read(tmp_path, document, "thumos.json")
    assert [entry[:2] for entry in seen(table)] == [("t", "test"), ("v_x", "train")]
    assert table.notes == ("thumos.json video 't' annotation 2: ambiguous, as THUMOS14 marks it: left out",)


def test_epic_kitchens_in_json(tmp_path: Path) -> None:
    tadas = anet(annotations=[{"segment": [5, 15], "label": "0,2"}])
    opentads = anet(annotations=[{"segment": [5, 15], "verb_label": "id_000", "noun_label": "id_002"}])
    for document in (tadas, opentads):
        table = read(tmp_path, document, "epic.json")
        assert [entry[-1] for entry in seen(table)] == ["0,2"]
        assert [len(s.labels) for s in table.heads] == [97, 300]


def test_mmaction2s_form_and_its_corrected_duration(tmp_path: Path) -> None:
    document = {
        "v_a": {
            "duration_second": 100.0,
            "duration_frame": 2000,
            "feature_frame": 1984,
            "annotations": [{"segment": [5, 15], "label": "jump"}],
        }
    }
    table = read(tmp_path, document, "mm.json")
    assert table.videos[0].duration_seconds == pytest.approx(99.2)
    assert table.splits == ()


def test_published_faults_are_left_out_and_noted(tmp_path: Path) -> None:
    segments = [[5, 15], [7, 7], [9, 8], [5.0004, 15.0004], [70, 80], [50, 63], [30, 60.4]]
    table = read(tmp_path, anet(annotations=[{"segment": s, "label": "jump"} for s in segments]), "a.json")
    assert [entry[2:4] for entry in seen(table)] == [(5, 15), (30, 60), (50, 60)]
    notes = [
        "annotation 2: the segment starts and ends at the same time: left out",
        "annotation 3: the segment ends (8.0 s) before it starts (9.0 s): left out",
        "annotation 4: the same segment and label as one before: left out",
        "annotation 6: reaches 3.00 s beyond the video: cut there",
        "annotation 5: the segment from 70 to 80 s lies outside of the video, which lasts 60.00 s: left out",
    ]
    assert sorted(table.notes) == sorted(f"a.json video 'v_x' {note}" for note in notes)


BAD_ROWS = {
    "reversed": (
        "a.mp4,4,1.5,jump,training",
        r"row 2: the segment ends \(1.5 s\) before it starts \(4.0 s\); swap",
    ),
    "nan": ("a.mp4,nan,4,jump,training", r"row 2: start = 'nan' should be a time, in seconds or as HH:MM:SS"),
    "split": ("a.mp4,1,4,jump,held out", r"row 2: split = 'held out' should be train, val or test"),
    "two splits": (
        "clips/b.mp4,1,4,jump,training",
        r"row 4: 'clips/b' is in the split 'val' here and in 'train' before",
    ),
    "no label": ("a.mp4,1,4,,training", r"row 2: no label; fill in the cell"),
    "no video": (",1,4,jump,training", r"row 2: no video; fill in the cell"),
    "cells": ("a.mp4,1,4,jump", r"row 2: 4 cells, while the header names 5 columns"),
}


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_a_faulty_row_is_refused_by_its_number(fault: str, tmp_path: Path) -> None:
    row, message = BAD_ROWS[fault]
    with pytest.raises(DataError, match=f"segments.csv {message}"):
        read(tmp_path, PLAIN.replace("a.mp4,1.5,4,jump,training", row))


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "s.csv", "s.csv is empty; its first row should name the columns"),
        ("video,label\na,b\n", "s.csv", "s.csv row 1: no column start, end among video, label; expected"),
        ("video,start,end,label\n", "s.csv", "s.csv has no rows below its header"),
        ("{", "s.json", "s.json is no JSON"),
        ("[]", "s.json", "expected an object with an entry for each video"),
        ('{"database": {"v": {"annotations": [{"segment": [1], "label": "a"}]}}}', "s.json", "video 'v' annotation 1"),
        ('{"database": {"v": {"duration": 0, "annotations": []}}}', "s.json", "a duration of 0.0 s"),
        (
            '{"database": {"v": {"subset": "evaluation", "annotations": []}}}',
            "s.json",
            "s.json video 'v': the subset 'evaluation' should be training, validation or testing",
        ),
        ('{"v": {"annotations": []}, "v.mp4": {"annotations": []}}', "s.json", "the name stands there twice"),
    ],
)
def test_a_faulty_file_is_refused(content: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, content, name)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no file; give a JSON or CSV file of segments"):
        read_segments(tmp_path / "nowhere.csv")


def test_durations_cut_a_little_and_refuse_much(tmp_path: Path) -> None:
    table = read(tmp_path, PLAIN)
    cut = with_durations(table, {"a": 7.2, "b": 1.0})
    assert [entry[2:4] for entry in seen(cut)] == [(1.5, 4), (5, 7.2), (0, 1)]
    assert [video.duration_seconds for video in cut.videos] == [7.2, 1.0]
    assert cut.notes == ("segments.csv row 4: reaches 1.00 s beyond the video: cut there",)  # 0.3 s needs no note
    with pytest.raises(DataError, match=r"row 3: the segment from 5 to 7.5 s lies outside .* 4.50 s; see whether"):
        with_durations(table, {"a": 4.5})
    published = read(tmp_path, anet(), "a.json")
    assert "60.0 s by the annotations, 40.0 s by the video" in with_durations(published, {"v_x": 40.0}).notes[0]


def test_videos_are_held_out_where_there_are_no_splits(tmp_path: Path) -> None:
    rows = "".join(f"v{i}.mp4,0,1,jump\n" for i in range(10))
    table = read(tmp_path, "video,start,end,label\n" + rows)
    parted = with_splits(table, val_fraction=0.3, seed=0)
    assert [len(parted.of_split(split)) for split in ("train", "val")] == [7, 3]
    assert parted == with_splits(table, val_fraction=0.3, seed=0)
    assert parted != with_splits(table, val_fraction=0.3, seed=1)
    assert with_splits(table, val_fraction=0, seed=0).splits == ("train",)
    own = read(tmp_path, PLAIN)
    assert with_splits(own, val_fraction=0.3, seed=0) == own
    with pytest.raises(OptionError, match=r"val_fraction = 1\.5 should be in"):
        with_splits(table, val_fraction=1.5, seed=0)
    with pytest.raises(DataError, match="one video cannot be split"):
        with_splits(read(tmp_path, "video,start,end,label\na,0,1,jump\n"), val_fraction=0.5, seed=0)


def test_training_needs_something_to_learn_and_to_look_for(tmp_path: Path) -> None:
    said: list[str] = []
    check_for_training(read(tmp_path, PLAIN), said.append)
    assert said == []
    check_for_training(read(tmp_path, PLAIN.replace("0,2,run", "0,2,swim")), said.append)
    assert said == ["action classes in val that training never sees: swim"]
    said.clear()
    check_for_training(read(tmp_path, PLAIN.replace(",validation", ",train")), said.append)
    assert said == ["segments.csv: nothing is held out for validation: the last epoch is kept, as good or bad as it is"]
    with pytest.raises(DataError, match=r"no segments in the split 'train'; splits with their segments are: val \(1\)"):
        check_for_training(read(tmp_path, "video,start,end,label,split\na,0,1,jump,valid\n"), said.append)
    document = anet()
    document["database"]["empty"] = {"duration": 3.0, "subset": "validation", "annotations": []}
    with pytest.raises(DataError, match=r"no segments in the split 'val'; .* train \(1\), val \(0\)"):
        check_for_training(read(tmp_path, document, "a.json"), said.append)
