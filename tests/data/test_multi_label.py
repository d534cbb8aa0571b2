"""Several labels for a video: read, held out, trained, tested, answered, exported; and every fault is a line."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.classification import MultilabelAveragePrecision

import tada
from tada.data.annotations import read_dataset
from tada.data.balance import balance_in_words, positive_weights
from tada.data.clips import TrainingClips
from tada.data.hold_out import hold_out
from tada.data.labeled_csv import write_table
from tada.data.motion import draw_motion, draw_motions, twin
from tada.data.multi_label import (
    average_precisions,
    chosen_thresholds,
    class_scores,
    mean_average_precision,
    positives_text,
)
from tada.data.table import Head, VideoTable, targets_of
from tada.data.views import TestVideos, Views
from tada.errors import CheckpointError, DataError, OptionError, UserError
from tada.export import export
from tada.models.weights import load_model, parse_card, write_card
from tada.recognition.evaluation import evaluate
from tada.recognition.prediction import Prediction, predictions_csv
from tada.recognition.recipe import Recipe
from tada.recognition.results import Evaluation, ensemble, load_scores
from tada.recognition.training import train
from tada.recognition.training_data import augmentation
from tada.recognition.training_step import several_loss
from tada.video.writer import write_video

CLASSES = ("left", "right", "up")


def write_data(folder: Path, count: int, *, seed: int = 0, easy: bool = True) -> Path:
    """Videos of none, one or two motions at a time, and the CSV that lists them in columns."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = [some for size in range(3) for some in combinations(CLASSES, size)]
    rows = []
    for number in range(count):
        chosen = sets[number % len(sets)]
        rng = np.random.default_rng([seed, number])
        frames = draw_motions(chosen, rng, num_frames=8, width=32, height=32, clutter=0.2, easy=easy)
        write_video(folder / f"{number:03d}.mp4", frames, fps=8.0)
        rows.append([f"{number:03d}.mp4", *(int(label in chosen) for label in CLASSES)])
    with (folder / "videos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", *CLASSES], *rows])
    return folder / "videos.csv"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("several") / "clips", 21)


@pytest.fixture(scope="module")
def run(data: Path, small_recipe: Recipe) -> Path:
    out = data.parent.parent / "run"
    train(replace(small_recipe, keep="best"), data, out, num_workers=0, show_progress=False, say=lambda line: None)
    return out


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """A CSV beside the (empty) files a.mp4 to d.mp4."""

    def write(text: str) -> Path:
        for name in "abcd":
            (tmp_path / f"{name}.mp4").touch()
        (tmp_path / "clips.csv").write_text(text)
        return tmp_path / "clips.csv"

    return write


def said(table: VideoTable) -> dict[str, tuple[str, ...]]:
    return {Path(video.path).stem: table.label_names(video) for video in table.videos}


