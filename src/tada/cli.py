"""The command line: reads arguments, calls the library, prints what came of it.

Exit codes: 0 done; 1 done in part (some videos could not be read, something is missing); 2 a mistake in what was
asked, said in one line; 130 interrupted; 143 told to end, with the state saved.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.markup import escape

from tada.errors import UserError, VideoError
from tada.machine import Machine, is_first_process
from tada.recipe import EXPECTED, Recipe, find_recipe, load_recipe, named_recipes, recipe_of
from tada.video.sampling import ClipSpec

if TYPE_CHECKING:
    from tada.data.check import CheckReport
    from tada.data.table import VideoTable
from tada.localization.recipe import LocalizationRecipe, find_localization_recipe
from tada.recipe import typed_recipe

if TYPE_CHECKING:
    from tada.localization.localizer import Localization
    from tada.predict import Prediction
    from tada.results import Evaluation

Command = tuple[Callable[[ArgumentParser], None], Callable[[Namespace], int]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code says how it went."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, commands = _parser()
    try:
        parsed = parser.parse_args(_normalised(arguments) if arguments else ["--help"])
        name = parsed.command
        run = commands[name][1]
        return run(parsed[name])
    except ArgumentError as error:
        message = " ".join(str(error.message).split())
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("tada: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        sys.stdout = None  # nothing is left to flush
        return 0
    if is_first_process():  # the others meet the same mistake
        print(f"tada: {message}", file=sys.stderr)
    return 2


def _parser() -> tuple[ArgumentParser, dict[str, Command]]:
    commands: dict[str, Command] = {
        "quickstart": (_quickstart_arguments, _quickstart),
        "train": (_train_arguments, _train),
        "evaluate": (_evaluate_arguments, _evaluate),
        "predict": (_predict_arguments, _predict),
        "check": (_check_arguments, _check),
        "prepare": (_prepare_arguments, _prepare),
        "extract": (_extract_arguments, _extract),
        "localize": (_localize_arguments, _localize),
        "localize-train": (_localize_train_arguments, _localize_train),
        "localize-evaluate": (_localize_evaluate_arguments, _localize_evaluate),
        "localize-import": (_localize_import_arguments, _localize_import),
        "convert": (_convert_arguments, _convert),
        "publish": (_publish_arguments, _publish),
        "models": (_models_arguments, _models),
        "recipes": (_recipes_arguments, _recipes),
        "doctor": (_doctor_arguments, _doctor),
    }
    parser = ArgumentParser(
        prog="tada",
        description="Understand video with temporally-adaptive convolutions (TAdaConv).",
        exit_on_error=False,
        allow_abbrev=False,
        version=_version(),
    )
    subcommands = parser.add_subcommands(dest="command", required=True, metavar="COMMAND")
    for name, (add_arguments, run) in commands.items():
        assert run.__doc__ is not None
        own = ArgumentParser(description=run.__doc__, exit_on_error=False, allow_abbrev=False)
        add_arguments(own)
        subcommands.add_subcommand(name, own, help=run.__doc__.splitlines()[0])
    return parser, commands


def _version() -> str:
    from importlib.metadata import version

    return version("tada-video")


def _normalised(arguments: Sequence[str]) -> list[str]:
    """Let recipe fields be written with dashes, and read the recipe before the options that change it.

    A run that is resumed brings its own recipe.
    """
    names = {field.name for kind in (Recipe, Machine) for field in fields(kind)}
    names = {field.name for kind in (Recipe, LocalizationRecipe) for field in fields(kind)}
    if arguments[0] == "localize" and arguments[1:2] and arguments[1] in ("train", "evaluate", "import"):
        arguments = [f"localize-{arguments[1]}", *arguments[2:]]
    recipe: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        field = option.removeprefix("--").replace("-", "_")
        if option == "--recipe":
            recipe = [argument] if equals else [argument, *islice(rest, 1)]
        elif option == "--resume":
            run = value if equals else next(rest, "")
            others += ["--resume", run]
            recipe = recipe or ["--recipe", str(Path(run) / "recipe.yaml")]
        elif option.startswith("--") and field.split(".")[0] in names:
            others.append(f"--{field}{equals}{value}")
        else:
            others.append(argument)
    return others[:1] + recipe + others[1:]


# --- the data of several commands ---


def _data_arguments(parser: ArgumentParser, *, optional: bool = False) -> None:
    maybe = {"nargs": "?", "default": None} if optional else {}
    parser.add_argument(
        "data",
        type=Path | None if optional else Path,
        **maybe,
        help="a folder of class folders; a CSV with path,label[,split][,group][,start,end]; or the lists of Kinetics, "
        "Something-Something-v2, EPIC-KITCHENS-100, UCF101, HMDB51: one, or the folder of all",
    )
    parser.add_argument(
        "--videos", "--root", type=Path | None, default=None, help="the folder where the videos of a CSV or list lie"
    )
    parser.add_argument("--fold", type=PositiveInt, default=1, help="which division of UCF101 or HMDB51")


def _dataset(options: Namespace) -> VideoTable:
    from tada.data.annotations import read_dataset

    return read_dataset(options.data, root=options.videos, fold=options.fold)


def _where(options: Namespace) -> str:
    """How the same data are named again, behind DATA."""
    fold = f" --fold {options.fold}" if options.fold != 1 else ""
    return (f" --videos {options.videos}" if options.videos is not None else "") + fold


# --- train ---


class _RecipeFile(ActionConfigFile):  # type: ignore[misc]  # jsonargparse is not typed
    """``--recipe NAME``: the fields of a recipe that comes with tada, or of a YAML file."""

    find = staticmethod(find_recipe)

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        try:
            path = self.find(str(values))
        except UserError as error:
            raise ArgumentError(self, str(error)) from error
        super().__call__(parser, cfg, str(path), option_string)


class _LocalizationRecipeFile(_RecipeFile):
    """The same for localizers."""

    find = staticmethod(find_localization_recipe)


def _train_arguments(parser: ArgumentParser) -> None:
    _data_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/train"), help="the folder of the new run")
    parser.add_argument("--resume", type=Path | None, metavar="RUN", help="continue this run, which was interrupted")
    parser.add_argument("--recipe", action=_RecipeFile, metavar="NAME", help="one of `tada recipes`, or a YAML file")
    parser.add_argument("--val-fraction", type=float, default=0.2, help="part of each class held out for validation")
    parser.add_argument("--val-groups", type=str, default="", help="or: hold out these groups of the CSV, as A,B")
    parser.add_argument("--skip-unreadable", type=NonNegativeInt, default=0, help="videos that may turn out unreadable")
    parser.add_argument("--num-workers", type=NonNegativeInt | None, default=None, help="processes that decode videos")
    parser.add_argument("--save-every-steps", type=PositiveInt | None, help="steps between states to resume from")
    parser.add_class_arguments(Machine)
    parser.add_class_arguments(Recipe)


def _train(options: Namespace) -> int:
    """Train a model on your videos."""
    from tada.recognition import train

    result = train(
        recipe_of({field.name: options[field.name] for field in fields(Recipe)}),
        _dataset(options),
        options.resume or options.out,
        val_fraction=options.val_fraction,
        val_groups=[group for group in options.val_groups.split(",") if group],
        resume=options.resume is not None,
        skip_unreadable=options.skip_unreadable,
        num_workers=options.num_workers,
        save_every_steps=options.save_every_steps,
        machine=_machine(options),
        show_progress=sys.stderr.isatty(),
    )
    if is_first_process():
        print(f"trained in {result.seconds:.0f} s; next:")
        print(f"  tada evaluate {result.run} {options.data}{_where(options)}")
        print(f"  tada predict {result.run} VIDEO")
    return 0


def _machine(options: Namespace) -> Machine:
    return Machine(**{field.name: options[field.name] for field in fields(Machine)})


# --- evaluate ---


def _evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path | None, nargs="?", default=None, help="the folder of a run")
    _data_arguments(parser, optional=True)
    parser.add_argument("--views", type=str, default="1x1", help="clips x crops of each video, such as 10x3")
    parser.add_argument("--split", type=str | None, default=None, help="the part of DATA to test on")
    parser.add_argument(
        "--scores",
        type=Path,
        nargs="+",
        default=[],
        metavar="REPORT",
        help="in place of RUN and DATA: score reports again; of several, the mean of their scores (an ensemble)",
    )
    parser.add_argument("--out", type=Path | None, default=None, help="folder of the report; RUN/evaluation by default")
    parser.add_argument("--epic", type=Path | None, default=None, help="EPIC-KITCHENS-100's annotations: count subsets")
    parser.add_argument("--challenge", type=Path | None, default=None, help="write EPIC-KITCHENS-100's challenge JSON")
    parser.add_argument("--num-workers", type=NonNegativeInt | None, default=None, help="processes that decode videos")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, ...; a GPU by default, if any")
    parser.add_argument("--devices", type=PositiveInt | None, default=None, help="devices that share the videos")
    parser.add_argument("--num_nodes", type=PositiveInt | None, default=None, help="machines, each with --devices")


def _evaluate(options: Namespace) -> int:
    """Test a trained model on videos it has not seen, or score and join earlier tests."""
    result, out = _rescored(options) if options.scores else _tested(options)
    if is_first_process():
        _report(result, out, options)
        for failure in result.unreadable:
            print(f"tada: not tested: {failure.message}", file=sys.stderr)
    return 1 if result.unreadable else 0


def _tested(options: Namespace) -> tuple[Evaluation, Path]:
    from tada.data.clips import Views
    from tada.evaluation import evaluate

    if options.run is None or options.data is None:
        raise UserError("give the folder of a run and the data to test it on, or reports with --scores")
    result = evaluate(
        options.run,
        _dataset(options),
        split=options.split,
        views=Views.parse(options.views),
        num_workers=options.num_workers,
        device=options.device,
        machine=Machine(
            devices=options.devices,
            num_nodes=options.num_nodes,
            accelerator="cpu" if options.device == "cpu" else "auto",
        ),
        show_progress=sys.stderr.isatty(),
    )
    return result, options.out or options.run / "evaluation"


def _rescored(options: Namespace) -> tuple[Evaluation, Path]:
    from tada.results import ensemble, load_scores

    if options.run is not None:
        raise UserError(f"--scores takes reports in place of RUN and DATA: leave {str(options.run)!r} away")
    if options.out is None and len(options.scores) > 1:
        raise UserError("say where the ensemble's report goes, with --out")
    return ensemble([load_scores(path) for path in options.scores]), options.out or options.scores[0]


def _report(result: Evaluation, out: Path, options: Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    if not out.is_file():  # one file of scores that is scored again has its report already
        result.save(out)
    metrics = result.metrics()
    if options.epic is not None:
        from tada.epic import challenge_metrics, read_subsets

        metrics = challenge_metrics(result, read_subsets(options.epic))
        (out / "challenge_metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    if options.challenge is not None:
        from tada.epic import write_challenge

        write_challenge(result, options.challenge)
        print(f"the challenge's JSON is in {options.challenge}: zip it as test.json")
    if metrics and len(result.heads) == 1:
        table = Table("class", "top-1", "videos")
        for label, (top1, count) in result.per_class().items():
            table.add_row(escape(label), f"{top1:.3f}", str(count))
        Console().print(table)
    read, meant = len(result.paths), len(result.paths) + len(result.unreadable)
    names = {"top1": "top-1", "top5": "top-5"}
    numbers = [f"{names.get(name, name)} {value:.4f}" for name, value in metrics.items()]
    print("   ".join([*numbers, f"{read} of {meant} videos"]))
    print(f"the report is in {out}: evaluation.json, scores.npz, scores.csv, pictures of what was confused")


# --- predict ---


def _predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="the folder of a run, weights that ship with tada, or hf-hub:OWNER/NAME")
    parser.add_argument("videos", type=str, nargs="+", help="files, folders, or patterns such as 'clips/*.mp4'")
    parser.add_argument("--format", type=Literal["table", "json", "csv"], default="table", help="what is printed")
    parser.add_argument("--top", type=PositiveInt, default=5, help="classes to name for each video")
    parser.add_argument("--clips", type=int | None, default=None, help="clips spread over a video or window")
    parser.add_argument("--window-seconds", type=float | None, default=None, help="cut videos into windows this long")
    parser.add_argument("--plots", type=Path | None, default=None, help="a folder for one picture of each video")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, ...; a GPU by default, if any")


def _predict(options: Namespace) -> int:
    """Say what happens in videos."""
    from tada.predict import find_videos, load, predictions_csv, predictions_json

    recognizer = load(options.run, device=options.device)
    paths = find_videos(options.videos)
    predictions, failures = [], []
    for path in paths:
        try:
            prediction = recognizer.predict(path, num_clips=options.clips, window_seconds=options.window_seconds)
        except VideoError as error:
            failures.append(str(error))
        else:
            predictions.append(prediction)
            if options.plots is not None:
                prediction.plot(options.plots / f"{Path(path).stem}.png")
    if options.format == "json":
        print(predictions_json(predictions, options.top))
    elif options.format == "csv":
        print(predictions_csv(predictions, options.top), end="")
    else:
        _print_predictions(predictions, options.top)
    for failure in failures:
        print(f"tada: no prediction: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _print_predictions(predictions: Sequence[Prediction], top: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("video", "seconds", "what happens")
    for prediction in predictions:
        table.add_row(escape(prediction.path), "all", _scores_text(prediction.top(top)))
        if len(prediction.clips) > 1:
            for clip in prediction.clips:
                when = f"{clip.start_seconds:.1f}-{clip.end_seconds:.1f}"
                table.add_row("", when, _scores_text(prediction.top(top, clip)))
    Console().print(table)


def _scores_text(scores: Sequence[tuple[str, float]]) -> str:
    return "  ".join(f"{escape(label)} {score:.2f}" for label, score in scores)


# --- check, prepare ---


def _check_arguments(parser: ArgumentParser) -> None:
    _data_arguments(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/check"), help="a folder for the report, and what it knows"
    )
    parser.add_argument("--min-frames", type=PositiveInt, default=8, help="videos with fewer are told of as too short")
    parser.add_argument("--thorough", action="store_true", help="decode every frame, not three of each file")
    parser.add_argument("--num-workers", type=PositiveInt | None, default=None, help="processes that read videos")
    parser.add_argument("--timeout-seconds", type=float, default=120.0, help="longest time for one file")


def _check(options: Namespace) -> int:
    """Look at every file of a data set: unreadable, too short, odd rates, the same in two splits."""
    from tada.data.check import check_dataset

    report = check_dataset(
        _dataset(options),
        options.out,
        min_frames=options.min_frames,
        thorough=options.thorough,
        num_processes=options.num_workers,
        timeout_seconds=options.timeout_seconds,
        show_progress=sys.stderr.isatty(),
    )
    _print_report(report)
    print(f"all of it is in {options.out}: report.json, findings.csv")
    return 1 if report.faults else 0


def _print_report(report: CheckReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if report.findings:
        table = Table("what", "", "count")
        table.add_column("the first", overflow="fold")  # paths whole
        for kind, count in report.counts().items():
            first = next(finding for finding in report.findings if finding.kind == kind)
            table.add_row(kind, "fault" if first.is_fault else "note", str(count), escape(first.message))
        console.print(table)
    for name, classes in report.class_counts().items():
        of_class = sorted((sum(counts.values()), label) for label, counts in classes.items())
        (least, rarest), (most, commonest) = of_class[0], of_class[-1]
        console.print(
            f"{len(of_class)} {name} classes, from {least} ({rarest}) to {most} videos ({commonest})", markup=False
        )
    for name, values in report.spread().items():
        shown = ", ".join(f"{value} ({count})" for value, count in list(values.items())[:5])
        console.print(f"{name}: {shown}{', ...' if len(values) > 5 else ''}", markup=False)
    splits = ", ".join(f"{split} {len(report.table.of_split(split))}" for split in report.table.splits)
    print(f"{len(report.table)} videos{f' ({splits})' if splits else ''} in {len(report.probes)} files", end="")
    print(f", {report.table.coverage()} of those listed" if report.table.missing else "", end="")
    print(f"; {len(report.faults)} faults")


def _prepare_arguments(parser: ArgumentParser) -> None:
    _data_arguments(parser)
    parser.add_argument("out", type=Path, help="the folder of the copy; one that was begun is gone on with")
    parser.add_argument("--short-side", type=PositiveInt, default=256, help="of the copies, in pixels: 256 to 320")
    parser.add_argument("--keyframe-interval", type=PositiveInt, default=16, help="frames from key frame to key frame")
    parser.add_argument("--crf", type=float, default=23.0, help="quality, from 0 (best) to 51")
    parser.add_argument("--num-workers", type=PositiveInt | None, default=None, help="processes that copy videos")
    parser.add_argument("--timeout-seconds", type=float, default=3600.0, help="longest time for one file")


def _prepare(options: Namespace) -> int:
    """Copy a data set's videos, small and with many key frames, so that training reads them many times faster."""
    from tada.data.prepare import PrepareOptions, prepare

    table = _dataset(options)
    prepared = prepare(
        table,
        options.out,
        PrepareOptions(
            short_side=options.short_side, keyframe_interval_frames=options.keyframe_interval, crf=options.crf
        ),
        num_processes=options.num_workers,
        timeout_seconds=options.timeout_seconds,
        show_progress=sys.stderr.isatty(),
    )
    megabytes = [size / 1e6 for size in (prepared.source_bytes, sum(copy.size_bytes for copy in prepared.copies))]
    print(
        f"{len(prepared.copies)} files, {prepared.num_new} of them new: {megabytes[0]:.1f} MB became {megabytes[1]:.1f}"
    )
    if table.kind in ("folder", "CSV"):
        print(f"next:\n  tada train {prepared.table}")
    else:
        print(f"next:\n  tada train {options.data} --videos {options.out / 'videos'}")
    for failure in prepared.failures:
        print(f"tada: not copied: {failure.message}", file=sys.stderr)
    return 1 if prepared.failures else 0


