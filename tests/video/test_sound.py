"""Copying sound into another file: all of it, at its times, in a format that browsers play."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest

from drawn_sound import CLICKS, draw_clicking, heard, remuxed
from drawn_videos import draw_plain
from tada.video.container import Limits
from tada.video.reader import open_video
from tada.video.sound import Sound
from tada.video.writer import write_video

LIMITS = Limits(max_pixels=10**6, max_frames=10**5, timeout_seconds=30.0)


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