class TestLists:
    WANTED = {"a": ("walk", "wave"), "b": ("walk",), "c": ("wave",)}  # noqa: RUF012

    @pytest.mark.parametrize(
        "text",
        [
            "path,label\na.mp4,wave;walk\nb.mp4,walk\nc.mp4,wave\n",
            "path,label\na.mp4, walk ; wave \nb.mp4,walk\nc.mp4,wave\n",
            'path;label\na.mp4;"wave;walk"\nb.mp4;walk\nc.mp4;wave\n',
            "path\tlabel\na.mp4\twave;walk\nb.mp4\twalk\nc.mp4\twave\n",
            "path,wave,walk\na.mp4,1,1\nb.mp4,0,1\nc.mp4,1,0\n",
            "path;walk;wave\na.mp4;1;1\nb.mp4;1;0\nc.mp4;0;1\n",
            "walk,video,wave\n1,a.mp4,1\n1,b.mp4,0\n0,c.mp4,1\n",
            "path,wave,walk\na.mp4,True,True\nb.mp4,False,True\nc.mp4,True,False\n",
            "path,wave,walk\na.mp4,1.0,1.0\nb.mp4,0.0,1.0\nc.mp4,1.0,0.0\n",
        ],
    )
    def test_ways_of_writing(self, write: Callable[[str], Path], text: str) -> None:
        table = read_dataset(write(text))
        assert table.several
        assert table.labels == ("walk", "wave")
        assert said(table) == self.WANTED
        assert table.ignored == ()
        assert table.counts() == {"walk": 2, "wave": 2}

    def test_one_label_in_every_row_is_as_ever(self, write: Callable[[str], Path]) -> None:
        table = read_dataset(write("path,label\na.mp4,wave\nb.mp4,walk\n"))
        assert not table.several
        assert [video.label for video in table.videos] == [1, 0]

    def test_none_of_the_classes_and_capitals(self, write: Callable[[str], Path]) -> None:
        table = read_dataset(write("path,Wave,walk,split\na.mp4,1,1,train\nb.mp4,0,0,train\nc.mp4,1,1,val\n"))
        assert table.labels == ("Wave", "walk")
        assert said(table)["b"] == ()
        assert all(map(table.is_told, table.videos))

    def test_decimal_commas_and_several_labels(self, write: Callable[[str], Path]) -> None:
        table = read_dataset(
            write('path;label;start_seconds;end_seconds\na.mp4;"wave;walk";0,5;1,5\na.mp4;walk;2;2,5\nb.mp4;wave;0;1\n')
        )
        assert table.videos[0].start_seconds == 0.5
        assert table.label_names(table.videos[0]) == ("walk", "wave")

    def test_what_is_written_is_read_again(self, write: Callable[[str], Path], tmp_path: Path) -> None:
        table = read_dataset(write("path,=x,Wave\na.mp4,1,1\nb.mp4,0,0\nc.mp4,1,0\n"))
        write_table(table, tmp_path / "again.csv")
        again = read_dataset(tmp_path / "again.csv", root=tmp_path)
        assert (again.heads, said(again)) == (table.heads, said(table))
        assert again.fingerprint() == table.fingerprint()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("path,label\na.mp4,wave;;walk\n", r"clips.csv row 2: label = 'wave;;walk' has an empty part"),
            ("path,label\na.mp4,wave;walk\nb.mp4,;\n", r"row 3: label = ';' has an empty part"),
            ("path,label\na.mp4,wave;walk;\n", r"row 2: label = 'wave;walk;' has an empty part"),
            ("path,label\na.mp4,wave;walk;wave\n", r"row 2: label = 'wave;walk;wave' has 'wave' twice; keep one"),
            ("path,label\na.mp4,wave;walk\nb.mp4,\n", r"row 3: no label, while other rows have several.*a column for"),
            ("path,label\na.mp4,wave;walk\nb.mp4,Walk\n", r"'Walk' differs from 'walk'.*in capitals only"),
            ("path,label\na.mp4,wave;group\n", r"clips.csv: the class 'group' has the name of a list's column"),
            ("path,wave,walk\na.mp4,1,0\nb.mp4,2,0\n", r"row 3: wave = '2' should be 1 or 0"),
            ("path,wave,walk\na.mp4,1,\n", r"row 2: walk = '' should be 1 or 0"),
            ("path,wave,walk\na.mp4,yes,no\n", r"row 1: expected the columns path.*or two or more"),
            ("path,wave,wave\na.mp4,1,0\n", r"row 1: the column 'wave' appears twice; keep one"),
            ("path,wave,\na.mp4,1,0\n", r"row 1: a column without a name; name it"),
            (
                "path,wave,walk\na.mp4,1,0\na.mp4,1,1\n",
                r"is already in clips.csv row 2, there as 'wave' and here as",
            ),
            ("path;label\na.mp4;wave;walk\n", r"row 2: 3 cells, while the header names 2.*or semicolons"),
            (
                "path,verb,noun\na.mp4,open;close,door\n",
                r"row 2: the label 'open;close' contains ';'.*a verb or noun cell",
            ),
            (
                "path,wave,walk,split\na.mp4,1,0,train\nb.mp4,0,1,train\nc.mp4,1,0,val\n",
                r"row 3: 'walk' is in 'train' but not in 'val'",
            ),
        ],
    )
    def test_faults(self, write: Callable[[str], Path], text: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            read_dataset(write(text))

    def test_a_class_folder_of_two_labels(self, tmp_path: Path) -> None:
        for name in ("wave;walk", "walk"):
            (tmp_path / name).mkdir()
            (tmp_path / name / f"{len(name)}.mp4").touch()
        with pytest.raises(
            DataError, match=r"the label 'wave;walk' contains ';'.*rename it, or list the videos in a CSV"
        ):
            read_dataset(tmp_path)

    def test_numbered_as_a_model(self, write: Callable[[str], Path]) -> None:
        table = read_dataset(write("path,label\na.mp4,wave;walk\nb.mp4,walk\n"))
        more = Head(name="action", labels=("wave", "sit", "walk"), several=True)
        assert [video.labels for video in table.numbered_as([more]).videos] == [(0, 2), (2,)]
        with pytest.raises(DataError, match="model does not know 1 of the 2 classes: wave"):
            table.numbered_as([Head(name="action", labels=("walk",), several=True)])
        with pytest.raises(
            DataError, match="the model predicts one label for a video, and the data have videos with several"
        ):
            table.numbered_as([replace(more, several=False)])
        with pytest.raises(DataError, match="the model predicts several labels for a video, and the data have one"):
            read_dataset(write("path,label\na.mp4,wave\nb.mp4,walk\n")).numbered_as([more])


class TestHoldingOut:
    def table(self, tmp_path: Path, sets: list[str]) -> VideoTable:
        names = sorted(set("".join(sets)))
        for i in range(len(sets)):
            (tmp_path / f"{i:03d}.mp4").touch()
        rows = [f"{i:03d}.mp4,{','.join(str(int(name in some)) for name in names)}" for i, some in enumerate(sets)]
        (tmp_path / "clips.csv").write_text("\n".join([f"path,{','.join(names)}", *rows]))
        return read_dataset(tmp_path / "clips.csv")

    def test_every_class_is_on_both_sides(self, tmp_path: Path) -> None:
        # Of the rare ones there are two videos each, and all have a common class too.
        table = self.table(
            tmp_path, ["a"] * 20 + ["ab"] * 20 + ["ac"] * 2 + ["abd"] * 2 + ["e", "ec", "be"] + [""] * 10
        )
        for seed in range(20):
            parts = hold_out(table, fraction=0.2, seed=seed)
            for part in ("train", "val"):
                assert all(parts.of_split(part).counts().values()), (seed, part)
            counts, whole = parts.of_split("val").counts(), table.counts()
            assert counts["a"] == pytest.approx(0.2 * whole["a"], abs=3)
            assert sum(not video.labels for video in parts.of_split("val").videos) == 2
        assert hold_out(table, fraction=0.2, seed=1) != hold_out(table, fraction=0.2, seed=2)

    def test_faults(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="class 'b' has one video"):
            hold_out(self.table(tmp_path, ["a", "ab", "a"]), fraction=0.2, seed=0)
        table = read_dataset(tmp_path / "clips.csv")
        head = replace(table.heads[0], labels=("a", "b", "c"))
        with pytest.raises(DataError, match="no video is of class 'c'; remove its column"):
            hold_out(replace(table, heads=(head,), videos=table.videos * 2), fraction=0.2, seed=0)


# -- scores -----------------------------------------------------------------------------------------------------------


def slow_average_precision(scores: list[float], targets: list[int]) -> float:
    """Each video that has the class, by its score: which part of those that score as high has it; their mean."""
    parts = []
    for score, target in zip(scores, targets, strict=True):
        if target:
            above = [t for s, t in zip(scores, targets, strict=True) if s >= score]
            parts.append(sum(above) / len(above))
    return sum(parts) / len(parts) if parts else math.nan


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_a_slow_one_and_of_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random((60, 4)).round(2)  # with equal ones
    targets = (rng.random((60, 4)) < (0.1, 0.4, 0.7, 0.0)).astype(np.int64)
    targets[0, 0] = 1
    found = average_precisions(scores, targets)
    for i in range(3):
        assert found[i] == pytest.approx(
            slow_average_precision(scores[:, i].tolist(), targets[:, i].tolist()), abs=1e-12
        )
    assert math.isnan(found[3]), "no video has the class"
    assert mean_average_precision(scores, targets) == pytest.approx(np.mean(found[:3]))
    metric = MultilabelAveragePrecision(3, average="macro")
    metric.update(torch.from_numpy(scores[:, :3]), torch.from_numpy(targets[:, :3]))
    assert float(metric.compute()) == pytest.approx(mean_average_precision(scores, targets), abs=1e-6)


def test_nothing_is_found_of_nothing() -> None:
    assert math.isnan(mean_average_precision(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.int64)))
    assert math.isnan(mean_average_precision(np.full((3, 2), 0.5, np.float32), np.zeros((3, 2), np.int64)))
    assert positives_text([0, 0]) == "no video has a class"
    assert positives_text([3, 0, 3]) == "2 classes with 3 videos each"
    assert positives_text([3, 12]) == "2 classes with 3 to 12 videos"


