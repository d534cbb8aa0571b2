"""Training localizers: interrupted and begun again, in as many steps as there are data for, on background too."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drawn_features import RECIPE, silent
from tada.errors import OptionError
from tada.localization.annotations.table import read_segments, with_durations
from tada.localization.detectors.detector import new_detector
from tada.localization.features.folder import FeatureFolder
from tada.localization.recipe import LocalizationRecipe, load_localization_recipe
from tada.localization.training import train_localizer
from tada.localization.training_step import LocalizationTask, TrainingSamples
from tada.training.recipe import named_recipes, read_recipe, recipe_of_run, recipe_yaml, resumed
from tada.training.schedule import fitted


@pytest.mark.parametrize("epoch", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    epoch: int, run: Path, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    told = 0

    def stop(self: LocalizationTask) -> None:
        nonlocal told
        told += 1
        if told == epoch:
            raise RuntimeError("the power went")

    with monkeypatch.context() as broken:  # while an epoch is tested, after its last state was saved
        broken.setattr(LocalizationTask, "on_validation_epoch_start", stop)
        with pytest.raises(RuntimeError, match="the power went"):
            train_localizer(RECIPE, *data, out, show_progress=False, say=silent)
    with pytest.raises(OptionError, match="is not empty: choose another folder with --out, or continue"):
        train_localizer(RECIPE, *data, out, show_progress=False, say=silent)
    with pytest.raises(
        OptionError,
        match=r"was started with another dim \(16\), .*: leave that away, or begin another run without --resume",
    ):
        train_localizer(replace(RECIPE, dim=32), *data, out, resume=True, show_progress=False, say=silent)
    os.rename(out, tmp_path / "moved")
    out = tmp_path / "moved"
    train_localizer(RECIPE, *data, out, resume=True, show_progress=False, say=silent)
    assert_same_run(out, run)


def assert_same_run(out: Path, run: Path) -> None:
    last = [torch.load(r / "resume" / "last.ckpt", weights_only=True)["state_dict"] for r in (run, out)]
    assert last[0].keys() == last[1].keys()
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    assert (out / "localizer.safetensors").read_bytes() == (run / "localizer.safetensors").read_bytes()
    scores = [json.loads((r / "metrics.json").read_text())["val_map"] for r in (run, out)]
    assert scores[0] == scores[1]


def test_a_finished_run_stays_as_it_is_when_it_is_resumed(run: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    train_localizer(RECIPE, *data, tmp_path / "run", resume=True, show_progress=False, say=silent)
    assert_same_run(tmp_path / "run", run)


@pytest.mark.parametrize(
    "files",
    [
        pytest.param((), marks=pytest.mark.slow),
        ("data.json",),
        pytest.param(("recipe.yaml", "data.json", "videos.csv"), marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_killed_before_its_first_state_is_begun_again(
    files: tuple[str, ...], run: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in files:
        shutil.copy(run / name, out)
    said: list[str] = []
    train_localizer(RECIPE, *data, out, resume=True, show_progress=False, say=said.append)
    assert_same_run(out, run)
    assert any("was interrupted before its first saved state" in line for line in said) == ("recipe.yaml" in files)


def test_what_is_no_run_is_not_resumed(data: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nothing is no folder, so there is no run to resume: begin it without --res"):
        train_localizer(RECIPE, *data, tmp_path / "nothing", resume=True, show_progress=False, say=silent)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"holds no run \(no recipe.yaml\), but 'notes.txt'"):
        train_localizer(RECIPE, *data, tmp_path, resume=True, show_progress=False, say=silent)


def test_steps_follow_from_little_data(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four videos: two steps an epoch, and enough of them; nothing of it is dropped, and a resumed run has the same."""
    recipe = LocalizationRecipe(dim=16, input_dropout=0.0)
    monkeypatch.setattr(LocalizationRecipe, "FIT", replace(LocalizationRecipe.FIT, epochs=2, steps=8))
    said: list[str] = []
    train_localizer(recipe, *data, tmp_path / "run", show_progress=False, say=said.append)
    assert "4 epochs of 2 steps, 2 videos in each; warm-up 0.4 epochs" in said
    saved = read_recipe(tmp_path / "run" / "recipe.yaml", LocalizationRecipe)
    assert saved == replace(recipe, epochs=4, batch_size=2, warmup_epochs=0.4)
    monkeypatch.undo()  # what follows from the data now is what the run began with
    (tmp_path / "run" / "metrics.json").unlink()  # it has not come to its end
    said.clear()
    train_localizer(recipe, *data, tmp_path / "run", resume=True, show_progress=False, say=said.append)
    assert "4 epochs of 2 steps, 2 videos in each; warm-up 0.4 epochs" in said
    said.clear()
    odd = replace(recipe, epochs=1, batch_size=3)
    train_localizer(odd, *data, tmp_path / "odd", show_progress=False, say=said.append)
    assert "1 epoch of 2 steps, 3 videos in each; warm-up 0.1 epochs; 2 videos once more to fill the last step" in said
    said.clear()
    train_localizer(
        replace(odd, batch_size=16, last_batch="drop"), *data, tmp_path / "few", show_progress=False, say=said.append
    )
    assert "1 epoch of 1 step, 4 videos in each; warm-up 0.1 epochs" in said  # as ever, where a recipe drops the rest


