"""Sockets that listen at an address which a person has given."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tada.errors import OptionError

_LARGEST_PORT = 65535


class PortInUseError(OptionError):
    """Another program listens at the port."""


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Listen at a port of an address, or at port 0: any that is free.

    Raises:
        PortInUseError: another program listens there.
        OptionError: there is no such host or port, or it is not for this user.
    """
    if not 0 <= port <= _LARGEST_PORT:
        raise OptionError(f"{port=} should be from 0 to {_LARGEST_PORT}")
    try:
        numeric = ipaddress.ip_address(host)
    except ValueError:
        family, address = _look_up(host)
    else:
        family, address = socket.AF_INET if numeric.version == 4 else socket.AF_INET6, host
    try:
        listener = socket.create_server((address, port), family=family, backlog=512)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port} of {host!r} is in use: give another with --port, or --port 0 for any that is free"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            why = "is only for the system's own services: give one above 1023 with --port"
        else:
            why = f"cannot be opened ({os.strerror(error.errno or 0)}): give an address of this machine with --host"
        raise OptionError(f"port {port} of {host!r} {why}") from error
    with listener:
        yield listener


def _look_up(host: str) -> tuple[socket.AddressFamily, str]:
    """The first address of a name."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise OptionError(f"there is no host {host!r}: give an address of this machine with --host") from error
    return family, str(address[0])


def port_of(listener: socket.socket) -> int:
    """The port that a socket listens at."""
    port: int = listener.getsockname()[1]
    return port


def url_of(host: str, port: int) -> str:
    """An address for a browser on this machine; of all addresses of the machine, its own."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
