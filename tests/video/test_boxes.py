"""An MP4 of some hundred bytes that declares millions of samples is refused before FFmpeg indexes it."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from drawn_videos import draw_plain
from tada.errors import TooLargeError, VideoError
from tada.video.boxes import MAX_SAMPLES, check_samples
from tada.video.reader import open_video, probe

MANY, HALF = 85_000_000, MAX_SAMPLES // 2
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


def box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I", 8 + len(content)) + kind + content


def table(kind: bytes, *numbers: int) -> bytes:
    return box(kind, bytes(4), struct.pack(f">{len(numbers)}I", *numbers))


def track(handler: bytes, *tables: bytes) -> bytes:
    return box(
        b"trak", box(b"mdia", table(b"hdlr", 0, int.from_bytes(handler, "big")), box(b"minf", box(b"stbl", *tables)))
    )


def movie(*tracks: bytes) -> bytes:
    return box(b"ftyp", b"isom") + box(b"moov", *tracks)


def replaced(path: Path, kind: bytes, place: int, number: int) -> Path:
    """Write a number into the first box of a kind, so many bytes after its name."""
    content = bytearray(path.read_bytes())
    at = content.index(kind) + 4 + place
    content[at : at + 4] = struct.pack(">I", number)
    path.write_bytes(content)
    return path


def test_a_table_of_sizes_that_has_one_for_all(tmp_path: Path) -> None:
    path = draw_plain(tmp_path / "a.mp4", 10)
    replaced(path, b"stsz", 4, 1)
    replaced(path, b"stsz", 8, MANY)
    with pytest.raises(TooLargeError, match=r"a.mp4' claims 85000000 samples, and at most 8000000 are opened"):
        open_video(path)


def test_a_run_of_a_fragment_whose_samples_are_all_alike(tmp_path: Path) -> None:
    path = draw_plain(tmp_path / "a.mp4", 10, container_options=FRAGMENTS)
    assert probe(path).num_frames == 10
    replaced(path, b"trun", 4, MANY)
    with pytest.raises(TooLargeError, match="claims 85000000 samples"):
        open_video(path)


@pytest.mark.parametrize(
    "content",
    [
        movie(track(b"vide", table(b"stsz", 1, MANY))),
        movie(track(b"vide", table(b"stz2", 4, MANY))),
        movie(
            track(b"vide", table(b"stsz", 0, MAX_SAMPLES // 2 + 1)), track(b"soun", table(b"stsz", 0, MAX_SAMPLES // 2))
        ),
        movie(track(b"soun", table(b"stts", 1, MANY, 1024), table(b"stsz", 1, MANY))),
        movie(track(b"vide", table(b"stts", 1, MANY, 1), table(b"stsz", 1, MANY))),
        box(b"abcd") + movie(track(b"vide", table(b"stsz", 1, MANY))),
        movie(*[box(b"moof", box(b"traf", table(b"trun", MAX_SAMPLES // 4 + 1)))] * 4),
    ],
)
def test_what_is_counted(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(TooLargeError, match="samples, and at most"):
        check_samples(str(tmp_path / "a.mp4"))


def test_a_packed_index_is_looked_into(tmp_path: Path) -> None:
    packed = zlib.compress(box(b"moov", track(b"vide", table(b"stsz", 1, MANY))))
    (tmp_path / "a.mov").write_bytes(box(b"moov", box(b"cmov", box(b"cmvd", bytes(4), packed))))
    with pytest.raises(TooLargeError, match="claims 85000000 samples"):
        check_samples(str(tmp_path / "a.mov"))
    bomb = zlib.compress(bytes(70_000_000))
    (tmp_path / "b.mov").write_bytes(box(b"moov", box(b"cmov", box(b"cmvd", bytes(4), bomb))))
    with pytest.raises(TooLargeError, match="its index unpacks to more than 64 MB"):
        check_samples(str(tmp_path / "b.mov"))


def test_boxes_without_end_are_not_walked_for_ever(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(box(b"free") * 2_000_001)
    with pytest.raises(TooLargeError, match="has more than 2000000 boxes"):
        check_samples(str(tmp_path / "a.mp4"))
    for content in (b"", b"1234567", bytes(100), b"\0\0\0\1moov" + b"\xff" * 8, box(b"moov") * 3, b"text " * 50):
        (tmp_path / "b.mp4").write_bytes(content)
        check_samples(str(tmp_path / "b.mp4"))


def test_sound_without_compression_has_a_sample_for_each_tick(tmp_path: Path) -> None:
    """Three minutes of it have as many samples as 70 hours of video."""
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=1)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=48_000, layout="mono")
        for second in range(180):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), second, np.uint8), format="rgb24")
            frame.pts, frame.time_base = second, Fraction(1)
            container.mux(video.encode(frame))
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), "s16", "mono")
            silence.sample_rate, silence.pts, silence.time_base = 48_000, 48_000 * second, Fraction(1, 48_000)
            container.mux(sound.encode(silence))
        for stream in (video, sound):
            container.mux(stream.encode(None))
    assert MAX_SAMPLES < 180 * 48_000
    assert probe(path).num_frames == 180


def test_other_faults_are_told_as_before(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(movie(track(b"vide", table(b"stsz", 1, MAX_SAMPLES))))
    with pytest.raises(VideoError) as caught:
        open_video(tmp_path / "a.mp4")
    assert not isinstance(caught.value, TooLargeError)
