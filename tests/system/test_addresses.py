"""Addresses: what is one, what a prefix allows, what is masked. No network."""

from __future__ import annotations

import pytest

from tada.errors import OptionError
from tada.system.addresses import is_address, local_name, masked, parse_address, parse_prefix, refuse_other_schemes
from tada.system.object_store import ObjectStore


@pytest.mark.parametrize("text", ["s3://b/a.mp4", "gs://b/a.mp4", "http://h/a.mp4", "https://h/a.mp4", "S3://b/a.mp4"])
def test_addresses(text: str) -> None:
    assert is_address(text)


@pytest.mark.parametrize(
    "text", ["a.mp4", "C:\\x.mp4", "c:/x.mp4", "hf-hub:x/y", "file:///x.mp4", "s3:/b/a.mp4", "x s3://b"]
)
def test_paths_are_none(text: str) -> None:
    assert not is_address(text)


def test_addresses_of_other_kinds_are_refused_in_words() -> None:
    with pytest.raises(OptionError, match=r"'file:///x\.mp4' is a file of this machine: give its path"):
        refuse_other_schemes("file:///x.mp4")
    with pytest.raises(OptionError, match=r"'ftp://\*\*\*@h/x' is not read: addresses begin with s3://, gs://"):
        refuse_other_schemes("ftp://me:secret@h/x")
    with pytest.raises(OptionError, match="is a file of this machine"):
        ObjectStore(allowed=("s3://videos/",)).check_allowed("file:///x.mp4")
    for odd in (" https://h/x", "https:/h/x", "a/s3://b/x", "=http://h/x"):
        with pytest.raises(OptionError, match="is not read: addresses begin with s3://"):
            refuse_other_schemes(odd)
    for path in ("logs:/x.mp4", "a.mp4", "C:\\x.mp4", "c:/x.mp4", "hf-hub:x/y", "s3://b/a", "file.mp4"):
        refuse_other_schemes(path)


@pytest.mark.parametrize(
    ("prefix", "address"),
    [
        ("s3://videos", "s3://videos/a.mp4"),
        ("s3://videos/", "s3://videos/deep/er/a.mp4"),
        ("s3://videos/cats", "s3://videos/cats/a.mp4"),
        ("s3://videos/cats/", "s3://videos/cats"),
        ("s3://videos/cats/", "S3://videos/cats/a b#1?.mp4"),
        ("s3://videos/cats/", "s3://videos/cats/100%25%2F.mp4"),  # a key is not decoded
        ("s3://videos/cats/a.mp4", "s3://videos/cats/a.mp4"),
        ("gs://videos/", "gs://videos/a.mp4"),
        ("https://Host.org/path/", "https://host.ORG/path/a.mp4?signature=1"),
        ("https://host.org:443/path", "https://host.org/path/a.mp4"),
        ("http://host.org", "http://host.org:80/a.mp4"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/a..b/...mp4"),
        ("http://[::1]:80/", "http://[::1]/a.mp4"),
        ("https://host.org/my%20path/", "https://host.org/my path/%61.mp4"),
    ],
)
def test_allowed(prefix: str, address: str) -> None:
    ObjectStore(allowed=("gs://other/", prefix)).check_allowed(address)


@pytest.mark.parametrize(
    ("prefix", "address"),
    [
        ("s3://videos", "s3://videos-2/a.mp4"),
        ("s3://videos", "gs://videos/a.mp4"),
        ("s3://videos", "s3://Videos/a.mp4"),
        ("s3://videos/cats", "s3://videos/cats-2/a.mp4"),
        ("s3://videos/cats", "s3://videos//cats/a.mp4"),
        ("s3://videos/cats", "s3://videos/%63ats/a.mp4"),
        ("https://host.org/path", "https://host.org/path2/a.mp4"),
        ("https://host.org/path", "http://host.org/path/a.mp4"),
        ("https://host.org/path", "https://host.org:8443/path/a.mp4"),
        ("https://host.org/path", "https://host.org.evil.com/path/a.mp4"),
        ("https://host.org/path", "https://evil.com/host.org/path/a.mp4"),
        ("https://host.org/path", "https://host.org//path/a.mp4"),
        ("https://host.org/path", "https://host.org/PATH/a.mp4"),
        ("https://host.org/%FF", "https://host.org/%FE/a.mp4"),
        ("https://host.org/path", "https://host.org?/path/a.mp4"),
        ("https://host.org/path", "https://host.org#/path/a.mp4"),
    ],
)
def test_not_below_the_prefix(prefix: str, address: str) -> None:
    with pytest.raises(OptionError, match=r"is not below an allowed address \(allowed are .*; to allow .* --allow "):
        ObjectStore(allowed=(prefix,)).check_allowed(address)


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("s3://videos/cats/../dogs/a.mp4", r"has '\.' or '\.\.' between slashes"),
        ("s3://videos/cats/./a.mp4", r"has '\.' or '\.\.' between slashes"),
        ("s3://videos/cats\\..\\a.mp4", "has a backslash"),
        ("s3://videos/cats/a.mp4\n", "control character"),
        ("s3://me:secret@videos/cats/a.mp4", "no valid name of a bucket"),
        ("s3://videos:80/cats/a.mp4", "no valid name of a bucket"),
        ("s3:///cats/a.mp4", "no valid name of a bucket"),
        ("s3://", "no valid name of a bucket"),
        ("s3://videos/cats/a.mp4?versionId=7", "names a version"),
        ("https://host.org/path/../a.mp4", r"has '\.' or '\.\.' between slashes"),
        ("https://host.org/path/%2e%2E/a.mp4", r"has '\.' or '\.\.' between slashes"),
        ("https://host.org/path/%252e%252e/a.mp4", r"has '\.' or '\.\.' between slashes"),
        ("https://host.org/path/..;x=1/a.mp4", r"has '\.' or '\.\.' between slashes"),
        ("https://host.org/path/..%2Fa.mp4", "percent-encoded slash"),
        ("https://host.org/path/..%5ca.mp4", "percent-encoded slash"),
        ("https://host.org/path/%00a.mp4", "control character"),
        ("https://host.org\\@evil.com/path/a.mp4", "has a backslash"),
        ("https://host.org@evil.com/path/a.mp4", "has a user name or password"),
        ("https://me:secret@host.org/path/a.mp4", "has a user name or password"),
        ("https://host.org:port/path/a.mp4", "no valid host and port"),
        ("https://host.org:99999/path/a.mp4", "no valid host and port"),
        ("https://hоst.org/path/a.mp4", "no valid host; write"),  # noqa: RUF001  # a Cyrillic letter
        ("https://host org/path/a.mp4", "no valid host"),
        ("https://host.org./path/a.mp4", "no valid host"),
        ("https:///path/a.mp4", "no valid host"),
        ("https://", "no valid host"),
        ("s3://videos/cats/\udcff.mp4", "is not UTF-8"),
        ("s3://videos/cats/" + "é" * 510, "has a key of more than 1024 bytes"),
        ("a.mp4", "is no address"),
    ],
)
def test_addresses_that_could_be_read_in_two_ways(address: str, fault: str) -> None:
    store = ObjectStore(allowed=("s3://videos/cats", "https://host.org/path"))
    with pytest.raises(OptionError, match=fault) as raised:
        store.check_allowed(address)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(OptionError, match=fault):
        ObjectStore(allowed=(address,))


