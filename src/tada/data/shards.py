"""Shards of a data set: tar files of some hundred megabytes, in place of a file for each video.

A file system or an object store reads, copies and lists a thousand large files much faster than a million small ones.
`tada prepare --shards` writes, below OUT::

    shard-000000.tar ...   the videos, and a .json with labels beside each, in the layout of WebDataset
    shards.jsonl           the index (``tada.video.shards``)
    videos.csv             the rows of the data set, with the paths of videos in shards; training reads the labels here
    classes.json           all heads and classes, also those without videos
    unpacked/              copies that are in no shard yet; gone at the end

A shard is written whole, then noted in the index: one that was begun is made again, and those noted are kept. Shards
are never changed. A video that has changed is copied into a new shard, and the index's later line counts.

The shards' videos are read by their offsets, in any order: so the order of training, its share among processes, and
where it resumes are those of files (``tada.data.clips.ResumableBatches``).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from tada.data.check import probe_file
from tada.data.identity import content_id, sha256_of
from tada.data.labeled_csv import write_table
from tada.data.manifest import COPIES, MANIFEST, originals_among
from tada.data.prepare import NotCopied, PrepareOptions, check_options, check_some_were_made, make_copies
from tada.data.shard_table import CLASSES, VIDEOS, check_not_edited
from tada.data.table import LabeledVideo, VideoTable, stamp_of
from tada.data.workers import Lost, Pool, in_processes
from tada.errors import DataError, OptionError, why_unread
from tada.system.devices import check_num_workers
from tada.system.files import whole_file, write_whole, writing
from tada.system.locks import holds
from tada.system.progress import track
from tada.video.shards import INDEX, Member, Shard, member_name, open_bytes, read_index

_UNPACKED = "unpacked"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardOptions:
    """How shards are made. Saved in options.json, as ``PrepareOptions`` is."""

    copies: PrepareOptions | None
    """How the videos are encoded anew; None: they are packed as they are."""
    shard_bytes: int = 512_000_000
    """A shard is closed when its videos have so many bytes."""

    def __post_init__(self) -> None:
        """Raise OptionError if shards would be empty."""
        if self.shard_bytes < 1:
            raise OptionError(f"shard_bytes={self.shard_bytes} should be at least 1")

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        copies = {} if self.copies is None else asdict(self.copies)
        return {"shard_bytes": self.shard_bytes, "as_is": self.copies is None, **copies}


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """Result of ``prepare_shards``."""

    out: Path
    num_shards: int
    """Shards that hold videos of the data set, made by this call or before."""
    num_videos: int
    """Files in the shards."""
    num_new: int
    """Files that this call has added."""
    failures: tuple[NotCopied, ...]
    num_relabeled: int
    """Files whose labels are others than in the .json beside them, which is not changed."""
    source_bytes: int
    """Total size of the files that are in shards, before they were copied."""
    packed_bytes: int
    """Their total size in the shards."""
    unused: tuple[str, ...]
    """Shards in the folder that hold none of the data set's videos any more: damaged ones, and those of videos that
    have changed or are not listed now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ready:
    """A file that is ready to be packed."""

    path: str
    source: str
    """As ``Member.source``."""
    source_stamp: tuple[int, int]
    """Size and modification time of the source."""
    name: str
    """As ``Member.name``."""
    sha256: str
    originals: tuple[str, ...]


