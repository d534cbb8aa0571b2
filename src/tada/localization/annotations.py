"""What happens when in untrimmed videos: the published annotation files, or a CSV, become one checked table.

These forms are read, told apart by what is in them:

    *.json   ActivityNet-1.3, HACS Segments, THUMOS14 (ActionFormer's and OpenTAD's form), EPIC-KITCHENS-100 (labels
             "verb,noun", or verb_label and noun_label), and mmaction2's (one entry for each video, no subsets)
    *.csv    EPIC-KITCHENS-100 (video_id, start_timestamp, stop_timestamp, verb_class, noun_class, by header name)
    *.csv    plain: video,start,end,label[,split]; or verb and noun in place of label. Times are seconds or HH:MM:SS.

A mistake in a CSV is refused with its row: its owner can mend it. Published files are known to have empty, reversed
and far-out segments; those are left out and noted. What is neither a time nor a label is refused everywhere.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tada.data.table import VIDEO_EXTENSIONS
from tada.errors import DataError, OptionError

GRACE_SECONDS = 0.5
"""A segment may reach this far beyond its video: annotators and containers disagree about ends. It is cut there."""
DUPLICATE_SECONDS = 1e-3
"""Two segments of a class that differ by no more at both ends are one, written twice."""
NUM_EPIC_VERBS, NUM_EPIC_NOUNS = 97, 300


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSet:
    """Classes of which each segment has one."""

    name: str
    """"action"; or "verb" and "noun"."""
    classes: tuple[str, ...]
    """Their names; a segment's label is an index into them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Something that happens, from start to end."""

    start_seconds: float
    end_seconds: float
    labels: tuple[int, ...]
    """The class, an index into each of the table's label sets."""
    source: str
    """Where it was read: "segments.csv row 12". Error messages show it."""

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.end_seconds - self.start_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class UntrimmedVideo:
    """A video and all that is annotated in it."""

    name: str
    """Without folder and video ending."""
    duration_seconds: float | None
    """None where the annotations do not say."""
    split: str | None
    """"train", "val" or "test"; None where the annotations have no splits."""
    segments: tuple[Segment, ...]
    """By start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentTable:
    """Untrimmed videos, what happens in them, and the classes of it."""

    label_sets: tuple[LabelSet, ...]
    videos: tuple[UntrimmedVideo, ...]
    """By name."""
    name: str
    """The file it was read from."""
    refuses: bool
    """Whether segments outside of their video are refused (a CSV), or left out and noted (a published file)."""
    notes: tuple[str, ...] = ()
    """What was left out or cut, and why. Worth showing."""

    def __len__(self) -> int:
        """How many videos there are."""
        return len(self.videos)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold videos, of train, val and test; empty where there are none."""
        present = {video.split for video in self.videos}
        return tuple(split for split in ("train", "val", "test") if split in present)

    @property
    def num_segments(self) -> int:
        """Segments of all videos."""
        return sum(len(video.segments) for video in self.videos)

    def of_split(self, split: str) -> SegmentTable:
        """The videos of one split.

        Raises:
            DataError: the split holds no segments, and so nothing to learn from or to look for.
        """
        chosen = replace(self, videos=tuple(video for video in self.videos if video.split == split))
        if not chosen.num_segments:
            have = ", ".join(f"{name} ({self._count(name)})" for name in self.splits) or "none"
            raise DataError(
                f"{self.name}: no segments in the split {split!r}; splits with their segments are: {have}. Name the "
                "splits train, val and test (training, validation and testing are understood)"
            )
        return chosen

    def without(self, reasons: Mapping[str, str], *, allowed: int, say: Callable[[str], None]) -> SegmentTable:
        """The table without some videos, where they are not too many; each reason is said.

        Args:
            reasons: by the videos' names.

        Raises:
            DataError: they are more than ``allowed``.
        """
        if len(reasons) > allowed:
            first = next(iter(reasons.values()))
            raise DataError(f"{first} ({len(reasons)} such videos, {allowed} allowed; --skip-unreadable N allows N)")
        for reason in reasons.values():
            say(f"left out: {reason}")
        return replace(self, videos=tuple(video for video in self.videos if video.name not in reasons))

    def _count(self, split: str) -> int:
        return sum(len(video.segments) for video in self.videos if video.split == split)

    def counts(self) -> list[dict[str, int]]:
        """Segments of each class, for each label set."""
        found = []
        for place, label_set in enumerate(self.label_sets):
            count = Counter(segment.labels[place] for video in self.videos for segment in video.segments)
            found.append({name: count[i] for i, name in enumerate(label_set.classes)})
        return found

    def label_of(self, segment: Segment) -> str:
        """The segment's class; of several label sets the names, joined by a comma, as EPIC writes actions."""
        return ",".join(s.classes[i] for s, i in zip(self.label_sets, segment.labels, strict=True))

    def ground_truth(self) -> dict[str, Any]:
        """The table in ActivityNet's form, as ``tada.localization.metrics`` takes it; without splits all is "val"."""
        database = {}
        for video in self.videos:
            annotations = [
                {"segment": [segment.start_seconds, segment.end_seconds], "label": self.label_of(segment)}
                for segment in video.segments
            ]
            database[video.name] = {
                "duration": video.duration_seconds,
                "subset": video.split or "val",
                "annotations": annotations,
            }
        return {"database": database}

    def fingerprint(self) -> str:
        """SHA-256 over all videos, splits and segments: equal only for the same annotations."""
        digest = hashlib.sha256()
        for video in self.videos:
            digest.update(f"{video.name}\0{video.split}\0".encode("utf-8", "surrogateescape"))
            for segment in video.segments:
                text = f"{segment.start_seconds:.4f}\0{segment.end_seconds:.4f}\0{self.label_of(segment)}\0"
                digest.update(text.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


# -- small readers ----------------------------------------------------------------------------------------------------

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


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A segment as it is written."""

    video: str
    start: Any
    end: Any
    labels: tuple[str, ...]
    source: str


@dataclass(kw_only=True, slots=True)
class _Content:
    """What a file says, before it is checked."""

    label_names: tuple[str, ...] = ("action",)
    classes: tuple[tuple[str, ...], ...] | None = None
    """Where the data set fixes them; else those that occur."""
    rows: list[_Row] = field(default_factory=list)
    splits: dict[str, str | None] = field(default_factory=dict)
    """Of each video, in the file's order."""
    durations: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_segments(path: Path) -> SegmentTable:
    """Read an annotation file, and check all that can be checked without the videos.

    Raises:
        DataError: the file is not there or of no form that is known, or an entry is wrong; the message names it and
            the way out.
    """
    if not path.is_file():
        raise DataError(f"{str(path)!r} is no file; give a JSON or CSV file of segments")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} is not text in UTF-8: {error}; save it as CSV UTF-8, or as JSON") from error
    is_json = path.suffix.lower() == ".json" or text.lstrip().startswith("{")
    content = _read_json(path.name, text) if is_json else _read_csv(path.name, text)
    return _table(path.name, content, refuses=not is_json)


