"""Processes that decode one video each."""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import decoding_tasks
from drawn_videos import draw_plain
from tada.errors import CorruptVideoError, DecodeTimeoutError, NotAVideoError, OptionError, TooLargeError, VideoError
from tada.video.isolation.limits import DecodingLimits
from tada.video.isolation.readers import CAN_FORK, DecoderCrashedError, OpenedVideos, Readers, RemoteVideo, Upload
from tada.video.reader import open_video

LIMITS = DecodingLimits(max_seconds=600.0, max_memory_megabytes=600.0, decode_seconds=30.0, owner="this server")
WAIT_SECONDS = 300.0


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_plain(tmp_path_factory.mktemp("videos") / "a.mp4")


def opened(readers: Readers, file: Path, name: str = "a.mp4", limits: DecodingLimits = LIMITS) -> RemoteVideo:
    """The video in a process of its own, as the server opens it."""
    descriptor = os.open(file, os.O_RDONLY) if CAN_FORK else None
    try:
        video = readers.source(Upload(name=name, file=descriptor, path=str(file)), OpenedVideos(), limits).open()
        assert isinstance(video, RemoteVideo)
        return video
    finally:
        if descriptor is not None:
            os.close(descriptor)


def same_as_here(video: RemoteVideo, file: Path) -> None:
    with open_video(file) as here:
        assert video.times_seconds.tolist() == here.times_seconds.tolist()
        assert len(video) == len(here)
        assert video.container_fps == here.container_fps
        for name in ("width", "height", "fps", "num_frames", "duration_seconds", "codec", "pixel_aspect"):
            assert getattr(video.info, name) == getattr(here.info, name)
        for indices in ([0], [30, 2, 2, 17]):
            assert np.array_equal(video.frames(indices), here.frames(indices))
        seconds = [0.0, 0.31, here.info.duration_seconds]
        assert np.array_equal(video.frames_played_at(seconds), here.frames_played_at(seconds))
        with pytest.raises(OptionError, match=r"^'a.mp4' shows nothing at -1 s"):
            video.frames_played_at([-1])
        for (mine, frame), (theirs, expected) in zip(video, here, strict=True):
            assert mine == theirs
            assert np.array_equal(frame, expected)


def test_a_video_is_the_same_as_in_this_process(readers: Readers, file: Path) -> None:
    with opened(readers, file) as video, opened(readers, file) as other:
        same_as_here(video, file)
        same_as_here(other, file)
        assert video.info.path == "a.mp4"


@pytest.mark.slow
def test_without_fork(file: Path) -> None:
    """As on other systems: a program for each video."""
    readers = Readers(can_fork=False)
    readers.start()
    assert readers.is_alive
    with readers.source(Upload(name="a.mp4", file=None, path=str(file)), OpenedVideos(), LIMITS).open() as video:
        assert isinstance(video, RemoteVideo)
        same_as_here(video, file)
        with pytest.raises(DecoderCrashedError, match=r"^'a.mp4' crashed its decoder \(signal SIGSEGV\); no answer$"):
            video.frames([0], shrink=decoding_tasks.crash)
    readers.close()


HOSTILE: dict[str, tuple[type[VideoError], str]] = {
    "crash": (DecoderCrashedError, r"^'a.mp4' crashed its decoder \(signal SIGSEGV\); no answer$"),
    "leave": (DecoderCrashedError, r"^'a.mp4' crashed its decoder \(exit code 3\); no answer$"),
    "swell": (TooLargeError, r"^'a.mp4' takes more than 600 MB of memory to decode, this server's limit; make its"),
    "write": (CorruptVideoError, r"^'a.mp4' cannot be decoded \(\[Errno 27\] File too large\)$"),
    "fail": (CorruptVideoError, r"^'a.mp4' cannot be decoded \(what a library says\)$"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other limits")
@pytest.mark.parametrize("task", HOSTILE)
def test_what_a_hostile_file_does_costs_one_answer(task: str, readers: Readers, file: Path) -> None:
    kind, pattern = HOSTILE[task]
    with opened(readers, file) as other:
        with opened(readers, file) as video, pytest.raises(kind, match=pattern):
            video.frames([0], shrink=getattr(decoding_tasks, task))
        assert other.frames([0]).shape == (1, 48, 64, 3)
    assert readers.is_alive


def test_a_file_that_hangs_a_decoder_is_cut_off(readers: Readers, file: Path) -> None:
    limits = replace(LIMITS, decode_seconds=WAIT_SECONDS)
    with opened(readers, file, limits=limits) as video:
        video._left_seconds = 0.2  # opening took some time; so much is left
        late = rf"^'a.mp4' was given up: it takes more than {WAIT_SECONDS:g} s to decode, which is this server's limit$"
        with pytest.raises(DecodeTimeoutError, match=late):
            video.frames([0], shrink=decoding_tasks.hang)
    with opened(readers, file, limits=limits) as video:
        threading.Timer(0.2, video.stop, ["the client has gone"]).start()
        with pytest.raises(DecoderCrashedError, match=r"^'a.mp4' was given up: the client has gone$"):
            video.frames([0], shrink=decoding_tasks.hang)
    with opened(readers, file) as video:
        assert len(video) == 40


@pytest.mark.skipif(not CAN_FORK, reason="processes are not forked")
def test_processes_end_with_their_video_and_their_server(file: Path) -> None:
    """And one that was killed is started again."""
    readers = Readers()
    readers.start()
    assert readers._program is not None
    killed = readers._program
    with opened(readers, file) as video:
        assert len(children_of(killed.pid)) == 1
        (keeper,) = children_of(killed.pid)
        (child,) = children_of(keeper)
    wait_until_gone(keeper, child)
    with opened(readers, file) as video:
        (keeper,) = children_of(killed.pid)
        (child,) = children_of(keeper)
        killed.kill()
        killed.wait()
        assert not readers.is_alive
        assert video.frames([0]).shape == (1, 48, 64, 3)  # it goes on
    wait_until_gone(keeper, child)
    with opened(readers, file) as video:
        assert len(video) == 40
    assert readers.is_alive
    readers.close()
    assert not readers.is_alive


def wait_until_gone(*pids: int) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """Processes whose parent it is, on Linux."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            if int(stat[1]) == pid and stat[0] != "Z":
                found.append(int(entry.name))
    return found


def test_errors_keep_their_kind_and_name_the_clients_file(readers: Readers, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no video")
    with pytest.raises(NotAVideoError, match=r"^'b\.mp4' is not a video"):
        opened(readers, tmp_path / "x", "b.mp4")
