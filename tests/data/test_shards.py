"""Shards are the same data set as the files they are made of: in its table, its clips, and the order of training."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
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

from drawn_videos import (
    draw_plain,
    draw_rotated,
    draw_transport_stream,
    draw_variable_rate,
    draw_webm,
    flip_bits,
    truncate,
)
from packed_shards import AS_IS, SMALL, packed, same_rows, shards_in
from stopped_training import same, stopping_before
from tada.data.annotations import read_dataset
from tada.data.clips import Augmentation, Batch, ResumableBatches, ResumableLoader, TrainingClips
from tada.data.hold_out import with_splits
from tada.data.prepare import prepare
from tada.data.run_videos import known_videos, marks
from tada.data.shards import ShardOptions
from tada.data.table import VideoTable
from tada.errors import VideoError
from tada.recognition.evaluation import evaluate
from tada.recognition.recipe import Recipe
from tada.recognition.training import train
from tada.video.reader import open_video
from tada.video.sampling import ClipSpec
from tada.video.shards import member_name, open_bytes, path_without_shard, read_index
from tada.video.transforms import flip_swaps, reverse_swaps


def by_webdataset(files: Sequence[Path]) -> list[dict[str, Any]]:
    """All samples, as WebDataset reads them from open files; given paths, it would leave them open."""
    with ExitStack() as stack:
        streams = [{"url": str(file), "stream": stack.enter_context(file.open("rb"))} for file in files]
        return list(group_by_keys(tar_file_expander(streams)))


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
