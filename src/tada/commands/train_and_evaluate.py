"""Commands that train and test recognizers: ``tada quickstart``, ``train`` and ``evaluate``."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from tada.commands.arguments import (
    SHORT_DATA,
    Command,
    RecipeFile,
    add_data,
    add_device,
    add_fps,
    add_workers,
    check_run,
    data_options,
    read_data,
    report_failures,
    said_again,
)
from tada.errors import OptionError, UserError
from tada.recognition.intervals import accuracy_interval
from tada.recognition.recipe import Recipe, recipe_of
from tada.system.devices import Machine, is_first_process
from tada.system.files import check_not_there, try_file, write_whole
from tada.system.locks import held_folder
from tada.system.signals import advise
from tada.system.terminal import command_line, markup_cell, say
from tada.training.recipe import METRICS_FILE, RECIPE_FILE

if TYPE_CHECKING:
    from rich.table import Table

    from tada.data.views import Views
    from tada.recognition.results import Evaluation


def _quickstart_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("quickstart"), help="a new folder for all files"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the videos and the training")


def _quickstart(options: Namespace) -> int:
    """Make videos, train two models on them, test both.

    The videos show motion, which one of the models cannot see. It takes a few minutes.
    """
    from tada.recognition.quickstart import quickstart

    advise(lambda state: f"{options.out} is not whole: remove it before the next try, or choose another --out")
    quickstart(options.out, seed=options.seed, say=say)
    return 0


# --- train ---


AUGMENTATION = (
    "short_side_range",
    "train_crop",
    "*_ratio_range",
    "*_area_range",
    "*_probability",
    "color_*",
    "randaugment_*",
    "mixup_*",
    "cutmix_*",
)


def _train_arguments(parser: ArgumentParser) -> None:
    add_data(parser)
    parser.add_argument(
        "--out", type=Path | None, metavar="DIR", help="the folder of the new run; by default runs/train"
    )
    parser.add_argument("--resume", type=Path | None, metavar="RUN", help="the run to continue")
    parser.add_argument("--recipe", action=RecipeFile, metavar="NAME", help="one of `tada recipes`, or a YAML file")
    parser.add_argument(
        "--val-fraction", type=float, default=0.2, help="fraction of each class held out for validation"
    )
    parser.add_argument("--val-groups", type=str, default="", help="hold out these groups of the CSV instead, as A,B")
    parser.add_argument(
        "--skip-unreadable", type=NonNegativeInt, default=0, help="number of unreadable videos to allow"
    )
    add_workers(parser)
    parser.add_argument("--save-every-steps", type=PositiveInt | None, help="steps between states to resume from")
    parser.add_argument("--limit", type=PositiveInt | None, help="largest number of videos of each split, for a try")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, train two steps, print memory and time, write nothing"
    )
    parser.add_class_arguments(Machine)
    parser.add_class_arguments(Recipe)
    parser.first = {
        "data": SHORT_DATA,
        "out": None,
        "recipe": "one of `tada recipes`, or a YAML file",
        "model": None,
        "init": "initial weights: motion, image, none, a run, a file, hf-hub:OWNER/NAME",
        "epochs": "passes over all clips; by default 45 or more",
        "batch_size": "clips of one step",
        "learning_rate": "peak learning rate",
        "clip.num_frames": "frames in a clip",
        "train": "head, calibration or all of the network",
        "val_fraction": "fraction held out for validation",
        "resume": None,
        "dry_run": "check everything and train two steps, write nothing",
        "num_workers": None,
        "accelerator": "device to train on",
    }
    parser.topics = {
        "data": ("videos", "fold", "fps", "val_groups", "skip_unreadable", "limit"),
        "model": ("model_options", "print_config"),
        "clip": ("clip.*",),
        "augmentation": AUGMENTATION,
        "machine": (*(field.name for field in fields(Machine)), "precision", "sync_batch_norm", "save_every_steps"),
        "optimization": ("*",),
    }


def _run_folder(options: Namespace) -> Path:
    folder: Path = options.resume or options.out or Path("runs/train")
    return folder


def _train(options: Namespace) -> int:
    """Train a model on your videos."""
    advise(lambda state: _resume_in_words(options, state))
    from tada.recognition.training import train

    if options.resume is not None and options.out not in (None, options.resume):
        raise UserError(
            f"--resume {options.resume} continues in that folder: leave --out away, or copy the run to {options.out} "
            "and resume it there"
        )
    result = train(
        recipe_of({field.name: options[field.name] for field in fields(Recipe)}),
        read_data(options),
        _run_folder(options),
        val_fraction=options.val_fraction,
        val_groups=[group for group in options.val_groups.split(",") if group],
        resume=options.resume is not None,
        skip_unreadable=options.skip_unreadable,
        num_workers=options.num_workers,
        save_every_steps=options.save_every_steps,
        limit=options.limit,
        dry_run=options.dry_run,
        machine=_machine(options),
        say=say,
    )
    if is_first_process() and not options.dry_run:
        in_all = "" if options.resume is None else ", all starts of the run together"
        print(f"trained in {result.seconds:.0f} s{in_all}; next:")
        run = shlex.quote(str(result.run))
        say(f"  tada evaluate {run} {shlex.quote(_data_as_typed(options.data))}{data_options(options)}")
        say(f"  tada predict {run} VIDEO")
    return 0


def _resume_in_words(options: Namespace, state: str) -> str:
    """The last line of an interrupted command: the saved state, and the command that resumes the run."""
    run = _run_folder(options)
    if not (run / RECIPE_FILE).exists():
        return "nothing was learned yet: the same command begins anew"
    if (run / METRICS_FILE).exists():
        return f"{run} is finished"
    defaults = {
        "videos": None,
        "fold": 1,
        "val_fraction": 0.2,
        "val_groups": "",
        "skip_unreadable": 0,
        "num_workers": None,
        "save_every_steps": None,
        "limit": None,
        **vars(Machine()),
    }
    words = (
        f"{shlex.quote(_data_as_typed(options.data))} --resume {shlex.quote(str(run))}{said_again(options, defaults)}"
    )
    return f"{state or 'nothing was learned yet'}; go on with: tada train {words}"


def _machine(options: Namespace) -> Machine:
    return Machine(**{field.name: options[field.name] for field in fields(Machine)})


# --- evaluate ---


def _evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=Path | None,
        metavar="DIR",
        nargs="?",
        default=None,
        help="the folder of a run, or a file of `tada export`",
    )
    add_data(parser, optional=True)
    add_fps(parser)
    parser.add_argument("--views", type=str, default="1x1", help="clips x crops of each video, such as 10x3")
    parser.add_argument("--split", type=str | None, default=None, help="split of DATA to test on")
    parser.add_argument(
        "--scores",
        type=Path,
        nargs="+",
        default=[],
        metavar="REPORT",
        help="instead of RUN and DATA: score these reports again; several: the mean of their scores (an ensemble)",
    )
    parser.add_argument(
        "--out", type=Path | None, metavar="DIR", default=None, help="folder of the report; RUN/evaluation by default"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing report or challenge file")
    parser.add_argument(
        "--epic",
        type=Path | None,
        metavar="FILE",
        default=None,
        help="EPIC-KITCHENS-100's annotations: score its subsets",
    )
    parser.add_argument(
        "--actions",
        type=Literal["means", "views"] | None,
        default=None,
        help="an action's probability: the product of verb's and noun's means over the views, or, as in the released "
        "code, the mean of the views' products; by default means, with --scores as the reports have it",
    )
    parser.add_argument(
        "--challenge", type=Path | None, metavar="FILE", default=None, help="write EPIC-KITCHENS-100's challenge JSON"
    )
    add_workers(parser)
    add_device(parser)
    parser.add_argument("--devices", type=PositiveInt | None, default=None, help="devices that share the videos")
    parser.add_argument("--num-nodes", type=PositiveInt | None, default=None, help="machines, each with --devices")
    parser.first = dict.fromkeys(
        ("run", "data", "split", "views", "out", "overwrite", "scores", "num_workers", "device")
    )
    parser.topics = {
        "data": ("videos", "fold", "fps"),
        "EPIC-KITCHENS-100": ("epic", "actions", "challenge"),
        "machine": ("*",),
    }


def _evaluate(options: Namespace) -> int:
    """Test a trained model on videos it has not seen.

    Or score the reports of earlier tests again, or join them (--scores).
    """
    from tada.data.views import Views
    from tada.recognition.results import NUMBERS_FILE

    advise(lambda state: "no report was written")
    views = Views.parse(options.views)
    out = _report_folder(options)
    with held_folder(out):
        again, changes = _score_again(options) if options.scores else (None, False)
        if changes and options.out is None and not options.overwrite:
            raise OptionError(
                f"--actions {options.actions}: the report in {str(out)!r} counts actions otherwise: give the new one a "
                "folder of its own (--out), or replace that one, which keeps the scores (--overwrite)"
            )
        is_new = again is None or changes or options.out is not None
        if is_new and is_first_process():
            check_not_there(out, [NUMBERS_FILE], overwrite=options.overwrite)
        if options.challenge is not None and is_first_process():
            if options.challenge.is_file() and not options.overwrite:
                raise OptionError(
                    f"{str(options.challenge)!r} is there already: give --challenge another name, or replace it with "
                    "--overwrite"
                )
            try_file(options.challenge)
        result = _test(options, views) if again is None else again
        if is_first_process():
            _report(result, out, options, is_new=is_new)
    return report_failures("not tested", (failure.message for failure in result.unreadable))


def _report_folder(options: Namespace) -> Path:
    """The folder of the report."""
    from tada.recognition.results import find_scores

    if options.scores:
        if options.run is not None:
            raise UserError(f"--scores takes reports in place of RUN and DATA: leave {str(options.run)!r} away")
        if options.out is None and len(options.scores) > 1:
            raise UserError("say where the ensemble's report goes, with --out")
        return options.out or find_scores(options.scores[0]).parent
    if options.run is None or options.data is None:
        raise UserError("give the folder of a run and the data to test it on, or reports with --scores")
    check_run(options.run, [options.data], command="tada evaluate")
    run: Path = options.run
    if not run.exists() and options.out is None:
        raise UserError(f"{str(run)!r} is no folder here: say with --out where the report goes")
    beside = run.with_name(f"{run.stem}_evaluation") if run.is_file() else run / "evaluation"
    return options.out or beside


def _test(options: Namespace, views: Views) -> Evaluation:
    from tada.recognition.evaluation import evaluate

    return evaluate(
        options.run,
        read_data(options, fps=options.fps),
        split=options.split,
        views=views,
        actions=options.actions or "means",
        num_workers=options.num_workers,
        device=options.device,
        machine=Machine(
            devices=options.devices,
            num_nodes=options.num_nodes,
            accelerator="cpu" if options.device == "cpu" else "auto",
        ),
        say=say,
    )


def _score_again(options: Namespace) -> tuple[Evaluation, bool]:
    """The joined reports, and whether --actions counts their actions in another way."""
    from tada.recognition.results import counted_by, ensemble, load_scores

    tests = [load_scores(path) for path in options.scores]
    joined = ensemble(tests)
    if options.actions is None and len({test.actions for test in tests}) > 1:
        say(f"the reports count actions in different ways, and the ensemble by {joined.actions}: --actions chooses")
    again = joined if options.actions is None else counted_by(joined, options.actions)
    return again, again.actions != joined.actions


def _report(result: Evaluation, out: Path, options: Namespace, *, is_new: bool) -> None:
    """Print the metrics, then write the report; if scored again (not ``is_new``), only the files that change."""
    metrics = result.shown_metrics()
    if options.epic is not None:
        from tada.recognition.epic_challenge import challenge_metrics, read_subsets

        metrics = challenge_metrics(result, read_subsets(options.epic))
    try:
        _print_numbers(result, metrics, options)
    finally:  # even if printing fails, for example into a closed pipe: a test may have taken hours
        _write_report(result, metrics, out, options, is_new=is_new)
    say(
        f"the report is in {out}: report.html, evaluation.json, scores.npz, scores.csv"
        + ("" if result.several else ", pictures of what was confused")
    )


def _print_numbers(result: Evaluation, metrics: Mapping[str, float], options: Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    if metrics and result.several:
        Console().print(_several_table(result))
    elif metrics and len(result.heads) == 1:
        table = Table("class", "top-1", "videos", "95 %")
        for label, (top1, count) in result.per_class().items():
            low, high = accuracy_interval(top1, count)
            table.add_row(markup_cell(label), f"{top1:.3f}", str(count), f"{low:.2f} to {high:.2f}")
        Console().print(table)
    read, meant = len(result.paths), len(result.paths) + len(result.unreadable)
    names = {"top1": "top-1", "top5": "top-5", "map": "mAP"}
    numbers = [
        f"{names.get(name, name)} {value:.4f}"
        # No intervals for the subsets of EPIC-KITCHENS, which have fewer videos.
        + (f" ({result.worth(value)})" if options.epic is None else "")
        for name, value in metrics.items()
    ]
    if "top1" in metrics and len({count for _, count in result.per_class().values()}) > 1:
        numbers.append(f"mean of the classes' top-1 {result.mean_class_accuracy():.4f}")
    if result.actions == "views":
        numbers.append("actions by the mean of the views' products")
    print("   ".join([*numbers, f"{read} of {meant} videos"]))


def _write_report(
    result: Evaluation, metrics: Mapping[str, float], out: Path, options: Namespace, *, is_new: bool
) -> None:
    if options.challenge is not None:
        from tada.recognition.epic_challenge import write_challenge

        write_challenge(result, options.challenge)
        say(f"the challenge's JSON is in {options.challenge}: zip it as test.json")

    def write_more(folder: Path) -> None:
        from tada.recognition.report import write_test_page
        from tada.recognition.results import CHALLENGE_FILE

        if options.epic is not None:
            write_whole(folder / CHALLENGE_FILE, (json.dumps(metrics, indent=2) + "\n").encode())
        if is_new:
            title = (
                " + ".join(map(str, options.scores))
                if options.scores
                else f"{options.run} on {_data_as_typed(options.data)}"
            )
            write_test_page(folder, result, title=title, command=command_line())

    if is_new:
        result.save(out, overwrite=options.overwrite, write_more=write_more)
    else:
        write_more(out)


def _several_table(result: Evaluation) -> Table:
    from rich.table import Table

    table = Table("class", "AP", "precision", "recall", "threshold", "videos", "predicted")
    for score in result.class_scores():
        numbers = (score.average_precision, score.precision, score.recall)
        shown = ["-" if math.isnan(value) else f"{value:.3f}" for value in numbers]
        table.add_row(markup_cell(score.label), *shown, f"{score.threshold:.2f}", str(score.videos), str(score.said))
    return table


def _data_as_typed(data: Path) -> str:
    """DATA for messages and commands; of an address a ``Path`` loses a slash."""
    from tada.data.shard_table import address_of

    return address_of(data) or str(data)


COMMANDS: dict[str, Command] = {
    "quickstart": (_quickstart_arguments, _quickstart),
    "train": (_train_arguments, _train),
    "evaluate": (_evaluate_arguments, _evaluate),
}
