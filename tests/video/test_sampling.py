"""Which frames make a clip: literal lists, and the released code's rules written out with torch."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from tada.errors import OptionError
from tada.system.documents import typed
from tada.video import sampling
from tada.video.sampling import (
    CLIP_NORMALIZATION,
    ClipSpec,
    clip_in_words,
    segment_frames,
    train_indices,
    view_indices,
)


def evenly(num_frames: int, fps: float = 30.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.arange(num_frames) / fps


def in_milliseconds(num_frames: int, fps: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.round(np.arange(num_frames) / fps, 3)


def interval(num_frames: int = 8, step: float = 8, mode: str = "exact", fps: float | None = 30.0) -> ClipSpec:
    return ClipSpec(num_frames=num_frames, interval=step, mode=mode, fps=fps)  # type: ignore[arg-type]


def segment(num_frames: int = 8, mode: str = "exact") -> ClipSpec:
    return ClipSpec(num_frames=num_frames, sampling="segment", mode=mode)  # type: ignore[arg-type]


# --- the released code, with torch as there (base_dataset.py, commit 75b7839), as the oracle -------------------------


def released_interval(length: int, fps: float, view: int, num_views: int, n: int, step: float) -> list[int]:
    clip_length = n * step * fps / 30
    max_idx = max(length - clip_length, 0)
    start = max_idx / 2 if num_views == 1 else max_idx * view / num_views
    index = torch.linspace(start, start + clip_length - 1, n)
    return torch.clamp(index, 0, length - 1).long().tolist()


def has_fused_multiply_add() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def released_segment(length: int, view: int, num_views: int, n: int) -> list[int]:
    edges = torch.linspace(0, length, n + 1)
    if num_views == 1:
        index = (edges[:-1] + edges[1:]) / 2
    else:
        index = edges[:-1] + (edges[1:] - edges[:-1]) * (view + 1) / num_views
    return torch.round(torch.clamp(index, 0, length - 1)).long().tolist()


def test_official_interval_is_the_released_rule_to_the_bit() -> None:
    """As torch computes it with fused multiply-adds; on a machine without, its own answer differs here and there."""
    rng, num_different = np.random.default_rng(0), 0
    for _ in range(2000):
        length, num_views = int(rng.integers(2, 2000)), int(rng.integers(1, 12))
        n, step = int(rng.integers(2, 65)), float(rng.choice([1, 2, 2.5, 4, 5, 8, 16]))
        fps, view = float(rng.choice([10, 12.5, 15, 24, 25, 30, 50, 60])), int(rng.integers(num_views))
        ours = view_indices(interval(n, step, "official"), evenly(length, fps), view, num_views)
        released = released_interval(length, fps, view, num_views, n, step)
        num_different += ours != released
        assert np.abs(np.subtract(ours, released)).max() <= 1, (length, fps, n, step, view)
    assert num_different <= (0 if has_fused_multiply_add() else 10)


def test_official_segment_is_the_released_rule_to_the_bit() -> None:
    rng = np.random.default_rng(1)
    for _ in range(2000):
        length, num_views, n = int(rng.integers(1, 1500)), int(rng.integers(1, 6)), int(rng.integers(1, 65))
        view = int(rng.integers(num_views))
        ours = view_indices(segment(n, "official"), evenly(length), view, num_views)
        assert ours == released_segment(length, view, num_views, n), (length, n, view, num_views)


def test_official_training_uses_the_released_arithmetic() -> None:
    rng = np.random.default_rng(2)
    for seed in range(1000):
        length, n = int(rng.integers(2, 600)), int(rng.integers(2, 33))
        where = np.random.default_rng(seed).random()
        clip_length = n * 8 * 30.0 / 30
        start = where * max(length - clip_length, 0)
        expected = torch.linspace(start, start + clip_length - 1, n).clamp(0, length - 1).long().tolist()
        fps = sampling.average_fps(evenly(length))
        assert fps == pytest.approx(30, rel=1e-12)
        assert train_indices(interval(n, 8, "official"), evenly(length), np.random.default_rng(seed)) == expected

        places = np.random.default_rng(seed).random(n)
        edges = torch.linspace(0, length, n + 1)
        drawn = [edges[i] + (edges[i + 1] - edges[i]) * float(places[i]) for i in range(n)]
        expected = torch.stack(drawn).clamp(0, length - 1).round().long().tolist()
        assert train_indices(segment(n, "official"), evenly(length), np.random.default_rng(seed)) == expected


@pytest.mark.parametrize("seed", range(3))
def test_official_counts_by_the_rate_that_the_file_declares(seed: int) -> None:
    """As the released reader does, whatever the times say: where the rate varies it is another average."""
    rng, differ = np.random.default_rng(seed), 0
    for _ in range(300):
        length, n = int(rng.integers(20, 600)), int(rng.integers(2, 33))
        times = np.cumsum(rng.uniform(0.01, 0.08, length))
        declared = length / float(times[-1] - times[0] + rng.uniform(0.01, 0.08))  # its last frame also lasts
        view, num_views = int(rng.integers(3)), 3
        ours = view_indices(interval(n, 4, "official"), times, view, num_views, container_fps=declared)
        released = released_interval(length, declared, view, num_views, n, 4)
        assert np.abs(np.subtract(ours, released)).max() <= (0 if has_fused_multiply_add() else 1)
        differ += ours != view_indices(interval(n, 4, "official"), times, view, num_views)

        where = np.random.default_rng(seed).random()
        clip_length = n * 4 * declared / 30
        start = where * max(length - clip_length, 0)
        expected = torch.linspace(start, start + clip_length - 1, n).clamp(0, length - 1).long().tolist()
        drawn = train_indices(interval(n, 4, "official"), times, np.random.default_rng(seed), container_fps=declared)
        assert np.abs(np.subtract(drawn, expected)).max() <= (0 if has_fused_multiply_add() else 1)
        # The exact rules go by the frames' own times.
        for spec in (interval(n, 4), interval(n, 4, fps=None), segment(n), segment(n, "official")):
            assert view_indices(spec, times, view, 3, container_fps=1000.0) == view_indices(spec, times, view, 3)
    assert differ > 10


# --- literal lists ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "times", "view", "num_views", "expected"),
    [
        # official: a window of 64 frames is walked in steps of 9, so that the last sample is its last frame
        (interval(mode="official"), evenly(64), 0, 1, [0, 9, 18, 27, 36, 45, 54, 63]),
        (interval(mode="official"), evenly(300), 0, 1, [118, 127, 136, 145, 154, 163, 172, 181]),
        (interval(mode="official"), evenly(300), 9, 10, [212, 221, 230, 239, 248, 257, 266, 275]),
        (interval(16, 5, "official"), evenly(80), 0, 1, [0, 5, 10, 15, 21, 26, 31, 36, 42, 47, 52, 57, 63, 68, 73, 79]),
        (interval(mode="official"), evenly(128, 60), 0, 1, [0, 18, 36, 54, 72, 90, 108, 127]),
        (interval(mode="official"), evenly(20), 3, 10, [0, 9, 18, 19, 19, 19, 19, 19]),
        (interval(mode="official", fps=None), evenly(64, 60), 0, 1, [0, 9, 18, 27, 36, 45, 54, 63]),
        (interval(1, 8, "official"), evenly(50), 0, 1, [21]),
        # exact: steps of 8; the middle, the first frame, the last
        (interval(), evenly(64), 0, 1, [3, 11, 19, 27, 35, 43, 51, 59]),
        (interval(), evenly(64), 0, 3, [0, 8, 16, 24, 32, 40, 48, 56]),
        (interval(), evenly(64), 1, 3, [3, 11, 19, 27, 35, 43, 51, 59]),
        (interval(), evenly(64), 2, 3, [7, 15, 23, 31, 39, 47, 55, 63]),
        (interval(), evenly(300, 60), 0, 2, [0, 16, 32, 48, 64, 80, 96, 112]),
        (interval(), evenly(300, 60), 1, 2, [187, 203, 219, 235, 251, 267, 283, 299]),
        (interval(fps=None), evenly(64, 60), 0, 2, [0, 8, 16, 24, 32, 40, 48, 56]),
        (interval(4, 10), evenly(100, 15), 0, 2, [0, 5, 10, 15]),
        (interval(), evenly(20), 0, 1, [0, 8, 16, 19, 19, 19, 19, 19]),
        (interval(), evenly(20), 1, 2, [0, 8, 16, 19, 19, 19, 19, 19]),
        (interval(1), evenly(51), 0, 1, [25]),
        (interval(4, 2.5), evenly(100), 0, 2, [0, 2, 5, 7]),
        # segments
        (segment(mode="official"), evenly(48), 0, 1, [3, 9, 15, 21, 27, 33, 39, 45]),
        (segment(mode="official"), evenly(48), 0, 2, [3, 9, 15, 21, 27, 33, 39, 45]),
        (segment(mode="official"), evenly(48), 1, 2, [6, 12, 18, 24, 30, 36, 42, 47]),
        (segment(mode="official"), evenly(40), 0, 1, [2, 8, 12, 18, 22, 28, 32, 38]),  # halves to even
        (segment(mode="official"), evenly(3), 0, 1, [0, 1, 1, 1, 2, 2, 2, 2]),
        (segment(), evenly(48), 0, 1, [3, 9, 15, 21, 27, 33, 39, 45]),
        (segment(), evenly(48), 0, 2, [1, 7, 13, 19, 25, 31, 37, 43]),
        (segment(), evenly(48), 1, 2, [4, 10, 16, 22, 28, 34, 40, 46]),
        (segment(), evenly(8), 0, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (segment(), evenly(4), 0, 1, [0, 0, 1, 1, 2, 2, 3, 3]),
        (segment(1), evenly(9), 0, 1, [4]),
    ],
)
def test_view_indices_equal_literal_lists(
    spec: ClipSpec, times: Any, view: int, num_views: int, expected: list[int]
) -> None:
    assert view_indices(spec, times, view, num_views) == expected


# The released code's frames, computed once by the two functions above and stated here, whatever becomes of them:
# (frames in the video, fps, frames in a clip, interval, view, views) and the frames.
OFFICIAL_INTERVAL = [
    ((250, 25.0, 8, 8, 0, 10), [0, 7, 14, 22, 29, 37, 44, 52]),
    ((250, 25.0, 8, 8, 5, 10), [98, 105, 113, 120, 128, 135, 143, 150]),
    ((250, 25.0, 8, 8, 9, 10), [177, 184, 191, 199, 206, 214, 221, 229]),
    ((300, 30000 / 1001, 8, 8, 4, 10), [94, 103, 112, 121, 130, 139, 148, 157]),
    ((300, 30.0, 16, 5, 0, 10), [0, 5, 10, 15, 21, 26, 31, 36, 42, 47, 52, 57, 63, 68, 73, 79]),
    ((300, 30.0, 16, 5, 7, 10), [154, 159, 164, 169, 175, 180, 185, 190, 196, 201, 206, 211, 217, 222, 227, 233]),
    ((500, 50.0, 16, 5, 0, 1), [183, 192, 200, 209, 218, 227, 236, 245, 253, 262, 271, 280, 289, 298, 306, 315]),
    ((120, 60.0, 8, 8, 2, 10), [0, 18, 36, 54, 72, 90, 108, 119]),
    ((600, 60.0, 8, 8, 3, 4), [354, 372, 390, 408, 426, 444, 462, 481]),
    ((90, 15.0, 16, 5, 3, 4), [37, 40, 42, 45, 47, 50, 53, 55, 58, 60, 63, 66, 68, 71, 73, 76]),
    ((40, 30.0, 16, 5, 1, 4), [0, 5, 10, 15, 21, 26, 31, 36, 39, 39, 39, 39, 39, 39, 39, 39]),
    (
        (600, 60.0, 32, 2, 9, 10),
        [
            424,
            428,
            432,
            437,
            441,
            445,
            449,
            453,
            457,
            461,
            465,
            469,
            473,
            478,
            482,
            486,
            490,
            494,
            498,
            502,
            506,
            510,
            514,
            519,
            523,
            527,
            531,
            535,
            539,
            543,
            547,
            551,
        ],
    ),
]
# (frames in the video, frames in a clip, view, views)
OFFICIAL_SEGMENTS = [
    ((48, 16, 0, 1), [2, 4, 8, 10, 14, 16, 20, 22, 26, 28, 32, 34, 38, 40, 44, 46]),
    ((48, 16, 0, 2), [2, 4, 8, 10, 14, 16, 20, 22, 26, 28, 32, 34, 38, 40, 44, 46]),
    ((48, 16, 1, 2), [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45, 47]),
    ((37, 8, 0, 2), [2, 7, 12, 16, 21, 25, 30, 35]),
    ((37, 8, 1, 2), [5, 9, 14, 18, 23, 28, 32, 36]),
    ((12, 16, 0, 1), [0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 11]),
    ((12, 16, 1, 2), [1, 2, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 10, 11, 11]),
    ((113, 8, 0, 1), [7, 21, 35, 49, 64, 78, 92, 106]),
]


@pytest.mark.parametrize(("case", "expected"), OFFICIAL_INTERVAL)
def test_the_table_of_official_intervals(case: tuple[int, float, int, float, int, int], expected: list[int]) -> None:
    length, fps, n, step, view, num_views = case
    assert view_indices(interval(n, step, "official"), evenly(length, fps), view, num_views) == expected


@pytest.mark.parametrize(("case", "expected"), OFFICIAL_SEGMENTS)
def test_the_table_of_official_segments(case: tuple[int, int, int, int], expected: list[int]) -> None:
    length, n, view, num_views = case
    assert view_indices(segment(n, "official"), evenly(length), view, num_views) == expected


@pytest.mark.parametrize("spec", [interval(), interval(mode="official"), segment(), segment(mode="official")])
def test_a_video_of_one_frame_is_repeated(spec: ClipSpec) -> None:
    assert view_indices(spec, [0.0], 0, 1) == [0] * 8
    assert train_indices(spec, [0.0], np.random.default_rng(0)) == [0] * 8


def test_exact_follows_the_clock_where_the_rate_varies() -> None:
    # 30 frames in the first second, then one a second: steps of one second find each of the slow frames
    times = np.concatenate([np.arange(30) / 30, np.arange(1, 8)])
    assert view_indices(interval(8, 30), times, 0, 1) == [0, 30, 31, 32, 33, 34, 35, 36]
    # segments last one second each of the nearly 7.2: not four frames and a half each
    assert view_indices(segment(7), times, 0, 1) == [15, 30, 31, 32, 33, 34, 35]


@pytest.mark.parametrize("fps", [10.0, 24.0, 25.0, 30.0, 60.0, 30000 / 1001, 24000 / 1001])
@pytest.mark.parametrize("spec", [interval(), interval(mode="official"), segment(), interval(fps=None)])
def test_times_rounded_to_milliseconds_change_nothing(spec: ClipSpec, fps: float) -> None:
    for length in (150, 299, 300, 1000):
        for num_views in (1, 2, 10):
            exact, rounded = evenly(length, fps), in_milliseconds(length, fps)
            for view in range(num_views):
                pairs = zip(
                    view_indices(spec, exact, view, num_views),
                    view_indices(spec, rounded, view, num_views),
                    strict=True,
                )
                # Where a sample point falls between two frames, a millisecond may decide; never by more than one.
                assert all(abs(a - b) <= (spec.mode == "exact") for a, b in pairs)
    if spec.sampling == "interval" and spec.mode == "exact" and fps == 30.0:
        assert view_indices(spec, in_milliseconds(300, fps), 0, 2) == list(range(0, 57, 8))


# --- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["official", "exact"])
@pytest.mark.parametrize("kind", ["interval", "segment"])
def test_indices_are_in_the_video_and_never_decrease(kind: str, mode: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(500):
        times = np.cumsum(rng.exponential(0.04, int(rng.integers(1, 200)))) + 1e-4
        spec = ClipSpec(num_frames=int(rng.integers(1, 40)), sampling=kind, mode=mode)  # type: ignore[arg-type]
        num_views = int(rng.integers(1, 5))
        clips = [train_indices(spec, times, rng)]
        clips += [view_indices(spec, times, view, num_views) for view in range(num_views)]
        for clip in clips:
            assert len(clip) == spec.num_frames
            assert all(type(index) is int for index in clip)
            assert clip == sorted(clip)
            assert 0 <= clip[0] <= clip[-1] < len(times)


def test_exact_views_reach_from_the_first_frame_to_the_last() -> None:
    for length in (57, 100, 1234):
        assert view_indices(interval(), evenly(length), 0, 10)[0] == 0
        assert view_indices(interval(), evenly(length), 9, 10)[-1] == length - 1


def test_exact_segment_views_are_all_different() -> None:
    views = [view_indices(segment(), evenly(96), view, 4) for view in range(4)]
    for part in range(8):
        chosen = [view[part] for view in views]
        assert len(set(chosen)) == 4
        assert all(12 * part <= index < 12 * (part + 1) for index in chosen)


def test_exact_training_starts_are_all_as_likely() -> None:
    rng = np.random.default_rng(0)
    starts = [train_indices(interval(), evenly(64), rng)[0] for _ in range(8000)]
    counts = np.bincount(starts, minlength=8)
    assert len(counts) == 8  # the clip spans 57 frames of 64
    assert counts.min() > 850  # 1000 expected, standard deviation 30


def test_training_takes_every_frame_of_every_segment() -> None:
    rng = np.random.default_rng(0)
    clips = np.array([train_indices(segment(4), evenly(16), rng) for _ in range(400)])
    for part in range(4):
        assert sorted(set(clips[:, part])) == [4 * part, 4 * part + 1, 4 * part + 2, 4 * part + 3]


def test_training_indices_depend_only_on_the_generator() -> None:
    for spec in (interval(), interval(mode="official"), segment(), segment(mode="official")):
        a = train_indices(spec, evenly(500), np.random.default_rng(7))
        assert a == train_indices(spec, evenly(500), np.random.default_rng(7))
        assert a != train_indices(spec, evenly(500), np.random.default_rng(8))


def test_times_may_begin_anywhere() -> None:
    assert view_indices(interval(), evenly(64) + 5, 0, 1) == view_indices(interval(), evenly(64), 0, 1)


# --- the specification ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"num_frames": 0}, "num_frames=0 must be at least 1"),
        ({"sampling": "dense"}, "sampling='dense' must be"),
        ({"interval": 0}, "interval=0 must be a positive"),
        ({"interval": float("nan")}, "interval=nan must be a positive"),
        ({"fps": -1.0}, r"fps=-1.0 must be a positive rate, or None"),
        ({"mode": "offical"}, "mode='offical' must be 'official' or 'exact'"),
        ({"crop": 0}, "crop=0 must be at least 1 pixel"),
        ({"crop": 300}, "crop=300 does not fit in short_side=256"),
        ({"mean": (0.5, 0.5)}, r"mean=\(0.5, 0.5\) must be three finite numbers, for red, green and blue, or None"),
        ({"mean": 0.5}, "mean=0.5 must be three finite numbers"),
        ({"mean": ("a", 0, 0)}, r"mean=\('a', 0, 0\) must be three finite numbers"),
        ({"mean": [0.5, float("nan"), 0]}, r"mean=\[0.5, nan, 0\] must be three finite numbers"),
        ({"std": [0.5, 0, 0.5]}, r"std=\[0.5, 0, 0.5\] must be three positive, finite numbers"),
        ({"std": [0.5, float("inf"), 0.5]}, r"std=\[0.5, inf, 0.5\] must be three positive, finite numbers"),
    ],
)
def test_a_field_out_of_range_is_named(fault: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ClipSpec(**{"num_frames": 8, **fault})


def test_a_specification_survives_json() -> None:
    spec = ClipSpec(num_frames=16, interval=2.5, fps=None, mode="official", mean=(0.4, 0.5, 0.6), std=(1, 1, 1))
    assert ClipSpec(**json.loads(json.dumps(dataclasses.asdict(spec)))) == spec
    assert typed(ClipSpec, json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


def test_normalization_is_named_where_it_is_not_the_default() -> None:
    plain = ClipSpec(num_frames=4, sampling="segment")
    explicit = dataclasses.replace(plain, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))
    assert plain.normalization == explicit.normalization == ((0.45,) * 3, (0.225,) * 3)
    assert clip_in_words(plain) == clip_in_words(explicit)
    other = dataclasses.replace(plain, mean=CLIP_NORMALIZATION[0])
    assert other.normalization == (CLIP_NORMALIZATION[0], (0.225,) * 3)
    assert clip_in_words(other) == (
        f"{clip_in_words(plain)}, normalized by mean 0.4815, 0.4578, 0.4082 and deviation 0.225, 0.225, 0.225"
    )


def test_every_field_has_a_line_of_documentation() -> None:
    from pathlib import Path

    source = Path(sampling.__file__).read_text(encoding="utf-8")
    for field in dataclasses.fields(ClipSpec):
        line = source.index(f"\n    {field.name}: ")
        assert source[line + 1 :].split("\n")[1].startswith('    """'), field.name


