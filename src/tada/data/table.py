"""The table of labeled videos, to which every format of data sets is read.

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
from tada.video.shards import member_of, path_without_shard

SPLITS = ("train", "val", "test")
ACTION = "action"
"""Name of the head of a data set with one head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A classification head: the classes of one kind of label. A model has one classifier for each head."""

    name: str
    """"action"; or "verb", "noun"."""
    labels: tuple[str, ...]
    """Names of the classes; labels and logits are indexed like them."""
    several: bool = False
    """Whether a video may have several of these labels, or none (multi-label), instead of exactly one."""

    @property
    def is_numbered(self) -> bool:
        """Whether the names are the numbers from 0 on, as in EPIC-KITCHENS-100's files."""
        return list(self.labels) == [str(i) for i in range(len(self.labels))]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabeledVideo:
    """One row of the table: a file, or a segment of one."""

    path: str
    """Absolute path of the video file, or of the folder of its frames. Links are not resolved."""
    labels: tuple[int, ...]
    """The class for each of the table's heads; empty if the data set keeps it secret. In a multi-label table: all
    classes that the video has, ascending; empty if it has none."""
    split: str | None
    """"train", "val" or "test"; None if the data set has no splits."""
    group: str | None
    """The recording's person, day or room, for splits by group; None if unknown."""
    source: str
    """The row's place, for messages: "clips.csv row 12", or the class folder."""
    id: str
    """The data set's name for it, unique in the table; by default its path below the root, and the segment."""
    start_seconds: float | None = None
    """Start of the segment, counted from the start of the file, as in players; None for a whole file."""
    end_seconds: float | None = None
    """End of the segment; None for a whole file."""
    stamp: tuple[int, int] | None = None
    """The file's size in bytes and modification time in nanoseconds, when the table was read."""
    is_frames: bool = False
    """Whether it is a folder of frames instead of a file."""
    fps: float | None = None
    """Frame rate of a folder of frames, in frames per second; None if not given, and for files, which have times."""

    @property
    def label(self) -> int:
        """The class, in a table of one head."""
        (label,) = self.labels
        return label


@dataclass(frozen=True, kw_only=True, slots=True)
class MissingVideo:
    """A row of a published list whose video was not found."""

    id: str
    split: str | None
    source: str
    """The row's place, for messages: "train.csv row 12"."""


