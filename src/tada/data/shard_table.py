"""The table of a data set in shards (``tada.data.shards``), from a folder or from an object store."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tada.data.identity import content_ids, sha256_of
from tada.data.labeled_csv import read_labeled_csv
from tada.data.table import Head, VideoTable
from tada.errors import DataError, OptionError, VideoNotFoundError
from tada.system.addresses import is_address
from tada.system.documents import MAX_LIST_BYTES, read_json, typed
from tada.system.files import absolute_path
from tada.video.fetched_shards import folder_for, max_cache_bytes
from tada.video.shards import INDEX, Shard, local_shard, path_without_shard, read_index

CLASSES = "classes.json"
"""All heads and classes, in the folder of shards."""
VIDEOS = "videos.csv"
"""The rows, in the folder of shards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Classes:
    """The content of classes.json."""

    kind: str
    heads: tuple[Head, ...]
    videos_sha256: tuple[str, ...] = ()
    """SHA-256 of the videos.csv that is written after it, and of the one before; none in shards of earlier versions."""


def is_shards(data: Path) -> bool:
    """Whether ``data`` is a folder of shards."""
    return (data / INDEX).is_file()


def address_of(data: Path) -> str | None:
    """The address in an object store that a path stands for: Path("s3://bucket/a") is "s3:/bucket/a"; else None."""
    scheme, _, rest = data.as_posix().partition(":/")
    address = f"{scheme.lower()}://{rest.strip('/')}/"
    return address if rest.strip("/") and is_address(address) else None


def read_shards(folder: Path) -> VideoTable:
    """Read the table of a folder of shards.

    Raises:
        DataError: the folder is not whole: a file is missing or damaged, or a shard is not the one of the index.
    """
    table = _read_table(folder)
    shards = _used_shards(table)
    for shard in shards:
        local_shard(table.root, shard)
    contents = content_ids(os.path.join(table.root, shard.file) for shard in shards)
    for shard in shards:
        file = os.path.join(table.root, shard.file)
        if contents.get(file) != shard.content:
            raise DataError(
                f"{file!r} is not the shard that {INDEX} lists: its bytes are others; copy it again, or remove it and "
                "give the command again that made it"
            )
    return table


def read_remote_shards(address: str) -> VideoTable:
    """Read the table of shards in an object store; a shard is fetched when a video of it is read.

    Raises:
        DataError: there are no shards at the address.
        UserError: the store refuses access, or cannot be reached.
    """
    from tada.system.object_store import ObjectStore

    store, folder = ObjectStore(allowed=(address,)), folder_for(address)
    store.check_access([address + INDEX])
    for name in (INDEX, VIDEOS, CLASSES):
        try:
            store.fetch(address + name, folder).replace(folder / name)
        except VideoNotFoundError as error:
            raise DataError(
                f"{address!r} holds no whole folder of shards ({name} is missing): upload the one that "
                "`tada prepare --shards` has made"
            ) from error
    table = _read_table(folder)
    shards = _used_shards(table)
    for shard in shards:
        _remove_if_other(folder / shard.file, shard.content)
    total, limit = sum(shard.size_bytes for shard in shards), max_cache_bytes()
    if total > limit:
        warnings.warn(
            f"the shards at {address} have {total / 1e9:.3g} GB, and the cache holds {limit / 1e9:.3g}: training reads "
            "videos in random order, and will fetch shards again and again; let it hold all (TADA_CACHE_GIGABYTES)",
            stacklevel=2,
        )
    return table


def _remove_if_other(file: Path, content: str) -> None:
    """Remove a fetched shard that is not the one of the index, since the store has another now; it is fetched again."""
    if content_ids([str(file)]).get(str(file), content) != content:
        with suppress(FileNotFoundError):
            file.unlink()


def _read_table(folder: Path) -> VideoTable:
    classes = _read_classes(folder)
    if not (folder / VIDEOS).is_file():
        raise DataError(f"{str(folder)!r} has no {VIDEOS}: give the `tada prepare` command again that began it")
    table = read_labeled_csv(folder / VIDEOS, Path(absolute_path(folder)))
    try:
        table = table.numbered_as(classes.heads)
    except DataError as error:
        raise DataError(
            f"{str(folder / VIDEOS)!r} has other classes than {CLASSES}: correct labels in the list that the shards "
            "were made from, and give the `tada prepare` command again"
        ) from error
    # In the order of files, so that training draws the same clips.
    videos = sorted(
        table.videos, key=lambda video: (path_without_shard(video.path), video.start_seconds or 0.0, video.id)
    )
    return replace(table, videos=tuple(videos), kind=classes.kind)


def check_not_edited(folder: Path) -> None:
    """Check that videos.csv is as it was written, before it is written anew.

    Raises:
        OptionError: somebody has changed it.
    """
    if not ((folder / CLASSES).is_file() and (folder / VIDEOS).is_file()):
        return
    written = _read_classes(folder).videos_sha256
    if written and sha256_of(folder / VIDEOS) not in written:
        raise OptionError(
            f"{str(folder / VIDEOS)!r} was changed by hand, and would be written anew: bring the changes into the list "
            "that the shards are made from, remove this file, and give the command again"
        )


def _read_classes(folder: Path) -> _Classes:
    file = folder / CLASSES
    try:
        return typed(_Classes, read_json(file, MAX_LIST_BYTES))
    except FileNotFoundError as error:
        raise DataError(
            f"{str(folder)!r} holds shards that are not whole yet ({CLASSES} is missing): give the `tada prepare` "
            "command again that began them"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{str(file)!r} is damaged ({error}); give the `tada prepare` command again") from error


def _used_shards(table: VideoTable) -> list[Shard]:
    """The shards that hold videos of the table."""
    index = read_index(table.root)
    start = len(table.root.rstrip(os.sep)) + 1
    names = {video.path[start:].partition(os.sep)[0] for video in table.videos}
    return [index[name] for name in sorted(names) if name in index]
