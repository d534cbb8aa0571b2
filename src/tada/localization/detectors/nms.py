"""NMS: tIoU of segments, soft-NMS and voting, and the selection of a detector's candidates by them.

A segment is (start, end); all must have the same unit. Of two equal scores the first is taken first, on every machine.

Shapes: N and M segments, K of them kept, S label sets (one; or verb and noun).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tada.training.schedule import require

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Detections(NamedTuple):
    """Detected segments of one video, with class numbers."""

    segments: Floats
    """[N, 2], in seconds"""
    scores: Floats
    """[N], best first"""
    labels: Ints
    """[N, S], a class number of each label set"""


# No slots: jsonargparse 4.53, which reads recipes, cannot take a slotted dataclass as a default value.
@dataclass(frozen=True, kw_only=True)
class Selection:
    """Settings of NMS: which of a detector's candidate segments are kept (soft-NMS and voting)."""

    min_score: float = 0.001
    """Segments with a lower score are dropped."""
    max_candidates: int = 2000
    """Best segments that enter NMS."""
    sigma: float = 0.5
    """Sigma of soft-NMS within each class: smaller values suppress more."""
    max_segments: int = 200
    """Most segments that are kept per video."""
    voting_tiou: float | None = None
    """Smallest tIoU at which candidates of the same class vote on a segment's ends; null: no voting."""

    def __post_init__(self) -> None:
        require(self.min_score >= 0, "selection.min_score", "0 or more")
        require(self.max_candidates >= 1, "selection.max_candidates", "1 or more")
        require(self.sigma > 0, "selection.sigma", "positive")
        require(self.max_segments >= 1, "selection.max_segments", "1 or more")
        require(self.voting_tiou is None or 0 < self.voting_tiou <= 1, "selection.voting_tiou", "null or in (0, 1]")


_SMALLEST_UNION = 1e-8  # two empty segments have a tIoU of 0, not 0/0


def tiou(one: Floats, other: Floats) -> Floats:
    """Temporal IoU of every pair of segments: [N, 2], [M, 2] -> [N, M]."""
    one, other = np.asarray(one, np.float64).reshape(-1, 2), np.asarray(other, np.float64).reshape(-1, 2)
    return tiou_of_pairs(one[:, None], other[None, :])


def tiou_of_pairs(one: Floats, other: Floats) -> Floats:
    """Temporal IoU of segments, elementwise: two [..., 2] that broadcast -> [...]."""
    inter = np.maximum(np.minimum(one[..., 1], other[..., 1]) - np.maximum(one[..., 0], other[..., 0]), 0.0)
    lengths = (one[..., 1] - one[..., 0]) + (other[..., 1] - other[..., 0])
    overlap: Floats = inter / np.maximum(lengths - inter, _SMALLEST_UNION)
    return overlap


def select(found: Detections, selection: Selection, *, duration_seconds: float) -> Detections:
    """Soft-NMS and voting, after segments with low scores or outside the video are dropped.

    Segments suppress each other only if their classes agree in all label sets: for EPIC-KITCHENS, within one action.
    """
    segments = np.clip(found.segments, 0.0, duration_seconds)
    usable = (segments[:, 1] > segments[:, 0]) & (found.scores > selection.min_score)
    segments, scores, labels = segments[usable], found.scores[usable], found.labels[usable]
    best = np.argsort(-scores, kind="stable")[: selection.max_candidates]
    segments, scores, labels = segments[best], scores[best], labels[best]
    if not len(scores):
        return Detections(segments, scores, labels)
    _, classes = np.unique(labels, axis=0, return_inverse=True)
    classes = classes.reshape(-1)
    kept, lowered = soft_nms(
        segments,
        scores,
        sigma=selection.sigma,
        labels=classes,
        min_score=selection.min_score,
        max_kept=selection.max_segments,
    )
    chosen = segments[kept]
    if selection.voting_tiou is not None:
        for label in np.unique(classes[kept]):
            mine, all_mine = classes[kept] == label, classes == label
            chosen[mine] = vote(chosen[mine], segments[all_mine], scores[all_mine], threshold=selection.voting_tiou)
    return Detections(chosen, lowered, labels[kept])


def soft_nms(
    segments: Floats,
    scores: Floats,
    *,
    sigma: float,
    labels: Ints | None = None,
    thresholds: tuple[float, float] = (0.0, 0.0),
    extent: float = 1.0,
    min_score: float = 0.0,
    max_kept: int | None = None,
) -> tuple[Ints, Floats]:
    """Soft-NMS: repeatedly take the segment with the best score, and lower the scores of those that overlap it.

    The others' scores are multiplied by exp(-tIoU^2 / sigma).

    Args:
        segments: [N, 2].
        scores: [N].
        sigma: smaller values suppress more. BMN calls it alpha.
        labels: [N]; if given, segments suppress only those of their own class.
        thresholds: (t1, t2) of BMN: only segments whose tIoU exceeds t1 + (t2 - t1) * width are suppressed, where
            width is the taken segment's, as a fraction of ``extent``. (0, 0) suppresses all that overlap.
        extent: the video's length, in the segments' unit.
        min_score: stop when no remaining score is above it.
        max_kept: stop after so many segments.

    Returns:
        Indices of the segments that are kept, [K], in the order they were taken, and their lowered scores [K].

    Differs from: the released BMN post-processing, whose loop never keeps the last segment and fails on fewer
        than two.
    """
    segments = np.asarray(segments, np.float64).reshape(-1, 2)
    remaining = np.array(scores, np.float64)
    widths = (segments[:, 1] - segments[:, 0]) / extent
    limits = thresholds[0] + (thresholds[1] - thresholds[0]) * widths
    kept: list[int] = []
    kept_scores: list[float] = []
    for _ in range(len(remaining) if max_kept is None else min(max_kept, len(remaining))):
        best = int(remaining.argmax())
        if not remaining[best] > min_score:
            break
        kept.append(best)
        kept_scores.append(float(remaining[best]))
        overlap = tiou(segments[best], segments)[0]
        suppressed = overlap > limits[best]
        if labels is not None:
            suppressed &= labels == labels[best]
        remaining[suppressed] *= np.exp(-(overlap[suppressed] ** 2) / sigma)
        remaining[best] = -np.inf
    return np.array(kept, np.int64), np.array(kept_scores, np.float64)


def vote(kept: Floats, segments: Floats, scores: Floats, *, threshold: float) -> Floats:
    """Voting: replace each kept segment by the score-weighted mean of all with a tIoU of ``threshold`` or more.

    Args:
        kept: [K, 2], from among ``segments``.
        segments: [N, 2], all candidates before NMS.
        scores: [N], their scores before NMS.

    Returns:
        [K, 2].
    """
    overlap = tiou(kept, segments)
    weights = np.where(overlap >= threshold, np.asarray(scores, np.float64), 0.0)  # [K, N]
    voted: Floats = weights @ segments / weights.sum(1, keepdims=True)
    return voted
