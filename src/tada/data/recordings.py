"""Detects leakage: held-out clips that seem to be of the same recordings as training clips.

Clips of one recording look alike: the person, the room, the light. With some of them in both splits, a test measures
how well the model memorized the recording. Recordings are guessed from groups, folders and file names; no video is
opened.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tada.data.hold_out import hold_out_groups
from tada.data.table import LabeledVideo, VideoTable
from tada.errors import UserError

_MUCH = 0.5  # of the held-out clips
_MOST = 0.8  # of all clips
_NUMBER_AT_END = re.compile(r"(?P<before>.*?)(?:[\s_.\-]+[a-z]?)?\(?\d+\)?", re.IGNORECASE)
_SAYS_NOTHING = (
    r"(?:train|training|val|valid|validation|test|testing|videos?|clips?|data|parts?|shards?|chunks?|batch|bin)"
)
_NO_RECORDING = re.compile(_SAYS_NOTHING, re.IGNORECASE)
_NO_RECORDINGS_FOLDER = re.compile(rf"{_SAYS_NOTHING}[\W\d_]*|\d{{0,5}}", re.IGNORECASE)
_LEVELS = 3  # numbers at the end of a name that are removed, one after the other


def shared_recordings(table: VideoTable) -> str:
    """A line of advice if held-out clips seem to be of the same recordings as training clips; else "".

    Each of the following, in this order, gives every clip a key: the group column; the folder of a CSV's videos; the
    file name without the number at its end ("anna_02.mp4" has the key "anna", "v_Archery_g01_c02.avi" has
    "v_Archery_g01"), or without the last two or three numbers, as for days in "20240131_1200.mp4". A key is taken to
    identify recordings if

    - at least two keys have two clips or more, and none has over four fifths of all clips, so that whole recordings
      could be held out;
    - half or more of the held-out clips share their key with a training clip of their class, and that class has other
      keys as well.

    So there is no advice for "0.mp4, 1.mp4" (no key), "left_000.mp4" in the folder "left" (the class's name),
    "IMG_2001.MOV" everywhere (one key), random names (a key for each clip), or folders such as "part3".
    """
    if not {"train", "val"} <= set(table.splits):
        return ""
    found = _count_shared(table, lambda video: video.group or "")
    if found is not None:
        return (
            f"{found[0]} of {found[1]} held-out clips are of groups that are trained on as well, and so easier than "
            f"new clips: hold out whole groups with --val-groups {_suggest_group(table)}"
        )
    keys: list[Callable[[LabeledVideo], str]] = [lambda video: _folder(table, video)] if table.kind == "CSV" else []
    keys += [partial(_name, table, level=level) for level in range(1, _LEVELS + 1)]
    for key in keys:
        found = _count_shared(table, key)
        if found is not None:
            alike, held_out, (one, other) = found
            return (
                f"{alike} of {held_out} held-out clips may be of recordings that are trained on as well, such as "
                f"{table.relative(one)!r} beside {table.relative(other)!r}, and so easier than new clips: list the "
                "clips in a CSV with a column 'group' (the person, day or room), and hold out whole groups with "
                "--val-groups"
            )
    return ""


def _count_shared(
    table: VideoTable, key_of: Callable[[LabeledVideo], str]
) -> tuple[int, int, tuple[LabeledVideo, LabeledVideo]] | None:
    """Count held-out clips that share their key with a training clip of their class.

    Returns:
        This number, the number of held-out clips, and an example (held out, trained); None if the keys do not seem to
        identify recordings.
    """
    keys = {video: key_of(video) for video in table.videos if video.split in ("train", "val")}
    sizes = Counter(key for key in keys.values() if key)
    if sum(size >= 2 for size in sizes.values()) < 2 or max(sizes.values()) > _MOST * len(keys):
        return None
    of_class: dict[tuple[int, ...], set[str]] = {}
    trained: dict[tuple[tuple[int, ...], str], LabeledVideo] = {}
    for video, key in keys.items():
        of_class.setdefault(video.labels, set()).add(key)
        if video.split == "train":
            trained.setdefault((video.labels, key), video)
    held_out = [video for video in keys if video.split == "val"]
    pairs = [
        (video, trained[video.labels, keys[video]])
        for video in held_out
        if keys[video] and (video.labels, keys[video]) in trained and len(of_class[video.labels]) > 1
    ]
    return (len(pairs), len(held_out), pairs[0]) if pairs and len(pairs) >= _MUCH * len(held_out) else None


def _folder(table: VideoTable, video: LabeledVideo) -> str:
    """The video's folder below the root; "" for folders without a meaning, such as "part3"."""
    folder = os.path.dirname(table.relative(video))
    return "" if _NO_RECORDINGS_FOLDER.fullmatch(os.path.basename(folder)) else folder


def _name(table: VideoTable, video: LabeledVideo, level: int) -> str:
    """A video's file name without its extension, its class's name and ``level`` numbers at its end."""
    name = Path(video.path).stem
    for _ in range(level):
        match = _NUMBER_AT_END.fullmatch(name)
        if match is None:
            return ""
        name = match["before"]
    for label in table.label_names(video):
        words = r"[\W_]*".join(map(re.escape, re.split(r"[\W_]+", label)))
        name = re.sub(rf"(?<![^\W_]){words}(?![^\W_])", "", name, flags=re.IGNORECASE)
    name = name.strip(" _.-()").casefold()
    return "" if _NO_RECORDING.fullmatch(name) else name


def _suggest_group(table: VideoTable) -> str:
    """A group that can be held out and has about as many clips as are held out now; else "GROUP"."""
    unsplit = _unsplit(table)
    wanted = sum(video.split == "val" for video in table.videos)
    sizes = Counter(video.group for video in unsplit.videos if video.split != "test")
    groups: Sequence[str] = sorted(table.groups, key=lambda group: (abs(sizes[group] - wanted), group))
    for group in groups[:20]:
        try:
            hold_out_groups(unsplit, [group])
        except UserError:
            continue
        return group
    return "GROUP"


def _unsplit(table: VideoTable) -> VideoTable:
    videos = (video if video.split == "test" else replace(video, split=None) for video in table.videos)
    return replace(table, videos=tuple(videos))
