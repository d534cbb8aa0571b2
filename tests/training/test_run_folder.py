"""The folder of a run that ends before its time: never in the way, never taken for another's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from killed import killed_in_a_write
from tada.commands.cli import main
from tada.errors import DataError, OptionError, UserError
from tada.recognition.recipe import Recipe
from tada.recognition.training import train
from tada.recognition.training_step import RecognitionTask
from tada.training.loss_check import NonFiniteLossError
from tada.training.recipe import recipe_yaml


@pytest.fixture
def home(small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with videos/ and small.yaml."""
    shutil.copytree(motion_videos, tmp_path / "videos")
    (tmp_path / "small.yaml").write_text(recipe_yaml(small_recipe))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(recipe: Recipe, **options: Any) -> list[str]:
    """Train below the working directory; what was said."""
    said: list[str] = []
    train(recipe, Path("videos"), Path("runs/a"), num_workers=0, show_progress=False, say=said.append, **options)
    return said


def weights() -> bytes:
    return Path("runs/a/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "kept", [("recipe.yaml",), ("recipe.yaml", "videos.csv"), ("recipe.yaml", "videos.csv", "logs")]
)
def test_a_run_that_was_killed_before_its_first_state_is_begun_by_resume(
    kept: tuple[str, ...], small_recipe: Recipe, home: Path
) -> None:
    run(small_recipe)
    whole = weights()
    for path in Path("runs/a").iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(OptionError, match=r"runs/a is not empty: .* or continue its run with --resume"):
        run(small_recipe)
    with pytest.raises(OptionError, match=r"runs/a was begun with 2 epochs, and can only go on with more"):
        run(replace(small_recipe, epochs=1), resume=True)
    said = run(small_recipe, resume=True)
    assert "runs/a was interrupted before its first saved state: it starts from its beginning" in said
    assert weights() == whole


def test_a_run_that_was_killed_at_its_end_gets_all_that_runs_have(small_recipe: Recipe, home: Path) -> None:
    run(small_recipe)
    whole, names = weights(), {path for path in Path("runs/a").rglob("*") if "logs" not in path.parts}
    for name in ("metrics.json", "report.html", "validation/confusion.png"):  # the last that are written
        Path("runs/a", name).unlink()
    left = killed_in_a_write(Path("runs/a/resume/last.ckpt"))
    assert Path("runs/a/resume", left).exists()
    run(small_recipe, resume=True)
    assert weights() == whole
    assert {path for path in Path("runs/a").rglob("*") if "logs" not in path.parts} == names


@pytest.mark.parametrize("left", [[], [".0123abcd-4711-0123abcd.part"]])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_which_nothing_was_begun_is_free(
    left: list[str], resume: bool, small_recipe: Recipe, home: Path
) -> None:
    Path("runs/a").mkdir(parents=True)
    for name in left:
        Path("runs/a", name).write_text("epochs: 4")
    run(replace(small_recipe, epochs=1), resume=resume)
    assert weights()


