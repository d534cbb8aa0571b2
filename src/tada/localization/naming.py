"""Classes for segments of detectors without classes: BMN, and class-agnostic ActionFormer.

They come from class scores beside the features: the backbone's for each clip, those published with EPIC-KITCHENS-100's
features, or an external classifier's for the whole video.

Shapes: T features, N segments, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from tada.data.table import Head, composed
from tada.errors import DataError, OptionError
from tada.localization.annotations.table import UntrimmedVideo
from tada.localization.classifiers import VideoScores, read_video_scores
from tada.localization.detectors.nms import Detections, Floats
from tada.localization.features.folder import FeatureFolder, VideoFeatures
from tada.localization.features.grid import FeatureGrid
from tada.localization.features.interpolation import at_times
from tada.localization.recipe import LocalizationRecipe

_NUM_POINTS = 6  # at which a segment's class scores are sampled
_NUM_CLASSES = 2  # that each segment gets
_NUM_VERBS, _NUM_NOUNS, _NUM_PAIRS = 10, 30, 5  # best ones that are paired, and best pairs that each segment gets


def check_naming(folder: FeatureFolder, videos: Sequence[UntrimmedVideo], heads: Sequence[Head]) -> None:
    """Check that all of these videos have class scores for their segments, before hours of training.

    Raises:
        DataError: a video has no scores, or scores of other classes.
    """
    classifier = None if folder.classifier is None else folder.classifier.name
    for video in videos:
        _find_columns(video.name, folder.score_labels(video.name), heads, classifier)


def can_name(folder: FeatureFolder, video: UntrimmedVideo, heads: Sequence[Head]) -> bool:
    """Whether a video has class scores for its segments."""
    try:
        check_naming(folder, [video], heads)
    except DataError:
        return False
    return True


def scores_for(recipe: LocalizationRecipe, classifier: Path | None) -> VideoScores | None:
    """Read an external classifier's scores, if a file is given.

    Raises:
        OptionError: the recipe's detector has its own classes.
        DataError: the file holds no scores.
    """
    if classifier is None:
        return None
    if not recipe.names_by_scores:
        raise OptionError(
            f"--classifier {classifier}: this ActionFormer names its segments itself; leave the classifier away, or "
            "train one with --class-agnostic true"
        )
    return read_video_scores(classifier)


def naming_scores(found: VideoFeatures, heads: Sequence[Head]) -> list[Floats]:
    """Class probabilities beside the features: for each head [T, K], or [1, K] of the whole video.

    Raises:
        DataError: the features have no scores, or scores of other classes.
    """
    columns = _find_columns(found.card.video, found.card.score_labels, heads)
    return [found.scores[s.name][:, own].astype(np.float64) for s, own in zip(heads, columns, strict=True)]


def _find_columns(
    video: str, known: Mapping[str, Sequence[str]], heads: Sequence[Head], classifier: str | None = None
) -> list[list[int]]:
    """For each head, the columns of the scores that belong to its classes."""
    found = []
    for head in heads:
        classes = head.labels
        scored = Head(name=head.name, labels=tuple(map(composed, known.get(head.name, ()))))
        if len(scored.labels) == len(classes) and (scored.is_numbered or head.is_numbered):
            found.append(list(range(len(classes))))  # EPIC-KITCHENS: one side has numbers, the other names
            continue
        names = scored.labels
        missing = [name for name in classes if name not in names]
        if missing and classifier is not None:
            raise DataError(
                f"{classifier} has no class {missing[0]!r} ({len(missing)} of {len(classes)} classes are missing), and "
                "by its scores segments are to be named: correct its names, or give a classifier's scores that was "
                "trained on these classes"
            )
        if missing:
            raise DataError(
                f"the features of {video!r} come without scores of the {head.name} {missing[0]!r} "
                f"({len(missing)} of {len(classes)} classes), and by these its segments are to be named: extract them "
                "with a backbone that was trained on these classes, give an external classifier's scores "
                "(--classifier), or train ActionFormer to name them itself (--detector actionformer --class-agnostic "
                "false)"
            )
        found.append([names.index(name) for name in classes])
    return found


def name_segments(
    segments: Floats,
    scores: Floats,
    probabilities: Sequence[Floats],
    grid: FeatureGrid,
    *,
    video_classes: int | None = None,
) -> Detections:
    """Classify segments [N, 2] with scores [N] by class probabilities.

    Args:
        probabilities: for each head [T, K], one row for each feature of ``grid``; or [1, K], of the whole video.
        video_classes: give all segments this many best classes of the video's mean, as on ActivityNet and HACS. None:
            classify each segment by the mean at six points in it.

    Returns:
        For one head, each segment once for each of its best classes (two, or ``video_classes``); for verb and
        noun, once for each of its five best pairs of the ten best verbs and thirty best nouns. Scores are multiplied
        by the classes' probability.
    """
    num = len(scores)
    places: Floats = np.linspace(0, 1, _NUM_POINTS)
    where = segments[:, :1] + (segments[:, 1:] - segments[:, :1]) * places
    means = []
    for rows in probabilities:
        if video_classes is not None or len(rows) == 1:
            means.append(np.broadcast_to(rows.mean(0), (num, rows.shape[1])))
        else:
            sampled = at_times(torch.from_numpy(rows.T.astype(np.float64)), grid, where.reshape(-1)).numpy()
            means.append(sampled.reshape(rows.shape[1], num, _NUM_POINTS).mean(2).T)
    if len(means) == 1:
        classes = np.argsort(-means[0], axis=1, kind="stable")[:, : video_classes or _NUM_CLASSES, None]
        parts = np.take_along_axis(means[0], classes[:, :, 0], axis=1)
    else:
        verbs, nouns = (
            np.argsort(-m, axis=1, kind="stable")[:, :k] for m, k in zip(means, (_NUM_VERBS, _NUM_NOUNS), strict=True)
        )
        verb, noun = np.take_along_axis(means[0], verbs, axis=1), np.take_along_axis(means[1], nouns, axis=1)
        product = (verb[:, :, None] * noun[:, None, :]).reshape(num, verbs.shape[1] * nouns.shape[1])
        best = np.argsort(-product, axis=1, kind="stable")[:, :_NUM_PAIRS]
        pairs = (
            np.take_along_axis(verbs, best // nouns.shape[1], 1),
            np.take_along_axis(nouns, best % nouns.shape[1], 1),
        )
        classes, parts = np.stack(pairs, axis=2), np.take_along_axis(product, best, axis=1)
    joint = (scores[:, None] * parts).reshape(-1)
    order = np.argsort(-joint, kind="stable")
    repeated = np.repeat(segments, parts.shape[1], axis=0)
    labels = classes.reshape(num * parts.shape[1], -1).astype(np.int64)
    return Detections(repeated[order], joint[order], labels[order])
