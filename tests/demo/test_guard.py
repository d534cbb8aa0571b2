"""What reaches gradio of the page's requests."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tada.demo.guard import Guard

pytest.importorskip("python_multipart")
FORM = b"multipart/form-data; boundary=x"
FILE = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\nfilm\r\n--x--\r\n'
FIELD = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nfilm\r\n--x--\r\n'
ELSEWHERE = FILE.replace(b'name="files"', b'name="video"')


class Gradio:
    """Reads the body of each request, writes it as gradio does, and keeps it."""

    def __init__(self, uploads: Path) -> None:
        self.uploads, self.bodies = uploads, list[bytes]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, part = b"", self.uploads / "tmp1234"
        while True:
            message = await receive()
            body += message["body"]
            part.write_bytes(body)
            if not message["more_body"]:
                break
        self.bodies.append(body)
        (self.uploads / "hash").mkdir(exist_ok=True)
        part.rename(self.uploads / "hash" / "a.mp4")
        await send({"type": "http.response.start", "status": 200})


def status_of(
    uploads: Path,
    path: str,
    *,
    method: str = "POST",
    pieces: tuple[bytes, ...] = (b"",),
    cut: bool = False,
    **given: bytes,
) -> tuple[int | None, list[bytes]]:
    """The status of the answer, and the bodies that reached gradio."""
    gradio, sent = Gradio(uploads), list[dict[str, Any]]()
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if cut:
        messages.append({"type": "http.disconnect"})
    else:
        messages[-1]["more_body"] = False

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {"host": b"127.0.0.1:7860", "content-length": str(sum(map(len, pieces))).encode()} | {
        name.replace("_", "-"): value for name, value in given.items()
    }
    scope = {
        "type": "http",
        "method": method,
        "path": f"/gradio_api/{path}",
        "headers": [(name.encode(), value) for name, value in headers.items()],
    }
    asyncio.run(Guard(gradio, uploads=uploads)(scope, receive, send))
    return (sent[0]["status"] if sent else None), gradio.bodies


@pytest.mark.parametrize("length", [b"99999999", b"many"])
def test_large_requests_are_refused(tmp_path: Path, length: bytes) -> None:
    assert status_of(tmp_path, "component_server", content_length=length) == (413, [])
    assert status_of(tmp_path, "queue/join", transfer_encoding=b"chunked") == (413, [])


def test_small_ones_reach_gradio_as_they_are(tmp_path: Path) -> None:
    assert status_of(tmp_path, "queue/join", pieces=(b'{"a"', b": 1}")) == (200, [b'{"a": 1}'])
    assert status_of(tmp_path, "heartbeat/1", method="GET") == (200, [b""])


def test_requests_of_other_pages_are_refused(tmp_path: Path) -> None:
    for origin in (b"http://evil.example", b"null", b"http://127.0.0.1:1"):
        assert status_of(tmp_path, "upload", origin=origin, content_type=FORM, pieces=(FILE,)) == (403, [])
    own = b"http://127.0.0.1:7860"
    assert status_of(tmp_path, "upload", origin=own, content_type=FORM, pieces=(FILE,)) == (200, [FILE])


@pytest.mark.parametrize("path", ["process_recording", "run-history/buckets", "runs", "vibe-edit/", "dev/reload"])
def test_what_the_page_does_not_use_is_closed(tmp_path: Path, path: str) -> None:
    assert status_of(tmp_path, path) == (404, [])
    assert status_of(tmp_path, path, method="GET") == (404, [])


def test_addresses_are_no_files(tmp_path: Path) -> None:
    for address in ("http://example.com/x.mp4", "https://example.com/x.mp4", "ftp://example.com/x.mp4"):
        data = [{"path": address, "meta": {"_type": "gradio.FileData"}}]
        assert status_of(tmp_path, "queue/join", pieces=(json.dumps({"data": data}).encode(),)) == (400, [])
    local = {"path": "/tmp/x/a.mp4", "url": "http://127.0.0.1:7860/gradio_api/file=/tmp/x/a.mp4"}
    body = json.dumps({"data": [local]}).encode()
    assert status_of(tmp_path, "queue/join", pieces=(body,)) == (200, [body])


@pytest.mark.parametrize("form", [FIELD, ELSEWHERE, FILE[:-7] + b"\r\n" + FIELD, b"nonsense"])
def test_uploads_are_files_alone(tmp_path: Path, form: bytes) -> None:
    pieces = tuple(form[i : i + 7] for i in range(0, len(form), 7))
    assert status_of(tmp_path, "upload", content_type=FORM, pieces=pieces) == (400, [])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("kind", [b"text/plain", b"multipart/form-data"])
def test_uploads_are_forms(tmp_path: Path, kind: bytes) -> None:
    assert status_of(tmp_path, "upload", content_type=kind, pieces=(FILE,)) == (400, [])


def test_a_cut_upload_leaves_nothing(tmp_path: Path) -> None:
    assert status_of(tmp_path, "upload", content_type=FORM, pieces=(FILE[:80], FILE[80:90]), cut=True) == (None, [])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert status_of(tmp_path, "upload", content_type=FORM, pieces=(FILE,)) == (507, [])
