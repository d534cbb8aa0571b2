"""Shards of a store are fetched whole into a cache that stays below its limit, for all processes of a machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from drawn_videos import draw_plain
from folder_store import ADDRESS, FolderStore
from object_store_server import Fault, S3Server, use_server
from stopped_training import same
from tada.commands.cli import main
from tada.data.annotations import read_dataset
from tada.data.shard_table import address_of
from tada.data.shards import ShardOptions, prepare_shards
from tada.data.table import VideoTable
from tada.errors import DataError, OptionError
from tada.recognition.evaluation import evaluate
from tada.recognition.recipe import Recipe
from tada.recognition.training import train
from tada.system import object_store, remote_files
from tada.video import fetched_shards
from tada.video.shards import open_bytes, read_index

GIGABYTE = 10**9


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six videos in six shards, in a folder that stands for a store; the cache holds two and a half."""
    for name in "abcdef":
        (tmp_path / "data" / "x").mkdir(parents=True, exist_ok=True)
        draw_plain(tmp_path / "data" / "x" / f"{name}.mp4", 60)
    folder = tmp_path / "store"
    prepare_shards(
        read_dataset(tmp_path / "data"),
        folder,
        ShardOptions(copies=None, shard_bytes=1),
        num_processes=1,
        show_progress=False,
    )
    monkeypatch.setattr(object_store, "ObjectStore", FolderStore)
    monkeypatch.setenv("TADA_TEST_STORE", str(folder))
    monkeypatch.setenv("TADA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TADA_CACHE_GIGABYTES", f"{2.5 * shard_bytes(folder) / GIGABYTE:.9f}")
    return folder


def shard_bytes(folder: Path) -> int:
    (size,) = {shard.size_bytes for shard in read_index(folder).values()}
    return size


def fetched(store: Path) -> list[str]:
    """The shards that were fetched, in their order: "0" to "5"."""
    lines = (store / "fetched.log").read_text().split()
    return [line.removeprefix("shard-00000").removesuffix(".tar") for line in lines if line.endswith(".tar")]


def cached(tmp_path: Path) -> list[str]:
    files = sorted((tmp_path / "cache").rglob("*.tar"))
    return [file.name.removeprefix("shard-00000").removesuffix(".tar") for file in files]


def read(table: VideoTable, number: int) -> bytes:
    with open_bytes(table.videos[number].path) as part:
        return part.read()


def remote_table() -> VideoTable:
    with pytest.warns(UserWarning, match=r"have .* GB, and the cache holds .*: training reads videos in random order"):
        return read_dataset(Path(ADDRESS))


def age(tmp_path: Path) -> None:
    """Let the cached shards be used longer ago."""
    for file in (tmp_path / "cache").rglob("*.tar"):
        os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 100))


def test_the_shard_that_was_not_used_for_the_longest_time_makes_room(store: Path, tmp_path: Path) -> None:
    table = remote_table()
    assert fetched(store) == []
    content = [(tmp_path / "data" / table.relative(video)).read_bytes() for video in table.videos]
    for number in (0, 1, 0, 2, 0, 1):
        assert read(table, number) == content[number]
        age(tmp_path)
    assert fetched(store) == ["0", "1", "2", "1"], "0 was used again, so 1 went, and then 2"
    assert cached(tmp_path) == ["0", "1"]
    local = read_dataset(store)
    assert [(v.labels, v.id, v.stamp) for v in table.videos] == [(v.labels, v.id, v.stamp) for v in local.videos]
    assert table.fingerprint() == local.fingerprint()


