"""Table of annotated segments in untrimmed videos, checked."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tada.data.csv_rows import class_names
from tada.data.table import SPLITS, Head, composed
from tada.data.times_and_splits import seconds
from tada.errors import DataError, OptionError, counted, listed
from tada.localization.annotations.formats import Content, read_content
from tada.localization.annotations.labeling_tools import read_tool_files
from tada.localization.annotations.video_names import KnownVideos, short_names, video_path

GRACE_SECONDS = 0.5
"""Largest overhang of a segment over its video that is cut without a note: annotations and containers differ about
ends."""
VAL_FRACTION = 0.2
"""Fraction of the videos that is held out if the annotations have no splits."""
DUPLICATE_SECONDS = 1e-3
"""Segments of one class whose starts and ends differ by no more than this are duplicates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """An annotated segment."""

    start_seconds: float
    end_seconds: float
    labels: tuple[int, ...]
    """Class index in each of the table's heads."""
    source: str
    """Where it was read, for messages: "segments.csv row 12"."""

    @property
    def seconds(self) -> float:
        """Length of the segment."""
        return self.end_seconds - self.start_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class UntrimmedVideo:
    """A video and its annotated segments."""

    name: str
    """Name without folder and file extension; with its folder if another video has the same name."""
    duration_seconds: float | None
    """None if the annotations do not give it."""
    split: str | None
    """"train", "val" or "test"; None if the annotations have no splits."""
    segments: tuple[Segment, ...]
    """Sorted by start."""
    path: str = ""
    """``video_path`` of the video in the annotations; its folders distinguish videos of the same name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentTable:
    """Untrimmed videos, their annotated segments, and the classes."""

    heads: tuple[Head, ...]
    videos: tuple[UntrimmedVideo, ...]
    """Sorted by name."""
    name: str
    """The file or folder it was read from."""
    refuses: bool
    """Whether segments outside their video are refused (a CSV), or left out with a note (a published file)."""
    notes: tuple[str, ...] = ()
    """Lines for the user: what was left out or cut, and why."""

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.videos)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have videos, of train, val and test; empty if there are none."""
        present = {video.split for video in self.videos}
        return tuple(split for split in SPLITS if split in present)

    @property
    def num_segments(self) -> int:
        """Number of segments of all videos."""
        return sum(len(video.segments) for video in self.videos)

    def of_split(self, split: str) -> SegmentTable:
        """The videos of one split.

        Raises:
            DataError: the split has no segments.
        """
        chosen = replace(self, videos=tuple(video for video in self.videos if video.split == split))
        if not chosen.num_segments:
            have = ", ".join(f"{name} ({self.segments_of(name)})" for name in self.splits) or "none"
            raise DataError(
                f"{self.name}: no segments in the split {split!r}; splits with their segments are: {have}. Name the "
                "splits train, val and test (training, validation and testing are understood)"
            )
        return chosen

    def leaving_out(self, listed_names: Collection[str]) -> SegmentTable:
        """The table without the videos of a list; ID and v_ID are the same name.

        Raises:
            DataError: a name of the list is ambiguous.
        """
        known = KnownVideos({video.name: video.path for video in self.videos})
        left_out = {known.find(name, "the list of videos that do not count") for name in listed_names}
        return replace(self, videos=tuple(video for video in self.videos if video.name not in left_out))

    def without(self, reasons: Mapping[str, str], *, allowed: int, say: Callable[[str], None]) -> SegmentTable:
        """The table without some videos; each reason is passed to ``say``.

        Args:
            reasons: why each video is left out, by name.

        Raises:
            DataError: there are more than ``allowed``.
        """
        if len(reasons) > allowed:
            first = next(iter(reasons.values()))
            raise DataError(f"{first} ({len(reasons)} such videos, {allowed} allowed; --skip-unreadable N allows N)")
        for reason in reasons.values():
            say(f"left out: {reason}")
        return replace(self, videos=tuple(video for video in self.videos if video.name not in reasons))

    def labels_of(self, split: str) -> set[str]:
        """The classes that occur in a split."""
        return {self.label_of(segment) for video in self.videos if video.split == split for segment in video.segments}

    def segments_of(self, split: str) -> int:
        """Number of segments in a split; test splits are often published without any."""
        return sum(len(video.segments) for video in self.videos if video.split == split)

    def counts(self) -> list[dict[str, int]]:
        """Number of segments of each class, for each head."""
        found = []
        for place, head in enumerate(self.heads):
            count = Counter(segment.labels[place] for video in self.videos for segment in video.segments)
            found.append({name: count[i] for i, name in enumerate(head.labels)})
        return found

    def label_of(self, segment: Segment) -> str:
        """Class name of a segment; with several heads, the names joined by a comma, as EPIC writes actions."""
        return ",".join(s.labels[i] for s, i in zip(self.heads, segment.labels, strict=True))

    def ground_truth(self) -> dict[str, Any]:
        """The table in ActivityNet's JSON form, for ``tada.localization.metrics``; without splits, all are "val"."""
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
        """SHA-256 of all videos, splits and segments: equal only for the same annotations."""
        digest = hashlib.sha256()
        for video in self.videos:
            digest.update(f"{video.name}\0{video.split}\0".encode("utf-8", "surrogateescape"))
            for segment in video.segments:
                text = f"{segment.start_seconds:.4f}\0{segment.end_seconds:.4f}\0{self.label_of(segment)}\0"
                digest.update(text.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def read_segments(path: Path, videos: Path | None = None, *, fps: float | None = None) -> SegmentTable:
    """Read an annotation file or folder, of a format that ``formats`` or ``labeling_tools`` beside this module list.

    A faulty segment in a CSV is refused with its row, since its owner can correct it. Published files are known to have
    empty, reversed and outlying segments; those are left out, with a note. A malformed time or label is always refused.

    Args:
        videos: the folder of the videos, needed only for labeling tools that count frames.
        fps: frame rate of folders of frames.

    Raises:
        DataError: the file is missing or of an unknown format, or an entry is wrong; the message names it.
    """
    content = read_tool_files(path, videos, fps=fps)
    return _make_table(path.absolute().name, read_content(path) if content is None else content)


def _make_table(name: str, content: Content) -> SegmentTable:
    if not content.rows:
        raise DataError(f"{name} has no segments: nothing to learn from; see whether it is the right file")
    rows = [replace(row, labels=tuple(map(composed, row.labels))) for row in content.rows]
    heads = []
    for place, label_name in enumerate(content.label_names):
        occurring = class_names((row.labels[place], row.source) for row in rows)
        classes = occurring if content.classes is None else content.classes[place]
        if set(occurring) - set(classes):
            unknown = next(row for row in rows if row.labels[place] not in classes)
            raise DataError(
                f"{unknown.source}: {label_name} {unknown.labels[place]!r} is no class of EPIC-KITCHENS-100, which "
                f"numbers them from 0 to {len(classes) - 1}"
            )
        heads.append(Head(name=label_name, labels=tuple(map(composed, classes))))
    numbers = [{label: i for i, label in enumerate(s.labels)} for s in heads]
    found: dict[str, list[Segment]] = {video: [] for video in content.splits}
    notes = list(content.notes)
    for row in rows:
        start = seconds(row.source, row.start, "start", may_be_negative=True)
        end = seconds(row.source, row.end, "end", may_be_negative=True)
        labels = tuple(number[label] for number, label in zip(numbers, row.labels, strict=True))
        segment = Segment(start_seconds=start, end_seconds=end, labels=labels, source=row.source)
        if end <= start:
            fault = (
                "starts and ends at the same time" if end == start else f"ends ({end} s) before it starts ({start} s)"
            )
            _refuse_or_note(segment, fault, "swap or correct its times", content.refuses and end < start, notes)
        elif content.refuses and start < -GRACE_SECONDS:
            raise DataError(
                f"{row.source}: the segment starts at {start:g} s, before its video does; correct its times"
            )
        elif any(_is_duplicate(segment, other) for other in found[row.video]):
            notes.append(f"{row.source}: the same segment and label as one before: left out")
        else:
            found[row.video].append(segment)
    names = short_names(content.splits)
    durations = {names[path]: duration for path, duration in content.durations.items() if path in names}
    videos = [
        UntrimmedVideo(
            name=names[path],
            path=path,
            duration_seconds=content.durations.get(path),
            split=split,
            segments=tuple(sorted(found[path], key=lambda s: (s.start_seconds, s.end_seconds))),
        )
        for path, split in content.splits.items()
    ]
    videos.sort(key=lambda video: video.name)
    table = SegmentTable(
        heads=tuple(heads), videos=tuple(videos), name=name, refuses=content.refuses, notes=tuple(notes)
    )
    return with_durations(table, durations)


def _is_duplicate(one: Segment, other: Segment) -> bool:
    gaps = abs(one.start_seconds - other.start_seconds), abs(one.end_seconds - other.end_seconds)
    return one.labels == other.labels and max(gaps) <= DUPLICATE_SECONDS


def _refuse_or_note(segment: Segment, fault: str, way_out: str, refuses: bool, notes: list[str]) -> None:
    if refuses:
        raise DataError(f"{segment.source}: the segment {fault}; {way_out}, or take it away")
    notes.append(f"{segment.source}: the segment {fault}: left out")


def with_durations(table: SegmentTable, durations: Mapping[str, float]) -> SegmentTable:
    """Fill in the durations of videos, and cut or refuse segments that reach beyond them.

    A segment that overhangs by ``GRACE_SECONDS`` or less is cut silently, by more with a note. One that is entirely
    outside is refused, or left out with a note if the table is a published one.

    Raises:
        DataError: a segment outside its video, in a table that refuses them.
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


def named_like(
    table: SegmentTable, known: Mapping[str, str] | Collection[str], say: Callable[[str], None] = lambda line: None
) -> SegmentTable:
    """Rename the table's videos to the names of existing ones; a video without a match may get its whole path.

    Args:
        known: paths of the existing videos by name; or only their names.
        say: called with a line if videos were matched by name only, in another folder.

    Raises:
        DataError: the match of a video is ambiguous, or two videos match the same one; see ``KnownVideos``.
    """
    places = known if isinstance(known, Mapping) else {name: name for name in known}
    videos_there = KnownVideos(places)
    written = {video.name: video.path or video.name for video in table.videos}
    names = videos_there.find_all(written, table.name)
    others = videos_there.in_other_folders({written[key]: name for key, name in names.items()})
    if others:
        first = next(name for key, name in names.items() if written[key] == others[0])
        say(
            f"{table.name}: {counted(len(others), 'video')} taken by name alone, from another folder than is written: "
            f"{others[0]!r} for one, which is {places[first]!r} here"
        )
    videos = []
    for video in table.videos:
        if video.name in names:  # from here on, its path is where the file is
            place = video_path(places[names[video.name]])
            videos.append(replace(video, name=names[video.name], path=place if "/" in place else video.path))
        else:
            videos.append(replace(video, name=video.path if video.name in places and video.path else video.name))
    return replace(table, videos=tuple(sorted(videos, key=lambda video: video.name)))


def with_splits(table: SegmentTable, *, val_fraction: float, seed: int) -> SegmentTable:
    """Hold out a fraction of the videos as "val", if the table has no splits.

    The choice depends only on the seed and the videos' names.

    Raises:
        OptionError: ``val_fraction`` outside [0, 1).
        DataError: some videos have a split and some have none; fewer than two videos to split.
    """
    unsplit = [video.name for video in table.videos if video.split is None]
    if table.splits:
        if unsplit:
            raise DataError(f"{table.name}: video {unsplit[0]!r} has no split, while others have one; give it one")
        return table
    if not 0 <= val_fraction < 1:
        raise OptionError(f"{val_fraction = } should be in [0, 1)")
    if val_fraction and len(table.videos) < 2:
        raise DataError(
            f"{table.name}: one video cannot be split into training and validation; add another, or train without "
            "validation (--val-fraction 0)"
        )

    def lot(video: UntrimmedVideo) -> bytes:
        return hashlib.sha256(f"{seed}\0{video.name}".encode("utf-8", "surrogateescape")).digest()

    count = min(max(round(val_fraction * len(table.videos)), 1), len(table.videos) - 1) if val_fraction else 0
    held = {video.name for video in sorted((v for v in table.videos if v.segments), key=lot)[:count]}
    videos = tuple(replace(video, split="val" if video.name in held else "train") for video in table.videos)
    return replace(table, videos=videos)


def check_for_training(table: SegmentTable, say: Callable[[str], None]) -> None:
    """Check that a table with splits can be trained on; report classes that only the tested split has, and notes.

    Raises:
        DataError: no segments in the training split, or in the tested one.
    """
    training = table.of_split("train")
    tested = next((split for split in ("val", "test") if split in table.splits), None)
    if tested is not None:
        for head, trained, counted in zip(table.heads, training.counts(), table.of_split(tested).counts(), strict=True):
            only = [name for name, count in counted.items() if count and not trained[name]]
            if only:
                say(f"{head.name} classes in {tested} that training never sees: {listed(only, quote=False)}")
    else:
        say(f"{table.name}: nothing is held out for validation: the last epoch is kept, as good or bad as it is")
    if table.notes:
        number = len(table.notes)
        say(f"{table.name}: {'a note' if number == 1 else f'{number} notes, the first'}: {table.notes[0]}")
