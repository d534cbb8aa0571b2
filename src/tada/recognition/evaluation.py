"""Testing a trained recognizer: all views of every video, on any number of devices.

The scores of a video are the mean of its views' probabilities (softmax; sigmoid if a video may have several labels),
as in the papers' protocols. Unreadable videos are listed, and the report says how many of all videos were read.

Shapes: N videos, V views, H heads, K classes of all heads.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tada.data.annotations import read_dataset
from tada.data.loader import closing
from tada.data.run_videos import KnownVideo, line_of_namesakes, marks, names_below, read_run_list
from tada.data.split_hashes import PART, Splits
from tada.data.table import SPLITS, Unreadable, VideoTable, targets_of, with_fps
from tada.data.views import TestVideos, ViewBatch, Views, average_views, test_loader
from tada.errors import CheckpointError, DataError, counted, listed
from tada.models.onnx_model import SPLITS_ENTRY, OnnxNetwork, open_session
from tada.recognition.recognizer import Recognizer, load_recognizer
from tada.recognition.results import UNKNOWN, Evaluation, one_head_error
from tada.recognition.video_clips import default_batch_size
from tada.system.accelerator import HostCopy, fast_numerics
from tada.system.calls import checked
from tada.system.collectives import TIMEOUT, gathered, leaving_together
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
    actions: Literal["means", "views"] = "means",
    num_workers: int | None = None,
    clips_per_batch: int | None = None,
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
        root: the folder that a CSV's paths are relative to, or that holds a published list's videos; by default the
            folder of the CSV or list.
        fold: which of the three splits of UCF101 and HMDB51.
        fps: the rate of folders of frames, in frames per second, where the data does not give it; by default the rate
            in training.
        split: the split to test on. By default "test" if the data has one with known classes, else "val", else all
            videos that the run was not trained on.
        views: views of each video, as clips x crops, such as "10x3"; by default one, in the middle.
        actions: for a model with several heads (verb and noun), how the probability of a combination is computed: the
            product of the mean probabilities, or the mean of the views' products, as in the released code. "views"
            keeps the scores of every view in the result.
        num_workers: processes that decode, for each device; by default one for each core, at most eight.
        clips_per_batch: batch size in clips, whatever the number of views; by default 32 on a GPU, 8 on a CPU.
        device: "cpu", "cuda", ...; by default a GPU where there is one. For several devices give ``machine``.
        machine: devices that share the videos; each of their processes returns the whole result.

    Raises:
        DataError: the data has classes that the model lacks, or videos that it was trained on.
        CheckpointError: the run holds no model, or a damaged one.
        OptionError: ``actions`` is "views", and the model has one head.
    """
    processes = (Machine() if machine is None else machine).processes()
    say = processes.speaker(say)
    run = Path(run)
    views = Views.parse(views) if isinstance(views, str) else views
    recognizer = load_recognizer(run, device="cpu" if processes.world > 1 else device)
    if actions == "views" and len(recognizer.heads) == 1:
        raise one_head_error(f"{str(run)!r} has one head ({recognizer.heads[0].name})")
    if not isinstance(data, VideoTable):
        data = read_dataset(Path(data), root=None if root is None else Path(root), fold=fold)
    table = with_fps_of_run(with_fps(data, fps), run, say)
    lacking = [label for label in recognizer.labels if label not in table.labels] if table.several else []
    # Before the videos are compared with the run's, so that other classes are the first error to be reported.
    table = table.numbered_as(recognizer.heads)
    if table.ignored:
        say(f"left out, beside the videos: {listed(table.ignored, quote=False)}")
    hidden = not (show_progress and processes.is_first)
    table = choose_videos(table, run, split, say, network=recognizer.model, show_progress=not hidden)
    if table.missing:
        say(f"{table.kind}: {table.coverage()} are there; scores are of these")
    if lacking:
        say(
            f"the data has no labels of {listed(lacking)}: all videos count as not showing them, so precision of these "
            "classes means nothing"
        )
    views = Views() if views is None else views
    num_workers = default_num_workers(processes.devices) if num_workers is None else check_num_workers(num_workers)
    with leaving_together():
        if processes.world > 1:
            recognizer = Recognizer(recognizer.model, recognizer.card, device=_launch_processes(processes))
        votes, unreadable = _score_videos(
            recognizer,
            table,
            views,
            clips_per_batch=clips_per_batch,
            num_workers=num_workers,
            rank=processes.rank,
            world=processes.world,
            keeps_views=actions == "views",
            hidden=hidden,
            say=say,
        )
        votes, unreadable = gathered(votes), gathered(unreadable)
    return _make_evaluation(table, recognizer, views, votes, unreadable)


