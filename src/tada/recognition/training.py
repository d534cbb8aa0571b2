"""Training a recognizer: the recipe becomes a model, a loop (Lightning's) and the folder of a run.

A run's folder holds::

    recipe.yaml         what was trained, and how
    videos.csv          which videos were trained on and which were held out
    model.safetensors   the weights, written at the end (with model.json: labels, clip specification, checksum)
    metrics.json        how it ended
    logs/               numbers of every epoch: CSV, and TensorBoard
    resume/last.ckpt    the state from which an interrupted run continues, bit for bit
    unreadable.csv      videos that could not be read, where some were allowed
    non_finite_batch.txt    the clips of a batch whose loss was no number, where that ended the run
    commands.txt        the commands that started and continued it
    validation/         the test on the held-out videos, as `tada evaluate` writes it
    curves.png          loss, accuracy and learning rate over the epochs
    report.html         all that people want to see of it, in one page

Shapes: N clips or videos, V views, T frames, K classes.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np

from tada.data.annotations import read_dataset
from tada.data.balance import balance_in_words, classes_of
from tada.data.clips import ResumableBatches, ResumableLoader, TrainingClips, typical_seconds
from tada.data.hold_out import with_splits
from tada.data.multi_label import FEWEST, THRESHOLD, chosen_thresholds, positives_text
from tada.data.recordings import shared_recordings
from tada.data.run_videos import RUN_LIST, KnownVideo, as_in_run, limited_as_run, read_run_list, write_run_list
from tada.data.table import Head, VideoTable, with_fps
from tada.data.views import TestVideos, Views, test_loader
from tada.display.page import PAGE
from tada.errors import CheckpointError, DataError, OptionError, counted, listed
from tada.models import create_model
from tada.models.parallel import checkpoint_blocks, synchronize_batch_norms, whole_weights
from tada.models.pretrained import RANDOM_WEIGHTS, initialize, start_in_words
from tada.models.weights import ModelCard, save_thresholds, save_weights
from tada.recognition.evaluation import evaluate_alone
from tada.recognition.intervals import interval_text
from tada.recognition.recipe import Recipe
from tada.recognition.recognizer import load
from tada.recognition.report import clip_in_words, lead, report_sections
from tada.recognition.results import Evaluation
from tada.recognition.trained_part import train_only
from tada.recognition.training_call import (
    augmentation,
    check_divisible,
    machine_of_call,
    mixes,
    more_epochs_in_words,
    of_same_run,
    recipe_of_call,
    yaml_of_run,
)
from tada.recognition.training_step import About, RecognitionTask, ShardedRecognitionTask
from tada.system.calls import checked
from tada.system.collectives import leaving_together
from tada.system.devices import Machine, check_num_workers, default_num_workers
from tada.system.locks import holds
from tada.system.signals import tell_state
from tada.training.best_epoch import BEST, BestEpoch
from tada.training.checkpoints import CHECKPOINT
from tada.training.dry_run import nearest_folder, try_training
from tada.training.loader_speed import LoaderSpeed
from tada.training.loggers import check_logger
from tada.training.recipe import recipe_of_run, recipe_yaml
from tada.training.run_folder import (
    begun,
    check_free,
    finished_metrics,
    go_on,
    note_command,
    noted_commands,
    saved_state,
    was_begun,
    write_metrics,
)
from tada.training.run_page import VALIDATION, read_curves, tested_epochs, write_run_page
from tada.training.schedule import between_tests_in_words, epochs_between_tests, fitted, in_words
from tada.training.trainer import EpochLines, SameRun, UnreadableVideos, fit, make_trainer


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """How a run ended."""

    run: Path
    """The run's folder, for `tada.load`."""
    metrics: dict[str, float]
    """Of the last epoch: train_loss, and val_top1 and val_loss (one center view) where videos were held out. Of a
    recipe that keeps the best epoch: what was measured after that on held-out videos, and kept_epoch."""
    seconds: float
    """Wall time of the training loop, over all starts of the run."""


