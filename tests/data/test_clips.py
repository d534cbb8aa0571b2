"""Batches are functions of (seed, epoch, sample); unreadable videos are reported."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from drawn_videos import draw_plain, read_stamps
from tada.data.annotations import read_dataset
from tada.data.clips import Augmentation, Batch, ResumableBatches, ResumableLoader, TrainingClips
from tada.data.table import Head, LabeledVideo, VideoTable, stamp_of
from tada.data.views import TestVideos, Views, read_views, test_loader
from tada.errors import ChangedVideoError, DataError, OptionError, SegmentOutsideError
from tada.video.reader import open_video
from tada.video.sampling import ClipSpec, view_indices
from tada.video.transforms import flip_swaps, reverse_swaps

SPEC = ClipSpec(num_frames=4, sampling="segment", short_side=24, crop=20, antialias=True)


def loader(table: VideoTable, *, num_workers: int = 0, seed: int = 0, accumulate: int = 1) -> ResumableLoader:
    augmentation = Augmentation(
        short_side_range=(20, 26),
        flip_probability=0.5,
        flip_swaps=[flip_swaps(table.labels)],
        reverse_probability=0.5,
        reverse_swaps=[reverse_swaps(table.labels)],
        color_strength=0.2,
        grayscale_probability=0.2,
    )
    clips = TrainingClips(table, SPEC, augmentation, seed=seed)
    batches = ResumableBatches(len(table), batch_size=4, last_batch="drop", accumulate=accumulate, seed=seed)
    return ResumableLoader(clips, batches, num_workers=num_workers)


def equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one.clips, other.clips) and torch.equal(one.labels, other.labels)


@pytest.fixture(scope="module")
def table(motion_videos: Path) -> VideoTable:
    return read_dataset(motion_videos)


def test_batches_have_the_promised_form(table: VideoTable) -> None:
    batches = list(loader(table))
    assert len(batches) == len(table) // 4 == 3
    for batch in batches:
        assert batch.clips.shape == (4, 4, 20, 20, 3)
        assert batch.clips.dtype == torch.uint8
        assert batch.labels.shape == (4, 1)
        assert batch.unreadable == []


def test_workers_change_nothing_and_epochs_differ(table: VideoTable) -> None:
    alone, helped = loader(table), loader(table, num_workers=2)
    first = list(alone)
    assert all(map(equal, first, helped))
    second = list(alone)
    assert all(map(equal, second, helped))
    assert not any(map(equal, first, second))


def test_each_epoch_shows_every_sample_at_most_once_in_another_order() -> None:
    batches = ResumableBatches(10, batch_size=3, last_batch="drop", seed=1)
    epochs = []
    for epoch in range(3):
        batches.epoch = epoch
        keys = [key for batch in batches for key in batch]
        assert {key[0] for key in keys} == {epoch}
        samples = [key[1] for key in keys]
        assert len(samples) == len(set(samples)) == 9
        epochs.append(samples)
    assert epochs[0] != epochs[1] != epochs[2]


def test_accumulated_parts_are_the_whole_batches_cut_in_two() -> None:
    whole = [batch for batch in ResumableBatches(10, batch_size=4, last_batch="drop", seed=1)]
    parts = [batch for batch in ResumableBatches(10, batch_size=4, last_batch="drop", accumulate=2, seed=1)]
    assert [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)] == whole


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("received", [0, 1, 2, 3, 4, 5])
def test_a_new_loader_goes_on_where_the_state_was_taken(table: VideoTable, received: int, num_workers: int) -> None:
    straight = loader(table)
    every = [batch for _ in range(3) for batch in straight]

    before = loader(table, num_workers=num_workers)
    handed_out = 0
    state = before.state_dict()
    while handed_out < received:
        for _ in before:
            handed_out += 1
            if handed_out == received:
                state = before.state_dict()
                break
    after = loader(table, num_workers=num_workers)
    after.load_state_dict(state)
    rest = [batch for _ in range(2) for batch in after]
    assert all(equal(one, other) for one, other in zip(rest, every[received:], strict=False))
    assert len(rest) >= 4


def test_too_few_videos_for_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match="a batch of 4 is more than the 3 training videos: lower --batch-size to 3"):
        ResumableBatches(3, batch_size=4, last_batch="drop", seed=0)


@pytest.mark.parametrize(("samples", "batch_size"), [(10, 3), (10, 4), (12, 4), (3, 8), (1, 2), (7, 7)])
def test_a_last_batch_that_is_filled_up_leaves_no_sample_out(samples: int, batch_size: int) -> None:
    batches = ResumableBatches(samples, batch_size=batch_size, last_batch="fill", seed=1)
    drawn = []
    for epoch in range(3):
        batches.epoch = epoch
        found = list(batches)
        assert len(found) == len(batches) == -(-samples // batch_size)
        assert {len(batch) for batch in found} == {batch_size}
        keys = [key for batch in found for key in batch]
        assert len(keys) == len(set(keys)), "a sample that comes once more is drawn otherwise"
        times = Counter(sample % samples for _, sample in keys)
        assert set(times) == set(range(samples))
        assert max(times.values()) - min(times.values()) <= 1
        drawn.append([sample for _, sample in keys])
    if samples > batch_size:
        assert drawn[0] != drawn[1] != drawn[2]


def test_filling_up_changes_none_of_the_batches_before() -> None:
    full = list(ResumableBatches(10, batch_size=4, last_batch="drop", seed=1))
    assert list(ResumableBatches(10, batch_size=4, last_batch="fill", seed=1))[:2] == full


@pytest.mark.parametrize("world", [2, 4])
def test_a_batch_that_is_filled_up_is_dealt_out_evenly(world: int) -> None:
    def batches(rank: int = 0, world: int = 1) -> list[list[tuple[int, int]]]:
        return list(ResumableBatches(13, batch_size=8, last_batch="fill", accumulate=2, seed=3, rank=rank, world=world))

    shares = [batches(rank, world) for rank in range(world)]
    assert {len(part) for share in shares for part in share} == {4 // world}
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == batches()


def test_a_clip_that_comes_once_more_is_another_crop_of_the_same_video(table: VideoTable) -> None:
    clips = TrainingClips(
        table, SPEC, Augmentation(short_side_range=(20, 40), flip_swaps=[{}], reverse_swaps=[{}]), seed=0
    )
    once, again = clips[0, 2], clips[0, 2 + len(table)]
    assert once.path == again.path
    assert once.labels == again.labels
    assert not torch.equal(once.clip, again.clip)


def with_broken(table: VideoTable, folder: Path, count: int) -> VideoTable:
    broken = folder / "broken.mp4"
    broken.write_bytes(b"no video at all, only these words" * 40)
    videos = [replace(video, path=str(broken), stamp=None) for video in table.videos[:count]]
    return replace(table, videos=(*videos, *table.videos[count:]))


def test_an_unreadable_training_video_is_replaced_and_reported_the_same_each_time(
    table: VideoTable, tmp_path: Path
) -> None:
    broken = with_broken(table, tmp_path, 5)
    one, other = list(loader(broken)), list(loader(broken, num_workers=2))
    assert all(map(equal, one, other))
    found = {failure for batch in one for failure in batch.unreadable}
    assert [Path(path).name for path, _ in found] == ["broken.mp4"]
    assert all(batch.clips.shape[0] == 4 for batch in one)


def test_nothing_but_unreadable_videos_is_an_error(table: VideoTable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ten videos in a row could not be read; the last: .*broken\.mp4"):
        next(iter(loader(with_broken(table, tmp_path, len(table)))))


def test_views_lie_where_the_sampling_rule_says(table: VideoTable) -> None:
    spec = ClipSpec(num_frames=4, sampling="segment", short_side=32, crop=32)  # the videos' own size: no scaling
    views = read_views(table.videos[0], spec, Views(num_clips=2, num_crops=1))
    with open_video(table.videos[0].path) as video:
        for i in range(2):
            frames = video.frames(view_indices(spec, video.times_seconds, i, 2))
            np.testing.assert_array_equal(views[i].numpy(), frames)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_official_clips_are_counted_by_the_rate_that_the_file_declares(name: str, tmp_path: Path) -> None:
    """The rate varies, as in recordings of telephones: the released reader takes the file's average for it."""
    spec = ClipSpec(num_frames=8, interval=5, mode="official", short_side=48, crop=48)
    plain = Augmentation(short_side_range=(48, 48), flip_swaps=[{}], reverse_swaps=[{}])
    num_other = 0
    (tmp_path / "x").mkdir()
    for seed in range(4):
        times = np.cumsum(np.random.default_rng(seed).uniform(0.02, 0.07, 120)).tolist()
        path = draw_plain(tmp_path / "x" / name, 120, width=48, times_seconds=times, options={"bf": "0"})
        with av.open(str(path)) as container:
            declared = float(container.streams.video[0].average_rate or 0)
        length = 8 * 5 * declared / 30
        table = read_dataset(tmp_path)
        views = read_views(table.videos[0], spec, Views(num_clips=3))
        for view in range(3):
            start = max(120 - length, 0) * view / 3
            expected = torch.linspace(start, start + length - 1, 8).clamp(0, 119).long().tolist()
            assert read_stamps(views[view].numpy()) == expected
            with open_video(path) as video:
                num_other += view_indices(spec, video.times_seconds, view, 3) != expected
        drawn = TrainingClips(table, spec, plain, seed=seed)[0, 0]
        start = np.random.default_rng((seed, 0, 0)).random() * max(120 - length, 0)
        expected = torch.linspace(start, start + length - 1, 8).clamp(0, 119).long().tolist()
        assert read_stamps(drawn.clip.numpy()) == expected
    assert num_other > 0


