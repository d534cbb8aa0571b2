"""Training a localizer on features: the recipe becomes a detector, a loop (Lightning's) and the folder of a run.

A run's folder holds::

    recipe.yaml             what was trained, and how
    data.json               on which features and segments
    videos.csv              on which videos, by content, and which were held out
    localizer.safetensors   the detector's weights: of the epoch with the best mean average precision
    localizer.json          its shape, labels, time grid, thresholds and checksum
    backbone/               the network that made the features, where it was one of ours
    metrics.json            how it ended
    logs/                   numbers of every epoch: CSV, and TensorBoard
    commands.txt            the commands that started and continued it
    validation/             the test on the held-out videos, as `tada localize evaluate` writes it
    curves.png              loss, mean average precision and learning rate over the epochs
    report.html             all that people want to see of it, in one page
    resume/                 the state from which an interrupted run continues, and the best epoch's
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from tada.data.clips import ResumableBatches, ResumableLoader
from tada.data.loader import VideoLoader
from tada.display.page import PAGE
from tada.errors import DataError, counted
from tada.localization.annotations.formats import read_names
from tada.localization.annotations.table import (
    VAL_FRACTION,
    SegmentTable,
    UntrimmedVideo,
    check_for_training,
    named_like,
    read_segments,
    with_durations,
    with_splits,
)
from tada.localization.detectors.detections import Detections
from tada.localization.detectors.detector import new_detector
from tada.localization.evaluation import LocalizationEvaluation, score
from tada.localization.features.extraction import backbone_hash
from tada.localization.features.folder import FeatureFolder
from tada.localization.localizer import Localizer, LocalizerCard, results_of, save_localizer
from tada.localization.metrics import best_thresholds
from tada.localization.naming import can_name, check_naming, scores_for
from tada.localization.recipe import LocalizationRecipe
from tada.localization.report import lead, report_sections
from tada.localization.trained_videos import (
    DATA_FILE,
    VIDEOS_FILE,
    TrainedVideos,
    check_no_leak,
    write_trained_videos,
)
from tada.localization.training_step import BestEpoch, LocalizationTask, TestFeatures, TrainingSamples
from tada.recognition.recognizer import Recognizer
from tada.system.devices import Machine
from tada.system.documents import read_json
from tada.system.files import write_whole
from tada.system.locks import holds
from tada.system.signals import tell_state
from tada.training.checkpoints import WholeFileCheckpoints
from tada.training.recipe import recipe_yaml, resumed
from tada.training.run_folder import (
    begun,
    check_free,
    finished_metrics,
    note_command,
    noted_commands,
    saved_state,
    was_begun,
    write_metrics,
)
from tada.training.run_page import VALIDATION, tested_epochs, write_run_page
from tada.training.schedule import between_tests_in_words, epochs_between_tests, fitted, in_words
from tada.training.trainer import EpochLines, fit, make_trainer

BEST = Path("resume", "best.ckpt")
_SHORTEST_STEPS = 2
_ENOUGH_VIDEOS, _MOST_VIDEOS = 5, 100  # that thresholds of classes without validation are learned from


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalizationResult:
    """How a run ended."""

    run: Path
    """The run's folder, for `tada.load`."""
    metrics: dict[str, float]
    """train_loss of the last epoch; val_map of the best, where videos were held out."""
    seconds: float
    """Wall time of the training loop, over all starts of the run."""


