"""Output that cannot be written: told in a line before the work starts, or with the answers saved where it comes later.

These tests may run as root, whom no rights keep from writing: a file stands where a folder should be, a system's folder
takes no files, and a limit on the size of files stands for a disk that is full. Where the system lets us mount, real
file systems that are full or read-only are tried too.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tada.cli import main
from tada.recipe import Recipe, recipe_yaml
from tada.recognizer import load
from test_localizer import draw_features

NETWORK = "tada2d_tiny_motion"

COMMANDS = {
    "train": "train data --recipe small.yaml --num-workers 0 --out OUT",
    "evaluate": f"evaluate {NETWORK} data --num-workers 0 --out OUT",
    "evaluate --scores": "evaluate --scores scores.npz --out OUT",
    "predict --plots": f"predict {NETWORK} data/up --plots OUT",
    "check": "check data --num-workers 1 --out OUT",
    "prepare": "prepare data OUT --short-side 16 --num-workers 1",
    "extract": f"extract {NETWORK} data/up OUT --window-seconds 1",
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
    (folder / "found.json").write_text(json.dumps({"results": {"v4": [], "v5": []}}))
    (folder / "published").mkdir()
    np.save(folder / "published" / "a.npy", np.random.default_rng(0).random((9, 4)).astype(np.float32))
    from tada.evaluation import evaluate

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


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """No file may be larger: as when a disk is full, but that the error is EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# -- before the work --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("where", ["below a file", "a file", "in /proc", "full"])
def test_output_is_tried_before_the_work(
    command: str, where: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(*arguments: object, **options: object) -> None:
        pytest.fail("the work has begun")

    monkeypatch.setattr("tada.video.reader.open_video", no_work)
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
    assert label in load(run).labels
    told("predict", run, video, "--plots", "plots")
    assert Path("plots", f"{name}.png").exists()
    answers = json.loads(told("predict", run, video, "--format", "json"))
    assert answers[0]["video"] == str(video)
    assert set(answers[0]["scores"]) == {"left", label}
    told("extract", run, video.parent, "features", "--window-seconds", "1")
    if kind == "bytes":
        told("export", NETWORK, f"./{name}.pt2")
        assert Path(f"{name}.pt2").exists()
