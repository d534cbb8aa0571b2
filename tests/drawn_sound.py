"""Videos whose sound clicks at known times, and when clicks are heard."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

CLICKS = (0.2, 0.7, 1.4)
"""When there is one, in seconds of the sound."""


def clicks(seconds: float, rate: int) -> NDArray[np.float32]:
    """Silence with a short tone at each of ``CLICKS``, [samples]."""
    times = np.arange(round(seconds * rate)) / rate
    near = np.any([(times >= click) & (times < click + 0.03) for click in CLICKS], axis=0)
    return (0.8 * near * np.sin(2 * np.pi * 1000 * times)).astype(np.float32)


def draw_clicking(
    path: Path,
    codec: str,
    *,
    rate: int = 48000,
    layout: str = "stereo",
    video_start: float = 0.0,
    sound_start: float = 0.0,
    pause: tuple[float, float] = (9.0, 9.0),
    second_sound: bool = False,
    format: str | None = None,
) -> Path:
    """1.6 s of sound beside 40 frames at 25 per second.

    Args:
        pause: from when to when no sound is written.
        second_sound: whether another sound begins at 0.
    """
    with av.open(str(path), "w", format=format) as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 25)
        sounds = [container.add_stream(codec, rate=rate, layout=layout)]
        starts = [sound_start]
        if second_sound:
            sounds.append(container.add_stream(codec, rate=rate, layout=layout))
            starts.append(0.0)
        frames: list[tuple[float, int, av.VideoFrame | av.AudioFrame]] = []
        for i in range(40):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 6 * i, np.uint8), format="rgb24")
            picture.pts, picture.time_base = i + round(video_start * 25), Fraction(1, 25)
            frames.append((i / 25 + video_start, 0, picture))
        samples = clicks(1.6, rate)
        size = sounds[0].codec_context.frame_size or 1024
        for number, (sound, start) in enumerate(zip(sounds, starts, strict=True), start=1):
            channels = 1 if layout == "mono" else 2
            form = av.AudioResampler(format=sound.codec_context.format, layout=layout, rate=rate)
            for first in range(0, len(samples), size):
                if pause[0] <= first / rate < pause[1]:
                    continue
                part = np.repeat(samples[None, first : first + size], channels, axis=0)
                part = np.pad(part, [(0, 0), (0, size - part.shape[1])])
                piece = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="fltp", layout=layout)
                piece.sample_rate, piece.pts = rate, first + round(start * rate)
                piece.time_base = Fraction(1, rate)
                for resampled in form.resample(piece):
                    resampled.pts, resampled.time_base = piece.pts, piece.time_base
                    frames.append((first / rate + start, number, resampled))
        streams = [video, *sounds]
        for _, number, frame in sorted(frames, key=lambda entry: entry[:2]):
            container.mux(streams[number].encode(frame))  # type: ignore[arg-type]
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def heard(path: Path) -> list[float]:
    """When clicks begin in the first sound, counted from the container's start."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        start = container.start_time / 1e6
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=8000)
        loud = []
        for frame in container.decode(stream):
            for part in resampler.resample(frame):
                first = float(part.pts * part.time_base)
                loud += [first + i / 8000 for i in np.flatnonzero(np.abs(part.to_ndarray()[0]) > 0.3)]
    return [b - start for a, b in pairwise([-1.0, *sorted(loud)]) if b - a > 0.1]


def remuxed(source: Path, target: Path, is_damaged: Sequence[float]) -> Path:
    """The same file with zeros in place of the sound's packets from ``is_damaged[0]`` to ``is_damaged[1]`` seconds."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        streams = {s.index: after.add_stream_from_template(s) for s in before.streams}
        for packet in before.demux():
            if packet.pts is None:
                continue
            index, seconds = packet.stream_index, float((packet.pts or 0) * packet.time_base)
            if packet.stream.type == "audio" and is_damaged[0] <= seconds < is_damaged[1]:
                noise = av.Packet(bytes(packet.size))
                noise.pts, noise.dts, noise.time_base = packet.pts, packet.dts, packet.time_base
                noise.duration = packet.duration
                packet = noise
            packet.stream = streams[index]
            after.mux(packet)
    return target