def test_three_crops_of_a_square_are_the_same_and_of_a_wide_video_are_not(table: VideoTable) -> None:
    views = read_views(table.videos[0], replace(SPEC, crop=24), Views(num_clips=1, num_crops=3))
    assert torch.equal(views[0], views[1])
    views = read_views(table.videos[0], SPEC, Views(num_clips=2, num_crops=3))
    assert views.shape == (6, 4, 20, 20, 3)
    assert not torch.equal(views[0], views[1])


def test_test_videos_come_in_order_and_the_unreadable_are_listed(table: VideoTable, tmp_path: Path) -> None:
    videos = TestVideos(with_broken(table, tmp_path, 1), SPEC, Views(num_clips=2))
    batches = list(test_loader(videos, clips_per_batch=4, num_workers=0))
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(1, len(table)))
    assert [len(batch.unreadable) for batch in batches] == [1] + [0] * (len(batches) - 1)
    assert batches[1].views.shape == (2, 2, 4, 20, 20, 3)


def test_views_are_read_from_text() -> None:
    assert Views.parse("10x3") == Views(num_clips=10, num_crops=3)
    assert str(Views.parse("2x1")) == "2x1"
    for text in ("10", "x3", "axb", "1x3x1"):
        with pytest.raises(OptionError, match=r"should be CLIPSxCROPS"):
            Views.parse(text)
    with pytest.raises(OptionError, match=r"views 0x1: one clip or more, with 1 or 3 crops"):
        Views.parse("0x1")
    with pytest.raises(OptionError, match=r"views 1x2"):
        Views.parse("1x2")


