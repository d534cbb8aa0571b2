"""Copy of a data set that decodes many times faster: small frames, and a key frame every 16 frames.

To read a clip, a decoder decodes all frames from the key frame before it; at full size, most of that time is spent on
pixels that training discards. The copy has, below OUT::

    videos/             each file or folder of frames of the data set, at the same path below the root, as H.264 in MP4
    videos.csv          the same table with the new paths, for `tada train`
    manifest.jsonl      for each file: identities of the original and the copy, sizes, rate (``tada.data.manifest``)

The originals are only read. Every frame is kept with its time, so that clips, segments and rates do not change; sound
is left out.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from tada.data.identity import content_id, content_ids, sha256_of
from tada.data.labeled_csv import write_table
from tada.data.manifest import COPIES, MANIFEST, Copy, originals_among, read_manifest
from tada.data.table import VideoTable, stamp_of
from tada.data.workers import Lost, Pool, in_processes
from tada.errors import DataError, OptionError, OutputError, VideoError, changed_values, counted, why_unread
from tada.system.devices import check_num_workers
from tada.system.documents import read_json
from tada.system.files import remove_dead_parts, write_whole, writing
from tada.system.locks import holds
from tada.system.progress import track
from tada.video.frames import OpenVideo, no_rate, open_footage
from tada.video.sampling import average_fps
from tada.video.shards import INDEX
from tada.video.writer import write_video

_EVEN_SECONDS = 2e-5  # tolerance for a fixed rate: the time base of MP4 is 1/90000 s or finer


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareOptions:
    """How the copies are encoded. Saved in options.json: ``prepare`` refuses to continue with other options."""

    short_side: int = 256
    """Length of the short side, in pixels. Smaller videos keep their size. Training resizes to at most 256 to 320."""
    keyframe_interval_frames: int = 16
    """Frames from one key frame to the next."""
    crf: float = 23.0
    """Quality, from 0 (best) to 51. At 20, a clip took a fifth longer to decode than at 23."""

    def __post_init__(self) -> None:
        """Raise OptionError for values that the encoder does not accept."""
        if self.short_side < 16 or self.short_side % 2:
            raise OptionError(f"short_side={self.short_side} should be an even number of pixels, 16 or more")
        if self.keyframe_interval_frames < 1:
            raise OptionError(f"keyframe_interval_frames={self.keyframe_interval_frames} should be at least 1")
        if not 0 <= self.crf <= 51:
            raise OptionError(f"crf={self.crf} should be from 0 to 51")


@dataclass(frozen=True, kw_only=True, slots=True)
class NotCopied:
    """A file that could not be copied."""

    source: str
    message: str
    is_of_output: bool = False
    """Whether writing failed, so that no other copy can be written either, such as on a full disk."""

    @classmethod
    def of_lost(cls, source: str, path: str, lost: Lost) -> NotCopied:
        """A file whose process has died, or took too long."""
        return cls(source=source, message=f"{path!r}: {lost.reason}; leave it out, or convert it")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Result of ``prepare``."""

    out: Path
    copies: tuple[Copy, ...]
    """All copies in OUT."""
    num_new: int
    """The number of copies made by this call."""
    failures: tuple[NotCopied, ...]
    source_bytes: int
    """Total size of the originals that were copied."""

    @property
    def table(self) -> Path:
        """The CSV file of the copy, for ``tada train``."""
        return self.out / "videos.csv"


@dataclass(frozen=True, slots=True)
class _Task:
    source: str
    relative: str
    target: str
    file: str
    """As ``Copy.file``."""
    earlier: tuple[str, ...]
    """As ``Copy.earlier``."""
    fps: float | None
    """Frame rate of a folder of frames, in frames per second."""


@holds("out")
def prepare(
    table: VideoTable,
    out: Path,
    options: PrepareOptions | None = None,
    *,
    num_processes: int | None = None,
    timeout_seconds: float = 3600.0,
    pool: Pool | None = None,
    show_progress: bool = True,
) -> Prepared:
    """Copy a data set's videos to ``out``, small and with many key frames; continues where an earlier call stopped.

    A copy is written completely or not at all, and made again if the original has changed. A file that cannot be read,
    or on which the decoder crashes, is reported in ``Prepared.failures``, and the others are copied.

    Args:
        timeout_seconds: for one file.
        pool: what copies the files: by default processes of this machine, or ``tada.jobs.ray_tasks.on_cluster``, whose
            nodes see the originals and ``out`` under the same paths.

    Raises:
        OptionError: ``out`` has copies that were made with other options, or contains the originals.
        DataError: two files would get the same name, or no file could be copied.
        OutputError: the folder cannot be written, another process writes into it, or the disk is full.
    """
    if (out / INDEX).exists():
        raise OptionError(f"{str(out)!r} holds shards ({INDEX}): give --shards, or another folder")
    prepared = make_copies(
        table,
        out,
        options or PrepareOptions(),
        num_processes=num_processes,
        timeout_seconds=timeout_seconds,
        pool=pool,
        show_progress=show_progress,
    )
    check_some_were_made(prepared.failures, len(prepared.copies))
    _write_table(table, out, {copy.source: copy for copy in prepared.copies})
    return prepared


