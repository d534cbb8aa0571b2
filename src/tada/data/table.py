"""The table of videos that every form of data set is read to: what it holds, and how a part of it is held out.

A video has a label for each *head*: one in most data sets, a verb and a noun in EPIC-KITCHENS. It may be a segment
of a longer file. Nothing here opens a file.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import random
import stat
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tada.errors import DataError, OptionError
from tada.video.numbered import check_fps, frame_folder_stamp

SPLITS = ("train", "val", "test")
ACTION = "action"
"""Name of the head of a data set that says one thing of each video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """One thing that is said of each video, or of each segment, and so one classifier of a model."""

    name: str
    """"action"; or "verb", "noun"."""
    labels: tuple[str, ...]
    """Names of the classes; the label of a video or segment is an index into them, and so is a logit's place."""
    several: bool = False
    """Whether a video may have several of these labels, or none, in place of just one."""

    @property
    def is_numbered(self) -> bool:
        """Whether the names are the numbers from 0 on, as in EPIC-KITCHENS-100's files."""
        return list(self.labels) == [str(i) for i in range(len(self.labels))]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabeledVideo:
    """One row of the table: a file, or a segment of one."""

    path: str
    """Absolute path of the video file, or of the folder of its frames, by the names that the user gave: links are not
    resolved."""
    labels: tuple[int, ...]
    """The class for each of the table's heads; empty where the data set keeps it secret. In a table of several labels:
    all classes that the video has, rising; empty where it has none."""
    split: str | None
    """"train", "val" or "test"; None where the data set has no splits."""
    group: str | None
    """What the video was recorded with (a person, a day, a room), for splits by group; None if unknown."""
    source: str
    """Where the row stands: "clips.csv row 12", or the class folder. Error messages show it."""
    id: str
    """What the data set calls it, each row otherwise: by default its path below the root, and the segment."""
    start_seconds: float | None = None
    """Where the segment begins, counted from where the file does, as in players; None for a whole file."""
    end_seconds: float | None = None
    """Where it ends."""
    stamp: tuple[int, int] | None = None
    """The file's size in bytes and time of change in nanoseconds, when the table was read."""
    is_frames: bool = False
    """It is a folder of frames, and no file."""
    fps: float | None = None
    """The rate of such frames, in frames per second; None where nobody has said it. Files have times of their own."""

    @property
    def label(self) -> int:
        """The class, in a table of one head."""
        (label,) = self.labels
        return label


@dataclass(frozen=True, kw_only=True, slots=True)
class MissingVideo:
    """A row of a published list whose video is not there."""

    id: str
    split: str | None
    source: str
    """Where the row stands: "train.csv row 12"."""


