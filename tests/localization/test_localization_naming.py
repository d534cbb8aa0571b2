"""Names for segments: from clips, from EPIC-KITCHENS' published scores, from external classifiers of whole videos."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drawn_features import RECIPE, draw_features, silent
from tada.commands.cli import main
from tada.data.table import Head
from tada.errors import DataError, OptionError
from tada.localization.annotations.table import SegmentTable, read_segments
from tada.localization.classifiers import read_video_scores
from tada.localization.detectors.nms import Detections
from tada.localization.evaluation import evaluate_localizer
from tada.localization.features.folder import FeatureCard, FeatureFolder, VideoFeatures, write_features
from tada.localization.features.grid import FeatureGrid
from tada.localization.localizer import load_localizer
from tada.localization.naming import check_naming, name_segments, naming_scores, scores_for
from tada.localization.recipe import load_localization_recipe
from tada.localization.run_outputs import thresholds_of
from tada.localization.training import train_localizer

GRID = FeatureGrid(start_seconds=0.5, stride_seconds=1.0, window_seconds=1.0)
SEGMENTS, SCORES = np.array([[1.0, 3.0], [6.0, 9.0]]), np.array([0.5, 0.9])


def test_classes_are_those_of_the_clips_inside() -> None:
    rows = np.zeros((10, 3))
    rows[:5, 0], rows[5:, 1], rows[:, 2] = 0.8, 0.7, 0.2
    found = name_segments(SEGMENTS, SCORES, [rows], GRID)
    assert found.labels[:, 0].tolist() == [1, 0, 2, 2]
    assert found.segments[:2].tolist() == [[6.0, 9.0], [1.0, 3.0]]
    assert found.scores == pytest.approx([0.63, 0.4, 0.18, 0.1])
    whole = name_segments(SEGMENTS, SCORES, [rows], GRID, video_classes=1)
    assert whole.labels[:, 0].tolist() == [0, 0]  # 0.4 on average, against 0.35
    assert whole.scores == pytest.approx([0.36, 0.2])
    pairs = name_segments(SEGMENTS, SCORES, [rows, rows[:, ::-1]], GRID)
    assert pairs.labels[0].tolist() == [1, 1]
    assert pairs.labels.shape == (2 * 5, 2)
    assert pairs.scores[0] == pytest.approx(0.9 * 0.7 * 0.7)


def test_one_row_speaks_for_the_whole_video() -> None:
    found = name_segments(SEGMENTS, SCORES, [np.array([[0.1, 0.2, 0.7]])], GRID)
    assert found.labels[:, 0].tolist() == [2, 2, 1, 1]
    assert found.scores == pytest.approx([0.63, 0.35, 0.18, 0.1])
    three = name_segments(SEGMENTS, SCORES, [np.array([[0.1, 0.2, 0.7]])], GRID, video_classes=3)
    assert len(three.scores) == 6


def test_numbers_stand_for_names_of_the_same_place() -> None:
    """EPIC-KITCHENS' scores have numbers, its annotations names where their files lie beside them, and the reverse."""
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)

    def scores(known: list[str], classes: tuple[str, ...]) -> list[float]:
        card = FeatureCard(
            video="v",
            duration_seconds=2.0,
            grid=GRID,
            num_features=2,
            channels=1,
            backbone="",
            settings={},
            score_labels={"verb": known},
        )
        found = VideoFeatures(card=card, features=np.zeros((2, 1), np.float32), scores={"verb": rows})
        (taken,) = naming_scores(found, [Head(name="verb", labels=classes)])
        values: list[float] = taken[0].tolist()
        return values

    assert scores(["0", "1", "2"], ("take", "put", "open")) == [0, 1, 2]
    assert scores(["take", "put", "open"], ("0", "1", "2")) == [0, 1, 2]
    assert scores(["take", "put", "open"], ("open", "take")) == [2, 0]
    with pytest.raises(DataError, match=r"come without scores of the verb '3' \(1 of 4 classes\)"):
        scores(["0", "1", "2"], ("0", "1", "2", "3"))


# -- external classifiers ---------------------------------------------------------------------------------------------


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_the_classifier_of_activitynet(tmp_path: Path) -> None:
    """cuhk_val_simp_share.json."""
    content = {"results": {"--1DO2V4K74": [0.1, 0.7, 0.2]}, "class": ["Archery", "Drinking coffee", "Zumba"]}
    scores = read_video_scores(write_json(tmp_path / "cuhk.json", content))
    assert scores.classes == ("Archery", "Drinking coffee", "Zumba")
    assert scores.scores_of("v_--1DO2V4K74") == pytest.approx([0.1, 0.7, 0.2])  # features carry a prefix
    assert scores.scores_of("other") is None


