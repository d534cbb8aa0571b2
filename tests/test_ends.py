"""How commands end where something was interrupted or is not as it should be: what stays, and what is said."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hang import HANG_SECONDS
from tada import cli
from tada.data.annotations import read_dataset
from tada.data.clips import Views
from tada.data.table import Head
from tada.errors import CheckpointError, DataError, OptionError, OutputError
from tada.fonts import lettering
from tada.localization.recipe import LocalizationRecipe
from tada.recipe import Recipe, recipe_yaml
from tada.recognition import train
from tada.results import Evaluation
from tada.saved_states import CHECKPOINT, SavedStates, WholeFileCheckpoints


def interrupted_at(beginning: str) -> Callable[[str], None]:
    """Receives the lines of a training; the first of them that begins so ends it."""

    def say(line: str) -> None:
        if line.startswith(beginning):
            raise RuntimeError("interrupted")

    return say


def silent(line: str) -> None:
    pass


@pytest.fixture
def recipe(small_recipe: Recipe) -> Recipe:
    return replace(small_recipe, epochs=2, warmup_epochs=0.0)


# --- a training that was interrupted ----------------------------------------------------------------------------------


def test_a_run_that_has_lost_its_list_does_not_go_on(recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    """Else other videos would be held out, which the first epochs have seen."""
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="interrupted"):
        train(recipe, motion_videos, out, num_workers=0, show_progress=False, say=interrupted_at("epoch 1/2"))
    assert (out / CHECKPOINT).exists()
    (out / "videos.csv").unlink()
    with pytest.raises(CheckpointError, match=r"has lost its videos.csv, which says what was held out: copy the run's"):
        train(recipe, motion_videos, out, num_workers=0, val_fraction=0.4, resume=True, show_progress=False, say=silent)


def test_a_run_that_was_interrupted_before_its_report_writes_it_later(
    recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    """With the numbers that it would have had."""
    whole = train(recipe, motion_videos, tmp_path / "whole", num_workers=0, show_progress=False, say=silent)
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="interrupted"):
        train(recipe, motion_videos, out, num_workers=0, show_progress=False, say=interrupted_at("val_top1"))
    assert (out / "model.safetensors").exists()
    assert not (out / "report.html").exists()
    again = train(recipe, motion_videos, out, num_workers=0, resume=True, show_progress=False, say=silent)
    assert again.metrics.keys() == whole.metrics.keys() == {"train_loss", "val_loss", "val_top1"}
    assert again.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"])
    for name in ("report.html", "curves.png", "validation/evaluation.json", "metrics.json"):
        assert (out / name).exists()


def test_a_run_whose_held_out_videos_are_gone_is_whole_all_the_same(
    recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: object, **options: object) -> None:
        raise DataError("none of the 3 videos could be read; the first: 'a.mp4' is not there")

    monkeypatch.setattr("tada.recognition.evaluate_alone", gone)
    lines: list[str] = []
    train(recipe, motion_videos, tmp_path / "run", num_workers=0, show_progress=False, say=lines.append)
    assert "the report lacks its test: none of the 3 videos could be read; the first: 'a.mp4' is not there" in lines
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()).keys() > {"val_top1"}
    assert "could not be tested once more" in (tmp_path / "run" / "report.html").read_text()


def test_a_saved_state_is_told_before_the_first_step_too(tmp_path: Path) -> None:
    states = SavedStates(tmp_path / "last.ckpt", every_steps=1, files=WholeFileCheckpoints())
    assert states.in_words() == ""
    (tmp_path / "last.ckpt").touch()
    assert states.in_words() == "the saved state is as it was"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": 2**32}, "the recipe's seed must be from 0 to 4294967295, which is what NumPy takes"),
        ({"seed": -1}, "the recipe's seed must be from 0 to"),
        ({"epochs": 1.5}, "the recipe's epochs must be a whole number, not 1.5"),
        ({"batch_size": True}, "the recipe's batch_size must be a whole number, not True"),
    ],
)
def test_whole_numbers_of_a_recipe(wrong: dict[str, object], message: str) -> None:
    for kind in (Recipe, LocalizationRecipe):
        with pytest.raises(OptionError, match=message):
            kind(**wrong)  # type: ignore[arg-type]


def test_fewer_than_no_unreadable_videos(recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="skip_unreadable must be 0 or more, not -1"):
        train(recipe, motion_videos, tmp_path / "run", skip_unreadable=-1, show_progress=False, say=silent)
    assert not (tmp_path / "run").exists()


# --- a report that was interrupted ------------------------------------------------------------------------------------


def test_a_report_that_was_not_finished_is_written_again(tmp_path: Path) -> None:
    result = Evaluation(
        heads=(Head(name="action", labels=("a", "b")),),
        ids=("1",),
        paths=("/1.mp4",),
        groups=(None,),
        targets=np.array([[0]]),
        scores=np.array([[0.8, 0.2]], np.float32),
        unreadable=(),
        views=(Views(),),
    )

    def full(folder: Path) -> None:
        raise OutputError("the disk is full; make room, and give the same command again")

    for overwrite in (False, True):
        with pytest.raises(OutputError, match="the disk is full"):
            result.save(tmp_path / "r", overwrite=overwrite, write_more=full)
        assert (tmp_path / "r" / "scores.npz").exists()
        assert not (tmp_path / "r" / "evaluation.json").exists()
        result.save(tmp_path / "r")
        assert (tmp_path / "r" / "evaluation.json").exists()
        with pytest.raises(OptionError, match=r"holds a report \(evaluation.json\)"):
            result.save(tmp_path / "r")


# --- what is said -----------------------------------------------------------------------------------------------------


def test_recommended_commands_can_be_typed(
    recipe: Recipe,
    motion_videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my clips").symlink_to(motion_videos)
    Path("r.yaml").write_text(recipe_yaml(replace(recipe, epochs=1)))
    words = ["train", "my clips", "--recipe", "r.yaml", "--num-workers", "0", "--out", "run $1"]
    assert cli.main(words) == 0
    said = [line.split() and shlex.split(line) for line in capsys.readouterr().out.splitlines() if "  tada " in line]
    assert said == [["tada", "evaluate", "run $1", "my clips"], ["tada", "predict", "run $1", "VIDEO"]]


def test_a_command_without_a_standard_output(motion_videos: Path) -> None:
    """As programs start others that nobody listens to."""
    video = next(motion_videos.rglob("*.mp4"))
    words = [sys.executable, "-m", "tada.cli", "predict", "tada2d_tiny_motion", str(video), "--device", "cpu"]
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(words)} >&-"], capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
def test_a_standard_output_that_is_full(motion_videos: Path) -> None:
    video = next(motion_videos.rglob("*.mp4"))
    words = [sys.executable, "-m", "tada.cli", "predict", "tada2d_tiny_motion", str(video), "--device", "cpu"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 1
    assert done.stderr == "tada: standard output cannot be written: No space left on device\n"


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.mp4").write_bytes(label.encode())
    (tmp_path / "b" / "x.mp4").symlink_to("x.mp4")
    with pytest.raises(DataError, match=r"'x.mp4'"):
        read_dataset(tmp_path)


def test_fonts_are_chosen_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        lettering(["名前", "مرحبا", "🎬", "ไทย"])
    assert caplog.records == []