def test_the_message_says_what_is_allowed_and_what_to_give() -> None:
    store = ObjectStore(allowed=("s3://videos/cats/",))
    with pytest.raises(OptionError) as raised:
        store.check_allowed("https://Host.org:8443/a.mp4?token=secret")
    assert str(raised.value) == (
        "'https://Host.org:8443/a.mp4?***' is not below an allowed address (allowed are 's3://videos/cats/'); to allow "
        "all of its place: --allow https://host.org:8443/"
    )
    with pytest.raises(OptionError, match="none is allowed yet"):
        ObjectStore(allowed=()).check_allowed("s3://videos/a.mp4")


def test_a_prefix_has_no_query() -> None:
    with pytest.raises(OptionError, match=r"'https://host\.org/\?\*\*\*' has a query string"):
        parse_prefix("https://host.org/?path=/videos/")


@pytest.mark.parametrize("name", ["max_file_bytes", "timeout_seconds", "slowest_bytes_per_second", "attempts"])
def test_numbers_out_of_range(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name} is 0: give a number above 0"):
        ObjectStore(allowed=("s3://videos/",), **{name: 0})


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://h/a.mp4?X-Amz-Signature=secret&x=1#y", "https://h/a.mp4?***"),
        ("https://h/a@b.mp4", "https://h/a@b.mp4"),
        ("https://h:80/a@b.mp4", "https://h:80/a@b.mp4"),
        ("https://secret:secret@h/a.mp4", "https://***@h/a.mp4"),
        ("https://secret@secret@h/a.mp4", "https://***@h/a.mp4"),
        ("https://me:sec/ret@h/a.mp4", "https://***@h/a.mp4"),
        ("https://secret@h?secret", "https://***@h?***"),
        ("s3://AKIA:sec/ret@videos/a.mp4", "s3://***@videos/a.mp4"),
        ("s3://videos/a?b@c#d.mp4", "s3://videos/a?b@c#d.mp4"),
        ("a.mp4", "a.mp4"),
    ],
)
def test_secrets_are_masked(address: str, expected: str) -> None:
    assert masked(address) == expected


def test_local_names_keep_the_extension_and_differ() -> None:
    addresses = [
        "s3://videos/a.mp4", "s3://videos/b/a.mp4", "s3://videos/a.MP4", "s3://videos/.mp4", "s3://videos/a",
        "s3://videos/été d'été.webm", "s3://videos/" + "x" * 900 + ".mkv", "s3://videos/a.not an extension",
        "https://h/a.mp4?id=1", "https://h/a.mp4?id=2", "https://h/%2561.mp4", "https://h/",
    ]  # fmt: skip
    names = [local_name(address) for address in addresses]
    extensions = [".mp4", ".mp4", ".MP4", ".mp4", "", ".webm", ".mkv", "", ".mp4", ".mp4", ".mp4", ""]
    assert [name[name.index(".") :] if "." in name else "" for name in names] == extensions
    assert len(set(names)) == len(names)
    assert all((name.isascii() and len(name) < 100 and name[0].isalnum()) or name[0] == "_" for name in names)
    assert parse_address(addresses[-1]).path == ""
