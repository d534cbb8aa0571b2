"""Shards of a store are fetched whole into a cache that stays below its limit, for all processes of a machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from drawn_videos import draw_plain
from tada.data.annotations import read_dataset
from tada.data.shard_table import address_of
from tada.data.shards import ShardOptions, prepare_shards
from tada.data.table import VideoTable
from tada.errors import DataError, OptionError
from tada.system import object_store
from tada.video import fetched_shards
from tada.video.shards import open_bytes, read_index

ADDRESS = "s3://bucket/doors/"
GIGABYTE = 10**9


@dataclass(frozen=True, kw_only=True)
class FolderStore:
    """Stands for an object store: the addresses below ``ADDRESS`` are files of a folder."""

    allowed: tuple[str, ...]
    max_file_bytes: int = 4 * 2**30

    def check_access(self, addresses: list[str]) -> None:
        assert all(address.startswith(self.allowed) for address in addresses)

    def fetch(self, address: str, folder: Path) -> Path:
        source = Path(os.environ["TADA_TEST_STORE"], address.removeprefix(ADDRESS))
        assert address.startswith(self.allowed)
        assert source.stat().st_size <= self.max_file_bytes
        with Path(os.environ["TADA_TEST_STORE"], "fetched.log").open("a") as log:
            log.write(f"{source.name}\n")
        return Path(shutil.copy(source, folder / f"fetched-{os.getpid()}-{source.name}"))


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
from tada.system import object_store
from tada.video.shards import open_bytes
sys.path.insert(0, sys.argv[1])
from test_fetched_shards import FolderStore
object_store.ObjectStore = FolderStore
rng = random.Random(int(sys.argv[2]))
paths = sys.argv[3].split(";")
print("ready", flush=True)
for _ in range(int(sys.argv[4])):
    path = rng.choice(paths)
    with open_bytes(path) as part:
        content = part.read()
    assert content == Path(sys.argv[5], os.path.basename(path)).read_bytes(), path
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
    command = [sys.executable, "-c", _READER, str(Path(__file__).parent)]
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
