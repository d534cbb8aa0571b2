"""Shards are the same data set as the files they are made of: in its table, its clips, and the order of training."""

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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from webdataset.tariterators import group_by_keys, tar_file_expander

from drawn_frames import write_frames
from drawn_videos import (
    draw_plain,
    draw_rotated,
    draw_transport_stream,
    draw_variable_rate,
    draw_webm,
    flip_bits,
    stamped_frames,
    truncate,
)
from stopped_training import same, stopping_before
from tada.commands.cli import main
from tada.data.annotations import read_dataset
from tada.data.check import check_dataset
from tada.data.clips import Augmentation, Batch, ResumableBatches, ResumableLoader, TrainingClips
from tada.data.hold_out import with_splits
from tada.data.prepare import PrepareOptions, prepare
from tada.data.run_videos import known_videos, marks
from tada.data.shards import Packed, ShardOptions, prepare_shards
from tada.data.table import VideoTable
from tada.errors import DataError, OptionError, UserError, VideoError
from tada.recognition.evaluation import evaluate
from tada.recognition.recipe import Recipe
from tada.recognition.training import train
from tada.video.reader import open_video
from tada.video.sampling import ClipSpec
from tada.video.shards import member_name, open_bytes, path_without_shard, read_index
from tada.video.transforms import flip_swaps, reverse_swaps

AS_IS = ShardOptions(copies=None, shard_bytes=8000)
SMALL = PrepareOptions(short_side=32, keyframe_interval_frames=8)


def packed(data: Path, out: Path, options: ShardOptions = AS_IS) -> Packed:
    return prepare_shards(read_dataset(data), out, options, num_processes=1, show_progress=False)


def shards_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def by_webdataset(files: Sequence[Path]) -> list[dict[str, Any]]:
    """All samples, as WebDataset reads them from open files; given paths, it would leave them open."""
    with ExitStack() as stack:
        streams = [{"url": str(file), "stream": stack.enter_context(file.open("rb"))} for file in files]
        return list(group_by_keys(tar_file_expander(streams)))


