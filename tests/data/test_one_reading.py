"""Recognition and localization read the times, splits and cells of a list alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from tada.data.annotations import read_dataset
from tada.errors import DataError
from tada.localization.annotations.table import read_segments

Said = tuple[float | None, float | None, str | None, str]


def by_recognition(file: Path) -> Said | str:
    try:
        table = read_dataset(file)
    except DataError as error:
        return str(error)
    (video,) = table.videos
    return video.start_seconds, video.end_seconds, video.split, table.label_names(video)[0]


def by_localization(file: Path) -> Said | str:
    try:
        table = read_segments(file)
    except DataError as error:
        return str(error)
    ((video, (segment,)),) = ((video, video.segments) for video in table.videos)
    return segment.start_seconds, segment.end_seconds, video.split, table.label_of(segment)


TIMES: dict[str, float | None] = {
    "7": 7.0,
    "2.5": 2.5,
    "1:02.5": 62.5,
    "00:01:02.50": 62.5,
    "1:00:00": 3600.0,
    "100:00": 6000.0,
    "12:75": 795.0,
    "0:90:00": 5400.0,
    "1e2": 100.0,
    "-1": None,
    "-0.2": None,
    "0:-1": None,
    "1:2:3:4": None,
    "1.5:30": None,
    "100:00:100": None,
    ":30": None,
    "soon": None,
    "nan": None,
    "inf": None,
    "1e999": None,
    '"1,5"': None,
    "": None,
}
SPLITS: dict[str, str | None] = {
    "train": "train",
    "Training": "train",
    "VAL": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "Test": "test",
    " testing ": "test",
    "testidation": None,
    "trainid": None,
    "dev": None,
}


@pytest.fixture
def both(tmp_path: Path) -> Path:
    (tmp_path / "a.mp4").touch()
    return tmp_path / "list.csv"


def test_times_are_read_alike(both: Path) -> None:
    for text, value in TIMES.items():
        both.write_text(f"video,start,end,label\na.mp4,0,{text},x\n")
        said = by_recognition(both)
        assert said == by_localization(both), text
        if value is None:
            assert str(said).startswith(f"list.csv row 2: end = {text.strip(chr(34))!r} should be a time, in seconds")
        else:
            assert said == (0.0, value, None, "x"), text


def test_splits_are_read_alike(both: Path) -> None:
    for text, split in SPLITS.items():
        both.write_text(f"video,start,end,label,split\na.mp4,1,2,x,{text}\n")
        said = by_recognition(both)
        assert said == by_localization(both), text
        if split is None:
            assert said == f"list.csv row 2: split = {text!r} should be train, val or test"
        else:
            assert said == (1.0, 2.0, split, "x"), text
    for rows in ("a.mp4,1,2,x,\na.mp4,3,4,x,train\n", "a.mp4,1,2,x,train\na.mp4,3,4,x,\n"):
        both.write_text(f"video,start,end,label,split\n{rows}")
        said = by_recognition(both)
        assert said == by_localization(both)
        assert "no split, while other rows have one; fill in all of them or none" in str(said)


@pytest.mark.parametrize(
    "text",
    [
        "video;start;end;label;split\na.mp4;1,5;0:04,25;x;\n",
        "Path\tSTART_SECONDS\tend_seconds\tlabel\na.mp4\t1,5\t4.25\tx\n",
        '\ufeff"video", start ,end,label,split\r\n a.mp4 , 1.5,4.25 ," x ",\r\n\r\n',
        "video,start,end,label\na.mp4,1.5,4.25,'=x\n",
        "video,start,end,label\na.mp4,1.5,4.25,e\u0301\n",
    ],
    ids=["semicolons", "tabs", "margins", "formula", "Unicode form"],
)
def test_cells_are_read_alike(both: Path, text: str) -> None:
    both.write_text(text, encoding="utf-8")
    label = "=x" if "'=x" in text else "\u00e9" if "e\u0301" in text else "x"
    assert by_recognition(both) == by_localization(both) == (1.5, 4.25, None, label)


@pytest.mark.parametrize(
    "text",
    [
        "video,start,end,label\na.mp4,1,2\n",
        "video,start,end,label,label\na.mp4,1,2,x,y\n",
        'video,start,end,label\na.mp4,1,2,"x\n',
        "video,start,end,label\n",
        "video,start,end,label\na.mp4,1,2,x\na.mp4,3,4,X\n",
        "video;start;end;label\na.mp4;1,5,5;9;x\n",
    ],
    ids=["too few cells", "a column twice", "an open quote", "no rows", "capitals", "two commas"],
)
def test_faults_are_told_alike(both: Path, text: str) -> None:
    both.write_text(text)
    assert str(by_recognition(both)).startswith("list.csv ")
    assert by_recognition(both) == by_localization(both)
