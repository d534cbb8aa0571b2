"""Live streams: the same frames as of the finished file, from each kind of source; ends of a stream; refusals."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from drawn_videos import (
    draw_plain,
    draw_rotated,
    draw_sound,
    draw_transport_stream,
    draw_variable_rate,
    draw_webm,
    flip_bits,
    truncate,
)
from hang import HANG_SECONDS
from tada.errors import (
    ChangedVideoError,
    CorruptVideoError,
    EmptyFileError,
    NotARegularFileError,
    NotAVideoError,
    NoVideoStreamError,
    OptionError,
    TooLargeError,
    TruncatedVideoError,
    VideoNotFoundError,
)
from tada.video.container import Limits, MediaFile
from tada.video.live import LiveBytes
from tada.video.reader import open_video
from tada.video.stream import FrameStream

IDLE = 3.0  # a writer on a busy machine may pause for a second
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


def read(stream: FrameStream) -> tuple[list[float], list[np.ndarray[Any, Any]]]:
    frames = [(frame.seconds, frame.pixels()) for frame in stream]
    return [seconds for seconds, _ in frames], [pixels for _, pixels in frames]


def assert_same_as_the_file(stream: FrameStream, path: Path) -> None:
    times, frames = read(stream)
    with open_video(path) as video:
        expected = list(video)
        assert times == [seconds for seconds, _ in expected]  # to the last bit
        np.testing.assert_array_equal(frames, [pixels for _, pixels in expected])
        assert stream.duration_seconds == pytest.approx(video.info.duration_seconds)
    assert (stream.num_frames, stream.num_left_out) == (len(times), 0)


DRAWN = {
    "faststart.mp4": lambda path: draw_plain(path, container_options={"movflags": "faststart"}),
    "fragments.mp4": lambda path: draw_plain(path, container_options=FRAGMENTS),
    "a.mkv": draw_plain,
    "a.ts": draw_transport_stream,
    "a.webm": draw_webm,
    "vp8.webm": lambda path: draw_webm(path, codec="libvpx"),
    "varying.mp4": lambda path: draw_plain(
        path, container_options=FRAGMENTS, times_seconds=np.cumsum(np.linspace(0.01, 0.1, 40)).tolist()
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_frames_are_those_of_the_finished_file(name: str, tmp_path: Path) -> None:
    DRAWN[name](tmp_path / name)
    assert_same_as_the_file(FrameStream(tmp_path / name, idle_seconds=0.05), tmp_path / name)


def test_turned_frames_are_turned_back(tmp_path: Path) -> None:
    path = draw_rotated(tmp_path / "a.mp4", 1, container_options=FRAGMENTS)
    assert_same_as_the_file(FrameStream(path, idle_seconds=0.05), path)


@contextmanager
def writing(target: Path, data: bytes, *, parts: int, pause: float) -> Iterator[None]:
    """While inside, another thread writes ``data`` to ``target`` little by little."""

    def write() -> None:
        with target.open("wb", buffering=0) as file:
            size = -(-len(data) // parts)
            for start in range(0, len(data), size):
                file.write(data[start : start + size])
                time.sleep(pause)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        writer.join()


@pytest.mark.parametrize("name", ["fragments.mp4", "a.mkv", "a.ts"])
def test_a_growing_file_is_followed_to_its_end(name: str, tmp_path: Path) -> None:
    whole = DRAWN[name](tmp_path / name)
    growing = tmp_path / "growing"
    growing.touch()
    with writing(growing, whole.read_bytes(), parts=10, pause=0.03):
        assert_same_as_the_file(FrameStream(growing, idle_seconds=IDLE), whole)


def test_frames_come_before_the_file_is_finished(tmp_path: Path) -> None:
    data = draw_plain(tmp_path / "a.mkv", 90, container_options={"cluster_time_limit": "100"}).read_bytes()
    growing = tmp_path / "growing.mkv"
    growing.write_bytes(data[: len(data) * 3 // 4])
    stream = FrameStream(growing, idle_seconds=HANG_SECONDS)
    frames = iter(stream)
    early = [next(frames) for _ in range(40)]
    assert early[-1].seconds == pytest.approx(39 / 30, abs=1e-3)
    assert early[0].arrived <= early[-1].arrived <= time.perf_counter()
    with growing.open("ab") as file:
        file.write(data[len(data) * 3 // 4 :])
    more = [next(frames) for _ in range(45)]
    assert more[-1].arrived > early[-1].arrived
    stream.stop()
    rest = list(frames)  # what the decoder holds still comes, without waiting for more
    assert len(rest) <= 5
    assert stream.num_frames == 85 + len(rest)


def test_a_named_pipe_ends_when_its_writer_closes_it(tmp_path: Path) -> None:
    whole = draw_plain(tmp_path / "a.mkv")
    os.mkfifo(tmp_path / "pipe")
    with writing(tmp_path / "pipe", whole.read_bytes(), parts=5, pause=0.02):
        assert_same_as_the_file(FrameStream(tmp_path / "pipe", idle_seconds=HANG_SECONDS), whole)


def test_where_select_knows_no_pipes_a_thread_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.setattr("tada.video.live._SELECTS_PIPES", False)
    monkeypatch.setattr(select, "select", None)
    whole = draw_plain(tmp_path / "a.mkv")
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as reading, os.fdopen(theirs, "wb") as pipe:
        monkeypatch.setattr("sys.stdin", reading)
        writer = threading.Thread(target=lambda: (pipe.write(whole.read_bytes()), pipe.close()))
        writer.start()
        assert_same_as_the_file(FrameStream("-", idle_seconds=HANG_SECONDS), whole)
        writer.join()


def test_a_pipe_that_a_thread_reads_and_nobody_writes_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tada.video.live._SELECTS_PIPES", False)
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as reading, os.fdopen(theirs, "wb"):
        monkeypatch.setattr("sys.stdin", reading)
        live = LiveBytes("-", idle_seconds=0.05, stop=threading.Event())
        assert live.read(100) == b""
        assert not live.is_closed
        live.close()


def test_the_standard_input_is_a_stream_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw_plain(tmp_path / "a.mkv")
    with whole.open("rb") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert_same_as_the_file(FrameStream("-", idle_seconds=0.05), whole)
        assert not file.closed


def test_a_camera_is_opened_as_one_and_ends_when_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg's test pattern stands for the camera, which a test cannot have."""
    monkeypatch.setattr("tada.video.stream.is_camera", lambda path: path == "/dev/video9")
    original, asked = av.open, {}

    def open_pattern(source: str, **options: Any) -> Any:
        asked.update(options, source=source)
        return original("testsrc=size=64x48:rate=25", format="lavfi")

    monkeypatch.setattr(av, "open", open_pattern)
    stream = FrameStream("/dev/video9")
    times = []
    for frame in stream:
        times.append(frame.seconds)
        if len(times) == 10:
            stream.stop()
    assert times == pytest.approx([i / 25 for i in range(len(times))])
    assert 10 <= len(times) <= 12
    assert (asked["source"], asked["format"]) == ("/dev/video9", "video4linux2")
    assert asked["container_options"]["format_whitelist"] == "video4linux2"


