"""Writing a video: the frames read back, deterministic bytes, a complete file or none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from drawn_videos import read_stamps, stamped_frame, stamped_frames
from tada.errors import OptionError
from tada.video.reader import open_video
from tada.video.writer import write_video


@pytest.mark.parametrize(
    ("fps", "read_back"),
    [(30, 30.0), (12.5, 12.5), (29.97, 30_000 / 1001), (23.976, 24_000 / 1001), (1, 1.0), (0.5, 0.5), (1 / 3, 1 / 3)],
)
def test_what_is_written_is_read(tmp_path: Path, fps: float, read_back: float) -> None:
    path = tmp_path / "video.mp4"
    frames = stamped_frames(20, width=66, height=50)
    write_video(path, frames, fps=fps)
    with open_video(path) as video:
        assert video.info.fps == pytest.approx(read_back, rel=1e-9)
        assert video.info.num_frames == 20
        assert (video.info.width, video.info.height, video.info.codec) == (66, 50, "h264")
        np.testing.assert_allclose(video.times_seconds, np.arange(20) / read_back, rtol=0, atol=1e-4)
        read = video.frames(range(20))
    assert read_stamps(read) == list(range(20))
    assert np.abs(read.astype(int) - frames).mean() < 4


def test_frames_at_times_of_their_own(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.5, 2.0, 2.04]
    write_video(tmp_path / "video.mp4", stamped_frames(5), times_seconds=times)
    with open_video(tmp_path / "video.mp4") as video:
        np.testing.assert_allclose(video.times_seconds, times, rtol=0, atol=1e-4)
        assert read_stamps(video.frames(range(5))) == [0, 1, 2, 3, 4]
        assert video.info.duration_seconds == pytest.approx(2.08, abs=1e-3)


def test_a_better_quality_is_nearer_and_larger(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8)
    sizes, faults = [], []
    for crf in (40, 18, 0):
        write_video(tmp_path / "video.mp4", frames, fps=30, crf=crf)
        sizes.append((tmp_path / "video.mp4").stat().st_size)
        with open_video(tmp_path / "video.mp4") as video:
            faults.append(float(np.abs(video.frames(range(8)).astype(int) - frames).mean()))
    assert sizes == sorted(sizes)
    assert faults == sorted(faults, reverse=True)


@pytest.mark.parametrize("interval", [1, 5, 16])
def test_key_frames_come_at_the_interval(tmp_path: Path, interval: int) -> None:
    cuts = np.concatenate([np.full((7, 48, 64, 3), level, np.uint8) for level in (0, 255, 90, 200, 10)])
    write_video(tmp_path / "video.mp4", cuts, fps=30, keyframe_interval_frames=interval)
    with av.open(str(tmp_path / "video.mp4")) as container:
        keys = [
            round(packet.pts * packet.time_base * 30)
            for packet in container.demux(video=0)
            if packet.is_keyframe and packet.size
        ]
    assert keys == list(range(0, 35, interval))


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    frames = stamped_frames(20)
    write_video(tmp_path / "a.mp4", frames, fps=30)
    write_video(tmp_path / "other name.mp4", (frame for frame in frames), fps=30)
    content = (tmp_path / "a.mp4").read_bytes()
    assert content == (tmp_path / "other name.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # can be played before it is there whole


def test_small_moving_frames_give_the_same_bytes_whatever_memory_held_before(tmp_path: Path) -> None:
    """Without ``mbtree=0``, x264 on a processor with AVX-512 writes two to four different files here."""
    dice = np.random.default_rng(0)
    background = np.kron(dice.integers(0, 256, (12, 12, 3)), np.ones((8, 8, 1))).astype(int)
    frames = []
    for i in range(48):
        frame = background[:64, :64].copy()
        x, y = 5 * i % 32, 3 * i % 32
        frame[y : y + 24, x : x + 24] = background[10:34, 3:27]
        frames.append(np.clip(frame + dice.integers(-6, 7, frame.shape), 0, 255).astype(np.uint8))
    contents = set()
    for _ in range(12):
        [dice.bytes(int(size)) for size in dice.integers(1, 2_000_000, 8)]  # what memory holds
        write_video(tmp_path / "video.mp4", frames, fps=30)
        contents.add((tmp_path / "video.mp4").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("name", ["a:b.mp4", "no_suffix", "with space%d.mp4", "n" * 250 + ".mp4"])
def test_any_file_name_is_written(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, stamped_frames(3), fps=30)
    with open_video(tmp_path / name) as video:
        assert read_stamps(video.frames([2])) == [2]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def broken(num_frames: int) -> Iterator[npt.NDArray[np.uint8]]:
    for i in range(num_frames):
        yield stamped_frame(i)
    raise RuntimeError("the source broke")


def test_a_failed_write_leaves_the_folder_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with pytest.raises(RuntimeError, match="the source broke"):
        write_video(path, broken(30), fps=30)
    assert list(tmp_path.iterdir()) == []
    write_video(path, stamped_frames(4), fps=30)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="the source broke"):
        write_video(path, broken(30), fps=30)
    assert path.read_bytes() == before
    write_video(path, stamped_frames(6), fps=30)
    with open_video(path) as video:
        assert video.info.num_frames == 6
    assert list(tmp_path.iterdir()) == [path]


FRAMES = stamped_frames(3)


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (FRAMES, {}, "give either fps or times_seconds, and not both"),
        (FRAMES, {"fps": 30, "times_seconds": [0, 1, 2]}, "give either fps or times_seconds"),
        (FRAMES, {"fps": 0}, "fps=0 must be a positive number"),
        (FRAMES, {"fps": float("nan")}, "fps=nan must be a positive number"),
        (FRAMES, {"fps": 30, "crf": 52}, "crf=52 must be from 0 to 51"),
        (FRAMES, {"fps": 30, "keyframe_interval_frames": 0}, "keyframe_interval_frames=0 must be at least 1"),
        (FRAMES, {"times_seconds": [0, 1]}, "more frames than the 2 of times_seconds"),
        (FRAMES, {"times_seconds": [0, 1, 2, 3]}, "3 frames, but 4 times in times_seconds"),
        (FRAMES, {"times_seconds": [0, 2, 2]}, r"times_seconds\[2\]=2 must be after 2"),
        (FRAMES[:0], {"fps": 30}, "no frames to write to"),
        (FRAMES[:, :47], {"fps": 30}, "frames are 64x47; width and height must be even: cut or pad them first"),
        (FRAMES[..., 0], {"fps": 30}, r"frame 0 is uint8 \[48, 64\]; frames are uint8 \[H, W, 3\], RGB"),
        (FRAMES / 255, {"fps": 30}, r"frame 0 is float64 \[48, 64, 3\]"),
        ([FRAMES[0], FRAMES[1][:46]], {"fps": 30}, r"frame 1 is \[46, 64, 3\], those before it are \[48, 64, 3\]"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, frames: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        write_video(tmp_path / "video.mp4", frames, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_fast_to_decode_shows_the_same(tmp_path: Path) -> None:
    frames = stamped_frames(10)
    write_video(tmp_path / "video.mp4", frames, fps=30)
    write_video(tmp_path / "fast.mp4", frames, fps=30, fast_decode=True)
    assert b"cabac=1" in (tmp_path / "video.mp4").read_bytes()
    assert b"cabac=0" in (tmp_path / "fast.mp4").read_bytes()
    with open_video(tmp_path / "fast.mp4") as video:
        read = video.frames(range(10))
    assert read_stamps(read) == list(range(10))
    assert np.abs(read.astype(int) - frames).mean() < 4
