"""What people see of the commands: at a terminal of 80 and of 120 columns, in a pipe, after Ctrl-C."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_interrupted_commands import COMMAND

from drawn_features import RECIPE
from tada.commands.answers import Columns
from tada.commands.cli import main
from tada.data.motion import draw_motion
from tada.localization.recipe import LocalizationRecipe
from tada.recognition.recipe import Recipe
from tada.training.recipe import recipe_yaml
from tada.video.writer import write_video
from terminal import Screen, Terminal

ERASE = "\r\x1b[J"


@pytest.fixture
def at_home(
    small_recipe: Recipe, small_backbone: Path, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working directory with clips, a small recipe and a run that knows nothing."""
    monkeypatch.chdir(tmp_path)
    Path("clips").symlink_to(motion_videos)
    Path("run").symlink_to(small_backbone)
    Path("small.yaml").write_text(recipe_yaml(small_recipe))
    return tmp_path


def command(stop: str, *words: str) -> list[str]:
    return [sys.executable, "-c", COMMAND, stop, *words]


Piped = Callable[..., tuple[int, str, str]]


@pytest.fixture
def piped(at_home: Path, capsys: pytest.CaptureFixture[str]) -> Piped:
    """A command whose output is no terminal: its exit code, and what it printed."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(words)
        out, err = capsys.readouterr()
        for control in ("\x1b", "\r"):
            assert control not in out + err
        return code, out, err

    return run


def screen_of(output: str, columns: int) -> list[str]:
    screen = Screen(columns)
    screen.feed(output)
    return screen.text().splitlines()


def before(output: str, text: str, columns: int) -> list[str]:
    """What was seen when the display was last drawn before some text came."""
    return screen_of(output[: output.rindex(ERASE, 0, output.index(text))], columns)


TRAINING = ["train", "clips", "--recipe", "small.yaml", "--num-workers", "1", "--out", "new"]


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_training(columns: int, at_home: Path) -> None:
    # The second epoch's third step waits until it was drawn.
    pause = "stop_at('tada.recognition.training_step', 'RecognitionTask.training_step', "
    pause += "lambda task, batch, i: print(end='') or (task.current_epoch, i) == (1, 2) and time.sleep(0.6))"
    with Terminal(command(pause, *TRAINING), folder=at_home, columns=columns) as terminal:
        assert terminal.end() == 0
    assert "v_num" not in terminal.output
    during = before(terminal.output, "epoch 2/2  train_loss", columns)
    first = next(i for i, row in enumerate(during) if row.startswith("epoch 2/2"))
    assert re.fullmatch(r"epoch 2/2  ━+─*  (5 of 6 steps  [1-9]\d* s left|6 of 6 steps)", during[first])
    details = "  ".join(during[first + 1 :])
    assert re.match(r"train_loss \d\.\d{4}  [\d.]+ clips/s  val_top1 \d\.\d{4} after epoch [12]  ", details)
    assert re.search(r"  (\d+ % data, \d+ % compute|testing batch \d of \d)$", details)
    assert all(len(row) < columns for row in during[first:])
    rows = screen_of(terminal.output, columns)
    assert [row[:9] for row in rows if row.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert "  tada predict new VIDEO" in rows
    assert "of 6 steps" not in "\n".join(rows)
    assert "━" not in "\n".join(rows)


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_training_that_is_interrupted(columns: int, at_home: Path) -> None:
    stop = "stop_at('tada.data.clips', 'TrainingClips.__getitem__', lambda clips, key: key[0] == 1)"
    with Terminal(command(stop, *TRAINING), folder=at_home, columns=columns) as terminal:
        terminal.wait_for("NOW")
        terminal.press_ctrl_c()
        assert terminal.end() == 130
    text = "".join(screen_of(terminal.output, columns))
    assert text.count("epoch 1/2") == 1
    assert "of 6 steps" not in text
    assert text.endswith(
        "tada: interrupted; the state after step 3 is saved; go on with: tada train clips --resume new --num-workers 1"
    )


def test_training_in_a_pipe(piped: Piped) -> None:
    code, out, err = piped(*TRAINING)
    assert (code, err) == (0, "")
    assert [line[:9] for line in out.splitlines() if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["check", "clips"], "looking"),
        pytest.param(["prepare", "clips", "fast"], "copying", marks=pytest.mark.slow),
        pytest.param(["evaluate", "run", "two", "--out", "report"], "testing", marks=pytest.mark.slow),
    ],
)
def test_other_commands(words: list[str], shown: str, at_home: Path, piped: Piped) -> None:
    Path("two").mkdir()
    for label in ("left", "up"):
        Path("two", label).symlink_to(Path("clips", label).resolve())
    with Terminal(command("", *words), folder=at_home, columns=80) as terminal:
        assert terminal.end() == 0
    assert re.search(rf"\x1b\[J{shown}  ─+  0 of \d\d (videos|files)", terminal.output)
    assert shown not in "\n".join(screen_of(terminal.output, 80))
    if words[0] == "check":
        code, _, err = piped(*words)
        assert (code, err) == (0, "")


# -- answers as they come ----------------------------------------------------------------------------------------------

LONG = "a_recording_of_the_door_in_the_yard_on_monday"


@pytest.fixture
def many(at_home: Path) -> Path:
    """Thirty small videos, one of them with a long name."""
    folder = at_home / "many"
    folder.mkdir()
    for number in range(30):
        frames = draw_motion("up", np.random.default_rng(number), num_frames=6, width=32, height=32)
        write_video(folder / (f"{LONG}.mp4" if number == 29 else f"{number:02}.mp4"), frames, fps=8)
    return at_home


STOP = "stop_at('tada.recognition.recognizer', 'Recognizer._score', lambda _, batch: '/10' in batch[0][0].name)"


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_predicting_many_files(columns: int, many: Path) -> None:
    paused = STOP.replace("'/10' in batch[0][0].name", "print(end='') or '/10' in batch[0][0].name and time.sleep(0.6)")
    with Terminal(command(paused, "predict", "run", "many"), folder=many, columns=columns) as terminal:
        assert terminal.end() == 0
    head, *rows, display = before(terminal.output, "many/10.mp4", columns)
    assert head.split() == ["video", "seconds", "what", "happens"]
    assert [row.split()[0] for row in rows] == [f"many/{number:02}.mp4" for number in range(10)]
    assert re.fullmatch(r"predicting  ━*─*  10 of 30 videos  \d+ s left  [\d.]+ videos/s", display)
    rows = screen_of(terminal.output, columns)
    assert len(rows) == 31
    assert all(len(row) <= columns for row in rows)
    assert len({row.index("all") for row in rows[1:]}) == 1
    cut = rows[-1].split()[0]
    assert (cut == f"many/{LONG}.mp4") == (columns == 120)
    assert cut.startswith("many/a_reco")
    assert cut.endswith("nday.mp4")


@pytest.mark.parametrize("form", ["table", pytest.param("json", marks=pytest.mark.slow)])
def test_predicting_that_is_interrupted(form: str, many: Path) -> None:
    words = ["predict", "run", "many", "--format", form, "--top", "1"]
    with Terminal(command(STOP, *words), folder=many, columns=80) as terminal:
        terminal.wait_for("NOW")
        terminal.press_ctrl_c()
        assert terminal.end() == 130
    *rows, last = screen_of(terminal.output, 80)
    assert last == "tada: interrupted; 10 of 30 videos were answered"
    rows.remove("NOW")
    if form == "json":
        assert len(json.loads("\n".join(rows))) == 10
    else:
        assert [row.split()[0] for row in rows[1:]] == [f"many/{number:02}.mp4" for number in range(10)]


def test_predicting_into_a_pipe(many: Path, piped: Piped) -> None:
    code, out, err = piped("predict", "run", "many")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].split()[:2] == [f"many/{LONG}.mp4", "all"]
    answers = json.loads(piped("predict", "run", "many", "--format", "json")[1])
    lines = piped("predict", "run", "many", "--format", "jsonl")[1].splitlines()
    rows = list(csv.DictReader(io.StringIO(piped("predict", "run", "many", "--format", "csv", "--top", "1")[1])))
    assert [json.loads(line) for line in lines] == answers
    assert [row["video"] for row in rows] == [answer["video"] for answer in answers]
    assert len(rows) == 30


@pytest.mark.parametrize(
    "form", ["table", "json", *(pytest.param(form, marks=pytest.mark.slow) for form in ("jsonl", "csv"))]
)
def test_each_answer_is_handed_on_at_once(form: str, many: Path) -> None:
    words = command(STOP, "predict", "run", "many", "--format", form, "--top", "1")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = ""
        while "NOW" not in text:
            line = process.stdout.readline()
            assert line
            text += line
        process.kill()
    assert "many/09.mp4" in text
    assert "many/10.mp4" not in text


def test_answers_go_into_a_file_while_progress_is_at_the_terminal(many: Path) -> None:
    words = ["predict", "run", "many", "--format", "jsonl"]
    with Terminal(command("", *words), folder=many, columns=80, stdout=Path("answers.jsonl")) as terminal:
        assert terminal.end() == 0
    assert len([json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]) == 30
    assert "predicting  " in terminal.output
    assert screen_of(terminal.output, 80) == []


def test_a_video_that_cannot_be_read_does_not_stand_among_answers(many: Path, piped: Piped) -> None:
    Path("many/05.mp4").write_bytes(b"no video")
    code, out, err = piped("predict", "run", "many", "--format", "json")
    assert code == 1
    assert len(json.loads(out)) == 29
    assert "many/05.mp4" in err
    Path("none").mkdir()
    Path("none/x.mp4").write_bytes(b"no video")
    code, out, err = piped("predict", "run", "none", "--format", "json")
    assert (code, json.loads(out)) == (1, [])


def test_one_long_video_shows_its_clips(many: Path) -> None:
    frames = draw_motion("up", np.random.default_rng(0), num_frames=96, width=32, height=32)
    write_video(Path("long.mp4"), frames, fps=8)
    third = "stop_at('tada.recognition.recognizer', 'Recognizer._score', lambda _, batch: 0.5 <= batch[0][1].done < 1 "
    third += "and time.sleep(0.4))"
    words = ["predict", "run", "long.mp4", "--window-seconds", "3"]
    with Terminal(command(third, *words), folder=many, columns=80) as terminal:
        assert terminal.end() == 0
    assert re.search(r"predicting  \S+━\S+  0 of 1 videos  \d+ s left", re.sub(r"\x1b\[\d*m", "", terminal.output))
    assert len(screen_of(terminal.output, 80)) == 1 + 1 + 4


def test_columns_are_whole_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:  # which is no terminal
    columns = Columns(("video", "score", "what happens"), ["short.mp4", "x" * 100], [5])
    assert columns.row("x" * 100, ["0.50"], ["a" * 90, "b" * 90]) == f"{'x' * 100}   0.50  {'a' * 90}  {'b' * 90}\n"
    assert columns.row("short.mp4", [], ["nothing"]) == "short.mp4" + " " * 93 + "nothing\n"
    assert columns.row("\x1b[2J", ["0.50"], []) == "\\x1b[2J" + " " * 93 + "   0.50\n"


# -- when things happen ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_localizing(columns: int, untrimmed: Path, at_home: Path, piped: Piped) -> None:
    recipe: LocalizationRecipe = RECIPE
    Path("small_localizer.yaml").write_text(recipe_yaml(recipe))
    Path("videos").symlink_to(untrimmed)
    words = ["localize", "train", "--videos", "videos", "--segments", "videos/segments.csv", "--backbone", "run"]
    words += ["--recipe", "small_localizer.yaml", "--epochs", "2", "--warmup-epochs", "0", "--out", "when"]
    with Terminal(command("", *words), folder=at_home, columns=columns) as terminal:
        assert terminal.end() == 0
    assert "extracting  " in terminal.output
    assert re.search(r"epoch 2/2  ━+  4 of 4 steps", re.sub(r"\x1b\[\d*m", "", terminal.output))
    rows = screen_of(terminal.output, columns)
    assert [row[:9] for row in rows if row.startswith("epoch ")] == ["epoch 2/2"]  # after which was tested
    assert "━" not in "\n".join(rows)

    words = ["localize", "when", "videos", "--min-score", "0"]
    stop = "stop_at('tada.localization.localizer', 'extract_video', lambda *a: 'v2' in a[1].name)"
    with Terminal(command(stop, *words), folder=at_home, columns=columns) as terminal:
        terminal.wait_for("NOW")
        terminal.press_ctrl_c()
        assert terminal.end() == 130
    head, *rows, now, last = screen_of(terminal.output, columns)
    assert head.split() == ["video", "start", "end", "score", "what", "happens"]
    assert [row.split()[0] for row in rows if row.startswith("videos/")] == ["videos/v0.mp4", "videos/v1.mp4"]
    assert all(len(row) <= columns for row in rows)
    assert (now, last) == ("NOW", "tada: interrupted; 2 of 3 videos were answered")
    # How far it had come when it was drawn last, a busy machine decides.
    assert re.search(
        r"localizing  \S+  [012] of 3 videos[^\r]*\r\nv\d\.mp4", re.sub(r"\x1b\[\d*m", "", terminal.output)
    )

    answers = json.loads(piped(*words, "--format", "json")[1])
    lines = piped(*words, "--format", "jsonl")[1].splitlines()
    assert [json.loads(line) for line in lines] == answers
    table = csv.DictReader(io.StringIO(piped(*words, "--format", "csv")[1]))
    assert len(list(table)) == sum(len(answer["segments"]) for answer in answers)