def test_damaged_frames_are_left_out_and_counted(tmp_path: Path) -> None:
    path = draw_transport_stream(tmp_path / "a.ts", 60)
    flip_bits(path, num_flips=20)
    stream = FrameStream(path, idle_seconds=0.05)
    times, _ = read(stream)
    assert stream.num_left_out > 0
    assert 0 < len(times) < 60
    assert (np.diff(times) > 0).all()


# -- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_no_stream_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("no video at all " * 100)
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "silent")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
    truncate(draw_plain(tmp_path / "late.mp4"), 0.9)  # its index will come last
    for name, kind, message in (
        ("none", VideoNotFoundError, r"none' cannot be opened \(No such file or directory\)"),
        ("", NotARegularFileError, "is a folder; a file, a pipe or a camera is needed"),
        ("socket", NotARegularFileError, "is a socket or a device that is no camera"),
        ("/dev/zero", NotARegularFileError, "is a socket or a device that is no camera"),
        ("text", NotAVideoError, "is not a video in a format that is opened; what is still being written should be"),
        ("empty", EmptyFileError, r"nothing came for 0\.05 s"),
        ("silent", EmptyFileError, r"nothing came for 0\.05 s"),
        ("late.mp4", TruncatedVideoError, "begins as a video, but no frame of it can be read yet; .* MP4 in fragments"),
    ):
        with pytest.raises(kind, match=message):
            list(FrameStream(tmp_path / name, idle_seconds=0.05))
    theirs, ours = os.pipe()
    os.close(ours)  # as of `true | tada predict - --stream`
    with os.fdopen(theirs) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        with pytest.raises(EmptyFileError, match="'-' ended without video: its writer wrote nothing"):
            list(FrameStream("-", idle_seconds=600))
    monkeypatch.setattr("sys.stdin", None)  # as of `tada predict - --stream <&-`
    with pytest.raises(VideoNotFoundError, match=r"'-' cannot be opened \(standard input is closed\)"):
        list(FrameStream("-"))
    with pytest.raises(VideoNotFoundError, match="cannot be opened"):
        list(FrameStream("http://127.0.0.1:9/a.mkv"))
    with pytest.raises(OptionError, match="idle_seconds=0 should be positive"):
        FrameStream("-", idle_seconds=0)


