"""Commands on untrimmed videos: ``tada extract`` (features) and ``localize`` (segments)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from tada.commands.answers import Answers, Columns, Form, csv_form, json_form, json_lines
from tada.commands.arguments import (
    Command,
    add_device,
    add_fps,
    add_windows,
    add_workers,
    check_here,
    check_order,
    picture_files,
    rate_of,
    report_failures,
    reported,
    save_video,
    say_aside,
    video_files,
)
from tada.commands.jobs import MAX_FILE_MB, add_job, job_arguments, report_job
from tada.commands.localize_stream import add_stream, check_stream_options, localize_live
from tada.errors import UserError, VideoError, counted
from tada.system.files import absolute_path
from tada.system.progress import Work, track
from tada.system.signals import advise
from tada.system.terminal import say

if TYPE_CHECKING:
    from tada.localization.annotations.table import UntrimmedVideo
    from tada.localization.localizer import Localization
    from tada.recognition.recognizer import Recognizer
    from tada.video.sliding_windows import SlidingWindows


def _extract_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=str,
        help="the folder of a run, weights that ship with tada, or hf-hub:OWNER/NAME; or a localizer, whose features "
        "are then made as it needs them",
    )
    parser.add_argument(
        "videos", type=str, metavar="VIDEO", help="a file, a folder, or a pattern such as 'clips/*.mp4'"
    )
    parser.add_argument(
        "out", type=Path, metavar="DIR", help="a folder for the features; what is in it already is kept"
    )
    add_windows(parser)
    add_device(parser)
    add_fps(parser)
    parser.add_argument("--num-crops", type=Literal[1, 3], default=1, help="the frame's middle, or three side by side")
    parser.add_argument("--batch-size", type=PositiveInt, default=16, help="clips that pass the network at a time")
    parser.add_argument(
        "--shards",
        action="store_true",
        help="for many videos: shards, not two files of each",
    )
    add_workers(parser)
    add_job(parser)


def _extract(options: Namespace) -> int:
    """Write the features of long videos to files.

    They are for `tada localize train --features`, or other work.
    """
    from tada.loading import load
    from tada.localization.annotations.video_names import videos_by_name
    from tada.localization.features.extraction import extract
    from tada.localization.localizer import Localizer
    from tada.video.find import find_videos
    from tada.video.sliding_windows import SlidingWindows

    model = load(options.run, device=options.device)
    if isinstance(model, Localizer):
        recognizer, settings = model.feature_maker()
        if options.window_seconds is not None or options.stride_seconds is not None or options.num_crops != 1:
            raise UserError(
                f"{options.run!r} is a localizer, whose features have a window of {settings.window_seconds:g} s and a "
                f"stride of {settings.stride_seconds:g} s: leave --window-seconds, --stride-seconds, --num-crops away"
            )
    else:
        recognizer = model
        settings = SlidingWindows.for_clips(
            recognizer.clip,
            window_seconds=options.window_seconds,
            stride_seconds=options.stride_seconds,
            num_crops=options.num_crops,
        )
    if options.shards or options.ray is not None:
        return _extract_job(recognizer, settings, options)
    if options.allow or options.num_workers is not None or options.max_file_mb != MAX_FILE_MB:
        raise UserError("--allow, --max-file-mb and --num-workers go with --shards or --ray, which write shards")
    check_here([options.videos], "these go with --shards or --ray, which write shards of features")
    paths = find_videos([options.videos], say_aside)
    files = videos_by_name(paths, options.videos if Path(options.videos).is_dir() else None)
    fps = rate_of(paths, options.fps, options.run, needed="features are taken at times")
    advise(lambda state: "the features that were written stay: the same command goes on")
    done = extract(
        recognizer,
        files,
        options.out,
        settings,
        fps=fps,
        batch_size=options.batch_size,
    )
    print(f"{counted(len(done.written), 'video')} extracted, {len(done.kept)} there already; one feature every")
    say(f"{settings.stride_seconds:.3f} s, of {settings.window_seconds:.3f} s of video each; they are in {options.out}")
    for line in done.lines():
        say(line)
    return report_failures("no features", (failure.message for failure in done.failures))


def _extract_job(recognizer: Recognizer, windows: SlidingWindows, options: Namespace) -> int:
    """Features of many videos as shards in a folder."""
    from tada.jobs.run import extract_into

    arguments = job_arguments(options, batch_size=options.batch_size)
    summary = extract_into(options.out, recognizer, options.run, [options.videos], windows, **arguments)
    return report_job(summary, options.out)


def _localize_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run of `tada localize train`")
    parser.add_argument(
        "videos", type=str, nargs="+", metavar="VIDEO", help="files, folders, or patterns such as 'clips/*.mp4'"
    )
    parser.add_argument(
        "--format", type=Literal["table", "json", "jsonl", "csv", "srt"], default="table", help="what is printed"
    )
    add_fps(parser)
    parser.add_argument("--min-score", type=float | None, default=None, help="in place of each class's own threshold")
    parser.add_argument(
        "--plots", type=Path | None, metavar="DIR", default=None, help="a folder for one timeline of each video"
    )
    parser.add_argument(
        "--segments", type=Path | None, metavar="FILE", default=None, help="annotations to draw below what is found"
    )
    parser.add_argument(
        "--save-video",
        type=Path | None,
        metavar="DIR",
        default=None,
        help="a folder for a copy of each video with segments drawn in",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there of --save-video")
    add_device(parser)
    add_stream(parser)
    parser.first = dict.fromkeys(
        ("run", "videos", "fps", "format", "min_score", "plots", "save_video", "segments", "device", "stream")
    )
    parser.topics = {"stream": ("*_seconds",), "what else": ("*",)}


def _localize(options: Namespace) -> int:
    """Say what happens in long videos, and when."""
    check_stream_options(options)
    check_order(options.run, options.videos, command="tada localize")
    if options.stream:
        from tada.localization.localizer import load_localizer

        return localize_live(load_localizer(options.run, device=options.device), options)
    answers: Answers[Localization] = Answers(options.format)
    found: list[Localization] = []
    failures = []
    with reported(answers.end):
        from tada.localization.localizer import load_localizer
        from tada.video.find import find_videos

        check_here(options.videos, "give videos of this machine, a folder or a pattern")
        paths = find_videos(options.videos, say_aside)
        pictures = picture_files(options.plots, paths)
        videos = video_files(options.save_video, paths, overwrite=options.overwrite)
        fps = rate_of(paths, options.fps, options.run, needed="a localizer says when things happen")
        localizer = load_localizer(options.run, device=options.device)
        truths, labels = _truths(options.segments, paths, fps)
        advise(lambda state: f"{answers.count} of {len(paths)} videos were answered")
        answers.begin(_form(options.format, paths))
        with Work("localizing", len(paths), noun="videos") as work:
            for done, path in enumerate(paths, start=1):
                work.details = [Path(path).name]
                try:
                    localization = localizer.localize(
                        path,
                        fps=fps if Path(path).is_dir() else None,
                        min_score=options.min_score,
                        advance=work.advance,
                    )
                except VideoError as error:
                    failures.append(str(error))
                else:
                    answers.add(localization)
                    found.append(localization)
                work.advance_to(done)
    code = report_failures("not localized", failures)
    lost: list[str] = []
    for localization in track(found, "drawing", noun="videos", is_shown=bool(pictures)):
        path = localization.path
        try:
            if path in pictures:
                localization.plot(pictures[path], truth=truths.get(path), names=labels.get(path, ()))
        except VideoError as error:  # it has changed since
            lost.append(str(error))
        else:
            if path in videos:
                lost += save_video(localization, videos[path], overwrite=options.overwrite)
    return max(code, report_failures("not drawn", lost))


def _truths(
    segments: Path | None, paths: Sequence[str], fps: float | None
) -> tuple[dict[str, UntrimmedVideo], dict[str, list[str]]]:
    """The annotations of some videos by path, and their segments' classes; both empty without an annotation file."""
    from tada.localization.annotations.table import named_like, read_segments
    from tada.localization.annotations.video_names import videos_by_name

    if segments is None:
        return {}, {}
    files = videos_by_name(paths)
    folder = Path(os.path.commonpath([os.path.dirname(absolute_path(path)) for path in paths]))
    known = {name: str(file.absolute()) for name, file in files.items()}
    table = named_like(read_segments(segments, folder, fps=fps), known)
    truths = {str(files[video.name]): video for video in table.videos if video.name in files}
    labels = {path: [table.label_of(segment) for segment in truth.segments] for path, truth in truths.items()}
    return truths, labels


def _form(form: str, paths: Sequence[str]) -> Form[Localization]:
    """The output format for a value of --format."""
    from tada.localization.localizer import localizations_csv

    def rows(localization: Localization) -> str:
        if not localization.segments:
            return columns.row(localization.path, [], ["nothing that reaches its threshold"])
        return "".join(
            columns.row(
                "" if i else localization.path,
                [f"{s.start_seconds:.2f} s", f"{s.end_seconds:.2f} s", f"{s.score:.2f}"],
                [s.label],
            )
            for i, s in enumerate(localization.segments)
        )

    if form in ("json", "jsonl"):
        return (json_form if form == "json" else json_lines)(lambda answer: answer.as_dict())
    if form == "csv":
        return csv_form(localizations_csv)
    if form == "srt":
        return Form(text=lambda answer: answer.srt(), starts=("", "\n"))
    columns = Columns(("video", "start", "end", "score", "what happens"), paths, [10, 10, 5])
    return Form(text=rows, head=columns.head())


COMMANDS: dict[str, Command] = {
    "extract": (_extract_arguments, _extract),
    "localize": (_localize_arguments, _localize),
}
