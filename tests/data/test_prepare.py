"""Prepared copies show the original's frames at the same times; existing files survive every failure."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from drawn_videos import draw_plain, draw_rotated, draw_variable_rate, draw_webm, read_stamps, truncate
from killed import killed_in_a_write
from tada.commands.cli import main
from tada.data import prepare as module
from tada.data.annotations import read_dataset
from tada.data.identity import content_id
from tada.data.manifest import read_manifest
from tada.data.prepare import Prepared, PrepareOptions, prepare, small_size
from tada.data.run_videos import known_videos, marks, splits_of
from tada.data.split_hashes import Splits
from tada.data.workers import Lost
from tada.errors import DataError, OptionError
from tada.video.reader import open_video
from tada.video.sampling import average_fps

SMALL = PrepareOptions(short_side=48, keyframe_interval_frames=8)


def prepared(data: Path, out: Path, options: PrepareOptions = SMALL) -> Prepared:
    return prepare(read_dataset(data), out, options, num_processes=1, show_progress=False)


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "x").mkdir()
    (folder / "y").mkdir()
    draw_plain(folder / "x" / "long.mp4", 60, width=192, height=144, gop=250, with_sound_seconds=1.0)
    draw_variable_rate(folder / "x" / "uneven.mkv", [0.0, 0.04, 0.5, 0.6, 1.7], width=96, height=72)
    draw_webm(folder / "y" / "ntsc.webm", 30, width=128, height=96)
    draw_rotated(folder / "y" / "turned.mp4", 1, 12, width=128, height=96)
    return folder


@pytest.fixture(scope="module")
def copy(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(data, tmp_path_factory.mktemp("copies") / "copy")


def test_the_copy_shows_the_same_frames_at_the_same_times(data: Path, copy: Prepared) -> None:
    before = hashes(data)
    originals, copies = read_dataset(data), read_dataset(copy.table)
    assert copies.labels == originals.labels
    assert [copies.label_names(video) for video in copies.videos] == [
        originals.label_names(v) for v in originals.videos
    ]
    assert [copies.relative(video) for video in copies.videos] == [
        f"videos/{name}.mp4" for name in ("x/long", "x/uneven", "y/ntsc", "y/turned")
    ]
    for one, other in zip(originals.videos, copies.videos, strict=True):
        with open_video(one.path) as original, open_video(other.path) as small:
            np.testing.assert_allclose(small.times_seconds, original.times_seconds, atol=1 / 90_000)
            assert average_fps(small.times_seconds) == pytest.approx(average_fps(original.times_seconds), rel=1e-6)
            assert min(small.info.width, small.info.height) == 48
            turned = original.info.height > original.info.width
            assert (small.info.height > small.info.width) == turned
            frames = small.frames(range(small.info.num_frames))
            if not turned:
                assert read_stamps(frames) == list(range(original.info.num_frames))
    assert hashes(data) == before


def test_the_copy_is_made_for_random_access(copy: Prepared) -> None:
    path = copy.out / "videos" / "x" / "long.mp4"
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # faststart
    assert b"cabac=0" in content  # as x264 notes its settings: fast to decode
    with av.open(str(path)) as container:
        assert len(container.streams) == 1  # no sound
        assert container.streams[0].codec_context.pix_fmt == "yuv420p"
        keys = [i for i, packet in enumerate(container.demux(video=0)) if packet.size and packet.is_keyframe]
    assert keys == list(range(0, 60, 8))


def test_the_manifest_names_both_files_by_their_hashes(data: Path, copy: Prepared) -> None:
    lines = [json.loads(line) for line in (copy.out / "manifest.jsonl").read_text().splitlines() if line]
    assert len(lines) == 4
    for line in lines:
        assert line["source_sha256"] == hashlib.sha256((data / line["source"]).read_bytes()).hexdigest()
        assert line["source_content"] == content_id(data / line["source"])
        assert line["sha256"] == hashlib.sha256((copy.out / "videos" / line["file"]).read_bytes()).hexdigest()
    (long,) = [line for line in lines if line["source"] == "x/long.mp4"]
    assert (long["width"], long["height"], long["num_frames"], long["fps"]) == (64, 48, 60, 30.0)


def test_only_what_is_new_or_changed_is_copied_again(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    out = tmp_path / "out"
    assert prepared(tmp_path / "data", out).num_new == 4
    before = hashes(out / "videos")
    left = out / "videos" / "x" / killed_in_a_write(out / "videos" / "x" / "long.mp4")
    assert left.exists()
    manifest = out / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-9])  # and its line in the manifest was cut off
    assert prepared(tmp_path / "data", out).num_new == 1
    assert hashes(out / "videos") == before
    assert not left.exists()
    draw_plain(tmp_path / "data" / "x" / "long.mp4", 20, width=192, height=144)
    (out / "videos" / "y" / "ntsc.mp4").unlink()
    assert prepared(tmp_path / "data", out).num_new == 2
    with open_video(out / "videos" / "x" / "long.mp4") as video:
        assert video.info.num_frames == 20
    with pytest.raises(
        OptionError,
        match=r"was begun with another short_side \(48\), crf \(23.0\): give another folder",
    ):
        prepared(tmp_path / "data", out, PrepareOptions(short_side=64, keyframe_interval_frames=8, crf=30))


def test_a_manifest_of_an_earlier_tada_learns_what_the_originals_are(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared(data, out)
    manifest = out / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines() if line]
    for line in lines:
        del line["source_content"]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert {copy.source_content for copy in read_manifest(manifest).values()} == {""}
    again = prepared(data, out)
    assert again.num_new == 0
    for copies in (again.copies, read_manifest(manifest).values()):
        assert {copy.source: copy.source_content for copy in copies} == {
            line["source"]: content_id(data / line["source"]) for line in lines
        }


def test_a_copy_of_a_copy_is_still_the_original(data: Path, copy: Prepared, tmp_path: Path) -> None:
    second = prepared(copy.table, tmp_path / "second")
    third = prepared(second.table, tmp_path / "third")
    generations = [read_dataset(folder) for folder in (data, copy.table, second.table, third.table)]
    splits = ["train", "val", "train", "val"]
    for trained in generations:
        with_splits = (replace(video, split=split) for video, split in zip(trained.videos, splits, strict=True))
        rows = known_videos(replace(trained, videos=tuple(with_splits)))
        for tested in generations:
            assert marks(tested, rows) == splits
            assert marks(tested, Splits.from_text(splits_of(rows).to_text())) == splits
    # One that an earlier tada made learns it when the same command runs again.
    manifest = tmp_path / "second" / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines() if line]
    for line in lines:
        file = line["source"].removeprefix("videos/")
        (source,) = [found.source for found in copy.copies if found.file == file]
        assert line.pop("earlier") == [content_id(data / source)]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert prepared(copy.table, tmp_path / "second").num_new == 0
    assert prepared(second.table, tmp_path / "third").num_new == 0
    assert all(len(copy.earlier) == 1 for copy in read_manifest(manifest).values())


def test_lines_that_are_no_copies_are_passed_over(copy: Prepared, tmp_path: Path) -> None:
    good = (copy.out / "manifest.jsonl").read_bytes()
    line = json.loads(good.splitlines()[1])
    bad = [
        {**line, "source": 1},
        {**line, "file": ["x"]},
        {**line, "source_size_bytes": "9"},
        {"source": "x"},
        [],
        None,
    ]
    text = b"".join(json.dumps(entry).encode() + b"\n" for entry in bad) + b"[" * 50_000 + b"\n" + good
    (tmp_path / "manifest.jsonl").write_bytes(text)
    assert read_manifest(tmp_path / "manifest.jsonl") == read_manifest(copy.out / "manifest.jsonl")


def test_a_file_that_cannot_be_read_is_told_and_the_others_are_copied(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "data")
    truncate(tmp_path / "data" / "x" / "long.mp4", 0.5)
    command = ["prepare", str(tmp_path / "data"), str(tmp_path / "out"), "--short-side", "48", "--num-workers", "1"]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "3 files, 3 new" in printed.out
    assert f"tada train {tmp_path / 'out' / 'videos.csv'}" in printed.out
    assert "tada: not copied: " in printed.err
    assert "long.mp4" in printed.err
    assert len(read_dataset(tmp_path / "out" / "videos.csv")) == 3
    assert not (tmp_path / "out" / "videos" / "x" / "long.mp4").exists()


def test_a_decoder_that_crashes_takes_one_file_with_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.in_processes

    def one_crashes(function: Any, tasks: Any, **options: Any) -> Any:
        yield tasks[0], Lost("the decoder crashed (signal SIGSEGV)")
        yield from real(function, tasks[1:], **options)

    monkeypatch.setattr(module, "in_processes", one_crashes)
    result = prepared(data, tmp_path / "out")
    assert len(result.copies) == 3
    assert [failure.source for failure in result.failures] == ["x/long.mp4"]
    monkeypatch.undo()
    assert prepared(data, tmp_path / "out").num_new == 1


def test_an_interrupted_copy_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.in_processes

    def interrupted(function: Any, tasks: Any, **options: Any) -> Any:
        for count, done in enumerate(real(function, tasks, **options)):
            if count == 2:
                raise KeyboardInterrupt
            yield done

    monkeypatch.setattr(module, "in_processes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared(data, tmp_path / "out")
    monkeypatch.undo()
    assert not [path for path in (tmp_path / "out").rglob("*.part")]
    result = prepared(data, tmp_path / "out")
    assert (len(result.copies), result.num_new) == (4, 2)


def test_a_full_disk_leaves_what_was_there(data: Path, tmp_path: Path) -> None:
    """Simulated by a limit on the size of files, as a full disk cannot be had without rights."""
    out = tmp_path / "out"
    prepared(data, out)
    before = hashes(out / "videos")
    os.utime(data / "x" / "long.mp4")  # is to be copied anew
    assert (out / "videos" / "x" / "long.mp4").stat().st_size > 5000

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    options = ["--short-side", "48", "--keyframe-interval", "8", "--num-workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "tada.commands.cli", "prepare", str(data), str(out), *options],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert "long.mp4' cannot be written: it is larger than the system lets a file be" in done.stderr
    assert "3 of 4 files are done: the same command does the others" in done.stderr
    assert done.stderr.count("\n") == 1
    assert hashes(out / "videos") == before
    assert prepared(data, out).num_new == 1


def test_lists_of_segments_and_published_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_plain(tmp_path / "a_000001_000011.avi", 40, codec="mpeg4")
    (tmp_path / "clips.csv").write_text(
        "path,start,end,label,group\na_000001_000011.avi,0,0.5,x,P\na_000001_000011.avi,0.5,1,y,P\n"
    )
    result = prepared(tmp_path / "clips.csv", tmp_path / "one")
    assert len(result.copies) == 1
    again = read_dataset(result.table)
    assert [(video.id, video.group, video.end_seconds) for video in again.videos] == [
        ("videos/a_000001_000011.mp4#t=0,0.5", "P", 0.5),
        ("videos/a_000001_000011.mp4#t=0.5,1", "P", 1.0),
    ]
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end\nx,a,1,11\n")
    command = ["prepare", str(tmp_path / "train.csv"), str(tmp_path / "two"), "--short-side", "48"]
    shutil.rmtree(tmp_path / "one")
    assert main([*command, "--num-workers", "1", "--videos", str(tmp_path)]) == 0
    assert f"tada train {tmp_path / 'train.csv'} --videos {tmp_path / 'two' / 'videos'}" in capsys.readouterr().out
    assert len(read_dataset(tmp_path / "train.csv", root=tmp_path / "two" / "videos")) == 1


def test_invalid_options_and_folders_are_refused(data: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"short_side": 47}, r"short_side=47 should be an even number of pixels, 16 or more"),
        ({"keyframe_interval_frames": 0}, r"keyframe_interval_frames=0 should be at least 1"),
        ({"crf": 52.0}, r"crf=52.0 should be from 0 to 51"),
    ):
        with pytest.raises(OptionError, match=message):
            PrepareOptions(**options)  # type: ignore[arg-type]
    shutil.copytree(data, tmp_path / "videos")
    with pytest.raises(OptionError, match=r"contains the originals; give another folder"):
        prepared(tmp_path / "videos", tmp_path)
    shutil.copy(tmp_path / "videos" / "x" / "long.mp4", tmp_path / "videos" / "x" / "long.mov")
    with pytest.raises(DataError, match=r"'x/long.mov' and 'x/long.mp4' would both become .*long.mp4'; rename one"):
        prepared(tmp_path / "videos", tmp_path / "out")
    for path in (tmp_path / "videos").rglob("*.m*"):
        path.write_text("no video")
    shutil.rmtree(tmp_path / "videos" / "y")
    (tmp_path / "videos" / "x" / "long.mov").unlink()
    with pytest.raises(DataError, match=r"none of 2 files could be copied; the first: .*is not a video"):
        prepared(tmp_path / "videos", tmp_path / "out")


def test_sizes() -> None:
    assert small_size(1280, 720, 256) == (456, 256)
    assert small_size(720, 1280, 256) == (256, 456)
    assert small_size(321, 241, 256) == (320, 240)
    assert small_size(16, 16, 256) == (16, 16)
    assert small_size(3, 999, 256) == (4, 1000)
