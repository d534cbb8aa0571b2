"""From frames to the network's input: against plain float arithmetic, the released code's rules, and by hand."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tada.errors import OptionError
from tada.video import transforms
from tada.video.transforms import (
    center_crop,
    crop,
    flip_swaps,
    jitter_and_crop,
    normalize,
    random_flip,
    random_reverse,
    recolor,
    resize_short_side,
    reverse_swaps,
    three_crops,
)


def noise(height: int, width: int, num_frames: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_frames, height, width, 3), dtype=torch.uint8, generator=generator)


def coordinates(height: int, width: int) -> Tensor:
    """A frame whose pixels hold their own row and column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.zeros_like(rows)], dim=-1)[None].to(torch.uint8)


# --- resizing ---------------------------------------------------------------------------------------------------------


def in_plain_floats(clip: Tensor, height: int, width: int, *, antialias: bool, dtype: torch.dtype) -> Tensor:
    """The clip as the released code resizes it, in floating point: [T, height, width, 3]."""
    frames = clip.permute(0, 3, 1, 2).contiguous().to(dtype)
    return F.interpolate(frames, (height, width), mode="bilinear", antialias=antialias).permute(0, 2, 3, 1)


SIZES = [
    # height, width, short side -> height, width; the long side is int(long / short * side)
    (48, 64, 24, 24, 32),
    (240, 320, 256, 256, 341),
    (320, 240, 256, 341, 256),
    (241, 321, 100, 100, 133),
    (50, 50, 77, 77, 77),
    (90, 160, 90, 90, 160),
    (256, 340, 224, 224, 297),
]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("height", "width", "side", "new_height", "new_width"), SIZES)
def test_resizing_is_the_float_resize_rounded(
    height: int, width: int, side: int, new_height: int, new_width: int, antialias: bool
) -> None:
    clip = noise(height, width)
    resized = resize_short_side(clip, side, antialias=antialias)
    assert resized.shape == (2, new_height, new_width, 3)
    plain = in_plain_floats(clip, new_height, new_width, antialias=antialias, dtype=torch.float32)
    assert torch.equal(resized, plain.round().to(torch.uint8))
    # Single precision finds its place in a frame to within a few millionths of its width: no more than that is lost.
    truth = in_plain_floats(clip, new_height, new_width, antialias=antialias, dtype=torch.float64)
    assert (resized - truth).abs().max() < 0.52


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("height", "width", "side", "new_height", "new_width"), SIZES)
def test_the_fast_resize_is_within_a_level(
    height: int, width: int, side: int, new_height: int, new_width: int, antialias: bool
) -> None:
    clip = noise(height, width)
    exact = resize_short_side(clip, side, antialias=antialias).int()
    fast = resize_short_side(clip, side, antialias=antialias, exact=False).int()
    assert (fast - exact).abs().max() <= 1


def test_resizing_matches_the_released_arithmetic_after_normalizing() -> None:
    """There the clip is normalized first and resized as floats; the difference is our one rounding."""
    clip = noise(120, 160)
    released = (clip.permute(3, 0, 1, 2).float() / 255 - 0.45) / 0.225
    released = F.interpolate(released, size=(112, int(160 / 120 * 112)), mode="bilinear")
    ours = normalize(resize_short_side(clip, 112, antialias=False))
    torch.testing.assert_close(ours, released, rtol=0, atol=0.51 / 255 / 0.225)


def test_a_frame_of_the_right_size_is_left_alone() -> None:
    clip = noise(32, 40)
    assert resize_short_side(clip, 32, antialias=False) is clip


# --- cutting ----------------------------------------------------------------------------------------------------------


def corner(clip: Tensor) -> tuple[int, int]:
    row, column, _ = clip[0, 0, 0].tolist()
    return row, column


