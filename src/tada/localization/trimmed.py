"""Trimmed clips: each segment of untrimmed videos as a video file, to train a recognizer on.

Their folder holds::

    VIDEO_NUMBER.mp4    the clips
    clips.csv           path, label and split of each clip; written last, so a folder with this file is complete
    segments.sha256     hash of the segments
    videos.json         the videos they were cut from, with their content
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tada.data.annotations import read_dataset
from tada.data.csv_rows import guarded
from tada.data.table import VideoTable
from tada.errors import DataError, VideoError, listed
from tada.localization.annotations.table import SegmentTable, UntrimmedVideo
from tada.localization.features.sources import Source
from tada.system.documents import MAX_LIST_BYTES, read_json, typed
from tada.system.files import write_whole
from tada.system.locks import holds
from tada.system.progress import track
from tada.video.frames import OpenVideo, open_footage
from tada.video.transforms import shrink_to
from tada.video.writer import write_video

CLIPS_TABLE = "clips.csv"
_FRAMES_AT_ONCE = 16
_SEGMENTS, _VIDEOS = "segments.sha256", "videos.json"


@holds("out")
def cut_clips(
    table: SegmentTable,
    files: Mapping[str, Path],
    out: Path,
    *,
    short_side: int = 256,
    fps: float | None = None,
    skip_unreadable: int = 0,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> VideoTable:
    """Cut every segment out of its video into a file.

    Args:
        table: with splits. With two heads, the class is the pair of names. If the splits differ in their classes,
            a recognizer cannot be tested fairly: then only the training videos are cut.
        out: folder of the clips. If it has clips of the same segments and videos, they are kept; if a video has been
            replaced since, all clips are cut again.
        short_side: largest short side of the clips, in pixels.
        fps: frame rate of folders of frames, in frames per second.
        skip_unreadable: how many videos may be unreadable; they are named, and left out.

    Raises:
        DataError: more videos are unreadable; the folder has clips of other segments.
    """
    listing = out / CLIPS_TABLE
    if listing.exists():
        if not (out / _SEGMENTS).exists() or segments_changed(table, out, fps):
            raise DataError(
                f"{str(out)!r} holds clips of other segments than {table.name} has now; remove it, and the backbone "
                "that was trained on them, or choose another --out"
            )
        replaced = replaced_videos(files, out)
        if not replaced:
            if not (out / _VIDEOS).exists():
                say(f"{out}: clips that an older tada cut do not say of which videos: taken to be of those there now")
            return read_dataset(listing)
        say(f"replaced since clips were cut, which is therefore done anew: {listed(replaced)}")
        listing.unlink()
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / _SEGMENTS, _hash_segments(table, fps).encode())
    _write_sources(table, files, out / _VIDEOS)
    rows: list[tuple[str, str, str]] = []
    unreadable: dict[str, str] = {}
    classes = {split: table.labels_of(split) for split in table.splits}
    if any(labels != classes["train"] for labels in classes.values()):
        table = table.of_split("train")
    for video in track(table.videos, "cutting clips", noun="videos", is_shown=show_progress):
        try:
            names = _cut(video, files[video.name], out, short_side, fps)
        except VideoError as error:
            unreadable[video.name] = str(error)
            continue
        labels = [table.label_of(segment) for segment in video.segments]
        rows += [
            (guarded(name), guarded(label), video.split or "train") for name, label in zip(names, labels, strict=True)
        ]
    table.without(unreadable, allowed=skip_unreadable, say=say)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "label", "split"), *rows])
    write_whole(listing, text.getvalue().encode(errors="surrogateescape"))
    return read_dataset(listing)


def _cut(video: UntrimmedVideo, file: Path, out: Path, short_side: int, fps: float | None) -> list[str]:
    """Write a clip of each segment; return their file names."""
    names = []
    (out / video.name).parent.mkdir(parents=True, exist_ok=True)
    with open_footage(file, fps=fps) as reader:
        times = reader.times_seconds
        for number, segment in enumerate(video.segments):
            shown = (times >= segment.start_seconds - 1e-6) & (times < segment.end_seconds)
            frames = np.flatnonzero(shown).tolist() or [int(np.abs(times - segment.start_seconds).argmin())]
            names.append(f"{video.name}_{number:03}.mp4")
            write_video(out / names[-1], _read_small_frames(reader, frames, short_side), fps=reader.info.fps)
    return names


def _read_small_frames(reader: OpenVideo, indices: list[int], short_side: int) -> Iterator[NDArray[np.uint8]]:
    """Yield frames [H, W, 3] with even sides, the short one at most ``short_side``."""
    for start in range(0, len(indices), _FRAMES_AT_ONCE):
        part = indices[start : start + _FRAMES_AT_ONCE]
        frames = reader.frames(part, shrink=partial(shrink_to, short_side=short_side))
        height, width = (side // 2 * 2 for side in frames.shape[1:3])
        yield from frames[:, :height, :width]


# -- notes on the segments and videos, in folders of clips and of recognizers -----------------------------------------


def segments_changed(table: SegmentTable, folder: Path, fps: float | None = None) -> bool:
    """Whether a folder's note is of other segments or another frame rate; false if it has no note."""
    note = folder / _SEGMENTS
    return note.exists() and note.read_text(encoding="utf-8") != _hash_segments(table, fps)


def _hash_segments(table: SegmentTable, fps: float | None) -> str:
    """Fingerprint of the segments and of the frame rate of folders of frames."""
    return table.fingerprint() + ("" if fps is None else f" at {fps!r}")


def replaced_videos(files: Mapping[str, Path], folder: Path) -> list[str]:
    """Names of the videos whose content differs from a folder's note; none if it has no note."""
    replaced = []
    for name, source in _read_sources(folder / _VIDEOS).items():
        try:
            if name in files and not source.is_now(files[name]):
                replaced.append(name)
        except OSError:  # the file is gone: the code that needs it raises
            continue
    return replaced


def copy_notes(clips: Path, run: Path) -> None:
    """Copy the notes on segments and videos from a folder of clips to the recognizer trained on them."""
    for note in (_SEGMENTS, _VIDEOS):
        if (clips / note).exists():
            write_whole(run / note, (clips / note).read_bytes())


def _write_sources(table: SegmentTable, files: Mapping[str, Path], note: Path) -> None:
    sources = {}
    for video in table.videos:
        try:
            sources[video.name] = asdict(Source.of(files[video.name]))
        except OSError:  # cutting this video will raise
            continue
    write_whole(note, (json.dumps(sources, indent=1) + "\n").encode())


def _read_sources(note: Path) -> dict[str, Source]:
    if not note.exists():
        return {}
    try:
        return {name: typed(Source, about) for name, about in dict(read_json(note, MAX_LIST_BYTES)).items()}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{str(note)!r} is damaged ({error}); remove {str(note.parent)!r}") from error
