"""Kinds of work for the tests of jobs, in a module that worker processes and Ray's actors can import, too."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tada.errors import OutputError
from tada.jobs.videos import JobVideo
from tada.jobs.work import AnswerWork
from tada.recognition.video_clips import VideoClip


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadlyWork(AnswerWork):
    """Classify videos; one whose name says so kills its process, always or the first time, or finds the disk full."""

    marks: Path
    """Where those that kill it once leave a mark."""

    def decode(self, video: JobVideo) -> Iterator[VideoClip]:
        mark = self.marks / video.id.replace("/", "_")
        if "full" in video.id:
            raise OutputError("'/scratch' cannot be written: the disk is full; make room, and give the same command")
        if "deadly" in video.id or ("once" in video.id and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        # Not super(), which a class with slots cannot call.
        yield from AnswerWork.decode(self, video)