@pytest.fixture(scope="module")
def shards(motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The videos of ``motion_videos`` in several shards."""
    out = tmp_path_factory.mktemp("shards") / "out"
    result = packed(motion_videos, out)
    assert (result.num_videos, result.num_new, result.failures) == (15, 15, ())
    assert result.num_shards == len(shards_in(out)) > 2
    return out


# -- the tar files ----------------------------------------------------------------------------------------------------


def test_tar_and_webdataset_read_the_shards(motion_videos: Path, shards: Path) -> None:
    table = read_dataset(motion_videos)
    content = {table.relative(video): Path(video.path).read_bytes() for video in table.videos}
    told = {table.relative(video): table.label_names(video) for video in table.videos}
    samples = by_webdataset(shards_in(shards))
    assert [f"{sample['__key__']}.mp4" for sample in samples] == list(content)
    for sample in samples:
        path = f"{sample['__key__']}.mp4"
        assert sample["mp4"] == content[path]
        about = json.loads(sample["json"])
        assert about["path"] == path
        assert [tuple(row["labels"].values()) for row in about["rows"]] == [told[path]]
    listed = [
        subprocess.run(["tar", "-tf", file], capture_output=True, text=True, check=True).stdout
        for file in shards_in(shards)
    ]
    assert [name for name in "".join(listed).split() if name.endswith(".mp4")] == list(content)


def test_the_index_says_where_each_video_is(shards: Path) -> None:
    for name, shard in read_index(shards).items():
        assert hashlib.sha256((shards / name).read_bytes()).hexdigest() == shard.sha256
        with tarfile.open(shards / name) as tar:
            found = {member.name: (member.offset_data, member.size) for member in tar if member.name.endswith(".mp4")}
            for member in shard.members.values():
                extracted = tar.extractfile(member.name)
                assert extracted is not None
                with open_bytes(shards / name / member.name) as part:
                    content = extracted.read()
                    assert part.read() == content
                    assert part.seek(-7, os.SEEK_END) == len(content) - 7
                    assert part.read(100) == content[-7:]
                assert hashlib.sha256(content).hexdigest() == member.sha256
        assert found == {member.name: (member.start_bytes, member.size_bytes) for member in shard.members.values()}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a.mp4", "a.mp4"),
        ("x.y/a.b.mp4", "x.y/a%2Eb.mp4"),
        ("50%.2E/50%.2E.avi", "50%25.2E/50%25%2E2E.avi"),
        (".a/.b.mp4", ".a/%2Eb.mp4"),
    ],
)
def test_names_have_one_dot_and_are_read_back(path: str, name: str) -> None:
    assert member_name(path) == name
    assert name.rpartition("/")[2].count(".") == 1
    assert path_without_shard(f"/o/shard-000012.tar/{name}") == f"/o/{path}"


def test_names_of_all_kinds(tmp_path: Path) -> None:
    names = [f"c/{'long' * 50}.mp4", "c/a.b.mp4", "c/a.c.mp4", "c/ü x.mp4", "d/ü x.mp4", os.fsdecode(b"d/\xff.mp4")]
    for i, name in enumerate(names):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        draw_plain(tmp_path / "video.mp4", 8 + i).rename(tmp_path / "data" / name)
    packed(tmp_path / "data", tmp_path / "out")
    files, table = read_dataset(tmp_path / "data"), read_dataset(tmp_path / "out")
    assert {table.relative(video) for video in table.videos} == set(names)
    for one, other in zip(files.videos, table.videos, strict=True):
        assert files.relative(one) == table.relative(other) == other.id
        with open_bytes(other.path) as part:
            assert part.read() == Path(one.path).read_bytes()
    keys = [sample["__key__"] for sample in by_webdataset(shards_in(tmp_path / "out"))]
    assert len(set(keys)) == len(keys) == len(names)


# -- the same data set ------------------------------------------------------------------------------------------------


def same_rows(one: VideoTable, other: VideoTable) -> bool:
    def rows(table: VideoTable) -> list[object]:
        return [
            (table.relative(v), v.id, v.labels, v.split, v.group, v.start_seconds, v.end_seconds) for v in table.videos
        ]

    return (one.heads, one.kind, rows(one)) == (other.heads, other.kind, rows(other))


@pytest.mark.parametrize(
    "rows",
    [
        "path,label\na.mp4,x\nb.mp4,y\nc.mp4,x\nd.mp4,y\n",
        "path,label,split,group\na.mp4,x,train,P\nb.mp4,y,train,Q\nc.mp4,x,val,P\nd.mp4,y,val,Q\n",
        "path,label,start,end\na.mp4,x,0,0.5\na.mp4,y,0.5,1\nb.mp4,x,0,0.3\nc.mp4,y,0,1\n",
        "path,verb,noun\na.mp4,take,cup\nb.mp4,put,cup\nc.mp4,take,pan\n",
        "path,label\na.mp4,x;y\nb.mp4,y\nc.mp4,x;z\n",
        "path,wave,walk,fly\na.mp4,1,1,0\nb.mp4,0,0,0\nc.mp4,0,1,0\n",
    ],
)
def test_the_table_is_the_same(tmp_path: Path, rows: str) -> None:
    for i, name in enumerate("abcd"):
        draw_plain(tmp_path / f"{name}.mp4", 30 + i)
    (tmp_path / "clips.csv").write_text(rows)
    files = read_dataset(tmp_path / "clips.csv")
    packed(tmp_path / "clips.csv", tmp_path / "out")
    found = read_dataset(tmp_path / "out")
    assert same_rows(files, found)
    assert files.fingerprint() == found.fingerprint()


def test_classes_without_videos_keep_their_numbers(tmp_path: Path) -> None:
    for name in ("a_000001_000011", "b_000001_000011"):
        draw_plain(tmp_path / f"{name}.mp4", 30)
    (tmp_path / "train.csv").write_text(
        "label,youtube_id,time_start,time_end\nzumba,a,1,11\narchery,b,1,11\nbowling,gone,1,11\n"
    )
    files = read_dataset(tmp_path / "train.csv")
    assert "bowling" in files.labels
    packed(tmp_path / "train.csv", tmp_path / "out")
    found = read_dataset(tmp_path / "out")
    assert found.heads == files.heads
    assert [v.labels for v in found.videos] == [v.labels for v in files.videos]


def test_the_same_videos_are_held_out(motion_videos: Path, shards: Path) -> None:
    for seed in range(5):
        files, found = (
            with_splits(read_dataset(data), val_fraction=0.2, val_groups=(), seed=seed)
            for data in (motion_videos, shards)
        )
        assert same_rows(files, found)
        assert "val" in found.splits


def test_a_run_knows_the_videos_in_shards(motion_videos: Path, shards: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    packed(motion_videos, small, ShardOptions(copies=SMALL, shard_bytes=8000))
    copies = prepare(read_dataset(motion_videos), tmp_path / "copies", SMALL, num_processes=1, show_progress=False)
    again = tmp_path / "again"
    packed(small, again)
    tables = [read_dataset(data) for data in (motion_videos, shards, copies.table, small, again)]
    for trained in tables:
        known = known_videos(with_splits(trained, val_fraction=0.2, val_groups=(), seed=0))
        for tested in tables:
            found = dict(zip((Path(v.path).stem for v in tested.videos), marks(tested, known), strict=True))
            assert found == {Path(row.path).stem: row.split for row in known}


# -- the same clips, in the same order --------------------------------------------------------------------------------

SPEC = ClipSpec(num_frames=4, sampling="segment", short_side=24, crop=20, antialias=True)


def loader(table: VideoTable, *, num_workers: int = 0, rank: int = 0, world: int = 1) -> ResumableLoader:
    augmentation = Augmentation(
        short_side_range=(20, 26),
        flip_probability=0.5,
        flip_swaps=[flip_swaps(table.labels)],
        reverse_swaps=[reverse_swaps(table.labels)],
        color_strength=0.2,
    )
    clips = TrainingClips(table, SPEC, augmentation, seed=3)
    batches = ResumableBatches(len(table), batch_size=4, last_batch="fill", seed=3, rank=rank, world=world)
    return ResumableLoader(clips, batches, num_workers=num_workers)


def taken(batches: ResumableLoader, count: int) -> list[Batch]:
    """The next batches, over as many epochs as needed."""
    found: list[Batch] = []
    while len(found) < count:
        for batch in batches:
            found.append(batch)
            if len(found) == count:
                break
    batches.close()
    return found


def digests(batches: list[Batch]) -> list[tuple[str, list[int]]]:
    return [
        (hashlib.sha256(clip.numpy().tobytes()).hexdigest(), labels.tolist())
        for batch in batches
        for clip, labels in zip(batch.clips, batch.labels, strict=True)
    ]


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_clips_and_order_are_those_of_files(motion_videos: Path, shards: Path, world: int, num_workers: int) -> None:
    """For any number of processes and workers: two epochs of four steps."""
    straight = digests(taken(loader(read_dataset(motion_videos)), 8))
    table = read_dataset(shards)
    parts = [taken(loader(table, num_workers=num_workers, rank=rank, world=world), 8) for rank in range(world)]
    steps = chain.from_iterable(zip(*parts, strict=True))
    assert digests(list(steps)) == straight
    assert len({digest for digest, _ in straight}) > 20, "clips differ"


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 1), (1, 0), (2, 2)])
def test_it_goes_on_in_the_middle_with_other_workers_and_processes(
    motion_videos: Path, shards: Path, before: int, after: int
) -> None:
    straight = digests(taken(loader(read_dataset(motion_videos)), 8))
    table = read_dataset(shards)
    for step in range(1, 8):
        first = loader(table, num_workers=before)
        found = digests(taken(first, step))
        parts = []
        for rank in range(2):
            rest = loader(table, num_workers=after, rank=rank, world=2)
            rest.load_state_dict(first.state_dict())
            parts.append(taken(rest, 8 - step))
        assert found + digests(list(chain.from_iterable(zip(*parts, strict=True)))) == straight


def test_a_training_on_files_goes_on_with_their_shards(
    small_recipe: Recipe, motion_videos: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of an epoch, and resumed with two workers: the same weights, to the bit."""

    def run(data: Path, out: Path, num_workers: int, **options: Any) -> dict[str, torch.Tensor]:
        train(small_recipe, data, out, num_workers=num_workers, show_progress=False, say=lambda line: None, **options)
        return load_file(out / "model.safetensors")

    straight = run(motion_videos, tmp_path / "straight", 0)
    with stopping_before(2, monkeypatch):
        run(motion_videos, tmp_path / "run", 0, save_every_steps=1)
    with stopping_before(5, monkeypatch):
        run(shards, tmp_path / "run", 2, resume=True, save_every_steps=1)
    assert same(run(shards, tmp_path / "run", 1, resume=True), straight)
    on_files, on_shards = (evaluate(tmp_path / "run", data, show_progress=False) for data in (motion_videos, shards))
    assert np.array_equal(on_files.scores, on_shards.scores)


# -- every kind of video ----------------------------------------------------------------------------------------------


def fragmented(path: Path) -> Path:
    return draw_plain(path, 30, container_options={"movflags": "frag_keyframe+empty_moov"})


KINDS: dict[str, Callable[[Path], object]] = {
    "a.mp4": lambda path: draw_plain(path, 40, with_sound_seconds=1.0),
    "b.mkv": lambda path: draw_variable_rate(path, [0.0, 0.04, 0.5, 0.6, 1.7]),
    "c.webm": lambda path: draw_webm(path, 20),
    "d.ts": lambda path: draw_transport_stream(path, 30),
    "e.avi": lambda path: draw_plain(path, 30, codec="mpeg4"),
    "f.mov": lambda path: draw_rotated(path, 1),
    "g.mp4": fragmented,
    "h.mp4": lambda path: truncate(draw_plain(path, 40), 0.7),
    "i.mp4": lambda path: truncate(fragmented(path), 0.7),
    "j.mkv": lambda path: truncate(draw_plain(path, 40), 0.7),
    "k.avi": lambda path: truncate(draw_plain(path, 40, codec="mpeg4"), 0.6),
    "l.mp4": lambda path: flip_bits(draw_plain(path, 40), num_flips=30),
    "m.mp4": lambda path: path.write_text("no video"),
}


def test_a_video_in_a_shard_is_read_as_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a damaged one: the error is the same. ``prepare`` would leave those out, so they are let through here."""
    (tmp_path / "x" / "c").mkdir(parents=True)
    for name, make in KINDS.items():
        make(tmp_path / "x" / "c" / name)
    from tada.data import shards as module

    look = module._look

    def let_through(path: str) -> Any:
        found = look(path)
        if isinstance(found, module._Ready):
            return found
        status = os.stat(path)
        sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        stamp = status.st_size, status.st_mtime_ns
        return module._Ready(path=path, source=path, source_stamp=stamp, name="", sha256=sha256, originals=())

    monkeypatch.setattr(module, "in_processes", lambda function, tasks, **pool: ((t, let_through(t)) for t in tasks))
    assert packed(tmp_path / "x", tmp_path / "out", replace(AS_IS, shard_bytes=10**9)).num_videos == len(KINDS)
    (shard,) = shards_in(tmp_path / "out")
    failed = set()
    for name in KINDS:
        results = []
        for path in (tmp_path / "x" / "c" / name, shard / "c" / name):
            try:
                with open_video(path) as video:
                    info = replace(video.info, path="")
                    results.append((info, video.times_seconds.tolist(), video.frames(range(info.num_frames)).tobytes()))
            except VideoError as error:
                failed.add(name)
                results.append((type(error), str(error).replace(str(path), "IT")))
        assert results[0] == results[1], name
    assert failed >= {"h.mp4", "i.mp4", "j.mkv", "k.avi", "m.mp4"}
    assert "a.mp4" not in failed


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
        (small, "as_is, short_side, keyframe_interval_frames, crf"),
        (replace(AS_IS, shard_bytes=9), "shard_bytes"),
    ):
        with pytest.raises(
            OptionError, match=rf"was begun with another {changed} \(options.json\); give another folder"
        ):
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
