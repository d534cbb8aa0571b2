"""Find videos: expand names of files, folders and patterns into a list of videos."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from tada.errors import VideoNotFoundError, listed
from tada.video.numbered import PICTURE_EXTENSIONS, VIDEO_EXTENSIONS, is_frame_folder
from tada.video.shards import INDEX


def find_videos(names: Sequence[str], say: Callable[[str], None] = print) -> list[str]:
    """Expand names into videos: files as they are, folders recursively, patterns such as ``a/*.mp4``.

    A folder of numbered pictures counts as one video.

    Args:
        say: called with a notice where a folder is taken for one video but has subfolders.

    Raises:
        VideoNotFoundError: a pattern matches no file, a folder holds no video, or a name is a single picture.
    """
    found: list[str] = []
    for name in names:
        path = Path(name)
        if is_frame_folder(path):
            files = [str(path)]
            inner = [entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
            if inner:
                say(
                    f"{name!r} holds numbered pictures and is taken for one video; folders in it ({listed(inner)}) are "
                    "skipped: name them to read the videos in them"
                )
        elif path.is_dir():
            files = _find_below(path)
        elif path.exists() or not glob.has_magic(name):
            files = [name]  # if it does not exist, opening it raises the error
        else:
            files = sorted(glob.glob(name, recursive=True))
        if not files and (path / INDEX).is_file():
            raise VideoNotFoundError(
                f"{name!r} holds shards; the videos in them are listed in {str(path / 'videos.csv')!r}: give that file",
                name,
            )
        if not files:
            kind = "no video lies in the folder" if path.is_dir() else "no file fits the pattern"
            raise VideoNotFoundError(
                f"{kind} {name!r}; videos end in {', '.join(sorted(VIDEO_EXTENSIONS))}, or are folders of numbered "
                "pictures",
                name,
            )
        for file in files:
            if Path(file).suffix.lower() in PICTURE_EXTENSIONS and Path(file).is_file():
                folder = str(Path(file).parent)
                raise VideoNotFoundError(
                    f"{file!r} is a picture, and no video: give the folder of a video's frames, {folder!r}", file
                )
        found += files
    return list(dict.fromkeys(found))


def _find_below(folder: Path) -> list[str]:
    videos, candidates = [], set()
    for path in folder.rglob("*"):
        ending = path.suffix.lower()
        if ending in VIDEO_EXTENSIONS:
            videos.append(path)
        elif ending in PICTURE_EXTENSIONS:
            candidates.add(path.parent)
        elif path.is_symlink() and path.is_dir():  # rglob does not follow links
            candidates.add(path)
    hidden = {path for path in candidates if any(part.startswith(".") for part in path.relative_to(folder).parts)}
    return [str(path) for path in sorted([*videos, *filter(is_frame_folder, candidates - hidden)])]
