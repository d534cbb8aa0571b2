"""Large frames are resized in batches as they are decoded: little memory at 8K, and the same pixels as all at once."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from drawn_videos import draw, draw_plain, stamped_frames
from measured import run_measured
from tada.data.annotations import read_dataset
from tada.data.clips import Augmentation, TrainingClips
from tada.data.table import LabeledVideo
from tada.data.views import Views, read_views
from tada.errors import CorruptVideoError, TooLargeError
from tada.recognition.recipe import Recipe
from tada.training.recipe import recipe_yaml
from tada.video import reader, transforms
from tada.video.reader import open_video, probe
from tada.video.sampling import ClipSpec, view_indices
from tada.video.transforms import frame_crops, resize_short_side, shrink_to

SPEC = ClipSpec(num_frames=9, sampling="segment", short_side=24, crop=20, antialias=True)
PEAK_BYTES = 700_000_000  # the libraries take 300 to 400 MB themselves


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (241, 321), (23, 40)])
def test_frames_resized_alone_are_those_resized_together(height: int, width: int, exact: bool, antialias: bool) -> None:
    rng = np.random.default_rng(0)
    clip = torch.from_numpy(rng.integers(0, 256, (7, height, width, 3), dtype=np.uint8))
    whole = resize_short_side(clip, 32, antialias=antialias, exact=exact)
    for at_once in (1, 2, 3):
        parts = [resize_short_side(part, 32, antialias=antialias, exact=exact) for part in clip.split(at_once)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("antialias", [False, True])
def test_floats_in_parts_are_those_of_the_whole(antialias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, 72, 100, 3), dtype=np.uint8))
    resize = partial(resize_short_side, clip, 40, antialias=antialias)
    whole = resize()
    monkeypatch.setattr(transforms, "_FLOATS_AT_ONCE", 2 * 72 * 100 * 3)
    assert torch.equal(resize(), whole)
    # What is larger than a frame of 5K goes by bands of rows, where the sums are rounded in another order.
    monkeypatch.setattr(transforms, "_MAX_FLOATS", 72 * 100)
    monkeypatch.setattr(transforms, "_ROWS_AT_ONCE", 11)
    in_bands = resize()
    assert (in_bands.int() - whole.int()).abs().max() <= 1
    assert (in_bands != whole).float().mean() < 1e-3
    assert torch.equal(resize(exact=False), in_bands)


@pytest.fixture(params=[(1, 1 << 26), (2, 1 << 26), (16, 3 * 64 * 48 * 3)])
def a_few_at_a_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the reader hold fewer frames, by their number or by their bytes."""

    def limit() -> None:
        at_once, num_bytes = request.param
        monkeypatch.setattr(reader, "_FRAMES_AT_ONCE", at_once)
        monkeypatch.setattr(reader, "_BYTES_AT_ONCE", num_bytes)

    return limit


