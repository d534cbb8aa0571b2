"""Training a localizer on features, with Lightning's trainer; the results are in a run folder.

A run's folder holds::

    recipe.yaml             the recipe
    data.json               hashes of the features and segments
    videos.csv              the training and held-out videos, with their content
    localizer.safetensors   the detector's weights, of the epoch with the best mean average precision
    localizer.json          the detector's card: config, classes, time grid, thresholds, checksum
    backbone/               the network that made the features, unless they were imported
    metrics.json            metrics at the end of training
    logs/                   metrics of every epoch: CSV, and TensorBoard
    commands.txt            the commands that started and continued it
    validation/             the evaluation on the held-out videos, as `tada localize evaluate` writes it
    curves.png              loss, mean average precision and learning rate over the epochs
    report.html             all results in one page
    resume/                 the state from which an interrupted run continues, and the best epoch's weights
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
from torch import nn

from tada.data.clips import ResumableBatches, ResumableLoader
from tada.data.loader import VideoLoader
from tada.display.page import PAGE
from tada.errors import DataError, counted
from tada.localization.annotations.table import VAL_FRACTION, SegmentTable
from tada.localization.detectors.detector import new_detector
from tada.localization.features.folder import FeatureFolder
from tada.localization.naming import check_naming
from tada.localization.recipe import LocalizationRecipe
from tada.localization.run_outputs import write_localizer, write_page
from tada.localization.training_data import TrainingData, of_same_run, training_data, write_data
from tada.localization.training_step import LocalizationTask, TestFeatures, TrainingSamples
from tada.recognition.recognizer import Recognizer
from tada.system.devices import Machine, find_device
from tada.system.locks import holds
from tada.training.best_epoch import BEST, BestEpoch
from tada.training.recipe import recipe_yaml
from tada.training.run_folder import (
    TrainingResult,
    check_free,
    end_run,
    finished_result,
    saved_state,
    was_begun,
    within_run,
)
from tada.training.run_page import tested_epochs
from tada.training.schedule import Pace, between_tests_in_words, fitted, in_words, pace_of
from tada.training.trainer import EpochLines, fit, make_trainer


@holds("out")
def train_localizer(
    recipe: LocalizationRecipe,
    features: Path,
    segments: Path | SegmentTable,
    out: Path,
    *,
    backbone: Recognizer | None = None,
    classifier: Path | None = None,
    val_fraction: float = VAL_FRACTION,
    resume: bool = False,
    skip_missing: int = 0,
    leave_out: Path | None = None,
    num_workers: int = 0,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> TrainingResult:
    """Train a detector on a folder of features and an annotation file; write the run folder ``out``.

    After each epoch the held-out videos are tested, with the averaged weights if there are any; the best epoch by mean
    average precision is kept. Choosing by that score makes it slightly too good: report the score of a third split.

    Args:
        features: a folder from ``tada extract`` or ``import_features``.
        segments: an annotation file or folder, as for ``read_segments``, or its table.
        backbone: the network that made the features; saved with the run, so that it can localize in videos.
        classifier: as for ``evaluate_localizer``, for validation.
        val_fraction: fraction of the videos that is held out if the annotations have no splits.
        resume: continue the run in ``out`` from its last saved state.
        skip_missing: how many annotated videos may have no features; they are named, and left out.
        leave_out: a file that lists videos to ignore, as for ``evaluate_localizer``.

    Raises:
        UserError: a fault in the data or the recipe, or a folder that is already in use.
        OutputError: the folder cannot be written, or another process writes into it.
    """
    data = training_data(
        recipe,
        features,
        segments,
        backbone=backbone,
        classifier=classifier,
        val_fraction=val_fraction,
        skip_missing=skip_missing,
        leave_out=leave_out,
        say=say,
    )
    state = None
    is_begun = resume and was_begun(out)
    if is_begun:
        state = saved_state(out, say)
        recipe = of_same_run(recipe, data, out, say)
        result = finished_result(out)
        if result is not None:
            say(f"{out} is finished")
            return result
    elif not resume:
        check_free(out)

    L.seed_everything(recipe.seed, verbose=False)
    detector = new_detector(recipe, data.training, data.folder)
    samples = TrainingSamples(detector, data.training, data.folder, seed=recipe.seed)
    if not len(samples):
        raise DataError(
            f"{data.table.name}: no training window holds a whole segment; see whether their times are seconds"
        )
    recipe = fitted(recipe, len(samples))
    steps = _fit_batch_size(recipe, len(samples))
    loader, test_loader = _make_loaders(steps, samples, data, num_workers=num_workers, say=say)
    pace = pace_of(steps, len(loader.batches))
    for line in _plan_in_words(steps, data, detector, len(samples), pace):
        say(line)
    task = LocalizationTask(detector, steps, steps_per_epoch=pace.steps_per_epoch, tested=data.tested)
    lines = EpochLines(say, told=tested_epochs(out))
    best = BestEpoch(out / BEST, accuracy="val_map", steps_per_epoch=pace.steps_per_epoch)
    with within_run(out, recipe_yaml(recipe), partial(write_data, data), goes_on=is_begun):
        trainer = make_trainer(
            steps,
            out,
            [lines] if data.tested is None else [lines, best],
            processes=_machine().processes(),
            pace=pace,
            noun="windows" if recipe.detector == "bmn" else "videos",
            show_progress=show_progress,
            say=say,
        )
        fit(trainer, task, loader, test_loader, state=state)

    metrics, seconds = lines.metrics, lines.seconds
    if data.tested is not None:
        detector.load_state_dict(best.weights("detector"))
        metrics = metrics | {"val_map": best.metrics["val_map"]}
    localizer = write_localizer(out, recipe, detector, data, metrics, backbone=backbone)
    epochs, num_steps = counted(steps.numbers.epochs, "epoch"), counted(pace.steps_per_epoch, "step")
    videos = counted(len(data.training), "video")
    facts = [
        ("detector", f"{recipe.detector}, {_count_parameters(detector):,} parameters"),
        ("features", f"{features}, {_features_in_words(data.folder)}"),
        (
            "trained on",
            f"{_segments_in_words(data)} in {videos} of {data.classes_in_words}",
        ),
        ("held out", counted(data.num_tested, "video")),
        ("time", f"{seconds:.0f} s for {epochs} of {num_steps}"),
    ]
    write_page(out, recipe, facts, localizer, data.folder, data.tested)
    say(f"curves, every class, errors by kind and timelines: {out / PAGE}")
    return end_run(out, metrics, seconds=seconds)


def _machine() -> Machine:
    """One device, since detectors are small; not Apple's GPU, on which they have not been tried."""
    device = find_device(None)
    return Machine(accelerator="cpu" if device == "mps" else "auto")


