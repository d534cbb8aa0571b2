"""Readers of annotation files of untrimmed videos: published formats and CSV files are read to the same rows.

The format is recognized by the content:

    *.json   ActivityNet-1.3, HACS Segments, THUMOS14 (ActionFormer's and OpenTAD's form), EPIC-KITCHENS-100 (labels
             "verb,noun", or verb_label and noun_label), and mmaction2's (an entry for each video, no subsets)
    *.csv    EPIC-KITCHENS-100 (video_id, start_timestamp, stop_timestamp, verb_class, noun_class, by header name); the
             names of the classes and the videos' durations are in files beside it
    *.csv    HACS Clips (classname, youtube_id, subset, start, end, label: 1, or -1 if the class does not happen)
    *.txt    THUMOS14 and MultiTHUMOS as first published: one file for each class, "video start end" in each line
    *.csv    plain: video,start,end,label[,split]; or verb and noun instead of label. Times are seconds or HH:MM:SS. A
             row without times and label is a video without segments.
    folder   EPIC_100_train.csv and EPIC_100_validation.csv; or THUMOS14's CLASS_val.txt and CLASS_test.txt

``tada.localization.annotations.labeling_tools`` reads files of labeling tools (CVAT, ELAN, ...), and
``tada.localization.annotations.table`` checks whether the rows are consistent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tada.data.csv_rows import (
    check_known,
    csv_columns,
    csv_rows,
    has_decimal_commas,
    ignored_columns,
    required,
    text_lines,
)
from tada.data.published_formats import epic_classes
from tada.data.table import SPLITS
from tada.data.times_and_splits import check_all_or_none_split, parse_seconds, seconds, split_cell, split_name
from tada.errors import DataError, counted, why_unread
from tada.localization.annotations.video_names import video_name, video_path
from tada.system.documents import MAX_LIST_BYTES, open_regular, read_json

NUM_EPIC_VERBS, NUM_EPIC_NOUNS = 97, 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A segment as it is in the file."""

    video: str
    """``video_path`` of the video."""
    start: Any
    """Seconds, or a time as ``tada.data.times_and_splits.seconds`` reads it."""
    end: Any
    labels: tuple[str, ...]
    source: str


@dataclass(kw_only=True, slots=True)
class Content:
    """Content of an annotation file, unchecked."""

    label_names: tuple[str, ...] = ("action",)
    classes: tuple[tuple[str, ...], ...] | None = None
    """Classes of each head, if the data set fixes them; None: those that occur."""
    rows: list[Row] = field(default_factory=list)
    splits: dict[str, str | None] = field(default_factory=dict)
    """Split of each video, by ``video_path``, in the file's order."""
    durations: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    refuses: bool = True
    """Whether faulty segments are refused, as in a CSV, which its owner can correct. Published files are known to have
    some; there they are left out."""


def read_content(path: Path) -> Content:
    """Read a file or folder of any of the formats.

    Raises:
        DataError: the file is missing or of an unknown format, or an entry is wrong; the message names it.
    """
    if path.is_dir():
        epic = [path / f"EPIC_100_{part}.csv" for part in ("train", "validation")]
        epic = [file for file in epic if file.is_file()]
        thumos = [file for file in sorted(path.rglob("*.txt")) if _is_thumos(file)]
        if not epic and not thumos:
            raise DataError(
                f"{str(path)!r} holds no annotations that are read from a folder (EPIC_100_train.csv and "
                "EPIC_100_validation.csv, or THUMOS14's CLASS_val.txt and CLASS_test.txt); give the file of segments"
            )
        return _read_epic(epic) if epic else _read_thumos(thumos)
    if not path.is_file():
        raise DataError(f"{str(path)!r} is no file; give a JSON or CSV file of segments")
    if path.suffix.lower() == ".json" or _read_head(path).startswith(b"{"):
        return _read_json(path)
    if _is_thumos(path):
        return _read_thumos([path])
    header = csv_columns(path, _KNOWN, example="video,start,end,label")
    if "verb_class" in header and "noun_class" in header:
        return _read_epic([path])
    return _read_hacs_clips(path) if {"classname", "youtube_id"} <= set(header) else _read_plain(path, header)


def read_names(file: Path) -> frozenset[str]:
    """Read names of videos: a JSON list, or an object with an entry for each; or a text file with a name in each line.

    Raises:
        DataError: the file cannot be read, or has no names.
    """
    if _read_head(file)[:1] in (b"[", b"{"):
        document = load_json(file)
        if not isinstance(document, list | dict) or not document:
            raise DataError(f"{file.name} holds no names of videos; give a JSON list, or a name in each line")
        return frozenset(video_path(str(name)) for name in document)
    return frozenset(video_path(line) for _, line in text_lines(file))