def test_thresholds_have_the_best_f1_where_enough_videos_tell() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 2)) < 0.3).astype(np.int64)
    targets[:, 1] = 0
    targets[:9, 1] = 1  # too few
    scores = (0.1 + 0.15 * targets + 0.1 * rng.random((200, 2))).astype(np.float32)
    thresholds = chosen_thresholds(scores, targets)
    assert thresholds[1] == 0.5
    assert 0.2 < thresholds[0] < 0.25, "between the two groups"
    (first, second) = class_scores(("a", "b"), scores, targets, thresholds)
    assert (first.precision, first.recall, first.average_precision) == (1, 1, 1)
    assert (second.said, second.recall) == (0, 0)
    assert math.isnan(second.precision)


def test_the_loss_is_that_of_a_slow_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    targets = torch.rand(5, 3, dtype=torch.float64, generator=generator)
    weights = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    slow = 0.0
    for n in range(5):
        for k in range(3):
            p, t = 1 / (1 + math.exp(-logits[n, k])), float(targets[n, k])
            slow -= float(weights[k]) * t * math.log(p) + (1 - t) * math.log(1 - p)
    assert float(several_loss(logits, targets, weights)) == pytest.approx(slow / 5, abs=1e-12)
    assert positive_weights([2, 10, 0], 10) == [4.0, 1.0, 1.0]