def _fit_batch_size(recipe: LocalizationRecipe, num_samples: int) -> LocalizationRecipe:
    """Reduce the batch size to the number of samples, if incomplete batches are dropped.

    Otherwise no batch would be left.
    """
    batch_size, accumulate = recipe.numbers.batch_size, recipe.accumulate
    if recipe.last_batch == "fill" or num_samples >= batch_size:
        return recipe
    batch_size = num_samples // accumulate * accumulate or num_samples
    return replace(recipe, batch_size=batch_size, accumulate=accumulate if batch_size % accumulate == 0 else 1)


def _make_loaders(
    recipe: LocalizationRecipe,
    samples: TrainingSamples,
    data: TrainingData,
    *,
    num_workers: int,
    say: Callable[[str], None],
) -> tuple[ResumableLoader, VideoLoader | None]:
    """Loaders of training samples and of the held-out videos."""
    batches = ResumableBatches(
        len(samples),
        batch_size=recipe.numbers.batch_size,
        last_batch=recipe.last_batch,
        accumulate=recipe.accumulate,
        seed=recipe.seed,
    )
    loader = ResumableLoader(samples, batches, num_workers=num_workers, collate=samples.detector.collate, say=say)
    if data.tested is None:
        return loader, None
    if recipe.names_by_scores:
        check_naming(data.folder, data.tested.videos, data.table.heads)
    features = TestFeatures(data.tested, data.folder)
    return loader, VideoLoader(features, batch_size=None, num_workers=num_workers, say=say)


def _plan_in_words(
    recipe: LocalizationRecipe, data: TrainingData, detector: nn.Module, num_samples: int, pace: Pace
) -> Iterator[str]:
    """Lines that say what will be trained on which data, and for how long."""
    segments, training = _segments_in_words(data), counted(len(data.training), "training video")
    yield f"{segments} in {training}, {data.num_tested} held out; {data.classes_in_words}"
    yield f"{recipe.detector}: {_count_parameters(detector):,} parameters on {_features_in_words(data.folder)}"
    noun = "window" if recipe.detector == "bmn" else "video"
    yield in_words(recipe.numbers, num_samples, recipe.last_batch, noun=noun)
    if data.tested is not None and pace.test_every_epochs > 1:
        yield between_tests_in_words(pace.test_every_epochs)


def _count_parameters(detector: nn.Module) -> int:
    return sum(p.numel() for p in detector.parameters())


def _segments_in_words(data: TrainingData) -> str:
    return counted(data.training.num_segments, "segment")


def _features_in_words(folder: FeatureFolder) -> str:
    return f"{folder.channels} channels every {folder.grid.stride_seconds:.3f} s"
