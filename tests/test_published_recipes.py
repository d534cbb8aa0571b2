"""One short epoch of each published recipe, with its network, frames and augmentation; only clips are small and few.

The lists are plain CSV files here; the published forms are read in test_published.py.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tada.data.annotations import read_dataset
from tada.evaluation import evaluate
from tada.predict import load
from tada.recipe import EXPECTED, Recipe, load_recipe
from tada.recognition import train
from tada.results import load_scores


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def verbs_and_nouns(motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn videos with two labels each: where it moves, and a noun that has nothing to do with it."""
    file = tmp_path_factory.mktemp("epic") / "segments.csv"
    videos = read_dataset(motion_videos).videos
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["path", "verb", "noun", "split"])
        for i, video in enumerate(videos):
            split = "val" if i % 5 < 2 else "train"
            writer.writerow([video.path, Path(video.path).parent.name, "cup" if i % 2 else "pan", split])
    return file


def test_two_heads_are_trained_tested_and_predicted(
    verbs_and_nouns: Path, motion_videos: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    table = read_dataset(verbs_and_nouns, root=Path("/"))
    lines: list[str] = []
    recipe = replace(small_recipe, mixup_alpha=0.2, cutmix_alpha=1.0, epochs=2)
    result = train(recipe, table, tmp_path / "run", num_workers=0, show_progress=False, say=lines.append)
    assert lines[0] == "9 training and 6 validation videos of 3 verbs and 2 nouns"
    assert set(result.metrics) == {"train_loss", "val_verb_top1", "val_noun_top1", "val_action_top1"}
    recognizer = load(tmp_path / "run")
    assert [head.name for head in recognizer.heads] == ["verb", "noun"]
    assert recognizer.card.head_sizes == {"verb": 3, "noun": 2}
    test = evaluate(tmp_path / "run", table, num_workers=0, show_progress=False, say=silent)
    torch.testing.assert_close(torch.from_numpy(test.of_head(0).sum(1)), torch.ones(6))
    torch.testing.assert_close(torch.from_numpy(test.of_head(1).sum(1)), torch.ones(6))
    # The last epoch's validation saw the same single view.
    for name, value in test.metrics().items():
        if name.endswith("top1"):
            assert value == pytest.approx(result.metrics[f"val_{name}"]), name
    prediction = recognizer.predict(table.videos[0].path)
    assert len(prediction.scores) == 6
    assert sum(prediction.scores) == pytest.approx(1, abs=1e-5)
    assert prediction.label in {f"{verb} {noun}" for verb in ("left", "right", "up") for noun in ("cup", "pan")}


def miniature(name: str) -> Recipe:
    recipe = load_recipe(name)
    side = 64 if recipe.model.startswith("tadaconvnext") else 32
    return replace(
        recipe,
        init="none",  # nothing is fetched by tests
        clip=replace(recipe.clip, short_side=side, crop=side),
        train_crop=side,
        short_side_range=(side, side + 8),
        epochs=1,
        warmup_epochs=0.5,
        batch_size=2,
        precision="fp32",
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_epoch_of_each_recipe(name: str, motion_videos: Path, verbs_and_nouns: Path, tmp_path: Path) -> None:
    epic = name.startswith("epic100")
    table = read_dataset(verbs_and_nouns, root=Path("/")) if epic else read_dataset(motion_videos)
    if not epic:
        splits = ["train", "train", "val"] * 5
        table = replace(
            table, videos=tuple(replace(v, split=split) for v, split in zip(table.videos, splits, strict=True))
        )
    # Four videos to train on.
    few = [video for video in table.videos if video.split == "train"][:4]
    table = replace(table, videos=tuple(v for v in table.videos if v.split == "val" or v in few))
    lines: list[str] = []
    recipe = miniature(name)
    result = train(recipe, table, tmp_path / "run", num_workers=0, show_progress=False, say=lines.append)
    assert any("it is scaled to" in line for line in lines)
    assert result.metrics["train_loss"] < 20
    test = evaluate(tmp_path / "run", table, num_workers=0, show_progress=False, say=silent)
    test.save(tmp_path / "run" / "evaluation")
    assert load_scores(tmp_path / "run").metrics() == test.metrics()
