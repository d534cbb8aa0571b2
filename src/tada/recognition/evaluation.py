"""Testing a trained recognizer: every video once, all its views, over any number of devices.

The scores of a video are the mean of its views' probabilities (softmax, or of several labels sigmoid scores), as in the
papers' protocols. A video that cannot be
read is never left out in silence: it is listed, and the report says how many were meant and how many were read.

Shapes: N videos, V views, H heads, K classes of all heads.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tada.data.annotations import read_dataset
from tada.data.loader import closing
from tada.data.run_videos import KnownVideo, line_of_namesakes, marks, names_below, read_run_list
from tada.data.split_hashes import PART, Splits
from tada.data.table import SPLITS, Unreadable, VideoTable, targets_of, with_fps
from tada.data.views import TestVideos, ViewBatch, Views, test_loader
from tada.errors import CheckpointError, DataError, counted, listed
from tada.models.onnx_model import SPLITS_ENTRY, OnnxNetwork, open_session
from tada.recognition.recognizer import Recognizer, load_recognizer
from tada.recognition.results import UNKNOWN, Evaluation
from tada.system.calls import checked
from tada.system.collectives import gathered, leaving_together
from tada.system.devices import Machine, Processes, check_num_workers, default_num_workers
from tada.system.progress import Work
from tada.training.recipe import fps_of_run
from tada.training.trainer import quiet


@checked(num_workers=0, clips_per_batch=1)
def evaluate(
    run: str | PathLike[str],
    data: str | PathLike[str] | VideoTable,
    *,
    root: str | PathLike[str] | None = None,
    fold: int = 1,
    fps: float | None = None,
    split: str | None = None,
    views: Views | str | None = None,
    num_workers: int | None = None,
    clips_per_batch: int = 32,
    device: str | None = None,
    machine: Machine | None = None,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Test the model of a run.

        tada.evaluate("runs/first", "clips").accuracy()
        tada.evaluate("runs/first", "clips.csv", views="10x3").save("report")

    Args:
        run: the folder of a run, or a file of `tada export`.
        data: what ``read_dataset`` takes, or a table it has read.
        root: the folder that paths of a CSV start from, or below which a published list's videos lie; by default its
            own.
        fold: which of the three divisions of UCF101 and HMDB51.
        fps: the rate of folders of frames, in frames per second, where the data does not say it; by default that which
            the run was trained with.
        split: the part of the data to test on. By default "test" where there is one whose classes are known, else
            "val", else all that the run was not trained on.
        views: of each video, as clips x crops, such as "10x3"; by default one, in the middle.
        num_workers: processes that decode, for each device; by default one for each core, at most eight.
        clips_per_batch: clips that pass the model at a time, whatever the number of views.
        device: "cpu", "cuda", ...; by default a GPU where there is one. Several devices are ``machine``'s matter.
        machine: devices that share the videos; all of their processes get the whole result.

    Raises:
        DataError: the data has classes the model does not know, or videos it was trained on.
        CheckpointError: the run holds no model, or a damaged one.
    """
    processes = (Machine() if machine is None else machine).processes()
    say = processes.speaker(say)
    run = Path(run)
    views = Views.parse(views) if isinstance(views, str) else views
    recognizer = load_recognizer(run, device="cpu" if processes.world > 1 else device)
    if not isinstance(data, VideoTable):
        data = read_dataset(Path(data), root=None if root is None else Path(root), fold=fold)
    table = with_fps_of_run(with_fps(data, fps), run, say)
    lacking = [label for label in recognizer.labels if label not in table.labels] if table.several else []
    table = table.numbered_as(recognizer.heads)  # before its videos are looked at: data of another kind are no data
    if table.ignored:
        say(f"left out, beside the videos: {listed(table.ignored, quote=False)}")
    hidden = not (show_progress and processes.is_first)
    table = choose_videos(table, run, split, say, network=recognizer.model, show_progress=not hidden)
    if table.missing:
        say(f"{table.kind}: {table.coverage()} are there; scores are of these")
    if lacking:
        say(
            f"the data does not say whether videos show {listed(lacking)}: counted as not shown, so that a "
            "precision of theirs means nothing"
        )
    views = Views() if views is None else views
    num_workers = default_num_workers(processes.devices) if num_workers is None else check_num_workers(num_workers)
    with leaving_together():
        if processes.world > 1:
            recognizer = Recognizer(recognizer.model, recognizer.card, device=_join(processes))
        votes, unreadable = _votes(
            recognizer,
            table,
            views,
            clips_per_batch=clips_per_batch,
            num_workers=num_workers,
            rank=processes.rank,
            world=processes.world,
            hidden=hidden,
            say=say,
        )
        votes, unreadable = gathered(votes), gathered(unreadable)
    return _counted(table, recognizer, views, votes, unreadable)