@pytest.mark.parametrize(
    ("height", "width", "size", "corners"),
    [
        (20, 31, 20, [(0, 0), (0, 5), (0, 11)]),
        (31, 20, 20, [(0, 0), (5, 0), (11, 0)]),
        (24, 32, 20, [(2, 0), (2, 6), (2, 12)]),
        (20, 20, 16, [(0, 2), (2, 2), (4, 2)]),  # a square counts as upright, as in the released code
    ],
)
def test_three_crops_lie_along_the_longer_side(
    height: int, width: int, size: int, corners: list[tuple[int, int]]
) -> None:
    crops = three_crops(coordinates(height, width), size)
    assert [corner(square) for square in crops] == corners
    assert all(square.shape == (1, size, size, 3) for square in crops)
    assert corner(center_crop(coordinates(height, width), size)) == corners[1]


def test_crops_for_testing() -> None:
    clip = noise(90, 160)
    (one,) = transforms.test_crops(clip, short_side=45, crop=40, num_crops=1, antialias=False)
    left, middle, right = transforms.test_crops(clip, short_side=45, crop=40, num_crops=3, antialias=False)
    resized = resize_short_side(clip, 45, antialias=False)
    assert torch.equal(one, resized[:, 2:42, 20:60])
    assert torch.equal(middle, one)
    assert torch.equal(left, resized[:, 2:42, :40])
    assert torch.equal(right, resized[:, 2:42, 40:])
    with pytest.raises(OptionError, match="num_crops=2 must be 1 or 3"):
        transforms.test_crops(clip, short_side=45, crop=40, num_crops=2, antialias=False)  # type: ignore[arg-type]


def test_a_square_outside_of_the_frame_is_refused() -> None:
    with pytest.raises(OptionError, match=r"a square of 24 at \(0, 10\) does not lie in frames of 32x24"):
        crop(noise(24, 32), 0, 10, 24)
    with pytest.raises(OptionError, match="does not lie in frames"):
        center_crop(noise(24, 32), 25)


def test_jitter_reaches_every_side_and_every_place() -> None:
    rng = np.random.default_rng(0)
    clip = coordinates(40, 60)
    corners = [
        corner(jitter_and_crop(clip, short_side_range=(40, 40), crop=38, antialias=False, rng=rng)) for _ in range(900)
    ]
    assert {row for row, _ in corners} == {0, 1, 2}
    assert {column for _, column in corners} == set(range(23))

    sides = set()
    for _ in range(60):
        state = rng.bit_generator.state
        square = jitter_and_crop(clip, short_side_range=(30, 33), crop=24, antialias=False, rng=rng)
        after, rng.bit_generator.state = rng.bit_generator.state, state
        side = int(rng.integers(30, 33, endpoint=True))
        sides.add(side)
        resized = resize_short_side(clip, side, antialias=False, exact=False)
        top = int(rng.integers(0, side - 24, endpoint=True))
        left = int(rng.integers(0, resized.shape[2] - 24, endpoint=True))
        assert torch.equal(square, resized[:, top : top + 24, left : left + 24])
        rng.bit_generator.state = after
    assert sides == {30, 31, 32, 33}


@pytest.mark.parametrize("sides", [(20, 40), (50, 40)])
def test_jitter_refuses_a_range_that_does_not_fit(sides: tuple[int, int]) -> None:
    with pytest.raises(OptionError, match=r"short_side_range=\(\d+, 40\) must ascend and not be below crop=24"):
        jitter_and_crop(noise(40, 60), short_side_range=sides, crop=24, antialias=False, rng=np.random.default_rng(0))


# --- mirroring --------------------------------------------------------------------------------------------------------

SOMETHING_SOMETHING = [
    "Holding something",
    "Pulling something from left to right",
    "Pulling something from right to left",
    "Turning the camera left while filming something",
    "Turning the camera right while filming something",
    "Pushing something so that it falls off the table",
]


