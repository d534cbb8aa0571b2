"""As people work: in a folder, with paths that start from it; then from elsewhere, by other names, on copies.

A run knows its videos whatever they are called: it goes on to the same bits, and is never tested on what it learned.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file

from tada.commands.cli import main
from tada.data.motion import write_motion_videos
from tada.recognition.recipe import Recipe
from tada.recognition.training_step import RecognitionTask
from tada.training.recipe import recipe_yaml

SLOW = pytest.mark.slow


def tada(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def start(small_recipe: Recipe, motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with clips/ and two runs on them, given by relative paths: runs/c has ended, runs/stopped has not."""
    folder = tmp_path_factory.mktemp("start")
    shutil.copytree(motion_videos, folder / "clips")
    recipe = replace(small_recipe, model_options={"depths": [1], "widths": [8], "stem_width": 8})
    (folder / "small.yaml").write_text(recipe_yaml(recipe))
    train = ["train", "clips/", "--recipe", "small.yaml", "--num-workers", "0", "--out"]
    begin = RecognitionTask.on_train_batch_start

    def stop(task: RecognitionTask, batch: Any, batch_idx: int) -> None:
        if task.global_step == 4:
            raise RuntimeError("the machine goes down")
        begin(task, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert tada(*train, "runs/c") == 0
        patch.setattr(RecognitionTask, "on_train_batch_start", stop)
        with pytest.raises(RuntimeError, match="goes down"):
            tada(*train, "runs/stopped", "--save-every-steps", "1")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def here(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work where that was made; what a test changes is put back."""
    shutil.copytree(start, tmp_path / "before", symlinks=True)
    monkeypatch.chdir(start)
    yield start  # type: ignore[misc]  # a fixture
    os.chdir(tmp_path)
    shutil.rmtree(start)
    shutil.copytree(tmp_path / "before", start, symlinks=True)


def as_it_is() -> None:
    pass


def absolute() -> Path:
    return Path("clips").absolute()


def from_another_folder() -> Path:
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    return Path("../clips")


def through_a_link() -> Path:
    Path("link").symlink_to("clips")
    return Path("link")


def moved() -> Path:
    Path("archive").mkdir()
    return Path(shutil.move("clips", "archive/2024"))


def copied() -> Path:
    shutil.copytree("clips", "copy", copy_function=shutil.copyfile)  # as `cp -r`
    shutil.rmtree("clips")
    return Path("copy")


def with_other_names() -> Path:
    for number, file in enumerate(sorted(Path("clips").rglob("*.mp4"), reverse=True)):
        target = Path("links", file.parent.name, f"{number:02}.mp4")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file.absolute())
    return Path("links")


def in_a_list() -> Path:
    rows = [f"{file},{file.parent.name}\n" for file in sorted(Path("clips").rglob("*.mp4"))]
    Path("list.csv").write_text("path,label\n" + "".join(rows))
    return Path("list.csv")


@pytest.mark.parametrize(
    "way", [from_another_folder, with_other_names, in_a_list, *(pytest.param(w, marks=SLOW) for w in (as_it_is, moved))]
)
def test_a_run_goes_on_to_the_same_bits(way: Callable[[], Path | None], here: Path) -> None:
    data = way() or "clips/"
    runs = Path(os.path.relpath(here / "runs"))
    assert tada("train", data, "--resume", runs / "stopped", "--num-workers", "0") == 0
    straight, resumed = (load_file(runs / run / "model.safetensors") for run in ("c", "stopped"))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight | resumed)


@pytest.mark.parametrize("way", [absolute, from_another_folder, through_a_link, copied, with_other_names])
def test_a_run_is_tested_on_what_it_held_out(
    way: Callable[[], Path | None], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = way() or "clips/"
    run = Path(os.path.relpath(here / "runs/c"))
    capsys.readouterr()
    assert tada("evaluate", run, data, "--num-workers", "0") == 0
    printed = capsys.readouterr().out
    assert f"testing on the 3 videos that {run} held out for validation\n" in printed
    assert "3 of 3 videos" in printed


def as_an_earlier_tada_wrote(run: Path) -> None:
    """Paths as they were typed, and no contents."""
    lines = [line.split(",")[:4] for line in (run / "videos.csv").read_text().splitlines()]
    rows = [[os.path.relpath(path), *rest] for path, *rest in lines[1:]]
    (run / "videos.csv").write_text("".join(",".join(row) + "\n" for row in [lines[0], *rows]))


def test_a_run_of_an_earlier_tada_goes_on_and_is_known_better_then(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = Path("runs/stopped/videos.csv").read_text()
    as_an_earlier_tada_wrote(Path("runs/stopped"))
    assert "clips/left/" in Path("runs/stopped/videos.csv").read_text()
    assert str(here) not in Path("runs/stopped/videos.csv").read_text()
    assert tada("evaluate", "runs/c", copied(), "--num-workers", "0") == 0
    shutil.move("copy", "clips")  # with other times than before
    assert tada("train", "clips/", "--resume", "runs/stopped", "--num-workers", "0") == 0
    cells = [row.split(",")[:-1] for row in Path("runs/stopped/videos.csv").read_text().splitlines()]
    assert cells == [row.split(",")[:-1] for row in new.splitlines()]
    capsys.readouterr()
    as_an_earlier_tada_wrote(Path("runs/c"))
    assert tada("evaluate", "runs/c", "clips", "--num-workers", "0", "--overwrite") == 0
    assert "testing on the 3 videos that runs/c held out for validation" in capsys.readouterr().out


def test_a_replaced_video_ends_a_run_that_would_go_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copyfile("clips/left/left_000.mp4", "clips/left/left_001.mp4")
    assert tada("train", "clips/", "--resume", "runs/stopped", "--num-workers", "0") == 2
    err = capsys.readouterr().err
    assert "1 video not among them, or not with this content, the first: " in err
    assert "left_001.mp4" in err


def test_what_a_run_started_from_may_be_gone_when_it_goes_on(here: Path) -> None:
    """``--init`` may be a relative path: it holds in other folders, and is not needed any more."""
    train = ["train", "clips/", "--recipe", "small.yaml", "--num-workers", "0", "--epochs", "1", "--warmup-epochs", "0"]
    assert tada(*train, "--init", "runs/c", "--out", "runs/second") == 0
    card = Path("runs/second/model.json").read_text()
    assert '"trained_from": "the weights of runs/c"' in card
    assert f"init: {here}/runs/c\n" in Path("runs/second/recipe.yaml").read_text()
    shutil.rmtree("runs/c")
    data = from_another_folder()
    assert tada("train", data, "--resume", "../runs/second", "--num-workers", "0") == 0
    assert '"trained_from": "the weights of runs/c"' in Path("../runs/second/model.json").read_text()


def test_prepared_copies_and_originals_are_the_same_videos(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tada("prepare", "clips", "fast", "--num-workers", "1") == 0
    evaluate = ["evaluate", "--num-workers", "0", "--overwrite"]
    for data in ("fast/videos.csv", "fast/videos"):
        capsys.readouterr()
        assert tada(*evaluate, "runs/c", data) == 0
        assert "testing on the 3 videos that runs/c held out for validation\n" in capsys.readouterr().out
    train = ["train", "fast/videos.csv", "--recipe", "small.yaml", "--num-workers", "0", "--out", "runs/fast"]
    assert tada(*train, "--epochs", "1", "--warmup-epochs", "0") == 0
    shutil.rmtree("fast")
    capsys.readouterr()
    assert tada(*evaluate, "runs/fast", copied()) == 0
    assert "testing on the 3 videos that runs/fast held out for validation\n" in capsys.readouterr().out


def test_an_exported_file_knows_the_videos_wherever_both_lie(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tada("export", "runs/c", "shipped/c.onnx") == 0
    shutil.move("runs/c/videos.csv", "runs/list.csv")
    shutil.rmtree("runs/c")
    data = copied()
    capsys.readouterr()
    assert tada("evaluate", "shipped/c.onnx", data, "--num-workers", "0") == 0
    printed = capsys.readouterr().out
    assert "testing on the 3 videos that shipped/c.onnx held out for validation\n" in printed
    assert "3 of 3 videos" in printed
    shutil.copy("shipped/c.onnx", "runs/stopped")  # the folder of a run, whose list has nothing to say then
    Path("runs/stopped/videos.csv").write_text("path,label,split,group\n")
    assert tada("evaluate", "runs/stopped/c.onnx", data, "--num-workers", "0") == 0
    assert "that runs/stopped/c.onnx held out for validation\n" in capsys.readouterr().out
    assert tada("evaluate", "shipped/c.onnx", data, "--split", "train", "--out", "report") == 2
    assert "12 of 12 test videos were trained on, the first: " in capsys.readouterr().err
    # What an earlier tada exported has no list of its own, and counts as of the run in whose folder it lies.
    shutil.copy("runs/list.csv", "runs/stopped/videos.csv")
    model = onnx.load("shipped/c.onnx")
    entries = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {"tada": entries["tada"]})
    onnx.save_model(model, "runs/stopped/early.onnx")
    assert tada("evaluate", "runs/stopped/early.onnx", data, "--num-workers", "0") == 0
    assert "testing on the 3 videos that runs/stopped/early.onnx held out for validation\n" in capsys.readouterr().out
    onnx.helper.set_model_props(model, entries | {"tada_videos": "{}"})
    onnx.save_model(model, "damaged.onnx")
    assert tada("evaluate", "damaged.onnx", data, "--num-workers", "0") == 2
    assert "damaged.onnx': its list of videos is damaged (" in capsys.readouterr().err


def test_a_mixed_set_is_told_apart_and_an_unknown_one_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    motions = ("left", "right", "up")
    new = Path("day2")
    write_motion_videos(new, videos_per_class=2, seed=7, num_frames=8, width=32, height=32, fps=8.0, motions=motions)
    capsys.readouterr()
    assert tada("evaluate", "runs/c", new, "--num-workers", "0") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "none of these videos are known to runs/c: all 6 are tested"
    assert "6 of 6 videos" in printed[-2]
    for file in sorted(copied().rglob("*.mp4")):
        shutil.copy(file, new / file.parent.name / f"first day, {file.name}")
    assert tada("evaluate", "runs/c", new, "--num-workers", "0", "--out", "report") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == (
        "testing on 3 videos that runs/c held out for validation and 6 videos that it does not know; left out: 12 "
        "videos that it was trained on"
    )
    assert "9 of 9 videos" in printed[-2]


def test_the_same_video_on_both_sides_is_told_at_the_start(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, number in (("train", 0), ("val", 1)):
        for label in ("left", "right"):
            Path("split", split, label).mkdir(parents=True)
            shutil.copy(f"clips/{label}/{label}_00{number}.mp4", Path("split", split, label, "a.mp4"))
            shutil.copy(f"clips/{label}/{label}_00{number + 2}.mp4", Path("split", split, label, "b.mp4"))
    shutil.copy("split/train/left/a.mp4", "split/val/left/renamed.mp4")
    train = ["train", "split", "--recipe", "small.yaml", "--num-workers", "0", "--epochs", "1", "--warmup-epochs", "0"]
    assert tada(*train, "--out", "runs/split") == 0
    assert (
        f"trained on and held out too, under another name: 1 video. '{here}/split/val/left/renamed.mp4' (val) has "
        f"the same content as '{here}/split/train/left/a.mp4' (train). The score is too good by that"
    ) in capsys.readouterr().out
