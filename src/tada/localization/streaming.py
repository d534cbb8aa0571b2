"""Localization in a stream: the detector runs again and again over the last minute of features.

    frames -> clips, as soon as their last frame has come -> features, of which the last are kept -> detector over
    these, every second -> segments that have settled

Each frame is decoded once and each clip passes the network once; clips are those that ``extract_video`` makes of the
finished video. The detector processes a view: it ends with the newest feature and begins at a multiple of the coarsest
stride, so that away from the view's ends the detections are those of the whole video. A segment is emitted when it has
settled, that is, when

    - its end is ``settle_seconds`` or more before the newest feature,
    - its start is as far after the view's beginning (unless that is the stream's own), and
    - the previous look found it too, with both ends within half a stride; or the next look's view would begin too late
      for it.

An emitted segment is never taken back. A detection of the same class with a tIoU of 0.5 or more is the same segment,
found again; each detection is matched with one emitted segment at most. At the stream's end all detections are emitted.

Shapes: V crops, T frames of a clip, N clips, C channels, K classes, S detected segments, G emitted ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tada.errors import OptionError
from tada.localization.detectors.nms import Detections, Floats, tiou
from tada.localization.detectors.samples import RollingView
from tada.localization.features.extraction import clip_outputs, join_outputs
from tada.localization.localizer import LocalizedSegment, Localizer
from tada.video.prefetch import Ahead
from tada.video.sliding_windows import ReadyClip, clips_as_they_come
from tada.video.stream import FrameStream

_SAME = 0.5  # tIoU from which a detection is an emitted segment, found again


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamSettings:
    """How often the detector runs, over how much of the stream, and when segments settle."""

    every_seconds: float = 1.0
    """Time between two looks; rounded to a whole number of feature strides."""
    settle_seconds: float = 2.0
    """How much of the stream must have come after a segment's end."""
    span_seconds: float | None = None
    """Length of the detector's view. None: that of its ``rolling_view``."""

    def __post_init__(self) -> None:
        for name in ("every_seconds", "span_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise OptionError(f"{name}={value} should be a positive number of seconds")
        if not 0 <= self.settle_seconds < float("inf"):
            raise OptionError(f"settle_seconds={self.settle_seconds} should be 0 or more")


# -- the rolling detector ---------------------------------------------------------------------------------------------


class RollingDetector:
    """A localizer's detector over the last features of a stream.

    Attributes:
        num_features: number of features of the stream so far.
    """

    def __init__(self, localizer: Localizer, settings: StreamSettings, *, min_score: float | None = None) -> None:
        """Choose the view.

        Raises:
            OptionError: the detector was trained on whole videos, resized to a fixed number of steps, and
                ``span_seconds`` is not given; or the span is too short for segments to settle.
        """
        self.localizer, self.settings, self.min_score = localizer, settings, min_score
        self.stride_seconds = localizer.card.grid.stride_seconds
        self.view = self._choose_view()
        self.every = max(1, round(settings.every_seconds / self.stride_seconds))
        self.num_features = 0
        self._first = 0  # index of the first feature that is kept
        self._features: list[NDArray[np.float32]] = []  # [C] each
        self._scores: list[NDArray[np.float32]] = []  # [K] each
        self._emitted: list[LocalizedSegment] = []
        self._detected_before: Sequence[LocalizedSegment] = ()

    def _choose_view(self) -> RollingView:
        view, span = self.localizer.detector.rolling_view(self.stride_seconds), self.settings.span_seconds
        if span is None and view is None:
            raise OptionError(
                "this detector was trained on whole videos, whatever their length, in a fixed number of steps: give "
                "span_seconds (--span-seconds), about as long as these videos"
            )
        if span is not None:
            view = RollingView(max(1, round(span / self.stride_seconds)), 1 if view is None else view.multiple)
        assert view is not None
        least = 2 * self.settings.settle_seconds
        if view.num_features * self.stride_seconds <= least:
            raise OptionError(
                f"span_seconds={view.num_features * self.stride_seconds:.3g} should be more than twice "
                f"settle_seconds={self.settings.settle_seconds:g}, or nothing would ever settle"
            )
        return view

    @property
    def is_due(self) -> bool:
        """Whether the next look is due."""
        return self.num_features > 0 and self.num_features % self.every == 0

    @property
    def until_due(self) -> int:
        """Features until the next look."""
        return self.every - self.num_features % self.every

    def add(self, features: Tensor, scores: Tensor) -> None:
        """Append the next features [N, C] and the class probabilities of their clips [N, K]."""
        self._features.extend(features.numpy())
        self._scores.extend(scores.numpy())
        self.num_features += len(features)
        drop = self._first_of_view(self.num_features) - self._first
        del self._features[:drop], self._scores[:drop]
        self._first += drop

    def _first_of_view(self, num_features: int) -> int:
        """Index of the view's first feature, when there are this many features."""
        return max(0, (num_features - self.view.num_features) // self.view.multiple * self.view.multiple)

    def look(self, duration_seconds: float | None = None) -> tuple[list[LocalizedSegment], list[LocalizedSegment]]:
        """Run the detector over the view.

        Args:
            duration_seconds: length of the stream, at its end.

        Returns:
            The segments that are emitted now, and those that have not settled; both by start.
        """
        is_last = duration_seconds is not None
        seen = self.num_features * self.stride_seconds if duration_seconds is None else duration_seconds
        found = self._detect(seen)
        settle, margin = self.settings.settle_seconds, self.stride_seconds / 2
        unknown, next_unknown = (
            0.0 if begin == 0 else begin * self.stride_seconds + settle
            for begin in (self._first, self._first_of_view(self.num_features + self.every))
        )
        self._emitted = [s for s in self._emitted if s.end_seconds > self._first * self.stride_seconds]
        settled, pending = [], []
        for segment in self._drop_emitted([s for s in found if s.start_seconds >= unknown]):
            has_stayed = any(_is_near(segment, other, margin) for other in self._detected_before)
            is_leaving = segment.start_seconds < next_unknown
            if is_last or (segment.end_seconds <= seen - settle and (has_stayed or is_leaving)):
                settled.append(segment)
            else:
                pending.append(segment)
        self._emitted += settled
        self._detected_before = found
        return settled, pending

    def _detect(self, seen_seconds: float) -> Sequence[LocalizedSegment]:
        """The detected segments of the view, in the stream's time."""
        localizer, begin_seconds = self.localizer, self._first * self.stride_seconds
        part = join_outputs(
            *localizer.feature_maker(),
            np.stack(self._features),
            np.stack(self._scores),
            video="stream",
            duration_seconds=seen_seconds - begin_seconds,
            backbone_sha256=localizer.card.backbone,
        )
        found = localizer.detect(part)
        moved = Detections(found.segments + begin_seconds, found.scores, found.labels)
        return localizer.name_detections(moved, "stream", seen_seconds, min_score=self.min_score).segments

    def _drop_emitted(self, found: list[LocalizedSegment]) -> list[LocalizedSegment]:
        """Drop detections of segments that were emitted, at most one for each of these."""
        overlap = tiou(_times(found), _times(self._emitted))  # [S, G]
        alike = np.array([[a.label == b.label for b in self._emitted] for a in found]).reshape(overlap.shape)
        overlap = np.where(alike, overlap, 0.0)
        known: set[int] = set()
        while overlap.size and overlap.max() >= _SAME:
            mine, other = np.unravel_index(overlap.argmax(), overlap.shape)
            known.add(int(mine))
            overlap[mine], overlap[:, other] = 0.0, 0.0
        return [segment for i, segment in enumerate(found) if i not in known]


def _times(segments: Sequence[LocalizedSegment]) -> Floats:
    return np.array([(s.start_seconds, s.end_seconds) for s in segments], np.float64).reshape(-1, 2)


def _is_near(one: LocalizedSegment, other: LocalizedSegment, seconds: float) -> bool:
    return (
        one.label == other.label
        and abs(one.start_seconds - other.start_seconds) <= seconds
        and abs(one.end_seconds - other.end_seconds) <= seconds
    )


# -- the stream -------------------------------------------------------------------------------------------------------


class StreamedSegment(NamedTuple):
    """A segment that has settled."""

    segment: LocalizedSegment
    behind_seconds: float
    """How much of the stream had come after the segment's end: the delay for settling."""
    latency_seconds: float
    """Time from the arrival of the first frame at or after the segment's end (or of the last frame) to the result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Result of one run of the detector over the stream."""

    seen_seconds: float
    """Time of the newest frame in the stream."""
    latency_seconds: float
    """Time from that frame's arrival to the result: decoding, features, detector."""
    settled: tuple[StreamedSegment, ...]
    """New segments, by start."""
    pending: tuple[LocalizedSegment, ...]
    """Segments that have not settled and may still change."""
    is_last: bool = False
    """Whether the stream has ended."""


@dataclass(kw_only=True, slots=True)
class _Arrivals:
    """Arrival times of recent frames, by their times in the stream."""

    seconds: list[float] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)

    def add(self, frames: Iterable[tuple[float, float]], *, keep_seconds: float) -> None:
        for seconds, arrived in frames:
            self.seconds.append(seconds)
            self.arrived.append(arrived)
        old = int(np.searchsorted(self.seconds, self.seconds[-1] - keep_seconds))
        del self.seconds[:old], self.arrived[:old]

    def at(self, seconds: float) -> float:
        """Arrival of the first frame at or after a time; of the last frame, if there is none."""
        return self.arrived[min(int(np.searchsorted(self.seconds, seconds)), len(self.arrived) - 1)]


def localize_stream(
    localizer: Localizer,
    stream: FrameStream,
    settings: StreamSettings | None = None,
    *,
    min_score: float | None = None,
    batch_size: int = 16,
) -> Iterator[Look]:
    """Detect segments in a stream while it comes.

    The result depends on the stream only, not on how fast it comes or is read: a look is due after a fixed number of
    features. To end early, call ``stream.stop()``: the part that has come is then treated as the whole stream.

    Args:
        min_score: as for ``Localizer.localize``.
        batch_size: most clips in one pass of the network, when clips come faster than it processes them.

    Raises:
        VideoError: the stream cannot be read.
        CheckpointError: the localizer has no network to make features.
        OptionError: ``settings`` do not suit the detector.
    """
    backbone, extraction = localizer.feature_maker()
    detector = RollingDetector(localizer, settings or StreamSettings(), min_score=min_score)
    keep_seconds = (detector.view.num_features + detector.view.multiple) * detector.stride_seconds
    arrivals = _Arrivals()

    def look(duration_seconds: float | None = None) -> Look:
        settled, pending = detector.look(duration_seconds)
        now, seen = time.perf_counter(), arrivals.seconds[-1]
        given = tuple(
            StreamedSegment(s, max(0.0, seen - s.end_seconds), now - arrivals.at(s.end_seconds)) for s in settled
        )
        return Look(
            seen_seconds=seen,
            latency_seconds=now - arrivals.arrived[-1],
            settled=given,
            pending=tuple(pending),
            is_last=duration_seconds is not None,
        )

    def take_in(clips: Sequence[ReadyClip]) -> None:
        detector.add(*clip_outputs(backbone, torch.stack([clip.frames for clip in clips])))
        for clip in clips:
            arrivals.add(clip.arrivals, keep_seconds=keep_seconds)

    with Ahead(clips_as_they_come(stream, backbone.clip, extraction), size=2 * batch_size) as clips:
        try:
            batch: list[ReadyClip] = []
            for clip in clips:
                batch.append(clip)
                if clips.is_ready and len(batch) < min(batch_size, detector.until_due):
                    continue  # put the next clip, which is ready, into the same batch
                take_in(batch)
                batch = []
                if detector.is_due:
                    yield look()
            if batch:
                take_in(batch)
            yield look(stream.duration_seconds)
        finally:
            stream.stop()  # else the reading thread might wait for frames for ever
