"""A real object store on this machine: moto's server, and a TCP proxy before it, with which its network misbehaves.

with closing(S3Server()) as server:
use_server(server, tmp_path, monkeypatch)
server.put("videos", {"a.mp4": data})
server.proxy.faults += [Fault("cut", after_bytes=1000)]  # strikes once, then all is well
"""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tada.system.object_store import ObjectStore

SECRET = "wJalrXUtnFEMI-not-a-real-secret"
"""No message may contain it."""


@dataclass(frozen=True)
class Fault:
    """What happens to one connection: broken after so many bytes of answers, broken at a request, or slow."""

    kind: Literal["cut", "refuse", "slow"]
    after_bytes: int = 0
    bytes_per_second: int = 20


@dataclass
class FaultyProxy:
    """Passes connections on to a server. Each of ``faults`` strikes once, in order; then all is well.

    A fault stays until a connection has sent enough bytes for it to strike: the short answer to a question for the size
    does not use up a fault that strikes after 10,000 bytes.
    """

    target: tuple[str, int]
    faults: list[Fault] = field(default_factory=list)
    bytes_sent: int = 0
    """Bytes passed on to clients in all."""
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def close(self) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join(timeout=10)
        self._listener.close()

    def _start(self, function: object, *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            with suppress(TimeoutError):
                client, _ = self._listener.accept()
                server = socket.create_connection(self.target)
                for connection in (client, server):
                    connection.settimeout(0.05)
                passed = [0]
                self._start(self._forward, client, server, passed, False)
                self._start(self._forward, server, client, passed, True)

    def _strikes(self, num_bytes: int, kinds: tuple[str, ...]) -> Fault | None:
        """The next fault, if it is one of these and strikes after so many bytes."""
        with self._lock:
            if self.faults and self.faults[0].kind in kinds and num_bytes > self.faults[0].after_bytes - 1:
                return self.faults.pop(0)
        return None

    def _forward(self, source: socket.socket, sink: socket.socket, passed: list[int], is_answer: bool) -> None:
        """Pass on one direction of a connection. ``passed[0]``: bytes of the present answer."""
        with suppress(OSError):
            while not self._closed.is_set():
                try:
                    data = source.recv(16384)
                except TimeoutError:
                    continue
                if not data:
                    break
                fault = self._strikes(passed[0] + len(data), ("cut", "slow") if is_answer else ("refuse",))
                if fault is not None and fault.kind == "refuse":
                    _reset(source)
                    break
                if fault is not None and fault.kind == "cut":
                    sink.sendall(data[: max(0, fault.after_bytes - passed[0])])
                    self._closed.wait(0.2)  # else the client's system throws away what the client has not read yet
                    _reset(sink)
                    break
                if fault is not None:
                    self._trickle(data, sink, fault.bytes_per_second)
                    continue
                passed[0] = passed[0] + len(data) if is_answer else 0
                sink.sendall(data)
                if is_answer:
                    with self._lock:
                        self.bytes_sent += len(data)
        for connection in (source, sink):
            with suppress(OSError):
                connection.close()

    def _trickle(self, data: bytes, sink: socket.socket, bytes_per_second: int) -> None:
        for start in range(len(data)):
            if self._closed.wait(1 / bytes_per_second):
                return
            sink.sendall(data[start : start + 1])


def _reset(connection: socket.socket) -> None:
    """Close a connection as a broken network does: the other side sees an error, not an end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class S3Server:
    """moto's server, with the proxy through which tests reach it."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self._host, self._port = self._server.get_host_and_port()
        self.proxy = FaultyProxy((self._host, self._port))
        self.endpoint = f"http://127.0.0.1:{self.proxy.port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://{self._host}:{self._port}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key=SECRET,
        )

    def put(self, bucket: str, files: dict[str, bytes], **options: str) -> None:
        """Make a bucket, if it is not there, and put objects into it."""
        self.client.create_bucket(Bucket=bucket)
        for key, data in files.items():
            self.client.put_object(Bucket=bucket, Key=key, Body=data, **options)

    def check_credentials(self, after_requests: float) -> None:
        """Have the server refuse unknown credentials after so many requests; infinity: never."""
        self._control("reset-auth", str(after_requests))

    def reset(self) -> None:
        """Forget all buckets and faults."""
        self.proxy.faults.clear()
        self._control("reset", "")

    def _control(self, action: str, body: str) -> None:
        url = f"http://{self._host}:{self._port}/moto-api/{action}"
        headers = {"Content-Type": "text/plain"}  # else moto takes the body for a form
        urllib.request.urlopen(urllib.request.Request(url, body.encode(), headers, method="POST")).close()

    def close(self) -> None:
        self.client.close()
        self.proxy.close()
        self._server.stop()
        self._server._server.server_close()  # else its socket stays open


def use_server(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have s3fs and boto3 find the server, through its proxy."""
    clean_environment(tmp_path, monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, proxies or configuration of this machine."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "FSSPEC_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def fetch_in_process(store: ObjectStore, address: str, folder: Path, answers: queue.Queue[bytes]) -> None:
    """What a test has another process do."""
    answers.put(store.fetch(address, folder).read_bytes())