def test_mirror_classes_are_found_by_name() -> None:
    assert flip_swaps(SOMETHING_SOMETHING) == {1: 2, 2: 1, 3: 4, 4: 3}
    assert flip_swaps(["Swiping Left", "Swiping Right", "Stop"]) == {0: 1, 1: 0}
    assert flip_swaps(["turn_left", "turn-right"]) == {0: 1, 1: 0}
    assert flip_swaps(["TurnLeft", "TurnRight", "Sleft", "Bright"]) == {0: 1, 1: 0}
    assert flip_swaps(["spin clockwise", "spin counter-clockwise"]) == {0: 1, 1: 0}
    assert flip_swaps(["Anticlockwise", "Clockwise"]) == {0: 1, 1: 0}
    assert flip_swaps(["turn anti_clockwise", "turn clockwise"]) == {0: 1, 1: 0}
    assert flip_swaps(["copyright", "leftovers", "upright", "clockwiser"]) == {}


def test_a_direction_without_its_mirror_is_never_mirrored() -> None:
    assert flip_swaps(["moving left", "moving up"]) == {0: None}
    assert flip_swaps(["turn left", "Turn_Left", "turn right"]) == {0: None, 1: None, 2: None}
    clip = noise(8, 8)
    for seed in range(20):
        flipped, label = random_flip(clip, (0,), probability=1.0, swaps=[{0: None}], rng=np.random.default_rng(seed))
        assert flipped is clip
        assert label == (0,)


def test_label_and_picture_always_agree() -> None:
    """A clip of class 'left' is bright on its left; wherever the light is afterwards, the label must say so."""
    swaps, rng = flip_swaps(["go left", "go right", "stay"]), np.random.default_rng(0)
    left = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    left[:, :, :4] = 255
    num_flipped = 0
    for _ in range(400):
        clip, (label,) = random_flip(left, (0,), probability=0.5, swaps=[swaps], rng=rng)
        assert label == (0 if clip[0, 0, 0, 0] == 255 else 1)
        num_flipped += label
        clip, (label,) = random_flip(left, (2,), probability=0.5, swaps=[swaps], rng=rng)
        assert label == 2
    assert 160 < num_flipped < 240
    assert torch.equal(random_flip(left, (1,), probability=1.0, swaps=[swaps], rng=rng)[0], left.flip(2))
    assert random_flip(left, (1,), probability=0.0, swaps=[swaps], rng=rng) == (left, (1,))


# The six classes of Something-Something-v2 that the released code swaps, with their numbers and names there.
DIRECTED = {
    86: "Pulling something from left to right",
    87: "Pulling something from right to left",
    93: "Pushing something from left to right",
    94: "Pushing something from right to left",
    166: "Turning the camera left while filming something",
    167: "Turning the camera right while filming something",
}


def test_the_six_directed_classes_of_something_something_swap() -> None:
    labels = [DIRECTED.get(i, f"Doing {i} with something") for i in range(174)]
    swaps = flip_swaps(labels)
    assert swaps == {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}
    clip = noise(8, 8)
    for label in DIRECTED:
        mirrored, (after,) = random_flip(clip, (label,), probability=1.0, swaps=[swaps], rng=np.random.default_rng(0))
        assert torch.equal(mirrored, clip.flip(2))
        exchanged = DIRECTED[label].replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")
        assert DIRECTED[after] == exchanged


def test_all_labels_of_a_clip_turn_with_it_or_none() -> None:
    clip, rng = noise(8, 8), np.random.default_rng(0)
    mirrored, labels = random_flip(clip, (0, 5), probability=1.0, swaps=[{0: 1, 1: 0}, {}], rng=rng)
    assert labels == (1, 5)
    assert torch.equal(mirrored, clip.flip(2))
    assert random_flip(clip, (0, 5), probability=1.0, swaps=[{0: 1}, {5: None}], rng=rng) == (clip, (0, 5))
    assert random_reverse(clip, (0, 5), probability=1.0, swaps=[{0: 1}, {}], rng=rng) == (clip, (0, 5))


# --- normalizing ------------------------------------------------------------------------------------------------------


