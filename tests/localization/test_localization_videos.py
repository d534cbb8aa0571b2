"""From untrimmed videos to a localizer: clips, backbone, features, detector, and the command line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tada
from drawn_features import RECIPE, silent
from tada.commands.cli import main
from tada.errors import DataError
from tada.localization.annotations.table import read_segments
from tada.localization.features.folder import FeatureFolder
from tada.localization.localizer import Localization, load_localizer
from tada.localization.train_from_videos import match_videos, train_on_videos
from tada.localization.trimmed import cut_clips
from tada.recognition.recipe import Recipe
from tada.training.recipe import recipe_yaml


def call(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def test_clips_are_cut_out_of_videos(untrimmed: Path, tmp_path: Path) -> None:
    table, files = match_videos(read_segments(untrimmed / "segments.csv"), untrimmed, show_progress=False)
    clips = cut_clips(table, files, tmp_path / "clips", show_progress=False)
    assert clips.counts() == {"left": 3, "up": 3}
    assert [len(clips.of_split(split)) for split in ("train", "val")] == [4, 2]
    assert tada.video.reader.probe(clips.videos[0].path).num_frames == 8
    before = (tmp_path / "clips" / "clips.csv").stat().st_mtime_ns
    assert cut_clips(table, files, tmp_path / "clips", show_progress=False) == clips
    assert (tmp_path / "clips" / "clips.csv").stat().st_mtime_ns == before


def test_clips_of_other_segments_are_not_taken(untrimmed: Path, tmp_path: Path) -> None:
    table, files = match_videos(read_segments(untrimmed / "segments.csv"), untrimmed, show_progress=False)
    cut_clips(table, files, tmp_path / "clips", show_progress=False)
    (tmp_path / "s.csv").write_text((untrimmed / "segments.csv").read_text().replace("0.5,1.5", "0.5,1.25"))
    changed, _ = match_videos(read_segments(tmp_path / "s.csv"), untrimmed, show_progress=False)
    with pytest.raises(DataError, match=r"clips' holds clips of other segments than s.csv has now; remove it"):
        cut_clips(changed, files, tmp_path / "clips", show_progress=False)


def test_a_video_that_breaks_while_clips_are_cut_is_left_out_where_that_is_allowed(
    untrimmed: Path, tmp_path: Path
) -> None:
    table, files = match_videos(read_segments(untrimmed / "segments.csv"), untrimmed, show_progress=False)
    content = bytearray((untrimmed / "v1.mp4").read_bytes())
    start = content.index(b"mdat") + len(content) // 3
    content[start : start + 400] = bytes(400)
    (tmp_path / "v1.mp4").write_bytes(content)
    files["v1"] = tmp_path / "v1.mp4"
    with pytest.raises(DataError, match=r"v1.mp4.*\(1 such videos, 0 allowed"):
        cut_clips(table, files, tmp_path / "clips", show_progress=False, say=silent)
    said: list[str] = []
    clips = cut_clips(table, files, tmp_path / "clips", skip_unreadable=1, show_progress=False, say=said.append)
    assert clips.counts() == {"left": 2, "up": 2}
    assert said[0].startswith("left out: ")


def test_a_class_of_one_split_leaves_the_training_clips(untrimmed: Path, tmp_path: Path) -> None:
    text = (untrimmed / "segments.csv").read_text()
    (tmp_path / "s.csv").write_text(text.replace("up,val", "down,val"))
    table, files = match_videos(read_segments(tmp_path / "s.csv"), untrimmed, show_progress=False)
    clips = cut_clips(table, files, tmp_path / "clips", show_progress=False)
    assert clips.splits == ("train",)
    assert clips.counts() == {"left": 2, "up": 2}


def test_videos_that_are_missing_or_broken_are_told_first(untrimmed: Path, tmp_path: Path) -> None:
    table = read_segments(untrimmed / "segments.csv")
    for name in ("v0", "v1"):
        (tmp_path / f"{name}.mp4").write_bytes((untrimmed / f"{name}.mp4").read_bytes())
    with pytest.raises(DataError, match=r"1 of 3 videos are not in .*, the first: 'v2'; put them there"):
        match_videos(table, tmp_path, show_progress=False)
    left, _ = match_videos(table, tmp_path, skip_unreadable=1, show_progress=False, say=silent)
    assert [video.name for video in left.videos] == ["v0", "v1"]
    # One of the same name in another folder is another one.
    for name in ("monday/v2", "tuesday/v9"):
        (tmp_path / f"week/{name}.mp4").parent.mkdir(parents=True)
        (tmp_path / f"week/{name}.mp4").write_bytes((untrimmed / "v2.mp4").read_bytes())
    text = (untrimmed / "segments.csv").read_text()
    (tmp_path / "s.csv").write_text(text.replace("v2.mp4", "tuesday/v2.mp4"))
    with pytest.raises(DataError, match=r"first: 'tuesday/v2' \('.*/monday/v2.mp4' lies in another folder\); put them"):
        match_videos(read_segments(tmp_path / "s.csv"), tmp_path, show_progress=False)
    (tmp_path / "week/tuesday/v9.mp4").unlink()
    said: list[str] = []
    match_videos(read_segments(tmp_path / "s.csv"), tmp_path, show_progress=False, say=said.append)
    assert len(said) == 1
    assert said[0].startswith(
        "s.csv: 1 video taken by name alone, from another folder than is written: 'tuesday/v2' for"
    )
    shutil.rmtree(tmp_path / "week")
    (tmp_path / "v2.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"v2.mp4.*\(1 such videos, 0 allowed; --skip-unreadable N allows N\)"):
        match_videos(table, tmp_path, show_progress=False)
    left, files = match_videos(table, tmp_path, skip_unreadable=1, show_progress=False, say=silent)
    assert [video.name for video in left.videos] == list(files) == ["v0", "v1"]


def test_one_command_from_videos_to_a_localizer(
    untrimmed: Path, small_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(recipe_yaml(RECIPE))
    out = tmp_path / "run"
    segments = untrimmed / "segments.csv"
    words = ["--recipe", recipe, "--out", out, "--epochs", "1", "--warmup-epochs", "0", "--backbone", small_backbone]
    assert call("localize", "train", "--videos", untrimmed, "--segments", segments, *words) == 0
    assert f"tada localize {out} VIDEO" in capsys.readouterr().out
    assert isinstance(tada.load(out), tada.Localizer)
    assert isinstance(tada.load(small_backbone), tada.Recognizer)

    video = untrimmed / "v2.mp4"
    options = ["--model", out, "--min-score", "0", "--segments", segments, "--plots", tmp_path / "plots"]
    assert call("localize", video, *options, "--format", "json") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["duration_seconds"] == 4.0
    assert {segment["label"] for segment in entry["segments"]} <= {"left", "up"}
    assert (tmp_path / "plots" / "v2.png").exists()
    # The same, whether features were extracted before or are made on the way.
    features = out.with_name("run_features")
    assert call("localize", "evaluate", "--model", out, "--features", features, "--segments", segments) == 0
    assert "average" in capsys.readouterr().out
    assert "wrong class" in (out / "evaluation" / "report.html").read_text()
    found = json.loads((out / "evaluation" / "detections.json").read_text())["results"]["v2"]
    mine = sorted((s["start_seconds"], s["end_seconds"]) for s in entry["segments"])
    theirs = sorted((round(s["segment"][0], 3), round(s["segment"][1], 3)) for s in found)
    assert len(mine) == len(theirs)
    np.testing.assert_allclose(mine, theirs, atol=0.02)  # features in files have sixteen bits
    # Or they are made for the test.
    words = ["localize", "evaluate", out, "--videos", untrimmed, "--segments", segments, "--out", tmp_path / "again"]
    assert call(*words) == 0
    assert "features of 3 videos extracted into" in capsys.readouterr().out
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert again == json.loads((out / "evaluation" / "evaluation.json").read_text())
    # A localizer may stand where its backbone may, and says itself how features are made.
    assert call("extract", out, untrimmed, tmp_path / "again_features") == 0
    assert "0 videos extracted, 3 there already" in capsys.readouterr().out
    assert call("extract", out, untrimmed, tmp_path / "f", "--stride-seconds", "1") == 2
    assert "is a localizer, whose features have a window of" in capsys.readouterr().err
    predictions = out / "evaluation" / "detections.json"
    assert call("localize", "evaluate", "--predictions", predictions, "--segments", segments, "--preset", "epic") == 0
    capsys.readouterr()
    for form, start in (("srt", "1\n00:00:"), ("csv", "video,start,end,label,score\n"), ("table", "video ")):
        assert call("localize", video, "--model", out, "--min-score", "0", "--format", form) == 0
        assert capsys.readouterr().out.startswith(start) or not found


def test_a_backbone_is_trained_where_none_is_given(untrimmed: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    result = train_on_videos(
        replace(RECIPE, epochs=1),
        untrimmed,
        untrimmed / "segments.csv",
        tmp_path / "run",
        backbone_recipe=replace(small_recipe, epochs=1),
        num_workers=0,
        show_progress=False,
        say=silent,
    )
    localizer = load_localizer(result.run)
    assert localizer.backbone is not None
    assert localizer.backbone.labels == ("left", "up")
    assert localizer.card.feature_settings["window_seconds"] == 1.0  # what an action lasts
    weights = load_file(tmp_path / "run_backbone" / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in localizer.backbone.model.state_dict().items())


def test_extracting_by_the_command_line(
    untrimmed: Path, small_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--window-seconds", "1", "--stride-seconds", "0.5"]
    assert call("extract", small_backbone, untrimmed, tmp_path / "f", *words) == 0
    assert "3 videos extracted, 0 there already" in capsys.readouterr().out
    assert FeatureFolder(tmp_path / "f").read("v1").features.shape == (8, 8)
    (untrimmed / "zz.mp4").write_bytes(b"no video")
    try:
        assert call("extract", small_backbone, untrimmed, tmp_path / "f", *words) == 1
    finally:
        (untrimmed / "zz.mp4").unlink()
    captured = capsys.readouterr()
    assert "0 videos extracted, 3 there already" in captured.out
    assert captured.err.startswith("tada: no features: ")
    assert call("extract", small_backbone, untrimmed, tmp_path / "f") == 2
    assert "give --window-seconds" in capsys.readouterr().err


def test_one_class_needs_a_backbone_that_is_trained(
    untrimmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.csv").write_text((untrimmed / "segments.csv").read_text().replace(",up,", ",left,"))
    assert call("localize", "train", "--videos", untrimmed, "--segments", "s.csv", "--out", "run") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "all training segments are of one class, 'left'" in err
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"]
    Path("small.yaml").write_text(recipe_yaml(replace(RECIPE, epochs=1)))
    words = ["--out", "run", "--recipe", "small.yaml", "--backbone", "tada2d_tiny_motion"]
    assert call("localize", "train", "--videos", untrimmed, "--segments", "s.csv", *words) == 0
    assert load_localizer("run").heads[0].labels == ("left",)


def test_a_video_in_which_nothing_happens_need_not_be_there(untrimmed: Path, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text((untrimmed / "segments.csv").read_text() + "quiet.mp4,,,,train\n")
    said: list[str] = []
    table, files = match_videos(read_segments(tmp_path / "s.csv"), untrimmed, show_progress=False, say=said.append)
    assert sorted(files) == [video.name for video in table.videos] == ["v0", "v1", "v2"]
    assert said == [f"s.csv: videos without segments that are not in {str(untrimmed)!r} are left out: 'quiet'"]


def test_equal_file_names_in_two_folders(
    untrimmed: Path,
    small_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole way, by relative paths: every camera numbers its recordings from 0."""
    monkeypatch.chdir(tmp_path)
    rows = (untrimmed / "segments.csv").read_text()
    for i, (camera, number) in enumerate((("a", 0), ("b", 0), ("b", 1))):
        (tmp_path / "videos" / camera).mkdir(parents=True, exist_ok=True)
        shutil.copy(untrimmed / f"v{i}.mp4", f"videos/{camera}/{number}.mp4")
        rows = rows.replace(f"v{i}.mp4", f"videos/{camera}/{number}.mp4" if i else "a\\0.mp4")
    Path("segments.csv").write_text(rows)
    Path("small.yaml").write_text(recipe_yaml(replace(RECIPE, epochs=1)))
    Path("backbone.yaml").write_text(recipe_yaml(replace(small_recipe, epochs=1)))
    words = ["--recipe", "small.yaml", "--backbone-recipe", "backbone.yaml", "--num-workers", "0", "--out", "run"]
    assert call("localize", "train", "--videos", "videos/", "--segments", "segments.csv", *words) == 0
    assert sorted(FeatureFolder(Path("run_features")).cards) == ["1", "a/0", "b/0"]
    clips = {path.relative_to("run_clips").as_posix() for path in Path("run_clips").rglob("*.mp4")}
    assert clips == {f"{name}_00{i}.mp4" for name in ("a/0", "b/0", "1") for i in (0, 1)}
    table = read_segments(Path("segments.csv"))
    assert (
        call("localize", "evaluate", "--model", "run", "--features", "run_features", "--segments", "segments.csv") == 0
    )
    assert "testing on 1 video, 1 held out of training" in capsys.readouterr().out
    assert table.of_split("val").videos[0].name == "1"
    # Pictures, and annotations in them, are of the video that they are called after.
    drawn = {}
    monkeypatch.setattr(
        Localization, "plot", lambda self, file, truth, **_: drawn.update({str(file): (self.path, truth.path[-3:])})
    )
    options = ["--model", "run", "--segments", "segments.csv", "--plots", "plots"]
    assert call("localize", "videos/a/0.mp4", "videos/b/0.mp4", "videos/b/1.mp4", *options) == 0
    assert drawn == {
        "plots/a_0.png": ("videos/a/0.mp4", "a/0"),
        "plots/b_0.png": ("videos/b/0.mp4", "b/0"),
        "plots/1.png": ("videos/b/1.mp4", "b/1"),
    }
    capsys.readouterr()
    Path("segments.csv").write_text(rows.replace("videos/b/0.mp4", "0.mp4"))
    assert call("localize", "train", "--videos", "videos", "--segments", "segments.csv", "--out", "other") == 2
    message = "tada: segments.csv: the video '0' may be each of 'a/0', 'b/0'; write its folder before its name\n"
    assert capsys.readouterr().err == message
    assert not list(tmp_path.glob("other*"))