def test_published_recipes_stay_as_they_were_published() -> None:
    for name in named_recipes("localization").keys() - {"default"}:
        recipe = load_localization_recipe(name)
        assert recipe.last_batch == "drop"
        assert fitted(recipe, 10_000) == fitted(recipe, 3) == recipe
    assert fitted(load_localization_recipe("default"), 200).numbers == (30, 8, 3.0)


def test_what_happens_nowhere_is_trained_on_too(data: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [row for row in data[1].read_text().splitlines() if not row.startswith("v1,")]
    (tmp_path / "s.csv").write_text("\n".join([*rows, "v1,,,,train"]))
    table, folder = read_segments(tmp_path / "s.csv"), FeatureFolder(data[0])
    table = with_durations(table, {name: card.duration_seconds for name, card in folder.cards.items()})
    detector = new_detector(RECIPE, table.of_split("train"), folder)
    samples = TrainingSamples(detector, table.of_split("train"), folder, seed=0)
    background = samples[0, 1]
    assert samples.pieces[1].video.name == "v1"
    assert len(background.segments) == 0
    losses = detector.losses(detector.collate([background]))
    assert losses["regression"] == 0
    assert losses["classification"] > 0
    assert (
        len(TrainingSamples(new_detector(load_localization_recipe("thumos14"), table, folder), table, folder, seed=0))
        == 5
    )
    recipe = replace(RECIPE, epochs=1)
    train_localizer(recipe, data[0], tmp_path / "s.csv", tmp_path / "run", show_progress=False, say=silent)
    older = read_recipe(tmp_path / "run" / "recipe.yaml", LocalizationRecipe)
    kept = [line for line in recipe_yaml(older).splitlines() if line.partition(":")[0] not in older.BEFORE]
    (tmp_path / "run" / "recipe.yaml").write_text("\n".join(kept))
    before = replace(recipe, last_batch="drop", train_on_background=False, interpolate_positions=False)
    assert recipe_of_run(tmp_path / "run", LocalizationRecipe) == before
    (tmp_path / "run" / "recipe.yaml").write_text("\n".join([*kept, "last_batch: fill"]))
    changed = replace(recipe, num_levels=3, attention_window=(7, 7, -1), max_length=64, padding_leak="opentad")
    lines: list[str] = []
    again = resumed(changed, tmp_path / "run", or_else="begin anew", say=lines.append)
    assert again == replace(before, last_batch="fill")
    (line,) = lines
    assert line.endswith(
        "num_levels None (not 3), attention_window None (not (7, 7, -1)), max_length None (not 64), "
        "padding_leak none (not opentad)"
    )
    assert resumed(recipe, tmp_path / "run", or_else="begin anew", say=lines.append) == again
    assert len(lines) == 1, "defaults are no wish"
