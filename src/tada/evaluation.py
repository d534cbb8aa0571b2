"""Testing a trained recogniser: every video once, all its views, over any number of devices.

The scores of a video are the mean of its views' softmax scores, as in the papers' protocols. A video that cannot be
read is never left out in silence: it is listed, and the report says how many were meant and how many were read.

Shapes: N videos, V views, H heads, K classes of all heads.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from tada.data.annotations import read_dataset
from tada.data.clips import TestVideos, Unreadable, ViewBatch, Views, test_loader
from tada.data.loader import closing
from tada.data.table import LabelledVideo, VideoTable
from tada.errors import DataError
from tada.loop import quiet
from tada.machine import Machine, Processes, check_num_workers, default_num_workers
from tada.predict import Recognizer, load
from tada.ranks import gathered, leaving_together
from tada.results import UNKNOWN, Evaluation


def evaluate(
    run: Path,
    data: Path | VideoTable,
    *,
    root: Path | None = None,
    split: str | None = None,
    views: Views | None = None,
    num_workers: int | None = None,
    clips_per_batch: int = 32,
    device: str | None = None,
    machine: Machine | None = None,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Test the model of a run.

    Args:
        data: what ``read_dataset`` takes, or a table it has read.
        split: the part of the data to test on. By default "test" where there is one whose classes are known, else
            "val", else all that the run was not trained on.
        views: views of each video; by default one, in the middle.
        num_workers: processes that decode, for each device; by default one for each core, at most eight.
        clips_per_batch: clips that pass the model at a time, whatever the number of views.
        device: "cpu", "cuda", ...; by default a GPU where there is one. Several devices are ``machine``'s matter.
        machine: devices that share the videos; all of their processes get the whole result.

    Raises:
        DataError: the data has classes the model does not know, or videos it was trained on.
        CheckpointError: the run holds no model, or a damaged one.
    """
    machine = Machine() if machine is None else machine
    processes = machine.processes()
    say = processes.speaker(say)
    recognizer = load(run, device="cpu" if processes.world > 1 else device)
    table = data if isinstance(data, VideoTable) else read_dataset(data, root=root)
    table = choose_videos(table, run, split, say)
    if table.missing:
        say(f"{table.kind}: {table.coverage()} are there; scores are of these")
    table = table.numbered_as(recognizer.heads)
    videos = TestVideos(table, recognizer.clip, Views() if views is None else views)
    loader = test_loader(
        videos,
        clips_per_batch=clips_per_batch,
        num_workers=default_num_workers(processes.devices) if num_workers is None else check_num_workers(num_workers),
        rank=processes.rank,
        world=processes.world,
        say=say,
    )
    with closing(loader), leaving_together():
        if processes.world > 1:
            recognizer = Recognizer(recognizer.model, recognizer.card, device=_join(machine, processes))
        votes: list[tuple[int, NDArray[np.float32]]] = []
        unreadable: list[Unreadable] = []
        hidden = not (show_progress and processes.is_first)
        for batch in track(loader, "testing", transient=True, disable=hidden):
            votes += _video_scores(recognizer, batch, clips_per_batch)
            unreadable += batch.unreadable
        votes, unreadable = gathered(votes), gathered(unreadable)
    if not votes:
        raise DataError(f"none of the {len(table.videos)} videos could be read; the first: {unreadable[0].message}")
    votes.sort(key=lambda vote: vote[0])
    check_votes((index for index, _ in votes), len(table.videos), len(unreadable))
    read = [table.videos[index] for index, _ in votes]
    unknown = (UNKNOWN,) * len(table.heads)
    return Evaluation(
        heads=table.heads,
        ids=tuple(video.id for video in read),
        paths=tuple(video.path for video in read),
        groups=tuple(video.group for video in read),
        targets=np.array([video.labels or unknown for video in read], np.int64),
        scores=np.stack([scores for _, scores in votes]),
        unreadable=tuple(unreadable),
        views=(videos.views,),
    )


def check_votes(indices: Iterable[int], num_videos: int, num_unreadable: int) -> None:
    """Make sure that each video that could be read has voted, and once.

    Raises:
        RuntimeError: a fault of ours.
    """
    counts = Counter(indices)
    twice = [index for index, count in counts.items() if count > 1]
    if twice or len(counts) + num_unreadable != num_videos or not counts.keys() <= set(range(num_videos)):
        raise RuntimeError(
            f"{len(counts)} videos have voted and {num_unreadable} could not be read, of {num_videos}; twice: {twice}"
        )


def _join(machine: Machine, processes: Processes) -> torch.device:
    """Meet the other processes, and start them where Lightning has to; this process's device."""
    from lightning import Fabric

    with quiet():
        fabric = Fabric(**processes.lightning(machine), strategy="ddp")
        fabric.launch()
    return fabric.device


def _video_scores(
    recognizer: Recognizer, batch: ViewBatch, clips_per_batch: int
) -> list[tuple[int, NDArray[np.float32]]]:
    """The place and the mean scores [K] of each video of a batch."""
    if not len(batch.indices):
        return []
    n, v = batch.views.shape[:2]
    clips = torch.split(batch.views.flatten(0, 1), clips_per_batch)
    scores = torch.cat([recognizer.scores(some) for some in clips])
    return list(zip(batch.indices.tolist(), scores.view(n, v, -1).mean(1).numpy(), strict=True))


def choose_videos(table: VideoTable, run: Path, split: str | None, say: Callable[[str], None]) -> VideoTable:
    """The videos to test on: never one that the run was trained on.

    Raises:
        DataError: there are none, or those asked for were trained on.
    """
    splits = _splits_of_run(run)
    if split is None and table.splits:
        told = {video.split for video in table.videos if video.labels}
        split = "test" if "test" in told else "val" if "val" in told else None
    if split is not None and table.splits:
        table = table.of_split(split)
        say(f"testing on the data's {split} split")
    else:
        marks = {splits.get(_place(video)) for video in table.videos}
        if None not in marks:
            # The very videos of the run, which has held some of them out.
            split = split or "val"
            table = replace(table, videos=tuple(v for v in table.videos if splits[_place(v)] == split))
            say(f"testing on the {len(table.videos)} videos that {run} held out for validation")
    if not table.videos:
        raise DataError(f"{run} has held out no videos of this data as its {split} split")
    trained_on = [video for video in table.videos if splits.get(_place(video)) == "train"]
    if trained_on:
        raise DataError(
            f"{len(trained_on)} of {len(table.videos)} test videos were trained on, the first: "
            f"{trained_on[0].path} ({trained_on[0].source}); choose a split with --split, or leave them out"
        )
    return table


Place = tuple[str, str, str]
"""A file and the beginning and end of a segment, as videos.csv has them."""


def _place(video: LabelledVideo) -> Place:
    times = ("" if time is None else repr(time) for time in (video.start_seconds, video.end_seconds))
    return (video.path, *times)  # type: ignore[return-value]  # two times


def _splits_of_run(run: Path) -> dict[Place, str]:
    """The part each of the run's own videos was in; a file that was exported into a run's folder is of that run."""
    path = (run.parent if run.is_file() else run) / "videos.csv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        return {(row["path"], row.get("start_seconds", ""), row.get("end_seconds", "")): row["split"] for row in rows}
