"""Run a server until it is told to end: sockets, signals, and the folder of uploads."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tada.localization.localizer import Localizer
from tada.recognition.recognizer import Recognizer
from tada.serving.app import create_app
from tada.serving.limits import Limits
from tada.serving.service import Service
from tada.system.files import scratch_folder
from tada.system.listening import listening, url_of
from tada.system.signals import deferring
from tada.video.isolation.readers import Readers

_HEADER_SECONDS = 15
_MORE_CONNECTIONS = 256  # than requests: of those that only look at /healthz, and those that are refused


class Running(NamedTuple):
    """A server that answers."""

    url: str
    """Its address, without a slash at the end."""
    stop: Callable[[], None]
    """Ends it, as SIGTERM does; from any thread."""


def serve(
    load: Callable[[], Recognizer | Localizer],
    limits: Limits,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    readers: Readers | None = None,
    started: Callable[[Running], None] = lambda running: None,
) -> None:
    """Answer requests until a signal comes; what is running then is finished.

    Args:
        load: loads the model. It is called once the port is ours.
        port: 0: any that is free.
        readers: processes that decode; by default its own, which end with it.
        started: called once it answers.

    Raises:
        OptionError: the port is in use, or there is no such host.
        UserError: what ``load`` raises.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(listening(host, port))
        folder = stack.enter_context(scratch_folder())
        if readers is None:
            readers = Readers()
            stack.callback(readers.close)
        readers.start_soon()
        model = load()
        readers.start()
        service = Service(model, readers, limits, folder)
        stack.callback(service.close)
        _run(service, listener, started)


def _run(service: Service, listener: socket.socket, started: Callable[[Running], None]) -> None:
    limits = service.limits
    config = uvicorn.Config(
        create_app(service),
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_HEADER_SECONDS,
        limit_concurrency=limits.concurrent + limits.max_waiting + _MORE_CONNECTIONS,
    )

    def stop() -> None:
        service.is_ending = server.should_exit = True

    server = _Server(config, lambda: started(Running(url_of(*listener.getsockname()[:2]), stop)))
    with deferring(at_once=stop, seconds=math.inf, is_the_end=False):
        asyncio.run(server.serve(sockets=[listener]))


class _Server(uvicorn.Server):
    """uvicorn's server, without its own handling of signals."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._say_started = started

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._say_started()


class _Protocol(H11Protocol):
    """uvicorn's protocol, which closes a connection that does not send the head of a request in time."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_request()

    def _expect_request(self) -> None:
        self.loop.call_later(_HEADER_SECONDS, self._close_without_request, self.cycle)

    def _close_without_request(self, cycle: Any) -> None:
        is_idle = self.cycle is cycle and (cycle is None or cycle.response_complete)
        if is_idle and not self.transport.is_closing():
            self.transport.close()
