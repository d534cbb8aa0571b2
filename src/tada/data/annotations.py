"""Which videos there are and what each shows: a folder or a CSV file becomes one checked table.

Three forms are read:

    DATA/left/a.mp4                     a folder of class folders
    DATA/train/left/a.mp4               the same below train/, val/ and test/ (one of them is enough)
    DATA.csv                            the columns path (or video) and label, and, if wanted, split and group

Everything is checked before training starts: no video is opened here, but each must be there once, in one split,
with a label that training meets too. Paths stay inside one folder, the CSV file's own or ``root``; links inside it
are followed.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from tada.errors import DataError, OptionError, UnknownNameError

VIDEO_EXTENSIONS = frozenset(
    ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # noqa: SIM905
)
"""Endings, in small letters, by which a folder's videos are told from other files. A CSV file may name any file."""

SPLITS = ("train", "val", "test")
_SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# What FFmpeg would open instead of a file. "a:b.mp4" is a file's name like any other.
_PROTOCOL = re.compile(
    r"[a-z][a-z0-9+.-]+://|(async|cache|concat|concatf|crypto|data|fd|ffrtmphttp|file|ftp|gopher|hls|http|https|ipfs"
    r"|md5|mmsh|pipe|prompeg|rtmp|rtp|rtsp|sftp|smb|srt|subfile|tcp|tee|tls|udp|unix|zmq)[:,]",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledVideo:
    """One row of the table."""

    path: str
    """Absolute path of the video file."""
    label: int
    """The class, an index into the table's labels."""
    split: str | None
    """"train", "val" or "test"; None where the data set has no splits."""
    group: str | None
    """What the video was recorded with (a person, a day, a room), for splits by group; None if unknown."""
    source: str
    """Where the row stands: "clips.csv row 12", or the class folder. Error messages show it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoTable:
    """A data set: its classes and its videos, in an order that the disk and the CSV file have no part in."""

    labels: tuple[str, ...]
    """Names of the classes, sorted; a video's label is an index into them."""
    videos: tuple[LabelledVideo, ...]
    """Sorted by path."""
    root: str
    """The folder that all videos lie in."""
    ignored: tuple[str, ...] = ()
    """What was found beside the videos and left out: files without a video's ending, other columns. Worth showing."""

    def __len__(self) -> int:
        """How many videos there are."""
        return len(self.videos)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold videos, of train, val and test; empty where the data set has none."""
        present = {video.split for video in self.videos}
        return tuple(split for split in SPLITS if split in present)

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
        return replace(self, videos=tuple(video for video in self.videos if video.split == split))

    def counts(self) -> dict[str, int]:
        """Videos of each class, by its name."""
        count = Counter(video.label for video in self.videos)
        return {name: count[i] for i, name in enumerate(self.labels)}

    def relative(self, video: LabelledVideo) -> str:
        """A video's path below ``root``, with forward slashes: what names it on every machine."""
        return os.path.relpath(video.path, self.root).replace(os.sep, "/")

    def fingerprint(self) -> str:
        """SHA-256 over (path, label, split) of all videos: equal only for the same data set.

        Paths count from the folder that all videos share, so a data set may be moved, or listed from another root.
        """
        shared = os.path.commonpath([os.path.dirname(video.path) for video in self.videos])
        digest = hashlib.sha256()
        for video in self.videos:
            path = os.path.relpath(video.path, shared).replace(os.sep, "/")
            for text in (path, self.labels[video.label], video.split or ""):
                # A name may hold bytes that are no text, but never a zero byte.
                digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()


def read_dataset(data: Path, *, root: Path | None = None) -> VideoTable:
    """Read a folder or a CSV file.

    Args:
        root: the folder that a CSV file's paths start from and may not leave; by default the CSV file's own.

    Raises:
        DataError: something about the data set is wrong; the message names the file and row, the rule and the way
            out.
        OptionError: ``root`` was given with a folder.
    """
    mode = _mode(str(data))
    if mode is None:
        raise DataError(
            f"{str(data)!r} is not there (or may not be read); give a folder of class folders or a CSV file"
        )
    if stat.S_ISDIR(mode):
        if root is not None:
            raise OptionError(f"root {str(root)!r} goes with a CSV file; {str(data)!r} is a folder")
        return _read_folder(data)
    if not stat.S_ISREG(mode):
        raise DataError(f"{str(data)!r} is neither a folder nor a regular file; give a folder or a CSV file")
    if data.suffix.lower() in VIDEO_EXTENSIONS:
        raise DataError(f"{str(data)!r} is a video; give a folder of class folders or a CSV file that names videos")
    return _read_csv(data, data.parent if root is None else root)


def hold_out(table: VideoTable, *, fraction: float, seed: int) -> VideoTable:
    """Make part of the training videos the "val" split: the same part of every class, at least one video of each.

    A video's lot is drawn from ``seed`` and its path below the root alone, so it does not change with the order of
    files, and hardly with videos that are added. Groups play no part: where clips of one recording could fall on
    both sides, use ``hold_out_groups``.

    Raises:
        DataError: there is a "val" split already, or a class has one video only.
        OptionError: ``fraction`` outside of (0, 1).
    """
    if not 0 < fraction < 1:
        raise OptionError(f"{fraction = } should lie between 0 and 1")
    _check_no_val(table)
    held: set[str] = set()
    for label, name in enumerate(table.labels):
        videos = [video for video in table.videos if video.label == label and video.split != "test"]
        if len(videos) == 1:
            raise DataError(
                f"class {name!r} has one video ({videos[0].path!r}); to hold out a part, each class needs two: "
                "add one, leave the class out, or give the splits yourself"
            )
        num_held = min(max(round(fraction * len(videos)), 1), len(videos) - 1)
        drawn = sorted(videos, key=lambda video: _lot(seed, table.relative(video)))
        held.update(video.path for video in drawn[:num_held])
    return _with_val(table, held)


def hold_out_groups(table: VideoTable, groups: Sequence[str]) -> VideoTable:
    """Make all training videos of some groups the "val" split.

    Raises:
        DataError: no groups in the data, a "val" split already, or a class that is then on one side only.
        UnknownNameError: a group that is not in the data.
    """
    _check_no_val(table)
    if not table.groups:
        raise DataError("the data have no groups; add a column 'group' to the CSV file, or hold out a fraction")
    for group in groups:
        if group not in table.groups:
            raise UnknownNameError.of("group", group, table.groups)
    held = {video.path for video in table.videos if video.group in groups}
    if all(video.path in held for video in table.videos if video.split != "test"):
        raise DataError(f"the groups {_listed(groups)} hold all training videos; leave one group to train on")
    return _with_val(table, held)


def _check_no_val(table: VideoTable) -> None:
    if "val" in table.splits:
        raise DataError("the data have a 'val' split already; use it, or take the split column (or folders) away")


def _with_val(table: VideoTable, held: set[str]) -> VideoTable:
    videos = []
    for video in table.videos:
        if video.split != "test":
            video = replace(video, split="val" if video.path in held else "train")
        videos.append(video)
    table = replace(table, videos=tuple(videos))
    _check_each_label_in_each_split(table)
    return table


def _lot(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()


# -- folders ----------------------------------------------------------------------------------------------------------


def _read_folder(data: Path) -> VideoTable:
    folders, files = _entries(data)
    if not folders:
        tables = [name for name in files if name.lower().endswith(".csv")]
        hint = f"; it holds {tables[0]!r}: give that file" if tables else "; put each class's videos in a folder"
        raise DataError(f"{str(data)!r} holds no class folders{hint}")
    splits = {name: _SPLIT_OF[name.lower()] for name in folders if name.lower() in _SPLIT_OF}
    if splits and len(splits) < len(folders):
        others = [name for name in folders if name not in splits]
        raise DataError(
            f"{str(data)!r} holds split folders ({_listed(splits)}) beside others ({_listed(others)}); keep either "
            "splits or classes there, or list the videos in a CSV file"
        )
    rows: list[_Row] = []
    ignored = _not_videos(data, files)
    if not splits:
        ignored += _read_classes(data, folders, split=None, rows=rows)
    for folder, split in splits.items():
        if list(splits.values()).count(split) > 1:
            raise DataError(
                f"{str(data)!r} holds more than one folder for the split {split!r} ({_listed(splits)}); "
                "put their videos into one"
            )
        classes, files = _entries(data / folder)
        if not classes:
            raise DataError(f"{str(data / folder)!r} holds no class folders; put each class's videos in a folder there")
        ignored += _not_videos(data / folder, files)
        ignored += _read_classes(data / folder, classes, split=split, rows=rows)
    return _table(rows, data, name=str(data), ignored=ignored)


def _read_classes(parent: Path, classes: list[str], *, split: str | None, rows: list[_Row]) -> list[str]:
    ignored: list[str] = []
    for name in classes:
        folder = parent / name
        folders, files = _entries(folder)
        if folders:
            raise DataError(
                f"{str(folder / folders[0])!r} is a folder inside a class folder; put the videos straight into "
                f"{str(folder)!r}, or list them in a CSV file"
            )
        videos = [file for file in files if _is_video(file)]
        if not videos:
            found = f"it holds {_listed(files)}" if files else "it is empty"
            endings = " ".join(sorted(VIDEO_EXTENSIONS))
            raise DataError(
                f"class folder {str(folder)!r} has no videos ({found}); add some or take it away. "
                f"A video's name ends in one of {endings}"
            )
        ignored += [str(folder / file) for file in files if not _is_video(file)]
        rows += [_Row(str(folder / file), file, name, split, None, str(folder)) for file in videos]
    return ignored


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of folders and of everything else, both sorted; hidden ones (.DS_Store, .git) do not count."""
    try:
        with os.scandir(folder) as entries:
            seen = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"folder {str(folder)!r} cannot be read: {error.strerror}") from error
    return [name for name, is_folder in seen if is_folder], [name for name, is_folder in seen if not is_folder]


def _not_videos(folder: Path, files: list[str]) -> list[str]:
    videos = [name for name in files if _is_video(name)]
    if videos:
        raise DataError(
            f"{str(folder / videos[0])!r} lies outside of the class folders, so it has no label; move it into a "
            "class's folder, or list all videos in a CSV file"
        )
    return [str(folder / name) for name in files]


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS


# -- CSV files --------------------------------------------------------------------------------------------------------


def _read_csv(file: Path, root: Path) -> VideoTable:
    name = file.name
    if not root.is_dir():
        raise DataError(f"{name}: the folder {str(root)!r} that its paths start from is not there")
    _check_text(file)
    rows: list[_Row] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter=_delimiter(lines), strict=True)
            try:
                columns, others = _columns(name, next(reader))
                for cells in reader:
                    if any(cell.strip() for cell in cells):  # an empty line at the end is no row
                        rows.append(_row(f"{name} row {reader.line_num}", cells, columns, root))
            except csv.Error as error:
                raise DataError(
                    f"{name} row {reader.line_num}: {error}; save it as CSV, with cells quoted whole"
                ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not text in UTF-8; save it as CSV UTF-8") from error
    if not rows:
        raise DataError(f"{name} has no rows below its header; give each video a row")
    unsplit = [row for row in rows if row.split is None]
    if columns.split is not None and 0 < len(unsplit) < len(rows):
        raise DataError(f"{unsplit[0].source}: no split, while other rows have one; fill in all of them or none")
    return _table(rows, root, name=name, ignored=[f"{name} column {column!r}" for column in others])


def _check_text(file: Path) -> None:
    try:
        with file.open("rb") as raw:
            head = raw.read(4096)
    except OSError as error:
        raise DataError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    if not head.removeprefix(b"\xef\xbb\xbf").strip():
        raise DataError(f"{file.name} is empty; its first row should name the columns: path,label")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{file.name} is in UTF-16; save it as CSV UTF-8")
    if b"\0" in head:
        raise DataError(f"{file.name} holds zero bytes: it is no text, or text in UTF-16; save it as CSV UTF-8")


_KNOWN_COLUMNS = frozenset(("path", "video", "label", "split", "group"))


def _delimiter(lines: TextIO) -> str:
    """The mark that parts the header into most columns we know.

    Spreadsheets of some countries write semicolons, and a table that was pasted has tabs.
    """
    header = lines.readline()
    lines.seek(0)
    return max(",;\t", key=lambda mark: len({_plain(cell) for cell in header.split(mark)} & _KNOWN_COLUMNS))


def _plain(column: str) -> str:
    return column.strip().strip('"').lower()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Columns:
    """Positions in a row."""

    num: int
    path: int
    label: int
    split: int | None
    group: int | None


def _columns(name: str, header: list[str]) -> tuple[_Columns, list[str]]:
    """Find the columns, and name those that are none of ours."""
    found = [_plain(column) for column in header]
    places = {column: i for i, column in enumerate(found)}
    path = places.get("path", places.get("video"))
    label = places.get("label")
    if path is None or label is None or {"path", "video"} <= places.keys():
        raise DataError(
            f"{name} row 1: expected the columns path (or video) and label, and if wanted split and group; "
            f"found {_listed(found)}"
        )
    for column in _KNOWN_COLUMNS:
        if found.count(column) > 1:
            raise DataError(f"{name} row 1: the column {column!r} stands there twice; keep one")
    columns = _Columns(num=len(found), path=path, label=label, split=places.get("split"), group=places.get("group"))
    return columns, [column for column in found if column not in _KNOWN_COLUMNS]


def _row(source: str, cells: list[str], columns: _Columns, root: Path) -> _Row:
    if len(cells) != columns.num:
        raise DataError(
            f"{source}: {len(cells)} cells, while the header names {columns.num} columns; quote cells that hold commas"
        )
    written = cells[columns.path].strip()
    label = cells[columns.label].strip()
    split = None if columns.split is None else cells[columns.split].strip() or None
    group = None if columns.group is None else cells[columns.group].strip() or None
    if not written or not label:
        raise DataError(f"{source}: no {'label' if written else 'path'}; fill in the cell or take the row away")
    if split is not None:
        if split.lower() not in _SPLIT_OF:
            raise DataError(f"{source}: {split = } should be train, val or test")
        split = _SPLIT_OF[split.lower()]
    return _Row(_inside(root, written, source), written, label, split, group, source)


def _inside(root: Path, written: str, source: str) -> str:
    """The absolute path of what a row names."""
    if _PROTOCOL.match(written) or "\0" in written:
        raise DataError(
            f"{source}: {written!r} is no path of a file; only files are read: download it and give its path"
        )
    top = os.path.abspath(root)
    path = os.path.normpath(os.path.join(top, written))
    if not Path(path).is_relative_to(top):
        raise DataError(
            f"{source}: {written!r} leaves the folder {str(root)!r} that paths start from; give paths inside it, or as "
            "root a folder that holds them all"
        )
    return path


# -- what both have in common -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    path: str
    written: str
    """The path as the user knows it."""
    label: str
    split: str | None
    group: str | None
    source: str


def _table(rows: list[_Row], root: Path, *, name: str, ignored: list[str]) -> VideoTable:
    _check_there(rows, root, name)
    _check_once(rows)
    labels = _labels(rows)
    index = {label: i for i, label in enumerate(labels)}
    videos = [
        LabelledVideo(path=row.path, label=index[row.label], split=row.split, group=row.group, source=row.source)
        for row in rows
    ]
    table = VideoTable(
        labels=labels,
        videos=tuple(sorted(videos, key=lambda video: video.path)),
        root=os.path.abspath(root),
        ignored=tuple(ignored),
    )
    _check_each_label_in_each_split(table)
    return table


def _check_there(rows: list[_Row], root: Path, name: str) -> None:
    missing = []
    for row in rows:
        mode = _mode(row.path)
        if mode is None:
            missing.append(f"{row.written!r} ({row.source.removeprefix(name + ' ')})")
        elif not stat.S_ISREG(mode):
            raise DataError(f"{row.source}: {row.written!r} is not a regular file; only files are read, take it away")
    if missing:
        raise DataError(
            f"{name}: {len(missing)} of {len(rows)} videos are not in {str(root)!r}: {_listed(missing, quote=False)}; "
            "put them there, take their rows away, or give another root"
        )


def _mode(path: str) -> int | None:
    """The kind of what lies at a path; None if nothing does, or a link that leads nowhere."""
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return None


def _check_once(rows: list[_Row]) -> None:
    first: dict[str, _Row] = {}
    for row in rows:
        other = first.setdefault(os.path.realpath(row.path), row)
        if other is row:
            continue
        where = f"{row.source}: {row.written!r} stands already in {other.source}"
        if other.written != row.written:
            where += f" as {other.written!r}"
        if other.split != row.split:
            raise DataError(f"{where}, there in {other.split!r} and here in {row.split!r}; keep it in one split")
        if other.label != row.label:
            raise DataError(f"{where}, there as {other.label!r} and here as {row.label!r}; keep the right one")
        raise DataError(f"{where}; each video belongs there once: take one away")


def _labels(rows: Iterable[_Row]) -> tuple[str, ...]:
    first: dict[str, _Row] = {}
    for row in rows:
        if not row.label.isprintable():
            raise DataError(f"{row.source}: the label {row.label!r} holds signs that cannot be printed; rename it")
        other = first.setdefault(row.label.casefold(), row)
        if other.label != row.label:
            raise DataError(
                f"{row.source}: the label {row.label!r} differs from {other.label!r} ({other.source}) in capitals "
                "only; write it one way"
            )
    return tuple(sorted(row.label for row in first.values()))


def _check_each_label_in_each_split(table: VideoTable) -> None:
    """What is tested must have been trained, and what is trained is tested too: else a score means little."""
    if "train" not in table.splits:
        return
    of_split = {split: {video.label for video in table.videos if video.split == split} for split in table.splits}
    for split in table.splits[1:]:
        for has, lacks in (("train", split), (split, "train")):
            only = sorted(table.labels[label] for label in of_split[has] - of_split[lacks])
            if only:
                example = next(v for v in table.videos if v.split == has and table.labels[v.label] == only[0])
                raise DataError(
                    f"{example.source}: {_listed(only)} {_is(only)} in {has!r} but not in {lacks!r}; each class needs "
                    "videos in both: add some, or leave the class out"
                )


def _listed(names: Iterable[str], *, quote: bool = True, at_most: int = 5) -> str:
    shown = [repr(name) if quote else name for name in names]
    more = f" and {len(shown) - at_most} more" if len(shown) > at_most else ""
    return ", ".join(shown[:at_most]) + more


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