@holds("out")
def prepare_shards(
    table: VideoTable,
    out: Path,
    options: ShardOptions,
    *,
    num_processes: int | None = None,
    timeout_seconds: float = 3600.0,
    pool: Pool | None = None,
    show_progress: bool = True,
) -> Packed:
    """Pack a data set's videos, or small copies of them, into shards below ``out``; continues an earlier call.

    A file that cannot be read, or on which the decoder crashes, is reported in ``Packed.failures``, and the others are
    packed.

    Args:
        timeout_seconds: for one file.
        pool: what makes the copies, or looks at the files, as for ``prepare``. Shards are packed here.

    Raises:
        OptionError: ``out`` has other shards, or copies, or contains the originals; or its videos.csv was changed.
        DataError: two files would get the same name, or no file could be copied.
        OutputError: the folder cannot be written, another process writes into it, or the disk is full.
    """
    num_processes = check_num_workers(num_processes or os.cpu_count() or 1)
    _check_folder(table, out)
    check_not_edited(out)
    videos = {table.relative(video): video for video in table.videos}
    packed = _already_packed(videos, out)
    _check_names(videos, options)
    check_options(out / "options.json", options.as_dict())
    new = [video for source, video in videos.items() if source not in packed]
    about = _about_files(table)
    failures: list[NotCopied] = []
    how: dict[str, Any] = {
        "num_processes": num_processes,
        "timeout_seconds": timeout_seconds,
        "pool": pool,
        "show_progress": show_progress,
    }
    if options.copies is None:
        ready = _as_they_are(table, new, **how)
    else:
        ready = _as_copies(replace(table, videos=tuple(new)), out / _UNPACKED, options.copies, **how)
    with closing(ready):
        for group in _groups(ready, options.shard_bytes, failures):
            shard = _write_shard(out / _next_name(out), group, about)
            _append(out / INDEX, shard)
            packed |= {member.source: (shard.file, member) for member in shard.members.values()}
            if options.copies is not None:
                for file in group:
                    os.unlink(file.path)
    check_some_were_made(failures, len(packed))
    _write_tables(table, out, packed)
    shutil.rmtree(out / _UNPACKED, ignore_errors=True)
    members = [member for _, member in packed.values()]
    used = {shard for shard, _ in packed.values()}
    return Packed(
        out=out,
        num_shards=len(used),
        unused=tuple(sorted(file.name for file in out.glob("shard-*.tar") if file.name not in used)),
        num_videos=len(packed),
        num_new=len(new) - len(failures),
        failures=tuple(failures),
        num_relabeled=sum(zlib.crc32(about[member.source]) != member.about_crc for member in members),
        source_bytes=sum(member.source_size_bytes for member in members),
        packed_bytes=sum(member.size_bytes for member in members),
    )


# -- what is there ----------------------------------------------------------------------------------------------------


def _check_folder(table: VideoTable, out: Path) -> None:
    if (out / COPIES).exists() or (out / MANIFEST).exists():
        raise OptionError(f"{str(out)!r} holds a copy that was made without --shards: give another folder")
    folders = sorted({os.path.dirname(video.path) for video in table.videos})
    inside = os.path.realpath(out) + os.sep
    own = next((folder for folder in folders if (os.path.realpath(folder) + os.sep).startswith(inside)), None)
    if own is not None:
        raise OptionError(f"{str(out)!r} contains originals, those in {own!r}; give another folder")


def _already_packed(videos: Mapping[str, LabeledVideo], out: Path) -> dict[str, tuple[str, Member]]:
    """Shard and member of each unchanged file that is in a whole shard, by its path below the root.

    Raises:
        OptionError: the shards are of other videos.
    """
    shards = read_index(out)
    sources = {member.source for shard in shards.values() for member in shard.members.values()}
    if sources and not sources & videos.keys():
        raise OptionError(
            f"{str(out)!r} holds shards of other videos, such as {min(sources)!r}: give another folder for these"
        )
    found: dict[str, tuple[str, Member]] = {}
    for shard in shards.values():
        file = out / shard.file
        if file.exists() and file.stat().st_size == shard.size_bytes:
            found |= {member.source: (shard.file, member) for member in shard.members.values()}
    return {
        source: found[source] for source, video in videos.items() if source in found and _is_of(found[source], video)
    }


def _is_of(packed: tuple[str, Member], video: LabeledVideo) -> bool:
    try:
        return stamp_of(video.path) == (packed[1].source_size_bytes, packed[1].source_mtime_ns)
    except OSError:
        return False


