"""Clips a second of the training loader from shards, against the files that they are made of, at two workers.

    python benchmarks/shards.py [DATA] --out OUT [--videos 256] [--rounds 7]

DATA is any data set of files; without it, small copies of drawn videos (as by `tada prepare`: 456x256, a key frame
every 16 frames, 10 s) are copied to as many files as --videos says. `prepare_shards` packs the files as they are. The
same loader reads both: one clip of 8 frames of each video, in the order of a training epoch. If WebDataset or LitData
are installed, their own readers hand out the same videos as bytes, which are written to memory and opened from there.

The rounds are interleaved, each in another order, and ratios are taken within a round, so that other work on the
machine changes them little. "cold" rounds begin with the files' pages dropped from the system's cache. Prints a table,
writes OUT/shards.json: medians, with the smallest and the largest round.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from loader import draw_videos
from run_lines import ends_in_a_line, output_folder
from tada.data.annotations import read_dataset
from tada.data.clips import Augmentation, ResumableBatches, ResumableLoader, TrainingClips, open_labeled
from tada.data.prepare import PrepareOptions, prepare
from tada.data.shards import ShardOptions, prepare_shards
from tada.data.table import VideoTable
from tada.video.sampling import ClipSpec

BATCH = 8
SPEC = ClipSpec(num_frames=8, sampling="segment", short_side=128, crop=112, antialias=True)
AUGMENTATION = Augmentation(short_side_range=(112, 144), flip_probability=0.5, flip_swaps=[{}], reverse_swaps=[{}])


@ends_in_a_line()
def main() -> None:
    """Make files and shards of the same videos, and measure them in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="a data set of files; without it, videos are drawn")
    parser.add_argument("--out", type=output_folder, default=Path("runs/shards"))
    parser.add_argument("--videos", type=int, default=256, help="files to make of the drawn videos")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--shard-megabytes", type=int, default=64)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    out = arguments.out
    files = read_dataset(arguments.data or copied_videos(out, arguments.videos))
    options = ShardOptions(copies=None, shard_bytes=arguments.shard_megabytes * 1_000_000)
    packed = prepare_shards(files, out / "shards", options)
    shards = read_dataset(packed.out)
    workers = arguments.num_workers
    readers: dict[str, Callable[[], Iterable[int]]] = {
        "files": lambda: by_loader(files, workers),
        "shards": lambda: by_loader(shards, workers),
    }
    if find_spec("webdataset"):
        tars = [str(file) for file in sorted(packed.out.glob("*.tar"))]
        readers["WebDataset's reader"] = lambda: by_webdataset(tars, files, workers)
    if find_spec("litdata"):
        chunks = written_by_litdata(files, out / "litdata")
        readers["LitData's reader"] = lambda: by_litdata(chunks, files, workers)
    report: dict[str, Any] = {
        "videos": len(files),
        "megabytes": packed.packed_bytes / 1e6,
        "shards": packed.num_shards,
        "num_workers": workers,
        "opening": opening(files, shards, 12),
    }
    for state in ("warm", "cold"):
        report[state] = summarized(measured(readers, out, arguments.rounds, drop=state == "cold"))
    print_table(report)
    (out / "shards.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def copied_videos(out: Path, count: int) -> Path:
    """A folder of two classes with ``count`` small copies of eight drawn videos."""
    draw_videos(out / "drawn", 8, 10.0)
    small = prepare(read_dataset(out / "drawn"), out / "small", PrepareOptions())
    paths = [video.path for video in read_dataset(small.table).videos]
    for number in range(count):
        source = paths[number % len(paths)]
        target = out / "files" / Path(source).parent.name / f"{number:05}.mp4"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return out / "files"


# -- the readers: each yields the number of clips of a batch ----------------------------------------------------------


def by_loader(table: VideoTable, num_workers: int) -> Iterator[int]:
    """An epoch of the training's own loader."""
    batches = ResumableBatches(len(table), batch_size=BATCH, last_batch="drop", seed=0)
    loader = ResumableLoader(TrainingClips(table, SPEC, AUGMENTATION, seed=0), batches, num_workers=num_workers)
    for batch in loader:
        yield len(batch.labels)
    loader.close()


class ClipOfBytes:
    """Makes the same kind of clip of a video's bytes."""

    def __init__(self, table: VideoTable) -> None:
        self.clips = TrainingClips(table, SPEC, AUGMENTATION, seed=0)

    def __call__(self, content: bytes) -> torch.Tensor:
        with tempfile.NamedTemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as file:
            file.write(content)
            file.flush()
            video = replace(self.clips.videos[0], path=file.name, stamp=None)
            return self.clips._clip(video, np.random.default_rng(len(content)))[0]


def by_webdataset(tars: list[str], table: VideoTable, num_workers: int) -> Iterator[int]:
    """An epoch of WebDataset: shards in random order, and samples through a buffer of 64."""
    import webdataset

    samples = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0, empty_check=False).shuffle(64)
    clips = samples.to_tuple("mp4").map_tuple(ClipOfBytes(table))
    for (batch,) in DataLoader(clips, batch_size=BATCH, num_workers=num_workers):
        yield len(batch)


