"""Which videos were trained on and which were held out, as hashes of their contents: small enough to go with a model.

Of each row of a run's list there are six bytes of a hash of the file's identity (``tada.data.identity``), and the
segment in milliseconds: 1.5 MB for 240,000 whole files. They tell of a file that is at hand whether it is known, and
nothing of files that are not. A video that was never seen is taken for one of so many known ones about once in a
billion times.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tada.data.identity import is_sha256, size_of
from tada.data.table import SPLITS

PART = "part"
"""What ``Splits.of`` says of another part of a file that was trained on."""
_KEY_BYTES = 6
_WHOLE = (0, 2**32 - 1)  # milliseconds
MOST_PARTS = 2_000_000
"""Files and segments that go into a text. A text that claims more is taken for damaged, before memory is spent."""
_FORMAT = 1


class Splits:
    """In which split of a run each content was, and which part of it.

    Attributes:
        sizes: of the known files, in bytes; None where they are not told.
        sha256_sizes: of those files that are known by their SHA-256 alone.
    """

    def __init__(self) -> None:
        self.sizes: set[int] | None = set()
        self.sha256_sizes: set[int] = set()
        self._parts: dict[bytes, list[tuple[int, int, str]]] = {}

    def __len__(self) -> int:
        """How many files and segments are known."""
        return sum(map(len, self._parts.values()))

    def add(self, identity: str, start_seconds: float | None, end_seconds: float | None, split: str) -> None:
        """Note a file, or a segment of it."""
        self._parts.setdefault(_key(identity), []).append((*_milliseconds(start_seconds, end_seconds), split))
        if self.sizes is not None:
            self.sizes.add(size_of(identity))
        if is_sha256(identity):
            self.sha256_sizes.add(size_of(identity))

    def of(self, identities: Iterable[str], start_seconds: float | None, end_seconds: float | None) -> str:
        """The split that a file or a segment was in.

        Args:
            identities: of its file.

        Returns:
            "train" where it was trained on, or shows a time that was; else the split that it was in; ``PART`` where
            it is another part of a file that was trained on; "" where it is not known.
        """
        start, end = _milliseconds(start_seconds, end_seconds)
        parts = [part for identity in identities for part in self._parts.get(_key(identity), ())]
        same = {split for first, last, split in parts if (first, last) == (start, end)}
        trained = [(first, last) for first, last, split in parts if split == "train"]
        if "train" in same or (not same and any(first < end and start < last for first, last in trained)):
            return "train"
        return min(same, default=PART if trained else "")

    def to_text(self) -> str:
        """As JSON, for ``from_text``."""
        rows: dict[str, list[tuple[bytes, int, int]]] = {}
        for key, parts in self._parts.items():
            for start, end, split in parts:
                rows.setdefault(split, []).append((key, start, end))
        about: dict[str, Any] = {
            "format": _FORMAT,
            "hash": f"{_KEY_BYTES} bytes of BLAKE2b of SIZE-HASH, as tada.data.identity has it",
            "splits": {split: _packed(sorted(rows[split])) for split in SPLITS if split in rows},
        }
        if self.sha256_sizes:
            about["sha256_sizes"] = sorted(self.sha256_sizes)
        return json.dumps(about)

    @classmethod
    def from_text(cls, text: str) -> Splits:
        """What ``to_text`` wrote.

        Raises:
            ValueError: the text is damaged, or of a later tada.
        """
        try:
            about = json.loads(text)
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']} instead of {_FORMAT}")
            splits = cls()
            splits.sizes = None
            splits.sha256_sizes = {int(size) for size in about.get("sha256_sizes", ())}
            for split, packed in about["splits"].items():
                for key, start, end in _unpacked(packed):
                    splits._parts.setdefault(key, []).append((start, end, split))
        except (KeyError, TypeError, AttributeError, RecursionError, zlib.error) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        return splits


def _key(identity: str) -> bytes:
    return hashlib.blake2b(identity.encode(), digest_size=_KEY_BYTES).digest()


def _milliseconds(start_seconds: float | None, end_seconds: float | None) -> tuple[int, int]:
    if start_seconds is None or end_seconds is None:
        return _WHOLE
    return min(round(start_seconds * 1000), _WHOLE[1]), min(round(end_seconds * 1000), _WHOLE[1])


def _packed(rows: list[tuple[bytes, int, int]]) -> dict[str, Any]:
    """All keys, then all starts, then all ends: equal ones beside each other, so that they take no room."""
    keys, starts, ends = zip(*rows, strict=True)
    data = b"".join(keys) + np.array(starts, "<u4").tobytes() + np.array(ends, "<u4").tobytes()
    return {"videos": len(rows), "packed": base64.b64encode(zlib.compress(data, 9)).decode()}


def _unpacked(packed: dict[str, Any]) -> list[tuple[bytes, int, int]]:
    count = packed["videos"]
    if type(count) is not int or not 0 <= count <= MOST_PARTS:
        raise ValueError(f"{count} videos")
    size = count * (_KEY_BYTES + 8)
    stream = zlib.decompressobj()
    data = stream.decompress(base64.b64decode(packed["packed"], validate=True), size + 1)
    if len(data) != size or not stream.eof:
        raise ValueError(f"not {count} videos")
    keys = [data[i * _KEY_BYTES : (i + 1) * _KEY_BYTES] for i in range(count)]
    times: NDArray[np.uint32] = np.frombuffer(data, "<u4", offset=count * _KEY_BYTES)
    return list(zip(keys, times[:count].tolist(), times[count:].tolist(), strict=True))
