"""Detections scored one at a time, as the rule reads: slow, and free of any array.

Nothing here is shared with ``tada.localization``.
"""

from __future__ import annotations

from typing import Any

Segment = tuple[float, float]


def overlap(one: Segment, other: Segment) -> float:
    """Intersection over union."""
    inter = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    return inter / max((one[1] - one[0]) + (other[1] - other[0]) - inter, 1e-8)


def average_precision(
    truths: list[tuple[str, Segment]], found: list[tuple[str, Segment, float]], threshold: float
) -> float:
    """One class, one threshold: each is (video, segment[, score])."""
    claimed: set[int] = set()
    outcomes = []
    for video, segment, _ in sorted(found, key=lambda prediction: -prediction[2]):  # sorted() is stable
        candidates = [i for i, (other, _) in enumerate(truths) if other == video]
        candidates.sort(key=lambda i: -overlap(segment, truths[i][1]))
        is_right = False
        for i in candidates:
            if overlap(segment, truths[i][1]) < threshold - 1e-9:
                break
            if i not in claimed:
                claimed.add(i)
                is_right = True
                break
        outcomes.append(is_right)
    points = []  # (recall, precision) after each prediction
    for count in range(1, len(outcomes) + 1):
        right = sum(outcomes[:count])
        points.append((right / len(truths), right / count))
    area, before = 0.0, 0.0
    for place, (recall, _) in enumerate(points):
        best = max(precision for _, precision in points[place:])  # interpolated
        area += (recall - before) * best
        before = recall
    return area


def mean_average_precision(ground_truth: dict[str, Any], results: dict[str, Any], threshold: float) -> float:
    """The mean over the classes of the ground truth."""
    truths: dict[str, list[tuple[str, Segment]]] = {}
    for video, about in ground_truth["database"].items():
        for annotation in about["annotations"]:
            truths.setdefault(annotation["label"], []).append((video, tuple(annotation["segment"])))
    total = 0.0
    for label, mine in truths.items():
        found = [
            (video, tuple(prediction["segment"]), prediction["score"])
            for video, predictions in results["results"].items()
            for prediction in predictions
            if prediction["label"] == label
        ]
        total += average_precision(mine, found, threshold)
    return total / len(truths)


def soft_nms(segments: list[Segment], scores: list[float], sigma: float) -> list[tuple[int, float]]:
    """Gaussian soft-NMS: (index, lowered score) in the order of choice."""
    left = dict(enumerate(scores))
    chosen = []
    while left:
        best = max(left, key=lambda i: (left[i], -i))
        chosen.append((best, left.pop(best)))
        for i in left:
            left[i] *= 2.718281828459045 ** (-(overlap(segments[best], segments[i]) ** 2) / sigma)
    return chosen


def proposals_kept(
    num_proposals: dict[str, int], videos: list[str], most: int
) -> tuple[dict[str, int], list[dict[str, int]]]:
    """How many proposals of each video count in all, and at 1, 2, ... ``most`` a video on average.

    Truncated as in ActivityNet's Evaluation/eval_proposal.py.

    Args:
        num_proposals: of all videos of the results.
        videos: those of the ground truth.
    """
    ratio = most * float(len(videos)) / sum(num_proposals.values())
    kept = {video: min(int(num_proposals[video] * ratio), num_proposals[video]) for video in videos}
    total = sum(kept.values())
    counts = []
    for number in range(1, most + 1):
        part = number / float(most) * (most * float(len(videos)) / total)
        counts.append({video: min(int(kept[video] * part), kept[video]) for video in videos})
    return kept, counts


def recall_at(
    truths: dict[str, list[Segment]],
    found: dict[str, list[tuple[Segment, float]]],
    kept: dict[str, int],
    threshold: float,
) -> float:
    """The part of all segments that one of each video's ``kept`` best proposals overlaps by the threshold."""
    hits = 0
    for video, segments in truths.items():
        best = sorted(found.get(video, []), key=lambda proposal: -proposal[1])[: kept[video]]
        hits += sum(any(overlap(s, proposal) >= threshold - 1e-9 for proposal, _ in best) for s in segments)
    return hits / sum(len(segments) for segments in truths.values())
