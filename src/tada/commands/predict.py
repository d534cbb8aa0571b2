"""``tada predict``: which actions happen in videos."""

from __future__ import annotations

import sys
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
    add_workers,
    check_here,
    check_new,
    model_and_videos,
    picture_files,
    report_failures,
    reported,
    save_video,
    say_aside,
    sources_of,
    video_files,
)
from tada.commands.jobs import MAX_FILE_MB, add_job, check_no_others, job_arguments, report_job
from tada.commands.predict_stream import add_live, check_live_options, recognize_live
from tada.errors import UserError, VideoError, VideoNotFoundError
from tada.system.files import try_folder
from tada.system.progress import Work, track
from tada.system.signals import advise
from tada.system.terminal import printable

if TYPE_CHECKING:
    from tada.recognition.prediction import ClipScores, Prediction
    from tada.recognition.recognizer import Recognizer


def _predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=str | None,
        nargs="?",
        default=None,
        help="the folder of a run, OUT.onnx, weights that ship with tada, or hf-hub:OWNER/NAME; by default the best "
        "weights that ship with tada",
    )
    parser.add_argument(
        "videos",
        type=str,
        nargs="+",
        metavar="VIDEO",
        help="files, folders (also of frames), or patterns such as 'clips/*.mp4'",
    )
    parser.add_argument("--model", type=str | None, default=None, metavar="RUN", help="the same as RUN, by name")
    add_fps(parser)
    parser.add_argument(
        "--format", type=Literal["table", "json", "jsonl", "csv"], default="table", help="what is printed"
    )
    parser.add_argument("--top", type=PositiveInt, default=5, help="classes to name for each video")
    parser.add_argument(
        "--clips", type=PositiveInt | None, default=None, help="number of clips, spread over a video or window"
    )
    parser.add_argument(
        "--window-seconds", type=float | None, default=None, help="divide videos into windows this long"
    )
    parser.add_argument(
        "--plots", type=Path | None, metavar="DIR", default=None, help="a folder for a picture of each video"
    )
    parser.add_argument(
        "--explain",
        type=Path | None,
        metavar="DIR",
        default=None,
        help="a folder for an explanation of each video: a heat map (Grad-CAM), and the kernels' calibration",
    )
    parser.add_argument(
        "--explain-label", type=str | None, default=None, help="class to explain; by default the most probable"
    )
    parser.add_argument(
        "--save-video",
        type=Path | None,
        metavar="DIR",
        default=None,
        help="a folder for a copy of each video with the answer drawn in",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files of --explain and --save-video")
    parser.add_argument("--precision", type=Literal["fp32", "bf16"], default="fp32", help="precision of the network")
    parser.add_argument("--compile", action="store_true", help="compile the network first: worth it for many videos")
    add_workers(parser)
    parser.add_argument(
        "--out",
        type=Path | None,
        metavar="DIR",
        default=None,
        help="a folder for the answers of many videos, as Parquet; the same command goes on where it stopped. VIDEO "
        "may then also be a CSV or Parquet file with a column path, or an address such as s3://bucket/videos/",
    )
    add_job(parser)
    add_live(parser)
    add_device(parser)
    parser.first = dict.fromkeys(
        (
            "run",
            "videos",
            "fps",
            "format",
            "top",
            "clips",
            "window_seconds",
            "plots",
            "explain",
            "save_video",
            "out",
            "ray",
            "device",
        )
    )
    parser.first["out"] = "many videos"
    parser.first["stream"] = "the video is a camera, a pipe or a file that grows"
    parser.topics = {
        "stream": ("*_seconds", "min_score", "skip_late"),
        "speed": ("precision", "compile", "num_workers"),
        "what else": ("*",),
    }


def _predict(options: Namespace) -> int:
    """Say what happens in videos."""
    if options.stream:
        run, (source, *_) = _run_and_videos(options)
        return recognize_live(_load(run, options), source, options)
    if options.out is not None:
        return _predict_job(options)
    if options.ray is not None or options.allow or options.max_file_mb != MAX_FILE_MB:
        raise UserError("--ray, --allow and --max-file-mb go with --out DIR, a folder for the answers")
    answers: Answers[Prediction] = Answers(options.format)
    predictions: list[Prediction] = []
    failures = []
    with reported(answers.end):
        from tada.video.find import find_videos

        run, names = _run_and_videos(options)
        check_here(names, "these go with --out DIR, a folder for the answers")
        paths = find_videos(names, say_aside)
        pictures = picture_files(options.plots, paths)
        videos = video_files(options.save_video, paths, overwrite=options.overwrite)
        recognizer = _load(run, options)
        needed = recognizer.needs_times(options.window_seconds) or ("--save-video writes them" if videos else "")
        sources = sources_of(paths, options.fps, run, needed=needed)
        explanations = _explanation_folders(options, recognizer, paths)
        advise(lambda state: f"{answers.count} of {len(paths)} videos were answered")
        work = Work("predicting", len(paths), noun="videos")
        found = recognizer.predict_all(
            sources,
            num_clips=options.clips,
            window_seconds=options.window_seconds,
            num_workers=options.num_workers,
            advance=work.advance,
        )
        answers.begin(_form(options.format, options.top, paths, several=bool(recognizer.card.thresholds)))
        with work:
            for answer in found:
                if isinstance(answer, VideoError):
                    failures.append(str(answer))
                else:
                    answers.add(answer)
                    predictions.append(answer)
    code = report_failures("no prediction", failures)
    lost: list[str] = []
    is_drawing = bool(pictures or explanations)
    for prediction in track(predictions, "drawing", noun="videos", is_shown=is_drawing):
        path = prediction.path
        try:
            if path in pictures:
                prediction.plot(pictures[path])
            if path in explanations:
                explanation = prediction.explain(label=options.explain_label)
                explanation.save(explanations[path], overwrite=options.overwrite)
                if explanation.note:
                    print(printable(f"tada: {path}: {explanation.note}"), file=sys.stderr)
        except VideoError as error:  # the video has changed since
            lost.append(str(error))
        else:
            if path in videos:
                lost += save_video(prediction, videos[path], overwrite=options.overwrite)
    return max(code, report_failures("not drawn", lost))


def _predict_job(options: Namespace) -> int:
    """Answers of many videos as shards in a folder."""
    from tada.jobs.run import predict_into

    check_no_others(options, ("format", "plots", "explain", "explain_label", "save_video", "compile"))
    run, names = _run_and_videos(options)
    try:
        summary = predict_into(
            options.out,
            run,
            names,
            num_clips=options.clips,
            window_seconds=options.window_seconds,
            top=options.top,
            precision=options.precision,
            **job_arguments(options),
        )
    except VideoNotFoundError as error:
        if options.ray is None:
            raise
        raise VideoNotFoundError(f"{error}; --ray takes HOST:PORT, ray://HOST:PORT or auto") from error
    return report_job(summary, options.out)


def _run_and_videos(options: Namespace) -> tuple[str, list[str]]:
    """The run and the videos of the command line."""
    run, names = model_and_videos(options.model, [*([] if options.run is None else [options.run]), *options.videos])
    check_live_options(options, names)
    return run, names


def _load(run: str, options: Namespace) -> Recognizer:
    import torch

    from tada.recognition.recognizer import load_recognizer

    dtype = torch.bfloat16 if options.precision == "bf16" else None
    return load_recognizer(run, device=options.device, dtype=dtype, compile=options.compile)


def _explanation_folders(options: Namespace, recognizer: Recognizer, paths: Sequence[str]) -> dict[str, Path]:
    """The folder of each video's explanation; empty without --explain. Mistakes are reported before the predictions."""
    from tada.system.files import distinct_names

    if options.explain is None:
        if options.explain_label is not None:
            raise UserError("--explain-label goes with --explain DIR")
        return {}
    recognizer.check_explains(options.explain_label)
    folders = {path: options.explain / name for path, name in distinct_names(paths).items()}
    try_folder(options.explain)
    check_new(folders.values(), overwrite=options.overwrite)
    return folders


def _form(form: str, top: int, paths: Sequence[str], *, several: bool) -> Form[Prediction]:
    """How answers are printed, for each value of --format."""
    from tada.data.multi_label import NONE
    from tada.recognition.prediction import predictions_csv

    def scores(prediction: Prediction, clip: ClipScores | None = None) -> list[str]:
        """The most probable classes with scores; if videos have several labels, those that reach their thresholds."""
        found = prediction.said(clip) if several else prediction.top(top, clip)
        return [f"{label} {score:.2f}" for label, score in found] or [NONE]

    def rows(prediction: Prediction) -> str:
        clips = prediction.clips if len(prediction.clips) > 1 else ()
        of_clips = (columns.row("", [clip.when()], scores(prediction, clip)) for clip in clips)
        return "".join([columns.row(prediction.path, ["all"], scores(prediction)), *of_clips])

    if form in ("json", "jsonl"):
        return (json_form if form == "json" else json_lines)(lambda answer: answer.as_dict(top))
    if form == "csv":
        return csv_form(lambda some: predictions_csv(some, top, several=several))
    columns = Columns(("video", "seconds", "what happens"), paths, [11])
    return Form(text=rows, head=columns.head())


COMMANDS: dict[str, Command] = {
    "predict": (_predict_arguments, _predict),
}
