"""Every wish of docs/wishes.md: its command does what it says, in a working directory with a person's few files."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from drawn_features import RECIPE
from drawn_frames import as_frame_folders, write_frames
from tada.commands.cli import main
from tada.recognition.recipe import Recipe
from tada.training.recipe import recipe_yaml
from tada.video.reader import open_video

PAGE = Path(__file__).parents[2] / "docs" / "wishes.md"
ELSEWHERE = {
    "tada quickstart": "tests/recognition/test_quickstart.py runs it",
    "tada serve runs/first": "it ends when it is told to: tests/serving/test_serving.py",
    "tada demo": "likewise: tests/demo/test_browser.py",
    "tada demo runs/first runs/when": "likewise",
}
STAND_INS = {"/dev/video0": "growing.ts --idle-seconds 0.5", "--epochs 300": "--epochs 2"}
"""what stands in the place of what a machine of tests does not have: a camera, and time"""

# Small networks and few epochs, where a command does not name its own.
SMALL = {"tada train": "--recipe small.yaml", "tada localize train": "--recipe when.yaml --backbone-recipe small.yaml"}


def wishes() -> Iterator[tuple[str, str]]:
    """What is wanted, and the command for it, from the page's tables."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        found = re.fullmatch(r"\| (?!I want to)(.+?) \| `(tada .+|cat .+)` \|", line)
        if found:
            yield found[1], found[2].replace("\\|", "|")


@pytest.fixture
def home(motion_videos: Path, untrimmed: Path, small_recipe: Recipe, tmp_path: Path) -> Path:
    """What the page says that people have."""
    shutil.copytree(motion_videos, tmp_path / "clips")
    shutil.copytree(untrimmed, tmp_path / "long")
    for number, name in enumerate(("new.mp4", "other.mp4", "growing.ts")):
        shutil.copy(untrimmed / f"v{number}.mp4", tmp_path / name)
    as_frame_folders(motion_videos, tmp_path / "frames")
    with open_video(untrimmed / "v0.mp4") as reader:
        write_frames(tmp_path / "take_1", reader.frames(range(32)), "img_{:05}.jpg")
    clips = sorted((tmp_path / "clips").glob("*/*.mp4"))
    lines = [f"{clip.relative_to(tmp_path)} {clip.parent.name}" for clip in clips]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    rows = [f"{line.replace(' ', ',')},{'anna' if '000' in line else 'ben'}" for line in lines]
    (tmp_path / "groups.csv").write_text("path,label,group\n" + "\n".join(rows) + "\n")
    several = {"left": "left;sideways", "right": "right;sideways", "up": "up"}
    rows = [f"{path},{several[label]}" for path, label in map(str.split, lines)]
    (tmp_path / "several.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    (tmp_path / "project.boris").write_text(json.dumps(boris_project(tmp_path / "long")))
    (tmp_path / "small.yaml").write_text(recipe_yaml(replace(small_recipe, epochs=1)))
    (tmp_path / "when.yaml").write_text(recipe_yaml(replace(RECIPE, epochs=1)))
    return tmp_path


def boris_project(folder: Path) -> dict[str, object]:
    """What segments.csv says, as BORIS has it."""
    observations = {}
    for name in ("v0.mp4", "v1.mp4", "v2.mp4"):
        file = str(folder / name)
        events = [
            [time, "", label, "", ""] for label, start in (("left", 0.5), ("up", 2.25)) for time in (start, start + 1)
        ]
        observations[name] = {
            "file": {"1": [file]},
            "type": "MEDIA",
            "time offset": 0.0,
            "events": events,
            "media_info": {"length": {file: 4.0}, "fps": {file: 8.0}},
        }
    behaviors = {str(i): {"code": code, "type": "State event"} for i, code in enumerate(("left", "up"))}
    return {"project_format_version": "7.0", "behaviors_conf": behaviors, "observations": observations}


def run(command: str) -> int:
    """The exit code: of this process's command line, or of a shell's where there is a pipe."""
    for there, here in STAND_INS.items():
        command = command.replace(there, here)
    for start, small in SMALL.items():
        if command.startswith(start) and "--resume" not in command:
            command = f"{command} --num-workers 0 {small}"
    if "|" in command:
        tada = f"{shlex.quote(sys.executable)} -m tada"
        return subprocess.run(["sh", "-c", command.replace("| tada", f"| {tada}")], check=False).returncode
    return main(shlex.split(command)[1:])


def outputs(command: str) -> list[str]:
    """The files and folders that a command is told to make."""
    named = re.findall(r"--(?:out|plots|save-video|explain) (\S+)", command)
    return named + re.findall(r"tada export \S+ (\S+)", command)


def test_every_wish_comes_true(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    monkeypatch.chdir(home)
    told = list(wishes())
    assert len(told) > 40
    for wish, command in told:
        with subtests.test(wish):
            if command not in ELSEWHERE:
                code, told_then = run(command), "".join(capfd.readouterr())
                assert code == 0, f"{command}\n{told_then}"
            for name in () if command in ELSEWHERE or "--dry-run" in command else outputs(command):
                made = home / name
                assert any(made.iterdir()) if made.is_dir() else made.stat().st_size, name
    assert (home / "runs" / "first" / "report.html").exists()
