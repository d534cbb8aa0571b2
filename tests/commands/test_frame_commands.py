"""The commands on folders of frames, by relative paths in a working directory."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tada
from drawn_features import RECIPE
from drawn_frames import as_frame_folders, write_frames
from drawn_videos import MOTIONS_OF_TESTS
from tada.commands.cli import main
from tada.errors import DataError
from tada.localization.annotations.table import read_segments
from tada.localization.features.folder import FeatureFolder
from tada.localization.train_from_videos import match_videos
from tada.localization.trimmed import cut_clips
from tada.recognition.recipe import Recipe
from tada.training.recipe import fps_of_run, recipe_of_run, recipe_yaml
from tada.video.reader import open_video, probe
from tada.video.sampling import ClipSpec

BY_TIME = ClipSpec(num_frames=4, interval=1, fps=8.0, short_side=24, crop=20)


@pytest.fixture
def place(motion_videos: Path, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the motions of all tests as videos and as the frames of these, and small.yaml."""
    shutil.copytree(motion_videos, tmp_path / "videos")
    as_frame_folders(motion_videos, tmp_path / "clips")
    recipe = replace(small_recipe, epochs=1, warmup_epochs=0.0, clip=BY_TIME)
    (tmp_path / "small.yaml").write_text(recipe_yaml(recipe))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*words: str) -> int:
    return main(["train", *words, "--recipe", "small.yaml", "--num-workers", "0"])


