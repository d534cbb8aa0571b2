"""Videos in object stores and on web servers: fetched whole to the local disk, from allowed addresses only.

Credentials and servers come from the usual places (AWS_PROFILE, AWS_ENDPOINT_URL, gcloud, ~/.netrc, HTTPS_PROXY), never
from options of ours, and no message contains them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from tada.errors import (
    DataError,
    OptionError,
    RedirectRefusedError,
    StoreAccessError,
    UnreachableError,
    VideoNotFoundError,
    counted,
    listed,
)
from tada.system.addresses import (
    Address,
    is_address,
    local_name,
    masked,
    parse_address,
    parse_prefix,
    refuse_other_schemes,
)
from tada.system.files import whole_file
from tada.system.remote_files import (
    Limits,
    Received,
    TryAgainError,
    call,
    file_system,
    no_bucket,
    open_http,
    read_http,
    read_object,
    told_as_user_errors,
    version_of,
)

__all__ = ["ObjectStore", "RemoteFile", "is_address", "masked", "refuse_other_schemes"]

T = TypeVar("T")

_HTTP = ("http", "https")
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 30.0
_LISTING_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """A file in an object store, as a listing describes it."""

    address: str
    size_bytes: int
    version: str
    """Changes when the content does: the store's ETag, or else the time of the last change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectStore:
    """Which remote files may be read, and how patiently. It can be pickled, and used by threads and forked processes.

    Raises:
        OptionError: a prefix is none, or a number is out of its range.
    """

    allowed: tuple[str, ...]
    """Prefixes, taken as folders, below which addresses must lie: "s3://my-bucket/videos/", "https://host/path/"."""
    max_file_bytes: int = 4 * 2**30
    """A larger file is refused, in bytes."""
    timeout_seconds: float = 60.0
    """The longest time without one byte arriving, in seconds."""
    slowest_bytes_per_second: int = 16 * 2**10
    """A transfer that stays slower than this is broken off and counts as a failed attempt."""
    attempts: int = 4
    """Attempts to fetch one file, with growing pauses between them. Each goes on where the one before broke off."""

    def __post_init__(self) -> None:
        for prefix in self.allowed:
            parse_prefix(prefix)
        for name in ("max_file_bytes", "timeout_seconds", "slowest_bytes_per_second", "attempts"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name} is {getattr(self, name)}: give a number above 0")

    def check_allowed(self, address: str) -> None:
        """Check that an address lies below an allowed prefix.

        Raises:
            OptionError: it does not, or it is malformed.
        """
        self._parse_allowed(address)

    def check_access(self, addresses: Iterable[str]) -> None:
        """Check before work begins that all addresses are allowed, and that the first below each prefix can be read.

        That this one file is not there, or redirects elsewhere, is no fault: its row will say so.

        Raises:
            OptionError: an address is not allowed.
            StoreAccessError: credentials are missing or refused, a package or a bucket is missing, or a server cannot
                be reached.
        """
        first: dict[Address, str] = {}
        for address in addresses:
            first.setdefault(self._prefix_of(address), address)
        for address in first.values():
            try:
                self._try_often(address, partial(self._look, address))
            except (VideoNotFoundError, RedirectRefusedError):
                continue
            except UnreachableError as error:
                raise StoreAccessError(f"{error} (the server's address and the network?)") from None

    def fetch(self, address: str, folder: Path) -> Path:
        """Fetch a file whole into a folder.

        Returns:
            The local file, with the extension of the address. Its name is made from the address, so that a second
            fetch replaces it.

        Raises:
            OptionError: the address is not allowed.
            StoreAccessError: the store refuses us, or is not there: no fault of this video.
            OutputError: the file cannot be written: the disk is full, the folder missing.
            VideoNotFoundError: there is no such file.
            TooLargeError: it has more than ``max_file_bytes``.
            RedirectRefusedError: the server redirects to an address that is not allowed.
            UnreachableError: no attempt got the whole file. The ``path`` of these four is the masked address.
        """
        self.check_allowed(address)
        file = folder / local_name(address)
        with whole_file(file) as part:
            part.touch()
            received = Received()
            self._try_often(address, partial(self._receive, address, received, part))
        return file

    def files_below(
        self, address: str, extensions: Collection[str], say: Callable[[str], None] = print
    ) -> list[RemoteFile]:
        """List the files of a folder of s3 or gs, at any depth.

        Files whose names cannot stand in an address, as with ".." between slashes, are left out.

        Args:
            extensions: of the files to list, in lower case and with the dot: ".mp4".
            say: called with a notice of files that are left out.

        Returns:
            The files, sorted by address.

        Raises:
            OptionError: the address is not allowed, or it is http, which has no listings.
            StoreAccessError: the store refuses us, or is not there.
            DataError: no such file is below the address.
            UnreachableError: the listing failed in all attempts.
        """
        parsed = self._parse_allowed(address)
        if parsed.scheme in _HTTP:
            raise OptionError(f"{masked(address)!r}: web servers have no listing; list the addresses in a CSV")
        found = self._try_often(address, partial(self._list, address, parsed))
        files = [
            RemoteFile(address=f"{parsed.scheme}://{name}", size_bytes=info["size"], version=version_of(info))
            for name, info in sorted(found.items())
            if PurePosixPath(name).suffix.lower() in extensions and not name.endswith("/")
        ]
        odd = {file.address: fault for file in files if (fault := _why_odd(file.address))}
        files = [file for file in files if file.address not in odd]
        if odd:
            say(f"{counted(len(odd), 'object')} below {masked(address)!r} left out: {next(iter(odd.values()))}")
        if not files:
            others = f"only {counted(len(found), 'other object')}" if found else "and no other object"
            raise DataError(
                f"no video is below {masked(address)!r}, {others}; videos end in {', '.join(sorted(extensions))}"
            )
        return files

    # -- parts of these -----------------------------------------------------------------------------------------------

    def _parse_allowed(self, address: str) -> Address:
        self._prefix_of(address)
        return parse_address(address)

    def _prefix_of(self, address: str) -> Address:
        """The first allowed prefix above an address."""
        parsed = parse_address(address)
        for prefix in map(parse_prefix, self.allowed):
            if parsed.is_below(prefix):
                return prefix
        known = f"allowed are {listed(map(masked, self.allowed))}" if self.allowed else "none is allowed yet"
        raise OptionError(
            f"{masked(address)!r} is not below an allowed address ({known}); to allow all of its place: --allow "
            f"{parsed.scheme}://{parsed.place}/"
        )

    def _may_visit(self, address: str) -> bool:
        try:
            self.check_allowed(address)
        except OptionError:
            return False
        return True

    def _limits(self) -> Limits:
        return Limits(
            max_file_bytes=self.max_file_bytes,
            timeout_seconds=self.timeout_seconds,
            slowest_bytes_per_second=self.slowest_bytes_per_second,
        )

    def _file_system(self, scheme: str) -> Any:
        return file_system(scheme, self._limits(), self._may_visit, self.allowed)

    def _try_often(self, address: str, attempt: Callable[[], T]) -> T:
        """Repeat an attempt that raises ``TryAgainError``.

        Raises:
            UnreachableError: all attempts did.
        """
        fault = ""
        for number in range(self.attempts):
            if number:
                # Random, so that a thousand workers that a busy server has cut off do not all return at once.
                longest = min(_FIRST_PAUSE_SECONDS * 2**number, _LONGEST_PAUSE_SECONDS)
                time.sleep(longest * random.uniform(0.5, 1.0))
            try:
                return attempt()
            except TryAgainError as error:
                fault = str(error)
        raise UnreachableError(
            f"{masked(address)!r} cannot be fetched: {fault} ({counted(self.attempts, 'attempt')}); try again later",
            masked(address),
        )

    def _receive(self, address: str, received: Received, part: Path) -> None:
        """One attempt: write what is missing to the part file."""
        scheme = parse_address(address).scheme
        store = self._file_system(scheme)
        if scheme in _HTTP:
            chunks = read_http(store, address, received, self._limits())
        else:
            chunks = read_object(store, address, parse_address(address), received, self._limits())
        with closing(self._in_time(chunks)) as in_time, part.open("r+b") as file:
            for chunk in in_time:
                self._limits().check_size(address, received.at + len(chunk))
                file.seek(received.at)
                file.write(chunk)
                received.at += len(chunk)
            file.truncate(received.at)

    def _in_time(self, chunks: Generator[bytes]) -> Generator[bytes]:
        """The chunks, as long as they come fast enough."""
        start, num_bytes = time.monotonic(), 0
        with closing(chunks):
            for chunk in chunks:
                num_bytes += len(chunk)
                if time.monotonic() - start > self._limits().seconds_for(num_bytes):
                    raise TryAgainError(f"fewer than {self.slowest_bytes_per_second} bytes came in a second")
                yield chunk

    def _look(self, address: str) -> None:
        """Ask for a file without fetching it."""
        parsed = parse_address(address)
        store = self._file_system(parsed.scheme)
        if parsed.scheme in _HTTP:
            with open_http(store, address, {}, self._limits()):
                return
        try:
            with told_as_user_errors(address, parsed.scheme):
                call(store, store._info, f"{parsed.place}/{parsed.path}", timeout_seconds=self.timeout_seconds)
        except VideoNotFoundError:
            self._look_for_bucket(store, address, parsed)
            raise

    def _look_for_bucket(self, store: Any, address: str, parsed: Address) -> None:
        """Tell a missing bucket from a missing object."""
        try:
            with told_as_user_errors(address, parsed.scheme):
                call(store, store._info, parsed.place, timeout_seconds=self.timeout_seconds)
        except VideoNotFoundError:
            raise no_bucket(address) from None

    def _list(self, address: str, parsed: Address) -> dict[str, dict[str, Any]]:
        store = self._file_system(parsed.scheme)
        path = f"{parsed.place}/{parsed.path}".rstrip("/")
        try:
            with told_as_user_errors(address, parsed.scheme):
                found: dict[str, dict[str, Any]] = call(
                    store, store._find, path, detail=True, timeout_seconds=_LISTING_SECONDS
                )
        except VideoNotFoundError:
            return {}
        return found


def _why_odd(address: str) -> str:
    """Why what a store has listed is no address; "" if it is one."""
    try:
        parse_address(address)
    except OptionError as error:
        return str(error)
    return ""
