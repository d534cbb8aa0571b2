"""Which frames a video has, when each is shown, and where decoding can start.

The packets tell, without any decoding, where each is a picture that says when it is shown. Elsewhere the video has to
be decoded once, and its frames are those that come out, in the order in which they come.

All times count from the container's start, as in players and in ``ffmpeg -ss``.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tada.video.container import MediaFile, Packets

_USUAL_FPS = 25.0  # where a file says nothing
_EXACT_BITS = 53  # of a float


class KeyPacket(NamedTuple):
    """A packet from which decoding can start."""

    frame: int
    """Number of the first frame that comes then."""
    pts: int
    dts: int
    mark: int
    """``mark_of`` it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameIndex:
    """The frames of a video, in the order of presentation."""

    times_seconds: npt.NDArray[np.float64]
    """[num_frames]: when each appears; strictly increasing. Not to be written to."""
    duration_seconds: float
    """From the container's start to the end of the last frame."""
    fps: float
    """Average rate from the first frame to the last."""
    pts: array[int] | None = None
    """[num_frames]: by what a decoded frame is known, in the stream's ticks. None: by counting from the first."""
    keys: Sequence[KeyPacket] = ()
    """By frame. None where frames are counted, which only works from the beginning."""

    @property
    def num_frames(self) -> int:
        """Those that are shown."""
        return len(self.times_seconds)


def index_by_packets(media: MediaFile, packets: Packets) -> FrameIndex | None:
    """Number the frames by the times of their packets. None: times are missing, or those of two frames are the same."""
    if not packets.is_timed:
        return None
    if not packets.pts:
        return FrameIndex(times_seconds=np.zeros(0), duration_seconds=0.0, fps=_USUAL_FPS)
    pts, is_shown = np.asarray(packets.pts), np.frombuffer(packets.is_shown, np.bool_)
    key_packets = [i for i, is_key in enumerate(packets.is_key) if is_key] or [0]
    # Frames before the first key frame cannot be decoded.
    shown = np.flatnonzero(is_shown & (pts >= pts[key_packets[0]]))
    shown = shown[np.argsort(pts[shown])]
    ticks = pts[shown]
    if np.any(np.diff(ticks) == 0) or _are_too_far_apart(media, ticks):
        return None
    # A hidden key frame, before the place where an edit list begins, stands for the first frame after it.
    keys = [
        KeyPacket(int(np.searchsorted(ticks, packets.pts[i])), packets.pts[i], packets.dts[i], packets.mark[i])
        for i in key_packets
    ]
    order = array("q", ticks.tobytes())
    last_ticks = packets.duration[shown[-1]] if len(shown) else 0
    # In MP4 durations are those from one decoding to the next.
    if (media.kind == "mov" or packets.has_fields) and len(ticks) > 1:
        last_ticks = int(ticks[-1] - ticks[-2])
    if not media.has_pts and len(ticks) > 1:
        # FFmpeg made them up: a picture waits for the next one that is not a B-frame, if there are any.
        is_in_order = bool(np.all(np.diff(pts) > 0))
        ticks = ticks - int(np.median(pts - np.asarray(packets.dts)) if is_in_order else np.median(np.diff(ticks)))
    declared = media.stream.average_rate
    times, duration_seconds, fps = _times(media, ticks, last_ticks, float(declared) if declared else None)
    return FrameIndex(
        times_seconds=times,
        duration_seconds=duration_seconds,
        fps=fps,
        pts=order,
        keys=keys,
    )


def index_by_decoding(media: MediaFile, packets: Packets, came: Sequence[tuple[int | None, int | None]]) -> FrameIndex:
    """Number the frames as they came out of the decoder.

    They are shown at their own times, if these never go back. Else as they come, one for each packet: so long after the
    packet with which they come is due as the first had to wait for. Where packets do not say when they are due, frames
    are taken to be evenly spaced.

    Args:
        came: of each frame, its own PTS, and the DTS of the packet with which it came; None for one that came at the
            end.
    """
    declared = float(media.stream.guessed_rate or media.stream.average_rate or _USUAL_FPS)
    ticks = _own_times([pts for pts, _ in came]) if media.has_pts else None
    if ticks is None and packets.are_due_in_turn and came:
        ticks = _due(packets, [dts for _, dts in came])
    if ticks is not None and not _are_too_far_apart(media, ticks):
        last_ticks = int(np.median(np.diff(ticks))) if len(ticks) > 1 else packets.duration[-1]
        times, duration_seconds, fps = _times(media, ticks, last_ticks, declared)
    else:
        count = len(came)
        times, duration_seconds, fps = np.arange(count) / declared, count / declared, declared
    times.flags.writeable = False
    return FrameIndex(times_seconds=times, duration_seconds=duration_seconds, fps=fps)


def _own_times(pts: Sequence[int | None]) -> npt.NDArray[np.int64] | None:
    """Times of frames; where a few are those of the one before, they come a tick later. None: they are no times."""
    known = [ticks for ticks in pts if ticks is not None]
    if not known or len(known) < len(pts):
        return None
    gaps = np.diff(np.asarray(known))
    if np.any(gaps < 0) or np.count_nonzero(gaps == 0) > len(known) // 2:
        return None
    for i in range(1, len(known)):
        known[i] = max(known[i], known[i - 1] + 1)
    return np.asarray(known, np.int64)


def _due(packets: Packets, came_with: Sequence[int | None]) -> npt.NDArray[np.int64] | None:
    """When each frame would come if the first came with its own packet, in ticks. None: some came together."""
    dts = np.asarray(packets.dts)
    step = int(np.median(np.diff(dts))) if len(dts) > 1 else 1
    waited = [ticks for ticks in came_with if ticks is not None]
    at_end = int(dts[-1]) + step * np.arange(1, len(came_with) - len(waited) + 1)
    ticks = np.concatenate([np.asarray(waited, np.int64), at_end])
    if np.any(np.diff(ticks) <= 0):
        return None
    num_held = int(np.searchsorted(dts, ticks[0]))  # packets that the decoder holds when the first frame comes
    due: npt.NDArray[np.int64] = ticks - num_held * step
    return due


def _are_too_far_apart(media: MediaFile, ticks: npt.NDArray[np.int64]) -> bool:
    """Whether times are such as only a damaged file has: as seconds those of two frames might be the same."""
    unit = media.stream.time_base
    assert unit is not None
    return len(ticks) > 0 and (int(ticks[-1]) - int(ticks[0])) * unit.numerator >= 1 << _EXACT_BITS


def _times(
    media: MediaFile, ticks: npt.NDArray[np.int64], last_ticks: int, declared_fps: float | None
) -> tuple[npt.NDArray[np.float64], float, float]:
    """From ticks of the stream to times in seconds; the duration, and the average rate.

    Args:
        last_ticks: how long the last frame is shown; 0 if that is unknown.
    """
    if len(ticks) == 0:
        return np.zeros(0), 0.0, declared_fps or _USUAL_FPS
    unit = media.stream.time_base
    assert unit is not None
    late = media.seconds_late(int(ticks[0]))
    times = (ticks - ticks[0]) * unit.numerator / unit.denominator + late
    times.flags.writeable = False
    duration_seconds = float(times[-1]) + (max(last_ticks, 0) * float(unit) or 1 / (declared_fps or _USUAL_FPS))
    # Headers round, or count frames that are not shown: one is believed if it is right within a frame.
    shown_seconds = duration_seconds - late
    is_right = declared_fps is not None and abs(declared_fps * shown_seconds - len(ticks)) <= 1
    return times, duration_seconds, declared_fps if is_right and declared_fps else len(ticks) / shown_seconds
