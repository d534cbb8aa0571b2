"""The real clips on which the paper's claims are tested, small and in memory, and how they are split.

Shapes: T frames, H x W pixels.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tada.recognition.quickstart import draw_videos
from tada.system.files import write_whole
from tada.video.augment import random_erase
from tada.video.reader import open_video
from tada.video.sampling import ClipSpec, train_indices, view_indices
from tada.video.transforms import normalize

NUM_FRAMES = 8
"""Of a clip, where its task does not say another number."""
_MARGIN = 8
"""An eighth more rows and columns are kept than a clip has, to crop from in training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A data set, a part of its clips, and a split."""

    folder: str
    """Below the data folder; holds clips.csv. Drawn videos lie below the folder of decoded frames."""
    height: int
    """Rows of a clip."""
    width: int
    """Columns of a clip."""
    num_frames: int = NUM_FRAMES
    kind: str | None = None
    """Only clips with this in the column ``kind``."""
    is_mirrored: bool = False
    """Whether half of the training clips are mirrored."""
    is_varied: bool = False
    """Whether training clips are parts of their video, enlarged, turned and erased; test clips are seen
    mirrored too."""
    num_folds: int = 1
    """Run number s is tested on fold s modulo this many: groups f, f + num_folds, ... in alphabetical order."""
    tested: str | None = None
    """In place of folds: the group on which every run is tested."""
    is_drawn: bool = False
    """Whether the videos are the quickstart's, drawn here: eight motions in pairs that are each other's reversal."""


TASKS = {
    "phrases": Task(folder="lips", kind="phrase", height=32, width=64, num_folds=4),
    "words": Task(folder="lips", kind="word", height=32, width=64, num_folds=4),
    "interactions": Task(folder="interactions", height=48, width=64, is_mirrored=True, num_folds=5),
    # Mirrored, left would be right.
    "gestures": Task(folder="gestures", height=48, width=64, tested="A"),
    "generated motions": Task(folder="motions", height=32, width=40, tested="test", is_drawn=True),
}
TASKS |= {
    f"{kind}, best start": replace(TASKS[kind], num_frames=12, height=48, width=80, is_mirrored=True, is_varied=True)
    for kind in ("phrases", "words")
}


class Clips:
    """All frames of a task's videos, a little larger than a clip, as bytes."""

    def __init__(self, task: Task, data: Path, cache: Path) -> None:
        self.task = task
        self._spec = ClipSpec(num_frames=task.num_frames, sampling="segment", short_side=task.height, crop=task.height)
        if task.is_drawn:
            data = cache.parent
            draw(data / task.folder)
        listing = listing_of(task, data)
        with listing.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            lacking = {"video", "label", "group", "kind" if task.kind else "label"} - set(reader.fieldnames or ())
            if lacking:
                raise SystemExit(f"{listing} has no column {min(lacking)!r}")
            rows = [row for row in reader if task.kind is None or row["kind"] == task.kind]
        self.labels = sorted({row["label"] for row in rows})
        self.targets = torch.tensor([self.labels.index(row["label"]) for row in rows])
        self.groups = [row["group"] for row in rows]
        size = (task.height + task.height // _MARGIN, task.width + task.width // _MARGIN)
        if not cache.exists():
            frames = [_frames(data / task.folder / row["video"], size) for row in rows]
            ends = np.cumsum([len(video) for video in frames])
            cache.parent.mkdir(parents=True, exist_ok=True)
            part = cache.with_suffix(".part.npz")
            np.savez(part, frames=np.concatenate(frames), ends=ends, videos=[row["video"] for row in rows])
            part.rename(cache)
        with np.load(cache) as saved:
            if "videos" not in saved or saved["videos"].tolist() != [row["video"] for row in rows]:
                raise SystemExit(f"{cache} is of other clips: remove it")
            self._frames, ends = saved["frames"], saved["ends"]
        self._starts = [0, *ends[:-1]]
        self._lengths = np.diff([0, *ends])

    def split(self, run: int) -> tuple[list[int], list[int]]:
        """The numbers of the clips to train on and to test on, for a run."""
        groups = sorted(set(self.groups))
        folds = self.task.num_folds
        tested = {self.task.tested} if self.task.tested is not None else set(groups[run % folds :: folds])
        every = range(len(self.groups))
        return [i for i in every if self.groups[i] not in tested], [i for i in every if self.groups[i] in tested]

    def training_batch(self, chosen: Sequence[int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Clips [N, 3, T, H, W] with random frames of each segment, cropped and lit at random; targets [N]."""
        draw = self._draw_varied if self.task.is_varied else self._draw
        clips = []
        for i in chosen:
            clip = draw(i, rng)
            if self.task.is_mirrored and rng.random() < 0.5:
                clip = clip.flip(2)
            contrast, brightness = rng.uniform(0.8, 1.25), rng.uniform(-25, 25)
            clip = (clip - clip.mean()) * contrast + clip.mean() + brightness
            clips.append(clip.round().clamp(0, 255).to(torch.uint8))
        return normalize(torch.stack(clips)), self.targets[list(chosen)]

    def _draw(self, i: int, rng: np.random.Generator) -> Tensor:
        """A clip of the whole video, [T, H, W, 3], from a random place of the frame."""
        height, width = self.task.height, self.task.width
        frames = self._clip(i, train_indices(self._spec, np.arange(self._lengths[i], dtype=np.float64), rng))
        top, left = rng.integers(height // _MARGIN + 1), rng.integers(width // _MARGIN + 1)
        return frames[:, top : top + height, left : left + width].float()

    def _draw_varied(self, i: int, rng: np.random.Generator) -> Tensor:
        """A clip [T, H, W, 3] of at least four fifths of the video, from a random part of the frame, turned, erased."""
        length = int(self._lengths[i])
        part = max(round(length * rng.uniform(0.8, 1)), min(length, 4))
        first = int(rng.integers(length - part + 1))
        times = np.arange(part, dtype=np.float64)
        frames = self._clip(i, [first + index for index in train_indices(self._spec, times, rng)]).float()
        # Where each of the clip's pixels comes from, in [-1, 1] of the frame: a part of it, up to 7 degrees turned.
        zoom, stretch, angle = rng.uniform(0.75, 1), np.exp(rng.uniform(-0.15, 0.15)), rng.uniform(-0.12, 0.12)
        h, w = min(1, zoom * stretch), min(1, zoom / stretch)
        y, x = (1 - h) * rng.uniform(-1, 1), (1 - w) * rng.uniform(-1, 1)
        ratio = frames.shape[1] / frames.shape[2]
        turn = [
            [w * np.cos(angle), -h * np.sin(angle) * ratio, x],
            [w * np.sin(angle) / ratio, h * np.cos(angle), y],
        ]
        size = (len(frames), 3, self.task.height, self.task.width)
        grid = F.affine_grid(torch.tensor([turn]).float(), [1, *size[1:]], align_corners=False)
        clip = F.grid_sample(
            frames.permute(0, 3, 1, 2), grid.expand(len(frames), -1, -1, -1), padding_mode="border", align_corners=False
        )
        erased = random_erase(clip.permute(0, 2, 3, 1).round().to(torch.uint8), probability=0.3, rng=rng)
        return erased.float()

    def test_batch(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Clips [N, 3, T, H, W] of the middle frame of each segment, cropped at the center; targets [N]."""
        height, width = self.task.height, self.task.width
        top, left = height // _MARGIN // 2, width // _MARGIN // 2
        clips = []
        for i in chosen:
            times = np.arange(self._lengths[i], dtype=np.float64)
            frames = self._clip(i, view_indices(self._spec, times, 0, 1))
            clips.append(frames[:, top : top + height, left : left + width])
        return normalize(torch.stack(clips)), self.targets[list(chosen)]

    def _clip(self, i: int, indices: Sequence[int]) -> Tensor:
        return torch.from_numpy(self._frames[[self._starts[i] + index for index in indices]])


def listing_of(task: Task, data: Path) -> Path:
    """The list of a task's videos below DATA; without it, the benchmark ends."""
    if not data.is_dir():
        raise SystemExit(f"DATA: there is no folder {data}")
    listing = data / task.folder / "clips.csv"
    if not listing.is_file():
        raise SystemExit(f"DATA: {listing} is missing; give the folder that holds {task.folder}")
    return listing


def draw(folder: Path) -> None:
    """Draw the quickstart's videos, 1,200 to train on and 160 to test on, and then their list, unless it is there."""
    listing = folder / "clips.csv"
    if listing.exists():
        return
    draw_videos(folder, train_videos_per_class=150, test_videos_per_class=20, seed=0)
    lines = ["video,label,group"]
    for file in sorted(folder.glob("*/*/*.mp4")):
        split, label, _ = (name := file.relative_to(folder).as_posix()).split("/")
        lines.append(f"{name},{label},{split}")
    write_whole(listing, ("\n".join(lines) + "\n").encode())


def _frames(file: Path, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A video's frames [L, H, W, 3], resized."""
    with open_video(file) as video:
        frames = torch.from_numpy(video.frames(range(len(video)))).permute(0, 3, 1, 2)
    resized = F.interpolate(frames.float(), size, mode="bilinear", antialias=True).round().clamp(0, 255)
    result: npt.NDArray[np.uint8] = resized.to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return result
