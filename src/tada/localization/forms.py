"""What annotation files of untrimmed videos say: each published form, or a CSV, is read to the same rows.

These forms are read, told apart by what is in them:

    *.json   ActivityNet-1.3, HACS Segments, THUMOS14 (ActionFormer's and OpenTAD's form), EPIC-KITCHENS-100 (labels
             "verb,noun", or verb_label and noun_label), and mmaction2's (one entry for each video, no subsets)
    *.csv    EPIC-KITCHENS-100 (video_id, start_timestamp, stop_timestamp, verb_class, noun_class, by header name)
    *.csv    plain: video,start,end,label[,split]; or verb and noun in place of label. Times are seconds or HH:MM:SS.

Nothing here knows whether rows fit together: ``tada.localization.annotations`` checks them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tada.data.rows import csv_columns, csv_rows
from tada.data.table import VIDEO_EXTENSIONS
from tada.errors import DataError

NUM_EPIC_VERBS, NUM_EPIC_NOUNS = 97, 300

_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d*)?)")
_SPLIT = re.compile(r"(train|val|test)(ing|id|idation)?", re.IGNORECASE)


def parse_seconds(written: Any) -> float:
    """Seconds from a number, "12.5", "1:02.5" or "00:01:02.50".

    Raises:
        ValueError: it is none of these, or no finite number.
    """
    text = str(written).strip()
    clock = _CLOCK.fullmatch(text)
    if clock:
        hours, minutes, seconds = clock.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no time: write seconds or HH:MM:SS")
    return value


def split_name(written: Any) -> str:
    """The common name of a split: "Validation" and "valid" are "val"; an unknown name stays, in small letters."""
    text = str(written).strip()
    match = _SPLIT.fullmatch(text)
    return match[1].lower() if match else text.lower()


def video_name(written: str) -> str:
    """What names a video everywhere: without folders and without a video file's ending."""
    name = written.strip().replace("\\", "/").rsplit("/", 1)[-1]
    stem, dot, ending = name.rpartition(".")
    return stem if dot and f".{ending.lower()}" in VIDEO_EXTENSIONS else name


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A segment as it is written."""

    video: str
    start: Any
    end: Any
    labels: tuple[str, ...]
    source: str


@dataclass(kw_only=True, slots=True)
class Content:
    """What a file says, before it is checked."""

    label_names: tuple[str, ...] = ("action",)
    classes: tuple[tuple[str, ...], ...] | None = None
    """Where the data set fixes them; else those that occur."""
    rows: list[Row] = field(default_factory=list)
    splits: dict[str, str | None] = field(default_factory=dict)
    """Of each video, in the file's order."""
    durations: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    refuses: bool = True
    """Whether faulty segments are refused: their owner can mend a CSV. Published files are known to have some."""


def read_content(path: Path) -> Content:
    """Read a file of any of the forms.

    Raises:
        DataError: the file is not there or of no form that is known, or an entry is wrong; the message names it and
            the way out.
    """
    if not path.is_file():
        raise DataError(f"{str(path)!r} is no file; give a JSON or CSV file of segments")
    if path.suffix.lower() == ".json" or _begins(path).startswith(b"{"):
        return _read_json(path)
    return _read_csv(path)


def _begins(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from error


# -- JSON -------------------------------------------------------------------------------------------------------------


def _read_json(path: Path) -> Content:
    name = path.name
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} is not text in UTF-8: {error}; save it as JSON in UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is no JSON: {error}; save it again") from error
    database = document.get("database", document) if isinstance(document, dict) else None
    if not isinstance(database, dict) or not all(isinstance(about, dict) for about in database.values()):
        raise DataError(f"{name}: expected an object with an entry for each video, or one below 'database'")
    subsets = {str(about.get("subset")) for about in database.values()}
    # THUMOS14 has no training videos that are untrimmed: all train on its "Validation" part and test on "Test".
    is_thumos = subsets == {"Validation", "Test"} or "thumos" in str(document.get("version", "")).lower()
    content = Content(refuses=False)
    for video, about in database.items():
        source = f"{name} video {video!r}"
        key = video_name(video)
        if key in content.splits:
            raise DataError(f"{source}: the name stands there twice; keep one")
        split = None if about.get("subset") is None else split_name(about["subset"])
        if is_thumos and subsets == {"Validation", "Test"} and split == "val":
            split = "train"
        content.splits[key] = split
        duration = _duration(about, source)
        if duration is not None:
            content.durations[key] = duration
        for number, annotation in enumerate(about.get("annotations") or [], start=1):
            where = f"{source} annotation {number}"
            try:
                labels = _json_labels(annotation)
                start, end = annotation["segment"]
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{where}: {error!r}; it needs 'segment': [start, end] and 'label'") from error
            if labels == ("Ambiguous",):
                content.notes.append(f"{where}: ambiguous, as THUMOS14 marks it: left out")
            else:
                content.rows.append(Row(video=key, start=start, end=end, labels=labels, source=where))
    _name_label_sets(name, content)
    return content


