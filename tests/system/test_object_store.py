"""Fetching from a real S3 server (moto's) through a network with faults, and from a small web server."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec.config
import pytest

from object_store_server import (
    SECRET,
    Fault,
    FaultyProxy,
    S3Server,
    clean_environment,
    fetch_in_process,
    use_server,
)
from small_disk import files_of_at_most
from tada.errors import (
    DataError,
    OptionError,
    OutputError,
    RedirectRefusedError,
    StoreAccessError,
    TooLargeError,
    UnreachableError,
    VideoError,
    VideoNotFoundError,
)
from tada.system import object_store, remote_files
from tada.system.object_store import ObjectStore, RemoteFile

VIDEO = bytes(range(256)) * 1200
"""What the tests fetch: the store does not mind that it is no video."""


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    with closing(S3Server()) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, empty, and an environment in which it is found."""
    use_server(s3_server, tmp_path, monkeypatch)
    yield s3_server
    s3_server.reset()


@pytest.fixture(autouse=True)
def _short_pauses_and_new_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(remote_files, "_file_systems", {})  # connections of the test before would not meet the faults


def store_for(prefix: str = "s3://videos/", **options: float) -> ObjectStore:
    return ObjectStore(allowed=(prefix,), **{"timeout_seconds": 5.0, "attempts": 3, **options})


# -- s3 ---------------------------------------------------------------------------------------------------------------


def test_fetches_whole_files(s3: S3Server, tmp_path: Path) -> None:
    s3.put("videos", {"cats/a b#?%41.mp4": VIDEO, "empty.MKV": b"", "é": b"x"})
    store = pickle.loads(pickle.dumps(store_for()))
    file = store.fetch("s3://videos/cats/a b#?%41.mp4", tmp_path)
    assert file.read_bytes() == VIDEO
    assert (file.parent, file.suffix) == (tmp_path, ".mp4")
    assert store.fetch("s3://videos/empty.MKV", tmp_path).read_bytes() == b""
    assert store.fetch("s3://videos/é", tmp_path).read_bytes() == b"x"
    s3.put("videos", {"cats/a b#?%41.mp4": b"shorter"})
    assert store.fetch("s3://videos/cats/a b#?%41.mp4", tmp_path) == file
    assert file.read_bytes() == b"shorter"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("block_bytes", [7, 1000, 1024, 1025])
def test_blocks_make_the_file(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(remote_files, "_BLOCK_BYTES", block_bytes)
    s3.put("videos", {"a.mp4": VIDEO[: 10 * block_bytes if block_bytes < 10 else 1024]})
    assert store_for().fetch("s3://videos/a.mp4", tmp_path).read_bytes() == VIDEO[: 70 if block_bytes < 10 else 1024]


def test_a_cut_connection_goes_on_where_it_was(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "_BLOCK_BYTES", 50_000)
    s3.put("videos", {"a.mp4": VIDEO})
    s3.proxy.faults += [Fault("refuse"), Fault("cut", after_bytes=20_000)]
    sent_before = s3.proxy.bytes_sent
    assert store_for().fetch("s3://videos/a.mp4", tmp_path).read_bytes() == VIDEO
    assert s3.proxy.faults == []
    # The answers' heads and the block that was cut come on top; the blocks before it are not sent again.
    assert len(VIDEO) < s3.proxy.bytes_sent - sent_before < len(VIDEO) + 50_000


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ([Fault("cut", after_bytes=20_000)] * 3, r"the connection failed \(\w+\)|bytes came instead of"),
        ([Fault("refuse")] * 6, r"the connection failed \(\w+\)"),
        ([Fault("slow", after_bytes=20_000, bytes_per_second=5)] * 3, "no answer came in time"),
    ],
)
def test_a_server_that_stays_broken(s3: S3Server, tmp_path: Path, faults: list[Fault], reason: str) -> None:
    s3.put("videos", {"a.mp4": VIDEO})
    s3.proxy.faults += faults
    store = store_for(timeout_seconds=0.5, slowest_bytes_per_second=2_000_000)
    with pytest.raises(
        UnreachableError, match=rf"'s3://videos/a\.mp4' cannot be fetched: ({reason}).*3 attempts"
    ) as raised:
        store.fetch("s3://videos/a.mp4", tmp_path)
    assert (raised.value.reason, raised.value.path) == ("unreachable", "s3://videos/a.mp4")
    assert list(tmp_path.iterdir()) == []
    assert s3.proxy.faults == []  # three attempts; where no answer began, aiohttp has asked twice in each
    assert store.fetch("s3://videos/a.mp4", tmp_path).read_bytes() == VIDEO


