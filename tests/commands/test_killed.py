"""SIGKILL at any moment of a command: what is there afterwards is whole, and the same command goes on to the same end.

Commands run in processes that are forked from one which has loaded everything, so that they are at work at once.
"""

from __future__ import annotations

import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hang import HANG_SECONDS
from tada.data.annotations import read_dataset
from tada.errors import CheckpointError, DataError, counted
from tada.localization.features.folder import FeatureFolder, read_card
from tada.localization.localizer import load_localizer
from tada.localization.recipe import LocalizationRecipe
from tada.recognition.recipe import Recipe
from tada.recognition.recognizer import load_recognizer
from tada.system.files import is_part
from tada.training.recipe import recipe_yaml
from tada.video.reader import open_video

FORKING = """
import json, os, sys
import torch
torch.set_num_threads(1)
import tada.commands.cli, tada.export, tada.localization.train_from_videos, tada.loading, tada.localization.report
for line in sys.stdin:
    words = json.loads(line)
    pid = os.fork()
    if pid == 0:
        told = os.open("told.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told, 1), os.dup2(told, 2)
        code = tada.commands.cli.main(words)
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Commands:
    """Runs commands in a folder, whole or until they are killed."""

    def __init__(self, folder: Path) -> None:
        (folder / "tmp").mkdir()
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder / "tmp")},
        )

    def __call__(self, command: str, *, kill_after_seconds: float | None = None) -> int:
        """The exit code; -9 for a command that was killed before its end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command.split()) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        has_ended, _, _ = select.select([self.process.stdout], [], [], kill_after_seconds or HANG_SECONDS)
        if not has_ended:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL)
        return int(self.process.stdout.readline())

    @property
    def told(self) -> str:
        """What the last command printed."""
        return (self.folder / "told.txt").read_text()


@pytest.fixture
def commands(
    untrimmed: Path, small_backbone: Path, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Commands]:
    monkeypatch.chdir(tmp_path)
    Path("videos").symlink_to(untrimmed)
    Path("backbone").symlink_to(small_backbone)
    Path("backbone.yaml").write_text(recipe_yaml(replace(small_recipe, epochs=2, warmup_epochs=0.0)))
    detector = LocalizationRecipe(dim=16, input_dropout=0.0, epochs=3, warmup_epochs=0.0, batch_size=1, ema_decay=0.5)
    Path("detector.yaml").write_text(recipe_yaml(detector))
    commands = Commands(tmp_path)
    try:
        yield commands
    finally:
        commands.process.communicate(timeout=HANG_SECONDS)


def timed(commands: Commands, command: str) -> float:
    """How long a command takes that is not killed."""
    started = time.monotonic()
    assert commands(command) == 0, commands.told
    return time.monotonic() - started


def leftovers(folder: Path) -> list[Path]:
    """Locks, and parts of files."""
    return [path for path in folder.rglob("*") if is_part(path.name) or "lock" in path.name]


def moments(count: int, seconds: float) -> Iterator[float]:
    """Random ones, one in each of ``count`` parts of the time."""
    rng = random.Random(0)
    for i in range(count):
        yield (i + rng.random()) / count * seconds


COUNTS = [pytest.param(1, id="1"), pytest.param(30, id="30", marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", COUNTS)
def test_extract(count: int, commands: Commands) -> None:
    command = "extract backbone videos OUT --window-seconds 1 --stride-seconds 0.02 --batch-size 2"
    seconds = timed(commands, command.replace("OUT", "whole"))
    whole = FeatureFolder(Path("whole"))
    for number, moment in enumerate(moments(count, seconds)):
        out = Path(f"out{number}")
        commands(command.replace("OUT", str(out)), kill_after_seconds=moment)
        for card in out.glob("*.json"):  # those that are there are those that would have been
            assert read_card(card).video in whole.cards
            assert card.with_suffix(".npz").read_bytes() == Path("whole", f"{card.stem}.npz").read_bytes()
        kept = len(list(out.glob("*.json")))
        assert commands(command.replace("OUT", str(out))) == 0, commands.told
        assert f"{counted(3 - kept, 'video')} extracted, {kept} there already" in commands.told
        assert leftovers(out) == []
        assert {file.name: file.read_bytes() for file in out.iterdir() if file.suffix == ".npz"} == {
            file.name: file.read_bytes() for file in Path("whole").glob("*.npz")
        }


@pytest.mark.slow  # PyTorch takes long to trace a network, each time
@pytest.mark.parametrize("count", [30])
def test_export(count: int, commands: Commands) -> None:
    command = "export tada2d_tiny_motion OUT"
    seconds = timed(commands, command.replace("OUT", "whole.pt2"))
    clips = torch.randn(1, 3, 8, 48, 48, generator=torch.Generator().manual_seed(0))
    wanted = torch.export.load("whole.pt2").module()(clips)
    for number, moment in enumerate(moments(count, seconds)):
        out = Path(f"out{number}.pt2")
        code = commands(command.replace("OUT", str(out)), kill_after_seconds=moment)
        is_there = out.exists()
        assert is_there or code == -9
        again = commands(command.replace("OUT", str(out)))
        if is_there:  # it was killed when all was done
            assert again == 2
            assert "is there already: give another name, or replace it (--overwrite)" in commands.told
        else:
            assert again == 0, commands.told
        torch.testing.assert_close(torch.export.load(out).module()(clips), wanted)
        assert leftovers(Path(".")) == []


@pytest.mark.parametrize("count", COUNTS)
def test_localize_train(count: int, commands: Commands) -> None:
    command = (
        "localize train --videos videos --segments videos/segments.csv --backbone-recipe backbone.yaml "
        "--recipe detector.yaml --num-workers 0 --window-seconds 1 --stride-seconds 0.1 --device cpu"
    )
    seconds = timed(commands, f"{command} --out whole")
    whole = Path("whole", "localizer.safetensors").read_bytes()
    for number, moment in enumerate(moments(count, seconds)):
        out = Path(f"out{number}")
        commands(f"{command} --out {out}", kill_after_seconds=moment)
        check_whole(out)
        code = commands(f"{command} --out {out}")
        if code == 2:  # it had begun to train the detector
            assert re.search(r"is not empty: .* continue its run with --resume", commands.told)
            code = commands(f"{command} --resume {out}")
        assert code == 0, commands.told
        assert Path(out, "localizer.safetensors").read_bytes() == whole
        assert Path(out, "report.html").exists()
        assert Path(f"{out}_backbone", "report.html").exists()
        assert leftovers(Path(".")) == []
        for folder in Path(".").glob(f"{out}*"):
            shutil.rmtree(folder)


def check_whole(out: Path) -> None:
    """What a localizer's training has left, in its folder and those beside it, can be read."""
    beside = {name: out.with_name(f"{out.name}_{name}") for name in ("clips", "backbone", "features")}
    if (beside["clips"] / "clips.csv").exists():
        for video in read_dataset(beside["clips"] / "clips.csv").videos:
            with open_video(video.path) as reader:
                assert reader.frames([0]).size
    for folder, read in ((beside["backbone"], load_recognizer), (out, load_localizer)):
        try:
            read(folder)
        except CheckpointError:
            assert not any((folder / card).exists() for card in ("model.json", "localizer.json"))
        state = folder / "resume" / "last.ckpt"
        if state.exists():
            torch.load(state, weights_only=True)
    try:
        features = FeatureFolder(beside["features"])
    except DataError:
        assert not list(beside["features"].glob("*.json"))
    else:
        assert all(np.isfinite(features.read(name).features).all() for name in features.cards)
