"""The server of the page: on this machine alone, unless told otherwise, and without calls to any other."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tada.demo.answers import DemoModel
from tada.demo.page import Page, PageLimits
from tada.errors import OptionError

FIRST_PORT, _PORTS = 7860, 100
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MOST_BYTES = 4_000_000  # of a request that is no upload


def check_gradio() -> None:
    """Raise OptionError where gradio is not installed."""
    if find_spec("gradio") is None:
        raise OptionError("the page needs gradio: pip install 'tada-video[demo]'")


def find_port(host: str, port: int | None) -> int:
    """A free port: the one that is given, or else the first from 7860 on.

    Raises:
        OptionError: it is in use, or this machine does not have the host's address.
    """
    ports = range(FIRST_PORT, FIRST_PORT + _PORTS) if port is None else [port]
    for number in ports:
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, int(number), type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
            return number
        except socket.gaierror:
            raise OptionError(f"this machine has no address {host!r}: leave out --host, or give 0.0.0.0") from None
        except PermissionError:
            raise OptionError(f"port {number} is kept for the system: give one from 1024 on, with --port") from None
        except OSError as fault:
            if fault.errno == errno.EADDRNOTAVAIL:
                raise OptionError(f"this machine has no address {host!r}: leave out --host, or give 0.0.0.0") from None
            if fault.errno != errno.EADDRINUSE:
                raise
    if port is None:
        raise OptionError(
            f"ports {FIRST_PORT} to {FIRST_PORT + _PORTS - 1} are all in use: give a free one, with --port"
        )
    raise OptionError(f"port {port} is in use: end the program that has it, or give another one, with --port")


class SmallRequests:
    """Refuses requests of more than some megabytes, uploads excepted, which gradio limits."""

    def __init__(self, app: Any, *, max_bytes: int = _MOST_BYTES) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a request (ASGI)."""
        if scope["type"] != "http" or scope["path"].endswith("/upload"):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        is_large = not length.isdigit() or int(length) > self.max_bytes or b"transfer-encoding" in headers
        if is_large:
            await send({"type": "http.response.start", "status": 413, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"the request is too large"})
            return
        await self.app(scope, receive, send)


@contextmanager
def serving(
    models: Sequence[DemoModel], *, host: str = "127.0.0.1", port: int | None = None, limits: PageLimits | None = None
) -> Iterator[str]:
    """Serve the page in the background; the context's value is its address. At the end all files are deleted.

    Raises:
        OptionError: gradio is not installed, or the port is in use.
    """
    check_gradio()
    port = find_port(host, port)
    limits = limits or PageLimits()
    with tempfile.TemporaryDirectory(prefix="tada-demo-", ignore_cleanup_errors=True) as folder, _surroundings(folder):
        root = Path(folder).resolve()
        page = Page(models, root, limits)
        os.environ["GRADIO_TEMP_DIR"] = str(page.sessions.uploads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of gradio's dependencies
            from starlette.middleware import Middleware
            from starlette.middleware.trustedhost import TrustedHostMiddleware

            from tada.demo import looks

            guards = [Middleware(SmallRequests)]
            if host in LOOPBACK:  # other pages in the visitor's browser must not reach it under a name of theirs
                guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]"]))
            made = looks.blocks(page)
            made.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                footer_links=[],
                max_file_size=limits.max_megabytes * 1_000_000,
                allowed_paths=[str(page.sessions.visits)],
                theme=looks.theme(),
                css=looks.asset("page.css"),
                app_kwargs={"middleware": guards},
            )
        try:
            yield f"http://{'127.0.0.1' if host == '0.0.0.0' else f'[{host}]' if ':' in host else host}:{port}"
        finally:
            page.sessions.end_all()
            made.close(verbose=False)


@contextmanager
def _surroundings(folder: str) -> Iterator[None]:
    """Environment variables that keep gradio on this machine, for a while."""
    local = ",".join(filter(None, [os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")), "localhost,127.0.0.1"]))
    own = {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": folder,
        "NO_PROXY": local,
        "no_proxy": local,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
