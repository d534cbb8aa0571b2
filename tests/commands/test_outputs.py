"""Output that cannot be written: told in a line before the work starts, or with the answers saved where it comes later.

These tests may run as root, whom no rights keep from writing: a file stands where a folder should be, a system's folder
takes no files, and a limit on the size of files stands for a disk that is full. Where the system lets us mount, real
file systems that are full or read-only are tried too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drawn_features import draw_features
from small_disk import files_of_at_most
from tada.commands.cli import main
from tada.recognition.recipe import Recipe
from tada.recognition.recognizer import load_recognizer
from tada.recognition.results import load_scores
from tada.system.files import is_part
from tada.system.locks import names_in
from tada.training.checkpoints import WholeFileCheckpoints
from tada.training.recipe import recipe_yaml

SLOW = pytest.mark.slow

NETWORK = "tada2d_tiny_motion"

COMMANDS = {
    "train": "train data --recipe small.yaml --num-workers 0 --out OUT",
    "evaluate": f"evaluate {NETWORK} data --num-workers 0 --out OUT",
    "evaluate --scores": "evaluate --scores scores.npz --out OUT",
    "predict --plots": f"predict {NETWORK} data/up --plots OUT",
    "check": "check data --num-workers 1 --out OUT",
    "prepare": "prepare data OUT --short-side 16 --num-workers 1",
    "extract": f"extract {NETWORK} data/up OUT --window-seconds 1 --stride-seconds 0.05",
    "export": f"export {NETWORK} OUT.pt2",
    "quickstart": "quickstart --out OUT",
    "convert": "convert nothing.pyth OUT --protocol ssv2-8",
    "localize train, features": "localize train --features features --segments segments.csv --out OUT",
    "localize train, videos": "localize train --videos data/up --segments segments.csv --out OUT",
    "localize evaluate": "localize evaluate --predictions found.json --segments segments.csv --out OUT",
    "localize import": "localize import published OUT --fps 5 --stride 1 --clip-frames 2",
}


def tada(command: str, out: str | Path = "out") -> int:
    return main([word.replace("OUT", str(out)) for word in command.split()])


@pytest.fixture(scope="module")
def inputs(motion_videos: Path, small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands read."""
    folder = tmp_path_factory.mktemp("inputs")
    draw_features(folder)
    shutil.copytree(motion_videos, folder / "data")
    (folder / "small.yaml").write_text(recipe_yaml(small_recipe))
    found = [{"segment": [i / 50, i / 50 + 1], "label": "ab"[i % 2], "score": 1 / (1 + i)} for i in range(200)]
    (folder / "found.json").write_text(json.dumps({"results": {"v4": found, "v5": []}}))
    (folder / "published").mkdir()
    np.save(folder / "published" / "a.npy", np.random.default_rng(0).random((9, 4)).astype(np.float32))
    from tada.recognition.evaluation import evaluate

    test = evaluate(Path(NETWORK), motion_videos, num_workers=0, show_progress=False, say=lambda line: None)
    test.save(folder / "report")
    shutil.copy(folder / "report" / "scores.npz", folder)
    return folder


