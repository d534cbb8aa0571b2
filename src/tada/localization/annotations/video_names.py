"""Which video is meant: the names of files, and what annotations write, become one.

A video is called as its file, without folder and ending. Where files in several folders have the same name, the path
below the folder that holds them all is the name: "monday/0" and "tuesday/0".
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from tada.data.table import composed
from tada.errors import DataError, listed
from tada.video.numbered import VIDEO_EXTENSIONS


def video_path(written: str) -> str:
    """A video's path in one form, however it is written: forward slashes, no video file's ending, accents as in NFC."""
    text = composed(written.strip()).replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if parts:
        stem, dot, ending = parts[-1].rpartition(".")
        parts[-1] = stem if dot and f".{ending.lower()}" in VIDEO_EXTENSIONS else parts[-1]
    return "/".join(parts)


def video_name(written: str) -> str:
    """A video's name without folders and without a video file's ending."""
    return _last_part(video_path(written))


def _last_part(path: str) -> str:
    return path.rpartition("/")[2]


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """For each of several ``video_path``s the video's name; where they share it, the whole path."""
    of_name: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        of_name.setdefault(_last_part(path).casefold(), []).append(path)
    return {path: _last_part(path) if len(alike) == 1 else path for alike in of_name.values() for path in alike}


def videos_by_name(files: Iterable[str | Path], root: str | Path | None = None) -> dict[str, Path]:
    """Files by the names of their videos.

    Args:
        root: the folder below which names that several files have are made longer; by default the one that holds all
            of them.

    Raises:
        DataError: two files in one folder differ in their endings only, or in what file systems may take for equal.
    """
    places = {os.path.abspath(file): Path(file) for file in files}
    if not places:
        return {}
    top = os.path.commonpath([*map(os.path.dirname, places), *([] if root is None else [os.path.abspath(root)])])
    found: dict[str, Path] = {}
    first: dict[str, Path] = {}
    below = {place: video_path(os.path.relpath(place, top)) for place in places}
    names = short_names(below.values())
    for place, file in places.items():
        name = names[below[place]]
        other = first.setdefault(name.casefold(), file)
        if other is not file:
            raise DataError(f"{str(file)!r} and {str(other)!r} are both called {name!r}; rename one, or take it away")
        found[name] = file
    return found


class KnownVideos:
    """The videos that are there, to be found by what annotations write."""

    def __init__(self, places: Mapping[str, str]) -> None:
        """Take in the paths of the videos by their names; the names themselves where no paths are known."""
        self.places = places
        self._of_stem: dict[str, list[str]] = {}
        folders = set()
        for name, place in places.items():
            self._of_stem.setdefault(composed(_last_part(name)), []).append(name)
            folders.add(_folder(place))
        self._folder_ends = {tuple(parts[start:]) for parts in folders for start in range(len(parts))}

    def find(self, path: str, where: str) -> str | None:
        """The name of the video that is written as a ``video_path``; None where there is none of that name.

        ActivityNet's and HACS's annotations say ID, while files of their videos and features are called v_ID. Where
        several videos have the name, the folders that are written before it decide. They also tell that a video is not
        there: where the folder is, and what has the name lies in another one.

        Args:
            where: what it is written in, for the message.

        Raises:
            DataError: it may be each of several videos.
        """
        names = self._of_name(path)
        if path in names:
            return path
        names = [name for name in names if not self._lies_elsewhere(path, name)]
        if len(names) <= 1:
            return next(iter(names), None)
        shared = {name: _shared_parts(path, self.places[name]) for name in names}
        best = [name for name in names if shared[name] == max(shared.values())]
        if len(best) > 1:
            raise DataError(
                f"{where}: the video {path!r} may be each of {listed(sorted(names))}; write its folder before its name"
            )
        return best[0]

    def elsewhere(self, path: str) -> str | None:
        """Where a video lies that has the name of one that ``find`` does not find, if there is one."""
        return next((self.places[name] for name in self._of_name(path)), None)

    def in_other_folders(self, found: Mapping[str, str]) -> list[str]:
        """Of written paths with the names that ``find`` gave, those of which no folder agrees with where that lies."""
        return [
            path
            for path, name in found.items()
            if _folder(path) and _folder(self.places[name]) and not _agreeing(_folder(path), _folder(self.places[name]))
        ]

    def _of_name(self, path: str) -> list[str]:
        return next((self._of_stem[stem] for stem in _variants(_last_part(path)) if stem in self._of_stem), [])

    def _lies_elsewhere(self, path: str, name: str) -> bool:
        """Whether the folder that is written is one of those of the videos, and not the one where this video lies."""
        written = _folder(path)
        longest = 0  # parts of what is written, from the end, that are a folder of the videos
        while longest < len(written) and written[len(written) - longest - 1 :] in self._folder_ends:
            longest += 1
        return longest > _agreeing(written, _folder(self.places[name]))

    def find_all(self, written: Mapping[str, str], where: str) -> dict[str, str]:
        """The names of videos that are written as ``video_path``s, by what these are called; without those not found.

        Raises:
            DataError: as ``find``; or two that are written mean the same video.
        """
        found = {key: name for key, path in written.items() if (name := self.find(path, where)) is not None}
        rivals: dict[str, list[str]] = {}
        for key, name in found.items():
            rivals.setdefault(name, []).append(key)
        for name, keys in rivals.items():
            if len(keys) > 1:
                best = self._best_of_rivals(name, {key: written[key] for key in keys}, where)
                found = {key: own for key, own in found.items() if own != name or key == best}
        return found

    def _best_of_rivals(self, name: str, written: Mapping[str, str], where: str) -> str:
        """Which of several written paths agrees with most folders of a video; the others are of videos not there."""
        shared = {key: _shared_parts(path, self.places[name]) for key, path in written.items()}
        first, second = sorted(shared, key=lambda key: -shared[key])[:2]
        if shared[first] == shared[second] or any("/" not in written[key] for key in written if key != first):
            raise DataError(
                f"{where}: {written[first]!r} and {written[second]!r} would both be the video {name!r}; write a video "
                "the same way everywhere, and see whether one is lacking"
            )
        return first


def _variants(stem: str) -> tuple[str, ...]:
    return stem, f"v_{stem}", stem.removeprefix("v_")


def _folder(path: str) -> tuple[str, ...]:
    """The parts of a path before its name."""
    return tuple(video_path(path).split("/")[:-1])


def _agreeing(written: tuple[str, ...], folder: tuple[str, ...]) -> int:
    """How many parts of a written folder, from its end, agree with those of a folder or of one that this lies in."""
    best = 0
    for end in range(1, len(folder) + 1):
        while best < min(len(written), end) and written[-best - 1 :] == folder[end - best - 1 : end]:
            best += 1
    return best


def _shared_parts(one: str, other: str) -> int:
    """How many parts of two paths of one name agree, counted from their ends."""
    count = 1
    for a, b in zip(*(reversed(video_path(path).split("/")[:-1]) for path in (one, other)), strict=False):
        if a != b:
            break
        count += 1
    return count