def test_the_classifier_of_hacs_gives_logits(tmp_path: Path) -> None:
    """validation94.32.json, with one list too many."""
    content = {"results": {"v_a": [[np.log(2.0), np.log(6.0)]], "b": [[0.2, 0.2]]}, "classes": ["Archery", "Zumba"]}
    scores = read_video_scores(write_json(tmp_path / "tcanet.json", content))
    assert scores.scores_of("a") == pytest.approx([0.25, 0.75])
    assert scores.scores_of("b") == pytest.approx([0.5, 0.5])  # small logits are logits, too: one file is of one kind


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"c.json' holds no scores of videos; expected JSON with \"class\""),
        ({"results": {"v": [1]}}, "holds no scores of videos"),
        ({"results": {}, "class": ["a"]}, "holds no scores of videos"),
        (
            {"results": {"v": [0.5]}, "class": ["a", "b"]},
            r"c.json video 'v': scores of the shape \[1\], while there are 2",
        ),
        ({"results": {"v": ["x", 1]}, "class": ["a", "b"]}, r"c.json video 'v': its scores are no list of numbers"),
        ({"results": {"v": [0.5, float("nan")]}, "class": ["a", "b"]}, "NaN is no finite number"),
    ],
)
def test_faults_of_a_classifiers_file(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_video_scores(write_json(tmp_path / "c.json", content))
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as scores of videos"):
        read_video_scores(tmp_path / "c.json")


# -- class-agnostic ActionFormer --------------------------------------------------------------------------------------

AGNOSTIC = replace(
    RECIPE,
    class_agnostic=True,
    video_classes=1,
    epochs=1,
    attention_window=(5, 3, -1),
    position_encoding=True,
    padding_leak="opentad",
)


def test_the_published_recipes_name_by_a_classifier() -> None:
    for name, classes in (("activitynet", 2), ("hacs", 3)):
        recipe = load_localization_recipe(name)
        assert (recipe.class_agnostic, recipe.video_classes, recipe.position_encoding) == (True, classes, True)
        assert recipe.names_by_scores
    assert not load_localization_recipe("thumos14").names_by_scores
    assert load_localization_recipe("epic_bmn").names_by_scores
    with pytest.raises(OptionError, match="the recipe's video_classes must be null or 1 or more"):
        replace(RECIPE, video_classes=0)


def test_class_agnostic_actionformer_is_named_by_a_classifier(tmp_path: Path) -> None:
    features, segments = draw_features(tmp_path, with_scores=False)
    with pytest.raises(DataError, match=r"'v4' come without scores of the action 'a' .* --class-agnostic false"):
        train_localizer(AGNOSTIC, features, segments, tmp_path / "run", show_progress=False, say=silent)
    assert not (tmp_path / "run").exists()
    scores = {"results": {"v4": [0.2, 0.8]}, "class": ["b", "a"]}
    file = write_json(tmp_path / "scores.json", scores)
    with pytest.raises(DataError, match=r"scores.json has no scores of the video 'v5'"):
        train_localizer(
            AGNOSTIC, features, segments, tmp_path / "run", classifier=file, show_progress=False, say=silent
        )
    scores["results"]["v5"] = [0.9, 0.1]  # type: ignore[call-overload]  # of the first, a mapping
    write_json(file, scores | {"class": ["b", "c"]})
    with pytest.raises(DataError, match=r"scores.json has no class 'a' \(1 of 2 classes are missing\), and by its"):
        train_localizer(
            AGNOSTIC, features, segments, tmp_path / "run", classifier=file, show_progress=False, say=silent
        )
    write_json(file, scores)
    with pytest.raises(OptionError, match="names its segments itself; leave the classifier away"):
        train_localizer(RECIPE, features, segments, tmp_path / "run", classifier=file, show_progress=False, say=silent)
    train_localizer(AGNOSTIC, features, segments, tmp_path / "run", classifier=file, show_progress=False, say=silent)
    localizer = load_localizer(tmp_path / "run")
    assert localizer.card.shape["num_classes"] == [1]
    assert localizer.card.shape["window"] == [5, 3, -1]
    assert (localizer.card.shape["interpolate_positions"], localizer.card.shape["padding_leak"]) == (True, "opentad")
    assert localizer.heads[0].labels == ("a", "b")
    tested = evaluate_localizer(
        localizer, features, segments, tiou_thresholds=(0.1,), classifier=file, show_progress=False
    )
    labels = {video: {entry["label"] for entry in entries} for video, entries in tested.results["results"].items()}
    assert labels == {"v4": {"a"}, "v5": {"b"}}
    with pytest.raises(DataError, match="come without scores of the action 'a'"):
        evaluate_localizer(localizer, features, segments, tiou_thresholds=(0.1,), show_progress=False)


def test_the_backbones_scores_name_where_there_is_no_classifier(tmp_path: Path) -> None:
    features, segments = draw_features(tmp_path)
    recipe = replace(AGNOSTIC, video_classes=None)
    train_localizer(recipe, features, segments, tmp_path / "run", show_progress=False, say=silent)
    found = load_localizer(tmp_path / "run").detect(FeatureFolder(features).read("v5"))
    truth = read_segments(segments).videos[5].segments[0]
    middle = (truth.start_seconds + truth.end_seconds) / 2
    inside = (found.segments[:, 0] < middle) & (middle < found.segments[:, 1])
    short = inside & (found.segments[:, 1] - found.segments[:, 0] < 1.5)
    assert found.labels[short][0, 0] == truth.labels[0]


def test_classifiers_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, segments = draw_features(tmp_path, with_scores=False)
    file = write_json(tmp_path / "s.json", {"results": {"v4": [0.2, 0.8], "v5": [0.9, 0.1]}, "class": ["b", "a"]})
    words = ["--epochs", "1", "--warmup-epochs", "0", "--dim", "16", "--class-agnostic", "true"]
    data = ["--features", features, "--segments", segments, "--classifier", file]
    run = tmp_path / "run"
    assert main([*map(str, ("localize", "train", *data, "--out", run, *words))]) == 0
    assert f"localize evaluate {run} {' '.join(map(str, data))}" in "".join(capsys.readouterr().out.splitlines())
    assert main([*map(str, ("localize", "evaluate", *data, "--model", run))]) == 0
    assert "mAP" in capsys.readouterr().out
    (tmp_path / "blocked.json").write_text('["v4"]')
    left_out = ["--leave-out", tmp_path / "blocked.json"]
    assert main([*map(str, ("localize", "evaluate", *data, "--model", run, "--overwrite", *left_out))]) == 0
    assert json.loads((run / "evaluation" / "detections.json").read_text())["results"].keys() == {"v5"}
    faults = (
        (("localize", "train", "--videos", tmp_path, "--segments", segments, "--classifier", file), "with --videos"),
        (("localize", "evaluate", *data[:4], "--model", run, "--overwrite"), "--classifier"),
    )
    for arguments, message in faults:
        capsys.readouterr()
        assert main([*map(str, arguments)]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


# -- thresholds -------------------------------------------------------------------------------------------------------


class Told:
    """A localizer that finds what it is told to."""

    recipe = RECIPE

    def __init__(self, found: dict[str, list[tuple[float, float, int, float]]]) -> None:
        self.found = found
        self.asked: list[str] = []

    def detect(self, features: VideoFeatures) -> Detections:
        self.asked.append(features.card.video)
        rows = np.array(self.found[features.card.video])
        return Detections(rows[:, :2], rows[:, 3], rows[:, 2:3].astype(np.int64))


def flat_features(folder: Path, names: list[str]) -> FeatureFolder:
    for name in names:
        card = FeatureCard(
            video=name, duration_seconds=4.0, grid=GRID, num_features=4, channels=2, backbone="", settings={}
        )
        write_features(folder, VideoFeatures(card=card, features=np.ones((4, 2), np.float32), scores={}))
    return FeatureFolder(folder)


def test_a_class_without_validation_stands_above_its_false_detections(tmp_path: Path) -> None:
    """It happens in training alone: 0.8 is right there; in validation all of it is wrong, up to 0.4."""
    rows = "video,start,end,label,split\nv,0,2,a,val\nt,0,2,b,train\nu,0,2,a,train\n"
    (tmp_path / "s.csv").write_text(rows)
    table: SegmentTable = read_segments(tmp_path / "s.csv")
    folder = flat_features(tmp_path / "f", ["t", "u", "v"])
    found = {
        "v": [(0.0, 2.0, 0, 0.2), (3.0, 4.0, 0, 0.1), (0.0, 2.0, 1, 0.4), (1.0, 3.0, 1, 0.3)],
        "t": [(0.0, 2.0, 1, 0.8), (3.0, 4.0, 1, 0.2)],
    }
    told = Told(found)
    thresholds = thresholds_of(told, folder, table.of_split("val"), table.of_split("train"))  # type: ignore[arg-type]  # a stand-in
    assert thresholds == pytest.approx({"a": 0.15, "b": 0.6})  # each midway; before, "b" had the 0.15 of "a"
    assert told.asked == ["v", "t"]  # "u" has nothing to tell


def test_a_class_that_was_found_by_validation_keeps_its_threshold(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("video,start,end,label,split\nv,0,2,a,val\nt,0,2,a,train\n")
    table = read_segments(tmp_path / "s.csv")
    told = Told({"v": [(0.0, 2.0, 0, 0.9)]})
    folder = flat_features(tmp_path / "f", ["t", "v"])
    assert thresholds_of(told, folder, table.of_split("val"), table.of_split("train")) == {"a": 0.9}  # type: ignore[arg-type]  # a stand-in
    never = Told({"v": [(3.0, 4.0, 0, 0.9)], "t": [(3.0, 4.0, 0, 0.9)]})
    assert thresholds_of(never, folder, table.of_split("val"), table.of_split("train")) == {}  # type: ignore[arg-type]  # a stand-in


def test_what_is_checked_before_hours_are_spent(tmp_path: Path) -> None:
    features, segments = draw_features(tmp_path)
    table = read_segments(segments)
    check_naming(FeatureFolder(features), table.videos, table.heads)
    file = write_json(tmp_path / "s.json", {"results": {"v0": [1, 0]}, "class": ["a", "b"]})
    folder = FeatureFolder(features, classifier=scores_for(AGNOSTIC, file))
    assert folder.read("v0").scores["action"].tolist() == [[1, 0]]
    assert folder.read("v1").scores == {}  # never the backbone's in part and the classifier's in part
    with pytest.raises(DataError, match=r"s.json has no scores of the video 'v1'"):
        check_naming(folder, table.videos, table.heads)