# --- extract, localize ---


def _extract_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="the folder of a run, weights that ship with tada, or hf-hub:OWNER/NAME")
    parser.add_argument("videos", type=str, help="a file, a folder, or a pattern such as 'clips/*.mp4'")
    parser.add_argument("out", type=Path, help="a folder for the features; what is in it already is kept")
    _clip_arguments(parser)
    parser.add_argument("--num-crops", type=Literal[1, 3], default=1, help="the frame's middle, or three side by side")
    parser.add_argument("--batch-size", type=PositiveInt, default=16, help="clips that pass the network at a time")


def _clip_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--window-seconds", type=float | None, default=None, help="what a feature's clip spans")
    parser.add_argument("--stride-seconds", type=float | None, default=None, help="from one feature to the next")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, ...; a GPU by default, if any")


def _extract(options: Namespace) -> int:
    """Write the features of untrimmed videos, for `tada localize train --features` or other work."""
    from tada.localization.extraction import ExtractionSettings, extract, videos_by_name
    from tada.predict import find_videos, load

    recognizer = load(options.run, device=options.device)
    settings = ExtractionSettings.for_clips(
        recognizer.clip,
        window_seconds=options.window_seconds,
        stride_seconds=options.stride_seconds,
        num_crops=options.num_crops,
    )
    done = extract(
        recognizer,
        videos_by_name(find_videos([options.videos])),
        options.out,
        settings,
        batch_size=options.batch_size,
        show_progress=sys.stderr.isatty(),
    )
    print(f"{len(done.written)} videos extracted, {len(done.kept)} were there already; one feature every")
    print(
        f"{settings.stride_seconds:.3f} s, of {settings.window_seconds:.3f} s of video each; they are in {options.out}"
    )
    for failure in done.failures:
        print(f"tada: no features: {failure.message}", file=sys.stderr)
    return 1 if done.failures else 0


