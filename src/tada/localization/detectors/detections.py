"""What a detector finds in a video, before it has names: segments, scores, classes; and how too many become few.

Shapes: N segments, S label sets (one; or verb and noun).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tada.localization.detectors.nms import Floats, Ints, soft_nms, vote
from tada.training.schedule import require


class Detections(NamedTuple):
    """Segments of one video."""

    segments: Floats
    """[N, 2], in seconds"""
    scores: Floats
    """[N], best first"""
    labels: Ints
    """[N, S], a class of each label set"""


# No slots: jsonargparse 4.53, which reads recipes, cannot take a slotted dataclass as a default value.
@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of a detector's many segments are kept (soft-NMS and voting)."""

    min_score: float = 0.001
    """Segments that score less are dropped."""
    max_candidates: int = 2000
    """Best ones that are compared with each other."""
    sigma: float = 0.5
    """Of soft-NMS within each class: small values suppress more."""
    max_segments: int = 200
    """The most that are kept of a video."""
    voting_tiou: float | None = None
    """Overlap from which candidates of the same class vote on a segment's ends; null for none."""

    def __post_init__(self) -> None:
        require(self.min_score >= 0, "selection.min_score", "0 or more")
        require(self.max_candidates >= 1, "selection.max_candidates", "1 or more")
        require(self.sigma > 0, "selection.sigma", "positive")
        require(self.max_segments >= 1, "selection.max_segments", "1 or more")
        require(self.voting_tiou is None or 0 < self.voting_tiou <= 1, "selection.voting_tiou", "null or in (0, 1]")


def select(found: Detections, selection: Selection, *, duration_seconds: float) -> Detections:
    """Drop what scores low or lies outside of the video, and lower the scores of what overlaps better ones.

    Classes suppress each other only where all label sets agree: for EPIC-KITCHENS within an action.
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