def test_training_and_what_follows(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("clips", "--out", "bare") == 2
    message = capsys.readouterr().err
    assert "is a folder of frames, which does not say when they are shown, and clips are counted at 8 frames" in message
    assert not Path("bare").exists()
    names = [f"{motion}/{motion}_{i:03}" for motion in MOTIONS_OF_TESTS for i in range(5)]
    for data, ending in (("clips", ""), ("videos", ".mp4")):
        rows = (
            f"{data}/{name}{ending},{name.split('/')[0]},{'val' if i % 5 == 2 else 'train'}\n"
            for i, name in enumerate(names)
        )
        Path(f"{data}.csv").write_text("path,label,split\n" + "".join(rows))
    assert train("clips.csv", "--fps", "8", "--out", "run") == 0
    assert train("videos.csv", "--out", "of_videos") == 0
    assert "tada evaluate run clips.csv" in capsys.readouterr().out
    assert recipe_of_run(Path("run"), Recipe).fps == fps_of_run("run") == 8.0

    # The same pixels at the same times: weights, scores and answers are those of the videos.
    one, other = (Path(run, "model.safetensors").read_bytes() for run in ("run", "of_videos"))
    assert one == other
    assert main(["evaluate", "run", "clips", "--num-workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "folders of frames are read at 8 frames per second, as in the training of run" in out
    assert "testing on the 3 videos that run held out for validation" in out
    assert main(["evaluate", "of_videos", "videos", "--num-workers", "0"]) == 0
    scores = [np.load(Path(run, "evaluation/scores.npz"))["scores"] for run in ("run", "of_videos")]
    np.testing.assert_array_equal(*scores)
    capsys.readouterr()
    assert main(["predict", "run", "clips/left", "--format", "csv"]) == 0
    of_frames, aside = capsys.readouterr()
    assert (
        aside
        == "tada: folders of frames are read at 8 frames per second, as in the training of run; --fps changes it\n"
    )
    assert main(["predict", "run", "videos/left", "--format", "csv"]) == 0
    of_videos = capsys.readouterr().out.replace("videos/", "clips/").replace(".mp4", "")
    assert of_frames == of_videos

    # A copy is known again, whatever it is called.
    shutil.move(shutil.copytree("clips", "copy") + "/left", "copy/moved")
    Path("copy/moved").rename("copy/left")
    for number, folder in enumerate(sorted(Path("copy/left").iterdir())):
        folder.rename(folder.with_name(f"take {number}"))
    assert main(["evaluate", "run", "copy", "--fps", "8", "--num-workers", "0", "--out", "again"]) == 0
    assert "testing on the 3 videos that run held out for validation" in capsys.readouterr().out
    # So is the copy that reads fast.
    assert main(["prepare", "clips", "fast", "--fps", "8", "--num-workers", "1"]) == 0
    assert main(["evaluate", "run", "fast/videos.csv", "--num-workers", "0", "--out", "fast_report"]) == 0
    assert "testing on the 3 videos that run held out for validation" in capsys.readouterr().out


def test_a_run_that_goes_on_knows_its_rate(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("clips", "--fps", "8", "--out", "run") == 0
    assert main(["train", "clips", "--resume", "run", "--epochs", "2", "--num-workers", "0"]) == 0
    assert recipe_of_run(Path("run"), Recipe).fps == 8.0
    assert main(["train", "clips", "--resume", "run", "--fps", "9", "--num-workers", "0"]) == 2
    assert "run was started with another fps (8.0)" in capsys.readouterr().err
    # Its own list is a data set like any other, which knows the rate.
    assert main(["check", "run/videos.csv", "--videos", "/", "--num-workers", "1"]) == 0
    assert "fps: 8 (15)" in capsys.readouterr().out


def test_what_is_drawn_of_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--fps", "8", "--plots", "plots", "--save-video", "seen", "--explain", "why"]
    assert main(["predict", "tada2d_tiny_motion", "clips/left/left_000/", *words]) == 0
    assert Path("plots/left_000.png").exists()
    assert (Path("why/left_000")).is_dir()
    info = probe("seen/left_000.mp4")
    assert (info.num_frames, info.fps) == (8, pytest.approx(8.0))
    # Weights that look at the whole video need no rate; what is drawn into a video does.
    assert main(["predict", "tada2d_tiny_motion", "clips/left/left_000", "--clips", "2"]) == 0
    assert "frames 0-" in capsys.readouterr().out
    assert main(["predict", "tada2d_tiny_motion", "clips/left/left_000", "--save-video", "other"]) == 2
    assert (
        "is a folder of frames, which does not say when they are shown, and --save-video writes them: give their rate"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "tada2d_tiny_motion", "videos/left", "--fps", "8"], "fps = 8 is for folders of frames, and there"),
        (["predict", "tada2d_tiny_motion", "clips/left", "--fps", "0"], "--fps should be a positive number of frames"),
        (["predict", "tada2d_tiny_motion", "clips/up", "--fps", "-25"], "--fps should be a positive number of frames"),
        (
            ["predict", "tada2d_tiny_motion", "clips/up/up_000/img_00002.png"],
            "is a picture, and no video: give the folder",
        ),
        (["predict", "clips/up/up_000", "clips/up/up_001", "--model", "clips/up/up_000"], "is a video: the run"),
        (["predict", "tada2d_tiny_motion", "empty"], "no video lies in the folder 'empty'; videos end in .3gp, "),
        (["evaluate", "clips/up/up_000", "clips"], "is a video: the run that is asked comes first"),
        (["evaluate", "tada2d_tiny_motion", "videos", "--fps", "8", "--out", "x"], "fps = 8 is for folders of frames"),
        (["check", "videos", "--fps", "8"], "fps = 8 is for folders of frames"),
        (["prepare", "clips", "fast"], "is a folder of frames, which does not say when they are shown, and its copy"),
        (
            ["train", "clips/up", "--fps", "8"],
            "holds pictures ('img_00001.png', 'img_00002.png' and 6 more): those",
        ),
        (
            ["extract", "tada2d_tiny_motion", "clips", "out", "--window-seconds", "1"],
            "does not say when they are shown, and features are taken",
        ),
        (["localize", "clips/up/up_000", "clips/up/up_001"], "is a video: the run that is asked comes first"),
        (
            ["predict", "tada2d_tiny_motion", "clips/up/up_000", "--stream", "--fps", "8"],
            "--fps is for finished videos",
        ),
    ],
)
def test_the_line_shows_the_way(
    words: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    assert main(words) == 2
    line = capsys.readouterr().err
    assert message in line.splitlines()[-1]


def test_a_rate_beside_files_only_is_told_in_training(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("videos", "--fps", "8", "--dry-run") == 0
    assert "fps 8 is for folders of frames, and there is none: files have times of their own" in capsys.readouterr().out


def test_one_folder_of_many_that_is_damaged(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "clips/left/left_001/img_00004.png").write_bytes(b"")
    (place / "clips/up/up_002/img_00002.png").unlink()
    assert train("clips", "--fps", "8", "--out", "run") == 2
    assert (
        "img_00004.png' has no bytes" in (message := capsys.readouterr().err) or "'img_00002.png' is missing" in message
    )
    assert train("clips", "--fps", "8", "--out", "other", "--skip-unreadable", "2") == 0
    assert main(["predict", "other", "clips", "--format", "csv"]) == 1
    out, err = capsys.readouterr()
    assert len({line.split(",")[0] for line in out.splitlines() if line.startswith("clips/")}) == 13
    assert "no prediction: 'clips/left/left_001/img_00004.png' has no bytes" in err
    assert "no prediction: 'clips/up/up_002': 'img_00002.png' is missing" in err


def test_localization(
    untrimmed: Path,
    small_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for video in sorted(untrimmed.glob("*.mp4")):
        with open_video(video) as reader:
            write_frames(Path("frames") / video.stem, reader.frames(range(32)), "frame_{:010}.png")
    shutil.copytree(untrimmed, "videos")
    Path("segments.csv").write_text((untrimmed / "segments.csv").read_text().replace(".mp4", ""))
    Path("small.yaml").write_text(recipe_yaml(replace(RECIPE, epochs=1)))
    Path("backbone.yaml").write_text(recipe_yaml(replace(small_recipe, epochs=1, warmup_epochs=0.0)))
    words = ["localize", "train", "--segments", "segments.csv", "--recipe", "small.yaml", "--num-workers", "0"]
    words += ["--backbone-recipe", "backbone.yaml"]
    assert main([*words, "--videos", "frames", "--out", "bare"]) == 2
    assert "does not say when they are shown, and segments are in seconds: give their rate" in capsys.readouterr().err
    assert main([*words, "--videos", "videos", "--fps", "8", "--out", "bare"]) == 2
    assert "fps = 8 is for folders of frames, and there is none" in capsys.readouterr().err
    assert main([*words, "--videos", "frames", "--fps", "8", "--out", "run"]) == 0
    assert main([*words, "--videos", "videos", "--out", "of_videos"]) == 0
    assert fps_of_run("run") == 8.0
    features = [FeatureFolder(Path(f"{run}_features")) for run in ("run", "of_videos")]
    assert features[0].cards.keys() == features[1].cards.keys() == {"v0", "v1", "v2"}
    for name in ("v0", "v1", "v2"):
        np.testing.assert_array_equal(*(folder.read(name).features for folder in features))
    capsys.readouterr()
    found = []
    for video in ("frames/v2", "videos/v2.mp4"):
        assert main(["localize", "run", video, "--min-score", "0", "--format", "json", "--plots", "plots"]) == 0
        found.append(json.loads(capsys.readouterr().out)[0])
    assert found[0]["segments"] == found[1]["segments"]
    assert (found[0]["duration_seconds"], found[0]["video"]) == (4.0, "frames/v2")
    answer = tada.load("run").predict("frames/v2", fps=8, min_score=0)
    assert [segment.label for segment in answer.segments] == [segment["label"] for segment in found[0]["segments"]]
    out = ["--segments", "segments.csv", "--out", "report"]
    assert main(["localize", "evaluate", "run", "--videos", "frames", *out]) == 0
    said = capsys.readouterr().out
    assert "folders of frames are read at 8 frames per second, as in the localizer's training" in said
    # Features that are there are those of the frames at this rate.
    assert main(["extract", "run", "frames", "run_features", "--fps", "8"]) == 0
    assert "0 videos extracted, 3 there already" in capsys.readouterr().out
    assert main(["extract", "run", "frames", "run_features", "--fps", "16"]) == 0
    assert "3 videos extracted, 0 there already" in capsys.readouterr().out


def test_frames_beside_the_recording_that_they_are_of(untrimmed: Path, tmp_path: Path) -> None:
    """Where both lie there, annotations mean the recording, as they did before frames were extracted."""
    shutil.copytree(untrimmed, tmp_path / "data/videos")
    for name in ("v0", "v1"):
        with open_video(untrimmed / f"{name}.mp4") as reader:
            write_frames(tmp_path / "data/frames" / name, reader.frames(range(32)))
    said: list[str] = []
    _, files = match_videos(
        read_segments(untrimmed / "segments.csv"), tmp_path / "data", show_progress=False, say=said.append
    )
    assert sorted(file.name for file in files.values()) == ["v0.mp4", "v1.mp4", "v2.mp4"]
    assert "folders of frames that are called as video files are, and are passed over for these: " in said[0]


def test_clips_that_were_cut_at_another_rate_are_not_taken(untrimmed: Path, tmp_path: Path) -> None:
    for name in ("v0", "v1", "v2"):
        with open_video(untrimmed / f"{name}.mp4") as reader:
            write_frames(tmp_path / "frames" / name, reader.frames(range(32)))
    table = read_segments(untrimmed / "segments.csv")
    table, files = match_videos(table, tmp_path / "frames", fps=8, show_progress=False)
    clips = cut_clips(table, files, tmp_path / "clips", fps=8, show_progress=False)
    assert [probe(video.path).num_frames for video in clips.videos] == [8] * 6
    assert cut_clips(table, files, tmp_path / "clips", fps=8, show_progress=False) == clips
    with pytest.raises(DataError, match="holds clips of other segments"):
        cut_clips(table, files, tmp_path / "clips", fps=9, show_progress=False)
