"""Class balance: the order draws each class equally often, the loss weights them equally, and the run reports it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from stopped_training import same, stopping_before
from tada.data.annotations import read_dataset
from tada.data.balance import balance_in_words, balanced_order, class_weights
from tada.data.clips import ResumableBatches
from tada.models import create_model
from tada.recognition.evaluation import evaluate
from tada.recognition.recipe import Recipe
from tada.recognition.training import train
from tada.recognition.training_step import RecognitionTask

CLASSES = [(0,)] * 17 + [(1,)] * 3 + [(2,)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 60), st.integers(0, 3))
def test_each_class_is_drawn_as_often_and_each_sample_as_evenly(labels: list[int], num_drawn: int, seed: int) -> None:
    classes = [(label,) for label in labels]
    order = balanced_order(classes, num_drawn, np.random.default_rng(seed))
    assert len(order) == num_drawn
    assert len(set(order.tolist())) == num_drawn, "a sample that is drawn again has another key"
    of_class = Counter(labels[sample % len(labels)] for sample in order.tolist())
    counts = [of_class[label] for label in set(labels)]
    assert max(counts) - min(counts) <= 1
    for label in set(labels):
        own = Counter(s % len(labels) for s in order.tolist() if labels[s % len(labels)] == label)
        times = [own[place] for place, found in enumerate(labels) if found == label]
        assert max(times) - min(times) <= 1, "all before one comes twice"


def batches(**options: Any) -> ResumableBatches:
    return ResumableBatches(
        len(CLASSES), batch_size=8, last_batch="fill", accumulate=2, seed=3, classes=CLASSES, **options
    )


def test_the_order_goes_on_anywhere_for_any_number_of_processes() -> None:
    whole = batches()
    whole.epoch = 2
    parts = list(whole)
    assert parts == list(batches_at(2, 0))
    assert parts != list(batches_at(3, 0))
    assert parts[3:] == list(batches_at(2, 3))
    shares = [list(batches_at(2, 0, rank=rank, world=2)) for rank in range(2)]
    assert parts == [one + other for one, other in zip(*shares, strict=True)]
    seen = Counter(CLASSES[sample % len(CLASSES)] for part in parts for _, sample in part)
    assert set(seen.values()) == {8}


def batches_at(epoch: int, first_part: int, **options: Any) -> ResumableBatches:
    found = batches(**options)
    found.epoch, found.first_part = epoch, first_part
    return found


def test_all_of_a_large_class_come_in_time() -> None:
    seen: set[int] = set()
    for epoch in range(20):
        seen |= {sample % len(CLASSES) for part in batches_at(epoch, 0) for _, sample in part}
    assert seen == set(range(len(CLASSES)))


def test_weights_let_classes_count_the_same() -> None:
    weights = class_weights([30, 10, 0, 20])
    assert weights == pytest.approx([60 / 90, 60 / 30, 0.0, 60 / 60])
    assert sum(w * n for w, n in zip(weights, [30, 10, 0, 20], strict=True)) == pytest.approx(60), "the mean clip is 1"


def test_the_loss_of_a_clip_is_weighted_by_its_class(small_recipe: Recipe) -> None:
    recipe = replace(small_recipe, balance="loss", label_smoothing=0.1)
    model = create_model(recipe.model, num_classes=3, **recipe.model_options)
    counts = [[30, 10, 20]]
    task = RecognitionTask(model, recipe, steps_per_epoch=1, head_sizes={"action": 3}, class_counts=counts)
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 1, 2, 0])
    each = F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none")
    expected = (each * torch.tensor(class_weights(counts[0]))[labels]).mean()
    torch.testing.assert_close(task._loss(logits, labels, 0), expected)
    torch.testing.assert_close(task._loss(logits, F.one_hot(labels, 3).float(), 0), expected)


@pytest.fixture
def unequal(motion_videos: Path, tmp_path: Path) -> Path:
    """Five videos of one class, five of another, one of the third to train on; two of each held out."""
    for split, keep in (("train", {"left": 3, "right": 3, "up": 1}), ("val", {"left": 2, "right": 2, "up": 1})):
        for label, count in keep.items():
            folder = tmp_path / "clips" / split / label
            folder.mkdir(parents=True)
            videos = sorted((motion_videos / label).iterdir())
            for video in videos[:count] if split == "train" else videos[3 : 3 + count]:
                shutil.copy(video, folder)
    return tmp_path / "clips"


@pytest.mark.parametrize("balance", ["sampling", pytest.param("loss", marks=pytest.mark.slow)])
def test_a_balanced_run_says_so_and_goes_on_to_the_same_bits(
    balance: Any, small_recipe: Recipe, unequal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = replace(small_recipe, balance=balance, batch_size=3)
    lines: list[str] = []

    def run(out: str, **options: Any) -> dict[str, torch.Tensor]:
        train(recipe, Path("clips"), Path(out), num_workers=0, show_progress=False, say=lines.append, **options)
        return load_file(Path(out) / "model.safetensors")

    straight = run("straight")
    said = {
        "sampling": "--balance sampling: an epoch has 3 clips of each of 3 classes, which have 1 ('up') to 3 ('right') "
        "clips",
        "loss": "--balance loss: a clip counts 0.78 to 2.3 times, by its class; the classes have 1 ('up') to 3 "
        "('right') clips",
    }
    assert said[balance] in lines
    with stopping_before(4, monkeypatch):
        run("stopped", save_every_steps=1)
    resumed = run("stopped", resume=True)
    assert same(straight, resumed)
    result = evaluate(Path("straight"), Path("clips"), split="val", num_workers=0, show_progress=False, say=str)
    result.save(Path("report"))
    found = json.loads(Path("report/evaluation.json").read_text())
    accuracies = [entry["top1"] for entry in found["per_class"].values()]
    assert found["mean_class_top1"] == pytest.approx(np.mean(accuracies))
    assert found["per_class"]["up"]["videos"] == 1
    low, high = found["per_class"]["up"]["interval_95"]
    assert (low, high) == pytest.approx((0.2065, 1.0) if found["per_class"]["up"]["top1"] else (0.0, 0.7935), abs=1e-4)


def test_classes_that_have_as_many_are_told_in_a_word(motion_videos: Path) -> None:
    line = balance_in_words(read_dataset(motion_videos), "sampling", 16)
    assert line == "--balance sampling: an epoch has 5 or 6 clips of each of 3 classes, which have 5 clips each"
    few = read_dataset(motion_videos).limited(3, seed=0)
    line = balance_in_words(few, "sampling", 3)
    assert line == "--balance sampling: an epoch has 1 clip of each of 3 classes, which have 1 clip each"
    assert balance_in_words(read_dataset(motion_videos), "none", 16) == ""


def test_rare_classes_are_told_of(small_recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    for label, count in (("left", 5), ("right", 1)):
        (tmp_path / "clips" / label).mkdir(parents=True)
        for video in sorted((motion_videos / label).iterdir())[:count]:
            shutil.copy(video, tmp_path / "clips" / label)
    lines: list[str] = []
    recipe = replace(small_recipe, epochs=1)
    train(
        recipe,
        tmp_path / "clips",
        tmp_path / "run",
        val_fraction=0,
        num_workers=0,
        show_progress=False,
        say=lines.append,
    )
    (line,) = [line for line in lines if "--balance" in line]
    assert line.startswith("the classes have 1 ('right') to 5 ('left') clips: with --balance sampling or loss")
