"""A run's list of videos, by which they are recognized after they were moved or renamed.

A run's ``videos.csv`` has, beside path, labels and split, the identity of each file (``tada.data.identity``), and for a
copy made by `tada prepare` also that of its original. So a video that was moved, linked, copied, renamed or re-encoded
by `tada prepare` is recognized as the one that the run was trained on, and another file at its path is not. A file is
not opened if its path, size and modification time are those of the list, or if no known file has its size.

An exported model has the identities as short hashes instead (``tada.data.split_hashes``), since it has no list.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tada.data.csv_rows import unguarded
from tada.data.identity import content_ids, is_sha256, sha256_identity, sha256_of, size_of
from tada.data.labeled_csv import write_table
from tada.data.manifest import originals_among
from tada.data.split_hashes import Splits
from tada.data.table import (
    LabeledVideo,
    VideoTable,
    composed,
    path_below,
    stamp_of,
)
from tada.errors import CheckpointError, DataError, counted
from tada.system.files import absolute_path
from tada.video.numbered import VIDEO_EXTENSIONS
from tada.video.shards import path_without_shard

RUN_LIST = "videos.csv"
"""File name of a run's list."""
_MANY = 20_000  # files; opening more takes so long that the user is told
_NOT_LABELS = frozenset(
    ("path", "split", "group", "start_seconds", "end_seconds", "fps", "content", "original", "mtime_ns")
)

Stamp = tuple[int, int]
"""A file's size in bytes and its modification time in nanoseconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownVideo:
    """A row of a run's list: a file, or a segment of one."""

    path: str
    """Its absolute path when the list was written."""
    labels: tuple[str, ...]
    """Names of its labels; in multi-label lists "1" or "0" for each class."""
    split: str
    start_seconds: float | None = None
    end_seconds: float | None = None
    content: str = ""
    """``content_id`` of the file; empty if it was not noted."""
    originals: tuple[str, ...] = ()
    """For a prepared copy: the identity of its original, or, from old manifests, "SIZE-sha256:HEX"; if the original was
    a copy too, also the identities of its originals."""
    mtime_ns: int | None = None
    """The file's modification time, in nanoseconds; None if it was not noted."""

    @property
    def identities(self) -> tuple[str, ...]:
        """All identities of the file: of its content, and of its originals."""
        return (self.content, *self.originals) if self.content else self.originals


# -- a run's list -----------------------------------------------------------------------------------------------------


def known_videos(table: VideoTable, *, show_progress: bool = False) -> tuple[KnownVideo, ...]:
    """The videos of a table with splits, with the identities of their files. Reads a part of each file."""
    stamps = _stamps(table.videos)
    contents = content_ids(stamps, show_progress=show_progress)
    originals = originals_among({path: size for path, (size, _) in stamps.items()})
    return tuple(
        KnownVideo(
            path=video.path,
            labels=table.label_cells(video),
            split=video.split or "",
            start_seconds=video.start_seconds,
            end_seconds=video.end_seconds,
            content=contents.get(video.path, ""),
            originals=originals.get(video.path, ()),
            mtime_ns=stamps[video.path][1] if video.path in stamps else None,
        )
        for video in table.videos
    )


def write_run_list(table: VideoTable, run: Path, say: Callable[[str], None], *, show_progress: bool = False) -> None:
    """Write a run's list of videos with their identities; warn of videos with the same content in two splits."""
    if len(table) > _MANY:
        say(f"reading a part of each of {len(table)} videos, so that the run recognizes moved and renamed files")
    rows = known_videos(table, show_progress=show_progress)
    more: dict[str, dict[str, object]] = {"content": {row.path: row.content for row in rows}}
    if any(row.originals for row in rows):
        more["original"] = {row.path: " ".join(row.originals) for row in rows}
    more["mtime_ns"] = {row.path: "" if row.mtime_ns is None else row.mtime_ns for row in rows}
    write_table(table, run / RUN_LIST, more=more)
    pairs = in_two_splits(rows)
    if pairs:
        trained, held_out = pairs[0]
        say(
            f"trained on and held out too, under another name: {counted(len(pairs), 'video')}. {held_out.path!r} "
            f"({held_out.split}) has the same content as {trained.path!r} (train). The score is too good by that: keep "
            "one of each; `tada check` lists them"
        )


