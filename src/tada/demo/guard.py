"""What reaches gradio of the page's requests: small ones and uploads of files, from this page, without other hosts."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_MOST_BYTES = 4_000_000  # of a request that is no upload
_CLOSED = ("process_recording", "run-history", "runs", "vibe-", "undo-vibe", "dev/", "monitoring", "profiling")
"""Paths of gradio that the page does not use: they call other hosts, or keep files elsewhere."""


class _Refused(Exception):
    """The body of a request is not what it should be."""


class _Cut(Exception):
    """The client has gone in the middle of an upload."""


class Guard:
    """Refuses what the page does not send (ASGI); after an upload, removes what is left of those that were cut.

    Refused are requests of other pages in the visitor's browser, paths that the page does not use, large requests,
    uploads with fields that are no files (gradio would hold them in memory), and addresses of other hosts in the place
    of a file (gradio would fetch them).

    Args:
        uploads: the folder in which gradio writes uploads; a file that is not whole lies there without a folder.
    """

    def __init__(self, app: Any, *, uploads: Path, max_bytes: int = _MOST_BYTES) -> None:
        self.app, self.uploads, self.max_bytes = app, uploads, max_bytes
        self._num_uploads = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        path = scope["path"].partition("/gradio_api/")[2]
        if path.startswith(_CLOSED):
            await _refuse(send, 404, "there is nothing here")
        elif scope["method"] == "POST" and not _is_own(headers):
            await _refuse(send, 403, "this comes from another page")
        elif scope["method"] == "POST" and path.rstrip("/") == "upload":
            await self._upload(scope, receive, send, headers)
        else:
            await self._small(scope, receive, send, headers)

    async def _small(self, scope: Any, receive: Any, send: Any, headers: dict[bytes, bytes]) -> None:
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_bytes or b"transfer-encoding" in headers:
            await _refuse(send, 413, "the request is too large")
            return
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body = b""
        while len(body) < int(length):
            message = await receive()
            body += message.get("body", b"")
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break
        if _names_a_host(body):
            await _refuse(send, 400, "a file is one that was uploaded, not an address")
            return
        given = False

        async def again() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)

    async def _upload(self, scope: Any, receive: Any, send: Any, headers: dict[bytes, bytes]) -> None:
        try:
            check = _files_alone(headers.get(b"content-type", b""))
        except _Refused as fault:
            await _refuse(send, 400, str(fault))
            return

        async def checked() -> Any:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Cut
            check(message.get("body", b""))
            return message

        self._num_uploads += 1
        try:
            await self.app(scope, checked, send)
        except _Refused as fault:
            await _refuse(send, 400, str(fault))
        except _Cut:
            pass
        except OSError as fault:  # a full disk
            await _refuse(send, 507, f"the file cannot be kept: {fault.strerror}")
        finally:
            self._num_uploads -= 1
            if not self._num_uploads:
                for file in self.uploads.glob("*"):
                    with suppress(OSError):
                        if file.is_file():
                            file.unlink()


async def _refuse(send: Any, status: int, line: str) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": line.encode()})


def _is_own(headers: dict[bytes, bytes]) -> bool:
    """Whether a request comes from this page, or from no page."""
    origin = headers.get(b"origin")
    return origin is None or urlsplit(origin).netloc == headers.get(b"host")


def _names_a_host(body: bytes) -> bool:
    """Whether a file in a request is the address of a host."""
    if b"://" not in body:
        return False
    try:
        parts = [json.loads(body)]
    except ValueError:
        return False  # gradio refuses it
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            path = part.get("path")
            if isinstance(path, str) and "://" in path:
                return True
            parts += part.values()
        elif isinstance(part, list):
            parts += part
    return False


def _files_alone(content_type: bytes) -> Callable[[bytes], Any]:
    """A function to call with each piece of a form, which raises _Refused where a part of it is no file."""
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise _Refused("an upload should be multipart/form-data with a boundary")
    name, value = bytearray(), bytearray()
    found = False

    def begin() -> None:
        nonlocal found
        found = False

    def end_header() -> None:
        nonlocal found
        if bytes(name).lower() == b"content-disposition":
            given = parse_options_header(bytes(value))[1]
            found = b"filename" in given and given.get(b"name") == b"files"
        name.clear()
        value.clear()

    def end_headers() -> None:
        if not found:
            raise _Refused("an upload should have files alone")

    parser = MultipartParser(
        options[b"boundary"],
        {
            "on_part_begin": begin,
            "on_header_field": lambda data, start, end: name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: value.extend(data[start:end]),
            "on_header_end": end_header,
            "on_headers_finished": end_headers,
        },
    )

    def check(data: bytes) -> None:
        try:
            parser.write(data)
        except FormParserError as error:
            raise _Refused(f"this form cannot be read: {error}") from error

    return check