def _localize_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("videos", type=str, nargs="+", help="files, folders, or patterns; or train, evaluate, import")
    parser.add_argument("--model", type=Path, required=True, metavar="RUN", help="a run of `tada localize train`")
    parser.add_argument(
        "--format", type=Literal["table", "json", "csv", "srt"], default="table", help="what is printed"
    )
    parser.add_argument("--min-score", type=float | None, default=None, help="in place of each class's own threshold")
    parser.add_argument("--plots", type=Path | None, default=None, help="a folder for one timeline of each video")
    parser.add_argument("--segments", type=Path | None, default=None, help="annotations to draw below what is found")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, ...; a GPU by default, if any")


def _localize(options: Namespace) -> int:
    """Say what happens when in videos. `tada localize train` trains, `tada localize evaluate` tests."""
    from rich.progress import Progress

    from tada.localization.annotations import read_segments
    from tada.localization.forms import video_name
    from tada.localization.localizer import load_localizer, localizations_csv, localizations_json
    from tada.predict import find_videos

    localizer = load_localizer(options.model, device=options.device)
    table = None if options.segments is None else read_segments(options.segments)
    annotated = {} if table is None else {video.name: video for video in table.videos}
    found, failures = [], []
    with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
        for path in find_videos(options.videos):
            bar = progress.add_task(Path(path).name, total=1.0)
            try:
                localization = localizer.localize(
                    path, min_score=options.min_score, advance=partial(progress.advance, bar)
                )
            except VideoError as error:
                failures.append(str(error))
            else:
                found.append(localization)
                if options.plots is not None:
                    truth = annotated.get(video_name(path))
                    names = [] if truth is None or table is None else [table.label_of(s) for s in truth.segments]
                    localization.plot(options.plots / f"{Path(path).stem}.png", truth=truth, names=names)
            progress.remove_task(bar)
    if options.format == "json":
        print(localizations_json(found))
    elif options.format == "csv":
        print(localizations_csv(found), end="")
    elif options.format == "srt":
        print("\n".join(localization.srt() for localization in found), end="")
    else:
        _print_localizations(found)
    for failure in failures:
        print(f"tada: not localized: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _print_localizations(found: Sequence[Localization]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("video", "start", "end", "what happens", "score")
    for localization in found:
        for i, s in enumerate(localization.segments):
            video = escape(localization.path) if i == 0 else ""
            times = f"{s.start_seconds:.2f} s", f"{s.end_seconds:.2f} s"
            table.add_row(video, *times, escape(s.label), f"{s.score:.2f}")
        if not localization.segments:
            table.add_row(escape(localization.path), "", "", "nothing that reaches its threshold", "")
    Console().print(table)


def _localize_train_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--segments", type=Path, required=True, help="a CSV (video,start,end,label[,split]) or a JSON")
    parser.add_argument("--videos", type=Path | None, default=None, help="the folder of the videos")
    parser.add_argument("--features", type=Path | None, default=None, help="or: a folder of features")
    parser.add_argument("--backbone", type=str | None, default=None, help="the network that makes the features, a run")
    parser.add_argument("--backbone-recipe", type=str | None, default=None, help="or: train one by a recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/localize"), help="the folder of the new run")
    parser.add_argument("--resume", type=Path | None, metavar="RUN", help="continue this run, which was interrupted")
    parser.add_argument("--recipe", action=_LocalizationRecipeFile, metavar="NAME", help="by name, or a YAML file")
    parser.add_argument("--val-fraction", type=float, default=0.2, help="part of the videos held out for validation")
    parser.add_argument(
        "--skip-unreadable", type=NonNegativeInt, default=0, help="videos that may lack, or be unreadable"
    )
    parser.add_argument("--num-workers", type=NonNegativeInt | None, default=None, help="processes that decode videos")
    _clip_arguments(parser)
    parser.add_class_arguments(LocalizationRecipe)


