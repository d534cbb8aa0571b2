"""The clips of videos: which frames they are, and how they are decoded, several videos at a time.

Shapes: V views of a clip, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tada.data.worker_streams import iterators_in_processes
from tada.data.workers import Lost
from tada.errors import OptionError, VideoError
from tada.recognition.prediction import ClipScores
from tada.video.frames import OpenVideo
from tada.video.inputs import VideoSource
from tada.video.prefetch import Ahead
from tada.video.sampling import ClipSpec, view_indices
from tada.video.transforms import frame_crops

MAX_CLIPS = 10
"""Largest default number of clips for a long video, as in the papers' tests."""
MANY_FILES = 32
"""Files from which on the start of decoding processes, some seconds, is worth it."""
CLIP_SECONDS = 120.0
"""Longest time for a process to decode a clip."""
_NO_VIEWS = np.empty(0, np.uint8)
_ATTEMPTS = 2  # of a video whose process dies
_LEAST_AHEAD = 4
_HELD_BYTES = 512 * 2**20  # of clips that wait for the network


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipChoice:
    """Which clips of a video are taken."""

    spec: ClipSpec
    """Frames and size of a clip."""
    num_clips: int | None = None
    """Clips of a video, or of each window; None: as many as cover it, at most ``MAX_CLIPS``."""
    window_seconds: float | None = None
    """Windows into which videos are divided; None: they are not."""

    def __post_init__(self) -> None:
        """Raise OptionError for a number out of its range."""
        if self.window_seconds is not None and not self.window_seconds > 0:
            raise OptionError(f"window_seconds = {self.window_seconds} should be more than 0")
        if self.num_clips is not None and self.num_clips < 1:
            raise OptionError(f"num_clips = {self.num_clips} should be at least 1")

    def choose(self, reader: OpenVideo) -> list[list[int]]:
        """Frame indices of every clip of a video, in temporal order."""
        times, spec = reader.times_seconds, self.spec
        windows = [range(len(times))]
        if self.window_seconds is not None:
            windows = windows_of(times, reader.info.duration_seconds, self.window_seconds)
        clips = []
        for window in windows:
            own_times = times[window.start : window.stop] - times[window.start]
            count = self.num_clips or _num_covering_clips(spec, float(own_times[-1]))
            for i in range(count):
                chosen = view_indices(spec, own_times, i, count, container_fps=reader.container_fps)
                clips.append([window[index] for index in chosen])
        return clips


class VideoClip(NamedTuple):
    """A decoded clip of a video, or the error if the video cannot be read."""

    number: int = 1
    """Its place among the video's clips, from 1."""
    num_clips: int = 1
    """Clips of the video."""
    start_seconds: float = math.nan
    end_seconds: float = math.nan
    views: NDArray[np.uint8] = _NO_VIEWS
    """[V, T, H, W, 3]; V is 1, but for features of several crops."""
    frame_numbers: tuple[int, ...] = ()
    fault: VideoError | None = None

    @property
    def done(self) -> float:
        """Fraction of the video's clips up to and including this one, in (0, 1]."""
        return self.number / self.num_clips

    @property
    def is_last(self) -> bool:
        """Whether it is the video's last clip."""
        return self.number == self.num_clips

    def without_views(self) -> VideoClip:
        """The clip without its pixels."""
        return self._replace(views=_NO_VIEWS)

    def with_scores(self, scores: Collection[float]) -> ClipScores:
        """The clip's times and frames with its scores, without its pixels."""
        return ClipScores(
            start_seconds=self.start_seconds,
            end_seconds=self.end_seconds,
            scores=tuple(scores),
            frame_numbers=self.frame_numbers,
        )


def decode_clips(source: VideoSource, choice: ClipChoice) -> Iterator[VideoClip]:
    """Decode the clips of a video in order.

    Raises:
        VideoError: it cannot be read, maybe after some clips.
    """
    spec = choice.spec
    shrink = partial(frame_crops, short_side=spec.short_side, crop=spec.crop, num_crops=1, antialias=spec.antialias)
    with source.open() as reader:
        chosen = choice.choose(reader)
        for number, indices in enumerate(chosen, start=1):
            views = reader.frames(indices, shrink=shrink).swapaxes(0, 1)
            first, last = (float(reader.times_seconds[index]) for index in (indices[0], indices[-1]))
            if not source.has_times:
                first = last = math.nan
            yield VideoClip(number, len(chosen), first, last, np.ascontiguousarray(views), tuple(indices))