def test_a_cache_that_holds_all_fetches_each_once(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setenv("TADA_CACHE_GIGABYTES", "1")
    for _ in range(2):
        table = read_dataset(Path(ADDRESS))
        for number in (3, 1, 2, 5, 0, 4, 3, 1):
            read(table, number)
    assert sorted(fetched(store)) == list("012345")
    assert not recwarn.list


def test_a_shard_that_the_store_has_replaced_is_fetched_again(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TADA_CACHE_GIGABYTES", "1")
    table = read_dataset(Path(ADDRESS))
    old = read(table, 0)
    shutil.rmtree(store)
    draw_plain(tmp_path / "data" / "x" / "a.mp4", 60, gop=5)
    options = ShardOptions(copies=None, shard_bytes=1)
    prepare_shards(read_dataset(tmp_path / "data"), store, options, num_processes=1, show_progress=False)
    new = read(read_dataset(Path(ADDRESS)), 0)
    assert new == (tmp_path / "data" / "x" / "a.mp4").read_bytes() != old


def test_a_shard_that_is_not_that_of_the_index(store: Path, tmp_path: Path) -> None:
    table = remote_table()
    file = store / "shard-000002.tar"
    content = bytearray(file.read_bytes())
    content[600] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"'s3://bucket/doors/shard-000002.tar' is not the shard of the index"):
        read(table, 2)
    assert cached(tmp_path) == []
    assert not list((tmp_path / "cache").rglob(".fetch-*"))


def test_limits(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = remote_table()
    monkeypatch.setenv("TADA_CACHE_GIGABYTES", f"{0.5 * shard_bytes(store) / GIGABYTE:.9f}")
    with pytest.raises(
        DataError, match=r"a shard has .* GB, and the cache holds .*: let it hold more \(TADA_CACHE_GIG"
    ):
        read(table, 0)
    for text in ("0", "-1", "many", "nan", "inf"):
        monkeypatch.setenv("TADA_CACHE_GIGABYTES", text)
        with pytest.raises(OptionError, match=rf"TADA_CACHE_GIGABYTES='{text}' should be a number of gigabytes"):
            read(table, 0)


def test_what_is_no_fetched_shard_is_not_removed(store: Path, tmp_path: Path) -> None:
    table = remote_table()
    (tmp_path / "cache" / "mine").mkdir()
    own = [tmp_path / "cache" / "mine" / "shard-000000.tar", tmp_path / "cache" / "mine.tar"]
    (folder,) = [file.parent for file in (tmp_path / "cache").rglob("origin.json")]
    own.append(folder / "notes.tar")
    for file in own:
        file.write_bytes(bytes(shard_bytes(store)))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (folder / f".fetch-{10**9}-{dead.pid}-1").mkdir()  # of a killed process
    for number in range(6):
        read(table, number)
    assert all(map(Path.exists, own))
    assert not list(folder.glob(".fetch-*"))


def bytes_below(folder: Path) -> int:
    """Bytes of all shards, those too that are on their way, while other processes remove some."""
    total = 0
    for place, _, names in os.walk(folder):  # passes over folders that are gone
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name)).st_size if name.endswith(".tar") else 0
    return total


_READER = """
import os, random, sys
from pathlib import Path
from tada.system import object_store, remote_files
from tada.video.shards import open_bytes
from folder_store import FolderStore
object_store.ObjectStore = FolderStore
rng = random.Random(int(sys.argv[1]))
paths = sys.argv[2].split(";")
for _ in range(int(sys.argv[3])):
    path = rng.choice(paths)
    with open_bytes(path) as part:
        content = part.read()
    assert content == Path(sys.argv[4], os.path.basename(path)).read_bytes(), path
"""