def _read_json(name: str, text: str) -> _Content:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is no JSON: {error}; save it again") from error
    database = document.get("database", document) if isinstance(document, dict) else None
    if not isinstance(database, dict) or not all(isinstance(about, dict) for about in database.values()):
        raise DataError(f"{name}: expected an object with an entry for each video, or one below 'database'")
    subsets = {str(about.get("subset")) for about in database.values()}
    # THUMOS14 has no training videos that are untrimmed: all train on its "Validation" part and test on "Test".
    is_thumos = subsets == {"Validation", "Test"} or "thumos" in str(document.get("version", "")).lower()
    content = _Content()
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
                content.rows.append(_Row(video=key, start=start, end=end, labels=labels, source=where))
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


def _name_label_sets(name: str, content: _Content) -> None:
    counts = {len(row.labels) for row in content.rows}
    if counts == {2}:
        content.label_names = ("verb", "noun")
        if all(label.isdecimal() for row in content.rows for label in row.labels):
            _number_classes(content)
    elif len(counts) > 1:
        odd = next(row for row in content.rows if len(row.labels) == 2)
        raise DataError(f"{odd.source}: {odd.labels} names a verb and a noun, other labels of {name} a class; use one")


def _number_classes(content: _Content) -> None:
    """Classes as EPIC-KITCHENS-100 numbers them, whether they occur or not."""
    content.label_names = ("verb", "noun")
    content.classes = tuple(tuple(str(i) for i in range(count)) for count in (NUM_EPIC_VERBS, NUM_EPIC_NOUNS))


_COLUMNS = {
    "video": ("video", "video_id", "path"),
    "start": ("start", "start_seconds", "start_timestamp"),
    "end": ("end", "end_seconds", "stop_timestamp"),
    "split": ("split", "subset"),
}


