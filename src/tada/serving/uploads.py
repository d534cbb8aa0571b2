"""Receive a video: the body of a request, or the file of a form, written to a file while it comes.

Nothing that the client says of the file is believed: its name never becomes a path, and its size is counted. The file
has no name in any folder where the system allows that, and is gone with the request in any case.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tada.serving.limits import Limits
from tada.system.terminal import printable
from tada.video.isolation.readers import Upload

RAW_TYPES = ("video/", "application/octet-stream", "application/mp4", "application/x-matroska")
"""Content types of a video that is the whole body."""
_CURLS_TYPE = "application/x-www-form-urlencoded"  # which `curl --data-binary @FILE` sends unless told otherwise
_FORM_BYTES = 1 << 16  # of a form's other parts and headers
_WRITE_BYTES = 1 << 20
_LONGEST_NAME = 200

HAS_NAMELESS_FILES = sys.platform == "linux"
"""Whether a file that was unlinked can be opened again, by /dev/fd/N."""


class Refusal(Exception):  # a request that is refused is no error of the server
    """A request that is refused: its HTTP status, a word for programs, and a line for people."""

    def __init__(self, status: int, reason: str, message: str, *, retry_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.retry_seconds = status, reason, message, retry_seconds


@asynccontextmanager
async def received(
    body: AsyncIterator[bytes], content_type: str, content_length: str | None, folder: Path, limits: Limits
) -> AsyncIterator[Upload]:
    """Write the video of a request to a file, and yield it; the file is gone after the block.

    Args:
        folder: an existing folder for the file.

    Raises:
        Refusal: it is too large, too slow, of another type, or no form with one file; or the disk is full.
    """
    _check_length(content_length, limits)
    descriptor, path = tempfile.mkstemp(dir=folder)
    try:
        if HAS_NAMELESS_FILES:
            os.unlink(path)
        form = _form_of(content_type)
        file = _LimitedFile(descriptor, limits)
        try:
            async with asyncio.timeout(limits.upload_seconds):
                await _write(body, form, file)
        except TimeoutError:
            raise Refusal(
                408,
                "slow_upload",
                f"the upload took more than {limits.upload_seconds:g} s, which is this server's limit; "
                f"{file.num_bytes} bytes have come",
            ) from None
        except OSError as error:  # a full disk
            raise Refusal(507, "no_space", f"the server cannot keep the video: {error.strerror or error}") from error
        name = "upload" if form is None else form.name
        yield Upload(name=name, file=descriptor if HAS_NAMELESS_FILES else None, path=path)
    finally:
        with suppress(OSError):
            os.close(descriptor)
        with suppress(OSError):
            os.unlink(path)


def _check_length(content_length: str | None, limits: Limits) -> None:
    """Refuse a body that says itself that it is too large."""
    if content_length is not None and int(content_length) > limits.max_bytes + _FORM_BYTES:
        raise _too_large(limits)


def _too_large(limits: Limits) -> Refusal:
    return Refusal(
        413,
        "too_large",
        f"the upload has more than {limits.max_megabytes:g} MB, which is this server's limit; send a part of the "
        "video, or one of smaller frames",
    )


class _LimitedFile:
    """A file that refuses to grow beyond the limit, before the bytes are on disk."""

    def __init__(self, descriptor: int, limits: Limits) -> None:
        self._descriptor, self._limits = descriptor, limits
        self._held = bytearray()
        self.num_bytes = 0

    def add(self, data: bytes | memoryview) -> None:
        self.num_bytes += len(data)
        if self.num_bytes > self._limits.max_bytes:
            raise _too_large(self._limits)
        self._held += data

    async def write_held(self, *, least: int = 1) -> None:
        """Write what is held, outside the event loop, if it is enough."""
        if len(self._held) >= least:
            held, self._held = self._held, bytearray()
            await asyncio.to_thread(self._write, held)

    def _write(self, held: bytearray) -> None:
        view = memoryview(held)
        while len(view):
            view = view[os.write(self._descriptor, view) :]


class _Form:
    """A form (multipart/form-data) with one file; its other fields are ignored."""

    def __init__(self, boundary: bytes) -> None:
        self.name = "upload"
        self.has_ended = False
        self._num_files, self._is_file = 0, False
        self._num_other_bytes = 0
        self._header, self._value, self._disposition = b"", b"", b""
        self.file: _LimitedFile | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._add_header,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_data,
                "on_end": self._end,
            },
        )

    def write(self, data: bytes) -> None:
        self._parser.write(data)

    def check_ended(self) -> None:
        if not self.has_ended:
            raise Refusal(400, "broken_form", "the form breaks off before its end; send it again")
        if not self._num_files:
            raise Refusal(400, "no_file", "the form has no file; send one, as in: curl -F video=@FILE URL")

    def _begin(self) -> None:
        self._disposition, self._is_file = b"", False

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _end_headers(self) -> None:
        options = parse_options_header(self._disposition)[1]
        if b"filename" not in options:
            return
        self._num_files += 1
        if self._num_files > 1:
            raise Refusal(400, "several_files", "the form has several files; send one video with each request")
        self._is_file, self.name = True, client_name(options[b"filename"].decode("utf-8", "replace"))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            assert self.file is not None
            self.file.add(memoryview(data)[start:end])
            return
        self._num_other_bytes += end - start
        if self._num_other_bytes > _FORM_BYTES:
            raise Refusal(413, "too_large", "the form's fields without a file have too many bytes; send only the video")

    def _end(self) -> None:
        self.has_ended = True


def client_name(given: str) -> str:
    """The last part of the name that a client gives a file, for messages and answers only."""
    last = re.split(r"[\\/]", given)[-1]
    return printable(last)[:_LONGEST_NAME] or "upload"


def _form_of(content_type: str) -> _Form | None:
    """The form that a content type announces; None: the body is the video."""
    kind, options = parse_options_header(content_type)
    name = kind.decode("latin-1").lower()
    if name == "multipart/form-data":
        if not options.get(b"boundary"):
            raise Refusal(400, "broken_form", "Content-Type: multipart/form-data lacks its boundary")
        try:
            return _Form(options[b"boundary"])
        except FormParserError as error:
            raise Refusal(400, "broken_form", f"this form cannot be read: {error}") from error
    if name in ("", _CURLS_TYPE) or name.startswith(RAW_TYPES):
        return None
    raise Refusal(
        415,
        "wrong_type",
        f"Content-Type {printable(name)[:100]} is no video; send a form with a file (multipart/form-data), or the file "
        "itself as application/octet-stream",
    )


async def _write(body: AsyncIterator[bytes], form: _Form | None, file: _LimitedFile) -> None:
    try:
        if form is not None:
            form.file = file
        async for data in body:
            if form is None:
                file.add(data)
            else:
                form.write(data)
            await file.write_held(least=_WRITE_BYTES)
        if form is not None:
            form.check_ended()
        await file.write_held()
    except FormParserError as error:
        raise Refusal(400, "broken_form", f"this form cannot be read: {error}") from error
