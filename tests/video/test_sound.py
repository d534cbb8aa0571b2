"""Sound on its way into another file: all of it, at the times it had, in a form that browsers play."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from drawn_videos import draw_plain
from tada.video.container import Limits
from tada.video.reader import open_video
from tada.video.sound import Sound
from tada.video.writer import write_video

LIMITS = Limits(max_pixels=10**6, max_frames=10**5, timeout_seconds=30.0)
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


def span(path: Path) -> tuple[str, float, float]:
    """The first sound's codec, start and end."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        ends = [p.pts + p.duration for p in container.demux(stream) if p.pts is not None]
        start = container.start_time / 1e6
        assert stream.start_time is not None
        return (
            stream.codec_context.name,
            float(stream.start_time * stream.time_base) - start,
            float(max(ends) * stream.time_base) - start,
        )


def copied(source: Path, target: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Write the frames again with the sound; the times of the frames before and after."""
    with open_video(source) as video, closing(Sound(str(source), LIMITS)) as sound:
        times = video.times_seconds.tolist()
        write_video(target, (frame for _, frame in video), times_seconds=times, sound=sound)
    with open_video(target) as video:
        return times, video.times_seconds.tolist()


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "aac", {}),
        ("mono.mp4", "aac", {"layout": "mono", "rate": 22050}),
        ("late_video.mp4", "aac", {"video_start": 0.52}),
        ("late_sound.mp4", "aac", {"sound_start": 0.6}),
        ("a.ts", "aac", {"video_start": 0.28}),
        ("a.mkv", "aac", {"sound_start": 0.3}),
        ("opus.mkv", "libopus", {}),
        ("late_video.mkv", "libopus", {"video_start": 0.52}),
        ("late_sound.mkv", "libopus", {"sound_start": 0.4}),
        ("mp3.mkv", "libmp3lame", {"rate": 44100}),
        ("pcm.mkv", "pcm_s16le", {"rate": 44100}),
        ("flac.mkv", "flac", {"rate": 96000}),
        ("pcm.avi", "pcm_s16le", {"rate": 11025, "layout": "mono"}),
        ("ac3.ts", "ac3", {"video_start": 0.2}),
        ("paused.mkv", "pcm_s16le", {"pause": (0.3, 1.1)}),
        ("beside_another.mkv", "aac", {"sound_start": 0.4, "video_start": 0.2, "second_sound": True}),
        ("opus_beside_another.mkv", "libopus", {"sound_start": 0.4, "video_start": 0.2, "second_sound": True}),
    ],
)
def test_sound_stays_where_it_was(tmp_path: Path, name: str, codec: str, options: dict[str, object]) -> None:
    source = draw_clicking(tmp_path / name, codec, **options)  # type: ignore[arg-type]
    target = tmp_path / "copy.mp4"
    before, after = copied(source, target)
    assert after == pytest.approx(before, abs=1e-4)
    assert heard(target) == pytest.approx(heard(source), abs=0.003)
    assert len(heard(target)) == (2 if "pause" in options else 3)
    was, now = span(source), span(target)
    assert now[0] == "aac"
    starts_with_silence = "second_sound" in options
    # The packet with which AAC starts its coder counts in MP4 where the sound begins late.
    assert now[1] == pytest.approx(0 if starts_with_silence else was[1], abs=0.025 if was[1] else 0.003)
    assert now[2] == pytest.approx(was[2], abs=0.05)


def test_aac_is_copied_packet_by_packet(tmp_path: Path) -> None:
    source = draw_clicking(tmp_path / "a.mp4", "aac")
    copied(source, tmp_path / "copy.mp4")
    packets = []
    for path in (source, tmp_path / "copy.mp4"):
        with av.open(str(path)) as container:
            packets.append([bytes(packet) for packet in container.demux(audio=0)])
    assert packets[0] == packets[1]


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


def test_what_cannot_be_decoded_is_a_pause(tmp_path: Path) -> None:
    whole = draw_clicking(tmp_path / "mp3.mp4", "libmp3lame", rate=44100)
    damaged = remuxed(whole, tmp_path / "damaged.mkv", (0.4, 0.9))
    copied(damaged, tmp_path / "copy.mp4")
    assert heard(tmp_path / "copy.mp4") == pytest.approx([CLICKS[0], CLICKS[2]], abs=0.03)


def test_sound_of_which_nothing_can_be_decoded_is_known(tmp_path: Path) -> None:
    whole = draw_clicking(tmp_path / "mp3.mp4", "libmp3lame", rate=44100)
    damaged = remuxed(whole, tmp_path / "damaged.mkv", (-1.0, 9.0))
    with closing(Sound(str(damaged), LIMITS)) as sound:
        assert sound.codec is not None
        assert sound.codec.startswith("mp3")
        assert sound.start_seconds is None


def test_a_video_without_sound_has_none(tmp_path: Path) -> None:
    with closing(Sound(str(draw_plain(tmp_path / "a.mp4", 4)), LIMITS)) as sound:
        assert (sound.codec, sound.start_seconds) == (None, None)


def test_sound_is_read_as_it_is_needed(tmp_path: Path) -> None:
    """A long recording does not wait in memory for its pictures."""
    source = draw_clicking(tmp_path / "pcm.mkv", "pcm_s16le")
    with closing(Sound(str(source), LIMITS)) as sound, av.open(str(tmp_path / "a.mp4"), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound.add_to(container, from_zero=False)
        written = []
        mux = container.mux

        class Container:
            def mux(self, packet: av.Packet) -> None:  # type: ignore[type-arg]
                written.append(float(packet.pts * packet.time_base))
                mux(packet)

        sound._container = Container()  # type: ignore[assignment]
        for until in (0.1, 0.5, 1.0):
            sound.write_until(until)
            assert until <= max(written) < until + 0.05
        picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        container.mux(video.encode(picture))
        container.mux(video.encode(None))
