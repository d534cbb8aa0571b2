"""Write a video as H.264 in MP4: deterministic bytes, and a complete file or none."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.packet import Packet

from tada.errors import OptionError
from tada.system.files import absolute_path, whole_file
from tada.video.sound import Sound

_TICKS = 90_000  # per second, where ``times_seconds`` is given
_SILENCE_HERTZ, _SILENCE_SAMPLES = 8000, 1024  # as many as AAC encodes at once


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[npt.NDArray[np.uint8]],
    *,
    fps: float | None = None,
    times_seconds: Sequence[float] | None = None,
    crf: float = 18.0,
    keyframe_interval_frames: int = 16,
    fast_decode: bool = False,
    fast_encode: bool = False,
    sound: Sound | None = None,
) -> None:
    """Encode ``frames`` as H.264 (yuv420p) in an MP4 that can be played before it is downloaded whole.

    The file appears at ``path`` only when it is complete, and then replaces an existing one. The same frames
    and options give the same bytes under the same release of PyAV.

    Args:
        path: where to write. The folder must exist.
        frames: RGB uint8, each [H, W, 3], all of one size; or one array [T, H, W, 3]. H and W must be even, since a
            color sample covers 2x2 pixels; frames are not cropped or padded here.
        fps: frames per second, for evenly spaced frames. Rates such as 29.97 are taken as 30000/1001.
        times_seconds: when each frame appears, instead of ``fps``; 0 or more, strictly increasing, and stored to
            within 1/90000 s. The last frame is shown for as long as the one before it. If the first appears after 0,
            a short silent audio track is added at 0: players count from the start of the first track.
        crf: quality, from 0 (lossless but for yuv420p) to 51 (worst); 18 looks like the original.
        keyframe_interval_frames: frames from one key frame to the next. A small interval makes random access fast.
        fast_decode: encode without arithmetic coding and deblocking: decodes in half the time; the file is a quarter
            larger.
        fast_encode: encode in a third of the time; the file is a third larger.
        sound: is added at its own times, on the same clock as ``times_seconds``.

    Raises:
        OptionError: an option out of range, no frames, or a frame of the wrong shape or type.
    """
    if (fps is None) == (times_seconds is None):
        raise OptionError("give either fps or times_seconds, and not both")
    if fps is not None and not 0 < fps < math.inf:
        raise OptionError(f"fps={fps} must be a positive number of frames per second")
    if not 0 <= crf <= 51:
        raise OptionError(f"crf={crf} must be from 0 to 51")
    if keyframe_interval_frames < 1:
        raise OptionError(f"keyframe_interval_frames={keyframe_interval_frames} must be at least 1")
    rate = Fraction(30) if fps is None else _exact_rate(fps)
    ticks = None if times_seconds is None else _to_ticks(times_seconds)

    checked = _check_frames(frames)
    first = next(checked, None)
    if first is None:
        raise OptionError(f"no frames to write to {os.fspath(path)!r}")
    interval = f"keyint={keyframe_interval_frames}:min-keyint={keyframe_interval_frames}"
    options = {
        "crf": f"{crf:g}",
        "preset": "veryfast" if fast_encode else "medium",
        # mbtree=0: x264's AVX-512 code for macroblock trees reads uninitialized memory, so that the same frames gave
        # different bytes each time, at most sizes tried.
        "x264-params": f"{interval}:scenecut=0:open-gop=0:mbtree=0",
    }
    if fast_decode:
        options["tune"] = "fastdecode"
    starts_late = ticks is not None and ticks[0] > 0
    container_options = {"movflags": "+faststart"}
    if starts_late or sound is not None:
        container_options["movie_timescale"] = str(_TICKS)  # unit of the start offset; the default is milliseconds
    with (
        whole_file(Path(path)) as part,
        av.open("file:" + absolute_path(part), "w", format="mp4", container_options=container_options) as container,
    ):
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        time_base = 1 / rate if ticks is None else Fraction(1, _TICKS)
        stream.codec_context.time_base = time_base
        if sound is not None:
            sound.add_to(container, from_zero=starts_late)
        elif starts_late:
            _write_silence(container)
        num_frames = 0
        for num_frames, array in enumerate(chain([first], checked), start=1):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if ticks is None:
                frame.pts = num_frames - 1
            elif num_frames > len(ticks):
                raise OptionError(f"more frames than the {len(ticks)} of times_seconds")
            else:
                frame.pts = ticks[num_frames - 1]
            frame.time_base = time_base
            if sound is not None:
                sound.write_until(float(frame.pts * time_base))
            container.mux(_set_durations(stream.encode(frame), ticks))
        if ticks is not None and num_frames < len(ticks):
            raise OptionError(f"{num_frames} frames, but {len(ticks)} times in times_seconds")
        if sound is not None:
            sound.write_until(math.inf)
        container.mux(_set_durations(stream.encode(None), ticks))


def _set_durations(packets: list[Packet[Any]], ticks: list[int] | None) -> list[Packet[Any]]:
    """Set the packets' durations from the frames' times; the encoder assumes a fixed rate."""
    if ticks is not None and len(ticks) > 1:
        for packet in packets:
            assert packet.pts is not None
            following = min(bisect_right(ticks, packet.pts), len(ticks) - 1)
            packet.duration = ticks[following] - ticks[following - 1]
    return packets


def _write_silence(container: av.container.OutputContainer) -> None:
    """Write a silent audio track from 0 to 1/8 s."""
    sound = container.add_stream("aac", rate=_SILENCE_HERTZ)
    sound.layout = "mono"
    silence = av.AudioFrame.from_ndarray(np.zeros((1, _SILENCE_SAMPLES), np.float32), "fltp", "mono")
    silence.sample_rate, silence.pts = _SILENCE_HERTZ, 0
    container.mux(sound.encode(silence))
    container.mux(sound.encode(None))


def _exact_rate(fps: float) -> Fraction:
    """Convert a rate to a fraction: 29.97 to 30000/1001, 12.5 to 25/2."""
    ntsc = Fraction(round(fps * 1.001) * 1000, 1001)
    return ntsc if ntsc and abs(fps - ntsc) < 0.005 < abs(fps - round(fps)) else Fraction(fps).limit_denominator(1000)


def _to_ticks(times_seconds: Sequence[float]) -> list[int]:
    ticks = [round(time * _TICKS) for time in times_seconds]
    if ticks and ticks[0] < 0:
        raise OptionError(f"times_seconds[0]={times_seconds[0]} must be 0 or more")
    for i in range(1, len(ticks)):
        if ticks[i] <= ticks[i - 1]:
            raise OptionError(f"times_seconds[{i}]={times_seconds[i]} must be after {times_seconds[i - 1]}, before it")
    return ticks


def _check_frames(frames: Iterable[npt.NDArray[np.uint8]]) -> Iterator[npt.NDArray[np.uint8]]:
    shape: tuple[int, ...] | None = None
    for index, frame in enumerate(frames):
        frame = np.ascontiguousarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise OptionError(f"frame {index} is {frame.dtype} {list(frame.shape)}; frames are uint8 [H, W, 3], RGB")
        if shape is None and (frame.shape[0] % 2 or frame.shape[1] % 2 or 0 in frame.shape):
            height, width = frame.shape[:2]
            raise OptionError(f"frames are {width}x{height}; width and height must be even: cut or pad them first")
        if shape is not None and frame.shape != shape:
            raise OptionError(f"frame {index} is {list(frame.shape)}, those before it are {list(shape)}")
        shape = frame.shape
        yield frame
