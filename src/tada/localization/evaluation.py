"""Evaluation of a localizer: detections on held-out videos, and the benchmarks' metrics of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tada.data.table import Head
from tada.errors import DataError, listed
from tada.localization.annotations.formats import read_names
from tada.localization.annotations.table import SegmentTable, named_like, read_segments, with_durations
from tada.localization.features.folder import FeatureFolder
from tada.localization.localizer import Localizer, results_of
from tada.localization.metrics import DetectionScores, EpicScores, detection_map, epic_map
from tada.localization.naming import check_naming, scores_for
from tada.localization.trained_videos import TrainedVideos, choose_tested, of_tested_split
from tada.system.documents import MAX_LIST_BYTES, read_json
from tada.system.files import check_not_there, write_whole, writing
from tada.system.progress import track

NUMBERS_FILE = "evaluation.json"
"""The file of a report that is written last; ``tada.localization.report`` writes the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalizationEvaluation:
    """Scores of an evaluation, with the detections and the annotations."""

    scores: DetectionScores | EpicScores
    """EpicScores if the annotations have verbs and nouns."""
    results: dict[str, Any]
    """The detections, in ActivityNet's JSON form."""
    table: SegmentTable
    """The annotated videos that were evaluated."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        if isinstance(self.scores, DetectionScores):
            return self.scores.as_dict()
        return {task: scores.as_dict() for task, scores in self.tasks().items()}

    def tasks(self) -> dict[str, DetectionScores]:
        """Scores by task: "action"; or "verb", "noun" and "action"."""
        return _scores_by_task(self.scores)

    def save(
        self, folder: Path, *, overwrite: bool = False, write_more: Callable[[Path], None] = lambda folder: None
    ) -> None:
        """Write detections.json and evaluation.json. A folder without the latter is of an interrupted run.

        Args:
            overwrite: replace an existing report.
            write_more: called with the folder, to write further files of the report.

        Raises:
            OptionError: the folder has a report, and ``overwrite`` is false.
            OutputError: the folder cannot be written.
        """
        check_not_there(folder, [NUMBERS_FILE], overwrite=overwrite)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / NUMBERS_FILE).unlink(missing_ok=True)  # this file marks a complete report
        write_whole(folder / "detections.json", (json.dumps(self.results) + "\n").encode())
        write_more(folder)
        write_whole(folder / NUMBERS_FILE, (json.dumps(self.as_dict(), indent=2) + "\n").encode())


def evaluate_localizer(
    localizer: Localizer,
    features: Path,
    segments: Path | SegmentTable,
    *,
    tiou_thresholds: Sequence[float],
    split: str | None = None,
    leave_out: Path | None = None,
    classifier: Path | None = None,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> LocalizationEvaluation:
    """Evaluate a localizer on features of annotated videos.

    Args:
        split: the annotations' split to test on; by default test if it has segments, else val. If the annotations have
            no splits: the videos that the localizer was not trained on.
        leave_out: a file that lists videos to ignore (``read_names``); published scores on ActivityNet have one.
        classifier: a file of class scores of whole videos (``read_video_scores``), used instead of the backbone's for
            detectors whose segments have no classes.

    Raises:
        DataError: features of another backbone or with other settings than the localizer was trained on, features of
            videos that were replaced since, or no features; videos that it was trained on; no class scores for a
            detector that needs them.
        OptionError: a classifier for a detector that has its own classes.
    """
    folder = FeatureFolder(features, classifier=scores_for(localizer.recipe, classifier))
    first = next(iter(folder.cards.values()))
    known = localizer.card.feature_settings
    changed = [
        f"{key} ({first.settings.get(key)}, not {known.get(key)})"
        for key in known | first.settings
        if first.settings.get(key) != known.get(key)
    ]
    if first.backbone != localizer.card.backbone or changed:
        run = "RUN" if localizer.run is None else str(localizer.run)
        raise DataError(
            f"{str(features)!r} holds features of another {', '.join(changed) or 'backbone'} than the localizer was "
            f"trained on; extract them as it does, `tada extract {run} VIDEOS OUT`, or import as those for training"
        )
    table = named_like(_read_counted(segments, leave_out), folder.places(), say)
    table = with_durations(table, {name: card.duration_seconds for name, card in folder.cards.items()})
    trained = None if localizer.run is None else TrainedVideos(localizer.run)
    table = choose_tested(table, trained, folder, split, say)
    missing = [video.name for video in table.videos if video.name not in folder.cards]
    if missing:
        raise DataError(
            f"{str(features)!r} has no features of {len(missing)} of the {len(table)} videos to test on, the first: "
            f"{missing[0]!r}; extract them, or list these videos in a file for --leave-out, and say so beside the score"
        )
    folder.check_sources(video.name for video in table.videos)
    _check_classes(table, localizer.heads)
    if localizer.recipe.names_by_scores:
        check_naming(folder, table.videos, localizer.heads)
    found = {
        video.name: localizer.detect(folder.read(video.name))
        for video in track(table.videos, "testing", noun="videos", is_shown=show_progress)
    }
    results = results_of(found, localizer.heads)
    return LocalizationEvaluation(scores=score(table, results, tiou_thresholds), results=results, table=table)


def evaluate_predictions(
    predictions: Path,
    segments: Path | SegmentTable,
    *,
    tiou_thresholds: Sequence[float],
    split: str | None = None,
    leave_out: Path | None = None,
) -> LocalizationEvaluation:
    """Score a file of detections in ActivityNet's JSON form (or EPIC-KITCHENS').

    Args:
        split: as for ``evaluate_localizer``; ``leave_out`` likewise.

    Raises:
        DataError: the file is not of that form.
    """
    try:
        results = read_json(predictions, MAX_LIST_BYTES)
        if not isinstance(results, dict) or not isinstance(results.get("results"), dict):
            raise ValueError("no object called 'results'")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{str(predictions)!r} holds no detections ({error}); expected JSON with 'results': an entry for each video"
        ) from error
    whole = named_like(of_tested_split(_read_counted(segments, None), split), tuple(results["results"]))
    table = whole if leave_out is None else whole.leaving_out(read_names(leave_out))
    left_out = {video.name for video in whole.videos} - {video.name for video in table.videos}
    results["results"] = {video: found for video, found in results["results"].items() if video not in left_out}
    scores = score(table, results, tiou_thresholds)
    found = results["results"]
    if any(found.values()) and not any(found.get(video.name) for video in table.videos):
        raise DataError(
            f"{str(predictions)!r} has predictions on none of the {len(table)} videos of {table.name}, but on others "
            f"such as {next(iter(found))!r}; see whether their names and the split are right"
        )
    if any(found.values()) and not any(part.num_predictions for part in _scores_by_task(scores).values()):
        raise DataError(
            f"{str(predictions)!r} has predictions of none of the classes of {table.name}, such as "
            f"{table.label_of(next(s for video in table.videos for s in video.segments))!r}; name them alike"
        )
    return LocalizationEvaluation(scores=scores, results=results, table=table)


def _scores_by_task(scores: DetectionScores | EpicScores) -> dict[str, DetectionScores]:
    """Scores by task: "action"; or "verb", "noun" and "action"."""
    if isinstance(scores, DetectionScores):
        return {"action": scores}
    return {"verb": scores.verb, "noun": scores.noun, "action": scores.action}


def _read_counted(segments: Path | SegmentTable, leave_out: Path | None) -> SegmentTable:
    """The annotations, without the videos that a file lists."""
    table = segments if isinstance(segments, SegmentTable) else read_segments(segments)
    return table if leave_out is None else table.leaving_out(read_names(leave_out))


def _check_classes(table: SegmentTable, known: Sequence[Head]) -> None:
    """Refuse annotations that share no class with the localizer."""
    of_table, of_model = ({s.name: s.labels for s in heads} for heads in (table.heads, known))
    strange = [s.name for s in known if not (s.is_numbered or set(s.labels) & set(of_table.get(s.name, ())))]
    if of_table.keys() != of_model.keys() or strange:
        shown = [
            " and ".join(f"{name} ({listed(classes, quote=False, at_most=3)})" for name, classes in of.items())
            for of in (of_table, of_model)
        ]
        raise DataError(
            f"{table.name} is of {shown[0]}, while the localizer names {shown[1]}: they have no class in common; give "
            "the annotations of what it was trained on"
        )


def score(
    table: SegmentTable, results: dict[str, Any], tiou_thresholds: Sequence[float]
) -> DetectionScores | EpicScores:
    """Score detections in ActivityNet's JSON form (or EPIC-KITCHENS') against a table of one split."""
    if len(table.heads) == 1:
        split = table.videos[0].split or "val"
        return detection_map(table.ground_truth(), results, subset=split, tiou_thresholds=tiou_thresholds)
    # Predictions give verb and noun by name, or by number as EPIC-KITCHENS' challenge does.
    numbers = [
        {str(i): i for i in range(len(s.labels))} | {name: i for i, name in enumerate(s.labels)} for s in table.heads
    ]
    rows = [
        {
            "video_id": video.name,
            "start_timestamp": segment.start_seconds,
            "stop_timestamp": segment.end_seconds,
            "verb_class": segment.labels[0],
            "noun_class": segment.labels[1],
        }
        for video in table.videos
        for segment in video.segments
    ]
    predicted: dict[str, list[dict[str, Any]]] = {}
    for video, entries in results["results"].items():
        predicted[video] = []
        for place, entry in enumerate(entries, start=1):
            if not {"verb", "noun"} <= entry.keys():
                raise DataError(
                    f"prediction {place} of video {video!r} names no verb and noun; {table.name} is of both"
                )
            own = {name: numbers[i].get(str(entry[name]), -1) for i, name in enumerate(("verb", "noun"))}
            predicted[video].append(entry | own)
    return epic_map(rows, {"results": predicted}, tiou_thresholds=tiou_thresholds)