def test_a_playlist_is_refused_however_it_comes(tmp_path: Path) -> None:
    draw_plain(tmp_path / "secret.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:2,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n")
    for name in ("list.mp4", "list.m3u8"):
        with pytest.raises(NotAVideoError, match="is not a video in a format that is opened"):
            list(FrameStream(tmp_path / name, idle_seconds=0.05))


def test_pipes_and_cameras_are_opened_only_where_a_stream_is_asked_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    limits = Limits(max_pixels=1, max_frames=1, timeout_seconds=1)
    for path in (str(tmp_path / "pipe"), "/dev/zero"):
        with pytest.raises(NotARegularFileError, match="only regular files are opened as videos"):
            MediaFile(path, limits)
    with pytest.raises(VideoNotFoundError, match=r"/dev/zero': the camera cannot be opened .* something else use it"):
        MediaFile("/dev/zero", limits, live="camera")


def test_large_frames_and_sound_alone_are_refused(tmp_path: Path) -> None:
    path = draw_plain(tmp_path / "a.mkv")
    with pytest.raises(TooLargeError, match="exceed max_pixels=100"):
        list(FrameStream(path, idle_seconds=0.05, max_pixels=100))
    sound = draw_sound(tmp_path / "a.wav")
    with pytest.raises(NoVideoStreamError, match="holds no video"):
        list(FrameStream(sound, idle_seconds=0.05))


def test_a_stream_without_times_is_refused(tmp_path: Path) -> None:
    path = draw_plain(tmp_path / "a.h264", format="h264")
    with pytest.raises(CorruptVideoError, match="does not say when its frames are shown: send it as Matroska"):
        list(FrameStream(path, idle_seconds=0.05))


def test_a_writer_that_begins_anew_is_noticed(tmp_path: Path) -> None:
    data = draw_plain(tmp_path / "a.mkv", 60).read_bytes()
    (tmp_path / "twice.mkv").write_bytes(data + data)
    stream = FrameStream(tmp_path / "twice.mkv", idle_seconds=0.05)
    with pytest.raises(CorruptVideoError, match=r"after 2\.0 s its times jump back by 2\.0 s; its writer began anew"):
        list(stream)
    growing = tmp_path / "growing.mkv"
    growing.write_bytes(data)
    frames = iter(FrameStream(growing, idle_seconds=HANG_SECONDS))
    next(frames)
    growing.write_bytes(data[:100])
    with pytest.raises(ChangedVideoError, match=r"became shorter while it was read \(100 bytes, of which \d+ are read"):
        list(frames)


def test_times_that_jump_ahead_by_hours_are_refused(tmp_path: Path) -> None:
    """Who counts in windows would have to fill all those in which nothing was shown."""
    times = [0.0, 0.1, 0.2, 3 * 3600.0, 8 * 3600.0]
    path = draw_variable_rate(tmp_path / "a.mkv", times)
    stream, seconds = FrameStream(path, idle_seconds=0.05), []
    with pytest.raises(
        CorruptVideoError, match=r"after 10800\.0 s its times jump ahead by 18000\.0 s; see to its writer"
    ):
        seconds.extend(frame.seconds for frame in stream)
    assert stream.num_frames == 4
