"""Data sets on disk, in each form that is understood, read into one checked table of videos and labels.

    DATA/left/a.mp4                     a folder of class folders (``tada.data.class_folders``)
    DATA/left/a/img_00001.jpg ...       the same with folders of frames (``tada.video.numbered``)
    DATA/train/left/a.mp4               the same below train/, val/ and test/ (one of them is enough)
    DATA.csv                            the columns path (or video) and label, and, if wanted, split, group,
                                        start_seconds and end_seconds, and fps of folders of frames; or verb and noun
                                        in the place of label. Several labels of a video: parted by semicolons
                                        (wave;walk), or a column for each class (path,wave,walk) with 1 or 0
                                        (``tada.data.labeled_csv``)
    DATA.txt                            a video and its class in each line (``tada.data.plain_lists``)
    DATA                                annotations as they are published (``tada.data.published_formats``)
    DATA/shards.jsonl                   shards, also at an address s3://... (``tada.data.shard_table``)

Everything is checked before training starts (``tada.data.listed_videos``): no video is opened here, but each must
exist, once, in one split, with a label that the training split has too. Paths stay inside one folder, the CSV file's
own or ``root``; links inside it are followed.

The table's paths are absolute, so that they are valid in every working directory, but links in them are not resolved:
messages, reports and the choice of held-out videos use the names that the user gave. Two files are never compared by
their names (``tada.data.run_videos``).
"""

from __future__ import annotations

import stat
from pathlib import Path

from tada.data.class_folders import read_class_folders
from tada.data.labeled_csv import read_labeled_csv
from tada.data.listed_videos import status_of
from tada.data.plain_lists import plain_lists, read_plain_lists
from tada.data.published import find_published, read_published
from tada.data.shard_table import address_of, is_shards, read_remote_shards, read_shards
from tada.data.table import VideoTable, with_fps
from tada.errors import DataError, OptionError
from tada.video.numbered import VIDEO_EXTENSIONS


def read_dataset(data: Path, *, root: Path | None = None, fold: int = 1, fps: float | None = None) -> VideoTable:
    """Read a folder, a CSV file, or annotations as they are published.

    Args:
        root: the folder that a CSV file's paths start from and may not leave, or below which a published list's videos
            lie; by default the file's own.
        fold: which of the three train/test splits of UCF101 and HMDB51.
        fps: the rate of folders of frames, in frames per second; a column fps of the CSV comes first.

    Raises:
        DataError: something about the data set is wrong; the message names the file and row, the rule and the way
            out.
        OptionError: ``root`` was given with a folder of class folders, or there is no such fold; ``fps`` is no rate, or
            there are no folders of frames.
    """
    return with_fps(_read(data, root, fold), fps)


def _read(data: Path, root: Path | None, fold: int) -> VideoTable:
    address = address_of(data)
    if address is not None or is_shards(data):
        if root is not None:
            raise OptionError(f"root {str(root)!r} goes with a CSV file; {address or str(data)!r} holds shards")
        return read_shards(data) if address is None else read_remote_shards(address)
    status = status_of(str(data))
    if status is None:
        raise DataError(
            f"{str(data)!r} is not there (or may not be read); give a folder of class folders or a CSV file"
        )
    mode = status.st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise DataError(f"{str(data)!r} is neither a folder nor a regular file; give a folder or a CSV file")
    published = find_published(data, fold)
    if published is not None:
        kind, lists = published
        return read_published(kind, lists, root or lists[0].parent)
    plain = plain_lists(data)
    if plain:
        return read_plain_lists(plain, root or plain[0].parent)
    if stat.S_ISDIR(mode):
        if root is not None:
            raise OptionError(f"root {str(root)!r} goes with a CSV file; {str(data)!r} is a folder")
        return read_class_folders(data)
    if data.suffix.lower() in VIDEO_EXTENSIONS:
        raise DataError(f"{str(data)!r} is a video; give a folder of class folders or a CSV file that names videos")
    return read_labeled_csv(data, data.parent if root is None else root)
