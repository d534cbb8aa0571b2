"""Live recognition: what happens in a stream, said when it has settled.

    frames -> clips, one for each look -> scores, smoothed over some looks -> a class that has settled

A look sees what a clip spans, up to the newest frame. Its scores are the mean over the looks of ``smooth_seconds``. A
class happens when its score has been the highest, and at least ``min_score``, for ``settle_seconds`` without a break;
until another one does, or none for as long. So a single look that is wrong says nothing. Each frame is decoded once and
made small once, however many looks it is part of.

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
    """How often to look, how far back, and how patiently."""

    window_seconds: float | None = None
    """What a look sees; None: what the network's clips span, of a network of segments what its videos lasted."""
    every_seconds: float = 0.5
    """From one look to the next."""
    smooth_seconds: float = 1.0
    """Scores are the mean over the looks of so long."""
    settle_seconds: float = 1.0
    """How long a class has to be ahead until it is said to happen."""
    min_score: float = 0.5
    """What its smoothed score has to reach meanwhile."""
    skip_late: bool | None = None
    """Leave out a look when the next one is due already, so that answers never lag behind. None: of cameras, which do
    not wait. What is said of a stream then depends on the machine's speed."""

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
        """How the clips of the looks lie in the stream.

        Raises:
            OptionError: a network of segments, whose card does not say how long its videos were, and no window; or one
                that gives a video several labels.
        """
        if card.thresholds:
            raise OptionError(
                "this model gives a video several labels, and a live answer is one that begins and ends: predict "
                "files, with --window-seconds for what follows each other"
            )
        typical = () if card.typical_seconds is None else (card.typical_seconds,)
        return SlidingWindows.for_clips(
            card.clip,
            window_seconds=self.window_seconds,
            stride_seconds=self.every_seconds,
            segment_seconds=typical,
        )


class LiveEvent(NamedTuple):
    """A class begins to happen, or has ended."""

    kind: Literal["begins", "ends"]
    label: str
    seconds: float
    """When the look was that first saw it; when the one was that first did not."""
    score: float
    """Its smoothed score when that had settled; of an end, the highest there was."""
    behind_seconds: float
    """How much of the stream had come since: what waiting for it to settle costs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveLook:
    """What one look at the stream gave."""

    seen_seconds: float
    """When the newest frame is shown, counted from where the stream begins."""
    latency_seconds: float
    """From that frame's arrival to the answer: decoding, the network, smoothing."""
    labels: tuple[str, ...]
    """Class names."""
    scores: tuple[float, ...]
    """Smoothed probability of each class, in the order of ``labels``."""
    label: str | None
    """The class that happens now; None if none has settled."""
    events: tuple[LiveEvent, ...]
    """What has changed with this look."""
    num_skipped: int = 0
    """Looks that were left out since the last one."""
    is_last: bool = False
    """The stream has ended."""

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The ``count`` most probable classes and their smoothed scores, best first."""
        return sorted(zip(self.labels, self.scores, strict=True), key=lambda pair: -pair[1])[:count]


class Settling:
    """Which class happens, from scores that come look by look."""

    def __init__(self, labels: Sequence[str], settings: LiveSettings) -> None:
        self.labels, self.settings = tuple(labels), settings
        self.label: str | None = None
        self._recent: deque[np.ndarray[tuple[int], np.dtype[np.float64]]] = deque(
            maxlen=max(1, round(settings.smooth_seconds / settings.every_seconds))
        )
        self._ahead: str | None = None  # what was ahead in the last looks, and since when
        self._since_seconds = 0.0
        self._highest = 0.0  # score of what happens

    def add(self, scores: Sequence[float], seen_seconds: float) -> tuple[tuple[float, ...], tuple[LiveEvent, ...]]:
        """Take in the scores [K] of a look; the smoothed ones, and what has changed."""
        self._recent.append(np.asarray(scores, np.float64))
        smoothed = np.mean(self._recent, axis=0)
        best = int(smoothed.argmax())
        ahead = self.labels[best] if smoothed[best] >= self.settings.min_score else None
        if ahead != self._ahead:
            self._ahead, self._since_seconds = ahead, seen_seconds
        if self.label is not None:
            self._highest = max(self._highest, float(smoothed[self.labels.index(self.label)]))
        events: list[LiveEvent] = []
        # A millisecond's grace: times are sums of strides.
        if ahead != self.label and seen_seconds - self._since_seconds >= self.settings.settle_seconds - 1e-3:
            events = self._changed(ahead, float(smoothed[best]), seen_seconds)
        return tuple(smoothed.tolist()), tuple(events)

    def end(self, seen_seconds: float) -> tuple[LiveEvent, ...]:
        """The stream has ended, and with it what happens."""
        self._since_seconds = seen_seconds
        return tuple(self._changed(None, 0.0, seen_seconds))

    def _changed(self, label: str | None, score: float, seen_seconds: float) -> list[LiveEvent]:
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
    """Say what happens in a stream while it comes.

    To end it early, call ``stream.stop()``.

    Raises:
        VideoError: the stream cannot be read.
        OptionError: a network of segments, and ``settings`` do not say what a look sees; or one that gives a video
            several labels.
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
            stream.stop()  # or the thread might wait for frames for ever