def read_run_list(run: Path) -> tuple[KnownVideo, ...] | None:
    """Read the rows of a run's ``videos.csv``, in its order; None if the file does not exist.

    Lists of old versions may have relative paths, which start from the working directory.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = run / RUN_LIST
    if not file.is_file():
        return None
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
            rows = tuple(map(_parse_row, csv.DictReader(lines)))
    except (KeyError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise CheckpointError(f"{str(file)!r} is damaged ({error}); copy the run's folder again") from error
    return rows


def _parse_row(row: Mapping[str, str]) -> KnownVideo:
    if None in row or None in row.values():
        raise ValueError("a row with too many or too few cells")
    start, end = row.get("start_seconds"), row.get("end_seconds")
    path = unguarded(row["path"])
    known = KnownVideo(
        path=path if os.path.isabs(path) else absolute_path(path),
        labels=tuple(unguarded(cell) for name, cell in row.items() if name not in _NOT_LABELS),
        split=row["split"],
        start_seconds=float(start) if start else None,
        end_seconds=float(end) if end else None,
        content=row.get("content") or "",
        originals=tuple((row.get("original") or "").split()),
        mtime_ns=int(row.get("mtime_ns") or 0) or None,
    )
    for identity in known.identities:
        size_of(identity)
    return known


def in_two_splits(rows: Sequence[KnownVideo]) -> list[tuple[KnownVideo, KnownVideo]]:
    """Find files with the same content in "train" and in another split: pairs of rows (train, other split)."""
    trained = {identity: row for row in rows if row.split == "train" for identity in row.identities}
    pairs: dict[str, tuple[KnownVideo, KnownVideo]] = {}
    for row in rows:
        twin = next((trained[identity] for identity in row.identities if identity in trained), None)
        if row.split != "train" and twin is not None:
            pairs.setdefault(row.path, (twin, row))
    return list(pairs.values())


# -- recognizing its videos -------------------------------------------------------------------------------------------


def marks(table: VideoTable, known: Sequence[KnownVideo] | Splits, *, show_progress: bool = False) -> list[str]:
    """The split of a run that each video of a table was in, as returned by ``Splits.of``.

    Args:
        known: a run's list, or the hashes in an exported model.
    """
    stamps = _stamps(table.videos)
    originals = originals_among({path: size for path, (size, _) in stamps.items()})
    rows: Sequence[KnownVideo] = ()
    if isinstance(known, Splits):
        splits = known
    else:
        rows = with_contents(known, stamps, show_progress=show_progress)
        splits = splits_of(rows)
        add_sha256(splits, rows, (identity for of_file in originals.values() for identity in of_file))
    contents = _contents(stamps, rows, splits.sizes, show_progress=show_progress)
    by_path = {row.path for row in rows if not row.content}
    for row in rows:
        if not row.content:
            splits.add(_path_identity(row.path), row.start_seconds, row.end_seconds, row.split)

    def identities(path: str) -> Iterator[str]:
        if path in contents:
            yield contents[path]
        yield from originals.get(path, ())
        if path in by_path:
            yield _path_identity(path)
        if path in stamps and stamps[path][0] in splits.sha256_sizes:
            yield from sha256_identities(path)

    of_path = {path: tuple(identities(path)) for path in {video.path for video in table.videos}}
    return [splits.of(of_path[video.path], video.start_seconds, video.end_seconds) for video in table.videos]


def splits_of(rows: Iterable[KnownVideo]) -> Splits:
    """The splits of a run's list by content, to be exported with a model."""
    splits = Splits()
    for row in rows:
        for identity in row.identities:
            splits.add(identity, row.start_seconds, row.end_seconds, row.split)
    return splits


def with_contents(
    rows: Sequence[KnownVideo], wanted: Mapping[str, Stamp] | None = None, *, show_progress: bool = False
) -> tuple[KnownVideo, ...]:
    """Add identities to the rows of an old list without them, if their files are still at their paths.

    Args:
        wanted: the files to be recognized, by path; rows that, by path and size, cannot be one of them may be left
            unchanged.
    """
    lacking = {row.path for row in rows if not row.content}
    if not lacking or (wanted is not None and wanted.keys() <= lacking):  # then each is recognized by its path
        return tuple(rows)
    stamps = {path: stamp for path in lacking if (stamp := _stamp(path)) is not None}
    originals = originals_among({path: size for path, (size, _) in stamps.items()})
    sizes = None if wanted is None else {size for size, _ in wanted.values()}
    candidates = [path for path, (size, _) in stamps.items() if sizes is None or size in sizes or path in originals]
    contents = content_ids(candidates, show_progress=show_progress)
    return tuple(
        replace(row, content=contents[row.path], originals=originals.get(row.path, ()), mtime_ns=stamps[row.path][1])
        if row.path in contents and not row.content
        else row
        for row in rows
    )


