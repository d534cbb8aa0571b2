"""Multi-view testing: the views of each video (clips in time, crops in space), and batches of them.

Shapes: N clips of a batch, V views of a video, T frames, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from tada.data.clips import check_rates, open_labeled
from tada.data.loader import VideoLoader
from tada.data.table import LabeledVideo, Unreadable, VideoTable, targets_of
from tada.errors import OptionError, VideoError
from tada.video.sampling import ClipSpec, view_indices
from tada.video.transforms import frame_crops


class ViewBatch(NamedTuple):
    """All views of some test videos."""

    indices: Tensor
    """int64 [N], the videos' indices in the table"""
    labels: Tensor
    """As in ``Batch``."""
    views: Tensor
    """uint8 [N, V, T, H, W, 3]"""
    unreadable: list[Unreadable]
    """Videos that belong to this batch but could not be read; they are not among the N."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """Views of a video in a test: ``num_clips`` clips in time, each with ``num_crops`` crops in space."""

    num_clips: int = 1
    num_crops: Literal[1, 3] = 1

    def __post_init__(self) -> None:
        """Raise OptionError for less than one clip, or for a number of crops other than 1 or 3."""
        if self.num_clips < 1 or self.num_crops not in (1, 3):
            raise OptionError(f"views {self.num_clips}x{self.num_crops}: one clip or more, with 1 or 3 crops of each")

    @classmethod
    def parse(cls, text: str) -> Views:
        """Read "10x3": ten clips with three crops each."""
        clips, x, crops = text.partition("x")
        if not (x and clips.isdecimal() and crops.isdecimal()):
            raise OptionError(f"views {text!r} should be CLIPSxCROPS, such as 1x1 or 10x3")
        return cls(num_clips=int(clips), num_crops=int(crops))  # type: ignore[arg-type]  # checked above

    def __str__(self) -> str:
        return f"{self.num_clips}x{self.num_crops}"


def average_views(scores: Tensor) -> Tensor:
    """Average the probabilities of each video's views, [N, V, K] -> [N, K]: the scores of the videos."""
    return scores.mean(1)


def read_views(video: LabeledVideo, spec: ClipSpec, views: Views) -> Tensor:
    """All views of a video or segment, decoded once: uint8 [V, T, crop, crop, 3], the crops of a clip in a row.

    Raises:
        VideoError: the video cannot be read.
    """
    with open_labeled(video) as (reader, own):
        times = reader.times_seconds[own.start : own.stop]
        rate = reader.container_fps
        clips = [view_indices(spec, times, i, views.num_clips, container_fps=rate) for i in range(views.num_clips)]
        wanted = sorted({index for clip in clips for index in clip})
        shrink = partial(
            frame_crops,
            short_side=spec.short_side,
            crop=spec.crop,
            num_crops=views.num_crops,
            antialias=spec.antialias,
        )
        crops = torch.from_numpy(reader.frames([own[index] for index in wanted], shrink=shrink))
    place = {index: i for i, index in enumerate(wanted)}
    chosen = [crops[[place[index] for index in clip]] for clip in clips]  # each [T, V, crop, crop, 3]
    return torch.cat([clip.transpose(0, 1) for clip in chosen])


class TestVideos(Dataset[tuple[int, tuple[int, ...], Tensor | Unreadable]]):
    """The views of each video of a table, in the table's order, or why the video could not be read."""

    __test__ = False  # not a test case, though pytest would think so

    def __init__(self, table: VideoTable, spec: ClipSpec, views: Views) -> None:
        check_rates(table, spec)
        self.videos, self.heads = table.videos, table.heads
        self.spec = spec
        self.views = views

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[int, tuple[int, ...], Tensor | Unreadable]:
        video = self.videos[index]
        targets = targets_of(self.heads, video.labels)
        try:
            return index, targets, read_views(video, self.spec, self.views)
        except VideoError as error:
            return index, targets, Unreadable(video.path, str(error))


def test_loader(
    videos: TestVideos,
    *,
    clips_per_batch: int,
    num_workers: int,
    rank: int = 0,  # noqa: PT028  # this is no test
    world: int = 1,  # noqa: PT028  # as above
    say: Callable[[str], None] = print,  # noqa: PT028  # as above
) -> VideoLoader:
    """Load every video once, in order, with as many videos in a batch as have ``clips_per_batch`` views together.

    Each of ``world`` processes loads every ``world``-th video, starting at its rank. No video is loaded twice, so some
    processes may load one more than others.
    """
    views = videos.views.num_clips * videos.views.num_crops
    return VideoLoader(
        Subset(videos, range(rank, len(videos), world)),
        num_workers=num_workers,
        collate=collate_views,
        say=say,
        batch_size=max(1, clips_per_batch // views),
    )


def collate_views(samples: Sequence[tuple[int, tuple[int, ...], Tensor | Unreadable]]) -> ViewBatch:
    """Stack the videos that could be read; list the others."""
    readable = [(index, labels, views) for index, labels, views in samples if isinstance(views, Tensor)]
    return ViewBatch(
        torch.tensor([index for index, _, _ in readable], dtype=torch.int64),
        torch.tensor([labels for _, labels, _ in readable], dtype=torch.int64),
        torch.stack([views for _, _, views in readable]) if readable else torch.empty(0, dtype=torch.uint8),
        [views for _, _, views in samples if isinstance(views, Unreadable)],
    )


test_loader.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test by its name