def evaluate_alone(
    recognizer: Recognizer,
    table: VideoTable,
    *,
    num_workers: int,
    clips_per_batch: int | None = None,
    show_progress: bool = False,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Test a model on all videos of a table in this process alone, one view of each; used at the end of training.

    Raises:
        DataError: none of the videos can be read.
    """
    table = table.numbered_as(recognizer.heads)
    votes, unreadable = _score_videos(
        recognizer,
        table,
        Views(),
        clips_per_batch=clips_per_batch,
        num_workers=num_workers,
        hidden=not show_progress,
        say=say,
    )
    return _make_evaluation(table, recognizer, Views(), votes, unreadable)


class _Vote(NamedTuple):
    """Scores of a video."""

    place: int
    """Its index in the table"""
    scores: NDArray[np.float32]
    """[K], the mean over its views"""
    view_scores: NDArray[np.float32] | None
    """[V, K], where they are kept"""


def _score_videos(
    recognizer: Recognizer,
    table: VideoTable,
    views: Views,
    *,
    clips_per_batch: int | None,
    num_workers: int,
    rank: int = 0,
    world: int = 1,
    keeps_views: bool = False,
    hidden: bool,
    say: Callable[[str], None],
) -> tuple[list[_Vote], list[Unreadable]]:
    """Scores of this process's videos; and the unreadable videos."""
    if clips_per_batch is None:
        # Also where this process decodes: answers are not waited for, and a clip at a time costs small networks more.
        clips_per_batch = default_batch_size(has_gpu=recognizer.device.type != "cpu", has_workers=True)
    loader = test_loader(
        TestVideos(table, recognizer.clip, views),
        clips_per_batch=clips_per_batch,
        num_workers=num_workers,
        rank=rank,
        world=world,
        say=say,
    )
    votes: list[_Vote] = []
    unreadable: list[Unreadable] = []
    with (
        closing(loader),
        fast_numerics(recognizer.device),
        Work("testing", len(table), noun="videos", is_shown=not hidden) as work,
    ):
        started: _Started | None = None
        for batch in chain(loader, [None]):
            # The scores of a batch are read after the next one is started, so that a GPU does not wait for the host.
            before, started = started, None if batch is None else _start(recognizer, batch, clips_per_batch)
            if before is not None:
                votes += _votes(before, keeps_views=keeps_views)
                unreadable += before.unreadable
                work.advance_to(min(world * (len(votes) + len(unreadable)), len(table)))
    return votes, unreadable


def _make_evaluation(
    table: VideoTable,
    recognizer: Recognizer,
    views: Views,
    votes: Sequence[_Vote],
    unreadable: Sequence[Unreadable],
) -> Evaluation:
    """The result of a test from the indices and mean scores (``votes``) of all its videos."""
    if not votes:
        of = counted(len(table.videos), "video")
        raise DataError(f"of {of} none could be read; the first: {unreadable[0].message}")
    votes = sorted(votes, key=lambda vote: vote.place)
    check_votes((vote.place for vote in votes), len(table.videos), len(unreadable))
    read = [table.videos[vote.place] for vote in votes]
    view_scores = [vote.view_scores for vote in votes if vote.view_scores is not None]
    unknown = (UNKNOWN,) * len(table.heads)
    return Evaluation(
        heads=table.heads,
        ids=tuple(video.id for video in read),
        paths=tuple(video.path for video in read),
        segments=tuple((video.start_seconds, video.end_seconds) for video in read),
        rates=tuple(video.fps for video in read),
        groups=tuple(video.group for video in read),
        targets=np.array([targets_of(table.heads, video.labels) or unknown for video in read], np.int64),
        scores=np.stack([vote.scores for vote in votes]),
        view_scores=np.stack(view_scores) if view_scores else None,
        actions="views" if view_scores else "means",
        unreadable=tuple(unreadable),
        views=(views,),
        clip=recognizer.clip,
        thresholds=recognizer.card.thresholds,
    )


def check_votes(indices: Iterable[int], num_videos: int, num_unreadable: int) -> None:
    """Check that each readable video was scored exactly once.

    Raises:
        RuntimeError: it was not, which is a bug in tada.
    """
    counts = Counter(indices)
    twice = [index for index, count in counts.items() if count > 1]
    if twice or len(counts) + num_unreadable != num_videos or not counts.keys() <= set(range(num_videos)):
        raise RuntimeError(
            f"{len(counts)} videos have voted and {num_unreadable} could not be read, of {num_videos}; twice: {twice}"
        )


def _launch_processes(processes: Processes) -> torch.device:
    """Connect with the other processes, which Lightning starts if needed; return this process's device."""
    from lightning import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    with quiet():
        fabric = Fabric(**processes.lightning(), strategy=DDPStrategy(timeout=TIMEOUT))
        fabric.launch()
    return fabric.device


class _Started(NamedTuple):
    """A batch whose scores the network computes."""

    places: list[int]
    """Its videos' indices in the table"""
    unreadable: list[Unreadable]
    scores: list[HostCopy]
    """[some of its views, K] each"""


def _start(recognizer: Recognizer, batch: ViewBatch, clips_per_batch: int) -> _Started:
    views = torch.split(batch.views.flatten(0, 1), clips_per_batch) if len(batch.indices) else ()
    scores = [recognizer.start_scores(some) for some in views]
    return _Started(batch.indices.tolist(), batch.unreadable, scores)


def _votes(started: _Started, *, keeps_views: bool) -> list[_Vote]:
    """Scores of each video of a batch."""
    if not started.places:
        return []
    rows = torch.cat([some.value() for some in started.scores])
    scores = rows.view(len(started.places), -1, rows.shape[1])
    means, each = average_views(scores).numpy(), scores.numpy()
    return [_Vote(index, means[i], each[i] if keeps_views else None) for i, index in enumerate(started.places)]


# -- which videos -----------------------------------------------------------------------------------------------------


def with_fps_of_run(table: VideoTable, run: Path, say: Callable[[str], None]) -> VideoTable:
    """The table with the ``fps`` of a run's recipe for folders of frames without a rate; a message says so."""
    fps = fps_of_run(run)
    if fps is None or not any(video.is_frames and video.fps is None for video in table.videos):
        return table
    way_out = "--fps (fps in Python) changes it"
    say(f"folders of frames are read at {fps:g} frames per second, as in the training of {run}; {way_out}")
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
    """The videos to test on, never one of the run's training videos, even if it was renamed or moved.

    Args:
        run: the folder of a run, or an exported file.
        split: as in ``evaluate``; of the run's own splits if the data has none.
        say: prints which videos are tested, and how the run knows them.
        network: the network of ``run``, if it has been loaded.

    Raises:
        DataError: there are none, or some of the split were trained on.
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
        table, found = _with_marks(table, found, {split})
        lines.append(f"testing on the {counted(len(table), 'video')} that {run} has in its {split} split")
    elif known is not None and not any(found):
        lines.append(f"none of these videos are known to {run}: all {len(table)} are tested{_missing_in_words(known)}")
    elif set(found) == {"train"} and not has_split:
        raise DataError(
            f"{run} was trained on all videos of this data ({len(found)}), and held out none: test it on others, or "
            "train with a part held out"
        )
    elif known is not None and (not has_split or "" in found or PART in found):
        lines.append(_in_words(found, run))
        table, found = (table, found) if has_split else _with_marks(table, found, {"val", "test", PART, ""})
    trained_on = [video for video, mark in zip(table.videos, found, strict=True) if mark == "train"]
    if trained_on:
        raise DataError(
            f"{len(trained_on)} of {len(table.videos)} test videos were trained on, the first: "
            f"{trained_on[0].path} ({trained_on[0].source}); choose a split with --split, or leave them out"
        )
    if known is not None and not isinstance(known, Splits):  # an exported file has no names
        lines += _namesakes_in_words(table, found, known, run)
    for line in lines:
        say(line)
    return table


def _namesakes_in_words(table: VideoTable, found: Sequence[str], known: Sequence[KnownVideo], run: Path) -> list[str]:
    """A warning, in a list, if files unknown to the run have the names of training videos; else an empty list."""
    trained = {
        name for row, name in zip(known, names_below([row.path for row in known]), strict=True) if row.split == "train"
    }
    names = names_below([video.path for video in table.videos])
    unknown = dict.fromkeys(name for name, mark in zip(names, found, strict=True) if not mark)
    line = line_of_namesakes(list(unknown), trained, run)
    return [line] if line else []


def videos_known_to(run: Path, network: nn.Module | None = None) -> tuple[KnownVideo, ...] | Splits | None:
    """The list of a run's videos; of an exported file, the list inside it, else in its folder. None: no list.

    Raises:
        CheckpointError: the list is damaged.
    """
    if not run.is_file():
        return read_run_list(run)
    text = (network if isinstance(network, OnnxNetwork) else open_session(run)).metadata().get(SPLITS_ENTRY)
    if text is None:  # exported by a version that did not include the list
        return read_run_list(run.parent)
    try:
        return Splits.from_text(text)
    except ValueError as error:
        raise CheckpointError(f"{str(run)!r}: its list of videos is damaged ({error}); export it again") from error


def _with_marks(table: VideoTable, found: Sequence[str], wanted: Collection[str]) -> tuple[VideoTable, list[str]]:
    """The videos with these marks, and their marks."""
    videos = tuple(video for video, mark in zip(table.videos, found, strict=True) if mark in wanted)
    return replace(table, videos=videos), [mark for mark in found if mark in wanted]


def _in_words(found: Sequence[str], run: Path) -> str:
    """A line that says how many tested videos the run held out, and how many it does not know."""
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


def _missing_in_words(known: Sequence[KnownVideo] | Splits) -> str:
    """A sentence about missing videos of an old run's list, which cannot be recognized under another path."""
    rows = () if isinstance(known, Splits) else known
    gone = sum(not row.content and not os.path.exists(row.path) for row in rows)
    if not gone:
        return ""
    return (
        f". Its list was written by an earlier tada and knows videos by their paths alone: {gone} of {len(rows)} are "
        "not there any more, and would not be known under another path"
    )
