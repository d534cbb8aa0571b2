"""Kinds of work for the tests of jobs, in a module that worker processes and Ray's actors can import, too."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tada.errors import OutputError
from tada.jobs.videos import JobVideo
from tada.jobs.work import AnswerWork, FeatureWork, Network, Source
from tada.recognition.recognizer import Recognizer
from tada.recognition.video_clips import ClipChoice, VideoClip
from tada.system.object_store import ObjectStore
from tada.video.sliding_windows import SlidingWindows

RUN = "tada2d_tiny_motion"
SOURCE = Source(store=ObjectStore(allowed=()))


def answers_of(
    recognizer: Recognizer, *, top: int, num_clips: int | None = None, source: Source = SOURCE
) -> AnswerWork:
    """The work of `tada predict --out` with the network of RUN."""
    choice = ClipChoice(spec=recognizer.clip, num_clips=num_clips)
    return AnswerWork.of(recognizer, Network.of(recognizer, RUN), source, choice, top=top)


def features_of(recognizer: Recognizer, windows: SlidingWindows) -> FeatureWork:
    """The work of `tada extract --shards` with the network of RUN."""
    return FeatureWork.of(recognizer, Network.of(recognizer, RUN), SOURCE, windows)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadlyWork(AnswerWork):
    """Classify videos; one whose name says so kills its process, always or the first time, or finds the disk full.

    One that is changing kills it in the middle, and has other clips afterwards.
    """

    marks: Path
    """Where those that kill it once leave a mark."""

    def decode(self, video: JobVideo) -> Iterator[VideoClip]:
        mark = self.marks / video.id.replace("/", "_")
        if "full" in video.id:
            raise OutputError("'/scratch' cannot be written: the disk is full; make room, and give the same command")
        if "deadly" in video.id or ("once" in video.id and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if "changing" in video.id and not mark.exists():
            for clip in AnswerWork.decode(self, video):
                yield clip._replace(num_clips=9)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        # Not super(), which a class with slots cannot call.
        yield from AnswerWork.decode(self, video)
