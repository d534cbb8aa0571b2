"""What a hostile file might do in the process that decodes it: functions that it runs in place of a resize."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tada.recognition.video_clips import ClipChoice, VideoClip, read_clips
from tada.video.inputs import VideoSource

Frames = NDArray[np.uint8]


def hang(frames: Frames) -> Frames:
    time.sleep(3600)
    return frames


def crash(frames: Frames) -> Frames:
    os.kill(os.getpid(), signal.SIGSEGV)
    return frames


def crash_resizing(frames: Frames, *, short_side: int) -> Frames:
    return crash(frames)


def hang_resizing(frames: Frames, *, short_side: int) -> Frames:
    return hang(frames)


def leave(frames: Frames) -> Frames:
    os._exit(3)


def swell(frames: Frames) -> Frames:
    return np.ones((1 << 34,), np.uint8)[: len(frames)]


def write(frames: Frames) -> Frames:
    with open(f"/tmp/written-by-{os.getpid()}", "wb", buffering=0) as file:
        os.unlink(file.name)
        file.write(b"x")
    return frames


def fail(frames: Frames) -> Frames:
    raise RuntimeError("what a library says\nin two lines")


def die_at_deadly(source: VideoSource, choice: ClipChoice) -> Iterator[VideoClip]:
    """Decode the clips of a video; die in the middle of one whose name is deadly."""
    for clip in read_clips(source, choice):
        yield clip
        if "deadly" in source.name:
            os.kill(os.getpid(), signal.SIGSEGV)
