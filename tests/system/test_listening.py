"""Sockets at an address which a person has given."""

from __future__ import annotations

import socket

import pytest
from jsonargparse.typing import NonNegativeInt

from tada.errors import OptionError
from tada.system.listening import PortInUseError, is_loopback, listening, port_of, url_of


def test_another_program_can_connect() -> None:
    with listening("127.0.0.1", 0) as listener, socket.create_connection(("127.0.0.1", port_of(listener))) as client:
        assert client.getpeername() == listener.getsockname()


def test_a_number_from_the_command_line() -> None:
    with listening("127.0.0.1", NonNegativeInt(0)) as listener:
        assert port_of(listener) > 0


def test_a_port_in_use() -> None:
    with (
        listening("127.0.0.1", 0) as listener,
        pytest.raises(PortInUseError, match=f"port {port_of(listener)} of '127.0.0.1' is in use: give another"),
        listening("127.0.0.1", port_of(listener)),
    ):
        pass


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("203.0.113.7", 0, r"port 0 of '203.0.113.7' cannot be opened \(.+\): give an address of this machine with"),
        ("no host", 0, "there is no host 'no host': give an address of this machine"),
        ("x" * 99, 0, "there is no host 'x+': give an address of this machine"),
        ("127.0.0.1", 70_000, "port=70000 should be from 0 to 65535"),
        ("127.0.0.1", -1, "port=-1 should be from 0 to 65535"),
    ],
)
def test_mistakes(host: str, port: int, message: str) -> None:
    with pytest.raises(OptionError, match=message), listening(host, port):
        pass


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box", False)],
)
def test_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("box", "http://box:80"),
    ],
)
def test_url(host: str, url: str) -> None:
    assert url_of(host, 80) == url