def _read_csv(name: str, text: str) -> _Content:
    lines = text.splitlines()
    if not lines:
        raise DataError(f"{name} is empty; its first row should name the columns: video,start,end,label")
    reader = csv.reader(lines, delimiter=max(",;\t", key=lines[0].count), strict=True)
    content = _Content()
    try:
        header = [cell.strip().lower() for cell in next(reader)]
        places = {
            column: next((header.index(known) for known in names if known in header), None)
            for column, names in _COLUMNS.items()
        }
        is_epic = "verb_class" in header and "noun_class" in header
        names = ("verb_class", "noun_class") if is_epic else ("verb", "noun") if "verb" in header else ("label",)
        missing = [column for column in ("video", "start", "end") if places[column] is None]
        missing += [column for column in names if column not in header]
        if missing:
            raise DataError(
                f"{name} row 1: no column {', '.join(missing)} among {', '.join(header)}; expected "
                "video,start,end,label[,split], or EPIC-KITCHENS-100's columns with verb_class and noun_class"
            )
        if is_epic:
            _number_classes(content)
        elif names != ("label",):
            content.label_names = ("verb", "noun")
        label_places = [header.index(column) for column in names]
        used = {place for place in places.values() if place is not None} | set(label_places)
        others = [column for i, column in enumerate(header) if i not in used]
        if others and not is_epic:
            content.notes.append(f"{name}: columns without a use here: {', '.join(others)}")
        for cells in reader:
            if any(cell.strip() for cell in cells):
                _csv_row(f"{name} row {reader.line_num}", cells, len(header), places, label_places, content)
    except csv.Error as error:
        raise DataError(f"{name} row {reader.line_num}: {error}; save it as CSV, with cells quoted whole") from error
    return content


def _csv_row(
    source: str,
    cells: list[str],
    num_columns: int,
    places: Mapping[str, int | None],
    label_places: Sequence[int],
    content: _Content,
) -> None:
    if len(cells) != num_columns:
        raise DataError(
            f"{source}: {len(cells)} cells, while the header names {num_columns} columns; quote cells that hold commas"
        )

    def cell(column: str) -> str:
        place = places[column]
        return "" if place is None else cells[place].strip()

    video = video_name(cell("video"))
    labels = tuple(cells[place].strip() for place in label_places)
    if not video or not all(labels):
        raise DataError(f"{source}: no {'label' if video else 'video'}; fill in the cell or take the row away")
    split = None
    if places["split"] is not None:
        split = split_name(cell("split"))
        if split not in ("train", "val", "test"):
            raise DataError(f"{source}: the split {cell('split')!r} should be train, val or test")
    if content.splits.setdefault(video, split) != split:
        raise DataError(
            f"{source}: {video!r} is in the split {split!r} here and in {content.splits[video]!r} before; a video "
            "belongs to one split: else what is tested was trained on"
        )
    content.rows.append(_Row(video=video, start=cell("start"), end=cell("end"), labels=labels, source=source))


# -- checking ---------------------------------------------------------------------------------------------------------


def _table(name: str, content: _Content, *, refuses: bool) -> SegmentTable:
    if not content.rows:
        raise DataError(f"{name} has no segments: nothing to learn from; see whether it is the right file")
    label_sets = []
    for place, label_name in enumerate(content.label_names):
        occur = {row.labels[place] for row in content.rows}
        classes = tuple(sorted(occur)) if content.classes is None else content.classes[place]
        unknown = next((row for row in content.rows if row.labels[place] not in classes), None)
        if unknown is not None:
            raise DataError(
                f"{unknown.source}: {label_name} {unknown.labels[place]!r} is no class of EPIC-KITCHENS-100, which "
                f"numbers them from 0 to {len(classes) - 1}"
            )
        label_sets.append(LabelSet(name=label_name, classes=classes))
    numbers = [{label: i for i, label in enumerate(s.classes)} for s in label_sets]
    found: dict[str, list[Segment]] = {video: [] for video in content.splits}
    notes = list(content.notes)
    for row in content.rows:
        try:
            start, end = parse_seconds(row.start), parse_seconds(row.end)
        except ValueError as error:
            raise DataError(f"{row.source}: {error}") from error
        labels = tuple(number[label] for number, label in zip(numbers, row.labels, strict=True))
        segment = Segment(start_seconds=start, end_seconds=end, labels=labels, source=row.source)
        if end <= start:
            fault = (
                "starts and ends at the same time" if end == start else f"ends ({end} s) before it starts ({start} s)"
            )
            _refuse_or_note(segment, fault, "exchange or correct its times", refuses and end < start, notes)
        elif any(_is_duplicate(segment, other) for other in found[row.video]):
            notes.append(f"{row.source}: the same segment and label as one before: left out")
        else:
            found[row.video].append(segment)
    videos = [
        UntrimmedVideo(
            name=video,
            duration_seconds=content.durations.get(video),
            split=split,
            segments=tuple(sorted(found[video], key=lambda s: (s.start_seconds, s.end_seconds))),
        )
        for video, split in sorted(content.splits.items())
    ]
    table = SegmentTable(
        label_sets=tuple(label_sets), videos=tuple(videos), name=name, refuses=refuses, notes=tuple(notes)
    )
    return with_durations(table, content.durations)