def test_processes_that_read_at_the_same_time_stay_below_the_limit(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three, with room for three shards: none removes what another reads, and none waits forever."""
    limit = 3 * shard_bytes(store)
    monkeypatch.setenv("TADA_CACHE_GIGABYTES", f"{limit / GIGABYTE:.9f}")
    table = remote_table()
    paths = ";".join(video.path for video in table.videos)
    arguments = [paths, "60", str(tmp_path / "data" / "x")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _READER]
    largest = 0
    with ExitStack() as stack:
        readers = [
            stack.enter_context(subprocess.Popen([*command, str(seed), *arguments], env=environment))
            for seed in range(3)
        ]
        for reader in readers:
            stack.callback(reader.kill)
        while any(reader.poll() is None for reader in readers):
            largest = max(largest, bytes_below(tmp_path / "cache"))
            time.sleep(0.002)
    assert [reader.returncode for reader in readers] == [0, 0, 0]
    assert 0 < largest <= limit
    assert len(fetched(store)) > 6


@pytest.mark.parametrize(
    ("data", "address"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b/"),
        ("s3://bucket", "s3://bucket/"),
        ("gs://bucket/a", "gs://bucket/a/"),
        ("HTTPS://host/a", "https://host/a/"),
        ("clips", None),
        ("/data/s3:/x", None),
        ("C:/data", None),
        ("file:///data", None),
        ("s3", None),
    ],
)
def test_addresses_are_known_though_a_path_has_lost_a_slash(data: str, address: str | None) -> None:
    assert address_of(Path(data)) == address


def test_a_folder_of_the_cache_says_where_it_is_from(store: Path, tmp_path: Path) -> None:
    table = remote_table()
    file = Path(table.root) / "origin.json"
    assert json.loads(file.read_text()) == {"address": ADDRESS}
    assert Path(table.root).parent == tmp_path / "cache"
    file.write_text("{")
    fetched_shards.origin_of.cache_clear()
    with pytest.raises(DataError, match=r"origin.json' is damaged .*; remove the folder, and it is fetched again"):
        read(table, 0)


# -- a real store -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    with closing(S3Server()) as server:
        yield server


@pytest.fixture
def doors(
    s3_server: S3Server, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Server]:
    """A store with the videos of ``motion_videos`` in several shards at ``ADDRESS``."""
    use_server(s3_server, tmp_path, monkeypatch)
    monkeypatch.setattr(object_store, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(remote_files, "_file_systems", {})  # connections of the test before would not meet the faults
    folder = tmp_path / "shards"
    options = ShardOptions(copies=None, shard_bytes=8000)
    prepare_shards(read_dataset(motion_videos), folder, options, num_processes=1, show_progress=False)
    s3_server.put("bucket", {f"doors/{file.name}": file.read_bytes() for file in folder.iterdir() if file.is_file()})
    monkeypatch.setenv("TADA_CACHE_DIR", str(tmp_path / "cache"))
    yield s3_server
    s3_server.reset()


def test_a_training_from_a_store_is_that_from_files(
    doors: S3Server, small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    """Also over connections that break; and a second training fetches no shard."""

    def run(data: str | Path, out: str, num_workers: int) -> dict[str, torch.Tensor]:
        options = {"num_workers": num_workers, "show_progress": False, "say": lambda line: None}
        train(small_recipe, data, tmp_path / out, **options)
        return load_file(tmp_path / out / "model.safetensors")

    doors.proxy.faults += [Fault("cut", after_bytes=3000), Fault("refuse"), Fault("cut", after_bytes=6000)]
    straight = run(motion_videos, "files", 0)
    assert same(run(ADDRESS, "store", 2), straight)
    assert not doors.proxy.faults, "the connections did break"
    assert cached(tmp_path) == [str(i) for i in range(len(cached(tmp_path)))] != []
    for number in range(len(cached(tmp_path))):
        doors.client.delete_object(Bucket="bucket", Key=f"doors/shard-{number:06d}.tar")
    assert same(run(ADDRESS, "again", 0), straight)
    on_files, on_shards = (evaluate(tmp_path / "store", data, show_progress=False) for data in (motion_videos, ADDRESS))
    assert np.array_equal(on_files.scores, on_shards.scores)


def test_a_training_stops_for_a_shard_that_is_out_of_reach(
    doors: S3Server, small_recipe: Recipe, tmp_path: Path
) -> None:
    """It does not go on with other videos in the place of those in it."""
    doors.client.delete_object(Bucket="bucket", Key="doors/shard-000001.tar")
    for num_workers in (0, 1):
        with pytest.raises(DataError, match=r"a shard is out of reach: 's3://bucket/doors/shard-000001.tar'"):
            train(small_recipe, ADDRESS, tmp_path / f"run{num_workers}", num_workers=num_workers, say=lambda line: None)


def test_an_address_without_shards(doors: S3Server) -> None:
    doors.client.delete_object(Bucket="bucket", Key="doors/classes.json")
    for address, missing in ((ADDRESS, "classes.json"), ("s3://bucket/windows", "shards.jsonl")):
        with pytest.raises(
            DataError, match=rf"holds no whole folder of shards \({missing} is missing\): upload the one"
        ):
            read_dataset(Path(address))


def test_a_command_takes_an_address(doors: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", ADDRESS, "--out", str(tmp_path / "check"), "--num-workers", "1"]) == 0
    assert "15 videos in 15 files; 0 faults" in capsys.readouterr().out
