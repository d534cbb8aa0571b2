"""Scores of networks that give a video several labels, or none: average precision, and a threshold for each class.

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
"""The score from which on a class is said of a video, where nothing better is known."""
FEWEST = 10
"""Held-out videos of a class from which on its threshold is chosen: fewer would choose by chance."""
NONE = "(none)"
"""What is printed for a video that no class is said of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """How one class was found in a test."""

    label: str
    average_precision: float
    """Mean of the precisions at each video that has the class, by falling score; nan if none has it."""
    threshold: float
    precision: float
    """Part of the videos over the threshold that have the class; nan if none is over it."""
    recall: float
    """Part of the videos with the class that are over the threshold; nan if none has it."""
    videos: int
    """Videos that have the class: an average precision of a handful says little."""
    said: int
    """Videos over the threshold."""


def average_precisions(scores: NDArray[np.floating], targets: NDArray[np.int64]) -> list[float]:
    """Of each class, from probabilities [N, K] and targets [N, K] of 0 and 1; nan for a class that no video has."""
    return [_average_precision(scores[:, i], targets[:, i]) for i in range(targets.shape[1])]


def _average_precision(scores: NDArray[np.floating], targets: NDArray[np.int64]) -> float:
    if not targets.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(targets[order], dtype=np.float64)
    # Videos of equal scores come in together, so that their order does not matter.
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    gained = np.diff(found[ends], prepend=0.0)
    return float((gained * found[ends] / (ends + 1)).sum() / found[-1])


def mean_average_precision(scores: NDArray[np.floating], targets: NDArray[np.int64]) -> float:
    """The mean over the classes that a video has, each counting the same (macro); nan if no video has any."""
    values = [value for value in average_precisions(scores, targets) if not math.isnan(value)]
    return float(np.mean(values)) if values else math.nan


def class_scores(
    labels: Sequence[str], scores: NDArray[np.floating], targets: NDArray[np.int64], thresholds: Sequence[float]
) -> list[ClassScore]:
    """How each class was found."""
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
    """For each class the threshold with the best F1 score; 0.5 where fewer than ten videos have it, or lack it.

    It lies midway between the lowest score that is over it and the highest below, so that it is no video's own. Of
    equally good ones it is the one nearest to 0.5.
    """
    return tuple(_chosen(scores[:, i].astype(np.float64), targets[:, i]) for i in range(targets.shape[1]))


def _chosen(scores: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    num_true = int(targets.sum())
    if min(num_true, len(targets) - num_true) < FEWEST:
        return THRESHOLD
    values = np.unique(scores)  # rising
    candidates = np.concatenate([[values[0] / 2], (values[1:] + values[:-1]) / 2])
    best, best_f1 = THRESHOLD, -1.0
    for candidate in sorted(candidates.tolist(), key=lambda value: abs(value - THRESHOLD)):
        said = scores >= candidate
        f1 = 2 * int((said & (targets == 1)).sum()) / (int(said.sum()) + num_true)
        if f1 > best_f1:
            best, best_f1 = candidate, f1
    return float(best)


def positives_text(videos: Sequence[int]) -> str:
    """What a mean average precision is of, in words; ``videos`` are those of each class."""
    present = [count for count in videos if count]
    if not present:
        return "no video has a class"
    few, many = min(present), max(present)
    classes = counted(len(present), "class")
    if few < many:
        return f"{classes} with {few} to {many} videos"
    return f"{classes} with {counted(few, 'video')}{' each' if len(present) > 1 else ''}"
