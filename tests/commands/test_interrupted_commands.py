"""Ctrl-C in every command that takes its time: what is known is printed, what is done stays, no halves are left."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tada.commands.cli import main
from tada.data.motion import write_motion_videos
from tada.recognition.recipe import Recipe
from tada.recognition.training import train
from tada.training.recipe import recipe_yaml
from terminal import HIDE_CURSOR, SHOW_CURSOR, Screen, Terminal, wait_until_gone

EXTRACTION = "tada.localization.features.extraction"
COMMAND = """
import sys, time
from tada.commands.cli import main
from tada.system.signals import end

def stop_at(module, name, when):
    # Print NOW and wait at the first call for which ``when`` holds.
    import importlib
    owner = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    own = getattr(owner, name)
    def stopped(*arguments, **options):
        if when(*arguments):
            print("NOW", flush=True)
            time.sleep(1000)
        return own(*arguments, **options)
    setattr(owner, name, stopped)

exec(sys.argv[1])
end(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def trained(small_recipe: Recipe, motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    train(small_recipe, motion_videos, out, num_workers=0, show_progress=False, say=str)
    return out


@pytest.fixture
def at_home(
    trained: Path, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Terminal]:
    """A working directory with videos and a run, and commands at a terminal there that stop at some call."""
    shutil.copytree(motion_videos, tmp_path / "videos")
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    own = {"TMPDIR": str(tmp_path / "temporary")}
    return lambda stop, *words: Terminal(
        [sys.executable, "-c", COMMAND, stop, *words], folder=tmp_path, environment=own
    )


def interrupt(terminal: Terminal, moment: str) -> str:
    """Press Ctrl-C when something was printed; all that was printed."""
    with terminal:
        terminal.wait_for(moment)
        terminal.press_ctrl_c()
        assert terminal.end() == 130
        wait_until_gone(terminal.pid)
    assert "Traceback" not in terminal.output
    assert "Exception ignored" not in terminal.output
    assert terminal.output.rfind(SHOW_CURSOR) >= terminal.output.rfind(HIDE_CURSOR)
    assert not list(Path().rglob("*.part*"))
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.output.replace("\r\n", "\n"))


def test_check(at_home: Callable[..., Terminal], capsys: pytest.CaptureFixture[str]) -> None:
    output = interrupt(at_home("", "check", "videos", "--out", "seen"), "looking")
    assert output.endswith("tada: interrupted; what was seen is kept: the same command goes on\n")
    assert main(["check", "videos", "--out", "seen"]) == 0
    assert "15 videos in 15 files; 0 faults" in capsys.readouterr().out


def test_prepare(at_home: Callable[..., Terminal], capsys: pytest.CaptureFixture[str]) -> None:
    output = interrupt(at_home("", "prepare", "videos", "fast"), "copying")
    assert output.endswith("tada: interrupted; the copies that were made stay: the same command goes on\n")
    assert main(["prepare", "videos", "fast"]) == 0
    assert "15 files, " in capsys.readouterr().out


def test_evaluate(at_home: Callable[..., Terminal]) -> None:
    stop = "stop_at('tada.data.views', 'TestVideos.__getitem__', lambda videos, number: number == 2)"
    output = interrupt(at_home(stop, "evaluate", "run", "videos", "--num-workers", "2"), "NOW")
    assert output.endswith("tada: interrupted; no report was written\n")
    assert not Path("run/evaluation").exists()


@pytest.mark.parametrize("form", ["json", "table"])
def test_predict_prints_what_was_answered(form: str, at_home: Callable[..., Terminal]) -> None:
    stop = "stop_at('tada.recognition.recognizer', 'Recognizer._score', lambda _, batch: '002' in batch[0][0].name)"
    terminal = at_home(stop, "predict", "run", "videos", "--format", form)
    interrupt(terminal, "NOW")
    screen = Screen(200)
    screen.feed(terminal.output)
    answers, _, last = screen.text().rpartition("\n")
    assert last == "tada: interrupted; 2 of 15 videos were answered"
    if form == "json":
        found = json.loads(answers.replace("NOW", ""))
        assert [Path(answer["video"]).name for answer in found] == ["left_000.mp4", "left_001.mp4"]
    else:
        head, *rows, now = answers.splitlines()
        assert head.split() == ["video", "seconds", "what", "happens"]
        assert [row.split()[0] for row in rows] == ["videos/left/left_000.mp4", "videos/left/left_001.mp4"]
        assert now == "NOW"


def test_extract(at_home: Callable[..., Terminal], capsys: pytest.CaptureFixture[str]) -> None:
    stop = f"stop_at('{EXTRACTION}', 'extract_video', lambda network, path, *_: '002' in path.name)"
    words = ["extract", "run", "videos/left", "features", "--window-seconds", "0.5"]
    output = interrupt(at_home(stop, *words), "NOW")
    assert output.endswith("tada: interrupted; the features that were written stay: the same command goes on\n")
    assert main(words) == 0
    assert "3 videos extracted, 2 there already" in capsys.readouterr().out


@pytest.mark.slow  # PyTorch takes long to trace a network
def test_export(at_home: Callable[..., Terminal]) -> None:
    stop = "stop_at('tada.export', 'largest_difference', lambda *_: True)"
    Path("temporary").mkdir()
    output = interrupt(at_home(stop, "export", "run", "run.pt2"), "NOW")
    assert output.endswith("tada: interrupted; run.pt2 was not written\n")
    assert not Path("run.pt2").exists()
    assert not list(Path("temporary").glob("tada_export_*"))


def test_quickstart(at_home: Callable[..., Terminal]) -> None:
    stop = "stop_at('tada.recognition.quickstart', 'train', lambda *_: True)"
    draw = "import tada.recognition.quickstart as q; draw = q.draw_videos\n"
    draw += "q.draw_videos = lambda out, **_: draw(out, train_videos_per_class=1, test_videos_per_class=1, seed=0)\n"
    output = interrupt(at_home(draw + stop, "quickstart"), "NOW")
    assert output.endswith(
        "tada: interrupted; quickstart is not whole: remove it before the next try, or choose another --out\n"
    )


# --- localize train, in each of its parts ---

PARTS = {
    "opening videos": "stop_at('tada.localization.train_from_videos', 'probe_footage', lambda path: '1' in path.name)",
    "cutting clips": "stop_at('tada.localization.trimmed', '_cut', lambda video, *_: '1' in video.name)",
    "backbone": "stop_at('tada.recognition.training_step', 'RecognitionTask.validation_step', lambda *_: True)",
    "features": f"stop_at('{EXTRACTION}', 'extract_video', lambda network, path, *_: '1' in path.name)",
    "detector": "stop_at('tada.localization.training_step', 'LocalizationTask.validation_step', lambda *_: True)",
}


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_localize_train(
    part: str,
    small_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    motions = ("left", "right")
    write_motion_videos(
        Path("videos"), videos_per_class=3, seed=0, num_frames=16, width=32, height=32, fps=8.0, motions=motions
    )
    rows = ["video,start,end,label,split"]
    for video in sorted(Path("videos").rglob("*.mp4")):
        split = "val" if video.stem.endswith("2") else "train"
        rows += [f"{video.stem},{start},{start + 0.9},{video.parent.name},{split}" for start in (0.0, 1.0)]
    Path("segments.csv").write_text("\n".join(rows) + "\n")
    Path("small.yaml").write_text(recipe_yaml(small_recipe))
    words = ["localize", "train", "--segments", "segments.csv", "--videos", "videos", "--backbone-recipe", "small.yaml"]
    words += ["--num-workers", "0", "--out", "when"]
    quick = ["--epochs", "2", "--dim", "16", "--warmup_epochs", "0"]
    stop = PARTS[part]
    output = interrupt(Terminal([sys.executable, "-c", COMMAND, stop, *words, *quick], folder=tmp_path), "NOW")
    last = output.splitlines()[-1]
    assert last.startswith("tada: interrupted; ")
    if part == "detector":
        command = re.sub(r".* is saved; go on with: ", "", last)
        given = "--segments segments.csv --videos videos --backbone-recipe small.yaml --num-workers 0"
        assert command == f"tada localize train {given} --resume when"
        assert main(command.split()[1:]) == 0
    else:
        kept = r"the state after step \d+ is saved" if part == "backbone" else "what was done stays"
        assert re.fullmatch(rf"tada: interrupted; {kept}: the same command goes on", last)
        assert main([*words, *quick]) == 0
    assert "trained in" in capsys.readouterr().out
    assert Path("when/localizer.safetensors").exists()
