"""Metrics of detections: mAP, average recall (AR@AN), EPIC-KITCHENS' verb, noun and action mAP, Recall@kx.

Ground truth and results are the ActivityNet JSON forms, as dicts::

    {"database": {"v1": {"duration": 60.0, "subset": "validation",
                         "annotations": [{"segment": [5.0, 15.0], "label": "jump"}]}}}
    {"results": {"v1": [{"segment": [5.75, 15.0], "label": "jump", "score": 0.6}]}}

The rules are those that the official evaluations of ActivityNet, HACS, THUMOS and EPIC-KITCHENS share. Where they
leave a choice: predictions of equal score keep the order of the results (official code reverses or shuffles them), all
numbers are float64, and a tIoU reaches a threshold if it is at most 1e-9 below.

Shapes: P predictions, G ground-truth segments, H thresholds.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tada.data.times_and_splits import parse_seconds
from tada.errors import DataError, OptionError
from tada.localization.annotations.formats import NUM_EPIC_NOUNS
from tada.localization.detectors.nms import Floats, Ints, tiou, tiou_of_pairs
from tada.localization.metric_inputs import Events, ground_truth_events, predicted_events, without_faulty

ANET_TIOUS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""ActivityNet and HACS. Written out: numpy's linspace gives 0.8999999999999999."""
THUMOS_TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)
EPIC_TIOUS = (0.1, 0.2, 0.3, 0.4, 0.5)
PRESETS = {"anet": ANET_TIOUS, "hacs": ANET_TIOUS, "thumos": THUMOS_TIOUS, "epic": EPIC_TIOUS}
"""tIoU thresholds of each benchmark, by its short name."""

