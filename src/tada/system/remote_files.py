"""Read remote files through fsspec: one attempt to read a file, its faults told apart, and the connections.

fsspec runs a thread with an event loop in each process; a file system belongs to the process that made it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tada.errors import RedirectRefusedError, StoreAccessError, TooLargeError, UserError, VideoNotFoundError
from tada.system.addresses import Address, masked

if TYPE_CHECKING:
    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

T = TypeVar("T")

_BLOCK_BYTES = 8 * 2**20  # of one request to s3 and gs; it is held in memory
_CHUNK_BYTES = 2**20

# -- connections ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How large a file may be, and how long one attempt to fetch it may take."""

    max_file_bytes: int
    timeout_seconds: float
    """Longest time without one byte."""
    slowest_bytes_per_second: int
    """A slower transfer counts as broken."""

    def seconds_for(self, num_bytes: int) -> float:
        """The longest time in which so many bytes arrive."""
        return self.timeout_seconds + num_bytes / self.slowest_bytes_per_second

    def check_size(self, address: str, num_bytes: int) -> None:
        """Refuse a file with more bytes than are allowed.

        Raises:
            TooLargeError: it has.
        """
        if num_bytes > self.max_file_bytes:
            raise TooLargeError(
                f"{masked(address)!r} has {num_bytes} bytes or more, and {self.max_file_bytes} are allowed: allow "
                "more (--max-file-mb, in Python max_file_bytes), or leave the file out",
                masked(address),
            )


_file_systems: dict[tuple[Any, ...], Any] = {}


def file_system(scheme: str, limits: Limits, may_visit: Callable[[str], bool], rules: object) -> Any:
    """The fsspec file system of this process for a scheme, made at the first call.

    Args:
        may_visit: whether a request may be sent to an http address, which a redirect may have led to.
        rules: equal for equal ``may_visit``.

    Raises:
        StoreAccessError: its package is missing, or its configuration or credentials cannot be read.
    """
    scheme = "http" if scheme == "https" else scheme
    # A process forked from this one cannot use its connections. Changed credentials and servers count at once.
    variables = [item for item in os.environ.items() if item[0].startswith(("AWS_", "GOOGLE_"))]
    key = (os.getpid(), scheme, limits, rules, hash(frozenset(variables)))
    store = _file_systems.get(key)
    if store is None:  # two threads may each make one, which does no harm
        with told_as_user_errors(f"{scheme}://", scheme):
            store = _file_systems[key] = _MAKERS[scheme](limits, may_visit)
    return store


def forget_file_systems(scheme: str) -> None:
    """Have the next call read the configuration again: credentials that were refused may have been replaced."""
    for key in list(_file_systems):  # a copy: other threads may change it
        if key[1] == scheme:
            _file_systems.pop(key, None)