# -- clips ------------------------------------------------------------------------------------------------------------


def test_clips_say_which_classes_they_have_and_mirrored_ones_swap(data: Path, small_recipe: Recipe) -> None:
    table = read_dataset(data)
    recipe = replace(small_recipe, flip_probability=1.0)
    clips = TrainingClips(table, recipe.clip, augmentation(recipe, table.heads), seed=0)
    tests = TestVideos(table, recipe.clip, Views())
    left, right, up = (table.labels.index(name) for name in CLASSES)
    for i, video in enumerate(table.videos):
        targets = tests[i][1]
        assert targets == targets_of(table.heads, video.labels)
        mirrored = clips[0, i].labels
        assert (mirrored[left], mirrored[right], mirrored[up]) == (targets[right], targets[left], targets[up])
    backwards = replace(small_recipe, flip_probability=0.0, reverse_probability=1.0)
    reversed_clips = TrainingClips(table, recipe.clip, augmentation(backwards, table.heads), seed=0)
    of_left_and_up = next(i for i, v in enumerate(table.videos) if set(table.label_names(v)) == {"left", "up"})
    assert reversed_clips[0, of_left_and_up].labels == tests[of_left_and_up][1], "up has no twin here"


def test_motions_at_once() -> None:
    def drawn(*motions: str) -> np.ndarray[Any, Any]:
        return draw_motions(
            motions, np.random.default_rng(3), num_frames=8, width=32, height=32, clutter=0.0, easy=True
        )

    assert drawn("left", "up").shape == (8, 32, 32, 3)
    assert (drawn() == drawn()[:1]).all(), "nothing moves"
    # Without clutter one patch is drawn as draw_motion does it; both then draw the same things in the same order.
    alone = draw_motion("left", np.random.default_rng(3), num_frames=8, width=32, height=32, clutter=0.0, easy=True)
    assert alone.shape == drawn("left").shape
    assert np.array_equal(drawn("left")[::-1], drawn(twin("left")))
    with pytest.raises(UserError, match="motion"):
        drawn("leftt")