@pytest.fixture
def place(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: the same, by links, so that a test may write beside them."""
    for entry in inputs.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_symlink()}


# -- before the work --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "where", ["below a file", "full", *(pytest.param(w, marks=SLOW) for w in ("a file", "in /proc"))]
)
def test_output_is_tried_before_the_work(
    command: str, where: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(*arguments: object, **options: object) -> None:
        pytest.fail("the work has begun")

    monkeypatch.setattr("av.open", no_work)  # none imports it by name
    monkeypatch.setattr("lightning.Trainer.fit", no_work)
    out = {"below a file": "file/a/out", "a file": "file", "in /proc": "/proc/tada/out", "full": "new/out"}[where]
    if command == "export" and where == "a file":
        pytest.skip("a file may be replaced: another test")
    Path("file").write_text("mine")
    before = everything(place)
    with files_of_at_most(0) if where == "full" else files_of_at_most(2**40):
        assert tada(COMMANDS[command], out) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("tada: '")
    assert told.err.count("\n") == 1
    reason = {
        "below a file": "file' is a file, no folder; give another place",
        "a file": "a file has the name of the folder; give another name",
        "in /proc": "nothing can be made in '/proc'; give another place",
        "full": "it is larger than the system lets a file be",
    }[where]
    assert f" cannot be written: {reason}" in told.err.replace(str(place), "").replace("'/file'", "file'")
    assert everything(place) == before
    assert Path("file").read_text() == "mine"


# -- a disk that is full later, or a folder that goes -----------------------------------------------------------------


LATER = {
    # What no file may be larger than; what is printed all the same; what cannot be written; what is there afterwards.
    "train": (30_000, "training and", "last.ckpt", []),  # as no state was saved, nothing was begun
    "evaluate": (8_000, "top-1", "confusion.png", ["scores.csv", "scores.npz"]),
    "predict --plots": (8_000, "what happens", ".png", []),
    "check": (4_500, "", "probes.jsonl", ["probes.jsonl"]),
    "extract": (4_200, "", ".npz", []),
    "export": (50_000, "", "float32.pt2", None),
    "quickstart": (4_200, "drawing", "videos", ["videos"]),
    "localize train, features": (30_000, "training videos", "last.ckpt", []),
    "localize evaluate": (4_200, "mAP", "detections.json", []),
    "localize import": (4_200, "", "a.npz", []),
}


@pytest.mark.parametrize(
    "command", [pytest.param(command, marks=[pytest.mark.slow] if command == "export" else []) for command in LATER]
)
def test_a_disk_that_is_full_later_leaves_what_was_done(
    command: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says which file, what was found is printed and saved, and no part of a file is left."""
    num_bytes, printed, file, kept = LATER[command]
    if command == "localize import":
        Path("published").unlink()
        Path("published").mkdir()
        np.save("published/a.npy", np.random.default_rng(0).random((999, 4)).astype(np.float32))
    with files_of_at_most(num_bytes):
        assert tada(COMMANDS[command]) == 1
    told = capsys.readouterr()
    assert printed in told.out
    line = told.err.splitlines()[-1]
    assert re.search(rf"^tada: '[^']*{re.escape(file)}[^']*' cannot be written: it is larger than the system", line)
    assert told.err.count("\n") == 1
    assert not [path for path in everything(place) if is_part(path.name) or "lock" in path.name]
    if kept is None:
        assert not Path(file).exists()
    else:
        assert names_in(Path("out")) == kept
    if command == "evaluate":
        assert load_scores(Path("out")).ids


@pytest.mark.parametrize("command", ["train", "localize train, features"])
@pytest.mark.parametrize("slow_seconds", [0.0, 1e9], ids=["slow steps", "fast steps"])
def test_a_run_whose_folder_is_removed_ends_with_a_line(
    command: str,
    slow_seconds: float,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether a state or a line of numbers is the next that is written there."""
    saved = WholeFileCheckpoints.save_checkpoint

    def remove(self: WholeFileCheckpoints, state: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        saved(self, state, path, storage_options)
        shutil.rmtree("out")

    monkeypatch.setattr(WholeFileCheckpoints, "save_checkpoint", remove)
    monkeypatch.setattr("tada.training.checkpoints._SLOW_SECONDS", slow_seconds)
    assert tada(COMMANDS[command]) == 1
    told = capsys.readouterr().err
    assert re.search(r"^tada: '.*/?out\b.*' cannot be written: (its folder|it) is not there any more", told)
    assert told.count("\n") == 1
    assert not Path("out").exists()


# -- nothing is replaced in silence -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["evaluate", "evaluate --scores", pytest.param("export", marks=pytest.mark.slow), "localize evaluate"]
)
def test_what_is_there_is_replaced_only_when_told(
    command: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tada(COMMANDS[command]) == 0
    capsys.readouterr()
    files = {path: path.read_bytes() for path in everything(Path(".")) if path.is_file()}
    long_ago = 10**9  # the time of change tells what was written again; a number of an inode may be given out anew
    for path in files:
        os.utime(path, ns=(long_ago, long_ago))

    def no_work(*arguments: object, **options: object) -> None:
        pytest.fail("the work has begun")

    with monkeypatch.context() as forbidden:
        forbidden.setattr("tada.recognition.recognizer.load_model", no_work)
        forbidden.setattr("tada.localization.evaluation.evaluate_predictions", no_work)
        assert tada(COMMANDS[command]) == 2
    told = capsys.readouterr().err
    assert re.search(r"^tada: 'out(\.pt2)?' (is there already|holds a report)", told)
    assert "--overwrite" in told
    assert {path: path.read_bytes() for path in files} == files
    assert all(path.stat().st_mtime_ns == long_ago for path in files)
    assert tada(f"{COMMANDS[command]} --overwrite") == 0
    assert all(path.stat().st_mtime_ns != long_ago for path in files)
    assert everything(Path(".")) >= set(files)


def test_a_report_is_replaced_whole(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the new one does not have goes, and what others have put there stays."""
    assert tada(COMMANDS["evaluate --scores"]) == 0
    for name in ("confusion_verb.png", "challenge_metrics.json", "notes.txt"):
        Path("out", name).touch()
    assert tada(f"{COMMANDS['evaluate --scores']} --overwrite") == 0
    assert names_in(Path("out")) == [
        *("confusion.png", "evaluation.json", "notes.txt", "report.html", "scores.csv", "scores.npz")
    ]


def test_scoring_a_report_again_leaves_it_as_it_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tada(COMMANDS["evaluate --scores"]) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    for report in ("out", "out/scores.npz"):
        assert tada(f"evaluate --scores {report}") == 0
        assert "the report is in out: " in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("out").iterdir()} == before


def test_features_are_imported_once_more_but_never_over_others(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = COMMANDS["localize import"]
    assert tada(command) == 0
    before = Path("out/a.npz").read_bytes()
    assert tada(command) == 0  # the same again: as after an interruption
    assert Path("out/a.npz").read_bytes() == before
    capsys.readouterr()
    for change, message in (
        (
            command.replace("--fps 5", "--fps 6"),
            "holds features of another kind (of 'published', one every 0.2 s)",
        ),
        (f"{command} --described-as x --overwrite", "import into another folder, or remove this one"),
    ):
        assert tada(change) == 2
        assert message in capsys.readouterr().err
    Path("published").unlink()
    Path("published").mkdir()
    np.save("published/a.npy", np.random.default_rng(1).random((9, 4)).astype(np.float32))
    assert tada(command) == 2
    assert "holds other features or scores of 'a' already: import into another folder" in capsys.readouterr().err
    assert Path("out/a.npz").read_bytes() == before
    assert tada(f"{command} --overwrite") == 0
    assert Path("out/a.npz").read_bytes() != before


# -- names that are no text -------------------------------------------------------------------------------------------


ODD_NAMES = {
    "bytes": os.fsdecode(b"caf\xe9"),  # Latin-1, as old discs and archives have it
    "markup": "[bold]a[red] {x} $y$ %s",
    "control": "a\x1b[31mb\tc\x07\u202e",
}


@pytest.mark.parametrize("kind", ODD_NAMES)
def test_any_name_goes_through_all_commands(
    kind: str,
    motion_videos: Path,
    small_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    """A file of such a name, and a class where a class may have it: learned, tested, named in answers and pictures."""
    name = ODD_NAMES[kind]
    label = name if kind == "markup" else "up"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(motion_videos / "left", "data/left")
    shutil.copytree(motion_videos / "up", Path("data", label))
    video = Path("data", label, f"{name}.mp4")
    next(video.parent.iterdir()).rename(video)
    Path("small.yaml").write_text(recipe_yaml(replace(small_recipe, epochs=1)))
    run = Path(f"run{name}")

    monkeypatch.setenv("COLUMNS", "200")

    def told(*words: str | Path) -> str:
        """What a command prints."""
        capfdbinary.readouterr()
        assert main([str(word) for word in words]) == 0
        printed = capfdbinary.readouterr()
        assert printed.err == b""
        assert not {7, 9, 0x1B} & set(printed.out)
        assert "\u202e".encode() not in printed.out
        return os.fsdecode(printed.out)

    told("check", "data", "--num-workers", "1", "--out", "report")
    told("prepare", "data", "copy", "--num-workers", "1")
    told("train", "data", "--recipe", "small.yaml", "--num-workers", "0", "--out", run)
    told("evaluate", run, "data", "--num-workers", "0")
    evaluation = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert set(evaluation["per_class"]) == {"left", label}
    assert label in load_recognizer(run).labels
    told("predict", run, video, "--plots", "plots")
    assert Path("plots", f"{name}.png").exists()
    answers = json.loads(told("predict", run, video, "--format", "json"))
    assert answers[0]["video"] == str(video)
    assert set(answers[0]["scores"]) == {"left", label}
    told("extract", run, video.parent, "features", "--window-seconds", "1")
    if kind == "bytes":
        told("export", NETWORK, f"./{name}.pt2")
        assert Path(f"{name}.pt2").exists()
