"""A server for tests, in a thread of this process or as a program, and a client that speaks HTTP over loopback."""

from __future__ import annotations

import http.client
import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tada.localization.localizer import Localizer
from tada.recognition.recognizer import Recognizer
from tada.serving.limits import Limits
from tada.serving.server import Running, serve
from tada.video.isolation.readers import Readers

WAIT_SECONDS = 300
"""For an answer, on a machine that is busy with other things."""
BOUNDARY = "----a-boundary"


@contextmanager
def served(model: Recognizer | Localizer, readers: Readers, **limits: Any) -> Iterator[str]:
    """The address of a server that answers in this process."""
    begun: queue.Queue[Running | BaseException] = queue.Queue()

    def run() -> None:
        try:
            serve(lambda: model, Limits(**limits), port=0, readers=readers, started=begun.put)
        except BaseException as fault:
            begun.put(fault)

    thread = threading.Thread(target=run)
    thread.start()
    running = begun.get(timeout=WAIT_SECONDS)
    if isinstance(running, BaseException):
        raise running
    try:
        yield running.url
    finally:
        running.stop()
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def refused(self) -> tuple[int, str]:
        """The status and the line of a refusal, which is one line."""
        found = self.json
        assert set(found) == {"detail", "reason"}
        assert "\n" not in found["detail"]
        return self.status, found["detail"]


def ask(
    url: str,
    path: str = "/predict",
    body: bytes | Callable[[], Iterator[bytes]] | None = None,
    *,
    method: str | None = None,
    **headers: str,
) -> Reply:
    """One request on a connection of its own."""
    connection = connect(url)
    try:
        sent = body() if callable(body) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, sent, named)
        return reply_of(connection)
    finally:
        connection.close()


def connect(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=WAIT_SECONDS)


def reply_of(connection: http.client.HTTPConnection) -> Reply:
    response = connection.getresponse()
    return Reply(response.status, response.headers, response.read())


def form(*files: tuple[str, bytes], fields: tuple[tuple[str, str], ...] = (), end: bool = True) -> bytes:
    """A form with files."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields
    ]
    parts += [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="video"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


FORM = f"multipart/form-data; boundary={BOUNDARY}"
