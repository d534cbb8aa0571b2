"""`tada prepare --shards`: whole shards or none, kept and continued; what does not go together is told in words."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drawn_frames import write_frames
from drawn_videos import (
    draw_plain,
    stamped_frames,
    truncate,
)
from packed_shards import AS_IS, SMALL, packed, same_rows, shards_in
from tada.commands.cli import main
from tada.data.annotations import read_dataset
from tada.data.check import check_dataset
from tada.data.clips import Augmentation, TrainingClips
from tada.data.hold_out import with_splits
from tada.data.prepare import prepare
from tada.data.run_videos import known_videos, marks
from tada.data.shards import ShardOptions, prepare_shards
from tada.errors import DataError, OptionError, UserError
from tada.video.reader import open_video
from tada.video.sampling import ClipSpec
from tada.video.shards import open_bytes, path_without_shard, read_index

SPEC = ClipSpec(num_frames=4, sampling="segment", short_side=24, crop=20, antialias=True)


# -- made whole, kept, continued --------------------------------------------------------------------------------------


def assert_whole(out: Path) -> None:
    """Each tar file is whole, and is the one of the index, if it is noted there."""
    index = read_index(out)
    for file in shards_in(out):
        with tarfile.open(file) as tar:
            assert sum(1 for _ in tar) > 0
        assert file.read_bytes().endswith(bytes(1024))
        if file.name in index:
            assert hashlib.sha256(file.read_bytes()).hexdigest() == index[file.name].sha256


@pytest.mark.parametrize("options", [[], ["--as-is"]])
def test_killed_at_any_time_it_goes_on_and_no_shard_is_torn(
    motion_videos: Path, tmp_path: Path, options: list[str]
) -> None:
    out = tmp_path / "out"
    program = (
        "import sys, tada.commands.datasets as d, tada.data.shards as s\n"
        "from tada.commands.cli import main\n"
        "whole = s.ShardOptions\n"
        "s.ShardOptions = lambda **given: whole(**{**given, 'shard_bytes': 8000})\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "prepare", str(motion_videos), str(out), "--shards", *options]
    command += ["--num-workers", "1", "--short-side", "32"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    num_kills, counts, deadline = 0, set[int](), time.monotonic() + 100
    while time.monotonic() < deadline:
        before = len(read_index(out))
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            while process.poll() is None and len(read_index(out)) == before:  # until it has made a shard
                time.sleep(0.001)
            is_killed = process.poll() is None
            process.kill()
            _, told = process.communicate()
        if not is_killed:
            assert process.returncode == 0, told
            break
        num_kills += 1
        counts.add(len(read_index(out)))
        assert_whole(out)
    assert num_kills >= 2
    assert len(counts) >= 2
    assert_whole(out)
    assert not list(out.glob(".*.part"))
    assert not (out / "unpacked").exists()
    sources = [member.source for shard in read_index(out).values() for member in shard.members.values()]
    assert len(sources) == len(set(sources)) == 15, "each video once"
    assert same_rows(read_dataset(motion_videos), replace(read_dataset(out), heads=read_dataset(motion_videos).heads))


def test_a_second_call_packs_nothing_and_new_videos_only_themselves(motion_videos: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(motion_videos, data)
    first = packed(data, out)
    before = {file.name: file.read_bytes() for file in shards_in(out)}
    assert packed(data, out).num_new == 0
    draw_plain(data / "left" / "new.mp4", 9)
    changed = next((data / "right").iterdir())
    draw_plain(changed, 11)
    (gone := next((data / "up").iterdir())).unlink()
    second = packed(data, out)
    assert (second.num_videos, second.num_new) == (15, 2)
    assert {file.name: file.read_bytes() for file in shards_in(out)}.items() > before.items()
    assert len(shards_in(out)) == first.num_shards + 1
    table = read_dataset(out)
    assert same_rows(read_dataset(data), table)
    assert gone.name not in {Path(video.path).name for video in table.videos}
    (video,) = [video for video in table.videos if table.relative(video) == f"right/{changed.name}"]
    with open_bytes(video.path) as part:
        assert part.read() == changed.read_bytes()


def test_a_lost_or_truncated_shard_is_told_of_and_made_again(motion_videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    packed(motion_videos, out)
    first, second, third = shards_in(out)[:3]
    table = read_dataset(out)

    def path_in(shard: Path) -> str:
        return next(video.path for video in table.videos if shard.name in video.path)

    content = bytearray(third.read_bytes())
    member = next(iter(read_index(out)[third.name].members.values()))
    content[member.start_bytes + member.size_bytes // 2] ^= 1
    third.write_bytes(content)
    report = check_dataset(table, tmp_path / "check", num_processes=1, show_progress=False)
    assert [(fault.kind, path_without_shard(fault.path)) for fault in report.faults] == [
        ("changed", str(out / member.source))
    ]
    first.unlink()
    os.truncate(second, second.stat().st_size - 512)
    for act in (lambda: read_dataset(out), lambda: open_video(path_in(first))):
        with pytest.raises(
            DataError, match=rf"{first.name}' is not there .*shards.jsonl lists it; copy it again, or make"
        ):
            act()
    with pytest.raises(
        DataError, match=rf"{second.name}' has \d+ bytes, and \d+ by shards.jsonl: it was cut off or rep"
    ):
        open_video(path_in(second))
    clips = TrainingClips(
        table, SPEC, Augmentation(short_side_range=(20, 26), flip_swaps=[{}], reverse_swaps=[{}]), seed=0
    )
    with pytest.raises(DataError, match=r"is not there|has \d+ bytes"):  # a training stops: it would draw other clips
        [clips[0, i] for i in range(15)]
    kept = shards_in(out)[2:]
    before = [file.read_bytes() for file in kept]
    result = packed(motion_videos, out)
    assert result.num_new > 0
    assert [file.read_bytes() for file in kept] == before
    with pytest.raises(
        DataError, match=rf"{third.name}' is not the shard that shards.jsonl lists: its bytes are others"
    ):
        read_dataset(out)
    assert result.unused == (second.name,)  # it was cut off, and its videos are in a new shard
    third.unlink()
    packed(motion_videos, out)
    assert same_rows(read_dataset(motion_videos), read_dataset(out))


def test_a_line_of_the_index_that_was_cut_off_costs_its_shard_only(motion_videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    packed(motion_videos, out)
    index = out / "shards.jsonl"
    last = max(read_index(out))
    index.write_bytes(index.read_bytes()[:-30])
    in_last = 15 - sum(len(shard.members) for shard in read_index(out).values())
    assert packed(motion_videos, out).num_new == in_last > 0
    assert max(read_index(out)) == last
    assert same_rows(read_dataset(motion_videos), read_dataset(out))
    lines = [json.loads(line) for line in index.read_bytes().splitlines() if line.endswith(b"}")]
    for fault in ({"file": 1}, {"members": [1]}, {"size_bytes": "x"}, {"file": "../x.tar"}, {"more": 1}):
        index.write_bytes(b"[" * 9000 + b"\n" + json.dumps({**lines[0], **fault}).encode() + b"\n")
        assert read_index(out) == {}


def test_changed_labels_are_read_and_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        draw_plain(tmp_path / f"{name}.mp4", 12)
    command = [
        "prepare",
        str(tmp_path / "clips.csv"),
        str(tmp_path / "out"),
        "--shards",
        "--as-is",
        "--num-workers",
        "1",
    ]
    (tmp_path / "clips.csv").write_text("path,label\na.mp4,x\nb.mp4,y\n")
    assert main(command) == 0
    assert f"tada train {tmp_path / 'out'}\n" in capsys.readouterr().out
    (tmp_path / "clips.csv").write_text("path,label\na.mp4,x\nb.mp4,z\n")
    assert main(command) == 0
    assert "1 file with other labels or splits than when packed: training reads the new ones" in capsys.readouterr().out
    assert read_dataset(tmp_path / "out").labels == ("x", "z")


# -- bad input --------------------------------------------------------------------------------------------------------


def test_videos_that_cannot_be_read_are_told_of(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(motion_videos, data)
    bad = next((data / "left").iterdir())
    truncate(bad, 0.5)
    for options in ([], ["--as-is"]):
        command = [
            "prepare",
            str(data),
            str(tmp_path / f"out{len(options)}"),
            "--shards",
            "--num-workers",
            "1",
            *options,
        ]
        for num_new in (14, 0):
            assert main(command) == 1
            printed = capsys.readouterr()
            assert f"14 files, {num_new} new, in 1 shard" in printed.out
            assert "tada: not copied: " in printed.err
            assert bad.name in printed.err
        assert len(read_dataset(tmp_path / f"out{len(options)}")) == 14
    for file in data.rglob("*.mp4"):
        file.write_text("no video")
    for options in ([], ["--as-is"]):
        command = [
            "prepare",
            str(data),
            str(tmp_path / f"no{len(options)}"),
            "--shards",
            "--num-workers",
            "1",
            *options,
        ]
        assert main(command) == 2
        assert "none of 15 files could be copied; the first: " in capsys.readouterr().err
        with pytest.raises(DataError):
            read_dataset(tmp_path / f"no{len(options)}")


def test_a_full_disk_leaves_whole_shards(motion_videos: Path, tmp_path: Path) -> None:
    """Simulated by a limit on the size of files, as a full disk cannot be had without rights."""
    out = tmp_path / "out"
    packed(motion_videos, out, replace(AS_IS, shard_bytes=512_000_000))
    (out / "shards.jsonl").unlink()
    for shard in shards_in(out):
        shard.unlink()
    command = [
        sys.executable,
        "-m",
        "tada.commands.cli",
        "prepare",
        str(motion_videos),
        str(out),
        "--shards",
        "--as-is",
    ]
    done = subprocess.run(
        [*command, "--num-workers", "1"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1
    assert "shard-000000.tar' cannot be written: it is larger than the system lets a file be" in done.stderr
    assert done.stderr.count("\n") == 1
    assert shards_in(out) == []
    assert not list(out.glob(".*.part"))
    assert packed(motion_videos, out, replace(AS_IS, shard_bytes=512_000_000)).num_new == 15


def test_folders_and_options_that_do_not_go_together(motion_videos: Path, shards: Path, tmp_path: Path) -> None:
    small = ShardOptions(copies=SMALL, shard_bytes=8000)
    for options, changed in (
        (small, r"as_is \(True\), short_side \(None\), keyframe_interval_frames \(None\), crf \(None\)"),
        (replace(AS_IS, shard_bytes=9), r"shard_bytes \(8000\)"),
    ):
        with pytest.raises(OptionError, match=rf"was begun with another {changed}: give another folder, or these"):
            packed(motion_videos, shards, options)
    copies = tmp_path / "copies"
    table = read_dataset(motion_videos)
    prepare(table, copies, SMALL, num_processes=1, show_progress=False)
    with pytest.raises(OptionError, match=r"holds a copy that was made without --shards: give another folder"):
        packed(motion_videos, copies)
    with pytest.raises(OptionError, match=r"holds shards \(shards.jsonl\): give --shards, or another folder"):
        prepare(table, shards, SMALL, num_processes=1, show_progress=False)
    draw_plain(tmp_path / "other" / "x" / "o.mp4", 9) if (tmp_path / "other" / "x").mkdir(
        parents=True
    ) is None else None
    with pytest.raises(
        OptionError, match=r"holds shards of other videos, such as 'left/.*mp4': give another folder for"
    ):
        packed(tmp_path / "other", shards)
    with pytest.raises(OptionError, match=r"contains originals, those in '.*/other/x'; give another folder"):
        packed(tmp_path / "other", tmp_path / "other")
    with pytest.raises(OptionError, match=r"contains originals, those in '.*shard-000000.tar/left'"):
        packed(shards, shards)
    with pytest.raises(OptionError, match=r"root '/x' goes with a CSV file; '.*' holds shards"):
        read_dataset(shards, root=Path("/x"))
    draw_plain(tmp_path / "other" / "x" / "o.mkv", 9)
    with pytest.raises(DataError, match=r"'x/o.mkv' and 'x/o.mp4' would both become 'x/o' in a shard; rename one"):
        packed(tmp_path / "other", tmp_path / "out")
    with pytest.raises(OptionError, match=r"shard_bytes=0 should be at least 1"):
        ShardOptions(copies=None, shard_bytes=0)


def test_as_is_goes_with_shards_only(motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(motion_videos), str(tmp_path / "out"), "--as-is"]) != 0
    assert "--as-is packs files as they are into shards: give --shards too" in capsys.readouterr().err


def test_folders_of_frames_become_videos(tmp_path: Path) -> None:
    for name in ("x/a", "y/b"):
        write_frames(tmp_path / "data" / name, stamped_frames(12))
    table = read_dataset(tmp_path / "data", fps=12.0)
    with pytest.raises(OptionError, match=r"is a folder of frames, and shards hold files: leave out --as-is"):
        prepare_shards(table, tmp_path / "out", AS_IS, num_processes=1, show_progress=False)
    options = ShardOptions(copies=SMALL)
    prepare_shards(table, tmp_path / "out", options, num_processes=1, show_progress=False)
    found = read_dataset(tmp_path / "out")
    assert [found.relative(video) for video in found.videos] == ["x/a.mp4", "y/b.mp4"]
    with open_video(found.videos[0].path) as video:
        assert (len(video), video.info.fps) == (12, 12.0)


def test_a_file_that_changes_while_it_is_packed(
    motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tada.data import shards as module

    data = tmp_path / "data"
    shutil.copytree(motion_videos, data)
    victim = sorted(data.rglob("*.mp4"))[3]
    write = module._write_shard

    def changing(file: Path, group: Any, about: Any) -> Any:
        if any(ready.path == str(victim) for ready in group):
            draw_plain(victim, 33)
        return write(file, group, about)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_write_shard", changing)
        with pytest.raises(DataError, match=rf"{victim.name}' has changed while it was packed; when nothing writes it"):
            packed(data, tmp_path / "out")
    assert_whole(tmp_path / "out")
    assert packed(data, tmp_path / "out").num_videos == 15


def test_labels_that_were_changed_in_the_shards_are_not_written_over(motion_videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    packed(motion_videos, out)
    videos = out / "videos.csv"
    before = videos.read_text()
    packed(motion_videos, out)
    videos.write_text(before.replace(",left,", ",right,"))
    with pytest.raises(OptionError, match=r"videos.csv' was changed by hand, and would be written anew: bring"):
        packed(motion_videos, out)
    assert videos.read_text() != before
    videos.write_text(before.replace(",left,", ",leftward,"))
    with pytest.raises(DataError, match=r"videos.csv' has other classes than classes.json: correct labels in the list"):
        read_dataset(out)
    videos.unlink()
    packed(motion_videos, out)
    assert videos.read_text() == before


def replace_all_but_the_table(part: Path, file: Path) -> None:
    if file.name == "videos.csv":
        raise KeyboardInterrupt
    os.replace(part, file)


def test_killed_between_classes_and_table_it_goes_on(
    motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    packed(motion_videos, out)
    table = replace(read_dataset(motion_videos), videos=read_dataset(motion_videos).videos[1:])
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace_all_but_the_table)
        with pytest.raises(KeyboardInterrupt):
            prepare_shards(table, out, AS_IS, num_processes=1, show_progress=False)
    packed(motion_videos, out)
    assert same_rows(read_dataset(motion_videos), read_dataset(out))


def test_unfinished_and_damaged_folders(shards: Path, tmp_path: Path) -> None:
    for name, content, message in (
        ("classes.json", None, r"holds shards that are not whole yet \(classes.json is missing\): give the `tada prep"),
        ("videos.csv", None, r"has no videos.csv: give the `tada prepare` command again"),
        ("classes.json", "{}", r"classes.json' is damaged \(entry 'kind' is missing\)"),
        (
            "videos.csv",
            "path,label\nshard-000000.tar/left/gone.mp4,left\n",
            r"videos are not in .*: 'shard-000000.tar/left/gone",
        ),
    ):
        out = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(shards, out)
        (out / name).unlink()
        if content is not None:
            (out / name).write_text(content)
        with pytest.raises(UserError, match=message):
            read_dataset(out)


def test_shards_that_were_moved_are_the_same(shards: Path, tmp_path: Path) -> None:
    table = read_dataset(shards)
    shutil.copytree(shards, tmp_path / "moved")
    moved = read_dataset(tmp_path / "moved")
    assert same_rows(table, moved)
    known = known_videos(with_splits(table, val_fraction=0.2, val_groups=(), seed=0))
    assert marks(moved, known) == [row.split for row in known]
