"""Live recognition of a stream, with smoothed scores and hysteresis.

    frames -> a clip for each look -> scores, smoothed over some looks -> the current class

A look is one prediction, on a clip that ends at the newest frame. Scores are averaged over the looks of the last
``smooth_seconds``. A class begins when its smoothed score has been the highest, and at least ``min_score``, for
``settle_seconds`` without a break; it ends when another class, or none, has been ahead for as long. So a single wrong
look changes nothing. Each frame is decoded and resized once, even if it is part of several looks.

Shapes: V views (one), T frames of a clip, K classes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from tada.errors import OptionError
from tada.models.weights import ModelCard
from tada.recognition.recognizer import Recognizer
from tada.video.live import is_camera
from tada.video.prefetch import Ahead
from tada.video.sliding_windows import SlidingWindows, clips_as_they_come
from tada.video.stream import FrameStream

_CLIPS_AHEAD = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveSettings:
    """Options of live recognition: interval and span of the looks, smoothing and thresholds."""

    window_seconds: float | None = None
    """Span of a look's clip; None: the span of the network's clips, or the typical length of its training videos if its
    clips sample segments."""
    every_seconds: float = 0.5
    """Interval from one look to the next."""
    smooth_seconds: float = 1.0
    """Scores are averaged over the looks of this time."""
    settle_seconds: float = 1.0
    """How long a class must have the highest score before it begins."""
    min_score: float = 0.5
    """Smallest smoothed score of a class that begins or goes on."""
    skip_late: bool | None = None
    """Skip a look if the next one is due already, so that answers do not lag behind; they then depend on the machine's
    speed. None: only for cameras, which do not wait."""

    def __post_init__(self) -> None:
        for name in ("window_seconds", "every_seconds"):
            value = getattr(self, name)
            if value is not None and not 0.01 <= value <= 3600:
                raise OptionError(f"{name}={value} should be a positive number of seconds, from 0.01 to 3600")
        for name in ("smooth_seconds", "settle_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise OptionError(f"{name}={getattr(self, name)} should be 0 or more")
        if not 0 <= self.min_score <= 1:
            raise OptionError(f"min_score={self.min_score} should be from 0 to 1")

    def clips(self, card: ModelCard) -> SlidingWindows:
        """The sliding windows of the looks' clips.

        Raises:
            OptionError: ``window_seconds`` is needed, since the network's clips sample segments and its card lacks the
                length of its videos; or the network gives a video several labels.
        """
        if card.thresholds:
            raise OptionError(
                "this model gives a video several labels, and live recognition reports one class at a time: predict "
                "files, with --window-seconds for several actions one after another"
            )
        typical = () if card.typical_seconds is None else (card.typical_seconds,)
        return SlidingWindows.for_clips(
            card.clip,
            window_seconds=self.window_seconds,
            stride_seconds=self.every_seconds,
            segment_seconds=typical,
        )


class LiveEvent(NamedTuple):
    """Begin or end of a class."""

    kind: Literal["begins", "ends"]
    label: str
    seconds: float
    """Time of the first look with the class ahead, or, at its end, of the first look without."""
    score: float
    """The class's smoothed score when it was reported to begin; at its end, its highest smoothed score."""
    behind_seconds: float
    """Delay of the report: the stream's time between ``seconds`` and the look that settled it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveLook:
    """The result of one look."""

    seen_seconds: float
    """Time of the newest frame, counted from the start of the stream."""
    latency_seconds: float
    """Time from that frame's arrival to this result: decoding, the network, smoothing."""
    labels: tuple[str, ...]
    """Class names."""
    scores: tuple[float, ...]
    """Smoothed probability of each class, in the order of ``labels``."""
    label: str | None
    """The current class; None if there is none."""
    events: tuple[LiveEvent, ...]
    """Classes that begin or end with this look."""
    num_skipped: int = 0
    """Number of looks skipped since the last one."""
    is_last: bool = False
    """Whether the stream has ended."""

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The ``count`` most probable classes and their smoothed scores, best first."""
        return sorted(zip(self.labels, self.scores, strict=True), key=lambda pair: -pair[1])[:count]


class Settling:
    """Finds the current class from the scores of the looks, by smoothing and hysteresis."""

    def __init__(self, labels: Sequence[str], settings: LiveSettings) -> None:
        self.labels, self.settings = tuple(labels), settings
        self.label: str | None = None
        self._recent: deque[np.ndarray[tuple[int], np.dtype[np.float64]]] = deque(
            maxlen=max(1, round(settings.smooth_seconds / settings.every_seconds))
        )
        self._ahead: str | None = None  # class ahead in the last looks, and since when
        self._since_seconds = 0.0
        self._highest = 0.0  # smoothed score of the current class so far

    def add(self, scores: Sequence[float], seen_seconds: float) -> tuple[tuple[float, ...], tuple[LiveEvent, ...]]:
        """Add the scores [K] of a look; return the smoothed scores, and the classes that begin or end."""
        self._recent.append(np.asarray(scores, np.float64))
        smoothed = np.mean(self._recent, axis=0)
        best = int(smoothed.argmax())
        ahead = self.labels[best] if smoothed[best] >= self.settings.min_score else None
        if ahead != self._ahead:
            self._ahead, self._since_seconds = ahead, seen_seconds
        if self.label is not None:
            self._highest = max(self._highest, float(smoothed[self.labels.index(self.label)]))
        events: list[LiveEvent] = []
        # A tolerance of a millisecond: times are sums of strides, which are rounded.
        if ahead != self.label and seen_seconds - self._since_seconds >= self.settings.settle_seconds - 1e-3:
            events = self._switch_to(ahead, float(smoothed[best]), seen_seconds)
        return tuple(smoothed.tolist()), tuple(events)

    def end(self, seen_seconds: float) -> tuple[LiveEvent, ...]:
        """End the current class at the end of the stream."""
        self._since_seconds = seen_seconds
        return tuple(self._switch_to(None, 0.0, seen_seconds))

    def _switch_to(self, label: str | None, score: float, seen_seconds: float) -> list[LiveEvent]:
        behind = seen_seconds - self._since_seconds
        events = []
        if self.label is not None:
            events.append(LiveEvent("ends", self.label, self._since_seconds, self._highest, behind))
        if label is not None:
            events.append(LiveEvent("begins", label, self._since_seconds, score, behind))
        self.label, self._highest = label, score
        return events


def recognize_stream(
    recognizer: Recognizer, stream: FrameStream, settings: LiveSettings | None = None
) -> Iterator[LiveLook]:
    """Predict the actions in a stream as it arrives.

    To end it early, call ``stream.stop()``.

    Raises:
        VideoError: the stream cannot be read.
        OptionError: ``settings.window_seconds`` is needed, or the network gives a video several labels.
    """
    settings = settings or LiveSettings()
    extraction = settings.clips(recognizer.card)
    skips = is_camera(stream.path) if settings.skip_late is None else settings.skip_late
    settling = Settling(recognizer.answers, settings)
    num_skipped, seen, arrived = 0, 0.0, time.perf_counter()
    scores: tuple[float, ...] = (0.0,) * len(settling.labels)
    with Ahead(clips_as_they_come(stream, recognizer.clip, extraction), size=_CLIPS_AHEAD) as clips:
        try:
            for clip in clips:
                if clip.arrivals:
                    seen, arrived = clip.arrivals[-1]
                if skips and clips.is_ready:
                    num_skipped += 1
                    continue
                scores, events = settling.add(recognizer.answer_scores(clip.frames)[0].tolist(), seen)
                yield LiveLook(
                    seen_seconds=seen,
                    latency_seconds=time.perf_counter() - arrived,
                    labels=settling.labels,
                    scores=scores,
                    label=settling.label,
                    events=events,
                    num_skipped=num_skipped,
                )
                num_skipped = 0
            events = settling.end(stream.duration_seconds)
            yield LiveLook(
                seen_seconds=stream.duration_seconds,
                latency_seconds=time.perf_counter() - arrived,
                labels=settling.labels,
                scores=scores,
                label=None,
                events=events,
                num_skipped=num_skipped,
                is_last=True,
            )
        finally:
            stream.stop()  # or the prefetching thread might wait for frames forever
