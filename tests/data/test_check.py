"""``tada check`` finds the faults of a data set before training, and caches its results."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drawn_videos import draw_plain, draw_variable_rate, flip_bits, truncate
from tada.commands.cli import main
from tada.data import check
from tada.data.annotations import read_dataset
from tada.data.check import CheckReport, Probe, check_dataset, probe_file
from tada.data.table import VideoTable
from tada.data.workers import Lost
from tada.errors import OptionError


def one_after_the_other(function: Any, tasks: Any, **options: Any) -> Any:
    """As ``in_processes``, in this one, which is quicker."""
    return ((task, function(task)) for task in tasks)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "in_processes", one_after_the_other)


def looked(table: VideoTable, out: Path, **options: Any) -> CheckReport:
    return check_dataset(table, out, num_processes=1, show_progress=False, **options)


def found(report: CheckReport) -> dict[str, list[str]]:
    """The names of the files that each kind of finding is about."""
    kinds: dict[str, list[str]] = {}
    for finding in report.findings:
        assert "\n" not in finding.message
        kinds.setdefault(finding.kind, []).append(Path(finding.path).name)
    return kinds


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in two splits, and something wrong with most of the files."""
    folder = tmp_path_factory.mktemp("faulty")
    for part in ("train/x", "train/y", "val/x", "val/y"):
        (folder / part).mkdir(parents=True)
    draw_plain(folder / "train/x/fine.mp4", 20)
    draw_plain(folder / "train/x/short.mp4", 7)
    draw_plain(folder / "train/x/fast.mp4", 20, fps=60)
    draw_plain(folder / "train/x/slow.mp4", 10, fps=5)
    draw_variable_rate(folder / "train/y/uneven.mp4", [i / 30 + (i > 10) * 1.0 for i in range(30)])
    truncate(shutil.copy(folder / "train/x/fine.mp4", folder / "train/y/cut.mp4"), 0.5)
    (folder / "train/y/text.mp4").write_text("no video, but words " * 20)
    (folder / "train/y/empty.mp4").touch()
    draw_plain(folder / "val/x/other.mp4", 21)
    shutil.copy(folder / "train/x/fine.mp4", folder / "val/x/leak.mp4")
    shutil.copy(folder / "val/x/other.mp4", folder / "val/y/two_labels.mp4")
    draw_plain(folder / "val/y/once.mp4", 22)
    shutil.copy(folder / "val/y/once.mp4", folder / "val/y/twice.mp4")
    return folder