def check_some_were_made(failures: Sequence[NotCopied], num_made: int) -> None:
    """Raise DataError if no file could be copied."""
    if failures and not num_made:
        raise DataError(f"none of {counted(len(failures), 'file')} could be copied; the first: {failures[0].message}")


def make_copies(
    table: VideoTable,
    out: Path,
    options: PrepareOptions,
    *,
    num_processes: int | None,
    timeout_seconds: float,
    pool: Pool | None,
    show_progress: bool,
) -> Prepared:
    """Make the copies of ``prepare``, without the table; also none, if no file can be copied. Raises as it does."""
    tasks = _make_tasks(table, out)
    num_processes = check_num_workers(num_processes or os.cpu_count() or 1)
    (out / COPIES).mkdir(parents=True, exist_ok=True)
    check_options(out / "options.json", asdict(options))
    manifest = out / MANIFEST
    done = read_manifest(manifest)
    copies = {task.source: done[task.relative] for task in tasks if _is_done(task, done.get(task.relative))}
    new = [task for task in tasks if task.source not in copies]
    failures = []
    work = (pool or in_processes)(
        partial(_copy, options=options),
        new,
        num_processes=num_processes,
        timeout_seconds=timeout_seconds,
    )
    folders = {os.path.dirname(task.target) for task in tasks}
    with writing(manifest), manifest.open("ab") as file, _removing_dead_parts(folders), closing(work):
        completed = _complete_identities(copies, tasks)
        copies |= completed
        _write_lines(file, completed.values())
        for task, made in track(work, "copying", len(new), noun="files", is_shown=show_progress):
            if isinstance(made, Lost):
                made = NotCopied.of_lost(task.relative, task.source, made)
            if isinstance(made, Copy):
                copies[task.source] = made
                _write_lines(file, [made])
            elif made.is_of_output:
                raise OutputError(
                    f"{made.message}; {len(copies)} of {len(tasks)} files are done: the same command does the others"
                )
            else:
                failures.append(made)
    return Prepared(
        out=out,
        copies=tuple(copies[task.source] for task in tasks if task.source in copies),
        num_new=len(new) - len(failures),
        failures=tuple(failures),
        source_bytes=sum(copy.source_size_bytes for copy in copies.values()),
    )


@contextmanager
def _removing_dead_parts(folders: set[str]) -> Iterator[None]:
    """Remove at the end the partial files of killed processes, which took too long or were interrupted."""
    try:
        yield
    finally:
        for folder in folders:
            remove_dead_parts(Path(folder))


def _make_tasks(table: VideoTable, out: Path) -> list[_Task]:
    videos = os.path.abspath(out / COPIES)
    if os.path.commonpath([os.path.realpath(videos), os.path.realpath(table.root)]) == os.path.realpath(videos):
        raise OptionError(f"{str(out)!r} contains the originals; give another folder")
    earlier = originals_among(_sizes(video.path for video in table.videos))
    tasks: dict[str, _Task] = {}
    source_of: dict[str, str] = {}
    for video in table.videos:
        if video.path in tasks:
            continue
        if video.is_frames and video.fps is None:
            raise OptionError(no_rate(video.path, "its copy is a video file, which does"))
        relative = table.relative(video)
        file = (relative if video.is_frames else os.path.splitext(relative)[0]) + ".mp4"
        target = os.path.join(videos, file)
        other = source_of.setdefault(target.casefold(), relative)
        if other != relative:
            raise DataError(f"{other!r} and {relative!r} would both become {target!r}; rename one of them")
        if os.path.realpath(target) == os.path.realpath(video.path):
            raise OptionError(f"{str(out)!r} contains the original {relative!r}; give another folder")
        tasks[video.path] = _Task(video.path, relative, target, file, earlier.get(video.path, ()), video.fps)
    return list(tasks.values())


def _sizes(paths: Iterable[str]) -> dict[str, int]:
    """Sizes in bytes of the files that exist; errors of the others are reported when they are copied."""
    sizes = {}
    for path in paths:
        with suppress(OSError, ValueError):
            sizes[path] = stamp_of(path)[0]
    return sizes


def check_options(file: Path, options: Mapping[str, object]) -> None:
    """Write the options of a folder that is begun; refuse to go on with others.

    Raises:
        OptionError: the folder was begun with other options.
    """
    if file.exists():
        try:
            before = dict(read_json(file))
        except (OSError, ValueError, TypeError) as error:
            raise OptionError(f"{str(file)!r} is damaged ({error}); remove it, or give another folder") from error
        if before != options:
            changed = ", ".join(changed_values(before, options))
            raise OptionError(
                f"{str(file.parent)!r} was begun with another {changed}: give another folder, or these options as they "
                "were"
            )
    write_whole(file, (json.dumps(options, indent=2) + "\n").encode())


