"""What happens when, while it happens: a localizer that looks again and again at the last minute of a stream.

    frames -> clips, as soon as their last frame is there -> features, the last of which are kept -> detector, every
    second, over these -> segments that have settled

Each frame is decoded once and each clip passes the network once; clips are those that ``extract_video`` makes of the
finished video. The detector is shown a part that ends with the newest feature and begins at a multiple of its coarsest
step: away from both ends of that part it says what it would say of the whole video. So a segment is given out when it
has settled, that is, when

    - its end lies ``settle_seconds`` or more before the newest feature,
    - its start lies as far behind the beginning of the part (where that is not the stream's own), and
    - the look before found it too, its ends within half a stride; or the next one would find its start too early.

What was given out is not taken back, and a segment of the same class that overlaps one by half or more is the same one,
found again: of several such, each stands for one. At the stream's end all that was found is given out.

Shapes: V crops, T frames of a clip, N clips, C channels, K classes, S segments found, G given out.
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

_SAME = 0.5  # overlap from which a segment is one that was given out


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamSettings:
    """How often, how far back and how patiently to look."""

    every_seconds: float = 1.0
    """From one look to the next; a whole number of feature strides is made of it."""
    settle_seconds: float = 2.0
    """How much of the stream must be known after a segment's end."""
    span_seconds: float | None = None
    """What the detector sees at once. None: what its ``rolling_view`` says."""

    def __post_init__(self) -> None:
        for name in ("every_seconds", "span_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise OptionError(f"{name}={value} should be a positive number of seconds")
        if not 0 <= self.settle_seconds < float("inf"):
            raise OptionError(f"settle_seconds={self.settle_seconds} should be 0 or more")


# -- clips as they come -----------------------------------------------------------------------------------------------


# -- the rolling detector ---------------------------------------------------------------------------------------------


class RollingDetector:
    """A localizer's detector on the last features of a stream.

    Attributes:
        num_features: of the stream, so far.
    """

    def __init__(self, localizer: Localizer, settings: StreamSettings, *, min_score: float | None = None) -> None:
        """See whether the detector can look at a part of a video.

        Raises:
            OptionError: it was trained on whole videos of any length, brought to so many steps, and ``span_seconds``
                does not say how long such a video is; or the span is too short to settle anything.
        """
        self.localizer, self.settings, self.min_score = localizer, settings, min_score
        self.stride_seconds = localizer.card.grid.stride_seconds
        self.view = self._view()
        self.every = max(1, round(settings.every_seconds / self.stride_seconds))
        self.num_features = 0
        self._first = 0  # number of the first feature that is kept
        self._features: list[NDArray[np.float32]] = []  # [C] each
        self._scores: list[NDArray[np.float32]] = []  # [K] each
        self._given_out: list[LocalizedSegment] = []
        self._found_before: Sequence[LocalizedSegment] = ()

    def _view(self) -> RollingView:
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
        """Whether it is time for another look."""
        return self.num_features > 0 and self.num_features % self.every == 0

    @property
    def until_due(self) -> int:
        """Features until the next look."""
        return self.every - self.num_features % self.every

    def add(self, features: Tensor, scores: Tensor) -> None:
        """Take in the next features [N, C] and the probabilities of their clips [N, K]."""
        self._features.extend(features.numpy())
        self._scores.extend(scores.numpy())
        self.num_features += len(features)
        drop = self._begin(self.num_features) - self._first
        del self._features[:drop], self._scores[:drop]
        self._first += drop

    def _begin(self, num_features: int) -> int:
        """The first feature that the detector is shown when there are so many."""
        return max(0, (num_features - self.view.num_features) // self.view.multiple * self.view.multiple)

    def look(self, duration_seconds: float | None = None) -> tuple[list[LocalizedSegment], list[LocalizedSegment]]:
        """Look at the last part.

        Args:
            duration_seconds: at the stream's end, how long it was.

        Returns:
            The segments that are given out now, and those that have not settled; both by start.
        """
        is_last = duration_seconds is not None
        seen = self.num_features * self.stride_seconds if duration_seconds is None else duration_seconds
        found = self._found(seen)
        settle, margin = self.settings.settle_seconds, self.stride_seconds / 2
        unknown, next_unknown = (
            0.0 if begin == 0 else begin * self.stride_seconds + settle
            for begin in (self._first, self._begin(self.num_features + self.every))
        )
        self._given_out = [s for s in self._given_out if s.end_seconds > self._first * self.stride_seconds]
        settled, pending = [], []
        for segment in self._not_given_out([s for s in found if s.start_seconds >= unknown]):
            has_stayed = any(_is_near(segment, other, margin) for other in self._found_before)
            is_leaving = segment.start_seconds < next_unknown
            if is_last or (segment.end_seconds <= seen - settle and (has_stayed or is_leaving)):
                settled.append(segment)
            else:
                pending.append(segment)
        self._given_out += settled
        self._found_before = found
        return settled, pending

    def _found(self, seen_seconds: float) -> Sequence[LocalizedSegment]:
        """What the detector finds in the features that are kept, in the stream's time."""
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

    def _not_given_out(self, found: list[LocalizedSegment]) -> list[LocalizedSegment]:
        """Without those that were given out, each of which is found again at most once."""
        overlap = tiou(_times(found), _times(self._given_out))  # [S, G]
        alike = np.array([[a.label == b.label for b in self._given_out] for a in found]).reshape(overlap.shape)
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


# -- the whole way ----------------------------------------------------------------------------------------------------


class StreamedSegment(NamedTuple):
    """A segment that has settled."""

    segment: LocalizedSegment
    behind_seconds: float
    """How much of the stream had come after the segment's end: what waiting for it to settle costs."""
    latency_seconds: float
    """From the arrival of the first frame at the segment's end (or of the last frame) until it was given out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What one look at the stream gave."""

    seen_seconds: float
    """When the newest frame is shown."""
    latency_seconds: float
    """From that frame's arrival to the answer: decoding, features, detector."""
    settled: tuple[StreamedSegment, ...]
    """New segments, by start."""
    pending: tuple[LocalizedSegment, ...]
    """What seems to happen now, and may still change."""
    is_last: bool = False
    """The stream has ended."""


@dataclass(kw_only=True, slots=True)
class _Arrivals:
    """When frames came, as long as segments may end there."""

    seconds: list[float] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)

    def add(self, frames: Iterable[tuple[float, float]], *, keep_seconds: float) -> None:
        for seconds, arrived in frames:
            self.seconds.append(seconds)
            self.arrived.append(arrived)
        old = int(np.searchsorted(self.seconds, self.seconds[-1] - keep_seconds))
        del self.seconds[:old], self.arrived[:old]

    def at(self, seconds: float) -> float:
        """When the first frame at or after a time arrived; of the last frame, if there is none."""
        return self.arrived[min(int(np.searchsorted(self.seconds, seconds)), len(self.arrived) - 1)]


def localize_stream(
    localizer: Localizer,
    stream: FrameStream,
    settings: StreamSettings | None = None,
    *,
    min_score: float | None = None,
    batch_size: int = 16,
) -> Iterator[Look]:
    """Say what happens in a stream while it comes.

    What is given out depends on the stream alone, not on how fast it comes or is read: a look is due after so many
    features. To end it early, call ``stream.stop()``: what has come is then treated as the whole.

    Args:
        min_score: as for ``Localizer.localize``.
        batch_size: most clips that pass the network at a time, where the stream comes faster than they do.

    Raises:
        VideoError: the stream cannot be read.
        CheckpointError: the localizer has no network to make features.
        OptionError: ``settings`` do not fit the detector.
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
                    continue  # with the next one, at once
                take_in(batch)
                batch = []
                if detector.is_due:
                    yield look()
            if batch:
                take_in(batch)
            yield look(stream.duration_seconds)
        finally:
            stream.stop()  # or the thread might wait for frames for ever
