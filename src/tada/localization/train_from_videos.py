"""Training a localizer from untrimmed videos and their annotated segments; each step can be resumed.

    videos, segments -> checked table -> (trimmed clips -> backbone) -> features -> detector

Beside the run OUT, the steps write OUT_features and, if no backbone was given, OUT_clips and OUT_backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from tada.errors import DataError, VideoError, counted, listed
from tada.localization.annotations.table import (
    VAL_FRACTION,
    SegmentTable,
    check_for_training,
    named_like,
    read_segments,
    with_durations,
    with_splits,
)
from tada.localization.annotations.video_names import KnownVideos, videos_by_name
from tada.localization.features.extraction import extract
from tada.localization.localizer import Localizer
from tada.localization.recipe import LocalizationRecipe
from tada.localization.training import train_localizer
from tada.localization.trimmed import CLIPS_TABLE, copy_notes, cut_clips, replaced_videos, segments_changed
from tada.models.weights import CARD_FILE
from tada.recognition.recipe import Recipe
from tada.recognition.recognizer import load_recognizer
from tada.recognition.training import train
from tada.system.devices import check_num_workers, find_device
from tada.system.locks import held_folder, holds, is_used
from tada.system.progress import track
from tada.training.recipe import METRICS_FILE, RECIPE_FILE
from tada.training.run_folder import TrainingResult, check_free, was_begun
from tada.video.find import find_videos
from tada.video.frames import check_rate, probe_footage
from tada.video.sliding_windows import SlidingWindows

_FEW = 9  # videos whose frame rates are read, as an estimate for all


@holds("out")
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
    val_fraction: float = VAL_FRACTION,
    resume: bool = False,
    skip_unreadable: int = 0,
    num_workers: int | None = None,
    device: str | None = None,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> TrainingResult:
    """Train a localizer on videos.

    Args:
        videos: a folder with all annotated videos, at any depth.
        segments: an annotation file or folder, as for ``read_segments``.
        backbone: a recognizer, as for ``load_recognizer``. By default, one is trained on the segments, cut out of the
            videos.
        backbone_recipe: recipe of that training; by default that of `tada train`.
        window_seconds: length of a feature's clip; see ``SlidingWindows.for_clips``, as for ``stride_seconds``.
        skip_unreadable: how many videos may be missing or unreadable; they are named, and left out.

    Raises:
        UserError: a fault in the data, the recipe or a video, or a folder that is already in use.
        OutputError: the folder, or one beside it, cannot be written, or another process writes into it.
    """
    out = out.resolve() if out.name in ("", "..") else out  # a name, after which the folders beside it are named
    device = find_device(device)
    if num_workers is not None:
        check_num_workers(num_workers)
    if resume:
        was_begun(out)
    else:
        check_free(out)
    for beside in ("features",) if backbone is not None else ("features", "clips", "backbone"):
        with held_folder(out.with_name(f"{out.name}_{beside}")):
            pass  # checks that the folder can be written, and that no other process does
    fps = recipe.fps
    table = read_segments(segments, videos, fps=fps)
    table, files = match_videos(
        table, videos, fps=fps, skip_unreadable=skip_unreadable, show_progress=show_progress, say=say
    )
    table = with_splits(table, val_fraction=val_fraction, seed=recipe.seed)
    told: list[str] = []
    check_for_training(table, told.append)
    for line in told:
        say(line)
    lengths = [segment.seconds for video in table.of_split("train").videos for segment in video.segments]
    settings_for = partial(
        SlidingWindows.for_clips,
        window_seconds=window_seconds,
        stride_seconds=stride_seconds,
        segment_seconds=lengths,
        frame_seconds=_median_frame_seconds(files.values(), fps),
    )
    if backbone is None:
        settings_for((backbone_recipe or Recipe()).clip)  # raise errors in the segments before the backbone is trained
        backbone = str(
            _train_backbone(
                table,
                files,
                out,
                backbone_recipe or Recipe(),
                fps=fps,
                skip_unreadable=skip_unreadable,
                num_workers=num_workers,
                show_progress=show_progress,
                say=say,
            )
        )
    recognizer = load_recognizer(backbone, device=device)
    settings = settings_for(recognizer.clip)
    say(f"features of {settings.window_seconds:.2f} s of video, one every {settings.stride_seconds:.3f} s")
    features = out.with_name(f"{out.name}_features")
    done = extract(recognizer, files, features, settings, fps=fps, show_progress=show_progress)
    say(f"features of {counted(len(done.written), 'video')} extracted, of {len(done.kept)} there already")
    for line in done.lines():
        say(line)
    names = {str(file): name for name, file in files.items()}
    reasons = {names[failure.path]: failure.message for failure in done.failures}
    table = table.without(reasons, allowed=skip_unreadable, say=say)
    return train_localizer(
        recipe,
        features,
        table,
        out,
        backbone=recognizer,
        resume=resume,
        show_progress=show_progress,
        say=lambda line: None if line in told else say(line),  # notes on the annotations were printed above
    )


def _median_frame_seconds(files: Iterable[Path], fps: float | None) -> float:
    """Duration of a frame: the median over a few of the videos."""
    few = [probe_footage(file, fps=fps) for file in islice(files, _FEW)]
    return float(np.median([info.duration_seconds / info.num_frames for info in few]))


def _train_backbone(
    table: SegmentTable,
    files: dict[str, Path],
    out: Path,
    recipe: Recipe,
    *,
    fps: float | None,
    skip_unreadable: int,
    num_workers: int | None,
    show_progress: bool,
    say: Callable[[str], None],
) -> Path:
    """Train a recognizer on the segments, unless an earlier run has; return the folder of its run."""
    labels = table.labels_of("train")
    if len(labels) == 1:
        raise DataError(
            f"{table.name}: all training segments are of one class, {labels.pop()!r}: a backbone cannot learn from "
            "these to tell classes apart; give one with --backbone, a run or tada2d_tiny_motion, which ships with tada"
        )
    run, folder = out.with_name(f"{out.name}_backbone"), out.with_name(f"{out.name}_clips")
    is_begun = is_used(run)
    is_ours = (run / RECIPE_FILE).exists()
    is_trained = (run / (METRICS_FILE if is_ours else CARD_FILE)).exists()
    if is_begun:
        _check_clips(table, files, fps, run, folder if (folder / CLIPS_TABLE).exists() else run)
    if is_trained and not (folder / CLIPS_TABLE).exists():
        return run
    clips = cut_clips(
        table, files, folder, fps=fps, skip_unreadable=skip_unreadable, show_progress=show_progress, say=say
    )
    if not is_trained:
        say(f"training a backbone on {len(clips)} segment{'s' * (len(clips) != 1)}")
        train(recipe, clips, run, resume=is_ours, num_workers=num_workers, show_progress=show_progress, say=say)
    copy_notes(folder, run)
    return run


def _check_clips(table: SegmentTable, files: dict[str, Path], fps: float | None, run: Path, noted: Path) -> None:
    """Refuse a backbone that was trained on clips of other segments or videos than the present ones.

    Args:
        noted: the folder with the notes on segments and videos: that of the clips, or of the run.

    Raises:
        DataError: the segments or videos have changed.
    """
    replaced = replaced_videos(files, noted)
    if replaced or segments_changed(table, noted, fps):
        what = f"the videos {listed(replaced)}, which were replaced since" if replaced else "other segments"
        folders = {run, noted, run.with_name(f"{run.name.removesuffix('_backbone')}_clips")}
        raise DataError(
            f"{str(run)!r} was trained on clips of {what}: remove {listed(sorted(map(str, folders)))} to cut and train "
            f"anew, or keep the network as it is with --backbone {run}"
        )


def features_for(
    localizer: Localizer,
    videos: Path,
    segments: Path,
    features: Path,
    *,
    fps: float | None = None,
    skip_unreadable: int = 0,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> SegmentTable:
    """Extract features of annotated videos for a localizer, to evaluate it on these videos.

    Args:
        videos: a folder with all annotated videos, at any depth.
        features: a folder for the features; features that it already has are kept.
        fps: frame rate of folders of frames, in frames per second; by default that of the localizer's training.
        skip_unreadable: how many videos may be missing or unreadable; they are named, and left out.

    Returns:
        The annotations, with the videos' durations.

    Raises:
        DataError: videos are missing, or cannot be read.
        CheckpointError: the localizer has no network to make features.
    """
    backbone, settings = localizer.feature_maker()
    if fps is None and localizer.recipe.fps is not None and _has_frames(videos):
        fps = localizer.recipe.fps
        way_out = "--fps (fps in Python) changes it"
        say(f"folders of frames are read at {fps:g} frames per second, as in the localizer's training; {way_out}")
    table = read_segments(segments, videos, fps=fps)
    table, files = match_videos(
        table, videos, fps=fps, skip_unreadable=skip_unreadable, show_progress=show_progress, say=say
    )
    done = extract(backbone, files, features, settings, fps=fps, show_progress=show_progress)
    extracted = counted(len(done.written), "video")
    say(f"features of {extracted} extracted into {features}, of {len(done.kept)} there already")
    for line in done.lines():
        say(line)
    names = {str(file): name for name, file in files.items()}
    reasons = {names[failure.path]: failure.message for failure in done.failures}
    return table.without(reasons, allowed=skip_unreadable, say=say)


def _drop_twins(videos: list[str], say: Callable[[str], None]) -> list[str]:
    """Drop folders of frames that have the name of a video file: its extracted frames."""
    files = {Path(video).stem for video in videos if not Path(video).is_dir()}
    twins = [video for video in videos if Path(video).is_dir() and Path(video).name in files]
    if twins:
        say(f"folders of frames that are called as video files are, and are passed over for these: {listed(twins)}")
    return [video for video in videos if video not in twins]


def _has_frames(folder: Path) -> bool:
    def quiet(line: str) -> None:
        pass

    return folder.is_dir() and any(
        Path(video).is_dir() for video in _drop_twins(find_videos([str(folder)], quiet), quiet)
    )


def match_videos(
    table: SegmentTable,
    folder: Path,
    *,
    fps: float | None = None,
    skip_unreadable: int = 0,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> tuple[SegmentTable, dict[str, Path]]:
    """Find the file, or the folder of frames, of every annotated video, and check its segments against its length.

    Args:
        fps: frame rate of folders of frames, in frames per second.

    Raises:
        OptionError: folders of frames without ``fps``, or ``fps`` without such folders.
        DataError: files are missing, or more than ``skip_unreadable`` cannot be opened.
    """
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is no folder; give the folder of the videos")
    files = videos_by_name(_drop_twins(find_videos([str(folder)], say), say), folder)
    places = {name: str(file.absolute()) for name, file in files.items()}
    table = named_like(table, places, say)
    missing = [video.name for video in table.videos if video.segments and video.name not in files]
    if len(missing) > skip_unreadable:
        raise DataError(
            f"{table.name}: {len(missing)} of {counted(len(table.videos), 'video')} are not in {str(folder)!r}, the "
            f"first: {missing[0]!r}{_hint_elsewhere(missing[0], places)}; put them there, take their rows away, or let "
            "N videos be missing with --skip-unreadable N"
        )
    empty = [video.name for video in table.videos if not video.segments and video.name not in files]
    if empty:
        say(f"{table.name}: videos without segments that are not in {str(folder)!r} are left out: {listed(empty)}")
        table = replace(table, videos=tuple(video for video in table.videos if video.name not in empty))
    files = {video.name: files[video.name] for video in table.videos if video.name in files}
    check_rate(list(files.values()), fps, needed="segments are in seconds")
    durations = {}
    unreadable = {name: f"{table.name}: the video {name!r} is not in {str(folder)!r}" for name in missing}
    for name, file in track(files.items(), "opening videos", noun="videos", is_shown=show_progress):
        try:
            durations[name] = probe_footage(file, fps=fps).duration_seconds
        except VideoError as error:
            unreadable[name] = str(error)
    table = table.without(unreadable, allowed=skip_unreadable, say=say)
    return with_durations(table, durations), {name: files[name] for name in durations}


def _hint_elsewhere(name: str, places: dict[str, str]) -> str:
    """Part of a message: where a video of this name lies in another folder, if there is one."""
    place = KnownVideos(places).elsewhere(name)
    return "" if place is None else f" ({place!r} lies in another folder)"