def prepare_table(
    table: SegmentTable,
    folder: FeatureFolder,
    *,
    val_fraction: float,
    seed: int,
    skip_missing: int,
    say: Callable[[str], None],
) -> SegmentTable:
    """Match annotations with features, and refuse what would waste hours.

    Raises:
        DataError: annotated videos without features, or with those of another content; a length that contradicts the
            duration; no segments in a split; a video in two splits.
    """
    table = with_splits(named_like(table, folder.places(), say), val_fraction=val_fraction, seed=seed)
    example = next(iter(folder.cards))
    missing = {
        video.name: f"{table.name}: the video {video.name!r} has no features in {str(folder.folder)!r} (there lies "
        f"{example!r}): extract them, or take its rows away"
        for video in table.videos
        if video.segments and video.name not in folder.cards
    }
    table = table.without(missing, allowed=skip_missing, say=say)
    table = replace(table, videos=tuple(video for video in table.videos if video.name in folder.cards))
    folder.check_sources(video.name for video in table.videos)
    check_no_leak(table, folder)
    for card in folder.cards.values():
        card.grid.check_length(card.num_features, card.duration_seconds, f"features of {card.video!r}")
    table = with_durations(table, {name: card.duration_seconds for name, card in folder.cards.items()})
    check_for_training(table, say)
    lengths = [s.seconds for video in table.of_split("train").videos for s in video.segments]
    if np.percentile(lengths, 25) < _SHORTEST_STEPS * folder.grid.stride_seconds:
        say(
            f"a fourth of the segments lasts less than two features ({folder.grid.stride_seconds:.3f} s apart): "
            "extract with a smaller --stride-seconds"
        )
    return table


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
) -> LocalizationResult:
    """Train a detector on a folder of features and an annotation file, and leave it in the folder ``out``.

    After each epoch the held-out videos are tested, with the averaged weights where there are some; the best epoch by
    mean average precision is kept. Choosing by that score makes it a little too good: report a third split's.

    Args:
        features: a folder that ``tada extract`` or ``import_features`` wrote.
        segments: what ``read_segments`` takes, or a table it has read.
        backbone: the network that made the features; saved with the run, so that it can localize in videos.
        classifier: as for ``evaluate_localizer``, for the validation.
        val_fraction: part of the videos held out where the annotations have no splits.
        resume: continue the run in ``out`` from its last saved state.
        skip_missing: how many annotated videos may have no features; they are named, and left out.
        leave_out: a list of videos that do not count, as for ``evaluate_localizer``.

    Raises:
        UserError: of the data, the recipe, or a folder that is already in use; each says the way out.
        OutputError: the folder cannot be written, or another process writes into it.
    """
    table = segments if isinstance(segments, SegmentTable) else read_segments(segments)
    table = table if leave_out is None else table.leaving_out(read_names(leave_out))
    folder = FeatureFolder(features, classifier=scores_for(recipe, classifier))
    if backbone is not None and backbone_hash(backbone.model) != folder.backbone:
        raise DataError(
            f"{str(features)!r} holds features of another backbone ({folder.backbone[:12]}) than the one given: "
            "extract them with it, into a new folder"
        )
    table = prepare_table(
        table, folder, val_fraction=val_fraction, seed=recipe.seed, skip_missing=skip_missing, say=say
    )
    state = None
    is_begun = resume and was_begun(out)
    if is_begun:
        state = saved_state(out, say)
        recipe = _check_same_run(out, recipe, table, folder)
        metrics = finished_metrics(out)
        if metrics is not None:
            say(f"{out} is finished")
            seconds = metrics.pop("seconds", 0.0)
            return LocalizationResult(run=out, metrics=metrics, seconds=seconds)
    elif not resume:
        check_free(out)
    L.seed_everything(recipe.seed, verbose=False)
    training = table.of_split("train")
    tested = next((table.of_split(split) for split in ("val", "test") if split in table.splits), None)
    detector = new_detector(recipe, training, folder)
    samples = TrainingSamples(detector, training, folder, seed=recipe.seed)
    if not len(samples):
        raise DataError(f"{table.name}: no training window holds a whole segment; see whether their times are seconds")
    recipe = fitted(recipe, len(samples))
    steps = _steps(recipe, len(samples))
    batches = ResumableBatches(
        len(samples),
        batch_size=steps.numbers.batch_size,
        last_batch=steps.last_batch,
        accumulate=steps.accumulate,
        seed=steps.seed,
    )
    loader = ResumableLoader(samples, batches, num_workers=num_workers, collate=detector.collate, say=say)
    test_loader = None
    if tested is not None:
        if recipe.names_by_scores:
            check_naming(folder, tested.videos, table.label_sets)
        test_loader = VideoLoader(TestFeatures(tested, folder), batch_size=None, num_workers=num_workers, say=say)
    num_tested = 0 if tested is None else len(tested)
    classes = " and ".join(counted(len(s.classes), f"{s.name} class") for s in table.label_sets)
    num_segments = counted(training.num_segments, "segment")
    say(f"{num_segments} in {counted(len(training), 'training video')}, {num_tested} held out; {classes}")
    size = sum(p.numel() for p in detector.parameters())
    say(
        f"{recipe.detector}: {size:,} parameters on {folder.channels} channels every {folder.grid.stride_seconds:.3f} s"
    )
    say(in_words(steps.numbers, len(samples), steps.last_batch, noun="window" if recipe.detector == "bmn" else "video"))
    steps_per_epoch = len(batches) // steps.accumulate
    test_every_epochs = epochs_between_tests(steps.numbers.epochs, steps_per_epoch)
    if tested is not None and test_every_epochs > 1:
        say(between_tests_in_words(test_every_epochs))
    task = LocalizationTask(detector, steps, steps_per_epoch=steps_per_epoch, tested=tested)
    lines = EpochLines(say, told=tested_epochs(out))
    best = BestEpoch(out / BEST) if tested is not None else None
    callbacks: list[Callback] = [lines] if best is None else [lines, best]
    machine = Machine()  # detectors are small: one device
    with nullcontext() if is_begun else begun(out, recipe_yaml(recipe), lambda run: _write_data(run, table, folder)):
        note_command(out)
        trainer = make_trainer(
            steps,
            out,
            callbacks,
            machine=machine,
            processes=machine.processes(),
            save_every_steps=min(steps_per_epoch * test_every_epochs, 200),
            test_every_epochs=test_every_epochs,
            noun="windows" if recipe.detector == "bmn" else "videos",
            show_progress=show_progress,
            say=say,
        )
        fit(trainer, task, loader, test_loader, state=state)
    seconds = lines.seconds
    metrics = dict(lines.metrics)
    if best is not None:
        task.load_state_dict(WholeFileCheckpoints().load_checkpoint(best.file)["state_dict"])
        metrics["val_map"] = best.score
    card = LocalizerCard(
        detector=recipe.detector,
        shape=detector.config_as_dict(),
        label_sets=table.label_sets,
        grid=folder.grid,
        feature_settings=next(iter(folder.cards.values())).settings,
        backbone=folder.backbone,
        thresholds={},
        metrics=metrics,
    )
    localizer = Localizer(detector, card, recipe, backbone=backbone)
    if tested is not None:
        localizer.card = replace(card, thresholds=thresholds_of(localizer, folder, tested, training))
    save_localizer(out, localizer)
    facts = [
        ("detector", f"{recipe.detector}, {size:,} parameters"),
        ("features", f"{features}, {folder.channels} channels every {folder.grid.stride_seconds:.3f} s"),
        ("trained on", f"{num_segments} in {counted(len(training), 'video')} of {classes}"),
        ("held out", counted(num_tested, "video")),
        ("time", f"{seconds:.0f} s for {counted(steps.numbers.epochs, 'epoch')} of {counted(steps_per_epoch, 'step')}"),
    ]
    _write_page(out, recipe, facts, localizer, folder, tested)
    say(f"curves, every class, errors by kind and timelines: {out / PAGE}")
    write_metrics(out, metrics, seconds=seconds)  # with it, all is there
    tell_state(str)  # what is told from here on is another's
    return LocalizationResult(run=out, metrics=metrics, seconds=seconds)