def _read_head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {why_unread(error)}") from error


# -- JSON -------------------------------------------------------------------------------------------------------------


def load_json(path: Path) -> Any:
    try:
        return read_json(path, MAX_LIST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} is not text in UTF-8: {error}; save it as JSON in UTF-8") from error
    except ValueError as error:
        raise DataError(f"{path.name} is no JSON: {error}; save it again") from error


def _read_json(path: Path) -> Content:
    name, document = path.name, load_json(path)
    database = document.get("database", document) if isinstance(document, dict) else None
    if not isinstance(database, dict) or not all(isinstance(about, dict) for about in database.values()):
        raise DataError(f"{name}: expected an object with an entry for each video, or one below 'database'")
    subsets = {str(about.get("subset")) for about in database.values()}
    # THUMOS14's training videos are trimmed: everybody trains on its "Validation" part and tests on "Test".
    is_thumos = subsets == {"Validation", "Test"} or "thumos" in str(document.get("version", "")).lower()
    content = Content(refuses=False)
    for video, about in database.items():
        source = f"{name} video {video!r}"
        key = video_path(video)
        if key in content.splits:
            raise DataError(f"{source}: the name stands there twice; keep one")
        split = None if about.get("subset") is None else split_name(about["subset"])
        if split not in (None, *SPLITS):
            raise DataError(
                f"{source}: the subset {about['subset']!r} should be training, validation or testing; rename it, or "
                "take its videos away"
            )
        if is_thumos and subsets == {"Validation", "Test"} and split == "val":
            split = "train"
        content.splits[key] = split
        duration = _parse_duration(about, source)
        if duration is not None:
            content.durations[key] = duration
        annotations = about.get("annotations") or []
        if not isinstance(annotations, list):
            raise DataError(f"{source}: its annotations are no list; it needs one, of 'segment' and 'label'")
        for number, annotation in enumerate(annotations, start=1):
            where = f"{source} annotation {number}"
            try:
                labels = _parse_json_labels(annotation)
                start, end = annotation["segment"]
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{where}: {error!r}; it needs 'segment': [start, end] and 'label'") from error
            if labels == ("Ambiguous",):
                content.notes.append(f"{where}: ambiguous, as THUMOS14 marks it: left out")
            else:
                content.rows.append(Row(video=key, start=start, end=end, labels=labels, source=where))
    _name_heads(name, content)
    return content


def _parse_duration(about: Mapping[str, Any], source: str) -> float | None:
    written = about.get("duration", about.get("duration_second"))
    if written is None:
        return None
    try:
        duration = parse_seconds(written)  # HACS writes it as a string
        if "feature_frame" in about and "duration_frame" in about:  # mmaction2: the features end before the video
            duration *= float(about["feature_frame"]) / float(about["duration_frame"])
    except (ValueError, ZeroDivisionError) as error:
        raise DataError(f"{source}: duration {error}") from error
    if not duration > 0:
        raise DataError(f"{source}: a duration of {duration} s; correct it or take the video away")
    return duration


def _parse_json_labels(annotation: Mapping[str, Any]) -> tuple[str, ...]:
    if "verb_label" in annotation and "noun_label" in annotation:
        return tuple(_drop_id_prefix(str(annotation[key])) for key in ("verb_label", "noun_label"))
    label = str(annotation["label"]).strip()
    if not label:
        raise ValueError("an empty label")
    return tuple(part.strip() for part in label.split(",")) if re.fullmatch(r"\d+\s*,\s*\d+", label) else (label,)


def _drop_id_prefix(label: str) -> str:
    """Convert OpenTAD's class "id_003" to "3"."""
    match = re.fullmatch(r"id_0*(\d+)", label)
    return match[1] if match else label


def _name_heads(name: str, content: Content) -> None:
    counts = {len(row.labels) for row in content.rows}
    if counts == {2}:
        content.label_names = ("verb", "noun")
        if all(label.isdecimal() for row in content.rows for label in row.labels):
            _number_classes(content)
    elif len(counts) > 1:
        odd = next(row for row in content.rows if len(row.labels) == 2)
        raise DataError(f"{odd.source}: {odd.labels} names a verb and a noun, other labels of {name} a class; use one")


