"""From a folder of untrimmed videos and a list of segments to a trained localizer, step by step, each resumable.

    videos, segments -> checked table -> (trimmed clips -> backbone) -> features -> detector

Beside the run OUT lie OUT_clips and OUT_backbone, where no backbone was given, and OUT_features.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from tada.data.annotations import read_dataset
from tada.data.table import VideoTable
from tada.errors import DataError, VideoError
from tada.files import write_whole
from tada.localization.annotations import (
    Segment,
    SegmentTable,
    UntrimmedVideo,
    check_for_training,
    named_like,
    read_segments,
    with_durations,
    with_splits,
)
from tada.localization.extraction import ExtractionSettings, extract, videos_by_name
from tada.localization.forms import video_name
from tada.localization.recipe import LocalizationRecipe
from tada.localization.task import LocalizationResult, check_out, train_localizer
from tada.models.weights import CARD_FILE
from tada.predict import find_videos, load
from tada.recipe import Recipe
from tada.recognition import train
from tada.video.reader import open_video, probe
from tada.video.transforms import resize_short_side
from tada.video.writer import write_video

CLIPS_TABLE = "clips.csv"
_STAMP = "segments.sha256"  # which segments the clips are of


def train_on_videos(
    recipe: LocalizationRecipe,
    videos: Path,
    segments: Path,
    out: Path,
    *,
    backbone: str | None = None,
    backbone_recipe: Recipe | None = None,
    window_seconds: float | None = None,
    stride_seconds: float | None = None,
    val_fraction: float = 0.2,
    resume: bool = False,
    skip_unreadable: int = 0,
    num_workers: int | None = None,
    device: str | None = None,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> LocalizationResult:
    """Train a localizer on videos.

    Args:
        videos: a folder that holds all annotated videos, at any depth.
        segments: what ``read_segments`` takes.
        backbone: what ``tada.predict.load`` takes. By default one is trained on the segments, cut out of the videos.
        backbone_recipe: how; by default as `tada train` does.
        window_seconds: what a feature's clip spans; see ``ExtractionSettings.for_clips``, as for ``stride_seconds``.
        skip_unreadable: how many videos may be missing or turn out unreadable; they are named, and left out.

    Raises:
        UserError: of the data, the recipe, a video, or a folder that is already in use; each says the way out.
    """
    out = out if out.name else out.resolve()  # the folders beside it are named after it
    check_out(out, resume=resume)
    table = read_segments(segments)
    table, files = match_videos(table, videos, skip_unreadable=skip_unreadable, show_progress=show_progress, say=say)
    table = with_splits(table, val_fraction=val_fraction, seed=recipe.seed)
    check_for_training(table, say)
    if backbone is None:
        run, folder = out.with_name(f"{out.name}_backbone"), out.with_name(f"{out.name}_clips")
        if not (run / CARD_FILE).exists() or (folder / CLIPS_TABLE).exists():
            clips = cut_clips(
                table, files, folder, skip_unreadable=skip_unreadable, show_progress=show_progress, say=say
            )
        if not (run / CARD_FILE).exists():
            say(f"training a backbone on {len(clips)} segments")
            is_started = (run / "resume" / "last.ckpt").exists()
            train(
                backbone_recipe or Recipe(),
                clips,
                run,
                resume=is_started,
                num_workers=num_workers,
                show_progress=show_progress,
                say=say,
            )
        backbone = str(run)
    recognizer = load(backbone, device=device)
    lengths = [segment.seconds for segment in _segments_of(table, "train")]
    settings = ExtractionSettings.for_clips(
        recognizer.clip, window_seconds=window_seconds, stride_seconds=stride_seconds, segment_seconds=lengths
    )
    say(f"features of {settings.window_seconds:.2f} s of video, one every {settings.stride_seconds:.3f} s")
    features = out.with_name(f"{out.name}_features")
    done = extract(recognizer, files, features, settings, show_progress=show_progress)
    say(f"features of {len(done.written)} videos extracted, of {len(done.kept)} there already")
    reasons = {video_name(Path(failure.path).name): failure.message for failure in done.failures}
    table = table.without(reasons, allowed=skip_unreadable, say=say)
    return train_localizer(
        recipe,
        features,
        table,
        out,
        backbone=recognizer,
        resume=resume,
        show_progress=show_progress,
        say=say,
    )


def match_videos(
    table: SegmentTable,
    folder: Path,
    *,
    skip_unreadable: int = 0,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> tuple[SegmentTable, dict[str, Path]]:
    """Find the file of every annotated video, and check the segments against how long it is.

    Raises:
        DataError: files are missing, or more than ``skip_unreadable`` cannot be opened.
    """
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is no folder; give the folder of the videos")
    files = videos_by_name(find_videos([str(folder)]))
    table = named_like(table, files)
    missing = [video.name for video in table.videos if video.segments and video.name not in files]
    if len(missing) > skip_unreadable:
        raise DataError(
            f"{table.name}: {len(missing)} of {len(table.videos)} videos are not in {str(folder)!r}, the first: "
            f"{missing[0]!r}; put them there, take their rows away, or let N videos be missing with --skip-unreadable N"
        )
    files = {video.name: files[video.name] for video in table.videos if video.name in files}
    durations = {}
    unreadable = {name: f"{table.name}: the video {name!r} is not in {str(folder)!r}" for name in missing}
    for name, file in track(files.items(), "opening videos", transient=True, disable=not show_progress):
        try:
            durations[name] = probe(file).duration_seconds
        except VideoError as error:
            unreadable[name] = str(error)
    table = table.without(unreadable, allowed=skip_unreadable, say=say)
    return with_durations(table, durations), {name: files[name] for name in durations}


def cut_clips(
    table: SegmentTable,
    files: Mapping[str, Path],
    out: Path,
    *,
    short_side: int = 256,
    skip_unreadable: int = 0,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> VideoTable:
    """Cut every segment out of its video into a file of its own, to train a recogniser on.

    Args:
        table: with splits. Of two label sets both names together are the class. Where a class is in one split only, a
            recogniser cannot be tested fairly: then clips are cut of the training videos alone.
        out: receives the clips and clips.csv (path, label, split), which is written last; a folder with one is kept.
        short_side: larger videos are made so small.
        skip_unreadable: how many videos may turn out unreadable; they are named, and left out.

    Raises:
        DataError: more of them than that; the folder holds clips of other segments.
    """
    listing, stamp = out / CLIPS_TABLE, out / _STAMP
    if listing.exists():
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != table.fingerprint():
            raise DataError(
                f"{str(out)!r} holds clips of other segments than {table.name} has now; remove it, and the backbone "
                "that was trained on them, or choose another --out"
            )
        return read_dataset(listing)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(stamp, table.fingerprint().encode())
    rows: list[tuple[str, str, str]] = []
    unreadable: dict[str, str] = {}
    classes = {split: {table.label_of(s) for s in _segments_of(table, split)} for split in table.splits}
    if any(labels != classes["train"] for labels in classes.values()):
        table = table.of_split("train")
    for video in track(table.videos, "cutting clips", transient=True, disable=not show_progress):
        try:
            names = _cut(video, files[video.name], out, short_side)
        except VideoError as error:
            unreadable[video.name] = str(error)
            continue
        labels = [table.label_of(segment) for segment in video.segments]
        rows += [(name, label, video.split or "train") for name, label in zip(names, labels, strict=True)]
    table.without(unreadable, allowed=skip_unreadable, say=say)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "label", "split"), *rows])
    write_whole(listing, text.getvalue().encode())
    return read_dataset(listing)


def _cut(video: UntrimmedVideo, file: Path, out: Path, short_side: int) -> list[str]:
    """Write a clip of each segment; their names."""
    names = []
    with open_video(file) as reader:
        times = reader.times_seconds
        for number, segment in enumerate(video.segments):
            shown = (times >= segment.start_seconds - 1e-6) & (times < segment.end_seconds)
            frames = np.flatnonzero(shown).tolist() or [int(np.abs(times - segment.start_seconds).argmin())]
            clip = torch.from_numpy(reader.frames(frames))
            if min(clip.shape[1:3]) > short_side:
                clip = resize_short_side(clip, short_side, antialias=True)
            height, width = (side // 2 * 2 for side in clip.shape[1:3])
            names.append(f"{video.name}_{number:03}.mp4")
            write_video(out / names[-1], clip[:, :height, :width].numpy(), fps=reader.info.fps)
    return names


def _segments_of(table: SegmentTable, split: str) -> list[Segment]:
    return [segment for video in table.videos if video.split == split for segment in video.segments]
