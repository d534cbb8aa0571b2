"""The command line as a person meets it: what it prints, and what it says when it is used wrongly."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hang import HANG_SECONDS
from tada.commands.cli import main
from tada.commands.train_and_evaluate import _data_as_typed
from tada.data.motion import write_motion_videos
from tada.recognition.recipe import Recipe, load_recipe
from tada.training.recipe import recipe_yaml


def tada(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def recipe_file(small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(recipe_yaml(small_recipe))
    return path


@pytest.fixture(scope="module")
def run(recipe_file: Path, motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert tada("train", motion_videos, "--recipe", recipe_file, "--out", out, "--num-workers", "0") == 0
    return out


@pytest.mark.parametrize(
    "command",
    [
        "",
        "train",
        "evaluate",
        "predict",
        "demo",
        "check",
        "prepare",
        "extract",
        "localize",
        "localize-train",
        "localize-evaluate",
        "quickstart",
        "convert",
        "publish",
        "models",
        "recipes",
        "doctor",
        "completion",
    ],
)
def test_help_needs_no_torch(command: str) -> None:
    """It answers within a second or two, since nothing heavy is loaded for it."""
    code = "import sys; from tada.commands.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "print({'torch', 'lightning', 'matplotlib', 'av'} & set(sys.modules))"
    words = [command, "--help"] if command else ["--help"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, timeout=HANG_SECONDS
    )
    assert done.stdout.endswith("set()\n")
    assert "usage: tada" in done.stdout


def test_train_evaluate_predict(
    run: Path, motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert tada("evaluate", run, motion_videos, "--views", "2x3", "--num-workers", "0") == 0
    out = capsys.readouterr().out
    assert re.search(r"^top-1 [01]\.\d{4} \(95 %: 0\.\d\d to [01]\.\d\d\)   3 of 3 videos$", out, re.MULTILINE)
    assert json.loads((run / "evaluation" / "evaluation.json").read_text())["views"] == "2x3"

    video = next((motion_videos / "left").iterdir())
    assert tada("predict", run, video, "--plots", tmp_path / "plots") == 0
    assert str(video)[:20] in capsys.readouterr().out
    assert (tmp_path / "plots" / f"{video.stem}.png").exists()
    assert tada("predict", run, motion_videos, "--format", "json", "--top", "1") == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) == 15
    assert all(len(entry["scores"]) == 1 for entry in entries)
    assert tada("predict", run, f"{motion_videos}/up/*.mp4", "--format", "csv", "--window-seconds", "0.5") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 5 * 3


def test_a_published_list_is_trained_on_resumed_and_tested(
    recipe_file: Path, motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kinetics in miniature: two lists, a folder of videos, one of which is not there."""
    lists, videos = tmp_path / "lists", tmp_path / "videos"
    lists.mkdir()
    rows: dict[str, list[str]] = {"train": ["up,gone,0,10,train"], "validate": []}
    for video in sorted(motion_videos.rglob("*.mp4")):
        split = "validate" if video.stem.endswith("0") else "train"
        (videos / split).mkdir(parents=True, exist_ok=True)
        name = f"{video.parent.name}_{video.stem}"
        shutil.copy(video, videos / split / f"{name}_000000_000010.mp4")
        rows[split].append(f"{video.parent.name},{name},0,10,{split}")
    for split, lines in rows.items():
        (lists / f"{split}.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split", *lines]) + "\n")
    command = ["train", lists, "--videos", videos, "--num-workers", "0"]
    assert tada(*command, "--recipe", recipe_file, "--out", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "Kinetics: 15 of 16 videos (93.8 %) are there" in out
    assert "a clip takes " in out
    assert f"tada evaluate {tmp_path / 'run'} {lists} --videos {videos}" in out
    assert tada(*command, "--resume", tmp_path / "run") == 0  # the table is the one that was written down
    assert tada("evaluate", tmp_path / "run", lists / "validate.csv", "--videos", videos, "--num-workers", "0") == 0
    assert f"{len(rows['validate'])} of {len(rows['validate'])} videos" in capsys.readouterr().out
    assert 3 <= len(rows["validate"]) <= 12


def test_a_recipe_is_changed_by_options_wherever_they_stand(
    recipe_file: Path, motion_videos: Path, tmp_path: Path
) -> None:
    options = ["--learning-rate", "0.002", "--recipe", recipe_file, "--epochs=1", "--clip.num_frames", "2"]
    assert tada("train", motion_videos, "--out", tmp_path / "run", "--num-workers=0", *options) == 0
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (recipe.learning_rate, recipe.epochs, recipe.clip.num_frames, recipe.batch_size) == (0.002, 1, 2, 4)


def test_resume_takes_the_recipe_of_the_run(run: Path, motion_videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = (run / "model.safetensors").read_bytes()
    assert tada("train", motion_videos, "--resume", run, "--num-workers", "0") == 0
    assert (run / "model.safetensors").read_bytes() == weights
    capsys.readouterr()
    assert tada("train", motion_videos, "--resume", run, "--epochs", "1") == 2
    err = capsys.readouterr().err
    assert f"{run} was begun with 2 epochs, and can only go on with more" in err
    assert f"or start a new run from its weights, with --init {run} and another --out" in err


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown command": (["trian"], "trian"),
    "unknown option": (["predict", "RUN", "VIDEO", "--frmt", "json"], "--frmt"),
    "no such data": (["train", "nowhere"], "nowhere"),
    "wrong type": (["train", "DATA", "--epochs", "many"], "epochs"),
    "unknown model": (
        ["train", "DATA", "--model", "tada2d_r5O"],
        "no model is called 'tada2d_r5O'; did you mean 'tada2d_r50'?",
    ),
    "unknown recipe": (["train", "DATA", "--recipe", "quickstrat"], "did you mean 'quickstart'?"),
    "out of range": (["train", "DATA", "--flip_probability", "2"], "--flip-probability must be between 0 and 1, not 2"),
    "frames": (["train", "DATA", "--clip.num_frames", "0"], "--clip.num-frames must be at least 1, not 0"),
    "machines": (["train", "DATA", "--num-nodes", "0"], "--num-nodes must be 1 or more, not 0"),
    "no run to resume": (["train", "DATA", "--resume", "nowhere"], "nowhere"),
    "no run": (["evaluate", "nowhere", "DATA"], "nowhere"),
    "bad views": (
        ["evaluate", "RUN", "DATA", "--views", "ten"],
        "--views should be CLIPSxCROPS, such as 1x1 or 10x3, not ten",
    ),
    "no fit": (["predict", "RUN", "nothing*.mp4"], "no file fits the pattern 'nothing*.mp4'"),
    "no model fits": (["models", "resnet*"], "no model's name fits 'resnet*'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(
    mistake: str,
    run: Path,
    motion_videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, message = MISTAKES[mistake]
    places = {"RUN": str(run), "DATA": str(motion_videos), "VIDEO": str(next((motion_videos / "up").iterdir()))}
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert tada(*(places.get(argument, argument) for argument in arguments)) == 2
    err = capsys.readouterr().err
    assert err.startswith("tada: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_what_cannot_be_read_is_named_and_the_rest_is_answered(
    run: Path, motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = next((motion_videos / "left").iterdir())
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    os.mkfifo(tmp_path / "pipe.mp4")
    capsys.readouterr()
    names = ["empty.mp4", "list.mp4", "pipe.mp4", "gone.mp4"]
    assert tada("predict", run, good, *(tmp_path / name for name in names), "--format", "json") == 1
    captured = capsys.readouterr()
    assert [entry["video"] for entry in json.loads(captured.out)] == [str(good)]
    lines = captured.err.splitlines()
    assert len(lines) == 4
    for name, line in zip(names, lines, strict=True):
        assert line.startswith("tada: no prediction: ")
        assert name in line


def test_a_test_set_that_cannot_be_read_whole_ends_with_1(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_motion_videos(
        tmp_path / "data",
        videos_per_class=5,
        seed=1,  # others than the run knows
        num_frames=8,
        width=32,
        height=32,
        fps=8.0,
        motions=("left", "up"),
    )
    video = tmp_path / "data" / "up" / "up_004.mp4"
    video.write_bytes(video.read_bytes()[:700])
    capsys.readouterr()
    assert tada("evaluate", run, tmp_path / "data", "--out", tmp_path / "report", "--num-workers", "0") == 1
    captured = capsys.readouterr()
    assert "9 of 10 videos" in captured.out
    assert captured.err.startswith("tada: not tested: ")
    assert video.name in captured.err


def test_models_recipes_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert tada("models", "tada2d") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert set(names) == {"tada2d_r101", "tada2d_r18", "tada2d_r50", "tada2d_tiny"}
    assert tada("models", "*2d_r50") == 0
    assert capsys.readouterr().out == "tada2d_r50            27.49 M parameters (400 classes)\n"
    assert tada("recipes") == 0
    assert "quickstart" in capsys.readouterr().out
    assert tada("recipes", "quickstart") == 0
    assert "model: tada2d_tiny" in capsys.readouterr().out
    assert tada("recipes", "activitynet") == 0  # of localization
    assert "attention_window: [7, 7, 7, 7, 7, -1]" in capsys.readouterr().out
    assert tada("recipes", "activity") == 2
    assert "no recipe is called 'activity'; did you mean 'activitynet'?" in capsys.readouterr().err
    assert tada("doctor") == 0
    out = capsys.readouterr().out
    assert "FAULT" not in out
    assert "written and read back" in out


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert tada() == 0
    assert "quickstart" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert tada("--version") == 0
    assert capsys.readouterr().out.startswith("tada 0.")


def test_an_address_keeps_its_slashes_in_messages() -> None:
    assert _data_as_typed(Path("s3://videos/doors/")) == "s3://videos/doors/"
    assert _data_as_typed(Path("clips/doors")) == "clips/doors"