def _duration(about: Mapping[str, Any], source: str) -> float | None:
    written = about.get("duration", about.get("duration_second"))
    if written is None:
        return None
    try:
        duration = parse_seconds(written)  # HACS writes it as a string
        if "feature_frame" in about and "duration_frame" in about:  # mmaction2: features end before the video does
            duration *= float(about["feature_frame"]) / float(about["duration_frame"])
    except (ValueError, ZeroDivisionError) as error:
        raise DataError(f"{source}: duration {error}") from error
    if not duration > 0:
        raise DataError(f"{source}: a duration of {duration} s; correct it or take the video away")
    return duration


def _json_labels(annotation: Mapping[str, Any]) -> tuple[str, ...]:
    if "verb_label" in annotation and "noun_label" in annotation:
        return tuple(_without_id(str(annotation[key])) for key in ("verb_label", "noun_label"))
    label = str(annotation["label"]).strip()
    if not label:
        raise ValueError("an empty label")
    return tuple(part.strip() for part in label.split(",")) if re.fullmatch(r"\d+\s*,\s*\d+", label) else (label,)


def _without_id(label: str) -> str:
    """OpenTAD writes class 3 as "id_003"."""
    match = re.fullmatch(r"id_0*(\d+)", label)
    return match[1] if match else label


def _name_label_sets(name: str, content: Content) -> None:
    counts = {len(row.labels) for row in content.rows}
    if counts == {2}:
        content.label_names = ("verb", "noun")
        if all(label.isdecimal() for row in content.rows for label in row.labels):
            _number_classes(content)
    elif len(counts) > 1:
        odd = next(row for row in content.rows if len(row.labels) == 2)
        raise DataError(f"{odd.source}: {odd.labels} names a verb and a noun, other labels of {name} a class; use one")


def _number_classes(content: Content) -> None:
    """Classes as EPIC-KITCHENS-100 numbers them, whether they occur or not."""
    content.label_names = ("verb", "noun")
    content.classes = tuple(tuple(str(i) for i in range(count)) for count in (NUM_EPIC_VERBS, NUM_EPIC_NOUNS))


# -- CSV --------------------------------------------------------------------------------------------------------------


_COLUMNS = {
    "video": ("video", "video_id", "path"),
    "start": ("start", "start_seconds", "start_timestamp"),
    "end": ("end", "end_seconds", "stop_timestamp"),
    "split": ("split", "subset"),
}
_LABELS = ("label", "verb", "noun", "verb_class", "noun_class")
_KNOWN = frozenset((*_LABELS, *(name for names in _COLUMNS.values() for name in names)))


def _read_csv(file: Path) -> Content:
    header = csv_columns(file, _KNOWN, example="video,start,end,label")
    columns = {column: next((known for known in names if known in header), None) for column, names in _COLUMNS.items()}
    is_epic = "verb_class" in header and "noun_class" in header
    names = ("verb_class", "noun_class") if is_epic else ("verb", "noun") if "verb" in header else ("label",)
    missing = [column for column in ("video", "start", "end") if columns[column] is None]
    missing += [column for column in names if column not in header]
    if missing:
        raise DataError(
            f"{file.name} row 1: no column {', '.join(missing)} among {', '.join(header)}; expected "
            "video,start,end,label[,split], or EPIC-KITCHENS-100's columns with verb_class and noun_class"
        )
    content = Content()
    if is_epic:
        _number_classes(content)
    elif names != ("label",):
        content.label_names = ("verb", "noun")
    others = [column for column in header if column not in columns.values() and column not in names]
    if others and not is_epic:
        content.notes.append(f"{file.name}: columns without a use here: {', '.join(others)}")
    for source, cells in csv_rows(file, _KNOWN):
        _csv_row(source, cells, columns, names, content)
    return content


def _csv_row(
    source: str, cells: Mapping[str, str], columns: Mapping[str, str | None], names: Sequence[str], content: Content
) -> None:
    def cell(what: str) -> str:
        column = columns[what]
        return "" if column is None else cells[column]

    video = video_name(cell("video"))
    labels = tuple(cells[name] for name in names)
    if not video or not all(labels):
        raise DataError(f"{source}: no {'label' if video else 'video'}; fill in the cell or take the row away")
    split = None
    if columns["split"] is not None:
        split = split_name(cell("split"))
        if split not in ("train", "val", "test"):
            raise DataError(f"{source}: the split {cell('split')!r} should be train, val or test")
    if content.splits.setdefault(video, split) != split:
        raise DataError(
            f"{source}: {video!r} is in the split {split!r} here and in {content.splits[video]!r} before; a video "
            "belongs to one split: else what is tested was trained on"
        )
    content.rows.append(Row(video=video, start=cell("start"), end=cell("end"), labels=labels, source=source))