def _localize_train(options: Namespace) -> int:
    """Train a localizer on untrimmed videos and a list of segments."""
    if (options.videos is None) == (options.features is None):
        raise UserError("say what to train on: --videos with a folder of videos, or --features with one of features")
    from tada.localization.pipeline import train_on_videos
    from tada.localization.task import train_localizer
    from tada.predict import load

    recipe = typed_recipe({field.name: options[field.name] for field in fields(LocalizationRecipe)}, LocalizationRecipe)
    out = options.resume or options.out
    if options.features is not None:
        result = train_localizer(
            recipe,
            options.features,
            options.segments,
            out,
            backbone=None if options.backbone is None else load(options.backbone, device=options.device),
            val_fraction=options.val_fraction,
            resume=options.resume is not None,
            skip_missing=options.skip_unreadable,
            show_progress=sys.stderr.isatty(),
        )
    else:
        result = train_on_videos(
            recipe,
            options.videos,
            options.segments,
            out,
            backbone=options.backbone,
            backbone_recipe=None if options.backbone_recipe is None else load_recipe(options.backbone_recipe),
            window_seconds=options.window_seconds,
            stride_seconds=options.stride_seconds,
            val_fraction=options.val_fraction,
            resume=options.resume is not None,
            skip_unreadable=options.skip_unreadable,
            num_workers=options.num_workers,
            device=options.device,
            show_progress=sys.stderr.isatty(),
        )
    best = f", mAP {result.metrics['val_map']:.4f}" if "val_map" in result.metrics else ""
    print(f"trained in {result.seconds:.0f} s{best}; next:")
    print(f"  tada localize VIDEO --model {result.run}")
    return 0