def _s3(limits: Limits, may_visit: Callable[[str], bool]) -> Any:
    try:
        import s3fs
    except ImportError:
        raise _package_missing("s3", "s3fs") from None
    from fsspec.asyn import sync

    waiting = {"connect_timeout": limits.timeout_seconds, "read_timeout": limits.timeout_seconds}
    store = s3fs.S3FileSystem(
        config_kwargs={**waiting, "retries": {"total_max_attempts": 1}},
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    store.retries = 1  # the attempts are ours: those of botocore and s3fs would multiply them
    sync(store.loop, store.set_session)
    return store


def _gs(limits: Limits, may_visit: Callable[[str], bool]) -> Any:
    try:
        import gcsfs
    except ImportError:
        raise _package_missing("gs", "gcsfs") from None
    return gcsfs.GCSFileSystem(
        access="read_only",
        requests_timeout=limits.timeout_seconds,
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def _http(limits: Limits, may_visit: Callable[[str], bool]) -> Any:
    try:
        import aiohttp
        from fsspec.asyn import sync
        from fsspec.implementations.http import HTTPFileSystem
    except ImportError:
        raise _package_missing("https", "aiohttp") from None

    async def refuse_redirects(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        address = str(request.url)
        if not may_visit(address):
            raise RedirectRefusedError(f"it redirects to {masked(address)!r}, which is not allowed")
        return await handler(request)

    waiting = aiohttp.ClientTimeout(total=None, sock_connect=limits.timeout_seconds, sock_read=limits.timeout_seconds)
    client = {
        "middlewares": (refuse_redirects,),  # called for each request, also for those that follow a redirect
        "timeout": waiting,
        "read_bufsize": _CHUNK_BYTES,
        "trust_env": True,  # proxies, and passwords in ~/.netrc
    }
    store = HTTPFileSystem(client_kwargs=client, skip_instance_cache=True)
    sync(store.loop, store.set_session)
    return store


_MAKERS = {"s3": _s3, "gs": _gs, "http": _http}


def _package_missing(scheme: str, package: str) -> StoreAccessError:
    return StoreAccessError(f"addresses {scheme}://... need the package {package}: pip install 'tada-video[store]'")


def call(store: Any, function: Callable[..., Awaitable[T]], *args: Any, timeout_seconds: float, **options: Any) -> T:
    """Run a coroutine function in fsspec's thread, and cancel it when the time is over."""
    from fsspec.asyn import sync

    result: T = sync(store.loop, function, *args, timeout=timeout_seconds, **options)
    return result


# -- one attempt ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Received:
    """What is known of a file, of which ``at`` bytes have been received."""

    at: int = 0
    size: int | None = None
    """All its bytes, as the server says; None: it has not said."""
    version: str = ""
    """Changes with the content; "": unknown, and a broken transfer begins anew."""

    def begin(self, size: int | None, version: str) -> None:
        """Note what the server says at the beginning of an attempt; bytes of another version count no more."""
        if not version or (size, version) != (self.size, self.version):
            self.at = 0
        self.size, self.version = size, version


class TryAgainError(Exception):
    """An attempt failed for a reason that may pass, which the message says in words without secrets."""


def read_object(store: Any, address: str, parsed: Address, received: Received, limits: Limits) -> Generator[bytes]:
    """Yield the bytes of an object of s3 or gs from ``received.at`` on; the caller counts them there.

    Raises:
        TooLargeError: it has more bytes than are allowed.
        VideoNotFoundError, StoreAccessError, TryAgainError: see ``told_as_user_errors``.
    """
    path = f"{parsed.place}/{parsed.path}"
    size, version = _describe(store, address, path, limits)
    limits.check_size(address, size)
    received.begin(size, version)
    while received.at < size:
        length = min(_BLOCK_BYTES, size - received.at)
        is_last = received.at + length == size
        # Ask for one byte after the last: only an object that has grown since has it.
        span = {"start": received.at, "end": received.at + length + is_last}
        with told_as_user_errors(address, parsed.scheme):
            block = call(store, store._cat_file, path, timeout_seconds=limits.seconds_for(length), **span)
        if len(block) != length:
            raise TryAgainError(f"{len(block)} bytes came instead of {length}")
        yield block
    if size > _BLOCK_BYTES and _describe(store, address, path, limits) != (size, version):
        received.at = 0
        raise TryAgainError("it was replaced while it was fetched")


def _describe(store: Any, address: str, path: str, limits: Limits) -> tuple[int, str]:
    with told_as_user_errors(address, address.partition("://")[0].lower()):
        info = call(store, store._info, path, timeout_seconds=limits.seconds_for(0))
    if info["type"] == "directory":
        raise VideoNotFoundError(f"{masked(address)!r} is a folder, and no file: give a file in it", masked(address))
    return info["size"], version_of(info)


def version_of(info: dict[str, Any]) -> str:
    """What changes with an object's content, from what fsspec says of it: a hash or number, or else a time."""
    return next((str(info[key]).strip('"') for key in ("ETag", "etag", "LastModified", "updated") if info.get(key)), "")


def read_http(store: Any, address: str, received: Received, limits: Limits) -> Generator[bytes]:
    """Yield the bytes of an http address, as ``read_object``; where no size is said, the caller checks it.

    Raises:
        TooLargeError: the server says that it has more bytes than are allowed.
        VideoNotFoundError, StoreAccessError, RedirectRefusedError, TryAgainError: see ``told_as_user_errors``.
    """
    headers = {"Accept-Encoding": "identity"}
    if received.at and received.version:
        headers |= {"Range": f"bytes={received.at}-", "If-Range": received.version}
    with open_http(store, address, headers, limits) as response:
        if response.status == 206:
            _check_rest(response, received)
        else:
            size, version = _size_and_version(response, address)
            limits.check_size(address, size or 0)
            received.begin(size, version)
        while True:
            with told_as_user_errors(address, "http"):
                chunk = call(store, response.content.read, _CHUNK_BYTES, timeout_seconds=limits.seconds_for(0))
            if not chunk:
                break
            yield chunk
    if received.size is not None and received.at != received.size:
        raise TryAgainError(f"{received.at} bytes came instead of {received.size}")


@contextmanager
def open_http(store: Any, address: str, headers: dict[str, str], limits: Limits) -> Iterator[ClientResponse]:
    """Ask for an http address, and yield the response, whose content is still to be read.

    Raises:
        VideoNotFoundError, StoreAccessError, RedirectRefusedError, TryAgainError: see ``told_as_user_errors``.
    """

    async def ask() -> ClientResponse:
        session = await store.set_session()
        response: ClientResponse = await session.get(store.encode_url(address), headers=headers)
        return response

    async def close(response: ClientResponse) -> None:
        response.close()

    with told_as_user_errors(address, "http"):
        response = call(store, ask, timeout_seconds=limits.seconds_for(0))
    try:
        if response.status not in (200, 206):
            raise _status_fault(address, "http", response.status)
        yield response
    finally:
        call(store, close, response, timeout_seconds=limits.seconds_for(0))


def _size_and_version(response: ClientResponse, address: str) -> tuple[int | None, str]:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return None, ""  # decompressed on the way; aiohttp compares the compressed size
    size = response.content_length
    if size is None and response.headers.get("Transfer-Encoding", "").lower() == "chunked":
        return None, ""  # its end is marked
    if size is None:
        raise VideoNotFoundError(
            f"{masked(address)!r}: the server does not say how long the file is, so that a part of it could not be "
            "told from all; have it send Content-Length",
            masked(address),
        )
    tag = response.headers.get("ETag", "")
    strong = tag if not tag.startswith("W/") else ""  # a weak one may be equal for other bytes
    return size, strong or response.headers.get("Last-Modified", "")


def _check_rest(response: ClientResponse, received: Received) -> None:
    """Check that a partial response is the rest that was asked for."""
    expected = f"bytes {received.at}-{(received.size or 0) - 1}/{received.size}"
    if response.headers.get("Content-Range") != expected:
        received.at = 0
        raise TryAgainError("the server sent another part than the one asked for")


# -- faults -----------------------------------------------------------------------------------------------------------

_MAY_PASS = {408, 409, 412, 416, 425, 429}  # and all from 500 on
_REFUSED = {401, 403, 407}
_SIGN_IN = {
    "s3": "give them as for every AWS program (AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a role), or, "
    "for a public bucket, set FSSPEC_S3_ANON=true",
    "gs": "give them as for every Google program (gcloud auth application-default login, "
    "GOOGLE_APPLICATION_CREDENTIALS), or, for a public bucket, set FSSPEC_GS_TOKEN=anon",
    "http": "sign the address, or put the password into ~/.netrc",
}


@contextmanager
def told_as_user_errors(address: str, scheme: str) -> Iterator[None]:
    """Turn what the libraries raise into our errors. Their texts may hold secrets, so nothing of them is taken over.

    Raises:
        VideoNotFoundError: there is no such file, or it is archived.
        StoreAccessError: the store refuses us, or has no such bucket.
        RedirectRefusedError: the server redirects to an address that is not allowed.
        TryAgainError: the connection was cut or too slow, or the server says that it is busy.
    """
    try:
        yield
    except RedirectRefusedError as error:
        raise RedirectRefusedError(
            f"{masked(address)!r} is not fetched: {error}; allow it too (--allow), or leave the file out",
            masked(address),
        ) from None
    except (UserError, TryAgainError):
        raise
    except Exception as error:
        fault = _fault(error, address, "http" if scheme == "https" else scheme)
        if fault is None:
            raise
        raise fault from None


def _fault(error: Exception, address: str, scheme: str) -> Exception | None:
    """Our error for one of a library; None for one that is a bug."""
    library = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    code, status = _answer(error)
    if code == "InvalidObjectState":
        return VideoNotFoundError(f"{masked(address)!r} is archived: restore it in the store first", masked(address))
    if code == "NoSuchBucket":
        return no_bucket(address)
    if isinstance(error, TimeoutError):
        return TryAgainError("no answer came in time")
    if type(error).__name__ == "TooManyRedirects":
        return VideoNotFoundError(f"{masked(address)!r}: the server redirects again and again", masked(address))
    if type(error).__name__ in ("InvalidUrlRedirectClientError", "NonHttpUrlRedirectClientError"):
        return RedirectRefusedError(
            f"{masked(address)!r} is not fetched: it redirects to what is no address of the web; leave the file out",
            masked(address),
        )
    if "aiohttp" in library:  # answers with a status are looked at in ``open_http``: these are no valid answers
        return TryAgainError(f"the connection failed ({type(error).__name__})")
    if status is not None:
        return _status_fault(address, scheme, status)
    if isinstance(error, FileNotFoundError):
        return _status_fault(address, scheme, 404)
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden:"):  # the second is gcsfs'
        return _status_fault(address, scheme, 403)
    if "google" in library or (scheme == "gs" and isinstance(error, ValueError)):
        return _refused(address, scheme, f"no credentials can be had ({type(error).__name__})")
    if "botocore" in library and not _is_of_the_network(error):
        is_missing = type(error).__name__ == "NoCredentialsError"
        fault = "credentials are missing" if is_missing else f"no credentials can be had ({type(error).__name__})"
        return _refused(address, scheme, fault)
    if isinstance(error, OSError) or library & {"botocore", "aiobotocore"}:
        return TryAgainError(f"the connection failed ({type(error).__name__})")
    return None


def _answer(error: Exception) -> tuple[str, int | None]:
    """The store's code for the fault and the HTTP status, where it answered with one."""
    for fault in (error, error.__cause__, error.__context__):
        response = getattr(fault, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return str(response.get("Error", {}).get("Code", "")), status
    status = str(getattr(error, "status" if hasattr(error, "status") else "code", None))  # gcsfs'
    return "", int(status) if status.isdecimal() else None


def _is_of_the_network(error: Exception) -> bool:
    from botocore import exceptions

    kinds = (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError)
    return isinstance(error, kinds)


def _status_fault(address: str, scheme: str, status: int) -> Exception:
    if status >= 500 or status in _MAY_PASS:
        return TryAgainError(f"the server answers with status {status}")
    if status in _REFUSED:
        # S3 answers so, too, for an object that does not exist, if we may not list the bucket.
        unlisted = " (if it exists: without the right s3:ListBucket, that cannot be told)" if scheme == "s3" else ""
        return _refused(address, scheme, f"access is refused{unlisted}")
    if status == 404:
        return VideoNotFoundError(f"{masked(address)!r} does not exist in the store", masked(address))
    if scheme == "http":
        return VideoNotFoundError(f"{masked(address)!r}: the server answers with status {status}", masked(address))
    return _refused(address, scheme, f"the store answers with status {status} (credentials, region)")


def _refused(address: str, scheme: str, fault: str) -> StoreAccessError:
    forget_file_systems(scheme)
    return StoreAccessError(f"{masked(address)!r} cannot be read: {fault}; {_SIGN_IN[scheme]}")


def no_bucket(address: str) -> StoreAccessError:
    """The error that the bucket of an address does not exist."""
    return StoreAccessError(
        f"{masked(address)!r} cannot be read: there is no such bucket; correct its name, or the server's address "
        "(AWS_ENDPOINT_URL)"
    )
