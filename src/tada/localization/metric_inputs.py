"""Ground truth and predictions of an evaluation, as arrays.

Both come from the ActivityNet JSON forms that ``tada.localization.metrics`` shows.

Shapes: N segments.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tada.data.times_and_splits import split_name
from tada.errors import DataError
from tada.localization.annotations.table import DUPLICATE_SECONDS
from tada.localization.detectors.nms import Floats


class Events(NamedTuple):
    """Segments of many videos, [N]; ``scores`` are ones for ground truth."""

    videos: list[str]
    labels: list[Hashable]
    segments: Floats
    scores: Floats


def ground_truth_events(ground_truth: Mapping[str, Any], subset: str) -> Events:
    """The annotated segments of a subset.

    Raises:
        DataError: the subset has no segments, or a segment is not two finite numbers.
    """
    videos, labels, segments = [], [], []
    subsets = set()
    for video, about in ground_truth["database"].items():
        subsets.add(str(about["subset"]))
        if split_name(about["subset"]) == split_name(subset):
            for annotation in about["annotations"]:
                videos.append(video)
                labels.append(annotation["label"])
                segments.append(_parse(annotation["segment"], f"ground truth of video {video!r}", 2))
    if not labels:
        raise DataError(
            f"the ground truth has no segments in its subset {subset!r}; its subsets are {', '.join(sorted(subsets))}"
        )
    return Events(videos, labels, np.array(segments, np.float64), np.ones(len(labels)))


def predicted_events(results: Mapping[str, Any], *, labels: tuple[str, ...] = ("label",)) -> Events:
    """All predictions, in the order of the results.

    Args:
        labels: keys of a prediction's labels. With several, the label is a tuple; with none, it is None.
    """
    videos: list[str] = []
    found: list[Hashable] = []
    segments, scores = [], []
    for video, predictions in results["results"].items():
        if not isinstance(predictions, list) or not all(isinstance(entry, Mapping) for entry in predictions):
            raise DataError(f"predictions of video {video!r} are no list of objects with segment, label and score")
        for number, prediction in enumerate(predictions, start=1):
            try:
                segments.append(_parse(prediction["segment"], f"prediction {number} of video {video!r}", 2))
                scores.append(_parse([prediction["score"]], f"score of prediction {number} of video {video!r}", 1)[0])
                values = [_check_label(prediction[name], f"prediction {number} of video {video!r}") for name in labels]
            except KeyError as error:
                raise DataError(f"prediction {number} of video {video!r} has no {error}; give it one") from error
            videos.append(video)
            found.append(values[0] if len(values) == 1 else tuple(values) or None)
    return Events(videos, found, np.array(segments, np.float64).reshape(-1, 2), np.array(scores, np.float64))


def _parse(values: Any, what: str, count: int) -> list[float]:
    try:
        numbers = [float(value) for value in values] if isinstance(values, list | tuple) else []
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: {values!r} should be numbers") from error
    if len(numbers) != count:
        raise DataError(f"{what}: {values!r} should be {count} numbers")
    if not all(map(math.isfinite, numbers)):
        raise DataError(f"{what}: {values!r} is not finite; correct it or take it away")
    return numbers


def _check_label(value: Any, what: str) -> Hashable:
    if not isinstance(value, str | int):
        raise DataError(f"{what}: the label {value!r} should be a class's name")
    return value


def without_faulty(truth: Events) -> Events:
    """Drop empty and duplicate segments, with a warning."""
    kept: list[int] = []
    num_empty = 0
    seen: dict[tuple[str, Hashable], list[int]] = {}
    for i, key in enumerate(zip(truth.videos, truth.labels, strict=True)):
        if not truth.segments[i, 1] > truth.segments[i, 0]:
            num_empty += 1
            continue
        mine = seen.setdefault(key, [])
        if any(np.abs(truth.segments[i] - truth.segments[j]).max() <= DUPLICATE_SECONDS for j in mine):
            continue
        mine.append(i)
        kept.append(i)
    num_dropped = len(truth.labels) - len(kept)
    if num_dropped:
        first = min(set(range(len(truth.labels))) - set(kept))
        warnings.warn(
            f"{num_dropped} of {len(truth.labels)} ground-truth segments do not count ({num_empty} empty, "
            f"{num_dropped - num_empty} duplicates); the first: {truth.videos[first]!r} "
            f"{truth.segments[first].tolist()} {truth.labels[first]!r}",
            stacklevel=3,
        )
    if not kept:
        raise DataError("all segments of the ground truth are empty: no end lies after its start")
    return Events(
        [truth.videos[i] for i in kept], [truth.labels[i] for i in kept], truth.segments[kept], truth.scores[kept]
    )