def evaluate_alone(
    recognizer: Recognizer,
    table: VideoTable,
    *,
    num_workers: int,
    clips_per_batch: int = 32,
    show_progress: bool = False,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Test a model on all videos of a table in this process alone, one view of each: at the end of its training.

    Raises:
        DataError: none of the videos can be read.
    """
    table = table.numbered_as(recognizer.heads)
    votes, unreadable = _votes(
        recognizer,
        table,
        Views(),
        clips_per_batch=clips_per_batch,
        num_workers=num_workers,
        hidden=not show_progress,
        say=say,
    )
    return _counted(table, recognizer, Views(), votes, unreadable)


def _votes(
    recognizer: Recognizer,
    table: VideoTable,
    views: Views,
    *,
    clips_per_batch: int,
    num_workers: int,
    rank: int = 0,
    world: int = 1,
    hidden: bool,
    say: Callable[[str], None],
) -> tuple[list[tuple[int, NDArray[np.float32]]], list[Unreadable]]:
    """The place and the mean scores [K] of each video that falls to this process, and those that cannot be read."""
    loader = test_loader(
        TestVideos(table, recognizer.clip, views),
        clips_per_batch=clips_per_batch,
        num_workers=num_workers,
        rank=rank,
        world=world,
        say=say,
    )
    votes: list[tuple[int, NDArray[np.float32]]] = []
    unreadable: list[Unreadable] = []
    with closing(loader), Work("testing", len(table), noun="videos", is_shown=not hidden) as work:
        for batch in loader:
            votes += _video_scores(recognizer, batch, clips_per_batch)
            unreadable += batch.unreadable
            work.advance_to(min(world * (len(votes) + len(unreadable)), len(table)))
    return votes, unreadable


def _counted(
    table: VideoTable,
    recognizer: Recognizer,
    views: Views,
    votes: Sequence[tuple[int, NDArray[np.float32]]],
    unreadable: Sequence[Unreadable],
) -> Evaluation:
    """The result of a test from the votes of all its videos."""
    if not votes:
        of = counted(len(table.videos), "video")
        raise DataError(f"of {of} none could be read; the first: {unreadable[0].message}")
    votes = sorted(votes, key=lambda vote: vote[0])
    check_votes((index for index, _ in votes), len(table.videos), len(unreadable))
    read = [table.videos[index] for index, _ in votes]
    unknown = (UNKNOWN,) * len(table.heads)
    return Evaluation(
        heads=table.heads,
        ids=tuple(video.id for video in read),
        paths=tuple(video.path for video in read),
        segments=tuple((video.start_seconds, video.end_seconds) for video in read),
        rates=tuple(video.fps for video in read),
        groups=tuple(video.group for video in read),
        targets=np.array([targets_of(table.heads, video.labels) or unknown for video in read], np.int64),
        scores=np.stack([scores for _, scores in votes]),
        unreadable=tuple(unreadable),
        views=(views,),
        clip=recognizer.clip,
        thresholds=recognizer.card.thresholds,
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


def _join(processes: Processes) -> torch.device:
    """Meet the other processes, and start them where Lightning has to; this process's device."""
    from lightning import Fabric

    with quiet():
        fabric = Fabric(**processes.lightning(), strategy="ddp")
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


# -- which videos -----------------------------------------------------------------------------------------------------


def with_fps_of_run(table: VideoTable, run: Path, say: Callable[[str], None]) -> VideoTable:
    """The table with the rate of a run's training for those folders of frames that have none, which is said."""
    fps = fps_of_run(run)
    if fps is None or not any(video.is_frames and video.fps is None for video in table.videos):
        return table
    way_out = "--fps (fps in Python) says otherwise"
    say(f"frames are taken to come at {fps:g} a second, as {run} was trained with; {way_out}")
    return with_fps(table, fps)


def choose_videos(
    table: VideoTable,
    run: Path,
    split: str | None,
    say: Callable[[str], None],
    *,
    network: nn.Module | None = None,
    show_progress: bool = False,
) -> VideoTable:
    """The videos to test on: never one that the run was trained on, whatever it is called and wherever it lies.

    Args:
        run: the folder of a run, or an exported file.
        split: as in ``evaluate``. Where the data have no splits, those of the run are meant.
        say: receives how many videos are known to the run, and how.
        network: that of ``run``, where it has been loaded.

    Raises:
        DataError: there are none, or those asked for were trained on.
        CheckpointError: the list of the run's videos is damaged.
    """
    if split is None and table.splits:
        told = {video.split for video in table.videos if table.is_told(video)}
        split = "test" if "test" in told else "val" if "val" in told else None
    has_split = split is not None and bool(table.splits)
    lines = []
    if split is not None and has_split:
        table = table.of_split(split)
        lines.append(f"testing on the data's {split} split")
    known = videos_known_to(run, network)
    if known is None:
        unknown = f"whether these {len(table)} were among them cannot be told"
        lines.append(f"{run} has no list of the videos it was trained on: {unknown}")
    found = [""] * len(table) if known is None else marks(table, known, show_progress=show_progress)
    if known is not None and split is not None and not has_split:
        if split not in found:
            there = listed(sorted({mark for mark in found if mark in SPLITS}))
            hint = f"; of its splits there are {there}" if there else ""
            raise DataError(f"{run} has held out no videos of this data as its {split} split{hint}")
        table, found = _only(table, found, {split})
        lines.append(f"testing on the {counted(len(table), 'video')} that {run} has in its {split} split")
    elif known is not None and not any(found):
        lines.append(f"none of these videos are known to {run}: all {len(table)} are tested{_unsure(known)}")
    elif set(found) == {"train"} and not has_split:
        raise DataError(
            f"{run} was trained on all videos of this data ({len(found)}), and held out none: test it on others, or "
            "train with a part held out"
        )
    elif known is not None and (not has_split or "" in found or PART in found):
        lines.append(_in_words(found, run))
        table, found = (table, found) if has_split else _only(table, found, {"val", "test", PART, ""})
    trained_on = [video for video, mark in zip(table.videos, found, strict=True) if mark == "train"]
    if trained_on:
        raise DataError(
            f"{len(trained_on)} of {len(table.videos)} test videos were trained on, the first: "
            f"{trained_on[0].path} ({trained_on[0].source}); choose a split with --split, or leave them out"
        )
    if known is not None and not isinstance(known, Splits):  # an exported file has no names
        lines += _namesakes(table, found, known, run)
    for line in lines:
        say(line)
    return table


def _namesakes(table: VideoTable, found: Sequence[str], known: Sequence[KnownVideo], run: Path) -> list[str]:
    """A line where files that a run does not know have the names of some that it was trained on."""
    trained = {
        name for row, name in zip(known, names_below([row.path for row in known]), strict=True) if row.split == "train"
    }
    names = names_below([video.path for video in table.videos])
    unknown = dict.fromkeys(name for name, mark in zip(names, found, strict=True) if not mark)
    line = line_of_namesakes(list(unknown), trained, run)
    return [line] if line else []


def videos_known_to(run: Path, network: nn.Module | None = None) -> tuple[KnownVideo, ...] | Splits | None:
    """The list of a run's videos; of an exported file what it carries, or else the list in its folder. None: no list.

    Raises:
        CheckpointError: it is damaged.
    """
    if not run.is_file():
        return read_run_list(run)
    text = (network if isinstance(network, OnnxNetwork) else open_session(run)).metadata().get(SPLITS_ENTRY)
    if text is None:  # exported before files carried it
        return read_run_list(run.parent)
    try:
        return Splits.from_text(text)
    except ValueError as error:
        raise CheckpointError(f"{str(run)!r}: its list of videos is damaged ({error}); export it again") from error


def _only(table: VideoTable, found: Sequence[str], wanted: Collection[str]) -> tuple[VideoTable, list[str]]:
    """The videos with these marks, and their marks."""
    videos = tuple(video for video, mark in zip(table.videos, found, strict=True) if mark in wanted)
    return replace(table, videos=videos), [mark for mark in found if mark in wanted]


def _in_words(found: Sequence[str], run: Path) -> str:
    """How a run knows the videos of a test."""
    count = Counter(found)
    held_out, others = count["val"] + count["test"], count[""] + count[PART]
    if not others and not count["test"]:
        return f"testing on the {counted(held_out, 'video')} that {run} held out for validation"
    tested = [
        text
        for number, text in (
            (count["val"], f"{counted(count['val'], 'video')} that {run} held out for validation"),
            (count["test"], f"{counted(count['test'], 'video')} that {run} has in its test split"),
            (others, f"{counted(others, 'video')} that {'it' if held_out else run} does not know"),
        )
        if number
    ]
    line = f"testing on {' and '.join(tested)}"
    if count["train"]:
        line += f"; left out: {counted(count['train'], 'video')} that it was trained on"
    if count[PART]:
        line += f". Of the same files as what it was trained on: {counted(count[PART], 'video')}, other parts of them"
    return line


def _unsure(known: Sequence[KnownVideo] | Splits) -> str:
    """What an old list cannot tell, to be said behind what it does."""
    rows = () if isinstance(known, Splits) else known
    gone = sum(not row.content and not os.path.exists(row.path) for row in rows)
    if not gone:
        return ""
    return (
        f". Its list was written by an earlier tada and knows videos by their paths alone: {gone} of {len(rows)} are "
        "not there any more, and would not be known under another path"
    )