class Unreadable(NamedTuple):
    """A video that could not be read, and why."""

    path: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoTable:
    """A data set: its classes and its videos, in an order independent of the disk and of the order of rows.

    Training on a table with several heads needs a classifier for each, with the classes ``head.labels`` and the targets
    ``video.labels``; the loss is the sum of their cross-entropies, as in the released code (``BaseHeadx2``). An action
    is then the combination of the heads' classes: the tuple ``video.labels``.
    """

    heads: tuple[Head, ...]
    """The heads. Classes are sorted by name, except for published lists, which keep their order."""
    videos: tuple[LabeledVideo, ...]
    """Sorted by path and start."""
    root: str
    """Absolute path of the folder that contains all videos."""
    kind: str
    """"folder", "CSV", "list" (without a header), or the published data set: "Kinetics", ..."""
    ignored: tuple[str, ...] = ()
    """Files without a video extension, and unknown columns, which were not read; to be shown to the user."""
    missing: tuple[MissingVideo, ...] = ()
    """Rows of a published list whose videos were not found; to be shown beside scores, which are of the others."""

    def __len__(self) -> int:
        """The number of videos."""
        return len(self.videos)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes of a table with one head.

        Raises:
            DataError: it has several heads.
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
        """Whether a video's labels are known."""
        return self.several or bool(video.labels)

    @property
    def splits(self) -> tuple[str, ...]:
        """Those of train, val and test that have videos; empty if the data set has no splits."""
        present = {video.split for video in self.videos}
        return tuple(split for split in SPLITS if split in present)

    @property
    def has_frames(self) -> bool:
        """Whether some videos are folders of frames."""
        return any(video.is_frames for video in self.videos)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, sorted; empty if no video has one."""
        return tuple(sorted({video.group for video in self.videos if video.group is not None}))

    def of_split(self, split: str) -> VideoTable:
        """The table of one split's videos, with the classes of all splits.

        Raises:
            DataError: the split has no videos.
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
        """At most ``limit`` random videos of each split; each class keeps some, if the limit allows."""
        order = list(range(len(self.videos)))
        random.Random(seed).shuffle(order)
        of_split: dict[str | None, list[int]] = {}
        for place in order:
            of_split.setdefault(self.videos[place].split, []).append(place)
        chosen = {place for places in of_split.values() for place in self._choose_balanced(places, limit)}
        return replace(self, videos=tuple(video for place, video in enumerate(self.videos) if place in chosen))

    def _choose_balanced(self, places: Sequence[int], limit: int) -> set[int]:
        """Choose at most ``limit`` videos; the next one is always of the class of which the fewest were chosen.

        Among classes with equally few, the rarest is next. For a class without a chosen video, the video with the most
        such classes is chosen, so that few videos are enough to cover all classes.

        Args:
            places: indices of videos in the table; earlier ones are preferred.
        """
        shown: dict[int, set[tuple[int, int]]] = {}
        left: dict[tuple[int, int], list[int]] = {}  # videos of each class, the next one last
        without = (len(self.heads), 0)  # videos without a class are next after all classes
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
            if count == taken[found]:  # else a video chosen for another class has this one too
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
        """The number of videos of each class of one head, by class name."""
        count = Counter(
            label
            for video in self.videos
            for label in (video.labels if self.several else video.labels[head : head + 1])
        )
        return {name: count[i] for i, name in enumerate(self.heads[head].labels)}

    def coverage(self) -> str:
        """How much of a published data set was found, as in "18 of 20 videos (90.0 %)"; empty if all was found."""
        if not self.missing:
            return ""
        whole = len(self.videos) + len(self.missing)
        return f"{len(self.videos)} of {whole} videos ({100 * len(self.videos) / whole:.1f} %)"

    def relative(self, video: LabeledVideo) -> str:
        """A file's path below ``root``, with forward slashes, the same on every machine."""
        return path_below(self.root, video.path)

    def label_names(self, video: LabeledVideo) -> tuple[str, ...]:
        """The names of a video's labels; empty if they are not known, or if a multi-label video has none."""
        if self.several:
            return tuple(self.labels[label] for label in video.labels)
        return tuple(self.heads[i].labels[label] for i, label in enumerate(video.labels))

    def label_columns(self) -> tuple[str, ...]:
        """The label columns of a CSV of this table: one for each head; of a multi-label table, one for each class."""
        if self.several:
            return self.labels
        return ("label",) if len(self.heads) == 1 else tuple(head.name for head in self.heads)

    def label_cells(self, video: LabeledVideo) -> tuple[str, ...]:
        """A video's cells in ``label_columns``: class names; of a multi-label table, "1" or "0" for each class."""
        return tuple(map(str, targets_of(self.heads, video.labels))) if self.several else self.label_names(video)

    def fingerprint(self) -> str:
        """SHA-256 over (path, segment, labels, split) of all videos: equal only for the same data set.

        Paths are relative to the common folder of all videos, so a data set may be moved, or listed from another root.
        """
        shared = os.path.commonpath([os.path.dirname(path_without_shard(video.path)) for video in self.videos])
        digest = hashlib.sha256()
        for video in self.videos:
            path = path_below(shared, video.path)
            for text in (
                path + segment_text(video.start_seconds, video.end_seconds),
                *self.label_names(video),
                video.split or "",
            ):
                # A name may contain bytes that are not text, but never a zero byte.
                digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()

    def numbered_as(self, heads: Sequence[Head]) -> VideoTable:
        """The same videos, with labels as indices into the classes of ``heads``, usually a model's; matched by name.

        Raises:
            DataError: the heads have other names, a class is missing, or only one of the two is multi-label.
        """
        if self.several and not heads[0].several:
            raise DataError(
                "the model predicts one label for a video, and the data have videos with several labels or none; use "
                "data with one label for each video, or a model trained on several"
            )
        if heads[0].several and not self.several:
            raise DataError(
                "the model predicts several labels for a video, and the data have one for each; if the videos show "
                "nothing else, write a CSV with a column for each class, and 0 or 1 in each row"
            )
        if len(heads) == len(self.heads) == 1:
            pairs = [(self.heads[0], heads[0])]  # one head each: their names do not matter
        elif {head.name for head in heads} != {head.name for head in self.heads}:
            wanted, have = (" and ".join(head.name for head in of) for of in (heads, self.heads))
            raise DataError(f"the model predicts {wanted} of a video, and the data have {have}; use data with the same")
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
    """For each class of ``own``, its index in ``other``."""
    numbers = {composed(label): i for i, label in enumerate(other.labels)}
    unknown = [label for label in own.labels if composed(label) not in numbers]
    if unknown:
        raise DataError(
            f"the model does not know {len(unknown)} of the {len(own.labels)} classes: {', '.join(unknown[:5])}; "
            f"it knows {', '.join(other.labels[:10])}"
        )
    return [numbers[composed(label)] for label in own.labels]


def targets_of(heads: Sequence[Head], labels: tuple[int, ...]) -> tuple[int, ...]:
    """The training targets of a video: the class of each head; of a multi-label table, 1 or 0 for each class."""
    if not heads[0].several:
        return labels
    return tuple(int(label in labels) for label in range(len(heads[0].labels)))


def path_below(folder: str, path: str) -> str:
    """The path relative to ``folder``, with forward slashes; both are absolute. Fast, since lists may be very long.

    The name of a shard is left out.
    """
    path = path_without_shard(path)
    start = folder.rstrip(os.sep) + os.sep
    return (path[len(start) :] if path.startswith(start) else os.path.relpath(path, folder)).replace(os.sep, "/")


def composed(text: str) -> str:
    """Normalize a name to NFC, in which names are compared: "é" may be one code point or two."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def segment_text(start_seconds: float | None, end_seconds: float | None) -> str:
    """A segment as written after a file's name (W3C Media Fragments): "#t=1.5,3.2"; empty for a whole file."""
    return "" if start_seconds is None or end_seconds is None else f"#t={start_seconds:.10g},{end_seconds:.10g}"


def stamp_of(path: str) -> tuple[int, int]:
    """A file's size in bytes and modification time in nanoseconds, by which a replaced file is noticed.

    For a folder of frames: the total size and the newest time. For a video in a shard: its size, and the time of the
    file that it was made of.
    """
    member = member_of(path)
    if member is not None:
        return member.size_bytes, member.source_mtime_ns
    status = os.stat(path)
    return frame_folder_stamp(path) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)


def with_fps(table: VideoTable, fps: float | None) -> VideoTable:
    """Set the frame rate of those folders of frames that have none yet.

    Raises:
        OptionError: it is not a valid rate, or the table has no folders of frames.
    """
    if fps is None:
        return table
    rate = check_fps(fps)
    if not table.has_frames:
        raise OptionError(f"fps = {rate:g} is for folders of frames, and there is none: files have times of their own")
    videos = (replace(v, fps=rate) if v.is_frames and v.fps is None else v for v in table.videos)
    return replace(table, videos=tuple(videos))