# -- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_keeps_what_it_is(run: Path, data: Path) -> None:
    _, card = load_model(run)
    assert card.labels == tuple(sorted(CLASSES))
    assert card.thresholds == (0.5,) * 3, "fewer than ten held-out videos of each"
    assert "val_map" in json.loads((run / "metrics.json").read_text())
    assert (run / "validation" / "evaluation.json").exists()
    assert not list((run / "validation").glob("confusion*"))
    page = (run / "report.html").read_text()
    assert "average precision" in page
    assert "mAP" in page
    assert "taken for" not in page
    kept = load_scores(run / "validation")
    assert kept.several
    assert kept.thresholds == card.thresholds


def test_a_test_in_numbers_and_files(run: Path, data: Path, tmp_path: Path) -> None:
    result = evaluate(run, data, num_workers=0, show_progress=False, say=lambda line: None, views="2x1")
    assert result.targets.shape == result.scores.shape
    assert list(result.metrics()) == ["map"]
    assert "map " in str(result)
    assert "videos" in str(result)
    assert result.intervals() == {}
    assert "average precision" in result._repr_html_()
    row = result.to_rows()[0]
    assert {"label", "predicted", "correct", "score left"} <= set(row)
    result.save(tmp_path / "report")
    numbers = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert numbers["map"] == pytest.approx(result.mean_average_precision())
    assert set(numbers["per_class"]["left"]) == {
        "average_precision", "threshold", "precision", "recall", "videos", "said"
    }  # fmt: skip
    again = load_scores(tmp_path / "report")
    assert again.metrics() == result.metrics()
    other = replace(again, scores=again.scores / 2)
    assert ensemble([other, result]).thresholds == result.thresholds
    for call in (result.accuracy, result.confusion):
        with pytest.raises(DataError, match="videos with several labels have no"):
            call()


def test_other_data_are_refused(run: Path, motion_videos: Path, data: Path, small_recipe: Recipe) -> None:
    options: dict[str, Any] = {"num_workers": 0, "show_progress": False, "say": lambda line: None}
    with pytest.raises(DataError, match="the model predicts several labels for a video, and the data have one"):
        evaluate(run, motion_videos, **options)
    table = read_dataset(data)  # which it was trained on: of another kind are data first
    one = replace(
        table,
        heads=(replace(table.heads[0], several=False),),
        videos=tuple(replace(video, labels=video.labels[:1] or (0,), split="val") for video in table.videos),
    )
    with pytest.raises(DataError, match="the model predicts several labels for a video, and the data have one"):
        evaluate(run, one, **options)
    with pytest.raises(OptionError, match=r"balance 'sampling' shows as many clips of each class.*use balance 'loss'"):
        train(replace(small_recipe, balance="sampling"), data, run.parent / "other", **options)