def test_a_slow_answer_is_left_and_asked_for_again(s3: S3Server, tmp_path: Path) -> None:
    s3.put("videos", {"a.mp4": VIDEO})
    s3.proxy.faults += [Fault("slow", after_bytes=20_000, bytes_per_second=1)]  # less than a byte in half a second
    assert store_for(timeout_seconds=0.5).fetch("s3://videos/a.mp4", tmp_path).read_bytes() == VIDEO


def test_no_server(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{_closed_port()}")
    with pytest.raises(UnreachableError, match="the connection failed"):
        store_for().fetch("s3://videos/a.mp4", tmp_path)
    with pytest.raises(StoreAccessError, match=r"cannot be fetched: .* \(the server's address and the network\?\)"):
        store_for().check_access(["s3://videos/a.mp4"])


@pytest.mark.parametrize("other", [VIDEO[::-1], VIDEO[:0:-1], VIDEO[::-1] + b"longer", VIDEO[:60_000], b""])
@pytest.mark.parametrize(("block_bytes", "after_calls"), [(50_000, 1), (50_000, 3), (50_000, 7), (400_000, 1)])
def test_an_object_that_is_replaced_meanwhile_is_never_mixed(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, after_calls: int, other: bytes
) -> None:
    """The first call asks for the size, each of the next for a block."""
    monkeypatch.setattr(remote_files, "_BLOCK_BYTES", block_bytes)
    s3.put("videos", {"a.mp4": VIDEO})
    call, calls = remote_files.call, iter(range(1000))

    def call_and_replace(*args: object, **options: object) -> object:
        if next(calls) == after_calls:
            s3.put("videos", {"a.mp4": other})
        return call(*args, **options)

    monkeypatch.setattr(remote_files, "call", call_and_replace)
    assert store_for().fetch("s3://videos/a.mp4", tmp_path).read_bytes() == other


def test_an_object_that_is_replaced_again_and_again(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "_BLOCK_BYTES", 200_000)
    s3.put("videos", {"a.mp4": VIDEO})
    monkeypatch.setattr(remote_files, "_describe", lambda *_: (len(VIDEO), os.urandom(8).hex()))
    with pytest.raises(UnreachableError, match="it was replaced while it was fetched"):
        store_for().fetch("s3://videos/a.mp4", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_objects(s3: S3Server, tmp_path: Path) -> None:
    s3.put("videos", {"cats/a.mp4": VIDEO})
    with pytest.raises(VideoNotFoundError, match=r"'s3://videos/b\.mp4' does not exist in the store") as raised:
        store_for().fetch("s3://videos/b.mp4", tmp_path)
    assert raised.value.path == "s3://videos/b.mp4"
    for folder in ("s3://videos/cats", "s3://videos/cats/", "s3://videos/"):
        with pytest.raises(VideoNotFoundError, match=f"{folder}' (is a folder|does not exist)"):
            store_for().fetch(folder, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_archived_object_is_the_fault_of_this_object(s3: S3Server, tmp_path: Path) -> None:
    s3.put("videos", {"a.mp4": VIDEO}, StorageClass="GLACIER")
    with pytest.raises(VideoNotFoundError, match=r"'s3://videos/a\.mp4' is archived: restore it in the store first"):
        store_for().fetch("s3://videos/a.mp4", tmp_path)


def test_too_large_files_are_not_fetched(s3: S3Server, tmp_path: Path) -> None:
    s3.put("videos", {"a.mp4": VIDEO})
    sent_before = s3.proxy.bytes_sent
    with pytest.raises(TooLargeError, match=r"'s3://videos/a\.mp4' has 307200 bytes or more, and 307199 are allowed"):
        store_for(max_file_bytes=307_199).fetch("s3://videos/a.mp4", tmp_path)
    assert s3.proxy.bytes_sent - sent_before < 2_000
    assert store_for(max_file_bytes=307_200).fetch("s3://videos/a.mp4", tmp_path).read_bytes() == VIDEO


def test_addresses_that_are_not_allowed_are_not_asked_for(s3: S3Server, tmp_path: Path) -> None:
    s3.put("videos-2", {"a.mp4": VIDEO})
    sent_before = s3.proxy.bytes_sent
    store, address = store_for("s3://videos"), "s3://videos-2/a.mp4"
    for function in (lambda: store.fetch(address, tmp_path), lambda: store.files_below(address, {".mp4"})):
        with pytest.raises(OptionError, match="is not below an allowed address"):
            function()
    with pytest.raises(OptionError, match="is not below an allowed address"):
        store.check_access(["s3://videos/a.mp4", address])
    assert s3.proxy.bytes_sent == sent_before


# -- disk -------------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_no_fault_of_the_video(s3: S3Server, tmp_path: Path) -> None:
    s3.put("videos", {"a.mp4": VIDEO})
    with (
        files_of_at_most(100_000),
        pytest.raises(OutputError, match=f"'{tmp_path}/a-.*cannot be written: it is larger"),
    ):
        store_for().fetch("s3://videos/a.mp4", tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match=f"'{tmp_path}/none/a-.*cannot be written"):
        store_for().fetch("s3://videos/a.mp4", tmp_path / "none")
    assert store_for().fetch("s3://videos/a.mp4", tmp_path).read_bytes() == VIDEO


# -- listing ----------------------------------------------------------------------------------------------------------


def test_lists_the_files_below_a_folder(s3: S3Server) -> None:
    names = ["cats/b.mp4", "cats/a.MP4", "cats/deep/er/c.webm", "cats/list.csv", "cats/folder.mp4/", "cats-2/d.mp4"]
    s3.put("videos", {name: name.encode() for name in names if not name.endswith("/")} | {"cats/folder.mp4/": b""})
    for folder in ("s3://videos/cats", "s3://videos/cats/"):
        found = store_for().files_below(folder, {".mp4", ".webm"})
        assert [file.address for file in found] == [
            "s3://videos/cats/a.MP4",
            "s3://videos/cats/b.mp4",
            "s3://videos/cats/deep/er/c.webm",
        ]
        assert [file.size_bytes for file in found] == [10, 10, 19]
    assert len(store_for().files_below("s3://videos/", [".mp4"])) == 3
    assert [file.address for file in store_for().files_below("s3://videos/cats/b.mp4", [".mp4"])] == [
        "s3://videos/cats/b.mp4"
    ]


def test_a_version_changes_with_the_content(s3: S3Server) -> None:
    def listed() -> list[RemoteFile]:
        return store_for().files_below("s3://videos", {".mp4"})

    s3.put("videos", {"a.mp4": b"one", "b.mp4": b"two"})
    first = listed()
    s3.put("videos", {"a.mp4": b"one", "b.mp4": b"TWO"})
    second = listed()
    assert first[0] == second[0]
    assert first[1].version != second[1].version
    assert first[1].version


def test_lists_more_than_a_page(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")  # S3 has 1,000 on a page
    s3.put("videos", {f"{number:02}.mp4": b"x" for number in range(25)})
    found = store_for().files_below("s3://videos/", {".mp4"})
    assert [file.address for file in found] == [f"s3://videos/{number:02}.mp4" for number in range(25)]


def test_objects_whose_names_are_no_addresses_are_left_out_with_a_notice(s3: S3Server) -> None:
    s3.put("videos", {"dogs/a.mp4": VIDEO, "dogs/up/../b.mp4": VIDEO, "dogs/c\\d.mp4": VIDEO})
    said: list[str] = []
    (found,) = store_for().files_below("s3://videos/dogs", {".mp4"}, said.append)
    assert found.address == "s3://videos/dogs/a.mp4"
    assert len(said) == 1
    assert said[0].startswith("2 objects below 's3://videos/dogs' left out: 's3://videos/dogs/")


def test_folders_that_cannot_be_listed(s3: S3Server) -> None:
    s3.put("videos", {"cats/a.txt": b"x", "dogs/up/../a.mp4": b"x"})
    with pytest.raises(
        DataError, match=r"no video is below 's3://videos/cats', only 1 other object; videos end in \.mp4"
    ):
        store_for().files_below("s3://videos/cats", {".mp4"})
    with pytest.raises(DataError, match="no video is below 's3://videos/none', and no other object; videos end in"):
        store_for().files_below("s3://videos/none", {".mp4"})
    with pytest.raises(DataError, match="no video is below 's3://videos/dogs', only 1 other object"):
        store_for().files_below("s3://videos/dogs", {".mp4"}, [].append)
    with pytest.raises(StoreAccessError, match="'s3://elsewhere/' cannot be read: there is no such bucket"):
        store_for("s3://elsewhere").files_below("s3://elsewhere/", {".mp4"})
    with pytest.raises(OptionError, match="web servers have no listing; list the addresses in a CSV"):
        store_for("https://host.org/").files_below("https://host.org/videos/", {".mp4"})
    s3.proxy.faults += [Fault("refuse")] * 6
    with pytest.raises(UnreachableError, match="the connection failed"):
        store_for().files_below("s3://videos/cats", {".txt"})


# -- access -----------------------------------------------------------------------------------------------------------


def test_access_is_fine(s3: S3Server) -> None:
    s3.put("videos", {"cats/a.mp4": VIDEO})
    store_for().check_access(["s3://videos/cats/a.mp4", "s3://videos/not-there.mp4"])
    store_for().check_access(["s3://videos/not-there.mp4"])
    store_for().check_access(["s3://videos/cats/"])
    store_for().check_access(["s3://videos/"])
    store_for().check_access([])
    s3.proxy.faults += [Fault("refuse")] * 2
    store_for().check_access(["s3://videos/cats/a.mp4"])


def test_access_is_tried_once_for_each_prefix(s3: S3Server) -> None:
    s3.put("videos", {"a.mp4": VIDEO})
    store = ObjectStore(allowed=("s3://videos", "s3://none"))
    with pytest.raises(StoreAccessError, match=r"'s3://none/a\.mp4' cannot be read: there is no such bucket"):
        store.check_access(["s3://videos/a.mp4", "s3://none/a.mp4"])
    sent_before = s3.proxy.bytes_sent
    store.check_access(["s3://videos/a.mp4"])
    once = s3.proxy.bytes_sent - sent_before
    store.check_access(["s3://videos/a.mp4"] * 100)
    assert abs(s3.proxy.bytes_sent - sent_before - 2 * once) < 100


@pytest.fixture
def refusing(s3: S3Server) -> Iterator[S3Server]:
    """The server, with a bucket, refusing all credentials."""
    s3.put("videos", {"cats/a.mp4": VIDEO})
    s3.check_credentials(after_requests=0)
    yield s3
    s3.check_credentials(after_requests=float("inf"))


def each_way(store: ObjectStore, folder: Path) -> list[Callable[[], object]]:
    return [
        lambda: store.check_access(["s3://videos/cats/a.mp4"]),
        lambda: store.fetch("s3://videos/cats/a.mp4", folder),
        lambda: store.files_below("s3://videos/cats", {".mp4"}),
    ]


def assert_no_secret(error: BaseException) -> None:
    assert SECRET not in str(error)
    assert "\n" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_credentials_that_are_refused(refusing: S3Server, tmp_path: Path) -> None:
    for function in each_way(store_for(), tmp_path):
        with pytest.raises(StoreAccessError, match=r"'s3://videos/cats.*' cannot be read: access is refused") as raised:
            function()
        assert not isinstance(raised.value, VideoError)
        assert_no_secret(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_credentials_that_are_missing(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put("videos", {"cats/a.mp4": VIDEO}, ACL="public-read")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for fault in (r"no credentials can be had \(PartialCredentialsError\)", "credentials are missing"):
        for function in each_way(store_for(), tmp_path):
            with pytest.raises(StoreAccessError, match=rf"cannot be read: {fault}.*AWS_ACCESS_KEY_ID") as raised:
                function()
            assert_no_secret(raised.value)
        monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setattr(fsspec.config, "conf", {})
    fsspec.config.set_conf_env(fsspec.config.conf, {"FSSPEC_S3_ANON": "true"})  # the way out for a public bucket
    assert store_for().fetch("s3://videos/cats/a.mp4", tmp_path).read_bytes() == VIDEO


def test_a_profile_that_is_missing_and_then_written(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("videos", {"a.mp4": VIDEO})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "work")
    with pytest.raises(StoreAccessError, match=r"no credentials can be had \(ProfileNotFound\)"):
        store_for().fetch("s3://videos/a.mp4", tmp_path)
    credentials = tmp_path / "no-aws-credentials"
    credentials.write_text("[work]\naws_access_key_id = test\n")
    with pytest.raises(StoreAccessError, match=r"no credentials can be had \(PartialCredentialsError\)"):
        store_for().fetch("s3://videos/a.mp4", tmp_path)
    credentials.write_text(f"[work]\naws_access_key_id = test\naws_secret_access_key = {SECRET}\n")
    assert store_for().fetch("s3://videos/a.mp4", tmp_path).read_bytes() == VIDEO


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("https", "aiohttp")])
def test_a_package_that_is_missing(scheme: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    address = f"{scheme}://videos/a.mp4"
    store = store_for(f"{scheme}://videos/")
    for function in (lambda: store.check_access([address]), lambda: store.fetch(address, tmp_path)):
        with pytest.raises(
            StoreAccessError, match=rf"{scheme}://\.\.\. need the package {package}: pip install '.*\[store\]'"
        ):
            function()


# -- threads and processes --------------------------------------------------------------------------------------------


def test_threads_share_a_store(s3: S3Server, tmp_path: Path) -> None:
    s3.put("videos", {f"{number}.mp4": VIDEO[number:] for number in range(20)})
    store = store_for()
    with ThreadPoolExecutor(8) as threads:
        files = list(threads.map(lambda number: store.fetch(f"s3://videos/{number}.mp4", tmp_path), range(20)))
        again = list(threads.map(lambda _: store.fetch("s3://videos/0.mp4", tmp_path), range(8)))
    assert [file.read_bytes() for file in files] == [VIDEO[number:] for number in range(20)]
    assert again == files[:1] * 8
    assert again[0].read_bytes() == VIDEO


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # from Python 3.12 on, of the fork
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_use_their_own_connections(s3: S3Server, tmp_path: Path, method: str) -> None:
    s3.put("videos", {"a.mp4": VIDEO})
    store = store_for()
    store.fetch("s3://videos/a.mp4", tmp_path)  # so that a fork inherits connections
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    process = context.Process(target=fetch_in_process, args=(store, "s3://videos/a.mp4", tmp_path, answers))
    process.start()
    assert answers.get(timeout=60) == VIDEO
    process.join(timeout=60)
    assert process.exitcode == 0
    assert store.fetch("s3://videos/a.mp4", tmp_path).read_bytes() == VIDEO


# -- web servers ------------------------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self) -> None:
        name = self.path.partition("?")[0]
        self.server.requests.append((self.path, self.headers.get("Range", "")))
        if name.startswith("/status/"):
            self._answer(int(name.removeprefix("/status/")), b"no")
        elif name == "/locked/a.mp4" and self.headers.get("Authorization") != "Basic bWU6c2VjcmV0":  # me:secret
            self._answer(401, b"no")
        elif name.startswith("/to/"):
            self._answer(302, b"", Location=self.server.redirects[name])
        elif name == "/videos/garbage.mp4":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: nonsense\r\n\r\n")
        elif name == "/videos/chunked.mp4":
            self._send_chunks()
        elif name == "/videos/endless.mp4":
            self._head(200)
            self.wfile.write(VIDEO)
            self.close_connection = True
        elif name == "/videos/plain.mp4":
            self._answer(200, VIDEO)
        else:
            self._send_file(name)

    def _send_file(self, name: str) -> None:
        wanted = self.headers.get("Range", "")
        if wanted and self.headers.get("If-Range") == self.server.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            span = f"bytes {start}-{len(VIDEO) - 1}/{len(VIDEO)}"
            rest = VIDEO[start:] if name != "/videos/short.mp4" else VIDEO[start:-10]
            self._answer(206, rest, ETag=self.server.tag, **{"Content-Range": span})
        else:
            self._answer(200, VIDEO, ETag=self.server.tag)

    def _send_chunks(self) -> None:
        self._head(200, **{"Transfer-Encoding": "chunked"})
        for start in range(0, len(VIDEO), 100_000):
            piece = VIDEO[start : start + 100_000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self._head(status, **{"Content-Length": str(len(body))}, **headers)
        self.wfile.write(body)

    def _head(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class WebServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, str]] = []
        self.redirects: dict[str, str] = {}
        self.tag = '"one"'
        self.proxy = FaultyProxy(("127.0.0.1", self.server_port))
        self.url = f"http://127.0.0.1:{self.proxy.port}"

    def handle_error(self, *_: object) -> None:
        pass  # connections are cut on purpose


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    clean_environment(tmp_path, monkeypatch)
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.proxy.close()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["a.mp4", "plain.mp4", "chunked.mp4", "a b.mp4", "%61.mp4?token=secret"])
def test_fetches_from_a_web_server(web: WebServer, tmp_path: Path, name: str) -> None:
    store = store_for(f"{web.url}/videos/")
    store.check_access([f"{web.url}/videos/{name}"])
    file = store.fetch(f"{web.url}/videos/{name}", tmp_path)
    assert file.read_bytes() == VIDEO
    assert file.suffix == ".mp4"
    assert "secret" not in file.name


def test_a_cut_download_is_resumed(web: WebServer, tmp_path: Path) -> None:
    web.proxy.faults += [Fault("cut", after_bytes=150_000), Fault("cut", after_bytes=50_000)]
    file = store_for(web.url).fetch(f"{web.url}/videos/a.mp4", tmp_path)
    assert file.read_bytes() == VIDEO
    first, second, third = (int(wanted.strip("bytes=-") or 0) for _, wanted in web.requests)
    assert 0 == first < second < third


def test_a_download_without_ranges_or_of_another_version_begins_anew(web: WebServer, tmp_path: Path) -> None:
    for name in ("plain.mp4", "chunked.mp4"):
        web.proxy.faults += [Fault("cut", after_bytes=150_000)]
        assert store_for(web.url).fetch(f"{web.url}/videos/{name}", tmp_path).read_bytes() == VIDEO
    assert {wanted for _, wanted in web.requests} == {""}
    web.tag = 'W/"weak"'
    web.proxy.faults += [Fault("cut", after_bytes=150_000)]
    assert store_for(web.url).fetch(f"{web.url}/videos/a.mp4", tmp_path).read_bytes() == VIDEO
    assert {wanted for _, wanted in web.requests} == {""}

    def change_tag(*_: object) -> None:
        web.tag = '"two"'

    web.tag = '"one"'
    web.proxy.faults += [Fault("cut", after_bytes=150_000)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(object_store.time, "sleep", change_tag)
        assert store_for(web.url).fetch(f"{web.url}/videos/b.mp4", tmp_path).read_bytes() == VIDEO
    assert web.requests[-1][1] != ""


def test_a_download_that_could_be_truncated_unseen_is_refused(web: WebServer, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="the server does not say how long the file is"):
        store_for(web.url).fetch(f"{web.url}/videos/endless.mp4", tmp_path)


def test_a_server_that_sends_less_than_it_says(web: WebServer, tmp_path: Path) -> None:
    web.proxy.faults += [Fault("cut", after_bytes=150_000)]
    with pytest.raises(UnreachableError, match="307190 bytes came instead of 307200"):
        store_for(web.url).fetch(f"{web.url}/videos/short.mp4", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.mp4", "chunked.mp4"])
def test_a_download_that_stays_cut_or_slow(web: WebServer, tmp_path: Path, name: str) -> None:
    address = f"{web.url}/videos/{name}?token=secret"
    for faults, reason in (
        ([Fault("cut", after_bytes=1000)] * 3, "the connection failed"),
        ([Fault("slow", after_bytes=1000, bytes_per_second=1)] * 3, "no answer came in time"),
        ([Fault("slow", after_bytes=50_000, bytes_per_second=20)] * 3, "fewer than 2000000 bytes came in a second"),
    ):
        web.proxy.faults += faults
        store = store_for(web.url, timeout_seconds=0.3, slowest_bytes_per_second=2_000_000)
        with pytest.raises(UnreachableError, match=rf"\?\*\*\*' cannot be fetched: {reason}") as raised:
            store.fetch(address, tmp_path)
        assert "secret" not in f"{raised.value}{raised.value.path}"
        assert web.proxy.faults == []
    assert list(tmp_path.iterdir()) == []


def test_too_large_downloads(web: WebServer, tmp_path: Path) -> None:
    for name in ("a.mp4", "chunked.mp4"):
        with pytest.raises(TooLargeError, match="bytes or more, and 200000 are allowed"):
            store_for(web.url, max_file_bytes=200_000).fetch(f"{web.url}/videos/{name}", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "error", "message", "requests"),
    [
        (404, VideoNotFoundError, "does not exist in the store", 1),
        (418, VideoNotFoundError, "the server answers with status 418", 1),
        (401, StoreAccessError, r"access is refused; sign the address, or put the password into ~/\.netrc", 1),
        (403, StoreAccessError, "access is refused", 1),
        (503, UnreachableError, r"the server answers with status 503 \(3 attempts\)", 3),
        (429, UnreachableError, r"the server answers with status 429 \(3 attempts\)", 3),
    ],
)
def test_answers_of_a_web_server(
    web: WebServer, tmp_path: Path, status: int, error: type[Exception], message: str, requests: int
) -> None:
    with pytest.raises(error, match=message) as raised:
        store_for(web.url).fetch(f"{web.url}/status/{status}?token=secret", tmp_path)
    assert "secret" not in str(raised.value)
    assert len(web.requests) == requests


def test_a_password_in_netrc_opens_a_web_server(web: WebServer, tmp_path: Path) -> None:
    store, address = store_for(web.url), f"{web.url}/locked/a.mp4"
    with pytest.raises(StoreAccessError, match=r"access is refused; .* put the password into ~/\.netrc"):
        store.check_access([address])
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    store.check_access([address])
    assert store.fetch(address, tmp_path).read_bytes() == VIDEO


def test_an_answer_that_is_no_http_is_asked_for_again(web: WebServer, tmp_path: Path) -> None:
    store = ObjectStore(allowed=(web.url,), attempts=2)
    with pytest.raises(UnreachableError, match=r"garbage.mp4' cannot be fetched: the connection failed .*2 att"):
        store.fetch(f"{web.url}/videos/garbage.mp4", tmp_path)
    assert len(web.requests) == 2


def test_redirects_are_followed_to_allowed_addresses_only(web: WebServer, tmp_path: Path) -> None:
    other = WebServer()
    web.redirects = {
        "/to/a": "/videos/a.mp4",
        "/to/twice": "/to/a",
        "/to/outside": "/status/200",
        "/to/up": "/videos/../status/200",
        "/to/host": f"http://localhost:{web.proxy.port}/videos/a.mp4",
        "/to/port": f"{other.url}/videos/a.mp4?token=secret",
        "/to/far": "/to/port",
        "/to/circle": "/to/circle",
        "/to/else": "file:///etc/passwd",
    }
    store = ObjectStore(allowed=(f"{web.url}/videos/", f"{web.url}/to/"), attempts=2)
    for name in ("a", "twice"):
        assert store.fetch(f"{web.url}/to/{name}", tmp_path).read_bytes() == VIDEO
    web.requests.clear()
    for name in ("outside", "up", "host", "port", "far"):
        with pytest.raises(
            RedirectRefusedError, match=rf"/to/{name}' is not fetched: it redirects to '.*', which is not"
        ) as raised:
            store.fetch(f"{web.url}/to/{name}", tmp_path)
        assert raised.value.path == f"{web.url}/to/{name}"
        store.check_access([f"{web.url}/to/{name}"])
        assert "secret" not in str(raised.value)
    assert {path for path, _ in web.requests} == {"/to/outside", "/to/up", "/to/host", "/to/port", "/to/far"}
    assert other.requests == []
    with pytest.raises(VideoNotFoundError, match="/to/circle': the server redirects again and again"):
        store.fetch(f"{web.url}/to/circle", tmp_path)
    with pytest.raises(RedirectRefusedError, match="/to/else' is not fetched: it redirects to what is no address"):
        store.fetch(f"{web.url}/to/else", tmp_path)
    other.proxy.close()
    other.server_close()


def test_a_web_server_that_is_not_there(web: WebServer) -> None:
    address = f"http://127.0.0.1:{_closed_port()}/a.mp4"
    with pytest.raises(StoreAccessError, match=r"the connection failed.*the network"):
        store_for(address).check_access([address])


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
