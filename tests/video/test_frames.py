"""Folders of frames: read to the bit like a video of the same frames; each fault is an error of one line."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drawn_frames import as_frame_folders, write_frames
from drawn_videos import Frames, draw, stamped_frames
from tada.commands.arguments import rate_of
from tada.data.annotations import read_dataset
from tada.data.check import check_dataset, probe_file
from tada.data.clips import TrainingClips, open_labeled
from tada.data.identity import content_id, content_ids, sha256_of, size_of
from tada.data.labeled_csv import write_table
from tada.data.prepare import prepare
from tada.data.table import VideoTable, stamp_of, with_fps
from tada.data.views import TestVideos, Views, read_views
from tada.errors import (
    ChangedVideoError,
    CorruptVideoError,
    DataError,
    EmptyFileError,
    FrameFolderError,
    NotARegularFileError,
    NotAVideoError,
    OptionError,
    SegmentOutsideError,
    TooLargeError,
    UnsupportedCodecError,
    VideoError,
    VideoNotFoundError,
)
from tada.recognition.recipe import Recipe
from tada.recognition.recognizer import load_recognizer
from tada.recognition.training_data import augmentation
from tada.video import frames as frames_module
from tada.video.find import find_videos
from tada.video.frames import open_footage, probe_footage
from tada.video.inputs import source_of
from tada.video.numbered import frame_folder, is_frame_folder, numbered_pictures
from tada.video.reader import open_video
from tada.video.sampling import ClipSpec
from told_by_brightness import recognizer

FPS = 10


@pytest.fixture(scope="module")
def pixels() -> Frames:
    """uint8 [30, 48, 64, 3], with noise that no lossy codec would keep."""
    noise = np.random.default_rng(0).integers(0, 40, (30, 48, 64, 3))
    return (stamped_frames(30) // 2 + noise).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(pixels: Frames, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("frames") / "clip", pixels)


@pytest.fixture(scope="module")
def lossless(pixels: Frames, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a video: FFV1 in RGB."""
    return draw(tmp_path_factory.mktemp("video") / "clip.mkv", pixels, codec="ffv1", pix_fmt="bgr0", fps=FPS)