def stamped(folder: Path, num_frames: int = 60) -> LabeledVideo:
    """A file whose frames carry their numbers, 30 a second."""
    path = draw_plain(folder / "long.mp4", num_frames, width=64, height=64)
    return LabeledVideo(path=str(path), labels=(0,), split=None, group=None, source="x.csv row 2", id="long")


WHOLE_FRAMES = ClipSpec(num_frames=4, sampling="segment", short_side=64, crop=64)


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [(0.5, 1.5, 15, 44), (0.0, 2.0, 0, 59), (1.0, 2.0333, 30, 59), (0.51, 0.52, 15, 15)],
)
def test_clips_of_a_segment_lie_within_it(tmp_path: Path, start: float, end: float, first: int, last: int) -> None:
    video = replace(stamped(tmp_path), start_seconds=start, end_seconds=end)
    views = read_views(video, WHOLE_FRAMES, Views(num_clips=3))
    seen = read_stamps(views.flatten(0, 1).numpy())
    assert min(seen) >= first
    assert max(seen) <= last
    assert max(seen) - min(seen) >= 0.7 * (last - first)
    table = VideoTable(heads=(Head(name="action", labels=("x",)),), videos=(video,), root=str(tmp_path), kind="CSV")
    augmentation = Augmentation(short_side_range=(64, 64), flip_swaps=[{}], reverse_swaps=[{}])
    clips = TrainingClips(table, WHOLE_FRAMES, augmentation, seed=0)
    for epoch in range(8):
        clip, _, failures, _ = clips[epoch, 0]
        assert not failures
        numbers = read_stamps(clip.numpy())
        assert first <= min(numbers) <= max(numbers) <= last