def _localize_evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--segments", type=Path, required=True, help="the annotations, as for training")
    parser.add_argument("--model", type=Path | None, default=None, metavar="RUN", help="a run of `tada localize train`")
    parser.add_argument("--features", type=Path | None, default=None, help="features of the videos to test it on")
    parser.add_argument("--predictions", type=Path | None, default=None, help="or: detections in ActivityNet's form")
    parser.add_argument("--preset", type=Literal["anet", "hacs", "thumos", "epic"], default="thumos", help="thresholds")
    parser.add_argument("--split", type=str | None, default=None, help="the part of the annotations to test on")
    parser.add_argument("--out", type=Path | None, default=None, help="folder of the report; RUN/evaluation by default")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, ...; a GPU by default, if any")


def _localize_evaluate(options: Namespace) -> int:
    """Measure the mean average precision of a localizer, or of detections in a file."""
    from rich.console import Console
    from rich.table import Table

    from tada.localization.evaluation import evaluate_localizer, evaluate_predictions
    from tada.localization.localizer import load_localizer
    from tada.localization.metrics import PRESETS
    from tada.localization.report import write_report

    thresholds: dict[str, float] = {}
    tious = PRESETS[options.preset]
    if options.predictions is not None and options.model is None:
        result = evaluate_predictions(options.predictions, options.segments, tiou_thresholds=tious, split=options.split)
        out = options.out
    elif options.model is not None and options.features is not None and options.predictions is None:
        localizer = load_localizer(options.model, device=options.device)
        thresholds = localizer.card.thresholds
        result = evaluate_localizer(
            localizer,
            options.features,
            options.segments,
            tiou_thresholds=tious,
            split=options.split,
            show_progress=sys.stderr.isatty(),
        )
        out = options.out or options.model / "evaluation"
    else:
        raise UserError("say what to measure: --model RUN with --features DIR, or --predictions FILE")
    for task, scores in result.tasks().items():
        table = Table(task, *(f"{t:g}" for t in tious), "average")
        for label, values in scores.per_class.items() if len(scores.per_class) <= 40 else ():
            table.add_row(escape(label), *(f"{value:.3f}" for value in values), f"{sum(values) / len(values):.3f}")
        table.add_section()
        table.add_row("mAP", *(f"{value:.4f}" for value in scores.per_threshold), f"{scores.average:.4f}")
        Console().print(table)
    if out is not None:
        result.save(out)
        title = f"{options.model or options.predictions} on {options.segments}"
        write_report(out / "report.html", result.table, result.results, result.tasks(), thresholds, title=title)
        print(f"the report is in {out}: report.html, evaluation.json, detections.json")
    return 0


