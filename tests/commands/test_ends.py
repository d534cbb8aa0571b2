"""How commands end where something was interrupted or is not as it should be: what stays, and what is said."""

from __future__ import annotations

import io
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
from jsonargparse import Namespace

from hang import HANG_SECONDS
from tada.commands import cli
from tada.commands.answers import Answers, json_form
from tada.commands.arguments import reported
from tada.commands.train_and_evaluate import _report
from tada.data.annotations import read_dataset
from tada.data.table import Head
from tada.data.views import Views
from tada.display.fonts import lettering
from tada.errors import CheckpointError, DataError, OptionError, OutputError, ReaderGoneError
from tada.localization.recipe import LocalizationRecipe
from tada.recognition.recipe import Recipe
from tada.recognition.results import Evaluation
from tada.recognition.training import train
from tada.system.terminal import told_output
from tada.training.checkpoints import CHECKPOINT, SavedStates, WholeFileCheckpoints
from tada.training.recipe import recipe_yaml


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
    with pytest.raises(CheckpointError, match=r"has lost its videos.csv, the list of its held-out videos: copy the"):
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

    monkeypatch.setattr("tada.recognition.run_outputs.evaluate_alone", gone)
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
    with pytest.raises(OptionError, match="skip_unreadable = -1 should be at least 0"):
        train(recipe, motion_videos, tmp_path / "run", skip_unreadable=-1, show_progress=False, say=silent)
    assert not (tmp_path / "run").exists()


# --- a report that was interrupted ------------------------------------------------------------------------------------


@pytest.fixture
def result() -> Evaluation:
    return Evaluation(
        heads=(Head(name="action", labels=("a", "b")),),
        ids=("1",),
        paths=("/1.mp4",),
        groups=(None,),
        targets=np.array([[0]]),
        scores=np.array([[0.8, 0.2]], np.float32),
        unreadable=(),
        views=(Views(),),
    )


def test_a_report_that_was_not_finished_is_written_again(result: Evaluation, tmp_path: Path) -> None:
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


def test_a_command_without_standard_streams(tmp_path: Path) -> None:
    """Nothing that is opened later takes their numbers."""
    words = [sys.executable, "-m", "tada", "--version"]
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(words)} >&- <&-"], capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    assert (done.returncode, done.stderr) == (1, CLOSED)


CLOSED = "tada: standard output cannot be written: it is closed (> /dev/null drops what is printed)\n"


def closed() -> int:
    return os.open(os.devnull, os.O_RDONLY)  # as ``occupy_closed_streams`` has it


def full() -> int:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no full device")
    return os.open("/dev/full", os.O_WRONLY)


def without_reader() -> int:
    theirs, ours = os.pipe()
    os.close(theirs)
    return ours


@pytest.mark.parametrize(
    ("output", "is_buffered", "code", "said"),
    [
        (closed, True, 1, CLOSED),
        (full, False, 1, "tada: standard output cannot be written: No space left on device\n"),
        (without_reader, True, 0, ""),
        (without_reader, False, 0, ""),
    ],
)
def test_a_standard_output_that_takes_nothing(
    output: Callable[[], int], is_buffered: bool, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever prints: print, rich or argparse; and however much."""

    def with_rich(options: object) -> int:
        from rich.console import Console

        Console().print("x")
        return 0

    asked = ["--version", "predict --help-all", "doctor"] if is_buffered else ["--help", "doctor"]
    monkeypatch.setitem(cli.COMMANDS, "doctor", (cli.COMMANDS["doctor"][0], with_rich))
    with_rich.__doc__ = "Print a table."
    for words in asked:
        errors = io.TextIOWrapper(io.BytesIO())
        with io.FileIO(output(), "w") as file:
            stream = io.TextIOWrapper(io.BufferedWriter(file), write_through=not is_buffered)
            monkeypatch.setattr("sys.stdout", stream)
            monkeypatch.setattr("sys.stderr", errors)
            assert cli.main(words.split()) == code, words
            assert sys.stdout is stream
            stream.flush()  # as Python does at its end: nothing is left that could not be written
        errors.seek(0)
        assert errors.read() == said, words


def test_what_was_measured_is_kept_when_nobody_reads_it(
    result: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Namespace(epic=None, challenge=None, overwrite=False, scores=[tmp_path], run=None, data=None)
    with io.TextIOWrapper(io.FileIO(without_reader(), "w"), write_through=True) as stream:  # type: ignore[type-var]
        monkeypatch.setattr("sys.stdout", stream)
        with told_output(), pytest.raises(ReaderGoneError, match="closed by its reader"):
            _report(result, tmp_path / "report", options, is_new=True)
    assert (tmp_path / "report" / "evaluation.json").exists()


@pytest.mark.parametrize("command", ["predict RUN clips", "localize RUN clips"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(5, "Input/output error")])
def test_json_is_valid_wherever_it_ends(
    command: str,
    error: type[BaseException] | BaseException,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*arguments: object) -> None:
        raise error

    code = 130 if error is KeyboardInterrupt else 1
    monkeypatch.setattr("tada.video.find.find_videos", fails)
    words = command.replace("RUN", "tada2d_tiny_motion").replace("clips", "hf-hub:a/b").split()
    assert cli.main([*words, "--format", "json"]) == code
    told = capsys.readouterr()
    assert json.loads(told.out) == []
    assert told.err.count("\n") == 1


def test_an_answer_that_cannot_be_printed_whole_does_not_leave_json_open(capsys: pytest.CaptureFixture[str]) -> None:
    answers: Answers[int] = Answers("json")

    def fail() -> None:
        with reported(answers.end):
            answers.begin(json_form(lambda number: {"number": number}))
            for number in range(2):
                answers.add(number)
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        fail()
    assert json.loads(capsys.readouterr().out) == [{"number": 0}, {"number": 1}]


EARLY = """
import os, signal, sys
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == "tada.system.signals":
            os.kill(os.getpid(), signal.SIGINT)
before = set(sys.modules)
from tada.__main__ import main
print([name for name in set(sys.modules) - before if name.partition(".")[0] not in ("tada", "signal", "enum")])
print(sorted(name for name in sys.modules if name.startswith("tada")), flush=True)
sys.meta_path.insert(0, Press())
main()
"""


def test_ctrl_c_while_the_command_starts() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY], capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    others, ours = done.stdout.splitlines()
    assert ours == "['tada', 'tada.__main__', 'tada.moved']"
    assert not any(name in others for name in ("importlib.metadata", "typing", "dataclasses", "pathlib"))
    assert (done.returncode, done.stderr) == (130, "tada: interrupted\n")


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
