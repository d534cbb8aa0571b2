"""Names of videos: matching the names in annotations with files.

A video's name is its file name, without folder and extension. If files in several folders have the same name, the name
is the path below their common folder: "monday/0" and "tuesday/0".
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from tada.data.table import composed
from tada.errors import DataError, listed
from tada.system.files import absolute_path
from tada.video.numbered import VIDEO_EXTENSIONS


def video_path(written: str) -> str:
    """Normalize a video's path: forward slashes, no file extension of a video, Unicode NFC."""
    text = composed(written.strip()).replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if parts:
        stem, dot, ending = parts[-1].rpartition(".")
        parts[-1] = stem if dot and f".{ending.lower()}" in VIDEO_EXTENSIONS else parts[-1]
    return "/".join(parts)


def video_name(written: str) -> str:
    """A video's name without folders and without the file extension."""
    return _last_part(video_path(written))


def _last_part(path: str) -> str:
    return path.rpartition("/")[2]


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The name of the video for each ``video_path``; the whole path if several have the same name."""
    of_name: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        of_name.setdefault(_last_part(path).casefold(), []).append(path)
    return {path: _last_part(path) if len(alike) == 1 else path for alike in of_name.values() for path in alike}


def videos_by_name(files: Iterable[str | Path], root: str | Path | None = None) -> dict[str, Path]:
    """Files by the names of their videos.

    Args:
        root: the folder to which longer names are relative, if several files have the same name; by default their
            common folder.

    Raises:
        DataError: two files in one folder differ only in their extension, in case, or in Unicode form.
    """
    places = {absolute_path(file): Path(file) for file in files}
    if not places:
        return {}
    top = os.path.commonpath([*map(os.path.dirname, places), *([] if root is None else [absolute_path(root)])])
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
    """Existing videos, found by the names or paths that annotations write."""

    def __init__(self, places: Mapping[str, str]) -> None:
        """Index the videos: paths by name, or the names themselves if paths are unknown."""
        self.places = places
        self._by_stem: dict[str, list[str]] = {}
        folders = set()
        for name, place in places.items():
            self._by_stem.setdefault(composed(_last_part(name)), []).append(name)
            folders.add(_folder(place))
        self._folder_ends = {tuple(parts[start:]) for parts in folders for start in range(len(parts))}

    def find(self, path: str, where: str) -> str | None:
        """Find the video of a ``video_path`` in annotations; return its name, or None if there is none.

        ActivityNet's and HACS's annotations say ID, while files of their videos and features are named v_ID. If several
        videos have the name, the folders in ``path`` decide. They also show that a video is missing: if the folder
        exists, but the only video of that name is in another folder.

        Args:
            where: source of the path, for the message.

        Raises:
            DataError: several videos match.
        """
        names = self._find_by_name(path)
        if path in names:
            return path
        names = [name for name in names if not self._lies_elsewhere(path, name)]
        if len(names) <= 1:
            return next(iter(names), None)
        shared = {name: _num_shared(path, self.places[name]) for name in names}
        best = [name for name in names if shared[name] == max(shared.values())]
        if len(best) > 1:
            raise DataError(
                f"{where}: the video {path!r} may be each of {listed(sorted(names))}; write its folder before its name"
            )
        return best[0]

    def elsewhere(self, path: str) -> str | None:
        """Path of a video of the same name in another folder, if any, for a path that ``find`` does not find."""
        return next((self.places[name] for name in self._find_by_name(path)), None)

    def in_other_folders(self, found: Mapping[str, str]) -> list[str]:
        """Written paths none of whose folders agrees with the folder of the video that ``find`` found.

        Args:
            found: names of the videos that ``find`` returned, by written path.
        """
        return [
            path
            for path, name in found.items()
            if _folder(path) and _folder(self.places[name]) and not _agreeing(_folder(path), _folder(self.places[name]))
        ]

    def _find_by_name(self, path: str) -> list[str]:
        return next((self._by_stem[stem] for stem in _variants_of_stem(_last_part(path)) if stem in self._by_stem), [])

    def _lies_elsewhere(self, path: str, name: str) -> bool:
        """Whether the written folder is a folder of the videos, but not that of this video."""
        written = _folder(path)
        longest = 0  # number of parts of the written folder, from its end, that are a folder of the videos
        while longest < len(written) and written[len(written) - longest - 1 :] in self._folder_ends:
            longest += 1
        return longest > _agreeing(written, _folder(self.places[name]))

    def find_all(self, written: Mapping[str, str], where: str) -> dict[str, str]:
        """Find the videos of several ``video_path``s, given by key; paths without a video are left out.

        Raises:
            DataError: as ``find``; or two paths match the same video.
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
        """The key of the path that agrees with most folders of a video; the others are of missing videos."""
        shared = {key: _num_shared(path, self.places[name]) for key, path in written.items()}
        first, second = sorted(shared, key=lambda key: -shared[key])[:2]
        if shared[first] == shared[second] or any("/" not in written[key] for key in written if key != first):
            raise DataError(
                f"{where}: {written[first]!r} and {written[second]!r} would both be the video {name!r}; write a video "
                "the same way everywhere, and see whether one is lacking"
            )
        return first


def _variants_of_stem(stem: str) -> tuple[str, ...]:
    return stem, f"v_{stem}", stem.removeprefix("v_")


def _folder(path: str) -> tuple[str, ...]:
    """The folders of a path, without its name."""
    return tuple(video_path(path).split("/")[:-1])


def _agreeing(written: tuple[str, ...], folder: tuple[str, ...]) -> int:
    """Number of parts of a written folder, from its end, that agree with a folder or one of its parents."""
    best = 0
    for end in range(1, len(folder) + 1):
        while best < min(len(written), end) and written[-best - 1 :] == folder[end - best - 1 : end]:
            best += 1
    return best


def _num_shared(one: str, other: str) -> int:
    """Number of parts, from the end, that agree in two paths of the same name."""
    count = 1
    for a, b in zip(*(reversed(video_path(path).split("/")[:-1]) for path in (one, other)), strict=False):
        if a != b:
            break
        count += 1
    return count