def _check_names(videos: Mapping[str, LabeledVideo], options: ShardOptions) -> None:
    """Refuse files that WebDataset would take for one sample, and folders of frames if they are not made to videos."""
    seen: dict[str, str] = {}
    for source, video in videos.items():
        if options.copies is None and video.is_frames:
            raise OptionError(
                f"{video.path!r} is a folder of frames, and shards hold files: leave out --as-is, and it is made one"
            )
        key = os.path.splitext(member_name(source))[0].casefold()
        other = seen.setdefault(key, source)
        if other != source:
            raise DataError(f"{other!r} and {source!r} would both become {key!r} in a shard; rename one of them")


def _about_files(table: VideoTable) -> dict[str, bytes]:
    """The content of the .json beside each video, by its path below the root: its rows in the table."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for video in table.videos:
        names = table.label_names(video)
        labels = {table.heads[0].name: list(names)} if table.several else dict(zip(_names(table), names, strict=False))
        row: dict[str, Any] = {"id": video.id, "labels": labels, "split": video.split, "group": video.group}
        if video.start_seconds is not None:
            row |= {"start_seconds": video.start_seconds, "end_seconds": video.end_seconds}
        rows.setdefault(table.relative(video), []).append(row)
    return {path: json.dumps({"path": path, "rows": own}).encode() for path, own in rows.items()}


def _names(table: VideoTable) -> list[str]:
    return [head.name for head in table.heads]


# -- files that are ready ---------------------------------------------------------------------------------------------


def _as_copies(
    table: VideoTable, folder: Path, options: PrepareOptions, **how: Any
) -> Generator[_Ready | NotCopied, None, None]:
    """Make small copies of a table's files, which stay in ``folder`` if this is interrupted."""
    if not table.videos:
        return
    prepared = make_copies(table, folder, options, **how)
    yield from prepared.failures
    copies = prepared.copies
    for copy in track(copies, "packing", len(copies), noun="files", is_shown=how["show_progress"]):
        yield _Ready(
            path=str(folder / COPIES / copy.file),
            source=copy.source,
            source_stamp=(copy.source_size_bytes, copy.source_mtime_ns),
            name=member_name(copy.file),
            sha256=copy.sha256,
            originals=copy.originals,
        )


def _as_they_are(
    table: VideoTable,
    videos: Sequence[LabeledVideo],
    *,
    num_processes: int,
    timeout_seconds: float,
    pool: Pool | None,
    show_progress: bool,
) -> Generator[_Ready | NotCopied, None, None]:
    """Open and hash files, in processes of their own: those that can be read, in the order of the table."""
    sources = {video.path: table.relative(video) for video in videos}
    paths = list(sources)
    work = (pool or in_processes)(_look, paths, num_processes=num_processes, timeout_seconds=timeout_seconds)
    finished: dict[str, _Ready | NotCopied] = {}
    place = 0
    with closing(work):
        for path, found in track(work, "looking", len(paths), noun="files", is_shown=show_progress):
            if isinstance(found, Lost):
                found = NotCopied.of_lost(path, path, found)
            finished[path] = replace(found, source=sources[path])
            while place < len(paths) and paths[place] in finished:
                ready = finished.pop(paths[place])
                yield replace(ready, name=member_name(ready.source)) if isinstance(ready, _Ready) else ready
                place += 1


def _look(path: str) -> _Ready | NotCopied:
    probe = probe_file(path, thorough=False)
    if probe.reason:
        return NotCopied(source=path, message=probe.message)
    stamp = probe.size_bytes, probe.mtime_ns
    originals = originals_among({path: probe.size_bytes}).get(path, ())
    return _Ready(path=path, source=path, source_stamp=stamp, name="", sha256=probe.sha256, originals=originals)


def _groups(files: Iterable[_Ready | NotCopied], shard_bytes: int, failures: list[NotCopied]) -> Iterator[list[_Ready]]:
    """The files of each shard; those that could not be copied are added to ``failures``."""
    group: list[_Ready] = []
    total = 0
    for file in files:
        if isinstance(file, NotCopied):
            failures.append(file)
            continue
        group.append(file)
        total += _size_of(file)
        if total >= shard_bytes:
            yield group
            group, total = [], 0
    if group:
        yield group


