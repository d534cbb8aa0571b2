"""Generated motions: determined by the seed, reverse classes, and the direction their class names."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tada.data.motion import MOTIONS, STROKES, draw_motion, twin, write_motion_videos
from tada.errors import OptionError, UnknownNameError


def draw(motion: str, seed: int, num_frames: int = 16, *, easy: bool = False) -> NDArray[np.uint8]:
    return draw_motion(motion, np.random.default_rng(seed), num_frames=num_frames, width=80, height=64, easy=easy)


@pytest.mark.parametrize("motion", MOTIONS + STROKES)
def test_a_clip_is_a_function_of_the_generator(motion: str) -> None:
    clip = draw(motion, seed=3)
    assert clip.shape == (16, 64, 80, 3)
    assert clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, draw(motion, seed=3))
    assert (clip != draw(motion, seed=4)).mean() > 0.5


@pytest.mark.parametrize("easy", [False, True])
@pytest.mark.parametrize("motion", MOTIONS + STROKES)
def test_backwards_a_class_is_its_twin(motion: str, easy: bool) -> None:
    assert twin(motion) != motion
    assert twin(twin(motion)) == motion
    np.testing.assert_array_equal(draw(motion, seed=5, easy=easy), draw(twin(motion), seed=5, easy=easy)[::-1])


def seen_motion(clip: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Measure (right, down, growing, clockwise) with the optical flow equation, a step from one frame to the next.

    Where something changes, least squares for ``-dI/dt = Ix * u + Iy * v`` with u, v affine in the place.
    """
    total = np.zeros(4)
    frames = clip.astype(np.float64)
    for axis in (1, 2):  # blur by 5 pixels, so that a step is short beside what it moves
        frames = sum(np.roll(frames, shift, axis) for shift in (-2, -1, 0, 1, 2)) / 5
    _, height, width, _ = clip.shape
    y, x = np.mgrid[:height, :width] / height
    for first, second in pairwise(frames):
        change = second - first
        weight = np.abs(change).sum(2)
        iy, ix = np.gradient((first + second) / 2, axis=(0, 1))
        cx, cy = x - np.average(x, weights=weight + 1e-9), y - np.average(y, weights=weight + 1e-9)
        ones = np.ones_like(cx)
        terms = [d * e[..., None] for d in (ix, iy) for e in (ones, cx, cy)]
        matrix = np.stack([term[4:-4, 4:-4].ravel() for term in terms], axis=1)
        u, ux, uy, v, vx, vy = np.linalg.lstsq(matrix, -change[4:-4, 4:-4].ravel(), rcond=None)[0]
        total += (u, v, ux + vy, vx - uy)
    return total


@pytest.mark.parametrize("easy", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("motion", "axis"), [("right", 0), ("down", 1), ("towards", 2), ("clockwise", 3)])
def test_a_class_moves_as_its_name_says(motion: str, axis: int, easy: bool) -> None:
    right = [seen_motion(draw(motion, seed, num_frames=40, easy=easy))[axis] > 0 for seed in range(10)]
    assert sum(right) >= 9


def test_easy_videos_have_a_bright_patch_over_a_dark_scene() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        clip = draw_motion("right", rng, num_frames=8, width=80, height=64, clutter=0, easy=True)
        scene = np.median(clip[0].reshape(-1, 3), axis=0)
        assert scene.max() < 128
        changed = np.abs(clip[0].astype(int) - clip[-1]).sum(2) > 60
        assert clip[0][changed].mean() > scene.mean()


def test_the_files_depend_on_seed_class_and_number_alone(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    write_motion_videos(
        tmp_path / "a",
        videos_per_class=2,
        seed=0,
        clutter=(0.5, 0.5),
        motions=["left", "towards"],
        progress=lambda *s: steps.append(s),
    )
    write_motion_videos(tmp_path / "b", videos_per_class=3, seed=0, clutter=(0.5, 0.5), motions=["towards"])
    write_motion_videos(tmp_path / "c", videos_per_class=1, seed=1, motions=["towards"])
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert sorted(str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*.mp4")) == [
        "left/left_000.mp4",
        "left/left_001.mp4",
        "towards/towards_000.mp4",
        "towards/towards_001.mp4",
    ]
    again = (tmp_path / "b/towards/towards_001.mp4").read_bytes()
    assert (tmp_path / "a/towards/towards_001.mp4").read_bytes() == again
    # With clutter spread over the class, a video's share depends on how many there are.
    write_motion_videos(tmp_path / "d", videos_per_class=2, seed=0, clutter=(0.25, 0.75), motions=["towards"])
    assert (tmp_path / "d/towards/towards_001.mp4").read_bytes() != again
    assert (tmp_path / "c/towards/towards_000.mp4").read_bytes() != again


def test_invalid_motions_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="no motion is called 'lift'; did you mean 'left'"):
        draw("lift", seed=0)
    with pytest.raises(OptionError, match="num_frames = 1 should be at least 2"):
        draw("left", seed=0, num_frames=1)
    with pytest.raises(OptionError, match="videos_per_class = 0"):
        write_motion_videos(Path("nowhere"), videos_per_class=0, seed=0)