_GRACE = 1e-9  # rounding errors that are forgiven


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionScores:
    """Result of ``detection_map``."""

    tiou_thresholds: tuple[float, ...]
    """[H], as given."""
    per_threshold: tuple[float, ...]
    """[H], mAP at each threshold: the mean of the average precision over classes."""
    per_class: dict[str, tuple[float, ...]]
    """[H] average precisions, by class of the ground truth."""
    num_ground_truth: int
    """Segments of the ground truth."""
    num_predictions: int
    """Predictions of the classes that the ground truth has."""

    @property
    def average(self) -> float:
        """Average mAP: the mean over the thresholds, which papers report."""
        return float(np.mean(self.per_threshold))

    def class_average(self) -> dict[str, float]:
        """Average precision of each class, averaged over the thresholds."""
        return {label: float(np.mean(values)) for label, values in self.per_class.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        per_threshold = {f"{t:g}": value for t, value in zip(self.tiou_thresholds, self.per_threshold, strict=True)}
        return {
            "average_map": self.average,
            "map": per_threshold,
            "per_class": self.class_average(),
            "ground_truth": self.num_ground_truth,
            "predictions": self.num_predictions,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallScores:
    """Result of ``average_recall``."""

    average_proposals: tuple[float, ...]
    """Average number of proposals per video: 1, 2, ..., the maximum."""
    average_recall: tuple[float, ...]
    """Recall with that many proposals, averaged over the thresholds."""

    @property
    def auc(self) -> float:
        """Area under the AR-AN curve, as a fraction of the maximum."""
        area = np.trapezoid(self.average_recall, self.average_proposals)
        return float(area / self.average_proposals[-1])

    def at(self, count: int) -> float:
        """AR@AN for AN = ``count``."""
        if not 1 <= count <= len(self.average_recall):
            raise OptionError(f"AR@{count} was not measured; it was from 1 to {len(self.average_recall)}")
        return self.average_recall[count - 1]


@dataclass(frozen=True, kw_only=True, slots=True)
class EpicScores:
    """Result of ``epic_map``: mAP of three tasks from one list of predictions."""

    verb: DetectionScores
    noun: DetectionScores
    action: DetectionScores


# -- mean average precision -------------------------------------------------------------------------------------------


def detection_map(
    ground_truth: Mapping[str, Any],
    results: Mapping[str, Any],
    *,
    subset: str,
    tiou_thresholds: Sequence[float] = ANET_TIOUS,
) -> DetectionScores:
    """Mean average precision of detections, at each threshold and on average.

    For each class and threshold, the predictions of all videos are matched in order of falling score. A prediction is
    correct if its tIoU with an unmatched segment of its video and class reaches the threshold; it is matched with the
    one of highest tIoU. Precision is interpolated at every recall. The mean is over the classes of the ground truth,
    with 0 for a class without predictions. Predictions on videos outside the subset are wrong; those of classes that
    the ground truth lacks are ignored.

    Empty segments of the ground truth (end not after start) and duplicates are dropped with a warning.

    Args:
        subset: of the ground truth's videos; "val" and "validation" are the same, as are "train" and "training",
            "test" and "testing"; case is ignored.

    Raises:
        DataError: no ground truth in the subset; a segment or score that is not finite.
        OptionError: thresholds outside (0, 1].
    """
    truth = without_faulty(ground_truth_events(ground_truth, subset))
    return _detection_scores(truth, predicted_events(results), _check_thresholds(tiou_thresholds))


def epic_map(
    ground_truth: Iterable[Mapping[str, Any]],
    results: Mapping[str, Any],
    *,
    tiou_thresholds: Sequence[float] = EPIC_TIOUS,
) -> EpicScores:
    """Mean average precision of verbs, nouns and actions, by the rules of EPIC-KITCHENS-100's detection challenge.

    Args:
        ground_truth: rows of EPIC_100_validation.csv: video_id, start_timestamp, stop_timestamp (seconds or
            HH:MM:SS.ss), verb_class and noun_class. As in the challenge, empty and duplicate segments count.
        results: in the challenge's form: each prediction has segment, score, verb and noun.

    Raises:
        DataError: as ``detection_map``; a row without one of its columns.
    """
    videos, verbs, nouns, segments = [], [], [], []
    for number, row in enumerate(ground_truth, start=1):
        try:
            videos.append(str(row["video_id"]))
            verbs.append(int(row["verb_class"]))
            nouns.append(int(row["noun_class"]))
            segments.append([parse_seconds(row["start_timestamp"]), parse_seconds(row["stop_timestamp"])])
        except (KeyError, ValueError) as error:
            raise DataError(
                f"ground truth row {number}: {error}; each row needs video_id, start_timestamp, stop_timestamp, "
                "verb_class and noun_class"
            ) from error
    found = predicted_events(results, labels=("verb", "noun"))
    pairs = [_verb_and_noun(label) for label in found.labels]
    times = np.array(segments, np.float64).reshape(-1, 2)

    def task(truths: Iterable[int], predicted: Iterable[int]) -> DetectionScores:
        truth = Events(videos, list(truths), times, np.ones(len(videos)))
        return _detection_scores(truth, found._replace(labels=list(predicted)), _check_thresholds(tiou_thresholds))

    return EpicScores(
        verb=task(verbs, (verb for verb, _ in pairs)),
        noun=task(nouns, (noun for _, noun in pairs)),
        action=task(
            (verb * NUM_EPIC_NOUNS + noun for verb, noun in zip(verbs, nouns, strict=True)),
            (verb * NUM_EPIC_NOUNS + noun for verb, noun in pairs),
        ),
    )


def _verb_and_noun(label: Any) -> tuple[int, int]:
    verb, noun = label
    try:
        return int(verb), int(noun)
    except ValueError as error:
        raise DataError(f"verb {verb!r} and noun {noun!r} of a prediction should be class numbers") from error


class _Ranked(NamedTuple):
    """The predictions of one class, best first."""

    right: NDArray[np.bool_]
    """[H, P], whether a prediction is correct at a threshold"""
    scores: Floats
    """[P]"""
    num_truths: int


def _detection_scores(truth: Events, found: Events, tious: Floats) -> DetectionScores:
    ranked = _rank_by_class(truth, found, tious)
    precisions = {label: _average_precision(own.right, own.num_truths) for label, own in ranked.items()}  # each [H]
    return DetectionScores(
        tiou_thresholds=tuple(tious.tolist()),
        per_threshold=tuple(np.mean(list(precisions.values()), axis=0).tolist()),
        per_class={str(label): tuple(values.tolist()) for label, values in precisions.items()},
        num_ground_truth=len(truth.labels),
        num_predictions=sum(len(own.scores) for own in ranked.values()),
    )


def _rank_by_class(truth: Events, found: Events, tious: Floats) -> dict[Hashable, _Ranked]:
    """For each class of the ground truth: its predictions by falling score, and which are correct."""
    if not truth.labels:
        raise DataError("the ground truth has no segments to look for; see whether subset and annotations are right")
    classes = sorted(set(truth.labels), key=str)
    class_of = {label: i for i, label in enumerate(classes)}
    numbers = {name: i for i, name in enumerate(dict.fromkeys([*truth.videos, *found.videos]))}

    # One number for each (class, video): only events of the same number can match.
    def keys(events: Events, places: list[int]) -> Ints:
        return np.array(
            [class_of[events.labels[i]] * len(numbers) + numbers[events.videos[i]] for i in places], np.int64
        )

    known = [i for i, label in enumerate(found.labels) if label in class_of]
    truth_keys, found_keys = keys(truth, list(range(len(truth.labels)))), keys(found, known)
    segments, scores = found.segments[known], found.scores[known]
    order = np.lexsort((-scores, found_keys // len(numbers)))  # by class, then falling score; stable
    segments, scores, found_keys = segments[order], scores[order], found_keys[order]
    right = _match(segments, found_keys, truth.segments, truth_keys, tious)
    num_truths = np.bincount(truth_keys // len(numbers), minlength=len(classes))
    ends = np.searchsorted(found_keys // len(numbers), np.arange(len(classes) + 1))
    return {
        label: _Ranked(right[:, ends[i] : ends[i + 1]], scores[ends[i] : ends[i + 1]], int(num_truths[i]))
        for i, label in enumerate(classes)
    }


def _match(segments: Floats, keys: Ints, truths: Floats, truth_keys: Ints, tious: Floats) -> NDArray[np.bool_]:
    """Greedy matching: which predictions are matched with a segment, [H, P].

    Predictions and segments match only within a key, so the keys are independent and are processed in parallel: in each
    round every key tries one (prediction, segment) pair, by falling score, then by falling tIoU.

    Args:
        segments: [P, 2], by falling score.
        keys: [P].
        truths: [G, 2].
        truth_keys: [G].
    """
    prediction, truth, overlap = _overlapping_pairs(segments, keys, truths, truth_keys, float(tious.min()) - _GRACE)
    turn = _count_within(keys)[prediction]  # rank of the prediction within its key
    order = np.lexsort((-overlap, prediction))
    prediction, truth, overlap, turn = prediction[order], truth[order], overlap[order], turn[order]
    trial = _count_within(prediction)  # rank of the pair within its prediction
    rounds = turn * (int(trial.max(initial=0)) + 1) + trial
    reaches = overlap[:, None] >= tious - _GRACE
    right = np.zeros((len(segments), len(tious)), bool)
    free = np.ones((len(truths), len(tious)), bool)
    for pairs in _groups(rounds).values():
        mine, theirs = prediction[pairs], truth[pairs]  # in a round, no prediction and no segment occurs twice
        claims = reaches[pairs] & ~right[mine] & free[theirs]
        free[theirs] &= ~claims
        right[mine] |= claims
    return right.T


def _overlapping_pairs(
    segments: Floats, keys: Ints, truths: Floats, truth_keys: Ints, least: float
) -> tuple[Ints, Ints, Floats]:
    """All pairs of equal key with a tIoU of ``least`` or more: prediction index, segment index, tIoU."""
    by_key = np.argsort(truth_keys, kind="stable")
    first = np.searchsorted(truth_keys[by_key], keys, side="left")
    counts = np.searchsorted(truth_keys[by_key], keys, side="right") - first
    found: list[tuple[Ints, Ints, Floats]] = []
    # In parts, to bound memory if videos have many predictions and segments.
    for part in np.array_split(np.arange(len(keys)), counts.sum() // 1_000_000 + 1):
        prediction = np.repeat(part, counts[part])
        truth = by_key[np.repeat(first[part], counts[part]) + _count_within(prediction)]
        overlap = tiou_of_pairs(segments[prediction], truths[truth])
        enough = overlap >= least
        found.append((prediction[enough], truth[enough], overlap[enough]))
    predictions, places, overlaps = zip(*found, strict=True)
    return np.concatenate(predictions), np.concatenate(places), np.concatenate(overlaps)


def _count_within(keys: Ints) -> Ints:
    """For each entry, the number of equal entries before it: 5 7 5 5 -> 0 0 1 2."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    starts = np.searchsorted(ranked, ranked, side="left")
    counts = np.empty(len(keys), np.int64)
    counts[order] = np.arange(len(keys)) - starts
    return counts


def _groups(keys: Ints) -> dict[int, Ints]:
    """Indices of each key's entries, by rising key."""
    order = np.argsort(keys, kind="stable")
    unique, first = np.unique(keys[order], return_index=True)
    return dict(zip(unique.tolist(), np.split(order, first[1:]), strict=True)) if len(keys) else {}


def _average_precision(right: NDArray[np.bool_], num_truths: int) -> Floats:
    """Average precision: [H, P], best prediction first -> [H]. Precision is interpolated and summed over recall."""
    if right.shape[1] == 0:
        return np.zeros(len(right))
    precision = right.cumsum(1) / np.arange(1, right.shape[1] + 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    average: Floats = (envelope * right).sum(1) / num_truths
    return average


def best_thresholds(
    ground_truth: Mapping[str, Any], results: Mapping[str, Any], *, subset: str, tiou_threshold: float = 0.5
) -> dict[str, float]:
    """Score threshold of each class that maximizes F1.

    It is the mean of the lowest score above and the highest score below the cut. A class without correct detections has
    no threshold.
    """
    truth = without_faulty(ground_truth_events(ground_truth, subset))
    chosen = {}
    for label, (right, scores, num_truths) in _rank_by_class(
        truth, predicted_events(results), _check_thresholds([tiou_threshold])
    ).items():
        if right.any():
            f1 = 2 * right[0].cumsum() / (np.arange(1, len(scores) + 1) + num_truths)
            shown = int(f1.argmax()) + 1
            chosen[str(label)] = float(scores[shown - 1 : shown + 1].mean())
    return chosen


# -- recall -----------------------------------------------------------------------------------------------------------


def average_recall(
    ground_truth: Mapping[str, Any],
    results: Mapping[str, Any],
    *,
    subset: str,
    max_average_proposals: int = 100,
    tiou_thresholds: Sequence[float] = ANET_TIOUS,
) -> RecallScores:
    """Average recall over the average number of proposals per video (AR@AN); classes are ignored.

    A segment is found if the tIoU of any kept proposal reaches the threshold; one proposal may find several segments.
    The same fraction of every video's proposals is kept, as in ActivityNet's evaluation. Numbers of proposals are
    truncated as there: a product that float64 rounds to 2.9999999999999996 counts 2.

    Raises:
        DataError: as ``detection_map``; no proposals on the subset's videos.
    """
    if max_average_proposals < 1:
        raise OptionError(f"{max_average_proposals = } should be at least 1")
    tious = _check_thresholds(tiou_thresholds)
    truth = without_faulty(ground_truth_events(ground_truth, subset))
    found = predicted_events(results, labels=())
    truths, founds = _group_by_video(truth), _group_by_video(found)
    total = len(found.scores)
    if not any(video in founds for video in truths):
        raise DataError("there are no proposals on the videos of the ground truth; see whether their names are equal")
    # of each video: the number P of kept proposals, and [H, G] rank of the first proposal that finds a segment
    ranks: list[tuple[int, Ints]] = []
    ratio = max_average_proposals * len(truths) / total
    for video, places in truths.items():
        mine = founds.get(video, np.array([], np.int64))
        kept = min(int(len(mine) * ratio), len(mine))
        mine = mine[np.argsort(-found.scores[mine], kind="stable")][:kept]
        overlap = tiou(found.segments[mine], truth.segments[places])  # [P, G]
        reaches = overlap >= tious[:, None, None] - _GRACE
        first = np.where(reaches.any(1), reaches.argmax(1), kept) if kept else np.zeros(reaches.shape[::2], np.int64)
        ranks.append((kept, first))
    retained = sum(kept for kept, _ in ranks)
    if not retained:
        raise DataError(
            f"of {total} proposals, {max_average_proposals} a video on average keep none of those on the videos of the "
            "ground truth: leave out proposals on other videos, or raise max_average_proposals"
        )
    parts = np.arange(1, max_average_proposals + 1) / max_average_proposals
    parts = parts * (max_average_proposals * len(truths) / retained)
    hits = np.zeros((len(tious), len(parts)))
    for kept, first in ranks:
        counts = np.minimum((kept * parts).astype(np.int64), kept)
        hits += (first[:, :, None] < counts).sum(1)
    recall = hits.mean(0) / len(truth.labels)
    return RecallScores(
        average_proposals=tuple((parts * retained / len(truths)).tolist()), average_recall=tuple(recall.tolist())
    )


def recall_at_kx(
    ground_truth: Mapping[str, Any],
    results: Mapping[str, Any],
    *,
    subset: str,
    k: int,
    tiou_thresholds: Sequence[float] = EPIC_TIOUS,
) -> tuple[float, ...]:
    """Recall@kx of Ego4D, at each threshold: the mean over classes of the fraction of segments that are found.

    For each video and class with n segments, the best k * n predictions count; a segment is found if the tIoU of any of
    them reaches the threshold.

    Raises:
        DataError: as ``detection_map``.
    """
    if k < 1:
        raise OptionError(f"{k = } should be at least 1")
    tious = _check_thresholds(tiou_thresholds)
    truth = without_faulty(ground_truth_events(ground_truth, subset))
    found = predicted_events(results)
    founds: dict[tuple[str, Hashable], list[int]] = {}
    for i in np.argsort(-found.scores, kind="stable"):
        founds.setdefault((found.videos[i], found.labels[i]), []).append(i)
    truths: dict[tuple[str, Hashable], list[int]] = {}
    for i, key in enumerate(zip(truth.videos, truth.labels, strict=True)):
        truths.setdefault(key, []).append(i)
    hits: dict[Hashable, Floats] = {}
    for key, places in truths.items():
        best = founds.get(key, [])[: k * len(places)]
        overlap = tiou(found.segments[best], truth.segments[places]).max(0, initial=0.0)  # [G]
        reached = (overlap >= tious[:, None] - _GRACE).sum(1)
        hits[key[1]] = hits.get(key[1], np.zeros(len(tious))) + reached
    recalls = [hit / truth.labels.count(label) for label, hit in hits.items()]
    return tuple(np.mean(recalls, axis=0).tolist())


# -- helpers ----------------------------------------------------------------------------------------------------------


def _check_thresholds(tious: Sequence[float]) -> Floats:
    values = np.asarray(tious, np.float64)
    if values.ndim != 1 or len(values) == 0 or not ((values > 0) & (values <= 1)).all():
        raise OptionError(f"tiou_thresholds {list(tious)} should be a list of numbers in (0, 1]")
    return values


def _group_by_video(events: Events) -> dict[str, Ints]:
    numbers = {name: i for i, name in enumerate(dict.fromkeys(events.videos))}
    names = list(numbers)
    groups = _groups(np.array([numbers[name] for name in events.videos], np.int64))
    return {names[number]: places for number, places in groups.items()}
