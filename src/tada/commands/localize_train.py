"""Commands to train and evaluate localizers: ``tada localize train``, ``evaluate`` and ``import`` (of features)."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt

from tada.commands.arguments import (
    Command,
    RecipeFile,
    add_device,
    add_fps,
    add_windows,
    add_workers,
    said_again,
)
from tada.errors import UserError, counted
from tada.localization.recipe import LocalizationRecipe
from tada.recognition.recipe import load_recipe
from tada.system.files import check_not_there
from tada.system.locks import held_folder
from tada.system.signals import advise
from tada.system.terminal import command_line, markup_cell, say
from tada.training.recipe import METRICS_FILE, RECIPE_FILE, typed_recipe

if TYPE_CHECKING:
    from tada.localization.evaluation import LocalizationEvaluation
    from tada.localization.localizer import Localizer


class _RecipeFile(RecipeFile):
    """``--recipe`` of a localizer."""

    task = "localization"
    kind = LocalizationRecipe


_OF_THE_DETECTOR = (
    "class_agnostic",
    "video_classes",
    "dim",
    "num_levels",
    "attention_window",
    "max_length",
    "position_encoding",
    "interpolate_positions",
    "padding_leak",
    "input_dropout",
    "visible_part",
    "regression_weight",
    "normaliser",
    "boundary_scores",
    "train_on_background",
)


def _train_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--segments",
        type=Path,
        metavar="FILE",
        required=True,
        help="a CSV (video,start,end,label[,split]), a JSON, ...",
    )
    parser.add_argument("--videos", type=Path | None, metavar="DIR", default=None, help="the folder of the videos")
    parser.add_argument("--features", type=Path | None, metavar="DIR", default=None, help="or: a folder of features")
    parser.add_argument("--backbone", type=str | None, default=None, help="the network that makes the features, a run")
    parser.add_argument("--backbone-recipe", type=str | None, default=None, help="or: train one by a recipe")
    _protocol_arguments(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("runs/localize"), help="the folder of the new run"
    )
    parser.add_argument("--resume", type=Path | None, metavar="RUN", help="continue this run, which was interrupted")
    parser.add_argument("--recipe", action=_RecipeFile, metavar="NAME", help="by name, or a YAML file")
    parser.add_argument("--val-fraction", type=float, default=0.2, help="part of the videos held out for validation")
    parser.add_argument(
        "--skip-unreadable", type=NonNegativeInt, default=0, help="videos that may lack, or be unreadable"
    )
    add_workers(parser)
    add_windows(parser)
    add_device(parser)
    parser.add_class_arguments(LocalizationRecipe)
    parser.first = {
        "segments": None,
        "videos": None,
        "features": None,
        "backbone": None,
        "out": None,
        "recipe": None,
        "epochs": "times that it sees every video; by default 30, more of few videos",
        "batch_size": "videos, or windows, of one step; by default up to 8",
        "learning_rate": "the peak, at the end of the warm-up",
        "detector": "actionformer finds and names segments; bmn finds them",
        "val_fraction": None,
        "resume": None,
        "num_workers": None,
        "device": None,
    }
    parser.topics = {
        "data": ("fps", "leave_out", "classifier", "skip_unreadable"),
        "features": ("backbone_recipe", "window_seconds", "stride_seconds", "resize_to"),
        "detector": _OF_THE_DETECTOR,
        "selection": ("selection.*", "tiou_thresholds"),
        "optimization": ("*",),
    }


def _protocol_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--leave-out", type=Path | None, metavar="FILE", default=None, help="a list of videos that do not count"
    )
    parser.add_argument(
        "--classifier",
        type=Path | None,
        metavar="FILE",
        default=None,
        help="JSON of a classifier's scores of videos to name segments",
    )


def _train(options: Namespace) -> int:
    """Train a localizer on long videos and a list of segments."""
    if (options.videos is None) == (options.features is None):
        raise UserError("say what to train on: --videos with a folder of videos, or --features with one of features")
    if options.features is None and (options.classifier is not None or options.leave_out is not None):
        raise UserError("--classifier and --leave-out go with --features; with --videos the backbone names segments")
    if options.features is not None and options.fps is not None:
        raise UserError("--fps is for folders of frames among --videos: features have times of their own")
    from tada.localization.train_from_videos import train_on_videos
    from tada.localization.training import train_localizer
    from tada.recognition.recognizer import load_recognizer

    recipe = typed_recipe({field.name: options[field.name] for field in fields(LocalizationRecipe)}, LocalizationRecipe)
    out = options.resume or options.out
    advise(lambda state: _way_on(options, state))
    if options.features is not None:
        result = train_localizer(
            recipe,
            options.features,
            options.segments,
            out,
            backbone=None if options.backbone is None else load_recognizer(options.backbone, device=options.device),
            classifier=options.classifier,
            val_fraction=options.val_fraction,
            resume=options.resume is not None,
            skip_missing=options.skip_unreadable,
            leave_out=options.leave_out,
            say=say,
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
            say=say,
        )
    run = shlex.quote(str(result.run))
    if "val_map" in result.metrics:
        print(
            f"mAP {result.metrics['val_map']:.4f} on the held-out videos, by which the best epoch was chosen: it is a "
            "little too good by that, and more so the fewer they are"
        )
    in_all = "" if options.resume is None else ", all starts of the run together"
    print(f"trained in {result.seconds:.0f} s{in_all}; next:")
    if options.features is None or options.backbone is not None:
        say(f"  tada localize {run} VIDEO")
        if options.videos is not None:
            say(f"  tada localize evaluate {run} --videos OTHERS --segments {shlex.quote(str(options.segments))}")
        return 0
    given = {"--features": options.features, "--segments": options.segments, "--classifier": options.classifier}
    paths = " ".join(f"{name} {shlex.quote(str(path))}" for name, path in given.items() if path is not None)
    say(f"  tada localize evaluate {run} {paths}")
    print("it has no network to make features of a video; with --backbone RUN, the one that made these, it gets one")
    return 0


def _way_on(options: Namespace, state: str) -> str:
    """How to continue a training that was interrupted, in any of its stages."""
    out = options.resume or options.out
    if not (out / RECIPE_FILE).exists():
        return f"{state or 'what was done stays'}: the same command goes on"
    if (out / METRICS_FILE).exists():
        return f"{out} is finished"
    defaults = {
        "segments": None,
        "videos": None,
        "features": None,
        "backbone": None,
        "backbone_recipe": None,
        "leave_out": None,
        "classifier": None,
        "val_fraction": 0.2,
        "skip_unreadable": 0,
        "num_workers": None,
        "window_seconds": None,
        "stride_seconds": None,
        "device": None,
    }
    words = f"{said_again(options, defaults).strip()} --resume {shlex.quote(str(out))}"
    return f"{state or 'what was done stays'}; go on with: tada localize train {words}"


def _evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path | None, nargs="?", default=None, help="a run of `tada localize train`")
    parser.add_argument("--segments", type=Path, metavar="FILE", required=True, help="the annotations, as for training")
    parser.add_argument(
        "--videos", type=Path | None, metavar="DIR", default=None, help="the folder of the videos to test it on"
    )
    add_fps(parser)
    parser.add_argument(
        "--features", type=Path | None, metavar="DIR", default=None, help="or: a folder of their features"
    )
    parser.add_argument(
        "--predictions", type=Path | None, metavar="FILE", default=None, help="or: detections in ActivityNet's form"
    )
    parser.add_argument("--preset", type=Literal["anet", "hacs", "thumos", "epic"], default="thumos", help="thresholds")
    parser.add_argument("--split", type=str | None, default=None, help="the part of the annotations to test on")
    parser.add_argument(
        "--skip-unreadable", type=NonNegativeInt, default=0, help="videos that may lack, or be unreadable"
    )
    _protocol_arguments(parser)
    parser.add_argument(
        "--out", type=Path | None, metavar="DIR", default=None, help="folder of the report; RUN/evaluation by default"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a report that is there")
    add_device(parser)


def _evaluate(options: Namespace) -> int:
    """Measure a localizer, or detections in a file (mAP)."""
    from tada.localization.evaluation import NUMBERS_FILE
    from tada.localization.localizer import load_localizer

    advise(lambda state: "no report was written")
    out = options.out
    if out is None and options.run is not None and options.predictions is None:
        out = options.run / "evaluation"
    # Before the report's folder is looked at: a run of another kind has a report, too.
    localizer = None if options.run is None else load_localizer(options.run, device=options.device)
    if out is None:
        return _measure(options, localizer, None)
    with held_folder(out):
        check_not_there(out, [NUMBERS_FILE], overwrite=options.overwrite)
        return _measure(options, localizer, out)


def _measure(options: Namespace, localizer: Localizer | None, out: Path | None) -> int:
    from tada.display.page import PAGE
    from tada.localization.evaluation import evaluate_localizer, evaluate_predictions
    from tada.localization.metrics import PRESETS
    from tada.localization.report import write_report
    from tada.localization.train_from_videos import features_for

    thresholds: dict[str, float] = {}
    tious = PRESETS[options.preset]
    if options.predictions is not None and localizer is None and options.classifier is None:
        result = evaluate_predictions(
            options.predictions,
            options.segments,
            tiou_thresholds=tious,
            split=options.split,
            leave_out=options.leave_out,
        )
    elif localizer is not None and options.predictions is None and (options.features or options.videos):
        thresholds = localizer.card.thresholds
        features, segments = options.features, options.segments
        if features is None:
            assert out is not None
            features = out.with_name(f"{out.name}_features")
            segments = features_for(
                localizer,
                options.videos,
                segments,
                features,
                fps=options.fps,
                skip_unreadable=options.skip_unreadable,
                say=say,
            )
        result = evaluate_localizer(
            localizer,
            features,
            segments,
            tiou_thresholds=tious,
            split=options.split,
            leave_out=options.leave_out,
            classifier=options.classifier,
        )
    else:
        raise UserError("say what to measure: RUN with --videos DIR or --features DIR, or --predictions FILE")
    try:
        _print_scores(result, tious)
    finally:  # save the results also where printing fails
        if out is not None:
            result.save(out, overwrite=options.overwrite)
            title = f"{options.run or options.predictions} on {options.segments}"
            write_report(
                out / PAGE,
                result.table,
                result.results,
                result.tasks(),
                thresholds,
                title=title,
                command=command_line(),
            )
    if out is not None:
        say(f"the report is in {out}: report.html, evaluation.json, detections.json")
    return 0


def _print_scores(result: LocalizationEvaluation, tious: Sequence[float]) -> None:
    from rich.console import Console
    from rich.table import Table

    for task, scores in result.tasks().items():
        classes = scores.per_class if len(scores.per_class) <= 40 else {}
        table = Table(task, *(f"{t:g}" for t in tious), "average")
        for label, values in classes.items():
            table.add_row(markup_cell(label), *(f"{value:.3f}" for value in values), f"{sum(values) / len(values):.3f}")
        table.add_section()
        table.add_row("mAP", *(f"{value:.4f}" for value in scores.per_threshold), f"{scores.average:.4f}")
        # Ten thresholds are wider than 80 columns: then lines are long, and no number is cut.
        width = max(map(len, ("mAP", *classes))) + 10 * len(table.columns)
        Console(width=max(Console().width, width)).print(table)


def _import_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a folder of published features: npy, npz, pt, h5, csv, pkl")
    parser.add_argument("out", type=Path, metavar="DIR", help="a new folder for them in our form")
    parser.add_argument("--fps", type=float, required=True, help="the rate that their frames were counted at")
    parser.add_argument("--stride", type=float, required=True, help="frames from one feature to the next")
    parser.add_argument("--clip-frames", type=float, required=True, help="frames that a clip spans")
    parser.add_argument(
        "--offset", type=float | None, default=None, help="middle of the first clip; half a clip if not"
    )
    parser.add_argument(
        "--segments", type=Path | None, metavar="FILE", default=None, help="annotations, for the videos' durations"
    )
    parser.add_argument(
        "--scores",
        type=Path | None,
        metavar="DIR",
        default=None,
        help="a folder of EPIC-KITCHENS-100's classification scores",
    )
    parser.add_argument("--described-as", type=str | None, default=None, help="whose features; SOURCE's name if not")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read pickles, which may run code: only trusted ones"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace other features of the same videos")


def _import(options: Namespace) -> int:
    """Bring published features into our form.

    They are told the times at which they were taken.
    """
    from tada.localization.annotations.table import read_segments
    from tada.localization.features.grid import FeatureGrid
    from tada.localization.features.importing import import_features

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
        described_as=options.described_as or options.source.absolute().name,
        scores=options.scores,
        allow_pickle=options.allow_pickle,
        overwrite=options.overwrite,
    )
    imported = f"{counted(len(cards), 'video')}, {cards[0].channels} channels every {grid.stride_seconds:.4g} s"
    say(f"{imported}, written into {options.out}")
    if options.scores is not None:
        print(f"{sum(bool(card.score_labels) for card in cards)} of them have scores of verbs and nouns")
    return 0


COMMANDS: dict[str, Command] = {
    "localize-train": (_train_arguments, _train),
    "localize-evaluate": (_evaluate_arguments, _evaluate),
    "localize-import": (_import_arguments, _import),
}
