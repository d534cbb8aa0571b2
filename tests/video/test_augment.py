"""Augmentation of clips: against Pillow, whose image operations RandAugment is defined by, and by its properties."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from tada.video.augment import (
    OPERATIONS,
    Mixture,
    _shift_hue,
    color_jitter,
    draw_mixture,
    draw_resized_crop,
    rand_augment,
    random_erase,
)
from tada.video.transforms import resize


def noise(height: int = 24, width: int = 32, num_frames: int = 1, low: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(low, high, (num_frames, height, width, 3), dtype=torch.uint8, generator=generator)


def picture(clip: Tensor) -> Image.Image:
    return Image.fromarray(clip[0].numpy())


# --- RandAugment against Pillow, on one frame, where the clip's histogram is the frame's ------------------------------

LEVEL = 0.9
AS_PILLOW = {
    "auto_contrast": lambda image: ImageOps.autocontrast(image),
    "equalize": lambda image: ImageOps.equalize(image),
    "invert": lambda image: ImageOps.invert(image),
    "posterize": lambda image: ImageOps.posterize(image, 1),  # 4 - int(0.9 * 4) bits
    "solarize": lambda image: ImageOps.solarize(image, 256 - 230),
    "solarize_add": lambda image: image.point([min(255, i + 99) if i < 128 else i for i in range(256)] * 3),
    "color": lambda image: ImageEnhance.Color(image).enhance(1.81),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.81),
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.81),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1.81),
}


@pytest.mark.parametrize("name", AS_PILLOW)
@pytest.mark.parametrize("clip", [noise(), noise(low=30, high=200), noise(low=7, high=8)], ids=["all", "some", "one"])
def test_an_operation_is_pillows(name: str, clip: Tensor) -> None:
    ours = OPERATIONS[name](clip, LEVEL, 1)
    theirs = torch.from_numpy(np.asarray(AS_PILLOW[name](picture(clip))).copy())
    assert ours.dtype == torch.uint8
    blends = name in ("color", "contrast", "brightness", "sharpness")  # where Pillow cuts fractions off, we round
    assert (ours[0].int() - theirs.int()).abs().max() <= blends


MATRICES = {
    # Pillow's: the pixel at (x, y) comes from (a x + b y + c, d x + e y + f), from the upper left corner
    "shear_x": (1, 0.27, -0.27 * 12, 0, 1, 0),
    "shear_y": (1, 0, 0, 0.27, 1, -0.27 * 16),
    "translate_x": (1, 0, 0.405 * 32, 0, 1, 0),
    "translate_y": (1, 0, 0, 0, 1, 0.405 * 24),
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_movement_is_pillows_inside_the_frame(name: str) -> None:
    smooth = resize(noise(4, 4), (24, 32), antialias=False)
    ours = OPERATIONS[name](smooth, LEVEL, 1)[0]
    image = picture(smooth).transform((32, 24), Image.Transform.AFFINE, MATRICES[name], Image.Resampling.BILINEAR)
    theirs = torch.from_numpy(np.asarray(image).copy())
    inside = (theirs != 0).any(-1)  # outside it is black there and gray here
    assert inside.float().mean() > 0.4
    assert ((ours.int() - theirs.int()).abs().amax(-1)[inside] <= 2).float().mean() > 0.9


def test_a_rotation_is_pillows_inside_the_frame() -> None:
    smooth = resize(noise(4, 4), (24, 32), antialias=False)
    ours = OPERATIONS["rotate"](smooth, 0.5, 1)[0]
    theirs = torch.from_numpy(np.asarray(picture(smooth).rotate(15, Image.Resampling.BILINEAR)).copy())
    assert (ours[8:16, 8:24].int() - theirs[8:16, 8:24].int()).abs().max() <= 2
    assert torch.equal(OPERATIONS["rotate"](smooth, 0.0, 1), smooth)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize("sign", [-1, 1])
def test_every_frame_of_a_clip_is_changed_alike(name: str, sign: int) -> None:
    """A still clip stays still, and a frame's change depends on the clip it is in only as a whole."""
    still = noise().expand(3, -1, -1, -1).contiguous()
    changed = OPERATIONS[name](still, 0.7, sign)
    assert changed.shape == still.shape
    assert changed.dtype == torch.uint8
    assert torch.equal(changed[0], changed[1])
    clip = noise(num_frames=4)
    assert torch.equal(OPERATIONS[name](clip.flip(0), 0.7, sign), OPERATIONS[name](clip, 0.7, sign).flip(0))