def test_frames_come_in_any_order_however_few_at_a_time(tmp_path: Path, a_few_at_a_time: Callable[[], None]) -> None:
    path = draw_plain(tmp_path / "video.mp4", 30)
    a_few_at_a_time()
    indices = [7, 3, 3, 29, 0, 12, 7]
    sizes: list[int] = []

    def shrink(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        sizes.append(len(frames))
        assert frames.flags.c_contiguous
        return np.asarray(frames[:, ::4, ::4].mean(-1), np.uint8)

    with open_video(path) as video:
        whole = video.frames(indices)
        small = video.frames(indices, shrink=shrink)
        assert sum(sizes) == 5  # each once
        assert max(sizes) <= 3
        assert np.array_equal(small, shrink(whole))
        assert np.array_equal(
            video.frames_played_at([0.5, 0.1], shrink=shrink), shrink(video.frames_played_at([0.5, 0.1]))
        )


def test_views_and_training_clips_do_not_depend_on_how_many_come_at_a_time(
    tmp_path: Path, a_few_at_a_time: Callable[[], None]
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = draw_plain(tmp_path / folder / "0.mp4", 5 if folder == "a" else 40)  # the first repeats frames
    video = LabeledVideo(id="video", path=str(path), labels=(0,), split=None, group=None, source="here")
    table = read_dataset(tmp_path)
    square = Augmentation(
        short_side_range=(20, 26), flip_probability=0.5, flip_swaps=[{}], reverse_swaps=[{}], color_strength=0.2
    )
    rectangle = replace(square, crop_area_range=(0.2, 1.0), erase_probability=0.5)

    def everything() -> list[Tensor]:
        clips = [TrainingClips(table, SPEC, kind, seed=1)[(0, i)].clip for kind in (square, rectangle) for i in (0, 1)]
        return [read_views(video, SPEC, Views(num_clips=3, num_crops=3)), *clips]

    whole = everything()
    a_few_at_a_time()
    for one, other in zip(everything(), whole, strict=True):
        assert torch.equal(one, other)

    # Views are those of all frames at once, too.
    with open_video(path) as opened:
        frames = opened.frames(view_indices(SPEC, opened.times_seconds, 1, 3))
    crops = transforms.test_crops(torch.from_numpy(frames), short_side=24, crop=20, num_crops=3, antialias=True)
    assert torch.equal(whole[0][3:6], torch.stack(crops))
    small = frame_crops(frames, short_side=24, crop=20, num_crops=3, antialias=True)
    assert np.array_equal(small.swapaxes(0, 1), torch.stack(crops).numpy())
    assert np.array_equal(shrink_to(frames, short_side=48), frames)


def test_a_video_that_breaks_off_has_drawn_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the clip in its place is the same wherever reading failed: older runs go on as they were."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        draw_plain(tmp_path / "a" / f"{number}.mp4", 20)
    broken = draw_plain(tmp_path / "b" / "0.mp4", 40, container_options={"movflags": "+faststart"}, gop=40)
    content = bytearray(broken.read_bytes())
    for place in range(len(content) * 6 // 10, len(content), 3):  # the index is whole, the last pictures are not
        content[place] ^= 0x5A
    broken.write_bytes(content)
    augmentation = Augmentation(short_side_range=(20, 26), flip_swaps=[{}], reverse_swaps=[{}])
    clips = TrainingClips(read_dataset(tmp_path), SPEC, augmentation, seed=3)
    late = [clips[(epoch, 4)] for epoch in range(3)]
    monkeypatch.setattr(reader, "_FRAMES_AT_ONCE", 1)
    early = [clips[(epoch, 4)] for epoch in range(3)]
    assert all(sample.unreadable for sample in late)
    assert [sample.path for sample in early] == [sample.path for sample in late]
    assert all(torch.equal(one.clip, other.clip) for one, other in zip(early, late, strict=True))


def test_alpha_is_composited_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.concatenate([stamped_frames(2), np.random.default_rng(0).integers(0, 256, (2, 48, 64, 1))], axis=-1)
    options = {"codec": "qtrle", "pix_fmt": "argb", "source_format": "rgba"}
    path = draw(tmp_path / "alpha.mov", frames.astype(np.uint8), **options)
    with open_video(path) as video:
        whole = video.frames([0, 1])
        monkeypatch.setattr(reader, "_ROWS_AT_ONCE", 7)
        assert np.array_equal(video.frames([0, 1]), whole)


# --- frames that a decoder keeps --------------------------------------------------------------------------------------


def draw_referring(path: Path, num_references: int) -> Path:
    """A frame of a video whose frames may refer to so many before them."""
    frames = [np.full((3600, 3600, 3), 80, np.uint8)]
    return draw(path, frames, options={"preset": "ultrafast", "refs": str(num_references)})


def test_more_than_a_decoder_of_h264_has_to_keep_is_refused(tmp_path: Path) -> None:
    """Sixteen frames of 8K take more than a gigabyte, in a file of some kilobytes."""
    message = r"makes a decoder keep frames with 207 million pixels, and H.264 allows 178 million; resize or convert it"
    for name in ("a.mp4", "a.ts"):
        with pytest.raises(TooLargeError, match=message):
            open_video(draw_referring(tmp_path / name, 16))
    few = draw_referring(tmp_path / "few.ts", 4)
    assert probe(few).num_frames == 1
    (tmp_path / "both.ts").write_bytes(few.read_bytes() + (tmp_path / "a.ts").read_bytes())
    with pytest.raises(TooLargeError, match=message):
        open_video(tmp_path / "both.ts")


def test_frames_that_are_small_by_the_header_do_not_become_that_large(tmp_path: Path) -> None:
    small, large = draw_plain(tmp_path / "small.ts", 10), draw_referring(tmp_path / "large.ts", 16)
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(CorruptVideoError, match="10 frames decode, but 1 packets do not"):
        open_video(tmp_path / "both.ts")


# --- memory -----------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from tada.commands.cli import main

for line in sys.argv[1:]:
    if main(line.split()) != 0:
        sys.exit(line)
"""


def draw_8k(path: Path) -> Path:
    """Ten frames, a gigabyte of bytes and four of the floats that they are resized as, in less than 2 MB."""
    frames = [np.full((4320, 7680, 3), 20 * i, np.uint8) for i in range(2)] * 5
    draw(path, frames, fps=8, options={"preset": "ultrafast"})
    assert path.stat().st_size < 2_000_000
    return path


def test_an_answer_about_8k_stays_below_a_gigabyte(tmp_path: Path) -> None:
    video = draw_8k(tmp_path / "8k.mp4")
    done = run_measured(PROGRAM, f"predict tada2d_tiny_motion {video.name} --plots plots", folder=tmp_path)
    assert done.code == 0, done.error
    assert done.peak_bytes < PEAK_BYTES, f"{done.peak_bytes / 1e9:.2f} GB"


@pytest.mark.slow
def test_every_command_stays_below_a_gigabyte_at_8k(small_recipe: Recipe, tmp_path: Path) -> None:
    for folder in ("clips/a", "clips/b", "held/a", "held/b"):
        (tmp_path / folder).mkdir(parents=True)
    eight_k = draw_8k(tmp_path / "clips" / "a" / "0.mp4")
    for number in range(1, 5):
        draw_plain(tmp_path / "clips" / "a" / f"{number}.mp4", 8 + number, fps=8)
        draw_plain(tmp_path / "clips" / "b" / f"{number}.mp4", 12 + number, fps=8)
        draw_plain(tmp_path / "held" / "b" / f"{number}.mp4", 16 + number, fps=8)
    free = struct.pack(">I4s8x", 16, b"free")  # a box that holds nothing: another file, the same video
    (tmp_path / "held" / "a" / "0.mp4").write_bytes(eight_k.read_bytes() + free)
    (tmp_path / "small.yaml").write_text(
        recipe_yaml(replace(small_recipe, clip=replace(small_recipe.clip, num_frames=8)))
    )
    (tmp_path / "segments.csv").write_text("video,start,end,label\n" + "0,0.2,0.9,x\n1,0.2,0.9,x\n2,0.2,0.9,x\n")
    short = "--epochs 1 --warmup_epochs 0 --dim 8 --batch_size 2"
    for commands in (
        ["train clips --recipe small.yaml --out run --num-workers 0"],
        [
            "check clips --out checked --num-workers 1",
            "prepare clips fast --num-workers 1",
            "predict run clips/a/0.mp4 --plots plots",
            "evaluate run held --views 2x3 --num-workers 0",
        ],
        [
            "extract run clips/a features --window-seconds 0.6 --stride-seconds 0.2",
            f"localize train --videos clips/a --segments segments.csv --backbone run --out when {short}",
            "localize clips/a/0.mp4 --model when --plots timelines",
        ],
    ):
        done = run_measured(PROGRAM, *commands, folder=tmp_path)
        assert done.code == 0, done.error
        assert done.peak_bytes < PEAK_BYTES, f"{done.peak_bytes / 1e9:.2f} GB, {commands}"