def _steps(recipe: LocalizationRecipe, num_samples: int) -> LocalizationRecipe:
    """The recipe as it is carried out: batches that the data do not fill are made as small as they are.

    Only where the rest of a batch is dropped: else nothing would be left.
    """
    batch_size, accumulate = recipe.numbers.batch_size, recipe.accumulate
    if recipe.last_batch == "fill" or num_samples >= batch_size:
        return recipe
    batch_size = num_samples // accumulate * accumulate or num_samples
    return replace(recipe, batch_size=batch_size, accumulate=accumulate if batch_size % accumulate == 0 else 1)


def _write_page(
    out: Path,
    recipe: LocalizationRecipe,
    facts: Sequence[tuple[str, str]],
    localizer: Localizer,
    folder: FeatureFolder,
    tested: SegmentTable | None,
) -> None:
    """Test the localizer as it was saved, and write what people look at."""
    words, sections = "No videos were held out, so nothing says how good the localizer is.", []
    if tested is not None:
        found = {video.name: localizer.detect(folder.read(video.name)) for video in tested.videos}
        results = results_of(found, tested.label_sets)
        result = LocalizationEvaluation(
            scores=score(tested, results, recipe.tiou_thresholds), results=results, table=tested
        )
        result.save(out / VALIDATION, overwrite=True)
        sections = report_sections(tested, results, result.tasks(), localizer.card.thresholds)
        words = f"{lead(result.tasks(), tested)} The best epoch was chosen by them: a third split says more."
    write_run_page(out, facts, sections, lead=words, recipe=recipe_yaml(recipe), commands=noted_commands(out))