class Unreadable(NamedTuple):
    """A video that could not be read, and why."""

    path: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoTable:
    """A data set: its classes and its videos, in an order that the disk and the order of rows have no part in.

    Training on a table of several heads needs a classifier for each: ``head.labels`` says how many classes it has,
    ``video.labels`` its targets, and the loss is the sum of their cross-entropies, as in the released code
    (``BaseHeadx2``). An action is then what the heads say together: the tuple ``video.labels``.
    """

    heads: tuple[Head, ...]
    """What is said of each video. Classes are sorted by name, but for published lists, which keep their order."""
    videos: tuple[LabeledVideo, ...]
    """Sorted by path and start."""
    root: str
    """The folder that all videos lie in."""
    kind: str
    """"folder", "CSV", "list" (without a header), or the published data set: "Kinetics", ..."""
    ignored: tuple[str, ...] = ()
    """What was found beside the videos and left out: files without a video's ending, other columns. Worth showing."""
    missing: tuple[MissingVideo, ...] = ()
    """Rows of a published list whose videos are not there. Scores are of the others, so say it beside them."""

    def __len__(self) -> int:
        """How many videos there are."""
        return len(self.videos)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, where one thing is said of each video.

        Raises:
            DataError: several things are.
        """
        if len(self.heads) > 1:
            names = " and ".join(head.name for head in self.heads)
            raise DataError(
                f"each video has several labels here ({names}), while one is needed; use a recipe with a head for each"
            )
        return self.heads[0].labels

    @property
    def several(self) -> bool:
        """Whether a video may have several labels, or none."""
        return self.heads[0].several

    def is_told(self, video: LabeledVideo) -> bool:
        """Whether the data set says what a video shows."""
        return self.several or bool(video.labels)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold videos, of train, val and test; empty where the data set has none."""
        present = {video.split for video in self.videos}
        return tuple(split for split in SPLITS if split in present)

    @property
    def has_frames(self) -> bool:
        """Whether some videos are folders of frames."""
        return any(video.is_frames for video in self.videos)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, sorted; empty where none is given."""
        return tuple(sorted({video.group for video in self.videos if video.group is not None}))

    def of_split(self, split: str) -> VideoTable:
        """The videos of one split, with the labels of all.

        Raises:
            DataError: the split holds no videos.
        """
        if split not in self.splits:
            have = ", ".join(self.splits) or "no splits"
            raise DataError(f"the data have no {split!r} split (they have {have}); add one, or hold out a part")
        return replace(
            self,
            videos=tuple(video for video in self.videos if video.split == split),
            missing=tuple(video for video in self.missing if video.split == split),
        )

    def limited(self, limit: int, *, seed: int) -> VideoTable:
        """So many videos of each split, at most, as the seed draws them: each class keeps some, if the limit allows."""
        order = list(range(len(self.videos)))
        random.Random(seed).shuffle(order)
        of_split: dict[str | None, list[int]] = {}
        for place in order:
            of_split.setdefault(self.videos[place].split, []).append(place)
        chosen = {place for places in of_split.values() for place in self._of_all_classes(places, limit)}
        return replace(self, videos=tuple(video for place, video in enumerate(self.videos) if place in chosen))

    def _of_all_classes(self, places: Sequence[int], limit: int) -> set[int]:
        """The first of these videos, at most so many: always one more of the class of which the fewest were taken.

        Of classes of which as few were taken it is the rarest one's turn. As long as a class has none, its turn goes to
        the video that shows the most of such classes: so they all have one within as few videos as may be.
        """
        shown: dict[int, set[tuple[int, int]]] = {}
        left: dict[tuple[int, int], list[int]] = {}  # videos of each class, the next one last
        without = (len(self.heads), 0)  # what shows no class has its turn when all classes had theirs
        for place in reversed(places):
            labels = self.videos[place].labels
            shown[place] = set(((0, label) for label in labels) if self.several else enumerate(labels)) or {without}
            for found in shown[place]:
                left.setdefault(found, []).append(place)
        chosen: set[int] = set()
        taken = Counter[tuple[int, int]]()
        turns = [(0, (found == without, len(own), found)) for found, own in left.items()]
        heapq.heapify(turns)
        while turns and len(chosen) < limit:
            count, rank = heapq.heappop(turns)
            found = rank[-1]
            if count == taken[found]:  # else what was taken for others shows it too
                own = left[found]
                if not count:
                    first = max(reversed(own), key=lambda place: sum(not taken[other] for other in shown[place]))
                    own.remove(first)
                    own.append(first)
                while own and own[-1] in chosen:
                    own.pop()
                if not own:
                    continue
                chosen.add(own[-1])
                taken.update(shown[own[-1]])
            heapq.heappush(turns, (taken[found], rank))
        return chosen

    def counts(self, head: int = 0) -> dict[str, int]:
        """Videos of each class of one head, by its name."""
        count = Counter(
            label
            for video in self.videos
            for label in (video.labels if self.several else video.labels[head : head + 1])
        )
        return {name: count[i] for i, name in enumerate(self.heads[head].labels)}

    def coverage(self) -> str:
        """How much of a published data set is there, as in "18 of 20 videos (90.0 %)"; empty if all of it is."""
        if not self.missing:
            return ""
        whole = len(self.videos) + len(self.missing)
        return f"{len(self.videos)} of {whole} videos ({100 * len(self.videos) / whole:.1f} %)"

    def relative(self, video: LabeledVideo) -> str:
        """A file's path below ``root``, with forward slashes: what names it on every machine."""
        return path_below(self.root, video.path)

    def label_names(self, video: LabeledVideo) -> tuple[str, ...]:
        """What is said of a video, in words; empty where it is not known, or where it has none of several labels."""
        if self.several:
            return tuple(self.labels[label] for label in video.labels)
        return tuple(self.heads[i].labels[label] for i, label in enumerate(video.labels))

    def label_columns(self) -> tuple[str, ...]:
        """The columns in which a CSV tells the labels: one for each head; of several labels one for each class."""
        if self.several:
            return self.labels
        return ("label",) if len(self.heads) == 1 else tuple(head.name for head in self.heads)

    def label_cells(self, video: LabeledVideo) -> tuple[str, ...]:
        """A video's cells in these columns: names; of several labels "1" for a class that it has and "0" for others."""
        return tuple(map(str, targets_of(self.heads, video.labels))) if self.several else self.label_names(video)

    def fingerprint(self) -> str:
        """SHA-256 over (path, segment, labels, split) of all videos: equal only for the same data set.

        Paths count from the folder that all videos share, so a data set may be moved, or listed from another root.
        """
        shared = os.path.commonpath([os.path.dirname(video.path) for video in self.videos])
        digest = hashlib.sha256()
        for video in self.videos:
            path = path_below(shared, video.path)
            for text in (
                path + segment_text(video.start_seconds, video.end_seconds),
                *self.label_names(video),
                video.split or "",
            ):
                # A name may hold bytes that are no text, but never a zero byte.
                digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()

    def numbered_as(self, heads: Sequence[Head]) -> VideoTable:
        """The same videos, their labels numbered as ``heads`` (those of a model) number them, by the classes' names.

        Raises:
            DataError: the heads are of other things, or do not know a class; or one says several things, the other one.
        """
        if self.several and not heads[0].several:
            raise DataError(
                "the model says one thing of a video, and the data have videos with several labels or none; use data "
                "with one label for each video, or a model trained on several"
            )
        if heads[0].several and not self.several:
            raise DataError(
                "the model says several things of a video, and the data one of each; if that is all that they show, "
                "write a CSV with a column for each class, and 0 or 1 in each row"
            )
        if len(heads) == len(self.heads) == 1:
            pairs = [(self.heads[0], heads[0])]  # one thing is said, whatever it is called
        elif {head.name for head in heads} != {head.name for head in self.heads}:
            wanted, have = (" and ".join(head.name for head in of) for of in (heads, self.heads))
            raise DataError(f"the model says {wanted} of a video, and the data {have}; use data labeled alike")
        else:
            by_name = {head.name: head for head in self.heads}
            pairs = [(by_name[head.name], head) for head in heads]
        order = [self.heads.index(own) for own, _ in pairs]
        places = [_places(own, other) for own, other in pairs]

        def renumbered(video: LabeledVideo) -> LabeledVideo:
            if self.several:
                return replace(video, labels=tuple(sorted(places[0][label] for label in video.labels)))
            labels = (place[video.labels[i]] for i, place in zip(order, places, strict=True))
            return replace(video, labels=tuple(labels)) if video.labels else video

        return replace(self, heads=tuple(heads), videos=tuple(map(renumbered, self.videos)))