def _number_classes(content: Content) -> None:
    """Set the classes to EPIC-KITCHENS-100's numbers, including those that do not occur."""
    content.label_names = ("verb", "noun")
    content.classes = tuple(tuple(str(i) for i in range(count)) for count in (NUM_EPIC_VERBS, NUM_EPIC_NOUNS))


# -- CSV --------------------------------------------------------------------------------------------------------------


_COLUMNS = {
    "video": ("video", "video_id", "path"),
    "start": ("start", "start_seconds", "start_timestamp"),
    "end": ("end", "end_seconds", "stop_timestamp"),
    "split": ("split", "subset"),
}
_EPIC_COLUMNS = ("video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class")
_HACS_COLUMNS = ("classname", "youtube_id", "subset", "start", "end", "label")
_KNOWN = frozenset(
    (
        "label",
        "verb",
        "noun",
        "duration",
        *_EPIC_COLUMNS,
        *_HACS_COLUMNS,
        *(n for names in _COLUMNS.values() for n in names),
    )
)


def _read_plain(file: Path, header: Sequence[str]) -> Content:
    columns = {what: next((known for known in names if known in header), "") for what, names in _COLUMNS.items()}
    labels = ("verb", "noun") if "verb" in header else ("label",)
    missing = [what for what in ("video", "start", "end") if not columns[what]]
    missing += [column for column in labels if column not in header]
    if missing:
        raise DataError(
            f"{file.name} row 1: no column {', '.join(missing)} among {', '.join(header)}; expected "
            "video,start,end,label[,split], or EPIC-KITCHENS-100's columns with verb_class and noun_class"
        )
    content = Content() if len(labels) == 1 else Content(label_names=("verb", "noun"))
    meant = {*labels, *(name for names in _COLUMNS.values() for name in names)}
    unread = [column for column in header if column not in columns.values() and column not in labels]
    content.notes += [f"{column}: not read" for column in ignored_columns(file, unread, meant - set(header))]
    decimal_comma = has_decimal_commas(file, _KNOWN)
    rows = list(csv_rows(file, _KNOWN))
    if columns["split"]:
        check_all_or_none_split((source, split_cell(source, cells[columns["split"]])) for source, cells in rows)
    for source, cells in rows:
        _add_row(content, source, cells, columns, labels)
    content.rows = [with_seconds(row, decimal_comma=decimal_comma) for row in content.rows]
    return content


def with_seconds(row: Row, *, decimal_comma: bool, may_be_negative: bool = False) -> Row:
    """Convert the times of a row to seconds; arguments and errors as for ``tada.data.times_and_splits.seconds``."""
    start, end = (
        seconds(row.source, written, what, decimal_comma=decimal_comma, may_be_negative=may_be_negative)
        for written, what in ((row.start, "start"), (row.end, "end"))
    )
    return replace(row, start=start, end=end)


def _add_row(
    content: Content,
    source: str,
    cells: Mapping[str, str],
    columns: Mapping[str, str],
    labels: Sequence[str],
) -> None:
    """Add a row; ``columns`` names the columns of video, start, end and split ("" for none).

    A row without times and label adds a video without segments.
    """
    video = video_path(cells[columns["video"]])
    names = tuple(cells[column] for column in labels)
    start, end = (cells[columns[what]] for what in ("start", "end"))
    is_background = not (start or end or any(names))
    if not video or not (all(names) or is_background):
        raise DataError(
            f"{source}: no {'label' if video else 'video'}; fill in the cell, or take the row away (a video in which "
            "nothing happens has a row without start, end and label)"
        )
    split = split_cell(source, cells[columns["split"]]) if columns["split"] else None
    _set_split(content, video, split, source)
    if not is_background:
        content.rows.append(Row(video=video, start=start, end=end, labels=names, source=source))


def _set_split(content: Content, video: str, split: str | None, source: str) -> None:
    if content.splits.setdefault(video, split) != split:
        raise DataError(
            f"{source}: {video!r} is in the split {split!r} here and in {content.splits[video]!r} before; a video "
            "belongs to one split: else what is tested was trained on"
        )


def _read_hacs_clips(file: Path) -> Content:
    """Clips of two seconds; many are negative examples (label -1), which are left out."""
    check_known(csv_columns(file, _KNOWN), _HACS_COLUMNS, file)
    columns = {"video": "youtube_id", "start": "start", "end": "end", "split": "subset"}
    content = Content(refuses=False)
    left_out: Counter[str] = Counter()
    for source, cells in csv_rows(file, _KNOWN):
        if not cells["classname"] or not cells["label"]:
            left_out["without a class, which is kept secret"] += 1
        elif cells["label"] == "-1":
            left_out["in which the class does not happen (label -1)"] += 1
        elif cells["label"] in ("1", "+1"):
            _add_row(content, source, cells, columns, ("classname",))
        else:
            raise DataError(f"{source}: label = {cells['label']!r} should be 1 (it happens) or -1 (it does not)")
    content.notes += [f"{file.name}: {counted(count, 'clip')} {what}: left out" for what, count in left_out.items()]
    return content


