"""Addresses of remote files: s3://BUCKET/KEY, gs://BUCKET/KEY, http://HOST/PATH and https://HOST/PATH.

Which addresses may be read is said by prefixes. An address is compared with a prefix in its parts, after decoding, so
that no spelling of an address outside a prefix looks as if it were below it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from tada.errors import OptionError

_ADDRESS = re.compile(r"(s3|gs|https?)://", re.IGNORECASE)
_INNER_ADDRESS = re.compile(r"(?<![a-z0-9])(s3|gs|https?):/", re.IGNORECASE)
_MASKED = re.compile(r"(https?|s3|gs|ftp):/+|([a-z][a-z0-9+.-]*)://+", re.IGNORECASE)
_OTHER_SCHEME = re.compile(r"(?=file:/|[a-z][a-z0-9+.-]+://)([^:]+)", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")
_UNDECODED = re.compile("[\ud800-\udfff]")  # how Python writes bytes of a file name that are no text
_MAX_KEY_BYTES = 1024  # of s3 and gs
_ENCODED_SLASH = re.compile(r"%2f|%5c", re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_address(text: str) -> bool:
    """Whether this is the address of a remote file; false for every path, and for addresses of other kinds."""
    return _ADDRESS.match(text) is not None


def refuse_other_schemes(text: str) -> None:
    """Refuse an address of a kind that is not read, such as file:// or ftp://, or with something before it.

    Otherwise it would be taken for a path, and shown with the secrets in it.

    Raises:
        OptionError: the text is such an address.
    """
    match = _OTHER_SCHEME.match(text)
    if is_address(text) or not (match or _INNER_ADDRESS.search(text)):
        return
    if match and match[1].lower() == "file":
        raise OptionError(f"{masked(text)!r} is a file of this machine: give its path, without 'file://'")
    raise OptionError(
        f"{masked(text)!r} is not read: addresses begin with s3://, gs://, https:// or http://; others are to be "
        "copied to this machine first"
    )


def masked(address: str) -> str:
    """The address for messages: user name, password and query string, which may hold secrets, become three stars."""
    match = _MASKED.search(address)
    if match is None:
        return address
    before, rest = address[: match.end()], address[match.end() :]
    if (match[1] or match[2]).lower().endswith(tuple(_DEFAULT_PORTS)):
        rest, mark, _ = rest.partition("#")
        rest, mark, _ = rest.partition("?")
        rest = f"{rest}?***" if mark else rest
    place, slash, path = rest.partition("/")
    has_password_with_slash = ":" in place and not re.fullmatch(r".*:\d+", place) and "@" in rest
    if "@" in place or has_password_with_slash:
        place, slash, path = f"***@{rest.rpartition('@')[2]}".partition("/")
    return f"{before}{place}{slash}{path}"


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of an address."""

    scheme: str
    """s3, gs, http or https."""
    place: str
    """The bucket; or the host in lower case, followed by ":PORT" if that is not the scheme's default."""
    path: str
    """The key, or the decoded path, without the slash before it. Without the query string."""

    def is_below(self, prefix: Address) -> bool:
        """Whether it is in the folder ``prefix``, at any depth, or the file of that name."""
        folder = prefix.path.rstrip("/")
        is_inside = not folder or self.path.rstrip("/") == folder or self.path.startswith(f"{folder}/")
        return (self.scheme, self.place) == (prefix.scheme, prefix.place) and is_inside


def parse_address(address: str) -> Address:
    """Take an address apart.

    Raises:
        OptionError: it is no address, or one that servers may read in several ways: with "..", a backslash, a slash
            that is percent-encoded, a user name.
    """
    refuse_other_schemes(address)
    if not is_address(address):
        raise OptionError(f"{address!r} is no address: it begins with s3://, gs://, https:// or http://")
    if _CONTROL.search(address):
        raise _malformed(address, "has a backslash or a control character")
    if _UNDECODED.search(address):
        raise OptionError(f"{masked(address)!r} is not UTF-8: write the list of addresses in UTF-8")
    scheme = address.partition("://")[0].lower()
    return _parse_http(address, scheme) if scheme in _DEFAULT_PORTS else _parse_store(address, scheme)


@lru_cache(maxsize=1024)
def parse_prefix(prefix: str) -> Address:
    """Take apart a prefix below which addresses are allowed.

    Raises:
        OptionError: it is no address, or has a query string.
    """
    parsed = parse_address(prefix)
    if parsed.scheme in _DEFAULT_PORTS and ("?" in prefix or "#" in prefix):
        raise _malformed(prefix, "has a query string or a fragment, and is to be a folder")
    return parsed


def _parse_store(address: str, scheme: str) -> Address:
    bucket, _, key = address.partition("://")[2].partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise _malformed(address, "has no valid name of a bucket: letters, digits, '.', '-' and '_'")
    if len(key.encode()) > _MAX_KEY_BYTES:
        raise _malformed(address, f"has a key of more than {_MAX_KEY_BYTES} bytes")
    if "?versionId=" in key:
        raise _malformed(address, "names a version; only the newest version of an object is read")
    if _leads_upwards(key):
        raise _malformed(address, "has '.' or '..' between slashes")
    return Address(scheme, bucket, key)


def _parse_http(address: str, scheme: str) -> Address:
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        raise _malformed(address, "has no valid host and port") from None
    host, _, _ = parts.netloc.rpartition(":") if port is not None else (parts.netloc.rstrip(":"), "", "")
    host = host.lower()
    if "@" in parts.netloc:
        raise _malformed(address, "has a user name or password, which would be logged; put them into ~/.netrc")
    if not _HOST.fullmatch(host):
        raise _malformed(address, "has no valid host; write a host of other letters in its ASCII form (xn--...)")
    place = host if port in (None, _DEFAULT_PORTS[scheme]) else f"{host}:{port}"
    return Address(scheme, place, _decode(address, parts.path))


def _decode(address: str, path: str) -> str:
    """The path without percent encoding, which may be manifold: %252e is %2e, and that is a dot."""
    while True:
        if _ENCODED_SLASH.search(path) or _CONTROL.search(path):
            raise _malformed(address, "has a percent-encoded slash, backslash or control character")
        if _leads_upwards(path):
            raise _malformed(address, "has '.' or '..' between slashes")
        decoded = unquote(path, errors="surrogateescape")
        if decoded == path:
            return path.removeprefix("/")
        path = decoded


def _leads_upwards(path: str) -> bool:
    # Some servers ignore what follows a semicolon: "..;/" is "../" to them.
    return any(part.partition(";")[0] in (".", "..") for part in path.split("/"))


def _malformed(address: str, fault: str) -> OptionError:
    return OptionError(f"{masked(address)!r} {fault}: correct the address")


def local_name(address: str) -> str:
    """A file name for a local copy: the readable part of the last name, a hash of the address, the extension."""
    last = PurePosixPath(parse_address(address).path).name
    stem, dot, extension = last.rpartition(".")
    if not dot or not re.fullmatch(r"[A-Za-z0-9]{1,10}", extension):
        stem, extension = last, ""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:60]
    number = hashlib.sha256(address.encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{readable or 'file'}-{number}{dot if extension else ''}{extension}"