def read_clips(source: VideoSource, choice: ClipChoice) -> Iterator[VideoClip]:
    """As ``decode_clips``; an unreadable video ends with a clip that holds its error."""
    try:
        yield from decode_clips(source, choice)
    except VideoError as error:
        yield VideoClip(fault=error)


def has_many_files(sources: Iterable[VideoSource]) -> bool:
    """Whether the videos are known at once, and at least ``MANY_FILES`` of them are files."""
    return isinstance(sources, Collection) and sum(source.is_file for source in sources) >= MANY_FILES


def clips_of_videos(
    sources: Iterable[VideoSource], choice: ClipChoice, *, num_workers: int, clips_ahead: int
) -> Iterator[tuple[VideoSource, VideoClip]]:
    """Decode the clips of videos, in order, ahead of the one who takes them.

    Args:
        num_workers: processes that decode; 0: a thread of this process does. What is not a file is decoded here.
        clips_ahead: clips that are decoded ahead, at least; with processes one more for each of them.
    """
    most, ahead = most_held(choice.spec.num_frames * choice.spec.crop**2 * 3), max(clips_ahead, _LEAST_AHEAD)
    if num_workers == 0:
        read = ((source, clip) for source in sources for clip in read_clips(source, choice))
        with Ahead(read, size=min(ahead, most)) as clips:
            yield from clips
        return
    decoded = iterators_in_processes(
        partial(read_clips, choice=choice),
        sources,
        num_processes=num_workers,
        timeout_seconds=CLIP_SECONDS,
        max_held=min(2 * ahead + num_workers, most),
        attempts=_ATTEMPTS,
        stays_here=lambda source: not source.is_file,
    )
    with closing(decoded):
        for source, found in decoded:
            yield source, clip_of(source.name, found)


def clip_of(name: str, found: VideoClip | Lost) -> VideoClip:
    """What a decoding process has given; if it was lost, a clip that holds the error."""
    return VideoClip(fault=found.error(name)) if isinstance(found, Lost) else found


def default_batch_size(*, has_gpu: bool, has_workers: bool) -> int:
    """Clips that a network takes at once. A CPU gains from more than one only beside processes that decode."""
    return 32 if has_gpu else 8 if has_workers else 1


def most_held(clip_bytes: int) -> int:
    """Decoded clips that may wait for a network, at most."""
    return max(1, _HELD_BYTES // clip_bytes)


def batches_of(
    clips: Iterator[tuple[VideoSource, VideoClip]], batch_size: int, *, span_videos: bool = True
) -> Iterator[list[tuple[VideoSource, VideoClip]]]:
    """Put clips into batches of ``batch_size``, the last may be smaller; or the last of each video."""
    batch = []
    for source, clip in clips:
        batch.append((source, clip))
        if len(batch) == batch_size or (clip.is_last and not span_videos):
            yield batch
            batch = []
    if batch:
        yield batch


def windows_of(times: NDArray[np.float64], duration_seconds: float, window_seconds: float) -> list[range]:
    """Frame indices of each window of a video, which is divided at multiples of ``window_seconds``.

    A division that would leave less than half a window before or after it is left out, so a short rest at the end
    belongs to the window before it.
    """
    number = np.floor(times / window_seconds)  # of the window that contains the frame
    firsts = np.flatnonzero(np.diff(number)) + 1
    cut_seconds, least = number[firsts] * window_seconds, window_seconds / 2 - 1e-6
    is_cut = (cut_seconds - times[0] >= least) & (duration_seconds - cut_seconds >= least)
    return [range(a, b) for a, b in pairwise([0, *firsts[is_cut].tolist(), len(times)])]


def _num_covering_clips(spec: ClipSpec, seconds: float) -> int:
    if spec.sampling == "segment" or spec.fps is None:
        return 1
    span_seconds = spec.num_frames * spec.interval / spec.fps
    return min(max(1, math.ceil(seconds / span_seconds)), MAX_CLIPS)