def test_training_goes_on_to_the_same_bits(data: Path, run: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_workers": 0, "show_progress": False, "say": lambda line: None}
    recipe = replace(small_recipe, mixup_alpha=0.5, cutmix_alpha=0.5, balance="loss", label_smoothing=0.1)
    train(recipe, data, tmp_path / "one", **options)
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    again = train(None, data, tmp_path / "other", resume=True, **options)
    assert again.metrics["val_map"] == pytest.approx(
        json.loads((tmp_path / "one" / "metrics.json").read_text())["val_map"]
    )
    longer = train(None, data, tmp_path / "other", resume=True, epochs=3, **options)
    assert 0 < longer.metrics["val_map"] <= 1


def test_answers_are_the_labels_over_their_thresholds(run: Path, data: Path) -> None:
    recognizer = tada.load(run)
    video = data.parent / "006.mp4"
    prediction = recognizer.predict(video)
    scores = dict(zip(prediction.labels, prediction.scores, strict=True))
    assert set(prediction.found) == {label for label, score in scores.items() if score >= 0.5}
    assert recognizer.heads[0].several
    low = answer(prediction, 0.0)
    assert low.found == tuple(label for label, _ in low.top(3))
    assert str(answer(prediction, 1.1)).endswith(": (none)")
    entry = json.loads(json.dumps(low.as_dict(1)))
    assert set(entry["labels"]) == set(entry["scores"]) == set(CLASSES)
    assert "label" not in entry
    assert "thresholds" in entry
    lines = predictions_csv([answer(prediction, 1.1)], 1, several=True).splitlines()
    assert lines[0] == "video,rank,label,score,threshold,found"
    assert len(lines) == 4
    assert all(line.endswith(",1.100000,0") for line in lines[1:])
    assert low.to_rows()[0]["found"] is True


def answer(prediction: Prediction, threshold: float) -> Prediction:
    return replace(prediction, thresholds=(threshold,) * len(prediction.labels))


def test_commands(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tada.commands.cli import main

    monkeypatch.chdir(data.parent)
    assert main(["predict", str(run), "000.mp4", "006.mp4"]) == 0
    out = capsys.readouterr().out
    assert "006.mp4" in out
    assert main(["predict", str(run), "000.mp4", "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["found"] for row in rows] == [str(int(float(row["score"]) >= 0.5)) for row in rows]
    assert len(rows) == 3, "all classes"
    assert main(["evaluate", str(run), "videos.csv", "--out", str(tmp_path / "report"), "--num-workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "mAP" in out
    assert "precision" in out
    assert "3 classes with" in out
    assert (tmp_path / "report" / "report.html").exists()
    assert main(["evaluate", "--scores", str(tmp_path / "report")]) == 0
    assert main(["check", "videos.csv"]) == 0


@pytest.mark.slow
def test_an_exported_file_answers_alike(run: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    export(run, tmp_path / "several.onnx", show_progress=False, say=lambda line: None)
    one, other = (tada.load(name).predict(data.parent / "006.mp4") for name in (run, tmp_path / "several.onnx"))
    assert other.thresholds == one.thresholds
    assert other.found == one.found
    assert other.scores == pytest.approx(one.scores, abs=1e-4)


def test_damaged_cards_are_refused(run: Path) -> None:
    _, card = load_model(run)
    with pytest.raises(CheckpointError, match="has 1 thresholds, and 3 labels"):
        parse_card(Path("model.json"), write_card(replace(card, thresholds=(0.5,))))


def test_live_answers_are_refused(run: Path) -> None:
    from tada.recognition.streaming import recognize_stream

    with pytest.raises(OptionError, match="this model gives a video several labels, and live recognition"):
        next(recognize_stream(tada.load(run), None))  # type: ignore[arg-type]  # it is not come to


def test_balance_in_words(data: Path) -> None:
    table = read_dataset(data)
    assert balance_in_words(table, "none", 20) == ""
    assert balance_in_words(table, "loss", 20).startswith("--balance loss: a clip that has a class counts")


def test_it_learns_to_tell_two_motions_at_once(tmp_path: Path) -> None:
    """From the weights that ship with tada, above what chance gives: the part of videos that have a class, 3 of 7."""
    training = write_data(tmp_path / "training", 42)
    unseen = write_data(tmp_path / "unseen", 42, seed=1)
    options: dict[str, Any] = {"num_workers": 0, "show_progress": False, "say": lambda line: None}
    train(Recipe(epochs=3, batch_size=8), training, tmp_path / "run", val_fraction=0, **options)
    result: Evaluation = evaluate(tmp_path / "run", unseen, **options)
    assert Counter(result.targets.sum(0).tolist()) == {18: 3}
    assert result.mean_average_precision() > 0.65


@pytest.mark.slow
def test_two_motions_at_once_are_found_nearly_always(tmp_path: Path) -> None:
    """The benchmark, whose number is in the guide."""
    command = [sys.executable, str(Path(__file__).parents[2] / "benchmarks" / "several_labels.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    numbers = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert numbers["map"] > 0.9
    assert all(found["videos"] == 80 for found in numbers["per_class"].values())