def test_a_bright_frame_does_not_change_the_others_mean_alone() -> None:
    """Contrast goes by the clip's mean: two frames of 100 and 200 move away from 150."""
    clip = torch.stack([torch.full((4, 4, 3), value, dtype=torch.uint8) for value in (100, 200)])
    changed = OPERATIONS["contrast"](clip, 0.5, 1)  # by 1.45
    assert changed[:, 0, 0, 0].tolist() == [78, 222]


def test_rand_augment_depends_only_on_the_generator() -> None:
    clip = noise(num_frames=2)

    def once(seed: int, **changes: float) -> Tensor:
        options = {"num_operations": 4, "magnitude": 9.0, "magnitude_std": 0.5, **changes}
        return rand_augment(clip, **options, rng=np.random.default_rng(seed))  # type: ignore[arg-type]

    assert torch.equal(once(0), once(0))
    different = {once(seed).numpy().tobytes() for seed in range(40)}
    assert len(different) > 30  # with probability 1/16 nothing is applied
    assert torch.equal(once(0, num_operations=0), clip)


def test_new_pixels_are_those_of_the_clips_normalization() -> None:
    """Pixels from outside the frame are the mean, which is 0 once normalized; erased ones have mean and deviation."""
    mean, std = (0.2, 0.4, 0.7), (0.02, 0.05, 0.1)
    clip = torch.full((1, 60, 80, 3), 250, dtype=torch.uint8)
    moved = [
        rand_augment(clip, num_operations=1, magnitude=9, magnitude_std=0, mean=mean, rng=np.random.default_rng(seed))
        for seed in range(40)
    ]
    corners = [tuple(frame[0, y, x].tolist()) for frame in moved for y in (0, -1) for x in (0, -1)]
    assert corners.count((51, 102, 178)) >= 10
    assert tuple(OPERATIONS["rotate"](clip, 0.9, 1)[0, 0, 0].tolist()) == (115, 115, 115)
    erased = random_erase(clip, probability=1.0, rng=np.random.default_rng(0), mean=mean, std=std)[0]
    values = erased[(erased != 250).any(-1)].double() / 255
    torch.testing.assert_close(values.mean(0), torch.tensor(mean).double(), rtol=0, atol=0.03)
    torch.testing.assert_close(values.std(0), torch.tensor(std).double(), rtol=0.2, atol=0)


# --- crops -----------------------------------------------------------------------------------------------------------


def test_resized_crops_have_the_areas_and_shapes_asked_for() -> None:
    rows, columns = torch.meshgrid(torch.arange(100), torch.arange(160), indexing="ij")
    clip = torch.stack([rows, columns, rows * 0], -1)[None].to(torch.uint8)
    rng = np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(300):
        cut = draw_resized_crop(
            100, 160, area_range=(0.2, 0.6), ratio_range=(0.75, 4 / 3), size=24, antialias=False, rng=rng
        )
        square = cut(clip)
        assert square.shape == (1, 24, 24, 3)
        # A pixel's value is its place: the range of values is that of the rectangle, but for half a step at the rims.
        h = (square[0, -1, 0, 0].float() - square[0, 0, 0, 0].float()) * 24 / 23
        w = (square[0, 0, -1, 1].float() - square[0, 0, 0, 1].float()) * 24 / 23
        areas.append(float(h * w / (100 * 160)))
        ratios.append(float(w / h))
    assert 0.17 < min(areas) < 0.26 < 0.54 < max(areas) < 0.64
    assert 0.69 < min(ratios) < 0.85 < 1.2 < max(ratios) < 1.43


def test_a_frame_too_narrow_for_any_shape_is_cut_in_its_middle() -> None:
    clip = torch.arange(100, dtype=torch.uint8)[None, None, :, None].expand(1, 4, 100, 3)
    rng = np.random.default_rng(0)
    cut = draw_resized_crop(4, 100, area_range=(1.0, 1.0), ratio_range=(0.75, 4 / 3), size=5, antialias=False, rng=rng)
    square = cut(clip)
    assert 47 <= int(square[0, 0, 0, 0]) < int(square[0, 0, -1, 0]) <= 53


# --- color ----------------------------------------------------------------------------------------------------------


