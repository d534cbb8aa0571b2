"""Times of frames that annotations count: by the video itself, which alone knows when each is shown."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tada.errors import DataError, VideoError
from tada.localization.annotations.video_names import KnownVideos, video_path
from tada.video.frames import no_rate, open_footage
from tada.video.numbered import is_frame_folder

_FRAMES = "/"  # in the place of an ending: folders of frames


class FrameClock:
    """Finds the videos that annotations name in some folders, and opens each once."""

    def __init__(self, folders: Sequence[Path], *, fps: float | None = None) -> None:
        """Look in these folders; ``fps`` is the rate of folders of frames there."""
        self._folders, self._fps = folders, fps
        self._known: dict[str, tuple[NDArray[np.float64], float]] = {}
        self._of_ending: dict[str, KnownVideos] = {}

    def span(self, video: str, first: int, end: int, where: str, *, step: int = 1) -> tuple[float, float]:
        """Start and end in seconds of the frames from ``first`` up to the one before ``end``, counted from 0.

        Args:
            step: from one labeled frame to the next: by so much less the end may lie behind the video's.

        Raises:
            DataError: the video is not there or cannot be opened, or has no such frames.
        """
        times, duration = self._times(video, where)
        if not 0 <= first < end < len(times) + step:
            raise DataError(
                f"{where} has frames {first} to {end - step}, while {video!r} has those from 0 to {len(times) - 1}: is "
                "it the video that was labeled, at its own frame rate?"
            )
        return float(times[first]), float(times[end]) if end < len(times) else duration

    def duration(self, video: str, where: str) -> float:
        """How long the video is, in seconds. Errors as of ``span``."""
        return self._times(video, where)[1]

    def _times(self, video: str, where: str) -> tuple[NDArray[np.float64], float]:
        if video not in self._known:
            file = self._find(video, where)
            if file is None:
                raise DataError(
                    f"{where} counts frames, and only the video {video!r} knows when they are shown: put it beside the "
                    "annotations, or give the folder of the videos"
                )
            if file.is_dir() and self._fps is None:
                raise DataError(no_rate(str(file), f"{where} counts its frames"))
            try:
                with open_footage(file, fps=self._fps) as opened:
                    self._known[video] = opened.times_seconds, opened.info.duration_seconds
            except VideoError as error:
                raise DataError(f"{where} counts frames of a video that cannot be read: {error}") from error
        return self._known[video]

    def _find(self, video: str, where: str) -> Path | None:
        """The file that is written, in the folders or below; of several of its name the one whose folder is written.

        Or else a folder of frames of this name.
        """
        parts = [part for part in video.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        if not parts:
            return None
        written = "/".join(parts)
        for folder in self._folders:
            if (folder / written).is_file():
                return folder / written
        for ending in (Path(written).suffix, _FRAMES):
            if ending not in self._of_ending:
                self._of_ending[ending] = self._videos(ending)
            known = self._of_ending[ending]
            name = known.find(video_path(written), where)
            if name is not None:
                return Path(known.places[name])
        return None

    def _videos(self, ending: str) -> KnownVideos:
        """The files of an ending in the folders, or the folders of frames."""
        found: dict[str, str] = {}  # by absolute paths, for one folder may lie in the other
        for folder in self._folders:
            for path in sorted(folder.rglob("*" if ending == _FRAMES else f"*{glob.escape(ending)}")):
                is_one = is_frame_folder(path) if ending == _FRAMES else path.suffix == ending and path.is_file()
                if is_one:
                    found.setdefault(str(path.absolute()), video_path(path.relative_to(folder).as_posix()))
        return KnownVideos({name: path for path, name in reversed(found.items())})


def frame_runs(frames: Iterable[int], step: int) -> Iterator[tuple[int, int]]:
    """Runs of frames that are no more than ``step`` apart: the first of each, and the first after it."""
    ordered = sorted(frames)
    breaks = [i for i, (a, b) in enumerate(pairwise(ordered), start=1) if b - a > step]
    for start, stop in pairwise([0, *breaks, len(ordered)]):
        if start < stop:
            yield ordered[start], ordered[stop - 1] + step