def _localize_import_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a folder of published features: npy, npz, pt, h5, csv, pkl")
    parser.add_argument("out", type=Path, help="a new folder for them in our form")
    parser.add_argument("--fps", type=float, required=True, help="the rate that their frames were counted at")
    parser.add_argument("--stride", type=float, required=True, help="frames from one feature to the next")
    parser.add_argument("--clip-frames", type=float, required=True, help="frames that a clip spans")
    parser.add_argument(
        "--offset", type=float | None, default=None, help="middle of the first clip; half a clip if not"
    )
    parser.add_argument("--segments", type=Path | None, default=None, help="annotations, for the videos' durations")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read pickles, which may run code: only trusted ones"
    )


def _localize_import(options: Namespace) -> int:
    """Bring published features into our form, with the times at which they were taken."""
    from tada.localization.annotations import read_segments
    from tada.localization.grid import FeatureGrid
    from tada.localization.importing import import_features

    durations = None
    if options.segments is not None:
        videos = read_segments(options.segments).videos
        durations = {video.name: video.duration_seconds for video in videos if video.duration_seconds is not None}
    grid = FeatureGrid.of_frames(
        fps=options.fps, stride=options.stride, clip_frames=options.clip_frames, offset=options.offset
    )
    cards = import_features(
        options.source,
        options.out,
        grid,
        durations=durations,
        described_as=options.source.name,
        allow_pickle=options.allow_pickle,
    )
    print(f"{len(cards)} videos, {cards[0].channels} channels every {grid.stride_seconds:.4g} s, are in {options.out}")
    return 0


