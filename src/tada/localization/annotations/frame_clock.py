"""Frame numbers of annotations -> seconds, by the timestamps of the video itself."""

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

_FRAMES = "/"  # instead of a file extension: folders of frames


class FrameClock:
    """Reads the timestamps of videos that annotations name, each once."""

    def __init__(self, folders: Sequence[Path], *, fps: float | None = None) -> None:
        """Search these folders for videos; ``fps`` is the frame rate of folders of frames."""
        self._folders, self._fps = folders, fps
        self._known: dict[str, tuple[NDArray[np.float64], float]] = {}
        self._by_extension: dict[str, KnownVideos] = {}

    def span(self, video: str, first: int, end: int, where: str, *, step: int = 1) -> tuple[float, float]:
        """Start and end, in seconds, of the frames from ``first`` to ``end`` (exclusive), counted from 0.

        Args:
            step: frames from one labeled frame to the next; ``end`` may be beyond the video's by less than this.

        Raises:
            DataError: the video is missing, cannot be opened, or has no such frames.
        """
        times, duration = self._times(video, where)
        if not 0 <= first < end < len(times) + step:
            raise DataError(
                f"{where} has frames {first} to {end - step}, while {video!r} has those from 0 to {len(times) - 1}: is "
                "it the video that was labeled, at its own frame rate?"
            )
        return float(times[first]), float(times[end]) if end < len(times) else duration

    def duration(self, video: str, where: str) -> float:
        """Duration of the video, in seconds. Errors as for ``span``."""
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
        """Find the video in the folders or below: by its path, by its name (and folder, if several have it).

        If there is none, a folder of frames with this name.
        """
        parts = [part for part in video.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        if not parts:
            return None
        written = "/".join(parts)
        for folder in self._folders:
            if (folder / written).is_file():
                return folder / written
        for ending in (Path(written).suffix, _FRAMES):
            if ending not in self._by_extension:
                self._by_extension[ending] = self._list_videos(ending)
            known = self._by_extension[ending]
            name = known.find(video_path(written), where)
            if name is not None:
                return Path(known.places[name])
        return None

    def _list_videos(self, ending: str) -> KnownVideos:
        """All files with an extension in the folders, or all folders of frames."""
        found: dict[str, str] = {}  # by absolute path, since one folder may be inside another
        for folder in self._folders:
            for path in sorted(folder.rglob("*" if ending == _FRAMES else f"*{glob.escape(ending)}")):
                is_one = is_frame_folder(path) if ending == _FRAMES else path.suffix == ending and path.is_file()
                if is_one:
                    found.setdefault(str(path.absolute()), video_path(path.relative_to(folder).as_posix()))
        return KnownVideos({name: path for path, name in reversed(found.items())})


def frame_runs(frames: Iterable[int], step: int) -> Iterator[tuple[int, int]]:
    """Yield runs of frames that are at most ``step`` apart: first frame, and the first after it."""
    ordered = sorted(frames)
    breaks = [i for i, (a, b) in enumerate(pairwise(ordered), start=1) if b - a > step]
    for start, stop in pairwise([0, *breaks, len(ordered)]):
        if start < stop:
            yield ordered[start], ordered[stop - 1] + step
