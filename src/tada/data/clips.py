"""Training clips: a data set over a table of videos, its sampler, and its loader.

Frames, crop and augmentation are drawn from (seed, epoch, sample) alone, so that the number of worker processes
changes nothing and a resumed run draws the same clips. A video that cannot be read is returned as an ``Unreadable``
with its error; the caller decides what to do about it.

Shapes: N clips, T frames, H x W pixels. Clips stay uint8 [T, H, W, 3] up to the device.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tada.data.balance import balanced_order
from tada.data.epochs import LastBatch, steps_of_epoch
from tada.data.loader import VideoLoader, note_reading
from tada.data.loader_timing import LoaderTimes, TimedCollate, TimedDataset
from tada.data.table import LabeledVideo, Unreadable, VideoTable, stamp_of, targets_of
from tada.errors import ChangedVideoError, DataError, OptionError, SegmentOutsideError, VideoError, counted
from tada.video.augment import color_jitter, draw_resized_crop, rand_augment, random_erase
from tada.video.frames import OpenVideo, no_rate, open_footage, probe_footage
from tada.video.sampling import ClipSpec, segment_frames, train_indices
from tada.video.transforms import draw_jitter_and_crop, random_flip, random_reverse, recolor


class Batch(NamedTuple):
    """Training clips of one step on one device."""

    clips: Tensor
    """uint8 [N, T, H, W, 3]"""
    labels: Tensor
    """int64 [N, heads], a class for each head; multi-label: [N, K], 1 or 0"""
    unreadable: list[Unreadable]
    """Videos that could not be read; clips of other videos replace them."""
    paths: list[str]
    """Path of the video of each of the N clips."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random augmentation of a training clip. The fields are those of a recipe."""

    short_side_range: tuple[int, int]
    """Range of the short side before cropping, in pixels."""
    flip_probability: float = 0.0
    """Probability of mirroring a clip."""
    flip_swaps: Sequence[Mapping[int, int | None]]
    """For each head the label of a mirrored clip, for classes that change; None for classes that are not mirrored."""
    reverse_probability: float = 0.0
    """Probability of reversing a clip in time, if its class allows it."""
    reverse_swaps: Sequence[Mapping[int, int]]
    """For each head the label of a reversed clip, for classes that may be reversed."""
    several: bool = False
    """Whether the data are multi-label: one head, any number of labels for a clip."""
    color_strength: float = 0.0
    """How much brightness, contrast and tint change."""
    color_shuffle_probability: float = 0.0
    """Probability of permuting red, green and blue."""
    grayscale_probability: float = 0.0
    """Probability of conversion to grayscale."""
    invert_probability: float = 0.0
    """Probability of inverting the colors."""
    train_crop: int | None = None
    """Side of the square crop, in pixels; None: that of the clip specification."""
    crop_area_range: tuple[float, float] | None = None
    """Area of the crop that is resized to the square, as a fraction of the frame; None: a square crop."""
    crop_ratio_range: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of that crop, width / height."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """How much brightness, contrast, saturation and hue change."""
    color_jitter_probability: float = 1.0
    """Probability of ``color_jitter``."""
    randaugment_operations: int = 0
    """Operations that RandAugment draws for a clip."""
    randaugment_magnitude: float = 9.0
    """Mean magnitude of the operations, from 0 to 10."""
    randaugment_magnitude_std: float = 0.5
    """Standard deviation of the magnitude."""
    erase_probability: float = 0.0
    """Probability of filling a rectangle with noise (random erasing)."""

    def __call__(
        self, clip: Tensor, labels: tuple[int, ...], spec: ClipSpec, rng: np.random.Generator
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Uint8 [T, H, W, 3] of any size -> [T, crop, crop, 3], and its labels."""
        height, width = clip.shape[1:3]
        return self.changed(self.draw_cut(height, width, spec, rng)(clip), labels, spec, rng)

    def draw_cut(self, height: int, width: int, spec: ClipSpec, rng: np.random.Generator) -> Callable[[Tensor], Tensor]:
        """Draw a crop for frames of this size: a function from uint8 [n, H, W, 3] to [n, crop, crop, 3]."""
        side = self.train_crop or spec.crop
        if self.crop_area_range is None:
            return draw_jitter_and_crop(
                height, width, short_side_range=self.short_side_range, crop=side, antialias=spec.antialias, rng=rng
            )
        return draw_resized_crop(
            height,
            width,
            area_range=self.crop_area_range,
            ratio_range=self.crop_ratio_range,
            size=side,
            antialias=spec.antialias,
            rng=rng,
        )

    def changed(
        self, clip: Tensor, labels: tuple[int, ...], spec: ClipSpec, rng: np.random.Generator
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Augment a cropped clip, uint8 [T, crop, crop, 3], and its labels."""
        flip_swaps, reverse_swaps = self.flip_swaps, self.reverse_swaps
        if self.several:  # all of one head
            flip_swaps, reverse_swaps = [flip_swaps[0]] * len(labels), [reverse_swaps[0]] * len(labels)
        clip, labels = random_flip(clip, labels, probability=self.flip_probability, swaps=flip_swaps, rng=rng)
        clip, labels = random_reverse(clip, labels, probability=self.reverse_probability, swaps=reverse_swaps, rng=rng)
        clip = recolor(
            clip,
            strength=self.color_strength,
            shuffle_probability=self.color_shuffle_probability,
            grayscale_probability=self.grayscale_probability,
            invert_probability=self.invert_probability,
            rng=rng,
        )
        mean, std = spec.normalization
        # These were added later: they draw last, and only if enabled, so that older recipes draw the same as before.
        if any(self.color_jitter) and rng.random() < self.color_jitter_probability:
            brightness, contrast, saturation, hue = self.color_jitter
            clip = color_jitter(clip, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, rng=rng)
        if self.randaugment_operations:
            clip = rand_augment(
                clip,
                num_operations=self.randaugment_operations,
                magnitude=self.randaugment_magnitude,
                magnitude_std=self.randaugment_magnitude_std,
                rng=rng,
                mean=mean,
            )
        if self.erase_probability:
            clip = random_erase(clip, probability=self.erase_probability, rng=rng, mean=mean, std=std)
        return clip, labels


class TrainingClip(NamedTuple):
    """A training clip."""

    clip: Tensor
    """uint8 [T, crop, crop, 3]"""
    labels: tuple[int, ...]
    """A class for each head; multi-label: 1 or 0 for each class."""
    unreadable: list[Unreadable]
    """Videos that failed before one could be read."""
    path: str
    """Path of the clip's video."""


def check_rates(table: VideoTable, spec: ClipSpec) -> None:
    """Check that folders of frames have a frame rate if clips or segments are in seconds.

    Raises:
        OptionError: one has none.
    """
    bare = [video for video in table.videos if video.is_frames and video.fps is None]
    if bare and spec.needs_times:
        raise OptionError(no_rate(bare[0].path, f"clips are counted at {spec.fps:g} frames per second"))
    segment = next((video for video in bare if video.start_seconds is not None), None)
    if segment is not None:
        raise OptionError(no_rate(segment.path, f"its segments are in seconds ({segment.source})"))


_ASKED = 100  # videos that are opened to know how long they last


@contextmanager
def open_labeled(video: LabeledVideo) -> Iterator[tuple[OpenVideo, range]]:
    """Open the video of a row of the table: its reader, and the range of frames of the row's segment.

    Raises:
        ChangedVideoError: the file was replaced since the table was read.
        SegmentOutsideError: the file does not hold the segment.
        VideoError: the file cannot be read.
    """
    note_reading(video.path)
    with open_footage(video.path, fps=video.fps) as reader:
        if video.stamp is not None and stamp_of(video.path) != video.stamp:
            raise ChangedVideoError(
                f"{video.path!r} has changed since the data set was read: its size or time is another; start anew",
                video.path,
            )
        try:
            frames = segment_frames(reader.times_seconds, video.start_seconds, video.end_seconds)
        except OptionError as error:
            message = f"{video.path!r}: {error} ({video.source}); mend the times there"
            raise SegmentOutsideError(message, video.path) from error
        yield reader, frames


def typical_seconds(videos: Sequence[LabeledVideo]) -> float | None:
    """Median duration of videos (or of their segments), over some that are evenly spread over the table.

    None if no duration is known, as for folders of frames without a rate.
    """
    found = []
    for video in videos[:: -(-len(videos) // _ASKED) or 1]:
        if video.end_seconds is not None:
            found.append(video.end_seconds - (video.start_seconds or 0.0))
        elif not video.is_frames or video.fps is not None:
            with suppress(VideoError), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # whoever reads it is told
                found.append(probe_footage(video.path, fps=video.fps).duration_seconds - (video.start_seconds or 0.0))
    return float(np.median(found)) if found else None


class TrainingClips(Dataset[TrainingClip]):
    """Data set with one augmented clip of each video, another one in each epoch.

    A video that cannot be read is replaced by one drawn from (seed, epoch, sample), so that a resumed run draws the
    same; the failures are returned with the clip.
    """

    def __init__(self, table: VideoTable, spec: ClipSpec, augmentation: Augmentation, *, seed: int) -> None:
        check_rates(table, spec)
        self.videos, self.heads = table.videos, table.heads
        self.spec = spec
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: tuple[int, int]) -> TrainingClip:
        """The clip of (epoch, sample). Sample ``len(self) + i`` is another random clip of video i.

        Raises:
            DataError: ten videos in a row could not be read.
        """
        epoch, sample = key
        rng = np.random.default_rng((self.seed, epoch, sample))
        failures = []
        for _ in range(10):
            video = self.videos[sample % len(self.videos)]
            try:
                clip, labels = self._clip(video, rng)
            except VideoError as error:
                failures.append(Unreadable(video.path, str(error)))
                sample = int(rng.integers(len(self.videos)))
            else:
                return TrainingClip(clip, labels, failures, video.path)
        raise DataError(f"ten videos in a row could not be read; the last: {failures[-1].message}")

    def _clip(self, video: LabeledVideo, rng: np.random.Generator) -> tuple[Tensor, tuple[int, ...]]:
        with open_labeled(video) as (reader, own):
            times = reader.times_seconds[own.start : own.stop]
            chosen = train_indices(self.spec, times, rng, container_fps=reader.container_fps)
            clip = self._read_small(reader, [own[index] for index in chosen], rng)
        clip, labels = self.augmentation.changed(clip, video.labels, self.spec, rng)
        return clip, targets_of(self.heads, labels)

    def _read_small(self, reader: OpenVideo, indices: list[int], rng: np.random.Generator) -> Tensor:
        """Decode and crop frames, some at a time: uint8 [T, crop, crop, 3]. A VideoError leaves ``rng`` as it was."""
        state, cut = rng.bit_generator.state, None

        def shrink(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
            nonlocal cut
            if cut is None:
                cut = self.augmentation.draw_cut(frames.shape[1], frames.shape[2], self.spec, rng)
            return cut(torch.from_numpy(frames)).numpy()

        try:
            return torch.from_numpy(reader.frames(indices, shrink=shrink))
        except VideoError:
            rng.bit_generator.state = state
            raise


class ResumableBatches(Sampler[list[tuple[int, int]]]):
    """Batch sampler of keys (epoch, sample), in an order that depends on the seed alone.

    A batch is split into ``accumulate`` parts, and each part is split among the processes. ``epoch`` and
    ``first_part`` say where the next iteration starts; they mean the same for any number of processes.

    Samples that do not fill a batch are left out, others in each epoch ("drop"), or random samples of the epoch fill
    it up ("fill"), so that each sample is seen at least once and all steps have the same size, divisible into parts,
    processes and pairs. A repeated sample i has the key ``num_samples + i``, and the data set draws another crop for
    it. With ``classes``, one for each sample, an epoch has the same number of each class (``balanced_order``).
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        last_batch: LastBatch,
        accumulate: int = 1,
        seed: int,
        rank: int = 0,
        world: int = 1,
        classes: Sequence[tuple[int, ...]] | None = None,
    ) -> None:
        if num_samples < batch_size and last_batch == "drop":
            raise DataError(
                f"a batch of {batch_size} is more than the {counted(num_samples, 'training video')}: "
                f"lower --batch-size to {num_samples} or less, or let it be filled up (--last-batch fill)"
            )
        self.num_samples = num_samples
        self.part_size = batch_size // accumulate
        self.num_parts = steps_of_epoch(num_samples, batch_size, last_batch) * accumulate
        self.seed = seed
        self.classes = classes
        self.share = slice(self.part_size * rank // world, self.part_size * (rank + 1) // world)
        self.epoch = 0
        self.first_part = 0

    def __len__(self) -> int:
        """Number of parts in a whole epoch."""
        return self.num_parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        length = self.num_parts * self.part_size
        if self.classes is not None:
            order = balanced_order(self.classes, length, rng)
        else:
            rounds = range(math.ceil(length / self.num_samples))
            order = np.concatenate([rng.permutation(self.num_samples) + i * self.num_samples for i in rounds])
        for part in range(self.first_part, self.num_parts):
            samples = order[part * self.part_size : (part + 1) * self.part_size]
            yield [(self.epoch, int(sample)) for sample in samples[self.share]]


class ResumableLoader(VideoLoader):
    """Loader of training batches whose state is the epoch and the number of batches yielded in it.

    The state counts batches that the loop has received, not those that workers have prefetched, and does not depend
    on the number of workers.
    """

    def __init__(
        self,
        clips: Dataset[Any],
        batches: ResumableBatches,
        *,
        num_workers: int,
        collate: Callable[[Any], Any] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        super().__init__(
            TimedDataset(clips),
            num_workers=num_workers,
            collate=TimedCollate(collate or collate_clips),
            say=say,
            batch_sampler=batches,
        )
        self.batches = batches
        self.received = 0
        self.is_waiting = False
        """Whether the loop waits for a batch: the state is consistent then."""
        self.times = LoaderTimes()

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator serves, and counts
        self.received = self.batches.first_part
        batches = self.times.measured(super().__iter__())
        while True:
            self.is_waiting = True
            batch = next(batches, None)
            self.is_waiting = False
            if batch is None:
                return
            self.received += 1
            if self.received == len(self.batches):
                # The state saved during the last step already points at the next epoch.
                self.batches.epoch += 1
                self.batches.first_part = 0
                self.received = 0
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch and part of the next batch."""
        return {"epoch": self.batches.epoch, "part": self.received}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration start at a saved position."""
        self.batches.epoch = state["epoch"]
        self.batches.first_part = state["part"]


def collate_clips(samples: Sequence[TrainingClip]) -> Batch:
    """Stack clips of one size."""
    clips, labels, failures, paths = zip(*samples, strict=True)
    failed = [failure for some in failures for failure in some]
    return Batch(torch.stack(clips), torch.tensor(labels), failed, list(paths))