# --- convert, publish ---


def _convert_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a released checkpoint: .pyth, .pth, .pt or .safetensors")
    parser.add_argument("out", type=Path, help="a new folder for the model")
    parser.add_argument("--protocol", type=str | None, default=None, help="k400-8x8, k400-16x5, ssv2-8 or ssv2-16")
    parser.add_argument(
        "--clip", type=ClipSpec | None, default=None, help="or: which frames, as --clip.num_frames 8 ..."
    )
    parser.add_argument(
        "--labels", type=Path | None, default=None, help="a text file, the name of a class on each line"
    )
    parser.add_argument("--licence", type=str | None, default=None, help="under which terms the weights may be used")


def _convert(options: Namespace) -> int:
    """Make a model of a checkpoint that the authors released."""
    from tada.models.convert import PROTOCOLS, convert_checkpoint, protocol

    if options.protocol is None and options.clip is None:
        raise UserError(
            f"say which frames the checkpoint was trained on: --protocol, one of {', '.join(PROTOCOLS)}, or "
            "--clip.num_frames and what else differs from its defaults"
        )
    if options.protocol is not None and options.clip is not None:
        raise UserError("--protocol and --clip both say which frames: give one of them")
    clip = protocol(options.protocol) if options.clip is None else ClipSpec(**dict(options.clip))
    card = convert_checkpoint(options.file, options.out, clip=clip, labels=options.labels, licence=options.licence)
    print(f"{card.model}, {len(card.labels)} classes ({card.labels[0]}, ...), {clip.num_frames} frames; next:")
    print(f"  tada predict {options.out} VIDEO")
    return 0


