"""How times and splits may be written in annotations, for recognition and localization alike."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from tada.data.table import SPLITS
from tada.errors import DataError

# HH:MM:SS, or MM:SS with any number of digits for the minutes: 100:00 is an hour and forty minutes.
_CLOCK = re.compile(r"(?:([0-9]+):([0-9]{1,2})|([0-9]+)):([0-9]{1,2}(?:\.[0-9]*)?)")
_DECIMAL_COMMA = re.compile(r"[0-9:]*[0-9],[0-9]+")
SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Names of splits in data sets, in lower case, and the split that each means."""


def decimal_number(text: str, *, decimal_comma: bool) -> float:
    """Parse a number; with ``decimal_comma``, "1,5" is accepted too.

    Raises:
        ValueError: it is not a number.
    """
    return float(text.replace(",", ".", 1) if decimal_comma else text)


def parse_seconds(written: object) -> float:
    """Parse a time to seconds: a number or text of seconds, or MM:SS or HH:MM:SS, with or without a fraction.

    Raises:
        ValueError: it is none of these, or not finite.
    """
    text = str(written).strip()
    clock = _CLOCK.fullmatch(text)
    try:
        if clock:
            hours, minutes, only_minutes, rest = clock.groups()
            value = float(hours or 0) * 3600 + float(minutes or only_minutes) * 60 + float(rest)
        else:
            value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a time: write seconds or HH:MM:SS")
    return value


def seconds(
    source: str, written: object, what: str, *, decimal_comma: bool = False, may_be_negative: bool = False
) -> float:
    """Parse a cell's time with ``parse_seconds``, with errors that name the row.

    Args:
        what: the cell's name, for messages.
        decimal_comma: "1,5" is accepted too.
        may_be_negative: accept times before the video's start, which published lists and labeling tools have; in a
            list written for tada they are errors.

    Raises:
        DataError: it is not a time.
    """
    text = str(written).strip()
    hint = ""
    if _DECIMAL_COMMA.fullmatch(text) and not decimal_comma:
        hint = f"; decimal commas need semicolons or tabs between the cells: write {text.replace(',', '.')}"
    try:
        value = parse_seconds(text.replace(",", ".", 1) if decimal_comma else text)
    except ValueError:
        value = math.nan
    if math.isnan(value) or (value < 0 and not may_be_negative):
        raise DataError(f"{source}: {what} = {text!r} should be a time, in seconds or as HH:MM:SS.ss{hint}")
    return value


def segment(source: str, start: str, end: str, *, decimal_comma: bool = False) -> tuple[float, float]:
    """Parse the start and end of a segment to seconds; ``decimal_comma`` is as in ``seconds``.

    Raises:
        DataError: one is not a time, or the end is not after the start.
    """
    start_seconds = seconds(source, start, "start", decimal_comma=decimal_comma)
    end_seconds = seconds(source, end, "end", decimal_comma=decimal_comma)
    if end_seconds <= start_seconds:
        raise DataError(f"{source}: the segment ends at {end}, not after its start at {start}; correct the times")
    return start_seconds, end_seconds


def split_name(written: object) -> str:
    """Normalize the name of a split: "Validation" and "valid" become "val"; an unknown name is only lowercased."""
    text = str(written).strip().lower()
    return SPLIT_OF.get(text, text)


def split_cell(source: str, text: str) -> str | None:
    """Parse the cell of a split; None if it is empty.

    Raises:
        DataError: there is no such split.
    """
    if text and split_name(text) not in SPLITS:
        raise DataError(f"{source}: split = {text!r} should be train, val or test")
    return split_name(text) if text else None


def check_all_or_none_split(splits: Iterable[tuple[str, str | None]]) -> None:
    """Raise DataError if some rows have a split and some have none.

    Args:
        splits: the place and the split of each row.
    """
    rows = list(splits)
    unsplit = [source for source, split in rows if split is None]
    if 0 < len(unsplit) < len(rows):
        raise DataError(f"{unsplit[0]}: no split, while other rows have one; fill in all of them or none")