def _contents(
    stamps: Mapping[str, Stamp], rows: Iterable[KnownVideo], sizes: Collection[int] | None, *, show_progress: bool
) -> dict[str, str]:
    """``content_id`` of each file that may be known.

    A file is not opened if its path, size and modification time are those of a row, or if its size is not in ``sizes``.
    """
    by_path = {row.path: row for row in rows if row.content}
    found: dict[str, str] = {}
    to_read = []
    for path, (size, mtime_ns) in stamps.items():
        row = by_path.get(path)
        if row is not None and (size, mtime_ns) == (size_of(row.content), row.mtime_ns):
            found[path] = row.content
        elif sizes is None or size in sizes:
            to_read.append(path)
    return found | content_ids(to_read, show_progress=show_progress)


def add_sha256(splits: Splits, rows: Iterable[KnownVideo], wanted: Iterable[str]) -> None:
    """Add the SHA-256 of those rows' files that have the size of a wanted one and are still at their paths.

    Args:
        wanted: identities; only those made of a SHA-256 are used.
    """
    sizes = {size_of(identity) for identity in wanted if is_sha256(identity)}
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.content and size_of(row.content) in sizes:
            if row.path not in found:
                found[row.path] = sha256_identities(row.path)
            for identity in found[row.path]:
                splits.add(identity, row.start_seconds, row.end_seconds, row.split)


def sha256_identities(path: str) -> list[str]:
    """A file's identity by its SHA-256; empty if the file cannot be read."""
    try:
        return [sha256_identity(os.path.getsize(path), sha256_of(path))]
    except OSError:
        return []


def _path_identity(path: str) -> str:
    """The identity of a file without a noted content: its path, after a size of 0, as identities begin with a size."""
    return f"0-path:{path}"


def _stamps(videos: Iterable[LabeledVideo]) -> dict[str, Stamp]:
    """Stamps of the files that exist, by path; missing files are reported when they are read."""
    found = {video.path: video.stamp or _stamp(video.path) for video in videos}
    return {path: stamp for path, stamp in found.items() if stamp is not None}


def _stamp(path: str) -> Stamp | None:
    try:
        return stamp_of(path)
    except (OSError, ValueError):
        return None


# -- known names with unknown contents --------------------------------------------------------------------------------


def line_of_namesakes(names: Sequence[str], trained: Iterable[str], run: Path) -> str:
    """A warning of videos with unknown content that have the name of a known video; "" if there are none.

    Such a video may be a new recording, or one that was trained on and has been converted since.

    Args:
        names: paths of the videos with unknown content, below their common folder.
        trained: paths of the videos that the run was trained on, below theirs.
        run: the run's folder, for the message.
    """
    known: dict[str, list[list[str]]] = {}
    for name in trained:
        *folders, last = _split_path(name)
        known.setdefault(last, []).append(folders)

    def is_known(name: str) -> bool:
        *folders, last = _split_path(name)
        # One path may start from a higher folder; then the last folders are compared.
        return any(
            folders[len(folders) - shared :] == others[len(others) - shared :]
            for others in known.get(last, ())
            for shared in (min(len(folders), len(others)),)
        )

    found = [name for name in names if is_known(name)]
    if not found:
        return ""
    they_have = f"{counted(len(found), 'video')} {'has' if len(found) == 1 else 'have'}"
    return (
        f"{they_have} the name of one that {run} was trained on, and another content, such as {found[0]!r}: if that is "
        "the same recording, converted, the score is too good, and it should be left out"
    )


def _split_path(name: str) -> list[str]:
    """Folders and name of a file, in NFC, without a video's extension."""
    *folders, last = composed(name).replace("\\", "/").split("/")
    stem, dot, ending = last.rpartition(".")
    return [*folders, stem if dot and f".{ending.lower()}" in VIDEO_EXTENSIONS else last]


# -- resuming a run ---------------------------------------------------------------------------------------------------


def limited_as_run(table: VideoTable, rows: Sequence[KnownVideo], *, seed: int) -> tuple[VideoTable, int | None]:
    """Limit a table as the run did: the limited table and its limit, if the run has just these videos; else all, None.

    ``seed`` is that of ``VideoTable.limited``; the limit is the largest number of videos in a split of ``rows``.
    """
    limit = max(Counter(row.split for row in rows).values(), default=0)
    few = table.limited(limit, seed=seed)
    listed_ones = Counter((row.split, os.path.basename(row.path), row.start_seconds, row.end_seconds) for row in rows)
    chosen = Counter(
        (video.split or "", os.path.basename(video.path), video.start_seconds, video.end_seconds)
        for video in few.videos
        if few.is_told(video)
    )
    return (few, limit) if len(few) < len(table) and chosen == listed_ones else (table, None)