def _size_of(file: _Ready) -> int:
    try:
        return stamp_of(file.path)[0]
    except OSError as error:
        raise DataError(f"{file.path!r} cannot be read any more: {why_unread(error)}") from error


# -- shards -----------------------------------------------------------------------------------------------------------


def _next_name(out: Path) -> str:
    numbers = [int(name.removeprefix("shard-").removesuffix(".tar")) for name in read_index(out)]
    return f"shard-{max(numbers, default=-1) + 1:06d}.tar"


def _write_shard(file: Path, group: Sequence[_Ready], about: Mapping[str, bytes]) -> Shard:
    """Write the files, each with its .json, as one tar file."""
    with whole_file(file) as part:
        with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
            members = [_add(tar, ready, about[ready.source]) for ready in group]
        return Shard(
            file=file.name,
            size_bytes=part.stat().st_size,
            sha256=sha256_of(part),
            content=content_id(part),
            members={member.name: member for member in members},
        )


def _add(tar: tarfile.TarFile, ready: _Ready, about: bytes) -> Member:
    size, seconds = _size_of(ready), ready.source_stamp[1] // 1_000_000_000
    try:
        source = open_bytes(ready.path)
    except OSError as error:
        raise DataError(f"{ready.path!r} cannot be read any more: {why_unread(error)}") from error
    with source:
        hashed = _Hashed(source)
        try:
            tar.addfile(_header(ready.name, size, seconds), hashed)  # type: ignore[arg-type]  # read() is enough
        except OSError as error:
            if _size_of(ready) >= size:
                raise
            raise _changed(ready) from error
    start = tar.offset - -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    if hashed.digest.hexdigest() != ready.sha256:
        raise _changed(ready)
    tar.addfile(_header(os.path.splitext(ready.name)[0] + ".json", len(about), seconds), BytesIO(about))
    return Member(
        name=ready.name,
        start_bytes=start,
        size_bytes=size,
        sha256=ready.sha256,
        content=content_id(ready.path),
        about_crc=zlib.crc32(about),
        source=ready.source,
        source_size_bytes=ready.source_stamp[0],
        source_mtime_ns=ready.source_stamp[1],
        originals=ready.originals,
    )


def _header(name: str, size_bytes: int, mtime_seconds: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mtime = size_bytes, mtime_seconds
    return header


class _Hashed:
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _changed(ready: _Ready) -> DataError:
    return DataError(
        f"{ready.path!r} has changed while it was packed; when nothing writes it, give the same command again"
    )


def _append(index: Path, shard: Shard) -> None:
    """Note a whole shard in the index."""
    with writing(index), index.open("ab") as file:
        # The first newline ends a line that was cut off before, so that only that one is lost.
        file.write(b"\n" + shard.to_line() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _write_tables(table: VideoTable, out: Path, packed: Mapping[str, tuple[str, Member]]) -> None:
    """Write the classes, and the rows whose files are in shards."""
    rows = []
    for video in table.videos:
        if table.relative(video) in packed:
            shard, member = packed[table.relative(video)]
            path = os.path.join(os.path.abspath(out), shard, *member.name.split("/"))
            rows.append(replace(video, path=path, stamp=None, is_frames=False, fps=None))
    # The table is replaced last. If this is killed before, the old one is known, too, and not taken for an edited one.
    with whole_file(out / VIDEOS) as part:
        write_table(replace(table, videos=tuple(rows)), part, root=out)
        before = [sha256_of(out / VIDEOS)] if (out / VIDEOS).exists() else []
        about = {
            "kind": table.kind,
            "heads": [asdict(head) for head in table.heads],
            "videos_sha256": [sha256_of(part), *before],
        }
        write_whole(out / CLASSES, (json.dumps(about) + "\n").encode())
