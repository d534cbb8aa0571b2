"""Finding videos: what the names of files, folders and patterns mean."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from tada.errors import VideoNotFoundError, listed
from tada.video.numbered import PICTURE_EXTENSIONS, VIDEO_EXTENSIONS, is_frame_folder


def find_videos(names: Sequence[str], say: Callable[[str], None] = print) -> list[str]:
    """The videos that names mean: files as they are, folders with all they hold, patterns such as ``a/*.mp4``.

    A folder of numbered pictures is a video itself, wherever it is met.

    Args:
        say: told where a folder is taken for one video, and others may lie in it.

    Raises:
        VideoNotFoundError: a name means no file, a folder or a pattern no video, or a picture alone.
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
                    "passed over: name them to have what they hold"
                )
        elif path.is_dir():
            files = _videos_below(path)
        elif path.exists() or not glob.has_magic(name):
            files = [name]  # a file that does not exist is refused when it is opened, like any other fault of it
        else:
            files = sorted(glob.glob(name, recursive=True))
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


def _videos_below(folder: Path) -> list[str]:
    videos, maybe = [], set()
    for path in folder.rglob("*"):
        ending = path.suffix.lower()
        if ending in VIDEO_EXTENSIONS:
            videos.append(path)
        elif ending in PICTURE_EXTENSIONS:
            maybe.add(path.parent)
        elif path.is_symlink() and path.is_dir():  # which are not searched
            maybe.add(path)
    hidden = {path for path in maybe if any(part.startswith(".") for part in path.relative_to(folder).parts)}
    return [str(path) for path in sorted([*videos, *filter(is_frame_folder, maybe - hidden)])]
