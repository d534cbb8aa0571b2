"""Metrics of multi-label classification: average precision, and a threshold for each class.

Shapes: N videos, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tada.errors import counted

THRESHOLD = 0.5
"""Default threshold: a class with this probability or more is predicted."""
FEWEST = 10
"""Held-out videos that a class needs for its threshold to be chosen; of fewer, chance would choose it."""
NONE = "(none)"
"""Printed for a video for which no class is predicted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """Metrics of one class in a test."""

    label: str
    average_precision: float
    """Mean of the precisions at each video that has the class, in descending order of scores; nan if none has it."""
    threshold: float
    precision: float
    """Fraction of the videos over the threshold that have the class; nan if none is over it."""
    recall: float
    """Fraction of the videos with the class that are over the threshold; nan if none has it."""
    videos: int
    """Videos that have the class: an average precision of a handful says little."""
    said: int
    """Videos over the threshold."""


def average_precisions(scores: NDArray[np.floating], targets: NDArray[np.int64]) -> list[float]:
    """Average precision of each class, from probabilities [N, K] and targets [N, K] of 0 and 1.

    It is nan for a class that no video has.
    """
    return [_average_precision(scores[:, i], targets[:, i]) for i in range(targets.shape[1])]


def _average_precision(scores: NDArray[np.floating], targets: NDArray[np.int64]) -> float:
    if not targets.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(targets[order], dtype=np.float64)
    # Videos with equal scores are added together, so that their order does not matter.
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    gained = np.diff(found[ends], prepend=0.0)
    return float((gained * found[ends] / (ends + 1)).sum() / found[-1])


def mean_average_precision(scores: NDArray[np.floating], targets: NDArray[np.int64]) -> float:
    """Macro mean of the average precisions of the classes that some video has; nan if there are none."""
    values = [value for value in average_precisions(scores, targets) if not math.isnan(value)]
    return float(np.mean(values)) if values else math.nan


def class_scores(
    labels: Sequence[str], scores: NDArray[np.floating], targets: NDArray[np.int64], thresholds: Sequence[float]
) -> list[ClassScore]:
    """Metrics of each class, from probabilities [N, K], targets [N, K] of 0 and 1, and K thresholds."""
    rows = []
    for i, value in enumerate(average_precisions(scores, targets)):
        said, true = scores[:, i] >= thresholds[i], targets[:, i] == 1
        both = int((said & true).sum())
        rows.append(
            ClassScore(
                label=labels[i],
                average_precision=value,
                threshold=thresholds[i],
                precision=both / int(said.sum()) if said.any() else math.nan,
                recall=both / int(true.sum()) if true.any() else math.nan,
                videos=int(true.sum()),
                said=int(said.sum()),
            )
        )
    return rows


def chosen_thresholds(scores: NDArray[np.floating], targets: NDArray[np.int64]) -> tuple[float, ...]:
    """For each class the threshold with the best F1 score; 0.5 if fewer than ten videos have the class, or lack it.

    A threshold is midway between two neighboring scores, so that no video's score equals it. Of several with the best
    F1 score, the one nearest to 0.5 is chosen.
    """
    return tuple(_choose_threshold(scores[:, i].astype(np.float64), targets[:, i]) for i in range(targets.shape[1]))


def _choose_threshold(scores: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    num_true = int(targets.sum())
    if min(num_true, len(targets) - num_true) < FEWEST:
        return THRESHOLD
    values = np.unique(scores)  # ascending
    candidates = np.concatenate([[values[0] / 2], (values[1:] + values[:-1]) / 2])
    best, best_f1 = THRESHOLD, -1.0
    for candidate in sorted(candidates.tolist(), key=lambda value: abs(value - THRESHOLD)):
        said = scores >= candidate
        f1 = 2 * int((said & (targets == 1)).sum()) / (int(said.sum()) + num_true)
        if f1 > best_f1:
            best, best_f1 = candidate, f1
    return float(best)


def positives_text(videos: Sequence[int]) -> str:
    """Describe the classes that a mean average precision covers: "3 classes with 2 to 9 videos".

    Args:
        videos: number of videos that have each class.
    """
    present = [count for count in videos if count]
    if not present:
        return "no video has a class"
    few, many = min(present), max(present)
    classes = counted(len(present), "class")
    if few < many:
        return f"{classes} with {few} to {many} videos"
    return f"{classes} with {counted(few, 'video')}{' each' if len(present) > 1 else ''}"