class TestReading:
    def test_frames_are_those_that_were_written(self, folder: Path, pixels: Frames) -> None:
        with open_footage(folder, fps=FPS) as video:
            np.testing.assert_array_equal(video.frames(range(30)), pixels)
            np.testing.assert_array_equal(video.frames([29, 3, 3, 0]), pixels[[29, 3, 3, 0]])
            np.testing.assert_array_equal(video.frames_played_at([0.0, 0.1, 0.15, 3.0]), pixels[[0, 1, 1, 29]])
            assert [seconds for seconds, _ in video] == (np.arange(30) / FPS).tolist()
            assert all(np.array_equal(frame, own) for (_, frame), own in zip(video, pixels, strict=True))
            assert video.frames([]).shape == (0, 48, 64, 3)

    def test_it_says_of_itself_what_the_video_says(self, folder: Path, lossless: Path) -> None:
        own, of_file = probe_footage(folder, fps=FPS), probe_footage(lossless)
        for name in ("width", "height", "fps", "num_frames", "start_seconds", "duration_seconds", "container_fps"):
            assert getattr(own, name) == pytest.approx(getattr(of_file, name)), name
        assert own.codec == "png"
        assert own.path == str(folder)

    def test_frames_come_small_and_each_is_read_once(self, folder: Path, pixels: Frames) -> None:
        sizes: list[int] = []

        def shrink(frames: Frames) -> Frames:
            sizes.append(len(frames))
            return frames[:, ::4, ::4]

        with open_footage(folder, fps=FPS) as video:
            small = video.frames([5, 5, *range(30)], shrink=shrink)
        np.testing.assert_array_equal(small, pixels[[5, 5, *range(30)], ::4, ::4])
        assert sizes == [16, 14]

    def test_there_is_nothing_outside(self, folder: Path) -> None:
        with open_footage(folder, fps=FPS) as video:
            with pytest.raises(IndexError, match="has no frame -1; its frames are 0 to 29"):
                video.frames([-1])
            with pytest.raises(OptionError, match=r"shows nothing at 3.2 s; it lasts from 0 to 3 s"):
                video.frames_played_at([3.2])

    @pytest.mark.parametrize(
        ("name", "first"),
        [
            ("img_{:05}.png", 0),
            ("img_{:05}.png", 1000),
            ("{}.png", 1),
            ("frame_{:010}.PNG", 1),
            ("clip_07_{:02}_rgb.png", 95),
        ],
    )
    def test_names(self, name: str, first: int, pixels: Frames, tmp_path: Path) -> None:
        folder = write_frames(tmp_path / "f", pixels[:12], name, first=first)
        with open_footage(folder, fps=FPS) as video:
            np.testing.assert_array_equal(video.frames(range(12)), pixels[:12])
        assert [frame_folder(folder).file(i) for i in (0, 11)] == [
            str(folder / name.format(first)),
            str(folder / name.format(first + 11)),
        ]
        assert numbered_pictures(folder) == [name.format(first + i) for i in range(12)]

    def test_a_jpeg_is_what_pillow_decodes(self, pixels: Frames, tmp_path: Path) -> None:
        folder = write_frames(tmp_path / "f", pixels[:3], "{}.jpg")
        with open_footage(folder, fps=FPS) as video, Image.open(folder / "2.jpg") as picture:
            np.testing.assert_array_equal(video.frames([1])[0], np.asarray(picture))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_camera_may_ask_to_turn_them(self, orientation: int, pixels: Frames, tmp_path: Path) -> None:
        """As Pillow turns them, and so does the reader that most people extract and look with."""
        (tmp_path / "f").mkdir()
        exif = Image.Exif()
        exif[0x0112] = orientation
        for number in (1, 2):
            Image.fromarray(pixels[number]).save(tmp_path / f"f/{number}.jpg", exif=exif, quality=95)
        with open_footage(tmp_path / "f", fps=FPS) as video:
            frame = video.frames([0])[0]
        turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 3, 6: 3, 7: 1, 8: 1}[orientation]
        mirrors = orientation in (2, 4, 5, 7)
        expected = np.rot90(pixels[1], turns)
        expected = expected[:, ::-1] if mirrors else expected
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).mean() < 12
        assert (probe_footage(tmp_path / "f").height == 64) == (orientation > 4)

    def test_gray_palettes_and_alpha_become_rgb(self, tmp_path: Path) -> None:
        (tmp_path / "f").mkdir()
        Image.new("L", (8, 6), 200).save(tmp_path / "f/1.png")
        Image.new("P", (8, 6), 0).save(tmp_path / "f/2.png")
        Image.new("RGBA", (8, 6), (200, 100, 0, 128)).save(tmp_path / "f/3.png")
        with open_footage(tmp_path / "f") as video:
            frames = video.frames([0, 1, 2])
        assert frames[:, 0, 0].tolist() == [[200, 200, 200], [0, 0, 0], [100, 50, 0]]

    def test_links_are_followed(self, folder: Path, pixels: Frames, tmp_path: Path) -> None:
        (tmp_path / "linked").symlink_to(folder)
        (tmp_path / "links").mkdir()
        for i in range(30):
            (tmp_path / f"links/{i}.png").symlink_to(folder / f"img_{i + 1:05}.png")
        for name in ("linked", "links"):
            with open_footage(tmp_path / name, fps=FPS) as video:
                np.testing.assert_array_equal(video.frames(range(30)), pixels)

    def test_a_listing_that_is_kept_is_that_of_now(self, folder: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(folder, tmp_path / "f")
        long_ago = time.time() - 100
        os.utime(copy, (long_ago, long_ago))
        assert frame_folder(copy).num_frames == 30
        (copy / "img_00030.png").unlink()
        assert frame_folder(copy).num_frames == 29


def gap(folder: Path) -> None:
    (folder / "img_00003.png").unlink()


def gaps(folder: Path) -> None:
    for number in (3, 4, 9):
        (folder / f"img_{number:05}.png").unlink()


def other_size(folder: Path) -> None:
    Image.new("RGB", (20, 30)).save(folder / "img_00007.png")


def two_series(folder: Path) -> None:
    for number in range(3):
        Image.new("RGB", (64, 48)).save(folder / f"right_{number}.png")


def mixed_endings(folder: Path) -> None:
    Image.open(folder / "img_00005.png").save(folder / "img_00005.jpg")
    (folder / "img_00005.png").unlink()


def twice(folder: Path) -> None:
    shutil.copy(folder / "img_00005.png", folder / "img_5.png")


def no_bytes(folder: Path) -> None:
    (folder / "img_00007.png").write_bytes(b"")


def cut_off(folder: Path) -> None:
    file = folder / "img_00007.png"
    file.write_bytes(file.read_bytes()[:2000])


def noise(folder: Path) -> None:
    (folder / "img_00007.png").write_bytes(b"no picture" * 100)


def link_to_nowhere(folder: Path) -> None:
    (folder / "img_00007.png").unlink()
    (folder / "img_00007.png").symlink_to(folder / "gone.png")


def link_to_itself(folder: Path) -> None:
    (folder / "img_00007.png").unlink()
    (folder / "img_00007.png").symlink_to("img_00007.png")


def pipe(folder: Path) -> None:
    (folder / "img_00007.png").unlink()
    os.mkfifo(folder / "img_00007.png")


def inner_folder(folder: Path) -> None:
    (folder / "img_00007.png").unlink()
    (folder / "img_00007.png").mkdir()


def deep(folder: Path) -> None:
    Image.fromarray(np.full((48, 64), 40_000, np.uint16)).save(folder / "img_00007.png")


def strip(folder: Path) -> None:
    Image.new("RGB", (510, 10)).save(folder / "img_00007.png")


FAULTS: list[tuple[Callable[[Path], None], type[VideoError], str]] = [
    (gap, FrameFolderError, "'img_00003.png' is missing; extract or copy the frames again"),
    (gaps, FrameFolderError, "'img_00003.png' is missing, and 2 more up to 'img_00012.png'"),
    (other_size, FrameFolderError, "'img_00007.png' is of 20x30 pixels, 'img_00001.png' of 64x48: bring all frames"),
    (two_series, FrameFolderError, "several series of pictures, those of 'img_00001.png', 'right_0.png'"),
    (mixed_endings, FrameFolderError, r"holds '\.jpg', '\.png' mixed"),
    (twice, FrameFolderError, "'img_5.png' is numbered otherwise than 'img_00001.png'"),
    (no_bytes, EmptyFileError, r"img_00007\.png' has no bytes; extract or copy it again"),
    (cut_off, CorruptVideoError, r"img_00007\.png' breaks off or is damaged"),
    (noise, NotAVideoError, r"img_00007\.png' is no JPEG or PNG picture"),
    (link_to_nowhere, VideoNotFoundError, r"img_00007\.png' is a symbolic link that leads nowhere, no picture"),
    (link_to_itself, VideoNotFoundError, r"img_00007\.png' is a symbolic link that leads back to itself, no picture"),
    (pipe, NotARegularFileError, r"img_00007\.png' is a pipe, no picture; extract or copy the frames again"),
    (inner_folder, NotARegularFileError, r"'img_00007\.png' is a folder, no picture"),
    (deep, UnsupportedCodecError, r"img_00007\.png' has more than 8 bits for a color; convert it to 8"),
    (strip, TooLargeError, r"img_00007\.png' of 510x10 is a strip"),
]


NOT_PICTURES = (link_to_nowhere, link_to_itself, pipe, inner_folder)


class TestFaults:
    def test_a_frame_that_may_not_be_read(
        self, pixels: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As for a user who is not root."""

        def refuse(file: str, *arguments: object, **options: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", file)

        folder = write_frames(tmp_path / "f", pixels[:3])
        monkeypatch.setattr("PIL.Image.open", refuse)
        with pytest.raises(VideoNotFoundError, match=r"img_00001.png' cannot be read: no permission; give this user"):
            open_footage(folder, fps=FPS)

    @pytest.mark.parametrize(("damage", "kind", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
    def test_a_fault_is_named(
        self,
        damage: Callable[[Path], None],
        kind: type[VideoError],
        message: str,
        pixels: Frames,
        tmp_path: Path,
    ) -> None:
        folder = write_frames(tmp_path / "f", pixels[:12])
        damage(folder)
        read = (0, 11) if damage in NOT_PICTURES else range(12)  # opening tells of these, whichever frames are wanted
        with pytest.raises(kind, match=message) as error, open_footage(folder, fps=FPS) as video:
            video.frames(read)
        assert error.value.path == str(folder)
        assert str(error.value).count("\n") == 0

    def test_what_is_too_large_is_not_decoded(
        self, pixels: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = write_frames(tmp_path / "f", pixels[:3])
        monkeypatch.setattr(frames_module, "MAX_PIXELS", 64 * 48 - 1)
        with pytest.raises(TooLargeError, match=r"img_00001\.png' of 64x48 exceeds 3071 pixels"):
            probe_footage(folder)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(TooLargeError, match=r"img_00001\.png' exceeds 3071 pixels"):
            probe_footage(folder)

    def test_no_video_is_in_it(self, tmp_path: Path) -> None:
        with pytest.raises(NotAVideoError, match=r"without numbered pictures \(it is empty\)"):
            frame_folder(tmp_path)
        (tmp_path / "cat.jpg").touch()
        with pytest.raises(NotAVideoError, match=r"without numbered pictures \(it holds 'cat.jpg'\)"):
            frame_folder(tmp_path)
        Image.new("RGB", (8, 8)).save(tmp_path / "img_1.png")
        with pytest.raises(NotAVideoError, match=r"holds one picture, 'img_1.png': a video has two frames or more"):
            frame_folder(tmp_path)
        with pytest.raises(VideoNotFoundError, match="cannot be read: No such file"):
            frame_folder(tmp_path / "gone")

    @pytest.mark.parametrize("name", ["flower_{}.png", "x_ray_{}.png", "workflow_{}.png"])
    def test_what_only_begins_like_flow_is_a_series(self, name: str, tmp_path: Path) -> None:
        for number in (1, 2, 3):
            Image.new("RGB", (8, 8)).save(tmp_path / name.format(number))
            Image.new("RGB", (8, 8)).save(tmp_path / f"leaf_{number}.png")
        with pytest.raises(FrameFolderError, match=r"holds several series of pictures"):
            frame_folder(tmp_path)

    def test_numbers_without_zeros_must_all_be_so(self, tmp_path: Path) -> None:
        for name in ("img_01.png", "img_2.png", "img_03.png"):
            Image.new("RGB", (8, 8)).save(tmp_path / name)
        with pytest.raises(FrameFolderError, match=r"'img_2.png' is numbered otherwise than 'img_01.png'"):
            frame_folder(tmp_path)

    @pytest.mark.parametrize("fps", [0, -1, 1e-320, float("nan"), float("inf"), 1e9, True, "fast"])
    def test_rates(self, fps: object, folder: Path) -> None:
        with pytest.raises(OptionError, match=r"fps = .* should be a positive number of frames per second"):
            source_of(folder, fps=fps)  # type: ignore[arg-type]


class TestWhatIsOneVideo:
    def test_most_files_are_numbered_pictures(self, folder: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(folder, tmp_path / "f")
        for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "notes.txt", "flow_x_00001.jpg", "flow_y_00001.jpg"):
            (copy / name).touch()
        (copy / "masks").mkdir()
        assert is_frame_folder(copy)
        assert frame_folder(copy).num_frames == 30
        assert frame_folder(copy).others == tuple(
            sorted(
                (
                    *("Thumbs.db", ".DS_Store", "desktop.ini", "notes.txt", "flow_x_00001.jpg", "flow_y_00001.jpg"),
                    "masks/",
                )
            )
        )

    @pytest.mark.parametrize(
        "names", [[], ["cat.jpg"], ["a.mp4", "1.jpg", "2.jpg", "3.jpg"], ["1.jpg", "a.txt"], ["Thumbs.db"]]
    )
    def test_other_folders_are_none(self, names: list[str], tmp_path: Path) -> None:
        for name in names:
            (tmp_path / name).touch()
        assert not is_frame_folder(tmp_path)
        assert not is_frame_folder(tmp_path / "gone")

    def test_a_poster_beside_folders_is_no_frame(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "day/a")
        (tmp_path / "day/poster_1.jpg").touch()
        assert not is_frame_folder(tmp_path / "day")
        assert find_videos([str(tmp_path / "day")]) == [str(tmp_path / "day/a")]
        (tmp_path / "day/a/more").mkdir()
        assert is_frame_folder(tmp_path / "day/a")

    def test_folders_that_are_named(
        self, folder: Path, lossless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("day/b", "day/a", "day/.hidden"):
            shutil.copytree(folder, name)
        shutil.copy(lossless, "day/c.mkv")
        (tmp_path / "day/linked").symlink_to(folder)
        said: list[str] = []
        assert find_videos(["day"], said.append) == ["day/a", "day/b", "day/c.mkv", "day/linked"]
        assert find_videos(["day/a/", "day/*"], said.append) == ["day/a", "day/b", "day/c.mkv", "day/linked"]
        assert not said
        shutil.copytree(folder, "day/a/more")
        assert find_videos(["day/a"], said.append) == ["day/a"]
        assert said == [
            "'day/a' holds numbered pictures and is taken for one video; folders in it ('more') are skipped: name "
            "them to read the videos in them"
        ]
        with pytest.raises(VideoNotFoundError, match=r"img_00001.png' is a picture, and no video: give .* 'day/a'"):
            find_videos(["day/a/*.png"])


def labeled(root: Path, *, fps: float | None = FPS, name: str = "clip", more: str = "") -> VideoTable:
    (root / "list.csv").write_text(f"path,label{',start,end' if more else ''}\n{name},x{more}\n")
    return with_fps(read_dataset(root / "list.csv"), fps)


class TestTables:
    def test_class_folders(self, folder: Path, lossless: Path, tmp_path: Path) -> None:
        for name in ("wave/a", "wave/b.x", "run/c"):
            shutil.copytree(folder, tmp_path / "clips" / name)
        shutil.copy(lossless, tmp_path / "clips/run/d.mkv")
        table = read_dataset(tmp_path / "clips", fps=25)
        assert [(video.id, video.is_frames, video.fps) for video in table.videos] == [
            ("run/c", True, 25.0),
            ("run/d.mkv", False, None),
            ("wave/a", True, 25.0),
            ("wave/b.x", True, 25.0),
        ]
        assert table.counts() == {"run": 2, "wave": 2}
        assert table.ignored == ()

    def test_frames_straight_in_a_class_folder(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "clips/wave")
        with pytest.raises(DataError, match=r"'.*/clips/wave' holds pictures \('img_00001.png'.* as '.*clip_01/"):
            read_dataset(tmp_path / "clips")
        with pytest.raises(DataError, match="holds no class folders, but frames of one video: put each video's into"):
            read_dataset(tmp_path / "clips/wave")

    def test_a_video_and_its_own_frames(self, folder: Path, lossless: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "clips/wave/a")
        shutil.copy(lossless, tmp_path / "clips/wave/a.mkv")
        with pytest.raises(
            DataError, match=r"a video and a folder of frames that are both called 'a': keep one of them"
        ):
            read_dataset(tmp_path / "clips")

    def test_a_folder_that_is_no_video(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "clips/wave/more").mkdir(parents=True)
        with pytest.raises(DataError, match=r"more' is a folder inside a class folder; .*holds its numbered frames"):
            read_dataset(tmp_path / "clips")
        with pytest.raises(DataError, match="row 2: 'clips' is a folder, and most of its files are not numbered"):
            labeled(tmp_path, name="clips")

    def test_a_column_of_rates(self, folder: Path, lossless: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "a")
        shutil.copytree(folder, tmp_path / "b")
        shutil.copy(lossless, tmp_path / "c.mkv")
        file = tmp_path / "list.csv"
        file.write_text("path,label,fps\na,x,12.5\nb,x,\nc.mkv,x,\n")
        table = read_dataset(file, fps=30)
        assert [video.fps for video in table.videos] == [12.5, 30.0, None]
        write_table(table, tmp_path / "again.csv", root=tmp_path)
        assert read_dataset(tmp_path / "again.csv").videos == tuple(
            # the same, but for where each stands
            replace(video, source=f"again.csv row {row}")
            for row, video in enumerate(table.videos, start=2)
        )
        file.write_text("path,label,fps\nc.mkv,x,25\n")
        with pytest.raises(DataError, match=r"row 2: fps is for folders of frames, and 'c.mkv' is a file"):
            read_dataset(file)
        file.write_text("path,label,fps\na,x,-1\n")
        with pytest.raises(DataError, match=r"row 2: fps = '-1' should be a positive number"):
            read_dataset(file)

    def test_a_rate_is_for_frames_only(self, lossless: Path, tmp_path: Path) -> None:
        (tmp_path / "clips/x").mkdir(parents=True)
        shutil.copy(lossless, tmp_path / "clips/x/a.mkv")
        with pytest.raises(OptionError, match="fps = 25 is for folders of frames, and there is none: files have times"):
            read_dataset(tmp_path / "clips", fps=25)
        with pytest.raises(OptionError, match="fps = 25 is for folders of frames, and there is none"):
            rate_of([str(lossless)], 25, "run", needed="")

    def test_lists_as_mmaction2_and_tsm_have_them(self, folder: Path, tmp_path: Path) -> None:
        for name in ("frames/a", "frames/b"):
            shutil.copytree(folder, tmp_path / name)
        (tmp_path / "train.txt").write_text("frames/a 30 0\nframes/b 30 1\n")
        table = read_dataset(tmp_path / "train.txt", fps=25)
        assert [(video.id, video.label, video.is_frames, video.fps) for video in table.videos] == [
            ("frames/a", 0, True, 25.0),
            ("frames/b", 1, True, 25.0),
        ]

    def test_epic_kitchens_as_it_is_published(self, folder: Path, lossless: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "P01/rgb_frames/P01_01")
        (tmp_path / "EPIC_100_train.csv").write_text(
            "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"
            "P01_01_0,P01,P01_01,00:00:00.50,00:00:01.50,0,0\n"
        )
        for kind in ("verb", "noun"):
            (tmp_path / f"EPIC_100_{kind}_classes.csv").write_text(f"id,key\n0,some {kind}\n")
        (video,) = read_dataset(tmp_path / "EPIC_100_train.csv", fps=FPS).videos
        assert video.is_frames
        assert video.path.endswith("P01/rgb_frames/P01_01")
        assert video.fps == FPS
        with open_labeled(video) as (_, own):
            assert own == range(5, 15)
        # Where the recording lies there too, it is taken, and not the frames that were extracted from it.
        (tmp_path / "P01/videos").mkdir()
        shutil.copy(lossless, tmp_path / "P01/videos/P01_01.mkv")
        (video,) = read_dataset(tmp_path / "EPIC_100_train.csv").videos
        assert not video.is_frames

    def test_the_same_folder_twice(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "a")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        (tmp_path / "list.csv").write_text("path,label\na,x\nb,x\n")
        with pytest.raises(DataError, match=r"row 3: 'b' is already in list.csv row 2 as 'a'"):
            read_dataset(tmp_path / "list.csv")

    def test_frames_that_were_replaced_since(self, folder: Path, pixels: Frames, tmp_path: Path) -> None:
        copy = shutil.copytree(folder, tmp_path / "clip")
        (video,) = labeled(tmp_path).videos
        with open_labeled(video):
            pass
        Image.fromarray(pixels[0] // 2).save(copy / "img_00015.png")
        with pytest.raises(ChangedVideoError, match="has changed since the data set was read"), open_labeled(video):
            pass

    def test_what_needs_a_rate_says_so(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "clip")
        by_time = ClipSpec(num_frames=4, interval=2, fps=10.0, short_side=16, crop=16)
        by_number = ClipSpec(num_frames=4, interval=2, fps=None, short_side=16, crop=16)
        bare = labeled(tmp_path, fps=None)
        recipe = Recipe()
        changes = augmentation(recipe, bare.heads)
        way_out = r"give their rate in frames per second \(--fps 25\)"
        with pytest.raises(OptionError, match=f"and clips are counted at 10 frames per second: {way_out}"):
            TestVideos(bare, by_time, Views())
        with pytest.raises(OptionError, match=f"and clips are counted at 10 frames per second: {way_out}"):
            TrainingClips(bare, by_time, changes, seed=0)
        assert len(TrainingClips(bare, recipe.clip, changes, seed=0)[0, 0].clip) == 8
        np.testing.assert_array_equal(
            read_views(bare.videos[0], by_number, Views()), read_views(labeled(tmp_path).videos[0], by_time, Views())
        )
        segment = labeled(tmp_path, fps=None, more=",0,1")
        with pytest.raises(OptionError, match=f"and its segments are in seconds .list.csv row 2.: {way_out}"):
            TestVideos(segment, by_number, Views())


class TestAsTheVideo:
    """A folder of frames gives the same results as a lossless video of these frames."""

    @pytest.mark.parametrize("sampling", ["interval", "segment"])
    @pytest.mark.parametrize("mode", ["exact", "official"])
    @pytest.mark.parametrize("segment", ["", ",0.5,2.25"])
    def test_clips(self, sampling: str, mode: str, segment: str, folder: Path, lossless: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "clip")
        shutil.copy(lossless, tmp_path / "clip.mkv")
        spec = ClipSpec(num_frames=4, sampling=sampling, interval=3, fps=15.0, mode=mode, short_side=24, crop=20)  # type: ignore[arg-type]
        tables = labeled(tmp_path, more=segment), labeled(tmp_path, fps=None, name="clip.mkv", more=segment)
        views = [read_views(table.videos[0], spec, Views(num_clips=3, num_crops=3)) for table in tables]
        np.testing.assert_array_equal(*views)
        changes = augmentation(Recipe(clip=ClipSpec(num_frames=4, short_side=24, crop=20)), tables[0].heads)
        clips = [TrainingClips(table, spec, changes, seed=3)[1, 0].clip for table in tables]
        np.testing.assert_array_equal(*clips)

    def test_a_segment_outside(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "clip")
        (video,) = labeled(tmp_path, more=",2.0,4.5").videos
        with pytest.raises(SegmentOutsideError, match=r"clip'.*list.csv row 2"), open_labeled(video):
            pass

    @pytest.mark.parametrize("window_seconds", [None, 1.0])
    def test_answers(self, window_seconds: float | None, folder: Path, lossless: Path) -> None:
        model = recognizer()
        of_frames = model.predict(folder, fps=FPS, num_clips=3, window_seconds=window_seconds)
        of_video = model.predict(lossless, num_clips=3, window_seconds=window_seconds)
        assert of_frames.clips == of_video.clips
        assert of_frames.scores == of_video.scores
        assert of_frames.path == str(folder)

    def test_logits_of_a_network_that_ships_with_tada(self, folder: Path, lossless: Path) -> None:
        model = load_recognizer("tada2d_tiny_motion")
        assert model.predict(str(folder), fps=FPS).scores == model.predict(lossless).scores

    def test_a_copy_that_the_reader_reads(self, folder: Path, lossless: Path) -> None:
        with open_footage(folder, fps=FPS) as frames, open_video(lossless) as video:
            np.testing.assert_array_equal(frames.frames(range(30)), video.frames(range(30)))
            np.testing.assert_allclose(frames.times_seconds, video.times_seconds, atol=1e-9)


class TestAnswers:
    def test_without_a_rate(self, folder: Path) -> None:
        with pytest.raises(OptionError, match=r"does not say when its frames are shown, and this model's .*: give fps"):
            recognizer().predict(folder)
        found = recognizer(sampling="segment").predict(folder)
        assert found.clips[0].when() == "frames 3-26"
        assert found.as_dict()["clips"][0]["start_seconds"] is None

    def test_of_several(self, folder: Path, tmp_path: Path) -> None:
        other = shutil.copytree(folder, tmp_path / "other")
        found = recognizer().predict([folder, str(other)], fps=FPS)
        assert [answer.path for answer in found] == [str(folder), str(other)]
        assert found[0].scores == found[1].scores

    def test_what_is_drawn(self, folder: Path, tmp_path: Path) -> None:
        found = recognizer().predict(folder, fps=FPS)
        found.plot(tmp_path / "a.png")
        found.save_video(tmp_path / "a.mp4")
        with open_video(tmp_path / "a.mp4") as video:
            assert video.info.num_frames == 30
            assert video.info.fps == pytest.approx(FPS)

    def test_a_folder_of_videos_is_no_video(self, tmp_path: Path) -> None:
        (tmp_path / "a.mp4").touch()
        with pytest.raises(OptionError, match="is a folder of videos: give them in a list, as predict"):
            recognizer().predict(tmp_path, fps=25)


class TestIdentity:
    def test_a_copy_is_the_same(self, folder: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(folder, tmp_path / "copy")
        for i in range(30):
            (copy / f"img_{i + 1:05}.png").rename(copy / f"{i}.png")  # what they are called plays no part
        (copy / "Thumbs.db").touch()
        assert content_id(copy) == content_id(folder)
        assert size_of(content_id(copy)) == stamp_of(str(copy))[0]

    @pytest.mark.parametrize("number", [1, 15, 30])
    def test_another_is_another(self, number: int, folder: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(folder, tmp_path / "copy")
        file = copy / f"img_{number:05}.png"
        content = bytearray(file.read_bytes())
        content[-20] ^= 1
        file.write_bytes(content)
        assert content_id(copy) != content_id(folder)

    def test_what_is_no_file_is_not_waited_for(self, folder: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(folder, tmp_path / "copy")
        (copy / "img_00001.png").unlink()
        os.mkfifo(copy / "img_00001.png")
        for read in (content_id, sha256_of):
            with pytest.raises(OSError, match=r"no regular file: '.*img_00001.png'"):
                read(copy)
        assert content_ids([str(copy)]) == {}
        found = probe_file(str(copy), thorough=False, fps=FPS)
        assert found.reason == "not_a_regular_file"

    def test_order_counts(self, folder: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(folder, tmp_path / "copy")
        (copy / "img_00007.png").rename(copy / "x")
        (copy / "img_00020.png").rename(copy / "img_00007.png")
        (copy / "x").rename(copy / "img_00020.png")
        assert content_id(copy) != content_id(folder)


@pytest.fixture(scope="module")
def clips(motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The motions of all tests as folders of frames."""
    return as_frame_folders(motion_videos, tmp_path_factory.mktemp("data") / "clips")


def test_a_check_tells_of_faults_and_of_what_lies_between(clips: Path, tmp_path: Path) -> None:
    data = shutil.copytree(clips, tmp_path / "clips")
    videos = sorted(data.glob("*/*"))
    gap_at, sizes_at, empty_at, litter_at = videos[:4]
    (gap_at / "img_00003.png").unlink()
    Image.new("RGB", (20, 30)).save(sizes_at / "img_00002.png")
    (empty_at / "img_00006.png").write_bytes(b"")
    for name in ("notes.txt", ".DS_Store"):
        (litter_at / name).touch()
    shutil.copytree(videos[5], videos[6], dirs_exist_ok=True)
    report = check_dataset(read_dataset(data, fps=12), tmp_path / "out", num_processes=1, show_progress=False)
    found = {(finding.kind, Path(finding.path).name, finding.is_fault): finding.message for finding in report.findings}
    assert set(found) == {
        ("frame_folder", gap_at.name, True),
        ("frame_folder", sizes_at.name, True),
        ("empty_file", empty_at.name, True),
        ("other_files", litter_at.name, False),
        ("double", videos[6].name, False),
    }
    assert "'img_00003.png' is missing" in found["frame_folder", gap_at.name, True]
    assert "'img_00002.png' is of 20x30 pixels" in found["frame_folder", sizes_at.name, True]
    assert "holds '.DS_Store', 'notes.txt' beside the frames" in found["other_files", litter_at.name, False]
    assert report.spread()["fps"] == {"12": 12}
    again = check_dataset(read_dataset(data, fps=12), tmp_path / "out", num_processes=1, show_progress=False)
    assert again.num_cached == 12
    assert again.counts() == report.counts()
    unknown = check_dataset(read_dataset(data), tmp_path / "out", num_processes=1, show_progress=False)
    assert unknown.counts()["no_rate"] == 12
    assert unknown.spread()["fps"] == {"unknown": 12}


def test_prepared_copies_are_of_the_frames(clips: Path, tmp_path: Path) -> None:
    table = read_dataset(clips, fps=12)
    with pytest.raises(OptionError, match=r"is a folder of frames, .* its copy is a video file, .*--fps 25"):
        prepare(read_dataset(clips), tmp_path / "out", num_processes=1, show_progress=False)
    prepared = prepare(table, tmp_path / "out", num_processes=1, show_progress=False)
    copies = read_dataset(prepared.table)
    assert len(copies) == len(table)
    assert not copies.has_frames
    for video, copy in zip(table.videos, copies.videos, strict=True):
        assert copy.id == f"videos/{video.id}.mp4"
        with open_footage(video.path, fps=12) as frames, open_video(copy.path) as reader:
            np.testing.assert_allclose(reader.times_seconds, frames.times_seconds, atol=1e-4)
            pixels = frames.frames(range(8)).astype(int), reader.frames(range(8)).astype(int)
            assert np.abs(pixels[0] - pixels[1]).mean() < 12
    assert prepare(table, tmp_path / "out", num_processes=1, show_progress=False).num_new == 0
    faster = with_fps(read_dataset(clips), 24)
    assert prepare(faster, tmp_path / "out", num_processes=1, show_progress=False).num_new == len(table)
