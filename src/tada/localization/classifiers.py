"""Class scores of whole videos, from an external classifier: they classify detected segments that have no class.

Reads the files behind published results on ActivityNet (CUHK) and HACS (TCANet), and any of the same form::

    {"results": {"ID": [0.01, 0.93, ...]}, "class": ["Archery", "Bullfighting", ...]}

A video's scores may be nested ([[...]], TCANet), and the key may be "classes" instead of "class" (OpenTAD). If all
numbers are within [0, 1] they are probabilities; otherwise logits, and the softmax is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tada.errors import DataError
from tada.system.documents import MAX_LIST_BYTES, read_json

_FORM = 'expected JSON with "class": the names, and "results": for each video as many numbers'


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoScores:
    """Class probabilities of videos."""

    name: str
    """The file they were read from."""
    classes: tuple[str, ...]
    by_video: dict[str, NDArray[np.float32]]
    """[K] probabilities, by video name."""

    def scores_of(self, video: str) -> NDArray[np.float32] | None:
        """Probabilities [K] of a video, or None. ActivityNet's videos are found as ID and as v_ID."""
        names = (video, video.removeprefix("v_"), f"v_{video}")
        return next((self.by_video[name] for name in names if name in self.by_video), None)


def read_video_scores(file: Path) -> VideoScores:
    """Read a file of classification scores.

    Raises:
        DataError: the file is missing, or not of that form; the message names the video.
    """
    try:
        document = read_json(file, MAX_LIST_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(f"{str(file)!r} cannot be read as scores of videos ({error}); {_FORM}") from error
    classes = document.get("class", document.get("classes")) if isinstance(document, dict) else None
    results = document.get("results") if isinstance(document, dict) else None
    if not isinstance(classes, list) or not isinstance(results, dict) or not classes or not results:
        raise DataError(f"{str(file)!r} holds no scores of videos; {_FORM}")
    found = {str(video): _parse(f"{file.name} video {video!r}", row, len(classes)) for video, row in results.items()}
    if any(row.min() < 0 or row.max() > 1 for row in found.values()):
        found = {video: _softmax(row) for video, row in found.items()}
    return VideoScores(
        name=file.name,
        classes=tuple(str(name) for name in classes),
        by_video={video: row.astype(np.float32) for video, row in found.items()},
    )


def _parse(source: str, written: Any, count: int) -> NDArray[np.float64]:
    try:
        row = np.array(written, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}: its scores are no list of numbers ({error}); {_FORM}") from error
    if row.shape not in ((count,), (1, count)):
        raise DataError(f"{source}: scores of the shape {list(row.shape)}, while there are {count} classes; {_FORM}")
    if not np.isfinite(row).all():
        raise DataError(f"{source}: scores that are not finite numbers; correct them, or take the video away")
    return row.reshape(count)


def _softmax(row: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(row - row.max())
    probabilities: NDArray[np.float64] = powers / powers.sum()
    return probabilities