def _places(own: Head, other: Head) -> list[int]:
    """For each of our classes its number there."""
    numbers = {composed(label): i for i, label in enumerate(other.labels)}
    unknown = [label for label in own.labels if composed(label) not in numbers]
    if unknown:
        raise DataError(
            f"the model does not know {len(unknown)} of the {len(own.labels)} classes: {', '.join(unknown[:5])}; "
            f"it knows {', '.join(other.labels[:10])}"
        )
    return [numbers[composed(label)] for label in own.labels]


def targets_of(heads: Sequence[Head], labels: tuple[int, ...]) -> tuple[int, ...]:
    """What a network is to say of a video: the class of each head; of several labels 1 or 0 for each class."""
    if not heads[0].several:
        return labels
    return tuple(int(label in labels) for label in range(len(heads[0].labels)))


def path_below(folder: str, path: str) -> str:
    """A path as it is counted from a folder, with forward slashes. Both are absolute; lists have very many of them."""
    start = folder.rstrip(os.sep) + os.sep
    return (path[len(start) :] if path.startswith(start) else os.path.relpath(path, folder)).replace(os.sep, "/")


def composed(text: str) -> str:
    """A name in the one of its Unicode forms (NFC) in which names are compared: "é" is one sign or two."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def segment_text(start_seconds: float | None, end_seconds: float | None) -> str:
    """A segment as it is written behind a file's name (W3C Media Fragments): "#t=1.5,3.2"; empty for a whole file."""
    return "" if start_seconds is None or end_seconds is None else f"#t={start_seconds:.10g},{end_seconds:.10g}"


def stamp_of(path: str) -> tuple[int, int]:
    """What tells that a file was replaced: its size in bytes and time of change in nanoseconds.

    Of a folder of frames, the size of all of them and the newest time.
    """
    status = os.stat(path)
    return frame_folder_stamp(path) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)


def with_fps(table: VideoTable, fps: float | None) -> VideoTable:
    """The table with this rate for those of its folders of frames that have none yet.

    Raises:
        OptionError: it is no rate, or there are no folders of frames, which alone need one.
    """
    if fps is None:
        return table
    rate = check_fps(fps)
    if not table.has_frames:
        raise OptionError(f"fps = {rate:g} is for folders of frames, and there is none: files have times of their own")
    videos = (replace(v, fps=rate) if v.is_frames and v.fps is None else v for v in table.videos)
    return replace(table, videos=tuple(videos))


# -- holding out a part -----------------------------------------------------------------------------------------------
