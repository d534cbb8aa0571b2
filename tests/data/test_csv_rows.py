"""Rows of text tables: times in every way they are written, cells that are safe, one row in memory at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tada.data.csv_rows import class_number, csv_rows, guarded
from tada.data.times_and_splits import seconds
from tada.errors import DataError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0.0),
        ("2.5", 2.5),
        ("90", 90.0),
        ("1:30", 90.0),
        ("00:01:30.25", 90.25),
        ("10:00:00", 36_000.0),
        ("100:00", 6000.0),
    ],
)
def test_times_are_read(text: str, value: float) -> None:
    assert seconds("x", text, "start") == value


@pytest.mark.parametrize("text", ["", "-1", "0:-1", "nan", "inf", "1e999", "1:2:3:4", "1,5", "one", ":", "1.5:30"])
def test_invalid_times_are_refused(text: str) -> None:
    with pytest.raises(
        DataError, match=r"clips.csv row 2: start = '.*' should be a time, in seconds or as HH:MM:SS.ss"
    ):
        seconds("clips.csv row 2", text, "start")


@pytest.mark.parametrize(("text", "value"), [("1,5", 1.5), ("2.5", 2.5), ("90", 90.0), ("0:01:30,25", 90.25)])
def test_times_with_decimal_commas(text: str, value: float) -> None:
    assert seconds("x", text, "start", decimal_comma=True) == value


@pytest.mark.parametrize("text", ["1,5,5", "1.000,5", ",", "1,x"])
def test_invalid_times_with_decimal_commas_are_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"row 2: start = '.*' should be a time"):
        seconds("row 2", text, "start", decimal_comma=True)


def test_numbers_of_classes() -> None:
    assert class_number("x", "3", 4, "verb_class") == 3
    for text in ("4", "-1", "1.0", "", "x", "²"):
        with pytest.raises(DataError, match=r"row 2: verb_class = .* should be (a whole number, )?from 0 to 3"):
            class_number("row 2", text, 4, "verb_class")


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@x", "'x", "''", "plain", "a=b", "left - right"])
def test_a_guarded_cell_is_read_back(tmp_path: Path, text: str) -> None:
    assert not guarded(text).startswith(("=", "+", "-", "@"))
    (tmp_path / "a.csv").write_text(f"path,label\na.mp4,{guarded(text)}\n")
    assert [cells["label"] for _, cells in csv_rows(tmp_path / "a.csv", {"path", "label"})] == [text]


def test_rows_are_read_one_by_one(tmp_path: Path) -> None:
    """The first row is there long before a fault far behind it is met: the file is not read whole."""
    file = tmp_path / "huge.csv"
    file.write_bytes(b"path,label\n" + b"a.mp4,x\n" * 200_000 + b"b.mp4,\xff\n")
    rows = csv_rows(file, {"path", "label"})
    assert next(rows) == ("huge.csv row 2", {"path": "a.mp4", "label": "x"})
    with pytest.raises(DataError, match=r"huge.csv is not text in UTF-8"):
        for _ in rows:
            pass