def test_what_cannot_be_sampled_is_refused() -> None:
    with pytest.raises(OptionError, match="at least one frame"):
        view_indices(interval(), [], 0, 1)
    with pytest.raises(OptionError, match="view=2 must be from 0 to num_views - 1 = 1"):
        view_indices(interval(), evenly(10), 2, 2)


# --- segments of a longer video -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "frames"),
    [
        (None, None, range(0, 60)),
        (0.0, 2.0, range(0, 60)),
        (0.5, 1.0, range(15, 30)),
        (0.51, 1.01, range(16, 31)),  # the frame that appears at 1.0 s is within
        (0.51, 0.52, range(15, 16)),  # shorter than a frame: the one that is shown
        (1.9, 2.03, range(57, 60)),  # one frame past the end
        (0.0, 0.001, range(0, 1)),
    ],
)
def test_the_frames_of_a_segment(start: float | None, end: float | None, frames: range) -> None:
    assert segment_frames(evenly(60), start, end) == frames


def test_the_frames_of_a_segment_at_a_rate_that_varies() -> None:
    assert segment_frames([0.0, 0.1, 1.0, 1.1, 3.0], 0.1, 1.1) == range(1, 3)
    assert segment_frames(in_milliseconds(60, 30), 0.5, 1.0) == range(15, 30)


@pytest.mark.parametrize(("start", "end"), [(2.0, 3.0), (1.0, 2.04), (100.0, 101.0)])
def test_a_segment_outside_of_the_video_is_refused(start: float, end: float) -> None:
    with pytest.raises(OptionError, match=r"the segment from .* s is not within the video, which lasts 2.00 s"):
        segment_frames(evenly(60), start, end)
