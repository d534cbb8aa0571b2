"""One short epoch of each published recipe, with its network, frames and augmentation; only clips are small and few.

The data sets are miniatures in the forms in which they are published: lists, folders and kinds of video files.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drawn_videos import draw_plain, draw_webm
from published_lists import EPIC, EPIC_ROW, KINETICS
from tada.data.annotations import read_dataset
from tada.data.table import VideoTable
from tada.recognition.evaluation import evaluate
from tada.recognition.recipe import EXPECTED, Recipe, load_recipe
from tada.recognition.recognizer import load_recognizer
from tada.recognition.results import load_scores
from tada.recognition.training import train


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
    assert set(result.metrics) == {"train_loss", "val_loss", "val_verb_top1", "val_noun_top1", "val_action_top1"}
    recognizer = load_recognizer(tmp_path / "run")
    assert [head.name for head in recognizer.heads] == ["verb", "noun"]
    assert recognizer.card.head_sizes == {"verb": 3, "noun": 2}
    test = evaluate(tmp_path / "run", table, num_workers=0, show_progress=False, say=silent)
    torch.testing.assert_close(torch.from_numpy(test.of_head(0).sum(1)), torch.ones(6))
    torch.testing.assert_close(torch.from_numpy(test.of_head(1).sum(1)), torch.ones(6))
    # The last epoch's validation saw the same single view.
    for name, value in test.metrics().items():
        if name.endswith("top1"):
            assert value == pytest.approx(result.metrics[f"val_{name}"]), name
    views = evaluate(
        tmp_path / "run", table, views="2x1", actions="views", num_workers=0, show_progress=False, say=silent
    )
    assert views.view_scores is not None
    assert views.view_scores.shape == (6, 2, 5)
    torch.testing.assert_close(torch.from_numpy(views.view_scores.mean(1)), torch.from_numpy(views.scores))
    prediction = recognizer.predict(table.videos[0].path)
    assert len(prediction.scores) == 6
    assert sum(prediction.scores) == pytest.approx(1, abs=1e-5)
    assert prediction.label in {f"{verb} {noun}" for verb in ("left", "right", "up") for noun in ("cup", "pan")}


def miniature(name: str) -> Recipe:
    recipe = load_recipe(name)
    side = 64 if recipe.model.startswith("tadaconvnext") else 32
    options = recipe.model_options
    if recipe.model.startswith("tadaformer_l14"):
        side, options = 28, options | {"depth": 2}  # all 24 blocks need 8 GB with their optimizer
    return replace(
        recipe,
        model_options=options,
        init="none",  # nothing is fetched by tests
        clip=replace(recipe.clip, short_side=side, crop=side),
        train_crop=side,
        short_side_range=(side, side + 8),
        epochs=1,
        warmup_epochs=0.5,
        batch_size=2,
        precision="fp32",
    )


def kinetics(folder: Path) -> VideoTable:
    """Four clips to train on and two to test on, cut from their videos as their names say."""
    for list_name, split, count in (("train", "train", 4), ("validate", "validate", 2)):
        rows = ""
        for i in range(count):
            label = ("abseiling", "waving hand")[i % 2]
            rows += f"{label},{split}{i},{i},{i + 10},{split}\n"
            file = folder / "videos" / split / label / f"{split}{i}_{i:06}_{i + 10:06}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            draw_plain(file, 30 + count + i)  # no two are alike: a video is known by its content
        (folder / f"{list_name}.csv").write_text(KINETICS + rows)
    return read_dataset(folder, root=folder / "videos")


def something(folder: Path) -> VideoTable:
    """Four and two WebM files, with the lists and the labels in JSON; one class is another one mirrored."""
    templates = ["Pushing [something] from left to right", "Pushing [something] from right to left"]
    labels = {template.replace("[", "").replace("]", ""): str(i) for i, template in enumerate(templates)}
    lists: dict[str, object] = {"labels": labels}
    for name, numbers in (("train", range(4)), ("validation", range(4, 6))):
        lists[name] = [{"id": str(i), "template": templates[i % 2], "placeholders": ["a cup"]} for i in numbers]
    for name, content in lists.items():
        (folder / f"something-something-v2-{name}.json").write_text(json.dumps(content))
    (folder / "20bn-something-something-v2").mkdir()
    for i in range(6):
        draw_webm(folder / "20bn-something-something-v2" / f"{i}.webm", 12 + i, fps=12)
    return read_dataset(folder)


def epic_kitchens(folder: Path) -> VideoTable:
    """Segments of two untrimmed recordings, four of one to train on and two of the other to test on."""
    (folder / "EPIC_100_verb_classes.csv").write_text("id,key,instances,category\n0,take,[],x\n1,put,[],y\n")
    (folder / "EPIC_100_noun_classes.csv").write_text("id,key,instances,category\n0,tap,[],a\n1,spoon,[],b\n")
    for name, person, count in (("train", "P01", 4), ("validation", "P02", 2)):
        rows = ""
        for i in range(count):
            row = EPIC_ROW.format(
                id=f"P01_01_{i}",
                start=f"00:00:00.{i}0",
                stop=f"00:00:01.{i}0",
                verb=("take", "put")[i % 2],
                v=i % 2,
                noun=("tap", "spoon")[i // 2],
                n=i // 2,
            )
            rows += row.replace("P01", person)
        (folder / f"EPIC_100_{name}.csv").write_text(EPIC + rows)
        (folder / person / "videos").mkdir(parents=True)
        draw_plain(folder / person / "videos" / f"{person}_01.MP4", 98 + count, fps=50)
    return read_dataset(folder, root=folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_epoch_of_each_recipe(name: str, tmp_path: Path) -> None:
    draw = {"k400": kinetics, "ssv2": something, "epic100": epic_kitchens}[name.split("_")[0]]
    (tmp_path / "data").mkdir()
    table = draw(tmp_path / "data")
    assert len(table.of_split("train")) == 4
    lines: list[str] = []
    result = train(miniature(name), table, tmp_path / "run", num_workers=0, show_progress=False, say=lines.append)
    assert any("it is scaled to" in line for line in lines)
    assert result.metrics["train_loss"] < 20
    test = evaluate(tmp_path / "run", table, num_workers=0, show_progress=False, say=silent)
    assert len(test.ids) == 2
    test.save(tmp_path / "run" / "evaluation")
    assert load_scores(tmp_path / "run").metrics() == test.metrics()