def _is_done(task: _Task, copy: Copy | None) -> bool:
    if copy is None:
        return False
    try:
        size = os.stat(task.target).st_size
    except OSError:
        return False
    is_same = size == copy.size_bytes and stamp_of(task.source) == (copy.source_size_bytes, copy.source_mtime_ns)
    return is_same and (task.fps is None or math.isclose(task.fps, copy.fps, rel_tol=1e-6))


def _complete_identities(copies: dict[str, Copy], tasks: Iterable[_Task]) -> dict[str, Copy]:
    """Add identities of originals that an older version of tada did not note: their contents, and ``earlier``."""
    contents = content_ids(source for source, copy in copies.items() if not copy.source_content)
    completed = {source: replace(copies[source], source_content=content) for source, content in contents.items()}
    for task in tasks:
        copy = completed.get(task.source, copies.get(task.source))
        if copy is not None and task.earlier and copy.earlier != task.earlier:
            completed[task.source] = replace(copy, earlier=task.earlier)
    return completed


def _write_lines(file: BinaryIO, copies: Iterable[Copy]) -> None:
    for copy in copies:
        about = asdict(copy)
        if not copy.earlier:  # so that older versions of tada read the line too
            del about["earlier"]
        # The first newline ends a line that was cut off before, so that only that one is lost.
        file.write(b"\n" + json.dumps(about).encode("utf-8", "surrogateescape") + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _write_table(table: VideoTable, out: Path, copies: dict[str, Copy]) -> None:
    """Write videos.csv: the rows whose files were copied, with the paths of the copies.

    Args:
        copies: by ``Copy.source``.
    """
    videos = []
    for video in table.videos:
        copy = copies.get(table.relative(video))
        if copy is not None:
            path = os.path.abspath(out / COPIES / copy.file)
            videos.append(replace(video, path=path, stamp=None, is_frames=False, fps=None))
    write_table(replace(table, videos=tuple(videos)), out / "videos.csv", root=out)


# -- one file, in a process of its own --------------------------------------------------------------------------------


def _copy(task: _Task, *, options: PrepareOptions) -> Copy | NotCopied:
    target = Path(task.target)
    try:
        size, mtime_ns = stamp_of(task.source)
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        with open_footage(task.source, fps=task.fps) as video:
            width, height = small_size(video.info.width, video.info.height, options.short_side)
            write_video(
                target,
                _resize_frames(video, width, height),
                crf=options.crf,
                keyframe_interval_frames=options.keyframe_interval_frames,
                fast_decode=True,
                **_timing_arguments(video),
            )
            num_frames, fps = video.info.num_frames, video.info.fps
        return Copy(
            source=task.relative,
            source_size_bytes=size,
            source_mtime_ns=mtime_ns,
            source_sha256=sha256_of(task.source),
            source_content=content_id(task.source),
            earlier=task.earlier,
            file=task.file,
            size_bytes=target.stat().st_size,
            sha256=sha256_of(task.target),
            width=width,
            height=height,
            num_frames=num_frames,
            fps=fps,
            keyframe_interval_frames=options.keyframe_interval_frames,
        )
    except VideoError as error:
        return NotCopied(source=task.relative, message=str(error))
    except OutputError as error:
        return NotCopied(source=task.relative, message=str(error), is_of_output=True)
    except OSError as error:  # the original was removed meanwhile
        return NotCopied(source=task.relative, message=f"{task.source!r} cannot be read: {why_unread(error)}")


def small_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height scaled down to a short side, both rounded to even; smaller videos are not enlarged.

    1280x720 becomes 456x256, 321x241 with a short side of 256 becomes 322x242.
    """
    scale = min(short_side / min(width, height), 1.0)
    return max(round(width * scale / 2) * 2, 2), max(round(height * scale / 2) * 2, 2)


def _resize_frames(video: OpenVideo, width: int, height: int) -> Iterator[npt.NDArray[np.uint8]]:
    reformatter = VideoReformatter()
    for _, pixels in video:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        # Area averaging, so that fine details do not flicker.
        small = reformatter.reformat(frame, width, height, "rgb24", interpolation=Interpolation.AREA, threads=1)
        array: npt.NDArray[Any] = small.to_ndarray()
        yield array


def _timing_arguments(video: OpenVideo) -> dict[str, Any]:
    """Arguments of ``write_video``: the rate if it is fixed, else the time of each frame."""
    times = video.times_seconds
    fps = average_fps(times)
    is_even = len(times) == 1 or float(np.abs(times - np.arange(len(times)) / fps).max()) < _EVEN_SECONDS
    return {"fps": fps} if is_even else {"times_seconds": times.tolist()}
