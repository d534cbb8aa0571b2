"""A try before a training: it refuses what the training would, tells what that takes, and writes nothing."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from tada.commands.cli import main
from tada.data.annotations import read_dataset
from tada.data.hold_out import with_splits
from tada.data.table import Head, LabeledVideo, VideoTable
from tada.errors import DataError, OptionError
from tada.recognition.recipe import Recipe
from tada.recognition.training import train
from tada.system.devices import Machine
from tada.training.recipe import recipe_yaml
from tada.training.step_clock import StepClock


def tried(recipe: Recipe, data: Path, **options: Any) -> list[str]:
    lines: list[str] = []
    train(recipe, data, Path("runs/a"), dry_run=True, show_progress=False, say=lines.append, **options)
    return lines


@pytest.mark.parametrize("variant", [{}, {"accumulate": 2, "ema_decay": 0.9, "train": "head"}, {"batch_size": 12}])
def test_a_dry_run_tells_time_and_memory_and_writes_nothing(
    variant: dict[str, Any], small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = tried(replace(small_recipe, epochs=50, **variant), motion_videos, num_workers=0)
    assert lines[0] == "12 training and 3 validation videos of 3 classes"
    steps = "1 step" if "batch_size" in variant else "3 steps"
    assert re.fullmatch(
        r"a step takes [\d.]+ m?s \(the network [\d.]+ m?s, reading its clips [\d.]+ m?s\), a test of 3 videos "
        rf"[\d.]+ m?s: 50 epochs of {steps} take about [\d.]+ (ms|s|minutes|hours)",
        lines[-3],
    )
    assert re.fullmatch(r"memory, at most: [\d.]+ [MG]B of this process", lines[-2])
    assert lines[-1] == "dry run: 2 steps were trained and thrown away; nothing was written"
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_what_the_run_would(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for label in ("left", "right"):
        (tmp_path / "clips" / label).mkdir(parents=True)
        for video in sorted((motion_videos / label).iterdir())[:2]:
            (tmp_path / "clips" / label / video.name).write_bytes(video.read_bytes())
    for video in (tmp_path / "clips" / "left").iterdir():
        video.write_bytes(b"no video")
    with pytest.raises(DataError, match=r"clips/left/.*unreadable"):
        tried(small_recipe, Path("clips"), num_workers=0, val_fraction=0)
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match=r"runs/a is not empty"):
        tried(small_recipe, motion_videos, num_workers=0)
    assert [file.name for file in Path("runs/a").iterdir()] == ["thesis.tex"]


def test_the_command_tries_with_workers(
    small_recipe: Recipe,
    motion_videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(recipe_yaml(small_recipe))
    command = ["train", str(motion_videos), "--recipe", "own.yaml", "--out", "runs/a", "--num-workers", "1"]
    assert main([*command, "--dry-run", "--limit", "6"]) == 0
    out = capsys.readouterr().out
    assert "--limit 6: 9 of 15 videos are used, at most 6 of each split\n" in out
    assert re.search(r"reading its clips [\d.]+ m?s of 1 processes\)", out)
    assert re.search(r"[MG]B of this process, [\d.]+ [MG]B of each that reads clips\n", out)
    assert "trained in" not in out
    assert {path.name for path in tmp_path.iterdir()} == {"own.yaml"}


def test_a_limited_run_has_clips_of_all_classes(motion_videos: Path) -> None:
    table = with_splits(read_dataset(motion_videos), val_fraction=0.2, val_groups=(), seed=0)
    few = table.limited(4, seed=1)
    counts = Counter((video.split, video.labels) for video in few.videos)
    assert sorted(counts[key] for key in counts if key[0] == "train") == [1, 1, 2]
    assert sum(count for (split, _), count in counts.items() if split == "val") == 3
    assert few == table.limited(4, seed=1)
    assert few != table.limited(4, seed=2)
    assert [video for video in table.videos if video in few.videos] == list(few.videos), "in their order"


def test_each_class_keeps_videos_as_long_as_the_limit_allows() -> None:
    sets = [(0,), (0, 1), (1,), (0, 2), (1, 2), (), *((0, 1, 2, 3 + i) for i in range(3)), (5, 6)]
    videos = tuple(
        LabeledVideo(path=f"/{i}", labels=labels, split="train", group=None, source="", id=str(i))
        for i, labels in enumerate(sets)
    )
    head = Head(name="action", labels=tuple("abcdefg"), several=True)
    table = VideoTable(heads=(head,), videos=videos, root="/", kind="CSV")
    for seed in range(3):
        for limit in range(3, 11):  # three videos show all: those of d and e, and the last
            few = table.limited(limit, seed=seed)
            assert len(few) == limit
            assert all(few.counts().values()), (seed, limit)
        assert sum(map(bool, table.limited(2, seed=seed).counts().values())) >= 5


def test_a_run_goes_on_with_its_limit(small_recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = replace(small_recipe, epochs=1)
    train(recipe, motion_videos, tmp_path / "run", limit=5, num_workers=0, show_progress=False, say=str)
    copy = shutil.copytree(motion_videos, tmp_path / "moved")
    more = {"recipe": replace(recipe, epochs=2), "out": tmp_path / "run", "num_workers": 0, "show_progress": False}
    with pytest.raises(DataError, match=r"1 video of 8 lacking.* and the options that choose among them \(--limit, "):
        train(**more, data=copy, resume=True, limit=4, say=str)
    train(**more, data=copy, resume=True, say=lines.append)
    assert f"{tmp_path / 'run'} was begun with --limit 5, and goes on with it: 8 videos are used" in lines
    assert "5 training and 3 validation videos of 3 classes" in lines
    train(**more | {"recipe": replace(recipe, epochs=6)}, data=copy, resume=True, dry_run=True, say=lines.append)
    assert any("6 epochs of 2 steps, of which 8 steps are left, take about" in line for line in lines)
    (copy / "left" / "new.mp4").write_bytes(b"new")
    with pytest.raises(DataError, match=r"videos not among them"):
        train(**more, data=copy, resume=True, say=str)


def test_a_limit_that_leaves_a_class_without_clips_is_refused(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        OptionError, match=r"--limit 1 leaves no training video of '\w+', '\w+': give a larger one, 3 for"
    ):
        train(small_recipe, motion_videos, tmp_path / "run", limit=1, num_workers=0, show_progress=False, say=str)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_logger_that_is_not_installed_is_told_before_anything(
    name: Any, package: str, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tada.training.loggers._is_installed", lambda package: False)
    with pytest.raises(OptionError, match=rf"^--logger {name} needs the package {package}: pip install {package}$"):
        train(small_recipe, Path("nowhere"), Path("run"), machine=Machine(logger=name))
    assert list(tmp_path.iterdir()) == []


def test_a_logger_that_does_not_work_is_told_in_a_line(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    class NotSignedIn:
        def __init__(self, **options: Any) -> None:
            raise RuntimeError("no key:\nsign in")

    monkeypatch.setattr("tada.training.loggers._is_installed", lambda package: True)
    monkeypatch.setattr("tada.training.loggers.WandbLogger", NotSignedIn)
    with pytest.raises(OptionError, match=r"^--logger wandb does not work: no key: sign in$"):
        train(small_recipe, motion_videos, Path("run"), num_workers=0, machine=Machine(logger="wandb"))
    assert list(tmp_path.iterdir()) == []


def test_numbers_may_go_to_csv_alone(small_recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    recipe = replace(small_recipe, epochs=1)
    train(recipe, motion_videos, tmp_path / "run", num_workers=0, show_progress=False, machine=Machine(logger="csv"))
    assert [file.name for file in (tmp_path / "run" / "logs").rglob("*") if file.is_file()] == ["metrics.csv"]


@pytest.mark.parametrize(("waits", "kind", "times"), [(True, "cuda", 2), (False, "cuda", 0), (True, "cpu", 0)])
def test_only_a_try_waits_for_the_gpu_to_time_a_step(
    waits: bool, kind: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    clock, task = StepClock(waits=waits), cast(Any, SimpleNamespace(device=torch.device(kind)))
    trainer = cast(Any, None)
    clock.on_train_batch_start(trainer, task, None, 0)
    clock.on_train_batch_end(trainer, task, None, None, 0)
    assert waited == [task.device] * times
    assert len(clock.seconds) == 1
