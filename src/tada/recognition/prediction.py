"""Prediction for a video: class probabilities of the video and of each clip, as text, picture and video.

Shapes: F frames of a picture, K classes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tada.data.csv_rows import guarded
from tada.data.multi_label import NONE
from tada.display.notebook import Bar, results_html
from tada.display.plots import save_prediction
from tada.errors import OptionError
from tada.recognition.explanation import Explanation
from tada.system.calls import checked
from tada.system.terminal import printable
from tada.video.annotate import annotate_video
from tada.video.captions import Lane
from tada.video.inputs import VideoSource, source_of
from tada.video.transforms import shrink_to


class Explains(Protocol):
    """A recognizer that can explain its predictions."""

    def explain(
        self, video: Prediction, *, label: str | None = None, clip: int | None = None, layer: str | None = None
    ) -> Explanation: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScores:
    """The model's class probabilities for one clip of a video."""

    start_seconds: float
    """When the clip's first frame is shown, counted from the start of the file, as in players; nan for frames without
    times."""
    end_seconds: float
    """When its last frame is shown."""
    scores: tuple[float, ...]
    """Probability of each class."""
    frame_numbers: tuple[int, ...] = ()
    """The video's frames that make up the clip."""

    def when(self) -> str:
        """The clip's start and end in seconds as text: "1.0-2.5"; for frames without times, their numbers."""
        if math.isnan(self.start_seconds):
            return f"frames {self.frame_numbers[0]}-{self.frame_numbers[-1]}"
        return f"{self.start_seconds:.1f}-{self.end_seconds:.1f}"


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Prediction:
    """The model's class probabilities for a video: the mean over its clips."""

    path: str
    """The video's path; for a video in memory its kind, such as "<array>"."""
    labels: tuple[str, ...]
    """Class names."""
    scores: tuple[float, ...]
    """Probability of each class, in the order of ``labels``."""
    clips: tuple[ClipScores, ...]
    """The same for each clip, in temporal order."""
    thresholds: tuple[float, ...] = ()
    """If a video may have several labels, or none: for each class, the probability from which on the video has it; else
    empty."""
    recognizer: Explains | None = field(default=None, repr=False, compare=False)
    """The recognizer that made the prediction; it is not pickled."""

    source: VideoSource | None = field(default=None, compare=False)
    """The video as it was given; None: the file at ``path``."""

    def __getstate__(self) -> list[Any]:
        return [None if f.name == "recognizer" else getattr(self, f.name) for f in fields(self)]

    def __str__(self) -> str:
        named = self.said() if self.thresholds else self.top(3)
        best = ", ".join(f"{printable(label)} {score:.2f}" for label, score in named) or NONE
        return f"{printable(self.path)}: {best}"

    def __repr__(self) -> str:
        clips = f"; {len(self.clips)} clips" if len(self.clips) > 1 else ""
        return f"Prediction({self}{clips})"

    def _repr_html_(self) -> str:
        """The HTML that a notebook shows."""
        tables: list[tuple[Sequence[str], Sequence[Sequence[str | Bar]]]] = [
            (("class", "probability"), [(label, Bar(score)) for label, score in self.top(5)])
        ]
        if len(self.clips) > 1:
            rows = [(clip.when(), *best) for clip in self.clips for best in self.said(clip) or [(NONE, 0.0)]]
            tables.append((("seconds", "class", "probability"), [(when, name, Bar(p)) for when, name, p in rows]))
        return results_html(self.path, tables)

    @property
    def video(self) -> VideoSource:
        """The video, to be opened again."""
        return source_of(self.path) if self.source is None else self.source

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.top(1)[0][0]

    @property
    def found(self) -> tuple[str, ...]:
        """The labels of the video, the most probable first: all classes at or above their thresholds, or none.

        If the model gives each video one label: that one.
        """
        return tuple(label for label, _ in self.said())

    def said(self, clip: ClipScores | None = None) -> list[tuple[str, float]]:
        """As ``found``, for the video or one clip, with the scores."""
        if not self.thresholds:
            return self.top(1, clip)
        least = dict(zip(self.labels, self.thresholds, strict=True))
        return [(label, score) for label, score in self.top(len(self.labels), clip) if score >= least[label]]

    @checked(count=0)
    def top(self, count: int = 5, clip: ClipScores | None = None) -> list[tuple[str, float]]:
        """The ``count`` most probable classes of the video, or of one clip, and their scores, best first."""
        scores = self.scores if clip is None else clip.scores
        return sorted(zip(self.labels, scores, strict=True), key=lambda pair: -pair[1])[:count]

    @checked(count=0)
    def as_dict(self, count: int = 5) -> dict[str, Any]:
        """Plain values for JSON: the best classes of the video and of each clip. Unknown times are None.

        If a video may have several labels: "labels" (as ``found``) instead of "label", and all scores and thresholds.
        """
        answer: dict[str, Any] = {"label": self.label}
        if self.thresholds:
            count = len(self.labels)
            answer = {"labels": list(self.found), "thresholds": dict(zip(self.labels, self.thresholds, strict=True))}
        return {
            "video": self.path,
            **answer,
            "scores": dict(self.top(count)),
            "clips": [
                {
                    "start_seconds": round_or_none(clip.start_seconds),
                    "end_seconds": round_or_none(clip.end_seconds),
                    "scores": dict(self.top(count, clip)),
                }
                for clip in self.clips
            ],
        }

    @checked(count=0)
    def to_rows(self, count: int = 5, *, clips: bool = False) -> list[dict[str, Any]]:
        """Flat rows, as for ``pandas.DataFrame``: video, rank, label, score, for each of the most probable classes.

        If a video may have several labels, also threshold and found (whether the score reaches the threshold).

        Args:
            clips: rows of each clip, with its start_seconds and end_seconds, instead of rows of the whole video.
        """
        if not clips:
            return [self._row(rank, *best) for rank, best in enumerate(self.top(count), start=1)]
        return [
            self._row(
                rank,
                *best,
                start_seconds=round_or_none(clip.start_seconds),
                end_seconds=round_or_none(clip.end_seconds),
            )
            for clip in self.clips
            for rank, best in enumerate(self.top(count, clip), start=1)
        ]

    def _row(self, rank: int, label: str, score: float, **more: float | None) -> dict[str, Any]:
        row = {"video": self.path, **more, "rank": rank, "label": label, "score": score}
        if self.thresholds:
            threshold = self.thresholds[self.labels.index(label)]
            row |= {"threshold": threshold, "found": score >= threshold}
        return row

    @checked()
    def explain(self, *, label: str | None = None, clip: int | None = None, layer: str | None = None) -> Explanation:
        """Show what the network looked at, and how its kernels were calibrated: see ``Recognizer.explain``.

        Raises:
            OptionError: the prediction was pickled, which drops its recognizer.
        """
        if self.recognizer is None:
            raise OptionError("this prediction was pickled without its recognizer: call recognizer.explain(prediction)")
        return self.recognizer.explain(self, label=label, clip=clip, layer=layer)

    @checked(count=1)
    def save_video(
        self,
        target: str | PathLike[str],
        *,
        count: int = 3,
        overwrite: bool = False,
        advance: Callable[[float], None] = lambda part: None,
    ) -> None:
        """Write the video with the most probable classes of each moment drawn in, as an MP4 that browsers play.

        A timeline below the picture shows the scores of the nearest clip at each time. Sound and times are kept.

        Args:
            count: number of most probable classes, of the video and of each clip, that are drawn.
            advance: called now and then with the fraction of the video written since the last call.

        Raises:
            VideoError: the video cannot be read to its end, or its frames are not kept any more.
            OptionError: the file exists and ``overwrite`` is false, or the frames have no times.
        """
        annotate_video(self.video, target, self._lanes(count), overwrite=overwrite, advance=advance)

    def _lanes(self, count: int) -> list[Lane]:
        """The timelines of the most probable classes, ordered by the video's score."""
        best = [self.top(count), *(self.top(count, clip) for clip in self.clips)]
        named = {label for top in best for label, _ in top}
        middles = [(clip.start_seconds + clip.end_seconds) / 2 for clip in self.clips]
        edges = [-math.inf, *((one + other) / 2 for one, other in pairwise(middles)), math.inf]
        return [
            Lane(
                label=label,
                spans=tuple(
                    (start, end, clip.scores[place])
                    for (start, end), clip in zip(pairwise(edges), self.clips, strict=True)
                ),
                is_curve=True,
            )
            for place, (label, _) in sorted(
                enumerate(zip(self.labels, self.scores, strict=True)), key=lambda entry: -entry[1][1]
            )
            if label in named
        ]

    @checked(count=1, num_frames=1)
    def plot(self, picture: str | PathLike[str], *, num_frames: int = 8, count: int = 5) -> None:
        """Draw frames of the clips and the most probable classes, as a PNG file.

        Args:
            num_frames: largest number of frames, evenly spaced over the frames of all clips.

        Raises:
            VideoError: the video cannot be read any more.
        """
        video = self.video
        seen = sorted({number for clip in self.clips for number in clip.frame_numbers})
        with video.open() as reader:
            times = reader.times_seconds if video.has_times else np.full(len(reader.times_seconds), math.nan)
            seen = seen or list(range(len(times)))  # a prediction made elsewhere may lack the numbers
            indices = [seen[i] for i in sorted({round(i) for i in np.linspace(0, len(seen) - 1, num_frames)})]
            frames = reader.frames(indices, shrink=partial(shrink_to, short_side=256))
        title = Path(self.path).name
        save_prediction(frames, [float(times[i]) for i in indices], self.top(count), Path(picture), title=title)


def round_or_none(seconds: float) -> float | None:
    """Seconds for JSON: milliseconds are enough, and an unknown time is None."""
    return None if math.isnan(seconds) else round(seconds, 3)


def predictions_csv(predictions: Sequence[Prediction], count: int = 5, *, several: bool = False) -> str:
    """CSV with a row for each video and class: video, rank, label, score; if ``several``, also threshold and found."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "rank", "label", "score", *(("threshold", "found") if several else ())])
    for prediction in predictions:
        for row in prediction.to_rows(len(prediction.labels) if several else count):
            more = [f"{row['threshold']:.6f}", int(row["found"])] if several else []
            writer.writerow([guarded(row["video"]), row["rank"], guarded(row["label"]), f"{row['score']:.6f}", *more])
    return text.getvalue()