def thresholds_of(
    localizer: Localizer, folder: FeatureFolder, tested: SegmentTable, training: SegmentTable
) -> dict[str, float]:
    """The score from which on each class is shown: where F1 is highest on the tested videos.

    Where a class has no examples there, or none is found, all that these videos can tell is which scores wrong ones
    reach. Then some training videos with the class are counted too: their right detections, however sure of themselves,
    have to stand above those wrong ones.
    """

    def best(videos: Sequence[UntrimmedVideo], found: Mapping[str, Detections]) -> dict[str, float]:
        truth = replace(tested, videos=tuple(replace(video, split="val") for video in videos)).ground_truth()
        return best_thresholds(truth, results_of(found, tested.label_sets), subset="val")

    def detected(videos: Sequence[UntrimmedVideo]) -> dict[str, Detections]:
        return {video.name: localizer.detect(folder.read(video.name)) for video in videos}

    found = detected(tested.videos)
    thresholds = best(tested.videos, found)
    added: list[UntrimmedVideo] = []
    examples: Counter[str] = Counter()
    for video in training.videos:
        lacking = {training.label_of(segment) for segment in video.segments} - thresholds.keys()
        if len(added) == _MOST_VIDEOS or all(examples[label] >= _ENOUGH_VIDEOS for label in lacking):
            continue
        if localizer.recipe.names_by_scores and not can_name(folder, video, tested.label_sets):
            continue
        added.append(video)
        examples.update(lacking)
    joint = best([*tested.videos, *added], found | detected(added)) if added else {}
    return {label: value for label, value in joint.items() if label in examples} | thresholds


def _about(table: SegmentTable, folder: FeatureFolder) -> dict[str, str]:
    """What data.json says: what a run is on."""
    return {"features": folder.key, "segments": table.fingerprint()}


def _write_data(out: Path, table: SegmentTable, folder: FeatureFolder) -> None:
    write_trained_videos(out, table, folder)
    write_whole(out / DATA_FILE, (json.dumps(_about(table, folder), indent=2) + "\n").encode())  # with it, all is there


def _check_same_run(
    out: Path, recipe: LocalizationRecipe, table: SegmentTable, folder: FeatureFolder
) -> LocalizationRecipe:
    """The recipe with the run's numbers.

    Raises:
        OptionError: the run was begun with another recipe.
        DataError: or with other data.
    """
    recipe = resumed(recipe, out, or_else="begin another run without --resume")
    if not (out / DATA_FILE).exists():  # it was interrupted that early
        _write_data(out, table, folder)
    try:
        before = read_json(out / DATA_FILE)
    except (OSError, ValueError) as error:
        raise DataError(f"{str(out / DATA_FILE)!r} is damaged ({error}): start anew") from error
    if before != json.loads(json.dumps(_about(table, folder))):
        raise DataError(f"the features or segments are not those that {out} was started with: start anew")
    replaced = TrainedVideos(out).changed(table, folder)
    if replaced:
        raise DataError(
            f"the video {replaced[0]!r} is not the one that {out} was started with ({VIDEOS_FILE} there): it was "
            "replaced since; start anew without --resume, into another folder"
        )
    return recipe