def _publish_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("repository", type=str, help="where to, as OWNER/NAME")
    parser.add_argument("--licence", type=str | None, default=None, help="under which terms it may be used: Apache-2.0")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def _publish(options: Namespace) -> int:
    """Put a trained model on the Hugging Face hub, with a card that says what it is."""
    from tada.models.hub import PREFIX, push_to_hub

    print(push_to_hub(options.run, options.repository, licence=options.licence, private=options.private))
    print(f"anyone who may read it says: tada predict {PREFIX}{options.repository} VIDEO")
    return 0


# --- quickstart, models, recipes, doctor ---


def _quickstart_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="a new folder for everything it makes")
    parser.add_argument("--seed", type=int, default=0, help="decides the videos and the training")


def _quickstart(options: Namespace) -> int:
    """See it work: videos of motion are made, two models learn them, and are tested. Takes a few minutes."""
    from tada.quickstart import quickstart

    quickstart(options.out, seed=options.seed, show_progress=sys.stderr.isatty())
    return 0


def _models_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("pattern", type=str, nargs="?", default="*", help="such as 'tada2d*'")


def _models(options: Namespace) -> int:
    """List the models, with their size."""
    import torch

    from tada.models import create_model, list_models
    from tada.models.weights import packaged_names

    names = list_models(options.pattern)
    if not names:
        raise UserError(f"no model's name fits {options.pattern!r}; `tada models` lists all")
    for name in names:
        with torch.device("meta"):
            model = create_model(name)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        weights = ", ".join(packed for packed in packaged_names() if packed.startswith(f"{name}_"))
        print(f"{name:<16}{millions:7.2f} M parameters (400 classes)  {weights}".rstrip())
    return 0


def _recipes_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", type=str, nargs="?", default=None, help="print this one as YAML")


def _recipes(options: Namespace) -> int:
    """List the recipes that come with tada, or print one."""
    if options.name is not None:
        print(find_recipe(options.name).read_text(encoding="utf-8"), end="")
        return 0
    for name, path in named_recipes().items():
        recipe = load_recipe(name)
        first_line = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        print(f"{name:<26}{recipe.model:<16}{first_line}")
        if name in EXPECTED:
            print(f"{'':<42}{EXPECTED[name]}")
    return 0


def _doctor_arguments(parser: ArgumentParser) -> None:
    pass


def _doctor(options: Namespace) -> int:
    """Check this machine: versions, devices, codecs, and what is missing."""
    from tada.doctor import examine

    checks = examine()
    for check in checks:
        state = "ok" if check.fine else "none" if check.optional else "FAULT"
        print(f"{state:<7}{check.name:<14}{check.found}")
        if check.remedy:
            print(f"{'':<21}-> {check.remedy}")
    return 0 if all(check.fine or check.optional for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