def test_a_folder_of_other_things_is_nobodys_run(small_recipe: Recipe, home: Path) -> None:
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/videos.csv").write_text("path,label\n")  # somebody's own
    with pytest.raises(OptionError, match=r"runs/a is not empty"):
        run(small_recipe)
    Path("runs/a/thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match=r"runs/a holds no run .*recipe\.yaml.*'thesis.tex'"):
        run(small_recipe, resume=True)
    with pytest.raises(UserError, match=r"'small\.yaml' cannot be written: a file has the name of the folder"):
        train(small_recipe, Path("videos"), Path("small.yaml"), num_workers=0)


def test_a_finished_run_says_so_and_stays_as_it_is(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "videos", "--num-workers", "0"]
    assert main([*words, "--recipe", "small.yaml", "--out", "runs/a"]) == 0
    before = {path: path.read_bytes() for path in Path("runs/a").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main([*words, "--resume", "runs/a"]) == 0
    out = capsys.readouterr().out
    assert "runs/a is finished; a new run starts from its weights with --init runs/a" in out
    assert "tada evaluate runs/a videos" in out
    assert {path: path.read_bytes() for path in Path("runs/a").rglob("*") if path.is_file()} == before


def test_what_fails_before_the_first_step_leaves_the_way_free(
    small_recipe: Recipe, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is: the same command has to work once it is mended."""
    shutil.copytree("videos", "whole")
    for video in Path("videos").rglob("*.mp4"):
        video.write_bytes(video.read_bytes()[:300])
    with pytest.raises(DataError, match=r"could not be read|unreadable video"):
        run(small_recipe)
    assert not Path("runs").exists()
    shutil.rmtree("videos")
    Path("whole").rename("videos")

    def broken(task: RecognitionTask) -> Any:
        raise RuntimeError("no such optimizer")

    with monkeypatch.context() as patch:
        patch.setattr(RecognitionTask, "configure_optimizers", broken)
        with pytest.raises(RuntimeError, match="no such optimizer"):
            run(small_recipe)
    assert not Path("runs").exists()

    # What names the clips stays, and is not in the way.
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.functional.cross_entropy", lambda logits, *_, **__: logits.sum() * float("nan"))
        with pytest.raises(NonFiniteLossError, match="the loss is nan in epoch 1, batch 1"):
            run(small_recipe)
    assert [path.name for path in Path("runs/a").iterdir()] == ["non_finite_batch.txt"]
    run(replace(small_recipe, epochs=1))


def test_a_mistake_in_the_middle_keeps_what_was_learned(
    small_recipe: Recipe, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here in the fifth step, where steps are slow: the state after the fourth is saved, and the line says how."""
    step = RecognitionTask.training_step

    def no_number(task: RecognitionTask, batch: Any, batch_idx: int) -> Any:
        loss = step(task, batch, batch_idx)
        if task.global_step == 4:
            task.check_loss(loss * float("nan"), batch_idx, batch.paths)
        return loss

    monkeypatch.setattr("tada.training.checkpoints._SLOW_SECONDS", 0.0)
    words = ["train", "videos", "--num-workers", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(RecognitionTask, "training_step", no_number)
        assert main([*words, "--recipe", "small.yaml", "--out", "runs/a"]) == 2
    err = capsys.readouterr().err
    assert "the loss is nan in epoch 2, batch 2" in err
    assert err.endswith(
        "the state after step 4 is saved; go on with: tada train videos --resume runs/a --num-workers 0\n"
    )
    assert err.count("\n") == 1
    assert main([*words, "--resume", "runs/a"]) == 0
    resumed = weights()
    shutil.rmtree("runs")
    run(small_recipe)
    assert weights() == resumed


def test_one_class_is_no_choice(small_recipe: Recipe, home: Path) -> None:
    shutil.rmtree("videos/up")
    shutil.rmtree("videos/left")
    with pytest.raises(DataError, match=r"all videos are of one action class, 'right': a network learns to tell two"):
        run(small_recipe)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accelerator", "gpu"], "accelerator 'gpu': this machine has no GPU that PyTorch can use"),
        (["--device", "cuda"], "accelerator 'cuda': this machine has no GPU that PyTorch can use"),
        (["--num-workers", "100000"], "num_workers is 100000, but this machine has"),
        (["--devices", "100000"], "devices is 100000, but this machine has"),
    ],
)
def test_what_the_machine_has_not_is_told_in_a_line_before_anything_is_made(
    words: list[str], message: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert main(["train", "videos", "--recipe", "small.yaml", "--out", "runs/a", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


def test_metrics_are_the_last_to_be_written(small_recipe: Recipe, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed as its weights were written ends as it would have, and knows how good it is."""

    def killed(*arguments: Any) -> None:
        raise RuntimeError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr("tada.recognition.run_outputs.save_weights", killed)
        with pytest.raises(RuntimeError, match="the power went"):
            run(small_recipe)
    run(small_recipe, resume=True)
    metrics = json.loads(Path("runs/a/metrics.json").read_text())
    resumed = weights()
    shutil.rmtree("runs")
    run(small_recipe)
    assert weights() == resumed
    assert json.loads(Path("runs/a/metrics.json").read_text())["val_top1"] == metrics["val_top1"]