def test_normalize_by_hand() -> None:
    clip = noise(4, 5, num_frames=3)
    ours = normalize(clip[None])
    assert ours.shape == (1, 3, 3, 4, 5)
    assert ours.dtype == torch.float32
    by_hand = (clip.permute(3, 0, 1, 2)[None].double() / 255 - 0.45) / 0.225
    torch.testing.assert_close(ours.double(), by_hand, rtol=0, atol=1e-6)
    assert torch.equal(normalize(clip), ours[0])
    assert torch.equal(normalize(clip[None, None])[0], ours)
    assert clip.dtype == torch.uint8
    assert normalize(clip, dtype=torch.float64).dtype == torch.float64
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    by_channel = normalize(clip, mean, std, dtype=torch.float64)
    for channel in range(3):
        by_hand = (clip[..., channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(by_channel[channel], by_hand, rtol=0, atol=1e-15)


@pytest.mark.parametrize("clip", [torch.zeros(2, 4, 4, 3), torch.zeros(4, 4, 3, dtype=torch.uint8)])
def test_normalize_refuses_what_is_no_clip(clip: Tensor) -> None:
    with pytest.raises(OptionError, match=r"they must be uint8 \[..., T, H, W, 3\]"):
        normalize(clip)


# --- backwards ----------------------------------------------------------------------------------------------------


def test_classes_that_are_each_other_backwards() -> None:
    labels = ["left", "right", "Move Up", "move_down", "towards", "away", "clockwise", "anti-clockwise"]
    labels += ["circle", "circle_backwards", "tick", "pull"]
    assert reverse_swaps(labels) == {0: 1, 1: 0, 2: 3, 3: 2, 4: 5, 5: 4, 6: 7, 7: 6, 8: 9, 9: 8}


def test_a_reversed_clip_takes_the_other_label() -> None:
    clip = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 2, 2, 3)
    rng = np.random.default_rng(0)
    reversed_clip, (label,) = random_reverse(clip, (0,), probability=1.0, swaps=[{0: 1, 1: 0}], rng=rng)
    assert label == 1
    assert reversed_clip[:, 0, 0, 0].tolist() == [3, 2, 1, 0]
    for probability, swaps in ((0.0, {0: 1}), (1.0, {1: 0})):
        same, (label,) = random_reverse(clip, (0,), probability=probability, swaps=[swaps], rng=rng)
        assert label == 0
        assert torch.equal(same, clip)


# --- color -------------------------------------------------------------------------------------------------------

NO_CHANGE = {"strength": 0.0, "shuffle_probability": 0.0, "grayscale_probability": 0.0, "invert_probability": 0.0}


def recolored(clip: Tensor, seed: int = 0, **changes: float) -> Tensor:
    return recolor(clip, **{**NO_CHANGE, **changes}, rng=np.random.default_rng(seed))  # type: ignore[arg-type]


def test_colors_change_as_their_names_say() -> None:
    clip = noise(5, 6)
    assert recolored(clip) is clip
    assert torch.equal(recolored(clip, invert_probability=1.0), 255 - clip)
    gray = clip.float().mean(-1, keepdim=True).round().to(torch.uint8).expand_as(clip)
    assert (recolored(clip, grayscale_probability=1.0).int() - gray.int()).abs().max() <= 1
    orders = {tuple(recolored(clip, seed, shuffle_probability=1.0)[0, 0, 0].tolist()) for seed in range(40)}
    assert orders == set(permutations(clip[0, 0, 0].tolist()))


def test_gain_and_offset_follow_the_formula_for_every_frame_alike() -> None:
    clip = noise(5, 6)
    rng = np.random.default_rng(3)
    _ = rng.random(2)  # shuffle and grayscale draw first
    gain = np.exp(rng.uniform(-0.4, 0.4) + rng.uniform(-0.2, 0.2, 3))
    offset = rng.uniform(-0.4, 0.4) * 0.4 * 255
    mean = clip.double().mean().item()
    expected = ((clip.double().numpy() - mean) * gain + mean + offset).round().clip(0, 255)
    assert np.abs(recolored(clip, 3, strength=0.4).numpy() - expected).max() <= 1
