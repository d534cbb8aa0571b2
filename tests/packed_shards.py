"""Data sets in shards of some kilobytes, and a comparison of tables."""

from __future__ import annotations

from pathlib import Path

from tada.data.annotations import read_dataset
from tada.data.prepare import PrepareOptions
from tada.data.shards import Packed, ShardOptions, prepare_shards
from tada.data.table import VideoTable

AS_IS = ShardOptions(copies=None, shard_bytes=8000)
SMALL = PrepareOptions(short_side=32, keyframe_interval_frames=8)


def packed(data: Path, out: Path, options: ShardOptions = AS_IS) -> Packed:
    return prepare_shards(read_dataset(data), out, options, num_processes=1, show_progress=False)


def shards_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def same_rows(one: VideoTable, other: VideoTable) -> bool:
    def rows(table: VideoTable) -> list[object]:
        return [
            (table.relative(v), v.id, v.labels, v.split, v.group, v.start_seconds, v.end_seconds) for v in table.videos
        ]

    return (one.heads, one.kind, rows(one)) == (other.heads, other.kind, rows(other))