# -- EPIC-KITCHENS-100 ------------------------------------------------------------------------------------------------


def _read_epic(files: Sequence[Path]) -> Content:
    """EPIC_100_train.csv, EPIC_100_validation.csv; columns are found by the header's names.

    Segments are read from timestamps, since frame numbers are those of another extraction. Of several files, each is
    the split that its name says. Classes have names if EPIC_100_verb_classes.csv and EPIC_100_noun_classes.csv are
    there, else numbers; durations are from EPIC_100_video_info.csv, or epic_videos_len.txt of the released code.
    """
    folder = files[0].parent
    content = Content(refuses=False)
    _number_classes(content)
    assert content.classes is not None
    named = [epic_classes(folder, what) for what in content.label_names]
    verbs, nouns = (
        dict(enumerate(own if all(named) and own else numbers))
        for own, numbers in zip(named, content.classes, strict=True)
    )
    content.classes = tuple(verbs.values()), tuple(nouns.values())
    for file in files:
        check_known(csv_columns(file, _KNOWN), _EPIC_COLUMNS, file)
        split = None if len(files) == 1 else "train" if file.stem.endswith("_train") else "val"
        for source, cells in csv_rows(file, _KNOWN):
            video = video_path(required(source, cells, "video_id"))
            numbers = [required(source, cells, column) for column in ("verb_class", "noun_class")]
            # An unknown class stays as written; the table refuses it.
            labels = tuple(
                names.get(int(number), number) if number.isdecimal() else number
                for names, number in zip((verbs, nouns), numbers, strict=True)
            )
            _set_split(content, video, split, source)
            start, end = cells["start_timestamp"], cells["stop_timestamp"]
            content.rows.append(Row(video=video, start=start, end=end, labels=labels, source=source))
    content.durations = _read_epic_durations(folder)
    return content


def _read_epic_durations(folder: Path) -> dict[str, float]:
    durations = {}
    table, text = folder / "EPIC_100_video_info.csv", folder / "epic_videos_len.txt"
    if table.is_file():
        check_known(csv_columns(table, _KNOWN), ("video_id", "duration"), table)
        for source, cells in csv_rows(table, _KNOWN):
            durations[video_path(required(source, cells, "video_id"))] = seconds(source, cells["duration"], "duration")
    elif text.is_file():
        for source, line in text_lines(text):  # P01_01.MP4,1652.15
            name, _, duration = line.partition(",")
            durations[video_path(name)] = seconds(source, duration.strip(), "duration")
    return durations


# -- THUMOS14 ---------------------------------------------------------------------------------------------------------

_THUMOS_VIDEO = re.compile(r"video_(validation|test)_\d+")


def _is_thumos(file: Path) -> bool:
    if file.suffix.lower() != ".txt":
        return False
    if file.stem.endswith(("_val", "_test")):
        return True
    return _THUMOS_VIDEO.match(_read_head(file).decode(errors="replace")) is not None


def _read_thumos(files: Sequence[Path]) -> Content:
    """BaseballPitch_val.txt, BaseballPitch_test.txt, ...: ``video_validation_0000051  67.5 71.9`` in each line.

    The "validation" part is the training split, since the training videos are trimmed. MultiTHUMOS has both parts in
    one file. The files named Ambiguous are left out.
    """
    content = Content(refuses=False)
    for file in files:
        label = re.sub(r"_(val|test)$", "", file.stem)
        num_ambiguous = 0
        for source, line in text_lines(file):
            cells = line.split()
            match = _THUMOS_VIDEO.fullmatch(video_name(cells[0]))
            if len(cells) != 3 or match is None:
                raise DataError(f"{source}: {line!r} should be a video, a start and an end: video_test_0000004 0.2 1.1")
            if label == "Ambiguous":
                num_ambiguous += 1
                continue
            content.splits[match[0]] = "train" if match[1] == "validation" else "test"
            content.rows.append(Row(video=match[0], start=cells[1], end=cells[2], labels=(label,), source=source))
        if num_ambiguous:
            content.notes.append(f"{file.name}: {counted(num_ambiguous, 'segment')} marked as ambiguous: left out")
    return content