def _is_duplicate(one: Segment, other: Segment) -> bool:
    gaps = abs(one.start_seconds - other.start_seconds), abs(one.end_seconds - other.end_seconds)
    return one.labels == other.labels and max(gaps) <= DUPLICATE_SECONDS


def _refuse_or_note(segment: Segment, fault: str, way_out: str, refuses: bool, notes: list[str]) -> None:
    if refuses:
        raise DataError(f"{segment.source}: the segment {fault}; {way_out}, or take it away")
    notes.append(f"{segment.source}: the segment {fault}: left out")


def with_durations(table: SegmentTable, durations: Mapping[str, float]) -> SegmentTable:
    """Fill in how long videos are, and cut or refuse segments that reach beyond them.

    A segment that overhangs by ``GRACE_SECONDS`` or less is cut without a word, by more with a note. One that lies
    outside altogether is refused, or left out with a note where the table is a published one.

    Raises:
        DataError: a segment outside of its video, in a table that refuses them.
    """
    notes = list(table.notes)
    videos = []
    for video in table.videos:
        duration = durations.get(video.name)
        if duration is None:
            videos.append(video)
            continue
        if video.duration_seconds and abs(video.duration_seconds - duration) > max(2.0, 0.05 * duration):
            notes.append(
                f"{table.name} video {video.name!r}: {video.duration_seconds:.1f} s by the annotations, {duration:.1f} "
                "s by the video: the latter counts"
            )
        segments = []
        for segment in video.segments:
            start, end = max(segment.start_seconds, 0.0), min(segment.end_seconds, duration)
            if end <= start:
                fault = (
                    f"from {segment.start_seconds:g} to {segment.end_seconds:g} s lies outside of the video, which "
                    f"lasts {duration:.2f} s"
                )
                _refuse_or_note(
                    segment, fault, "see whether its times are seconds, and of this video", table.refuses, notes
                )
                continue
            overhang = max(start - segment.start_seconds, segment.end_seconds - end)
            if overhang > GRACE_SECONDS:
                notes.append(f"{segment.source}: reaches {overhang:.2f} s beyond the video: cut there")
            segments.append(replace(segment, start_seconds=start, end_seconds=end))
        videos.append(replace(video, duration_seconds=duration, segments=tuple(segments)))
    return replace(table, videos=tuple(videos), notes=tuple(notes))


def with_splits(table: SegmentTable, *, val_fraction: float, seed: int) -> SegmentTable:
    """The table's own splits where it has them; else part of the videos is held out as "val".

    Which ones, the seed and their names alone decide.

    Raises:
        OptionError: ``val_fraction`` outside of [0, 1).
        DataError: some videos have a split and some have none; fewer than two videos to part.
    """
    unsplit = [video.name for video in table.videos if video.split is None]
    if table.splits:
        if unsplit:
            raise DataError(f"{table.name}: video {unsplit[0]!r} has no split, while others have one; give it one")
        return table
    if not 0 <= val_fraction < 1:
        raise OptionError(f"{val_fraction = } should be in [0, 1)")
    if val_fraction and len(table.videos) < 2:
        raise DataError(f"{table.name}: one video cannot be parted into training and validation; add another")

    def lot(video: UntrimmedVideo) -> bytes:
        return hashlib.sha256(f"{seed}\0{video.name}".encode("utf-8", "surrogateescape")).digest()

    count = min(max(round(val_fraction * len(table.videos)), 1), len(table.videos) - 1) if val_fraction else 0
    held = {video.name for video in sorted((v for v in table.videos if v.segments), key=lot)[:count]}
    videos = tuple(replace(video, split="val" if video.name in held else "train") for video in table.videos)
    return replace(table, videos=videos)


def check_for_training(table: SegmentTable, say: Callable[[str], None]) -> None:
    """Refuse what training would fail or mislead on; say what is worth knowing.

    Raises:
        DataError: no segments to train on, or in the part that is tested.
    """
    training = table.of_split("train")
    tested = next((split for split in ("val", "test") if split in table.splits), None)
    if tested is not None:
        for label_set, trained, counted in zip(
            table.label_sets, training.counts(), table.of_split(tested).counts(), strict=True
        ):
            only = [name for name, count in counted.items() if count and not trained[name]]
            if only:
                say(f"{label_set.name} classes in {tested} that training never sees: {_listed(only)}")
    if table.notes:
        say(f"{table.name}: {len(table.notes)} notes, the first: {table.notes[0]}")


def _listed(names: Iterable[str], at_most: int = 5) -> str:
    shown = list(names)
    return ", ".join(shown[:at_most]) + (f" and {len(shown) - at_most} more" if len(shown) > at_most else "")
