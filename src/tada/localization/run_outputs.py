"""Files that a localizer's training writes at its end: detector, thresholds, evaluation on held-out videos, page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tada.localization.annotations.table import SegmentTable, UntrimmedVideo
from tada.localization.detectors.actionformer import ActionFormerDetector
from tada.localization.detectors.bmn import BMNDetector
from tada.localization.detectors.nms import Detections
from tada.localization.evaluation import LocalizationEvaluation, score
from tada.localization.features.folder import FeatureFolder
from tada.localization.localizer import Localizer, LocalizerCard, results_of, save_localizer
from tada.localization.metrics import best_thresholds
from tada.localization.naming import can_name
from tada.localization.recipe import LocalizationRecipe
from tada.localization.report import lead, report_sections
from tada.localization.training_data import TrainingData
from tada.recognition.recognizer import Recognizer
from tada.training.recipe import recipe_yaml
from tada.training.run_folder import noted_commands
from tada.training.run_page import VALIDATION, write_run_page

_ENOUGH_VIDEOS, _MOST_VIDEOS = 5, 100  # training videos per class and in all, for thresholds of untested classes


def write_localizer(
    out: Path,
    recipe: LocalizationRecipe,
    detector: ActionFormerDetector | BMNDetector,
    data: TrainingData,
    metrics: dict[str, float],
    *,
    backbone: Recognizer | None,
) -> Localizer:
    """Save a trained detector with its card; score thresholds are chosen if there are held-out videos."""
    folder = data.folder
    card = LocalizerCard(
        detector=recipe.detector,
        shape=detector.config_as_dict(),
        heads=data.table.heads,
        grid=folder.grid,
        feature_settings=next(iter(folder.cards.values())).settings,
        backbone=folder.backbone,
        thresholds={},
        metrics=metrics,
    )
    localizer = Localizer(detector, card, recipe, backbone=backbone)
    if data.tested is not None:
        localizer.card = replace(card, thresholds=thresholds_of(localizer, folder, data.tested, data.training))
    save_localizer(out, localizer)
    return localizer


def write_page(
    out: Path,
    recipe: LocalizationRecipe,
    facts: Sequence[tuple[str, str]],
    localizer: Localizer,
    folder: FeatureFolder,
    tested: SegmentTable | None,
) -> None:
    """Evaluate the saved localizer on the held-out videos, and write the report page."""
    words, sections = "No videos were held out, so nothing says how good the localizer is.", []
    if tested is not None:
        found = {video.name: localizer.detect(folder.read(video.name)) for video in tested.videos}
        results = results_of(found, tested.heads)
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
    """Score threshold of each class: where F1 is highest on the tested videos.

    If a class has no segments there, or none is found, these videos only show which scores wrong detections reach. Then
    some training videos with the class are added: the threshold separates their right detections (whose scores are too
    high, since they were trained on) from those wrong ones.
    """

    def best(videos: Sequence[UntrimmedVideo], found: Mapping[str, Detections]) -> dict[str, float]:
        truth = replace(tested, videos=tuple(replace(video, split="val") for video in videos)).ground_truth()
        return best_thresholds(truth, results_of(found, tested.heads), subset="val")

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
        if localizer.recipe.names_by_scores and not can_name(folder, video, tested.heads):
            continue
        added.append(video)
        examples.update(lacking)
    joint = best([*tested.videos, *added], found | detected(added)) if added else {}
    return {label: value for label, value in joint.items() if label in examples} | thresholds