def test_every_fault_is_found_and_told(faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(faulty), "--out", str(tmp_path / "out"), "--num-workers", "2"]) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    kinds: dict[str, set[str]] = {}
    for finding in report["findings"]:
        kinds.setdefault(finding["kind"], set()).add(Path(finding["path"]).name)
    assert kinds == {
        "too_short": {"short.mp4"},
        "odd_rate": {"fast.mp4", "slow.mp4"},
        "uneven": {"uneven.mp4"},
        "truncated": {"cut.mp4"},
        "not_a_video": {"text.mp4"},
        "empty_file": {"empty.mp4"},
        "leak": {"leak.mp4"},
        "two_labels": {"two_labels.mp4"},
        "double": {"twice.mp4"},
    }
    assert report["classes"]["action"] == {"x": {"train": 4, "val": 2}, "y": {"train": 4, "val": 3}}
    assert report["counts"]["leak"] == 1
    printed = capsys.readouterr().out
    for text in (
        "too_short",
        "2 action classes, from 6 (x) to 7 videos (y)",
        "13 videos (train 8, val 5) in 13 files; 6 f",
    ):
        assert text in printed
    with (tmp_path / "out" / "findings.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report["findings"]) == 10
    assert [row["path"] for row in rows if row["kind"] == "leak"] == [str(faulty / "val/x/leak.mp4")]


@pytest.mark.usefixtures("here")
def test_a_sound_data_set_has_no_faults(motion_videos: Path, tmp_path: Path) -> None:
    assert main(["check", str(motion_videos), "--out", str(tmp_path), "--num-workers", "1"]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["counts"] == {"odd_rate": 15}  # eight frames a second


@pytest.mark.usefixtures("here")
def test_a_report_of_other_data_is_not_replaced_unasked(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--out", str(tmp_path / "out"), "--num-workers", "1"]
    left, up = (str(motion_videos / label) for label in ("left", "up"))
    for label in (left, up):
        shutil.copytree(label, tmp_path / "data" / Path(label).name / "x")
    left, up = (str(tmp_path / "data" / label) for label in ("left", "up"))
    assert main(["check", left, *words]) == 0
    assert main(["check", left, *words]) == 0  # what was mended is looked at again
    report = (tmp_path / "out" / "report.json").read_bytes()
    capsys.readouterr()
    assert main(["check", up, *words]) == 2
    rule = "holds a report (report.json): give another folder (--out), or replace it (--overwrite)"
    assert rule in capsys.readouterr().err
    assert (tmp_path / "out" / "report.json").read_bytes() == report
    assert main(["check", up, *words, "--overwrite"]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["data"] == up
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "findings.csv").write_text("mine")
    assert main(["check", up, "--out", str(tmp_path / "mine"), "--num-workers", "1"]) == 2
    assert (tmp_path / "mine" / "findings.csv").read_text() == "mine"


@pytest.mark.usefixtures("here")
def test_what_was_found_is_kept_and_a_changed_file_is_read_again(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    (videos / "x").mkdir(parents=True)
    draw_plain(videos / "x" / "a.mp4", 10)
    for name in ("b", "c"):  # copied, since not every encoder writes the same bytes twice
        shutil.copy(videos / "x" / "a.mp4", videos / "x" / f"{name}.mp4")
    first = looked(read_dataset(videos), tmp_path / "out")
    assert (first.num_cached, found(first)) == (0, {"double": ["b.mp4", "c.mp4"]})
    assert looked(read_dataset(videos), tmp_path / "out").num_cached == 3
    draw_plain(videos / "x" / "b.mp4", 5)
    again = looked(read_dataset(videos), tmp_path / "out")
    assert (again.num_cached, found(again)) == (2, {"too_short": ["b.mp4"], "double": ["c.mp4"]})
    # A thorough look asks for more, and serves for less.
    assert looked(read_dataset(videos), tmp_path / "out", thorough=True).num_cached == 0
    assert looked(read_dataset(videos), tmp_path / "out").num_cached == 3


def test_an_interrupted_check_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "videos" / "x").mkdir(parents=True, exist_ok=True)
        draw_plain(tmp_path / "videos" / "x" / f"{name}.mp4", 10 + ord(name))
    table = read_dataset(tmp_path / "videos")

    def interrupted(function: Any, tasks: Any, **options: Any) -> Any:
        for count, done in enumerate(one_after_the_other(function, tasks)):
            if count == 2:
                raise KeyboardInterrupt
            yield done

    monkeypatch.setattr(check, "in_processes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        looked(table, tmp_path / "out")
    monkeypatch.setattr(check, "in_processes", one_after_the_other)
    assert not (tmp_path / "out" / "report.json").exists()
    probes = tmp_path / "out" / "probes.jsonl"
    probes.write_bytes(probes.read_bytes()[:-20])  # killed in the middle of a line
    report = looked(table, tmp_path / "out")
    assert report.num_cached == 1
    assert len(report.probes) == 3
    assert report.findings == ()


def test_a_decoder_that_crashes_is_a_fault_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "videos" / "x").mkdir(parents=True)
    draw_plain(tmp_path / "videos" / "x" / "a.mp4", 10)
    table = read_dataset(tmp_path / "videos")
    lost = Lost("the decoder crashed (signal SIGSEGV)")
    monkeypatch.setattr(check, "in_processes", lambda _, tasks, **options: (pair for pair in [(tasks[0], lost)]))
    report = looked(table, tmp_path / "out")
    assert found(report) == {"lost": ["a.mp4"]}
    assert "a.mp4': the decoder crashed (signal SIGSEGV); leave it out" in report.faults[0].message
    monkeypatch.setattr(check, "in_processes", one_after_the_other)
    assert looked(table, tmp_path / "out").findings == ()


def test_a_thorough_look_decodes_every_frame(tmp_path: Path) -> None:
    path = draw_plain(tmp_path / "a.mp4", 60, width=128, height=96, container_options={"movflags": "+faststart"})
    flip_bits(path, num_flips=40, seed=3, start_fraction=0.5)
    assert probe_file(str(path), thorough=True).reason == "corrupt"
    fine = draw_plain(tmp_path / "b.mp4", 60)
    assert probe_file(str(fine), thorough=True).reason == ""


def test_a_probe_of_a_file_that_is_gone(tmp_path: Path) -> None:
    probe = probe_file(str(tmp_path / "gone.mp4"), thorough=False)
    assert isinstance(probe, Probe)
    assert probe.reason == "not_found"


@pytest.mark.usefixtures("here")
def test_segments_outside_and_videos_that_are_missing(tmp_path: Path) -> None:
    draw_plain(tmp_path / "a.mp4", 60)
    (tmp_path / "clips.csv").write_text("path,start,end,label\na.mp4,0,1,x\na.mp4,1.9,2.5,x\na.mp4,1,1.1,x\n")
    report = looked(read_dataset(tmp_path / "clips.csv"), tmp_path / "out")
    assert found(report) == {"segment_outside": ["a.mp4"], "too_short": ["a.mp4"]}
    assert [finding.source for finding in report.findings] == ["clips.csv row 4", "clips.csv row 3"]

    os.rename(tmp_path / "a.mp4", tmp_path / "aaa_000001_000003.mp4")
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end\nx,aaa,1,3\ny,bbb,1,3\n")
    report = looked(read_dataset(tmp_path / "train.csv"), tmp_path / "out")
    assert not report.faults
    assert [(finding.kind, finding.source) for finding in report.findings] == [
        ("missing", "train.csv row 3"),
        ("no_videos", "train"),
    ]
    assert report.as_dict()["coverage"] == "1 of 2 videos (50.0 %)"


@pytest.mark.usefixtures("here")
def test_names_are_guarded_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "videos" / "x").mkdir(parents=True)
    draw_plain(tmp_path / "videos" / "x" / "a.mp4", 3)
    table = read_dataset(tmp_path / "videos")
    video = table.videos[0]
    report = looked(VideoTable(heads=table.heads, videos=(video,), root=table.root, kind="folder"), tmp_path / "out")
    shown = replace(report.findings[0], source="=1+1")
    replace(report, findings=(shown,)).save(tmp_path / "out")
    assert "'=1+1," in (tmp_path / "out" / "findings.csv").read_text()


@pytest.mark.usefixtures("here")
def test_options_out_of_range(motion_videos: Path, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r"min_frames = 0 should be at least 1, and timeout_seconds = 120.0 more than 0"
    ):
        looked(read_dataset(motion_videos), tmp_path, min_frames=0)


def test_what_was_looked_at_is_known_from_other_folders_too(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips").mkdir()
    draw_plain(tmp_path / "clips" / "a.mp4", 12)
    (tmp_path / "clips.csv").write_text("path,label,splits\nclips/a.mp4,x,train\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "x").symlink_to("../clips")
    assert looked(read_dataset(Path("classes")), tmp_path / "out").num_cached == 0
    monkeypatch.chdir(tmp_path / "clips")
    assert looked(read_dataset(Path("../classes")), tmp_path / "out").num_cached == 1
    assert main(["check", "../clips.csv", "--out", "../out", "--overwrite"]) == 0
    assert "left out, beside the videos: clips.csv column 'splits' (did you mean 'split'?)" in capsys.readouterr().out