def written_by_litdata(table: VideoTable, folder: Path) -> Path:
    """The same videos in chunks of LitData, of the same size as the shards."""
    from litdata.streaming import Cache

    if not (folder / "index.json").exists():
        cache = Cache(str(folder), chunk_bytes=64_000_000)
        for number, video in enumerate(table.videos):
            cache[number] = Path(video.path).read_bytes()
        cache.done()
        cache.merge()
    return folder


def by_litdata(folder: Path, table: VideoTable, num_workers: int) -> Iterator[int]:
    """An epoch of LitData, shuffled."""
    from litdata import StreamingDataLoader, StreamingDataset

    clip = ClipOfBytes(table)
    dataset = StreamingDataset(str(folder), shuffle=True, transform=clip)
    for batch in StreamingDataLoader(dataset, batch_size=BATCH, num_workers=num_workers, shuffle=True):
        yield len(batch)


def opening(files: VideoTable, shards: VideoTable, num_rounds: int) -> dict[str, list[float]]:
    """Processor milliseconds to open a video in this process: [median, smallest, largest] round of each table."""
    found: dict[str, list[float]] = {"files": [], "shards": []}
    for _ in range(num_rounds):
        for name, table in (("files", files), ("shards", shards)):
            started = time.thread_time()
            for video in table.videos[:50]:
                with open_labeled(video):
                    pass
            found[name].append(1000 * (time.thread_time() - started) / len(table.videos[:50]))
    found["shards minus files"] = [b - a for a, b in zip(*found.values(), strict=True)]
    return {name: [statistics.median(some), min(some), max(some)] for name, some in found.items()}


# -- rounds -----------------------------------------------------------------------------------------------------------


def measured(
    readers: dict[str, Callable[[], Iterable[int]]], out: Path, num_rounds: int, *, drop: bool
) -> list[dict[str, dict[str, float]]]:
    """Of each round and reader: clips a second, and processor milliseconds of a clip."""
    rounds = []
    for number in range(num_rounds + 1):
        names = list(readers)
        shift = number % len(names)
        found = {}
        for name in names[shift:] + names[:shift]:
            if drop:
                drop_pages(out)
            started, before = time.perf_counter(), processor_seconds()
            count = sum(readers[name]())
            seconds = time.perf_counter() - started
            found[name] = {
                "clips_per_second": count / seconds,
                "processor_ms": 1000 * (processor_seconds() - before) / count,
            }
        rounds.append(found)
    return rounds[1:]  # the first is to warm up


def processor_seconds() -> float:
    """Of this process and those of its workers that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def drop_pages(folder: Path) -> None:
    """Drop the pages of all files below a folder from the system's cache."""
    for file in folder.rglob("*.*"):
        if file.is_file():
            with opened(file) as descriptor:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def opened(file: Path) -> Iterator[int]:
    """A file's descriptor."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def summarized(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """[median, smallest, largest] of each number, and of its ratio to files in the same round."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in rounds[0]:
        values = {
            "clips_per_second": [one[name]["clips_per_second"] for one in rounds],
            "processor_ms": [one[name]["processor_ms"] for one in rounds],
            "times_as_fast": [one[name]["clips_per_second"] / one["files"]["clips_per_second"] for one in rounds],
            "times_processor": [one[name]["processor_ms"] / one["files"]["processor_ms"] for one in rounds],
        }
        found[name] = {key: [statistics.median(some), min(some), max(some)] for key, some in values.items()}
    return found


def print_table(report: dict[str, Any]) -> None:
    """The medians, with the range of the rounds."""
    table = Table("cache", "reader", "clips/s", "against files", "processor ms of a clip", "against files")
    for state in ("warm", "cold"):
        for name, of_reader in report[state].items():
            cells = [
                f"{of_reader[key][0]:.{digits}f} ({of_reader[key][1]:.{digits}f}-{of_reader[key][2]:.{digits}f})"
                for key, digits in (
                    ("clips_per_second", 0),
                    ("times_as_fast", 2),
                    ("processor_ms", 1),
                    ("times_processor", 2),
                )
            ]
            table.add_row(state, name, *cells)
    Console().print(table)
    for name, (median, least, most) in report["opening"].items():
        print(f"to open a video, {name}: {median:.3f} ms of a core ({least:.3f} to {most:.3f})")
    print(f"{report['videos']} videos, {report['megabytes']:.0f} MB, {report['shards']} shards")


if __name__ == "__main__":
    main()