def as_in_run(
    table: VideoTable, rows: Sequence[KnownVideo], run: Path, *, is_drawn: bool, show_progress: bool = False
) -> VideoTable:
    """Put a table's videos in the order and the splits of a run's list, even if files were moved or renamed.

    Args:
        table: the training data, with splits.
        rows: the run's list.
        run: the run's folder, for the message.
        is_drawn: whether the table's splits were drawn by hashes of the videos' paths. Then the run's splits are used,
            if it held out as many videos of each class.

    Raises:
        DataError: the table has other videos, labels or splits than the run.
    """
    videos = [video for video in table.videos if table.is_told(video)]
    sizes = {size_of(row.content) for row in rows if row.content}
    contents = _contents(_stamps(videos), rows, sizes, show_progress=show_progress)
    places = _match_rows(rows, videos, contents)
    labels = [tuple(map(composed, table.label_cells(video))) for video in videos]
    faults = _find_differences(rows, videos, labels, places, is_drawn)
    if faults:
        raise DataError(
            f"the videos, labels or splits are not those that {run} was started with ({RUN_LIST} there): "
            f"{'; '.join(faults)}. Give the data, and the options that choose among them (--limit, --val-groups, "
            "--val-fraction, --fold), as they were, or start anew with another --out"
        )
    ordered = [
        replace(video, split=rows[place].split)
        for place, video in sorted(zip(places, videos, strict=True), key=lambda pair: pair[0])
    ]
    others = [video for video in table.videos if not table.is_told(video)]
    return replace(table, videos=(*ordered, *others))


def _find_differences(
    rows: Sequence[KnownVideo],
    videos: Sequence[LabeledVideo],
    labels: Sequence[tuple[str, ...]],
    places: Sequence[int],
    is_drawn: bool,
) -> list[str]:
    """Describe how a table differs from a run's list; ``places`` are its videos' indices in the list, or -1."""
    faults = []
    new = [video.path for video, place in zip(videos, places, strict=True) if place < 0]
    if new:
        faults.append(f"{counted(len(new), 'video')} not among them, or not with this content, the first: {new[0]!r}")
    found = set(places)
    gone = [row.path for place, row in enumerate(rows) if place not in found]
    if gone:
        faults.append(f"{counted(len(gone), 'video')} of {len(rows)} lacking, the first: {gone[0]!r}")
    if faults:
        return faults
    pairs = [(rows[place], video, of_video) for place, video, of_video in zip(places, videos, labels, strict=True)]
    relabeled = [video.path for row, video, of_video in pairs if tuple(map(composed, row.labels)) != of_video]
    if relabeled:
        faults.append(f"{counted(len(relabeled), 'video')} with another label, the first: {relabeled[0]!r}")
    moved = [video.path for row, video, _ in pairs if row.split != (video.split or "")]
    counts = [
        Counter((row.split, of_video) for row, _, of_video in pairs),
        Counter((video.split or "", of_video) for _, video, of_video in pairs),
    ]
    if moved and not (is_drawn and counts[0] == counts[1]):
        faults.append(f"{counted(len(moved), 'video')} in another split, the first: {moved[0]!r}")
    return faults


def _match_rows(rows: Sequence[KnownVideo], videos: Sequence[LabeledVideo], contents: Mapping[str, str]) -> list[int]:
    """For each video the index of its row, or -1: matched by path, by path below the common folder, or by content.

    A row with a noted content is matched only by a file with that content.
    """
    segments = [(video.start_seconds, video.end_seconds) for video in videos]
    row_segments = [(row.start_seconds, row.end_seconds) for row in rows]
    names, row_names = names_below([video.path for video in videos]), names_below([row.path for row in rows])
    places = [-1] * len(videos)
    taken: set[int] = set()
    ways: list[tuple[list[str], list[str]]] = [
        ([video.path for video in videos], [row.path for row in rows]),
        (names, row_names),
        ([contents.get(video.path, "") for video in videos], [row.content for row in rows]),
    ]
    for keys, row_keys in ways:
        free: dict[tuple[str, tuple[float | None, float | None]], list[int]] = {}
        for place in reversed(range(len(rows))):
            if place not in taken and row_keys[place]:
                free.setdefault((row_keys[place], row_segments[place]), []).append(place)
        for i, video in enumerate(videos):
            candidates = free.get((keys[i], segments[i])) if places[i] < 0 else None
            if candidates and rows[candidates[-1]].content in ("", contents.get(video.path)):
                places[i] = candidates.pop()
                taken.add(places[i])
    return places


def names_below(paths: Sequence[str]) -> list[str]:
    """Paths below the common folder of all files, in NFC."""
    if not paths:
        return []
    shared = os.path.commonpath([os.path.dirname(path_without_shard(path)) for path in paths])
    return [composed(path_below(shared, path)) for path in paths]
