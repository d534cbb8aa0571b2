"""Localizers from features and from videos: training, resuming, what a run holds, answers, and the command line."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_localization_features import Brightness

import tada
from drawn_features import GRID, RECIPE, draw_features, silent
from tada.commands.cli import main
from tada.data.motion import draw_motion
from tada.data.table import Head
from tada.errors import CheckpointError, DataError, OptionError
from tada.localization.annotations.table import read_segments
from tada.localization.detectors.nms import Detections
from tada.localization.evaluation import evaluate_localizer, evaluate_predictions
from tada.localization.features.extraction import settings_as_dict
from tada.localization.features.folder import FeatureFolder, VideoFeatures, write_features
from tada.localization.features.grid import FeatureGrid
from tada.localization.localizer import (
    Localization,
    LocalizedSegment,
    Localizer,
    LocalizerCard,
    load_localizer,
    localizations_csv,
)
from tada.localization.naming import naming_scores
from tada.localization.recipe import LocalizationRecipe, load_localization_recipe
from tada.localization.training import train_localizer
from tada.models.weights import ModelCard
from tada.recognition.recognizer import Recognizer
from tada.training.recipe import named_recipes, read_recipe, recipe_yaml
from tada.video.sampling import ClipSpec
from tada.video.sliding_windows import SlidingWindows
from tada.video.writer import write_video


def test_a_run_leaves_all_that_is_needed_to_use_and_repeat_it(run: Path, data: tuple[Path, Path]) -> None:
    names = {
        "recipe.yaml",
        "data.json",
        "videos.csv",
        "localizer.safetensors",
        "localizer.json",
        "metrics.json",
        "logs",
        "resume",
        "curves.png",
        "report.html",
        "validation",
    }
    assert {path.name for path in run.iterdir()} == names
    assert read_recipe(run / "recipe.yaml", LocalizationRecipe) == RECIPE
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"val_map", "train_loss", "train_regression", "seconds"} <= metrics.keys()
    localizer = load_localizer(run)
    assert localizer.heads == (Head(name="action", labels=("a", "b")),)
    written = json.loads((run / "localizer.json").read_text())["label_sets"]
    assert written == [{"name": "action", "classes": ["a", "b"]}]  # as localizers of before have it
    assert localizer.card.grid == GRID
    # What was kept is the best epoch by the averaged weights: testing it again gives the same.
    again = evaluate_localizer(localizer, *data, tiou_thresholds=RECIPE.tiou_thresholds, show_progress=False)
    assert again.as_dict()["average_map"] == pytest.approx(metrics["val_map"], abs=1e-6)
    assert again.scores.num_ground_truth == 4


def test_its_features_are_those_it_was_trained_on(run: Path) -> None:
    with pytest.raises(OptionError, match="is a localizer: it is loaded without dtype and compile"):
        tada.load(run, dtype=torch.bfloat16)


def test_bmn_is_trained_too_and_named_by_the_backbones_scores(data: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = replace(RECIPE, detector="bmn", epochs=1, ema_decay=None)
    result = train_localizer(recipe, *data, tmp_path / "run", show_progress=False, say=silent)
    localizer = load_localizer(result.run)
    assert localizer.card.detector == "bmn"
    found = localizer.detect(FeatureFolder(data[0]).read("v5"))
    rows = naming_scores(FeatureFolder(data[0]).read("v5"), localizer.heads)[0]
    first = read_segments(data[1]).videos[5].segments[0]
    middle = round(GRID.index((first.start_seconds + first.end_seconds) / 2))
    assert rows[middle] == pytest.approx([0.9, 0.1], abs=1e-3)  # "a", which the backbone has as its second class
    assert 1 <= len(found.scores) <= 2 * 9  # a proposal for each second and one more, two names for each
    assert (found.segments[:, 1] <= 8).all()
    nameless = draw_features(tmp_path / "nameless", with_scores=False)
    with pytest.raises(DataError, match=r"come without scores of the action 'a' \(2 of 2 classes\)"):
        train_localizer(recipe, *nameless, tmp_path / "other", show_progress=False, say=silent)


def test_verbs_and_nouns_share_a_trunk(data: tuple[Path, Path], tmp_path: Path) -> None:
    lines = (
        data[1].read_text().replace("label", "verb,noun").replace(",a,", ",open,door,").replace(",b,", ",close,tap,")
    )
    (tmp_path / "pairs.csv").write_text(lines)
    train_localizer(
        replace(RECIPE, epochs=1), data[0], tmp_path / "pairs.csv", tmp_path / "run", show_progress=False, say=silent
    )
    localizer = load_localizer(tmp_path / "run")
    assert [len(s.labels) for s in localizer.heads] == [2, 2]
    tested = evaluate_localizer(localizer, data[0], tmp_path / "pairs.csv", tiou_thresholds=(0.1,), show_progress=False)
    assert tested.tasks().keys() == {"verb", "noun", "action"}
    entry = tested.results["results"]["v5"][0]
    assert entry["label"] == f"{entry['verb']},{entry['noun']}"


FAULTS = {
    "no segments to test": (lambda text: text.replace(",val", ",held"), r"row \d+: split = 'held' should be"),
    "only validation": (lambda text: text.replace(",train", ",val"), r"no segments in the split 'train'"),
    "other videos": (
        lambda text: text.replace("\nv0", "\nw0"),
        r"the video 'w0' has no features in .*lies 'v0'.*1 such videos, 0 allowed",
    ),
    "outside": (lambda text: text + "v1,9,10,a,train\n", r"row 14: the segment from 9 to 10 s lies outside"),
    "reversed": (lambda text: text + "v1,3,2,a,train\n", r"row 14: the segment ends \(2.0 s\) before it starts"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_segments_are_refused_before_training(fault: str, data: tuple[Path, Path], tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    (tmp_path / "segments.csv").write_text(change(data[1].read_text()))
    with pytest.raises(DataError, match=message):
        train_localizer(RECIPE, data[0], tmp_path / "segments.csv", tmp_path / "run", show_progress=False, say=silent)
    assert not (tmp_path / "run").exists()


def test_features_of_another_backbone_are_refused(run: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    found = FeatureFolder(data[0]).read("v5")
    write_features(tmp_path / "f", replace(found, card=replace(found.card, backbone="another")))
    with pytest.raises(
        DataError,
        match="holds features of another backbone than the localizer was trained on; extract them as it does, `tada",
    ):
        evaluate_localizer(load_localizer(run), tmp_path / "f", data[1], tiou_thresholds=(0.5,), show_progress=False)


def test_features_are_not_another_backbones(data: tuple[Path, Path], small_backbone: Path, tmp_path: Path) -> None:
    own = tada.recognition.recognizer.load_recognizer(small_backbone)
    with pytest.raises(DataError, match=r"holds features of another backbone \(drawn\) than the one given"):
        train_localizer(RECIPE, *data, tmp_path / "run", backbone=own, show_progress=False, say=silent)


def test_videos_without_features_are_left_out_where_that_is_allowed(data: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(data[1].read_text() + "w,1,2,a,train\n")
    said: list[str] = []
    recipe = replace(RECIPE, epochs=1)
    train_localizer(
        recipe, data[0], tmp_path / "s.csv", tmp_path / "run", skip_missing=1, show_progress=False, say=said.append
    )
    assert said[0].startswith("left out: s.csv: the video 'w' has no features")


def test_features_of_another_setting_and_other_classes_are_refused(
    run: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    localizer = load_localizer(run)

    def test(features: Path, segments: Path) -> None:
        evaluate_localizer(localizer, features, segments, tiou_thresholds=(0.5,), show_progress=False)

    found = FeatureFolder(data[0]).read("v5")
    write_features(tmp_path / "f", replace(found, card=replace(found.card, settings={"stride_seconds": 0.3})))
    with pytest.raises(DataError, match=r"features of another stride_seconds \(.*, not .*\) than the localizer was"):
        test(tmp_path / "f", data[1])
    (tmp_path / "s.csv").write_text("video,start,end,label\nv5,1,2,swim\n")
    with pytest.raises(DataError, match=r"s.csv is of action \(swim\), while the localizer names action \(a, b\)"):
        test(data[0], tmp_path / "s.csv")
    (tmp_path / "s.csv").write_text("video,start,end,label\nv5,1,2,a\nw,1,2,a\n")
    with pytest.raises(DataError, match=r"has no features of 1 of the 2 videos to test on, the first: 'w'; extract"):
        test(data[0], tmp_path / "s.csv")


def test_predictions_that_cannot_be_meant_are_refused(data: tuple[Path, Path], tmp_path: Path) -> None:
    def test(video: str, predictions: object, segments: Path = data[1], leave_out: Path | None = None) -> float:
        (tmp_path / "p.json").write_text(json.dumps({"results": {video: predictions}}))
        found = evaluate_predictions(tmp_path / "p.json", segments, tiou_thresholds=(0.1,), leave_out=leave_out)
        average: float = found.tasks()["action"].average
        return average

    entry = {"segment": [0, 8], "label": "a", "score": 0.5}
    assert test("v_v4", [entry]) > 0  # with a prefix
    (tmp_path / "blocked.txt").write_text("v5\n")
    assert test("v4", [entry | {"segment": [0.7, 2.6]}], leave_out=tmp_path / "blocked.txt") == 0.5
    for video, predictions, message in (
        ("v0", [entry], r"has predictions on none of the 2 videos of segments.csv, but on others such as 'v0'"),
        ("v4", [entry | {"label": "swim"}], r"has predictions of none of the classes of segments.csv, such as 'a'"),
        ("v4", entry, "predictions of video 'v4' are no list of objects with segment, label and score"),
    ):
        with pytest.raises(DataError, match=message):
            test(video, predictions)
    (tmp_path / "pairs.csv").write_text("video,start,end,verb,noun\nv4,0,1,open,door\n")
    with pytest.raises(DataError, match=r"prediction 1 of video 'v4' names no verb and noun; pairs.csv is of both"):
        test("v4", [entry], tmp_path / "pairs.csv")


def test_a_damaged_localizer_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no localizer.json: it is written when"):
        load_localizer(tmp_path)
    for name in ("recipe.yaml", "localizer.json", "localizer.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    data = bytearray((tmp_path / "localizer.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "localizer.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"localizer.safetensors' is damaged"):
        load_localizer(tmp_path)
    (tmp_path / "localizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_localizer(tmp_path)


def test_recipes_come_with_tada() -> None:
    assert {"thumos14", "activitynet", "hacs", "hacs_bmn", "epic", "epic_bmn"} <= named_recipes("localization").keys()
    for name in named_recipes("localization"):
        load_localization_recipe(name)
    assert load_localization_recipe("epic_bmn", epochs=3).learning_rate == 2e-3
    with pytest.raises(tada.UserError, match="no localization recipe is called 'thumos'; did you mean 'thumos14'"):
        load_localization_recipe("thumos")
    for change, message in (({"dim": 6}, "dim must be a multiple of 4"), ({"tiou_thresholds": (2.0,)}, "tiou_thresh")):
        with pytest.raises(OptionError, match=f"the recipe's {message}"):
            LocalizationRecipe(**change)  # type: ignore[arg-type]


# -- answers ----------------------------------------------------------------------------------------------------------

FOUND = Localization(
    path="=day.mp4",
    duration_seconds=3700.0,
    segments=(
        LocalizedSegment(start_seconds=1.25, end_seconds=2.5, label="jump", score=0.9),
        LocalizedSegment(start_seconds=3661.0, end_seconds=3662.0004, label="run", score=0.5),
    ),
)


def test_answers_in_all_forms() -> None:
    entry = json.loads(json.dumps(FOUND.as_dict()))
    assert entry["segments"][0] == {"start_seconds": 1.25, "end_seconds": 2.5, "label": "jump", "score": 0.9}
    rows = list(csv.DictReader(io.StringIO(localizations_csv([FOUND]))))
    assert [row["label"] for row in rows] == ["jump", "run"]
    assert rows[0]["video"] == "'=day.mp4"  # no formula
    assert FOUND.srt() == (
        "1\n00:00:01,250 --> 00:00:02,500\njump (0.90)\n\n2\n01:01:01,000 --> 01:01:02,000\nrun (0.50)\n"
    )


class Finder(torch.nn.Module):
    """A detector that needs no training: runs of features above one half, "bright"."""

    def detect(self, found: VideoFeatures) -> Detections:
        level = np.concatenate([[0.0], found.features.mean(1), [0.0]])
        edges = np.flatnonzero(np.diff((level > 0.5).astype(int))).reshape(-1, 2) - 0.5
        segments = found.card.grid.seconds(edges.astype(np.float64))
        return Detections(segments, np.full(len(segments), 0.8), np.zeros((len(segments), 1), np.int64))


def test_events_of_an_untrimmed_video_are_found_to_half_a_step(tmp_path: Path) -> None:
    """Generated motion, dark between; the whole way from the file to the timeline with a backbone that is sure."""
    events, parts = [(2.0, 3.5), (5.1, 7.3), (9.0, 9.8)], np.zeros((120, 32, 32, 3), np.uint8)
    for i, (start, end) in enumerate(events):
        first, last = round(start * 10), round(end * 10)
        clip = draw_motion("left", np.random.default_rng(i), num_frames=last - first, width=32, height=32)
        parts[first:last] = clip // 8 + 220
    write_video(tmp_path / "day.mp4", parts, fps=10)
    spec = ClipSpec(num_frames=4, sampling="segment", short_side=16, crop=16)
    backbone = Recognizer(
        Brightness(), ModelCard(model="tada2d_tiny", labels=("a", "b"), clip=spec, trained_from="thought"), device="cpu"
    )
    settings = SlidingWindows(window_seconds=0.4, stride_seconds=0.2)
    card = LocalizerCard(
        detector="actionformer",
        shape={},
        heads=(Head(name="action", labels=("bright",)),),
        grid=FeatureGrid.of_windows(settings),
        feature_settings=settings_as_dict(backbone, settings),
        backbone="",
        thresholds={"bright": 0.5},
    )
    localizer = Localizer(Finder(), card, RECIPE, backbone=backbone)  # type: ignore[arg-type]  # a stand-in
    advanced: list[float] = []
    found = localizer.localize(tmp_path / "day.mp4", advance=advanced.append)
    assert sum(advanced) == pytest.approx(1)
    assert found.duration_seconds == pytest.approx(12.0)
    half_a_step = settings.stride_seconds / 2 + 1e-6
    mine = [(segment.start_seconds, segment.end_seconds) for segment in found.segments]
    np.testing.assert_allclose(mine, events, atol=half_a_step)
    assert localizer.localize(tmp_path / "day.mp4", min_score=0.9).segments == ()
    (tmp_path / "day.csv").write_text("video,start,end,label\n" + "".join(f"day,{s},{e},bright\n" for s, e in events))
    truth = read_segments(tmp_path / "day.csv").videos[0]
    found.plot(tmp_path / "plots" / "day.png", truth=truth, names=["bright"] * 3)
    assert (tmp_path / "plots" / "day.png").read_bytes().startswith(b"\x89PNG")


# -- by the command line ----------------------------------------------------------------------------------------------


def call(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def test_importing_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "published").mkdir()
    np.save(tmp_path / "published" / "v_x.npy", np.random.default_rng(0).normal(size=(110, 6)))
    words = ["--fps", "30", "--stride", "16", "--clip-frames", "64"]
    assert call("localize", "import", tmp_path / "published", tmp_path / "f", *words) == 0
    assert "1 video, 6 channels every 0.5333 s" in capsys.readouterr().out
    assert FeatureFolder(tmp_path / "f").grid.start_seconds == pytest.approx(32 / 30)


def test_training_on_features_names_a_command_that_works(
    data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(recipe_yaml(replace(RECIPE, epochs=1)))
    words = ["--features", data[0], "--segments", data[1], "--recipe", recipe, "--out", tmp_path / "run"]
    assert call("localize", "train", *words) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("  tada ")]
    assert "with --backbone RUN, the one that made these, it gets one" in out
    assert call(*line.split()[1:]) == 0
    assert "average" in capsys.readouterr().out


def test_mistakes_at_the_command_line(
    run: Path, small_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for name in ("recipe.yaml", "data.json", "videos.csv"):
        shutil.copy(run / name, unfinished)
    for arguments, message in (
        (["localize", "train", "--segments", "s.csv"], "say what to train on: --videos"),
        (
            ["localize", "train", "--segments", "s.csv", "--videos", "v", "--recipe", "thumos"],
            "did you mean 'thumos14'",
        ),
        (["localize", "train", "--segments", tmp_path / "s.csv", "--features", tmp_path], "is no file"),
        (["localize", "x.mp4", "--model", tmp_path], "holds no localizer.json"),
        (
            ["localize", "x.mp4", run],
            f"'x.mp4' is no run, and '{run}' is one: the run comes first, `tada localize {run} x.mp4`",
        ),
        (
            ["localize", "x.mp4", "y.mp4"],
            "'x.mp4' is a video: the run that is asked comes first, `tada localize RUN x.mp4`",
        ),
        (["localize", "evaluate", "--segments", "s.csv"], "say what to measure"),
        (
            ["localize", "x.mp4", "--model", small_backbone],
            "is a recognizer, which says what happens in a clip (tada",
        ),
        (
            ["localize", "x.mp4", "--model", "nothing"],
            "'nothing' is no folder; give that of a run of `tada local",
        ),
        (
            ["predict", run, "x.mp4"],
            f"says when things happen: `tada localize {run} VIDEO`",
        ),
        (["predict", unfinished, "x.mp4"], "is a localizer whose training has not ended: continue it with `tada local"),
        (["extract", run, "x.mp4", tmp_path / "f"], "was trained on features from files (drawn) and has no network"),
    ):
        assert call(*arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("tada: ")
        assert err.count("\n") == 1
        assert message in err
    video = tmp_path / "a.mp4"
    write_video(video, np.zeros((8, 16, 16, 3), np.uint8), fps=8)
    assert call("localize", video, "--model", run) == 2  # trained on features from files
    assert "has no network to make them of a video" in capsys.readouterr().err
