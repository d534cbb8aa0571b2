"""The server of the page: on this machine alone, unless told otherwise, and without calls to any other."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path

from tada.demo.answers import DemoModel
from tada.demo.guard import Guard
from tada.demo.page import Page, PageLimits
from tada.errors import OptionError
from tada.system.listening import PortInUseError, is_loopback, listening, port_of, url_of
from tada.video.isolation.readers import Readers

FIRST_PORT, _PORTS = 7860, 100


def check_gradio() -> None:
    """Raise OptionError where gradio is not installed."""
    if find_spec("gradio") is None:
        raise OptionError("the page needs gradio: pip install 'tada-video[demo]'")


def find_port(host: str, port: int | None) -> int:
    """A free port: the one that is given, 0 for any, or else the first from 7860 on.

    Raises:
        PortInUseError: it is in use, or all of them are.
        OptionError: there is no such host or port, or it is not for this user.
    """
    for number in range(FIRST_PORT, FIRST_PORT + _PORTS) if port is None else [port]:
        with suppress(PortInUseError) if port is None else nullcontext(), listening(host, number) as listener:
            return port_of(listener)
    raise PortInUseError(
        f"ports {FIRST_PORT} to {FIRST_PORT + _PORTS - 1} of {host!r} are all in use: give a free one with --port"
    )


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
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tada-demo-", ignore_cleanup_errors=True))
        readers = Readers()
        stack.callback(readers.close)
        readers.start_soon()
        page = Page(models, Path(folder).resolve(), limits, readers)
        stack.enter_context(_surroundings(page.sessions.uploads))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of gradio's dependencies
            from starlette.middleware import Middleware
            from starlette.middleware.trustedhost import TrustedHostMiddleware

            from tada.demo import looks

            guards = [Middleware(Guard, uploads=page.sessions.uploads)]
            if is_loopback(host):  # other pages in the visitor's browser must not reach it under a name of theirs
                own = f"[{host}]" if ":" in host else host
                guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", own]))
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
                run_history=False,
                footer_links=[],
                max_file_size=limits.max_megabytes * 1_000_000,
                allowed_paths=[str(page.sessions.visits)],
                theme=looks.theme(),
                css=looks.asset("page.css"),
                app_kwargs={"middleware": guards},
            )
        try:
            yield url_of(host, port)
        finally:
            page.close()
            # It would wait for open pages, which never end their requests; and it tells each of them that was cut.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            made.server.force_exit = True
            made.close(verbose=False)


@contextmanager
def _surroundings(uploads: Path) -> Iterator[None]:
    """Environment variables that keep gradio on this machine, for a while."""
    local = ",".join(filter(None, [os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")), "localhost,127.0.0.1"]))
    own = {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(uploads),
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