def test_hue_turns_as_colorsys_says() -> None:
    clip = noise(6, 7)
    turned = _shift_hue(clip, 0.2)
    for y in range(6):
        for x in range(7):
            h, s, v = colorsys.rgb_to_hsv(*(int(c) / 255 for c in clip[0, y, x]))
            expected = [255 * c for c in colorsys.hsv_to_rgb((h + 0.2) % 1, s, v)]
            assert turned[0, y, x].tolist() == pytest.approx(expected, abs=0.51)
    gray = torch.full((1, 2, 2, 3), 77, dtype=torch.uint8)
    assert torch.equal(_shift_hue(gray, 0.3), gray)


def test_jitter_of_one_kind_is_that_kind() -> None:
    clip = noise(low=40, high=100)
    nothing = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    assert torch.equal(color_jitter(clip, **nothing, rng=np.random.default_rng(0)), clip)
    factor = np.random.default_rng(3).uniform(0.5, 1.5)
    brighter = color_jitter(clip, **nothing | {"brightness": 0.5}, rng=np.random.default_rng(3))
    assert (brighter.double() - clip.double() * factor).abs().max() <= 0.51
    everything = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.25}
    different = {color_jitter(clip, **everything, rng=np.random.default_rng(i)).numpy().tobytes() for i in range(10)}
    assert len(different) == 10


# --- erasing ---------------------------------------------------------------------------------------------------------


def test_erasing_fills_one_rectangle_in_all_frames_alike() -> None:
    still = torch.full((3, 60, 80, 3), 250, dtype=torch.uint8)
    parts = []
    for seed in range(200):
        erased = random_erase(still, probability=1.0, rng=np.random.default_rng(seed))
        assert torch.equal(erased[0], erased[2])
        changed = (erased[0] != 250).any(-1)
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        box = erased[0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        parts.append(box.shape[0] * box.shape[1] / (60 * 80))
    assert 0.015 < min(parts) < 0.05 < 0.28 < max(parts) < 0.35
    assert (still == 250).all()
    untouched = sum(random_erase(still, probability=0.25, rng=np.random.default_rng(i)) is still for i in range(400))
    assert 260 < untouched < 340


# --- mixing ----------------------------------------------------------------------------------------------------------


def test_mixup_is_the_weighted_mean_of_neighbors() -> None:
    clips, targets = torch.randn(4, 3, 2, 8, 8), torch.eye(4)
    mixture = Mixture(share=0.7, box=None)
    torch.testing.assert_close(mixture.clips(clips)[2], 0.7 * clips[2] + 0.3 * clips[3])
    assert mixture.targets(targets, clips)[1].tolist() == pytest.approx([0.3, 0.7, 0, 0])
    # Pairs are neighbors: half of the batch is mixed as it is in the whole.
    assert torch.equal(mixture.clips(clips)[2:], mixture.clips(clips[2:]))


def test_cutmix_shares_targets_by_pixels() -> None:
    clips = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 3, 2, 8, 10).clone()
    mixture = Mixture(share=0.5, box=(0.25, 0.75, 0.0, 0.5))
    mixed = mixture.clips(clips)
    share = (mixed[0] == 0).float().mean()
    assert share == pytest.approx(1 - 4 * 5 / 80)
    assert set(mixed[0].unique().tolist()) == {0.0, 1.0}
    assert mixture.targets(torch.eye(4), clips)[0].tolist() == pytest.approx([float(share), 1 - float(share), 0, 0])


def test_mixtures_follow_the_options() -> None:
    rng = np.random.default_rng(0)
    assert draw_mixture(mixup_alpha=0, cutmix_alpha=0, cutmix_probability=0.5, rng=rng) is None
    both = [draw_mixture(mixup_alpha=0.2, cutmix_alpha=1.0, cutmix_probability=0.5, rng=rng) for _ in range(400)]
    cuts = [mixture for mixture in both if mixture is not None and mixture.box is not None]
    assert 160 < len(cuts) < 240
    for mixture in cuts:
        assert mixture.box is not None
        top, bottom, left, right = mixture.box
        assert 0 <= top <= bottom <= 1
        assert 0 <= left <= right <= 1
        assert (bottom - top) * (right - left) <= 1 - mixture.share + 1e-9
    only = [draw_mixture(mixup_alpha=0.2, cutmix_alpha=0, cutmix_probability=1.0, rng=rng) for _ in range(50)]
    assert all(mixture is not None and mixture.box is None for mixture in only)
    assert math.isclose(np.mean([m.share for m in only if m is not None]), 0.5, abs_tol=0.2)
