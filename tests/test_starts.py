"""The benchmark of starts: groups stay apart, a run becomes a line, and the page is of the lines."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import starts
from starts import DataSet, read, split, square
from tada.data.motion import write_motion_videos


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One data set, two motions in three groups; few clips to train on, and a recipe of a moment."""
    folder = tmp_path / "data" / "lips"
    write_motion_videos(folder, videos_per_class=6, seed=0, num_frames=8, motions=("left", "right", "up"))
    files = sorted(folder.rglob("*.mp4"))
    rows = [f"{f.parent.name}/{f.name},{f.parent.name},{'abc'[i % 3]}" for i, f in enumerate(files)]
    (folder / "clips.csv").write_text("\n".join(["video,label,group", *rows]) + "\n")
    monkeypatch.setattr(starts, "DATA_SETS", {"lips": DataSet(folder="lips", tested=3)})
    monkeypatch.setattr(starts, "NUM_CLIPS", 6)
    monkeypatch.setattr(starts, "STARTS", {"a start": square(16) | {"init": "none", "epochs": 1}})
    return tmp_path / "data"


def test_groups_and_classes_of_a_split(data: Path) -> None:
    table = read(DataSet(folder="lips", tested=3, only="t_"), data, data / "clips")
    assert table.labels == ("left", "right")  # only of videos with "t_" in their names
    tested: list[str] = []
    for run in range(3):
        training, test = split(table, DataSet(folder="lips", tested=3), run)
        assert sorted(Counter(video.label for video in training.videos).values()) == [3, 3]
        assert not {video.path for video in training.videos} & {video.path for video in test.videos}
        tested += [video.path for video in test.videos]
    assert sorted(tested) == sorted(video.path for video in table.videos)
    training, test = split(table, DataSet(folder="lips", tested=["b"]), 7)
    group = {video.path: video.group for video in table.videos}
    assert {group[video.path] for video in test.videos} == {"b"}
    assert "b" not in {group[video.path] for video in training.videos}


def test_the_default_clip_enlarged() -> None:
    recipe = starts.Recipe()
    assert square(48) == {"clip": recipe.clip, "short_side_range": recipe.short_side_range}


def test_a_run_becomes_a_line_and_is_not_repeated(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = data / "starts.jsonl", data / "page"
    own = [("--out", file), ("--page", page), ("--runs", 1), ("--workers", 1)]
    # The worker of a pool would not see what is patched here.
    table = read(starts.DATA_SETS["lips"], data, data / "clips")
    line = starts.train_and_test("a start", "lips", 0, table, None)
    assert {"set": "lips", "run": 0, "trained_on": 6, "count": 6}.items() <= line.items()
    file.write_text(json.dumps(line | {"right": 3, "seconds": 90}) + "\n")
    monkeypatch.setattr(sys, "argv", ["starts.py", str(data), *(str(part) for option in own for part in option)])
    starts.main()
    assert len(file.read_text().splitlines()) == 1
    assert "0.50 (0.50)" in capsys.readouterr().out
    assert "| 0.500 | a start | 0.50 (0.50) | 1.5 |" in (page / "starts.md").read_text()


def test_the_page_is_of_the_runs(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    starts.show(starts.read_runs(root / "benchmarks" / "starts.jsonl"), tmp_path)
    assert (tmp_path / "starts.md").read_text() == (root / "docs" / "starts.md").read_text()
