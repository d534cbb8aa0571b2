"""What another program's classifier says of whole videos, by which segments without classes are named.

The files that published results on ActivityNet (CUHK) and HACS (TCANet) are named by are read, and any of their form::

    {"results": {"ID": [0.01, 0.93, ...]}, "class": ["Archery", "Bullfighting", ...]}

A video's scores may stand in a list of their own ([[...]], TCANet), and "classes" in place of "class" (OpenTAD).
Numbers within [0, 1] are probabilities; others are logits, of which the softmax is taken.
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
    """A classifier's probabilities of videos."""

    name: str
    """The file they were read from."""
    classes: tuple[str, ...]
    by_video: dict[str, NDArray[np.float32]]
    """[K], by the videos' names."""

    def scores_of(self, video: str) -> NDArray[np.float32] | None:
        """Those of a video, [K], if it is there; ActivityNet's are called ID by some and v_ID by others."""
        names = (video, video.removeprefix("v_"), f"v_{video}")
        return next((self.by_video[name] for name in names if name in self.by_video), None)


def read_video_scores(file: Path) -> VideoScores:
    """Read a file of classification scores.

    Raises:
        DataError: it is not there, or not of that form; the message names the video.
    """
    try:
        document = read_json(file, MAX_LIST_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(f"{str(file)!r} cannot be read as scores of videos ({error}); {_FORM}") from error
    classes = document.get("class", document.get("classes")) if isinstance(document, dict) else None
    results = document.get("results") if isinstance(document, dict) else None
    if not isinstance(classes, list) or not isinstance(results, dict) or not classes or not results:
        raise DataError(f"{str(file)!r} holds no scores of videos; {_FORM}")
    found = {str(video): _numbers(f"{file.name} video {video!r}", row, len(classes)) for video, row in results.items()}
    if any(row.min() < 0 or row.max() > 1 for row in found.values()):
        found = {video: _softmax(row) for video, row in found.items()}
    return VideoScores(
        name=file.name,
        classes=tuple(str(name) for name in classes),
        by_video={video: row.astype(np.float32) for video, row in found.items()},
    )


def _numbers(source: str, written: Any, count: int) -> NDArray[np.float64]:
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
