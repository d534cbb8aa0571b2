"""Index of a video: which frames it has, when each is shown, and where decoding can start.

Where each packet is one picture with a presentation time, the index is built from the packets without decoding. Other
videos are decoded once, and the frames are numbered as they leave the decoder.

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

_USUAL_FPS = 25.0  # where a file declares no rate
_EXACT_BITS = 53  # integers of more bits are not exact as a float


class KeyPacket(NamedTuple):
    """A packet from which decoding can start."""

    frame: int
    """Number of the first frame decoded from it."""
    pts: int
    dts: int
    mark: int
    """``mark_of`` the packet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameIndex:
    """The frames of a video, in the order of presentation."""

    times_seconds: npt.NDArray[np.float64]
    """[num_frames]: when each appears; strictly increasing; read-only."""
    duration_seconds: float
    """From the container's start to the end of the last frame."""
    fps: float
    """Average rate from the first frame to the last."""
    pts: array[int] | None = None
    """[num_frames]: PTS that identify decoded frames, in the stream's ticks. None: frames are counted instead."""
    keys: Sequence[KeyPacket] = ()
    """In order of ``frame``. Empty where frames are counted, which only works from the beginning."""

    @property
    def num_frames(self) -> int:
        """Number of frames that are shown."""
        return len(self.times_seconds)


def index_by_packets(media: MediaFile, packets: Packets) -> FrameIndex | None:
    """Number the frames by their packets' times. None if times are missing, or two frames have the same."""
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
    if np.any(np.diff(ticks) == 0) or _span_too_long(media, ticks):
        return None
    # A hidden key frame, before the place where an edit list begins, stands for the first frame after it.
    keys = [
        KeyPacket(int(np.searchsorted(ticks, packets.pts[i])), packets.pts[i], packets.dts[i], packets.mark[i])
        for i in key_packets
    ]
    order = array("q", ticks.tobytes())
    last_ticks = packets.duration[shown[-1]] if len(shown) else 0
    # In MP4 durations are differences of DTS, not of PTS.
    if (media.kind == "mov" or packets.has_fields) and len(ticks) > 1:
        last_ticks = int(ticks[-1] - ticks[-2])
    if not media.has_pts and len(ticks) > 1:
        # FFmpeg guessed the PTS: with B-frames, a picture is delayed until the next one that is no B-frame.
        is_in_order = bool(np.all(np.diff(pts) > 0))
        ticks = ticks - int(np.median(pts - np.asarray(packets.dts)) if is_in_order else np.median(np.diff(ticks)))
    declared = media.stream.average_rate
    times, duration_seconds, fps = _times_in_seconds(media, ticks, last_ticks, float(declared) if declared else None)
    return FrameIndex(
        times_seconds=times,
        duration_seconds=duration_seconds,
        fps=fps,
        pts=order,
        keys=keys,
    )


def index_by_decoding(media: MediaFile, packets: Packets, came: Sequence[tuple[int | None, int | None]]) -> FrameIndex:
    """Number the frames in the order in which the decoder returned them.

    Their times are their own PTS, if these never decrease. Else they follow from the DTS of the packets after which
    they were returned, less the decoder's delay. Where the DTS do not increase either, frames are evenly spaced.

    Args:
        came: (PTS, DTS) of each frame: its own PTS, and the DTS of the packet after which the decoder returned it;
            None for a frame returned at the end.
    """
    declared = float(media.stream.guessed_rate or media.stream.average_rate or _USUAL_FPS)
    ticks = _times_from_pts([pts for pts, _ in came]) if media.has_pts else None
    if ticks is None and packets.are_due_in_turn and came:
        ticks = _times_from_dts(packets, [dts for _, dts in came])
    if ticks is not None and not _span_too_long(media, ticks):
        last_ticks = int(np.median(np.diff(ticks))) if len(ticks) > 1 else packets.duration[-1]
        times, duration_seconds, fps = _times_in_seconds(media, ticks, last_ticks, declared)
    else:
        count = len(came)
        times, duration_seconds, fps = np.arange(count) / declared, count / declared, declared
    times.flags.writeable = False
    return FrameIndex(times_seconds=times, duration_seconds=duration_seconds, fps=fps)


def _times_from_pts(pts: Sequence[int | None]) -> npt.NDArray[np.int64] | None:
    """The frames' PTS, with repeated ones a tick later. None if any is missing, they decrease or mostly repeat."""
    known = [ticks for ticks in pts if ticks is not None]
    if not known or len(known) < len(pts):
        return None
    gaps = np.diff(np.asarray(known))
    if np.any(gaps < 0) or np.count_nonzero(gaps == 0) > len(known) // 2:
        return None
    for i in range(1, len(known)):
        known[i] = max(known[i], known[i - 1] + 1)
    return np.asarray(known, np.int64)


def _times_from_dts(packets: Packets, came_with: Sequence[int | None]) -> npt.NDArray[np.int64] | None:
    """Times of the frames by the DTS, less the decoder's delay, in ticks. None if two frames came with one packet."""
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


def _span_too_long(media: MediaFile, ticks: npt.NDArray[np.int64]) -> bool:
    """Whether times span so much, in a damaged file, that two frames might have the same time in seconds."""
    unit = media.stream.time_base
    assert unit is not None
    return len(ticks) > 0 and (int(ticks[-1]) - int(ticks[0])) * unit.numerator >= 1 << _EXACT_BITS


def _times_in_seconds(
    media: MediaFile, ticks: npt.NDArray[np.int64], last_ticks: int, declared_fps: float | None
) -> tuple[npt.NDArray[np.float64], float, float]:
    """Convert ticks of the stream to times in seconds; also return the duration in seconds and the average rate.

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
    # Headers round, or count hidden frames: the declared rate is used if it fits the count within a frame.
    shown_seconds = duration_seconds - late
    is_right = declared_fps is not None and abs(declared_fps * shown_seconds - len(ticks)) <= 1
    return times, duration_seconds, declared_fps if is_right and declared_fps else len(ticks) / shown_seconds