def test_a_segment_outside_of_its_video_is_named_by_its_row(tmp_path: Path) -> None:
    for start, end in ((1.5, 2.1), (2.5, 3.0)):
        video = replace(stamped(tmp_path), start_seconds=start, end_seconds=end)
        message = rf"long.mp4': the segment from {start} to .* lasts 2.00 s \(x.csv row 2\); mend the times there"
        with pytest.raises(SegmentOutsideError, match=message):
            read_views(video, WHOLE_FRAMES, Views())


def test_a_file_that_is_replaced_during_training_is_refused(tmp_path: Path) -> None:
    video = stamped(tmp_path)
    video = replace(video, stamp=stamp_of(video.path))
    read_views(video, WHOLE_FRAMES, Views())
    draw_plain(Path(video.path), 30, width=64, height=64)
    with pytest.raises(ChangedVideoError, match=r"long.mp4' has changed since the data set was read"):
        read_views(video, WHOLE_FRAMES, Views())


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_the_same_batches(world: int) -> None:
    """Joined in the order of ranks, their shares are what one process has."""
    whole = list(ResumableBatches(30, batch_size=8, last_batch="drop", accumulate=2, seed=3))
    shares = [
        list(ResumableBatches(30, batch_size=8, last_batch="drop", accumulate=2, seed=3, rank=r, world=world))
        for r in range(world)
    ]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize(("videos", "world"), [(10, 3), (2, 3), (7, 1)])
def test_ranks_share_test_videos_without_a_double(table: VideoTable, videos: int, world: int) -> None:
    some = TestVideos(replace(table, videos=table.videos[:videos]), SPEC, Views())
    found = [
        int(index)
        for rank in range(world)
        for batch in test_loader(some, clips_per_batch=4, num_workers=0, rank=rank, world=world)
        for index in batch.indices
    ]
    assert sorted(found) == list(range(videos))


def test_a_clip_of_one_frame_repeats_it(tmp_path: Path) -> None:
    video = stamped(tmp_path, num_frames=1)
    for spec in (WHOLE_FRAMES, replace(WHOLE_FRAMES, sampling="interval")):
        assert read_stamps(read_views(video, spec, Views())[0].numpy()) == [0, 0, 0, 0]


def test_a_video_that_vanishes_during_training_is_named(table: VideoTable, tmp_path: Path) -> None:
    gone = replace(table, videos=(replace(table.videos[0], path=str(tmp_path / "gone.mp4")), *table.videos[1:]))
    failures = {failure for batch in loader(gone) for failure in batch.unreadable}
    failures |= {
        failure
        for batch in test_loader(TestVideos(gone, SPEC, Views()), clips_per_batch=4, num_workers=0)
        for failure in batch.unreadable
    }
    assert {Path(path).name for path, _ in failures} == {"gone.mp4"}
    assert all("gone.mp4': no such video (No such file or directory)" in message for _, message in failures)