@checked(skip_unreadable=0, limit=1, num_workers=0, save_every_steps=1)
@holds("out", unless="dry_run")
def train(
    recipe: Recipe | str | PathLike[str] | None,
    data: str | PathLike[str] | VideoTable,
    out: str | PathLike[str],
    *,
    root: str | PathLike[str] | None = None,
    fold: int = 1,
    val_fraction: float = 0.2,
    val_groups: Sequence[str] = (),
    resume: bool = False,
    skip_unreadable: int = 0,
    num_workers: int | None = None,
    save_every_steps: int | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    device: Literal["cpu", "cuda"] | None = None,
    machine: Machine | None = None,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
    **changes: Any,
) -> TrainingResult:
    """Train a model on a folder of class folders or a CSV of clips, and leave it in the folder ``out``.

        tada.train(None, "clips", "runs/first")
        tada.train("quickstart", "clips.csv", "runs/second", epochs=3, clip={"num_frames": 4})

    Args:
        recipe: a recipe, the name of one that comes with tada, or a YAML file. None: the defaults; of a run that is
            resumed, its own.
        data: what ``tada.data.annotations.read_dataset`` takes, or a table it has read.
        root: the folder that paths of a CSV start from, or below which a published list's videos lie; by default its
            own.
        fold: which of the three divisions of UCF101 and HMDB51.
        val_fraction: part of each class held out for validation where the data has no split of its own; 0 for none.
        val_groups: hold out these values of the CSV's group column instead.
        resume: continue the run in ``out`` from its last saved state, to the same numbers as if never stopped.
        skip_unreadable: how many videos may turn out unreadable; they are listed. One more stops the run.
        num_workers: processes that decode, for each device; by default one for each core, at most eight.
        save_every_steps: optimizer steps between saved states; by default those of an epoch (of some short ones), at
            most 200.
        limit: videos of each split that are used, at most, for a try. A run that is resumed keeps its own.
        dry_run: check everything, train two steps and throw them away, say what memory and time the training would
            take, and write nothing.
        device: "cpu" or "cuda"; by default a GPU where there is one.
        machine: or: how many devices, and how they are used. The same run may go on with other ones.
        say: receives a line for each thing worth knowing.
        changes: fields of the recipe that are to have other values, as ``tada.training.recipe.changed`` takes them.

    Raises:
        UnknownNameError: no recipe is called so, or no field or argument; it tells the nearest.
        UserError: of the data, the recipe, a video, or a folder that is already in use; each says the way out.
        OutputError: the folder cannot be written, or another process writes into it.
    """
    if not 0 <= val_fraction < 1:
        raise OptionError(f"val_fraction must be 0 or more and less than 1, not {val_fraction:g}")
    out = Path(out)
    arguments = [p.name for p in inspect.signature(train).parameters.values() if p.kind is p.KEYWORD_ONLY]
    recipe = recipe_of_call(recipe, changes, out if resume else None, arguments=arguments)
    machine = machine_of_call(device, machine)
    check_logger(machine.logger)
    processes = machine.processes()
    say = processes.speaker(say)
    if not isinstance(data, VideoTable):
        data = read_dataset(Path(data), root=None if root is None else Path(root), fold=fold)
    table = data
    if recipe.fps is not None and not table.has_frames:
        say(f"fps {recipe.fps:g} is for folders of frames, and there is none: files have times of their own")
    elif recipe.fps is not None:
        table = with_fps(table, recipe.fps)
    is_drawn = not (table.splits or val_groups)
    table = with_splits(table, val_fraction=val_fraction, val_groups=val_groups, seed=recipe.seed)
    if limit is not None:
        whole, table = table, table.limited(limit, seed=recipe.seed)
        _check_limit(limit, whole.of_split("train"), table.of_split("train"))
        say(f"--limit {limit}: {len(table)} of {len(whole)} videos are used, at most {limit} of each split")
    show_progress = show_progress and processes.is_first
    if table.missing:
        say(f"{table.kind}: {table.coverage()} are there; `tada check` lists the others")
    if table.ignored:
        say(f"left out, beside the videos: {listed(table.ignored, quote=False)}")
    state = None
    known: Sequence[KnownVideo] | None = None
    is_begun = resume and was_begun(out)
    epochs_before = None
    if is_begun:
        epochs_before = recipe_of_run(out, Recipe).numbers.epochs
        recipe = of_same_run(recipe, out)
        state = saved_state(out, say)
        known = read_run_list(out)
        if known is None and state is not None:
            raise CheckpointError(
                f"{out} has lost its {RUN_LIST}, which says what was held out: copy the run's folder again, or start "
                f"anew with --init {out} and another --out"
            )
        if known is not None:  # else it was interrupted before anything was learned
            if limit is None:
                table, limit = limited_as_run(table, known, seed=recipe.seed)
                if limit is not None:
                    say(f"{out} was begun with --limit {limit}, and goes on with it: {len(table)} videos are used")
            table = as_in_run(table, known, out, is_drawn=is_drawn, show_progress=show_progress)
        metrics = finished_metrics(out)
        if metrics is not None and recipe.numbers.epochs == epochs_before:
            say(
                f"{out} is finished; a new run starts from its weights with --init {out}, and with --epochs above "
                f"{epochs_before} this one goes on"
            )
            seconds = metrics.pop("seconds", 0.0)
            return TrainingResult(run=out, metrics=metrics, seconds=seconds)
        if metrics is not None and state is None:
            raise OptionError(
                f"{out} is finished, and {CHECKPOINT} is gone, from which it would go on: start a new run with --init "
                f"{out}"
            )
    elif processes.is_first and not resume:
        check_free(out)
    for head in table.heads:
        if len(head.labels) < 2:
            raise DataError(
                f"all videos are of one {head.name} class, {head.labels[0]!r}: a network learns to tell two or more "
                "apart; add videos of another"
            )
    if table.several and recipe.balance == "sampling":
        raise OptionError(
            "balance 'sampling' shows as many clips of each class, and here a clip may have several: use balance 'loss'"
        )
    if "val" not in table.splits and (recipe.keep == "best" or recipe.stop_early is not None):
        raise OptionError(
            "keep 'best' and stop_early go by held-out videos, and none are held out: hold some out (--val-fraction, "
            "--val-groups), or leave them away"
        )
    training = table.of_split("train")
    lacking = [name for name, count in training.counts().items() if not count] if table.several else []
    if lacking:
        raise DataError(f"no training video is of class {listed(lacking)}; take its column away, or add videos of it")
    validation = table.of_split("val") if "val" in table.splits else None
    recipe = fitted(recipe, len(training), multiple_of=processes.world * (2 if mixes(recipe) else 1))
    check_divisible(recipe, machine, processes.world)

    L.seed_everything(recipe.seed, verbose=False)
    head_sizes = {head.name: len(head.labels) for head in table.heads}
    model = create_model(
        recipe.model, num_classes=sum(head_sizes.values()), num_frames=recipe.clip.num_frames, **recipe.model_options
    )
    part_in_words = train_only(model, recipe.train, recipe.model)
    # A saved state has all weights, so what the run started from may be gone.
    trained_from = start_in_words(recipe.model, recipe.init)
    if state is None:
        trained_from = initialize(model, recipe.model, recipe.init, say=say)
    batches = ResumableBatches(
        len(training),
        batch_size=recipe.numbers.batch_size,
        last_batch=recipe.last_batch,
        accumulate=recipe.accumulate,
        seed=recipe.seed,
        rank=processes.rank,
        world=processes.world,
        classes=classes_of(training) if recipe.balance == "sampling" else None,
    )
    num_workers = default_num_workers(processes.devices) if num_workers is None else check_num_workers(num_workers)
    clips = TrainingClips(training, recipe.clip, augmentation(recipe, table.heads), seed=recipe.seed)
    loader = ResumableLoader(clips, batches, num_workers=num_workers, say=say)
    val_loader = None
    if validation is not None:
        val_videos = TestVideos(validation, recipe.clip, Views())
        val_loader = test_loader(
            val_videos,
            clips_per_batch=max(recipe.numbers.batch_size // (recipe.accumulate * processes.world), 1),
            num_workers=num_workers,
            rank=processes.rank,
            world=processes.world,
            say=say,
        )
    num_held_out = 0 if validation is None else len(validation)
    classes = " and ".join(f"{len(head.labels)} {_kind_of_classes(head, table.heads)}" for head in table.heads)
    several = ", any number of them in each" if table.several else ""
    say(f"{len(training)} training and {num_held_out} validation videos of {classes}{several}")
    start = f"starting from {trained_from}" if state is None else f"going on from {state}"
    say(f"{recipe.model}: {sum(p.numel() for p in model.parameters()):,} parameters, {start}")
    if part_in_words:
        say(part_in_words)
        if trained_from == RANDOM_WEIGHTS:
            say("what stays as it is has random weights: --init says where better ones are")
    advice = shared_recordings(table) if is_drawn else ""
    if advice:
        say(advice)
    say(in_words(recipe.numbers, len(training), recipe.last_batch, is_balanced=recipe.balance == "sampling"))
    num_drawn = recipe.numbers.batch_size * len(batches) // recipe.accumulate
    balance = balance_in_words(training, recipe.balance, num_drawn)
    if balance:
        say(balance)
    accuracy = "val_map" if table.several else "val_top1" if len(head_sizes) == 1 else "val_action_top1"
    if recipe.keep == "best":
        say(
            f"--keep best: the weights after the epoch with the best {accuracy} are kept, so that this number flatters "
            "itself; what they are worth, other videos tell"
        )
    if epochs_before is not None and recipe.numbers.epochs > epochs_before:
        say(more_epochs_in_words(recipe, epochs_before))
    if recipe.peak_learning_rate != recipe.learning_rate:
        say(
            f"learning_rate {recipe.learning_rate:g} is meant for batches of {recipe.learning_rate_batch}; for "
            f"{recipe.numbers.batch_size} it is scaled to {recipe.peak_learning_rate:g}"
        )

    steps_per_epoch = len(batches) // recipe.accumulate
    test_every_epochs = epochs_between_tests(recipe.numbers.epochs, steps_per_epoch)
    if validation is not None and test_every_epochs > 1:
        say(between_tests_in_words(test_every_epochs))
    kind = ShardedRecognitionTask if machine.strategy == "fsdp" else RecognitionTask
    counts = [list(training.counts(i).values()) for i in range(len(training.heads))]
    task = kind(
        model,
        recipe,
        steps_per_epoch=steps_per_epoch,
        head_sizes=head_sizes,
        class_counts=counts,
        several_of=len(training) if table.several else 0,
    )
    task.about = About(trained_from, tuple(label for head in table.heads for label in head.labels))
    unreadable = UnreadableVideos(allowed=skip_unreadable)
    lines = EpochLines(say, told=tested_epochs(out) if is_begun else ())
    best = BestEpoch(
        out / BEST,
        accuracy=accuracy,
        keep=recipe.keep == "best",
        stop_early=recipe.stop_early,
        steps_per_epoch=steps_per_epoch,
        say=say,
    )
    same_run = SameRun(hashlib.sha256((recipe_yaml(recipe) + table.fingerprint()).encode()).hexdigest())
    if dry_run:
        if not os.access(nearest_folder(out), os.W_OK):
            raise OptionError(f"{out} cannot be written: choose another folder with --out")
        try_training(
            task,
            recipe,
            loader,
            val_loader,
            [same_run, unreadable],
            machine=machine,
            processes=processes,
            num_held_out=num_held_out,
            num_tests=recipe.numbers.epochs // test_every_epochs,
            say=say,
        )
        return TrainingResult(run=out, metrics={}, seconds=0.0)
    write_list = partial(write_run_list, table, say=say, show_progress=show_progress)
    if is_begun and processes.is_first and not any(row.content for row in known or ()):
        write_list(out)  # of a run of an earlier tada
    if is_begun and processes.is_first and recipe.numbers.epochs != epochs_before:
        go_on(out, yaml_of_run(recipe))
    with _begun(out, recipe, write_list) if processes.is_first and not is_begun else nullcontext():
        if processes.is_first:
            note_command(out)
        trainer = make_trainer(
            recipe,
            out,
            [same_run, unreadable, lines, best, LoaderSpeed(say)],
            machine=machine,
            processes=processes,
            save_every_steps=save_every_steps or min(steps_per_epoch * test_every_epochs, 200),
            test_every_epochs=test_every_epochs,
            show_progress=show_progress,
            say=say,
        )
        on_cpu = trainer.strategy.root_device.type == "cpu"
        if processes.world > 1 and recipe.sync_batch_norm:
            synchronize_batch_norms(model, on_cpu=on_cpu)
        if machine.checkpoint_gradients:
            checkpoint_blocks(model)
        with leaving_together():
            fit(trainer, task, loader, val_loader, state=state)
            weights = whole_weights(model) if machine.strategy == "fsdp" else model.state_dict()
    seconds = lines.seconds
    metrics = lines.metrics
    if best.keep and best.epoch:
        metrics = best.metrics | {"kept_epoch": float(best.epoch)}
        say(f"kept: the weights after epoch {best.epoch}, the best of those tested by {accuracy}")
    if processes.is_first:
        if "kept_epoch" in metrics:
            weights = best.weights()
        else:
            metrics = _with_last_loss(metrics, out)
        unreadable.write(out / "unreadable.csv")
        card = ModelCard(
            model=recipe.model,
            options=recipe.model_options,
            labels=task.about.labels,
            head_sizes=head_sizes if len(head_sizes) > 1 else {},
            thresholds=(THRESHOLD,) * len(task.about.labels) if table.several else (),
            clip=recipe.clip,
            typical_seconds=typical_seconds(training.videos) if recipe.clip.sampling == "segment" else None,
            metrics=metrics,
            trained_from=task.about.trained_from,
        )
        save_weights(out, weights, card)
    for name, value in metrics.items():
        if name == "val_map" and validation is not None:
            positives = positives_text(list(validation.counts().values()))
            say(f"val_map {value:.3f} of {counted(task.num_tested, 'clip')}: {positives}")
        elif name.startswith("val_") and name != "val_loss" and task.num_tested:
            say(f"{name} {value:.3f} of {counted(task.num_tested, 'clip')} ({interval_text(value, task.num_tested)})")
    if processes.is_first:
        videos, epochs = counted(len(training), "video"), counted(recipe.numbers.epochs, "epoch")
        facts = [
            ("network", f"{recipe.model}, {sum(p.numel() for p in model.parameters()):,} parameters"),
            ("started from", task.about.trained_from),
            ("data", f"{data if isinstance(data, Path) else table.root}: {videos} of {classes}"),
            ("held out", counted(num_held_out, "video")),
            ("time", f"{seconds:.0f} s for {epochs} of {counted(steps_per_epoch, 'step')}"),
        ]
        _write_page(
            out,
            recipe,
            facts,
            validation,
            device=str(trainer.strategy.root_device),
            num_workers=num_workers,
            show_progress=show_progress,
            say=say,
        )
        write_metrics(out, metrics, seconds=seconds)  # with it, all is there
    tell_state(str)  # what is told from here on is another's
    return TrainingResult(run=out, metrics=metrics, seconds=seconds)


_MOST_TESTED = 2000
"""Held-out videos that the report's numbers are from, at most: more take long on one device."""


def _write_page(
    out: Path,
    recipe: Recipe,
    facts: Sequence[tuple[str, str]],
    validation: VideoTable | None,
    *,
    device: str,
    num_workers: int,
    show_progress: bool,
    say: Callable[[str], None],
) -> None:
    """Test the network once more on what was held out, as it was saved, and write what people look at."""
    result, words = None, "No videos were held out, so nothing says how good the network is."
    if validation is not None:
        if len(validation) > _MOST_TESTED:
            say(f"the report is of {_MOST_TESTED} of the {len(validation)} held-out videos, evenly spread")
            places = {round(i) for i in np.linspace(0, len(validation) - 1, _MOST_TESTED)}
            validation = replace(validation, videos=tuple(validation.videos[i] for i in sorted(places)))
        try:
            result = evaluate_alone(
                load(out, device=device), validation, num_workers=num_workers, show_progress=show_progress, say=say
            )
        except DataError as error:  # they have been removed since: the network is whole all the same
            words = f"What was held out could not be tested once more: {error}"
            say(f"the report lacks its test: {error}")
        else:
            if result.several:
                result = _with_thresholds(out, result, say)
            words = lead(result)
            result.save(out / VALIDATION, overwrite=True)
    write_run_page(
        out,
        [*facts, ("clip", clip_in_words(recipe.clip))],
        [] if result is None else report_sections(out / VALIDATION, result),
        lead=words,
        recipe=recipe_yaml(recipe),
        commands=noted_commands(out),
    )
    say(f"curves, every class and the worst mistakes: {out / PAGE}")


def _with_thresholds(out: Path, result: Evaluation, say: Callable[[str], None]) -> Evaluation:
    """Choose each class's threshold by the test on what was held out, and note it in the run."""
    thresholds = chosen_thresholds(result.scores, result.targets)
    save_thresholds(out, thresholds)
    few = sum(score.videos < FEWEST for score in result.class_scores())
    best = "thresholds are those with the best F1 on the held-out videos"
    if few == len(thresholds):
        say(f"thresholds are {THRESHOLD}: of each class there are fewer than {FEWEST} held-out videos to choose by")
    else:
        say(best + (f"; {THRESHOLD} for the {few} classes that fewer than {FEWEST} of them have" if few else ""))
    return replace(result, thresholds=thresholds)


def _check_limit(limit: int, whole: VideoTable, limited: VideoTable) -> None:
    """See whether each class that has training videos keeps one.

    Raises:
        OptionError: one does not.
    """
    for i, head in enumerate(whole.heads):
        before, after = whole.counts(i), limited.counts(i)
        lost = [label for label in head.labels if before[label] and not after[label]]
        if lost:
            raise OptionError(
                f"--limit {limit} leaves no training video of {listed(lost)}: give a larger one, "
                f"{len(head.labels)} for the {len(head.labels)} classes or more"
            )


def _with_last_loss(metrics: dict[str, float], out: Path) -> dict[str, float]:
    """The last epoch's numbers; its loss from the logs, where the epoch had ended before the run was interrupted."""
    logged = read_curves(out).get("train_loss")
    if "train_loss" in metrics or logged is None:
        return metrics
    return metrics | {"train_loss": logged.values[-1]}


def _begun(out: Path, recipe: Recipe, write_list: Callable[[Path], None]) -> AbstractContextManager[None]:
    return begun(out, yaml_of_run(recipe), write_list)


def _kind_of_classes(head: Head, heads: Sequence[Head]) -> str:
    return "classes" if len(heads) == 1 else f"{head.name}s"
